"""The panel of lecture 02: every layer's feature maps, one of them large."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from course_utils import features, images, layers, microscope, plotting, scenes
from course_utils.panels.base import (
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    offered,
    pixels_of,
    slider,
)
from course_utils.plotting import MUTED, ORANGE

SCENES = ("zebra", "tiger", "clownfish", "ladybird", "beach umbrella")


def feature_maps(model: Any = None, image: Any = None) -> Panel:
    """What every unit of a layer answers to a picture: all maps, and one of them large.

    Layers are the convolutions, as they are before BatchNorm and ReLU, and the stages, after both.
    A map with negative numbers is blue below zero and red above.
    """
    classifier = classifier_of(model)
    specs = {label: scenes.canonical(label) for label in SCENES}
    pictures = offered(classifier, image, specs)
    convolutions = layers.conv_layers(classifier.model)
    wanted = {*convolutions, *microscope.stages(classifier.model)}
    modules = dict(classifier.model.named_modules())
    names = [n for n in modules if n in wanted and not isinstance(modules[n], nn.Linear)]
    first = convolutions[names[0]]

    @cache
    def seen(picture: str) -> tuple[NDArray[np.uint8], dict[str, torch.Tensor]]:
        x = classifier.to_input(pixels_of(pictures[picture]))
        maps = features.feature_maps(classifier.model, x, names)
        return classifier.to_image(x), {name: kept[0].cpu() for name, kept in maps.items()}

    layer = "layer3.1" if "layer3.1" in names else names[-1]
    start = next(iter(pictures))
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "layer": choice("layer", names, layer),
        "unit": slider("unit", 0, len(seen(start)[1][layer]) - 1, 0),
    }

    def draw(picture: str, layer: str, unit: int) -> Canvas:
        pixels, kept = seen(picture)
        maps = kept[layer]
        controls["unit"].max = len(maps) - 1
        unit = min(unit, len(maps) - 1)
        one = maps[unit]
        kind = "signed" if maps.min() < 0 else "sequential"
        limit = float(maps.abs().max()) or 1.0
        own_limit = float(one.abs().max()) or 1.0
        height, width = one.shape
        large = F.interpolate(one[None, None], pixels.shape[:2], mode="nearest")[0, 0].numpy()
        canvas = Canvas(960, 470)
        canvas.heading(
            0, 0, picture, f"{pixels.shape[0]} × {pixels.shape[1]}, as the model gets it"
        )
        canvas.picture(0, 44, 190, pixels, smooth=True)
        canvas.text(0, 252, "the map over it", bold=True)
        heat = plotting.colorize(large, kind, own_limit)
        canvas.picture(0, 274, 190, images.overlay(pixels, heat, 0.6), smooth=True)
        canvas.heading(224, 0, f"{layer}, unit {unit}", f"a map of {height} × {width}")
        canvas.picture(224, 44, 340, plotting.colorize(one.numpy(), kind, own_limit))
        share = float((one <= 0).float().mean())
        numbers = f"mean {decimal(float(one.mean()))}, from {decimal(float(one.min()))} "
        numbers += f"to {decimal(float(one.max()))}"
        canvas.text(224, 394, numbers)
        canvas.text(224, 414, f"{share:.0%} of the map is zero or below", color=MUTED)
        if layer == names[0] and first.in_channels in (1, 3):
            canvas.picture(510, 392, 54, features.filters(first)[unit])
            canvas.text(500, 412, "its filter", color=MUTED, anchor="ra")
        scale = "blue below zero, red above" if kind == "signed" else "dark is zero"
        canvas.heading(600, 0, f"all {len(maps)} maps", f"on one scale: {scale}")
        columns = math.ceil(math.sqrt(len(maps)))
        tile = 356 / columns
        for index, tile_colors in enumerate(_tiles(maps, kind, limit, round(tile))):
            left, top = 600 + tile * (index % columns), 44 + tile * (index // columns)
            canvas.picture(left, top, tile - 2, tile_colors)
            if index == unit:
                canvas.box(left, top, tile - 2, tile - 2, edge=ORANGE, line=3)
        canvas.alt = (
            f"Feature map {unit} of {layer} for the picture “{picture}”, {height} × {width}: mean "
            f"{decimal(float(one.mean()))}, highest {decimal(float(one.max()))}, {share:.0%} of it "
            f"zero or below; beside it all {len(maps)} maps of the layer."
        )
        return canvas

    return Panel("feature maps", controls, draw)


def _tiles(maps: torch.Tensor, kind: str, limit: float, side: int) -> list[NDArray[np.uint8]]:
    """Maps (C, H, W) as small pictures; larger ones are shrunk first, which is what takes time."""
    if maps.shape[-1] > side:
        maps = F.adaptive_max_pool2d(maps[None], side)[0]
    flat = plotting.colorize(maps.flatten(1).numpy(), kind, limit)
    return list(flat.reshape(*maps.shape, 3))
