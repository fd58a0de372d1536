"""The panel of lecture 12: what the features of a dictionary answer to."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.networks import Classifier
from course_utils.panels.canvas import PALE, Canvas, decimal, draw_concepts
from course_utils.panels.examples import crops
from course_utils.panels.maximization import through
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import classifier_of, knows_scenes, pixels_of, typical
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE
from course_utils.units import dictionaries, features, maximize, microscope
from course_utils.units.concepts import ConceptScores, score_concepts
from course_utils.units.dictionaries import Dictionary
from course_utils.worlds import photographs
from course_utils.worlds.scenes import Scenes

Pixels = NDArray[np.uint8]

SCENES = 160  # on which a dictionary is learned and shown
CROPS = 8  # of each photograph, for a model that reads no scenes
PLACES = 256  # a layer with larger maps sees edges and colours: no dictionary is made of it
PARTS, MORE = 24, 96  # features of a factorisation, and of an autoencoder
STEPS = 300  # of the autoencoder
TOP = 9
CONCEPTS = 6
UNITS = 5  # of which an atom has most

NMF, SAE, AXES = "NMF", "sparse autoencoder", "units"


class Learned(NamedTuple):
    """A dictionary of a layer, and what its features answer to all pictures."""

    dictionary: Dictionary
    maps: Tensor  # (N, F, H, W)
    concepts: ConceptScores | None  # nobody wrote down what photographs show


class Shelf:
    """The pictures, what the layers answer to them, and the dictionaries made so far."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.pictures, self.specs = _shown(knows_scenes(classifier))
        found: dict[str, list[Tensor]] = {}
        inside = microscope.stages(classifier.model)
        for batch in features.batches(classifier.inputs(self.pictures), microscope.BATCH):
            for layer, maps in features.feature_maps(classifier.model, batch, inside).items():
                if maps.ndim == 4 and maps[0, 0].numel() <= PLACES:
                    found.setdefault(layer, []).append(maps.float().cpu())
        self.maps = {layer: torch.cat(maps) for layer, maps in found.items()}
        if not self.maps:
            raise ValueError(
                f"model: no stage of this {type(classifier.model).__name__} has maps of at most "
                f"{PLACES} places, of which a dictionary could be made"
            )
        self.learned, self.synthesised = cache(self._learned), cache(self._synthesised)
        self.made: set[tuple[str, str]] = set()  # so that a move can know whether it will wait

    def size(self, layer: str, kind: str) -> int:
        """How many features a dictionary of that kind has."""
        n, channels, height, width = self.maps[layer].shape
        return {
            NMF: min(PARTS, channels, n * height * width),
            SAE: MORE,
            AXES: channels,
        }[kind]

    def _learned(self, layer: str, kind: str) -> Learned:
        maps, size = self.maps[layer], self.size(layer, kind)
        if kind == NMF:
            maps = maps.relu()  # some layers have no ReLU; the rest of them is shown
            dictionary = dictionaries.nmf(maps[::2], size, steps=60)
        elif kind == SAE:
            dictionary = dictionaries.sparse_autoencoder(maps, size, steps=STEPS, batch_size=256)
        else:
            dictionary = dictionaries.units(maps)
        seen = dictionary.encode(maps)
        told = score_concepts(seen.mean((2, 3)).numpy(), self.specs) if self.specs else None
        self.made.add((layer, kind))
        return Learned(dictionary, seen, told)

    def _synthesised(self, layer: str, kind: str, feature: int) -> Pixels:
        """The picture that raises a layer's activations most along an atom."""
        atom = self.learned(layer, kind).dictionary.atoms[feature]
        ascent = maximize.activation_maximization(self.classifier, layer, atom)
        return self.classifier.to_image(ascent.images)


@cache
def _shown(drawn: bool) -> tuple[list[Pixels], list[Any]]:
    """Scenes and what they show, or squares of photographs, of which that is not known."""
    if not drawn:
        generator = np.random.default_rng(0)
        photos = map(photographs.picture, photographs.NAMES)
        return [square for photo in photos for square in crops(photo, CROPS, generator)], []
    world = Scenes(SCENES, seed=41)
    images, _ = world.draw()
    pictures = list(images.permute(0, 2, 3, 1).numpy())
    return pictures, [world.spec(index) for index in range(len(world))]


def dictionary(model: Any = None, image: Any = None) -> Panel:
    """Layer → dictionary → feature: the pictures it is in most, its concepts, the picture it wants.

    A dictionary is learned when it is first asked for, from `SCENES` scenes, or from squares of the
    photographs where the model reads no scenes. "units" is the one that the layer comes with. Over
    `image` lies the feature's map.
    """
    classifier = classifier_of(model)
    shelf = Shelf(classifier)
    x = classifier.to_input(pixels_of(typical(classifier) if image is None else image))
    pixels = classifier.to_image(x)
    own = features.feature_maps(classifier.model, x, list(shelf.maps))
    names = list(shelf.maps)
    layer = "layer3.1" if "layer3.1" in names else names[2 * len(names) // 3]
    controls: dict[str, Any] = {
        "layer": choice("layer", names, layer),
        "kind": choice("dictionary", [NMF, SAE, AXES]),
        "feature": slider("feature", 0, shelf.size(layer, NMF) - 1, 0),
    }

    def draw(layer: str, kind: str, feature: int) -> Iterator[Canvas]:
        controls["feature"].max = last = shelf.size(layer, kind) - 1
        feature = min(feature, last)
        title = (f"{layer}, feature {feature}", kind)
        if (layer, kind) not in shelf.made:  # a control does not wait for what is learned
            yield _waiting(title, pixels)
        learned = shelf.learned(layer, kind)
        maps = own[layer].float().cpu()
        mine = learned.dictionary.encode(maps.relu() if kind == NMF else maps)[0, feature]
        yield _canvas(title, shelf, learned, feature, pixels, mine, None)
        made = shelf.synthesised(layer, kind, feature)
        yield _canvas(title, shelf, learned, feature, pixels, mine, made)

    return Panel("dictionary", controls, draw)


def _waiting(title: tuple[str, str], pixels: Pixels) -> Canvas:
    canvas = Canvas(960, 640)
    canvas.heading(0, 0, title[0], f"{title[1]}: being learned, coming …")
    canvas.box(0, 44, 230, 230, fill=FAINT)
    canvas.figure(0, 336, 230, pixels, "your picture", smooth=True)
    canvas.alt = f"{title[0]}, {title[1]}: the dictionary is being learned, coming …"
    return canvas


def _canvas(
    title: tuple[str, str],
    shelf: Shelf,
    learned: Learned,
    feature: int,
    pixels: Pixels,
    mine: Tensor,
    made: Pixels | None,
) -> Canvas:
    canvas, (known, maps, told) = Canvas(960, 640), learned
    at = float((maps[:, feature] > 0).float().mean())
    canvas.heading(0, 0, title[0], f"{title[1]}; at work at {at:.0%} of the places")
    canvas.box(0, 44, 230, 230, fill=FAINT)
    if made is not None:
        canvas.picture(0, 44, 230, made, smooth=True)
    canvas.text(0, 282, "synthesised" if made is not None else "coming …", bold=True)
    canvas.text(0, 300, "raises activations along its atom", color=MUTED)
    through(canvas, 0, 336, pixels, mine)
    pictures = _top(canvas, 262, shelf.pictures, maps[:, feature])
    if told:
        draw_concepts(canvas, 712, 0, told.of(feature, CONCEPTS))
    else:
        canvas.lines(712, 0, ["Nobody wrote down", "what these photos show."], color=MUTED)
    _made_of(canvas, 712, 320 if told else 70, known.atoms[feature])
    canvas.heading(712, 530, "the whole dictionary", "on these pictures")
    told_by = [
        f"explains {known.explained:.0%} of the variance",
        f"{decimal(known.active)} features at work at a place",
        f"{known.dead} of {len(known.atoms)} never at work",
    ]
    canvas.lines(712, 574, told_by, color=MUTED)
    best = f"; it tells “{told.of(feature, 1)[0][0]}” best" if told else ""
    canvas.alt = (
        f"{title[0]} of {len(known.atoms)} ({title[1]}): the {len(pictures)} pictures in which it "
        f"is strongest{best}. The dictionary explains {known.explained:.0%} of the variance."
    )
    return canvas


def _top(canvas: Canvas, x: float, pictures: list[Pixels], maps: Tensor) -> list[int]:
    """The pictures in which a feature is strongest, its strongest place marked in each."""
    means = maps.mean((1, 2))
    best: list[int] = means.argsort(descending=True, stable=True)[:TOP].tolist()
    canvas.heading(x, 0, "where it is strongest", "mean over the picture; the place marked")
    places = features.strongest(maps[best]) * 134
    for rank, (index, (row, column)) in enumerate(zip(best, places.tolist(), strict=True)):
        left, top = x + 142 * (rank % 3), 44 + 162 * (rank // 3)
        canvas.picture(left, top, 134, pictures[index], smooth=True)
        canvas.box(left + column - 10, top + row - 10, 20, 20, edge=ORANGE, line=2)
        canvas.text(left, top + 137, decimal(float(means[index])), color=MUTED)
    return best


def _made_of(canvas: Canvas, x: float, y: float, atom: Tensor) -> None:
    """The units with the largest weights in an atom; their squares add up to 1 over all units."""
    canvas.heading(x, y, "its atom is made of", "weights of units; all squares add up to 1")
    for rank, unit in enumerate(atom.abs().argsort(descending=True, stable=True)[:UNITS].tolist()):
        top, weight = y + 48 + 26 * rank, float(atom[unit])
        canvas.text(x, top, f"unit {unit}")
        canvas.box(x + 80, top + 2, 110, 12, fill=PALE)
        color = ORANGE if weight > 0 else BLUE
        canvas.box(x + 80, top + 2, 110 * abs(weight), 12, fill=color)
        canvas.text(x + 240, top, decimal(weight), anchor="ra", color=MUTED)
