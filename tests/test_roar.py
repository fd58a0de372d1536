import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import plotting
from course_utils.evaluation.experiments import (
    SETTINGS,
    attributions,
    control_maps,
    digits,
    fit_cnn,
    fit_digits,
    make,
)
from course_utils.evaluation.roar import (
    FILE,
    Labelled,
    Roar,
    advantage,
    load,
    mean_color,
    plot,
    removal_order,
    remove,
    roar,
    save,
    t_interval,
)
from course_utils.methods.gradients import gradient, smoothgrad

Logits = Callable[[Tensor], Tensor]
A, B, COPY = (0, 1), (2, 3), (3, 0)  # pixels
METHODS = [
    "gradient",
    "gradient squared",
    "integrated_gradients",
    "guided_backprop",
    "grad_cam",
    "smoothgrad",
    "smoothgrad squared",
    "vargrad",
]


def world(seed: int, *, copied: bool = False, n: int = 400) -> Labelled:
    """4×4 images whose class, 0 to 3, is written in the signs of the pixels A and B, no other."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 4, 4, generator=generator)
    bits = torch.randint(2, (2, n), generator=generator)
    for pixel, bit in zip((A, B), bits, strict=True):
        images[:, 0, pixel[0], pixel[1]] = 2.0 * bit - 1
    if copied:
        images[:, 0, COPY[0], COPY[1]] = images[:, 0, A[0], A[1]]
    return images, bits[0] + 2 * bits[1]


def least_squares(images: Tensor, labels: Tensor, seed: int = 0) -> Logits:
    """The best linear network, at once: its logits are the regression on each class."""

    def padded(batch: Tensor) -> Tensor:
        return torch.nn.functional.pad(batch.double().flatten(1), (0, 1), value=1.0)

    wanted = torch.nn.functional.one_hot(labels).double()
    inputs = padded(images)
    ridge = 1e-3 * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted)
    return lambda batch: padded(batch) @ weight


def marking(*pixels: tuple[int, int], n: int = 400) -> Tensor:
    maps = torch.zeros(n, 4, 4)
    for row, column in pixels:
        maps[:, row, column] = 1
    return maps


def both(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps, maps


def measured(maps: dict[str, Any], **options: Any) -> Roar:
    copied = options.pop("copied", False)
    train, test = world(1, copied=copied), world(2, copied=copied)
    return roar(train, test, maps, least_squares, **options)


# Where the truth is known


def test_perfect_random_and_inverted_rankings() -> None:
    maps = {
        "perfect": both(marking(A, B)),
        "random": both(marking()),
        "inverted": both(-marking(A, B)),
    }
    result = measured(maps, fractions=(0, 2 / 16, 0.5, 14 / 16))
    perfect, random, inverted = (result.accuracy[name].mean(1) for name in maps)
    assert perfect[0] == random[0] == inverted[0] == 1
    assert (perfect[1:] - 0.25).abs().max() < 0.1  # nothing is left to learn from
    assert (inverted == 1).all()
    assert (perfect[1:] < random[1:]).all()
    assert (random[1:] < 0.95).all()
    assert (random.diff() < -0.1).all()
    # At random, each of the two pixels is left with probability 1 − t, else guessed: (1 − t / 2)².
    expected = (1 - torch.tensor(result.fractions).double() / 2) ** 2
    torch.testing.assert_close(random, expected, atol=0.06, rtol=0)
    found = advantage(result)
    assert found["perfect"][0] - found["perfect"][1] > 0
    assert found["inverted"][0] + found["inverted"][1] < 0


def test_one_of_the_two_pixels_costs_its_bit() -> None:
    result = measured({"half": both(marking(A))}, fractions=(1 / 16,))
    assert result.accuracy["half"].mean().item() == pytest.approx(0.5, abs=0.06)


def test_evidence_that_is_there_twice_is_not_missed() -> None:
    """A limit of ROAR: A is used, and marking it is right, yet with its copy left nothing falls."""
    maps = {"one": both(marking(A)), "copies": both(marking(A, COPY))}
    one, copies = measured(maps, fractions=(1 / 16, 2 / 16), copied=True).accuracy.values()
    assert (one[0] == 1).all()
    assert copies[1].mean().item() == pytest.approx(0.5, abs=0.06)
    alone = measured({"one": both(marking(A))}, fractions=(1 / 16,)).accuracy["one"]
    assert alone.mean() < 0.6  # the same map, where there is no copy


def test_a_hole_in_the_shape_of_the_class_tells_the_class() -> None:
    """The other limit: images of noise become readable by what was taken away."""
    (noise, labels), maps = world(3), torch.zeros(400, 4, 4)
    noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(4)).sign()
    maps[torch.arange(400), labels] = 1.0  # row c of an image of class c
    told = {"told": both(maps), "random": both(marking())}
    sets = (noise[:200], labels[:200]), (noise[200:], labels[200:])
    told = {name: (a[:200], b[200:]) for name, (a, b) in told.items()}

    def of_squares(images: Tensor, labels: Tensor, seed: int) -> Logits:
        model = least_squares(images**2, labels)
        return lambda batch: model(batch**2)

    result = roar(*sets, told, of_squares, fractions=(0, 0.25))
    before, after = result.accuracy["told"].mean(1)
    assert before < 0.4
    assert after > 0.9
    assert result.accuracy["random"].max() < 0.4
    alone = roar(*sets, told, least_squares, fractions=(0.25,), holes=True)
    assert (alone.accuracy["told"] == 1).all()
    assert alone.accuracy["random"].max() < 0.4


# The protocol


class Recorder:
    """A `fit` that notes what it was given; its networks note what they are asked."""

    def __init__(self) -> None:
        self.trained: list[tuple[Tensor, Tensor, int]] = []
        self.asked: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> Logits:
        self.trained.append((images, labels, seed))

        def model(batch: Tensor) -> Tensor:
            self.asked.append(batch)
            return torch.eye(2)[torch.zeros(len(batch), dtype=torch.long)]

        return model


def small(dtype: torch.dtype = torch.float32) -> tuple[Labelled, Labelled]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(50, 256, (8, 3, 3, 4), generator=generator).to(dtype)
    return (images[:5], torch.tensor([0, 1, 1, 0, 1])), (images[5:], torch.tensor([0, 0, 1]))


def some_maps(dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 8, 3, 3, 4, generator=generator, dtype=dtype)
    return {
        "colours": [maps[0, :5], maps[0, 5:]],
        "flat": [maps[1, :5].sum(1), maps[1, 5:].sum(1)],
    }


def test_what_is_trained_and_with_which_seed() -> None:
    fit, (train, test) = Recorder(), small()
    result = roar(train, test, some_maps(), fit, fractions=(0, 0.5), repeats=2, seed=7)
    assert [seed for *_, seed in fit.trained] == [7, 7, 7, 8, 8, 8]
    assert all(labels is train[1] for _, labels, _ in fit.trained)
    torch.testing.assert_close(fit.trained[0][0], train[0])
    torch.testing.assert_close(fit.trained[3][0], train[0])
    assert result.fractions == (0.0, 0.5)
    assert list(result.accuracy) == ["colours", "flat"]
    for values in result.accuracy.values():
        assert values.shape == (2, 2)
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, torch.full((2, 2), 2 / 3).double())
    assert result.chance == pytest.approx(2 / 3)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["colours", "flat"])
def test_the_highest_go_and_the_training_mean_comes(name: str, fraction: float) -> None:
    fit, (train, test) = Recorder(), small()
    maps = {name: some_maps()[name]}
    roar(train, test, maps, fit, fractions=(fraction,), repeats=1)
    ((seen, _, _),), (new,) = fit.trained, fit.asked
    mean = train[0].mean((0, 2, 3))
    for (images, _), each, changed in zip((train, test), maps[name], (seen, new), strict=True):
        relevance = each.sum(1) if each.ndim == 4 else each
        for image, values, result in zip(images, relevance, changed, strict=True):
            highest = values.flatten().sort(descending=True).values[: round(fraction * 12)]
            gone = torch.isin(values, highest)
            assert gone.sum() == round(fraction * 12)
            torch.testing.assert_close(result[:, gone], mean[:, None].expand(-1, int(gone.sum())))
            torch.testing.assert_close(result[:, ~gone], image[:, ~gone])


def test_whole_numbers_stay_whole() -> None:
    fit, (train, test) = Recorder(), small(torch.uint8)
    roar(train, test, some_maps(), fit, fractions=(0.5,), repeats=1)
    assert fit.trained[0][0].dtype == fit.asked[0].dtype == torch.uint8
    mean = train[0].double().mean((0, 2, 3)).round().to(torch.uint8)
    assert mean_color(train[0]).flatten().tolist() == mean.tolist()


def test_holes_are_all_that_is_left() -> None:
    fit, (train, test) = Recorder(), small()
    roar(train, test, some_maps(), fit, fractions=(0, 0.5), repeats=1, holes=True)
    assert not fit.trained[0][0].any()
    for images, _, _ in fit.trained[1:]:
        assert images.shape == (5, 1, 3, 4)
        assert set(images.unique().tolist()) == {0, 1}
        assert (images.sum((1, 2, 3)) == 6).all()


def test_nothing_is_changed_that_was_given() -> None:
    (train, test), maps = small(), some_maps()
    before = [each.clone() for pair in maps.values() for each in pair]
    images = train[0].clone(), test[0].clone()
    state = torch.get_rng_state()
    roar(train, test, maps, Recorder(), repeats=1)
    assert torch.equal(train[0], images[0])
    assert torch.equal(test[0], images[1])
    after = [each for pair in maps.values() for each in pair]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_again_and_methods_are_paired() -> None:
    maps = {"random": both(marking()), "again": both(marking() + 3.0)}
    one, two = measured(maps), measured(maps)
    assert torch.equal(one.accuracy["random"], two.accuracy["random"])
    assert torch.equal(one.accuracy["random"], one.accuracy["again"])  # the same ties
    other = measured(maps, seed=10)
    assert not torch.equal(one.accuracy["random"], other.accuracy["random"])


# The order


def test_ties_go_in_random_order_and_the_rest_by_value() -> None:
    maps = torch.zeros(2000, 2, 3)
    maps[:, 0, 1], maps[:, 1, 2] = 5.0, -5.0
    order = removal_order(maps, torch.Generator().manual_seed(0))
    assert order.shape == maps.shape
    assert (order[:, 0, 1] == 0).all()
    assert (order[:, 1, 2] == 5).all()
    assert (order.flatten(1).sort(1).values == torch.arange(6)).all()
    second = (order == 1).double().mean(0).flatten()[[0, 2, 3, 4]]
    assert (second - 0.25).abs().max() < 0.04  # three standard errors


def test_channels_are_added_before_they_are_ranked() -> None:
    maps = torch.tensor([[[[3.0, 2.0]], [[-3.0, -1.0]]]])
    assert removal_order(maps, torch.Generator()).tolist() == [[[1, 0]]]


def test_remove_takes_the_first_in_order() -> None:
    images = torch.arange(8.0).view(1, 2, 2, 2)
    order = torch.tensor([[[3, 0], [1, 2]]])
    fill = torch.tensor([-1.0, -2.0])[:, None, None]
    left = remove(images, order, 0.5, fill)
    assert left.tolist() == [[[[0, -1], [-1, 3]], [[4, -2], [-2, 7]]]]


# The numbers


def test_t_interval_by_hand() -> None:
    mean, half = t_interval(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]).double())
    assert mean.tolist() == [2, 5]
    assert half.tolist() == pytest.approx([4.302653 / 3**0.5, 0])


def test_one_repeat_says_nothing_of_the_spread() -> None:
    result = measured({"random": both(marking()), "perfect": both(marking(A, B))}, repeats=1)
    mean, half = t_interval(result.accuracy["perfect"])
    assert mean.isfinite().all()
    assert half.isnan().all()
    assert np.isnan(advantage(result)["perfect"][1])


def result_by_hand() -> Roar:
    accuracy = {
        "random": torch.tensor([[0.9, 0.9], [0.8, 0.6], [0.6, 0.4]]).double(),
        "good": torch.tensor([[0.9, 0.9], [0.5, 0.4], [0.3, 0.4]]).double(),
    }
    return Roar((0.0, 0.5, 0.9), accuracy, 0.25)


def test_advantage_by_hand() -> None:
    found = advantage(result_by_hand())
    assert list(found) == ["good"]
    # Gaps (0.3 + 0.3) / 2 and (0.2 + 0) / 2; their spread is 0.2 / √2, t is 12.706.
    assert found["good"] == pytest.approx((0.2, 12.7062 * 0.1))
    assert advantage(result_by_hand(), over="good")["random"][0] == pytest.approx(-0.2)
    with pytest.raises(ValueError, match="over: there is no 'sobel'; choose one of random, good"):
        advantage(result_by_hand(), over="sobel")


# Rankings


def test_controls() -> None:
    images = torch.zeros(2, 3, 5, 6)
    images[0, :, :, 3:] = 1.0
    images[1, 1] = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    found = control_maps(images, images[:1])
    assert list(found) == ["random", "sobel"]
    assert [each.shape for pair in found.values() for each in pair] == [(2, 5, 6), (1, 5, 6)] * 2
    assert not found["random"][0].any()
    edges = found["sobel"][0]
    assert edges[0].tolist() == [[0, 0, 4, 4, 0, 0]] * 5
    grey = np.pad(images[1].mean(0).double().numpy(), 1, mode="symmetric")
    kernel = np.outer([1, 2, 1], [-1, 0, 1])
    for row, column in np.ndindex(5, 6):
        patch = grey[row : row + 3, column : column + 3]
        slope = np.hypot((patch * kernel).sum(), (patch * kernel.T).sum())
        assert edges[1, row, column].item() == pytest.approx(slope, abs=1e-6)


def network() -> nn.Sequential:
    images = torch.randn(24, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) % 3
    return fit_cnn(images, labels, 0, widths=(8,), epochs=2, batch_size=8, lr=0.01)


def test_attributions_are_the_library_s() -> None:
    model = network()
    images = torch.randn(5, 2, 9, 7, generator=torch.Generator().manual_seed(5))
    found = attributions(model, images, images[:2], samples=6, steps=3)
    assert list(found) == METHODS
    for whole, part in found.values():
        torch.testing.assert_close(whole[:2], part)
    torch.testing.assert_close(found["gradient"][0], gradient(model, images))
    torch.testing.assert_close(found["gradient squared"][0], found["gradient"][0] ** 2)

    def squared(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        return gradient(model, images, target) ** 2

    twin = smoothgrad(model, images, method=squared, samples=6)
    torch.testing.assert_close(found["smoothgrad squared"][0], twin)
    plain = smoothgrad(model, images, samples=6)
    torch.testing.assert_close(found["smoothgrad"][0], plain)
    torch.testing.assert_close(found["vargrad"][0], (twin - plain**2) * 6 / 5)


def test_a_network_learns_the_digits() -> None:
    train, test = digits()
    model = fit_digits(*train, 0)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        right = (model(test[0]).argmax(1) == test[1]).double().mean()
    assert right > 0.93


def test_training_again_gives_the_same_network_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, again = network().state_dict(), network().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    models = [
        fit_cnn(images, torch.arange(8) % 2, seed, widths=(8,), epochs=1, batch_size=4, lr=0.01)
        for seed in (0, 1)
    ]
    one, two = (model.state_dict()["0.weight"] for model in models)
    assert not torch.equal(one, two)


def test_digits() -> None:
    (images, labels), (unseen, truth) = digits()
    assert images.shape == (1200, 1, 8, 8)
    assert unseen.shape == (597, 1, 8, 8)
    assert images.mean().abs() < 1e-6
    assert images.max() - images.min() == pytest.approx(1)
    assert labels.unique().tolist() == truth.unique().tolist() == list(range(10))
    everything = torch.cat([images, unseen]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # each digit once, in one of the two


# The file


TINY = replace(
    SETTINGS, train=32, test=32, resolution=16, epochs=1, samples=2, steps=2, fractions=(0.0, 0.5)
)


@pytest.mark.slow
def test_make_writes_what_load_reads(tmp_path: Path) -> None:
    path = make(tmp_path / "roar.json", settings=TINY)
    assert [each.name for each in tmp_path.iterdir()] == ["roar.json"]
    result, holes = load(path), load(path, holes=True)
    assert list(result.accuracy) == list(holes.accuracy) == [*METHODS, "random", "sobel"]
    assert [*result.fractions, *holes.fractions] == [0, 0.5, 0.5]
    assert all(values.shape == (2, 3) for values in result.accuracy.values())
    assert all(values.shape == (1, 3) for values in holes.accuracy.values())
    assert json.loads(path.read_text())["recipe"]["seed"] == 0


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `course roar`"):
        load(tmp_path / "none.json")
    path = tmp_path / "roar.json"
    for text in ("", "[]", "{}", '{"pixels": {"fractions": [0], "accuracy": {"a": [["x"]]}}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"path: roar\.json is damaged; run `course roar`"):
            load(path)


def test_saved_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = save({"pixels": result_by_hand()}, tmp_path / "r.json")
    before = path.read_text()
    with pytest.raises(TypeError):
        save({"pixels": result_by_hand()}, path, settings={1j})
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_stored_run_is_complete() -> None:
    assert FILE.stat().st_size < 50_000
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    recipe = {
        **vars(SETTINGS),
        "widths": list(SETTINGS.widths),
        "fractions": list(SETTINGS.fractions),
    }
    assert stored["recipe"] == recipe
    for holes, rows in ((False, len(SETTINGS.fractions)), (True, 1)):
        result = load(holes=holes)
        assert list(result.accuracy) == [*METHODS, "random", "sobel"]
        assert result.chance == pytest.approx(1 / 16, abs=0.002)
        for values in result.accuracy.values():
            assert values.shape == (rows, SETTINGS.repeats)
            assert ((values >= 0) & (values <= 1)).all()
    untouched = torch.stack([values[0] for values in load().accuracy.values()])
    assert (untouched == untouched[0]).all()
    assert untouched.min() > 0.8


# The figure


def test_plot_shows_a_line_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plotting, "show", lambda figure, alt: kept.append((figure, alt)))
    many = {f"m{k}": torch.full((3, 2), 0.9 - 0.001 * k).double() for k in range(8)}
    result = result_by_hand()._replace(accuracy={**result_by_hand().accuracy, **many})
    plot(result, alt="falling lines", title="ROAR")
    ((figure, alt),) = kept
    assert alt == "falling lines"
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    for name, values in result.accuracy.items():
        assert drawn[name].get_xdata().tolist() == [0, 0.5, 0.9]
        assert drawn[name].get_ydata().tolist() == pytest.approx(values.mean(1).tolist())
    looks = {(drawn[n].get_color(), drawn[n].get_linestyle()) for n in result.accuracy}
    assert len(looks) == len(result.accuracy)
    labels = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert set(labels) == set(result.accuracy)
    assert np.diff(sorted(labels.values())).min() > 0.05  # none over another
    assert max(labels.values()) <= 1


def test_plot_of_one_repeat_has_no_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plotting, "display", lambda data, **_: shown.append(data))
    plot(Roar((0.5,), {"a": torch.tensor([[0.5]]).double()}, 0.1), alt="a point")
    assert shown[0]["text/plain"] == "a point"
    with pytest.raises(ValueError, match="alt"):
        plot(result_by_hand(), alt=" ")


# Bad input


def bad(train: Any = None, test: Any = None, maps: Any = None, **options: Any) -> Roar:
    def never(*_: Any) -> Any:
        raise AssertionError("nothing must be trained")

    sets = small()
    return roar(
        sets[0] if train is None else train,
        sets[1] if test is None else test,
        some_maps() if maps is None else maps,
        never,
        **{**options},
    )


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 1.0), "fractions must be at least 0 and below 1, but are [0.5, 1.0]"),
        ((-0.1,), "fractions must be at least 0 and below 1"),
        ((float("nan"),), "fractions must be at least 0 and below 1"),
        ((0.5, 0.3), "fractions must rise, but are [0.5, 0.3]"),
        ((0.5, 0.5), "fractions must rise"),
    ],
)
def test_bad_fractions(fractions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        bad(fractions=fractions)


@pytest.mark.parametrize("fractions", [(), ("a",), (True,), (None,)])
def test_fractions_that_are_no_numbers(fractions: Any) -> None:
    with pytest.raises(TypeError, match="fractions must be numbers, at least one"):
        bad(fractions=fractions)


LABELS = torch.tensor([0, 1, 1, 0, 1])
IMAGES = torch.zeros(5, 3, 3, 4)


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        (IMAGES, TypeError, "train must be (images, labels), not Tensor"),
        ((IMAGES.numpy(), LABELS), TypeError, "train: its images must be a tensor, not ndarray"),
        ((IMAGES, [0, 1]), TypeError, "train: its labels must be a tensor, not list"),
        ((IMAGES[0], LABELS), ValueError, "train: its images must be (N, C, H, W)"),
        ((IMAGES[:0], LABELS[:0]), ValueError, "train: its images must be (N, C, H, W), not empty"),
        ((IMAGES / 0, LABELS), ValueError, "train: its images must be finite"),
        ((IMAGES, LABELS[:4]), ValueError, "train: its labels must be (5,) in int64"),
        ((IMAGES, LABELS.float()), ValueError, "train: its labels must be (5,) in int64"),
        ((IMAGES, LABELS - 1), ValueError, "train: its labels must count from 0, but one is -1"),
        ((IMAGES, 0 * LABELS + 2), ValueError, "train: its labels are all 2; with one class every"),
    ],
)
def test_bad_sets(train: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        bad(train=train)
    assert message in str(caught.value)


def test_test_images_of_another_size_or_of_one_class() -> None:
    with pytest.raises(ValueError, match="test: its images must be"):
        bad(test=(torch.zeros(3, 3, 4, 4), torch.tensor([0, 0, 1])))
    with pytest.raises(ValueError, match="test: its labels are all 1"):
        bad(test=(torch.zeros(3, 3, 3, 4), torch.tensor([1, 1, 1])))


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        ({}, ValueError, "attributions must hold at least one method"),
        ({"a": IMAGES}, ValueError, "attributions: 'a' must have two maps"),
        ({"a": [IMAGES]}, ValueError, "attributions: 'a' must have two maps"),
        ({"a": [IMAGES.long(), IMAGES[:3]]}, TypeError, "'a' of train must be a floating point"),
        ({"a": [IMAGES, None]}, TypeError, "'a' of test must be a floating point tensor, not None"),
        ({"a": [IMAGES, IMAGES]}, ValueError, "attributions: 'a' of test must be (3, 3, 3, 4)"),
        ({"a": [IMAGES[:, :2], IMAGES[:3]]}, ValueError, "'a' of train must be (5, 3, 3, 4)"),
        ({"a": [IMAGES, IMAGES[:3] / 0]}, ValueError, "'a' of test must be finite"),
    ],
)
def test_bad_attributions(maps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        bad(maps=maps)
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"repeats": 0}, {"repeats": 1.5}, {"seed": 0.5}])
def test_bad_counts(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=name):
        bad(**options)


def test_a_fit_that_returns_no_logits() -> None:
    train, test = small()
    with pytest.raises(ValueError, match="model must return logits"):
        roar(train, test, some_maps(), lambda *_: lambda batch: batch)
