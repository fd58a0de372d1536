"""The panel of lecture 02: every layer's feature maps, one of them large."""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import images, layers, plotting
from course_utils.panels.canvas import Canvas, decimal
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import classifier_of, picture_choices, pixels_of, standards
from course_utils.plotting import MUTED, ORANGE
from course_utils.units import features, microscope

SCENES = standards("zebra", "tiger", "clownfish", "ladybird", "beach umbrella")


def feature_maps(model: Any = None, image: Any = None) -> Panel:
    """What every unit of a layer answers to a picture: all maps, and one of them large.

    Layers are the convolutions, as they are before BatchNorm and ReLU, and the stages, after both.
    A map with negative numbers is blue below zero and red above.
    """
    classifier = classifier_of(model)
    pictures = picture_choices(classifier, image, SCENES)
    names = layers_with_maps(classifier.model)

    @cache
    def seen(picture: str) -> tuple[NDArray[np.uint8], dict[str, Tensor]]:
        x = classifier.to_input(pixels_of(pictures[picture]))
        maps = features.feature_maps(classifier.model, x, names)
        return classifier.to_image(x), {name: kept[0].cpu().float() for name, kept in maps.items()}

    layer = "layer3.1" if "layer3.1" in names else names[-1]
    units = len(seen(next(iter(pictures)))[1][layer])
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "layer": choice("layer", names, layer),
        "unit": slider("unit", 0, units - 1, 0),
    }

    def draw(picture: str, layer: str, unit: int) -> Canvas:
        pixels, kept = seen(picture)
        controls["unit"].max = last = len(kept[layer]) - 1
        unit = min(unit, last)
        own = _filter(classifier.model, unit) if layer == names[0] else None
        return _maps_canvas(picture, pixels, layer, kept[layer], unit, own)

    return Panel("feature maps", controls, draw)


def layers_with_maps(network: nn.Module) -> list[str]:
    """The convolutions and the stages of a network, in the order of their names."""
    wanted = {*layers.conv_layers(network), *microscope.stages(network)}
    modules = dict(network.named_modules())
    return [n for n in modules if n in wanted and not isinstance(modules[n], nn.Linear)]


def _filter(network: nn.Module, unit: int) -> NDArray[np.uint8] | None:
    """A filter of the first convolution as a picture, if it reads one."""
    first = next(iter(layers.conv_layers(network).values()))
    return features.filters(first)[unit] if first.in_channels in (1, 3) else None


def _maps_canvas(
    picture: str,
    pixels: NDArray[np.uint8],
    layer: str,
    maps: Tensor,
    unit: int,
    own: NDArray[np.uint8] | None,
) -> Canvas:
    canvas, one, kind = Canvas(960, 470), maps[unit], "signed" if maps.min() < 0 else "sequential"
    limit, (height, width) = float(one.abs().max()) or 1.0, one.shape
    below = f"{pixels.shape[0]} × {pixels.shape[1]}, as the model gets it"
    canvas.figure(0, 0, 190, pixels, picture, below, smooth=True)
    canvas.text(0, 252, "the map over it", bold=True)
    large = F.interpolate(one[None, None], pixels.shape[:2], mode="nearest")[0, 0].numpy()
    heat = plotting.colorize(large, kind, limit)
    canvas.picture(0, 274, 190, images.overlay(pixels, heat, 0.6), smooth=True)
    colors = plotting.colorize(one.numpy(), kind, limit)
    canvas.figure(224, 0, 340, colors, f"{layer}, unit {unit}", f"a map of {height} × {width}")
    share = float((one <= 0).float().mean())
    mean, low, high = (decimal(float(value)) for value in (one.mean(), one.min(), one.max()))
    canvas.text(224, 394, f"mean {mean}, from {low} to {high}")
    canvas.text(224, 414, f"{share:.0%} of the map is zero or below", color=MUTED)
    if own is not None:
        canvas.picture(510, 392, 54, own)
        canvas.text(500, 412, "its filter", color=MUTED, anchor="ra")
    _all_maps(canvas, maps, kind, unit)
    canvas.alt = (
        f"Feature map {unit} of {layer} for the picture “{picture}”, {height} × {width}: mean "
        f"{mean}, highest {high}, {share:.0%} of it zero or below; beside it all {len(maps)} maps "
        "of the layer."
    )
    return canvas


def _all_maps(canvas: Canvas, maps: Tensor, kind: str, unit: int) -> None:
    """Every map of a layer on one scale, that of the unit marked."""
    scale = "blue below zero, red above" if kind == "signed" else "dark is zero"
    canvas.heading(600, 0, f"all {len(maps)} maps", f"on one scale: {scale}")
    columns = math.ceil(math.sqrt(len(maps)))
    tile, limit = 356 / columns, float(maps.abs().max()) or 1.0
    for index, colors in enumerate(_tiles(maps, kind, limit, round(tile))):
        left, top = 600 + tile * (index % columns), 44 + tile * (index // columns)
        canvas.picture(left, top, tile - 2, colors)
        if index == unit:
            canvas.box(left, top, tile - 2, tile - 2, edge=ORANGE, line=3)


def _tiles(maps: Tensor, kind: str, limit: float, side: int) -> list[NDArray[np.uint8]]:
    """Maps (C, H, W) as small pictures; larger ones are shrunk first, which is what takes time."""
    if maps.shape[-1] > side:
        maps = F.adaptive_max_pool2d(maps[None], side)[0]
    flat = plotting.colorize(maps.flatten(1).numpy(), kind, limit)
    return list(flat.reshape(*maps.shape, 3))
