"""Homework 05: the libraries of the field, their options, and who is right where they disagree."""

import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils import layers, networks
from course_utils.homework import cases
from course_utils.homework.checks import (
    GRADIENTS_LEFT,
    HOOKS_LEFT,
    Answer,
    Exercise,
    Mistakes,
    Wrong,
    compare,
    exercise,
    part,
    remembered,
    tensor_of,
    unchanged,
    untouched,
)
from course_utils.homework.hw02 import completeness_gap
from course_utils.images import normalize
from course_utils.methods import shapley
from course_utils.worlds import scenes

COURSE = (
    "course_utils.methods.gradients",
    "course_utils.methods.cam",
    "course_utils.methods.shapley",
)
NOT_CALLED = (
    "this homework is about the library: let {0} do the work, whatever you could write yourself."
)


def called(answer: Answer, owner: Any, name: str, title: str) -> Answer:
    """The answer; called, it raises `Wrong` if the function `owner.name` of a library never ran.

    That function is replaced in its class or module meanwhile, so that it does not matter how the
    answer imported it. Warnings are not shown. title: of the function, for the sentence.
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


# What the answers are tried on ----------------------------------------------------------------


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random images (n, 3, height, width), float64."""
    return 1.5 * cases.noise(n, 3, height, width, seed=seed, dtype=torch.float64)


def course_case() -> dict[str, Any]:
    """The course's model, and two scenes with their classes."""
    labels = ("clownfish", "football")
    images = cases.inputs(*map(scenes.standard, labels))
    return {"model": cases.shipped().model, "images": images, "target": cases.classes(*labels)}


def small_cases() -> list[dict[str, Any]]:
    """Two small networks of different architecture, three images each with classes of its own."""
    return [
        {
            "model": cases.double(cases.Shared),
            "images": noise(3, 8, 12),
            "target": torch.tensor([4, 0, 2]),
        },
        {
            "model": cases.double(cases.Functional),
            "images": noise(3, 11, 9, seed=1),
            "target": torch.tensor([1, 3, 0]),
        },
    ]


def softmax_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's probabilities."""
    return lambda x: model(x).softmax(1)


# Integrated gradients ------------------------------------------------------------------------


def captum_ig(
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
    """Captum's maps (N, C, H, W) and its gaps (N,)."""
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
    return maps, completeness_gap(model, images, maps, target, baseline)


CAPTUM_IG: Mistakes = {
    "Captum's default rule": (
        {"rule": "gausslegendre"},
        "Captum places the steps by another rule unless you choose; the exercise wants the middle "
        "of each step (`method`).",
    ),
    "Captum's default baseline": (
        {"from_baseline": False},
        "without `baselines` Captum starts at 0, and in model space that is the mean colour.",
    ),
    "slopes alone": (
        {"multiply": False},
        "these are mean slopes: they are to be multiplied by x − x' (`multiply_by_inputs`).",
    ),
    "of the softmax": (
        {"softmax": True},
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    "the first image's class for all": (
        {"one_class": True},
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    "Captum's default number of steps": (
        {"all_steps": False},
        "`n_steps` is 50 unless you give it.",
    ),
    "all steps at once": (
        {"in_parts": False},
        "Captum runs all steps of all images as one batch, unless `internal_batch_size` says how "
        "many the memory holds.",
    ),
    "the gap upside down": (
        {"sign": -1},
        "the gap is what the map sums to less what it should sum to: Captum's own delta, as it is.",
    ),
    "by hand": (_ig_by_hand, NOT_CALLED.format("Captum's IntegratedGradients")),
}


@exercise("hw05.captum_ig", captum_ig, CAPTUM_IG, forbidden=COURSE)
def check_captum_ig(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's integrated gradients are the course's, image by image, within the batch size."""
    from captum.attr import IntegratedGradients

    answer = called(answer, IntegratedGradients, "attribute", "Captum's IntegratedGradients")
    first, second, course = *small_cases(), course_case()
    for case in (first, second):
        case["baseline"] = 0.3 * case["images"][:1].flip(3) - 0.5
    first |= {"steps": 4, "batch_size": 6}
    second |= {"steps": 8, "batch_size": 5}
    course |= {"baseline": cases.shipped().black(course["images"]), "steps": 4, "batch_size": 4}
    hint = "with `return_convergence_delta` Captum gives both."
    maps, gaps = (part(number, "two tensors: maps and gaps", hint) for number in (0, 1))
    _, sizes = _batches(first, unchanged(maps(answer)))
    yield "model and images are left as they were"
    ask = remembered(answer)
    for some in ([first, second], [course]):
        compare(
            ask,
            known,
            some,
            of=maps,
            what="the map",
            hint="compare each option of `attribute` with the arguments of the function.",
        )
    yield "the maps are integrated gradients by the midpoint rule, each image with its class"
    yield "that holds on two small networks and on the course's, from three baselines"
    compare(
        ask,
        known,
        [first, second, course],
        of=gaps,
        what="the gap",
        hint="Captum gives it, one number an image: `return_convergence_delta`.",
    )
    yield "so are the completeness gaps"
    if max(sizes) > first["batch_size"]:
        raise Wrong(
            f"the model got {max(sizes)} images at once, where batch_size is {first['batch_size']}",
            known.hint("all steps at once"),
        )
    yield "the model never gets more images at once than batch_size"


def _batches(case: dict[str, Any], answer: Answer) -> tuple[Any, list[int]]:
    """The answer's result, and how many images the model got at each call."""
    sizes: list[int] = []
    handle = case["model"].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        return answer(**case), sizes
    finally:
        handle.remove()


# Grad-CAM ------------------------------------------------------------------------------------


def captum_grad_cam(
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
    late: bool = False,
) -> Tensor:
    """Captum's Grad-CAM, upsampled: (N, H, W)."""
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
    large = LayerAttribution.interpolate(small, size, interpolate_mode=mode)[:, 0]
    return large.relu() if late else large


def _grad_cam_by_hand(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    with layers.capture(model, layer) as kept:
        score = model(images.clone().requires_grad_()).gather(1, target[:, None]).sum()
    (slopes,) = torch.autograd.grad(score, kept[layer])
    small = (slopes.mean((2, 3), keepdim=True) * kept[layer]).sum(1, keepdim=True).relu()
    return F.interpolate(small, size=images.shape[2:], mode="bilinear")[:, 0]


def _last_layer(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][-1]
    return captum_grad_cam(model, images, target, last)


CAPTUM_GRAD_CAM: Mistakes = {
    "no ReLU": (
        {"relu": False},
        "Captum leaves the paper's ReLU out unless you ask for it (`relu_attributions`).",
    ),
    "ReLU after upsampling": (
        {"relu": False, "late": True},
        "the ReLU belongs to the small map, before it is upsampled: negative places would pull "
        "their positive neighbours down.",
    ),
    "the layer's input": (
        {"of_input": True},
        "this is the map of what enters the layer; the exercise wants the layer's output.",
    ),
    "nearest pixel": (
        {"mode": "nearest"},
        "Captum's `interpolate` repeats pixels unless you choose a mode; the course's maps are "
        "bilinear.",
    ),
    "not upsampled": (
        {"mode": None},
        "the map still has the layer's height and width; it must have the images'.",
    ),
    "the first image's class for all": (
        {"one_class": True},
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    "of the softmax": (
        {"softmax": True},
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    "gradient times activation": (
        {"per_place": True},
        "here every place has a weight of its own; Grad-CAM averages the gradient over the places.",
    ),
    "always the last convolution": (
        _last_layer,
        "the map is the same for each layer; it must be of the one that is named.",
    ),
    "by hand": (_grad_cam_by_hand, NOT_CALLED.format("Captum's LayerGradCam")),
}


@exercise("hw05.captum_grad_cam", captum_grad_cam, CAPTUM_GRAD_CAM, forbidden=COURSE)
def check_captum_grad_cam(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's Grad-CAM is the course's, at several layers of three networks."""
    from captum.attr import LayerGradCam

    answer = called(answer, LayerGradCam, "attribute", "Captum's LayerGradCam")
    first, second = small_cases()
    small = [{**first, "layer": "stem"}, {**second, "layer": "conv1"}]
    course = [{**course_case(), "layer": layer} for layer in ("layer3.1", "layer4")]
    for some in (small, course):
        compare(
            answer,
            known,
            some,
            what="the map",
            hint="LayerGradCam needs the module itself, its `attribute` the target; then comes "
            "`LayerAttribution.interpolate`, and the channel's axis goes.",
        )
    yield "the maps are Grad-CAM of the named layer, each image with its class, (N, H, W)"
    yield "that holds on two small networks and at two layers of the course's"
    unchanged(answer)(**small[0])
    yield "model and images are left as they were"


# Shapley values of segments ------------------------------------------------------------------


def captum_shap(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    segments: Tensor,
    baseline: Tensor,
    samples: int,
    batch_size: int,
    seed: int,
    *,
    by_segment: bool = True,
    with_baseline: bool = True,
    all_samples: bool = True,
    in_parts: bool = True,
    softmax: bool = False,
    one_class: bool = False,
    summed: bool = False,
    seeded: bool = True,
    private: bool = True,
    method: str = "KernelShap",
) -> Tensor:
    """Captum's Shapley values of the segments, on each of their pixels: (N, H, W)."""
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
            baselines=baseline if with_baseline else None,
            target=int(target[0]) if one_class else target,
            feature_mask=segments[:, None] if by_segment else None,
            n_samples=samples if all_samples else 25,
            perturbations_per_eval=batch_size if in_parts else 1,
        )
    return values.sum(1) if summed else values[:, 0]


CAPTUM_SHAP: Mistakes = {
    "every pixel for itself": (
        {"by_segment": False},
        "without `feature_mask` each value of each channel is a player, and nobody could sample "
        "that many.",
    ),
    "Captum's default baseline": (
        {"with_baseline": False},
        "hidden segments show 0, the mean colour, unless `baselines` says what else.",
    ),
    "Captum's default number of samples": (
        {"all_samples": False},
        "`n_samples` is 25 an image unless you give it.",
    ),
    "one picture at a time": (
        {"in_parts": False},
        "Captum asks the model about one picture a call unless `perturbations_per_eval` allows "
        "more.",
    ),
    "of the softmax": (
        {"softmax": True},
        "the logit is to be explained: give Captum the model itself, with no softmax after it.",
    ),
    "the first image's class for all": (
        {"one_class": True},
        "each image has its own class: Captum takes the whole tensor as `target`.",
    ),
    "channels added": (
        {"summed": True},
        "the three channels carry the same value, their segment's: take one of them.",
    ),
    "no seed": (
        {"seeded": False},
        "Captum draws from torch's global generator: seed that, just before.",
    ),
    "the global generator moved": (
        {"private": False},
        "seeding the global generator changes what the rest of the notebook draws: "
        "torch.random.fork_rng gives it back as it was.",
    ),
    "LIME": ({"method": "Lime"}, NOT_CALLED.format("Captum's KernelShap")),
}


def _shap_exactly(**case: Any) -> Tensor:
    """All coalitions, in place of samples."""
    values = shapley.shap_image(
        case["model"],
        case["images"],
        case["target"],
        segments=case["segments"],
        baseline=case["baseline"],
        samples=2 ** (int(case["segments"].max()) + 1),
    )
    return tensor_of(values, "the map")


# The mistakes that the values show; the others give them, too, to the error of sampling.
_OTHER_VALUES = (
    "Captum's default baseline",
    "of the softmax",
    "the first image's class for all",
    "channels added",
)


@exercise("hw05.captum_shap", captum_shap, CAPTUM_SHAP, forbidden=COURSE)
def check_captum_shap(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's KernelShap is near the exact Shapley values of the segments."""
    from captum.attr import KernelShap

    answer = called(answer, KernelShap, "attribute", "Captum's KernelShap")
    ask = remembered(answer)
    asked = _segmented()
    with untouched(asked[0]["model"], asked[0]["images"]):
        _check_shap_calls(asked[0], ask, known)
    yield "model and images are left as they were"
    yield "each pixel carries its segment's value, (N, H, W)"
    yield "the model is asked as often as wanted, and not one picture at a time"
    _check_shap_seed(asked[1], answer, known)
    yield "the seed alone decides what is drawn"
    compare(
        ask,
        replace(known, mistakes={name: known.mistakes[name] for name in _OTHER_VALUES}),
        asked,
        reference=_shap_exactly,
        what="the map",
        hint="compare each option of `attribute` with the arguments of the function.",
        tolerance=0.1,
    )
    yield "the values are the Shapley values of the segments, to the error of sampling"


def _segmented() -> list[dict[str, Any]]:
    """The small networks; each image is cut into four or six segments, and has a colour to hide."""
    asked = []
    for case, colour in zip(small_cases(), ((1.5, -1.0, 2.0), (-1.0, 2.0, 0.5)), strict=True):
        height, width = case["images"].shape[2:]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        cut = [rows * (2 + i % 2) // height * 2 + columns * 2 // width for i in range(3)]
        baseline = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
        rest = {"samples": 60, "batch_size": 16, "seed": 3}
        asked.append({**case, "segments": torch.stack(cut), "baseline": baseline, **rest})
    return asked


def _check_shap_seed(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Refuse maps that do not depend on the seed alone, and a global generator that has moved."""
    before = torch.get_rng_state()
    first = {name: case[name][:1] for name in ("images", "target", "segments")}
    once, again, other = (
        tensor_of(answer(**{**case, **first, "seed": seed, "samples": 16}), "the map")
        for seed in (1, 1, 2)
    )
    moved = not torch.equal(torch.get_rng_state(), before)
    if not torch.equal(once, again):
        raise Wrong("two calls with the same seed give different maps", known.hint("no seed"))
    if moved:
        raise Wrong(
            "after the call torch's global generator is not where it was",
            known.hint("the global generator moved"),
        )
    if torch.equal(once, other):
        raise Wrong("two seeds give the same map", "the draws must depend on the argument `seed`.")


def _check_shap_calls(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Refuse another shape, values that differ within a segment, too few or too many calls."""
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
                    known.hint("every pixel for itself"),
                )
    if sum(sizes) < len(images) * case["samples"]:
        raise Wrong(
            f"the model saw {sum(sizes)} pictures, where {len(images)} images with "
            f"{case['samples']} samples each were wanted",
            known.hint("Captum's default number of samples"),
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
            known.hint("one picture at a time"),
        )


# A copy that Captum's DeepLIFT can read ------------------------------------------------------


def own_relus(
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


def _plain_copy(model: nn.Module) -> nn.Module:  # an answer may call copy.deepcopy itself
    return copy.deepcopy(model)


def _new_by_name(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.ReLU())
    return model


OWN_RELUS: Mistakes = {
    "a plain copy": (
        _plain_copy,
        "a ReLU that works in place writes over the input that DeepLIFT has to compare.",
    ),
    "a new module for each name": (
        _new_by_name,
        "one module, however new, still runs at several places of `forward`; the number of ReLUs "
        "that run counts, not the number of names.",
    ),
    "the model itself": (
        {"copied": False},
        "work on copy.deepcopy(model): others use the model that you got.",
    ),
    "functions forgotten": (
        {"functions": False},
        "F.relu and torch.relu have no module, so Captum's hooks never see them; they need modules "
        "as well.",
    ),
    "ReLUs lost": ({"keep": False}, "where a ReLU was taken out, another one must come in."),
}


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


@exercise("hw05.own_relus", own_relus, OWN_RELUS)
def check_own_relus(answer: Answer, known: Exercise) -> Iterator[str]:
    """A copy with the same logits in which every ReLU is a module that runs once."""
    from captum.attr import DeepLift

    course = course_case()
    small = cases.double(networks.SmallResNet, 3, (8, 8, 8, 8))
    shared = cases.double(cases.Shared), noise(3, 8, 12)
    functional = cases.double(cases.Functional), noise(3, 11, 9, seed=1)
    half = small, course["images"][:, :, ::2, ::2].double()
    for model, x in (shared, half, functional, (course["model"], course["images"])):
        with torch.no_grad(), _Relus() as relus:
            wanted = model(x.clone())
        before = _relu_state(model)
        result = answer(model)
        if _relu_state(model) != before:
            raise Wrong("the model itself has changed", known.hint("the model itself"))
        if not isinstance(result, nn.Module):
            raise Wrong(
                f"the answer gives {type(result).__name__}, wanted is a network (nn.Module)",
                "does the function end with return, and what does it return?",
            )
        if result is model:
            hint = known.hint("the model itself")
            raise Wrong("the answer gives the model back, not a copy", hint)
        _check_copy(result, x, wanted, relus.count, known)
    yield "the copies of four networks have the logits of the models, which did not change"
    yield "each ReLU is a module of its own, runs once, and not in place"
    for model, x in (shared, functional):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = DeepLift(answer(model)).attribute(x.clone(), torch.ones_like(x), target=1)
        target = torch.ones(len(x), dtype=torch.long)
        gap = completeness_gap(model, x, maps, target, torch.ones_like(x))
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


def _runs(network: nn.Module, x: Tensor) -> tuple[Tensor, int, dict[str, int]]:
    """A network's logits, how many ReLUs ran, and how often each module of that kind did."""
    runs: dict[str, int] = {}

    def counting(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            runs[name] = runs.get(name, 0) + 1

        return count

    handles = [
        module.register_forward_pre_hook(counting(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        with torch.no_grad(), _Relus() as relus:
            logits = tensor_of(network(x.clone()), "the copy's output")
    finally:
        for handle in handles:
            handle.remove()
    return logits, relus.count, runs


def _check_copy(
    result: nn.Module, x: Tensor, wanted: Tensor, wanted_relus: int, known: Exercise
) -> None:
    """Refuse a copy with other logits, or in which not every ReLU is a module that runs once."""
    logits, relus, runs = _runs(result, x)
    if any(getattr(result.get_submodule(name), "inplace", False) for name in runs):
        raise Wrong("a ReLU of the copy works in place", known.hint("a plain copy"))
    if most := [name for name, times in runs.items() if times > 1]:
        raise Wrong(
            f"the ReLU {most[0]!r} of the copy runs {runs[most[0]]} times",
            known.hint("a new module for each name"),
        )
    if relus < wanted_relus:
        raise Wrong(
            f"{relus} ReLUs run in the copy, and {wanted_relus} in the model",
            known.hint("ReLUs lost"),
        )
    if len(runs) < relus:
        raise Wrong(
            f"{relus} ReLUs run in the copy, but only {len(runs)} of them are modules",
            known.hint("functions forgotten"),
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


def lucent_picture(
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
) -> Tensor:
    """Lucent's picture of a unit in model space: (1, 3, size, size)."""
    objectives, param, render, transform = _lucent()

    def prepared(x: Tensor) -> Tensor:
        return normalize(x, list(mean), list(std))

    worker = model if hooks else copy.deepcopy(model)
    if frozen and not hooks:
        worker.requires_grad_(False)
    torch.manual_seed(seed)
    np.random.seed(seed if all_seeds else random.SystemRandom().randrange(2**31))  # noqa: NPY002
    (image,) = render.render_vis(
        worker,
        sign * objectives.channel(layer.replace(".", "_"), unit),
        lambda: param.image(size),
        transforms=[*transform.standard_transforms, *([prepared] if own else [])],
        thresholds=(steps,),
        preprocess=imagenet,
        fixed_image_size=(size, size) if fixed else None,
        progress=False,
        show_image=False,
    )
    for parameter in model.parameters():
        if hooks or not frozen:
            parameter.grad = None if frozen else torch.zeros_like(parameter)
    found = torch.from_numpy(image).permute(0, 3, 1, 2)
    return prepared(found) if model_space else found


LUCENT_PICTURE: Mistakes = {
    "not normalised": (
        {"own": False},
        "Lucent's picture has colours from 0 to 1; your model wants (colour − mean) / std, as the "
        "last of the `transforms`.",
    ),
    "ImageNet's normalisation": (
        {"own": False, "imagenet": True},
        "with `preprocess` Lucent normalises by ImageNet's mean and std; your model has its own.",
    ),
    "normalised twice": (
        {"imagenet": True},
        "Lucent normalises too, unless `preprocess` is off: now it is done twice.",
    ),
    "enlarged to 224 pixels": (
        {"fixed": False},
        "Lucent enlarges smaller pictures to 224 unless `fixed_image_size` forbids it.",
    ),
    "colours from 0 to 1": (
        {"model_space": False},
        "the picture that Lucent gives back has colours from 0 to 1; return it in model space.",
    ),
    "downhill": (
        {"sign": -1},
        "this is what the unit likes least: Lucent's objectives carry their minus sign already.",
    ),
    "hooks left": ({"hooks": True}, HOOKS_LEFT),
    "gradients left": ({"frozen": False}, GRADIENTS_LEFT),
    "half a seed": (
        {"all_seeds": False},
        "torch draws the start, and NumPy the transformations: both generators need the seed.",
    ),
}


@exercise(
    "hw05.lucent_picture",
    lucent_picture,
    LUCENT_PICTURE,
    forbidden=("course_utils.units.maximize",),
)
def check_lucent_picture(answer: Answer, known: Exercise) -> Iterator[str]:
    """Lucent's picture of a unit, in model space, of a model that stays as it was."""
    _, _, render, transform = _lucent()
    answer = called(answer, render, "hook_model", "Lucent's render_vis")
    model = copy.deepcopy(cases.double(Colour)).float().to(transform.device)
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
        _check_seen(seen, case, known)
        yield "the model got pictures of its own size, normalised as it wants them, once"
        yield "no hook and no gradient is left on it"
        _check_found(found, case, known)
        yield "the picture is (1, 3, size, size) in model space, and each pixel a possible colour"
        yield "red is what pleases a unit that wants red without green"
        _check_picture_seed(case, answer, known)
        yield "the seed alone decides"
        other = tensor_of(answer(**{**case, "unit": 1, "steps": 16}), "the picture")
        redness = [float((x[0, 0] - x[0, 2]).mean()) for x in (found.cpu(), other.cpu())]
        if redness[1] > redness[0] - 1:  # of 20 between pure red and pure blue, and back
            raise Wrong("another unit gets the same colours", "use the arguments layer and unit.")
        yield "another unit gets another picture"


def _check_picture_seed(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Refuse pictures that do not depend on the seed alone."""
    deep = copy.deepcopy(cases.double(cases.Functional)).float().to(_lucent()[3].device)
    few = {**case, "model": deep, "layer": "conv2", "unit": 3, "steps": 3}
    once, again, other = (
        tensor_of(answer(**{**few, "seed": seed}), "the picture") for seed in (1, 1, 2)
    )
    if not torch.equal(once, again):
        raise Wrong(
            "two calls with the same seed give different pictures", known.hint("half a seed")
        )
    if torch.equal(once, other):
        raise Wrong("two seeds give the same picture", "use the argument `seed`.")


def _generators_kept() -> ExitStack:
    """Lucent draws from NumPy's and torch's global generators; here they are given back."""
    stack = ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=[]))
    stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
    stack.callback(random.setstate, random.getstate())
    return stack


def _check_seen(seen: list[Tensor], case: dict[str, Any], known: Exercise) -> None:
    """Refuse too few steps, pictures of another size, and grey that was normalised otherwise."""
    if len(seen) < case["steps"]:
        raise Wrong(
            f"the model ran {len(seen)} times, wanted are {case['steps']} steps",
            "`thresholds` says after which steps Lucent gives a picture: the last is the end.",
        )
    if seen[0].shape[2:] != (case["size"],) * 2:
        raise Wrong(
            f"the model got pictures of {tuple(seen[0].shape[2:])} pixels, where size is "
            f"{case['size']}",
            known.hint("enlarged to 224 pixels"),
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
            known.hint(nearest),
        )
    if nearest:
        raise Wrong("the model's pictures are normalised twice", known.hint("normalised twice"))


def _check_found(found: Tensor, case: dict[str, Any], known: Exercise) -> None:
    """Refuse a picture of another shape, with impossible colours, or with more green than red."""
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
            "the picture's numbers are not in model space", known.hint("colours from 0 to 1")
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
            known.hint("downhill"),
        )
    if red < green + 0.01:
        raise Wrong(
            "the picture is hardly red",
            "the whole map of the unit is to answer (objectives.channel), after all the steps.",
        )
