"""Homework 02: Grad-CAM and integrated gradients, written from scratch."""

from collections.abc import Callable, Iterator
from copy import deepcopy as copied
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.homework import cases
from course_utils.homework.checks import (
    CHANNEL_LEFT,
    FIRST,
    LOSS,
    SQUEEZED,
    TRAINING,
    Exercise,
    Mistakes,
    compare,
    exercise,
    part,
)
from course_utils.homework.guard import (
    GRADIENTS_LEFT,
    HOOKS_LEFT,
    NEEDS_GRADIENT,
    ON_THE_GRAPH,
    Answer,
    Wrong,
    after_an_error,
)
from course_utils.methods import cam, gradients
from course_utils.worlds import scenes

LIBRARIES = ("course_utils.methods",)
FIELD = ("captum", "pytorch_grad_cam", "saliency", "zennit")
# Where a ReLU's input is zero but for rounding, another order of operations switches it, and the
# gradient jumps: up to 0.0003 of the largest value was seen. The mistakes are off by far more.
ROUNDING = 1e-2


# What the answers are tried on ----------------------------------------------------------------


def _labels() -> tuple[str, str, str]:
    """What is in the scenes: a thing in front, the one behind it, and one alone."""
    return cases.chosen(
        ("football", "tiger", "crow"), ("crow", "umbrella", "zebra"), ("cow", "zebra", "football")
    )


@cases.once
def _scenes() -> Tensor:
    """Two things, and one thing, in model space; at half their size, to be quick."""
    front, behind, alone = _labels()
    both = {"size": 0.5, "x": 0.72, "companion": behind, "companion_size": 0.55}
    specs = scenes.standard(front, **both), scenes.standard(alone)
    return F.avg_pool2d(cases.inputs(*specs), 2)


def _networks() -> list[dict[str, Any]]:
    """Networks, each with images and with classes that are not all the answers."""
    return [
        {
            "model": cases.shipped().model,
            "images": _scenes().clone(),
            "target": cases.classes(*_labels()[1:]),
        },
        {
            "model": cases.unpooled(),
            "images": cases.noise(4, 3, 12, 20),
            "target": torch.tensor([3, 0, 4, 3]),
        },
    ]


def _at(*names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The networks, each at these layers of its own."""
    return [
        {**case, "layer": layer}
        for case, own in zip(_networks(), names, strict=True)
        for layer in own
    ]


# The two tensors of Grad-CAM -------------------------------------------------------------------


def _scores(logits: Tensor, target: Tensor, of: str = "logit") -> Tensor:
    """The number of each image that is explained, or what is taken for it."""
    if of == "all pairs":
        return logits[:, target].sum(1)
    if of == "every class":
        return logits.sum(1)
    if of == "loss":
        return F.cross_entropy(logits, target, reduction="none") / len(target)
    if of == "first":
        target = target[:1].expand(len(target))
    if of == "argmax":
        target = logits.argmax(1)
    if of == "softmax":
        logits = logits.softmax(1)
    return logits.gather(1, target[:, None])[:, 0]


def maps_and_slopes(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    layer: str,
    *,
    of: str = "logit",
    copy: bool = True,
    remove: bool = True,
    entering: bool = False,
    backward: bool = False,
    divide: bool = False,
    training: bool = False,
    attached: bool = False,
    exchanged: bool = False,
    lend: bool = True,
) -> tuple[Tensor, Tensor]:
    """A layer's output A and each image's ∂f_c/∂A, by a forward hook: two (N, K, h, w)."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        kept.append(inputs[0] if entering else output)
        return output.clone() if copy else output

    model = copied(model).train() if training else model
    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        x = (images.detach().clone() if lend else images).requires_grad_()
        scores = _scores(model(x.clone()), target, of)
    finally:
        if remove:
            hook.remove()
    total = scores.mean() if divide else scores.sum()
    if backward:
        total.backward(retain_graph=True)
    (slopes,) = torch.autograd.grad(total, kept[0])
    maps = kept[0] if attached else kept[0].detach()
    return (slopes, maps) if exchanged else (maps, slopes)


SOFTMAX = (
    "this is the probability's gradient. Explain the logit: a probability also moves when only "
    "another class's logit does, and it hardly moves at all where the model is sure."
)
ARGMAX = "this explains the model's answer, not the class that `target` names."
ALL_PAIRS = (
    "logits[:, target] takes all the targets for every image. Of each image you want one number, "
    "its own target's logit, whatever else is in the batch."
)

MAPS_AND_SLOPES: Mistakes = {
    "softmax": ({"of": "softmax"}, SOFTMAX),
    "argmax": ({"of": "argmax"}, ARGMAX),
    "loss": ({"of": "loss"}, LOSS),
    "all pairs": ({"of": "all pairs"}, ALL_PAIRS),
    "training": ({"training": True}, TRAINING),
    "first": ({"of": "first"}, FIRST),
    "every class": (
        {"of": "every class"},
        "this is the gradient of the sum of all classes' logits. Choose each image's target first.",
    ),
    "divided by N": (
        {"divide": True},
        "the slopes shrink with the number of images: a mean over the batch divides by N. An "
        "image's result must not depend on which others share its batch.",
    ),
    "overwritten": (
        {"copy": False},
        "the layer is followed by an in-place ReLU, which overwrites the very tensor that the hook "
        "has kept. Let the network go on with a copy: what a forward hook returns replaces the "
        "output.",
    ),
    "input": (
        {"entering": True},
        "these are the maps that enter the layer; wanted are those that it puts out.",
    ),
    "exchanged": (
        {"exchanged": True},
        "the two have changed places: first the layer's output, then the gradient.",
    ),
    "hook left": ({"remove": False}, HOOKS_LEFT),
    "backward": ({"backward": True}, GRADIENTS_LEFT),
    "on the graph": ({"attached": True}, ON_THE_GRAPH),
    "on the images": ({"lend": False}, NEEDS_GRADIENT),
}


@exercise(
    "hw02.maps_and_slopes",
    maps_and_slopes,
    MAPS_AND_SLOPES,
    forbidden=(*LIBRARIES, "course_utils.layers", *FIELD),
)
def check_maps_and_slopes(answer: Answer, known: Exercise) -> Iterator[str]:
    """A layer's activations and the gradient there; nothing stays on the model."""
    asked = _at(("layer4", "layer2.0"), ("0", "4"))
    for number, what in enumerate(("the layer's output", "the gradient")):
        compare(
            answer,
            known,
            asked,
            of=part(number, "two tensors", "the function ends with: return maps, slopes."),
            what=what,
            hint="take the layer's output in a forward hook, and of each image the gradient of its "
            "own target's logit with respect to that output.",
            tolerance=ROUNDING,
        )
        yield f"{what} is right at four layers of two networks"
    after_an_error(answer, asked[2])
    yield "nothing stays on the model, after an error either"


# Grad-CAM --------------------------------------------------------------------------------------

Step = Callable[[Tensor], Tensor]


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    layer: str,
    *,
    of: str = "logit",
    weigh: Step = lambda slopes: slopes.mean((2, 3), keepdim=True),
    add: Step = lambda weighted: weighted.sum(1),
    finish: Step = torch.relu,
    enlarge: bool = False,
) -> Tensor:
    """ReLU(Σ_k α_k A_k), α_k the mean slope of channel k: (N, h, w)."""
    maps, slopes = maps_and_slopes(model, images, target, layer, of=of)
    result = finish(add(weigh(slopes) * maps))
    return _enlarged(result, images.shape[2:]) if enlarge else result


def _enlarged(maps: Tensor, size: Any, **options: Any) -> Tensor:
    options = dict[str, Any](mode="bilinear", align_corners=False) | options
    return F.interpolate(maps[:, None], size=tuple(size), **options)[:, 0]


GRAD_CAM: Mistakes = {
    "no ReLU": (
        {"finish": lambda result: result},
        "there are negative values in it: Grad-CAM ends with a ReLU.",
    ),
    "ReLU inside the sum": (
        {"add": lambda weighted: weighted.relu().sum(1)},
        "ReLU comes after the sum over channels. Before it, what speaks against the class is gone "
        "before it could be set against what speaks for it.",
    ),
    "magnitudes": (
        {"finish": torch.abs},
        "the magnitude turns evidence against the class into evidence for it; ReLU sets it to 0.",
    ),
    "HiResCAM": (
        {"weigh": lambda slopes: slopes},
        "each place is multiplied with its own gradient: that is HiResCAM. Grad-CAM has one weight "
        "for each channel.",
    ),
    "sum for mean": (
        {"weigh": lambda slopes: slopes.sum((2, 3), keepdim=True)},
        "the map is h·w times too large: is a channel's weight the mean of its gradient, or the "
        "sum?",
    ),
    "over the batch": (
        {"weigh": lambda slopes: slopes.mean((0, 2, 3), keepdim=True)},
        "the weights are averaged over the images, too. Each image has weights of its own.",
    ),
    "positive slopes": (
        {"weigh": lambda slopes: slopes.relu().mean((2, 3), keepdim=True)},
        "the negative gradients are cut before the mean. Only the finished map goes through ReLU.",
    ),
    "mean of channels": (
        {"add": lambda weighted: weighted.mean(1)},
        "the weighted maps are averaged over the channels; wanted is their sum.",
    ),
    "no weights": (
        {"weigh": torch.ones_like},
        "all channels count the same: where do the gradients come in?",
    ),
    "scaled": (
        {"finish": lambda m: m.relu() / m.relu().amax((1, 2), True).clamp(1e-9)},
        "each map is scaled to its own maximum. Return it in logits; scaling is the picture's job.",
    ),
    "enlarged": (
        {"enlarge": True},
        "the map has the images' size. Return it as small as the layer's maps, (N, h, w).",
    ),
    "channel left": ({"add": lambda weighted: weighted.sum(1, keepdim=True)}, CHANNEL_LEFT),
    "squeezed": ({"finish": lambda m: m.relu().squeeze()}, SQUEEZED),
    "softmax": ({"of": "softmax"}, SOFTMAX),
    "argmax": ({"of": "argmax"}, ARGMAX),
    "loss": ({"of": "loss"}, LOSS),
    "all pairs": ({"of": "all pairs"}, ALL_PAIRS),
    "first": ({"of": "first"}, FIRST),
}


@exercise("hw02.grad_cam", grad_cam, GRAD_CAM, forbidden=(*LIBRARIES, *FIELD))
def check_grad_cam(answer: Answer, known: Exercise) -> Iterator[str]:
    """The library's Grad-CAM at several layers, and CAM's share at the last one."""
    asked = _at(("layer4", "layer2.0"), ("2", "4"))
    asked.append({key: v[:1] if isinstance(v, Tensor) else v for key, v in asked[1].items()})
    compare(
        answer,
        known,
        asked,
        reference=partial(cam.grad_cam, upsample=False),
        what="the map",
        hint="go through the equation again: weights from the gradient, one for each image and "
        "channel; weighted sum over the channels; ReLU.",
        tolerance=ROUNDING,
    )
    yield "the map is right at four layers of two networks, and for an image on its own"
    last = asked[0]
    whole = cam.cam(last["model"], last["images"], last["target"], upsample=False).double()
    ours = answer(**last).double() * whole[0].numel()
    if not torch.allclose(ours, whole.relu(), atol=ROUNDING * float(whole.max())):
        raise Wrong("at the last layer it is not ReLU(CAM) / (h·w)", "compare with lecture 06.")
    yield "at the last layer it is ReLU(CAM) / (h·w)"
    after_an_error(answer, asked[2])


# Where a map lies ------------------------------------------------------------------------------


def share_inside(
    maps: Tensor,
    masks: Tensor,
    *,
    dims: tuple[int, ...] = (1, 2),
    outside: bool = False,
    per_area: bool = False,
    of_mask: bool = False,
    add: float = 0.0,
    channel: bool = False,
    finish: Step = lambda share: share,
    **options: Any,
) -> Tensor:
    """Σ_mask M / Σ M of each map, enlarged to its mask's size: (N,)."""
    heat, inside = _enlarged(maps.double(), masks.shape[1:], **options), masks.double()
    inside = 1 - inside if outside else inside
    if channel:
        heat, dims = heat[:, None], (2, 3)
    within, total = (heat * inside).sum(dims), heat.sum(dims)
    if of_mask:
        total = inside.sum(dims)
    share = finish(within / (total + add))
    return share / inside.mean(dims) if per_area else share


EPSILON = (
    "a number is added to the sum, or the sum has a least value: a map of small numbers then gets "
    "too small a share."
)

SHARE_INSIDE: Mistakes = {
    "nearest": (
        {"mode": "nearest", "align_corners": None},
        "the map is enlarged in squares. That is F.interpolate's default; ask for bilinear.",
    ),
    "corners": (
        {"align_corners": True},
        "the enlarged map is stretched: with align_corners=True the outer half of each border "
        "place is missing.",
    ),
    "whole batch": (
        {"dims": (0, 1, 2)},
        "that is one number for all the images together; wanted is one for each, (N,).",
    ),
    "mean inside": (
        {"of_mask": True},
        "you divide by the mask's area: that is the map's mean inside. Divide by all that is in "
        "the map.",
    ),
    "outside": ({"outside": True}, "this is the share outside the mask."),
    "lift": (
        {"per_area": True},
        "this is lecture 06's lift, the share over the mask's area. Wanted is the share itself.",
    ),
    "channel left": ({"channel": True}, CHANNEL_LEFT),
    "squeezed": ({"finish": torch.squeeze}, SQUEEZED),
    "epsilon": ({"add": 1e-4}, EPSILON),
}


@exercise(
    "hw02.share_inside",
    share_inside,
    SHARE_INSIDE,
    forbidden=(*LIBRARIES, "course_utils.evaluation"),
)
def check_share_inside(answer: Answer, known: Exercise) -> Iterator[str]:
    """By hand on a map of four places, then on random maps and masks."""
    four, noise = torch.tensor([[[0.0, 3.0], [1.0, 4.0]]]), cases.noise
    asked = [
        {"maps": four, "masks": four == 3},
        {"maps": noise(3, 4, 6).abs(), "masks": noise(3, 17, 30, seed=1) > 0.6},
        {"maps": noise(2, 9, 5, seed=2).abs(), "masks": noise(2, 9, 5, seed=3) > 0},
        {"maps": 40 * noise(1, 3, 3, seed=4).abs(), "masks": noise(1, 12, 12, seed=5) > 0.3},
    ]
    compare(
        answer,
        known,
        asked,
        what="the share",
        hint="enlarge the map to the mask's size, then divide what lies inside by the whole.",
    )
    small = {**asked[1], "maps": 1e-5 * asked[1]["maps"]}
    compare(answer, known, [small], what="the share in a map of small numbers", hint=EPSILON)
    yield "of a map (0, 3; 1, 4) whose mask is the 3, the share is 3/8"
    yield "the shares are right for maps and masks of three sizes, not square ones too"


# Integrated gradients --------------------------------------------------------------------------


class _OfTwoPixels(nn.Module):
    """Images of two pixels x, y → the logits 5x + y², x · y² and sin 40x.

    Of the sine the midpoint rule gets another number with every number of steps.
    """

    def forward(self, images: Tensor) -> Tensor:
        x, y = images.flatten(1).T
        return torch.stack([5 * x + y**2, x * y**2, (40 * x).sin()], 1)


def _points(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float32).view(-1, 1, 1, 2)


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Tensor,
    steps: int,
    *,
    of: str = "logit",
    at: Callable[[int], Tensor] = lambda steps: (torch.arange(steps) + 0.5) / steps,
    path: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, start, a: start + a * (x - start),
    factor: Callable[[Tensor, Tensor], Tensor] = lambda x, start: x - start,
    finish: Step = lambda result: result,
    times: Callable[[int], float] = lambda steps: 1 / steps,
    training: bool = False,
) -> Tensor:
    """(x − x') · the mean gradient at the middles of equal steps: (N, C, H, W)."""
    model = copied(model).train() if training else model
    total = torch.zeros_like(images)
    for alpha in at(steps):
        x = path(images, baseline, alpha).expand_as(images).detach().clone().requires_grad_()
        scores = _scores(model(x.clone()), target, of)
        total += torch.autograd.grad(scores.sum(), x)[0]
    return finish(factor(images, baseline) * total * times(steps))


ONE_STEP = "a single step has a middle, too: its α is 1/2."

INTEGRATED_GRADIENTS: Mistakes = {
    "right ends": (
        {"at": lambda steps: (torch.arange(steps) + 1) / steps},
        "your α are the right ends of the steps, 1/m … 1. The midpoint rule takes their middles.",
    ),
    "left ends": (
        {"at": lambda steps: torch.arange(steps) / steps},
        "your α are the left ends of the steps, 0 … (m − 1)/m. The midpoint rule takes their "
        "middles.",
    ),
    "both ends": (
        {"at": lambda steps: torch.linspace(0, 1, steps)},
        "your α run from 0 to 1 with both ends: these are m points between which lie only m − 1 "
        "steps. Where are the middles of m equal steps?",
    ),
    "one point too many": (
        {
            "at": lambda steps: (torch.arange(steps + 1) + 0.5) / (steps + 1),
            "times": lambda steps: 1 / (steps + 1),
        },
        "these are the middles of m + 1 steps; `steps` is how many steps there are, m.",
    ),
    "other steps": (
        {"at": lambda _: (torch.arange(50) + 0.5) / 50, "times": lambda _: 1 / 50},
        "this takes another number of steps than `steps` says. Take that many, be it 1 or 64.",
    ),
    "trapezoids": (
        {
            "at": lambda steps: torch.cat([torch.arange(steps), torch.arange(steps) + 1]) / steps,
            "times": lambda steps: 0.5 / steps,
        },
        "this is the trapezoid rule, the mean of both ends of each step. It is a good rule, too; "
        "the midpoint rule is wanted, one gradient in the middle of each step.",
    ),
    "all ends": (
        {
            "at": lambda steps: torch.linspace(0, 1, steps + 1),
            "times": lambda steps: 1 / (steps + 1),
        },
        "your α are the m + 1 ends of the steps, 0, 1/m … 1. Take the middles of the m steps.",
    ),
    "end only": (
        {"at": lambda steps: torch.ones(steps)},
        "all gradients are taken at the image itself: that is Gradient × Input from the baseline. "
        "Take them along the path.",
    ),
    "no difference": (
        {"factor": lambda x, start: torch.ones_like(x)},
        "this is the mean gradient along the path. What is missing is how far each pixel has come.",
    ),
    "times the image": (
        {"factor": lambda x, start: x},
        "the mean gradient is multiplied with the image. It must be the way from the baseline to "
        "the image.",
    ),
    "wrong sign": (
        {"factor": lambda x, start: start - x},
        "every sign is turned round: is it x − x′ or x′ − x?",
    ),
    "zero baseline": (
        {
            "path": lambda x, start, a: a * x,
            "factor": lambda x, start: x,
        },
        "this starts at zero, whatever `baseline` is. In model space zero is the mean colour.",
    ),
    "path from zero": (
        {"path": lambda x, start, a: a * x},
        "the path is α · x, which starts at zero. It has to start at the baseline.",
    ),
    "path without way back": (
        {"path": lambda x, start, a: start + a * x},
        "the path x′ + α · x does not end at the image. At α = 1 it must be x.",
    ),
    "sum for mean": (
        {"times": lambda steps: 1.0},
        "the result grows with the number of steps: the integral is the gradients' mean, not "
        "their sum.",
    ),
    "magnitudes": (
        {"finish": torch.abs},
        "the signs are gone. Without them nothing adds up to f(x) − f(x′).",
    ),
    "softmax": ({"of": "softmax"}, SOFTMAX),
    "argmax": (
        {"of": "argmax"},
        "at every step this explains what the model answers there, which changes along the path. "
        "Explain `target` all the way.",
    ),
    "loss": ({"of": "loss"}, LOSS),
    "all pairs": ({"of": "all pairs"}, ALL_PAIRS),
    "first": ({"of": "first"}, FIRST),
    "training": ({"training": True}, TRAINING),
}


@exercise(
    "hw02.integrated_gradients",
    integrated_gradients,
    INTEGRATED_GRADIENTS,
    forbidden=(*LIBRARIES, *FIELD),
)
def check_integrated_gradients(answer: Answer, known: Exercise) -> Iterator[str]:
    """By hand on 5x + y², few and many steps of sin 40x, then the library's on two networks."""
    same = partial(
        compare,
        answer,
        known,
        reference=gradients.integrated_gradients,
        hint="go through the equation again: points on the straight line from x′ to x, at the "
        "middles of m equal steps; the mean of their gradients; times x − x′.",
    )
    case: Callable[..., dict[str, Any]] = partial(dict, model=_OfTwoPixels().eval())
    origin, other, points = _points((0, 0)), _points((3, -1)), _points((1, 10), (2, 3))
    same(
        [
            case(images=_points((0, 5)), target=torch.tensor([0]), baseline=origin, steps=4),
            case(images=points, target=torch.tensor([1, 0]), baseline=other, steps=4),
        ],
        what="the attribution of f = 5x + y² or f = x·y²",
    )
    wave = partial(case, images=_points((1, 0)), target=torch.tensor([2]), baseline=origin)
    for steps, hint in ((1, ONE_STEP), (64, known.hint("other steps"))):
        same([wave(steps=steps)], what=f"the attribution with steps = {steps}", hint=hint)
    yield "f = 5x + y² at (0, 5), from (0, 0): (0, 25); and two others from another baseline"
    shipped, unpooled = _networks()
    real = [
        {**shipped, "baseline": cases.shipped().black(_scenes()), "steps": 3},
        {**unpooled, "baseline": cases.noise(4, 3, 12, 20, seed=9), "steps": 6},
    ]
    same(real, what="the attribution", tolerance=ROUNDING)
    after_an_error(answer, real[1])
    yield "it is right on two networks, with one baseline for all images and with one for each"


# Completeness ----------------------------------------------------------------------------------


def completeness_gap(
    model: nn.Module,
    images: Tensor,
    attribution: Tensor,
    target: Tensor,
    baseline: Tensor,
    *,
    of: str = "logit",
    start: float = 1.0,
    first: bool = False,
    sign: int = 1,
    reduce: Step = lambda attribution: attribution.sum((1, 2, 3)),
    finish: Step = lambda gap: gap,
    relative: bool = False,
) -> Tensor:
    """Σ attribution − (f_c(x) − f_c(x')) of each image, in logits, positive for too much: (N,)."""
    baseline = baseline[:1] if first else baseline
    with torch.no_grad():
        f = _scores(model(images.clone()), target, of)
        f0 = _scores(model(baseline.expand_as(images).clone()), target, of)
    difference = f - start * f0
    gap = finish(reduce(attribution.detach()) - sign * difference)
    return gap / difference.abs() if relative else gap


COMPLETENESS_GAP: Mistakes = {
    "no baseline": (
        {"start": 0.0},
        "the sum is compared with f(x). Completeness is about f(x) − f(x′).",
    ),
    "first baseline": (
        {"first": True},
        "all images are compared with the first baseline; there may be one for each image.",
    ),
    "loss": (
        {"of": "loss"},
        "f is a loss here. Attributions are of the target's logit, and add up to logits.",
    ),
    "wrong sign": ({"sign": -1}, "is it f(x) − f(x′) or f(x′) − f(x)?"),
    "upside down": (
        {"finish": torch.neg},
        "positive must mean that the map says too much: its sum less the difference.",
    ),
    "plus": (
        {"start": -1.0},
        "f(x) and f(x′) are added; mind the brackets: Σ − (f(x) − f(x′)).",
    ),
    "magnitudes": (
        {"reduce": lambda a: a.abs().sum((1, 2, 3))},
        "magnitudes are added. What speaks against the class must be subtracted: keep the signs.",
    ),
    "mean": (
        {"reduce": lambda a: a.mean((1, 2, 3))},
        "this takes the attribution's mean; completeness is about its sum.",
    ),
    "whole batch": (
        {"reduce": lambda a: a.sum()},
        "the attributions of all images are added up together. Each image has a sum of its own.",
    ),
    "unsigned": (
        {"finish": torch.abs},
        "the sign is lost, which tells whether the map says too much or too little.",
    ),
    "relative": (
        {"relative": True},
        "this is divided by the difference; wanted is the gap in logits.",
    ),
    "softmax": (
        {"of": "softmax"},
        "f is the probability here. The attributions are in logits, and add up to logits.",
    ),
    "argmax": (
        {"of": "argmax"},
        "image and baseline are asked for the logit of what the model answers to each. Ask both "
        "for `target`.",
    ),
    "first": ({"of": "first"}, FIRST),
    "all pairs": ({"of": "all pairs"}, ALL_PAIRS),
    "squeezed": ({"finish": torch.squeeze}, SQUEEZED),
    "rounded": (
        {"finish": lambda gap: gap.round(decimals=2)},
        "the gap is rounded. Return all its digits: of a good map it is small.",
    ),
}


@exercise(
    "hw02.completeness_gap",
    completeness_gap,
    COMPLETENESS_GAP,
    forbidden=(*LIBRARIES, "course_utils.evaluation", *FIELD),
)
def check_completeness_gap(answer: Answer, known: Exercise) -> Iterator[str]:
    """On maps that are no explanation of anything: the arithmetic alone."""
    shipped, unpooled = _networks()
    asked = [
        {
            **shipped,
            "baseline": cases.shipped().white(_scenes()),
            "attribution": 0.03 * cases.noise(*shipped["images"].shape, seed=11),
        },
        {
            **unpooled,
            "baseline": cases.noise(4, 3, 12, 20, seed=9),
            "attribution": 0.2 * cases.noise(*unpooled["images"].shape, seed=11),
        },
    ]
    gap = partial(
        compare, answer, known, hint="Σ attribution − (f(x) − f(x′)), one number an image."
    )
    gap(asked, what="the gap")
    one = {
        "model": _OfTwoPixels().eval(),
        "images": _points((0, 5)),
        "target": torch.tensor([0]),
        "baseline": _points((0, 0)),
        "attribution": _points((0.02, 25.0237)),
    }
    gap([one], what="the gap of one image, which is 0.0437,")
    after_an_error(answer, asked[1])
    yield "the gap is right on two networks, with one baseline for all images and with one for each"
