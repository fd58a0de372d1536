"""Homework 05: the libraries of the field, their options, and who is right where they disagree."""

import copy
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils import networks
from course_utils.homework import cases
from course_utils.homework.checks import (
    WRITE_IT,
    Exercise,
    Mistakes,
    compare,
    exercise,
    part,
    remembered,
    tensor_of,
)
from course_utils.homework.guard import ITSELF, RESEEDED, SHARED, Answer, Wrong
from course_utils.methods import cam, gradients, shapley
from course_utils.worlds import scenes

COURSE = (gradients.__name__, cam.__name__, shapley.__name__)
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
    def watched(**case: Any) -> Any:
        calls: list[str] = []

        @functools.wraps(function)
        def noted(*inner: Any, **settings: Any) -> Any:
            calls.append(name)
            return function(*inner, **settings)

        with warnings.catch_warnings(), mock.patch.object(owner, name, noted):
            warnings.simplefilter("ignore")  # Captum warns of much that is as it should be
            try:
                result = answer(**case)
            except Wrong as wrong:
                if wrong.hint != WRITE_IT:
                    raise
                raise Wrong(wrong.what, NOT_CALLED.format(title)) from None
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


@cases.once
def network(kind: type[nn.Module], *sizes: Any) -> nn.Module:
    """A small network in float64, whose logits differ a lot from picture to picture."""
    model = copy.deepcopy(cases.double(kind, *sizes))
    with cases.global_seed(8):
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    return model


def small_cases() -> list[dict[str, Any]]:
    """Two small networks of different architecture, three images each with classes of its own."""
    return [
        {
            "model": network(cases.Shared),
            "images": noise(3, 8, 12),
            "target": torch.tensor([4, 0, 2]),
        },
        {
            "model": network(cases.Functional),
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
    more: int = 0,
    one_baseline: bool = False,
    sign: int = 1,
    finish: Callable[[Tensor], Tensor] = lambda gaps: gaps,
) -> tuple[Tensor, Tensor]:
    """Captum's maps (N, C, H, W) and its gaps (N,)."""
    from captum.attr import IntegratedGradients

    function = softmax_of(model) if softmax else model
    baseline = baseline[:1] if one_baseline else baseline
    maps, gap = IntegratedGradients(function, multiply_by_inputs=multiply).attribute(
        images,
        baselines=baseline.expand_as(images) if from_baseline else None,
        target=int(target[0]) if one_class else target,
        n_steps=steps + more if all_steps else 50,
        method=rule,
        internal_batch_size=batch_size if in_parts else None,
        return_convergence_delta=True,
    )
    return maps, sign * finish(gap)


def _courses_ig(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    maps = gradients.integrated_gradients(model, images, target, baseline=baseline, steps=steps)
    return maps, maps.sum((1, 2, 3))


CAPTUM_IG: Mistakes = {
    "Captum's default rule": (
        {"rule": "gausslegendre"},
        "Captum places the steps by another rule unless you choose; the exercise wants the middle "
        "of each step (`method`).",
    ),
    "trapezoids": (
        {"rule": "riemann_trapezoid"},
        "these are trapezoids, with the two ends counting half; the exercise wants the middle of "
        "each step (`method`).",
    ),
    "right ends": (
        {"rule": "riemann_right"},
        "each step's gradient is taken at its end; the exercise wants the middle of each step "
        "(`method`).",
    ),
    "one step more": (
        {"more": 1},
        "there are steps + 1 gradients: the midpoint rule takes one of each step, `steps` in all.",
    ),
    "Captum's default baseline": (
        {"from_baseline": False},
        "without `baselines` Captum starts at 0, and in model space that is the mean colour.",
    ),
    "the first baseline for all": (
        {"one_baseline": True},
        "each image may have a baseline of its own: hand on all of them, expanded to the images.",
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
    "one gap": (
        {"finish": lambda gaps: gaps.mean()},
        "this is one number; wanted is one for each image, as Captum gives them.",
    ),
    "squeezed": (
        {"finish": torch.squeeze},
        "a batch of one image is a batch, too: its gaps have the shape (1,). Leave them as Captum "
        "gives them, without squeeze().",
    ),
    "the course's": (_courses_ig, NOT_CALLED.format("Captum's IntegratedGradients")),
}


@exercise("hw05.captum_ig", captum_ig, CAPTUM_IG, forbidden=COURSE)
def check_captum_ig(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's integrated gradients are the course's, image by image, within the batch size."""
    from captum.attr import IntegratedGradients

    answer = called(answer, IntegratedGradients, "attribute", "Captum's IntegratedGradients")
    first, second, course = *small_cases(), course_case()
    first["baseline"] = 0.3 * first["images"].flip(0, 3) - 0.5
    second["baseline"] = 0.3 * second["images"][:1].flip(3) - 0.5
    first |= {"steps": 8, "batch_size": 6}
    second |= {"steps": 8, "batch_size": 5}
    alone = second | {name: second[name][:1] for name in ("images", "target")}
    course |= {"baseline": cases.shipped().black(course["images"]), "steps": 4, "batch_size": 4}
    hint = "with `return_convergence_delta` Captum gives both."
    maps, gaps = (part(number, "two tensors: maps and gaps", hint) for number in (0, 1))
    _, sizes = _batches(first, maps(answer))
    ask = remembered(answer)
    # In the course's network a kink near a point on the path moves the map by some thousandths.
    for some, tolerance in (([first, second, alone], 1e-3), ([course], 1e-2)):
        compare(
            ask,
            known,
            some,
            of=maps,
            what="the map",
            hint="compare each option of `attribute` with the arguments of the function.",
            tolerance=tolerance,
        )
    yield "the maps are integrated gradients by the midpoint rule, each image with its class"
    yield "on two small networks and the course's, with one baseline for all and one for each image"
    compare(
        ask,
        known,
        [first, second, alone, course],
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
    finish: Callable[[Tensor], Tensor] = lambda maps: maps[:, 0],
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
        return finish(small)
    size = tuple(images.shape[2:])
    large = LayerAttribution.interpolate(small, size, interpolate_mode=mode)
    return finish(large.relu() if late else large)


def _courses_grad_cam(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return cam.grad_cam(model, images, target, layer=layer)


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
    "a channel left over": (
        {"finish": lambda maps: maps},
        "Captum's map has an axis of one channel, (N, 1, H, W): take that axis away.",
    ),
    "squeezed": (
        {"finish": torch.squeeze},
        "a batch of one image is a batch, too: squeeze() takes away its axis as well. Take away "
        "the channels' axis alone.",
    ),
    "the course's": (_courses_grad_cam, NOT_CALLED.format("Captum's LayerGradCam")),
}


@exercise("hw05.captum_grad_cam", captum_grad_cam, CAPTUM_GRAD_CAM, forbidden=COURSE)
def check_captum_grad_cam(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's Grad-CAM is the course's, at several layers of three networks."""
    from captum.attr import LayerGradCam

    answer = called(answer, LayerGradCam, "attribute", "Captum's LayerGradCam")
    first, second = small_cases()
    alone = {name: value if name == "model" else value[:1] for name, value in second.items()}
    small = [{**first, "layer": "norm"}, {**second, "layer": "act"}, {**alone, "layer": "conv2"}]
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
    yield "that holds at three layers of two small networks and at two layers of the course's"


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
    one_mask: bool = False,
    with_baseline: bool = True,
    draws: Callable[[int], int] = lambda samples: samples,
    in_parts: bool = True,
    softmax: bool = False,
    one_class: bool = False,
    finish: Callable[[Tensor], Tensor] = lambda values: values[:, 0],
    seeded: bool = True,
    private: bool = True,
    method: str = "KernelShap",
) -> Tensor:
    """Captum's Shapley values of the segments, on each of their pixels: (N, H, W)."""
    from captum import attr

    segments = segments[:1] if one_mask else segments
    explainer = getattr(attr, method)(softmax_of(model) if softmax else model)
    with torch.random.fork_rng(devices=[], enabled=private), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if seeded:
            torch.manual_seed(seed)
        values = explainer.attribute(
            images,
            baselines=baseline if with_baseline else None,
            target=int(target[0]) if one_class else target,
            feature_mask=segments[:, None] if by_segment else None,
            n_samples=draws(samples),
            perturbations_per_eval=batch_size if in_parts else samples,
        )
    return finish(values)


CAPTUM_SHAP: Mistakes = {
    "every pixel for itself": (
        {"by_segment": False},
        "without `feature_mask` each value of each channel is a player, and nobody could sample "
        "that many.",
    ),
    "the first image's segments for all": (
        {"one_mask": True},
        "each image is cut in its own way: `feature_mask` takes a mask for each image.",
    ),
    "Captum's default baseline": (
        {"with_baseline": False},
        "hidden segments show 0, the mean colour, unless `baselines` says what else.",
    ),
    "Captum's default number of samples": (
        {"draws": lambda samples: 25},
        "these are too few: `n_samples` is how many coalitions an image gets, and 25 unless you "
        "give it.",
    ),
    "samples for each segment": (
        {"draws": lambda samples: 4 * samples},
        "these are too many: `n_samples` is how many coalitions an image gets in all, whatever the "
        "number of its segments.",
    ),
    "all coalitions at once": (
        {"in_parts": False},
        "`perturbations_per_eval` is how many pictures the model may get at once: at most "
        "`batch_size`.",
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
        {"finish": lambda values: values.sum(1)},
        "the three channels carry the same value, their segment's: take one of them.",
    ),
    "channels left over": (
        {"finish": lambda values: values},
        "the three channels carry the same value, their segment's: give one map an image, "
        "(N, H, W).",
    ),
    "squeezed": (
        {"finish": lambda values: values[:, 0].squeeze()},
        "a batch of one image is a batch, too: its map is (1, H, W). squeeze() takes away the "
        "images' axis as well; take away the channels' axis alone.",
    ),
    "no seed": (
        {"seeded": False},
        "Captum draws from torch's global generator: seed that, just before.",
    ),
    "the global generator seeded": ({"private": False}, RESEEDED),
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


# What scikit-learn draws, and what is imported with it, moves generators; that is Captum's doing.
@exercise("hw05.captum_shap", captum_shap, CAPTUM_SHAP, forbidden=COURSE, moves=("NumPy", "Python"))
def check_captum_shap(answer: Answer, known: Exercise) -> Iterator[str]:
    """Captum's KernelShap is near the exact Shapley values of the segments."""
    from captum.attr import KernelShap

    answer = called(answer, KernelShap, "attribute", "Captum's KernelShap")
    ask = remembered(answer)
    asked = _segmented()
    _check_shap_calls(asked[0], ask, known)
    yield "each pixel carries its segment's value, (N, H, W)"
    yield "the model sees as many pictures as wanted, and never more than batch_size at once"
    _check_shap_seed(asked[1], answer, known)
    yield "the seed alone decides what is drawn"
    compare(
        ask,
        replace(known, mistakes={name: known.mistakes[name] for name in _OTHER_VALUES}),
        asked,
        reference=_shap_exactly,
        what="the map",
        hint="compare each option of `attribute` with the arguments of the function.",
        tolerance=0.2,
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
        rest = {"samples": 500, "batch_size": 50, "seed": 3}
        asked.append({**case, "segments": torch.stack(cut), "baseline": baseline, **rest})
    return asked


def _check_shap_seed(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Refuse maps that do not depend on the seed alone."""
    first = {name: case[name][:1] for name in ("images", "target", "segments")}
    once, again, other = (
        tensor_of(answer(**{**case, **first, "seed": seed, "samples": 16}), "the map")
        for seed in (1, 1, 2)
    )
    if once.shape != case["segments"][:1].shape:
        what = f"the map of one image is {tuple(once.shape)}, wanted is (1, H, W)"
        raise Wrong(what, known.hint("squeezed"))
    if not torch.equal(once, again):
        raise Wrong("two calls with the same seed give different maps", known.hint("no seed"))
    if torch.equal(once, other):
        raise Wrong("two seeds give the same map", "the draws must depend on the argument `seed`.")


def _check_shap_calls(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Refuse another shape, values that differ within a segment, too few or too many pictures."""
    result, sizes = _batches(case, answer)
    found, (n, channels, height, width) = tensor_of(result, "the map"), case["images"].shape
    if found.shape != (n, height, width):
        raise Wrong(
            f"the map is {tuple(found.shape)}, wanted is {(n, height, width)}",
            known.hint("channels left over")
            if found.shape == (n, channels, height, width)
            else "one map an image, (N, H, W): a pixel carries the value of its segment.",
        )
    if not _is_even(found, case["segments"]):
        of_first = _is_even(found, case["segments"][:1].expand_as(found))
        mistake = "the first image's segments for all" if of_first else "every pixel for itself"
        hint = known.hint(mistake)
        raise Wrong("pixels of the same segment carry different values", hint)
    wanted, seen = n * case["samples"], sum(sizes)
    if not wanted <= seen <= wanted + 5 * n:  # some for the picture itself and the baseline
        few = "Captum's default number of samples"
        raise Wrong(
            f"the model saw {seen} pictures, where {n} images with {case['samples']} samples each "
            "were wanted",
            known.hint(few if seen < wanted else "samples for each segment"),
        )
    if max(sizes) > case["batch_size"]:
        raise Wrong(
            f"the model got {max(sizes)} pictures at once, where batch_size is "
            f"{case['batch_size']}",
            known.hint("all coalitions at once"),
        )


def _is_even(maps: Tensor, segments: Tensor) -> bool:
    """Whether all pixels of a segment have the same value, to rounding."""
    rounding = 1e-6 * maps.abs().max()
    inside = (
        map_[cut == label]
        for map_, cut in zip(maps, segments, strict=True)
        for label in cut.unique()
    )
    return all(bool(values.max() - values.min() <= rounding) for values in inside)


# A copy that Captum's DeepLIFT can read ------------------------------------------------------


def own_relus(
    model: nn.Module,
    *,
    copied: bool = True,
    functions: bool = True,
    keep: bool = True,
    recompiled: bool = True,
    finish: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> nn.Module:
    """The model with a ReLU module for each time that one runs; keep=False loses all but one."""
    graph = fx.symbolic_trace(copy.deepcopy(model) if copied else model)
    number = 0
    for node in graph.graph.nodes:
        module = node.op == "call_module" and isinstance(
            graph.get_submodule(str(node.target)), nn.ReLU
        )
        if module or (functions and node.target in (F.relu, torch.relu)):
            name = f"own_relu_{number}"
            graph.add_submodule(name, nn.ReLU() if keep or not number else nn.Identity())
            node.op, node.target, node.kwargs = "call_module", name, {}
            number += 1
    if recompiled:
        graph.recompile()
    return finish(graph)


def _plain_copy(model: nn.Module) -> nn.Module:  # an answer may call copy.deepcopy itself
    return copy.deepcopy(model)


def _new_by_name(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.ReLU())
    return model


def _itself(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
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
    "the model itself": (_itself, ITSELF),
    "traced without a copy": ({"copied": False}, SHARED),
    "recompile forgotten": (
        {"recompiled": False},
        "the graph has changed, but what runs was written down before: call recompile() at the "
        "end.",
    ),
    "always in eval mode": (
        {"finish": nn.Module.eval},
        "the copy keeps the mode of the network, and of each layer in it: call neither eval() nor "
        "train().",
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
    half = course["images"][:, :, ::2, ::2].double()
    training = copy.deepcopy(network(cases.Shared)).train()
    training.get_submodule("norm").eval()
    shared = network(cases.Shared), noise(3, 8, 12)
    functional = network(cases.Functional), noise(3, 11, 9, seed=1)
    for model, x in (
        shared,
        (training, noise(3, 8, 12)),
        (network(networks.SmallResNet, 3, (8, 8, 8, 8)), half),
        functional,
        (course["model"], course["images"]),
    ):
        result = answer(model=model)
        if not isinstance(result, nn.Module):
            raise Wrong(
                f"the answer gives {type(result).__name__}, wanted is a network (nn.Module)",
                "does the function end with return, and what does it return?",
            )
        _check_copy(model, result, x, known)
    yield "the copies of five networks have the networks' logits and modes"
    yield "each ReLU is a module of its own, runs once, and not in place"
    for model, x in (shared, functional):
        baseline = torch.ones_like(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explainer = DeepLift(answer(model=model))
            maps = explainer.attribute(x.clone(), baseline, target=1)
            gap = explainer.compute_convergence_delta(maps, baseline, x, target=1)
        if float(gap.abs().max()) > 1e-6:
            raise Wrong(
                "Captum's DeepLIFT of the copy does not sum to f(x) − f(x')",
                "is there a ReLU whose module Captum does not find, or that runs elsewhere?",
            )
    yield "Captum's DeepLIFT runs on the copies, and is complete where nothing is max-pooled"


def _runs(network: nn.Module, x: Tensor) -> tuple[Tensor, int, dict[str, int]]:
    """A network's logits, how many ReLUs ran, and how often each module of that kind did."""
    runs: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
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


def _modes(network: nn.Module) -> Counter[Any]:
    """How many layers of each kind are in training mode, and how many are not; ReLUs aside."""
    layers = [layer for layer in network.modules() if not [*layer.children()]]
    return Counter((type(x), x.training) for x in layers if not isinstance(x, nn.ReLU))


def _check_copy(model: nn.Module, result: nn.Module, x: Tensor, known: Exercise) -> None:
    """Refuse a copy with other logits, or in which not every ReLU is a module that runs once."""
    wanted, wanted_relus, _ = _runs(model, x)
    logits, relus, runs = _runs(result, x)
    if isinstance(result, fx.GraphModule) and result.code != result.graph.python_code("self").src:
        raise Wrong("the copy does not run its own graph", known.hint("recompile forgotten"))
    if any(getattr(result.get_submodule(name), "inplace", False) for name in runs):
        raise Wrong("a ReLU of the copy works in place", known.hint("a plain copy"))
    if most := [name for name, times in runs.items() if times > 1]:
        what = f"the ReLU {most[0]!r} of the copy runs {runs[most[0]]} times"
        raise Wrong(what, known.hint("a new module for each name"))
    if relus < wanted_relus:
        what = f"{relus} ReLUs run in the copy, and {wanted_relus} in the model"
        raise Wrong(what, known.hint("ReLUs lost"))
    if len(runs) < relus:
        what = f"{relus} ReLUs run in the copy, but only {len(runs)} of them are modules"
        raise Wrong(what, known.hint("functions forgotten"))
    if result.training != model.training or _modes(result) != _modes(model):
        raise Wrong("the copy is in another mode", known.hint("always in eval mode"))
    if logits.shape != wanted.shape or not torch.allclose(logits, wanted, atol=1e-4):
        raise Wrong(
            "the copy's logits are not the model's",
            "weights and running statistics must be copied, too: copy.deepcopy.",
        )
