from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import evaluation
from course_utils.contract import Estimate
from course_utils.evaluation import (
    Flipping,
    Sensitivity,
    deletion,
    faithfulness_correlation,
    infidelity,
    infidelity_estimate,
    pixel_flipping,
    sensitivity_n,
)
from course_utils.models import load
from course_utils.worlds import photographs
from tests.networks import NETWORKS, Recorder, batch, make, pixels

nan = float("nan")
each_network = pytest.mark.parametrize("network", NETWORKS)


def weights(images: Tensor) -> Tensor:
    return torch.linspace(-1, 2, images[0].numel()).view(images.shape[1:]).to(images)


def linear(images: Tensor) -> Tensor:
    """A model whose truth is known: a value gives class 0 its weight times itself."""
    total = (images * weights(images)).sum((1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], 1)


def shuffled(values: Tensor) -> Tensor:
    """Each image's values in another order: a map with all of it right but the places."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(values.flatten(1).shape, generator=generator).argsort(1)
    return values.flatten(1).gather(1, order).view_as(values)


# infidelity


def test_infidelity_by_hand() -> None:
    image, relevance = pixels(1, 2, 4), pixels(1, 0, 5)
    # A square of one pixel: its drops are 1, 2, 4, and the map says 1, 0, 5.
    generator = torch.Generator().manual_seed(3)
    places = generator.clone_state()
    torch.randint(1, (50, 1), generator=places)  # the row
    columns = torch.randint(3, (50,), generator=places)
    assert len(columns.unique()) == 3
    found = infidelity_estimate(
        Recorder(), image, relevance, 0, side=1, samples=50, generator=generator
    )
    errors = torch.tensor([0.0, 4, 1], dtype=torch.float64)[columns]
    torch.testing.assert_close(found.value[0], errors.mean())
    assert found.spread is not None
    assert found.standard_error is not None
    torch.testing.assert_close(found.spread[0], errors.std())
    torch.testing.assert_close(found.standard_error[0], errors.std() / 50**0.5)
    # Class 1 is −2 times class 0: errors 3, 4, 13, squared.
    other = infidelity(
        Recorder(), image, relevance, 1, side=1, samples=50, generator=generator.manual_seed(3)
    )
    torch.testing.assert_close(other[0], torch.tensor([9.0, 16, 169]).double()[columns].mean())
    # β = Σ predicted · drop / Σ predicted², over the draws.
    predicted, drop = (torch.tensor(v).double()[columns] for v in ([1.0, 0, 5], [1.0, 2, 4]))
    beta = (predicted @ drop) / (predicted @ predicted)
    scaled = infidelity(
        Recorder(),
        image,
        relevance,
        0,
        side=1,
        samples=50,
        scaled=True,
        generator=generator.manual_seed(3),
    )
    torch.testing.assert_close(scaled[0], (beta * predicted - drop).square().mean())
    # Replaced by 3 the drops are −2, −1, 1.
    grey = infidelity(
        Recorder(),
        image,
        relevance,
        0,
        side=1,
        samples=50,
        baseline=3.0,
        generator=generator.manual_seed(3),
    )
    torch.testing.assert_close(grey[0], torch.tensor([9.0, 1, 16]).double()[columns].mean())


def test_infidelity_of_noise_is_the_slopes_error_by_hand() -> None:
    """f = Σ x: with slopes 1 + d a draw's error is I · d, whose square is σ² |d|² on average."""
    image, wrong = pixels(1, 2, 4), pixels(0.5, -1, 2)
    found = infidelity_estimate(Recorder(), image, 1 + wrong, 0, noise=0.3, samples=4000)
    assert found.standard_error is not None
    expected = 0.3**2 * wrong.square().sum()
    assert abs(found.value[0] - expected) < 4 * found.standard_error[0]
    assert infidelity(Recorder(), image, 0 * wrong + 1, 0, noise=0.3)[0] < 1e-20


@each_network
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["square", "noise"])
def test_infidelity_against_its_twin(network: str, kind: str, scaled: bool) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution = batch(2, seed=5, dtype=torch.float64)
    fill = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).view(3, 8, 8)
    generator = torch.Generator().manual_seed(4)
    draws = generator.clone_state()
    options: dict[str, Any] = {"side": 3} if kind == "square" else {"noise": 0.4}
    found = infidelity(
        model,
        images,
        attribution,
        torch.tensor([3, 1]),
        samples=7,
        scaled=scaled,
        baseline=fill,
        generator=generator,
        **options,
    )
    if kind == "square":
        top, left = (torch.randint(6, (7, 1), generator=draws)[:, 0].tolist() for _ in "yx")
    else:
        seeds = torch.randint(2**62, (7,), generator=draws).tolist()
    signs = torch.tensor([1, -1], dtype=torch.float64)
    for image, relevance, label, value in zip(images, attribution, (3, 1), found, strict=True):
        predicted, drops = [], []
        for k in range(7):
            changed, total = image.clone(), 0.0
            if kind == "square":
                for c in range(3):
                    for y in range(top[k], top[k] + 3):
                        for x in range(left[k], left[k] + 3):
                            changed[c, y, x] = fill[c, y, x]
                            total += float(relevance[c, y, x])
            else:
                drawn = torch.Generator().manual_seed(seeds[k])
                step = 0.4 * torch.randn(3, 8, 8, generator=drawn, dtype=torch.float64)
                changed = image - step
                total = float((step * relevance).sum())
            with torch.no_grad():
                drops.append(float(model(torch.stack([image, changed]))[:, label] @ signs))
            predicted.append(total)
        p, d = np.array(predicted), np.array(drops)
        beta = max(0, (p * d).sum() / (p * p).sum()) if scaled else 1
        assert value.item() == pytest.approx(((beta * p - d) ** 2).mean(), abs=1e-10)


@pytest.mark.parametrize("kind", ["square", "noise"])
def test_infidelity_orders_perfect_random_inverted(kind: str) -> None:
    images = batch(20, dtype=torch.float64)
    noise, truth = (
        (0.5, weights(images).expand_as(images))
        if kind == "noise"
        else (None, images * weights(images))
    )
    measure = partial(infidelity, linear, images, target=0, noise=noise)
    perfect, random, inverted = (measure(map_) for map_ in (truth, shuffled(truth), -truth))
    assert (perfect < 1e-20).all()
    assert (random > 0.1).all()
    # An inverted map is wrong by twice the drop: four times as bad as a map of zeros.
    nothing = measure(0 * truth)
    torch.testing.assert_close(inverted, 4 * nothing)
    assert (random < inverted).double().mean() > 0.8
    assert random.mean() < inverted.mean()
    # Scaled, a map in another unit is as good as the perfect one, and an inverted map as zeros.
    measure = partial(measure, scaled=True)
    assert (measure(1000 * truth) < 1e-20).all()
    torch.testing.assert_close(measure(-truth), nothing)
    assert (measure(shuffled(truth)) <= nothing).all()


def test_maps_without_channels() -> None:
    images, attribution = batch(2, dtype=torch.float64), batch(2, seed=1, dtype=torch.float64)
    flat = attribution.sum(1)
    torch.testing.assert_close(
        infidelity(linear, images, flat, 0), infidelity(linear, images, attribution, 0)
    )
    same = flat[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        infidelity(linear, images, flat, 0, noise=0.1),
        infidelity(linear, images, same, 0, noise=0.1),
    )


def test_squares_lie_within_the_image() -> None:
    seen: list[Tensor] = []

    def look(images: Tensor) -> Tensor:
        seen.append(images)
        return images.sum((1, 2, 3))[:, None]

    image = torch.ones(1, 1, 5, 9)
    infidelity(look, image, image, samples=200, side=3)
    holes = 1 - torch.cat(seen[1:])[:, 0]
    assert (holes.sum((1, 2)) == 9).all()
    corners = {tuple(hole.nonzero()[0].tolist()) for hole in holes}
    assert corners == {(y, x) for y in range(3) for x in range(7)}  # each place, and no other
    recorder = Recorder()
    infidelity(recorder, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))  # a side of one at least
    assert sum(recorder.calls) == 101


# sensitivity-n


def test_sensitivity_by_hand() -> None:
    image, relevance = pixels(1, 2, 4), pixels(1, 0, 1)
    found = sensitivity_n(Recorder(), image, relevance, 0, patch=1, sizes=[1, 2], subsets=40)
    assert found.size == (1, 2)
    draws = torch.Generator().manual_seed(0)
    for column, size in enumerate((1, 2)):
        sets = torch.rand(40, 3, generator=draws).argsort(1)[:, :size]
        sums = [[values[0, 0, 0, chosen].sum().item() for chosen in sets]
                for values in (relevance, image)]  # fmt: skip
        expected = np.corrcoef(sums[0], sums[1])[0, 1]
        assert found.correlation[0, column].item() == pytest.approx(expected)


def test_sensitivity_is_faithfulness_at_each_size() -> None:
    model, images, attribution = make("Residual").double(), batch(2).double(), batch(2, seed=1)
    generator = torch.Generator().manual_seed(6)
    again = generator.clone_state()
    found = sensitivity_n(
        model, images, attribution, 2, sizes=(3, 9), patch=2, subsets=12, generator=generator
    )
    for column, size in enumerate((3, 9)):
        alone = faithfulness_correlation(
            model, images, attribution, 2, patch=2, subsets=12, size=size, generator=again
        )
        assert torch.equal(found.correlation[:, column], alone)


def test_sensitivity_orders_perfect_random_inverted() -> None:
    images = batch(20, dtype=torch.float64)
    truth = images * weights(images)
    measure = partial(sensitivity_n, linear, images, target=0, patch=1)
    perfect, random, inverted = (
        measure(map_).correlation for map_ in (truth, shuffled(truth.sum(1)), -truth)
    )
    assert measure(truth).size == (1, 2, 4, 8, 16, 32)
    torch.testing.assert_close(perfect, torch.ones(20, 6).double())
    torch.testing.assert_close(inverted, -torch.ones(20, 6).double())
    assert random.mean(0).abs().max() < 0.15


def test_sensitivity_asks_for_one_size_at_least_and_sets_that_differ() -> None:
    image = pixels(1, 2)
    assert sensitivity_n(Recorder(), image, image, patch=1).size == (1,)
    assert sensitivity_n(Recorder(), pixels(1, 2, 3), pixels(1, 2, 3), patch=1).size == (1, 2)


# pixel flipping


def test_flipping_by_hand() -> None:
    image, attribution = pixels(1, 2, 4, 8), pixels(5, -1, 7, 0)
    morf, lerf, area = pixel_flipping(Recorder(), image, attribution, 0, steps=4)
    assert morf.score.tolist() == [[15, 11, 10, 2, 0]]
    assert lerf.score.tolist() == [[15, 13, 5, 4, 0]]
    assert area.tolist() == [(13 + 5 + 4) / 4 - (11 + 10 + 2) / 4]
    assert torch.equal(morf.auc, deletion(Recorder(), image, attribution, 0, steps=4).auc)


@each_network
def test_flipping_against_its_twin(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution = batch(2, seed=5, dtype=torch.float64)
    found = pixel_flipping(model, images, attribution, 3, steps=8, baseline=0.7)
    for image, relevance, area in zip(images, attribution, found.area, strict=True):
        rising = sorted(range(64), key=lambda k: float(relevance.sum(0).flatten()[k]))
        areas = []
        for order in (rising, rising[::-1]):
            changed, scores = image.clone(), []
            for step in range(9):
                for k in order[max(0, 8 * step - 8) : 8 * step]:
                    changed[:, k // 8, k % 8] = 0.7
                with torch.no_grad():
                    scores.append(float(model(changed[None].clone())[0, 3]))
            areas.append(sum((a + b) / 16 for a, b in pairwise(scores)))
        assert area.item() == pytest.approx(areas[0] - areas[1], abs=1e-10)


def test_flipping_orders_perfect_random_inverted() -> None:
    images = batch(20, dtype=torch.float64)
    truth = images * weights(images)
    perfect, random, inverted = (
        pixel_flipping(linear, images, map_, 0, steps=64).area
        for map_ in (truth, shuffled(truth.sum(1)), -truth)
    )
    torch.testing.assert_close(inverted, -perfect)
    assert (perfect > random).all()
    assert (random > inverted).all()
    assert random.mean().abs() < 0.1 * perfect.mean()


# what all that run the model promise

MEASURES: dict[str, Callable] = {
    "infidelity": partial(infidelity, samples=6),
    "infidelity, noise": partial(infidelity, samples=6, noise=0.2),
    "infidelity, scaled": partial(infidelity, samples=6, scaled=True),
    "sensitivity_n": partial(sensitivity_n, sizes=(2, 5), patch=2, subsets=6),
    "pixel_flipping": partial(pixel_flipping, steps=6),
    "pixel_flipping, probability": partial(pixel_flipping, steps=6, of="probability"),
}
# Of an image: sensitivity-n once for each size, flipping once for each order.
PASSES = {"sensitivity_n": 14, "pixel_flipping": 14, "pixel_flipping, probability": 14}
every_measure = pytest.mark.parametrize("name", MEASURES)


def value(result: Tensor | Sensitivity | Flipping) -> Tensor:
    """All that a measure returns for each image, in one tensor."""
    if isinstance(result, Tensor):
        return result[:, None]
    if isinstance(result, Sensitivity):
        return result.correlation
    return torch.cat([result.morf.score, result.lerf.score, result.area[:, None]], 1)


@every_measure
def test_passes(name: str) -> None:
    model = Recorder()
    MEASURES[name](model, batch(3), batch(3), batch_size=7)
    assert sum(model.calls) == 3 * PASSES.get(name, 7)
    assert max(model.calls) <= 7


@every_measure
@each_network
def test_batches_do_not_matter(name: str, network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    attribution = batch(seed=3)
    together = value(MEASURES[name](model, images, attribution))
    for size in (1, 5):
        parts = [
            MEASURES[name](model, image[None], one[None], batch_size=size)
            for image, one in zip(images, attribution, strict=True)
        ]
        alone = torch.cat([value(part) for part in parts])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


@every_measure
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(name: str, dtype: torch.dtype) -> None:
    model, images, attribution = make("Residual").to(dtype), batch().to(dtype), batch(seed=1)
    before, state = images.clone(), torch.get_rng_state()
    result = value(MEASURES[name](model, images, attribution.requires_grad_()))
    assert result.dtype == dtype
    assert len(result) == 3
    assert not result.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    with torch.inference_mode():
        again = value(MEASURES[name](model, images.clone(), attribution.clone()))
    torch.testing.assert_close(again, result, rtol=0, atol=0, equal_nan=True)


@every_measure
def test_target_none_is_the_argmax_and_functions_will_do(name: str) -> None:
    model, images, attribution = make("Residual").eval(), batch(), batch(seed=1)
    with torch.no_grad():
        answers = model(images).argmax(1)
    expected = value(MEASURES[name](model, images, attribution))
    assert torch.equal(value(MEASURES[name](model, images, attribution, answers)), expected)
    assert torch.equal(value(MEASURES[name](lambda x: model(x), images, attribution)), expected)
    if "probability" not in name:  # a target function, of one class and of a contrast
        of_class = value(MEASURES[name](model, images, attribution, 2))
        found = value(MEASURES[name](model, images, attribution, lambda y: y[:, 2]))
        torch.testing.assert_close(found, of_class)
        contrast = value(MEASURES[name](model, images, attribution, lambda y: y[:, 2] - y[:, 1]))
        assert not torch.allclose(contrast, of_class)
        pair = value(MEASURES[name](model, images, attribution, (2, 1)))
        torch.testing.assert_close(pair, contrast)


@pytest.mark.parametrize("name", [name for name in MEASURES if "flipping" not in name])
def test_the_generator(name: str) -> None:
    model, images, attribution = make("Residual"), batch(), batch(seed=1)
    measure = lambda **options: value(MEASURES[name](model, images, attribution, **options))  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    first = measure()
    assert torch.equal(first, measure(generator=generator))
    assert not torch.equal(first, measure(generator=generator))


def test_an_estimate_knows_its_error() -> None:
    """The standard error is the spread of estimates from other seeds."""
    model, images, attribution = make("Residual").double(), batch(1).double(), batch(1, seed=1)
    found = [
        infidelity_estimate(
            model, images, attribution, samples=40, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(200)
    ]
    values = torch.cat([one.value for one in found])
    errors = torch.cat([one.standard_error for one in found if one.standard_error is not None])
    assert values.std() == pytest.approx(errors.mean().item(), rel=0.15)
    assert isinstance(found[0], Estimate)
    single = infidelity_estimate(model, images, attribution, samples=1)
    assert single.value.isfinite().all()
    assert single.standard_error is not None
    assert single.standard_error.isnan().all()


@every_measure
def test_maps_that_say_nothing(name: str) -> None:
    images = batch(2, dtype=torch.float64)
    found = MEASURES[name](linear, images, 0 * images, 0)
    if "infidelity" in name:
        assert (found > 0).all()  # E[Δ²]
    else:
        assert (found.area if isinstance(found, Flipping) else found.correlation).isnan().all()


BAD_MAPS: list[Any] = [
    *(None, batch().numpy(), batch().long(), batch()[:2], batch()[..., :7], batch() / 0),
    *(batch()[:, :2], batch()[0, 0]),
]
BAD_RUN: dict[str, list[Any]] = {
    "attribution": BAD_MAPS,
    "images": [batch()[0], batch().long(), batch() / 0],
    "baseline": [nan, "grey", torch.zeros(2, 8, 8), None],
    "batch_size": [0, 1.5],
}
CASES = [
    *(("infidelity", *case) for case in BAD_RUN.items()),
    ("infidelity", "side", [0, 9, 2.0, True]),
    ("infidelity", "samples", [0, 1.5]),
    ("infidelity", "generator", [0, "cpu"]),
    ("infidelity, noise", "noise", [0, -1, nan, "0.1"]),
    ("infidelity, noise", "side", [3]),
    *(("sensitivity_n", *case) for case in BAD_RUN.items()),
    ("sensitivity_n", "sizes", [(), 3, (0,), (1, 16), (1.5,), "12"]),
    ("sensitivity_n", "subsets", [1, 2.5, None]),
    ("sensitivity_n", "patch", [0, 8, 1.0]),
    ("sensitivity_n", "generator", [0, "cpu"]),
    *(("pixel_flipping", *case) for case in BAD_RUN.items()),
    ("pixel_flipping", "steps", [0, -1, 2.0, True]),
    ("pixel_flipping", "of", ["logits", "accuracy", None]),
]


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [(name, argument, bad) for name, argument, values in CASES for bad in values],
)
def test_bad_options(name: str, argument: str, bad: object) -> None:
    model = Recorder()
    with pytest.raises((ValueError, TypeError), match=f"^{argument}\\b") as error:
        MEASURES[name](model, **{"images": batch(), "attribution": batch(), argument: bad})
    assert not model.calls
    assert "\n" not in str(error.value)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="^sizes are 1, 16, but must be smaller than .* is 16"):
        sensitivity_n(Recorder(), batch(), batch(), patch=2, sizes=(1, 16))
    with pytest.raises(ValueError, match="^side is 9, but a square must lie within images"):
        infidelity(Recorder(), batch(), batch(), side=9)
    for name in MEASURES:
        with pytest.raises(ValueError, match="^target: there is no class 2"):
            MEASURES[name](Recorder(), batch(), batch(), 2)
        with pytest.raises(ValueError, match="^model must return logits"):
            MEASURES[name](lambda x: x, batch(), batch())
    assert evaluation.infidelity is infidelity
    assert evaluation.sensitivity_n is sensitivity_n


# beside the field's libraries


def drawn(kind: str, samples: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """The same changes I (S, C, H, W) as `infidelity` with a side of 3 or a noise of 0.3 draws."""
    if kind == "noise":
        seeds = torch.randint(2**62, (samples,), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        normal = partial(torch.randn, images.shape[1:], dtype=images.dtype)
        return torch.stack([0.3 * normal(generator=each) for each in generators])
    steps = images.new_zeros(samples, *images.shape[1:])
    top, left = (
        torch.randint(length - 2, (samples, 1), generator=generator)[:, 0].tolist()
        for length in images.shape[2:]
    )
    for step, y, x in zip(steps, top, left, strict=True):
        step[:, y : y + 3, x : x + 3] = 1
    return steps


@pytest.mark.references
@pytest.mark.parametrize("kind", ["square", "noise"])
@each_network
def test_infidelity_equals_captum(network: str, kind: str) -> None:
    """But for a factor below 0, by which Captum praises a map as much as its inverse."""
    from captum.metrics import infidelity as theirs

    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution, target = batch(2, seed=5, dtype=torch.float64), torch.tensor([1, 4])
    steps = drawn(kind, 9, images, torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.where(steps > 0, 0.5, inputs) if kind == "square" else inputs - steps
        return steps, changed

    options: dict[str, Any] = {"side": 3} if kind == "square" else {"noise": 0.3}
    options |= {"target": target, "samples": 9, "baseline": 0.5}

    def ours(map_: Tensor, scaled: bool = False) -> Tensor:
        return infidelity(model, images, map_, scaled=scaled, **options)

    def captum(map_: Tensor, **scaled: bool) -> Tensor:
        return theirs(model, perturb, images, map_, target=target, n_perturb_samples=9, **scaled)

    torch.testing.assert_close(ours(attribution), captum(attribution), rtol=0, atol=1e-5)
    assert torch.allclose(captum(attribution, normalize=True), captum(-attribution, normalize=True))
    right, wrong = torch.stack([ours(sign * attribution, scaled=True) for sign in (1, -1)]).sort(0)[
        0
    ]
    torch.testing.assert_close(right, captum(attribution, normalize=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(wrong, ours(0 * attribution), rtol=0, atol=1e-5)


PLAIN: dict[str, Any] = {
    **{"abs": False, "normalise": False, "disable_warnings": True},
    "perturb_baseline": 0.0,
}


def grey() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).eval(), batch()[:, :1, :6, :6], batch(seed=1)[:, :1, :6, :6]


def quantus_says(metric: Any, model: nn.Module, images: Tensor, maps: Tensor) -> np.ndarray:
    answers = np.array([0, 2, 1])
    found = metric(model, images.numpy(), answers, a_batch=maps.numpy(), softmax=False)
    return np.array(found)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_flipping_equals_quantus_in_both_orders() -> None:
    import quantus

    model, images, attribution = grey()
    metric = quantus.PixelFlipping(features_in_step=1, **PLAIN)
    found = pixel_flipping(model, images, attribution, torch.tensor([0, 2, 1]), steps=36)
    for curve, map_ in ((found.morf, attribution), (found.lerf, -attribution)):
        reference = quantus_says(metric, model, images, map_)
        np.testing.assert_allclose(curve.score[:, 1:], reference, atol=1e-5)  # it leaves f(x) out


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_quantus_infidelity_removes_one_block_on_top_of_the_other() -> None:
    """Its blocks add up, in one order, until the image is gone; nothing is drawn at random.

    It also multiplies the map with x − x', as for slopes; the paper draws each change anew.
    """
    import quantus

    model, images, attribution = grey()
    metric = quantus.Infidelity(perturb_patch_sizes=[3], n_perturb_samples=1, **PLAIN)
    reference = quantus_says(metric, model, images, attribution)
    for image, relevance, label, theirs in zip(
        images, attribution, (0, 2, 1), reference, strict=True
    ):
        changed, errors = image.clone(), []
        for y, x in ((0, 0), (0, 3), (3, 0), (3, 3)):
            changed[:, y : y + 3, x : x + 3] = 0
            with torch.no_grad():
                drop = (model(image[None]) - model(changed[None]))[0, label]
            errors.append(float(((image - changed) * relevance).sum() - drop) ** 2)
        assert float(theirs) == pytest.approx(np.mean(errors), abs=1e-5)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_quantus_sensitivity_correlates_over_images() -> None:
    """Not over random sets of n pixels of one image, but over images, of their k highest pixels.

    It returns the mean over k: one image gives it nothing to correlate, and the paper's number is
    another.
    """
    import quantus

    model, images, attribution = grey()
    metric = quantus.SensitivityN(features_in_step=1, n_max_percentage=0.5, **PLAIN)
    reference = quantus_says(metric, model, images, attribution)
    drops, sums = np.zeros((3, 36)), np.zeros((3, 36))
    for i, label in enumerate((0, 2, 1)):
        changed, order = images[i].clone(), attribution[i].flatten().argsort(descending=True)
        for k, place in enumerate(order.tolist()):
            changed[0, place // 6, place % 6] = 0
            with torch.no_grad():
                drops[i, k] = (model(images[i : i + 1]) - model(changed[None]))[0, label]
            sums[i, k] = attribution[i].flatten()[place]
    expected = [np.corrcoef(drops[:, k], sums[:, k])[0, 1] for k in range(18)]
    np.testing.assert_allclose(reference.ravel(), [np.mean(expected)], atol=1e-4)


@pytest.mark.slow
@pytest.mark.references
def test_infidelity_on_a_real_network() -> None:
    """The photograph of a cat, EfficientNet-Lite0, the same squares: ours and Captum's."""
    from captum.metrics import infidelity as theirs

    classifier = load("efficientnet_lite0")
    image = classifier.to_input(photographs.load("chelsea").image)
    attribution = image * torch.linspace(-1, 1, image.numel()).view_as(image) / 100
    places = torch.Generator().manual_seed(0)
    top, left = (torch.randint(224 - 56 + 1, (6, 1), generator=places)[:, 0].tolist() for _ in "yx")
    steps = torch.zeros(6, 3, 224, 224)
    for step, y, x in zip(steps, top, left, strict=True):
        step[:, y : y + 56, x : x + 56] = 1
    with torch.no_grad():
        target = int(classifier.model(image).argmax())
    found = infidelity(classifier.model, image, attribution, target, samples=6)
    reference = theirs(
        classifier.model,
        lambda x: (steps, torch.where(steps > 0, 0.0, x)),
        image,
        attribution,
        target=target,
        n_perturb_samples=6,
    )
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
