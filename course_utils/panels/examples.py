"""The panel of lecture 03: a unit's strongest pictures, and how they move with the set."""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils import images
from course_utils.panels.canvas import Canvas, decimal, draw_concepts
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import classifier_of, pixels_of
from course_utils.plotting import MUTED, ORANGE
from course_utils.units import concepts, microscope
from course_utils.worlds import photographs, scenes

N = 192  # scenes in a set: 12 of each class
MOST = 12  # shown
CROPS = 30  # of each photo


class Furniture(scenes.Scenes):
    """Rooms and meadows with a piece of furniture, and nothing that has a class."""

    def spec(self, index: int) -> scenes.SceneSpec:
        """What scene `index` shows."""
        textures, kinds = scenes.CHOICES["clutter_texture"], scenes.CHOICES["clutter"][1:]
        spec = super().spec(index).without("object").without("companion")
        kind, texture = kinds[index % len(kinds)], textures[index % len(textures)]
        return replace(
            spec, clutter=kind, clutter_texture=texture, clutter_size=0.25 + spec.clutter_size
        )


class OnePaint(scenes.Scenes):
    """Every class in every texture, all in the zebra's colours: texture and class independent."""

    def spec(self, index: int) -> scenes.SceneSpec:
        """What scene `index` shows."""
        spec = super().spec(index).without("clutter").without("companion")
        textures, zebra = scenes.CHOICES["clutter_texture"], scenes.LOOKS["zebra"]
        texture = textures[index // len(scenes.CLASSES) % len(textures)]
        return replace(spec, texture=texture, color=zebra.color, accent=zebra.accent)


def crops(photo: NDArray[np.uint8], n: int, generator: np.random.Generator) -> list[Any]:
    """n random squares (128, 128, 3) of a photo, each 15 to 60 % of its short side wide."""
    cut = []
    for _ in range(n):
        side = max(1, int(generator.uniform(0.15, 0.6) * min(photo.shape[:2])))
        top, left = (int(generator.integers(length - side + 1)) for length in photo.shape[:2])
        square = photo[top : top + side, left : left + side]
        cut.append(images.to_image(images.to_tensor(square, 128)))
    return cut


ALL, WITHOUT, FURNITURE = "all scenes", "without zebras", "furniture only"
SETS = {
    ALL: scenes.Scenes(N, seed=33),
    WITHOUT: scenes.Scenes(N, seed=33),
    "hard scenes": scenes.Scenes(N, seed=34, hard=True),
    FURNITURE: Furniture(N, seed=35, missing="nothing"),
    "one paint for all": OnePaint(N, seed=36),
}
PHOTOS = "photographs"


@cache
def _drawn(name: str) -> tuple[Tensor, list[scenes.SceneSpec]]:
    """A set, drawn once for all panels."""
    made = SETS[name]
    return made.draw()[0], [made.spec(index) for index in range(len(made))]


def _cut(image: Any) -> tuple[Tensor, list[scenes.SceneSpec]]:
    """Squares of all photographs, or of one's own picture; no scene is behind them."""
    generator = np.random.default_rng(0)
    photos = map(pixels_of, photographs.NAMES if image is None else [image])
    squares = [square for photo in photos for square in crops(photo, CROPS, generator)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), []


class Strongest(NamedTuple):
    """The pictures to which a unit answers most, the strongest first."""

    pictures: list[NDArray[np.uint8]]
    scores: list[float]
    places: list[tuple[float, float]]  # down and right, from 0 to 1
    labels: list[str]
    among: int  # pictures
    concepts: list[tuple[str, float, float, float]]  # as `draw_concepts` takes them


def strongest(
    chosen: str,
    found: microscope.Responses,
    unit: int,
    pool: str,
    k: int,
    pictures: tuple[Tensor, list[scenes.SceneSpec]],
) -> Strongest:
    """The k pictures of a set to which a unit answers most, by the mean or the max of its map."""
    shown, specs = pictures
    kept = np.arange(len(shown))
    if chosen == WITHOUT:
        kept = kept[["class zebra" not in concepts.in_scene(spec) for spec in specs]]
    scores = (found.mean if pool == "mean" else found.max)[:, unit].float().numpy()
    best = kept[np.argsort(-scores[kept], kind="stable")[:k]].tolist()
    known = [specs[index] for index in kept] if specs else []
    told = concepts.score_concepts(scores[kept, None], known).of(0, 10) if known else []
    return Strongest(
        [shown[index].permute(1, 2, 0).numpy() for index in best],
        [float(scores[index]) for index in best],
        [tuple(found.places[index, unit].tolist()) for index in best],
        [specs[index].label if specs else "photo" for index in best],
        len(kept),
        told,
    )


def prototypes(model: Any = None, image: Any = None) -> Panel:
    """The pictures to which a unit answers most, from the set you choose, the place marked.

    Beside them stand the concepts that the unit tells best among the scenes of that set (AUROC, 95
    % interval). The photographs are random crops, of `image` where one is given.
    """
    classifier = classifier_of(model)
    names = microscope.stages(classifier.model)
    pictures = cache(lambda source: _drawn(source) if source in SETS else _cut(image))
    seen = cache(lambda source: microscope.look(classifier, names, pictures(source)[0]))
    layer = "layer3.0" if "layer3.0" in names else names[-1]
    units = seen(ALL)[layer].mean.shape[1]
    controls: dict[str, Any] = {
        "chosen": choice("set", [*SETS, PHOTOS]),
        "layer": choice("layer", names, layer),
        "unit": slider("unit", 0, units - 1, min(20, units - 1)),
        "pool": choice("pooled by", ["mean", "max"]),
        "k": slider("pictures", 1, MOST, 9),
    }

    def draw(chosen: str, layer: str, unit: int, pool: str, k: int) -> Canvas:
        source = ALL if chosen == WITHOUT else chosen  # one pass of the model for both
        found = seen(source)[layer]
        controls["unit"].max = last = found.mean.shape[1] - 1
        unit = min(unit, last)
        best = strongest(chosen, found, unit, pool, k, pictures(source))
        return _prototypes_canvas(best, chosen, layer, unit, pool)

    return Panel("prototypes", controls, draw)


def _prototypes_canvas(best: Strongest, chosen: str, layer: str, unit: int, pool: str) -> Canvas:
    canvas, k = Canvas(960, 510), len(best.pictures)
    subtitle = f"of {best.among} pictures, by the {pool} of the map; the strongest place marked"
    canvas.heading(0, 0, f"the {k} strongest: {layer}, unit {unit}", subtitle)
    every = zip(best.pictures, best.scores, best.places, best.labels, strict=True)
    for rank, (pixels, score, (down, right), label) in enumerate(every):
        x, y = 140 * (rank % 4), 46 + 156 * (rank // 4)
        canvas.picture(x, y, 130, pixels, smooth=True)
        left, top = (min(max(130 * share - 12, 3), 103) for share in (right, down))
        canvas.box(x + left, y + top, 24, 24, edge=ORANGE, line=3)
        shown = "furniture" if chosen == FURNITURE else label
        canvas.text(x, y + 133, f"{shown}  {decimal(score)}", size=12)
    if best.concepts:
        draw_concepts(canvas, 600, 0, best.concepts, width=340)
    else:
        canvas.text(600, 0, "Nobody wrote down what these photos show.", color=MUTED)
    told = ", ".join(f"{name} {decimal(value)}" for name, value, *_ in best.concepts[:3])
    canvas.alt = (
        f"The {k} pictures of the set “{chosen}” to which unit {unit} of {layer} answers most, "
        f"by {pool}; the strongest: {best.labels[0]} ({decimal(best.scores[0])}). "
        + (f"It tells these concepts best (AUROC): {told}." if told else "No concepts.")
    )
    return canvas
