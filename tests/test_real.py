"""Every method on a real network and real photographs, against the field's libraries.

EfficientNet-Lite0 has what the course's own networks have not: ReLU6, BatchNorm and activation in
one layer, linear bottlenecks, padding that TensorFlow chose. Most libraries were written without
ReLU6 in mind, and most say nothing where they meet what they do not know. What they give then is
tested, too, with what the truth is.
"""

import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import layers, models
from course_utils.methods import (
    METHODS,
    cam,
    gradients,
    lime,
    perturbation,
    propagation,
    regions,
    shapley,
)
from course_utils.networks import Classifier
from course_utils.worlds import photographs
from tests.networks import pixels

PHOTOS = ("coffee", "chelsea", "camera")
TARGETS = torch.tensor([967, 282, 872])  # espresso, tiger cat, tripod: what the network says

SAID = pytest.mark.filterwarnings(
    "ignore:Setting (backward|forward):UserWarning",
    "ignore:Input Tensor 0 did not already require gradients:UserWarning",
    "ignore:The set_(bad|over|under) function:PendingDeprecationWarning",  # when shap is imported
)


def real(test: Callable) -> Callable:
    """A test that takes seconds and the field's libraries."""
    return pytest.mark.references(pytest.mark.slow(SAID(test)))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return models.load("efficientnet_lite0", device="cpu")


@pytest.fixture(scope="module")
def model(classifier: Classifier) -> nn.Module:
    return classifier.model


@pytest.fixture(scope="module")
def double(model: nn.Module) -> nn.Module:
    """The network in float64, in the layout in which that is fastest."""
    wide: Any = copy.deepcopy(model).double()
    return wide.to(memory_format=torch.contiguous_format)


@pytest.fixture(scope="module")
def photos(classifier: Classifier) -> Tensor:
    """The three photographs in model space, (3, 3, 224, 224)."""
    return torch.cat([classifier.to_input(photographs.load(name).image) for name in PHOTOS])


@pytest.fixture(scope="module")
def others(classifier: Classifier) -> Tensor:
    """Two more photographs."""
    names = ("rocket", "china")
    return torch.cat([classifier.to_input(photographs.load(name).image) for name in names])


def halved(images: Tensor) -> Tensor:
    """In float64, in which a network takes its time, and so of half the size."""
    return F.avg_pool2d(images.double(), 2)


@pytest.fixture(autouse=True)
def _as_they_were(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test gets the networks as they were: some libraries leave hooks and gradients behind."""
    used = [request.getfixturevalue(n) for n in ("model", "double") if n in request.fixturenames]
    with layers.preserve(nn.ModuleList(used)):
        yield


def off(result: Tensor, reference: Tensor) -> float:
    """The largest difference in any photograph, relative to its map's largest magnitude.

    Of one number for each photograph, relative to that number.
    """
    result, reference = (one.detach().reshape(len(one), -1) for one in (result, reference))
    return float(((result - reference).abs().amax(1) / reference.abs().amax(1)).max())


def scores(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Each photograph's logit of its class."""
    with torch.no_grad():
        return model(images.clone())[torch.arange(len(images)), TARGETS]


def exchanged(model: nn.Module, activation: Callable[[], nn.Module]) -> nn.Module:
    """A copy of the network in which each ReLU6 is another module."""
    result = copy.deepcopy(model)
    for parent in list(result.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, activation())
    return result


class Capped(nn.ReLU):
    """A ReLU6 that libraries take for a ReLU: the same function, and their rule in its place."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x)


def test_every_method_meets_a_real_network() -> None:
    """Here, or beside its twin, where a test of it says so in its name."""
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    for path in Path(__file__).parent.glob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        tests += re.findall(r"^def test_(\w+)_on_a_real_network\b", source, re.M)
    assert set(METHODS) <= {method for test in tests for method in test.split("_and_")}


# --- ReLU6 by hand ----------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "nn.Hardtanh": nn.Hardtanh(0, 6),
    "nn.Hardtanh in place": nn.Hardtanh(0.0, 6.0, inplace=True),
    "F.relu6": F.relu6,
    "F.relu6 in place": partial(F.relu6, inplace=True),
    "F.hardtanh": partial(F.hardtanh, min_val=0.0, max_val=6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
}
INPUT, WEIGHT, PATTERN = (-1.0, 2.0, 7.0, 3.0), (5.0, 4.0, 3.0, -2.0), (1.0, 2.0, 3.0, 4.0)


class Weighted(nn.Module):
    """f = 5 a(x₁) + 4 a(x₂) + 3 a(x₃) − 2 a(x₄); at INPUT 0 + 8 + 18 − 6 = 20."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation, self.fc = activation, nn.Linear(4, 1, bias=False).double()
        self.fc.weight.data = torch.tensor([WEIGHT], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.activation(x).flatten(1))


PATTERNS = {"patterns": [torch.tensor([PATTERN], dtype=torch.float64)]}
BY_HAND: list[tuple[Callable, dict[str, Any], list[float]]] = [
    # Open between 0 and 6: there the weight, and of Guided Backprop only a positive one.
    (gradients.gradient, {}, [0, 4, 0, -2]),
    (gradients.guided_backprop, {}, [0, 4, 0, 0]),
    # A DeconvNet looks at what comes back alone, not at x.
    (gradients.deconvnet, {}, [5, 4, 3, 0]),
    # wᵢ (a(xᵢ) − a(x'ᵢ)): also from above 6, where the gradient sees nothing.
    (propagation.deeplift, {}, [0, 8, 18, -6]),
    (propagation.deeplift, {"baseline": 9.0}, [-30, -16, 0, 6]),
    (propagation.deeplift, {"baseline": 4.0}, [-20, -8, 6, 2]),
    (propagation.lrp, {"epsilon": 0}, [0, 8, 18, -6]),
    # The logit 20, times the pattern, or the pattern and the weight, where it is open.
    (propagation.pattern_net, PATTERNS, [0, 40, 0, 80]),
    (propagation.pattern_attribution, PATTERNS, [0, 160, 0, -160]),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("method", "options", "expected"), BY_HAND)
def test_relu6_by_hand(
    method: Callable, options: dict[str, Any], expected: list[float], activation: str
) -> None:
    image = pixels(*INPUT)
    found = method(Weighted(ACTIVATIONS[activation]), image, 0, **options)
    assert found.flatten().tolist() == pytest.approx(expected)
    assert image.flatten().tolist() == list(INPUT)


def test_patterns_before_a_relu6_by_hand() -> None:
    """A unit's pattern is made where it is positive, above 6 too: there is signal."""
    linear = nn.Linear(2, 1, bias=False).double()
    linear.weight.data = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), linear, nn.ReLU6(inplace=True))
    images = torch.cat([pixels(*pair) for pair in ((-5, 50), (2, 1), (8, 4), (5, 1))])
    (pattern,) = propagation.estimate_patterns(model, images)
    # y = x₁ = 2, 8, 5 beside x₂ = 1, 4, 1: cov(x₂, y) / cov(x₁, y) = 3 / 6.
    assert pattern.flatten().tolist() == pytest.approx([1, 0.5])


@pytest.mark.parametrize("activation", [nn.Hardtanh(-1, 1), F.hardtanh, nn.Hardtanh(-6, 6)])
@pytest.mark.parametrize("method", [gradients.guided_backprop, gradients.deconvnet])
def test_a_hardtanh_that_is_open_below_0_is_refused(method: Callable, activation: Any) -> None:
    """A negative value goes on there, so that it is no rectifier."""
    with pytest.raises(ValueError, match="has no rule for its operation hardtanh$") as error:
        method(Weighted(activation), pixels(*INPUT), 0)
    assert "\n" not in str(error.value)


# --- Gradients --------------------------------------------------------------------------------


@real
def test_gradient_and_input_x_gradient(model: nn.Module, photos: Tensor) -> None:
    from captum.attr import InputXGradient, Saliency

    slope = Saliency(model).attribute(photos.clone(), TARGETS, abs=False)
    assert off(gradients.gradient(model, photos), slope) < 1e-5
    product = InputXGradient(model).attribute(photos.clone(), TARGETS)
    assert off(gradients.input_x_gradient(model, photos), product) < 1e-5


@real
def test_smoothgrad(model: nn.Module, photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its authors' package, given the noise that ours drew, whose σ is as large as theirs."""
    from saliency.core import GradientSaliency

    seen = []

    def watched(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        seen.append(images)
        return gradients.gradient(model, images, target)

    ours = gradients.smoothgrad(model, photos, method=watched, samples=4, batch_size=1)
    noisy = torch.cat(seen).unflatten(0, (4, 3)).transpose(0, 1)  # (photo, sample, C, H, W)
    noise = noisy.double() - photos.double()[:, None]
    extent = photos.amax((1, 2, 3)) - photos.amin((1, 2, 3))
    torch.testing.assert_close(noise.std((1, 2, 3, 4)).float(), 0.15 * extent, rtol=0.01, atol=0)

    def call(batch: np.ndarray, call_model_args: int, expected_keys: list[str]) -> dict:
        slope = gradients.gradient(model, torch.from_numpy(batch).float(), call_model_args)
        return {expected_keys[0]: slope.numpy()}

    theirs = []
    for image, c, draws in zip(photos.double().numpy(), TARGETS.tolist(), noise, strict=True):
        given = iter(draws.numpy())
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "normal", lambda *_, given=given: next(given))
            smooth = GradientSaliency().GetSmoothedMask(image, call, c, nsamples=4, magnitude=False)
        theirs.append(torch.from_numpy(smooth))
    assert off(ours, torch.stack(theirs)) < 1e-5


@real
def test_integrated_gradients(double: nn.Module, photos: Tensor) -> None:
    """From black. In float32 they differ by 3·10⁻⁴ on one photograph, and so does ours from itself
    with another batch size: what rounding moves across a kink has another gradient.
    """
    from captum.attr import IntegratedGradients

    images = halved(photos)
    ours = gradients.integrated_gradients(double, images, TARGETS, baseline=-1.0, steps=4)
    theirs = IntegratedGradients(double).attribute(
        images, torch.full_like(images, -1), TARGETS, n_steps=4, method="riemann_middle"
    )
    assert off(ours, theirs) < 1e-10


@real
def test_more_steps_make_integrated_gradients_complete(model: nn.Module, photos: Tensor) -> None:
    """Of small pictures, whose logits rise by 20 to 35. At 32 steps seven of them are missing."""
    small = F.interpolate(photos, (64, 64), mode="area")
    total = scores(model, small) - scores(model, torch.full_like(small, -1))
    gaps = [
        gradients.integrated_gradients(model, small, TARGETS, baseline=-1.0, steps=steps).sum(
            (1, 2, 3)
        )
        - total
        for steps in (32, 256)
    ]
    assert bool((gaps[1].abs() < gaps[0].abs() / 2).all())
    assert off(total + gaps[1], total) < 0.1


def rectified_by_hooks(model: nn.Module, images: Tensor, guided: bool) -> Tensor:
    """A slow twin: on the way back each ReLU6 hands on what is positive.

    A DeconvNet hands on R_out where R_out > 0, Guided Backprop only where 0 < x < 6, too.
    """
    plain = exchanged(model, nn.ReLU6)  # hooks need it not in place

    def rule(module: nn.Module, given: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> Any:
        (passed,), (arrived,) = given, out  # R_out · 1[0 < x < 6], and R_out
        return (torch.where(arrived > 0, passed if guided else arrived, 0),)

    for module in plain.modules():
        if isinstance(module, nn.ReLU6):
            module.register_full_backward_hook(rule)
    x = images.clone().requires_grad_()
    return torch.autograd.grad(plain(x)[torch.arange(len(x)), TARGETS].sum(), x)[0]


@real
def test_guided_backprop_and_deconvnet(model: nn.Module, photos: Tensor) -> None:
    """Captum asks of each module whether it is a ReLU. A ReLU6 is none: out comes the gradient.

    Nothing is said, and the map has Guided Backprop's name. The truth is the papers' rule at each
    rectifier: a twin by hooks has it, and Captum, too, once told that a ReLU6 is a ReLU.
    """
    from captum.attr import Deconvolution, GuidedBackprop

    slope, capped = gradients.gradient(model, photos), exchanged(model, Capped)
    for method, library in (
        (gradients.guided_backprop, GuidedBackprop),
        (gradients.deconvnet, Deconvolution),
    ):
        ours = method(model, photos)
        guided = method is gradients.guided_backprop
        assert off(ours, rectified_by_hooks(model, photos, guided)) < 1e-5
        assert off(ours, library(capped).attribute(photos.clone(), TARGETS)) < 1e-5
        silent = library(model).attribute(photos.clone(), TARGETS)
        assert off(silent, slope) < 1e-5
        assert off(silent, ours) > 0.5


@real
def test_guided_backprop_of_pytorch_grad_cam(model: nn.Module, photos: Tensor) -> None:
    """It replaces the modules that are ReLUs, here none, and gives the gradient as well.

    Its own module is a ReLU without a cap, so it is compared on a network of ReLUs: another
    function, the same for both.
    """
    from pytorch_grad_cam import GuidedBackpropReLUModel

    uncapped = exchanged(model, nn.ReLU)
    for network, method in ((model, gradients.gradient), (uncapped, gradients.guided_backprop)):
        explain = GuidedBackpropReLUModel(network)
        for photo, c in zip(photos.split(1), TARGETS.tolist(), strict=True):  # one is all it takes
            theirs = torch.from_numpy(explain(photo.clone(), c)).permute(2, 0, 1)[None]
            assert off(method(network, photo, c), theirs) < 1e-5


# --- Class activation maps --------------------------------------------------------------------


@real
def test_cam(model: Any, photos: Tensor) -> None:
    """By hand: the class's weights times the last maps; their mean and the bias are the logit."""
    with torch.no_grad():
        maps = model.forward_features(photos)
    weight, bias = model.classifier.weight[TARGETS], model.classifier.bias[TARGETS]
    ours = cam.cam(model, photos, upsample=False)
    assert off(ours, (weight[:, :, None, None] * maps).sum(1)) < 1e-5
    assert off(ours.mean((1, 2)) + bias, scores(model, photos)) < 1e-5
    by_gradient = cam.grad_cam(model, photos, relu=False, upsample=False)
    assert off(49 * by_gradient, ours) < 1e-5


@real
@pytest.mark.parametrize("layer", ["bn2", "blocks.3"])
def test_grad_cam(layer: str, model: nn.Module, photos: Tensor) -> None:
    """Captum at the maps' own size; pytorch-grad-cam enlarged, and scaled to 0 … 1 as it does."""
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module = layers.find(model, layer)
    captum = LayerGradCam(model, module).attribute(
        photos.clone().requires_grad_(), TARGETS, relu_attributions=True
    )
    assert off(cam.grad_cam(model, photos, layer=layer, upsample=False), captum[:, 0]) < 1e-5
    with GradCAM(model, [module]) as explain:
        aims = [ClassifierOutputTarget(c) for c in TARGETS.tolist()]
        theirs = torch.from_numpy(explain(photos.clone().requires_grad_(), aims))
    ours = cam.grad_cam(model, photos, layer=layer)
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    assert off((ours - low) / (high - low), theirs) < 1e-5


@real
@pytest.mark.parametrize("layer", ["bn2", "blocks.3"])
def test_guided_grad_cam(layer: str, model: nn.Module, photos: Tensor) -> None:
    """Captum, told that a ReLU6 is a ReLU and that the map is to be enlarged as in the paper."""
    from captum.attr import GuidedGradCam

    capped = exchanged(model, Capped)
    theirs = GuidedGradCam(capped, layers.find(capped, layer)).attribute(
        photos.clone().requires_grad_(), TARGETS, interpolate_mode="bilinear"
    )
    assert off(cam.guided_grad_cam(model, photos, layer=layer), theirs) < 1e-5


# --- Propagation ------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("baseline", [0.0, -1.0])
def test_deeplift_is_complete(baseline: float, model: nn.Module, photos: Tensor) -> None:
    total = scores(model, photos) - scores(model, torch.full_like(photos, baseline))
    ours = propagation.deeplift(model, photos, baseline=baseline)
    assert off(ours.sum((1, 2, 3)), total) < 1e-4


@real
def test_deeplift(double: nn.Module, photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captum looks a module's rule up by its type, has none for ReLU6, and takes the gradient.

    Nothing is said: out comes (x − x') times the gradient at x. Completeness tells that it is wrong
    by as much as there is to explain. With one line more in Captum's table its map is ours.
    """
    from captum.attr import DeepLift
    from captum.attr._core import deep_lift

    images = halved(photos)
    start = torch.full_like(images, -1)
    total = scores(double, images) - scores(double, start)
    ours = propagation.deeplift(double, images, TARGETS, baseline=-1.0)
    assert off(ours.sum((1, 2, 3)), total) < 1e-10
    plain = exchanged(double, nn.ReLU6)  # hooks need it not in place
    silent = DeepLift(plain).attribute(images.clone(), start, TARGETS)
    assert off(silent, (images - start) * gradients.gradient(double, images, TARGETS)) < 1e-10
    assert off(silent.sum((1, 2, 3)), total) > 0.5
    monkeypatch.setitem(deep_lift.SUPPORTED_NON_LINEAR, nn.ReLU6, deep_lift.nonlinear)
    told = DeepLift(plain).attribute(images.clone(), start, TARGETS)
    assert off(ours, told) < 1e-10


def norms_of(model: nn.Module) -> list[tuple[str, str]]:
    """Each BatchNorm's convolution, and its own name."""
    result, convolution = [], ""
    for name, module in model.named_modules():  # here they run in the order of their definition
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):
            result.append((convolution, name))
    return result


def without_epsilon(model: nn.Module) -> nn.Module:
    """The same network with the ε of each BatchNorm put into its variance."""
    model = copy.deepcopy(model)
    for _, name in norms_of(model):
        norm: Any = layers.find(model, name)
        norm.running_var, norm.eps = norm.running_var + norm.eps, 0.0
    return model


def zennit_lrp(
    model: nn.Module, images: Tensor, epsilon: float, composite: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    """Each class's logit and LRP by Zennit, on a copy of the network.

    Zennit merges a BatchNorm that is a leaf; timm's holds its activation, and is told by name. A
    residual sum must be a module: each block gets one, as in Zennit's own canonizer for ResNets.
    """
    from zennit.attribution import Gradient
    from zennit.canonizers import AttributeCanonizer, NamedMergeBatchNorm
    from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat, LayerMapComposite
    from zennit.layer import Sum
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.types import Activation, AvgPool, Linear

    def forward(self: Any, x: Tensor) -> Tensor:
        self.has_skip = False
        branch = type(self).forward(self, x)
        self.has_skip = True
        return self.sum(torch.stack([branch, x], -1))

    def with_sum(name: str, module: nn.Module) -> dict[str, Any] | None:
        if not getattr(module, "has_skip", False):
            return None
        return {"forward": forward.__get__(module), "sum": Sum()}

    model = copy.deepcopy(model)
    merge = NamedMergeBatchNorm([([convolution], norm) for convolution, norm in norms_of(model)])
    options: dict = {"canonizers": [merge, AttributeCanonizer(with_sum)]}
    rules: Any
    match composite:
        case "epsilon":
            table = [(Activation, Pass()), (Linear, Epsilon(epsilon))]
            rules = LayerMapComposite([*table, ((AvgPool, Sum), Norm(epsilon))], **options)
        case "epsilon-plus-flat":
            rules = EpsilonPlusFlat(epsilon, epsilon, **options)
        case "epsilon-gamma-box":
            low, high = (bound((2, 3), keepdim=True) for bound in (images.amin, images.amax))
            rules = EpsilonGammaBox(low, high, epsilon, stabilizer=epsilon, **options)
    start = F.one_hot(TARGETS, 1000) * scores(model, images)[:, None]
    with Gradient(model, rules) as attributor:
        logits, relevance = attributor(images.clone(), start)
    return logits.detach()[torch.arange(len(images)), TARGETS], relevance.detach()


@real
def test_lrp(double: nn.Module, photos: Tensor) -> None:
    """Zennit merges a BatchNorm into its convolution and leaves it its ε: it divides by √(1 + ε).

    PyTorch's ε of 10⁻⁵ hides that; timm's is 0.001, and the network that Zennit explains has other
    logits. With ε put into the variance, which changes no network, Zennit and ours agree.
    """
    images = halved(photos)
    harmless = without_epsilon(double)
    truth = scores(double, images)
    ours = propagation.lrp(double, images, TARGETS, epsilon=1e-6)
    logits, theirs = zennit_lrp(harmless, images, 1e-6)
    assert off(logits, truth) < 1e-10
    assert off(ours, theirs) < 1e-9
    logits, theirs = zennit_lrp(double, images, 1e-6)
    assert off(logits, truth) > 1e-3
    assert off(ours, theirs) > 0.05


@real
@pytest.mark.parametrize("composite", ["epsilon-plus-flat", "epsilon-gamma-box"])
def test_lrp_epsilon_plus_flat_and_lrp_epsilon_gamma_box(
    double: nn.Module, photos: Tensor, composite: str
) -> None:
    """ReLU6, padding before a convolution, bottlenecks whose sums have both signs."""
    images = halved(photos)
    harmless = without_epsilon(double)
    ours = propagation.lrp(double, images, TARGETS, composite=composite)
    logits, theirs = zennit_lrp(harmless, images, 1e-6, composite)
    assert off(logits, scores(double, images)) < 1e-10
    assert off(ours, theirs) < 1e-5, off(ours, theirs)


class Through(nn.Module):
    """A layer whose output is its own, and whose gradient is that of another weight."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.other = {"weight": weight, "bias": weight.new_zeros(len(weight))}

    def forward(self, x: Tensor) -> Tensor:
        other = torch.func.functional_call(self.layer, self.other, (x,))
        return self.layer(x).detach() + (other - other.detach())


class Summed(nn.Module):
    """A block's branch and its shortcut, added; the gradient of each is told, (channels, 2)."""

    def __init__(self, block: Any, shares: Tensor) -> None:
        super().__init__()
        block.has_skip = False
        self.branch, self.shares = block, shares[..., None, None]

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        other = self.shares[:, 0] * branch + self.shares[:, 1] * x
        return (branch + x).detach() + (other - other.detach())


def merged(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are in their convolutions, and whose ReLU6 are not in place."""
    result = copy.deepcopy(model)
    for path, name in norms_of(result):
        convolution: Any = layers.find(result, path)
        norm: Any = layers.find(result, name)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        convolution.weight = nn.Parameter(convolution.weight * factor[:, None, None, None])
        convolution.bias = nn.Parameter(norm.bias - norm.running_mean * factor)
        parent, _, child = name.rpartition(".")
        rectifies = isinstance(norm.act, nn.ReLU6)
        setattr(result.get_submodule(parent), child, nn.ReLU6() if rectifies else nn.Identity())
    return result.requires_grad_(False)


def with_patterns(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """What has a pattern, in the order in which it runs: a block's name stands for its sum."""
    for name, child in model.named_children():
        yield from with_patterns(child, f"{prefix}{name}.")
        if isinstance(child, nn.Conv2d | nn.Linear) or getattr(child, "has_skip", False):
            yield prefix + name


def by_patterns(
    model: nn.Module, images: Tensor, patterns: list[Tensor], combine: Callable
) -> Tensor:
    """A twin: the logit times its gradient, in a network that has other weights on the way back."""
    network = merged(model)
    for path, pattern in zip(list(with_patterns(network)), patterns, strict=True):
        layer: Any = layers.find(network, path)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer = Through(layer, combine(pattern, layer.weight))
        else:
            layer = Summed(layer, combine(pattern, torch.ones_like(pattern)))
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, layer)
    x = images.clone().requires_grad_()
    logits = network(x)[torch.arange(len(x)), TARGETS]
    return torch.autograd.grad(logits, x, logits.detach())[0]


@pytest.fixture(scope="module")
def patterns(double: nn.Module, photos: Tensor) -> list[Tensor]:
    return propagation.estimate_patterns(double, halved(photos))


@real
def test_pattern_net_and_pattern_attribution(
    double: nn.Module, photos: Tensor, patterns: list[Tensor]
) -> None:
    """None of the libraries has them; in the twin PyTorch's autograd goes back by itself."""
    combine: Callable
    for method, combine in (
        (propagation.pattern_net, lambda pattern, weight: pattern),
        (propagation.pattern_attribution, torch.mul),
    ):
        ours = method(double, halved(photos), TARGETS, patterns=patterns)
        assert off(ours, by_patterns(double, halved(photos), patterns, combine)) < 1e-10


def seen_by(layer: Any, x: Tensor, unit: int) -> Tensor:
    """What a unit sees at each of its places: (places, its weights)."""
    from timm.layers import Conv2dSame, pad_same

    if isinstance(layer, nn.Linear):
        return x
    inputs = layer.weight.shape[1]
    group = unit // (layer.out_channels // layer.groups)
    x, padding = x[:, group * inputs : (group + 1) * inputs], layer.padding
    if isinstance(layer, Conv2dSame):
        x, padding = pad_same(x, list(layer.kernel_size), list(layer.stride)), (0, 0)
    patches = F.unfold(x, layer.kernel_size, padding=padding, stride=layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


@real
def test_patterns_unit_by_unit(double: nn.Module, photos: Tensor, patterns: list[Tensor]) -> None:
    """The paper's equation, of all that some units of every layer have seen and answered."""
    network, given = merged(double), {}
    names = list(with_patterns(network))
    for name in names:

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            given[name] = inputs[0]

        layers.find(network, name).register_forward_pre_hook(keep)
    with layers.capture(network) as made, torch.no_grad():
        network(halved(photos))
    checked = 0
    for name, pattern in zip(names, patterns, strict=True):
        layer = layers.find(network, name)
        for unit in range(0, len(pattern), 97):
            y = made[name][:, unit].flatten()
            if isinstance(layer, nn.Conv2d | nn.Linear):
                x, weight = seen_by(layer, given[name], unit), layer.weight[unit].flatten()
            else:
                summands = (made[f"{name}.drop_path"], given[name])
                x = torch.stack([one[:, unit].flatten() for one in summands], 1)
                weight = x.new_ones(2)
            x, y = x[y > 0], y[y > 0]
            if len(y) < 2 or y.std() < 1e-9:  # nothing varies, and there is no signal
                assert not pattern[unit].any()
                continue
            covariance = (x * y[:, None]).mean(0) - x.mean(0) * y.mean()
            wanted = covariance / (weight @ covariance)
            assert off(pattern[[unit]], wanted[None]) < 1e-8
            checked += 1
    assert checked > 2 * len(names)


# --- Perturbation -----------------------------------------------------------------------------


@real
def test_occlusion(model: nn.Module, photos: Tensor) -> None:
    """Captum, with windows that overlap by half and end at the edge."""
    from captum.attr import Occlusion

    colour = torch.tensor([-1.0, 0, 0.5]).view(1, 3, 1, 1)
    theirs = Occlusion(model).attribute(
        photos, (3, 112, 112), (3, 56, 56), baselines=colour.expand_as(photos), target=TARGETS
    )
    ours = perturbation.occlusion(model, photos, TARGETS, window=112, stride=56, baseline=colour)
    assert off(ours, theirs[:, 0]) < 1e-5


@real
def test_prediction_difference(model: nn.Module, photos: Tensor, others: Tensor) -> None:
    """Of a single other photograph it is occlusion by that, which Captum has.

    Of two it is the mean of their drops, each as often as its window drew it.
    """
    from captum.attr import Occlusion

    drops = torch.cat(
        [
            Occlusion(model).attribute(
                photos, (3, 112, 112), (3, 112, 112), baselines=other.expand_as(photos),
                target=TARGETS,
            )
            for other in others
        ],
        1,
    )[:, [0, 3]]  # fmt: skip
    options: dict[str, Any] = {"window": 112, "stride": 112}
    alone = perturbation.prediction_difference(
        model, photos, TARGETS, background=others[:1], samples=1, **options
    )
    assert off(alone, drops[:, 0]) < 1e-5
    both = perturbation.prediction_difference(
        model, photos, TARGETS, background=others, samples=3, **options
    )
    drawn = torch.randint(2, (4, 3), generator=torch.Generator().manual_seed(0))  # seed 0 is None's
    second = F.interpolate(drawn.float().mean(1).view(1, 1, 2, 2), (224, 224))[:, 0]
    assert off(both, (1 - second) * drops[:, 0] + second * drops[:, 1]) < 1e-5


# --- Regions and surrogates -------------------------------------------------------------------


@real
def test_xrai(model: nn.Module, photos: Tensor) -> None:
    """Its authors' package, given the same attribution and the same segments."""
    from saliency.core.xrai import XRAI

    attribution = gradients.input_x_gradient(model, photos)
    ours = regions.xrai(model, photos, attribution=attribution)
    theirs = []
    for photo, values in zip(photos, attribution, strict=True):
        picture, base = (one.permute(1, 2, 0).double().numpy() for one in (photo, values))
        segments = list(regions.segment_stack(photo))
        grown = XRAI().GetMask(picture, None, base_attribution=base, segments=segments)
        theirs.append(torch.from_numpy(grown))
    assert off(ours, torch.stack(theirs)) < 1e-5


@real
def test_segments_of_xrai(photos: Tensor) -> None:
    from saliency.core.xrai import _get_segments_felzenszwalb

    picture = photos[2].permute(1, 2, 0).double().numpy()
    assert np.array_equal(regions.segment_stack(photos[2]), _get_segments_felzenszwalb(picture))


@real
def test_lime_image(model: nn.Module, photos: Tensor) -> None:
    """Captum's LIME and its authors' regression, given ours' samples and their own penalty of 1.

    Captum hides the segments and asks the network itself.
    """
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime
    from lime.lime_base import LimeBase

    for photo, c in zip(photos.split(1), TARGETS.tolist(), strict=True):
        labels = torch.from_numpy(regions.segment(photo[0], n_segments=12))
        z, logits = lime.sample_image(model, photo, labels, samples=16)
        distance, rows = lime.cosine_distance(z), z.double().numpy()
        weights = lime.proximity(distance)
        spread = float(weights @ (rows - np.average(rows, 0, weights)) ** 2 @ np.ones(z.shape[1]))
        found: Any = lime.lime_image_fit(
            model, photo, c, segments=labels, samples=16, ridge=z.shape[1] / spread
        )
        ours = found.value

        def draws(image: Tensor, z: Tensor = z, **options: Any) -> Iterator[Tensor]:
            yield from z.long().split(1)

        def near(image: Tensor, changed: Tensor, row: Tensor, **options: Any) -> Tensor:
            return torch.from_numpy(lime.proximity(lime.cosine_distance(row)))

        captum = Lime(model, SkLearnRidge(alpha=1.0), near, draws).attribute(
            photo, target=c, feature_mask=labels[None, None], n_samples=16,
            baselines=photo.mean((2, 3), keepdim=True), perturbations_per_eval=8,
        )  # fmt: skip
        assert off(ours, captum[:, 0]) < 1e-5
        base = LimeBase(lambda d: np.exp(-((d / lime.WIDTH) ** 2)))
        _, pairs, r2, _ = base.explain_instance_with_data(
            rows, logits.numpy(), distance, c, z.shape[1], feature_selection="none"
        )
        coefficients = torch.tensor([dict(pairs)[number] for number in range(z.shape[1])])
        assert off(ours, coefficients[labels][None]) < 1e-5
        assert float(found.r2) == pytest.approx(r2, abs=1e-5)


@real
def test_shap_image(model: nn.Module, photos: Tensor) -> None:
    """Four quarters and the middle: the mean over all 120 orders, and shap's two ways to it."""
    import shap

    images = F.avg_pool2d(photos, 2)
    labels = torch.arange(4).view(2, 2).repeat_interleave(56, 0).repeat_interleave(56, 1)
    labels[28:84, 28:84] = 4
    ours = shapley.shap_image(model, images, TARGETS, segments=labels)
    coalitions = list(itertools.product([False, True], repeat=5))
    seen = torch.tensor(coalitions)[:, labels][:, None]
    for i, (photo, c) in enumerate(zip(images.split(1), TARGETS.tolist(), strict=True)):
        with torch.no_grad():
            answers = model(torch.where(seen, photo, photo.mean((2, 3), keepdim=True)))[:, c]
        table = dict(zip(coalitions, answers.tolist(), strict=True))
        phi = torch.zeros(5, dtype=torch.float64)
        for order in itertools.permutations(range(5)):
            inside = [False] * 5
            for player in order:
                before = table[tuple(inside)]
                inside[player] = True
                phi[player] += (table[tuple(inside)] - before) / math.factorial(5)
        assert off(ours[[i]], phi[labels][None]) < 1e-5

        def value(rows: np.ndarray, table: dict = table) -> np.ndarray:
            return np.array([table[tuple((row > 0.5).tolist())] for row in rows])

        zeros, ones = np.zeros((1, 5)), np.ones((1, 5))
        exact = shap.ExactExplainer(value, shap.maskers.Independent(zeros))(ones, silent=True)
        kernel = shap.KernelExplainer(value, zeros).shap_values(
            ones, nsamples=32, l1_reg=False, silent=True
        )
        for theirs in (exact.values[0], kernel[0]):
            assert off(ours[[i]], torch.from_numpy(theirs)[labels][None]) < 1e-5


class Three(nn.Module):
    """Of a network's logits those of the three photographs' classes, for shap to choose from."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, TARGETS]


@real
def test_deep_shap(
    double: nn.Module, photos: Tensor, others: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its authors' DeepExplainer stops at a ReLU6 in place, with PyTorch's words for it.

    Not in place, it is "unrecognized", says a warning, and gets its gradient: the map is off by as
    much as it is large. With ReLU6 in its table it agrees, and so does Captum's DeepLiftShap.
    """
    import shap
    from captum.attr import DeepLiftShap
    from captum.attr._core import deep_lift
    from shap.explainers._deep import deep_pytorch

    images, baselines = halved(photos), halved(others)
    ours = shapley.deep_shap(double, images, TARGETS, background=baselines)
    with torch.no_grad():
        total = scores(double, images) - double(baselines)[:, TARGETS].mean(0)
    assert off(ours.sum((1, 2, 3)), total) < 1e-10

    plain = exchanged(double, nn.ReLU6)
    with monkeypatch.context() as patch:
        patch.setitem(deep_lift.SUPPORTED_NON_LINEAR, nn.ReLU6, deep_lift.nonlinear)
        captum = DeepLiftShap(plain).attribute(images.clone(), baselines, TARGETS)
    assert off(ours, captum) < 1e-10

    def theirs(network: nn.Module) -> tuple[Tensor, set[str]]:
        explain = shap.DeepExplainer(Three(network), baselines)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            maps, chosen = explain.shap_values(
                images.clone(), ranked_outputs=1, check_additivity=False
            )
        assert chosen.flatten().tolist() == [0, 1, 2]  # each photograph's own class
        return torch.from_numpy(maps)[..., 0], {str(warning.message) for warning in said}

    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        theirs(double)
    wrong, said = theirs(plain)
    assert "unrecognized nn.Module: ReLU6" in said
    assert off(wrong.sum((1, 2, 3)), total) > 0.5
    monkeypatch.setitem(deep_pytorch.op_handler, "ReLU6", deep_pytorch.nonlinear_1d)
    told, said = theirs(plain)
    assert said == {"unrecognized nn.Module: Conv2dSame"}  # a convolution, where nothing is wrong
    assert off(ours, told) < 1e-10
