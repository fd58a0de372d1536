"""What a scene shows: the names of its concepts, and the pixels of each."""

from colorsys import rgb_to_hsv
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from course_utils.worlds.photographs import Photograph
from course_utils.worlds.scenery import SHAPES
from course_utils.worlds.scenes import LOOKS, Scene, SceneSpec

Mask = NDArray[np.bool_]


@cache
def in_scene(spec: SceneSpec) -> frozenset[str]:
    """What a scene shows: "class zebra", "shape horse", "texture stripes", "colour white" …

    It counts wherever it is: on the object, on its smaller companion, and a texture also on the
    furniture. The colours are those of object and companion; "place savanna" is the background.
    """
    things = [(spec.label, spec.shape, spec.texture, spec.color, spec.accent)]
    if "texture" in spec.removed or not spec.contrast:
        things = [(spec.label, spec.shape, "plain", spec.color, spec.accent)]
    if "object" in spec.removed:
        things = []
    if spec.has("companion"):
        look = LOOKS[spec.companion]
        things.append((spec.companion, look.shape, look.texture, look.color, look.accent))
    found = set()
    for label, shape, texture, color, accent in things:
        colors = {color} if texture == "plain" else {color, accent}
        found |= {f"class {label}", f"shape {shape}", f"texture {texture}"}
        found |= {f"colour {color_name(color)}" for color in colors}
    if spec.has("clutter"):
        found.add(f"texture {spec.clutter_texture}")
    if "background" not in spec.removed:
        found.add(f"place {spec.background}")
    return frozenset(found)


def concept_masks(picture: Scene | Photograph) -> dict[str, Mask]:
    """Where a picture shows what: concept → bool mask (H, W), of those that are seen.

    Of a scene: "class zebra" and "shape horse" are the whole object or companion, "part head" is
    that part of the object, "texture stripes" the parts of the object that carry its texture,
    furniture, or a companion as a whole, "place savanna" all that is neither object, companion,
    furniture nor mark. "colour red" are the pixels that look red, wherever they are: unlike
    `in_scene`, it is about the picture, shading and background included. The parts of companions
    are not known.

    Of a photograph: "thing cat" is the outline of that thing, and the colours.

    Source: the kinds of concepts are those of Broden: Bau, Zhou, Khosla, Oliva, Torralba, 2017.
    """
    masks = _colors_of(picture.image)
    if isinstance(picture, Photograph):
        return masks | {f"thing {name}": mask for name, mask in picture.masks.items()}
    spec, parts, nothing = picture.spec, picture.parts, np.zeros_like(picture.mask)
    companion = parts.get("companion", nothing)
    clutter = parts.get("clutter", nothing) & ~companion
    textured = {part.name for part in SHAPES[spec.shape] if part.paint == "texture"}
    pattern = np.any([nothing, *(m for name, m in parts.items() if name in textured)], axis=0)
    look = LOOKS.get(spec.companion)
    plain = "texture" in spec.removed or not spec.contrast
    things = [
        (f"class {spec.label}", picture.mask),
        (f"shape {spec.shape}", picture.mask),
        ("texture plain" if plain else f"texture {spec.texture}", pattern),
        *((f"part {name}", parts[name]) for name in spec.part_names if name in parts),
        (f"texture {spec.clutter_texture}", clutter),
        (f"place {spec.background}", ~(picture.mask | companion | clutter | _mark(picture))),
    ]
    if look is not None:
        names = (f"class {spec.companion}", f"shape {look.shape}", f"texture {look.texture}")
        things += [(name, companion) for name in names]
    for name, mask in things:
        bare = name.startswith("place") and "background" in spec.removed
        if mask.any() and not bare:
            masks[name] = masks.get(name, False) | mask
    return masks


def _mark(scene: Scene) -> Mask:
    return scene.parts.get("mark", np.zeros_like(scene.mask))


# Colours ---------------------------------------------------------------------------------------

HUES = {
    15: "red",
    36: "orange",
    70: "yellow",
    165: "green",
    255: "blue",
    320: "purple",
    345: "pink",
}


def color_name(color: str) -> str:
    """The everyday name of a colour "#rrggbb": "red", "brown", "white" …"""
    hue, saturation, value = rgb_to_hsv(*(c / 255 for c in ImageColor.getrgb(color)[:3]))
    if value < 0.33:
        return "black"
    if saturation < 0.2 or (saturation < 0.35 and value > 0.9):
        return "white" if value > 0.75 else "grey"
    name = next((name for end, name in HUES.items() if hue * 360 < end), "red")
    return "brown" if name in ("orange", "yellow") and value < 0.65 else name


STEP = 8  # grey levels: colours that are nearer than this may share a name


@cache
def _named() -> tuple[list[str], NDArray[np.intp]]:
    """The names of colours, and the number of the name that each colour has, in steps."""
    levels = range(STEP // 2, 256, STEP)
    names = [color_name(f"#{r:02x}{g:02x}{b:02x}") for r, g, b in product(levels, repeat=3)]
    kinds, numbers = np.unique(names, return_inverse=True)
    return kinds.tolist(), numbers.reshape([len(levels)] * 3)


def _colors_of(image: NDArray[np.uint8]) -> dict[str, Mask]:
    """The pixels (H, W) of each colour that a picture has."""
    names, numbers = _named()
    number = numbers[tuple(np.moveaxis(image // STEP, -1, 0))]
    return {f"colour {names[n]}": number == n for n in np.unique(number)}
