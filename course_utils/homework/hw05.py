"""Homework 05: the libraries of the field, their options, and who is right where they disagree."""

import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils import layers, models, scenes, shapley
from course_utils.contract import class_scores
from course_utils.homework.checks import (
    GRADIENTS_LEFT,
    HOOKS_LEFT,
    Answer,
    Mistake,
    Wrong,
    compare,
    exercise,
    tensor_of,
    untouched,
)
from course_utils.images import normalize

COURSE = ("course_utils.gradients", "course_utils.cam", "course_utils.shapley")
NOT_CALLED = (
    "this homework is about the library: let {0} do the work, whatever you could write yourself."
)


def called(answer: Answer, owner: Any, name: str, title: str) -> Answer:
    """The answer, which must reach the function `owner.name` of a library, and may warn.

    However the class was imported, its methods are looked up when they are called.
    """
    function = getattr(owner, name)

    @functools.wraps(answer)
    def watched(*args: Any, **options: Any) -> Any:
        calls: list[str] = []

        def noted(*inner: Any, **settings: Any) -> Any:
            calls.append(name)
            return function(*inner, **settings)

        with warnings.catch_warnings(), mock.patch.object(owner, name, noted):
            warnings.simplefilter("ignore")  # Captum warns of much that is as it should be
            result = answer(*args, **options)
        if not calls:
            raise Wrong(f"the answer never calls {title}", NOT_CALLED.format(title))
        return result

    return watched


# Networks ------------------------------------------------------------------------------------


class Shared(nn.Module):
    """A convolution and an in-place ReLU run three times, with a residual sum and a BatchNorm."""

    def __init__(self, classes: int = 5, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.relu(self.norm(self.stem(x)))
        for _ in range(2):
            x = self.relu(x + self.conv(x))
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """ReLUs that are functions, one of them in place, and one that is a module."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.act(self.conv1(x))
        x = F.relu(self.conv2(x), inplace=True).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


@functools.cache
def network(kind: type[nn.Module], *sizes: Any) -> nn.Module:
    """A network of that kind in float64, random but always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = kind(*sizes).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return model


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random images (n, 3, height, width), float64."""
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, 3, height, width, generator=generator, dtype=torch.float64)


@functools.cache
def shipped() -> models.Classifier:
    """The course's model, on the CPU."""
    return models.load("scenes", device="cpu")


@functools.cache
def pictures() -> tuple[Tensor, Tensor]:
    """Two scenes as the model wants them, and their classes."""
    labels = ("clownfish", "football")
    drawn = [scenes.render(scenes.canonical(label)).image for label in labels]
    images = torch.cat([shipped().to_input(image) for image in drawn])
    return images, torch.tensor([shipped().classes.index(label) for label in labels])


def small_cases() -> list[dict[str, Any]]:
    """Two small networks of different architecture, three images each with classes of its own."""
    return [
        {"model": network(Shared), "images": noise(3, 8, 12), "target": torch.tensor([4, 0, 2])},
        {
            "model": network(Functional),
            "images": noise(3, 11, 9, seed=1),
            "target": torch.tensor([1, 3, 0]),
        },
    ]


def remembered(answer: Answer) -> Answer:
    """The answer, which is asked once about each pair of model and images."""
    found: dict[tuple[int, int], Any] = {}

    def ask(**case: Any) -> Any:
        key = id(case["model"]), id(case["images"])
        if key not in found:
            found[key] = answer(**case)
        return found[key]

    return ask


def softmax_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's probabilities."""
    return lambda x: model(x).softmax(1)


# Integrated gradients ------------------------------------------------------------------------


def _ig(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Tensor,
    steps: int,
    batch_size: int,
    *,
    rule: str = "riemann_middle",
    from_baseline: bool = True,
    multiply: bool = True,
    softmax: bool = False,
    one_class: bool = False,
    in_parts: bool = True,
    all_steps: bool = True,
    sign: int = 1,
) -> tuple[Tensor, Tensor]:
    from captum.attr import IntegratedGradients

    function = softmax_of(model) if softmax else model
    maps, gap = IntegratedGradients(function, multiply_by_inputs=multiply).attribute(
        images,
        baselines=baseline.expand_as(images) if from_baseline else None,
        target=int(target[0]) if one_class else target,
        n_steps=steps if all_steps else 50,
        method=rule,
        internal_batch_size=batch_size if in_parts else None,
        return_convergence_delta=True,
    )
    return maps, sign * gap


def _ig_by_hand(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    difference, mean = images - baseline, torch.zeros_like(images)
    for k in range(steps):
        x = (baseline + (k + 0.5) / steps * difference).requires_grad_()
        score = model(x).gather(1, target[:, None]).sum()
        mean += torch.autograd.grad(score, x)[0] / steps
    maps = difference * mean
    return maps, _gap(model, images, target, baseline, maps)


IG = (
    Mistake(
        "Captum's default rule",
        functools.partial(_ig, rule="gausslegendre"),
        "Captum places the steps by another rule unless you choose; the exercise wants the middle "
        "of each step (`method`).",
    ),
    Mistake(
        "Captum's default baseline",
        functools.partial(_ig, from_baseline=False),
        "without `baselines` Captum starts at 0, and in model space that is the mean colour.",
    ),
    Mistake(
        "slopes alone",
        functools.partial(_ig, multiply=False),
        "these are mean slopes: they are to be multiplied by x − x' (`multiply_by_inputs`).",
    ),
    Mistake(
        "of the softmax",
        functools.partial(_ig, softmax=True),
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    Mistake(
        "the first image's class for all",
        functools.partial(_ig, one_class=True),
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    Mistake(
        "Captum's default number of steps",
        functools.partial(_ig, all_steps=False),
        "`n_steps` is 50 unless you give it.",
    ),
    Mistake(
        "all steps at once",
        functools.partial(_ig, in_parts=False),
        "Captum runs all steps of all images as one batch, unless `internal_batch_size` says how "
        "many the memory holds.",
    ),
    Mistake(
        "the gap upside down",
        functools.partial(_ig, sign=-1),
        "the gap is what the map sums to less what it should sum to: Captum's own delta, as it is.",
    ),
    Mistake("by hand", _ig_by_hand, NOT_CALLED.format("Captum's IntegratedGradients")),
)


@exercise("hw05.captum_ig", *IG, forbidden=COURSE)
def check_ig(answer: Answer) -> Iterator[str]:
    """Captum's integrated gradients are the course's, image by image, within the batch size."""
    from captum.attr import IntegratedGradients

    answer = called(answer, IntegratedGradients, "attribute", "Captum's IntegratedGradients")
    cases = [
        {**case, "baseline": 0.3 * case["images"][:1].flip(3) - 0.5, **how}
        for case, how in zip(
            small_cases(),
            ({"steps": 4, "batch_size": 6}, {"steps": 8, "batch_size": 5}),
            strict=True,
        )
    ]
    with untouched(cases[0]["model"], cases[0]["images"]):
        result, sizes = _batches(cases[0], answer)
    _pair(result)
    yield "model and images are left as they were"
    images, target = pictures()
    course = {"model": shipped().model, "images": images, "target": target}
    course |= {"baseline": shipped().black(images), "steps": 4, "batch_size": 4}
    ask = remembered(answer)
    for some in (cases, [course]):
        _compare_part(
            0,
            ask,
            some,
            IG[:6],
            "the map",
            "compare each option of `attribute` with the arguments of the function.",
        )
    yield "the maps are integrated gradients by the midpoint rule, each image with its class"
    yield "that holds on two small networks and on the course's, from three baselines"
    upside_down = [m for m in IG if m.name == "the gap upside down"]
    _compare_part(
        1,
        ask,
        [*cases, course],
        upside_down,
        "the gap",
        "Captum gives it, one number an image: `return_convergence_delta`.",
    )
    yield "so are the completeness gaps"
    if max(sizes) > cases[0]["batch_size"]:
        raise Wrong(
            f"the model got {max(sizes)} images at once, where batch_size is "
            f"{cases[0]['batch_size']}",
            _hint(IG, "all steps at once"),
        )
    yield "the model never gets more images at once than batch_size"


def _compare_part(
    number: int,
    answer: Answer,
    cases: Sequence[dict[str, Any]],
    mistakes: Sequence[Mistake],
    what: str,
    hint: str,
) -> None:
    """`compare` for one of the two tensors that `captum_ig` gives."""

    def part(function: Answer) -> Answer:
        return lambda **case: _pair(function(**case))[number]

    mistakes = [replace(mistake, answer=part(mistake.answer)) for mistake in mistakes]
    compare(part(answer), part(_ig), cases, mistakes, what=what, hint=hint)


def _pair(result: object) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(
            f"the answer gives {type(result).__name__}, wanted are two tensors: maps and gaps",
            "with `return_convergence_delta` Captum gives both.",
        )
    return result


def _hint(mistakes: tuple[Mistake, ...], name: str) -> str:
    return next(mistake.hint for mistake in mistakes if mistake.name == name)


def _batches(case: dict[str, Any], answer: Answer) -> tuple[Any, list[int]]:
    """The answer's result, and how many images the model got at each call."""
    sizes: list[int] = []
    handle = case["model"].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        return answer(**case), sizes
    finally:
        handle.remove()


# Grad-CAM ------------------------------------------------------------------------------------


def _grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    layer: str,
    *,
    relu: bool = True,
    of_input: bool = False,
    mode: str | None = "bilinear",
    softmax: bool = False,
    one_class: bool = False,
    per_place: bool = False,
) -> Tensor:
    from captum.attr import LayerAttribution, LayerGradCam, LayerGradientXActivation

    function, module = softmax_of(model) if softmax else model, model.get_submodule(layer)
    which = int(target[0]) if one_class else target
    if per_place:
        LayerGradCam(function, module).attribute(images, target=which)
        small = LayerGradientXActivation(function, module).attribute(images, target=which)
        small = small.sum(1, keepdim=True).relu()
    else:
        small = LayerGradCam(function, module).attribute(
            images, target=which, relu_attributions=relu, attribute_to_layer_input=of_input
        )
    small = small.detach()
    if mode is None:
        return small[:, 0]
    size = tuple(images.shape[2:])
    return LayerAttribution.interpolate(small, size, interpolate_mode=mode)[:, 0]


def _relu_last(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return _grad_cam(model, images, target, layer, relu=False).relu()


def _grad_cam_by_hand(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    with layers.capture(model, layer) as kept:
        score = model(images.clone().requires_grad_()).gather(1, target[:, None]).sum()
    (slopes,) = torch.autograd.grad(score, kept[layer])
    small = (slopes.mean((2, 3), keepdim=True) * kept[layer]).sum(1, keepdim=True).relu()
    return F.interpolate(small, size=images.shape[2:], mode="bilinear")[:, 0]


def _last_layer(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][-1]
    return _grad_cam(model, images, target, last)


GRAD_CAM = (
    Mistake(
        "no ReLU",
        functools.partial(_grad_cam, relu=False),
        "Captum leaves the paper's ReLU out unless you ask for it (`relu_attributions`).",
    ),
    Mistake(
        "ReLU after upsampling",
        _relu_last,
        "the ReLU belongs to the small map, before it is upsampled: negative places would pull "
        "their positive neighbours down.",
    ),
    Mistake(
        "the layer's input",
        functools.partial(_grad_cam, of_input=True),
        "this is the map of what enters the layer; the exercise wants the layer's output.",
    ),
    Mistake(
        "nearest pixel",
        functools.partial(_grad_cam, mode="nearest"),
        "Captum's `interpolate` repeats pixels unless you choose a mode; the course's maps are "
        "bilinear.",
    ),
    Mistake(
        "not upsampled",
        functools.partial(_grad_cam, mode=None),
        "the map still has the layer's height and width; it must have the images'.",
    ),
    Mistake(
        "the first image's class for all",
        functools.partial(_grad_cam, one_class=True),
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    Mistake(
        "of the softmax",
        functools.partial(_grad_cam, softmax=True),
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    Mistake(
        "gradient times activation",
        functools.partial(_grad_cam, per_place=True),
        "here every place has a weight of its own; Grad-CAM averages the gradient over the places.",
    ),
    Mistake(
        "always the last convolution",
        _last_layer,
        "the map is the same for each layer; it must be of the one that is named.",
    ),
    Mistake("by hand", _grad_cam_by_hand, NOT_CALLED.format("Captum's LayerGradCam")),
)


@exercise("hw05.captum_grad_cam", *GRAD_CAM, forbidden=COURSE)
def check_grad_cam(answer: Answer) -> Iterator[str]:
    """Captum's Grad-CAM is the course's, at several layers of three networks."""
    from captum.attr import LayerGradCam

    answer = called(answer, LayerGradCam, "attribute", "Captum's LayerGradCam")
    first, second = small_cases()
    images, target = pictures()
    small = [{**first, "layer": "stem"}, {**second, "layer": "conv1"}]
    course = [
        {"model": shipped().model, "images": images, "target": target, "layer": layer}
        for layer in ("layer3.1", "layer4")
    ]
    for cases in (small, course):
        compare(
            answer,
            _grad_cam,
            cases,
            GRAD_CAM[:-1],
            what="the map",
            hint="LayerGradCam needs the module itself, its `attribute` the target; then comes "
            "`LayerAttribution.interpolate`, and the channel's axis goes.",
        )
    yield "the maps are Grad-CAM of the named layer, each image with its class, (N, H, W)"
    yield "that holds on two small networks and at two layers of the course's"
    with untouched(small[0]["model"], small[0]["images"]):
        answer(**small[0])
    yield "model and images are left as they were"


# Shapley values of segments ------------------------------------------------------------------


def _shap(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    segments: Tensor,
    fill: Tensor,
    samples: int,
    batch_size: int,
    seed: int,
    *,
    by_segment: bool = True,
    filled: bool = True,
    all_samples: bool = True,
    in_parts: bool = True,
    softmax: bool = False,
    one_class: bool = False,
    summed: bool = False,
    seeded: bool = True,
    private: bool = True,
    method: str = "KernelShap",
) -> Tensor:
    from captum import attr

    explainer = getattr(attr, method)(softmax_of(model) if softmax else model)
    with torch.random.fork_rng(devices=[], enabled=private), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if seeded:
            torch.manual_seed(seed)
        elif private:
            torch.manual_seed(random.randrange(2**31))
        values = explainer.attribute(
            images,
            baselines=fill if filled else None,
            target=int(target[0]) if one_class else target,
            feature_mask=segments[:, None] if by_segment else None,
            n_samples=samples if all_samples else 25,
            perturbations_per_eval=batch_size if in_parts else 1,
        )
    return values.sum(1) if summed else values[:, 0]


SHAP = (
    Mistake(
        "every pixel for itself",
        functools.partial(_shap, by_segment=False),
        "without `feature_mask` each value of each channel is a player, and nobody could sample "
        "that many.",
    ),
    Mistake(
        "Captum's default fill",
        functools.partial(_shap, filled=False),
        "hidden segments show 0, the mean colour, unless `baselines` says what else.",
    ),
    Mistake(
        "Captum's default number of samples",
        functools.partial(_shap, all_samples=False),
        "`n_samples` is 25 an image unless you give it.",
    ),
    Mistake(
        "one picture at a time",
        functools.partial(_shap, in_parts=False),
        "Captum asks the model about one picture a call unless `perturbations_per_eval` allows "
        "more.",
    ),
    Mistake(
        "of the softmax",
        functools.partial(_shap, softmax=True),
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    Mistake(
        "the first image's class for all",
        functools.partial(_shap, one_class=True),
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    Mistake(
        "channels added",
        functools.partial(_shap, summed=True),
        "the three channels carry the same value, their segment's: take one of them.",
    ),
    Mistake(
        "no seed",
        functools.partial(_shap, seeded=False),
        "Captum draws from torch's global generator: seed that, just before.",
    ),
    Mistake(
        "the global generator moved",
        functools.partial(_shap, private=False),
        "seeding the global generator changes what the rest of the notebook draws: "
        "torch.random.fork_rng gives it back as it was.",
    ),
    Mistake(
        "LIME",
        functools.partial(_shap, method="Lime"),
        NOT_CALLED.format("Captum's KernelShap"),
    ),
)


def _shap_exactly(**case: Any) -> Tensor:
    """All coalitions, in place of samples."""
    values = shapley.shap_image(
        case["model"],
        case["images"],
        case["target"],
        segments=case["segments"],
        fill=case["fill"],
        samples=2 ** (int(case["segments"].max()) + 1),
        progress=False,
    )
    return tensor_of(values, "the map")


@exercise("hw05.captum_shap", *SHAP, forbidden=COURSE)
def check_shap(answer: Answer) -> Iterator[str]:
    """Captum's KernelShap is near the exact Shapley values of the segments."""
    from captum.attr import KernelShap

    answer = called(answer, KernelShap, "attribute", "Captum's KernelShap")
    ask = remembered(answer)
    cases = []
    for case, fill in zip(small_cases(), ((1.5, -1.0, 2.0), (-1.0, 2.0, 0.5)), strict=True):
        height, width = case["images"].shape[2:]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        cut = [rows * (2 + i % 2) // height * 2 + columns * 2 // width for i in range(3)]
        colour = torch.tensor(fill, dtype=torch.float64).view(1, 3, 1, 1)
        rest = {"samples": 60, "batch_size": 16, "seed": 3}
        cases.append({**case, "segments": torch.stack(cut), "fill": colour, **rest})
    with untouched(cases[0]["model"], cases[0]["images"]):
        _check_shap_calls(cases[0], ask)
    yield "model and images are left as they were"
    yield "each pixel carries its segment's value, (N, H, W)"
    yield "the model is asked as often as wanted, and not one picture at a time"
    before = torch.get_rng_state()
    first = {name: cases[1][name][:1] for name in ("images", "target", "segments")}
    once, again, other = (
        tensor_of(answer(**{**cases[1], **first, "seed": seed, "samples": 16}), "the map")
        for seed in (1, 1, 2)
    )
    moved = not torch.equal(torch.get_rng_state(), before)
    if not torch.equal(once, again):
        raise Wrong("two calls with the same seed give different maps", _hint(SHAP, "no seed"))
    if moved:
        raise Wrong(
            "after the call torch's global generator is not where it was",
            _hint(SHAP, "the global generator moved"),
        )
    if torch.equal(once, other):
        raise Wrong("two seeds give the same map", "the draws must depend on the argument `seed`.")
    yield "the seed alone decides what is drawn"
    compare(
        ask,
        _shap_exactly,
        cases,
        [m for m in SHAP if m.name in _SHAP_VALUES],
        what="the map",
        hint="compare each option of `attribute` with the arguments of the function.",
        tolerance=0.1,
    )
    yield "the values are the Shapley values of the segments, to the error of sampling"


_SHAP_VALUES = (
    "Captum's default fill",
    "of the softmax",
    "the first image's class for all",
    "channels added",
)


def _check_shap_calls(case: dict[str, Any], answer: Answer) -> None:
    """The shape, the segments, and how the model was asked."""
    result, sizes = _batches(case, answer)
    found, images, labels = tensor_of(result, "the map"), case["images"], case["segments"]
    if found.shape != images[:, 0].shape:
        raise Wrong(
            f"the map is {tuple(found.shape)}, wanted is {tuple(images[:, 0].shape)}",
            "Captum gives a value to each channel of a pixel; they are all the same.",
        )
    for image, cut in zip(found, labels, strict=True):
        for label in cut.unique():
            inside = image[cut == label]
            if float(inside.max() - inside.min()) > 1e-6 * float(found.abs().max()):
                raise Wrong(
                    "pixels of the same segment carry different values",
                    _hint(SHAP, "every pixel for itself"),
                )
    if sum(sizes) < len(images) * case["samples"]:
        raise Wrong(
            f"the model saw {sum(sizes)} pictures, where {len(images)} images with "
            f"{case['samples']} samples each were wanted",
            _hint(SHAP, "Captum's default number of samples"),
        )
    if max(sizes) > case["batch_size"]:
        raise Wrong(
            f"the model got {max(sizes)} pictures at once, where batch_size is "
            f"{case['batch_size']}",
            "`perturbations_per_eval` is how many pictures the model may get at once.",
        )
    if len(sizes) > 4 * sum(sizes) / case["batch_size"]:
        raise Wrong(
            f"the model was called {len(sizes)} times for {sum(sizes)} pictures",
            _hint(SHAP, "one picture at a time"),
        )


# The gap -------------------------------------------------------------------------------------


def _gap(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Tensor,
    attribution: Tensor,
    *,
    per_image: bool = True,
    magnitudes: bool = False,
    from_baseline: bool = True,
    softmax: bool = False,
    one_class: bool = False,
    sign: int = 1,
) -> Tensor:
    def score(x: Tensor) -> Tensor:
        logits = model(x)
        logits = logits.softmax(1) if softmax else logits
        return class_scores(logits, int(target[0]) if one_class else target)

    with torch.no_grad():
        wanted = score(images)
        if from_baseline:
            wanted = wanted - score(baseline.expand_as(images))
    attribution = attribution.detach().abs() if magnitudes else attribution.detach()
    gap = sign * (attribution.sum((1, 2, 3)) - wanted)
    return gap if per_image else gap.sum().expand(len(images))


GAP = (
    Mistake(
        "all images together",
        functools.partial(_gap, per_image=False),
        "one number for all images: gaps of different signs cancel; keep the batch's axis.",
    ),
    Mistake(
        "magnitudes",
        functools.partial(_gap, magnitudes=True),
        "the map is signed, and completeness is about the signed sum.",
    ),
    Mistake(
        "the baseline's score left out",
        functools.partial(_gap, from_baseline=False),
        "the map is to sum to a difference of two scores: the image's and the baseline's.",
    ),
    Mistake(
        "of the softmax",
        functools.partial(_gap, softmax=True),
        "the maps explain logits; probabilities differ by something else.",
    ),
    Mistake(
        "the first image's class for all",
        functools.partial(_gap, one_class=True),
        "each image's score is the logit of its own class.",
    ),
    Mistake(
        "upside down",
        functools.partial(_gap, sign=-1),
        "positive must mean that the map says too much: its sum less the difference.",
    ),
)


@exercise("hw05.completeness_gap", *GAP, forbidden=("course_utils.evaluation",))
def check_gap(answer: Answer) -> Iterator[str]:
    """What a map sums to less what it should sum to, for each image."""
    images, target = pictures()
    cases = [{**case, "baseline": 0 * case["images"][:1] + 0.4} for case in small_cases()]
    cases[1]["baseline"] = noise(3, 11, 9, seed=8)
    cases.append(
        {"model": shipped().model, "images": images, "target": target}
        | {"baseline": shipped().black(images)}
    )
    for number, case in enumerate(cases):
        shape = case["images"].shape
        attribution = noise(shape[0], shape[2], shape[3], 20 + number) / 10
        case["attribution"] = attribution.to(case["images"].dtype)
    compare(
        answer,
        _gap,
        cases,
        GAP,
        what="the gap",
        hint="sum the map over channels and pixels, and take f(x) − f(x') away, the logits of the "
        "target; a baseline may have to be expanded to the images' shape.",
    )
    yield "each image's gap is its map's sum less f(x) − f(x')"
    yield "that holds on three networks, for a colour and for pictures as baselines"
    with untouched(cases[0]["model"], cases[0]["images"]):
        answer(**cases[0])
    yield "model and images are left as they were"


# A copy that Captum's DeepLIFT can read ------------------------------------------------------


def _own_relus(
    model: nn.Module, *, copied: bool = True, functions: bool = True, keep: bool = True
) -> nn.Module:
    """The model with a ReLU module for each time that one runs; keep=False loses all but one."""
    graph = fx.symbolic_trace(copy.deepcopy(model) if copied else model)
    number = 0
    for node in graph.graph.nodes:
        module = node.op == "call_module" and isinstance(
            graph.get_submodule(str(node.target)), nn.ReLU
        )
        if module and not copied:
            model.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
        if module or (functions and node.target in (F.relu, torch.relu)):
            name = f"own_relu_{number}"
            graph.add_submodule(name, nn.ReLU() if keep or not number else nn.Identity())
            node.op, node.target, node.kwargs = "call_module", name, {}
            number += 1
    graph.recompile()
    return graph


def _plain_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _new_by_name(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.ReLU())
    return model


OWN = (
    Mistake(
        "a plain copy",
        _plain_copy,
        "a ReLU that works in place writes over the input that DeepLIFT has to compare.",
    ),
    Mistake(
        "a new module for each name",
        _new_by_name,
        "one module, however new, still runs at several places of `forward`; the number of ReLUs "
        "that run counts, not the number of names.",
    ),
    Mistake(
        "the model itself",
        functools.partial(_own_relus, copied=False),
        "work on copy.deepcopy(model): others use the model that you got.",
    ),
    Mistake(
        "functions forgotten",
        functools.partial(_own_relus, functions=False),
        "F.relu and torch.relu have no module, so Captum's hooks never see them; they need modules "
        "as well.",
    ),
    Mistake(
        "ReLUs lost",
        functools.partial(_own_relus, keep=False),
        "where a ReLU was taken out, another one must come in.",
    ),
)


class _Relus(TorchFunctionMode):
    """Counts the ReLUs that run inside, modules and functions alike."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        names = ("relu", "relu_", "clamp", "clamp_min", "threshold")
        before = self.count
        output = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in names and self.count == before:
            self.count += 1  # F.relu calls torch.relu: one and the same
        return output


@exercise("hw05.own_relus", *OWN)
def check_own_relus(answer: Answer) -> Iterator[str]:
    """A copy with the same logits in which every ReLU is a module that runs once."""
    from captum.attr import DeepLift

    images, _ = pictures()
    small = network(models.SmallResNet, 3, (8, 8, 8, 8))
    cases = [
        (network(Shared), noise(3, 8, 12)),
        (small, images[:, :, ::2, ::2].double()),
        (network(Functional), noise(3, 11, 9, seed=1)),
        (shipped().model, images),
    ]
    for model, x in cases:
        with torch.no_grad(), _Relus() as relus:
            wanted = model(x.clone())
        before = _relu_state(model)
        result = answer(model)
        if _relu_state(model) != before:
            raise Wrong("the model itself has changed", _hint(OWN, "the model itself"))
        _check_copy(model, result, x, wanted, relus.count)
    yield "the copies of four networks have the logits of the models, which did not change"
    yield "each ReLU is a module of its own, runs once, and not in place"
    for model, x in (cases[0], cases[2]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = DeepLift(answer(model)).attribute(x.clone(), torch.ones_like(x), target=1)
        target = torch.ones(len(x), dtype=torch.long)
        gap = _gap(model, x, target, torch.ones_like(x), maps)
        if float(gap.abs().max()) > 1e-6:
            raise Wrong(
                "Captum's DeepLIFT of the copy does not sum to f(x) − f(x')",
                "is there a ReLU whose module Captum does not find, or that runs elsewhere?",
            )
    yield "Captum's DeepLIFT runs on the copies, and is complete where nothing is max-pooled"


def _relu_state(model: nn.Module) -> list[Any]:
    """What an answer could change on the model that it got."""
    return [
        (name, id(module), module.training, getattr(module, "inplace", None))
        for name, module in model.named_modules()
    ] + [(name, id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()]


def _check_copy(
    model: nn.Module, result: object, x: Tensor, wanted: Tensor, wanted_relus: int
) -> None:
    if not isinstance(result, nn.Module):
        raise Wrong(
            f"the answer gives {type(result).__name__}, wanted is a network (nn.Module)",
            "does the function end with return, and what does it return?",
        )
    if result is model:
        raise Wrong("the answer gives the model back, not a copy", _hint(OWN, "the model itself"))
    runs: dict[str, int] = {}
    handles = []
    for name, module in result.named_modules():
        if isinstance(module, nn.ReLU):
            runs[name] = 0

            def count(_: nn.Module, __: Any, name: str = name) -> None:
                runs[name] += 1

            handles.append(module.register_forward_pre_hook(count))
    try:
        with torch.no_grad(), _Relus() as relus:
            logits = tensor_of(result(x.clone()), "the copy's output")
    finally:
        for handle in handles:
            handle.remove()
    ran = {name: times for name, times in runs.items() if times}
    if any(getattr(result.get_submodule(name), "inplace", False) for name in ran):
        raise Wrong("a ReLU of the copy works in place", _hint(OWN, "a plain copy"))
    if most := [name for name, times in ran.items() if times > 1]:
        raise Wrong(
            f"the ReLU {most[0]!r} of the copy runs {ran[most[0]]} times",
            _hint(OWN, "a new module for each name"),
        )
    if relus.count < wanted_relus:
        raise Wrong(
            f"{relus.count} ReLUs run in the copy, and {wanted_relus} in the model",
            _hint(OWN, "ReLUs lost"),
        )
    if len(ran) < relus.count:
        raise Wrong(
            f"{relus.count} ReLUs run in the copy, but only {len(ran)} of them are modules",
            _hint(OWN, "functions forgotten"),
        )
    if logits.shape != wanted.shape or not torch.allclose(logits, wanted.double(), atol=1e-4):
        raise Wrong(
            "the copy's logits are not the model's",
            "weights, running statistics and the mode must be copied too: copy.deepcopy.",
        )


# Lucent --------------------------------------------------------------------------------------


class Colour(nn.Module):
    """Unit 0 answers to red without green, unit 1 to blue without red; all of it in `stem.conv`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 2, 1, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            weight = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]])
            self.stem.conv.weight.copy_(weight[:, :, None, None])  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 3) of images (N, 3, H, W)."""
        return self.fc(self.stem(x).relu().mean((2, 3)))


MEAN, STD = (0.2, 0.3, 0.4), (0.05, 0.05, 0.05)  # of no other preprocessing


@functools.cache
def _lucent() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kornia, which Lucent imports, still uses TorchScript
        from lucent.optvis import objectives, param, render, transform
    return objectives, param, render, transform


def _picture(
    model: nn.Module,
    layer: str,
    unit: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int,
    steps: int,
    seed: int,
    *,
    own: bool = True,
    imagenet: bool = False,
    fixed: bool = True,
    model_space: bool = True,
    sign: int = 1,
    hooks: bool = False,
    frozen: bool = True,
    all_seeds: bool = True,
    progress: bool = False,
    centre: bool = False,
) -> Tensor:
    objectives, param, render, transform = _lucent()

    def prepared(x: Tensor) -> Tensor:
        return normalize(x, list(mean), list(std))

    worker = model if hooks else copy.deepcopy(model)
    if frozen and not hooks:
        worker.requires_grad_(False)
    kept = [] if frozen else [parameter.grad for parameter in model.parameters()]
    torch.manual_seed(seed)
    if all_seeds:
        np.random.seed(seed)  # noqa: NPY002
    else:
        np.random.seed(random.SystemRandom().randrange(2**31))  # noqa: NPY002
    kind = objectives.neuron if centre else objectives.channel
    (image,) = render.render_vis(
        worker,
        sign * kind(layer.replace(".", "_"), unit),
        lambda: param.image(size),
        transforms=[*transform.standard_transforms, *([prepared] if own else [])],
        thresholds=(steps,),
        preprocess=imagenet,
        fixed_image_size=(size, size) if fixed else None,
        progress=progress,
        show_image=False,
    )
    if hooks:
        for parameter in model.parameters():
            parameter.grad = None
    if kept:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    found = torch.from_numpy(image).permute(0, 3, 1, 2)
    return prepared(found) if model_space else found


LUCENT = (
    Mistake(
        "not normalised",
        functools.partial(_picture, own=False),
        "Lucent's picture has colours from 0 to 1; your model wants (colour − mean) / std, as the "
        "last of the `transforms`.",
    ),
    Mistake(
        "ImageNet's normalisation",
        functools.partial(_picture, own=False, imagenet=True),
        "with `preprocess` Lucent normalises by ImageNet's mean and std; your model has its own.",
    ),
    Mistake(
        "normalised twice",
        functools.partial(_picture, imagenet=True),
        "Lucent normalises too, unless `preprocess` is off: now it is done twice.",
    ),
    Mistake(
        "enlarged to 224 pixels",
        functools.partial(_picture, fixed=False),
        "Lucent enlarges smaller pictures to 224 unless `fixed_image_size` forbids it.",
    ),
    Mistake(
        "colours from 0 to 1",
        functools.partial(_picture, model_space=False),
        "the picture that Lucent gives back has colours from 0 to 1; return it in model space.",
    ),
    Mistake(
        "downhill",
        functools.partial(_picture, sign=-1),
        "this is what the unit likes least: Lucent's objectives carry their minus sign already.",
    ),
    Mistake("hooks left", functools.partial(_picture, hooks=True), HOOKS_LEFT),
    Mistake("gradients left", functools.partial(_picture, frozen=False), GRADIENTS_LEFT),
    Mistake(
        "half a seed",
        functools.partial(_picture, all_seeds=False),
        "torch draws the start, and NumPy the transformations: both generators need the seed.",
    ),
)


@exercise("hw05.lucent_picture", *LUCENT, forbidden=("course_utils.maximize",))
def check_lucent(answer: Answer) -> Iterator[str]:
    """Lucent's picture of a unit, in model space, of a model that stays as it was."""
    _, _, render, transform = _lucent()
    answer = called(answer, render, "hook_model", "Lucent's render_vis")
    model = copy.deepcopy(network(Colour)).float().to(transform.device)
    case = {"model": model, "layer": "stem.conv", "unit": 0, "mean": MEAN, "std": STD}
    case |= {"size": 24, "steps": 48, "seed": 0}
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with _generators_kept(), mock.patch.object(render, "view"):
        try:
            with untouched(model, torch.zeros(1)):
                result = answer(**case)
        finally:
            handle.remove()
        found = tensor_of(result, "the picture").to(transform.device)
        _check_seen(seen, case)
        yield "the model got pictures of its own size, normalised as it wants them, once"
        yield "no hook and no gradient is left on it"
        _check_found(found, case)
        yield "the picture is (1, 3, size, size) in model space, and each pixel a possible colour"
        yield "red is what pleases a unit that wants red without green"
        deep = copy.deepcopy(network(Functional)).float().to(transform.device)
        few = {**case, "model": deep, "layer": "conv2", "unit": 3, "steps": 3}
        once, again, other = (
            tensor_of(answer(**{**few, "seed": seed}), "the picture") for seed in (1, 1, 2)
        )
        if not torch.equal(once, again):
            raise Wrong(
                "two calls with the same seed give different pictures",
                _hint(LUCENT, "half a seed"),
            )
        if torch.equal(once, other):
            raise Wrong("two seeds give the same picture", "use the argument `seed`.")
        yield "the seed alone decides"
        other = tensor_of(answer(**{**case, "unit": 1, "steps": 16}), "the picture")
        redness = [float((x[0, 0] - x[0, 2]).mean()) for x in (found.cpu(), other.cpu())]
        if redness[1] > redness[0] - 1:  # of 20 between pure red and pure blue, and back
            raise Wrong("another unit gets the same colours", "use the arguments layer and unit.")
        yield "another unit gets another picture"


def _generators_kept() -> ExitStack:
    """Lucent draws from NumPy's and torch's global generators; here they are given back."""
    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
    stack.callback(random.setstate, random.getstate())
    return stack


def _check_seen(seen: list[Tensor], case: dict[str, Any]) -> None:
    """What the model got: the size, and how a picture of plain grey was normalised."""
    if len(seen) < case["steps"]:
        raise Wrong(
            f"the model ran {len(seen)} times, wanted are {case['steps']} steps",
            "`thresholds` says after which steps Lucent gives a picture: the last is the end.",
        )
    if seen[0].shape[2:] != (case["size"],) * 2:
        raise Wrong(
            f"the model got pictures of {tuple(seen[0].shape[2:])} pixels, where size is "
            f"{case['size']}",
            _hint(LUCENT, "enlarged to 224 pixels"),
        )
    start = seen[0][0].flatten(1).median(1).values.cpu()  # Lucent starts at grey, 0.5
    grey = torch.full((3, 1, 1), 0.5)
    own = normalize(grey, list(MEAN), list(STD))
    imagenet = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    kinds = {
        "": own,
        "not normalised": grey,
        "ImageNet's normalisation": normalize(grey, *imagenet),
        "normalised twice": normalize(own, *imagenet),
        " ": normalize(normalize(grey, *imagenet), list(MEAN), list(STD)),
    }
    nearest = min(kinds, key=lambda name: float((kinds[name].flatten() - start).abs().max()))
    if nearest.strip():
        raise Wrong(
            "the model does not get pictures that are normalised by `mean` and `std`",
            _hint(LUCENT, nearest),
        )
    if nearest:
        raise Wrong("the model's pictures are normalised twice", _hint(LUCENT, "normalised twice"))


def _check_found(found: Tensor, case: dict[str, Any]) -> None:
    """The picture's shape, range and colours."""
    if found.shape != (1, 3, case["size"], case["size"]):
        raise Wrong(
            f"the picture is {tuple(found.shape)}, wanted is (1, 3, {case['size']}, "
            f"{case['size']})",
            "render_vis gives a list of arrays (1, height, width, 3).",
        )
    mean, std = (torch.tensor(v, device=found.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    colours = found * std + mean
    if found.min() >= 0 and found.max() <= 1:
        raise Wrong(
            "the picture's numbers are not in model space", _hint(LUCENT, "colours from 0 to 1")
        )
    if colours.min() < -1e-3 or colours.max() > 1 + 1e-3:
        raise Wrong(
            "the picture has pixels darker than black or lighter than white",
            "model space is (colour − mean) / std, once.",
        )
    red, green, _ = colours[0].mean((1, 2)).tolist()
    if red < green:
        raise Wrong(
            "the unit wants red without green, and the picture has more green than red",
            _hint(LUCENT, "downhill"),
        )
    if red < green + 0.01:
        raise Wrong(
            "the picture is hardly red",
            "the whole map of the unit is to answer (objectives.channel), after all the steps.",
        )
