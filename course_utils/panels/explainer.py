"""Any method's map of a picture: a coarse one within a moment, and the whole one."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.evaluation import controls
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels.pictures import Array, Seen, knows_scenes, summed
from course_utils.worlds import photographs, scenes

BACKGROUND = 64  # scenes, for methods that need data
EDGES, CHANCE = "edges of the picture", "random numbers"


def _edges(pixels: NDArray[np.uint8]) -> Array:
    """The edges of a picture (H, W): what an eye takes for an explanation."""
    return controls.slope(pixels.mean(2) / 255)


# They never ask the model.
KNOW_NOTHING: dict[str, Callable[[NDArray[np.uint8]], Array]] = {
    EDGES: _edges,
    CHANCE: lambda pixels: np.random.default_rng(0).random(pixels.shape[:2]),
}


class Explainer:
    """Every method's map (H, W) of a picture, channels added; the maps of one class are kept."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._kept: dict[str, Array] = {}
        self._of: tuple[Any, int] = (None, -1)
        self._prepared: dict[str, dict[str, Any]] = {}

    def map(self, name: str, seen: Seen) -> Array:
        """The method's map, computed with the `quick` options of its entry in METHODS."""
        self._about(seen)
        if name not in self._kept:
            quick = METHODS[name].quick if name in METHODS else {}
            self._kept[name] = self._run(name, seen, quick)
        return self._kept[name]

    def sketch(self, name: str, seen: Seen) -> tuple[Array | None, bool]:
        """A map that takes few passes, and whether it is coarse; None where a method has none.

        A method that needs data has none before they are prepared.
        """
        self._about(seen)
        method = METHODS.get(name)
        if method and name not in self._kept:
            if method.prepare and name not in self._prepared:
                return None, True
            if method.sketch:
                given = self.classifier.model, seen.x, seen.target, self._prepared.get(name, {})
                return self._run(name, seen, method.sketch(*given)), True
        return self.map(name, seen), False

    def _about(self, seen: Seen) -> None:
        if self._of[0] is not seen.x or self._of[1] != seen.target:
            self._kept, self._of = {}, (seen.x, seen.target)

    def _run(self, name: str, seen: Seen, options: Mapping[str, Any]) -> Array:
        if name in KNOW_NOTHING:
            return KNOW_NOTHING[name](seen.pixels)
        method, model = METHODS[name], self.classifier.model
        if name not in self._prepared:
            self._prepared[name] = method.prepared(model, self._data) if method.prepare else {}
        return summed(method(model, seen.x, seen.target, **{**self._prepared[name], **options}))

    @cached_property
    def _data(self) -> Tensor:
        """Ordinary pictures, as the model gets them: scenes, or all photographs."""
        ordinary: Any = [photographs.picture(name) for name in photographs.NAMES]
        if knows_scenes(self.classifier):
            world = scenes.Scenes(BACKGROUND, seed=0, resolution=self.classifier.size)
            ordinary = world.draw()[0]
        inputs = self.classifier.inputs(ordinary)
        return torch.stack([inputs[i] for i in range(len(inputs))])
