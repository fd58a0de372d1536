"""The panel of lecture 11: where a unit's map is high, and which concept's mask that covers."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.panels.canvas import Canvas, decimal
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import classifier_of, knows_scenes, pixels_of
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE
from course_utils.units import features, labels, microscope
from course_utils.units.labels import Mask
from course_utils.worlds import photographs, scenes

SCENES = 64  # that are dissected
SHOWN = 8
START = {True: 0.005, False: 0.05}  # of few photographs a larger share, so that several are covered
CONCEPTS = 9
BEST = "the best one"
NEAR = ((0, 2), (4, 2), (2, 0), (2, 4))  # two pixels up, down, left, right
RGB = tuple(int(ORANGE[i : i + 2], 16) for i in (1, 3, 5))


class Known(NamedTuple):
    """A picture as the model gets it, what it shows, and where."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    name: str
    concepts: tuple[str, ...]
    masks: NDArray[np.bool_]  # (concepts, H · W)
    areas: list[int]  # (concepts,) pixels


def dissection(model: Any = None, image: Any = None) -> Panel:
    """A unit's upsampled map, cut at its top quantile over 64 scenes, and the concept it covers.

    The pictures are those with the unit's highest values. The orange outline is where the map is
    above the threshold; what does not show the concept is dark. `image` is a picture of one's own,
    whose colours alone are known. Networks that know no scenes get the nine photographs.
    """
    classifier = classifier_of(model)
    sources = [*([] if image is None else [image]), *_labelled(classifier)]
    known = [_known(classifier, source) for source in sources]
    modules = dict(classifier.model.named_modules())
    names = [
        n for n in microscope.stages(classifier.model) if not isinstance(modules[n], nn.Linear)
    ]
    x = torch.cat([classifier.to_input(one.pixels, crop=False) for one in known])
    maps: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in features.batches(x, microscope.BATCH):
        for name, found in features.feature_maps(classifier.model, batch, names).items():
            maps[name].append(found.float().cpu())
    every = {name: torch.cat(parts) for name, parts in maps.items()}
    concepts = sorted({name for one in known for name in one.concepts})
    controls: dict[str, Any] = {
        "layer": choice("layer", names, names[-1]),
        "unit": slider("unit", 0, every[names[-1]].shape[1] - 1, 0),
        "quantile": slider("top share", 0.002, 0.1, START[knows_scenes(classifier)], 0.001),
        "concept": choice("concept", [BEST, *concepts]),
    }

    def draw(layer: str, unit: int, quantile: float, concept: str) -> Canvas:
        controls["unit"].max = last = every[layer].shape[1] - 1
        unit = min(unit, last)
        found = _dissected(every[layer][:, unit], known, quantile)
        chosen = concept if concept != BEST else next(iter(found.iou), concepts[0])
        return _canvas(found, known, layer, unit, chosen)

    return Panel("dissection", controls, draw)


@cache
def _scenes(number: int, resolution: int) -> list[scenes.Scene]:
    """Drawn once for all panels."""
    world = scenes.Scenes(number, seed=1105, resolution=resolution)
    return [world.scene(index) for index in range(number)]


def _labelled(classifier: Any) -> list[Any]:
    if knows_scenes(classifier):
        return list(_scenes(SCENES, classifier.size))
    return [photographs.load(name) for name in photographs.NAMES]


def _known(classifier: Any, source: Any) -> Known:
    """The picture as the model gets it, with the masks of what is known of it."""
    if not isinstance(source, scenes.Scene | photographs.Photograph):
        pixels = pixels_of(source)
        source = photographs.Photograph("your picture", pixels, {}, "")
    masks = labels.concept_masks(source)
    if source.image.shape[:2] != (classifier.size, classifier.size) or classifier.resize:
        masks = {name: photographs.as_prepared(m, classifier) for name, m in masks.items()}
    pixels = classifier.to_image(classifier.to_input(source.image))
    name = source.name if isinstance(source, photographs.Photograph) else source.label
    rows = np.stack([*masks.values()]).reshape(len(masks), -1)
    return Known(pixels, name, tuple(masks), rows, rows.sum(1).tolist())


class Cut(NamedTuple):
    """One unit's maps, cut at a threshold, and the concepts they cover best."""

    threshold: float
    above: Mask  # (N, H, W)
    order: list[int]  # of the pictures, the highest value first
    iou: dict[str, float]  # the best first


def _dissected(maps: Tensor, known: list[Known], quantile: float) -> Cut:
    """maps (N, h, w) of one unit, as `units.dissection.dissect` has it."""
    values = maps.flatten().sort(descending=True).values
    threshold = values[int(quantile * len(values))]
    size = known[0].pixels.shape[:2]
    wide = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    above = (wide > threshold).numpy()
    both: dict[str, int] = {}
    area: dict[str, int] = {}
    for one, covered in zip(known, above, strict=True):
        common = one.masks[:, np.flatnonzero(covered)].sum(1).tolist()
        for name, inside, whole in zip(one.concepts, common, one.areas, strict=True):
            both[name], area[name] = both.get(name, 0) + inside, area.get(name, 0) + whole
    total = int(above.sum())
    iou = {name: both[name] / max(total + area[name] - both[name], 1) for name in both}
    best = dict(sorted(iou.items(), key=lambda item: -item[1]))
    order = maps.flatten(1).amax(1).argsort(descending=True, stable=True).tolist()
    return Cut(float(threshold), above, order, best)


def _outlined(one: Known, above: Mask, concept: str) -> NDArray[np.uint8]:
    """Twice as large: dark where the concept is not, the outline of what is covered in orange."""
    height, width = above.shape
    large = Image.fromarray(one.pixels).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    pixels = np.array(large)
    inside = np.zeros_like(above)
    if concept in one.concepts:
        inside = one.masks[one.concepts.index(concept)].reshape(above.shape)
    pixels[~inside.repeat(2, 0).repeat(2, 1)] //= 3
    covered = above.repeat(2, 0).repeat(2, 1)
    edge = covered.copy()
    edge[2:-2, 2:-2] &= ~np.all([covered[i : i - 4 or None, j : j - 4 or None] for i, j in NEAR], 0)
    pixels[edge] = RGB
    return pixels


def _canvas(found: Cut, known: list[Known], layer: str, unit: int, concept: str) -> Canvas:
    canvas, value = Canvas(960, 400), found.iou.get(concept, 0.0)
    below = f"of {len(known)} pictures; orange: map above {decimal(found.threshold)}; dark: other"
    canvas.heading(0, 0, f"{layer}, unit {unit} over “{concept}”", below)
    for rank, number in enumerate(found.order[:SHOWN]):
        x, y = 165 * (rank % 4), 46 + 176 * (rank // 4)
        pixels = _outlined(known[number], found.above[number], concept)
        canvas.picture(x, y, 152, pixels, smooth=True)
        canvas.text(x, y + 155, known[number].name, size=12)
    canvas.heading(690, 0, "concepts it covers best", "IoU over all pictures, in %")
    scale = max(0.1, next(iter(found.iou.values()), 0.1))
    rows = list(found.iou.items())[:CONCEPTS]
    for row, (name, share) in enumerate(rows):
        y, color = 46 + 36 * row, ORANGE if name == concept else BLUE
        canvas.text(690, y, name, bold=name == concept)
        canvas.text(950, y, f"{100 * share:.1f}", anchor="ra", color=MUTED)
        canvas.box(690, y + 20, 260, 8, fill=FAINT)
        canvas.box(690, y + 20, 260 * share / scale, 8, fill=color)
    told = ", ".join(f"{name} {share:.0%}" for name, share in rows[:3])
    canvas.alt = (
        f"The {min(SHOWN, len(known))} of {len(known)} pictures in which unit {unit} of {layer} is "
        f"highest, its map outlined where it is above {decimal(found.threshold)}. It covers "
        f"“{concept}” with an IoU of {value:.0%}; best: {told}."
    )
    return canvas
