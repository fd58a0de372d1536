"""Homework 02: Grad-CAM and integrated gradients, written from scratch."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import cam, gradients, layers, models, scenes
from course_utils.homework import checks
from course_utils.homework.checks import Answer, Mistake, Wrong, compare, exercise

LIBRARIES = ("course_utils.cam", "course_utils.gradients", "course_utils.methods")
FIELD = ("captum", "pytorch_grad_cam", "saliency", "zennit")
# Where a ReLU's input is zero but for rounding, another order of operations switches it, and the
# gradient jumps: up to 0.0003 of the largest value was seen. The mistakes are off by far more.
ROUNDING = 1e-2


# -- what the answers are tried on -----------------------------------------------------------------


@functools.cache
def _shipped() -> models.Classifier:
    return models.load("scenes", device="cpu")


@functools.cache
def _scenes() -> Tensor:
    """A football before a tiger, and a crow, in model space; at half their size, to be quick."""
    specs = (
        scenes.canonical("football", companion="tiger", companion_size=0.55, size=0.5, x=0.72),
        scenes.canonical("crow"),
    )
    inputs = [_shipped().to_input(scenes.render(spec).image) for spec in specs]
    return F.avg_pool2d(torch.cat(inputs), 2)


def _classes(*names: str) -> Tensor:
    return torch.tensor([_shipped().classes.index(name) for name in names])


@functools.cache
def _random() -> nn.Module:
    """A network of another kind: (N, 3, 12, 20) → (N, 5), in-place ReLUs, no average pooling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8 * 6 * 10, 5),
        )
        for parameter in model[-1].parameters():
            nn.init.normal_(parameter)
        for statistic in model.buffers():
            if statistic.is_floating_point():
                nn.init.uniform_(statistic, 0.2, 0.6)
    return model.eval()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _networks() -> list[dict[str, Any]]:
    """Networks, each with images and with classes that are not all the answers."""
    return [
        {
            "model": _shipped().model,
            "images": _scenes().clone(),
            "target": _classes("tiger", "crow"),
        },
        {"model": _random(), "images": _noise(4, 3, 12, 20), "target": torch.tensor([3, 0, 4, 3])},
    ]


def _at(*names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The networks, each at these layers of its own."""
    return [
        {**case, "layer": layer}
        for case, own in zip(_networks(), names, strict=True)
        for layer in own
    ]


# -- the two tensors of Grad-CAM -------------------------------------------------------------------


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


def _maps_and_slopes(
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
) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        kept.append(inputs[0] if entering else output)
        return output.clone() if copy else output

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        x = images.detach().clone().requires_grad_()
        scores = _scores(model(x.clone()), target, of)
    finally:
        if remove:
            hook.remove()
    total = scores.mean() if divide else scores.sum()
    if backward:
        total.backward(retain_graph=True)
    (slopes,) = torch.autograd.grad(total, kept[0])
    return kept[0].detach(), slopes


def _one(answer: Answer, index: int) -> Answer:
    """One of the two tensors that an answer returns."""

    def one(**case: Any) -> Any:
        result = answer(**case)
        if not isinstance(result, tuple | list) or len(result) != 2:
            came = type(result).__name__
            raise Wrong(
                f"the result is {came}, wanted are two tensors",
                "the function ends with: return maps, slopes.",
            )
        return result[index]

    return one


SOFTMAX = (
    "this is the probability's gradient. Explain the logit: a probability also moves when only "
    "another class's logit does, and it hardly moves at all where the model is sure."
)
ARGMAX = "this explains the model's answer, not the class that `target` names."
ALL_PAIRS = (
    "logits[:, target] takes all the targets for every image. Of each image you want one number, "
    "its own target's logit, whatever else is in the batch."
)
FIRST = "one class is used for the whole batch; `target` names one for each image."

maps_mistakes = (
    Mistake("softmax", partial(_maps_and_slopes, of="softmax"), SOFTMAX),
    Mistake("argmax", partial(_maps_and_slopes, of="argmax"), ARGMAX),
    Mistake(
        "loss",
        partial(_maps_and_slopes, of="loss"),
        "this is the gradient of a loss, as in training. It has the other sign, and a softmax in "
        "it. Explain the logit itself.",
    ),
    Mistake("all pairs", partial(_maps_and_slopes, of="all pairs"), ALL_PAIRS),
    Mistake("first", partial(_maps_and_slopes, of="first"), FIRST),
    Mistake(
        "every class",
        partial(_maps_and_slopes, of="every class"),
        "this is the gradient of the sum of all classes' logits. Choose each image's target first.",
    ),
    Mistake(
        "divided by N",
        partial(_maps_and_slopes, divide=True),
        "the slopes shrink with the number of images: a mean over the batch divides by N. An "
        "image's result must not depend on which others share its batch.",
    ),
    Mistake(
        "overwritten",
        partial(_maps_and_slopes, copy=False),
        "the layer is followed by an in-place ReLU, which overwrites the very tensor that the hook "
        "has kept. Let the network go on with a copy: what a forward hook returns replaces the "
        "output.",
    ),
    Mistake(
        "input",
        partial(_maps_and_slopes, entering=True),
        "these are the maps that enter the layer; wanted are those that it puts out.",
    ),
    Mistake("hook left", partial(_maps_and_slopes, remove=False), checks.HOOKS_LEFT),
    Mistake("backward", partial(_maps_and_slopes, backward=True), checks.GRADIENTS_LEFT),
)


@exercise(
    "hw02.maps_and_slopes", *maps_mistakes, forbidden=(*LIBRARIES, "course_utils.layers", *FIELD)
)
def maps_and_slopes(answer: Answer) -> Iterator[str]:
    """A layer's activations and the gradient there; nothing stays on the model."""
    cases = _at(("layer4", "layer2.0"), ("0", "4"))
    for index, what in enumerate(("the layer's output", "the gradient")):
        compare(
            _one(_restoring(answer), index),
            _one(_maps_and_slopes, index),
            cases,
            [Mistake(m.name, _one(_restoring(m.answer), index), m.hint) for m in maps_mistakes],
            what=what,
            hint="take the layer's output in a forward hook, and of each image the gradient of its "
            "own target's logit with respect to that output.",
            tolerance=ROUNDING,
        )
        yield f"{what} is right at four layers of two networks"
    yield from _leaves_nothing(answer, cases[0], cases[2])
    unfit = {**cases[2], "images": _noise(2, 3, 16, 16)}
    with (
        layers.preserve(unfit["model"]),
        checks.untouched(unfit["model"], unfit["images"]),
        contextlib.suppress(RuntimeError, ValueError),  # its last layer takes no other size
    ):
        answer(**unfit)
    yield "nothing stays on the model after an error either"


def _restoring(answer: Answer) -> Answer:
    """The answer, after which the model gets rid of whatever the answer has left on it."""

    def restoring(**case: Any) -> Any:
        with layers.preserve(case["model"]):
            return answer(**case)

    return restoring


def _leaves_nothing(answer: Answer, *cases: dict[str, Any]) -> Iterator[str]:
    for case in cases:
        with layers.preserve(case["model"]), checks.untouched(case["model"], case["images"]):
            answer(**case)
    yield "the model and the images are left as they came"


# -- Grad-CAM --------------------------------------------------------------------------------------

Step = Callable[[Tensor], Tensor]


def _grad_cam(
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
    maps, slopes = _maps_and_slopes(model, images, target, layer, of=of)
    result = finish(add(weigh(slopes) * maps))
    return _enlarged(result, images.shape[2:]) if enlarge else result


def _enlarged(maps: Tensor, size: Any, **options: Any) -> Tensor:
    options = dict[str, Any](mode="bilinear", align_corners=False) | options
    return F.interpolate(maps[:, None], size=tuple(size), **options)[:, 0]


grad_cam_mistakes = (
    Mistake(
        "no ReLU",
        partial(_grad_cam, finish=lambda result: result),
        "there are negative values in it: Grad-CAM ends with a ReLU.",
    ),
    Mistake(
        "ReLU inside the sum",
        partial(_grad_cam, add=lambda weighted: weighted.relu().sum(1)),
        "ReLU comes after the sum over channels. Before it, what speaks against the class is gone "
        "before it could be set against what speaks for it.",
    ),
    Mistake(
        "magnitudes",
        partial(_grad_cam, finish=torch.abs),
        "the magnitude turns evidence against the class into evidence for it; ReLU sets it to 0.",
    ),
    Mistake(
        "HiResCAM",
        partial(_grad_cam, weigh=lambda slopes: slopes),
        "each place is multiplied with its own gradient: that is HiResCAM. Grad-CAM has one weight "
        "for each channel.",
    ),
    Mistake(
        "sum for mean",
        partial(_grad_cam, weigh=lambda slopes: slopes.sum((2, 3), keepdim=True)),
        "the map is h·w times too large: is a channel's weight the mean of its gradient, or the "
        "sum?",
    ),
    Mistake(
        "over the batch",
        partial(_grad_cam, weigh=lambda slopes: slopes.mean((0, 2, 3), keepdim=True)),
        "the weights are averaged over the images, too. Each image has weights of its own.",
    ),
    Mistake(
        "positive slopes",
        partial(_grad_cam, weigh=lambda slopes: slopes.relu().mean((2, 3), keepdim=True)),
        "the negative gradients are cut before the mean. Only the finished map goes through ReLU.",
    ),
    Mistake(
        "mean of channels",
        partial(_grad_cam, add=lambda weighted: weighted.mean(1)),
        "the weighted maps are averaged over the channels; wanted is their sum.",
    ),
    Mistake(
        "no weights",
        partial(_grad_cam, weigh=torch.ones_like),
        "all channels count the same: where do the gradients come in?",
    ),
    Mistake(
        "scaled",
        partial(_grad_cam, finish=lambda m: m.relu() / m.relu().amax((1, 2), True).clamp(1e-9)),
        "each map is scaled to its own maximum. Return it in logits; scaling is the picture's job.",
    ),
    Mistake(
        "enlarged",
        partial(_grad_cam, enlarge=True),
        "the map has the images' size. Return it as small as the layer's maps, (N, h, w).",
    ),
    Mistake("softmax", partial(_grad_cam, of="softmax"), SOFTMAX),
    Mistake("argmax", partial(_grad_cam, of="argmax"), ARGMAX),
    Mistake("all pairs", partial(_grad_cam, of="all pairs"), ALL_PAIRS),
)


@exercise("hw02.grad_cam", *grad_cam_mistakes, forbidden=(*LIBRARIES, *FIELD))
def grad_cam(answer: Answer) -> Iterator[str]:
    """The library's Grad-CAM at several layers, and CAM's share at the last one."""

    def reference(layer: str, **case: Any) -> Tensor:
        return cam.grad_cam(**case, layer=layer, upsample=False).double()

    cases = _at(("layer4", "layer2.0"), ("2", "4"))
    cases.append({key: v[:1] if isinstance(v, Tensor) else v for key, v in cases[1].items()})
    compare(
        _restoring(answer),
        reference,
        cases,
        grad_cam_mistakes,
        what="the map",
        hint="go through the equation again: weights from the gradient, one for each image and "
        "channel; weighted sum over the channels; ReLU.",
        tolerance=ROUNDING,
    )
    yield "the map is right at four layers of two networks, and for an image on its own"
    last = cases[0]
    whole = cam.cam(last["model"], last["images"], last["target"], upsample=False).double()
    with layers.preserve(last["model"]):
        ours = answer(**last).detach().double() * whole[0].numel()
    if not torch.allclose(ours, whole.relu(), atol=ROUNDING * float(whole.max())):
        raise Wrong("at the last layer it is not ReLU(CAM) / (h·w)", "compare with lecture 06.")
    yield "at the last layer it is ReLU(CAM) / (h·w)"
    yield from _leaves_nothing(answer, cases[0], cases[2])


# -- where a map lies ------------------------------------------------------------------------------


def _share_inside(
    maps: Tensor,
    masks: Tensor,
    *,
    dims: tuple[int, ...] = (1, 2),
    outside: bool = False,
    per_area: bool = False,
    of_mask: bool = False,
    **options: Any,
) -> Tensor:
    heat, inside = _enlarged(maps.double(), masks.shape[1:], **options), masks.double()
    inside = 1 - inside if outside else inside
    within, total = (heat * inside).sum(dims), heat.sum(dims)
    if of_mask:
        total = inside.sum(dims)
    share = within / total
    return share / inside.mean(dims) if per_area else share


share_mistakes = (
    Mistake(
        "nearest",
        partial(_share_inside, mode="nearest", align_corners=None),
        "the map is enlarged in squares. That is F.interpolate's default; ask for bilinear.",
    ),
    Mistake(
        "corners",
        partial(_share_inside, align_corners=True),
        "the enlarged map is stretched: with align_corners=True the outer half of each border "
        "place is missing.",
    ),
    Mistake(
        "whole batch",
        partial(_share_inside, dims=(0, 1, 2)),
        "that is one number for all the images together; wanted is one for each, (N,).",
    ),
    Mistake(
        "mean inside",
        partial(_share_inside, of_mask=True),
        "you divide by the mask's area: that is the map's mean inside. Divide by all that is in "
        "the map.",
    ),
    Mistake(
        "outside",
        partial(_share_inside, outside=True),
        "this is the share outside the mask.",
    ),
    Mistake(
        "lift",
        partial(_share_inside, per_area=True),
        "this is lecture 06's lift, the share over the mask's area. Wanted is the share itself.",
    ),
)


@exercise(
    "hw02.share_inside",
    *share_mistakes,
    forbidden=(*LIBRARIES, "course_utils.evaluation", "course_utils.metrics"),
)
def share_inside(answer: Answer) -> Iterator[str]:
    """By hand on a map of four places, then on random maps and masks."""
    four = torch.tensor([[[0.0, 3.0], [1.0, 4.0]]])
    cases = [
        {"maps": four, "masks": four == 3},
        {"maps": _noise(3, 4, 6).abs(), "masks": _noise(3, 17, 30, seed=1) > 0.6},
        {"maps": _noise(2, 9, 5, seed=2).abs(), "masks": _noise(2, 9, 5, seed=3) > 0},
        {"maps": 40 * _noise(1, 3, 3, seed=4).abs(), "masks": _noise(1, 12, 12, seed=5) > 0.3},
    ]
    compare(
        answer,
        _share_inside,
        cases,
        share_mistakes,
        what="the share",
        hint="enlarge the map to the mask's size, then divide what lies inside by the whole.",
    )
    yield "of a map (0, 3; 1, 4) whose mask is the 3, the share is 3/8"
    yield "the shares are right for maps and masks of three sizes, not square ones too"


# -- integrated gradients --------------------------------------------------------------------------


class _Polynomial(nn.Module):
    """Images of two pixels x, y → the logits 5x + y² and x · y²."""

    def forward(self, images: Tensor) -> Tensor:
        x, y = images.flatten(1).T
        return torch.stack([5 * x + y**2, x * y**2], 1)


def _points(*points: tuple[float, float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float32).view(-1, 1, 1, 2)


def _integrated_gradients(
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
) -> Tensor:
    total = torch.zeros_like(images)
    for alpha in at(steps):
        x = path(images, baseline, alpha).expand_as(images).detach().clone().requires_grad_()
        scores = _scores(model(x.clone()), target, of)
        total += torch.autograd.grad(scores.sum(), x)[0]
    return finish(factor(images, baseline) * total / steps)


ig_mistakes = (
    Mistake(
        "right ends",
        partial(_integrated_gradients, at=lambda steps: (torch.arange(steps) + 1) / steps),
        "your α are the right ends of the steps, 1/m … 1. The midpoint rule takes their middles.",
    ),
    Mistake(
        "left ends",
        partial(_integrated_gradients, at=lambda steps: torch.arange(steps) / steps),
        "your α are the left ends of the steps, 0 … (m − 1)/m. The midpoint rule takes their "
        "middles.",
    ),
    Mistake(
        "both ends",
        partial(_integrated_gradients, at=lambda steps: torch.linspace(0, 1, steps)),
        "your α run from 0 to 1 with both ends: these are m points between which lie only m − 1 "
        "steps. Where are the middles of m equal steps?",
    ),
    Mistake(
        "end only",
        partial(_integrated_gradients, at=lambda steps: torch.ones(steps)),
        "all gradients are taken at the image itself: that is Gradient × Input from the baseline. "
        "Take them along the path.",
    ),
    Mistake(
        "no difference",
        partial(_integrated_gradients, factor=lambda x, start: torch.ones_like(x)),
        "this is the mean gradient along the path. What is missing is how far each pixel has come.",
    ),
    Mistake(
        "times the image",
        partial(_integrated_gradients, factor=lambda x, start: x),
        "the mean gradient is multiplied with the image. It must be the way from the baseline to "
        "the image.",
    ),
    Mistake(
        "wrong sign",
        partial(_integrated_gradients, factor=lambda x, start: start - x),
        "every sign is turned round: is it x − x′ or x′ − x?",
    ),
    Mistake(
        "zero baseline",
        lambda model, images, target, baseline, steps: _integrated_gradients(
            model, images, target, torch.zeros(()), steps
        ),
        "this starts at zero, whatever `baseline` is. In model space zero is the mean colour.",
    ),
    Mistake(
        "path from zero",
        partial(_integrated_gradients, path=lambda x, start, a: a * x),
        "the path is α · x, which starts at zero. It has to start at the baseline.",
    ),
    Mistake(
        "path without way back",
        partial(_integrated_gradients, path=lambda x, start, a: start + a * x),
        "the path x′ + α · x does not end at the image. At α = 1 it must be x.",
    ),
    Mistake(
        "sum for mean",
        lambda model, images, target, baseline, steps: (
            steps * _integrated_gradients(model, images, target, baseline, steps)
        ),
        "the result grows with the number of steps: the integral is the gradients' mean, not "
        "their sum.",
    ),
    Mistake(
        "magnitudes",
        partial(_integrated_gradients, finish=torch.abs),
        "the signs are gone. Without them nothing adds up to f(x) − f(x′).",
    ),
    Mistake("softmax", partial(_integrated_gradients, of="softmax"), SOFTMAX),
    Mistake(
        "argmax",
        partial(_integrated_gradients, of="argmax"),
        "at every step this explains what the model answers there, which changes along the path. "
        "Explain `target` all the way.",
    ),
    Mistake("all pairs", partial(_integrated_gradients, of="all pairs"), ALL_PAIRS),
)
IG_HINT = (
    "go through the equation again: points on the straight line from x′ to x, at the middles of m "
    "equal steps; the mean of their gradients; times x − x′."
)


@exercise("hw02.integrated_gradients", *ig_mistakes, forbidden=(*LIBRARIES, *FIELD))
def integrated_gradients(answer: Answer) -> Iterator[str]:
    """By hand on 5x + y², then the library's on two networks."""
    by_hand = [
        {"images": _points((0, 5)), "target": torch.tensor([0]), "baseline": _points((0, 0))},
        {
            "images": _points((1, 10), (2, 3)),
            "target": torch.tensor([1, 0]),
            "baseline": _points((3, -1)),
        },
    ]
    polynomial = [{"model": _Polynomial(), "steps": 4, **case} for case in by_hand]
    real = [
        {**case, "baseline": baseline, "steps": steps}
        for case, baseline, steps in zip(
            _networks(),
            (_shipped().black(_scenes()), _noise(4, 3, 12, 20, seed=9)),
            (3, 6),
            strict=True,
        )
    ]

    def reference(target: Tensor, **case: Any) -> Tensor:
        return gradients.integrated_gradients(target=target, progress=False, **case).double()

    same = partial(compare, _restoring(answer), reference, mistakes=ig_mistakes, hint=IG_HINT)
    same(cases=polynomial, what="the attribution of f = 5x + y² or f = x·y²")
    yield "f = 5x + y² at (0, 5), from (0, 0): (0, 25); and two others from another baseline"
    same(cases=real, what="the attribution", tolerance=ROUNDING)
    yield "it is right on two networks, with one baseline for all images and with one for each"
    yield from _leaves_nothing(answer, *real)


# -- completeness ----------------------------------------------------------------------------------


def _completeness_gap(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    baseline: Tensor,
    attribution: Tensor,
    *,
    of: str = "logit",
    start: float = 1.0,
    reduce: Step = lambda attribution: attribution.sum((1, 2, 3)),
    finish: Step = torch.abs,
    relative: bool = False,
) -> Tensor:
    with torch.no_grad():
        f = _scores(model(images.clone()), target, of)
        f0 = _scores(model(baseline.expand_as(images).clone()), target, of)
    difference = f - start * f0
    gap = finish(reduce(attribution) - difference)
    return gap / difference.abs() if relative else gap


gap_mistakes = (
    Mistake(
        "no baseline",
        partial(_completeness_gap, start=0.0),
        "the sum is compared with f(x). Completeness is about f(x) − f(x′).",
    ),
    Mistake(
        "wrong sign",
        partial(_completeness_gap, reduce=lambda a: -a.sum((1, 2, 3))),
        "is it f(x) − f(x′) or f(x′) − f(x)?",
    ),
    Mistake(
        "plus",
        partial(_completeness_gap, start=-1.0),
        "f(x) and f(x′) are added; mind the brackets: Σ − (f(x) − f(x′)).",
    ),
    Mistake(
        "magnitudes",
        partial(_completeness_gap, reduce=lambda a: a.abs().sum((1, 2, 3))),
        "magnitudes are added. What speaks against the class must be subtracted: keep the signs.",
    ),
    Mistake(
        "mean",
        partial(_completeness_gap, reduce=lambda a: a.mean((1, 2, 3))),
        "this takes the attribution's mean; completeness is about its sum.",
    ),
    Mistake(
        "whole batch",
        partial(_completeness_gap, reduce=lambda a: a.sum()),
        "the attributions of all images are added up together. Each image has a sum of its own.",
    ),
    Mistake(
        "signed",
        partial(_completeness_gap, finish=lambda gap: gap),
        "some gaps are negative; wanted is the magnitude.",
    ),
    Mistake(
        "relative",
        partial(_completeness_gap, relative=True),
        "this is divided by the difference; wanted is the gap in logits.",
    ),
    Mistake(
        "softmax",
        partial(_completeness_gap, of="softmax"),
        "f is the probability here. The attributions are in logits, and add up to logits.",
    ),
    Mistake(
        "argmax",
        partial(_completeness_gap, of="argmax"),
        "image and baseline are asked for the logit of what the model answers to each. Ask both "
        "for `target`.",
    ),
)


@exercise(
    "hw02.completeness_gap",
    *gap_mistakes,
    forbidden=(*LIBRARIES, "course_utils.evaluation", "course_utils.axioms", *FIELD),
)
def completeness_gap(answer: Answer) -> Iterator[str]:
    """On maps that are no explanation of anything: the arithmetic alone."""
    cases = [
        {
            **case,
            "baseline": baseline,
            "attribution": scale * _noise(*case["images"].shape, seed=11),
        }
        for case, baseline, scale in zip(
            _networks(),
            (_shipped().white(_scenes()), _noise(4, 3, 12, 20, seed=9)),
            (0.03, 0.2),
            strict=True,
        )
    ]
    compare(
        _restoring(answer),
        _completeness_gap,
        cases,
        gap_mistakes,
        what="the gap",
        hint="the magnitude of Σ attribution − (f(x) − f(x′)), one number an image.",
    )
    yield "the gap is right on two networks, with one baseline for all images and with one for each"
    yield from _leaves_nothing(answer, *cases)
