import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import layers
from course_utils.networks import SmallResNet
from tests.networks import NETWORKS, batch, make


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet(5, (8, 8, 12, 16)).eval()


def test_capture_keeps_what_the_layer_gave_before_an_in_place_relu() -> None:
    model: Any = make("Residual").eval()
    images = batch()
    with torch.no_grad():
        with layers.capture(model, ["conv1", "bn1"]) as kept:
            logits = model(images)
        assert torch.equal(kept["conv1"], model.conv1(images))
        assert torch.equal(kept["bn1"], model.bn1(model.conv1(images)))
        assert kept["bn1"].min() < 0
        assert torch.equal(logits, model(images))


def test_the_last_run_of_a_module_used_twice_stays() -> None:
    model: Any = make("Reused")
    images = batch()
    with torch.no_grad():
        with layers.capture(model, "conv") as kept:
            model(images)
        first = model.conv(model.stem(images)).relu()
        assert torch.equal(kept["conv"], model.conv(first))


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_to_activations(network: str) -> None:
    model, images = make(network).double().eval(), batch(dtype=torch.float64).requires_grad_()
    layer = layers.last_conv(model)
    with layers.capture(model, layer) as kept:
        score = model(images.clone())[0, 0]
    (slope,) = torch.autograd.grad(score, kept[layer])
    # The same derivative by finite differences: the layer's (last) output moved in one direction.
    direction = slope.sign() * 1e-6
    calls = 0
    uses = 2 if network == "Reused" else 1

    def move(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output + direction if calls == uses else output

    handle = layers.find(model, layer).register_forward_hook(move)
    moved = model(images.clone())[0, 0]
    handle.remove()
    expected = (slope * direction).sum()
    assert expected > 0
    torch.testing.assert_close(moved - score, expected, rtol=1e-4, atol=1e-12)


def test_capture_all_layers_by_default(resnet: nn.Module) -> None:
    with torch.no_grad(), layers.capture(resnet) as kept:
        resnet(torch.zeros(1, 3, 64, 64))
    assert list(kept)[:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert kept["layer4"].shape == (1, 16, 4, 4)
    assert kept["fc"].shape == (1, 5)
    assert set(kept) == {name for name, _ in resnet.named_modules() if name}


def test_capture_is_filled_at_each_call(resnet: nn.Module) -> None:
    with torch.no_grad(), layers.capture(resnet, "fc") as kept:
        assert kept == {}
        resnet(torch.zeros(1, 3, 32, 32))
        assert kept["fc"].shape == (1, 5)
        resnet(torch.zeros(2, 3, 32, 32))
        assert kept["fc"].shape == (2, 5)


def test_capture_passes_on_what_is_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x, 1

    model = nn.Sequential(Pair())
    with layers.capture(model, "0") as kept:
        _, one = model(batch())
    assert one == 1
    pair: Any = kept["0"]
    assert isinstance(pair, tuple)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_capture_removes_its_hooks() -> None:
    model = make("Residual")
    with layers.capture(model):
        assert hooks(model) == 7
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), layers.capture(model):
        model(torch.zeros(1, 7, 8, 8))
    assert hooks(model) == 0
    with (
        pytest.raises(ValueError, match="no layer 'conv9'"),
        layers.capture(model, ["bn1", "conv9"]),
    ):
        pass
    assert hooks(model) == 0


class Boom(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_preserve(fails: bool) -> None:
    model: Any = make("Residual").train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
    seen: list[str] = []
    handle = model.relu.register_forward_hook(lambda *_: seen.append("mine"))
    flags = [module.training for module in model.modules()]
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    gradient, state = model.conv2.weight.grad, torch.get_rng_state()

    try:
        with layers.preserve(model):
            model.train()
            model(batch()).sum().backward()  # running statistics, .grad, dropout's random numbers
            model.requires_grad_(True)
            model.zero_grad()
            model.eval()
            model.bn2.running_mean = torch.zeros(6)
            handle.remove()
            model.fc.register_forward_hook(lambda *_: seen.append("theirs"))
            model.fc.register_full_backward_hook(lambda *_: None)
            model.conv1.register_forward_pre_hook(lambda *_: None)
            if fails:
                raise Boom
    except Boom:
        pass

    assert [module.training for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 9
    assert model.conv2.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "conv2.weight")
    for name, buffer in model.named_buffers():
        assert (id(buffer), True) == (buffers[name][0], torch.equal(buffer, buffers[name][1]))
    assert torch.equal(torch.get_rng_state(), state)
    seen.clear()
    model(batch())
    assert seen == ["mine"] * 2
    assert not model.conv1._forward_pre_hooks
    assert model.fc._is_full_backward_hook is None
    handle.remove()
    assert hooks(model) == 0


def test_preserve_does_not_break_a_graph_that_holds_the_buffers() -> None:
    model, images = make("Residual").eval(), batch().requires_grad_()
    score = model(images).sum()
    with layers.preserve(model):
        model.eval()
    score.backward()
    assert images.grad is not None


def test_convolutions(resnet: nn.Module) -> None:
    names = list(layers.conv_layers(resnet))
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert all(isinstance(layer, nn.Conv2d) for layer in layers.conv_layers(resnet).values())
    assert layers.last_conv(resnet) == "layer4.1.conv2"
    with pytest.raises(ValueError, match=r"^model: this Linear has no nn\.Conv2d"):
        layers.last_conv(nn.Linear(2, 2))


def test_find(resnet: nn.Module) -> None:
    assert layers.find(resnet, "layer2.0") is resnet.get_submodule("layer2.0")
    with pytest.raises(ValueError, match=r"no layer 'layer5'; near it are .*layer4"):
        layers.find(resnet, "layer5")
    with pytest.raises(ValueError, match=r"no layer 'zzz'; print\(model\) shows"):
        layers.find(resnet, "zzz")
    with pytest.raises(ValueError, match="no layer ''"):
        layers.find(resnet, "")


# Taking units away -----------------------------------------------------------------------------


UNITS: dict[str, tuple[Any, list[int]]] = {
    "int": (2, [2]),
    "list": ([4, 1], [4, 1]),
    "range": (range(2), [0, 1]),
    "numpy int": (np.int64(3), [3]),
    "numpy array": (np.array([5, 0]), [5, 0]),
    "tensor": (torch.tensor([5, 0]), [5, 0]),
    "none": ([], []),
}


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("layer", ["conv1", "dropout"])  # (N, 6, H, W) and (N, 6)
def test_ablated_units_are_zero_and_the_others_as_they_were(layer: str, kind: str) -> None:
    model, images = make("Residual").eval(), batch()
    units, chosen = UNITS[kind]
    with torch.no_grad(), layers.capture(model, layer) as before:
        model(images)
    with torch.no_grad(), layers.ablate(model, layer, units), layers.capture(model, layer) as after:
        model(images)
    others = [unit for unit in range(6) if unit not in chosen]
    assert (after[layer][:, chosen] == 0).all()
    assert torch.equal(after[layer][:, others], before[layer][:, others])
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [0.5, 0.5]),
        (torch.tensor(0.5), [0.5, 0.5]),
        (torch.tensor([3.0, -1.0]), [3, -1]),
        (torch.tensor([3.0, -1.0], dtype=torch.float64), [3, -1]),
    ],
)
@pytest.mark.parametrize("layer", ["conv1", "dropout"])
def test_ablated_units_have_the_given_values(layer: str, value: Any, expected: list[float]) -> None:
    model, images = make("Residual").eval(), batch()
    with (
        torch.no_grad(),
        layers.ablate(model, layer, [4, 1], value),
        layers.capture(model, layer) as kept,
    ):
        model(images)
    for unit, level in zip([4, 1], expected, strict=True):
        assert (kept[layer][:, unit] == level).all()
    assert kept[layer].dtype == torch.float32


def test_what_follows_sees_the_ablated_units() -> None:
    model: Any = make("Residual").eval()
    images = batch()
    with torch.no_grad():
        with layers.ablate(model, "dropout", range(6), 1.0):
            logits = model(images)
        expected = model.fc.weight.sum(1) + model.fc.bias
        torch.testing.assert_close(logits, expected.expand(3, -1))
        # Each run of a layer that runs twice.
        twice: Any = make("Reused")
        with layers.ablate(twice, "conv", range(6)):
            assert torch.equal(twice(images), twice.fc.bias.expand(3, -1))


def test_the_layers_own_output_is_untouched() -> None:
    class Stored(nn.Module):
        """Gives the same tensor each time."""

        def __init__(self) -> None:
            super().__init__()
            self.answer = torch.ones(1, 2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.answer

    stored = nn.Sequential(Stored())
    with layers.ablate(stored, "0", 1):
        assert stored(batch())[:, 1].sum() == 0
    assert (stored(batch()) == 1).all()


def test_gradients_pass_an_ablated_layer() -> None:
    model, images = make("Residual").eval(), batch().requires_grad_()
    level = torch.zeros((), requires_grad=True)
    with layers.capture(model, "bn1") as kept, layers.ablate(model, "conv1", [0, 3], level):
        score = model(images)[:, 1].sum()
    slope, up = torch.autograd.grad(score, [kept["bn1"], level])
    assert slope.abs().sum() > 0
    weight = model.bn1.weight / (model.bn1.running_var + model.bn1.eps).sqrt()  # type: ignore
    expected = (slope.sum((0, 2, 3)) * weight)[[0, 3]].sum()
    torch.testing.assert_close(up, expected)


def test_ablate_removes_its_hook_after_an_exception() -> None:
    model = make("Residual")
    with pytest.raises(RuntimeError), layers.ablate(model, "conv1", 0):
        model(torch.zeros(1, 7, 8, 8))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "units", "value", "error", "words"),
    [
        ("conv9", 0, 0.0, ValueError, "no layer 'conv9'; near it are conv"),
        ("conv1", 6, 0.0, ValueError, "'conv1' has no unit 6; its units are 0 to 5"),
        ("conv1", -1, 0.0, ValueError, "'conv1' has no unit -1"),
        ("fc", [0, 5], 0.0, ValueError, "'fc' has no unit 5; its units are 0 to 4"),
        ("conv1", 1.0, 0.0, TypeError, "units must be whole numbers, not 1.0"),
        ("conv1", [0.0, 2.0], 0.0, TypeError, "units must be whole numbers"),
        ("conv1", True, 0.0, TypeError, "units must be whole numbers, not True"),
        ("conv1", [True, False] * 3, 0.0, TypeError, "units must be whole numbers"),  # a mask
        ("conv1", [0, 1, 2], torch.ones(2), ValueError, "each of the 3 units, but holds 2"),
        ("conv1", [0, 1], torch.ones(2, 6), ValueError, "value must be one number"),
    ],
)
def test_what_ablate_refuses(
    name: str, units: Any, value: Any, error: type[Exception], words: str
) -> None:
    model = make("Residual")
    with pytest.raises(error) as caught, layers.ablate(model, name, units, value):
        model(batch())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.MaxPool2d(2, return_indices=True), "layer '0' gives tuple"),
        (nn.Flatten(2), "layer '0' gives (3, 3, 64)"),
    ],
)
def test_ablate_refuses_layers_without_units(layer: nn.Module, words: str) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match=re.escape(words)), layers.ablate(model, "0", 0):
        model(batch())
