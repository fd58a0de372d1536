import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from course_utils import panels
from course_utils.evaluation import truth
from course_utils.methods import lime, regions
from course_utils.methods import shapley as shapley_values
from course_utils.networks import Classifier
from course_utils.panels import coalitions, surrogates
from course_utils.panels.canvas import decimal
from course_utils.worlds import scenes
from tests.networks import noting, small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the panels' canvases are made of, the arguments of each in turn."""
    calls: list[Any] = []
    for module, name in ((surrogates, "_lime_canvas"), (coalitions, "_game_canvas")):
        monkeypatch.setattr(module, name, noting(getattr(module, name), calls))
    return calls


# -- neighbourhood ---------------------------------------------------------------------------------


def test_the_line_is_a_linear_model_where_there_is_one() -> None:
    panel = panels.neighbourhood(lambda points: 0.5 + 0.25 * points[:, 0] - 0.125 * points[:, 1])
    for width in (0.2, 4.0):
        panel.controls["width"].value = width
        assert "weights 0.25 and −0.12, R² 1.00" in panel.words


def test_a_flat_model_has_no_line() -> None:
    panel = panels.neighbourhood(lambda points: np.full(len(points), 0.25))
    assert panel.status.value == ""
    assert "R² unknown" in panel.words
    assert "weights 0.00 and 0.00" in panel.words


@pytest.mark.parametrize(
    ("weights", "intercept", "ends"),
    [
        ((1.0, 0.0), 0.0, ((0.5, -2), (0.5, 2))),
        ((0.0, 2.0), 0.0, ((-2, 0.25), (2, 0.25))),
        ((1.0, 1.0), 0.5, ((-2, 2), (2, -2))),
        ((1.0, 0.0), 3.0, None),
        ((0.0, 0.0), 0.5, None),
    ],
)
def test_the_ends_of_the_half_line(
    weights: tuple[float, float], intercept: float, ends: tuple[Any, Any] | None
) -> None:
    found = surrogates._half_line(np.array(weights), intercept)
    if ends is None:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_allclose(sorted(map(tuple, found)), sorted(ends), atol=1e-12)


def test_the_plane_needs_a_function() -> None:
    with pytest.raises(TypeError, match="^model must be a function of points, not str"):
        panels.neighbourhood("scenes")


# -- lime ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["all", 3])
def test_the_map_is_lime_image_s(classifier: Classifier, drawn: list[Any], features: Any) -> None:
    panel = panels.lime(classifier)
    panel.update(
        picture="crow", target="cow", segments=20, samples=100, seed=3, width=0.3, features=features
    )
    _, seen, (labels, _), sampled, fitted, *_ = drawn[-1]
    x, index = seen.x, seen.target
    assert np.array_equal(labels, regions.segment(classifier.to_image(x), n_segments=20))
    wanted = lime.lime_image_fit(
        classifier.model, x, index, segments=labels, samples=100, kernel_width=0.3,
        features=None if features == "all" else features,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert index == scenes.CLASSES.index("cow")
    assert wanted.r2 is not None
    assert len(sampled.z) == 100
    found = fitted.line.coefficients[labels]
    np.testing.assert_allclose(found, wanted.value[0].numpy(), atol=1e-5)
    assert f"R² {wanted.r2.item():.2f}".replace("-", "−") in panel.words


def test_a_first_map_is_coarse_and_other_fits_ask_nothing(
    classifier: Classifier, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = panels.lime(classifier)
    assert [len(arguments[3].z) for arguments in drawn] == [surrogates.COARSE, 200]

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(surrogates, "sample_image", refuse)
    for change in ({"width": 1.0}, {"features": 2}, {"target": "zebra"}):
        panel.update(**change)
        assert panel.status.value == ""
    assert len(drawn) == 5


def test_a_kernel_that_leaves_one_sample_is_told(classifier: Classifier) -> None:
    panel = panels.lime(classifier)
    panel.update(samples=50, width=0.1)
    assert "nan" not in panel.words
    assert panel.status.value == "" or "kernel" in panel.status.value
    panel.update(samples=200, width=0.25)
    assert panel.status.value == ""


# -- shapley ---------------------------------------------------------------------------------------


def test_the_exact_values_are_the_redraws(classifier: Classifier, drawn: list[Any]) -> None:
    panel = panels.shapley(classifier)
    panel.update(picture="crow", target="panther")
    game, _, absent, v, name, _ = drawn[-1]
    index = classifier.classes.index(name)
    assert absent == coalitions.DRAWN
    wanted = truth.true_effects(
        classifier, scenes.render(scenes.standard("crow"), 128), kind="shapley", target=index,
        parts=coalitions.GAMES["crow"][1],
    )  # fmt: skip
    bits = 2 ** torch.arange(len(game.names))
    exact = shapley_values.exact_shapley(lambda c: v[(c * bits).sum(1)], len(game.names))
    np.testing.assert_allclose(exact, list(wanted.values()), atol=1e-4)
    for name, value in wanted.items():
        assert f"{name} {decimal(value)}" in panel.words


@pytest.mark.parametrize("absent", list(coalitions.ABSENT))
def test_hidden_players_show_what_was_chosen(classifier: Classifier, absent: str) -> None:
    game = coalitions.Game(classifier, "crow", scenes.standard("crow"))
    present = [True, True, False, True, True, False]
    pictures = game.shown(present, absent)
    hidden = game.masks[2] | game.masks[5]
    cover = coalitions.ABSENT[absent](classifier, game.x).expand_as(pictures)
    torch.testing.assert_close(pictures[:, :, hidden], cover[:, :, hidden])
    kept = game.x.expand_as(pictures)[:, :, ~hidden]
    torch.testing.assert_close(pictures[:, :, ~hidden], kept)
    with torch.no_grad():
        wanted = classifier.model(pictures).mean(0)
    torch.testing.assert_close(game.ask([0b011011], absent)[0b011011], wanted)


def test_players_do_not_overlap(classifier: Classifier) -> None:
    for name, (spec, parts) in coalitions.GAMES.items():
        game = coalitions.Game(classifier, name, spec)
        assert len(game.names) == len(parts) <= coalitions.MOST
        assert int(game.masks.sum(0).max()) == 1
        assert game.masks.flatten(1).any(1).all(), name


def test_a_switch_asks_for_the_coalition_that_it_shows(
    classifier: Classifier, drawn: list[Any]
) -> None:
    panel = panels.shapley(classifier)
    panel.controls["player1"].value = False
    game, now, _, v, _, _ = drawn[-1]
    assert now == 0b101
    assert game.present(now) == [True, False, True]
    assert "present: ladybird, background;" in panel.words
    assert f"is {decimal(float(v[now]))}." in panel.words
    panel.update(player0=False, player2=False)
    assert "present: nobody" in panel.words


def test_the_mean_over_all_orders_is_the_shapley_value(monkeypatch: pytest.MonkeyPatch) -> None:
    v = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = iter(itertools.permutations(range(3)))

    class All:
        def permutation(self, n: int) -> np.ndarray:
            return np.array(next(orders))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: All())
    found = coalitions.mean_of_orders(v, 3, 6)
    bits = 2 ** torch.arange(3)
    wanted = shapley_values.exact_shapley(lambda c: v[(c * bits).sum(1)], 3)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_every_order_s_sum_is_the_whole() -> None:
    v = torch.rand(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for orders in (1, 7):
        total = coalitions.mean_of_orders(v, 5, orders).sum()
        assert total == pytest.approx(float(v[-1] - v[0]))


def test_a_photo_s_players_are_segments_and_it_cannot_be_drawn(
    classifier: Classifier,
) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    panel = panels.shapley(classifier, photo)
    assert panel.controls["picture"].value == "your picture"
    assert panel.controls["absent"].value == "mean colour"
    assert "segment 1" in panel.words
    before = panel.picture.value
    panel.controls["absent"].value = coalitions.DRAWN
    assert "only a scene can be drawn without a part" in panel.status.value
    assert panel.picture.value == before
    panel.update(picture="zebra", absent=coalitions.DRAWN)
    panel.controls["picture"].value = "your picture"
    assert panel.controls["absent"].value == "mean colour"
    assert panel.status.value == ""


def test_any_photo_has_at_most_eight_players(classifier: Classifier) -> None:
    for name in ("rocket", "chelsea"):
        game = coalitions.Game(classifier, name, name)
        assert 1 <= len(game.names) <= coalitions.MOST


def test_one_s_own_scene_is_a_game(classifier: Classifier) -> None:
    scene = scenes.render(scenes.standard("football"), 64)
    for image in (scene, scene.spec):
        panel = panels.shapley(classifier, image)
        assert "Of shadow, ball, background" in panel.words
        assert panel.controls["absent"].value == coalitions.DRAWN


def test_in_a_notebook_the_first_picture_comes_before_the_table(
    classifier: Classifier,
) -> None:
    async def move() -> tuple[str, str]:
        panel = panels.shapley(classifier)
        panel.controls["picture"].value = "zebra"
        first = panel.words
        assert panel._refinement
        await panel._refinement
        return first, panel.words

    first, last = asyncio.run(move())
    assert "Shapley values: coming" in first
    assert "Shapley values: head" in last
