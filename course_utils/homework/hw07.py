"""Homework 07, concepts and fooled maps: thresholds, overlaps, a map moved with its answer kept."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.homework import cases
from course_utils.homework.checks import (
    CHANNEL_LEFT,
    Exercise,
    Mistakes,
    compare,
    exercise,
    tensor_of,
)
from course_utils.homework.guard import Answer, Wrong

DISSECTION = ("course_utils.units",)

# 1 · Thresholds --------------------------------------------------------------------------------


def thresholds(
    maps: Tensor,
    share: float,
    *,
    over: tuple[int, ...] = (0, 2, 3),
    top: bool = True,
    kind: str = "quantile",
) -> Tensor:
    """What a share of each unit's values over all images exceeds: (N, C, h, w) → (C,)."""
    values = maps.detach().double()
    if kind == "of the maximum":
        return (1 - share) * values.amax((0, 2, 3))
    if kind == "deviations":
        flat = values.movedim(1, 0).flatten(1)
        return flat.mean(1) + 2 * flat.std(1)
    if kind == "pooled":
        values = values.mean((2, 3), keepdim=True)
    if kind == "active":
        values = values.where(values > 0, torch.nan)
    level = 1 - share if top else share
    if over == (2, 3):
        return values.flatten(2).nanquantile(level, dim=2).mean(0)
    if over == (0, 1, 2, 3):
        return values.flatten().nanquantile(level).expand(maps.shape[1])
    return values.movedim(1, 0).flatten(1).nanquantile(level, dim=1)


THRESHOLDS: Mistakes = {
    "each image": (
        {"over": (2, 3)},
        "each image got a threshold of its own, and these were averaged: then a unit is above it "
        "in every image. One unit has one threshold, over the positions of all images together.",
    ),
    "all units together": (
        {"over": (0, 1, 2, 3)},
        "all units share one threshold. They work in different units of size: give each its own.",
    ),
    "the lower end": (
        {"top": False},
        "this is the value that the share lies below. Wanted is the one that the share exceeds.",
    ),
    "a share of the maximum": (
        {"kind": "of the maximum"},
        "a share of the positions is meant, not of the largest value: take a quantile.",
    ),
    "mean and deviations": (
        {"kind": "deviations"},
        "mean and standard deviation say how many values lie above only where they are normal, and "
        "activations are not. Take a quantile.",
    ),
    "pooled": (
        {"kind": "pooled"},
        "each map was averaged first. What counts are its positions, one by one.",
    ),
    "active values only": (
        {"kind": "active"},
        "zeros count, too: the share is of all positions, and a silent position is one of them.",
    ),
}


@exercise("hw07.thresholds", thresholds, THRESHOLDS, forbidden=DISSECTION)
def check_thresholds(answer: Answer, known: Exercise) -> Iterator[str]:
    """Noise of different sizes, rectified maps, other shares and a single image."""
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0]).view(1, -1, 1, 1)
    signed = cases.noise(6, 4, 5, 7) * scale
    uneven = signed.clone()
    uneven[::2] *= 4  # some images answer more
    rectified = (cases.noise(5, 4, 6, 6, seed=1) * scale).relu()
    one = cases.noise(1, 3, 8, 8, seed=2)
    asked: list[dict[str, Any]] = [
        {"maps": maps, "share": share}
        for maps, share in ((signed, 0.25), (uneven, 0.1), (rectified, 0.2), (one, 0.5))
    ]
    for case in asked:
        got, units = tensor_of(answer(**case), "the result"), case["maps"].shape[1]
        if got.shape != (units,):
            raise Wrong(
                f"{units} units give {tuple(got.shape)}, wanted is ({units},)",
                "one number for each unit: every other axis goes into the quantile.",
            )
    yield "there is one threshold for each unit"
    compare(
        answer,
        known,
        asked,
        what="the thresholds",
        hint="put each unit's values of all images and positions into one row, and take its "
        "quantile at 1 − share, by linear interpolation as torch does.",
    )
    yield "a share of the unit's positions, over all images, lies above it"
    moved = tensor_of(answer(maps=3 * signed + 2, share=0.25), "the result")
    if not torch.allclose(moved, 3 * thresholds(signed, 0.25) + 2, atol=1e-3):
        raise Wrong(
            "maps in another unit have thresholds that do not move with them",
            "the quantile of 3 a + 2 is 3 times that of a, and 2: neither clamp nor round.",
        )
    yield "it moves with the maps"


# 2 · Overlap -----------------------------------------------------------------------------------


def overlap(
    maps: Tensor,
    thresholds: Tensor,
    masks: Tensor,
    *,
    mode: str = "bilinear",
    corners: bool = False,
    first: bool = False,
    small: bool = False,
    each: bool = False,
    ratio: str = "iou",
    strict: bool = True,
    empty: float = torch.nan,
) -> Tensor:
    """IoU over all images of each unit's region with each concept's: (C, K)."""
    values, truth = maps.detach().double(), masks.double()
    level = thresholds.double().view(1, -1, 1, 1)
    size = masks.shape[2:]
    if small:
        truth = F.interpolate(truth, size=maps.shape[2:], mode="area")
        region = values > level
        truth = (truth > 0.5).double()
    elif first:
        above = (values > level).double()
        region = F.interpolate(above, size=size, mode="bilinear", align_corners=False) > 0.5
    else:
        options = {} if mode == "nearest" else {"align_corners": corners}
        values = F.interpolate(values, size=size, mode=mode, **options)
        region = values > level if strict else values >= level
    inside = region.double()
    both = torch.einsum("nchw,nkhw->nck", inside, truth)
    ours, theirs = inside.sum((2, 3))[:, :, None], truth.sum((2, 3))[:, None]
    ours, theirs = ours.expand_as(both), theirs.expand_as(both)
    if not each:
        both, ours, theirs = (counts.sum(0) for counts in (both, ours, theirs))
    found = {
        "iou": lambda: both / (ours + theirs - both),
        "dice": lambda: 2 * both / (ours + theirs),
        "precision": lambda: both / ours,
        "recall": lambda: both / theirs,
    }[ratio]()
    found = found.nanmean(0) if each else found
    return found.nan_to_num(empty) if empty == empty else found


OVERLAP: Mistakes = {
    "a mean over images": (
        {"each": True},
        "an IoU was taken of each image, and then their mean. An image with ten pixels of the "
        "concept counts as much as one with a thousand. Add up pixels over all images first.",
    ),
    "nearest": (
        {"mode": "nearest"},
        "the map was enlarged to blocks. Enlarge it bilinearly (align_corners=False).",
    ),
    "aligned corners": (
        {"corners": True},
        "with align_corners=True the enlarged map is stretched by half a cell at each side.",
    ),
    "threshold first": (
        {"first": True},
        "enlarge the map first, and compare with the threshold after that: a map of 0 and 1 has "
        "lost how far it was above.",
    ),
    "small masks": (
        {"small": True},
        "the masks were made as small as the maps. The masks are the truth: compare at their size.",
    ),
    "Dice": (
        {"ratio": "dice"},
        "this counts the intersection twice and divides by the sum of the two areas (Dice). IoU "
        "divides by the area of the union.",
    ),
    "precision": (
        {"ratio": "precision"},
        "this is the share of the unit's region that is the concept; a unit that fires on one "
        "right pixel gets 1. Divide by the union.",
    ),
    "recall": (
        {"ratio": "recall"},
        "this is the share of the concept that the unit finds; a unit that fires everywhere gets "
        "1. Divide by the union.",
    ),
    "zero for nothing": (
        {"empty": 0.0},
        "where neither the unit nor the concept has a pixel there is nothing to compare, and the "
        "equation says 0 / 0. Say NaN.",
    ),
    "at the threshold": (
        {"strict": False},
        "a value equal to the threshold is not above it. For a unit whose threshold is 0, ≥ takes "
        "every silent position.",
    ),
}


@exercise("hw07.overlap", overlap, OVERLAP, forbidden=DISSECTION)
def check_overlap(answer: Answer, known: Exercise) -> Iterator[str]:
    """Smooth maps and blobs of uneven sizes, silent units, concepts that are nowhere."""
    asked = [_regions(5, 3, 4, 0), _regions(4, 2, 2, 1, rectified=True), _regions(1, 2, 3, 2)]
    for case in asked:
        got = tensor_of(answer(**case), "the result")
        wanted = case["maps"].shape[1], case["masks"].shape[1]
        if got.shape != wanted:
            raise Wrong(
                f"{wanted[0]} units and {wanted[1]} concepts give {tuple(got.shape)}, wanted is "
                f"{wanted}",
                "each unit is compared with each concept: rows are units, columns are concepts.",
            )
    yield "there is one number for each unit and concept"
    compare(
        answer,
        known,
        asked,
        what="the IoU",
        hint="enlarge the maps to the masks' size, compare with the unit's threshold, count over "
        "all images the pixels of both and of either, and divide.",
    )
    yield "it is the IoU over all images, at the size of the masks"
    case = _regions(3, 3, 3, 3)
    case["masks"][:, 1] = False
    case["thresholds"][2] = case["maps"].max() + 1
    got = tensor_of(answer(**case), "the result")
    if got.shape != (3, 3) or not got[2, 1].isnan():
        raise Wrong(
            "a silent unit and a concept that is nowhere have an IoU",
            known.hint("zero for nothing"),
        )
    if got.isnan().sum() > 1 or (got[2, [0, 2]] != 0).any() or (got[:2, 1] != 0).any():
        raise Wrong(
            "where only one of the two has no pixel, the IoU is not 0",
            "the intersection is empty and the union is not: 0 divided by a number is 0.",
        )
    yield "nothing against nothing gives NaN, and nothing against something 0"


def _regions(
    n: int, units: int, concepts: int, seed: int, *, rectified: bool = False
) -> dict[str, Any]:
    """Maps 4 × 5, and masks 16 × 20 of very different areas that have something to do with them."""
    maps = cases.noise(n, units, 4, 5, seed=seed)
    if rectified:
        maps = maps.relu()
    blobs = F.interpolate(
        maps[:, torch.arange(concepts) % units] + cases.noise(n, concepts, 4, 5, seed=seed + 9),
        size=(16, 20),
        mode="bicubic",
    )
    level = torch.zeros(units) if rectified else torch.linspace(0.2, 0.6, units)
    area = torch.linspace(-0.5, 1.2, n).view(-1, 1, 1, 1)
    return {"maps": maps, "thresholds": level, "masks": blobs > area}


# 3 · A map that is moved ----------------------------------------------------------------------


def fooled(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    wanted: Tensor,
    epsilon: float,
    steps: int,
    rate: float,
    weight: float,
    *,
    frozen: bool = False,
    summed: bool = False,
    normalized: bool = True,
    up: bool = False,
    softmax: bool = False,
    clip: str = "original",
    off: int = 0,
    shared: bool = False,
    keep: bool = True,
) -> Tensor:
    """Images whose gradient map comes near the wanted one, and whose logit stays: (N, C, H, W)."""
    rows = torch.arange(len(images))
    start = images.detach()

    def score(x: Tensor) -> Tensor:
        logits = model(x.clone())
        return (logits.softmax(1) if softmax else logits)[rows, target]

    before, x = score(start).detach(), start.clone()
    for _ in range(steps + off):
        x = x.detach().requires_grad_()
        now = score(x)
        (slope,) = torch.autograd.grad(now.sum(), x, create_graph=not frozen, retain_graph=True)
        slope = slope.detach() if frozen else slope
        size = slope.sum(1).abs() if summed else slope.abs().sum(1)
        size = size / size.sum((1, 2), keepdim=True) if normalized else size
        loss = (size - wanted).square().sum((1, 2)) + weight * keep * (now - before).square()
        (step,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
        step = torch.zeros_like(x) if step is None else step
        largest = step.abs().amax() if shared else step.abs().amax((1, 2, 3), keepdim=True)
        moved = x + (1 if up else -1) * rate * step / largest.clamp(min=1e-30)
        if clip == "original":
            moved = torch.minimum(torch.maximum(moved, start - epsilon), start + epsilon)
        if clip == "last":
            moved = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon)
        if clip == "values":
            moved = moved.clamp(-epsilon, epsilon)
        x = moved.detach()
    return x.detach()


FOOLED: Mistakes = {
    "no second derivative": (
        {"frozen": True},
        "the map was taken as a constant, so that nothing moves it: only the term of the answer "
        "has a slope. torch.autograd.grad(…, create_graph=True) keeps what the map was made of.",
    ),
    "channels summed first": (
        {"summed": True},
        "the channels were added up with their signs. The map adds up their magnitudes.",
    ),
    "not divided by its sum": (
        {"normalized": False},
        "the map must be divided by its sum over the picture, as `wanted` is; else the size of the "
        "gradient is what is changed.",
    ),
    "the other way": (
        {"up": True},
        "this goes up the slope of the loss, away from the wanted map. Subtract the step.",
    ),
    "probability": (
        {"softmax": True},
        "f is the logit of the class, and here it was its probability.",
    ),
    "not clipped": (
        {"clip": "none"},
        "pixels have moved farther than ε from where they were. After each step, bring each back "
        "into the range from x − ε to x + ε, x being the picture as it came.",
    ),
    "clipped around the last step": (
        {"clip": "last"},
        "ε was counted from the last step, so that the steps add up to more. It counts from the "
        "picture as it came.",
    ),
    "the picture clipped": (
        {"clip": "values"},
        "the picture's values were clipped to ± ε. It is the change that must not be larger.",
    ),
    "one step too many": (
        {"off": 1},
        "there is one step too many.",
    ),
    "one step too few": (
        {"off": -1},
        "there is one step too few.",
    ),
    "one scale for the batch": (
        {"shared": True},
        "the step was divided by the largest slope of the whole batch. Each image has its own, so "
        "that it moves the same whatever other images there are.",
    ),
    "no term for the answer": (
        {"keep": False},
        "the second term is missing: nothing keeps the logit where it was.",
    ),
}


class Smooth(nn.Module):
    """Two convolutions, a softplus after each, and a linear layer: it has second derivatives."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, stride=2)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        x = F.softplus(self.conv1(x), beta=4)
        return self.fc(F.softplus(self.conv2(x), beta=4).mean((2, 3)))


@exercise("hw07.fooled", fooled, FOOLED, forbidden=("course_utils.evaluation",))
def check_fooled(answer: Answer, known: Exercise) -> Iterator[str]:
    """A small smooth network, of float64: one image and several, small and large ε."""
    asked = [
        _attack(2, epsilon=0.05, steps=6, rate=0.08, weight=1.0, seed=0),
        _attack(1, epsilon=0.3, steps=9, rate=0.1, weight=10.0, seed=1),
        _attack(3, epsilon=1.0, steps=3, rate=0.05, weight=0.5, seed=2),
    ]
    for case in asked:
        got, images = tensor_of(answer(**case), "the result"), case["images"]
        if got.shape != images.shape:
            hint = CHANNEL_LEFT if got.ndim < 4 else "the result are images, as many as came."
            raise Wrong(f"the result is {tuple(got.shape)}, wanted is {tuple(images.shape)}", hint)
    yield "images come back, of the same shape"
    compare(
        answer,
        known,
        asked,
        what="the result",
        hint="in each step: the logit and its gradient with create_graph=True; the map; the loss "
        "of both terms; its gradient, divided by the image's largest magnitude; a step down; back "
        "into the range.",
        tolerance=1e-4,
    )
    yield "they are what the equations say, each image on its own"
    case = asked[1]
    far = (tensor_of(answer(**case), "the result") - case["images"]).abs().max()
    if far > case["epsilon"] * (1 + 1e-6):
        raise Wrong(
            f"a pixel has moved by {far:.2f}, allowed is {case['epsilon']}",
            known.hint("not clipped"),
        )
    yield "no pixel has moved by more than ε"


def _attack(n: int, *, seed: int, **options: Any) -> dict[str, Any]:
    model = cases.double(Smooth)
    images = cases.noise(n, 3, 8, 9, seed=seed, dtype=torch.float64)
    target = torch.arange(n) % 4
    wanted = cases.noise(n, 8, 9, seed=seed + 5, dtype=torch.float64).abs()
    wanted = wanted / wanted.sum((1, 2), keepdim=True)
    return {"model": model, "images": images, "target": target, "wanted": wanted, **options}
