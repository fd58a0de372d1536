"""The panel of occlusion: what the model misses where a window covers the picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from course_utils.methods import perturbation
from course_utils.panels.canvas import Canvas, colored, decimal
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import (
    Array,
    Seen,
    class_choice,
    classifier_of,
    picture_reader,
    standards,
    summed,
)
from course_utils.plotting import MUTED

SCENES = standards("zebra", "toadstool", "crow", "tiger")


def occlusion(model: Any = None, image: Any = None) -> Panel:
    """Cover one place after the other: by how much does the logit of the class fall?"""
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "window": slider("window, px", 12, 64, 16),
        "stride": slider("stride, px", 4, 12, 8),
    }

    def draw(picture: str, target: str, window: int, stride: int) -> Iterator[Canvas]:
        seen, third = look(picture, target), -(-classifier.size // 3)
        for size, step in ((third, third), (window, stride)):
            options = {"window": size, "stride": step}
            map_ = perturbation.occlusion(classifier.model, seen.x, seen.target, **options)
            yield _occlusion_canvas(seen, summed(map_), size, step, more=step != stride)

    return Panel("occlusion", controls, draw)


def _occlusion_canvas(seen: Seen, map_: Array, window: int, stride: int, more: bool) -> Canvas:
    canvas, limit = Canvas(650, 330), float(np.abs(map_).max()) or 1.0
    canvas.figure(0, 0, 250, seen.pixels, "the picture", "as the model gets it", smooth=True)
    below = f"window {window}, stride {stride}{'; more coming …' if more else ''}"
    canvas.figure(290, 0, 250, colored(map_, limit), f"occlusion for “{seen.name}”", below)
    canvas.color_bar(554, 44, 250, "signed", limit)
    canvas.text(290, 304, seen.inside(map_), color=MUTED)
    canvas.alt = (
        f"How far the logit of “{seen.name}” falls where a window of {window} pixels covers the "
        f"picture, every {stride} pixels: at most by {decimal(map_.max())}. {seen.inside(map_)}"
        f"{' Coarse, more coming.' if more else ''}"
    )
    return canvas
