"""ROAR: is what a method calls important missed by a network that learns without it?"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from course_utils import files, plotting
from course_utils.contract import (
    Model,
    batched_logits,
    check_attribution,
    check_choice,
    check_count,
    check_whole,
    explaining,
    sum_channels,
)
from course_utils.evaluation.controls import ROAR_CONTROLS
from course_utils.progress import counting

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W) and their classes (N,)
Fit = Callable[[Tensor, Tensor, int], Model]  # images, labels, seed → a trained model
FILE = files.DATA / "roar.json"


class Roar(NamedTuple):
    """How accurate networks become without the pixels that a method ranks highest."""

    fractions: tuple[float, ...]  # the shares of the pixels removed
    accuracy: dict[str, Tensor]  # method → (fractions, repeats), from 0 to 1
    chance: float  # the accuracy of always answering the most frequent class


# The benchmark -------------------------------------------------------------------------------


def roar(
    train: Labelled,
    test: Labelled,
    attributions: Mapping[str, Sequence[Tensor]],
    fit: Fit,
    *,
    fractions: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 0.9),
    repeats: int = 3,
    seed: int = 0,
    holes: bool = False,
) -> Roar:
    """Remove the pixels that a method ranks highest, retrain from scratch, measure the accuracy.

        accuracy(t) = accuracy of fit(train without its top t) on (test without its top t)

    A method is good where the accuracy falls faster than for a random ranking. Each image loses its
    own pixels; the training images' mean colour takes their place, so that a new network meets in
    the test what it has learned from. Repeat k trains with the seed `seed` + k, for all methods
    alike: differences between methods are paired.

    What it cannot see: evidence that is there twice is not missed when one copy goes; and the hole
    itself may tell the class, as a map of the class does. `holes` measures that: a network learns
    from the holes alone, 1 where a pixel went and 0 elsewhere.

    train, test: (images (N, C, H, W), labels (N,) LongTensor), images of any type.
    attributions: method → (map of the training images, map of the test images), floating point,
    as the images, summed over channels, or (N, H, W). The highest go first; equal ones in random
    order, so that a constant map is a random ranking. See `experiments` for some.
    fit: (images, labels, seed) → a newly trained model: images → logits (N, K).
    fractions: of the pixels, 0 ≤ t < 1, rising. Without 0 the untouched images are not trained on.

    Costs repeats × (methods × fractions above 0, and one for 0) trainings.
    Raises ValueError or TypeError naming the argument.
    Source: Hooker, Erhan, Kindermans, Kim, A Benchmark for Interpretability Methods in Deep Neural
    Networks, 2019.
    """
    _check_set("train", train)
    _check_set("test", test)
    _check_attributions(attributions, train[0], test[0])
    _check_fractions(fractions)
    check_count("repeats", repeats)
    check_whole("seed", seed)
    (images, labels), (unseen, truth) = train, test
    if holes:
        images, unseen = torch.zeros_like(images[:, :1]), torch.zeros_like(unseen[:, :1])
    colour = mean_color(images) + int(holes)
    removing = [fraction for fraction in fractions if fraction > 0]
    first = len(fractions) - len(removing)  # 1 where fractions start with 0
    accuracy = {name: torch.empty(len(fractions), repeats).double() for name in attributions}
    total = repeats * (len(attributions) * len(removing) + first)
    with counting(total, "training") as advance:
        for repeat in range(repeats):
            if first:
                untouched = _accuracy(fit(images, labels, seed + repeat), unseen, truth)
                for values in accuracy.values():
                    values[0, repeat] = untouched
                advance(1)
            for name, maps in attributions.items():
                generator = torch.Generator().manual_seed(seed + repeat)
                seen, new = (removal_order(each, generator) for each in maps)
                for row, fraction in enumerate(removing, start=first):
                    model = fit(remove(images, seen, fraction, colour), labels, seed + repeat)
                    left = remove(unseen, new, fraction, colour)
                    accuracy[name][row, repeat] = _accuracy(model, left, truth)
                    advance(1)
    return Roar(tuple(map(float, fractions)), accuracy, _chance(truth))


def removal_order(attribution: Tensor, generator: torch.Generator) -> Tensor:
    """When each pixel goes, (N, H, W) from 0, the highest value first and ties in random order.

    >>> roar.removal_order(torch.tensor([[[1.0, 9.0, 5.0]]]), torch.Generator())
    tensor([[[2, 0, 1]]])
    """
    values = sum_channels(attribution).flatten(1)
    shuffled = torch.rand(values.shape, generator=generator).argsort(1)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    rank = shuffled.gather(1, order).argsort(1)
    return rank.view(len(rank), *attribution.shape[-2:])


def remove(images: Tensor, order: Tensor, fraction: float, colour: Tensor) -> Tensor:
    """The images (N, C, H, W) with that share of their pixels replaced, first those of order 0.

    order: (N, H, W), see `removal_order`. colour: the colour (C, 1, 1) that takes their place.
    """
    count = round(fraction * order[0].numel())
    return torch.where((order < count)[:, None].to(images.device), colour, images)


def mean_color(images: Tensor) -> Tensor:
    """The images' (N, C, H, W) mean a channel (C, 1, 1), in their type: whole for whole numbers."""
    mean = images.double().mean((0, 2, 3))[:, None, None]
    return (mean if images.is_floating_point() else mean.round()).to(images.dtype)


def _accuracy(model: Model, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    with explaining(model), torch.no_grad():
        answers = batched_logits(model, images, batch_size).argmax(1)
    return (answers.cpu() == labels.cpu()).double().mean().item()


def _chance(labels: Tensor) -> float:
    return labels.bincount().max().item() / len(labels)


# What it says --------------------------------------------------------------------------------


def t_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over repeats (…, n) → (…), and the half width of its 95 % interval:

        t · s / √n,    t: the 97.5 % quantile of Student's distribution with n − 1 degrees

    One repeat says nothing about the spread: its half width is NaN. Three have t = 4.3, five 2.8.
    The interval is about the repeats (start and order of training, ties); the data stay the same.

    >>> roar.t_interval(torch.tensor([0.5, 0.6, 0.7]))
    (tensor(0.6000), tensor(0.2484))
    """
    from scipy.stats import t  # takes half a second to import

    n = values.shape[-1]
    spread = values.std(-1) if n > 1 else values.new_full(values.shape[:-1], torch.nan)
    return values.mean(-1), spread * float(t.ppf(0.975, n - 1)) / n**0.5


def advantage(result: Roar, over: str = "random") -> dict[str, tuple[float, float]]:
    """How much more accuracy each method costs than a control, with its 95 % half width.

        mean over t > 0 of  accuracy of the control − accuracy of the method, paired by repeat

    Above 0 the method finds more than the control does. One number a method, where testing it at
    every fraction would find something by chance. Raises ValueError for an unknown control.
    """
    check_choice("over", over, result.accuracy)
    removing = torch.tensor(result.fractions) > 0
    gaps = {
        name: (result.accuracy[over] - values)[removing].mean(0)
        for name, values in result.accuracy.items()
        if name != over
    }
    return {
        name: (mean.item(), half.item())
        for name, gap in gaps.items()
        for mean, half in [t_interval(gap)]
    }


def plot(result: Roar, *, alt: str, title: str | None = None, size: float = 7.0) -> None:
    """Accuracy against the share removed: a line a method, a band its 95 % interval.

    The controls are grey and dashed; a dotted line marks chance. `alt` says in words what is shown.
    """
    with plotting.new_figure(size, 0.66 * size, title, alt) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        x = np.array(result.fractions)
        methods = [name for name in result.accuracy if name not in ROAR_CONTROLS]
        for name, values in result.accuracy.items():
            mean, half = (numbers.numpy() for numbers in t_interval(values))
            look: dict[str, Any] = {"color": plotting.MUTED, "ls": "--"}
            if name in methods:
                number = methods.index(name)
                look = {"color": plotting.SERIES[number % 6], "marker": "osD^vPX*"[number % 8]}
                look["ls"] = "-" if number < 6 else "-."
            axes.plot(x, mean, label=name, clip_on=False, **look)
            axes.fill_between(x, mean - half, mean + half, color=look["color"], alpha=0.15, lw=0)
        axes.set(xlabel="share of the pixels removed", ylabel="accuracy after retraining")
        axes.set(xticks=x, xlim=(0, x[-1] or 1), ylim=(0, 1))
        axes.grid(axis="y", color=plotting.FAINT, lw=0.8)
        _label_ends(axes)
        axes.axhline(result.chance, color=plotting.MUTED, ls=":", lw=1.2)


def _label_ends(axes: Axes, gap: float = 0.052) -> None:
    """Each line's name beside its end, none over another, tied to it by a thin line."""
    ends = sorted(
        (float(np.asarray(line.get_ydata())[-1]), str(line.get_label()), line.get_color())
        for line in axes.get_lines()
    )
    heights = [end for end, _, _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    top = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], top)
        top = heights[index] - gap
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
    for (end, name, color), height in zip(ends, heights, strict=True):
        axes.plot([1.01, 1.05], [end, height], color=color, lw=0.8, **beside)
        axes.text(1.06, height, name, color=color, va="center", weight="bold", **beside)


# The file ------------------------------------------------------------------------------------


def save(results: Mapping[str, Roar], path: str | os.PathLike[str], **facts: Any) -> Path:
    """Write results, and facts about them, as JSON; the file is there whole or not at all."""
    path = Path(path)
    content: dict[str, Any] = dict(facts)
    for name, result in results.items():
        rounded = {method: _rounded(values) for method, values in result.accuracy.items()}
        content[name] = {**result._asdict(), "accuracy": rounded}
    text = json.dumps(content, indent=1)
    with files.whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    return path


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]


def load(path: str | os.PathLike[str] = FILE, *, holes: bool = False) -> Roar:
    """What `experiments.make` wrote: the benchmark, or that of the holes alone.

    Raises FileNotFoundError, or ValueError where the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no {path}; run `course roar` to make it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["holes" if holes else "pixels"]
        accuracy = {
            name: torch.tensor(rows, dtype=torch.float64)
            for name, rows in content["accuracy"].items()
        }
        return Roar(tuple(content["fractions"]), accuracy, float(content["chance"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"path: {path.name} is damaged; run `course roar` again") from None


# Checks --------------------------------------------------------------------------------------


def _check_set(name: str, labelled: Labelled) -> None:
    if not isinstance(labelled, Sequence) or len(labelled) != 2:
        raise TypeError(f"{name} must be (images, labels), not {type(labelled).__name__}")
    images, labels = labelled
    for part, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: its {part} must be a tensor, not {type(value).__name__}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(
            f"{name}: its images must be (N, C, H, W), not empty, but are {tuple(images.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError(f"{name}: its images must be finite, but hold NaN or infinity")
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: its labels must be ({len(images)},) in int64, one an image, but are "
            f"{tuple(labels.shape)} in {labels.dtype}"
        )
    if labels.min() < 0:
        raise ValueError(f"{name}: its labels must count from 0, but one is {int(labels.min())}")
    if len(labels.unique()) < 2:
        raise ValueError(
            f"{name}: its labels are all {int(labels[0])}; with one class every network is right"
        )


def _check_attributions(
    attributions: Mapping[str, Sequence[Tensor]], train: Tensor, test: Tensor
) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"test: its images must be {tuple(train.shape[1:])} each, as those of train, but are "
            f"{tuple(test.shape[1:])}"
        )
    if not isinstance(attributions, Mapping) or not attributions:
        raise ValueError("attributions must hold at least one method: {name: (of train, of test)}")
    for name, maps in attributions.items():
        if not isinstance(maps, Sequence) or len(maps) != 2:
            raise ValueError(
                f"attributions: {name!r} must have two maps, of the training and the test images"
            )
        for which, each, images in zip(("train", "test"), maps, (train, test), strict=True):
            check_attribution(each, images, f"attributions: {name!r} of {which}")


def _check_fractions(fractions: Sequence[float]) -> None:
    values = list(fractions)
    if not values or any(
        isinstance(value, bool) or not isinstance(value, int | float) for value in values
    ):
        raise TypeError(f"fractions must be numbers, at least one, not {fractions!r}")
    if not all(0 <= value < 1 for value in values):
        raise ValueError(f"fractions must be at least 0 and below 1, but are {values}")
    if values != sorted(set(values)):
        raise ValueError(f"fractions must rise, but are {values}")
