"""What holds of any small network, however it is spelled: networks put together at random.

`EXAMPLES=4000 pytest tests/test_properties.py` tries a hundred times as many.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.methods import cam, gradients, propagation

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))  # of each property
settings.register_profile(
    "same each time",
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much],  # many networks are refused by a method
)
settings.load_profile("same each time")

Step = Callable[[Tensor], Tensor]
Maker = Callable[[int], tuple[Step | nn.Module, int]]


def conv(channels: int, more: int = 1, **options: Any) -> tuple[nn.Module, int]:
    return nn.Conv2d(channels, channels + more, 3, padding=1, **options), channels + more


class Again(nn.Module):
    """A convolution that is used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.relu(self.conv(x)))
        return y


class Residual(nn.Module):
    """x + f(x), spelled in one of several ways."""

    def __init__(self, channels: int, spelling: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        match self.spelling:
            case "+":
                return x + y
            case "+=":
                y += x
                return y
            case "add_":
                return y.add_(x, alpha=0.5)
            case "cat":
                return torch.cat([x, y], 1)[:, : x.shape[1]] + y
            case "set":
                z = torch.zeros_like(x)
                z[:, ::2] = y[:, ::2]
                return z + x
            case _:
                return torch.stack([x, y]).sum(0)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, spelling: str) -> None:
        super().__init__()
        self.fc, self.spelling = nn.Conv2d(channels, channels, 1), spelling

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.fc(x.mean((2, 3), keepdim=True))
        return (
            x * torch.sigmoid(squeezed) if self.spelling == "*" else F.hardsigmoid(squeezed).mul(x)
        )


def same(step: Any) -> Maker:
    """What makes a step that keeps the channels."""
    return lambda channels: (step, channels)


def spelled(block: Any, spelling: str) -> Maker:
    """What makes a block in one of its spellings."""
    return lambda channels: (block(channels, spelling), channels)


STEPS: dict[str, Maker] = {
    "conv": conv,
    "conv, no bias": lambda c: conv(c, bias=False),
    "conv, grouped": lambda c: conv(c, 0, groups=c),
    "conv, stride": lambda c: conv(c, 2, stride=2),
    "conv again": lambda c: (Again(c), c),
    "conv, bn": lambda c: (nn.Sequential(conv(c)[0], nn.BatchNorm2d(c + 1)), c + 1),
    "conv transposed": lambda c: (nn.ConvTranspose2d(c, c, 2, stride=2), c),
    "bn": lambda c: (nn.BatchNorm2d(c), c),
    "layer norm": lambda c: (lambda x: F.layer_norm(x, x.shape[1:]), c),
    "group norm": lambda c: (nn.GroupNorm(1, c), c),
    "instance norm": lambda c: (nn.InstanceNorm2d(c, affine=True), c),
    **{
        name: same(step)
        for name, step in {
            "relu": torch.relu,
            "relu in place": nn.ReLU(inplace=True),
            "relu of a view": lambda x: x.flatten(1).relu_().view(x.shape),
            "relu of a part": lambda x: torch.cat([x[:, :1].clone().relu_(), x[:, 1:]], 1),
            "clamp": lambda x: x.clamp(min=0),
            "relu6": nn.ReLU6(inplace=True),
            "leaky": nn.LeakyReLU(0.1, inplace=True),
            "elu": F.elu,
            "gelu": F.gelu,
            "silu": nn.SiLU(inplace=True),
            "hardswish": nn.Hardswish(inplace=True),
            "tanh": torch.tanh_,
            "softplus": F.softplus,
            "square": lambda x: x**2,
            "softmax": lambda x: x.softmax(1),
            "max pool": lambda x: F.max_pool2d(x, 2, 1, 1),
            "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 3),
            "avg pool": nn.AvgPool2d(2, 1, 1),
            "adaptive avg pool": nn.AdaptiveAvgPool2d(3),
            "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            "pad": lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate"),
            "flip": lambda x: x.flip(2),
            "transpose": lambda x: x.mT,
            "roll": lambda x: x.roll(1, 3) / 2,
            "scale": lambda x: x.mul_(0.7).sub_(0.1),
            "matrix": lambda x: x @ torch.ones(x.shape[3], 3, dtype=x.dtype),
            "shuffle": lambda x: x[:, torch.arange(x.shape[1]).flip(0)],
        }.items()
    },
    **{
        f"residual {s}": spelled(Residual, s) for s in ("+", "+=", "add_", "cat", "set", "stack")
    },
    **{f"gate {s}": spelled(Gate, s) for s in ("*", "mul")},
}  # fmt: skip
HEADS: dict[str, Step] = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean twice": lambda x: x.mean(3).mean(2),
    "sum": lambda x: x.sum((2, 3)),
    "places": lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1)[:, : x.shape[1]],
}


class Network(nn.Module):
    """Steps, a head and a linear layer."""

    def __init__(self, steps: list[str], head: str, seed: int) -> None:
        super().__init__()
        channels, self.name = 2, f"{steps}, {head}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = []
            for name in steps:
                step, channels = STEPS[name](channels)
                made.append(step)
            self.steps = made
            self.parts = nn.ModuleList(step for step in made if isinstance(step, nn.Module))
            self.head, self.fc = HEADS[head], nn.Linear(channels, 3)
            for buffer in self.buffers():
                if buffer.is_floating_point():
                    nn.init.uniform_(buffer, 0.5, 1.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        logits: Tensor = self.fc(self.head(x))
        return logits


networks = st.builds(
    Network,
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    st.sampled_from(sorted(HEADS)),
    st.integers(0, 9),
)
shapes = st.tuples(st.integers(1, 3), st.just(2), st.integers(5, 9), st.integers(5, 9))
seeds = st.integers(0, 99)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state(model: nn.Module) -> list[Any]:
    modules = list(model.modules())
    return [
        [(m.training, [len(v) for k, v in vars(m).items() if "_hooks" in k]) for m in modules],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [b.clone().tolist() for b in model.buffers()],
        torch.get_rng_state().tolist(),
    ]


def close(found: Tensor, wanted: Tensor, tolerance: float, scale: Tensor | float = 1e-2) -> bool:
    """Up to a share of the largest value, or of the scale where all is smaller."""
    size = wanted.abs().amax() + scale
    return bool((found - wanted).abs().amax() <= tolerance * size)


def explained(
    explain: Callable[..., Tensor], model: Network, *given: Any, **options: Any
) -> Tensor:
    """The map; where there is none, a sentence about the model. It is as it was in any case."""
    before = state(model)
    try:
        found = explain(model, *given, **options)
    except ValueError as error:
        said = str(error)
    else:
        assert state(model) == before, model.name
        assert isinstance(found, Tensor)
        assert found.isfinite().all(), model.name
        return found
    assert state(model) == before, model.name
    if "Expected more than 1 spatial element" in said:
        reject()  # an instance norm of a single place: the model runs for nobody
    assert said.startswith("model: "), said
    assert "\n" not in said
    reject()


@given(networks, shapes, seeds)
def test_the_gradient_is_the_slope(model: Network, shape: tuple[int, ...], seed: int) -> None:
    """Of the logit along a line, by central differences; a kink between them is tried closer."""
    x, way = drawn(shape, seed), drawn(shape, seed + 1)
    slope = (explained(gradients.gradient, model, x, 1) * way).sum((1, 2, 3))
    model.eval()
    with torch.no_grad():
        found = [
            (model(x + h * way) - model(x - h * way))[:, 1] / (2 * h) for h in (1e-4, 1e-6, 1e-7)
        ]
    gaps = torch.stack([(one - slope).abs() for one in found]).amin(0)
    assert (gaps <= 1e-4 * (1 + slope.abs())).all(), model.name


@given(networks, shapes, seeds)
def test_deeplift_and_ig_are_complete(model: Network, shape: tuple[int, ...], seed: int) -> None:
    x, baseline = drawn(shape, seed), drawn((1, *shape[1:]), seed + 1)
    deeplift = explained(propagation.deeplift, model, x, 1, baseline=baseline)
    ig = explained(gradients.integrated_gradients, model, x, 1, baseline=baseline, steps=100)
    alone = propagation.deeplift(model, x[-1:], 1, baseline=baseline)
    model.eval()
    with torch.no_grad():
        whole = (model(x.clone()) - model(baseline.clone()))[:, 1]
    size = deeplift.abs().sum((1, 2, 3)).amax() + 1e-2
    assert close(deeplift.sum((1, 2, 3)), whole, 1e-7, size), model.name
    assert close(ig.sum((1, 2, 3)), whole, 0.2, size + 0.1), model.name
    assert close(deeplift[-1:], alone, 1e-7), model.name


METHODS: dict[str, Callable[..., Tensor]] = {
    "guided_backprop": gradients.guided_backprop,
    "deconvnet": gradients.deconvnet,
    "lrp": propagation.lrp,
    "pattern_net": lambda model, x, target: propagation.pattern_net(
        model, x, target, patterns=propagation.estimate_patterns(model, drawn((4, *x.shape[1:]), 7))
    ),
}


@given(networks, shapes, seeds, st.sampled_from(sorted(METHODS)))
def test_a_map_or_a_sentence(model: Network, shape: tuple[int, ...], seed: int, name: str) -> None:
    x = drawn(shape, seed)
    found = explained(METHODS[name], model, x, 1)
    assert found.shape == x.shape
    assert close(found[-1:], METHODS[name](model, x[-1:], 1), 1e-6), model.name


@given(networks, shapes, seeds)
def test_the_cam_sums_to_the_logit(model: Network, shape: tuple[int, ...], seed: int) -> None:
    x = drawn(shape, seed)
    found = explained(cam.cam, model, x, 1, upsample=False)
    model.eval()
    with torch.no_grad():
        logit = model(x.clone())[:, 1]
    assert close(found.mean((1, 2)) + model.fc.bias[1].detach(), logit, 1e-7), model.name
