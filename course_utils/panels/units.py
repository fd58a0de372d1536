"""The microscope: any unit of the model, what it answers to, and what it is made of."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from course_utils import features, images, plotting
from course_utils import microscope as survey
from course_utils.panels.base import (
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    draw_concepts,
    pixels_of,
    slider,
    typical,
)
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE
from course_utils.scenes import Scenes

SCENES = 160  # shown to a model that was not surveyed
CONCEPTS = 6
INPUTS = 4  # that excite, and as many that inhibit


def microscope(model: Any = None, image: Any = None) -> Panel:
    """Layer → unit → its top scenes, its synthesised picture, its concepts, its strongest inputs.

    `image`, a scene or a photo, is seen through the unit: the unit's map lies over it. Of the
    course's own models the panel shows what `microscope.survey` kept after 5,000 scenes; any other
    model sees `SCENES` of them when the panel opens, and pictures are synthesised when needed.
    """
    classifier = classifier_of(model)
    network, stages = classifier.model, survey.stages(classifier.model)
    x = classifier.to_input(pixels_of(typical(classifier) if image is None else image))
    seen = features.feature_maps(network, x, stages)
    kept = survey.load(classifier.name) if survey.surveyed(classifier.name) else None
    world = Scenes(SCENES, seed=10)
    if kept is None:
        world.draw(progress=False)
    layers = kept.units if kept else survey.examine(classifier, stages, world, progress=False)
    layer = stages[2 * len(stages) // 3]
    controls: dict[str, Any] = {
        "layer": choice("layer", stages, layer),
        "unit": slider("unit", 0, seen[layer].shape[1] - 1, 0),
    }

    @cache
    def scene(index: int) -> NDArray[np.uint8]:
        return layers[stages[0]].world.scene(index).image

    @cache
    def synthesised(layer: str, unit: int) -> tuple[NDArray[np.uint8], float]:
        if kept:
            return kept.pictures[layer][unit], float(kept.scores[layer][unit])
        pictures, scores = survey.synthesise(classifier, layer, [unit])
        return pictures[0], float(scores[0])

    @cache
    def inputs(layer: str, unit: int) -> NDArray[np.float64]:
        """What each unit of the stage before adds."""
        if kept:
            return kept.inputs[layer][unit]
        before = stages[stages.index(layer) - 1]
        added = survey.strongest_inputs(classifier, layer, before, layers[layer], [unit])
        return added[0]

    def draw(layer: str, unit: int) -> Iterator[Canvas]:
        controls["unit"].max = seen[layer].shape[1] - 1
        unit = min(unit, controls["unit"].max)
        units, maps = layers[layer], seen[layer]
        before = stages[stages.index(layer) - 1] if layer != stages[0] else None
        # A slider does not wait for nine scenes to be drawn, nor for the ascent to a picture.
        for shown, climbs in ((1, bool(kept)), (survey.TOP, True)):
            canvas = Canvas(960, 640)
            made = synthesised(layer, unit) if climbs else None
            best = float(units.best[unit, 0])
            size = "" if maps.ndim == 2 else f", a map of {maps.shape[2]} × {maps.shape[3]}"
            canvas.heading(0, 0, f"{layer}, unit {unit}", f"one of {maps.shape[1]}{size}")
            canvas.box(0, 44, 230, 230, fill=FAINT)
            if made:
                canvas.picture(0, 44, 230, made[0], smooth=True)
            score = decimal(made[1]) if made else "coming …"
            canvas.text(0, 282, f"synthesised: {score}", bold=True)
            canvas.text(0, 300, f"the best scene: {decimal(best)}", color=MUTED)
            _through(canvas, 0, 336, classifier.to_image(x), maps[0, unit])
            more = "" if shown == survey.TOP else "  …"
            canvas.heading(262, 0, "its top scenes" + more, "mean activation; the place marked")
            for place, index in enumerate(units.top[unit, :shown]):
                left, top = 262 + 142 * (place % 3), 44 + 162 * (place // 3)
                canvas.picture(left, top, 134, scene(int(index)), smooth=True)
                row, column = units.places[unit, place] * 134 / units.world.resolution
                canvas.box(left + column - 10, top + row - 10, 20, 20, edge=ORANGE, line=2)
                canvas.text(left, top + 137, decimal(float(units.best[unit, place])), color=MUTED)
            best_concepts = units.concepts.of(unit, CONCEPTS)
            draw_concepts(canvas, 712, 0, best_concepts)
            if before:
                tile = lambda i: synthesised(before, i)[0] if kept else None  # noqa: E731
                _inputs(canvas, 712, 290, before, inputs(layer, unit), tile)
            name, area, *_ = best_concepts[0]
            canvas.alt = (
                f"Unit {unit} of {layer}: its synthesised picture gives {score}, the best "
                f"scene {decimal(best)}. It tells “{name}” best, AUROC {area:.2f}."
            )
            yield canvas

    return Panel("microscope", controls, draw)


def _through(
    canvas: Canvas, x: float, y: float, picture: NDArray[np.uint8], values: torch.Tensor
) -> None:
    """A picture, and over it the map of a unit; of an output, its number."""
    if values.ndim == 0:
        canvas.heading(x, y, "on your picture", f"the output is {decimal(values.item())}")
        canvas.picture(x, y + 44, 230, picture, smooth=True)
        return
    highest = decimal(values.max().item())
    canvas.heading(x, y, "your picture through it", f"the map's highest: {highest}")
    large = F.interpolate(values[None, None], picture.shape[:2], mode="nearest")[0, 0].cpu()
    heat = plotting.colorize(large.clamp(min=0).numpy())
    canvas.picture(x, y + 44, 230, images.overlay(picture, heat, 0.6), smooth=True)


def _inputs(
    canvas: Canvas, x: float, y: float, before: str, added: NDArray[np.float64], tile: Any
) -> None:
    """The units of the stage before that add most, and those that take most away."""
    canvas.heading(x, y, f"inputs from {before}", "activation × gradient on the top scenes")
    order = np.argsort(-added, kind="stable")
    signs = (("excite", order[:INPUTS], ORANGE), ("inhibit", order[::-1][:INPUTS], BLUE))
    for row, (name, units, color) in enumerate(signs):
        top = y + 46 + 148 * row
        canvas.text(x, top, name, bold=True, color=color)
        for place, unit in enumerate(units):
            left = x + 62 * place
            picture = tile(int(unit))
            canvas.box(left, top + 22, 56, 56, fill=FAINT)
            if picture is not None:
                canvas.picture(left, top + 22, 56, picture, smooth=True)
            canvas.text(left, top + 82, f"unit {unit}", size=11)
            canvas.text(
                left, top + 98, f"{added[unit]:+.2f}".replace("-", "−"), size=11, color=color
            )
