"""The panel of lecture 05: a gradient method's map, and everything one chooses to show it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from course_utils import images, plotting
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas
from course_utils.panels.panel import Panel, choice, slider, switch
from course_utils.panels.pictures import (
    PAIR,
    Array,
    Seen,
    class_choice,
    classifier_of,
    picture_reader,
    standards,
    with_truth,
)
from course_utils.plotting import MUTED

SCENES = standards("zebra", "tiger", "toadstool", "clownfish", "panther") | {
    "tiger and zebra": PAIR
}
OFFERED = {
    METHODS[name].label: METHODS[name]
    for name in ("gradient", "input_x_gradient", "deconvnet", "guided_backprop")
}
# Those that look into layers have a rule for each, and none for a softmax.
LOGIT_ONLY = tuple(label for label, method in OFFERED.items() if "layers" in method.needs)
AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs + max": lambda values: values.abs().amax(0),
    "abs + sum": lambda values: values.abs().sum(0),
    "sum + abs": lambda values: values.sum(0).abs(),
    "signed sum": lambda values: values.sum(0),
}


def gradient(model: Any = None, image: Any = None) -> Panel:
    """A gradient method's map: of which class, which score, and how three channels become one.

    The channels (3, H, W) are aggregated, values beyond the quantile are set to it, and the map is
    smoothed, in this order. The share inside the object is known for scenes only.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "method": choice("method", [*OFFERED]),
        "score": choice("of the", ["logit", "softmax"]),
        "aggregation": choice("aggregation", [*AGGREGATIONS]),
        "quantile": slider("quantile", 0.9, 1.0, 0.99, 0.005),
        "sigma": slider("smoothing σ", 0.0, 8.0, 0.0, 0.5),
        "over": switch("over the picture", False),
    }

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
        seen, scores = look(picture, target), controls["score"]
        scores.disabled = method in LOGIT_ONLY
        if scores.disabled:
            scores.value = score = "logit"
        network = classifier.model
        if score == "softmax":
            network = nn.Sequential(network, nn.Softmax(1))
        attribution = OFFERED[method](network, seen.x, seen.target)[0].cpu()
        map_ = prepare(attribution, aggregation, quantile, sigma)
        of = f"of the {score} of “{seen.name}”"
        made = f"clamped at the {quantile:g} quantile, smoothed with σ = {sigma:g} pixels"
        return _gradient_canvas(
            classifier, seen, picture, map_, method, of, aggregation, made, over
        )

    return Panel("gradient", controls, draw)


def prepare(attribution: Tensor, aggregation: str, quantile: float, sigma: float) -> Array:
    """An attribution (3, H, W) as the map (H, W) to show: aggregated, clamped, smoothed."""
    values = AGGREGATIONS[aggregation](attribution).double().numpy()
    limit = np.quantile(np.abs(values), quantile)
    values = values.clip(-limit, limit)
    return gaussian_filter(values, sigma) if sigma else values


def _gradient_canvas(
    classifier: Classifier,
    seen: Seen,
    picture: str,
    map_: Array,
    method: str,
    of: str,
    aggregation: str,
    made: str,
    over: bool,
) -> Canvas:
    canvas, probabilities = Canvas(960, 424), seen.logits.softmax(0)
    canvas.figure(
        0, 0, 250, seen.pixels, picture, "as the model gets it, and its answers", smooth=True
    )
    order = probabilities.argsort(descending=True).tolist()
    answers = [(classifier.classes[i], float(probabilities[i])) for i in order]
    shown, truth = with_truth(answers, seen.name, 3), next(iter(seen.objects), "")
    canvas.bars(0, 308, 290, shown, truth, row=28)
    kind = "signed" if aggregation == "signed sum" else "sequential"
    limit = float(np.abs(map_).max()) or 1.0
    colors = plotting.colorize(map_, kind, limit)
    colors = images.overlay(seen.pixels, colors, 0.6) if over else colors
    canvas.figure(340, 0, 370, colors, f"{method}, {aggregation}", of)
    canvas.color_bar(724, 44, 370, kind, limit, lambda v: f"{v:.2g}".replace("-", "−"))
    inside = _shares(canvas, seen.objects, map_)
    canvas.alt = (
        f"{method} {of} for the picture “{picture}”: {aggregation}, {made}"
        f"{', over the picture' if over else ''}; the largest value shown is {limit:.2g}. {inside}"
        f"The model answers {answers[0][0]} ({answers[0][1]:.2f})."
    )
    return canvas


def _shares(canvas: Canvas, objects: dict[str, NDArray[np.bool_]], map_: Array) -> str:
    """The share of |map| inside each object; the same in words."""
    words = ""
    for row, (label, mask) in enumerate(objects.items()):
        share, area = np.abs(map_)[mask].sum() / (np.abs(map_).sum() or 1.0), mask.mean()
        y = 150 + 110 * row
        canvas.text(830, y, f"{share:.0%}", size=28, bold=True)
        lines = ("of the map lies", f"inside the {label},", f"{area:.0%} of the picture")
        canvas.lines(830, y + 38, lines, 18, color=MUTED)
        words += f"{share:.0%} of the map lies inside the {label} ({area:.0%} of it all). "
    return words
