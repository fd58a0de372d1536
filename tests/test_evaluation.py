from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import evaluation
from course_utils.evaluation import (
    Curve,
    axioms,
    box_mask,
    deletion,
    faithfulness_correlation,
    insertion,
    iou,
    pointing_game,
    sanity,
)
from course_utils.evaluation.truth import true_effects
from course_utils.models import load
from course_utils.worlds.scenes import Scenes, bounding_box
from tests.networks import NETWORKS, Recorder, batch, make, pixels

nan = float("nan")
SUBSETS: dict[str, Any] = {"patch": 2, "subsets": 60, "size": 4}


def linear(images: Tensor) -> Tensor:
    """A model whose truth is known: a pixel gives class 0 its weight times its value."""
    total = (images * weights(images)).sum((1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], 1)


def weights(images: Tensor) -> Tensor:
    return torch.linspace(-1, 2, images[0].numel()).view(images.shape[1:]).to(images)


def shuffled(values: Tensor, seed: int = 0) -> Tensor:
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
    result = faithfulness_correlation(Recorder(), image, relevance, 0, patch=1, baseline=3.0)
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
        baseline=fill,
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
    _, score, auc = insertion(Recorder(), image, attribution, 0, steps=4, baseline=10.0)
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
        curve = metric(model, images, batch(seed=2), target, steps=5, baseline=fill, of=of)
        torch.testing.assert_close(curve.score[:, [0, -1]], expected, rtol=0, atol=1e-12)
        areas = (curve.score[:, 1:] + curve.score[:, :-1]) / 2 @ curve.fraction.diff()
        torch.testing.assert_close(curve.auc, areas)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_blurred_fill_and_a_shipped_shape(network: str) -> None:
    model, images = make(network).eval(), batch()
    fill = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    curve = insertion(model, images, batch()[:, 0], steps=7, baseline=fill)
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


def value(result: Tensor | Curve) -> Tensor:
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


def additive(images: Tensor) -> Tensor:
    """Each patch of 2 × 2 adds something of its own, which is not linear in its pixels."""
    pixels = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (N, C, 4, 4, 4)
    total = (parts_of(pixels) * signs(pixels)).sum((1, 2))
    return torch.stack([total, 0 * total], 1)


def parts_of(pixels: Tensor) -> Tensor:
    return (pixels.amax(4).relu() + pixels.square().mean(4)).sum(1)  # 0 where all is 0


def signs(pixels: Tensor) -> Tensor:
    return torch.linspace(-1, 2, 16, dtype=pixels.dtype).view(4, 4)


@every_metric
def test_perfect_random_inverted_on_patches(name: str) -> None:
    """The truth of a patch, spread evenly over it, against that of the other patches at random."""
    images = batch(20, dtype=torch.float64)
    pixels = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    truth = parts_of(pixels) * signs(pixels)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(20, 16, generator=generator).argsort(1)
    mixed = truth.flatten(1).gather(1, order).view_as(truth)
    perfect, random = (
        values.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4 for values in (truth, mixed)
    )
    torch.testing.assert_close(perfect.sum((1, 2)), additive(images)[:, 0])
    # As many steps as patches, so that a patch goes as a whole.
    steps = {"steps": 16} if "ion" in name and "faith" not in name else {}
    results = [
        METRICS[name](additive, images, attribution, 0, **steps)
        for attribution in (perfect, random, -perfect)
    ]
    scores = [result.auc if isinstance(result, Curve) else result for result in results]
    if name == "deletion":
        scores = [-score for score in scores]
    assert (scores[0] > scores[1]).all()
    assert (scores[1] > scores[2]).all()
    if "faithfulness" in name:
        torch.testing.assert_close(scores[0], torch.ones(20).double())


@pytest.mark.parametrize("fill", ["mean colour", "black", "blurred"])
@pytest.mark.parametrize("of", ["logit", "probability"])
def test_curves_of_the_shipped_model_start_and_end_where_it_says(fill: str, of: str) -> None:
    classifier = load("scenes")
    scene = Scenes(1, seed=3).scene(0)
    image = classifier.to_input(scene.image)
    fills = {"black": classifier.black, "blurred": classifier.blurred}
    cover = fills[fill](image) if fill in fills else 0.0
    covered = torch.zeros_like(image) + cover
    with torch.no_grad():
        logits = classifier.model(torch.cat([image, covered])).double()
    c = int(logits[0].argmax())
    whole, nothing = (logits.softmax(1) if of == "probability" else logits)[:, c].tolist()
    attribution = torch.from_numpy(scene.mask)[None].float()
    ends = {}
    for metric in (deletion, insertion):
        curve = metric(classifier.model, image, attribution, steps=4, baseline=cover, of=of)
        ends[metric] = curve.score[0, [0, -1]].tolist()
        assert curve.fraction[[0, -1]].tolist() == [0, 1]
    assert ends[deletion] == pytest.approx([whole, nothing], abs=1e-4)
    assert ends[insertion] == pytest.approx([nothing, whole], abs=1e-4)


@pytest.mark.parametrize("kind", ["zero", "constant", "single pixel"])
def test_maps_that_say_little(kind: str) -> None:
    """What a metric makes of them is said: no map without an order is praised."""
    images = batch(2, dtype=torch.float64)
    attribution = torch.full((2, 8, 8), 0.0 if kind == "zero" else 0.3, dtype=torch.float64)
    if kind == "single pixel":
        attribution = torch.zeros(2, 8, 8, dtype=torch.float64)
        attribution[:, 5, 3] = 1
    inside, outside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[5, 2:5] = outside[2, 2:5] = True
    hit = kind == "single pixel"
    for metric in (iou, pointing_game):
        assert metric(attribution, torch.zeros(8, 8, dtype=torch.bool)).isnan().all()
        assert (metric(attribution, inside) > 0).all() == hit
        assert (metric(attribution, outside) == 0).all()
    # Of the three pixels of the mask one is found, and nothing else is selected.
    assert not hit or iou(attribution, inside).tolist() == pytest.approx([1 / 3] * 2)
    for options in ({"patch": 2}, SUBSETS):
        result = faithfulness_correlation(linear, images, attribution, 0, **options)
        assert result.isnan().all() == (not hit)
        assert not (result == 1).any()
    for curve in (deletion, insertion):
        assert curve(linear, images, attribution, 0).auc.isnan().all() == (not hit)


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
    "baseline": [nan, "grey", torch.zeros(2, 8, 8), None],
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
    for name in evaluation.__all__:
        assert hasattr(evaluation, name)
    for name in ("parameter_randomization", "label_randomization", "agreement", "SIMILARITIES"):
        assert getattr(evaluation, name) is getattr(sanity, name)
    assert evaluation.Verdict is axioms.Verdict


def test_on_the_shipped_model() -> None:
    classifier, scene = load("scenes"), Scenes(1, seed=3).scene(0)
    image = classifier.to_input(scene.image)
    mask = torch.from_numpy(scene.mask)[None].float()
    blurred = classifier.blurred(image)
    good, bad = (
        insertion(classifier.model, image, relevance, steps=8, baseline=blurred).auc
        for relevance in (mask, -mask)
    )
    assert good > bad


@pytest.mark.slow
def test_the_true_effects_random_and_inverted_on_the_shipped_model() -> None:
    """Of what each part does to the logit, known by drawing it away; the mean over four scenes."""
    classifier, world = load("scenes"), Scenes(20, seed=11)
    scenes = [scene for scene in map(world.scene, range(12)) if 3 <= len(scene.parts) <= 5][:4]
    images = torch.cat([classifier.to_input(scene.image) for scene in scenes])
    mask = torch.stack([torch.from_numpy(scene.mask) for scene in scenes])
    perfect = torch.zeros(4, 128, 128)
    for relevance, scene in zip(perfect, scenes, strict=True):
        for part, effect in true_effects(classifier, scene).items():
            place = torch.from_numpy(scene.parts[part])
            relevance[place] += effect / place.sum()
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(4, 16, 16, generator=generator)
    random = random.repeat_interleave(8, 1).repeat_interleave(8, 2)
    sets: dict[str, Any] = {"patch": 16, "subsets": 16, "size": 16}
    blurred = classifier.blurred(images)

    def about(metric: Callable, sign: int = 1, **options: Any) -> Callable:
        def measure(attribution: Tensor) -> Tensor:
            result = metric(classifier.model, images, attribution, **options)
            return sign * (result.auc if isinstance(result, Curve) else result)

        return measure

    measures: dict[str, Callable] = {
        "iou": lambda attribution: iou(attribution, mask),
        "faithfulness": about(faithfulness_correlation, **sets),
        "deletion": about(deletion, -1, steps=4),
        "insertion": about(insertion, steps=4),
        "insertion into blur, probability": about(
            insertion, steps=4, baseline=blurred, of="probability"
        ),
    }
    for name, measure in measures.items():
        good, middle, bad = (
            float(measure(attribution).mean()) for attribution in (perfect, random, -perfect)
        )
        assert good > middle > bad, name
    hits = [float(pointing_game(a, mask).mean()) for a in (perfect, random, -perfect)]
    assert hits[0] == max(hits)  # where nobody hits, it cannot tell random from inverted


# beside Quantus: single values of one channel, a baseline of 0


def grey() -> tuple[torch.nn.Module, Tensor, Tensor]:
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
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_faithfulness_of_subsets_equals_quantus(
    fill: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sets for all images, as ours; Quantus draws new ones for each."""
    import quantus

    model, images, attribution = grey()
    result = faithfulness_correlation(
        model,
        images,
        attribution,
        torch.tensor([0, 2, 1]),
        patch=1,
        subsets=25,
        size=7,
        baseline=fill,
        generator=torch.Generator().manual_seed(2),
    )
    generator = torch.Generator().manual_seed(2)
    sets = torch.rand(25, 36, generator=generator).argsort(1)[:, :7].numpy()
    drawn = iter(sets.repeat(3, 0))  # one run of theirs asks for a set for each of three images

    def choice(features: int, size: int, replace: bool) -> np.ndarray:
        assert (features, size, replace) == (36, 7, False)
        return next(drawn)

    monkeypatch.setattr(np.random, "choice", choice)
    options = {**PLAIN, "perturb_baseline": fill}
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=25, subset_size=7, return_aggregate=False, **options
    )
    reference = measured(metric, model, images, attribution)
    assert next(drawn, None) is None
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
def test_quantus_completeness_is_equality_of_floats() -> None:
    """The exact attribution of a linear model fails, for the last bit of its sum."""
    import quantus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = torch.nn.Linear(36, 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), last).eval()
    images = batch(1)[:, :1, :6, :6].expand(3, 1, 6, 6) * torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1)
    exact = (images.flatten(1) * last.weight[[0, 2, 1]]).detach().view_as(images)
    change = (model(images) - model(0 * images)).gather(1, torch.tensor([[0], [2], [1]]))[:, 0]
    torch.testing.assert_close(exact.sum((1, 2, 3)), change)
    metric = quantus.Completeness(return_aggregate=False, **PLAIN)
    assert not all(measured(metric, model, images, exact))


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
