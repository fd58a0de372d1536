"""Looking inside: the filters, the feature maps, and what each unit of a layer answers to.

A **unit** is one channel of a layer's output (N, C, H, W), or one number of an output (N, C). Its
**response** to an image is its map, pooled over all positions.
"""

from collections.abc import Iterator, Sequence, Sized
from colorsys import rgb_to_hsv
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import nn
from torch.utils.data import Dataset

from course_utils import plotting
from course_utils.contract import (
    check,
    check_count,
    check_unit,
    check_whole,
    counting,
    explaining,
)
from course_utils.layers import capture, conv_layers, find
from course_utils.models import Classifier
from course_utils.scenes import LOOKS, Scenes, SceneSpec

Images = torch.Tensor | Dataset[torch.Tensor] | Sequence[torch.Tensor]

POOLS = {
    "mean": lambda maps: maps.flatten(2).mean(2),
    "max": lambda maps: maps.flatten(2).amax(2),
    "sum": lambda maps: maps.flatten(2).sum(2),
}


def filters(layer: nn.Module) -> NDArray[np.uint8]:
    """The kernels of a convolution as pictures (C_out, k, k, 3).

    A layer that reads colours is shown in colours, zero as mid-grey. Of any other layer a kernel
    has no colours; then its mean over the input channels is shown, blue below zero and red above,
    and lecture 02 measures how little that says. Every kernel is on its own scale.

    Raises TypeError where the layer is no 2-D convolution.
    """
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(
            f"layer must be an nn.Conv2d, not {type(layer).__name__}; "
            "layers.conv_layers(model) lists them"
        )
    weights = layer.weight.detach().float().cpu().numpy()
    if layer.in_channels in (1, 3):
        return plotting.filter_tiles(weights)
    return np.stack([plotting.colorize(kernel, "signed") for kernel in weights.mean(axis=1)])


def feature_maps(
    model: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """What layers answer to images, in one pass: {name: (N, C, H, W)}, detached.

    images: (N, C, H, W) in model space. layers: names; None takes every 2-D convolution.
    The maps are the layers' own outputs: before BatchNorm and ReLU where those are layers of their
    own. A layer that the images do not pass is left out. Raises ValueError or TypeError naming the
    argument.
    """
    check(model, images)
    if layers is None:
        layers = list(conv_layers(model))
    names = [layers] if isinstance(layers, str) else list(layers)
    with explaining(model), torch.no_grad(), capture(model, names) as kept:
        model(images.clone())
    for name, maps in kept.items():
        if not isinstance(maps, torch.Tensor):
            raise ValueError(f"layer {name!r} gives a {type(maps).__name__}, not a tensor of maps")
    return {name: kept[name].detach() for name in names if name in kept}


def multi_output(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The model with more outputs: images → {name: activation}, sharing all its weights.

    A plain module, with which one can train and take gradients.
    Raises ValueError where there is no layer of that name, or where it does not run.
    """
    return _MultiOutput(model, _names(model, layers))


def _names(model: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Layers that the model has, as a list also where it is only one."""
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        find(model, name)
    return names


class _MultiOutput(nn.Module):
    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with capture(self.model, self.layers) as kept:
            self.model(images)
        for name in self.layers:
            if name not in kept:
                raise ValueError(f"layers: layer {name!r} did not run")
        return {name: kept[name] for name in self.layers}


# Responses -----------------------------------------------------------------------------------


def responses(
    model: nn.Module,
    layer: str,
    images: Images,
    *,
    pool: str = "mean",
    batch_size: int = 16,
    progress: bool = True,
) -> torch.Tensor:
    """How strongly each unit of a layer answers to each image: (N, C), on the CPU.

    images: a tensor (N, C, H, W) in model space, or anything with a length whose items are such
    images (`Classifier.inputs` makes that of pictures). pool: over the positions of a unit's map,
    "mean", "max" or "sum"; an output without positions is taken as it is.
    """
    rows = [pooled for pooled, _, _ in _pooled(model, layer, images, pool, batch_size, progress)]
    return torch.cat(rows)


class TopActivating(NamedTuple):
    """The images a unit answers to most, the strongest first."""

    indices: torch.Tensor  # (k,) which images
    scores: torch.Tensor  # (k,) the unit's pooled activation
    positions: torch.Tensor  # (k, 2) row and column, in pixels, of the strongest place in its map


def top_activating(
    model: nn.Module,
    layer: str,
    unit: int,
    images: Images,
    k: int = 9,
    *,
    pool: str = "mean",
    batch_size: int = 16,
    progress: bool = True,
) -> TopActivating:
    """The k images to which one unit of a layer answers most.

    unit: a channel of the layer's output. images, pool: as in `responses`. Of equal scores the
    earlier image comes first. Images are asked for `batch_size` at a time and not kept.

    Raises ValueError for a layer or unit that is not there and a k larger than the set.
    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    check_whole("unit", unit)
    check_whole("k", k)
    if not 1 <= k <= _length(images):
        raise ValueError(f"k is {k}; choose from 1 to the number of images, {_length(images)}")
    best, positions = torch.empty(0), torch.empty(0, 2, dtype=torch.long)
    indices = torch.empty(0, dtype=torch.long)
    seen = 0
    for pooled, maps, size in _pooled(model, layer, images, pool, batch_size, progress):
        check_unit(layer, unit, pooled.shape[1])
        best = torch.cat([best, pooled[:, unit]])
        indices = torch.cat([indices, torch.arange(seen, seen + len(pooled))])
        positions = torch.cat([positions, (strongest(maps[:, unit]) * size).long()])
        seen += len(pooled)
        # A stable sort keeps the earlier of two equal scores.
        kept = best.argsort(descending=True, stable=True)[:k]
        best, indices, positions = best[kept], indices[kept], positions[kept]
    return TopActivating(indices, best, positions)


def strongest(maps: torch.Tensor) -> torch.Tensor:
    """The centre of the largest cell of each map (N, H, W), as shares of height and width."""
    height, width = maps.shape[1:]
    place = maps.flatten(1).argmax(1).cpu()
    return torch.stack(((place // width + 0.5) / height, (place % width + 0.5) / width), 1)


def _pooled(
    model: nn.Module, layer: str, images: Images, pool: str, batch_size: int, progress: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batch by batch: pooled activations (N, C), maps (N, C, H, W), height and width of images."""
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    _names(model, [layer])
    for batch in batches(images, batch_size, progress):
        maps = _units(layer, feature_maps(model, batch, [layer]))
        maps = maps[..., None, None] if maps.ndim == 2 else maps
        yield POOLS[pool](maps).cpu(), maps, torch.tensor(batch.shape[-2:])


def _units(layer: str, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """The kept output of a layer, where it has units."""
    maps = kept.get(layer)
    if maps is None:
        raise ValueError(f"layer {layer!r} did not run")
    if not isinstance(maps, torch.Tensor) or maps.ndim not in (2, 4):
        came = tuple(maps.shape) if isinstance(maps, torch.Tensor) else f"a {type(maps).__name__}"
        raise ValueError(f"layer {layer!r} gives {came}; units are (N, C, H, W) or (N, C)")
    return maps


def batches(images: Images, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
    """Images (N, C, H, W) in model space, `batch_size` at a time, each made when it is needed."""
    check_count("batch_size", batch_size)
    n = _length(images)
    with counting(n, "image", progress, delay=0) as advance:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            if isinstance(images, torch.Tensor):
                batch = images[start:stop]
            else:
                batch = _stack(images, range(start, stop))
            yield batch
            advance(len(batch))


def _length(images: Images) -> int:
    indexed = hasattr(images, "__getitem__") and not isinstance(images, str | dict)
    if not isinstance(images, Sized) or not indexed:
        raise TypeError(
            f"images must be a tensor (N, C, H, W) or a sequence of images (C, H, W), not "
            f"{type(images).__name__}"
        )
    if not len(images):
        raise ValueError("images must not be empty")
    return len(images)


def _stack(images: Dataset[torch.Tensor] | Sequence[torch.Tensor], indices: range) -> torch.Tensor:
    items = [images[index] for index in indices]
    for index, image in zip(indices, items, strict=True):
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            came = tuple(image.shape) if hasattr(image, "shape") else type(image).__name__
            raise TypeError(
                f"images[{index}] must be a tensor (C, H, W), not {came}; "
                "Classifier.inputs makes such tensors of pictures"
            )
        if image.shape != items[0].shape:
            raise ValueError(
                f"images must all have one shape, but images[{index}] is {tuple(image.shape)} and "
                f"images[{indices[0]}] is {tuple(items[0].shape)}"
            )
    return torch.stack(items)


# Concepts ------------------------------------------------------------------------------------


class ConceptScores(NamedTuple):
    """How well each of C units tells each of K concepts, with a 95 % confidence interval."""

    concepts: tuple[str, ...]
    auroc: NDArray[np.float64]  # (C, K)
    low: NDArray[np.float64]  # (C, K)
    high: NDArray[np.float64]  # (C, K)

    def of(self, unit: int, k: int = 5) -> list[tuple[str, float, float, float]]:
        """The k concepts that a unit tells best: (name, AUROC, low, high)."""
        check_whole("unit", unit)
        if not 0 <= unit < len(self.auroc):
            raise ValueError(f"unit: there is no unit {unit}; choose 0 to {len(self.auroc) - 1}")
        check_whole("k", k)
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        best = np.argsort(-self.auroc[unit], kind="stable")[:k]
        rows = ((self.concepts[c], *(a[unit, c] for a in self[1:])) for c in best)
        return [(name, float(a), float(low), float(high)) for name, a, low, high in rows]


def concept_scores(
    classifier: Classifier,
    layer: str,
    scenes: Scenes,
    *,
    pool: str = "mean",
    batch_size: int = 16,
    progress: bool = True,
) -> ConceptScores:
    """How well each unit of a layer tells scenes with a concept from scenes without it.

    AUROC = P(response to a scene with the concept > response to one without it), ties count half:
    1 is a perfect detector, 0.5 knows nothing, 0 is silent where the concept is. The concepts are
    those of `concepts`. One that fewer than two scenes have, or fewer than two lack, gets NaN.
    """
    if not isinstance(classifier, Classifier) or not isinstance(scenes, Scenes):
        raise TypeError(
            "classifier must be a Classifier and scenes a Scenes, not "
            f"{type(classifier).__name__} and {type(scenes).__name__}"
        )
    rows = responses(
        classifier.model,
        layer,
        classifier.inputs(scenes),
        pool=pool,
        batch_size=batch_size,
        progress=progress,
    )
    return score_concepts(rows.numpy(), [scenes.spec(index) for index in range(len(scenes))])


def score_concepts(responses: NDArray[Any], specs: Sequence[SceneSpec]) -> ConceptScores:
    """As `concept_scores`, from responses (N, C) to N scenes that are already there."""
    known = [concepts(spec) for spec in specs]
    names = tuple(sorted(frozenset().union(*known)))
    if not names:
        raise ValueError("specs must hold scenes that show something")
    columns = [auroc(responses, np.array([name in have for have in known])) for name in names]
    scores, low, high = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return ConceptScores(names, scores, low, high)


@cache
def concepts(spec: SceneSpec) -> frozenset[str]:
    """What a scene shows: "class zebra", "shape horse", "texture stripes", "colour white" …

    It counts wherever it is: on the object, on its smaller companion, and a texture also on the
    furniture. The colours are those of object and companion; "place savanna" is the background.
    """
    things = [(spec.label, spec.shape, spec.texture, spec.color, spec.accent)]
    if "texture" in spec.removed or not spec.contrast:
        things = [(spec.label, spec.shape, "plain", spec.color, spec.accent)]
    if "object" in spec.removed:
        things = []
    if spec.companion != "none" and "companion" not in spec.removed:
        look = LOOKS[spec.companion]
        things.append((spec.companion, look.shape, look.texture, look.color, look.accent))
    found = set()
    for label, shape, texture, color, accent in things:
        colors = {color} if texture == "plain" else {color, accent}
        found |= {f"class {label}", f"shape {shape}", f"texture {texture}"}
        found |= {f"colour {color_name(color)}" for color in colors}
    if spec.clutter != "none" and "clutter" not in spec.removed:
        found.add(f"texture {spec.clutter_texture}")
    if "background" not in spec.removed:
        found.add(f"place {spec.background}")
    return frozenset(found)


HUES = {
    15: "red",
    36: "orange",
    70: "yellow",
    165: "green",
    255: "blue",
    320: "purple",
    345: "pink",
}


def color_name(color: str) -> str:
    """The everyday name of a colour "#rrggbb": "red", "brown", "white" …"""
    hue, saturation, value = rgb_to_hsv(*(c / 255 for c in ImageColor.getrgb(color)[:3]))
    if value < 0.33:
        return "black"
    if saturation < 0.2 or (saturation < 0.35 and value > 0.9):
        return "white" if value > 0.75 else "grey"
    name = next((name for end, name in HUES.items() if hue * 360 < end), "red")
    return "brown" if name in ("orange", "yellow") and value < 0.65 else name


def auroc(
    responses: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The AUROC of each column of responses (N, C) for the bool labels (N,), and its 95 % interval.

    With m positives and n negatives, from the ranks R of the positives among all:
    AUROC = (ΣR − m(m + 1)/2) / mn. The interval is 1.96 standard errors after DeLong, whose
    variance is that of each positive's share of negatives below it, over m, plus that of each
    negative's share of positives above it, over n.

    Fewer than two positives or negatives give NaN. Where every positive is above every negative the
    interval has no width, however few they are.

    Source: DeLong, DeLong, Clarke-Pearson, 1988; by ranks: Sun, Xu, 2014.
    """
    from scipy.stats import rankdata  # takes seconds to import, and few lectures need it

    responses, positive = np.asarray(responses), np.asarray(positive)
    if responses.ndim != 2 or positive.shape != responses.shape[:1]:
        raise ValueError(
            f"responses must be (N, C) and positive (N,), but are {responses.shape} and "
            f"{positive.shape}"
        )
    if positive.dtype != bool:
        raise TypeError(f"positive must be bool, one for each image, not {positive.dtype}")
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        area, low, high = np.full((3, responses.shape[1]), np.nan)
        return area, low, high
    ranks = rankdata(responses, axis=0)
    below = (ranks[positive] - rankdata(responses[positive], axis=0)) / n
    above = 1 - (ranks[~positive] - rankdata(responses[~positive], axis=0)) / m
    area = below.mean(axis=0)
    error = np.sqrt(below.var(axis=0, ddof=1) / m + above.var(axis=0, ddof=1) / n)
    return area, np.clip(area - 1.96 * error, 0, 1), np.clip(area + 1.96 * error, 0, 1)


# Circuits ------------------------------------------------------------------------------------


def contributions(
    model: nn.Module, layer: str, unit: int, before: str, images: torch.Tensor
) -> torch.Tensor:
    """How much each unit of an earlier layer adds to one unit of a later one: (N, C_before).

    u = the unit's mean activation, a_i = the map of unit i of the layer `before`:

        contribution_i = Σ_positions a_i · ∂u / ∂a_i

    Positive excites, negative inhibits. Where everything between is linear, it is the sum of weight
    times activation, and taking unit i away lowers u by exactly that much; elsewhere it is the
    first-order estimate of it.

    Source: Olah et al., Zoom In: An Introduction to Circuits, 2020; Molchanov et al., 2017.
    """
    check(model, images)
    check_whole("unit", unit)
    with explaining(model), capture(model, [before, layer]) as kept:
        model.requires_grad_(False)
        # A copy of the leaf: a model may begin with an in-place ReLU, which a leaf does not allow.
        model(images.clone().requires_grad_().clone())
        later, earlier = _units(layer, kept), _units(before, kept)
        check_unit(layer, unit, later.shape[1])
        u = later[:, unit].reshape(len(later), -1).mean(1).sum()
        (slope,) = torch.autograd.grad(u, earlier, allow_unused=True)
        if slope is None:
            raise ValueError(
                f"before: layer {before!r} is not on the way to {layer!r} (of a layer that runs "
                "several times, its last run counts)"
            )
    return (slope * earlier).detach().reshape(*earlier.shape[:2], -1).sum(2)
