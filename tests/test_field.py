from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import models
from course_utils.evaluation import controls, field, standings
from course_utils.evaluation.columns import Cost
from course_utils.evaluation.field import METRICS, ROWS, THINGS, Shown, field_table, inside
from course_utils.evaluation.standings import Table
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.tools import cli
from course_utils.worlds import photographs
from course_utils.worlds.photographs import Photograph
from tests.networks import small_classifier

pytestmark = pytest.mark.slow

SIZE = 64
nan = float("nan")


@cache
def classifier() -> Classifier:
    return small_classifier(size=SIZE)


@cache
def real() -> Classifier:
    return models.load(field.NETWORK, device="cpu")


@cache
def small_table() -> Table:
    methods = ["gradient", "|gradient|", "grad_cam", "occlusion", "noise"]
    return field_table(classifier(), ("chelsea", "coffee"), methods=methods)


@cache
def shipped() -> Table:
    return field.load()


def shown(masks: Tensor) -> Shown:
    """Of a Shown, `inside` reads the mask alone."""
    return Shown(torch.nn.Identity(), torch.zeros(0), torch.zeros(0), masks, 16)


# the share inside


def test_inside_by_hand() -> None:
    mask = torch.tensor([[[False, True], [False, True]]])
    maps = torch.tensor([[[1.0, 2.0], [-5.0, 1.0]]])
    assert inside(shown(mask), maps).tolist() == [0.75]
    assert inside(shown(~mask), maps).tolist() == [0.25]
    assert inside(shown(mask), mask.float()).tolist() == [1]
    assert inside(shown(mask), (~mask).float()).tolist() == [0]
    assert inside(shown(mask), -maps.abs()).isnan().all()


def test_noise_has_the_area() -> None:
    masks = torch.zeros(200, 32, 32, dtype=torch.bool)
    masks[:, 4:20, 8:24] = True
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    share = inside(shown(masks), controls.noise(None, images))
    error = share.std() / len(share) ** 0.5
    assert abs(share.mean() - 0.25) < 4 * error
    assert error < 0.002


# the photographs


def test_every_photograph_has_a_thing() -> None:
    assert set(THINGS) == set(photographs.NAMES)
    for name, thing in THINGS.items():
        assert thing in photographs.load(name).masks


def test_the_answer_is_about_the_thing() -> None:
    """Covered by the mean colour, all else takes less than 0.3 of the answer's logit away."""
    alone = field.shown_alone(real(), [*THINGS], 16)
    covered = alone.images.masked_fill(~alone.mask[:, None], 0)
    with torch.no_grad():
        whole, kept = (
            real().model(images).gather(1, alone.target[:, None])[:, 0]
            for images in (alone.images, covered)
        )
    assert (kept > 0.7 * whole).all()
    # The picture without anything says nothing of the class.
    with torch.no_grad():
        nothing = real().model(torch.zeros_like(alone.images[:1]))[0, alone.target]
    assert (nothing.abs() < 0.05 * whole).all()


def test_a_half_is_where_its_photograph_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every photograph has a grey of its own."""
    greys = {name: 20 + 25 * i for i, name in enumerate(THINGS)}

    def load(name: str) -> Photograph:
        image = np.full((300, 400, 3), greys[name], np.uint8)
        return Photograph(name, image, {THINGS[name]: np.ones((300, 400), bool)}, "nobody")

    monkeypatch.setattr(photographs, "load", load)
    names = ["coffee", "chelsea", "astronaut"]
    alone = field.shown_alone(classifier(), names, 16)
    beside = field.shown_beside(classifier(), alone, names)
    assert beside.images.shape == (6, 3, SIZE, SIZE)
    assert beside.target.tolist() == alone.target.tolist() * 2
    assert (beside.mask.sum((1, 2)) == SIZE**2 / 2).all()
    for name, image, mask in zip(names * 2, beside.images, beside.mask, strict=True):
        seen = classifier().to_image(image)
        columns = mask[0].nonzero()[:, 0][3:-3]  # the seam is smoothed when the collage is resized
        assert mask[:, columns].all()
        assert np.abs(seen[:, columns].astype(int) - greys[name]).max() <= 1


def test_ordinary_images_are_none_of_those_explained() -> None:
    alone = field.shown_alone(classifier(), [*THINGS], 16)
    beside = field.shown_beside(classifier(), alone, [*THINGS])
    made = field.ordinary(classifier())
    assert made.shape == (9, 3, SIZE, SIZE)
    apart = torch.cdist(made.flatten(1), torch.cat([alone.images, beside.images]).flatten(1))
    assert apart.min() > 1
    assert torch.equal(made.flip(3), alone.images)


# the table


def test_the_table_has_a_value_for_every_photograph() -> None:
    table = small_table()
    assert list(table.values) == list(METRICS)
    for metric, column in table.values.items():
        assert list(column) == list(table.costs)
        for values in column.values():
            assert values.shape == (2,)
            if metric in ("half", "inside", "randomized"):
                assert np.isfinite(values).all()
    assert table.setup["photographs"]["coffee"]["thing"] == "cup"
    assert (table.setup["scenes"], table.setup["window"], table.setup["stride"]) == (2, 8, 4)
    passes = {name: (cost.forwards, cost.backwards) for name, cost in table.costs.items()}
    assert passes == {
        "gradient": (1, 1),
        "|gradient|": (1, 1),
        "grad_cam": (1, 1),
        "occlusion": (1 + 15**2, 0),  # as many windows as on scenes
        "noise": (0, 0),
    }


def test_a_photograph_does_not_depend_on_the_others() -> None:
    table = field_table(classifier(), ("coffee",), methods=["|gradient|", "noise"], batch_size=2)
    for metric, column in table.values.items():
        for name, values in column.items():
            known = small_table().values[metric][name][1:]
            assert values == pytest.approx(known, abs=1e-3, nan_ok=True)


def test_what_knows_no_class_has_a_half() -> None:
    table = field_table(classifier(), methods=["edges", "centre", "noise"])
    for name in table.costs:
        assert table.mean("half", name)[0] == pytest.approx(0.5, abs=1e-6)
    areas = [photo["area"] for photo in table.setup["photographs"].values()]
    assert table.mean("inside", "noise")[0] == pytest.approx(np.mean(areas), abs=0.01)


def test_a_map_that_is_the_mask_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is told where the thing is has 1 in both columns."""
    alone = field.shown_alone(classifier(), ["coffee"], 16)
    beside = field.shown_beside(classifier(), alone, ["coffee"])
    masks = [*alone.mask, *beside.mask]

    def told(model: Any, images: Tensor, target: Any = None) -> Tensor:
        return torch.stack([masks.pop(0) for _ in images]).to(images)

    cost = np.zeros(3)
    other = controls.centre
    found = field._measured(told, other, alone.model, alone, beside, cost)
    assert not masks
    assert found["half"].tolist() == found["inside"].tolist() == [1]


def test_it_prints_with_its_best_first() -> None:
    table = small_table()
    lines = str(table).splitlines()
    assert lines[0].split() == [*METRICS, "seconds", "passes"]
    halves = [table.mean("half", name)[0] for name in table.methods]
    assert halves == sorted(halves, reverse=True)
    assert METRICS["half"].label in standings.markdown(table, ["half"]).splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": []}, "names must name at least one"),
        ({"names": ["chelsey"]}, "names: there is no 'chelsey'"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": ["gradcam"]}, "methods: there is no 'gradcam'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as error:
        field_table(classifier(), **changes)
    assert "\n" not in str(error.value)


# two tables


def table_of(**columns: list[list[float]]) -> Table:
    """Methods a, b, c … and noise, a row of pictures each."""
    names = [*"abcdefgh"[: len(next(iter(columns.values()))) - 1], "noise"]
    values = {
        metric: {name: np.array(row) for name, row in zip(names, rows, strict=True)}
        for metric, rows in columns.items()
    }
    return Table(values, dict.fromkeys(names, Cost(0, 1, 0)), {}, METRICS)


def test_order_kept_by_hand() -> None:
    here = table_of(deletion=[[0.1, 0.3], [0.4, 0.4], [0.6, 0.6], [0.0, 0.0]])
    same = table_of(deletion=[[0.3, nan, 0.3], [0.5, nan, 0.4], [0.9, nan, 0.9], [1.0, 1.0, 1.0]])
    other = table_of(deletion=[[0.5], [0.4], [0.6], [0.1]])  # one pair of three is exchanged
    turned = table_of(deletion=[[0.9], [0.4], [0.1], [0.1]])
    assert field.order_kept(here, same, "deletion") == (1, 1, 1)  # noise is left out
    assert field.order_kept(here, other, "deletion")[0] == pytest.approx(1 / 3)
    assert field.order_kept(here, turned, "deletion") == (-1, -1, -1)
    with pytest.raises(ValueError, match="^metric: there is no 'inside'"):
        field.order_kept(here, same, "inside")


def test_the_interval_of_an_order_is_wide_where_photographs_disagree() -> None:
    here = table_of(deletion=[[0.1] * 9, [0.2] * 9, [0.3] * 9, [0.0] * 9])
    noisy = np.random.default_rng(0).normal(size=(4, 9)) + np.array([[0.1], [0.2], [0.3], [0]])
    tau, low, high = field.order_kept(here, table_of(deletion=noisy.tolist()), "deletion")
    assert low <= tau <= high
    assert high - low > 0.3


# the file, and the command


def test_round_trip(tmp_path: Path) -> None:
    table, path = small_table(), tmp_path / "league.json"
    with pytest.raises(FileNotFoundError, match="`course league --photographs` makes it"):
        field.load(path)
    standings.save(table, path)
    again = field.load(path)
    assert again.methods == table.methods
    assert again.setup == table.setup
    assert again.metrics is METRICS
    for metric, column in table.values.items():
        for name, values in column.items():
            assert again.values[metric][name] == pytest.approx(values, abs=5.1e-4, nan_ok=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match="`course league --photographs` makes it again"):
        field.load(path)


def test_rows_are_put_in_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure(classifier: Classifier, *, methods: list[str] | None) -> Table:
        asked.append((classifier.name, methods))
        return field_table(classifier, ("rocket",), methods=methods or ["gradient", "noise"])

    monkeypatch.setattr(field, "field_table", measure)
    monkeypatch.setattr(field.models, "load", lambda name, device: classifier())
    path = tmp_path / "league.json"
    first = field.make(path=path)
    both = field.make(["grad_cam"], path)
    assert asked == [("small", None), ("small", ["grad_cam"])]
    assert list(both.costs) == ["gradient", "grad_cam", "noise"]
    assert both.values["half"]["noise"].tolist() == first.values["half"]["noise"].tolist()
    assert both.metrics is METRICS


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def make(names: list[str] | None) -> Table:
        asked.append(names)
        return small_table()

    monkeypatch.setattr(field, "make", make)
    assert cli.main(["league", "--photographs"]) == 0
    assert cli.main(["league", "--photographs", "--only", "lrp"]) == 0
    assert asked == [None, ["lrp"]]
    assert str(small_table()) in capsys.readouterr().out


# the table that the course ships


def test_the_shipped_table_is_whole() -> None:
    table = shipped()
    assert set(METHODS) < set(ROWS)
    assert list(table.costs) == ROWS, "`course league --photographs --only NAME` adds a row"
    assert list(table.values) == list(METRICS)
    assert table.setup["model"] == field.NETWORK
    assert {n: photo["thing"] for n, photo in table.setup["photographs"].items()} == THINGS
    for column in table.values.values():
        assert list(column) == ROWS
        assert all(values.shape == (9,) for values in column.values())


def test_the_shipped_controls_are_at_chance() -> None:
    table = shipped()
    areas = [photo["area"] for photo in table.setup["photographs"].values()]
    assert table.mean("inside", "noise")[0] == pytest.approx(np.mean(areas), abs=0.01)
    for name in controls.LEAGUE_CONTROLS:
        assert table.mean("half", name)[0] == pytest.approx(0.5, abs=0.002)
        same = table.values["randomized"][name]
        assert same[: field.FEW] == pytest.approx(1)
        assert np.isnan(same[field.FEW :]).all()


def test_a_shipped_row_measured_again() -> None:
    names = [*THINGS][:2]
    again = field_table(real(), names, methods=["|gradient|"])
    for metric, column in again.values.items():
        known = shipped().values[metric]["|gradient|"][:2]
        assert column["|gradient|"] == pytest.approx(known, abs=0.01), metric
    for name in names:
        assert again.setup["photographs"][name] == shipped().setup["photographs"][name]
