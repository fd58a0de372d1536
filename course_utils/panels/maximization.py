"""The panels of lecture 04: climb to the picture a unit wants, and the microscope for any unit."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from course_utils import images, plotting
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, Plot, decimal, draw_concepts
from course_utils.panels.panel import Panel, choice, slider, switch
from course_utils.panels.pictures import classifier_of, pixels_of, typical
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE
from course_utils.units import features, maximize
from course_utils.units import microscope as survey
from course_utils.worlds.scenes import Scenes

Pixels = NDArray[np.uint8]

# -- activation maximization -----------------------------------------------------------------------

FIRST, MORE = 1, 4  # steps to the first picture, for which a slider's move waits, and to the next


def activation_maximization(model: Any = None, image: Any = None) -> Panel:
    """One unit, and the picture it wants to see, growing step by step.

    The curve is the unit's mean activation along the way; where the model was surveyed, the line
    across it is the best of 5,000 scenes. `image` is not needed: the ascent starts from noise.
    """
    classifier = classifier_of(model)
    inside = survey.stages(classifier.model)
    known = survey.load(classifier.name).scenes if survey.surveyed(classifier.name) else {}
    x = classifier.to_input(pixels_of(typical(classifier)))
    maps = features.feature_maps(classifier.model, x, inside)
    counts = {layer: kept.shape[1] for layer, kept in maps.items()}
    layer = inside[2 * len(inside) // 3]
    controls: dict[str, Any] = {
        "layer": choice("layer", inside, layer),
        "unit": slider("unit", 0, counts[layer] - 1, 5),
        "steps": slider("steps", 8, 128, 64),
        "step_size": slider("step size", 0.01, 0.3, 0.05, 0.01),
        "fourier": switch("Fourier"),
        "decorrelate": switch("decorrelated colours"),
        "jitter": slider("jitter, px", 0, 16, 4),
        "rotation": slider("rotation, °", 0, 30, 5),
        "scaling": slider("scaling", 0, 0.3, 0.05, 0.01),
        "l2": slider("L2", 0, 2, 0, 0.05),
        "total_variation": slider("total variation", 0, 8, 0, 0.25),
        "seed": slider("start (seed)", 0, 20, 0),
    }

    def draw(layer: str, unit: int, steps: int, seed: int, **options: Any) -> Iterator[Canvas]:
        controls["unit"].max = last = counts[layer] - 1
        unit = min(unit, last)
        best = float(known[layer][unit]) if layer in known else None
        for picture, scores in climb(classifier, layer, unit, steps, seed, **options):
            yield _ascent_canvas(f"{layer}, unit {unit}", picture, scores, steps, best)

    return Panel("activation maximization", controls, draw)


def climb(
    classifier: Classifier, layer: str, unit: int, steps: int, seed: int, **options: Any
) -> Iterator[tuple[Pixels, list[float]]]:
    """The picture after a few steps, and after some more; the unit's mean activations so far."""
    generator = torch.Generator().manual_seed(seed)
    scores: list[float] = []
    start, done = None, 0
    while done < steps:
        stride = min(MORE if done else FIRST, steps - done)
        ascent = maximize.activation_maximization(
            *(classifier, layer, unit), steps=stride, start=start, generator=generator, **options
        )
        start, done = ascent.z, done + stride
        scores += ascent.scores[:-1, 0].tolist()
        yield classifier.to_image(ascent.images), [*scores, float(ascent.scores[-1])]


def _ascent_canvas(
    title: str, picture: Pixels, scores: list[float], steps: int, best: float | None
) -> Canvas:
    canvas, done = Canvas(880, 420), len(scores) - 1
    state = f"after {done} steps" if done == steps else f"step {done} of {steps}, more coming …"
    canvas.figure(0, 0, 372, picture, title, state, smooth=True)
    canvas.heading(420, 0, "its mean activation", "step by step, as the model saw the picture")
    values = [*scores, 0.0] if best is None else [*scores, 0.0, best]
    low, high = min(values), max(values)
    box = (470, 60, 390, 320)
    plot = Plot(canvas, box, across=(0, steps), up=(low, high if high > low else low + 1))
    plot.level(0)
    plot.label(0, "0", size=12)
    plot.label(high, decimal(high), size=12)
    if best is not None:
        plot.level(best, ORANGE, 2)
        x, y = plot.at(steps, best)
        above = y > 84
        note, anchor = f"best of 5,000 scenes: {decimal(best)}", "rs" if above else "ra"
        canvas.text(x, y + (-6 if above else 6), note, size=12, color=ORANGE, anchor=anchor)
    plot.line(list(enumerate(scores)), BLUE, 2.5)
    canvas.text(470, 388, "0", size=12, color=MUTED)
    canvas.text(860, 388, f"step {steps}", size=12, color=MUTED, anchor="ra")
    against = "" if best is None else f"; its best of 5,000 scenes gives {decimal(best)}"
    canvas.alt = (
        f"The picture synthesised for {title}, {state}. Its mean activation rose from "
        f"{decimal(scores[0])} to {decimal(scores[-1])}{against}."
    )
    return canvas


# -- the microscope --------------------------------------------------------------------------------

SCENES = 160  # shown to a model that was not surveyed
CONCEPTS = 6
INPUTS = 4  # that excite, and as many that inhibit


class Atlas:
    """What is known of every unit of a model: kept after 5,000 scenes, or found with `SCENES`."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.stages = classifier, survey.stages(classifier.model)
        self.kept = survey.load(classifier.name) if survey.surveyed(classifier.name) else None
        if self.kept:
            self.units = self.kept.units
        else:
            world = Scenes(SCENES, seed=10)
            world.draw()
            self.units = survey.examine(classifier, self.stages, world)
        self.scene, self.inputs = cache(self._scene), cache(self._inputs)
        self.synthesised = cache(self._synthesised)

    def _scene(self, index: int) -> Pixels:
        return self.units[self.stages[0]].world.scene(index).image

    def _synthesised(self, layer: str, unit: int) -> tuple[Pixels, float]:
        """The picture that a unit wants, and the activation it gives."""
        if self.kept:
            return self.kept.pictures[layer][unit], float(self.kept.scores[layer][unit])
        pictures, scores = survey.synthesise(self.classifier, layer, [unit])
        return pictures[0], float(scores[0])

    def before(self, layer: str) -> str | None:
        """The stage before this one; None where it is the first."""
        place = self.stages.index(layer)
        return self.stages[place - 1] if place else None

    def _inputs(self, layer: str, unit: int) -> NDArray[np.float64]:
        """What each unit of the stage before adds."""
        if self.kept:
            return self.kept.inputs[layer][unit]
        before, units = self.stages[self.stages.index(layer) - 1], self.units[layer]
        return survey.strongest_inputs(self.classifier, layer, before, units, [unit])[0]


def microscope(model: Any = None, image: Any = None) -> Panel:
    """Layer → unit → its top scenes, its synthesised picture, its concepts, its strongest inputs.

    `image`, a scene or a photo, is seen through the unit: the unit's map lies over it. Of the
    course's own models the panel shows what `microscope.survey` kept after 5,000 scenes; any other
    model sees `SCENES` of them when the panel opens, and pictures are synthesised when needed.
    """
    classifier = classifier_of(model)
    atlas = Atlas(classifier)
    x = classifier.to_input(pixels_of(typical(classifier) if image is None else image))
    pixels, seen = classifier.to_image(x), features.feature_maps(classifier.model, x, atlas.stages)
    layer = atlas.stages[2 * len(atlas.stages) // 3]
    controls: dict[str, Any] = {
        "layer": choice("layer", atlas.stages, layer),
        "unit": slider("unit", 0, seen[layer].shape[1] - 1, 0),
    }

    def draw(layer: str, unit: int) -> Iterator[Canvas]:
        controls["unit"].max = last = seen[layer].shape[1] - 1
        unit = min(unit, last)
        # A slider does not wait for nine scenes to be drawn, nor for the ascent to a picture.
        made = atlas.synthesised(layer, unit) if atlas.kept else None
        yield _microscope_canvas(atlas, layer, unit, pixels, seen[layer][0], 1, made)
        made = atlas.synthesised(layer, unit)
        yield _microscope_canvas(atlas, layer, unit, pixels, seen[layer][0], survey.TOP, made)

    return Panel("microscope", controls, draw)


def _microscope_canvas(
    atlas: Atlas,
    layer: str,
    unit: int,
    pixels: Pixels,
    maps: Tensor,
    shown: int,
    made: tuple[Pixels, float] | None,
) -> Canvas:
    canvas, units = Canvas(960, 640), atlas.units[layer]
    size = "" if maps.ndim == 1 else f", a map of {maps.shape[1]} × {maps.shape[2]}"
    canvas.heading(0, 0, f"{layer}, unit {unit}", f"one of {len(maps)}{size}")
    canvas.box(0, 44, 230, 230, fill=FAINT)
    if made:
        canvas.picture(0, 44, 230, made[0], smooth=True)
    score = decimal(made[1]) if made else "coming …"
    best = decimal(float(units.best[unit, 0]))
    canvas.text(0, 282, f"synthesised: {score}", bold=True)
    canvas.text(0, 300, f"the best scene: {best}", color=MUTED)
    through(canvas, 0, 336, pixels, maps[unit])
    _top_scenes(canvas, 262, atlas, units, unit, shown)
    told = units.concepts.of(unit, CONCEPTS)
    draw_concepts(canvas, 712, 0, told)
    if before := atlas.before(layer):
        _strongest_inputs(canvas, 712, 290, atlas, before, atlas.inputs(layer, unit))
    canvas.alt = (
        f"Unit {unit} of {layer}: its synthesised picture gives {score}, the best "
        f"scene {best}. It tells “{told[0][0]}” best, AUROC {told[0][1]:.2f}."
    )
    return canvas


def through(canvas: Canvas, x: float, y: float, picture: Pixels, values: Tensor) -> None:
    """A picture, and over it the map of a unit; of an output, its number."""
    if values.ndim == 0:
        below = f"the output is {decimal(values.item())}"
        canvas.figure(x, y, 230, picture, "on your picture", below, smooth=True)
        return
    large = F.interpolate(values[None, None].float(), picture.shape[:2], mode="nearest")[0, 0].cpu()
    heat = plotting.colorize(large.clamp(min=0).numpy())
    below = f"the map's highest: {decimal(values.max().item())}"
    over = images.overlay(picture, heat, 0.6)
    canvas.figure(x, y, 230, over, "your picture through it", below, smooth=True)


def _top_scenes(
    canvas: Canvas, x: float, atlas: Atlas, units: survey.Units, unit: int, shown: int
) -> None:
    """The scenes to which a unit answers most, its strongest place marked in each."""
    more = "" if shown == survey.TOP else "  …"
    canvas.heading(x, 0, "its top scenes" + more, "mean activation; the place marked")
    for place, index in enumerate(units.top[unit, :shown]):
        left, top = x + 142 * (place % 3), 44 + 162 * (place // 3)
        canvas.picture(left, top, 134, atlas.scene(int(index)), smooth=True)
        row, column = units.places[unit, place] * 134 / units.world.resolution
        canvas.box(left + column - 10, top + row - 10, 20, 20, edge=ORANGE, line=2)
        canvas.text(left, top + 137, decimal(float(units.best[unit, place])), color=MUTED)


def _strongest_inputs(
    canvas: Canvas, x: float, y: float, atlas: Atlas, before: str, added: NDArray[np.float64]
) -> None:
    """The units of the stage before that add most, and those that take most away."""
    canvas.heading(x, y, f"inputs from {before}", "activation × gradient on the top scenes")
    order = np.argsort(-added, kind="stable")
    signs = (("excite", order[:INPUTS], ORANGE), ("inhibit", order[::-1][:INPUTS], BLUE))
    for row, (name, units, color) in enumerate(signs):
        top = y + 46 + 148 * row
        canvas.text(x, top, name, bold=True, color=color)
        for place, other in enumerate(units):
            left = x + 62 * place
            canvas.box(left, top + 22, 56, 56, fill=FAINT)
            if atlas.kept:  # of other models no picture is there yet
                picture, _ = atlas.synthesised(before, int(other))
                canvas.picture(left, top + 22, 56, picture, smooth=True)
            canvas.text(left, top + 82, f"unit {other}", size=11)
            value = f"{added[other]:+.2f}".replace("-", "−")
            canvas.text(left, top + 98, value, size=11, color=color)
