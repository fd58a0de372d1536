"""The panels of lecture 06: Grad-CAM, and what came after it, of any class at any layer."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import images, layers, plotting
from course_utils.methods import METHODS, cam
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, decimal
from course_utils.panels.panel import Panel, choice, coarse_to_fine, slider, switch
from course_utils.panels.pictures import Seen, class_choice, classifier_of, picture_reader
from course_utils.plotting import MUTED, ORANGE
from course_utils.units import microscope
from course_utils.worlds import scenes

LAST = "the last maps"  # those that CAM reads
FAMILY = ("hires_cam", "layer_cam", "grad_cam_plus_plus", "score_cam", "eigen_cam")
SCENES = {
    "zebra": scenes.standard("zebra"),
    "football and tiger": scenes.standard(
        "football", companion="tiger", companion_size=0.55, x=0.72, y=0.7, size=0.5
    ),
    "zebra and tiger": scenes.standard("zebra", companion="tiger", x=0.72, size=0.5),
    "clownfish, hard": scenes.Scenes(400, seed=607, hard=True, missing="nothing").spec(22),
    "hot-air balloon": scenes.standard("hot-air balloon"),
}


def grad_cam(model: Any = None, image: Any = None) -> Panel:
    """Grad-CAM of any class at any layer, over the picture and as numbers.

    Without ReLU the map is signed: blue places speak against the class. "smooth" enlarges it as
    Grad-CAM does, bilinearly; without it the feature map's own places show.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "layer": choice("layer", layers_for_cam(classifier.model), LAST),
        "class_": class_choice(classifier),
        "relu": switch("ReLU"),
        "smooth": switch("smooth"),
        "strength": slider("strength", 0, 1, 0.5, 0.05),
    }

    def draw(
        picture: str, layer: str, class_: str, relu: bool, smooth: bool, strength: float
    ) -> Canvas:
        seen = look(picture, class_)
        at = None if layer == LAST else layer
        given = classifier.model, seen.x, seen.target
        map_ = cam.grad_cam(*given, layer=at, relu=relu, upsample=False).float()
        return _cam_canvas(classifier, seen, picture, layer, map_, relu, smooth, strength)

    return Panel("grad cam", controls, draw)


def cam_family(model: Any = None, image: Any = None) -> Panel:
    """A method that came after Grad-CAM, beside Grad-CAM, of the same class at the same layer.

    Score-CAM asks the model once for each of the layer's maps: it shows first what a few maps say.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    first = [*pictures][0 if image is not None else 1]  # of scenes that with two objects
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures], first),
        "method": choice("method", FAMILY, "eigen_cam"),
        "layer": choice("layer", layers_for_cam(classifier.model), LAST),
        "class_": class_choice(classifier),
    }
    kept: dict[tuple[str, ...], tuple[Mapping[str, Any], Tensor]] = {}

    def draw(picture: str, method: str, layer: str, class_: str) -> Iterator[Canvas]:
        seen, entry = look(picture, class_), METHODS[method]
        network, x, target = classifier.model, seen.x, seen.target
        at: Any = {"layer": None if layer == LAST else layer, "upsample": False}
        usual = cam.grad_cam(network, x, target, **at)

        def made(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Tensor]:
            return options, entry(network, x, target, **at, **options)

        coarse = [entry.sketch(network, x, target, {})] if entry.sketch else []
        makers = [partial(made, options) for options in (*coarse, entry.quick)]
        for options, map_ in coarse_to_fine(kept, (picture, method, layer, class_), *makers):
            told = "".join(f", at most {value} {name}" for name, value in options.items())
            cost = f"{entry.cost}{told}{', more coming …' if options in coarse else ''}"
            maps = {"grad_cam": (usual, METHODS["grad_cam"].cost), method: (map_, cost)}
            yield _family_canvas(classifier, seen, picture, layer, maps)

    return Panel("cam family", controls, draw)


def layers_for_cam(network: nn.Module) -> list[str]:
    """The first convolution, the stages, and what stands for the maps before the pooling."""
    first, modules = [*layers.conv_layers(network)][:1], dict(network.named_modules())
    stages = microscope.stages(network)
    maps = [name for name in stages if not isinstance(modules[name], nn.Linear)]
    return [*dict.fromkeys([*first, *maps]), LAST]


def _cam_canvas(
    classifier: Classifier,
    seen: Seen,
    picture: str,
    layer: str,
    map_: Tensor,
    relu: bool,
    smooth: bool,
    strength: float,
) -> Canvas:
    """map_: (1, h, w), of the layer's own size."""
    way: Any = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    large = F.interpolate(map_[None], seen.x.shape[2:], **way)[0, 0].cpu().numpy()
    kind, limit = "sequential" if relu else "signed", float(map_.abs().max()) or 1.0
    heat = plotting.colorize(large, kind, limit)
    canvas, name, size = Canvas(930, 420), seen.name, f"{map_.shape[1]} × {map_.shape[2]} places"
    canvas.figure(0, 0, 170, seen.pixels, picture, "as the model gets it", smooth=True)
    _answers(canvas, 0, 240, classifier.classes, seen.logits, seen.target)
    over, below = images.overlay(seen.pixels, heat, strength), f"over the picture; {size}"
    canvas.figure(205, 0, 330, over, f"{layer}, for “{name}”", below, smooth=smooth)
    below = "logits per place" + ("" if relu else "; blue: against")
    canvas.figure(555, 0, 280, heat, "the map", below, smooth=smooth)
    canvas.color_bar(847, 44, 280, kind, limit)
    total, score = decimal(float(map_.sum())), decimal(float(seen.logits[seen.target]))
    canvas.text(555, 340, f"sum of all places {total}", bold=True)
    canvas.text(555, 362, f"logit of “{name}” {score}")
    canvas.alt = (
        f"Grad-CAM of “{picture}” at {layer} for “{name}”, {size}"
        f"{', negative parts cut' if relu else ''}: from {decimal(float(map_.min()))} to "
        f"{decimal(float(map_.max()))} logits a place, together {total}; the logit is {score}."
    )
    return canvas


def _family_canvas(
    classifier: Classifier,
    seen: Seen,
    picture: str,
    layer: str,
    maps: Mapping[str, tuple[Tensor, str]],
) -> Canvas:
    """maps: two methods' (1, h, w) and their costs, each coloured up to its own maximum."""
    canvas, told, flat = Canvas(930, 420), [], []
    canvas.figure(0, 0, 170, seen.pixels, picture, "as the model gets it", smooth=True)
    _answers(canvas, 0, 240, classifier.classes, seen.logits, seen.target)
    for x, (name, (map_, cost)) in zip((205, 575), maps.items(), strict=True):
        size = seen.x.shape[2:]
        large = F.interpolate(map_[None].float(), size, mode="bilinear", align_corners=False)[0, 0]
        heat = plotting.colorize(large.clamp(min=0).cpu().numpy())
        title, over = METHODS[name].label, images.overlay(seen.pixels, heat, 0.55)
        canvas.figure(x, 0, 330, over, f"{title} for “{seen.name}”", cost, smooth=True)
        low, high, total = (decimal(float(v)) for v in (map_.min(), map_.max(), map_.sum()))
        canvas.text(x, 382, f"{low} to {high}, sum of all places {total}")
        told.append(f"{title} ({cost}) from {low} to {high}")
        flat.append(map_.flatten().double())
    alike = decimal(float(torch.corrcoef(torch.stack(flat)).nan_to_num()[0, 1]))
    canvas.text(575, 402, f"correlation with Grad-CAM {alike}", bold=True)
    canvas.alt = (
        f"“{picture}” at {layer} for “{seen.name}”, {map_.shape[1]} × {map_.shape[2]} places: "
        f"{', '.join(told)}. Their correlation is {alike}."
    )
    return canvas


def _answers(
    canvas: Canvas, x: float, y: float, names: Sequence[str], logits: Tensor, target: int
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
