"""Looking inside: the filters, the feature maps, and what each unit of a layer answers to.

A **unit** is one channel of a layer's output (N, C, H, W), or one number of an output (N, C). Its
**response** to an image is its map, pooled over all positions.
"""

from collections.abc import Iterator, Sequence
from colorsys import rgb_to_hsv
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from scipy.stats import rankdata
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_utils import plotting
from course_utils.contract import check, explaining
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
    weights = layer.weight.detach().cpu().numpy()
    if weights.shape[1] in (1, 3):
        return plotting.filter_tiles(weights)
    return np.stack([plotting.colorize(kernel, "signed") for kernel in weights.mean(axis=1)])


def feature_maps(
    model: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """What layers answer to images, in one pass: {name: (N, C, H, W)}, detached.

    images: (N, C, H, W) in model space. layers: names; None takes every 2-D convolution.
    The maps are the layers' own outputs: before BatchNorm and ReLU where those are layers of their
    own. Raises ValueError or TypeError naming the argument.
    """
    check(model, images)
    names = list(conv_layers(model)) if layers is None else layers
    with explaining(model), torch.no_grad(), capture(model, names) as kept:
        model(images.clone())
    return {name: maps.detach() for name, maps in kept.items()}


def multi_output(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """The model with more outputs: images → {name: activation}, sharing all its weights.

    A plain module, with which one can train and take gradients.
    Raises ValueError where there is no layer of that name.
    """
    for name in layers:
        find(model, name)
    return _MultiOutput(model, tuple(layers))


class _MultiOutput(nn.Module):
    def __init__(self, model: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with capture(self.model, self.layers) as kept:
            self.model(images)
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
    rows = [pooled for pooled, _ in _pooled(model, layer, images, pool, batch_size, progress)]
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
    earlier image comes first. No more than `batch_size` images and k results are held at a time.

    Raises ValueError for a layer or unit that is not there and a k larger than the set.
    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    _check_whole("k", k)
    if not 1 <= k <= _length(images):
        raise ValueError(f"k is {k}; choose from 1 to the number of images, {_length(images)}")
    best, positions = torch.empty(0), torch.empty(0, 2)
    indices = torch.empty(0, dtype=torch.long)
    seen = 0
    for pooled, maps in _pooled(model, layer, images, pool, batch_size, progress):
        check_unit(layer, unit, pooled.shape[1])
        best = torch.cat([best, pooled[:, unit]])
        indices = torch.cat([indices, torch.arange(seen, seen + len(pooled))])
        positions = torch.cat([positions, _strongest(maps[:, unit])])
        seen += len(pooled)
        # A stable sort keeps the earlier of two equal scores.
        kept = best.argsort(descending=True, stable=True)[:k]
        best, indices, positions = best[kept], indices[kept], positions[kept]
    size = torch.tensor(_first(images).shape[-2:])
    return TopActivating(indices, best, (positions * size).long())


def _strongest(maps: torch.Tensor) -> torch.Tensor:
    """The centre of the largest cell of each map (N, H, W), as shares of height and width."""
    height, width = maps.shape[1:]
    place = maps.flatten(1).argmax(1).cpu()
    return torch.stack(((place // width + 0.5) / height, (place % width + 0.5) / width), 1)


def _pooled(
    model: nn.Module, layer: str, images: Images, pool: str, batch_size: int, progress: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each batch of images: the pooled activations (N, C), and the maps (N, C, H, W)."""
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    find(model, layer)
    for batch in batches(images, batch_size, progress):
        check(model, batch)
        maps = feature_maps(model, batch, [layer]).get(layer)
        if maps is None or maps.ndim not in (2, 4):
            came = "did not run" if maps is None else f"gives {tuple(maps.shape)}"
            raise ValueError(f"layer {layer!r} {came}; units are (N, C, H, W) or (N, C)")
        maps = maps[..., None, None] if maps.ndim == 2 else maps
        yield POOLS[pool](maps).cpu(), maps


def batches(images: Images, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
    """Images (N, C, H, W) in model space, `batch_size` at a time, each made when it is needed."""
    _check_whole("batch_size", batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    n = _length(images)
    with tqdm(total=n, unit="image", disable=not progress, leave=False) as bar:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            if isinstance(images, torch.Tensor):
                batch = images[start:stop]
            else:
                batch = torch.stack([images[index] for index in range(start, stop)])
            yield batch
            bar.update(len(batch))


def _length(images: Images) -> int:
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise TypeError(
            f"images must be a tensor (N, C, H, W) or a sequence of images (C, H, W), not "
            f"{type(images).__name__}"
        )
    if not len(images):
        raise ValueError("images must not be empty")
    return len(images)


def _first(images: Images) -> torch.Tensor:
    return images[0]


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, not {value!r}")


def check_unit(layer: str, unit: Any, units: int) -> None:
    """Refuse a unit that the layer does not have."""
    _check_whole("unit", unit)
    if not 0 <= unit < units:
        raise ValueError(
            f"unit: layer {layer!r} has no unit {unit}; its units are 0 to {units - 1}"
        )


# Concepts ------------------------------------------------------------------------------------


class ConceptScores(NamedTuple):
    """How well each of C units tells each of K concepts, with a 95 % confidence interval."""

    concepts: tuple[str, ...]
    auroc: NDArray[np.float64]  # (C, K)
    low: NDArray[np.float64]  # (C, K)
    high: NDArray[np.float64]  # (C, K)

    def of(self, unit: int, k: int = 5) -> list[tuple[str, float, float, float]]:
        """The k concepts that a unit tells best: (name, AUROC, low, high)."""
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
    those of `concepts`. A concept that all or none of the scenes have gets NaN.
    """
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
    names = tuple(sorted(set().union(*known)))
    columns = [auroc(responses, np.array([name in have for have in known])) for name in names]
    scores, low, high = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return ConceptScores(names, scores, low, high)


def concepts(spec: SceneSpec) -> set[str]:
    """What a scene shows: "class zebra", "shape horse", "texture stripes", "colour white" …

    It counts wherever it is: on the object, on its smaller companion, and a texture also on the
    furniture. The colours are those of object and companion; "place savanna" is the background.
    """
    things = [(spec.label, spec.shape, spec.texture, spec.color, spec.accent)]
    if "texture" in spec.removed:
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
    return found


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

    Source: DeLong, DeLong, Clarke-Pearson, 1988; by ranks: Sun, Xu, 2014.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        nan = np.full(responses.shape[1], np.nan)
        return nan, nan, nan
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
    with explaining(model), capture(model, [before, layer]) as kept:
        model.requires_grad_(False)
        model(images.clone().requires_grad_())
        later, earlier = kept[layer], kept[before]
        check_unit(layer, unit, later.shape[1])
        u = later[:, unit].flatten(1).mean(1).sum()
        (slope,) = torch.autograd.grad(u, earlier, allow_unused=True)
        if slope is None:
            raise ValueError(f"before: layer {before!r} is not on the way to {layer!r}")
    return (slope * earlier).detach().flatten(2).sum(2)
