"""The panels of occlusion, where a window covers the picture, and of RISE, where masks do."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils import plotting
from course_utils.contract import mean_and_variance
from course_utils.methods import masks, perturbation
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, colored, decimal
from course_utils.panels.panel import Panel, choice, coarse_to_fine, slider
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


# -- one window ------------------------------------------------------------------------------------


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


# -- random masks ----------------------------------------------------------------------------------

COARSE = 16  # masks before the first picture
SAMPLES = (50, 100, 200, 400, 800)
OURS, PAPERS = "kept − hidden", "the paper's"


class Asked(NamedTuple):
    """What the model said to a picture under random masks, and what follows."""

    scores: Tensor  # (S,), float64
    hidden: NDArray[np.uint8]  # the picture under the first of the masks
    maps: dict[str, tuple[Array, Array]]  # by its formula, a map and its standard error


def rise(model: Any = None, image: Any = None) -> Panel:
    """RISE: the picture under one of the random masks, the map of all, and its standard error.

    p is the share that a mask keeps. The paper's map is the mean logit where a pixel is kept;
    "kept − hidden" is that of `perturbation.rise`, without the level that all pixels share.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "samples": choice("masks", SAMPLES, 200),
        "keep": slider("p", 0.1, 0.9, 0.5, 0.1),
        "cells": slider("cells", 3, 14, 7),
        "formula": choice("map", [OURS, PAPERS]),
    }
    kept: dict[tuple[Any, ...], Asked] = {}

    def draw(
        picture: str, target: str, samples: int, keep: float, cells: int, formula: str
    ) -> Iterator[Canvas]:
        seen = look(picture, target)
        ask = partial(asked, classifier, seen, keep, cells)
        key = (picture, target, samples, keep, cells)
        for found in coarse_to_fine(kept, key, partial(ask, COARSE), partial(ask, samples)):
            yield _rise_canvas(seen, found, formula, keep, more=len(found.scores) < samples)

    return Panel("rise", controls, draw)


def asked(classifier: Classifier, seen: Seen, keep: float, cells: int, samples: int) -> Asked:
    """Ask the model about a picture under so many masks."""
    said: list[Tensor] = []

    def scored(x: Tensor) -> Tensor:
        said.append(classifier.model(x)[:, [seen.target]])
        return said[-1]

    options: dict[str, Any] = {"keep": keep, "cells": cells}
    ours = masks.rise_estimate(scored, seen.x, 0, samples=samples, **options)
    assert ours.standard_error is not None
    scores = torch.cat(said)[:, 0].double().cpu()
    drawn = masks.random_masks(seen.x.shape[2:], samples, **options)
    total, squares = torch.zeros(2, *seen.x.shape[2:], dtype=torch.float64)
    for sample in torch.arange(samples).split(50):
        each = scores[sample, None, None] * drawn(sample) / keep
        total, squares = total + each.sum(0), squares + (each**2).sum(0)
    mean, variance = mean_and_variance(total, squares, samples)
    papers = mean.numpy(), (variance / samples).sqrt().numpy()
    hidden = classifier.to_image(drawn(torch.tensor([0]))[:, None].to(seen.x) * seen.x)
    maps = {OURS: (summed(ours.value), summed(ours.standard_error)), PAPERS: papers}
    return Asked(scores, hidden, maps)


def _rise_canvas(seen: Seen, found: Asked, formula: str, keep: float, more: bool) -> Canvas:
    canvas, (map_, error) = Canvas(870, 320), found.maps[formula]
    limit = float(np.abs(map_).max()) or 1.0
    first, mean = decimal(float(found.scores[0])), decimal(float(found.scores.mean()))
    canvas.figure(0, 0, 220, found.hidden, "one of the masks", f"logit {first}", smooth=True)
    count = f"{len(found.scores)} masks, p = {keep:.1f}{'; more coming …' if more else ''}"
    canvas.figure(250, 0, 220, colored(map_, limit), f"“{seen.name}”: {formula}", count)
    canvas.color_bar(482, 44, 220, "signed", limit)
    largest = decimal(float(error.max()))
    below = f"of the map, at most {largest}"
    shown = plotting.colorize(error, limit=limit)
    canvas.figure(572, 0, 220, shown, "standard error", below)
    canvas.color_bar(804, 44, 220, "sequential", limit)
    low, high = decimal(float(map_.min())), decimal(float(map_.max()))
    told = f"map from {low} to {high}; mean logit of the masked pictures {mean}"
    canvas.text(0, 278, told, color=MUTED)
    canvas.text(0, 300, seen.inside(map_), color=MUTED)
    canvas.alt = (
        f"RISE of “{seen.name}”, {formula}, by {count}: {told}; standard error at most {largest}. "
        f"{seen.inside(map_)}"
    )
    return canvas
