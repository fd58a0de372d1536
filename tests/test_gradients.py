import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.methods.cam import grad_cam
from course_utils.methods.gradients import (
    QUADRATURES,
    deconvnet,
    gradient,
    guided_backprop,
    input_x_gradient,
    integrated_gradients,
    quadrature,
    smoothgrad,
    smoothgrad_estimate,
)
from course_utils.methods.propagation import deeplift
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


class ByHand(nn.Module):
    """f = 5x + y² of an "image" with the two pixels x and y, and g = xy as a second class."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.stack([5 * x + y**2, x * y], 1)


def test_by_hand() -> None:
    image = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    assert gradient(ByHand(), image, 0).flatten().tolist() == [5, 20]
    assert gradient(ByHand(), image, 1).flatten().tolist() == [10, 1]
    both = gradient(ByHand(), image.repeat(2, 1, 1, 1), torch.tensor([1, 0]))
    assert both.flatten(1).tolist() == [[10, 1], [5, 20]]


def finite_differences(
    score: Callable[[Tensor], Tensor], image: Tensor, step: float = 1e-6
) -> Tensor:
    steps = torch.eye(image.numel(), dtype=image.dtype).view(-1, *image.shape) * step
    return ((score(image + steps) - score(image - steps)) / (2 * step)).view(image.shape)


@pytest.mark.parametrize("network", NETWORKS)
def test_against_finite_differences(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution = gradient(model, images, 3)
    with torch.no_grad():
        for image, row in zip(images, attribution, strict=True):
            slow = finite_differences(lambda x: model(x.clone())[:, 3], image)
            torch.testing.assert_close(row, slow, rtol=1e-5, atol=1e-7)


def test_an_input_the_model_ignores_has_gradient_zero() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0].flatten(1)

    assert gradient(First(), batch(), 0)[:, 1:].abs().sum() == 0

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2)

    with pytest.raises(ValueError, match="^model: its logits carry no gradient"):
        gradient(Constant(), batch(), 0)


def test_no_parameter_gradient_is_computed() -> None:
    model = make("Residual")
    asked: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_hook(asked.append)
    gradient(model, batch())
    assert not asked


def test_bfloat16() -> None:
    model, images = make("Residual"), batch()
    exact = gradient(model, images, 0)
    rough = gradient(model.bfloat16(), images.bfloat16(), 0)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_autocast_is_left_to_the_caller() -> None:
    model, images = make("Residual"), batch()
    exact = gradient(model, images, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradient(model, images, 0)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.references
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "InPlaceFirst"])
def test_equals_captum(network: str) -> None:
    from captum.attr import Saliency

    model, images = make(network).eval(), batch()
    target = torch.tensor([1, 4, 0])
    reference = Saliency(model).attribute(images.clone().requires_grad_(), target=target, abs=False)
    torch.testing.assert_close(gradient(model, images, target), reference)


# --- DeconvNet and Guided Backpropagation -----------------------------------------------------


class Matrix(nn.Module):
    """The lecture's numbers: a gradient on its way back through one 3×3 activation."""

    def __init__(self) -> None:
        super().__init__()
        incoming = torch.tensor([[-2.0, 3.0, -1.0], [6.0, -3.0, 1.0], [2.0, -1.0, 3.0]])
        self.register_buffer("incoming", incoming)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(x).flatten(1), self.incoming.flatten()[None])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (gradient, [[-2, 0, -1], [6, 0, 0], [0, -1, 3]]),
        (deconvnet, [[0, 3, 0], [6, 0, 1], [2, 0, 3]]),
        (guided_backprop, [[0, 0, 0], [6, 0, 0], [0, 0, 3]]),
    ],
)
def test_the_matrices_of_the_lecture(method: Callable, expected: list) -> None:
    image = torch.tensor([[1.0, -1.0, 5.0], [2.0, -5.0, -7.0], [-3.0, 2.0, 4.0]])
    assert method(Matrix(), image[None, None], 0)[0, 0].tolist() == expected


class Small(nn.Module):
    """Two convolutions, a pooling with overlapping windows, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
            self.pool = nn.MaxPool2d(3, 2)
            self.fc1, self.fc2 = nn.Linear(16, 7), nn.Linear(7, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def transposed(signal: Tensor, conv: nn.Conv2d) -> Tensor:
    """∂f/∂X = ∂f/∂Y * K̂: a convolution with the flipped kernel."""
    flipped = conv.weight.flip(2, 3).transpose(0, 1)
    reach = 2 - int(conv.padding[0])
    return F.conv2d(signal, flipped, padding=reach)


def unpooled(signal: Tensor, x: Tensor) -> Tensor:
    """Each value goes to where its window's maximum was: 3×3 windows, stride 2."""
    result = torch.zeros_like(x)
    for n, c, i, j in itertools.product(*map(range, signal.shape)):
        place = int(x[n, c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].argmax())
        result[n, c, 2 * i + place // 3, 2 * j + place % 3] += signal[n, c, i, j]
    return result


@pytest.mark.parametrize("method", [gradient, deconvnet, guided_backprop])
def test_layer_by_layer(method: Callable) -> None:
    def back(signal: Tensor, z: Tensor) -> Tensor:
        if method is gradient:
            return signal * (z > 0)
        return signal * (signal > 0) * ((z > 0) if method is guided_backprop else 1)

    model, images = Small(), batch(dtype=torch.float64)
    classes = torch.tensor([3, 0, 4])
    with torch.no_grad():
        z1 = model.conv1(images)
        z2 = model.conv2(z1.relu())
        pooled = model.pool(z2.relu())
        z3 = model.fc1(pooled.flatten(1))
        signal = back(model.fc2.weight[classes], z3) @ model.fc1.weight
        signal = unpooled(signal.view(pooled.shape), z2.relu())
        signal = transposed(back(signal, z2), model.conv2)
        expected = transposed(back(signal, z1), model.conv1)
    torch.testing.assert_close(method(model, images, classes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [deconvnet, guided_backprop])
def test_a_unit_at_its_strongest_position(method: Callable) -> None:
    class Unit(nn.Module):
        def __init__(self, position: tuple[int, ...]) -> None:
            super().__init__()
            self.small, self.position = Small(), position

        def forward(self, x: Tensor) -> Tensor:
            maps = self.small.conv2(torch.relu(self.small.conv1(x)))
            return maps[:, 2, self.position[0], self.position[1]][:, None]

    images = batch(dtype=torch.float64)
    result = method(Small(), images, layer="conv2", unit=2)
    with torch.no_grad():
        maps = Small().conv2(torch.relu(Small().conv1(images)))[:, 2]
    for image, row, one in zip(images, result, maps, strict=True):
        expected = method(Unit(divmod(int(one.argmax()), 6)), image[None], 0)[0]
        torch.testing.assert_close(row, expected)
    vector = method(Small(), images, layer="fc1", unit=3)  # a unit without positions
    assert vector.shape == images.shape
    assert vector.abs().sum() > 0


@pytest.mark.parametrize("method", [deconvnet, guided_backprop])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv1"}, "^layer and unit go together"),
        ({"unit": 1}, "^layer and unit go together"),
        ({"layer": "conv9", "unit": 1}, "^layer: the model has no layer 'conv9'; near it are"),
        ({"layer": "conv1", "unit": 6}, "^unit: layer 'conv1' has no unit 6"),
        ({"layer": "conv1", "unit": -1}, "^unit: layer 'conv1' has no unit -1"),
        ({"layer": "conv1", "unit": 1.5}, "^unit must be a whole number"),
        ({"layer": "conv1", "unit": True}, "^unit must be a whole number"),
        ({"layer": "unused", "unit": 0}, "^layer: 'unused' gives no activations"),
        ({"layer": "conv1", "unit": 0, "target": 1}, "^target must be left out"),
    ],
)
def test_bad_layer_or_unit(method: Callable, options: dict, message: str) -> None:
    model = Small()
    model.unused = nn.ReLU()
    with pytest.raises((ValueError, TypeError), match=message) as error:
        method(model, batch(dtype=torch.float64), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [deconvnet, guided_backprop])
def test_a_network_without_relu(method: Callable) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    name = method.__name__
    with pytest.raises(ValueError, match=f"^model: {name} is about ReLUs, but this model has none"):
        method(plain, batch(), 0)
    for layer, operation in [
        (nn.Sigmoid(), "sigmoid"), (nn.Tanh(), "tanh"), (nn.Hardswish(), "hardswish"),
        (nn.SiLU(), "silu"), (nn.Hardtanh(), "hardtanh"), (nn.ELU(), "elu"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^model: {name} has no rule for .* {operation}$"):
            method(nn.Sequential(layer, nn.ReLU(), *plain), batch(), 0)


# --- Integrated Gradients ---------------------------------------------------------------------


def test_integrated_gradients_by_hand() -> None:
    def explain(model: nn.Module, image: Tensor, **options: Any) -> list[float]:
        return integrated_gradients(model, image, 0, **options).flatten().tolist()

    assert explain(ByHand(), pixels(0, 5)) == pytest.approx([0, 25])
    assert input_x_gradient(ByHand(), pixels(0, 5), 0).flatten().tolist() == [0, 50]
    assert explain(Saturating(), pixels(1, 1), steps=100) == pytest.approx([0.5, 0.5])
    assert gradient(Saturating(), pixels(1, 1), 0).abs().sum() == 0
    for x in (9.99, 10.01):
        assert explain(Jump(), pixels(x), steps=2000)[0] == pytest.approx(max(0, x - 10), abs=6e-3)
    assert input_x_gradient(Jump(), pixels(10.01), 0).item() == pytest.approx(10.01)


@pytest.mark.parametrize("rule", QUADRATURES)
@pytest.mark.parametrize("steps", [2, 3, 8, 33])
def test_quadrature(rule: str, steps: int) -> None:
    nodes, weights = quadrature(rule, steps)
    assert nodes.shape == weights.shape == (steps,)
    assert nodes.dtype == torch.float64
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert bool((weights > 0).all())
    assert bool((nodes.diff() > 0).all())
    assert float(nodes[0]) >= 0
    assert float(nodes[-1]) <= 1
    degree = {"midpoint": 1, "riemann-right": 0, "trapezoid": 1, "gauss-legendre": 2 * steps - 1}
    for power in range(min(degree[rule], 20) + 1):
        exact = float((weights * nodes**power).sum())
        assert exact == pytest.approx(1 / (power + 1), abs=1e-12)
    beyond = float((weights * nodes ** (degree[rule] + 1)).sum())
    if steps < 8:
        assert beyond != pytest.approx(1 / (degree[rule] + 2), abs=1e-9)


def test_the_ends_of_the_trapezoid() -> None:
    nodes, weights = quadrature("trapezoid", 5)
    assert nodes.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert weights.tolist() == [0.125, 0.25, 0.25, 0.25, 0.125]
    assert quadrature("riemann-right", 4)[0].tolist() == [0.25, 0.5, 0.75, 1]
    assert quadrature("midpoint", 2)[0].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("rule", QUADRATURES)
@pytest.mark.parametrize("kind", ["number", "one", "each"])
def test_integrated_gradients_as_a_loop(rule: str, kind: str) -> None:
    model, images = make("Residual").double().eval(), batch(dtype=torch.float64)
    baseline: Any = {
        "number": 0.3,
        "one": torch.tensor([0.1, -0.2, 0.5]).double().view(1, 3, 1, 1),
        "each": batch(seed=1, dtype=torch.float64),
    }[kind]
    start = torch.zeros_like(images) + baseline
    nodes, weights = quadrature(rule, 7)
    expected = torch.zeros_like(images)
    for alpha, weight in zip(nodes, weights, strict=True):
        expected += weight * gradient(model, start + alpha * (images - start), 2)
    expected *= images - start
    result = integrated_gradients(
        model, images, 2, baseline=baseline, steps=7, rule=rule, batch_size=4
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_integrated_gradients_tends_to_completeness() -> None:
    model, images = make("Functional").double().eval(), batch(dtype=torch.float64)
    with torch.no_grad():
        difference = (model(images.clone()) - model(torch.zeros_like(images)))[:, 1]
    result = integrated_gradients(model, images, 1, steps=500)
    torch.testing.assert_close(result.sum((1, 2, 3)), difference, rtol=1e-3, atol=1e-3)


# --- SmoothGrad -------------------------------------------------------------------------------


def loop(
    method: Callable, model: nn.Module, images: Tensor, target: int, noise: float, n: int
) -> list[Tensor]:
    """SmoothGrad's samples, one image and one sample at a time."""
    seeds = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    maps = []
    for seed in seeds:
        epsilon = torch.randn(
            images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=images.dtype
        )
        rows = [
            method(model, (x + noise * (x.max() - x.min()) * epsilon)[None], target) for x in images
        ]
        maps.append(torch.cat(rows))
    return maps


few = functools.partial(integrated_gradients, steps=3)
AROUND: dict[str, Callable] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "guided_backprop": guided_backprop,
    "integrated_gradients": few,
    "grad_cam": grad_cam,
    "deeplift": deeplift,
}


@pytest.mark.parametrize("name", AROUND)
def test_smoothgrad_as_a_loop(name: str) -> None:
    method, model, images = AROUND[name], make("Residual").double(), batch(dtype=torch.float64)
    samples = torch.stack(loop(method, model, images, 2, 0.2, 5))
    options: dict[str, Any] = {"method": method, "samples": 5, "noise": 0.2}
    mean, error, spread, r2 = smoothgrad_estimate(model, images, 2, batch_size=4, **options)
    torch.testing.assert_close(mean, samples.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread, samples.std(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(error, samples.std(0) / 5**0.5, rtol=0, atol=1e-7)
    assert r2 is None
    alone = smoothgrad(model, images[1:2], 2, **options)
    torch.testing.assert_close(alone, mean[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", AROUND)
def test_smoothgrad_without_noise_is_the_method(name: str) -> None:
    method, model, images = AROUND[name], make("Residual").double(), batch(dtype=torch.float64)
    expected = method(model, images)
    result: Any = smoothgrad_estimate(model, images, method=method, noise=0, samples=3)
    torch.testing.assert_close(result.value, expected, rtol=1e-12, atol=1e-12)
    assert float(result.spread.max()) < 1e-6 * float(expected.abs().max())


class Curved(nn.Module):
    """Its gradient hardly changes under little noise, and is small where images are large."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("dtype", "noise", "error"),
    [
        (torch.float32, 0.15, 1e-4),
        (torch.float32, 1e-4, 0.01),
        (torch.float16, 0.15, 0.02),
        (torch.bfloat16, 0.15, 0.02),
    ],
)
def test_smoothgrads_spread_in_coarse_types(dtype: torch.dtype, noise: float, error: float) -> None:
    """Against float64 with the same noise: squares neither vanish nor cancel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 48, 48, generator=generator).to(dtype)
    found = smoothgrad_estimate(Curved().to(dtype), images, 0, noise=noise, samples=8)
    seeds = torch.randint(2**62, (8,), generator=torch.Generator().manual_seed(0)).tolist()
    epsilon = [
        torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=dtype)
        for seed in seeds
    ]
    x = images.double()
    around = x + noise * (x.max() - x.min()) * torch.stack(epsilon).double()
    maps = gradient(Curved().double(), around, 0)
    for value, exact in (
        (found.value, maps.mean(0, keepdim=True)),
        (found.spread, maps.std(0, keepdim=True)),
        (found.standard_error, maps.std(0, keepdim=True) / 8**0.5),
    ):
        assert value is not None
        assert value.dtype == dtype
        assert ((value - exact).abs() / exact.abs()).median() < error


def test_smoothgrads_noise_is_the_generators() -> None:
    model, images = make("Residual"), batch()

    def explain(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return smoothgrad(model, images, 1, samples=3, generator=generator)

    assert torch.equal(explain(None), explain(0))
    assert torch.equal(explain(3), explain(3))
    assert not torch.equal(explain(3), explain(4))
    one: Any = smoothgrad_estimate(model, images, 1, samples=1)
    assert one.spread.isnan().all()
    assert one.standard_error.isnan().all()
    assert one.value.isfinite().all()
    assert torch.equal(one.value, smoothgrad(model, images, 1, samples=1))


# --- Memory and passes ------------------------------------------------------------------------


def calls(explain: Callable[[nn.Module], object]) -> list[int]:
    model, sizes = make("Residual"), []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    explain(model)
    return sizes


@pytest.mark.parametrize(("n", "size"), [(3, 16), (5, 2), (1, 4), (7, 7)])
def test_no_call_holds_more_than_a_batch(n: int, size: int) -> None:
    images = batch(n)
    one: dict[str, Any] = {"batch_size": size}
    for target, probes in ((1, 0), (None, n)):
        integrated = calls(lambda m: integrated_gradients(m, images, target, steps=9, **one))  # noqa: B023
        smoothed = calls(lambda m: smoothgrad(m, images, target, samples=9, **one))  # noqa: B023
        for sizes in (integrated, smoothed):
            assert max(sizes) <= size
            assert sum(sizes) == 9 * n + probes
            assert len(sizes) == -(-9 * n // size) + -(-probes // size)
    both = calls(lambda m: smoothgrad(m, images, 1, method=integrated_gradients, samples=2, **one))
    assert max(both) <= size
    assert sum(both) == 2 * 32 * n


@pytest.mark.parametrize(
    ("method", "passes"),
    [(gradient, 1), (input_x_gradient, 1), (deconvnet, 1), (guided_backprop, 1)],
)
def test_one_pass(method: Callable, passes: int) -> None:
    assert calls(lambda model: method(model, batch(3))) == [3] * passes


def test_the_method_of_smoothgrad_gets_its_batch_size() -> None:
    sizes = []

    def method(*arguments: Any, batch_size: int = 16) -> Tensor:
        sizes.append(batch_size)
        return gradient(*arguments)

    smoothgrad(make("Residual"), batch(), 1, method=method, samples=2, batch_size=3)
    assert sizes == [3, 3]


# --- Bad options ------------------------------------------------------------------------------

NOT_A_COUNT: list[object] = [0, -1, 1.5, True, "many", None]
BAD_OPTIONS: list[tuple[Callable, str, object]] = [
    *((method, "batch_size", bad) for method in (smoothgrad, integrated_gradients)
      for bad in NOT_A_COUNT),
    *((smoothgrad, "samples", bad) for bad in NOT_A_COUNT),
    *((integrated_gradients, "steps", bad) for bad in NOT_A_COUNT),
    *((smoothgrad, "noise", bad) for bad in (-0.1, math.nan, math.inf, "much", None, True)),
    *((smoothgrad, "generator", bad) for bad in (0, "seed")),
    *((smoothgrad, "method", bad) for bad in ("gradient", None)),
    *((integrated_gradients, "rule", bad) for bad in ("simpson", None, 3)),
    *((integrated_gradients, "baseline", bad) for bad in (
        None, "black", True, math.nan, [0.0], torch.zeros(2, 3, 8, 8), torch.zeros(3),
        torch.zeros(1, 3, 4, 4), torch.full((1, 3, 1, 1), torch.inf), torch.zeros(1, 3, 3, 8, 8),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("method", "option", "bad"), BAD_OPTIONS)
def test_bad_option(method: Callable, option: str, bad: object) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((ValueError, TypeError), match=rf"^{option}\b") as error:
        method(model, batch(), 1, **{option: bad})
    assert "\n" not in str(error.value)


def test_a_trapezoid_has_two_ends() -> None:
    with pytest.raises(ValueError, match="^steps is 1; it must be at least 2"):
        integrated_gradients(make("Residual"), batch(), 1, steps=1, rule="trapezoid")


# --- The field's libraries --------------------------------------------------------------------

HOOKS = pytest.mark.filterwarnings(
    "ignore:Setting (backward|forward):UserWarning",
    "ignore:Input Tensor 0 did not already require gradients:UserWarning",
)


@pytest.fixture(scope="module")
def architecture(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, ARCHITECTURES[request.param]()


def off(result: Tensor, reference: Tensor) -> float:
    result, reference = result.detach(), reference.detach()
    return float((result - reference).abs().max() / reference.abs().max())


@pytest.mark.references
@pytest.mark.parametrize("architecture", ARCHITECTURES, indirect=True)
@HOOKS
def test_equals_the_libraries(architecture: tuple[str, nn.Module]) -> None:
    from captum.attr import (
        Deconvolution,
        GuidedBackprop,
        InputXGradient,
        IntegratedGradients,
        Saliency,
    )
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop as Guided

    name, model = architecture
    side = 64 if name == "densenet121" else 40  # its last ReLU must see maps, not numbers
    images = pictures()[..., :side, :side]
    target = model(images).argmax(1)

    def captum(reference: Any, **options: Any) -> Tensor:
        return reference(model).attribute(images.clone(), target=target, **options)

    assert off(gradient(model, images, target), captum(Saliency, abs=False)) < 1e-10
    assert off(input_x_gradient(model, images, target), captum(InputXGradient)) < 1e-10
    baseline = pictures(seed=5)[..., :side, :side]
    for rule, theirs in {
        "midpoint": "riemann_middle",
        "riemann-right": "riemann_right",
        "gauss-legendre": "gausslegendre",
    }.items():
        # Eighths are exact for both; a rounding of α can cross a kink of the network.
        options: dict[str, Any] = {"n_steps": 8, "method": theirs, "internal_batch_size": 16}
        reference = captum(IntegratedGradients, baselines=baseline, **options)
        ours = integrated_gradients(model, images, target, baseline=baseline, steps=8, rule=rule)
        assert off(ours, reference) < 1e-5
    if name == "mobilenet_v3_small":
        for method in (guided_backprop, deconvnet):
            with pytest.raises(ValueError, match="no rule for its operation hardswish"):
                method(model, images, target)
        return
    guided = guided_backprop(model, images, target)
    with Guided().context(model) as modified, Gradient(modified) as attributor:
        chosen = torch.eye(int(model(images).shape[1])).double()[target]
        zennit = attributor(images.clone(), chosen)[1]
    if name == "densenet121":  # its last ReLU is a function, which hooks do not see
        assert off(guided, captum(GuidedBackprop)) > 0.1
        assert off(guided, zennit) > 0.1
        model = Modular(model)
        assert off(guided_backprop(model, images, target), guided) < 1e-12
        with Guided().context(model) as modified, Gradient(modified) as attributor:
            zennit = attributor(images.clone(), chosen)[1]
    assert off(guided, captum(GuidedBackprop)) < 1e-10
    assert off(guided, zennit) < 1e-10
    assert off(deconvnet(model, images, target), captum(Deconvolution)) < 1e-10


class Modular(nn.Module):
    """A DenseNet whose last ReLU is a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features, self.classifier = model.features, model.classifier
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.relu(self.features(x)).mean((2, 3)))


@pytest.mark.references
def test_captums_trapezoid_does_not_sum_to_one() -> None:
    """Of a linear function every rule is exact; Captum's trapezoid is not."""
    from captum.attr import IntegratedGradients

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).double()
    images = batch(dtype=torch.float64)
    exact = input_x_gradient(model, images, 1)
    ours = integrated_gradients(model, images, 1, steps=8, rule="trapezoid")
    theirs = IntegratedGradients(model).attribute(
        images, target=1, n_steps=8, method="riemann_trapezoid"
    )
    assert off(ours, exact) < 1e-12
    assert off(theirs, exact) > 1e-3


@pytest.mark.references
def test_smoothgrad_tends_to_captums() -> None:
    """Their noise is another: the means agree within four standard errors almost everywhere."""
    from captum.attr import NoiseTunnel, Saliency

    model, images = make("Functional").double().eval(), batch(1, dtype=torch.float64)
    sigma = 0.15 * float(images.max() - images.min())
    ours: Any = smoothgrad_estimate(model, images, 1, samples=400, batch_size=200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = NoiseTunnel(Saliency(model)).attribute(
            images, nt_type="smoothgrad", nt_samples=400, stdevs=sigma, target=1, abs=False
        )
    error = ours.standard_error * 2**0.5
    assert float(((ours.value - theirs).abs() < 4 * error + 1e-12).double().mean()) > 0.99
