"""Homework 01: right answers in other manners, and wrong ones that nobody foresaw."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from course_utils import images, layers, methods
from course_utils.homework import check, guard, hw01
from course_utils.methods import cam, gradients
from course_utils.networks import SmallResNet
from tests import keys

pytestmark = pytest.mark.slow

Answer = Callable[..., Any]


def hint(exercise: str, answer: Answer) -> str:
    """The hint that a wrong answer gets."""
    return keys.refused(f"hw01.{exercise}", answer).hint


def hint_of(name: str, mistakes: Any) -> str:
    """The hint of a mistake."""
    said: str = mistakes[name][1]
    return said


# The method matrix ----------------------------------------------------------------------------

INSIDE = "input_x_gradient", "cam", "grad_cam", "integrated_gradients", "xrai", "deep_shap"
PLACED = {
    **dict.fromkeys(INSIDE, ("specific", "local")),
    **dict.fromkeys(("occlusion", "lime_image", "shap_image"), ("agnostic", "local")),
    "activation_maximization": ("specific", "global"),
    "top_pictures_of_unit": ("specific", "global"),
    "top_pictures_of_class": ("agnostic", "global"),
}


def placed_by_needs() -> dict[str, Any]:
    found = {
        name: ["specific" if {"gradients", "layers"} & method.needs else "agnostic", "local"]
        for name, method in methods.METHODS.items()
        if name in PLACED
    }
    return {**PLACED, **found}


@pytest.mark.parametrize("answer", [lambda: PLACED, placed_by_needs])
def test_matrix(answer: Answer) -> None:
    check("hw01.matrix", answer)


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("grad_cam", ("agnostic", "local"), "runs on every CNN"),
        ("occlusion", ("specific", "local"), "changes the picture"),
        ("activation_maximization", ("specific", "local"), "a picture comes out"),
        ("lime_image", ("agnostic", "global"), "where are its samples"),
        ("deep_shap", ("agnostic", "local"), "two methods have SHAP"),
        ("shap_image", ("specific", "local"), "plays a game"),
        ("top_pictures_of_class", ("specific", "global"), "look into the network"),
        ("grad_cam", ("specific", "global"), hw01.ANY_SCOPE),
        ("xrai", ("specific", "Local"), "two words are wanted"),
        ("xrai", "specific", "two words are wanted"),
        ("xrai", None, "two words are wanted"),
        ("xrai", ("local", "specific"), hw01.SWAPPED),
    ],
)
def test_matrix_wrong(name: str, place: Any, said: str) -> None:
    assert said in hint("matrix", lambda: PLACED | {name: place})


def test_a_hint_to_the_matrix_does_not_hold_the_answer() -> None:
    for said in (*hw01.WHICH_MODEL.values(), *hw01.WHICH_SCOPE.values(), hw01.ANY_SCOPE):
        assert not {"specific", "agnostic", "local", "global"} & set(said.lower().split())


def test_matrix_of_another_kind() -> None:
    assert "cam" in hint("matrix", lambda: {k: v for k, v in PLACED.items() if k != "cam"})
    assert "rise" in hint("matrix", lambda: PLACED | {"rise": ("agnostic", "local")})
    assert "for each method" in hint("matrix", lambda: list(PLACED))
    looked_up = {name: methods.METHODS.get(name) for name in PLACED}
    cheat = lambda: {k: m.specific and PLACED[k] if m else PLACED[k] for k, m in looked_up.items()}  # noqa: E731
    assert "write this function yourself" in hint("matrix", cheat)


# A photo becomes the network's input ----------------------------------------------------------


def by_torchvision(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
    steps = [v2.ToImage(), v2.Resize(size), v2.CenterCrop(size), v2.ToDtype(torch.float32, True)]
    return v2.Compose([*steps, v2.Normalize(mean, std)])(picture)[None]


def by_pillow(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
    """The cut first, then the size."""
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    cut = Image.fromarray(picture).crop((left, top, left + side, top + side))
    pixels = np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC)) / 255
    x = ((pixels - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    return torch.from_numpy(x).float().unsqueeze(0)


def by_picking_pixels(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
    """Nearest neighbours, channel by channel."""
    height, width = picture.shape[:2]
    step = min(height, width) / size
    middle = (np.arange(size) - (size - 1) / 2) * step
    rows = np.rint(middle + (height - 1) / 2).astype(int).clip(0, height - 1)
    columns = np.rint(middle + (width - 1) / 2).astype(int).clip(0, width - 1)
    x = torch.empty(1, 3, size, size)
    for c in range(3):
        channel = torch.tensor(picture[rows][:, columns, c].astype(np.float32))
        x[0, c] = (channel / 255 - mean[c]) / std[c]
    return x


def cut_from_the_middle(
    whole: Callable[[float], int],
    squares: bool,
    picture: np.ndarray,
    size: int,
    mean: Any,
    std: Any,
) -> Tensor:
    """The size computed by hand; where a side is missing, v2.CenterCrop fills it up with black."""
    height, width = picture.shape[:2]
    factor = size / min(height, width)
    sides = [whole(height * factor), whole(width * factor)]
    resized = [v2.Resize(sides)] if squares or height != width else []
    steps = [v2.ToImage(), *resized, v2.ToDtype(torch.float32, True), v2.CenterCrop(size)]
    return v2.Compose([*steps, v2.Normalize(mean, std)])(picture)[None]


def own_maximum(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
    brightest = (picture / picture.max() * 255).astype(np.uint8)
    return by_picking_pixels(brightest, size, mean, std)


def shade_too_dark(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
    """Bytes divided by 256."""
    m, s = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return ((by_pillow(picture, size, mean, std) * s + m) * 255 / 256 - m) / s


@pytest.mark.parametrize("answer", [by_torchvision, by_pillow, by_picking_pixels])
def test_prepare(answer: Answer) -> None:
    check("hw01.prepare", answer)


def steps(*chosen: Any) -> Answer:
    """A chain of torchvision's steps."""

    def prepare(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
        made = [step(size, mean, std) for step in chosen]
        return v2.Compose([v2.ToImage(), *made])(picture)[None]

    return prepare


SIZED = lambda size, mean, std: v2.Resize(size)  # noqa: E731
CUT = lambda size, mean, std: v2.CenterCrop(size)  # noqa: E731
SCALED = lambda size, mean, std: v2.ToDtype(torch.float32, True)  # noqa: E731
FLOAT = lambda size, mean, std: v2.ToDtype(torch.float32)  # noqa: E731
NORMAL = lambda size, mean, std: v2.Normalize(mean, std)  # noqa: E731


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (steps(lambda s, m, d: v2.Resize((s, s)), SCALED, NORMAL), "stretched"),
        (steps(CUT, SCALED, NORMAL), "only cut"),
        (steps(SIZED, CUT, FLOAT, NORMAL), "bytes"),
        (steps(SIZED, CUT, SCALED), "not normalised"),
        (lambda picture, **k: by_pillow(picture[..., ::-1].copy(), **k), "blue first"),
        (lambda **k: by_pillow(**k).mT, "turned"),
        (lambda **k: by_pillow(**k)[0], "no batch"),
        (lambda **k: own_maximum(**k), "own maximum"),
        (lambda **k: shade_too_dark(**k), "256"),
        (lambda **k: by_pillow(**k).double(), "double"),
        (lambda picture, size, **_: by_pillow(picture, size, (0.5,) * 3, (0.25,) * 3), "fixed"),
        (lambda **k: cut_from_the_middle(round, squares=False, **k), "square"),
        (lambda **k: cut_from_the_middle(int, squares=True, **k), "cut down"),
    ],
)
def test_prepare_wrong(answer: Answer, name: str) -> None:
    assert hint("prepare", answer) == hint_of(name, hw01.PREPARE)


def test_prepare_other_wrong_answers() -> None:
    first = by_pillow(**hw01._pictures()[0])
    assert "the steps are" in hint("prepare", lambda **_: first)
    halves = steps(lambda s, m, d: v2.Resize(s // 2), lambda s, m, d: v2.Pad(s // 4), CUT, SCALED)
    assert "the steps are" in hint("prepare", halves)
    assert "torch.from_numpy" in hint("prepare", lambda **k: by_pillow(**k).numpy())
    without_black = steps(lambda s, m, d: v2.Resize(s - 1), SCALED, NORMAL)
    assert "int() makes 63" in hint("prepare", without_black)

    def library(picture: np.ndarray, size: int, mean: Any, std: Any) -> Tensor:
        return v2.Normalize(mean, std)(images.to_tensor(picture, size))

    assert "write this function yourself" in hint("prepare", library)

    def in_place(picture: np.ndarray, **rest: Any) -> Tensor:
        x = by_pillow(picture, **rest)
        picture[:] = 0
        return x

    assert hint("prepare", in_place) == guard.IN_PLACE


# Gradient × Input -----------------------------------------------------------------------------


def one_by_one(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    maps = []
    for image, c in zip(images, target, strict=True):
        x = image[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x)[0, c], x)
        maps.append(x.detach() * slope)
    return torch.cat(maps)


def one_by_one_in_a_batch(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Each image's slope by a backward pass of its own, after one forward pass for all."""
    x = images.clone().requires_grad_()
    scores = model(x)[range(len(x)), target]
    slopes = [torch.autograd.grad(one, x, retain_graph=True)[0] for one in scores]
    return images * sum(slopes)


def with_backward(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """On a copy, whose gradients are nobody's business."""
    model, x = copy.deepcopy(model), images.clone().requires_grad_()
    model(x)[range(len(x)), target].sum().backward()
    assert x.grad is not None
    return x.grad * x.detach()


def with_one_hot(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    x = images.detach().requires_grad_()
    logits = model(x)
    slope = torch.autograd.grad(logits, x, F.one_hot(target, logits.shape[1]).to(logits))[0]
    return torch.einsum("nchw,nchw->nchw", slope, x.detach())


def with_func(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    def score(x: Tensor) -> Tensor:
        return (model(x) * F.one_hot(target, model(x).shape[1])).sum()

    return (torch.func.grad(score)(images) * images).detach()


def with_factors(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The slope at 1 along each input value: d/ds f(s · x), which is the product itself."""
    s = torch.ones_like(images, requires_grad=True)
    return torch.autograd.grad(model(s * images).gather(1, target[:, None]).sum(), s)[0]


def in_double(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    return with_one_hot(copy.deepcopy(model).double(), images.double(), target)


@pytest.mark.parametrize(
    "answer",
    [
        one_by_one,
        one_by_one_in_a_batch,
        with_backward,
        with_one_hot,
        with_func,
        with_factors,
        in_double,
    ],
)
def test_input_x_gradient(answer: Answer) -> None:
    check("hw01.input_x_gradient", answer)


def score(of: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """Gradient × Input of another score."""

    def answer(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        return torch.autograd.grad(of(model(x), target), x)[0] * images

    return answer


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (score(lambda f, t: f.softmax(1).gather(1, t[:, None]).sum()), "probability"),
        (score(lambda f, t: f.max(1).values.sum()), "answer"),
        (score(lambda f, t: f[:, t].sum()), "all targets"),
        (score(lambda f, t: f.gather(1, t[:, None]).mean()), "mean"),
        (score(lambda f, t: f.sum()), "all classes"),
        (score(lambda f, t: f[:, t[0]].sum()), "first"),
        (score(lambda f, t: F.cross_entropy(f, t)), "loss"),
        (lambda model, **k: one_by_one_in_a_batch(copy.deepcopy(model).train(), **k), "training"),
        (lambda **k: one_by_one(**k).abs(), "magnitude"),
        (lambda **k: one_by_one(**k).sum(1), "channels"),
        (lambda **k: one_by_one(**k) / k["images"], "gradient"),
    ],
)
def test_input_x_gradient_wrong(answer: Answer, name: str) -> None:
    assert hint("input_x_gradient", answer) == hint_of(name, hw01.INPUT_X_GRADIENT)


def test_input_x_gradient_other_wrong_answers() -> None:
    unforeseen = "check each part alone"
    of_log = score(lambda f, t: f.log_softmax(1).gather(1, t[:, None]).sum())
    first = score(lambda f, t: f[0, t[0]])
    minus = lambda **k: -one_by_one(**k)  # noqa: E731
    shapes = lambda **k: torch.zeros_like(k["images"])  # noqa: E731
    for answer in (of_log, first, minus, shapes):
        assert unforeseen in hint("input_x_gradient", answer)
    assert "yourself" in hint("input_x_gradient", gradients.input_x_gradient)
    assert "yourself" in hint("input_x_gradient", methods.METHODS["input_x_gradient"])

    def only_the_first_network(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        right = isinstance(model, SmallResNet)
        return one_by_one(model, images, target) if right else images

    assert unforeseen in hint("input_x_gradient", only_the_first_network)

    def on_the_images(model: nn.Module, images: Tensor, target: Tensor) -> Any:
        images.requires_grad_()
        copy.deepcopy(model)(images).gather(1, target[:, None]).sum().backward()
        return images.grad * images  # type: ignore[operator]

    assert hint("input_x_gradient", on_the_images) == guard.NEEDS_GRADIENT

    def on_the_graph(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        x = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)
        return x * slope

    assert hint("input_x_gradient", on_the_graph) == guard.ON_THE_GRAPH

    def switched_off(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return one_by_one(model, images, target)

    wrong = keys.refused("hw01.input_x_gradient", switched_off)
    assert wrong.what == "model.stem.1.inplace has changed"
    assert wrong.hint == guard.ATTRIBUTE_LEFT


# One number a pixel ---------------------------------------------------------------------------


def by_numpy(attribution: Tensor, quantile: float = 0.99) -> Tensor:
    maps = []
    for a in attribution.detach().numpy():
        m = a.astype(np.float64).sum(axis=0)
        limit = np.quantile(np.abs(m), quantile)
        maps.append(np.clip(m / limit, -1, 1) if limit > 0 else np.zeros_like(m))
    return torch.tensor(np.stack(maps))


def by_sorting(attribution: Tensor, quantile: float = 0.99) -> Tensor:
    m = torch.einsum("nchw->nhw", attribution.detach())
    ranks = m.flatten(1).abs().sort(dim=1).values
    limit = ranks[:, int(quantile * (ranks.shape[1] - 1))].clamp(min=1e-12).view(-1, 1, 1)
    return torch.maximum(torch.minimum(m, limit), -limit) / limit


@pytest.mark.parametrize("answer", [by_numpy, by_sorting])
def test_to_map(answer: Answer) -> None:
    check("hw01.to_map", answer)


def with_limit(
    change: Callable[[Tensor], Tensor], attribution: Tensor, quantile: float = 0.99
) -> Tensor:
    m = attribution.detach().sum(1)
    top = change(m.abs().flatten(1).quantile(quantile, dim=1))
    return (m / top[:, None, None]).clamp(-1, 1)


def scaled(a: Tensor) -> Tensor:
    return (a - a.min()) / (a.max() - a.min())


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda attribution, quantile: by_numpy(attribution.abs(), quantile), "abs first"),
        (lambda attribution, quantile: by_numpy(attribution, 1.0), "largest"),
        (lambda attribution, quantile: by_numpy(attribution), "fixed"),
        (
            lambda attribution, quantile: torch.stack([scaled(a.sum(0)) for a in attribution]),
            "min and max",
        ),
        (
            lambda attribution, quantile: by_numpy(
                torch.stack([scaled(a) for a in attribution]), quantile
            ),
            "scale first",
        ),
        (
            lambda attribution, quantile: by_numpy(attribution.abs().amax(1, True), quantile),
            "maximum",
        ),
        (lambda **k: by_numpy(**k)[:, None], "channel left"),
        (lambda **k: by_numpy(**k).squeeze(), "squeezed"),
        (lambda **k: with_limit(lambda top: top + 1e-3, **k), "epsilon"),
        (lambda **k: with_limit(lambda top: top.clamp(min=0.01), **k), "epsilon"),
        (lambda **k: by_numpy(**k) * bool(by_numpy(**k).flatten(1).any(1).all()), "zero for all"),
        (
            lambda attribution, quantile=0.99: (
                by_numpy(attribution, quantile) + 0 * attribution.sum(1)
            ),
            "on the graph",
        ),
    ],
)
def test_to_map_wrong(answer: Answer, name: str) -> None:
    assert hint("to_map", answer) == hint_of(name, hw01.TO_MAP)


def test_to_map_other_wrong_answers() -> None:
    unforeseen = "in this order"
    magnitude = lambda **k: by_numpy(**k).abs()  # noqa: E731
    mean = lambda **k: by_numpy(**k) / 3  # noqa: E731
    fold = lambda **k: (by_numpy(**k) + 1) / 2  # noqa: E731
    constant = lambda **k: torch.zeros_like(k["attribution"][:, 0])  # noqa: E731
    for answer in (magnitude, mean, fold, constant):
        assert unforeseen in hint("to_map", answer)
    zero = lambda **k: by_numpy(**k).nan_to_num() + 0.001  # noqa: E731
    assert "0 / 0" in hint("to_map", zero)

    def in_place(attribution: Tensor, quantile: float = 0.99) -> Tensor:
        result = by_numpy(attribution, quantile)
        attribution /= 2
        return result

    assert hint("to_map", in_place) == guard.IN_PLACE


# CAM ------------------------------------------------------------------------------------------


def with_a_hook(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *_: kept.append(_[2].clone()))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    weight = hw01.last_linear(model).weight.detach()
    rows = [(weight[c].view(-1, 1, 1) * m).sum(0) for c, m in zip(target, kept[0], strict=True)]
    return torch.stack(rows)


def with_a_convolution(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """The linear layer, slid over the places: the maps of all classes."""
    with layers.capture(model, layer) as kept, torch.no_grad():
        model(images)
    every = F.conv2d(kept[layer], hw01.last_linear(model).weight[:, :, None, None])
    return every[torch.arange(len(images)), target].detach()


def with_the_input_of_the_pooling(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    with layers.capture(model, layer) as kept:
        model(images)
    n, k, h, w = kept[layer].shape
    places = kept[layer].permute(0, 2, 3, 1).reshape(n, h * w, k)
    every = (places @ hw01.last_linear(model).weight.T).detach()
    return every[range(n), :, target].view(n, h, w)


def by_gradients(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """In such a network the gradient is the weight, divided by the number of places."""
    with layers.capture(model, layer) as kept:
        scores = model(images.clone().requires_grad_()).gather(1, target[:, None])
    (slope,) = torch.autograd.grad(scores.sum(), kept[layer])
    return (kept[layer].detach() * slope).sum(1) * slope[0, 0].numel()


@pytest.mark.parametrize(
    "answer", [with_a_hook, with_a_convolution, with_the_input_of_the_pooling, by_gradients]
)
def test_class_activation_map(answer: Answer) -> None:
    check("hw01.class_activation_map", answer)


def changed(change: Callable[[Tensor], Tensor]) -> Answer:
    return lambda **case: change(with_a_convolution(**case))


def grad_cam(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return (
        by_gradients(model, images, target, layer).relu()
        / by_gradients(model, images, target, layer)[0].numel()
    )


def of_the_block(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    convolution = "layer4.1.conv2" if layer == "layer4" else "body.0"
    return with_a_convolution(model, images, target, convolution)


def with_the_answer(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return with_a_convolution(model, images, model(images).argmax(1), layer)


def with_the_first_linear_layer(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    with layers.capture(model, layer) as kept:
        model(images)
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    return torch.einsum("nk,nkhw->nhw", first.weight[target], kept[layer]).detach()


def leaves_a_hook(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
    kept = []
    model.get_submodule(layer).register_forward_hook(lambda *_: kept.append(_[2].clone()))
    model(images)
    weights = hw01.last_linear(model).weight[target]
    return torch.einsum("nk,nkhw->nhw", weights, kept[0]).detach()


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (changed(lambda m: m.relu()), "ReLU after"),
        (changed(lambda m: m / m[0].numel()), "mean"),
        (of_the_block, "last convolution"),
        (with_the_answer, "answer"),
        (leaves_a_hook, "hook"),
        (with_the_first_linear_layer, "first linear layer"),
        (lambda **k: with_a_hook(**k).squeeze(), "squeezed"),
        (lambda **k: with_a_hook(**k)[:, None], "channel left"),
        (
            lambda target, **k: with_a_hook(target=target[:1].expand_as(target), **k),
            "first",
        ),
    ],
)
def test_class_activation_map_wrong(answer: Answer, name: str) -> None:
    assert hint("class_activation_map", answer) == hint_of(name, hw01.CLASS_ACTIVATION_MAP)


def test_class_activation_map_other_wrong_answers() -> None:
    unforeseen = "print the shapes"
    larger = changed(lambda m: F.interpolate(m[:, None], scale_factor=2)[:, 0])
    for answer in (grad_cam, changed(lambda m: -m), changed(torch.zeros_like), larger):
        assert unforeseen in hint("class_activation_map", answer)
    assert "end with return" in hint("class_activation_map", lambda **_: None)

    def library(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
        return cam.cam(model, images, target, upsample=False)

    assert "yourself" in hint("class_activation_map", library)

    def only_the_first_network(model: Any, images: Tensor, target: Tensor, layer: str) -> Tensor:
        return with_a_convolution(model, images, target, "layer4")

    with pytest.raises(ValueError, match="no layer 'layer4'"):
        check("hw01.class_activation_map", only_the_first_network)


# The four maps --------------------------------------------------------------------------------


def from_the_library(
    model: Any,
    images: Tensor,
    target: Tensor,
    baseline: Any,
    layer: str,
    **options: Any,
) -> dict[str, Tensor]:
    """Another order; options: of Integrated Gradients."""
    integrated = gradients.integrated_gradients(model, images, target, baseline=baseline, **options)
    place = cam.grad_cam(model, images, target, layer=layer)
    return {
        "integrated_gradients": by_numpy(integrated),
        "grad_cam": by_numpy(place[:, None]),
        "cam": by_numpy(cam.cam(model, images, target)[:, None]),
        "input_x_gradient": by_numpy(gradients.input_x_gradient(model, images, target)),
    }


def written_out(
    model: Any, images: Tensor, target: Tensor, baseline: Any, layer: str
) -> dict[str, Tensor]:
    path = torch.zeros_like(images)
    for alpha in (torch.arange(32) + 0.5) / 32:
        x = (baseline + alpha * (images - baseline)).requires_grad_()
        path += torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0] / 32
    small = with_a_convolution(model, images, target, layer)[:, None]
    place = F.interpolate(small.relu(), images.shape[2:], mode="bilinear")
    return {
        "input_x_gradient": by_sorting(one_by_one(model, images, target)),
        "cam": by_sorting(F.interpolate(small, images.shape[2:], mode="bilinear")),
        "grad_cam": by_sorting(place),
        "integrated_gradients": by_sorting((images - baseline) * path),
    }


@pytest.mark.parametrize("answer", [from_the_library, written_out])
def test_four_maps(answer: Answer) -> None:
    check("hw01.four_maps", answer)


def replaced(name: str, by: Callable[..., Tensor]) -> Answer:
    """All right but for one map."""
    return lambda **case: from_the_library(**case) | {name: by(**case)}


def test_four_maps_wrong() -> None:
    def other(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Answer:
        return lambda **case: from_the_library(**(case | change(case)))

    def said(answer: Answer, name: str) -> None:
        assert hint("four_maps", answer) == hint_of(name, hw01.FOUR_MAPS)

    said(other(lambda case: {"target": case["model"](case["images"]).argmax(1)}), "no target")
    said(other(lambda case: {"baseline": torch.zeros(1)}), "grey")
    said(other(lambda case: {"steps": 50}), "more steps")
    said(other(lambda case: {"steps": 1}), "one step")
    said(other(lambda case: {"target": case["target"][:1].expand_as(case["target"])}), "first")
    said(
        replaced("cam", lambda **case: with_a_convolution(**{k: case[k] for k in CAM_TAKES})),
        "small",
    )
    none = "look at cam alone"
    assert none in hint("four_maps", replaced("cam", lambda images, **_: images[:, 0] * 0))
    flipped = replaced("integrated_gradients", lambda **case: -from_the_library(**case)["grad_cam"])
    assert "look at integrated_gradients alone" in hint("four_maps", flipped)
    assert "names input_x_gradient, cam" in hint("four_maps", lambda **case: [])
    lost = lambda **case: dict(list(from_the_library(**case).items())[:3])  # noqa: E731
    assert "names input_x_gradient, cam" in hint("four_maps", lost)
    channels = replaced("input_x_gradient", lambda images, **_: images)
    assert "one map (H, W) an image" in hint("four_maps", channels)
    first = from_the_library(**hw01._at_layers()[0], baseline=2.0)
    assert "one map (H, W) an image" in hint("four_maps", lambda **_: first)


CAM_TAKES = ("model", "images", "target", "layer")
