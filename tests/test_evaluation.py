from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from course_utils import evaluation, sanity
from course_utils.evaluation import (
    Curve,
    box_mask,
    deletion,
    faithfulness_correlation,
    insertion,
    iou,
    pointing_game,
)
from course_utils.models import load
from course_utils.scenes import Scenes, bounding_box
from tests.networks import NETWORKS, batch, make, pixels

nan = float("nan")
SUBSETS: dict[str, Any] = {"patch": 2, "subsets": 60, "size": 4}


class Recorder:
    """A function of images that is no module: two classes, and how many images each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        total = images.sum((1, 2, 3))
        return torch.stack([total, -2 * total], 1)


def linear(images: torch.Tensor) -> torch.Tensor:
    """A model whose truth is known: a pixel gives class 0 its weight times its value."""
    total = (images * weights(images)).sum((1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], 1)


def weights(images: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 2, images[0].numel()).view(images.shape[1:]).to(images)


def shuffled(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(values.shape, generator=generator, dtype=values.dtype)


# IoU and the pointing game


def test_iou_by_hand() -> None:
    attribution = torch.arange(12.0).view(1, 3, 4)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[2, 1:] = mask[0, 0] = True
    # The quantile 0.75 of 0 … 11 is 8.25: pixels 9, 10, 11, which the mask holds, with one more.
    assert iou(attribution, mask, quantile=0.75).tolist() == [0.75]
    # The minimum is never selected: 11 of 12 pixels, of which 3 of the mask's 4.
    assert iou(attribution, mask, quantile=0).item() == pytest.approx(3 / 12)
    assert iou(attribution, mask, quantile=1).item() == pytest.approx(1 / 4)
    halves = torch.stack([attribution + 1, -1 * torch.ones(1, 3, 4)], 1)  # channels are summed
    assert iou(halves, mask, quantile=0.75).tolist() == [0.75]


def test_pointing_by_hand() -> None:
    attribution = torch.tensor([[0.0, 3], [3, 1]])[None]
    assert pointing_game(attribution, attribution == 3).tolist() == [1]
    assert pointing_game(attribution, attribution == 1).tolist() == [0]
    upper = torch.tensor([[True, True], [False, False]])
    assert pointing_game(attribution, upper).tolist() == [0.5]  # one of the two maxima


@pytest.mark.parametrize("metric", [iou, pointing_game])
def test_an_empty_mask_and_a_constant_map(metric: Callable) -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[1, :2] = True
    for value in (0.0, 1.0, -3.7):
        result = metric(torch.full((2, 3, 4, 4), value), mask)
        assert result[0].isnan()
        assert result[1] == 0
    assert metric(batch()[:, :, :4, :4], mask[0]).isnan().all()
    assert metric(torch.ones(1, 4, 4), torch.ones(4, 4, dtype=torch.bool)) == 0


@pytest.mark.parametrize("metric", [iou, pointing_game])
def test_masks_and_kinds(metric: Callable) -> None:
    attribution, mask = batch(), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 1:7] = True
    expected = metric(attribution, mask)
    assert expected.shape == (3,)
    assert torch.equal(metric(attribution, mask.expand(3, 8, 8)), expected)
    assert torch.equal(metric(attribution, mask.numpy()), expected)
    assert torch.equal(metric(attribution.sum(1), mask), expected)
    assert torch.equal(torch.cat([metric(one[None], mask) for one in attribution]), expected)
    for dtype in (torch.float64, torch.bfloat16):
        result = metric(attribution.to(dtype).requires_grad_(), mask)
        assert result.dtype == dtype
        assert not result.requires_grad


def test_localisation_ranks_perfect_random_inverted() -> None:
    mask = box_mask((5, 3, 15, 13), (32, 32)).expand(200, 32, 32)
    perfect = mask.float()
    for metric in (iou, pointing_game):
        scores = [
            metric(attribution, mask).mean()
            for attribution in (perfect, shuffled(perfect), 1 - perfect)
        ]
        assert scores[0] == 1
        assert 0.02 < scores[1] < 0.2
        assert scores[2] == 0


def test_boxes() -> None:
    scene = Scenes(1, seed=3).scene(0)
    box = box_mask(scene.box, scene.mask.shape)
    assert bounding_box(box.numpy()) == scene.box
    assert not (torch.from_numpy(scene.mask) & ~box).any()
    assert box_mask((1, 0, 3, 1), (2, 4)).tolist() == [[False, True, True, False], [False] * 4]
    assert not box_mask((0, 0, 0, 0), (2, 4)).any()


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 5, 2), (2, 4)),
        ((2, 0, 1, 2), (2, 4)),
        ((-1, 0, 1, 2), (2, 4)),
        ((0, 0, 1), (2, 4)),
        (3, (2, 4)),
        ((0, 0, 1.5, 2), (2, 4)),
        ((0, 0, 1, 2), (2, 4, 3)),
    ],
)
def test_bad_boxes(box: Any, size: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^(box|size) must ") as error:
        box_mask(box, size)
    assert "\n" not in str(error.value)


# faithfulness correlation


def test_faithfulness_by_hand() -> None:
    image = pixels(1, 2, 4)
    relevance = pixels(1, 0, 1)
    # Drops 1, 2, 4, or squared, without their means −4/3, −1/3, 5/3; relevance 1/3, −2/3, 1/3.
    expected = (-4 / 9 + 2 / 9 + 5 / 9) / ((42 / 9) ** 0.5 * (6 / 9) ** 0.5)
    result = faithfulness_correlation(Recorder(), image, relevance, 0, patch=1)
    assert result.item() == pytest.approx(expected)
    result = faithfulness_correlation(Recorder(), image, relevance, 1, patch=1)
    assert result.item() == pytest.approx(-expected)
    # Replaced by 3 the drops are −2, −1, 1: the mean only shifts.
    result = faithfulness_correlation(Recorder(), image, relevance, 0, patch=1, fill=3.0)
    assert result.item() == pytest.approx(expected)


def test_faithfulness_of_patches_by_hand() -> None:
    image = torch.arange(1.0, 16).view(1, 1, 3, 5)
    attribution = torch.tensor([[3.0, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])[None]
    # Patches of two; the last row and the last column are cut off.
    parts = [(slice(a, a + 2), slice(b, b + 2)) for a in (0, 2) for b in (0, 2, 4)]
    pair = (attribution[0], image[0, 0])
    sums = [[float(values[part].sum()) for part in parts] for values in pair]
    result = faithfulness_correlation(Recorder(), image, attribution, 0, patch=2)
    expected = np.corrcoef(sums[0], sums[1])[0, 1]
    assert result.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_faithfulness_of_subsets_against_its_twin(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution = batch(2, seed=5, dtype=torch.float64)
    fill = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).view(3, 8, 8)
    generator = torch.Generator().manual_seed(4)
    sets = torch.rand(9, 16, generator=generator).argsort(1)[:, :5]
    result = faithfulness_correlation(
        model,
        images,
        attribution,
        3,
        patch=2,
        subsets=9,
        size=5,
        fill=fill,
        generator=generator.manual_seed(4),
    )
    for image, relevance, value in zip(images, attribution, result, strict=True):
        drops, sums = [], []
        for chosen in sets.tolist():
            changed, total = image.clone(), 0.0
            for row, column in (divmod(place, 4) for place in chosen):
                part = (slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
                changed[part] = fill[part]
                total += float(relevance[part].sum())
            with torch.no_grad():
                drops.append(float((model(image[None]) - model(changed[None]))[0, 3]))
            sums.append(total)
        assert value.item() == pytest.approx(np.corrcoef(sums, drops)[0, 1], abs=1e-10)


def test_faithfulness_is_nan_where_a_side_is_constant() -> None:
    for options in ({}, SUBSETS):
        constant = torch.full((3, 8, 8), 0.1)
        correlate: Any = partial(faithfulness_correlation, images=batch(), target=0, **options)
        assert correlate(Recorder(), attribution=constant).isnan().all()
        ignorant = make("Residual").eval()
        with torch.no_grad():
            ignorant.fc.weight.zero_()  # type: ignore[operator, union-attr]
        assert correlate(ignorant, attribution=batch(seed=1)).isnan().all()
        noisy = lambda x: 100 + 1e-6 * torch.rand(len(x), 1)  # noqa: E731
        assert correlate(noisy, attribution=batch(seed=1)).isnan().all()


def test_faithfulness_on_a_default_grid() -> None:
    model, images = Recorder(), torch.rand(1, 1, 40, 64)
    faithfulness_correlation(model, images, images)
    assert sum(model.calls) == 1 + 20 * 32  # patches of 40 // 16
    model = Recorder()
    faithfulness_correlation(model, images[..., :8, :9], images[..., :8, :9])
    assert sum(model.calls) == 1 + 72


# deletion and insertion


def test_deletion_and_insertion_by_hand() -> None:
    image, attribution = pixels(1, 2, 4, 8), pixels(5, -1, 7, 0)
    fraction, score, auc = deletion(Recorder(), image, attribution, 0, steps=4)
    assert fraction.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert score.tolist() == [[15, 11, 10, 2, 0]]
    assert auc.tolist() == [(15 / 2 + 11 + 10 + 2) / 4]
    _, score, auc = insertion(Recorder(), image, attribution, 0, steps=4, fill=10.0)
    assert score.tolist() == [[40, 34, 25, 23, 15]]
    assert auc.tolist() == [(40 / 2 + 34 + 25 + 23 + 15 / 2) / 4]
    assert deletion(Recorder(), image, attribution, 1, steps=2).score.tolist() == [[-30, -20, 0]]


def test_steps_that_do_not_divide_the_pixels() -> None:
    image = pixels(1, 10, 100)
    curve = deletion(Recorder(), image, pixels(3, 2, 1), 0, steps=2)
    assert curve.score.tolist() == [[111, 100, 0]]  # 1.5 pixels are 2
    assert curve.fraction.tolist() == [0, 2 / 3, 1]
    many = deletion(Recorder(), image, pixels(3, 2, 1), 0, steps=6)
    assert many.score[0, [0, 2, 4, 6]].tolist() == [111, 110, 100, 0]
    assert many.fraction[[0, 2, 4, 6]].tolist() == [0, 1 / 3, 2 / 3, 1]


def test_ties_go_by_position() -> None:
    image = pixels(*(2.0**k for k in range(40)))
    attribution = torch.zeros_like(image)
    attribution[..., 30] = 1
    curve = deletion(Recorder(), image, attribution, 0, steps=40)
    gone = (-curve.score[0].diff()).log2()
    assert gone.tolist() == [30, *(k for k in range(40) if k != 30)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("of", ["logit", "probability"])
def test_curves_start_and_end_where_the_model_says(network: str, of: str) -> None:
    model, images = make(network).double().eval(), batch(dtype=torch.float64)
    fill, target = images.mean((2, 3), keepdim=True), torch.tensor([1, 4, 0])
    with torch.no_grad():
        ends = torch.stack([model(x.clone()) for x in (images, fill.expand_as(images))], 1)
        ends = ends.softmax(2) if of == "probability" else ends
        ends = ends[torch.arange(3), :, target]
    for metric, expected in ((deletion, ends), (insertion, ends.flip(1))):
        curve = metric(model, images, batch(seed=2), target, steps=5, fill=fill, of=of)
        torch.testing.assert_close(curve.score[:, [0, -1]], expected, rtol=0, atol=1e-12)
        areas = (curve.score[:, 1:] + curve.score[:, :-1]) / 2 @ curve.fraction.diff()
        torch.testing.assert_close(curve.auc, areas)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_blurred_fill_and_a_shipped_shape(network: str) -> None:
    model, images = make(network).eval(), batch()
    fill = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    curve = insertion(model, images, batch()[:, 0], steps=7, fill=fill)
    assert isinstance(curve, Curve)
    assert [value.shape for value in curve] == [(8,), (3, 8), (3,)]
    with torch.no_grad():
        start = model(fill.clone()).gather(1, model(images.clone()).argmax(1)[:, None])[:, 0]
    torch.testing.assert_close(curve.score[:, 0], start)


# what all that run the model promise

METRICS: dict[str, Callable] = {
    "deletion": partial(deletion, steps=6),
    "insertion": partial(insertion, steps=6),
    "insertion, probability": partial(insertion, steps=6, of="probability"),
    "faithfulness, patches": partial(faithfulness_correlation, patch=2),
    "faithfulness, subsets": partial(faithfulness_correlation, **SUBSETS),
}
PASSES = {"faithfulness, patches": 17, "faithfulness, subsets": 61}
every_metric = pytest.mark.parametrize("name", METRICS)


def value(result: torch.Tensor | Curve) -> torch.Tensor:
    return (
        torch.cat([result.score, result.auc[:, None]], 1) if isinstance(result, Curve) else result
    )


@every_metric
def test_perfect_random_inverted(name: str) -> None:
    images = batch(20, dtype=torch.float64)
    perfect = images * weights(images)
    results = [
        METRICS[name](linear, images, attribution, 0)
        for attribution in (perfect, shuffled(perfect) - 0.5, -perfect)
    ]
    scores = [result.auc if isinstance(result, Curve) else result for result in results]
    if name == "deletion":
        scores = [-score for score in scores]
    assert (scores[0] > scores[1]).all()
    assert (scores[1] > scores[2]).all()
    if "faithfulness" in name:
        torch.testing.assert_close(scores[0], torch.ones(20).double())
        torch.testing.assert_close(scores[2], -torch.ones(20).double())
        assert scores[1].mean().abs() < 0.2


@every_metric
def test_passes(name: str) -> None:
    model = Recorder()
    METRICS[name](model, batch(3), batch(3), batch_size=7)
    assert sum(model.calls) == 3 * PASSES.get(name, 7)
    assert max(model.calls) <= 7
    assert len(model.calls) == 1 + -(-3 * (PASSES.get(name, 7) - 1) // 7)


@every_metric
@pytest.mark.parametrize("network", NETWORKS)
def test_batches_do_not_matter(name: str, network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    attribution = batch(seed=3)
    together = value(METRICS[name](model, images, attribution))
    for size in (1, 5):
        parts = [
            METRICS[name](model, image[None], one[None], batch_size=size)
            for image, one in zip(images, attribution, strict=True)
        ]
        alone = torch.cat([value(part) for part in parts])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(name: str, dtype: torch.dtype) -> None:
    model, images, attribution = make("Residual").to(dtype), batch().to(dtype), batch(seed=1)
    before = images.clone()
    result = METRICS[name](model, images, attribution.requires_grad_())
    for part in result if isinstance(result, Curve) else [result]:
        assert part.dtype == dtype
        assert not part.requires_grad
    assert torch.equal(images, before)
    assert all(module.training for module in model.modules())
    with torch.inference_mode():
        again = METRICS[name](model, images.clone(), attribution.clone())
    # In bfloat16 some drops are smaller than rounding, so that there is no correlation.
    torch.testing.assert_close(value(again), value(result), rtol=0, atol=0, equal_nan=True)


@every_metric
def test_target_none_is_the_argmax_and_functions_will_do(name: str) -> None:
    model, images, attribution = make("Residual").eval(), batch(), batch(seed=1)
    with torch.no_grad():
        answers = model(images).argmax(1)
    expected = value(METRICS[name](model, images, attribution))
    assert torch.equal(value(METRICS[name](model, images, attribution, answers)), expected)
    assert torch.equal(value(METRICS[name](lambda x: model(x), images, attribution)), expected)


def test_the_generator() -> None:
    model, images, attribution = make("Residual"), batch(), batch(seed=1)
    correlate = partial(faithfulness_correlation, model, images, attribution, **SUBSETS)
    before = torch.get_rng_state()
    first = correlate()
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(first, correlate(generator=generator))
    assert not torch.equal(first, correlate(generator=generator))


@every_metric
def test_progress_can_be_silenced(name: str, capsys: pytest.CaptureFixture) -> None:
    METRICS[name](Recorder(), batch(), batch(), progress=False)
    assert capsys.readouterr() == ("", "")


BAD_MAPS: list[Any] = [
    None,
    batch().numpy(),
    batch().long(),
    batch()[:2],
    batch()[..., :7],
    batch() / 0,
]
BAD_MAPS += [batch()[:, :2], batch()[0, 0]]
BAD_RUN: dict[str, list[object]] = {
    "attribution": BAD_MAPS,
    "images": [batch()[0], batch().long(), batch() / 0],
    "fill": [nan, "grey", torch.zeros(2, 8, 8), None],
    "batch_size": [0, 1.5],
}
BAD_CURVE = BAD_RUN | {"steps": [0, -1, 2.0, True], "of": ["logits", "Probability", None]}
BAD_FAITHFULNESS = BAD_RUN | {
    "patch": [0, 8, 1.0],
    "subsets": [1, 2.5, None],
    "size": [0, 16, 1.5],
    "generator": [0, "cpu"],
}
CASES = [
    *(("deletion", *case) for case in BAD_CURVE.items()),
    *(("insertion", *case) for case in BAD_CURVE.items()),
    *(("faithfulness, subsets", *case) for case in BAD_FAITHFULNESS.items()),
]


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [(name, argument, bad) for name, argument, values in CASES for bad in values],
)
def test_bad_options(name: str, argument: str, bad: object) -> None:
    model = Recorder()
    with pytest.raises((ValueError, TypeError), match=f"^{argument}\\b") as error:
        METRICS[name](model, **{"images": batch(), "attribution": batch(), argument: bad})
    assert not model.calls
    assert "\n" not in str(error.value)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="^of: there is no 'probabilities'; did you mean 'probabi"):
        deletion(Recorder(), batch(), batch(), of="probabilities")
    with pytest.raises(ValueError, match="^subsets and size go together"):
        faithfulness_correlation(Recorder(), batch(), batch(), size=3)
    with pytest.raises(TypeError, match="^model must be a torch.nn.Module or a function"):
        deletion("resnet18", batch(), batch())  # type: ignore[arg-type]
    for name in METRICS:
        with pytest.raises(ValueError, match="^target: there is no class 2"):
            METRICS[name](Recorder(), batch(), batch(), 2)
        with pytest.raises(ValueError, match="^model must return logits"):
            METRICS[name](lambda x: x, batch(), batch())


MASK = torch.ones(3, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        *(("attribution", bad) for bad in BAD_MAPS[:3]),
        *(("attribution", bad) for bad in (batch() / 0, batch()[0, 0], batch()[:0])),
        *(("mask", bad) for bad in (None, MASK.float(), MASK[:2], MASK[:1], MASK[..., :7])),
        *(("mask", bad) for bad in (MASK[None], MASK.numpy().astype(int))),
        *(("quantile", bad) for bad in (-0.1, 1.1, nan, "0.9", True)),
    ],
)
def test_bad_localisation(argument: str, bad: Any) -> None:
    arguments = {"attribution": batch(), "mask": MASK, argument: bad}
    for metric in (iou, pointing_game) if argument != "quantile" else (iou,):
        with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
            metric(**arguments)
        assert "\n" not in str(error.value)


def test_one_place_for_all() -> None:
    for name in ("parameter_randomization", "max_sensitivity", "SIMILARITIES"):
        assert getattr(evaluation, name) is getattr(sanity, name)


def test_on_the_shipped_model() -> None:
    classifier, scene = load("scenes"), Scenes(1, seed=3).scene(0)
    image = classifier.to_input(scene.image)
    mask = torch.from_numpy(scene.mask)[None].float()
    blurred = classifier.blurred(image)
    good, bad = (
        insertion(classifier.model, image, relevance, steps=8, fill=blurred).auc
        for relevance in (mask, -mask)
    )
    assert good > bad


# beside Quantus: single values of one channel, a baseline of 0


def grey() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3),
            torch.nn.Softplus(),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 3),
        ).eval()
    return model, batch()[:, :1, :6, :6], batch(seed=1)[:, :1, :6, :6]


def measured(metric: Any, model: torch.nn.Module, images: Any, maps: Any, **options: Any) -> Any:
    answers = np.array([0, 2, 1])
    return metric(model, images.numpy(), answers, a_batch=maps.numpy(), softmax=False, **options)


PLAIN: dict[str, Any] = {
    "abs": False,
    "normalise": False,
    "disable_warnings": True,
    "perturb_baseline": 0.0,
}


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_faithfulness_equals_quantus() -> None:
    import quantus

    model, images, attribution = grey()
    metric = quantus.FaithfulnessEstimate(features_in_step=1, return_aggregate=False, **PLAIN)
    result = faithfulness_correlation(model, images, attribution, torch.tensor([0, 2, 1]), patch=1)
    reference = measured(metric, model, images, attribution)
    np.testing.assert_allclose(result, reference, atol=1e-5)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_deletion_equals_quantus_pixel_flipping() -> None:
    import quantus

    model, images, attribution = grey()
    metric = quantus.PixelFlipping(features_in_step=1, **PLAIN)
    curve = deletion(model, images, attribution, torch.tensor([0, 2, 1]), steps=36)
    reference = measured(metric, model, images, attribution)
    np.testing.assert_allclose(curve.score[:, 1:], reference, atol=1e-5)  # it leaves f(x) out


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_quantus_counts_any_maximum_and_empty_masks_as_hits() -> None:
    import quantus

    model, images, attribution = grey()
    attribution[1] = 0.0
    mask = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    mask[:2, 0, :3] = True
    metric = quantus.PointingGame(
        abs=False, normalise=False, disable_warnings=True, return_aggregate=False
    )
    reference = measured(metric, model, images, attribution, s_batch=mask.numpy())
    result = pointing_game(attribution, mask[:, 0])
    assert float(reference[0]) == result[0]
    assert (bool(reference[1]), result[1].item()) == (True, 0)  # a map that is zero everywhere
    assert bool(reference[2])  # its NaN is written into an array of bool
    assert result[2].isnan()
