"""Looking inside: the filters, the feature maps, and what each unit of a layer answers to.

A **unit** is one channel of a layer's output (N, C, H, W), or one number of an output (N, C). Its
**response** to an image is its map, pooled over all positions.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils import plotting
from course_utils.contract import (
    check,
    check_choice,
    check_count,
    check_unit,
    check_whole,
    explaining,
)
from course_utils.layers import capture, conv_layers, find
from course_utils.progress import counting

Images = Tensor | Dataset[Tensor] | Sequence[Tensor]

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
    model: nn.Module, images: Tensor, layers: Sequence[str] | None = None
) -> dict[str, Tensor]:
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
        if not isinstance(maps, Tensor):
            raise ValueError(f"layer {name!r} gives a {type(maps).__name__}, not a tensor of maps")
    return {name: kept[name].detach() for name in names if name in kept}


# Responses -----------------------------------------------------------------------------------


def responses(
    model: nn.Module,
    layer: str,
    images: Images,
    *,
    pool: str = "mean",
    batch_size: int = 16,
) -> Tensor:
    """How strongly each unit of a layer answers to each image: (N, C), on the CPU.

    images: a tensor (N, C, H, W) in model space, or anything with a length whose items are such
    images (`Classifier.inputs` makes that of pictures). pool: over the positions of a unit's map,
    "mean", "max" or "sum"; an output without positions is taken as it is.
    """
    rows = [pooled for pooled, _, _ in _pooled(model, layer, images, pool, batch_size)]
    return torch.cat(rows)


class TopActivating(NamedTuple):
    """The images a unit answers to most, the strongest first."""

    indices: Tensor  # (k,) which images
    scores: Tensor  # (k,) the unit's pooled activation
    positions: Tensor  # (k, 2) row and column, in pixels, of the strongest place in its map


def top_activating(
    model: nn.Module,
    layer: str,
    unit: int,
    images: Images,
    k: int = 9,
    *,
    pool: str = "mean",
    batch_size: int = 16,
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
    for pooled, maps, size in _pooled(model, layer, images, pool, batch_size):
        check_unit(layer, unit, pooled.shape[1])
        best = torch.cat([best, pooled[:, unit]])
        indices = torch.cat([indices, torch.arange(seen, seen + len(pooled))])
        positions = torch.cat([positions, (strongest(maps[:, unit]) * size).long()])
        seen += len(pooled)
        # A stable sort keeps the earlier of two equal scores.
        kept = best.argsort(descending=True, stable=True)[:k]
        best, indices, positions = best[kept], indices[kept], positions[kept]
    return TopActivating(indices, best, positions)


def strongest(maps: Tensor) -> Tensor:
    """The centre of the largest cell of each map (N, H, W), as shares of height and width."""
    height, width = maps.shape[1:]
    place = maps.flatten(1).argmax(1).cpu()
    return torch.stack(((place // width + 0.5) / height, (place % width + 0.5) / width), 1)


def _pooled(
    model: nn.Module, layer: str, images: Images, pool: str, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batch by batch: pooled activations (N, C), maps (N, C, H, W), height and width of images."""
    check_choice("pool", pool, POOLS)
    find(model, layer)
    for batch in batches(images, batch_size):
        maps = units_of(layer, feature_maps(model, batch, [layer]))
        maps = maps[..., None, None] if maps.ndim == 2 else maps
        yield POOLS[pool](maps).cpu(), maps, torch.tensor(batch.shape[-2:])


def units_of(layer: str, kept: dict[str, Tensor]) -> Tensor:
    """The kept output of a layer, where it has units."""
    maps = kept.get(layer)
    if maps is None:
        raise ValueError(f"layer {layer!r} did not run")
    if not isinstance(maps, Tensor) or maps.ndim not in (2, 4):
        came = tuple(maps.shape) if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        raise ValueError(f"layer {layer!r} gives {came}; units are (N, C, H, W) or (N, C)")
    return maps


def batches(images: Images, batch_size: int) -> Iterator[Tensor]:
    """Images (N, C, H, W) in model space, `batch_size` at a time, each made when it is needed."""
    check_count("batch_size", batch_size)
    n = _length(images)
    with counting(n, "image") as advance:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            if isinstance(images, Tensor):
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


def _stack(images: Dataset[Tensor] | Sequence[Tensor], indices: range) -> Tensor:
    items = [images[index] for index in indices]
    for index, image in zip(indices, items, strict=True):
        if not isinstance(image, Tensor) or image.ndim != 3:
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


# Circuits ------------------------------------------------------------------------------------


def activation_x_gradient(
    model: nn.Module, layer: str, unit: int, before: str, images: Tensor
) -> Tensor:
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
        # A copy of the leaf: a model may begin with an in-place ReLU, which a leaf does not allow.
        model(images.clone().requires_grad_().clone())
        later, earlier = units_of(layer, kept), units_of(before, kept)
        check_unit(layer, unit, later.shape[1])
        u = later[:, unit].reshape(len(later), -1).mean(1).sum()
        (slope,) = torch.autograd.grad(u, earlier, allow_unused=True)
        if slope is None:
            raise ValueError(
                f"before: layer {before!r} is not on the way to {layer!r} (of a layer that runs "
                "several times, its last run counts)"
            )
    return (slope * earlier).detach().reshape(*earlier.shape[:2], -1).sum(2)
