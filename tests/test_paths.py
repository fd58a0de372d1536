"""Expected gradients, guided and blur integrated gradients: other paths, other beginnings."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import models
from course_utils.methods.gradients import (
    QUADRATURES,
    blur_integrated_gradients,
    blurred,
    expected_gradients,
    expected_gradients_estimate,
    gradient,
    guided_integrated_gradients,
    integrated_gradients,
    quadrature,
)
from course_utils.worlds import photographs
from course_utils.worlds.scenes import Scenes
from tests.networks import Saturating, batch, make, pixels


class ByHand(nn.Module):
    """f = 5x + y² of an "image" with the two pixels x and y, and g = xy as a second class."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.stack([5 * x + y**2, x * y], 1)


def logits(model: nn.Module, images: Tensor, c: int) -> Tensor:
    with torch.no_grad():
        return model(images.clone())[:, c]


# --- Expected gradients -----------------------------------------------------------------------


def test_expected_gradients_by_hand() -> None:
    zero = torch.zeros(1, 1, 1, 2).double()
    one = expected_gradients(ByHand(), pixels(0, 5), 0, background=zero, samples=500)
    assert one.flatten().tolist() == pytest.approx([0, 25], abs=1e-2)
    # From (0, 0) y gets 5² − 0², from (4, 3) it gets 5² − 3²; x gets 0, or 5 · (0 − 4).
    both = torch.cat([zero, pixels(4, 3)])
    found = expected_gradients_estimate(ByHand(), pixels(0, 5), 0, background=both, samples=4000)
    error = (found.value - pixels(-10, 20.5)).abs()
    assert found.standard_error is not None
    assert (error < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.3


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_expected_gradients_as_a_loop(batch_size: int) -> None:
    model, images = make("Residual").double().eval(), batch(dtype=torch.float64)
    background, n = batch(4, seed=1, dtype=torch.float64), 6
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (n,), generator=generator)
    within = torch.rand(n, generator=generator, dtype=torch.float64)
    rows = []
    for x in images:
        samples = []
        for k in range(n):
            start, alpha = background[drawn[k]], (k + within[k]) / n
            slope = gradient(model, (start + alpha * (x - start))[None], 2)[0]
            samples.append((x - start) * slope)
        rows.append(torch.stack(samples))
    every = torch.stack(rows, 1)
    options: dict[str, Any] = {"background": background, "samples": n, "batch_size": batch_size}
    mean, error, spread, r2 = expected_gradients_estimate(model, images, 2, **options)
    torch.testing.assert_close(mean, every.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread, every.std(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(error, every.std(0) / n**0.5, rtol=0, atol=1e-7)
    assert r2 is None


def scatter(model: nn.Module, background: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation over generators, and the mean of the standard errors."""
    x, found = batch(1, dtype=torch.float64), []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"samples": 20, "batch_size": 20, "generator": generator}
        found.append(expected_gradients_estimate(model, x, 1, background=background, **options))
    errors = torch.stack([each.standard_error for each in found])  # type: ignore[misc]
    return torch.stack([each.value for each in found]).std(0), errors.mean(0)


def test_the_standard_error_is_that_of_the_background() -> None:
    """Where the slope is constant, α does not matter; where there is one background, α alone."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    real, said = scatter(linear, batch(50, seed=1, dtype=torch.float64))
    assert float((real / said).mean()) == pytest.approx(1, abs=0.05)
    curved = make("Functional").double().eval()
    real, said = scatter(curved, torch.zeros(1, 3, 8, 8).double())
    assert float((real / said).nanmean()) < 0.5  # evenly spread, and so rather too large


def test_samples_are_the_generators() -> None:
    model, images, background = make("Residual"), batch(), batch(5, seed=1)

    def explain(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"samples": 3, "generator": generator}
        return expected_gradients(model, images, 1, background=background, **options)

    assert torch.equal(explain(None), explain(0))
    assert not torch.equal(explain(3), explain(4))


@pytest.mark.references
def test_expected_gradients_tend_to_captums() -> None:
    """Its draws are others: the means agree within four standard errors almost everywhere."""
    from captum.attr import GradientShap

    model, x = make("Functional").double().eval(), batch(1, dtype=torch.float64)
    background, n = batch(5, seed=1, dtype=torch.float64), 2000
    options: dict[str, Any] = {"samples": n, "batch_size": 500}
    ours = expected_gradients_estimate(model, x, 1, background=background, **options)
    assert ours.standard_error is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  # it draws from both
        theirs = GradientShap(model).attribute(x, background, n_samples=n, stdevs=0.0, target=1)
    within = (ours.value - theirs).abs() < 4 * 2**0.5 * ours.standard_error + 1e-12
    assert float(within.double().mean()) > 0.99
    wanted = float((logits(model, x, 1) - logits(model, background, 1).mean()).item())
    assert float(ours.value.sum()) == pytest.approx(wanted, abs=0.05 * abs(wanted) + 0.01)


# --- Guided integrated gradients --------------------------------------------------------------


def test_guided_integrated_gradients_by_hand() -> None:
    """Of xy from (1, 2) to (3, 3): y's gradient is 1, x's is 2, and so y goes first."""
    x, start = pixels(3, 3), pixels(1, 2)

    def explain(method: Callable, **options: Any) -> list[float]:
        return method(ByHand(), x, 1, baseline=start, **options).flatten().tolist()

    free: dict[str, Any] = {"steps": 3, "max_distance": 1}
    assert explain(guided_integrated_gradients, **free) == pytest.approx([6, 1])
    assert explain(integrated_gradients) == pytest.approx([5, 2])
    straight = explain(integrated_gradients, rule="trapezoid", steps=51)
    for options in ({"fraction": 1.0, "max_distance": 1.0}, {"max_distance": 0.0}):
        assert explain(guided_integrated_gradients, steps=50, **options) == pytest.approx(straight)
    saturated = guided_integrated_gradients(Saturating(), pixels(1, 1), 0, steps=100)
    assert saturated.flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def guided_path(
    model: nn.Module, x: Tensor, start: Tensor, c: int, steps: int, fraction: float, band: float
) -> list[Tensor]:
    """The points of the path for one image (C, H, W), value by value."""
    points, n = [start], x.numel()
    begin, way = start.flatten().tolist(), (x - start).flatten().tolist()
    done, total = [0.0] * n, sum(map(abs, way))
    for k in range(1, steps + 1):
        low, high = k / steps - band, min(1.0, k / steps + band)
        sizes = gradient(model, points[-1][None], c).flatten().abs().tolist()
        done = [max(low, share) for share in done]
        while True:
            missing = total * k / steps - sum(done[i] * abs(way[i]) for i in range(n))
            waiting = sorted(sizes[i] for i in range(n) if done[i] < high)
            if missing < 1e-12 or not waiting:
                break
            limit = waiting[min(math.floor(fraction * (n - 1)), len(waiting) - 1)]
            chosen = [i for i in range(n) if sizes[i] <= limit and done[i] < high]
            reach = sum((high - done[i]) * abs(way[i]) for i in chosen)
            share = min(1.0, missing / reach)
            for i in chosen:
                done[i] = high if share == 1 else done[i] + share * (high - done[i])
            if share < 1:
                break
        now = [begin[i] + done[i] * way[i] for i in range(n)]
        points.append(torch.tensor(now, dtype=x.dtype).view_as(x))
    return points


@pytest.mark.parametrize("network", ["Residual", "Functional", "Reused"])
@pytest.mark.parametrize(("fraction", "band"), [(0.05, 1.0), (0.25, 1.0), (0.25, 0.05), (1.0, 0.1)])
def test_guided_integrated_gradients_as_a_loop(network: str, fraction: float, band: float) -> None:
    model, images = make(network).double().eval(), batch(dtype=torch.float64)
    baseline, rows = batch(seed=1, dtype=torch.float64), []
    for x, start in zip(images, baseline, strict=True):
        points = guided_path(model, x, start, 2, 7, fraction, band)
        slopes = [gradient(model, point[None], 2)[0] for point in points]
        rows.append(
            sum((points[k + 1] - points[k]) * (slopes[k] + slopes[k + 1]) / 2 for k in range(7))
        )
    options: dict[str, Any] = {"steps": 7, "fraction": fraction, "max_distance": band}
    found = guided_integrated_gradients(
        model, images, 2, baseline=baseline, batch_size=2, **options
    )
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-10)  # type: ignore[arg-type]


class Visited(nn.Module):
    """A network that keeps what it was shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.model(x)


def theirs(
    name: str, model: nn.Module, x: Tensor, c: int, monkeypatch: Any, **options: Any
) -> Tensor:
    """The map of one image (1, C, H, W) by a class of the package saliency."""
    import saliency.core as package

    def call(values: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict:
        images = torch.from_numpy(np.asarray(values)).permute(0, 3, 1, 2).contiguous()
        slope = gradient(model, images.to(x), c)
        return {package.INPUT_OUTPUT_GRADIENTS: slope.permute(0, 2, 3, 1).numpy()}

    quantile: Any = np.quantile

    def old(values: Any, q: float, interpolation: str) -> Any:  # which NumPy 2.4 knows no more
        return quantile(values, q, method=interpolation)

    with monkeypatch.context() as patch:
        patch.setattr(np, "quantile", old)
        found = getattr(package, name)().GetMask(x[0].permute(1, 2, 0).numpy(), call, **options)
    return torch.from_numpy(found).permute(2, 0, 1)[None]


def same_path(
    model: nn.Module, x: Tensor, c: int, steps: int, band: float, patch: Any
) -> tuple[Tensor, ...]:
    """Both maps from the mean colour, after a look at the points where gradients were taken."""
    ours, other = Visited(model), Visited(model)
    mine = guided_integrated_gradients(ours, x, c, steps=steps, max_distance=band)
    reference = theirs("GuidedIG", other, x, c, patch, x_steps=steps, max_dist=band)
    assert len(ours.points) == len(other.points) + 1 == steps + 1
    for one, another in zip(ours.points, other.points, strict=False):
        torch.testing.assert_close(one, another, rtol=0, atol=1e-5)
    # The same sum as theirs, of our points: the slope of each step's beginning alone.
    slopes = [gradient(model, point, c) for point in ours.points[:-1]]
    moves = [b - a for a, b in zip(ours.points, ours.points[1:], strict=False)]
    again = sum(move * slope for move, slope in zip(moves, slopes, strict=True))
    torch.testing.assert_close(again, reference, rtol=0, atol=1e-5)
    return mine, reference


@pytest.mark.references
@pytest.mark.parametrize("network", ["Residual", "Functional", "Reused"])
@pytest.mark.parametrize("band", [0.02, 0.1, 1.0])
def test_the_path_is_that_of_the_saliency_package(
    network: str, band: float, monkeypatch: Any
) -> None:
    model, x = make(network).double().eval(), batch(1, dtype=torch.float64)
    same_path(model, x, 2, 40, band, monkeypatch)


@pytest.mark.references
@pytest.mark.slow
@pytest.mark.parametrize(("band", "ours", "package"), [(1.0, 0.12, 0.2), (0.1, 0.05, 0.06)])
def test_the_saliency_package_misses_a_part_of_the_sum(
    band: float, ours: float, package: float, monkeypatch: Any
) -> None:
    """Who is chosen for a small gradient has a larger one a step later: theirs is too small."""
    net, scenes = models.load("scenes", device="cpu"), Scenes(64, 11, missing="nothing")
    missed = []
    for i in range(2):
        x = net.to_input(scenes.scene(i).image).double()
        model = models.load("scenes", device="cpu").model.double()
        c = int(model(x).argmax())
        gain = logits(model, x, c) - logits(model, torch.zeros_like(x), c)
        both = same_path(model, x, c, 32, band, monkeypatch)
        missed.append([float(1 - each.sum() / gain) for each in both])
    mine, reference = np.abs(np.array(missed)).mean(0)
    assert mine < ours
    assert reference > package


@pytest.mark.slow
def test_without_a_limit_guided_integrated_gradients_are_chaotic() -> None:
    """Noise of a thousandth of a grey level: near the straight line it changes little."""
    net, scenes = models.load("scenes", device="cpu"), Scenes(64, 11, missing="nothing")
    x = net.to_input(scenes.scene(0).image)
    noise = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    both = torch.cat([x, x + noise])

    def same(**options: Any) -> float:
        maps = guided_integrated_gradients(net.model, both, steps=32, **options)
        return float(torch.corrcoef(maps.flatten(1))[0, 1])

    assert same() > 0.95
    assert same(max_distance=1.0) < 0.7


def test_guided_integrated_gradients_refuse_half_precision() -> None:
    model, images = make("Residual").bfloat16(), batch().bfloat16()
    with pytest.raises(ValueError, match="^images are torch.bfloat16, which is too coarse to"):
        guided_integrated_gradients(model, images, 1)


# --- Blur integrated gradients ----------------------------------------------------------------


def test_blurred_by_hand() -> None:
    row = pixels(0, 0, 1, 0, 0)
    weight = [math.exp(-2 * d**2) for d in (2, 1, 0, 1, 2)]
    found = blurred(row, 0.5)[0, 0, 0]
    # The first pixel sees three pixels, the middle one all five.
    first = weight[0] / sum(weight[2:])
    wanted = [first, weight[1] / sum(weight[1:]), 1 / sum(weight)]
    torch.testing.assert_close(found[:3], torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(found, found.flip(0))
    assert torch.equal(blurred(row, 0.0), row)
    plain = torch.full((2, 3, 7, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blurred(plain, torch.tensor([1.0, 40.0])), plain)
    far = blurred(batch(1, dtype=torch.float64), 1e6)
    torch.testing.assert_close(far, batch(1, dtype=torch.float64).mean((2, 3), True).expand_as(far))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.7, 9.0])
def test_blurred_is_scipys_inside(sigma: float) -> None:
    from scipy.ndimage import gaussian_filter

    images = torch.zeros(2, 3, 100, 90, dtype=torch.float64)
    images[:, :, 40:60, 40:50] = 1 + batch(2, dtype=torch.float64).repeat(1, 1, 3, 2)[..., :20, :10]
    wanted = [
        gaussian_filter(image, (0, sigma, sigma), mode="constant") for image in images.numpy()
    ]
    inside = (slice(None), slice(None), slice(36, 64), slice(36, 54))
    found = blurred(images, sigma)
    torch.testing.assert_close(found[inside], torch.from_numpy(np.stack(wanted))[inside])


def test_blur_integrated_gradients_by_hand() -> None:
    """f = x² + y² from the mean to (0, 6): along x + y = 6, x² + y² rises from 18 to 36."""

    class Squares(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images**2).sum((1, 2, 3))[:, None]

    found = blur_integrated_gradients(Squares(), pixels(0, 6), 0, steps=200).flatten().tolist()
    assert found == pytest.approx([-9, 27], abs=0.02)  # 0² − 3² and 6² − 3²
    plain = blur_integrated_gradients(make("Residual"), torch.ones(1, 3, 8, 8), 1)
    assert float(plain.abs().max()) < 1e-6


@pytest.mark.parametrize("rule", QUADRATURES)
def test_blur_integrated_gradients_as_a_loop(rule: str) -> None:
    model, images = make("Residual").double().eval(), batch(dtype=torch.float64)[..., :5, :4]

    def slowly(x: Tensor, sigma: float) -> Tensor:
        """One image (C, H, W), pixel by pixel."""
        result, reach = torch.zeros_like(x), math.floor(4 * sigma + 0.5)
        for i in range(5):
            for j in range(4):
                total = 0.0
                for a in range(5):
                    for b in range(4):
                        if max(abs(a - i), abs(b - j)) <= reach:
                            d = (a - i) ** 2 + (b - j) ** 2
                            w = math.exp(-d / (2 * sigma**2)) if d else 1.0
                            result[:, i, j] += w * x[:, a, b]
                            total += w
                result[:, i, j] /= total
        return result

    nodes, weights = quadrature(rule, 5)
    rows = []
    for x in images:
        edge, total = 0.0, torch.zeros_like(x)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            assert edge - 1e-12 <= node <= edge + weight + 1e-12  # each in its own piece
            slope = gradient(model, slowly(x, 3 * (1 - node))[None], 2)[0]
            after = max(0.0, 1 - edge - weight)
            total += slope * (slowly(x, 3 * after) - slowly(x, 3 * (1 - edge)))
            edge += weight
        rows.append(total)
    options: dict[str, Any] = {"max_sigma": 3, "steps": 5, "rule": rule, "batch_size": 4}
    found = blur_integrated_gradients(model, images, 2, **options)
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-10)


def middle(values: Tensor, margin: int) -> Tensor:
    """The values with zeros around them."""
    return nn.functional.pad(values, (margin,) * 4)


def blur_by_package(model: nn.Module, x: Tensor, monkeypatch: Any, step: float) -> Tensor:
    options: dict[str, Any] = {"max_sigma": 2.0, "steps": 8, "grad_step": step}
    return theirs("BlurIG", model, x, 2, monkeypatch, **options)


@pytest.mark.references
@pytest.mark.parametrize("network", ["Residual", "Functional"])
def test_blur_equals_the_saliency_package(network: str, monkeypatch: Any) -> None:
    """Where the border is far, at the right ends, and with its difference over a whole step."""
    model, x = make(network).double().eval(), middle(batch(1, dtype=torch.float64), 17)
    ours = blur_integrated_gradients(
        model, x, 2, max_sigma=2, steps=8, rule="riemann-right", batch_size=3
    )
    reference = blur_by_package(model, x, monkeypatch, 2 / 8)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    assert float(ours.abs().max()) > 1e-5


@pytest.mark.references
def test_where_the_saliency_package_blurs_otherwise(monkeypatch: Any) -> None:
    """Its derivative in σ is 0 at the sharp image, and its images end in black."""
    from saliency.core.blur_ig import gaussian_blur

    model = make("Residual").double().eval()
    x = middle(batch(1, dtype=torch.float64), 17)
    value = x[0].permute(1, 2, 0).numpy()
    assert np.array_equal(gaussian_blur(value, 0.01), value)  # a kernel of one pixel
    coarse, fine = (blur_by_package(model, x, monkeypatch, step) for step in (2 / 8, 0.01))
    assert float((coarse - fine).abs().max() / coarse.abs().max()) > 0.1

    plain = torch.ones(1, 3, 24, 24, dtype=torch.float64)
    reference = blur_by_package(model, plain, monkeypatch, 2 / 8)
    assert float(reference[..., :4, :].abs().max()) > 1e-5  # at the border of a plain image
    ours = blur_integrated_gradients(model, plain, 2, max_sigma=2, steps=8)
    assert float(ours.abs().max()) < 1e-12


# --- All three --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["midpoint", "gauss-legendre"])
def test_blur_integrated_gradients_are_complete(rule: str) -> None:
    model, images = make("Functional").double().eval(), batch(dtype=torch.float64)
    found = blur_integrated_gradients(model, images, 1, max_sigma=4, steps=400, rule=rule)
    gain = logits(model, images, 1) - logits(model, blurred(images, 4.0), 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), gain, rtol=2e-3, atol=2e-3)


class Smooth(nn.Module):
    """Without kinks."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.gelu(self.conv(x)).mean((2, 3)))


def test_guided_integrated_gradients_are_complete() -> None:
    """Where f is smooth; among the kinks of a ReLU network a few percent are missed."""

    def reached(model: nn.Module, steps: int) -> Tensor:
        images = batch(dtype=torch.float64)
        found = guided_integrated_gradients(model, images, 1, steps=steps, max_distance=1)
        found = found.sum((1, 2, 3))
        return found / (logits(model, images, 1) - logits(model, torch.zeros_like(images), 1))

    assert float((reached(Smooth(), 400) - 1).abs().max()) < 0.01
    kinks = reached(make("Reused").double().eval(), 800)
    assert 0.01 < float((kinks - 1).abs().max()) < 0.06


@pytest.mark.slow
def test_completeness_on_scenes() -> None:
    """How much of f(x) − f(x') the sums miss with the default options, on average."""
    net, scenes = models.load("scenes", device="cpu"), Scenes(64, 11, missing="nothing")
    x = torch.cat([net.to_input(scenes.scene(i).image) for i in range(3)])
    others = torch.cat([net.to_input(scenes.scene(i).image) for i in range(16, 32)])
    classes = net.model(x).argmax(1)

    def score(images: Tensor) -> Tensor:
        with torch.no_grad():
            return net.model(images.expand_as(x))[torch.arange(3), classes]

    def missed(attribution: Tensor, start: Tensor) -> float:
        gain = score(x) - start
        return float(((attribution.sum((1, 2, 3)) - gain) / gain).abs().mean())

    blur = blur_integrated_gradients(net.model, x, classes)
    assert missed(blur, score(blurred(x, 20.0))) < 0.05
    guided = guided_integrated_gradients(net.model, x, classes)
    assert missed(guided, score(torch.zeros_like(x))) < 0.05
    expected = expected_gradients(net.model, x, classes, background=others)
    assert missed(expected, torch.stack([score(b[None]) for b in others]).mean(0)) < 0.2


def photo() -> tuple[nn.Module, Tensor, int]:
    """EfficientNet-Lite0 in float64, the coffee at half its size, and espresso."""
    net = models.load("efficientnet_lite0", device="cpu")
    image = nn.functional.avg_pool2d(net.to_input(photographs.load("coffee").image).double(), 2)
    model: Any = net.model.double()
    return model.to(memory_format=torch.contiguous_format), image, 967


@pytest.mark.slow
def test_expected_gradients_on_a_real_network() -> None:
    model, x, c = photo()
    found = expected_gradients(model, x, c, background=torch.zeros(1, 3, 1, 1), samples=3)
    within = torch.rand(3, generator=_after(torch.Generator().manual_seed(0)), dtype=torch.float64)
    alphas = (torch.arange(3) + within) / 3
    slope = torch.stack([gradient(model, alpha * x, c) for alpha in alphas]).mean(0)
    torch.testing.assert_close(found, x * slope, rtol=0, atol=1e-10)


def _after(generator: torch.Generator) -> torch.Generator:
    """The generator after the background was drawn."""
    torch.randint(1, (3,), generator=generator)
    return generator


@pytest.mark.slow
@pytest.mark.references
def test_guided_integrated_gradients_on_a_real_network(monkeypatch: Any) -> None:
    model, x, c = photo()
    mine, _ = same_path(model, x, c, 4, 0.02, monkeypatch)
    assert mine.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.references
def test_blur_integrated_gradients_on_a_real_network(monkeypatch: Any) -> None:
    model, x, c = photo()
    x = middle(x[..., 32:80, 32:80], 32)
    options: dict[str, Any] = {"max_sigma": 3.0, "steps": 4}
    ours = blur_integrated_gradients(model, x, c, rule="riemann-right", **options)
    reference = theirs("BlurIG", model, x, c, monkeypatch, grad_step=3 / 4, **options)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-8)


NOT_A_COUNT: list[object] = [0, -1, 1.5, True, "many", None]
BACKGROUND: dict[str, Any] = {"background": batch(2, seed=1)}
BAD_OPTIONS: list[tuple[Callable, str, object]] = [
    *((method, "batch_size", bad) for method in (
        expected_gradients, guided_integrated_gradients, blur_integrated_gradients,
    ) for bad in NOT_A_COUNT),
    *((expected_gradients, "samples", bad) for bad in NOT_A_COUNT),
    *((expected_gradients, "generator", bad) for bad in (0, "seed")),
    *((expected_gradients, "background", bad) for bad in (
        None, 0.0, batch(2)[0], batch(2)[..., :4], batch(2)[:0], batch(2).long(), batch(2) / 0,
    )),
    *((guided_integrated_gradients, "steps", bad) for bad in NOT_A_COUNT),
    *((blur_integrated_gradients, "steps", bad) for bad in NOT_A_COUNT),
    *((guided_integrated_gradients, "fraction", bad) for bad in (
        0, -0.1, 1.1, math.nan, "all", None, True,
    )),
    *((guided_integrated_gradients, "max_distance", bad) for bad in (-0.1, 1.1, math.nan, None)),
    *((guided_integrated_gradients, "baseline", bad) for bad in (
        None, "black", True, math.nan, torch.zeros(3), torch.zeros(1, 3, 4, 4),
    )),
    *((blur_integrated_gradients, "max_sigma", bad) for bad in (
        0, -1, math.nan, math.inf, "10", None, True,
    )),
    *((blur_integrated_gradients, "rule", bad) for bad in ("simpson", None, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "option", "bad"), BAD_OPTIONS)
def test_bad_option(method: Callable, option: str, bad: object) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    options = (BACKGROUND if method is expected_gradients else {}) | {option: bad}
    with pytest.raises((ValueError, TypeError), match=rf"^{option}\b") as error:
        method(model, batch(), 1, **options)
    assert "\n" not in str(error.value)
