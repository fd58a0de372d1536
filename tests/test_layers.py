from typing import Any

import pytest
import torch
from torch import nn

from course_utils import layers
from course_utils.models import SmallResNet
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

    def move(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
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
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
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
