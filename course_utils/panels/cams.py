"""The panel of lecture 06: Grad-CAM of any class at any layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import images, layers, plotting
from course_utils.methods import cam
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, decimal
from course_utils.panels.panel import Panel, choice, slider, switch
from course_utils.panels.pictures import Seen, class_choice, classifier_of, picture_reader
from course_utils.plotting import MUTED, ORANGE
from course_utils.units import microscope
from course_utils.worlds import scenes

LAST = "the last maps"  # those that CAM reads
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
