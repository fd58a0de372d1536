"""The panel of activation maximization: climb, with every regulariser at hand."""

from collections.abc import Iterator
from typing import Any

import torch
from ipywidgets import Checkbox

from course_utils import features, maximize, microscope
from course_utils.panels.base import (
    WIDTH,
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    pixels_of,
    slider,
    typical,
)
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE

FIRST, MORE = 2, 8  # steps to the first picture, for which a slider's move waits, and to the next


def activation_maximization(model: Any = None, image: Any = None) -> Panel:
    """One unit, and the picture it wants to see, growing step by step.

    The curve is the unit's mean activation along the way; where the model was surveyed, the line
    across it is the best of 5,000 scenes. `image` is not needed: the ascent starts from noise.
    """
    classifier = classifier_of(model)
    network = classifier.model
    inside = microscope.stages(network)
    known = microscope.load(classifier.name).scenes if microscope.surveyed(classifier.name) else {}
    x = classifier.to_input(pixels_of(typical(classifier)))
    maps = features.feature_maps(network, x, inside)
    counts = {layer: kept.shape[1] for layer, kept in maps.items()}
    layer = inside[2 * len(inside) // 3]
    controls: dict[str, Any] = {
        "layer": choice("layer", inside, layer),
        "unit": slider("unit", 0, counts[layer] - 1, 5),
        "steps": slider("steps", 8, 128, 64),
        "step_size": slider("step size", 0.01, 0.3, 0.05, 0.01),
        "fourier": _switch("Fourier"),
        "decorrelate": _switch("decorrelated colours"),
        "jitter": slider("jitter, px", 0, 16, 4),
        "rotation": slider("rotation, °", 0, 30, 5),
        "scaling": slider("scaling", 0, 0.3, 0.05, 0.01),
        "l2": slider("L2", 0, 2, 0, 0.05),
        "total_variation": slider("total variation", 0, 8, 0, 0.25),
        "seed": slider("start (seed)", 0, 20, 0),
    }

    def draw(layer: str, unit: int, steps: int, seed: int, **options: Any) -> Iterator[Canvas]:
        controls["unit"].max = counts[layer] - 1
        unit = min(unit, controls["unit"].max)
        generator = torch.Generator().manual_seed(seed)
        scores: list[float] = []
        start, done = None, 0
        while done < steps:
            stride = min(MORE if done else FIRST, steps - done)
            ascent = maximize.activation_maximization(
                classifier,
                layer,
                unit,
                steps=stride,
                start=start,
                generator=generator,
                **options,
            )
            start, done = ascent.z, done + stride
            scores += ascent.scores[:-1, 0].tolist()
            best = known.get(layer)
            limit = None if best is None else float(best[unit])
            title = f"{layer}, unit {unit}"
            picture = classifier.to_image(ascent.images)
            final = float(ascent.scores[-1])
            yield _sheet(title, picture, [*scores, final], steps, limit)

    return Panel("activation maximization", controls, draw)


def _switch(name: str) -> Checkbox:
    return Checkbox(True, description=name, indent=True, layout={"width": WIDTH})


def _sheet(title: str, picture: Any, scores: list[float], steps: int, best: float | None) -> Canvas:
    canvas, done = Canvas(880, 420), len(scores) - 1
    state = f"after {done} steps" if done == steps else f"step {done} of {steps} …"
    canvas.heading(0, 0, title, state)
    canvas.picture(0, 44, 372, picture, smooth=True)
    canvas.heading(420, 0, "its mean activation", "step by step, as the model saw the picture")
    x, y, wide, tall = 470, 60, 390, 320
    values = [*scores, 0.0] if best is None else [*scores, 0.0, best]
    low, high = min(values), max(values)
    scale = tall / ((high - low) or 1.0)

    def height(value: float) -> float:
        return y + tall - (value - low) * scale

    canvas.line([(x, height(0)), (x + wide, height(0))], FAINT)
    canvas.text(x - 8, height(0), "0", size=12, color=MUTED, anchor="rm")
    canvas.text(x - 8, height(high), decimal(high), size=12, color=MUTED, anchor="rm")
    if best is not None:
        canvas.line([(x, height(best)), (x + wide, height(best))], ORANGE, 2)
        note = f"best of 5,000 scenes: {decimal(best)}"
        above = height(best) > y + 24
        at = height(best) + (-6 if above else 6)
        canvas.text(x + wide, at, note, size=12, color=ORANGE, anchor="rs" if above else "ra")
    points = [(x + wide * step / steps, height(score)) for step, score in enumerate(scores)]
    canvas.line(points, BLUE, 2.5)
    canvas.text(x, y + tall + 8, "0", size=12, color=MUTED)
    canvas.text(x + wide, y + tall + 8, f"step {steps}", size=12, color=MUTED, anchor="ra")
    against = "" if best is None else f"; its best of 5,000 scenes gives {decimal(best)}"
    canvas.alt = (
        f"The picture synthesised for {title}, {state}. Its mean activation rose from "
        f"{decimal(scores[0])} to {decimal(scores[-1])}{against}."
    )
    return canvas
