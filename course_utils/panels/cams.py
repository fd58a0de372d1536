"""The panel of lecture 06: Grad-CAM of any class at any layer."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from course_utils import cam, images, layers, microscope, plotting, scenes
from course_utils.panels.base import (
    WIDTH,
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

LAST = "the last maps"  # those that CAM reads
ANSWER = "the answer"
SCENES = {
    "zebra": scenes.canonical("zebra"),
    "football and tiger": scenes.canonical(
        "football", companion="tiger", companion_size=0.55, x=0.72, y=0.7, size=0.5
    ),
    "zebra and tiger": scenes.canonical("zebra", companion="tiger", x=0.72, size=0.5),
    "beach ball, hard": scenes.Scenes(400, seed=607, hard=True).spec(126),
    "hot-air balloon": scenes.canonical("hot-air balloon"),
}


def grad_cam(model: Any = None, image: Any = None) -> Panel:
    """Grad-CAM of any class at any layer, over the picture and as numbers.

    Without ReLU the map is signed: blue places speak against the class. "smooth" enlarges it as
    Grad-CAM does, bilinearly; without it the feature map's own places show.
    """
    classifier = classifier_of(model)
    network = classifier.model
    pictures = offered(classifier, image, SCENES)
    first, blocks = next(iter(layers.conv_layers(network)), None), microscope.stages(network)
    modules = dict(network.named_modules())
    maps = [name for name in blocks if not isinstance(modules[name], nn.Linear)]
    names = [*dict.fromkeys([first, *maps]), LAST]
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "layer": choice("layer", names, LAST),
        "class_": choice("class", [ANSWER, *classifier.classes]),
        "relu": _switch("ReLU", True),
        "smooth": _switch("smooth", True),
        "strength": slider("strength", 0, 1, 0.5, 0.05),
    }

    def draw(
        picture: str, layer: str, class_: str, relu: bool, smooth: bool, strength: float
    ) -> Canvas:
        x = classifier.to_input(pixels_of(pictures[picture]))
        with torch.no_grad():
            logits = network(x)[0]
        target = int(logits.argmax()) if class_ == ANSWER else classifier.classes.index(class_)
        name, score = classifier.classes[target], float(logits[target])
        raw = cam.grad_cam(
            *(network, x, target),
            layer=None if layer == LAST else layer,
            relu=relu,
            upsample=False,
        )
        way: Any = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
        large = F.interpolate(raw[None], x.shape[2:], **way)[0, 0].cpu().numpy()
        kind, limit = "sequential" if relu else "signed", float(raw.abs().max())
        heat = plotting.colorize(large, kind, limit or 1.0)

        canvas, pixels = Canvas(930, 420), classifier.to_image(x)
        canvas.heading(0, 0, picture, "as the model gets it")
        canvas.picture(0, 44, 170, pixels, smooth=True)
        _answers(canvas, 0, 240, classifier.classes, logits, target)
        size = f"{raw.shape[1]} × {raw.shape[2]} places"
        canvas.heading(205, 0, f"{layer}, for “{name}”", f"over the picture; {size}")
        canvas.picture(205, 44, 330, images.overlay(pixels, heat, strength), smooth=smooth)
        canvas.heading(555, 0, "the map", "logits per place" + ("" if relu else "; blue: against"))
        canvas.picture(555, 44, 280, heat, smooth=smooth)
        _scale(canvas, 847, 44, 280, kind, limit)
        total = float(raw.sum())
        canvas.text(555, 340, f"sum of all places {decimal(total)}", bold=True)
        canvas.text(555, 362, f"logit of “{name}” {decimal(score)}")
        canvas.alt = (
            f"Grad-CAM of “{picture}” at {layer} for “{name}”, {size}"
            f"{', negative parts cut' if relu else ''}: from {decimal(float(raw.min()))} to "
            f"{decimal(float(raw.max()))} logits a place, together {decimal(total)}; the logit is "
            f"{decimal(score)}."
        )
        return canvas

    return Panel("grad cam", controls, draw)


def _switch(name: str, value: bool) -> widgets.Checkbox:
    return widgets.Checkbox(
        value=value,
        description=name,
        style={"description_width": "110px"},
        layout=widgets.Layout(width=WIDTH),
    )


def _answers(
    canvas: Canvas, x: float, y: float, names: Sequence[str], logits: torch.Tensor, target: int
) -> None:
    """The four largest logits; the explained class is orange, below them if not among them."""
    order = logits.argsort(descending=True).tolist()
    rows = order[:4] if target in order[:4] else [*order[:4], target]
    canvas.text(x, y, "its logits", bold=True)
    for row, index in enumerate(rows):
        color = ORANGE if index == target else MUTED
        name = names[index] if len(names[index]) <= 18 else names[index][:17] + "…"
        canvas.text(x, y + 24 + 22 * row, name, color=color, bold=index == target)
        number = decimal(float(logits[index]))
        canvas.text(x + 170, y + 24 + 22 * row, number, color=color, anchor="ra")


def _scale(canvas: Canvas, x: float, y: float, height: float, kind: str, limit: float) -> None:
    """A bar of the colours with the numbers at its ends."""
    low = -limit if kind == "signed" else 0.0
    values: NDArray[np.float64] = np.linspace(limit or 1.0, low, 128)[:, None]
    colors = plotting.colorize(values, kind, limit or 1.0)
    canvas.picture(x, y, 16, colors, height=height)
    ends = [(0, limit), (height, low)] + ([(height / 2, 0.0)] if low else [])
    for down, value in ends:
        canvas.text(x + 22, y + down, decimal(value), size=12, anchor="lm")
