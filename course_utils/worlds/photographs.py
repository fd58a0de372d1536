"""The real world of the course: photographs that its libraries bring to every computer.

Nobody can draw them again. What is known of each is where its things are: outlines, drawn for this
course. What can be changed is the picture itself: a thing painted over, blurred, or
exchanged for another picture. None of these is what the camera would have seen without the thing;
each leaves a hole of its own kind.
"""

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from course_utils import images
from course_utils.contract import check_choice
from course_utils.files import DATA
from course_utils.networks import Classifier

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Polygon = list[tuple[float, float]]  # its corners (x, y), in pixels from the upper left edge

OUTLINES = DATA / "outlines.json"
HALF = (256, 512)  # width and height of each half of a collage


class Source(NamedTuple):
    """What brings a photograph to this computer, and who made it."""

    package: str
    credit: str
    licence: str


SOURCES = {
    "chelsea": Source("skimage", "Stéfan van der Walt", "CC0"),
    "coffee": Source("skimage", "Rachel Michetti, Pikolo Espresso Bar", "CC0"),
    "camera": Source("skimage", "Lav Varshney", "CC0"),
    "motorcycle_left": Source(
        "skimage",
        "Scharstein et al., Middlebury 2014 stereo benchmark",
        "none stated by the package",
    ),
    "flower": Source("sklearn", "vultilion, flickr", "CC BY 2.0"),
    "china": Source("sklearn", "danielbuechele, flickr", "CC BY 2.0"),
    "rocket": Source("skimage", "SpaceX", "public domain"),
    "grace_hopper": Source("matplotlib", "James S. Davis, United States Navy", "public domain"),
    "astronaut": Source("skimage", "NASA", "public domain"),
}
NAMES = tuple(SOURCES)


class Photograph(NamedTuple):
    """A photograph, and where its things are."""

    name: str
    image: Picture  # (H, W, 3)
    masks: Mapping[str, Mask]  # of each thing, (H, W)
    credit: str

    def seen_by(self, classifier: Classifier) -> dict[str, Mask]:
        """The masks of its things in the square that the model gets, (size, size) each."""
        return {thing: as_prepared(mask, classifier) for thing, mask in self.masks.items()}


def as_prepared(mask: Mask, classifier: Classifier) -> Mask:
    """The mask, resized and cut as the photograph is: True where most of a pixel belongs to it."""
    grey = np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)
    tensor = images.to_tensor(grey, classifier.size, resize=classifier.resize)
    return (tensor[0, 0] > 0.5).numpy()


def load(name: str) -> Photograph:
    """One of the photographs in NAMES, with the outlines of its things.

    Raises ValueError (unknown name), FileNotFoundError (the package or its file is missing).
    """
    image, source = picture(name), SOURCES[name]
    masks = _masks(name, *image.shape[:2])
    return Photograph(name, image, masks, f"{source.credit} ({source.licence})")


def picture(name: str) -> Picture:
    """The photograph alone, (H, W, 3), which is quicker to have than its outlines.

    Raises ValueError and FileNotFoundError as `load`.
    """
    check_choice("name", name, NAMES)
    return images.load_image(_file(name))


def _file(name: str) -> Path:
    """Where the package has the photograph, in whichever of its folders and formats."""
    package = SOURCES[name].package
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.rglob(f"{name}.[jp][pn]*g")) if folder else []
    if not found:
        raise FileNotFoundError(
            f"name: the photograph {name!r} comes with {package}, and this computer's "
            f"{package} does not have it; `course doctor` says what is missing"
        )
    return found[0]


@cache
def _outlines() -> dict[str, dict[str, list[Polygon]]]:
    """The polygons of each thing of each photograph."""
    return dict(json.loads(OUTLINES.read_text(encoding="utf-8")))


@cache  # filling a thousand corners takes longer than reading the photograph
def _masks(name: str, height: int, width: int) -> Mapping[str, Mask]:
    masks = {thing: _filled(lines, height, width) for thing, lines in _outlines()[name].items()}
    for mask in masks.values():
        mask.flags.writeable = False  # everybody gets the same
    return MappingProxyType(masks)


def _filled(polygons: list[Polygon], height: int, width: int) -> Mask:
    """The pixels (H, W) that lie in an odd number of the polygons: one inside another is a hole."""
    from skimage.draw import polygon

    mask = np.zeros((height, width), bool)
    for corners in polygons:
        # Corners count from the picture's edge; scikit-image counts from its first pixel's middle.
        x, y = np.array(corners).T - 0.5
        mask[polygon(y, x, mask.shape)] ^= True
    return mask


def collage(left: Photograph, right: Photograph) -> Photograph:
    """Two photographs side by side in a square, the middle of each.

    Beside the things of both, which keep their names, each half is a thing by its photograph's
    name. Things of one name in both are one thing in two places.
    """
    masks: dict[str, Mask] = {}
    for at, photo in enumerate((left, right)):
        half = np.ones(photo.image.shape[:2], bool)
        for thing, mask in {photo.name: half, **photo.masks}.items():
            place = np.zeros((HALF[1], 2 * HALF[0]), bool)
            place[:, at * HALF[0] : (at + 1) * HALF[0]] = _fitted(mask * np.uint8(255)) > 127
            masks[thing] = masks.get(thing, False) | place
    image = np.concatenate([_fitted(left.image), _fitted(right.image)], axis=1)
    credit = f"{left.credit}; {right.credit}"
    return Photograph(f"{left.name} | {right.name}", image, masks, credit)


def _fitted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of a picture, cut and resized to half a collage."""
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), HALF, Image.Resampling.BICUBIC))


def painted_over(image: Picture, mask: Mask) -> Picture:
    """The picture with the mask's pixels made from what lies around them.

    The colours are continued as smoothly as the edge of the mask allows (Δ² image = 0 inside).
    Textures are not continued: a large hole becomes a smooth patch.
    Source: Damelin, Hoang, On Surface Completion and Image Inpainting by Biharmonic Functions,
    2018, as scikit-image has it.
    """
    from skimage.restoration import inpaint_biharmonic

    _check_mask(image, mask)
    whole = inpaint_biharmonic(image, mask, channel_axis=-1)
    pixels = np.rint(np.clip(whole, 0, 1) * 255).astype(np.uint8)
    return np.where(mask[:, :, None], pixels, image)


def blurred(image: Picture, mask: Mask, sigma: float = 10.0) -> Picture:
    """The picture with the mask's pixels blurred: a Gaussian of standard deviation sigma pixels."""
    _check_mask(image, mask)
    smooth = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
    return np.where(mask[:, :, None], np.rint(smooth).astype(np.uint8), image)


def exchanged(image: Picture, mask: Mask, other: Picture) -> Picture:
    """The picture with the mask's pixels taken from another picture of the same size."""
    _check_mask(image, mask)
    if other.shape != image.shape:
        raise ValueError(f"other has shape {other.shape} but must match image, {image.shape}")
    return np.where(mask[:, :, None], other, image)


def _check_mask(image: Picture, mask: Mask) -> None:
    if mask.dtype != bool or mask.shape != image.shape[:2]:
        raise ValueError(
            f"mask must be bool, {image.shape[:2]} as the image, but is {mask.dtype} of shape "
            f"{mask.shape}"
        )
