"""The panel of lecture 03: a unit's strongest pictures, and how they move with the set."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from course_utils import features, images, microscope, photographs, scenes
from course_utils.panels.base import (
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    draw_concepts,
    pixels_of,
    slider,
)
from course_utils.plotting import MUTED, ORANGE

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


SETS = {
    "all scenes": scenes.Scenes(N, seed=33),
    "without zebras": scenes.Scenes(N, seed=33),
    "hard scenes": scenes.Scenes(N, seed=34, hard=True),
    "furniture only": Furniture(N, seed=35),
    "one paint for all": OnePaint(N, seed=36),
}
PHOTOS = "photographs"


@cache
def _drawn(name: str) -> tuple[torch.Tensor, list[scenes.SceneSpec]]:
    """A set, drawn once for all panels."""
    made = SETS[name]
    return made.draw(progress=False)[0], [made.spec(index) for index in range(len(made))]


def prototypes(model: Any = None, image: Any = None) -> Panel:
    """The pictures to which a unit answers most, from the set you choose, the place marked.

    Beside them stand the concepts that the unit tells best among the scenes of that set (AUROC, 95
    % interval). The photographs are random crops, of `image` where one is given.
    """
    classifier = classifier_of(model)
    names = microscope.stages(classifier.model)

    @cache
    def pictures(chosen: str) -> tuple[torch.Tensor, list[scenes.SceneSpec]]:
        if chosen in SETS:
            return _drawn(chosen)
        generator = np.random.default_rng(0)
        photos = map(pixels_of, photographs.NAMES if image is None else [image])
        squares = [square for photo in photos for square in crops(photo, CROPS, generator)]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), []

    @cache
    def seen(chosen: str) -> dict[str, microscope.Seen]:
        """One pass for all layers."""
        return microscope.look(classifier, names, pictures(chosen)[0], progress=False)

    start = "layer3.0" if "layer3.0" in names else names[-1]
    controls: dict[str, Any] = {
        "chosen": choice("set", [*SETS, PHOTOS]),
        "layer": choice("layer", names, start),
        "unit": slider("unit", 0, 0, 0),
        "pool": choice("pooled by", ["mean", "max"]),
        "k": slider("pictures", 1, MOST, 9),
    }
    controls["unit"].max = seen("all scenes")[start].mean.shape[1] - 1
    controls["unit"].value = 33

    def draw(chosen: str, layer: str, unit: int, pool: str, k: int) -> Canvas:
        source = "all scenes" if chosen == "without zebras" else chosen
        found, (shown, specs) = seen(source)[layer], pictures(source)
        kept = np.arange(len(shown))
        if chosen != source:
            kept = kept[["class zebra" not in features.concepts(spec) for spec in specs]]
        controls["unit"].max = found.mean.shape[1] - 1
        unit = min(unit, controls["unit"].max)
        scores = (found.mean if pool == "mean" else found.max)[:, unit].numpy()
        best = kept[np.argsort(-scores[kept], kind="stable")[:k]]
        canvas = Canvas(960, 510)
        subtitle = f"of {len(kept)} pictures, by the {pool} of the map; the strongest place marked"
        canvas.heading(0, 0, f"the {k} strongest: {layer}, unit {unit}", subtitle)
        first = specs[best[0]].label if specs else "photo"
        for rank, index in enumerate(best.tolist()):
            x, y = 140 * (rank % 4), 46 + 156 * (rank // 4)
            canvas.picture(x, y, 130, shown[index].permute(1, 2, 0).numpy(), smooth=True)
            down, right = (130 * found.places[index, unit]).tolist()
            canvas.box(
                *(x + min(max(right - 12, 3), 103), y + min(max(down - 12, 3), 103), 24, 24),
                edge=ORANGE,
                line=3,
            )
            label = specs[index].label if specs else "photo"
            label = "furniture" if chosen == "furniture only" else label
            canvas.text(x, y + 133, f"{label}  {decimal(scores[index])}", size=12)
        known = [specs[index] for index in kept] if specs else []
        told = features.score_concepts(scores[kept, None], known).of(0, 10) if known else []
        if told:
            draw_concepts(canvas, 600, 0, told, width=340)
        else:
            canvas.text(600, 0, "Nobody wrote down what these photos show.", color=MUTED)
        concepts = ", ".join(f"{name} {decimal(value)}" for name, value, *_ in told[:3])
        canvas.alt = (
            f"The {k} pictures of the set “{chosen}” to which unit {unit} of {layer} answers most, "
            f"by {pool}; the strongest: {first} ({decimal(scores[best[0]])}). "
            + (f"It tells these concepts best (AUROC): {concepts}." if told else "No concepts.")
        )
        return canvas

    return Panel("prototypes", controls, draw)
