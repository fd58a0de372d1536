"""The panel of lecture 05: a gradient method's map, and everything one chooses to show it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from course_utils import gradients, images, plotting, scenes
from course_utils.panels.base import (
    Canvas,
    Panel,
    choice,
    classifier_of,
    offered,
    pixels_of,
    slider,
    with_truth,
)
from course_utils.plotting import MUTED

SCENES = ("zebra", "tiger", "toadstool", "clownfish", "panther")
PAIR = "tiger and zebra"
ANSWER = "the model's answer"
METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": gradients.gradient,
    "Gradient × Input": gradients.input_x_gradient,
    "DeconvNet": gradients.deconvnet,
    "Guided Backprop": gradients.guided_backprop,
}
LOGIT_ONLY = ("DeconvNet", "Guided Backprop")  # their rules know no softmax
AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs + max": lambda values: values.abs().amax(0),
    "abs + sum": lambda values: values.abs().sum(0),
    "sum + abs": lambda values: values.sum(0).abs(),
    "signed sum": lambda values: values.sum(0),
}


class Seen(NamedTuple):
    """What the panel knows of a picture."""

    x: Tensor  # (1, 3, H, W), as the model gets it
    pixels: NDArray[np.uint8]  # (H, W, 3), as it looks
    probabilities: Tensor  # (K,)
    masks: dict[str, NDArray[np.bool_]]  # where its objects are; empty for a photo


def pair() -> scenes.SceneSpec:
    """A tiger and a zebra in one picture."""
    tiger = scenes.canonical("tiger", x=0.28, size=0.5)
    return replace(tiger, companion="zebra", companion_x=0.75, companion_size=0.5)


def gradient(model: Any = None, image: Any = None) -> Panel:
    """A gradient method's map: of which class, which score, and how three channels become one.

    The channels (3, H, W) are aggregated, values beyond the quantile are set to it, and the map is
    smoothed, in this order. The share inside the object is known for scenes only.
    """
    classifier = classifier_of(model)
    specs = {label: scenes.canonical(label) for label in SCENES} | {PAIR: pair()}
    pictures = offered(classifier, image, specs)

    @cache
    def seen(picture: str) -> Seen:
        source = pictures[picture]
        x = classifier.to_input(pixels_of(source))
        with torch.no_grad():
            probabilities = classifier.model(x).softmax(1)[0].cpu()
        masks = {}
        if isinstance(source, scenes.SceneSpec):
            scene = scenes.render(source, classifier.size)
            masks[source.label] = scene.mask
            if "companion" in scene.parts:
                masks[source.companion] = scene.parts["companion"]
        return Seen(x, classifier.to_image(x), probabilities, masks)

    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "method": choice("method", [*METHODS]),
        "score": choice("of the", ["logit", "softmax"]),
        "aggregation": choice("aggregation", [*AGGREGATIONS]),
        "quantile": slider("quantile", 0.9, 1.0, 0.99, 0.005),
        "sigma": slider("smoothing σ", 0.0, 8.0, 0.0, 0.5),
        "over": widgets.Checkbox(value=False, description="over the picture", indent=True),
    }
    controls["over"].style.description_width = "110px"

    def draw(
        picture: str,
        target: str,
        method: str,
        score: str,
        aggregation: str,
        quantile: float,
        sigma: float,
        over: bool,
    ) -> Canvas:
        x, pixels, probabilities, masks = seen(picture)
        controls["score"].disabled = method in LOGIT_ONLY
        score = "logit" if method in LOGIT_ONLY else score
        best = int(probabilities.argmax())
        index = best if target == ANSWER else classifier.classes.index(target)
        name = classifier.classes[index]
        network = classifier.model
        if score == "softmax":
            network = nn.Sequential(network, nn.Softmax(1))
        attribution = METHODS[method](network, x, index)[0].cpu()
        shown = prepare(attribution, aggregation, quantile, sigma)

        canvas = Canvas(960, 424)
        canvas.heading(0, 0, picture, "as the model gets it, and its answers")
        canvas.picture(0, 44, 250, pixels, smooth=True)
        order = probabilities.argsort(descending=True).tolist()
        answers = [(classifier.classes[i], float(probabilities[i])) for i in order]
        canvas.bars(0, 308, 290, with_truth(answers, name, 3), next(iter(masks), ""), row=28)

        kind = "signed" if aggregation == "signed sum" else "sequential"
        limit = float(np.abs(shown).max()) or 1.0
        colors = plotting.colorize(shown, kind, limit)
        left, top, side = 340, 44, 370
        canvas.heading(left, 0, f"{method}, {aggregation}", f"of the {score} of “{name}”")
        canvas.picture(left, top, side, images.overlay(pixels, colors, 0.6) if over else colors)
        _color_bar(canvas, left + side + 14, top, side, kind, limit)
        inside = ""
        for row, (label, mask) in enumerate(masks.items()):
            share = float(np.abs(shown)[mask].sum() / (np.abs(shown).sum() or 1.0))
            y = 150 + 110 * row
            canvas.text(830, y, f"{share:.0%}", size=28, bold=True)
            lines = ("of the map lies", f"inside the {label},", f"{mask.mean():.0%} of the picture")
            for line, text in enumerate(lines):
                canvas.text(830, y + 38 + 18 * line, text, color=MUTED)
            inside += (
                f"{share:.0%} of the map lies inside the {label} ({mask.mean():.0%} of it all). "
            )
        canvas.alt = (
            f"{method} of the {score} of “{name}” for the picture “{picture}”: {aggregation}, "
            f"clamped at the {quantile:g} quantile, smoothed with σ = {sigma:g} pixels"
            + (", over the picture" if over else "")
            + f"; the largest value shown is {limit:.2g}. {inside}"
            f"The model answers {answers[0][0]} ({answers[0][1]:.2f})."
        )
        return canvas

    return Panel("gradient", controls, draw)


def prepare(
    attribution: Tensor, aggregation: str, quantile: float, sigma: float
) -> NDArray[np.float64]:
    """An attribution (3, H, W) as the map (H, W) to show: aggregated, clamped, smoothed."""
    values = AGGREGATIONS[aggregation](attribution).double().numpy()
    limit = np.quantile(np.abs(values), quantile)
    values = values.clip(-limit, limit)
    return gaussian_filter(values, sigma) if sigma else values


def _color_bar(canvas: Canvas, x: float, y: float, height: float, kind: str, limit: float) -> None:
    """What the colours of a map mean, beside it."""
    low = -limit if kind == "signed" else 0.0
    ramp = np.linspace(limit, low, 129)[:, None]
    canvas.picture(x, y, 18, plotting.colorize(ramp, kind, limit), height=height)
    for value in {limit, low, 0.0}:
        at = y + height * (limit - value) / (limit - low)
        canvas.text(x + 26, at, f"{value:.2g}".replace("-", "−"), anchor="lm")
