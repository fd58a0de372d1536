"""Which picture, which class: what a panel offers, and what it knows of what is chosen."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from course_utils import images, models
from course_utils.contract import explaining, sum_channels
from course_utils.networks import Classifier
from course_utils.panels.panel import choice
from course_utils.worlds import photographs, scenes

ANSWER = "the model's answer"
PAIR = scenes.standard(
    "tiger", x=0.28, size=0.5, companion="zebra", companion_x=0.75, companion_size=0.5
)

Array = NDArray[np.float64]


# -- what is on offer ------------------------------------------------------------------------------


def classifier_of(model: Classifier | str | None) -> Classifier:
    """The classifier a panel was given, or the one of that name."""
    if model is None or isinstance(model, str):
        return models.load(model)
    if not isinstance(model, Classifier):
        raise TypeError(
            f"model must be a Classifier or a model's name, not {type(model).__name__}; "
            "models.load gives one."
        )
    return model


def knows_scenes(classifier: Classifier) -> bool:
    """Whether it was trained on drawn scenes; all other models get photographs first."""
    return set(classifier.classes) <= set(scenes.CLASSES)


def standards(*labels: str) -> dict[str, scenes.SceneSpec]:
    """The typical scene of each class."""
    return {label: scenes.standard(label) for label in labels}


def typical(classifier: Classifier) -> Any:
    """The picture to begin with: the typical zebra, or a photograph of a cat."""
    return scenes.standard("zebra") if knows_scenes(classifier) else photographs.NAMES[0]


def picture_choices(
    classifier: Classifier, image: Any, specs: Mapping[str, scenes.SceneSpec]
) -> dict[str, Any]:
    """What a panel's list of pictures offers, by name: one's own, scenes, and photographs."""
    own = {} if image is None else {"your picture": image}
    photos = {name: name for name in photographs.NAMES}
    return {**own, **specs, **photos} if knows_scenes(classifier) else {**own, **photos, **specs}


def class_choice(classifier: Classifier) -> widgets.Dropdown:
    """A list of the classes, and before them the model's answer."""
    return choice("class", [ANSWER, *classifier.classes])


def index_of(classifier: Classifier, chosen: str, logits: Tensor) -> int:
    """The number of a class that was chosen from `class_choice`; logits (K,)."""
    return int(logits.argmax()) if chosen == ANSWER else classifier.classes.index(chosen)


# -- what is chosen --------------------------------------------------------------------------------


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """The picture of a scene, a photo or a photograph's name."""
    if isinstance(image, str) and image in photographs.NAMES:
        return photographs.picture(image)
    if isinstance(image, scenes.SceneSpec):
        image = scenes.render(image)
    return image.image if isinstance(image, scenes.Scene) else images.load_image(image)


class Seen(NamedTuple):
    """A picture, what a model says to it, and the class that a panel explains."""

    x: Tensor  # (1, C, H, W), as the model gets it
    pixels: NDArray[np.uint8]  # (H, W, 3), as it looks
    objects: dict[str, NDArray[np.bool_]]  # where its objects are, by class; empty for a photo
    logits: Tensor  # (K,)
    target: int  # the class
    name: str  # of the class

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """Where its first object is; None where nothing is known."""
        return next(iter(self.objects.values()), None)

    def inside(self, map_: Array) -> str:
        """The share of |map| inside the first object, in words."""
        if self.mask is None:
            return ""
        share = np.abs(map_)[self.mask].sum() / (np.abs(map_).sum() or 1)
        return f"{share:.0%} inside the object, {self.mask.mean():.0%} of the picture"


def picture_reader(
    classifier: Classifier, image: Any, specs: Mapping[str, scenes.SceneSpec]
) -> tuple[dict[str, Any], Callable[..., Seen]]:
    """The pictures on offer by name, and a function of a picture's name and a class: `Seen`."""
    pictures = picture_choices(classifier, image, specs)

    @cache
    def read(picture: str) -> Seen:
        source = pictures[picture]
        x = classifier.to_input(pixels_of(source))
        pixels, objects = classifier.to_image(x), _objects(classifier, source)
        logits = logits_of(classifier.model, x)
        answer = int(logits.argmax())
        return Seen(x, pixels, objects, logits, answer, classifier.classes[answer])

    def look(picture: str, target: str = ANSWER) -> Seen:
        seen = read(picture)
        index = index_of(classifier, target, seen.logits)
        return seen._replace(target=index, name=classifier.classes[index])

    return pictures, look


def _objects(classifier: Classifier, source: Any) -> dict[str, NDArray[np.bool_]]:
    """The masks of a scene's objects, as large as the model's input."""
    if not isinstance(source, scenes.SceneSpec):
        return {}
    scene = scenes.render(source, classifier.size)
    found = {source.label: scene.mask}
    if "companion" in scene.parts:
        found.setdefault(source.companion, scene.parts["companion"])
    return found


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says to one picture: (K,)."""
    with explaining(model), torch.no_grad():
        return model(x)[0].cpu()


def with_truth(answers: list[tuple[str, float]], truth: str, k: int = 5) -> list[tuple[str, float]]:
    """The first k answers, and the truth below them where it is not among them."""
    return answers[:k] + [answer for answer in answers[k:] if answer[0] == truth]


# -- what is made of it ----------------------------------------------------------------------------


def _random(classifier: Classifier, x: Tensor) -> Tensor:
    """Each number drawn between black and white, always the same."""
    share = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    return classifier.black(x) + share * (classifier.white(x) - classifier.black(x))


BASELINES: dict[str, Callable[[Classifier, Tensor], Tensor]] = {
    "black": Classifier.black,
    "white": Classifier.white,
    "mean colour": lambda classifier, x: torch.zeros_like(x),
    "random": _random,
    "blurred": Classifier.blurred,
}


def summed(attribution: Tensor) -> Array:
    """One image's attribution (1, C, H, W) or (1, H, W) as a map (H, W), channels added."""
    return sum_channels(attribution)[0].numpy()
