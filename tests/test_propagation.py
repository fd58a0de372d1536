"""DeepLIFT, LRP and patterns: by hand, against slow twins, and against the field's libraries."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.methods.gradients import input_x_gradient
from course_utils.methods.propagation import (
    deeplift,
    estimate_patterns,
    lrp,
    pattern_attribution,
    pattern_net,
)
from tests.networks import (
    ARCHITECTURES,
    NETWORKS,
    Jump,
    Saturating,
    batch,
    make,
    pictures,
    pixels,
)

IMAGES = batch(dtype=torch.float64)
ELSEWHERE = batch(seed=1, dtype=torch.float64)


def off(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).detach().abs().max() / reference.detach().abs().max())


def difference(model: nn.Module, images: Tensor, baseline: Any, target: Any) -> Tensor:
    with torch.no_grad():
        start = torch.zeros_like(images) + baseline
        return (model(images.clone()) - model(start))[torch.arange(len(images)), target]


def incompleteness(model: nn.Module, images: Tensor, baseline: Any, target: Any = 1) -> float:
    total = deeplift(model, images, target, baseline=baseline).sum((1, 2, 3))
    return off(total, difference(model, images, baseline, target))


# --- By hand ----------------------------------------------------------------------------------


class ByHand(nn.Module):
    """f = 5x + y²."""

    def forward(self, x: Tensor) -> Tensor:
        x, y = x[:, 0, 0, 0], x[:, 0, 0, 1]
        return (5 * x + y * y)[:, None]


@pytest.mark.parametrize(
    ("model", "image", "expected"),
    [
        (Saturating(), (1, 1), [0.5, 0.5]),
        (Saturating(), (1, 0), [1, 0]),
        (Saturating(), (0.25, 0.5), [0.25, 0.5]),
        (Jump(), (9.99,), [0]),
        (Jump(), (10.01,), [0.01]),
        (Jump(), (20,), [10]),
        (ByHand(), (0, 5), [0, 25]),
        (ByHand(), (1, 10), [5, 100]),
    ],
)
def test_deeplift_by_hand(model: nn.Module, image: tuple, expected: list) -> None:
    result = deeplift(model, pixels(*image), 0).flatten().tolist()
    assert result == pytest.approx(expected)


def test_lrp_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([3.0], dtype=torch.float64)
    # z = 2·4 − 1·1 + 3 = 10; each input keeps its share, the bias its 3.
    assert lrp(model, pixels(4, 1), 0, epsilon=0).flatten().tolist() == pytest.approx([8, -1])
    assert lrp(model, pixels(4, 1), 0, epsilon=10).flatten().tolist() == pytest.approx([4, -0.5])
    # z = −4 + 3 = −1, and ε goes away from zero.
    assert lrp(model, pixels(0, 4), 0, epsilon=1).flatten().tolist() == pytest.approx([0, -2])


def test_lrp_where_nothing_arrives() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    model.double()
    dark = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert lrp(model, dark, 0, epsilon=0).abs().sum() == 0
    dark[..., :3] = IMAGES[:1, ..., :3]
    assert lrp(model, dark, 0, epsilon=0).isfinite().all()


# --- DeepLIFT ---------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": lambda z: F.relu6(4 * z),
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "hardswish": lambda z: F.hardswish(3 * z),
    "hardsigmoid": lambda z: F.hardsigmoid(3 * z),
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class Small(nn.Module):
    """Convolution, activation, pooling with overlapping windows, a gate, a linear layer."""

    def __init__(self, activation: Callable, gate: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.gate, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(16, 5)
        self.activation, self.gated = activation, gate
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.activation(self.conv(x)), 3, 2)
        if self.gated:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.fc(y.flatten(1))


def slope(y: Tensor, y0: Tensor, z: Tensor, z0: Tensor) -> Tensor:
    return (y - y0) / (z - z0)


def deeplift_twin(model: Small, image: Tensor, start: Tensor, c: int) -> Tensor:
    """Rescale rule of one image, multipliers by hand and in loops."""
    with torch.no_grad():
        z, z0 = model.conv(image[None])[0], model.conv(start[None])[0]
        s, s0 = model.activation(z), model.activation(z0)
        p, p0 = (F.max_pool2d(one[None], 3, 2)[0] for one in (s, s0))
        m = model.fc.weight[c].view(p.shape).clone()
        if model.gated:
            g, g0 = (model.gate(one.mean((1, 2))) for one in (p, p0))
            h, h0 = g.sigmoid(), g0.sigmoid()
            of_gate = (m * (p + p0) / 2).sum((1, 2)) * slope(h, h0, g, g0)
            of_mean = model.gate.weight.T @ of_gate / p[0].numel()
            m = m * ((h + h0) / 2)[:, None, None] + of_mean[:, None, None]
        given = torch.zeros_like(s)  # the share of each place in the pooled differences
        for k, i, j in itertools.product(*map(range, p.shape)):
            window = (k, slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3))
            now, before = s[window], s0[window]
            top = max(p[k, i, j], p0[k, i, j])
            for places, share in (
                (now, top - p0[k, i, j]),
                (before, p[k, i, j] - top),
            ):
                a, b = divmod(int(places.argmax()), 3)
                given[k, 2 * i + a, 2 * j + b] += m[k, i, j] * share
        m = torch.where(s == s0, 0.0, given / (s - s0)) * slope(s, s0, z, z0)
        multipliers = torch.zeros_like(image)
        for k, i, j in itertools.product(*map(range, z.shape)):
            multipliers[:, i : i + 3, j : j + 3] += m[k, i, j] * model.conv.weight[k]
        return (image - start) * multipliers


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_deeplift_against_its_twin(activation: str, gate: bool) -> None:
    model = Small(ACTIVATIONS[activation], gate)
    result = deeplift(model, IMAGES[:2], 3, baseline=ELSEWHERE[:2])
    for image, start, row in zip(IMAGES, ELSEWHERE, result, strict=False):
        twin = deeplift_twin(model, image, start, 3)
        torch.testing.assert_close(row, twin, rtol=0, atol=1e-10)
    assert incompleteness(model, IMAGES, ELSEWHERE) < 1e-10


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["zero", "number", "color", "images", "one image"])
def test_deeplift_is_complete(network: str, kind: str) -> None:
    baseline: Any = {
        "zero": 0.0,
        "number": -0.7,
        "color": torch.tensor([0.1, -0.2, 0.5]).double().view(1, 3, 1, 1),
        "images": ELSEWHERE,
        "one image": ELSEWHERE[:1],
    }[kind]
    assert incompleteness(make(network).double().eval(), IMAGES, baseline) < 1e-10


def test_deeplift_of_the_baseline_is_zero() -> None:
    model = make("Residual").double()
    assert deeplift(model, IMAGES, 1, baseline=IMAGES).abs().sum() == 0
    near = deeplift(model, IMAGES, 1, baseline=IMAGES - 1e-13) / 1e-13
    gradient = input_x_gradient(model, IMAGES, 1) / IMAGES
    assert off(near, gradient) < 1e-2  # the limit is the gradient


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e6])
def test_deeplift_at_any_scale(scale: float) -> None:
    """A ReLU network without biases is homogeneous, and so must be what explains it."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(54, 5, bias=False),
    )  # fmt: skip
    images, baseline = batch() * scale, batch(seed=1) * scale
    assert incompleteness(model, images, baseline) < 1e-4
    exact = deeplift(model.double(), images.double(), 1, baseline=baseline.double())
    assert off(deeplift(model.float(), images, 1, baseline=baseline).double(), exact) < 1e-3


@pytest.mark.parametrize("pool", ["overlap", "dilated", "ceil", "padded", "adaptive", "one row"])
def test_deeplift_through_any_pooling(pool: str) -> None:
    layer: nn.Module = {
        "overlap": nn.MaxPool2d(3, 1),
        "dilated": nn.MaxPool2d(2, 2, dilation=2),
        "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
        "padded": nn.MaxPool2d(3, 2, padding=1),
        "adaptive": nn.AdaptiveMaxPool2d(3),
        "one row": nn.MaxPool2d((1, 4), (1, 3)),
    }[pool]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), layer, nn.ReLU(), nn.Flatten())
    assert incompleteness(model.double(), IMAGES, ELSEWHERE) < 1e-10


def test_a_model_that_does_other_operations_for_the_baseline() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            dark = float(x.detach().abs().sum()) == 0
            return (torch.tanh(x) if dark else torch.relu(x)).mean((2, 3))

    with pytest.raises(ValueError, match="^baseline: the model does other operations"):
        deeplift(Fickle(), batch(), 0)


# --- LRP --------------------------------------------------------------------------------------


def dense(layer: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    """A linear layer as a matrix, column by column."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(basis) - zero).flatten(1).T


def test_deeplift_where_image_and_baseline_differ_by_rounding_alone() -> None:
    """The quotient of two differences would be off by a tenth; its limit is the slope."""
    model = nn.Sequential(nn.Tanh(), nn.Flatten())
    images = torch.linspace(0.5, 1.5, 20)[:, None, None, None]
    found = deeplift(model, images, 0, baseline=images + 1e-6) / (images - (images + 1e-6))
    torch.testing.assert_close(found, 1 - images.tanh() ** 2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1, 2.0])
def test_lrp_against_matrices(epsilon: float) -> None:
    """Conv, BatchNorm, ReLU, average pooling, linear, each as one matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        model = nn.Sequential(
            conv, norm, nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.ReLU(), nn.Linear(4, 5)
        )
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    model.double().eval()
    merged = model[:2]
    stages = [(merged, IMAGES.shape[1:]), (model[3:5], None), (model[6], None)]
    for row, image in zip(lrp(model, IMAGES, 2, epsilon=epsilon), IMAGES, strict=True):
        x, inputs, outputs, matrices = image[None], [], [], []
        with torch.no_grad():
            for k, (layer, _) in enumerate(stages):
                inputs.append(x.flatten())
                matrices.append(dense(layer, x.shape[1:]))
                x = layer(x)
                outputs.append(x.flatten())
                x = x.relu() if k < 2 else x
        relevance = torch.zeros(5, dtype=torch.float64)
        relevance[2] = outputs[-1][2]
        for x, z, matrix in zip(inputs[::-1], outputs[::-1], matrices[::-1], strict=True):
            stable = z + epsilon * torch.where(z < 0, -1.0, 1.0).double()
            share = torch.where(relevance == 0, 0, relevance / stable)
            relevance = x * (matrix.T @ share)
        torch.testing.assert_close(row.flatten(), relevance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_lrp_tends_to_input_x_gradient(network: str) -> None:
    model = make(network).double().eval()
    exact = input_x_gradient(model, IMAGES, 1)
    gaps = [off(lrp(model, IMAGES, 1, epsilon=epsilon), exact) for epsilon in (1e-2, 1e-6, 1e-10)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-6


def test_lrp_in_another_layout() -> None:
    """PyTorch then lays a mean out anew, which is no step that ε could absorb something of."""
    model = make("Residual").double()
    expected = lrp(model, IMAGES, 1, epsilon=0.5)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(lrp(model, IMAGES, 1, epsilon=0.5), expected)


def test_lrp_sums_to_the_logit_without_biases() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        free = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 4, 2, bias=False), nn.SiLU(), nn.Flatten(), nn.Linear(4, 5, bias=False),
        ).double()  # fmt: skip
    logits = free(IMAGES)[:, 3].detach()
    total = lrp(free, IMAGES, 3, epsilon=1e-12).sum((1, 2, 3))
    torch.testing.assert_close(total, logits, rtol=1e-8, atol=1e-10)
    biased = make("Functional").double().eval()
    kept = lrp(biased, IMAGES, 3, epsilon=1e-12).sum((1, 2, 3))
    assert off(kept, biased(IMAGES.clone())[:, 3].detach()) > 0.1  # biases keep their share


def test_lrp_of_a_norm_that_is_not_merged() -> None:
    """Without running statistics a BatchNorm of one image normalises by it, and is no layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False),
            nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False),
        ).double().eval()  # fmt: skip
    logit = model(IMAGES[:1])[0, 1].detach()
    for composite in ("epsilon", "epsilon-plus"):
        total = lrp(model, IMAGES[:1], 1, epsilon=1e-12, composite=composite).sum()
        torch.testing.assert_close(total, logit, rtol=1e-6, atol=0)


# --- Patterns ---------------------------------------------------------------------------------


def toy(mean: float, n: int = 4000) -> tuple[nn.Sequential, Tensor, Tensor]:
    """x = s a + d b with a signal s and a distractor d of this mean; w reads s and cancels d."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
    signal = torch.randn(n, generator=generator).double()
    distractor = mean + torch.randn(n, generator=generator).double()
    linear = nn.Linear(2, 1, bias=False).double()
    linear.weight.data = torch.tensor([[1.0, -1.0]]).double()
    model = nn.Sequential(nn.Flatten(), linear)
    return model, (signal[:, None] * a + distractor[:, None] * b).view(n, 1, 1, 2), a


@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0, 100.0])
def test_the_pattern_is_the_signals_direction(mean: float) -> None:
    model, images, a = toy(mean)
    (w,) = (weight[0].detach() for weight in model.parameters())
    (pattern,) = estimate_patterns(model, images, batch_size=64)
    torch.testing.assert_close(pattern[0], a, rtol=0, atol=0.1)
    assert (w - a).norm() > 0.9  # the weight is not
    x, y = images.flatten(1), model(images)[:, 0].detach()
    on = y > 0
    leaking = (x[on] * y[on, None]).mean(0) - x[on].mean(0) * y.mean()  # with E[y]
    leaking /= w @ leaking
    if mean:
        assert (leaking - a).norm() > 0.3
    signal = pattern_net(model, images[:3], 0, patterns=[pattern])
    torch.testing.assert_close(signal.flatten(1), y[:3, None] * pattern[0].detach())
    given = pattern_attribution(model, images[:3], 0, patterns=[pattern])
    expected = y[:3, None] * pattern[0] * w
    torch.testing.assert_close(given.flatten(1), expected)


def fit(columns: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The pattern of one unit: columns (places, inputs), outputs y (places,), weights (inputs,)."""
    columns, y = columns[y > 0], y[y > 0]
    if not len(y):
        return torch.zeros_like(w)
    covariance = ((columns - columns.mean(0)) * (y - y.mean())[:, None]).mean(0)
    return covariance / (w @ covariance)


def test_patterns_against_their_twin() -> None:
    """Conv with BatchNorm, conv, their sum, linear: estimated and sent back by hand."""
    model, data = make("Residual").double().eval(), batch(9, seed=5, dtype=torch.float64)
    patterns = estimate_patterns(model, data, batch_size=4)
    merged = [
        nn.utils.fuse_conv_bn_eval(getattr(model, f"conv{k}"), getattr(model, f"bn{k}"))
        for k in (1, 2)
    ]

    def run(x: Tensor) -> list[Tensor]:
        first = merged[0](x).relu()
        second = merged[1](first)
        return [x, first, second, first + second]

    with torch.no_grad():
        x, first, second, total = run(data)
        for conv, pattern, into, out in (
            (merged[0], patterns[0], x, merged[0](x)),
            (merged[1], patterns[1], first, second),
        ):
            columns = F.unfold(into, 3, padding=1).transpose(1, 2).flatten(0, 1)
            for k, w in enumerate(conv.weight.flatten(1)):
                expected = fit(columns, out[:, k].flatten(), w)
                torch.testing.assert_close(pattern[k].flatten(), expected, rtol=1e-8, atol=1e-10)
        assert patterns[2].shape == (6, 2)
        for k in range(6):
            both = torch.stack([first[:, k].flatten(), second[:, k].flatten()], 1)
            expected = fit(both, total[:, k].flatten(), torch.ones(2).double())
            torch.testing.assert_close(patterns[2][k], expected, rtol=1e-8, atol=1e-10)
        vector = total.relu().mean((2, 3))
        for k, w in enumerate(model.fc.weight):  # type: ignore[arg-type, union-attr]
            expected = fit(vector, model.fc(vector)[:, k], w)  # type: ignore[operator]
            torch.testing.assert_close(patterns[3][k], expected, rtol=1e-8, atol=1e-10)
        assert len(patterns) == 4

        x, first, second, total = run(IMAGES)
        logits = model.fc(total.relu().mean((2, 3)))[:, 2]  # type: ignore[operator]
        parameters = dict(model.named_parameters())
        for method in (pattern_net, pattern_attribution):
            conv1, conv2, weight = merged[0].weight, merged[1].weight, parameters["fc.weight"]
            a1, a2, sums, a4 = patterns
            if method is pattern_attribution:
                a1, a2, a4 = a1 * conv1, a2 * conv2, a4 * weight
            signal = (logits[:, None] * a4[2])[:, :, None, None].expand_as(total) / 64
            signal = signal * (total > 0)
            plain, residual = (signal * sums[:, k].view(1, -1, 1, 1) for k in (0, 1))
            residual = plain + F.conv_transpose2d(residual, a2, padding=1)
            expected = F.conv_transpose2d(residual * (first > 0), a1, padding=1)
            result = method(model, IMAGES, 2, patterns=patterns)
            torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unit_without_variance_has_pattern_zero(dtype: torch.dtype) -> None:
    """Three times the same image: what is left of the covariance is rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).to(dtype)
    same = batch(1, dtype=dtype).expand(3, -1, -1, -1)
    (pattern,) = estimate_patterns(model, same)
    assert pattern.abs().max() == 0


def test_patterns_of_a_shared_convolution_or_one_past_its_batch_norm() -> None:
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(self.bn(y) + y).mean((2, 3))

    model = Past().double().eval()
    refusal = "^model: the output of one of its convolutions is used by a BatchNorm and elsewhere"
    with pytest.raises(ValueError, match=refusal):
        estimate_patterns(model, IMAGES)
    assert len(estimate_patterns(make("Reused"), batch())) == 4


def test_a_batch_norm_without_convolution_has_no_pattern() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 8), nn.Flatten())
    with pytest.raises(ValueError, match="^model: patterns are for layers with weights"):
        estimate_patterns(model, batch())


# --- Bad options ------------------------------------------------------------------------------

BAD_OPTIONS: list[tuple[Callable, str, object]] = [
    *((deeplift, "baseline", bad) for bad in (
        None, "black", True, math.nan, math.inf, [0.0], torch.zeros(2, 3, 8, 8), torch.zeros(3),
        torch.zeros(1, 3, 4, 4), torch.full((1, 3, 1, 1), torch.nan), torch.zeros(1, 3, 3, 8, 8),
    )),
    *((lrp, "epsilon", bad) for bad in (-1e-9, math.nan, math.inf, "small", None, True)),
    *((method, "patterns", bad) for method in (pattern_net, pattern_attribution)
      for bad in (None, 1, torch.zeros(3), "patterns", [1, 2], {"conv": torch.zeros(3)})),
]  # fmt: skip


@pytest.mark.parametrize(("method", "option", "bad"), BAD_OPTIONS)
def test_bad_option(method: Callable, option: str, bad: object) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((ValueError, TypeError), match=rf"^{option}\b") as error:
        method(model, batch(), 1, **{option: bad})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "many", None])
def test_bad_batch_size(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^batch_size\b"):
        estimate_patterns(make("Residual"), batch(), batch_size=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [pattern_net, pattern_attribution])
def test_patterns_of_another_model(method: Callable) -> None:
    model = make("Residual")
    good = estimate_patterns(model, batch())
    for bad in ([], good[:-1], [*good, good[0]], good[::-1]):
        with pytest.raises(ValueError, match=r"^patterns do not fit.*4 layers.*estimate_patterns"):
            method(model, batch(), 1, patterns=bad)
    assert method(model, batch(), 1, patterns=tuple(good)).isfinite().all()


def test_how_many_passes() -> None:
    sizes: list[int] = []
    model = make("Residual").double()
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    patterns = estimate_patterns(model, batch(9).double(), batch_size=4)
    assert sizes == [4, 4, 1]
    for explain, expected in [
        (lambda: deeplift(model, IMAGES, 1), [3, 1]),  # one baseline for all
        (lambda: deeplift(model, IMAGES, 1, baseline=ELSEWHERE), [3, 3]),
        (lambda: lrp(model, IMAGES, 1), [3]),
        (lambda: pattern_net(model, IMAGES, 1, patterns=patterns), [3]),
    ]:
        sizes.clear()
        explain()
        assert sizes == expected


# --- The field's libraries --------------------------------------------------------------------

HOOKS = pytest.mark.filterwarnings(
    "ignore:Setting (backward|forward):UserWarning",
    "ignore:Input Tensor 0 did not already require gradients:UserWarning",
)


@pytest.fixture(scope="module")
def architecture(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, ARCHITECTURES[request.param]()


@pytest.mark.references
@pytest.mark.parametrize("architecture", ARCHITECTURES, indirect=True)
def test_real_networks(architecture: tuple[str, nn.Module]) -> None:
    name, model = architecture
    images = pictures()
    target = model(images).argmax(1)
    for baseline in (0.0, pictures(seed=5), images.flip(0)):
        assert incompleteness(model, images, baseline, target) < 1e-9
    if name == "mobilenet_v3_small":
        assert lrp(model, images, target).isfinite().all()
        return
    exact = input_x_gradient(model, images, target)
    assert off(lrp(model, images, target, epsilon=1e-13), exact) < 1e-5
    if name in ("vgg11", "squeezenet1_0"):
        assert off(zennit_lrp(model, images, target, 1e-13), exact) < 1e-5


def small_of_its_kind(name: str) -> nn.Module:
    """A network of torchvision with all that is special about it, few and narrow layers."""
    import torchvision.models as zoo
    from torchvision.models.convnext import CNBlockConfig

    heads: Any = {"num_classes": 5}
    match name:
        case "vit":
            sizes: Any = {"num_layers": 2, "num_heads": 2, "hidden_dim": 12, "mlp_dim": 20}
            return zoo.VisionTransformer(32, 8, **sizes, **heads)
        case "swin":
            sizes = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
            return zoo.SwinTransformer([4, 4], **sizes, **heads)
        case "convnext":
            return zoo.ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], **heads)
        case "googlenet":
            return zoo.googlenet(init_weights=False, aux_logits=False, **heads)
        case _:
            return zoo.get_model(name, **heads)


MODERN = (
    *("vit", "swin", "convnext", "efficientnet_b0", "googlenet", "shufflenet_v2_x0_5"),
    "regnet_y_400mf",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODERN)
def test_deeplift_is_complete_through_norms_and_attention(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_of_its_kind(name).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # A head of zeros, or a branch scaled to nothing, would hide what is wrong.
                if parameter.ndim > 1 and parameter.abs().max() < 1e-5:
                    parameter.normal_()
        for module in model.modules():  # otherwise little would come through a random network
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.fill_(0.1)  # type: ignore[union-attr]
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    baseline = images.flip(0, 3) / 2
    result = deeplift(model, images, 1, baseline=baseline).sum((1, 2, 3))
    with torch.no_grad():
        whole = (model(images) - model(baseline))[:, 1]
    assert off(result, whole) < 1e-8
    assert (whole.abs() > 1e-6).all()


def zennit_lrp(model: nn.Module, images: Tensor, target: Any, epsilon: float) -> Tensor:
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.torchvision import ResNetCanonizer
    from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

    merge = ResNetCanonizer() if hasattr(model, "layer1") else SequentialMergeBatchNorm()
    rules = [
        (Activation, Pass()),
        ((Convolution, Linear, BatchNorm), Epsilon(epsilon)),
        ((AvgPool, Sum), Norm(epsilon)),
    ]
    composite = LayerMapComposite(rules, canonizers=[merge])
    logits = model(images).detach()
    start = torch.zeros_like(logits)
    rows = torch.arange(len(images))
    start[rows, target] = logits[rows, target]
    with Gradient(model, composite) as attributor:
        return attributor(images.clone(), start)[1].detach()


def captum_network(activation: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 4, 2), activation(),
            nn.Flatten(), nn.Linear(16, 5),
        ).double()  # fmt: skip


@pytest.mark.references
@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus]
)
@HOOKS
def test_deeplift_equals_captum(activation: Callable[[], nn.Module]) -> None:
    from captum.attr import DeepLift

    model = captum_network(activation)
    for baseline in (torch.zeros_like(IMAGES), ELSEWHERE):
        theirs = DeepLift(model).attribute(IMAGES.clone(), baseline, target=1)
        assert off(deeplift(model, IMAGES, 1, baseline=baseline), theirs) < 1e-9


class Functional(nn.Module):
    """The ReLU is a function, which Captum's hooks do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


WRONG: dict[str, Callable[[], nn.Module]] = {
    "max pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)
    ),
    "overlapping pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(96, 5)
    ),
    "functional ReLU": Functional,
}


@pytest.mark.references
@pytest.mark.parametrize("case", WRONG)
@HOOKS
def test_deeplift_is_complete_where_captum_is_not(case: str) -> None:
    from captum.attr import DeepLift

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WRONG[case]().double()
    theirs = DeepLift(model).attribute(IMAGES.clone(), ELSEWHERE, target=1).sum((1, 2, 3))
    assert incompleteness(model, IMAGES, ELSEWHERE) < 1e-10
    assert off(theirs, difference(model, IMAGES, ELSEWHERE, 1)) > 1e-2


@pytest.mark.parametrize("scale", [0.1, 1, 10, 100, 1000])
def test_a_softmax_of_logits_that_are_far_apart(scale: float) -> None:
    """Of the one image the largest exponential may be nothing beside that of the other."""

    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (scale * x.flatten(1)).softmax(1)

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64, generator=generator)
    assert incompleteness(Softmax(), x, y) < 1e-12


@pytest.mark.references
@HOOKS
def test_captums_deeplift_of_softmax_depends_on_the_batch() -> None:
    from captum.attr import DeepLift

    model = nn.Sequential(*captum_network(nn.ReLU), nn.Softmax(1))
    together = DeepLift(model).attribute(IMAGES.clone(), ELSEWHERE, target=1)
    alone = DeepLift(model).attribute(IMAGES[:1].clone(), ELSEWHERE[:1], target=1)
    assert off(together[:1], alone) > 1e-3
    ours = deeplift(model, IMAGES, 1, baseline=ELSEWHERE)
    assert off(ours[:1], deeplift(model, IMAGES[:1], 1, baseline=ELSEWHERE[:1])) < 1e-12
    assert incompleteness(model, IMAGES, ELSEWHERE) < 1e-10


@pytest.mark.references
@HOOKS
def test_lrp_equals_captum_and_zennit() -> None:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    *body, _, last = captum_network(nn.ReLU)

    class Flat(nn.Module):  # Captum has no rule for nn.Flatten
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Sequential(*body), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x).flatten(1))

    model = Flat()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.AvgPool2d):
            layer.rule = EpsilonRule(epsilon=1e-6)
    theirs = LRP(model).attribute(IMAGES.clone().requires_grad_(), target=1)
    ours = lrp(model, IMAGES, 1, epsilon=1e-6)
    assert off(ours, theirs) < 1e-5
    assert off(ours, zennit_lrp(captum_network(nn.ReLU), IMAGES, 1, 1e-6)) < 1e-9


@pytest.mark.references
@HOOKS
def test_captums_lrp_across_a_functional_residual() -> None:
    """Relevance goes through both branches in full: the sum comes out too large."""
    from captum.attr import LRP

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
            self.fc = nn.Linear(384, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu1(self.conv1(x))
            return self.fc(self.relu2(x + self.conv2(x)).flatten(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual().double()
    logits = model(IMAGES)[:, 1].detach()
    assert off(lrp(model, IMAGES, 1, epsilon=1e-12).sum((1, 2, 3)), logits) < 1e-8
    theirs = LRP(model).attribute(IMAGES.clone().requires_grad_(), target=1)
    assert off(theirs.sum((1, 2, 3)), logits) > 1e-2


@pytest.mark.references
def test_zennits_batch_norm_without_a_canonizer() -> None:
    """It is no layer of its composites' rules: it is passed by as a gradient, unnoticed."""
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon, Pass
    from zennit.types import Activation, Convolution, Linear

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6)
        norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
        )
    model.double().eval()
    rules = [(Activation, Pass()), ((Convolution, Linear), Epsilon(1e-12))]
    start = F.one_hot(torch.tensor([1, 1, 1]), 5) * model(IMAGES).detach()
    with Gradient(model, LayerMapComposite(rules)) as attributor:
        alone = attributor(IMAGES.clone(), start)[1]
    exact = input_x_gradient(model, IMAGES, 1)
    assert off(lrp(model, IMAGES, 1, epsilon=1e-12), exact) < 1e-6
    assert off(zennit_lrp(model, IMAGES, 1, 1e-12), exact) < 1e-6
    assert off(alone, exact) > 1e-2


@pytest.mark.parametrize("method", [pattern_net, pattern_attribution])
def test_a_signal_beyond_the_images_type_is_an_error(method: Callable) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))
    patterns = estimate_patterns(model, batch(8))
    patterns[0] = patterns[0] + 1e30
    patterns[1] = patterns[1] + 1e30
    with pytest.raises(ValueError, match=f"^model: it is so deep that {method.__name__} leaves"):
        method(model, batch(), patterns=patterns)
