import asyncio
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import sobel
from torch import Tensor

from course_utils import evaluation, panels
from course_utils.methods import METHODS, Method, gradients
from course_utils.networks import Classifier
from course_utils.panels import Panel, explainer, judges
from course_utils.panels.canvas import decimal
from course_utils.panels.explainer import CHANCE, EDGES, KNOW_NOTHING
from course_utils.panels.pictures import BASELINES, picture_reader
from course_utils.worlds import scenes
from tests.networks import noting, small_classifier

pytestmark = pytest.mark.slow

PANELS = ("deletion_insertion", "cascading_randomization", "side_by_side")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(12)


QUICK: dict[str, dict[str, Any]] = {
    "xrai": {"segments": np.arange(64 * 64).reshape(64, 64) // 512},
    "lime_image": {"samples": 110},
    "shap_image": {"samples": 110},
    "smoothgrad": {"samples": 5},
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for the methods to run."""
    monkeypatch.setattr(explainer, "BACKGROUND", 6)
    for name, options in QUICK.items():
        quick = {**METHODS[name].quick, **options}
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], quick=quick))


@pytest.fixture
def panel(request: pytest.FixtureRequest, classifier: Classifier) -> Panel:
    return getattr(panels, request.param)(classifier)


every_panel = pytest.mark.parametrize("panel", PANELS, indirect=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the panels' canvases are made of, the arguments of each in turn."""
    calls: list[Any] = []
    for name in ("_curve_canvas", "_forgotten_canvas", "_beside_canvas"):
        monkeypatch.setattr(judges, name, noting(getattr(judges, name), calls))
    return calls


def pixels(panel: Panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"))


OTHERS: dict[str, dict[str, Any]] = {
    "deletion_insertion": {
        "picture": "crow",
        "target": "cow",
        "method": "grad_cam",
        "metric": "insertion",
        "baseline": "black",
        "of": "probability",
        "share": 60,
    },
    "cascading_randomization": {
        "picture": "crow",
        "method": "gradient",
        "layers": 12,
        "similarity": "hog",
        "seed": 4,
    },
    "side_by_side": {
        "picture": "crow",
        "target": "cow",
        "metric": "IoU",
        "first": "deeplift",
        "second": "lrp",
        "third": "none",
        "fourth": "random numbers",
    },
}


@every_panel
def test_every_control_changes_the_picture_and_back(panel: Panel) -> None:
    opening, words, shown = panel.values, panel.words, panel.picture.value
    others = OTHERS[panel.name.replace(" ", "_")]
    assert set(others) == set(opening)
    for name, value in others.items():
        panel.controls[name].value = value
        assert panel.status.value == "", name
        assert panel.picture.value != shown, name
        assert panel.words != words, name
        panel.update(**opening)
        assert panel.picture.value == shown, name


@every_panel
def test_the_model_is_left_as_it_was(panel: Panel, classifier: Classifier) -> None:
    model, random = classifier.model, torch.get_rng_state()
    kept = {name: (id(value), value.clone()) for name, value in model.state_dict().items()}
    parameters = [*map(id, model.parameters())]
    model.train()
    try:
        panel.update(**OTHERS[panel.name.replace(" ", "_")])
        assert panel.status.value == ""
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name][1]), name
    assert [*map(id, model.parameters())] == parameters
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


# -- deletion and insertion ------------------------------------------------------------------------


@pytest.mark.parametrize("of", evaluation.SCORES)
@pytest.mark.parametrize("baseline", judges.COVERS)
@pytest.mark.parametrize("metric", [*judges.CURVES])
def test_the_curve_is_the_library_s_and_the_picture_is_on_it(
    classifier: Classifier, drawn: list[Any], metric: str, baseline: str, of: str
) -> None:
    panel = panels.deletion_insertion(classifier)
    share = 25  # eight of 32 steps
    panel.update(method="gradient", metric=metric, baseline=baseline, of=of, share=share)
    _, seen, found, _, _ = drawn[-1]
    index = seen.target
    wanted = getattr(evaluation, metric)(
        classifier.model, seen.x, gradients.gradient(classifier.model, seen.x, index), index,
        baseline=BASELINES[baseline](classifier, seen.x), of=of,
    )  # fmt: skip
    np.testing.assert_allclose(found.fraction, wanted.fraction, atol=1e-6)
    np.testing.assert_allclose(found.score[0], wanted.score[0], atol=1e-4)
    assert found.auc[0] == pytest.approx(float(wanted.auc), abs=1e-4)
    x = judges.changed(classifier, seen.x, found.map_, metric == "deletion", baseline, share / 100)
    score = classifier.model(x).double()
    score = score.softmax(1) if of == "probability" else score
    assert float(score[0, index]) == pytest.approx(float(wanted.score[0, 8]), abs=1e-4)
    assert f"AUC {decimal(found.auc[0])}" in panel.words


def test_changed_takes_the_highest_pixels() -> None:
    model = Classifier("none", torch.nn.Identity(), ("a",), 2, (0.5,) * 3, (0.5,) * 3)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).expand(1, 3, 2, 2)
    map_ = np.array([[0.1, -9.0], [5.0, 0.2]])
    gone = judges.changed(model, x, map_, True, "mean colour", 0.5)
    assert gone[0, 0].tolist() == [[1, 2], [0, 0]]
    alone = judges.changed(model, x, map_, False, "mean colour", 0.25)
    assert alone[0, 2].tolist() == [[0, 0], [3, 0]]
    assert judges.changed(model, x, map_, True, "white", 0.25)[0, 1].tolist() == [[1, 2], [1, 4]]


@pytest.mark.parametrize("metric", [*judges.CURVES])
def test_the_verdict_compares_with_the_random_ranking(
    classifier: Classifier, drawn: list[Any], metric: str
) -> None:
    panel = panels.deletion_insertion(classifier)
    said = set()
    for method in ("occlusion", CHANCE, "guided_backprop"):
        for target in ("zebra", "cow", "crow"):
            panel.update(method=method, metric=metric, target=target)
            auc, chance = drawn[-1][2].auc
            better = auc < chance if metric == "deletion" else auc > chance
            assert panel.words.endswith("no better than random.") == (not better)
            said.add(better)
    assert said == {True, False}


def test_a_share_moves_along_the_curve_that_is_kept(
    classifier: Classifier, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "MOMENT", np.inf)  # on a slow machine, too
    panel = panels.deletion_insertion(classifier)
    assert [len(arguments[2].fraction) for arguments in drawn] == [judges.FEW + 1, judges.STEPS + 1]
    panel.controls["share"].value = 70
    assert len(drawn) == 3
    assert drawn[2][2] is drawn[1][2]


def test_the_curve_waits_for_a_slow_map(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "MOMENT", -1.0)

    async def move() -> tuple[str, str]:
        panel = panels.deletion_insertion(classifier)
        panel.controls["picture"].value = "crow"
        first = panel.words
        assert panel._refinement
        await panel._refinement
        return first, panel.words

    first, last = asyncio.run(move())
    assert first.endswith("the curve is coming.")
    assert "AUC" in last


@pytest.mark.parametrize("method", [*METHODS, *KNOW_NOTHING])
def test_every_method_can_be_judged(classifier: Classifier, drawn: list[Any], method: str) -> None:
    panel = panels.deletion_insertion(classifier)
    panel.controls["method"].value = method
    assert panel.status.value == ""
    assert f"deletion by {method} for" in panel.words
    assert drawn[-1][2].map_.shape == (64, 64)
    assert np.ptp(drawn[-1][2].map_) > 0
    panel.controls["picture"].value = "crow"  # now the data is there, and a coarse map as well
    assert panel.status.value == ""


def test_methods_get_the_data_they_need(classifier: Classifier) -> None:
    explainer, look = _explainer(classifier)
    seen = look("zebra", classifier.classes[3])
    found = explainer.map("deep_shap", seen)
    inputs = classifier.inputs(scenes.Scenes(6, seed=0, resolution=64))
    data = torch.stack([inputs[i] for i in range(6)])
    wanted = METHODS["deep_shap"].bind(data)(classifier.model, seen.x, 3)
    np.testing.assert_allclose(found, wanted[0].sum(0).numpy(), atol=1e-6)


def _explainer(classifier: Classifier) -> tuple[explainer.Explainer, Any]:
    return explainer.Explainer(classifier), picture_reader(classifier, None, judges.SCENES)[1]


def test_a_sketch_is_coarse_until_the_map_is_there(classifier: Classifier) -> None:
    explainer, look = _explainer(classifier)
    first, second = classifier.classes[:2]
    zebra, crow = look("zebra", first), look("crow", first)
    coarse, only = explainer.sketch("occlusion", zebra)
    assert only
    assert coarse is not None
    whole = explainer.map("occlusion", zebra)
    assert not np.allclose(coarse, whole)
    again, only = explainer.sketch("occlusion", zebra)
    assert again is whole
    assert not only
    assert explainer.sketch("occlusion", crow)[1]
    assert explainer.sketch("occlusion", look("zebra", second))[1]
    assert explainer.sketch("gradient", zebra)[1] is False
    assert explainer.sketch("pattern_net", zebra) == (None, True)


def test_a_method_that_joins_is_in_every_menu(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of METHODS is all that the panels ask for."""

    def brightness(model: Any, images: Tensor, target: Any = None) -> Tensor:
        return images.abs().sum(1)

    entry = Method(
        brightness, "Brightness", "A paper", 2020, cost="1 B", needs=METHODS["grad_cam"].needs
    )
    monkeypatch.setitem(METHODS, entry.name, entry)
    for name, menus in (
        ("deletion_insertion", ("method",)),
        ("cascading_randomization", ("method",)),
        ("side_by_side", ("first", "second", "third", "fourth")),
    ):
        panel = getattr(panels, name)(classifier)
        for menu in menus:
            assert entry.name in panel.controls[menu].options
            panel.controls[menu].value = entry.name
            assert panel.status.value == ""
            assert entry.name in panel.words


# -- cascading randomisation -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "similarity"), [("grad_cam", "spearman"), ("integrated_gradients", "ssim")]
)
def test_the_similarities_are_the_library_s(
    classifier: Classifier, drawn: list[Any], method: str, similarity: str
) -> None:
    panel = panels.cascading_randomization(classifier)
    panel.update(method=method, similarity=similarity, seed=2)
    name, found, *_ = drawn[-1]
    x = classifier.to_input(scenes.render(scenes.standard("zebra")).image)
    options = {"steps": 4} if method == "integrated_gradients" else {}

    def chosen(model: Any, images: Tensor, target: Any) -> Tensor:
        return METHODS[method](model, images, target, **options)

    wanted = evaluation.parameter_randomization(
        classifier.model, x, chosen, similarity=similarity,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert found.layers == [*wanted]
    np.testing.assert_allclose(found.likeness, [float(v) for v in wanted.values()], atol=1e-6)
    assert panel.controls["layers"].max == len(wanted) == len(found.maps) - 1 == len(found.sure) - 1
    first = chosen(classifier.model, x, None)[0]
    np.testing.assert_allclose(found.maps[0], first.sum(0) if first.ndim == 3 else first, atol=1e-6)
    probability, answer = classifier.model(x).softmax(1)[0].max(0)
    assert found.sure[0] == pytest.approx(float(probability), abs=1e-5)
    assert name == classifier.classes[int(answer)]


def test_the_layers_move_along_what_is_kept_and_are_named(
    classifier: Classifier, drawn: list[Any]
) -> None:
    panel = panels.cascading_randomization(classifier)
    found = drawn[-1][1]
    drawn.clear()
    for gone, last in ((0, "none"), (1, "fc"), (2, "layer4.1.conv2"), (21, "conv1")):
        panel.controls["layers"].value = gone
        assert f"{gone} of 21 layers randomised, the last one {last}, " in panel.words
        value = 1.0 if gone == 0 else found.likeness[gone - 1]
        assert f"similarity {decimal(value)};" in panel.words
        assert f"a probability of {found.sure[gone]:.2f}" in panel.words
    assert all(arguments[1] is found for arguments in drawn)


def test_edges_never_change(classifier: Classifier, drawn: list[Any]) -> None:
    panel = panels.cascading_randomization(classifier)
    panel.update(method=EDGES)
    assert drawn[-1][1].likeness == pytest.approx([1.0] * 21)
    panel.update(picture="crow", method="gradient")
    assert min(drawn[-1][1].likeness) < 0.9


def test_in_a_notebook_the_first_picture_says_that_more_is_coming(
    classifier: Classifier,
) -> None:
    async def move(name: str, **values: Any) -> tuple[str, str]:
        panel = getattr(panels, name)(classifier)
        panel.update(**values)
        first = panel.words
        assert panel._refinement
        await panel._refinement
        return first, panel.words

    for name, values in (
        ("deletion_insertion", {"picture": "crow"}),
        ("deletion_insertion", {"method": "pattern_net"}),
        ("cascading_randomization", {"seed": 1}),
        ("side_by_side", {"first": "occlusion"}),
    ):
        first, last = asyncio.run(move(name, **values))
        assert "coarse" in first or "coming" in first, (name, values)
        assert "coarse" not in last, (name, values)
        assert "coming" not in last, (name, values)


# -- side by side ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*judges.BY_MASK, *judges.BY_MODEL])
def test_the_scores_are_the_library_s(
    classifier: Classifier, drawn: list[Any], metric: str
) -> None:
    panel = panels.side_by_side(classifier)
    panel.update(metric=metric, third="none", fourth="none", target="horse")
    seen, _, maps = drawn[-1]
    assert seen.name == "horse"
    assert [shown.name for shown in maps] == ["gradient", "guided_backprop"]
    asked = (classifier.model, seen.x)
    for name, _, coarse, value in maps:
        assert not coarse
        map_ = getattr(gradients, name)(*asked, 1)
        known = {
            judges.SHARE: lambda m: m.sum(1).abs()[:, seen.mask].sum() / m.sum(1).abs().sum(),
            "IoU": lambda m: evaluation.iou(m, seen.mask),
            "pointing game": lambda m: evaluation.pointing_game(m, seen.mask),
            "faithfulness correlation": lambda m: evaluation.faithfulness_correlation(
                *asked, m, 1, patch=8
            ),
            "deletion, AUC (low is good)": lambda m: evaluation.deletion(*asked, m, 1).auc,
            "insertion, AUC (high is good)": lambda m: evaluation.insertion(*asked, m, 1).auc,
        }
        wanted = float(known[metric](map_))
        assert value == pytest.approx(wanted, abs=1e-4)
        assert f"{name} {decimal(wanted)}" in panel.words


def test_two_to_four_maps_come_one_after_the_other(
    classifier: Classifier, drawn: list[Any]
) -> None:
    panel = panels.side_by_side(classifier)
    drawn.clear()
    panel.update(first="xrai", second="occlusion", third="pattern_net", fourth="none")
    assert panel.status.value == ""
    finished = [sum(shown.value is not None for shown in maps) for _, _, maps in drawn]
    assert finished == [0, 1, 2, 3]
    assert all(len(maps) == 3 for _, _, maps in drawn)
    seen, _, maps = drawn[-1]
    wanted = judges.Explainer(classifier).map("occlusion", seen)
    np.testing.assert_array_equal(maps[1].map_, wanted)
    panel.update(third="none")
    assert [shown.name for shown in drawn[-1][2]] == ["xrai", "occlusion"]


def test_the_same_method_twice_is_shown_twice(classifier: Classifier) -> None:
    panel = panels.side_by_side(classifier)
    panel.update(second="gradient")
    assert panel.status.value == ""
    assert panel.words.count("gradient ") == 2


def test_edges_are_those_of_the_picture(classifier: Classifier, drawn: list[Any]) -> None:
    panels.side_by_side(classifier)
    seen, _, maps = drawn[-1]
    assert maps[3].name == EDGES
    np.testing.assert_allclose(maps[3].map_, 32**0.5 * sobel(seen.pixels.mean(2) / 255))


def test_a_photo_has_no_object_that_is_known(classifier: Classifier) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    panel = panels.side_by_side(classifier, photo)
    assert panel.controls["picture"].value == "your picture"
    for metric in judges.BY_MASK:
        panel.controls["metric"].value = metric
        assert panel.status.value == ""
        assert "gradient no value" in panel.words
    panel.controls["metric"].value = "deletion, AUC (low is good)"
    assert "no value" not in panel.words
    for name in PANELS[:2]:
        assert getattr(panels, name)(classifier, photo).status.value == ""


@every_panel
def test_an_error_is_a_sentence(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panel.picture.value
    monkeypatch.setitem(explainer.KNOW_NOTHING, EDGES, _broken)
    first = "method" if "method" in panel.controls else "first"
    panel.update(**{first: EDGES, "picture": "crow"})
    assert "no edges here" in panel.status.value
    monkeypatch.undo()
    panel.update(**{first: "gradient", "picture": "zebra"})
    assert panel.status.value == ""
    assert panel.picture.value != shown or first == "first"


def _broken(pixels: Any) -> Any:
    raise ValueError("no edges here.")
