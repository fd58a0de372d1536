import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import layers, models
from course_utils.methods import cam, gradients
from course_utils.methods.cam import guided_grad_cam
from course_utils.networks import Classifier
from course_utils.worlds import photographs, scenes
from tests.networks import NETWORKS, Returning, batch, make

pytestmark = pytest.mark.filterwarnings("error")
TARGETS = torch.tensor([4, 0, 2])


class Hand(nn.Module):
    """Two maps, which are the image's first two channels, averaged; then two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.fc = nn.Linear(2, 2)
        self.fc.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.fc.bias = nn.Parameter(torch.tensor([0.25, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x[:, :2]).mean((2, 3)))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return models.load("scenes", device="cpu")


@pytest.fixture(scope="module")
def some(classifier: Classifier) -> Tensor:
    drawn = [scenes.Scenes(3, seed=6).scene(index).image for index in range(3)]
    return torch.cat([classifier.to_input(picture) for picture in drawn])


def network(name: str) -> nn.Module:
    """A torchvision network, its weights random and its BatchNorm statistics too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"init_weights": False} if name in ("vgg11", "googlenet") else {}
        model = getattr(torchvision.models, name)(num_classes=7, **options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean = 0.2 * torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval()


def pictures(n: int = 2, size: int = 64) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


# -- by hand ---------------------------------------------------------------------------------------


def test_cam_by_hand() -> None:
    image = torch.tensor([[[[4.0, 0.0], [1.0, 3.0]], [[1.0, 2.0], [0.0, 5.0]], [[9.0] * 2] * 2]])
    model = Hand()
    first = torch.tensor([[[4 - 2.0, 0 - 4.0], [1 - 0.0, 3 - 10.0]]])
    second = torch.tensor([[[2 + 3.0, 0 + 6.0], [0.5, 1.5 + 15.0]]])
    assert torch.equal(cam.cam(model, image, 0, upsample=False), first)
    assert torch.equal(cam.cam(model, image, 1, upsample=False), second)
    # Logits: 0.25 − 2 and −1 + 7, so that the answer is class 1.
    assert model(image).tolist() == [[-1.75, 6.0]]
    assert torch.equal(cam.cam(model, image, upsample=False), second)


def test_grad_cam_by_hand() -> None:
    image = torch.tensor([[[[4.0, 0.0], [1.0, 3.0]], [[1.0, 2.0], [0.0, 5.0]], [[9.0] * 2] * 2]])
    signed = torch.tensor([[[2.0, -4.0], [1.0, -7.0]]]) / 4
    model = Hand()
    assert torch.equal(cam.grad_cam(model, image, 0, relu=False, upsample=False), signed)
    assert torch.equal(cam.grad_cam(model, image, 0, upsample=False), signed.relu())
    at_layer = cam.grad_cam(model, image, 0, layer="maps", relu=False, upsample=False)
    assert torch.equal(at_layer, signed)


def test_maps_and_slopes_by_hand() -> None:
    image = torch.tensor([[[[4.0, 0.0], [1.0, 3.0]], [[1.0, 2.0], [0.0, 5.0]], [[9.0] * 2] * 2]])
    slope = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2) / 4
    for layer in (None, "maps"):
        maps, slopes = cam.maps_and_slopes(Hand(), image, 0, layer)
        assert torch.equal(maps, image[:, :2])
        assert torch.equal(slopes, slope)
        assert not maps.requires_grad
        assert not slopes.requires_grad


# -- slow twins, written from the papers -----------------------------------------------------------


def slow_grad_cam(model: nn.Module, maps: Tensor, score: Tensor) -> Tensor:
    """ReLU(Σ_k α_k A_k), α_k = 1/Z Σ_i Σ_j ∂y/∂A_kij, for one image: maps (1, K, h, w)."""
    (slopes,), maps = torch.autograd.grad(score, maps), maps.detach()
    _, units, rows, columns = maps.shape
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(units):
        alpha = 0.0
        for i in range(rows):
            for j in range(columns):
                alpha += float(slopes[0, k, i, j]) / (rows * columns)
        for i in range(rows):
            for j in range(columns):
                result[i, j] += alpha * float(maps[0, k, i, j])
    return result


def slow_run(name: str, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last maps of a network in tests/networks.py, and its logits, step by step."""
    if name == "InPlaceFirst":
        maps = model.conv(x.clamp(min=0)).clamp(min=0)
    elif name == "Functional":
        maps = F.max_pool2d(model.conv1(x).clamp(min=0), 2)
        maps = model.conv2(maps).clamp(min=0)
    elif name == "Reused":
        maps = model.conv(model.conv(model.stem(x)).clamp(min=0)).clamp(min=0)
    else:
        inner = model.bn1(model.conv1(x)).clamp(min=0)
        maps = (inner + model.bn2(model.conv2(inner))).clamp(min=0)
    return maps, model.fc(maps.mean((2, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_maps_of_every_kind_of_network(name: str) -> None:
    model, images = make(name).double().eval(), batch(dtype=torch.float64)
    signed = cam.grad_cam(model, images, TARGETS, relu=False, upsample=False)
    whole = cam.cam(model, images, TARGETS, upsample=False)
    for n, target in enumerate(TARGETS.tolist()):
        maps, logits = slow_run(name, model, images[[n]])
        slow = slow_grad_cam(model, maps, logits[0, target])
        assert slow.abs().max() > 1e-3
        torch.testing.assert_close(signed[n], slow, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(whole[n], slow * slow.numel(), rtol=1e-10, atol=1e-12)
    found = cam.grad_cam(model, images, TARGETS, upsample=False)
    torch.testing.assert_close(found, signed.clamp(min=0), rtol=0, atol=0)


def test_an_inner_layer_as_in_the_paper() -> None:
    model: Any = make("Residual").double().eval()
    images = batch(dtype=torch.float64)
    found = cam.grad_cam(model, images, TARGETS, layer="bn1", relu=False, upsample=False)
    with_relu = cam.grad_cam(model, images, TARGETS, layer="bn1", upsample=False)
    for n, target in enumerate(TARGETS.tolist()):
        # BatchNorm's own output: the ReLU after it works in place and must not reach it.
        maps = model.bn1(model.conv1(images[[n]])).detach().requires_grad_()
        assert maps.min() < 0
        inner = maps.clamp(min=0)
        outer = (inner + model.bn2(model.conv2(inner))).clamp(min=0)
        slow = slow_grad_cam(model, maps, model.fc(outer.mean((2, 3)))[0, target])
        torch.testing.assert_close(found[n], slow, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(with_relu[n], slow.clamp(min=0), rtol=1e-10, atol=1e-12)


def test_of_a_layer_that_runs_twice_the_last_run_counts() -> None:
    model: Any = make("Reused").double().eval()
    images = batch(dtype=torch.float64)
    found = cam.grad_cam(model, images, 1, layer="conv", relu=False, upsample=False)
    for n in range(len(images)):
        first = model.conv(model.stem(images[[n]])).clamp(min=0)
        maps = model.conv(first).detach().requires_grad_()
        slow = slow_grad_cam(model, maps, model.fc(maps.clamp(min=0).mean((2, 3)))[0, 1])
        torch.testing.assert_close(found[n], slow, rtol=1e-10, atol=1e-12)


# -- mean(CAM) + b is the logit --------------------------------------------------------------------


def test_the_mean_of_a_cam_and_the_bias_are_the_logit_on_scenes(
    classifier: Classifier, some: Tensor
) -> None:
    model: Any = classifier.model
    logits = model(some)
    for c in range(len(classifier.classes)):
        for upsample in (False, True):
            found = cam.cam(model, some, c, upsample=upsample).mean((1, 2)) + model.fc.bias[c]
            torch.testing.assert_close(found, logits[:, c], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "last"), [("resnet18", "fc"), ("densenet121", "classifier")])
@pytest.mark.parametrize("size", [64, 32])
def test_the_mean_of_a_cam_and_the_bias_are_the_logit(name: str, last: str, size: int) -> None:
    model, images = network(name), pictures(size=size)
    bias: Any = layers.find(model, last).bias
    logits, target = model(images), torch.tensor([3, 5])
    found = cam.cam(model, images, target, upsample=False)
    assert found.shape == (2, size // 32, size // 32)
    wanted = logits[torch.arange(2), target]
    torch.testing.assert_close(found.mean((1, 2)) + bias[target], wanted, rtol=1e-4, atol=1e-4)
    signed = cam.grad_cam(model, images, target, relu=False, upsample=False)
    torch.testing.assert_close(signed * (size // 32) ** 2, found, rtol=1e-4, atol=1e-4)


def test_the_mean_of_a_map_that_a_class_has_is_its_logit() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    model[0].bias.data = torch.tensor([0.0, 1.0])
    image = torch.tensor([[[[3.0, -1.0]]]])
    assert model(image).tolist() == [[1.5, 1.5]]
    assert cam.cam(model, image, 0).tolist() == [[[3.0, 0.0]]]
    assert cam.cam(model, image, 1).tolist() == [[[0.0, 3.0]]]
    network_of_maps, images = network("squeezenet1_1"), pictures()
    found = cam.cam(network_of_maps, images, torch.tensor([3, 5]), upsample=False)
    assert found.shape == (2, 3, 3)
    wanted = network_of_maps(images)[torch.arange(2), torch.tensor([3, 5])]
    torch.testing.assert_close(found.mean((1, 2)), wanted)
    assert wanted.min() > 0


def test_what_the_lecture_warns_of_is_wrong(classifier: Classifier, some: Tensor) -> None:
    model: Any = classifier.model
    with layers.capture(model, "layer4.1.conv2") as kept:
        logits = model(some)
    target = logits.argmax(1)
    wrong = torch.einsum("nk,nkhw->nhw", model.fc.weight[target], kept["layer4.1.conv2"])
    gap = wrong.mean((1, 2)) + model.fc.bias[target] - logits.amax(1)
    assert gap.abs().max() > 0.5


# -- which maps ------------------------------------------------------------------------------------


LAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "resnet18": lambda m, x: m.layer4(
        m.layer3(m.layer2(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x)))))))
    ),
    "vgg11": lambda m, x: m.features[:-1](x),  # the last ReLU, before max pooling
    "densenet121": lambda m, x: F.relu(m.features(x)),
    "squeezenet1_1": lambda m, x: m.classifier[:-1](m.features(x)),
    "mobilenet_v3_small": lambda m, x: m.features(x),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_maps_are_those_that_enter_pooling_or_flattening(name: str) -> None:
    model, images = network(name), pictures()
    maps = LAST[name](model, images).detach().requires_grad_()
    if name == "vgg11":
        pooled = model.avgpool(model.features[-1](maps))  # type: ignore[operator, index]
        logits = model.classifier(pooled.flatten(1))  # type: ignore[operator]
    elif name == "squeezenet1_1":
        logits = maps.mean((2, 3))
    else:
        last = model.fc if name == "resnet18" else model.classifier
        logits = last(maps.mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    (slopes,) = torch.autograd.grad(logits[:, 3].sum(), maps)
    wanted = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).detach()
    found = cam.grad_cam(model, images, 3, relu=False, upsample=False)
    assert found.shape[1] > 1
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


class Tail(nn.Module):
    """A convolution, then whatever follows."""

    def __init__(self, tail: Callable[[Tensor], Tensor], inputs: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(inputs, 5)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(self, self.conv(x)))  # type: ignore[call-arg, arg-type]


def attention(scores: Tensor) -> Tensor:
    """Weights of the places (N, 1, h, w), whose sum is 1."""
    return scores.flatten(2).softmax(2).view(scores.shape)


def unit_sum(mask: Tensor) -> Tensor:
    return mask / mask.sum((2, 3), keepdim=True)


def written(vector: Tensor) -> Tensor:
    """The vector as a part of zeros."""
    whole = torch.zeros(len(vector), 6)
    whole[:, :3] = vector[:, :3]
    return whole


TAILS: dict[str, tuple[Any, int]] = {
    "mean": (lambda m, x: x.mean((-1, -2)), 6),
    "mean, one after the other": (lambda m, x: x.mean(3).mean(2), 6),
    "torch.mean": (lambda m, x: torch.mean(x, dim=(2, 3)), 6),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], 6),
    "average of all, dropout": (
        lambda m, x: F.dropout(F.adaptive_avg_pool2d(x, 1), training=False).flatten(1),
        6,
    ),
    "view": (lambda m, x: x.view(len(x), -1), 384),
    "max pooling, then mean": (lambda m, x: F.max_pool2d(x, 2).mean((2, 3)), 6),
    "convolution after pooling": (
        lambda m, x: m.second(F.adaptive_avg_pool2d(x, 1)).flatten(1),
        6,
    ),
    "sum": (lambda m, x: x.sum((2, 3)), 6),
    "amax": (lambda m, x: x.amax((2, 3)), 6),
    "max, one after the other": (lambda m, x: x.max(3)[0].max(2)[0], 6),
    "amax, each keeping its axis": (
        lambda m, x: x.amax(2, keepdim=True).amax(3, keepdim=True).flatten(1),
        6,
    ),
    "logsumexp": (lambda m, x: x.logsumexp((2, 3)), 6),
    "median": (lambda m, x: x.flatten(2).median(2).values, 6),
    "three largest": (lambda m, x: x.flatten(2).topk(3).values.mean(2), 6),
    "power": (lambda m, x: F.lp_pool2d(x, 2, 8).flatten(1), 6),
    "power, then mean": (lambda m, x: F.lp_pool2d(x, 2, 2).mean((2, 3)), 6),
    "mean and standard deviation": (
        lambda m, x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1),
        12,
    ),
    "one place": (lambda m, x: x[:, :, 4, 4], 6),
    "written into zeros": (lambda m, x: written(x.mean((2, 3))), 6),
    "mean where a mask is": (
        lambda m, x: (x * unit_sum((x[:, :1] > 0).to(x.dtype))).sum((2, 3)),
        6,
    ),
    "attention": (lambda m, x: (x * attention(x.sum(1, True))).sum((2, 3)), 6),
    "attention of a convolution": (
        lambda m, x: (attention(m.second(x)[:, :1]) * x).sum((2, 3)),
        6,
    ),
    "attention as a product of matrices": (
        lambda m, x: (x.flatten(2) @ attention(m.second(x)[:, :1]).flatten(2).mT)[:, :, 0],
        6,
    ),
    "power mean": (
        lambda m, x: F.avg_pool2d(x, 8).clamp(min=1e-6).pow(1 / 3).flatten(1),
        6,
    ),
    "convolution after a window of all": (
        lambda m, x: F.relu(m.second(F.avg_pool2d(x, 8))).flatten(1),
        6,
    ),
    "channels last, mean": (lambda m, x: x.permute(0, 2, 3, 1).mean((1, 2)), 6),
    "channels last, flattened": (
        lambda m, x: x.movedim(1, 3).contiguous().view(len(x), -1),
        384,
    ),
    "vectors of channels last": (
        lambda m, x: F.layer_norm(x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1), (6,)).flatten(
            1
        ),
        6,
    ),
    "convolution of all places": (lambda m, x: F.conv2d(x, torch.ones(6, 6, 8, 8)).flatten(1), 6),
    "both poolings": (
        lambda m, x: torch.cat(
            [F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1
        ).flatten(1),
        12,
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_the_last_maps_however_they_are_pooled(name: str) -> None:
    tail, inputs = TAILS[name]
    model = Tail(tail, inputs)
    found = cam.grad_cam(model, batch(), 2, upsample=False)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found, cam.grad_cam(model, batch(), 2, layer="conv", upsample=False))


SEVERAL: dict[str, tuple[Any, int]] = {
    "two scales": (
        lambda m, x: torch.cat([x.mean((2, 3)), m.second(F.avg_pool2d(x, 2)).mean((2, 3))], 1),
        12,
    ),
    "maps and what is before them": (lambda m, x: x.mean((2, 3)) + m.second(x).amax((2, 3)), 6),
    "tokens": (lambda m, x: F.linear(x.flatten(2).mT, torch.eye(6)).mean(1), 6),
    "tokens and their mixture": (
        lambda m, x: (x.flatten(2).mT + F.linear(x.flatten(2).mT, torch.eye(6))).mean(1),
        6,
    ),
    "channels last": (lambda m, x: x.permute(0, 2, 3, 1).relu().mean((1, 2)), 6),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_there_is_no_default_layer_where_the_logits_are_not_made_of_last_maps(name: str) -> None:
    tail, inputs = SEVERAL[name]
    model = Tail(tail, inputs)
    with pytest.raises(ValueError, match=r"^model: .*no last feature maps.*give layer="):
        cam.grad_cam(model, batch(), 2)
    with pytest.raises(ValueError, match="use grad_cam"):
        cam.cam(model, batch(), 2)
    assert cam.grad_cam(model, batch(), 2, layer="conv", upsample=False).shape == (3, 8, 8)


def test_the_default_layer_of_transformers() -> None:
    """A ViT has tokens; a Swin's last ones are brought into the order of feature maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 12, 24, num_classes=7).eval()
        swin: Any = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4]).eval()
    images = pictures(size=32)
    with pytest.raises(ValueError, match="give layer="):
        cam.grad_cam(vit, images, 3)
    assert cam.grad_cam(vit, images, 3, layer="conv_proj", upsample=False).shape == (2, 4, 4)
    found = cam.cam(swin, images, 3, upsample=False)
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found.mean((1, 2)) + swin.head.bias[3], swin(images)[:, 3])
    assert torch.equal(
        cam.grad_cam(swin, images, 3), cam.grad_cam(swin, images, 3, layer="permute")
    )


def test_a_gate_of_squeeze_and_excitation_is_not_the_end() -> None:
    def tail(model: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(model.second(F.adaptive_avg_pool2d(x, 1)))
        return F.adaptive_avg_pool2d(gate * x, 1).flatten(1)

    model = Tail(tail)  # type: ignore[arg-type]
    found = cam.cam(model, batch(), 2, upsample=False).mean((1, 2)) + model.fc.bias[2]
    torch.testing.assert_close(found, model(batch())[:, 2])


def test_attention_to_places_that_takes_no_mean_makes_maps() -> None:
    """As the spatial attention of CBAM: its weights are sigmoids."""

    def tail(model: Any, x: Tensor) -> Tensor:
        return (x * torch.sigmoid(model.second(x)[:, :1])).mean((2, 3))

    model = Tail(tail)  # type: ignore[arg-type]
    found = cam.cam(model, batch(), 2, upsample=False).mean((1, 2)) + model.fc.bias[2]
    torch.testing.assert_close(found, model(batch())[:, 2])


def test_pooled_maps_changed_in_place_are_maps_again() -> None:
    def tail(model: Any, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(x, 2), inplace=True).flatten(1)

    found = cam.grad_cam(Tail(tail, 96), batch(), 2, upsample=False)  # type: ignore[arg-type]
    assert found.shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "squeezenet1_1"])
def test_maps_of_one_place_are_maps(name: str) -> None:
    """At 32 pixels these end at 1 × 1: those, not what entered the last pooling before."""
    model, images = network(name), pictures(size=32)
    assert cam.grad_cam(model, images, upsample=False).shape == (2, 1, 1)
    assert cam.cam(model, images).shape == (2, 32, 32)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer1", "layer3.1.conv1", "conv1", "layer4"])
def test_a_layer_as_name_or_module(name: str, classifier: Classifier, some: Tensor) -> None:
    model = classifier.model
    by_name = cam.grad_cam(model, some, layer=name)
    assert torch.equal(by_name, cam.grad_cam(model, some, layer=layers.find(model, name)))
    assert by_name.shape == (3, 128, 128)
    guided = guided_grad_cam(model, some, layer=name)
    assert torch.equal(guided, gradients.guided_backprop(model, some) * by_name[:, None])


def test_the_default_layer_of_a_residual_network_is_its_last_block(
    classifier: Classifier, some: Tensor
) -> None:
    found = cam.grad_cam(classifier.model, some)
    wanted = cam.grad_cam(classifier.model, some, layer="layer4")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_upsampling_is_bilinear_and_comes_after_relu(classifier: Classifier, some: Tensor) -> None:
    model = classifier.model
    for target in (None, 3):
        for method in (cam.cam, cam.grad_cam):
            small = method(model, some, target, upsample=False)
            wanted = F.interpolate(small[:, None], (128, 128), mode="bilinear", align_corners=False)
            assert torch.equal(method(model, some, target), wanted[:, 0])
    late = cam.grad_cam(model, some, 3, relu=False).relu()
    assert (late - cam.grad_cam(model, some, 3)).abs().max() > 1e-3


def test_oblong_images_keep_their_shape() -> None:
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    model = make("Functional")
    assert cam.cam(model, images, 0).shape == (2, 8, 12)
    assert cam.cam(model, images, 0, upsample=False).shape == (2, 2, 4)
    assert guided_grad_cam(model, images, 0).shape == (2, 3, 8, 12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_have_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    model, images = make("Functional").to(dtype), batch(dtype=dtype)
    for method in (cam.cam, cam.grad_cam, guided_grad_cam):
        result = method(model, images, 1)
        assert result.dtype == dtype
        assert not result.requires_grad


@pytest.mark.parametrize("method", [cam.cam, cam.grad_cam, guided_grad_cam])
def test_within_other_gradient_modes(method: Any) -> None:
    model, images = make("Residual"), batch()
    wanted = method(model, images)
    with torch.no_grad():
        assert torch.equal(method(model, images), wanted)
    with torch.inference_mode():
        assert torch.equal(method(model, torch.clone(images)), wanted)


def test_grad_cam_goes_backward_no_further_than_the_layer() -> None:
    model, images = make("Residual"), batch()
    seen: list[int] = []
    model.conv1.register_full_backward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    cam.grad_cam(model, images, 0)
    assert not seen


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v3_small"])
def test_cam_refuses_other_networks_and_names_grad_cam(name: str) -> None:
    model, images = network(name), pictures(1)
    with pytest.raises(ValueError, match=r"^model: .*average pooling.*use grad_cam$"):
        cam.cam(model, images)
    assert cam.grad_cam(model, images).shape == (1, 64, 64)


REFUSED: dict[str, tuple[Any, int]] = {
    "max pooling": (lambda m, x: x.amax((2, 3)), 6),
    "flattened": (lambda m, x: x.flatten(1), 384),
    "scaled after pooling": (lambda m, x: 2 * x.mean((2, 3)), 6),
    "squared after pooling": (lambda m, x: x.mean((2, 3)).square(), 6),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cam_refuses_what_only_looks_alike(name: str) -> None:
    tail, inputs = REFUSED[name]
    with pytest.raises(ValueError, match="use grad_cam"):
        cam.cam(Tail(tail, inputs), batch(), 0)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda y: y / 0.1,
    "scaled in place": lambda y: y.div_(0.1),
    "centred in place": lambda y: y.sub_(y.mean(1, True)),
    "sigmoid in place": lambda y: y.sigmoid_(),
    "one written": lambda y: y.index_fill_(1, torch.tensor([2]), 3.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["Functional", "maps of classes"])
def test_cam_refuses_logits_that_are_changed_after_all(name: str, change: str) -> None:
    class Changed(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            classes = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.model = make(name) if name == "Functional" else classes
            self.change = change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(self.model(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed, unchanged = Changed(CHANGES[change]), Changed(lambda y: y.clamp_(min=-100))
    with pytest.raises(ValueError, match="use grad_cam"):
        cam.cam(changed, batch(), 2)
    assert cam.cam(unchanged, batch(), 2).shape == (3, 8, 8)


def test_cam_refuses_a_softmax_behind_the_linear_layer() -> None:
    model = nn.Sequential(make("Functional"), nn.Softmax(1))
    with pytest.raises(ValueError, match="use grad_cam"):
        cam.cam(model, batch(), 0)


def test_a_linear_layer_with_named_arguments_is_seen() -> None:
    def tail(model: Any, x: Tensor) -> Tensor:
        return F.linear(input=x.mean((2, 3)), weight=torch.eye(6))

    model = Tail(tail)  # type: ignore[arg-type]
    found = cam.cam(model, batch(), 2, upsample=False).mean((1, 2)) + model.fc.bias[2]
    torch.testing.assert_close(found, model(batch())[:, 2])


@pytest.mark.parametrize("method", [cam.grad_cam, guided_grad_cam, cam.score_cam, cam.eigen_cam])
def test_unknown_layers(method: Any, classifier: Classifier, some: Tensor) -> None:
    model = classifier.model
    with pytest.raises(ValueError, match=r"layer: the model has no layer 'layer5'.*layer4"):
        method(model, some, layer="layer5")
    with pytest.raises(ValueError, match="layer: this Conv2d is no layer of the model"):
        method(model, some, layer=nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="layer: this SmallResNet is no layer of the model"):
        method(model, some, layer=model)
    with pytest.raises(ValueError, match="layer: the model has no layer ''"):
        method(model, some, layer="")


def test_a_layer_without_feature_maps(classifier: Classifier, some: Tensor) -> None:
    with pytest.raises(ValueError, match=r"layer: .*'fc' gives \(3, 16\); choose a convolution"):
        cam.grad_cam(classifier.model, some, layer="fc")


class Idle(nn.Module):
    """One layer never runs, one is ignored, one is constant, one gives several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.never, self.ignored, self.constant = (nn.Conv2d(3, 6, 1) for _ in range(3))
        self.split = Split()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.ignored(x)
        constant = self.constant(torch.ones_like(x))
        first, second = self.split(self.conv(x))
        return self.fc((torch.cat([first, second], 1) + constant).mean((2, 3)))


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(3, 1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("never", "layer: .*'never' did not run"),
        ("split", "layer: .*'split' gives none"),
        ("ignored", "layer: 'ignored' makes feature maps on which the logits do not depend"),
        ("constant", "layer: 'constant' makes feature maps on which the logits do not depend"),
    ],
)
def test_layers_that_cannot_explain(layer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cam.grad_cam(Idle(), batch(), 0, layer=layer)
    assert cam.grad_cam(Idle(), batch(), 0, layer="conv").shape == (3, 8, 8)


def test_a_model_without_feature_maps_or_gradient() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2))

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).detach()

    with pytest.raises(ValueError, match="model: it has no last feature maps"):
        cam.grad_cam(Flat(), batch(), 0)
    with pytest.raises(ValueError, match="model: it pools feature maps on which the logits do not"):
        cam.grad_cam(Cut(), batch(), 0)
    with pytest.raises(ValueError, match="use grad_cam"):
        cam.cam(Flat(), batch(), 0)


@pytest.mark.parametrize(
    "method",
    [cam.cam, cam.grad_cam, guided_grad_cam, cam.maps_and_slopes, cam.score_cam, cam.eigen_cam],
)
def test_bad_images_and_targets(method: Any) -> None:
    model = make("Functional")
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\)"):
        method(model, batch()[0])
    with pytest.raises(TypeError, match="images must be floating point"):
        method(model, batch().long())
    for target in (5, -1):
        with pytest.raises(ValueError, match=f"target: there is no class {target}"):
            method(model, batch(), target)


# -- HiResCAM --------------------------------------------------------------------------------------


def slow_hires_cam(maps: Tensor, score: Tensor) -> Tensor:
    """Σ_k ∂y/∂A_kij · A_kij, for one image: maps (1, K, h, w)."""
    (slopes,), maps = torch.autograd.grad(score, maps), maps.detach()
    _, units, rows, columns = maps.shape
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(units):
        for i in range(rows):
            for j in range(columns):
                result[i, j] += float(slopes[0, k, i, j]) * float(maps[0, k, i, j])
    return result


def test_hires_cam_by_hand() -> None:
    """f = a² of one channel a: the slope is 2a, and a place adds 2a²; Grad-CAM takes the mean."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return (self.maps(x) ** 2).sum((2, 3))

    image = torch.tensor([[[[3.0, -1.0]]]])
    options: dict[str, Any] = {"layer": "maps", "upsample": False}
    assert cam.hires_cam(Squared(), image, 0, **options).tolist() == [[[18.0, 2.0]]]
    assert cam.grad_cam(Squared(), image, 0, **options).tolist() == [[[6.0, 0.0]]]


def test_hires_cam_as_in_the_paper() -> None:
    model: Any = make("Residual").double().eval()
    images = batch(dtype=torch.float64)
    found = cam.hires_cam(model, images, TARGETS, layer="bn1", relu=False, upsample=False)
    for n, target in enumerate(TARGETS.tolist()):
        maps = model.bn1(model.conv1(images[[n]])).detach().requires_grad_()
        inner = maps.clamp(min=0)
        last = (inner + model.bn2(model.conv2(inner))).clamp(min=0)
        slow = slow_hires_cam(maps, model.fc(last.mean((2, 3)))[0, target])
        assert slow.min() < 0 < slow.max()
        torch.testing.assert_close(found[n], slow, rtol=1e-10, atol=1e-12)
    positive = cam.hires_cam(model, images, TARGETS, layer="bn1", upsample=False)
    assert torch.equal(positive, found.relu())


@pytest.mark.parametrize("name", NETWORKS)
def test_hires_cam_is_grad_cam_where_the_gradient_is_the_same_everywhere(name: str) -> None:
    model, images = make(name).double().eval(), batch(dtype=torch.float64)
    several: list[dict[str, Any]] = [{}, {"relu": False}, {"upsample": False}]
    for options in several:
        found = cam.hires_cam(model, images, TARGETS, **options)
        wanted = cam.grad_cam(model, images, TARGETS, **options)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.references
@pytest.mark.filterwarnings("ignore:Setting (backward|forward):UserWarning")
@pytest.mark.parametrize("layer", ["bn2", "blocks.3"])
def test_hires_cam_on_a_real_network(layer: str) -> None:
    """As pytorch-grad-cam, which enlarges a map and scales it to 0 … 1."""
    from pytorch_grad_cam import HiResCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    real = models.load("efficientnet_lite0", device="cpu")
    images = torch.cat([real.to_input(photographs.picture(p)) for p in ("coffee", "camera")])
    aims = [ClassifierOutputTarget(target) for target in (967, 872)]  # espresso, tripod
    module = layers.find(real.model, layer)
    with layers.preserve(real.model), HiResCAM(real.model, [module]) as explain:
        theirs = torch.from_numpy(explain(images.clone().requires_grad_(), aims))
    ours = cam.hires_cam(real.model, images, torch.tensor([967, 872]), layer=layer)
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    assert (high > 0).all()
    torch.testing.assert_close((ours - low) / (high - low), theirs, rtol=0, atol=1e-5)


# -- LayerCAM, Grad-CAM++, Score-CAM, Eigen-CAM ----------------------------------------------------

FAMILY = (cam.layer_cam, cam.grad_cam_plus_plus, cam.score_cam)
PLAIN: dict[str, Any] = {"relu": False, "upsample": False}
IMAGE = torch.tensor([[[[4.0, 0.0], [1.0, 3.0]], [[1.0, 2.0], [0.0, 5.0]], [[9.0] * 2] * 2]])


class Headed(nn.Module):
    """Maps, which are the image, and a function of them."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps, self.head = nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x))


def slow_layer_cam(maps: Tensor, slopes: Tensor) -> Tensor:
    """Σ_k ReLU(g_kij) · A_kij, for one image: maps and slopes (K, h, w)."""
    units, rows, columns = maps.shape
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(units):
        for i in range(rows):
            for j in range(columns):
                result[i, j] += max(float(slopes[k, i, j]), 0) * float(maps[k, i, j])
    return result


def slow_grad_cam_plus_plus(maps: Tensor, slopes: Tensor, epsilon: float = 0.0) -> Tensor:
    """Σ_k w_k A_k, w_k = Σ_ij α_kij ReLU(g_kij), α = g² / (2 g² + Σ_ab A_kab · g³ [+ ε])."""
    units, rows, columns = maps.shape
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(units):
        total, weight = float(maps[k].sum()), 0.0
        for g in slopes[k].flatten().tolist():
            if g > 0:
                weight += g * g**2 / (2 * g**2 + total * g**3 + epsilon)
        for i in range(rows):
            for j in range(columns):
                result[i, j] += weight * float(maps[k, i, j])
    return result


def slow_score_cam(score: Callable[[Tensor], float], maps: Tensor, image: Tensor) -> Tensor:
    """Σ_k w_k A_k, w_k = exp(f(x ∘ H_k)) / Σ exp, for one image (C, H, W) and maps (K, h, w)."""
    units, rows, columns = maps.shape
    weights = []
    for k in range(units):
        size = image.shape[1:]
        mask = F.interpolate(maps[None, [k]], size=size, mode="bilinear", align_corners=False)[0, 0]
        low, high = float(mask.min()), float(mask.max())
        masked = torch.zeros_like(image)
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                if float(maps[k].max()) > float(maps[k].min()):
                    masked[:, i, j] = image[:, i, j] * (float(mask[i, j]) - low) / (high - low)
        weights.append(math.exp(score(masked[None])))
    result = torch.zeros(rows, columns, dtype=torch.float64)
    for k in range(units):
        result += weights[k] / sum(weights) * maps[k]
    return result


def slow_eigen_cam(maps: Tensor) -> Tensor:
    """A v, v the eigenvector of AᵀA with the largest eigenvalue, the sum of A v positive."""
    a = maps.flatten(1).T.numpy()  # places × maps
    _, vectors = np.linalg.eigh(a.T @ a)
    result = a @ vectors[:, -1]
    return torch.from_numpy(result * np.sign(result.sum())).view(maps.shape[1:])


def slow_family(model: Any, image: Tensor, maps: Tensor, target: int, score: Tensor) -> list[Any]:
    """The twins of FAMILY for one image (1, C, H, W) of a network, its maps and their score."""
    (slopes,), flat = torch.autograd.grad(score, maps), maps.detach()[0]

    def asked(images: Tensor) -> float:
        with torch.no_grad():
            return float(model(images.clone())[0, target])

    return [
        slow_layer_cam(flat, slopes[0]),
        slow_grad_cam_plus_plus(flat, slopes[0]),
        slow_score_cam(asked, flat, image[0]),
    ]


def test_layer_cam_by_hand() -> None:
    """Slopes are ¼ and −½ for class 0, ⅛ and ¾ for class 1; the negative ones do not count."""
    model = Hand()
    assert torch.equal(cam.layer_cam(model, IMAGE, 0, **PLAIN), IMAGE[:, 0] / 4)
    second = IMAGE[:, 0] / 8 + 3 * IMAGE[:, 1] / 4
    assert torch.equal(cam.layer_cam(model, IMAGE, 1, **PLAIN), second)
    assert torch.equal(cam.layer_cam(model, IMAGE, 1, layer="maps", **PLAIN), second)


def test_grad_cam_plus_plus_by_hand() -> None:
    """Both maps sum to 8, so that α is 1/(2 + 8 g), and a weight is the sum of four times α g."""
    model = Hand()
    first = 4 * (1 / 4) / (2 + 2) * IMAGE[:, 0]
    second = 4 * (1 / 8) / (2 + 1) * IMAGE[:, 0] + 4 * (3 / 4) / (2 + 6) * IMAGE[:, 1]
    torch.testing.assert_close(cam.grad_cam_plus_plus(model, IMAGE, 0, **PLAIN), first)
    torch.testing.assert_close(cam.grad_cam_plus_plus(model, IMAGE, 1, **PLAIN), second)


def test_score_cam_by_hand() -> None:
    """Masks are A_0 / 4 and A_1 / 5: they leave the means 1.625, 1.1875 and 0.95, 1.5."""
    weights = torch.tensor([1.625 - 2 * 1.1875 + 0.25, 0.95 - 2 * 1.5 + 0.25]).softmax(0)
    wanted = weights[0] * IMAGE[:, 0] + weights[1] * IMAGE[:, 1]
    found = cam.score_cam(Hand(), IMAGE, 0, **PLAIN)
    torch.testing.assert_close(found, wanted)
    # Where a mask hides, 1 stands: each mean grows by what its mask hides of the place.
    means = torch.tensor([[1.625 + 2 / 4, 1.1875 + 2 / 4], [0.95 + 2.4 / 4, 1.5 + 2.4 / 4]])
    weights = (means @ torch.tensor([1.0, -2.0]) + 0.25).softmax(0)
    wanted = weights[0] * IMAGE[:, 0] + weights[1] * IMAGE[:, 1]
    found = cam.score_cam(Hand(), IMAGE, 0, baseline=1.0, **PLAIN)
    torch.testing.assert_close(found, wanted)


def test_eigen_cam_by_hand() -> None:
    """Two maps that share no place: the longer of them, whatever its sign and the class."""
    image = torch.tensor([[[[0.0, -3.0]], [[2.0, 0.0]], [[9.0, 9.0]]]])
    for target in (0, 1, None):
        found = cam.eigen_cam(Hand(), image, target, upsample=False)
        torch.testing.assert_close(found, torch.tensor([[[0.0, 3.0]]]))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_family_as_in_the_papers(name: str) -> None:
    model, images = make(name).double().eval(), batch(dtype=torch.float64)
    found = [method(model, images, TARGETS, **PLAIN) for method in FAMILY]
    common = cam.eigen_cam(model, images, TARGETS, upsample=False)
    for n, target in enumerate(TARGETS.tolist()):
        maps, logits = slow_run(name, model, images[[n]])
        twins = slow_family(model, images[[n]], maps, target, logits[0, target])
        for one, twin in zip(found, twins, strict=True):
            torch.testing.assert_close(one[n], twin, rtol=1e-10, atol=1e-12)
        wanted = slow_eigen_cam(maps.detach()[0])
        torch.testing.assert_close(common[n], wanted, rtol=1e-10, atol=1e-12)
    assert all(one.abs().max() > 1e-3 for one in found)


def test_the_family_at_an_inner_layer_with_negative_maps() -> None:
    model: Any = make("Residual").double().eval()
    images = batch(dtype=torch.float64)
    found = [method(model, images, TARGETS, layer="bn1", **PLAIN) for method in FAMILY]
    common = cam.eigen_cam(model, images, TARGETS, layer="bn1", upsample=False)
    for n, target in enumerate(TARGETS.tolist()):
        maps = model.bn1(model.conv1(images[[n]])).detach().requires_grad_()
        inner = maps.clamp(min=0)
        last = (inner + model.bn2(model.conv2(inner))).clamp(min=0)
        score = model.fc(last.mean((2, 3)))[0, target]
        twins = slow_family(model, images[[n]], maps, target, score)
        for one, twin in zip(found, twins, strict=True):
            torch.testing.assert_close(one[n], twin, rtol=1e-10, atol=1e-10)
        wanted = slow_eigen_cam(maps.detach()[0])
        torch.testing.assert_close(common[n], wanted, rtol=1e-10, atol=1e-10)
    for method, one in zip(FAMILY, found, strict=True):
        positive = method(model, images, TARGETS, layer="bn1", upsample=False)
        assert torch.equal(positive, one.relu())


def test_alpha_is_a_ratio_of_derivatives_of_the_exponential() -> None:
    """Of a piecewise linear score; where the score is curved, the closed form is another."""

    def of_derivatives(f: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        """Σ_ij α ReLU(∂Y/∂A_kij) / Y, α = ∂²Y / (2 ∂²Y + Σ_ab A_kab ∂³Y), Y = exp(f)."""
        maps = maps.clone().requires_grad_()
        y = f(maps).exp()
        (first,) = torch.autograd.grad(y, maps, create_graph=True)
        weights = torch.zeros(maps.shape[1], dtype=torch.float64)
        for place in np.ndindex(*maps.shape):
            (second,) = torch.autograd.grad(first[place], maps, create_graph=True)
            (third,) = torch.autograd.grad(second[place], maps, retain_graph=True)
            below = 2 * second[place] + maps[0, place[1]].sum() * third[place]
            if first[place] > 0:  # of a place that has no slope, α is 0/0
                weights[place[1]] += (second[place] / below * first[place] / y)[0].detach()
        return weights

    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 2, 3, 3, dtype=torch.float64, generator=generator)
    first, second = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((4, 2, 2, 2), (1, 4, 2, 2))
    )

    def straight(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, first).relu(), second)[:, 0, 0]

    def curved(x: Tensor) -> Tensor:
        return straight(x) + (x**2).sum((1, 2, 3))[:, None]

    gaps = []
    for head in (straight, curved):
        weights = of_derivatives(lambda x, head=head: head(x)[0], maps)  # type: ignore[misc]
        wanted = (weights[:, None, None] * maps[0]).sum(0)
        found = cam.grad_cam_plus_plus(Headed(head), maps, 0, layer="maps", **PLAIN)[0]
        assert wanted.max() > 1e-2
        gaps.append(float((found - wanted).abs().max() / wanted.abs().max()))
    assert gaps[0] < 1e-10
    assert gaps[1] > 0.05


def test_a_denominator_of_zero_counts_nothing() -> None:
    """Slopes 1 and 1, maps -3 and 1: 2 + g · Σ A is 0."""
    model = Headed(lambda maps: maps.sum((2, 3)))
    image = torch.tensor([[[[-3.0, 1.0]]]])
    assert cam.grad_cam_plus_plus(model, image, 0, layer="maps", **PLAIN).tolist() == [[[0, 0]]]


def test_score_cam_is_a_mean_of_maps(classifier: Classifier, some: Tensor) -> None:
    """Its weights are positive and add up to 1; so no class has a place below the lowest map."""
    found = cam.score_cam(classifier.model, some, 2, layer="layer2", **PLAIN)
    maps, _ = cam.maps_and_slopes(classifier.model, some, 2, "layer2")
    assert (found >= maps.amin(1)).all()
    assert (found <= maps.amax(1)).all()
    assert found.min() >= 0


def test_a_flat_map_of_score_cam_hides_all() -> None:
    """The second map is 0.3 everywhere: nothing is left, and the logit is the bias."""
    image = torch.cat([IMAGE[:, :1], torch.full((1, 1, 2, 2), 0.3), IMAGE[:, 2:]], 1)
    image = F.interpolate(image, size=(7, 7))
    mask = image[:, 0] / 4
    logits = [float((mask * image[:, 0]).mean() - 2 * (mask * image[:, 1]).mean()) + 0.25, 0.25]
    weights = torch.tensor(logits).softmax(0)
    found = cam.score_cam(Hand(), image, 0, **PLAIN)
    torch.testing.assert_close(found, weights[0] * image[:, 0] + weights[1] * image[:, 1])
    # Enlarged, it is not quite flat, by rounding.
    large = cam._scaled(torch.full((1, 7, 7), 0.3), torch.zeros(1, 3, 224, 224))
    assert large.abs().max() == 0


def test_some_channels_of_score_cam() -> None:
    """Those whose maps vary most, the weights adding up to 1 among them; of few maps, all."""
    network: Any = make("Residual").double().eval()
    model, image = Returning(network, lambda y: y), batch(1, dtype=torch.float64)
    maps, _ = cam.maps_and_slopes(network, image, 2, "bn1")
    few = maps[0, maps[0].var((1, 2)).argsort(descending=True)[:2]]
    options: dict[str, Any] = {"layer": "model.bn1", **PLAIN}
    found = cam.score_cam(model, image, 2, channels=2, **options)[0]
    assert model.forwards == 2  # the image, and two pictures in one call
    wanted = slow_score_cam(lambda x: float(network(x)[0, 2].detach()), few, image[0])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    every = cam.score_cam(model, image, 2, **options)
    assert (found - every).abs().max() > 1e-2
    torch.testing.assert_close(cam.score_cam(model, image, 2, channels=1000, **options), every)


@pytest.mark.parametrize("name", ["channels", "batch_size", "baseline"])
def test_bad_options_of_score_cam(name: str) -> None:
    bad: list[Any] = ["all", torch.nan] if name == "baseline" else [0, -1, 2.5, True]
    for value in bad:
        with pytest.raises((ValueError, TypeError), match=f"^{name} "):
            cam.score_cam(make("Functional"), batch(), **{name: value})


def test_what_takes_no_gradient_explains_scores_without_one() -> None:
    model, images = make("Residual"), batch()
    found = cam.score_cam(model, images, lambda logits: logits.detach()[:, 1])
    torch.testing.assert_close(found, cam.score_cam(model, images, 1))
    model.fc.register_forward_hook(lambda *_: torch.zeros(3, 5))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no last feature maps"):
        cam.score_cam(model, images, 1)


def test_eigen_cam_is_the_same_for_every_class_and_not_negative_after_a_relu(
    classifier: Classifier, some: Tensor
) -> None:
    for layer in (None, "layer2"):
        found = cam.eigen_cam(classifier.model, some, 0, layer=layer)
        assert found.min() >= -1e-5 * found.max()
        for target in (3, None, lambda logits: logits[:, 1] - logits[:, 2]):
            assert torch.equal(cam.eigen_cam(classifier.model, some, target, layer=layer), found)


def real(test: Callable) -> Callable:
    """A test that takes seconds and pytorch-grad-cam."""
    said = pytest.mark.filterwarnings("ignore:Setting (backward|forward):UserWarning")
    return pytest.mark.references(pytest.mark.slow(said(test)))


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    return models.load("efficientnet_lite0", device="cpu").model


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """A cup of coffee and a cameraman, in model space."""
    to_input = models.load("efficientnet_lite0", device="cpu").to_input
    return torch.cat([to_input(photographs.picture(name)) for name in ("coffee", "camera")])


ANSWERS = torch.tensor([967, 872])  # espresso, tripod


def alike(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert wanted.max() > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.max()))


@real
@pytest.mark.parametrize("layer", ["bn2", "blocks.3"])
def test_layer_cam_on_a_real_network(layer: str, lite: nn.Module, photos: Tensor) -> None:
    ours = cam.layer_cam(lite, photos, ANSWERS, layer=layer, upsample=False)
    alike(ours, theirs(lite, layers.find(lite, layer), photos, ANSWERS, "LayerCAM"))


@real
def test_grad_cam_plus_plus_on_a_real_network(lite: nn.Module, photos: Tensor) -> None:
    """pytorch-grad-cam adds 1e-6 to a denominator of about that size, and so gives another map."""
    image, module = photos[:1], layers.find(lite, "bn2")
    ours = cam.grad_cam_plus_plus(lite, image, 967, layer="bn2", upsample=False)
    maps, slopes = (one[0].double() for one in cam.maps_and_slopes(lite, image, 967, "bn2"))
    twins = [slow_grad_cam_plus_plus(maps, slopes, epsilon)[None] for epsilon in (0, 1e-6)]
    wanted = theirs(lite, module, image, ANSWERS[:1], "GradCAMPlusPlus")
    alike(ours, twins[0].float())
    alike(wanted, twins[1].float())
    assert (wanted - ours).norm() > 0.1 * ours.norm()


@real
def test_score_cam_on_a_real_network(
    lite: nn.Module, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pytorch-grad-cam, once its masks are enlarged as the authors do: corners not aligned."""
    image, module = F.avg_pool2d(photos[:1], 2), layers.find(lite, "blocks.2")
    ours = cam.score_cam(lite, image, 967, layer="blocks.2", upsample=False)
    aligned = theirs(lite, module, image, ANSWERS[:1], "ScoreCAM")

    def enlarge(size: Any) -> nn.Module:
        return nn.Upsample(size, mode="bilinear", align_corners=False)

    monkeypatch.setattr(nn, "UpsamplingBilinear2d", enlarge)
    alike(ours, theirs(lite, module, image, ANSWERS[:1], "ScoreCAM"))
    assert (ours - aligned).abs().max() > 1e-2 * ours.max()


@real
@pytest.mark.parametrize("layer", ["bn2", "blocks.3"])
def test_eigen_cam_on_a_real_network(layer: str, lite: nn.Module, photos: Tensor) -> None:
    """pytorch-grad-cam subtracts each map's mean, and takes either sign."""
    ours = cam.eigen_cam(lite, photos, ANSWERS, layer=layer, upsample=False)
    maps, _ = cam.maps_and_slopes(lite, photos, ANSWERS, layer)
    wanted = theirs(lite, layers.find(lite, layer), photos, ANSWERS, "EigenCAM")
    for n in range(len(photos)):
        alike(ours[n], slow_eigen_cam(maps[n].double()).float())
        centred = maps[n].double() - maps[n].double().mean((1, 2), keepdim=True)
        _, vectors = np.linalg.eigh(np.cov(centred.flatten(1)))
        signed = torch.einsum("khw,k->hw", centred, torch.from_numpy(vectors[:, -1])).float()
        either = [(sign * signed).relu() for sign in (1, -1)]
        alike(min(either, key=lambda one: float((one - wanted[n]).norm())), wanted[n])
        assert (ours[n] - wanted[n]).norm() > 0.2 * ours[n].norm()


# -- libraries -------------------------------------------------------------------------------------


def theirs(
    model: nn.Module, layer: nn.Module, images: Tensor, target: int | Tensor, kind: str = "GradCAM"
) -> Tensor:
    """pytorch-grad-cam's map (N, h, w), before it scales each to 0 … 1."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    classes = torch.as_tensor(target).expand(len(images)).tolist()
    with layers.preserve(model), getattr(pytorch_grad_cam, kind)(model, [layer]) as method:
        method.outputs = outputs = method.activations_and_grads(images.clone().requires_grad_())
        wanted = [ClassifierOutputTarget(one) for one in classes]
        loss = sum(t(output) for t, output in zip(wanted, outputs, strict=True))
        loss.backward()
        maps = method.activations_and_grads.activations[0].detach().numpy()
        slopes = method.activations_and_grads.gradients[0].numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = method.get_cam_image(images, layer, wanted, maps, slopes, False)
    return torch.from_numpy(np.maximum(found, 0))


@pytest.mark.references
@pytest.mark.parametrize("layer", ["layer4", "layer3.1", "layer2", "conv1"])
def test_pytorch_grad_cam_agrees(layer: str, classifier: Classifier, some: Tensor) -> None:
    model = classifier.model
    found = cam.grad_cam(model, some, 3, layer=layer, upsample=False)
    wanted = theirs(model, layers.find(model, layer), some, 3)
    assert wanted.max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))


@pytest.mark.references
def test_pytorch_grad_cam_is_wrong_before_an_in_place_relu() -> None:
    """It keeps the very tensor into which ReLU then writes: maps after ReLU, slopes before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)
    found = {}
    for inplace in (False, True):
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(conv, nn.ReLU(inplace=inplace), *pool, fc).eval()
        ours = cam.grad_cam(model, batch(), 2, layer="0", upsample=False)
        found[inplace] = ours, theirs(model, model[0], batch(), 2)
    torch.testing.assert_close(*found[False], rtol=1e-4, atol=1e-6)
    assert torch.equal(found[True][0], found[False][0])
    right, wrong = found[False][1], found[True][1]
    assert (right - wrong).abs().max() > 0.2 * right.max()


@pytest.mark.references
@pytest.mark.parametrize("layer", ["layer4", "layer3.1", "layer2", "conv1"])
def test_captum_agrees(layer: str, classifier: Classifier, some: Tensor) -> None:
    from captum.attr import LayerGradCam

    model = classifier.model
    module = layers.find(model, layer)
    for relu in (True, False):
        found = cam.grad_cam(model, some, 3, layer=layer, relu=relu, upsample=False)
        with layers.preserve(model):
            wanted = LayerGradCam(model, module).attribute(
                some.clone().requires_grad_(), 3, relu_attributions=relu
            )
        wanted = wanted[:, 0].detach()
        assert wanted.abs().max() > 0
        atol = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=atol)
