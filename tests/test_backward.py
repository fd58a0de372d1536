"""The one mechanism: what it sees, what it refuses, what it leaves behind."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from course_utils.contract import explaining, score_target
from course_utils.methods.backward import Rules, derivative, propagate
from course_utils.methods.gradients import deconvnet, gradient, guided_backprop, input_x_gradient
from course_utils.methods.operations import Operation
from course_utils.methods.propagation import (
    deeplift,
    estimate_patterns,
    lrp,
    pattern_attribution,
    pattern_net,
)
from tests.networks import NETWORKS, batch, make

IMAGES = batch(dtype=torch.float64)
ELSEWHERE = batch(seed=1, dtype=torch.float64)


class Middle(nn.Module):
    """Convolution, a function of its output y and of the module itself, ReLU, mean, linear."""

    def __init__(self, middle: Callable[..., Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.other = nn.Conv2d(6, 6, 3, padding=1)
            self.bn = nn.BatchNorm2d(6)
            self.fc = nn.Linear(6, 5)
            nn.init.normal_(self.bn.bias)
            self.bn.running_mean = torch.randn(6)
            self.bn.running_var = torch.rand(6) + 0.5
        self.middle = middle
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.conv(x))
        return self.fc(torch.relu(y).mean((2, 3)))


def simple(function: Callable[[Tensor], Tensor]) -> Middle:
    return Middle(lambda model, y: function(y))


def patterned(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def explain(model: nn.Module, images: Tensor, target: Any = None) -> Tensor:
        return method(model, images, target, patterns=estimate_patterns(model, ELSEWHERE))

    explain.__name__ = method.__name__
    return explain


GOVERNED: dict[str, Callable[..., Tensor]] = {
    "deconvnet": deconvnet,
    "guided_backprop": guided_backprop,
    "deeplift": deeplift,
    "lrp": lrp,
    "pattern_net": patterned(pattern_net),
    "pattern_attribution": patterned(pattern_attribution),
}
every_method = pytest.mark.parametrize("name", GOVERNED)


@pytest.fixture(autouse=True)
def _nothing_stays_on() -> Iterator[None]:
    yield
    assert not _get_current_dispatch_mode_stack()
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def incompleteness(model: nn.Module, baseline: Any = ELSEWHERE) -> float:
    with torch.no_grad():
        full = torch.zeros_like(IMAGES) + baseline
        difference = (model(IMAGES.clone()) - model(full.clone()))[:, 1]
    total = deeplift(model, IMAGES, 1, baseline=baseline).sum((1, 2, 3))
    return float((total - difference).abs().max() / difference.abs().max())


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


# --- What is seen -----------------------------------------------------------------------------

RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu of a keyword": lambda y: F.relu(input=y),
    "F.relu in place": lambda y: F.relu(y, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda y: y.relu(),
    "x.relu_()": lambda y: y.relu_(),
    "x.relu_() and x used": lambda y: (y.relu_(), y)[1],
    "of a view": lambda y: y.view(len(y), -1).relu_().view(y.shape),
}


@pytest.mark.parametrize("name", GOVERNED)
@pytest.mark.parametrize("form", RELUS)
def test_every_way_to_write_a_relu(name: str, form: str) -> None:
    expected = GOVERNED[name](simple(nn.ReLU()), IMAGES, 2)
    torch.testing.assert_close(GOVERNED[name](simple(RELUS[form]), IMAGES, 2), expected)


def _iadd(model: Middle, y: Tensor) -> Tensor:
    z = model.other(y)
    z += y
    return z


def _accumulate(model: Middle, y: Tensor) -> Tensor:
    total = torch.full_like(y, 0.5)
    total += y
    total += model.other(y)
    return total + y  # y must still be what it was


def _setitem(model: Middle, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :3] = y[:, 3:]
    z[:, 3:] = model.other(y)[:, :3]
    return z


def _in_place_before_bn(model: Middle, y: Tensor) -> Tensor:
    y[:, 0] = 3.0
    return model.bn(y)


def _alias_before_bn(model: Middle, y: Tensor) -> Tensor:
    y.view(len(y), -1).mul_(2.0)
    return model.bn(y)


# Piecewise linear in y, so that LRP with a tiny ε is gradient × input.
LINEAR: dict[str, Callable[[Middle, Tensor], Tensor]] = {
    "x + y": lambda m, y: y + m.other(y),
    "x += y": _iadd,
    "total += x": _accumulate,
    "z[...] = x": _setitem,
    "x - y": lambda m, y: y - m.other(y),
    "c - x": lambda m, y: 0.3 - y,
    "x + c": lambda m, y: y + 0.3,
    "-x": lambda m, y: -y,
    "x * c": lambda m, y: 2 * (y * 3.0),
    "x / c": lambda m, y: y / 3.0,
    "x * tensor": lambda m, y: y * torch.arange(6.0).double().view(1, 6, 1, 1),
    "torch.add, alpha": lambda m, y: torch.add(y, m.other(y), alpha=2),
    "torch.add, other=": lambda m, y: torch.add(y, other=m.other(y), alpha=2),
    "torch.sub": lambda m, y: torch.sub(input=y, other=m.other(y)),
    "x + x": lambda m, y: y + y,
    "x + its mean": lambda m, y: y + y.mean((2, 3), keepdim=True),
    "sum": lambda m, y: y.sum(1, keepdim=True).expand(-1, 6, -1, -1),
    "sum()": lambda m, y: sum([m.other(y)], y),
    "cat": lambda m, y: torch.cat([y[:, :2], m.other(y)[:, 2:]], 1),
    "chunk": lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "pad": lambda m, y: F.pad(y, (1, 1, 1, 1)),
    "max_pool": lambda m, y: F.max_pool2d(y, 3, 2, 1),
    "avg_pool": lambda m, y: F.avg_pool2d(y, 2),
    "permute": lambda m, y: y.permute(0, 1, 3, 2).contiguous(),
    "bn": lambda m, y: m.bn(y),
    "bn twice": lambda m, y: m.bn(y) + m.bn(y),
    "bn and past it": lambda m, y: m.bn(y) + y,
    "changed, then bn": _in_place_before_bn,
    "changed through a view, then bn": _alias_before_bn,
    "functional bn": lambda m, y: F.batch_norm(y, m.bn.running_mean, m.bn.running_var),
    "expand": lambda m, y: y[:, :1].expand(-1, 6, -1, -1),
    "repeat": lambda m, y: y[:, :2].repeat(1, 3, 1, 1),
    "double": lambda m, y: y.double(),
    "to and back": lambda m, y: y.to(torch.float64, copy=True).type(torch.float64),
    "flip": lambda m, y: y.flip(3),
    "roll": lambda m, y: y.roll(2, 3),
    "rot90": lambda m, y: y.rot90(1, (2, 3)),
    "index": lambda m, y: y[:, [2, 1, 0, 5, 4, 3]],
    "index_select": lambda m, y: y.index_select(1, torch.tensor([2, 1, 0, 3, 4, 5])),
    "gather": lambda m, y: y.gather(1, torch.arange(6).flip(0).view(1, 6, 1, 1).expand(y.shape)),
    "where": lambda m, y: torch.where(torch.arange(8) > 3, y, 0.0),
    "masked_fill": lambda m, y: y.masked_fill(torch.arange(8) > 3, 0.5),
    "unbind": lambda m, y: torch.stack(y.unbind(1)[::-1], 1),
    "movedim": lambda m, y: y.movedim(1, -1).movedim(-1, 1),
    "swapaxes": lambda m, y: y.swapaxes(2, 3),
    "mT": lambda m, y: y.mT,
    "tile": lambda m, y: y.tile(1, 1, 2, 2),
    "reflected": lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "pixel_shuffle": lambda m, y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2),
    "channel_shuffle": lambda m, y: F.channel_shuffle(y, 3),
    "unfold and fold": lambda m, y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1),
    "conv_transpose2d": lambda m, y: F.conv_transpose2d(y, m.other.weight, stride=2),
    "matmul": lambda m, y: (y.permute(0, 2, 3, 1) @ m.other.weight[..., 0, 0]).permute(0, 3, 1, 2),
    "einsum": lambda m, y: torch.einsum("nchw,dc->ndhw", y, m.other.weight[..., 0, 0]),
    "F.linear of places": lambda m, y: F.linear(y, torch.eye(8).double() + 1),
    "upsampled": lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "upsampled, nearest": lambda m, y: F.interpolate(y, scale_factor=2),
    "cumsum": lambda m, y: y.cumsum(3),
    "lerp": lambda m, y: torch.lerp(y, m.other(y), 0.3),
    "addcmul": lambda m, y: torch.addcmul(y, m.other(y), torch.arange(8.0).double()),
    "torch.max_pool2d": lambda m, y: torch.max_pool2d(y, 2),
    "adaptive_max_pool2d": lambda m, y: F.adaptive_max_pool2d(y, 3),
}


@pytest.mark.parametrize("form", LINEAR)
def test_linear_operations(form: str) -> None:
    model = Middle(LINEAR[form])
    assert incompleteness(model) < 1e-9
    truth = gradient(model, IMAGES, 1)
    relevance = lrp(model, IMAGES, 1, epsilon=1e-14)
    assert relative(relevance, IMAGES * truth) < 1e-8
    plain = Rules("gradient", {"relu": derivative, "linear": derivative})
    with explaining(model):
        through = propagate(model, IMAGES, plain, lambda logits: score_target(logits, 1))
    torch.testing.assert_close(through, truth)


PRODUCTS: dict[str, Callable[[Middle, Tensor], Tensor]] = {
    "x * gate": lambda m, y: y * torch.sigmoid(m.other(y).mean((2, 3), keepdim=True)),
    "gate * x": lambda m, y: torch.tanh(m.other(y).mean((2, 3), keepdim=True)) * y,
    "x *= gate": lambda m, y: y.clone().mul_(m.other(y).sigmoid()),
    "torch.mul, other=": lambda m, y: torch.mul(y, other=m.other(y)),
    "x * x": lambda m, y: y * y,
    "x * (x + 1)": lambda m, y: y * (y + 1),
    "x @ x": lambda m, y: y @ m.other(y).mT,
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_products_of_two_activations(form: str) -> None:
    model = Middle(PRODUCTS[form])
    assert incompleteness(model) < 1e-9
    assert incompleteness(model, 0.0) < 1e-9
    assert lrp(model, IMAGES, 1).isfinite().all()


class Norm(nn.Module):
    """A GroupNorm and a LayerNorm with weights that are not 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.double().requires_grad_(False)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for parameter in norm.parameters():
                parameter.normal_()

    def forward(self, y: Tensor) -> Tensor:
        result: Tensor = self.norm(y)
        return result


# DeepLIFT is complete through them, since it has a rule for any function of single values.
CURVED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda y: y.softmax(1),
    "F.softmax": lambda y: F.softmax(y, 3).cumsum(3),
    "attention": lambda y: F.scaled_dot_product_attention(y, y.flip(3), y),
    "LayerNorm": Norm(nn.LayerNorm((6, 8, 8))),
    "LayerNorm without weights": nn.LayerNorm(8, elementwise_affine=False),
    "GroupNorm": Norm(nn.GroupNorm(2, 6)),
    "InstanceNorm": Norm(nn.InstanceNorm2d(6, affine=True)),
    "PReLU": nn.PReLU().double().requires_grad_(False),
    "SELU": nn.SELU(),
    "CELU in place": nn.CELU(inplace=True),
    "GELU": nn.GELU(),
    "clamp": lambda y: y.clamp(-0.3, 0.4),
    "maximum": lambda y: torch.maximum(y, torch.full((), 0.1).double()),
    "exp": torch.exp,
    "power": lambda y: y**2,
    "abs": torch.abs,
    "c / x": lambda y: 1 / (y + 9),
    "x / x": lambda y: y / (y.sum(1, keepdim=True) + 30),
    "rounded": lambda y: torch.div(y, 0.01, rounding_mode="floor"),
}


@pytest.mark.parametrize("form", CURVED)
def test_deeplift_is_complete_through_any_curve(form: str) -> None:
    model = simple(CURVED[form])
    assert incompleteness(model) < 1e-9
    assert incompleteness(model, 0.0) < 1e-9


def test_a_product_halves_the_relevance() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, 0] * x[:, 1]).flatten(1)

    image = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    assert lrp(Product(), image, 0).flatten().tolist() == [7.5, 7.5]
    assert deeplift(Product(), image, 0).flatten().tolist() == [7.5, 7.5]
    assert deeplift(Product(), image, 0, baseline=1.0).flatten().tolist() == [6, 8]


# --- What is refused --------------------------------------------------------------------------


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _without_gradient(y: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(y)
    return y * gate


def _masked(y: Tensor) -> Tensor:
    y[y < 0] = 0
    return y


RECTIFIED = ("deconvnet", "guided_backprop")
PATTERNED = ("pattern_net", "pattern_attribution")
# Where a method has no rule, or what nobody can have a rule for.
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[str, ...]]] = {
    "softmax": (lambda y: y.softmax(1), "softmax", PATTERNED),
    "exp": (torch.exp, "exp", (*RECTIFIED, *PATTERNED, "lrp")),
    "clamp": (lambda y: y.clamp(-1, 1), "clamp", (*RECTIFIED, *PATTERNED, "lrp")),
    "clamp in place": (lambda y: y.clamp_(-1, 1), "clamp", (*RECTIFIED, *PATTERNED, "lrp")),
    "maximum": (lambda y: torch.maximum(y, -y), "maximum", tuple(GOVERNED)),
    "amax": (lambda y: y.amax(1, True), "amax", tuple(GOVERNED)),
    "power": (lambda y: y**2, "pow", (*RECTIFIED, *PATTERNED, "lrp")),
    "power of itself": (lambda y: (y + 9) ** y, "pow", tuple(GOVERNED)),
    "matmul": (lambda y: y @ y, "bmm", PATTERNED),
    "c / x": (lambda y: 1 / y, "reciprocal", (*RECTIFIED, *PATTERNED, "lrp")),
    "x / x": (lambda y: y / (y + 9), "div", (*RECTIFIED, *PATTERNED, "lrp")),
    "LayerNorm": (nn.LayerNorm((6, 8, 8), elementwise_affine=False), "layer_norm", PATTERNED),
    "GroupNorm": (nn.GroupNorm(2, 6, affine=False), "group_norm", PATTERNED),
    "BatchNorm of the batch": (
        nn.BatchNorm2d(6, affine=False, track_running_stats=False),
        "batch_norm",
        tuple(GOVERNED),
    ),
    "PReLU": (nn.PReLU().double().requires_grad_(False), "prelu", (*RECTIFIED, *PATTERNED)),
    "sigmoid": (torch.sigmoid, "sigmoid", (*RECTIFIED, *PATTERNED)),
    "a gate": (lambda y: y * y.sigmoid(), "sigmoid|mul", PATTERNED),
    "sorted": (lambda y: y.sort(1).values, "sort", tuple(GOVERNED)),
    "endless dropout": (lambda y: F.dropout(y, 0.5), "dropout|bernoulli", tuple(GOVERNED)),
    "transposed": (
        lambda y: F.conv_transpose2d(y, y.new_ones(6, 6, 1, 1)),
        "convolution",
        PATTERNED,
    ),
    "a matrix before it": (lambda y: torch.eye(8).double() @ y, "bmm", PATTERNED),
    # No gradient comes through these, so that the way back would miss them.
    "where": (lambda y: torch.where(y > 0, y, 0), "gt", tuple(GOVERNED)),
    "a ReLU by hand": (lambda y: y * (y > 0), "gt", tuple(GOVERNED)),
    "a ReLU by hand, cast": (lambda y: y * (y > 0).double(), "gt", tuple(GOVERNED)),
    "masked": (_masked, "lt", tuple(GOVERNED)),
    "detached": (lambda y: y * torch.relu(y).detach(), "detach", tuple(GOVERNED)),
    "data": (lambda y: y * y.data, "detach", tuple(GOVERNED)),
    "without gradient": (_without_gradient, "sigmoid", tuple(GOVERNED)),
    "a choice": (lambda y: y[:, y.mean((0, 2, 3)).argmax()[None]], "argmax", tuple(GOVERNED)),
    # Hidden from the mechanism.
    "custom": (Custom.apply, "hidden", tuple(GOVERNED)),
}


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form, (*_, names) in REFUSED.items() for name in names]
)
def test_an_operation_without_a_rule_is_named(form: str, name: str) -> None:
    function, named, _ = REFUSED[form]
    model = simple(function)
    with pytest.raises(ValueError, match=rf"^model: .*\b({named})\b") as error:
        GOVERNED[name](model, IMAGES, 1)
    assert "\n" not in str(error.value)


@every_method
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", ["trace", "script"])
def test_a_torchscript_model_is_seen_through(name: str, kind: str) -> None:
    plain = make("Functional").double()
    hidden = torch.jit.trace(plain, IMAGES) if kind == "trace" else torch.jit.script(plain)
    expected = GOVERNED[name](plain, IMAGES, 1)
    for _ in range(4):  # it would optimise itself after some calls
        torch.testing.assert_close(GOVERNED[name](hidden, IMAGES, 1), expected)


@every_method
def test_logits_that_ignore_the_image(name: str) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            F.relu(x)
            return torch.ones(len(x), 5, dtype=x.dtype)

    with pytest.raises(ValueError, match="^model: "):
        GOVERNED[name](Constant(), IMAGES, 1)


# --- What is left behind ----------------------------------------------------------------------


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("network", NETWORKS)
def test_memory_is_freed(name: str, network: str) -> None:
    """Without the garbage collector: what refers to itself through autograd it cannot even see."""
    model, kept = make(network).double(), []
    last = list(model.children())[-1]

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        kept.append(weakref.ref(output))
        kept.append(weakref.ref(inputs[0]))

    last.register_forward_hook(keep)
    gc.collect()
    gc.disable()
    try:
        GOVERNED[name](model, IMAGES, 1)
        assert kept
        assert not [reference for reference in kept if reference() is not None]
    finally:
        gc.enable()


def tensors() -> int:
    gc.collect()
    return sum(type(one) is Tensor for one in gc.get_objects())


@pytest.mark.slow
def test_nothing_piles_up() -> None:
    model, methods = make("Residual").double(), list(GOVERNED.values())
    for method in methods:
        method(model, IMAGES, 1)
    before = tensors()
    for method in methods:
        method(model, IMAGES, 1)
    assert tensors() == before


@every_method
def test_nothing_stays_on_the_parameters(name: str) -> None:
    model = make("Residual").double().train()
    before = [(set(vars(p)), p.requires_grad) for p in model.parameters()]
    GOVERNED[name](model, IMAGES, 1)
    assert [(set(vars(p)), p.requires_grad) for p in model.parameters()] == before


def test_an_error_inside_a_rule() -> None:
    def fail(operation: Operation, signal: Tensor, derived: Sequence[Tensor]) -> Tensor:
        raise ZeroDivisionError("in a rule")

    model = make("Residual").double().train()
    rules = Rules("test", {"relu": fail})
    with pytest.raises(ZeroDivisionError, match="in a rule"), explaining(model):
        propagate(model, IMAGES, rules, lambda logits: logits.sum(1))
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


@every_method
def test_an_error_inside_the_model(name: str) -> None:
    def fail(*_: object) -> None:
        assert len(_get_current_dispatch_mode_stack()) == 1
        raise RuntimeError("in the middle")

    model = make("Residual").double()
    handle = model.dropout.register_forward_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="in the middle"):
        GOVERNED[name](model, IMAGES, 1)
    assert not _get_current_dispatch_mode_stack()
    handle.remove()
    before = make("Residual").double()
    assert torch.equal(GOVERNED[name](model, IMAGES, 1), GOVERNED[name](before, IMAGES, 1))


@every_method
def test_a_pass_inside_another_is_refused(name: str) -> None:
    """Its tensors are not the outer pass's: a sentence, not a mixture of both."""
    inner = make("Functional").double()

    def explain(y: Tensor) -> Tensor:
        return y * guided_backprop(inner, y[:, :3], 0).sum(1, keepdim=True)

    with pytest.raises(ValueError, match=r"^model: "):
        GOVERNED[name](simple(explain), IMAGES, 1)
    torch.testing.assert_close(
        GOVERNED[name](inner, IMAGES, 1), GOVERNED[name](make("Functional").double(), IMAGES, 1)
    )


def test_a_pass_between_two_others() -> None:
    """Explaining in a hook that is no part of the network."""
    inner, seen = make("Functional").double(), []
    expected = guided_backprop(inner, IMAGES, 0)
    model = make("Residual").double()
    with explaining(model):
        seen.append(guided_backprop(inner, IMAGES, 0))
        seen.append(guided_backprop(model, IMAGES, 0))
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], guided_backprop(model, IMAGES, 0))


def test_the_operations_are_numbered_in_order() -> None:
    rules = Rules("test", dict.fromkeys(("relu", "linear"), derivative))
    model = make("Reused").double()
    with explaining(model):
        result = propagate(model, IMAGES, rules, lambda logits: logits[:, 0])
    names = [operation.name for operation in rules.operations]
    assert names == [*["convolution"] * 2, "relu", "convolution", "relu", "mean", "addmm"]
    assert [operation.number for operation in rules.operations] == list(range(7))
    torch.testing.assert_close(result, gradient(model, IMAGES, 0))


def test_the_methods_agree_on_a_linear_network() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    model.double()
    expected = input_x_gradient(model, IMAGES, 1)
    torch.testing.assert_close(deeplift(model, IMAGES, 1), expected)
    assert relative(lrp(model, IMAGES, 1, epsilon=1e-14), expected) < 1e-9
