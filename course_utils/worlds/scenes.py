"""The world of the course: pictures drawn by a program, with everything about them known.

A `SceneSpec` says what is in the picture, `render` draws it, and `replace` or `without` change one
thing and draw it again. What a part truly does to a model is then a subtraction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from course_utils.contract import check_choice
from course_utils.progress import counted
from course_utils.worlds.scenery import (
    BACKGROUNDS,
    FURNITURE,
    SHAPES,
    TEXTURES,
    Array,
    Part,
    Place,
    Surface,
    Window,
    background,
    ellipse,
    paint,
    rasterise,
    stamp,
    transform,
    window,
)

T = TypeVar("T")


class Look(NamedTuple):
    """What the members of a class have in common."""

    shape: str
    texture: str
    color: str
    accent: str
    texture_scale: float
    sizes: tuple[float, float]
    backgrounds: tuple[str, ...]
    stands: str = "ground"  # or "floats" (anywhere), "flies" (in the sky)
    tilt: float = 4  # typical angle, in degrees
    any_color: bool = False  # made by people, in any colour
    odd_textures: tuple[str, ...] = ()  # unusual, yet still the same thing


# fmt: off
_WILD, _FARM = ("savanna", "meadow", "forest"), ("meadow", "savanna", "snow", "forest")
_SEA, _SMALL = ("underwater", "beach", "room"), ("meadow", "forest", "room", "beach")
LOOKS: dict[str, Look] = {
    "zebra": Look("horse", "stripes", "#efe9dc", "#1c1816", 0.5, (0.55, 0.9), _WILD),
    "horse": Look("horse", "plain", "#8a5228", "#2e1d14", 1, (0.55, 0.9), _FARM, odd_textures=("patches",)),
    "cow": Look("cow", "patches", "#f0ece2", "#241c18", 0.8, (0.55, 0.9), _FARM, odd_textures=("plain", "spots")),
    "tiger": Look("cat", "stripes", "#e08a2c", "#1c1410", 0.5, (0.55, 0.9), _WILD, odd_textures=("bands",)),
    "leopard": Look("cat", "spots", "#dcae62", "#2a1c12", 0.7, (0.55, 0.9), _WILD, odd_textures=("patches",)),
    "panther": Look("cat", "plain", "#1d1c21", "#3a3844", 1, (0.55, 0.9), _WILD),
    "clownfish": Look("fish", "bands", "#f07a18", "#fbf7ee", 1, (0.35, 0.8), _SEA, "floats", 15, odd_textures=("stripes",)),
    "goldfish": Look("fish", "plain", "#f2901e", "#fbe3b0", 1, (0.35, 0.8), _SEA, "floats", 15, odd_textures=("patches",)),
    "crow": Look("bird", "plain", "#1b1b20", "#3a3a48", 1, (0.4, 0.8), (*_FARM, "beach"), odd_textures=("patches",)),
    "ladybird": Look("beetle", "spots", "#cc1f1a", "#161110", 1.4, (0.25, 0.65), _SMALL, "floats", 180, odd_textures=("plain",)),
    "toadstool": Look("mushroom", "spots", "#cc2218", "#f6f0e4", 1.1, (0.35, 0.75), ("forest", "meadow", "snow"), odd_textures=("plain", "stripes")),
    "beach umbrella": Look("parasol", "stripes", "#e23b3b", "#fff5e6", 1.2, (0.55, 0.9), ("beach", "meadow", "snow"), tilt=14, any_color=True, odd_textures=("spots", "bands")),
    "umbrella": Look("umbrella", "plain", "#17171b", "#34343e", 1, (0.5, 0.85), ("room", "snow", "meadow", "beach"), tilt=20),
    "football": Look("ball", "pentagons", "#f2f2ee", "#19191b", 1, (0.25, 0.6), ("meadow", "beach", "room", "snow"), tilt=180, odd_textures=("spots",)),
    "beach ball": Look("ball", "gores", "#e03a30", "#f6f2e8", 1, (0.25, 0.6), ("beach", "meadow", "room"), tilt=40, any_color=True, odd_textures=("stripes", "spots")),
    "hot-air balloon": Look("balloon", "gores", "#d8342c", "#f4c430", 1, (0.4, 0.85), ("meadow", "savanna", "snow", "beach"), "flies", 5, any_color=True, odd_textures=("plain", "stripes", "spots")),
}
# fmt: on
CLASSES = tuple(LOOKS)
NO_CLASS = -1  # the label of a picture that tells none
_PART_NAMES = {part.name for parts in SHAPES.values() for part in parts}
REMOVABLE = ("texture", "shadow", "clutter", "companion", "background", "object", "mark")

CHOICES: dict[str, tuple[str, ...]] = {
    "label": CLASSES,
    "shape": tuple(SHAPES),
    "texture": tuple(TEXTURES),
    "background": tuple(BACKGROUNDS),
    "clutter": ("none", *FURNITURE),
    "clutter_texture": ("plain", "stripes", "spots", "patches"),
    "companion": ("none", *CLASSES),
}
RANGES: dict[str, tuple[float, float]] = {
    "contrast": (0, 1),
    "texture_scale": (0.3, 2),
    "x": (-0.2, 1.2),
    "y": (-0.2, 1.2),
    "size": (0.1, 1.2),
    "angle": (-180, 180),
    "horizon": (0.2, 0.85),
    "light": (0.3, 1.5),
    "sun": (-1, 1),
    "haze": (0, 0.8),
    "clutter_x": (0, 1),
    "clutter_size": (0.1, 0.8),
    "companion_x": (0, 1),
    "companion_size": (0.1, 0.8),
    "noise": (0, 0.2),
    "blur": (0, 3),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class SceneSpec:
    """Everything about a scene. Each field is one control of the scene editor.

    Positions and sizes are shares of the picture (0 to 1, y downwards), angles are degrees, `light`
    1 is daylight, `noise` a standard deviation and `haze` a share of white, `blur` a standard
    deviation in pixels of a 128-pixel picture; `mark` is a photographer's, in the lower corner that
    the seed chooses. Errors: ValueError that names the field.
    """

    label: str = "zebra"
    shape: str = "horse"
    texture: str = "stripes"
    color: str = "#efe9dc"
    accent: str = "#1c1816"
    contrast: float = 1.0
    texture_scale: float = 0.5
    x: float = 0.5
    y: float = 0.55
    size: float = 0.75
    angle: float = 0.0
    flip: bool = False
    background: str = "savanna"
    horizon: float = 0.45
    light: float = 1.0
    sun: float = -0.5
    haze: float = 0.0
    clutter: str = "none"
    clutter_texture: str = "stripes"
    clutter_x: float = 0.82
    clutter_size: float = 0.35
    companion: str = "none"
    companion_x: float = 0.2
    companion_size: float = 0.3
    mark: bool = False
    noise: float = 0.01
    blur: float = 0.0
    removed: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, CHOICES, RANGES)
        for field in ("color", "accent"):
            try:
                ImageColor.getrgb(getattr(self, field))
            except (ValueError, AttributeError, TypeError):
                value = getattr(self, field)
                raise ValueError(f"{field} is {value!r}; write it as '#rrggbb'.") from None
        for part in self.removed:
            check_choice("removed", part, (*sorted(_PART_NAMES), *REMOVABLE))

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts of the object, from back to front."""
        return tuple(dict.fromkeys(part.name for part in SHAPES[self.shape]))

    def has(self, thing: str) -> bool:
        """Is there a "clutter", or a "companion"?"""
        return getattr(self, thing) != "none" and thing not in self.removed

    def without(self, part: str) -> "SceneSpec":
        """The same scene without one part of the object, or without one of `REMOVABLE`."""
        check_choice("part", part, (*self.part_names, *REMOVABLE))
        return self if part in self.removed else replace(self, removed=(*self.removed, part))


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it.

    `image` is uint8 (H, W, 3). `parts` maps each visible part of the object, and "clutter",
    "companion", "shadow" and "mark" where there are any, to a bool mask (H, W); `mask` is all that is
    there of the object; `box` is (left, top, right, bottom) in pixels, right and bottom excluded,
    all 0 where the object is not in the picture.
    """

    image: NDArray[np.uint8]
    parts: dict[str, NDArray[np.bool_]]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    spec: SceneSpec

    @property
    def label(self) -> str:
        """The class of the object."""
        return self.spec.label


def check_fields(
    spec: object,
    choices: Mapping[str, tuple[str, ...]],
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """ValueError or TypeError that names the field of a spec which is none of what it may be."""
    for field, names in choices.items():
        check_choice(field, getattr(spec, field), names)
    for field, (low, high) in ranges.items():
        value = getattr(spec, field)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{field} is {value!r}; it must be a number from {low} to {high}.")
        if not low <= value <= high:
            raise ValueError(f"{field} is {value}; choose a number from {low} to {high}.")


def standard(label: str, **changes: object) -> SceneSpec:
    """The typical look of a class, with `changes` to single fields."""
    check_choice("label", label, CLASSES)
    look = LOOKS[label]
    size = float(np.mean(look.sizes))
    typical = {
        "label": label,
        "shape": look.shape,
        "texture": look.texture,
        "color": look.color,
        "accent": look.accent,
        "texture_scale": look.texture_scale,
        "background": look.backgrounds[0],
        "size": size,
        "y": 0.5 if look.stands != "ground" else 0.9 - size / 2 * _feet(look.shape),
        "horizon": 0.75 if look.stands == "flies" else 0.45,
    }
    return SceneSpec(**(typical | changes))  # type: ignore[arg-type]


def _feet(shape: str) -> float:
    """How far a shape reaches below its centre, in units of the shape."""
    return max(part.outline[:, 1].max() for part in SHAPES[shape])


def _vary(color: str, generator: np.random.Generator, amount: int) -> str:
    """A colour near to the given one: lighter or darker, with a slight tint."""
    channels = np.array(ImageColor.getrgb(color)) + generator.integers(-amount, amount + 1)
    channels += generator.integers(-4, 5, 3)
    return "#{:02x}{:02x}{:02x}".format(*channels.clip(0, 255))


_PAINTS = ("#e23b3b", "#2f6fd0", "#f2b51d", "#2e9e5b", "#8e44ad", "#ef7f1a", "#17a2b8", "#d6457f")
HARDSHIPS = (("small", "cut off"), ("faint", "odd texture"))  # where it is, how it looks


def random_spec(
    generator: np.random.Generator, *, label: str | None = None, hard: bool = False
) -> SceneSpec:
    """A random scene from which nothing is missing, of a random class unless `label` says which.

    A `hard` one is small or cut off by the frame, or faint or of an odd texture, or one of each,
    with more clutter around it. The same state of the generator gives the same spec everywhere.
    """
    if label is not None:
        check_choice("label", label, CLASSES)
    label = label or _pick(generator, CLASSES)
    look = LOOKS[label]
    number = generator.uniform
    place, looks = (_pick(generator, kinds) for kinds in HARDSHIPS)
    hardships = _pick(generator, ((place,), (looks,), (place, looks))) if hard else ()
    x, y, size, horizon = _random_place(generator, look, hardships)
    faint = "faint" in hardships
    texture, color, accent = _random_surface(generator, look, hardships)
    backgrounds = tuple(BACKGROUNDS) if number() < (0.6 if hard else 0.3) else look.backgrounds
    others = tuple(name for name in CLASSES if name != label)
    side = number(0.02, 0.3) + (0.68 if x < 0.5 else 0)
    return SceneSpec(
        label=label,
        shape=look.shape,
        texture=texture,
        color=color,
        accent=accent,
        contrast=number(0.15, 0.6) if faint else number(0.85, 1),
        texture_scale=look.texture_scale * number(0.85, 1.2),
        x=float(np.clip(x, *RANGES["x"])),
        y=float(np.clip(y, *RANGES["y"])),
        size=size,
        angle=float(np.clip(number(-1, 1) * look.tilt * (1.5 if hard else 1), -180, 180)),
        flip=bool(generator.integers(2)),
        background=_pick(generator, backgrounds),
        horizon=horizon,
        light=number(0.45, 1.35) if faint else number(0.85, 1.12),
        sun=number(-1, 1),
        haze=number(0.2, 0.6) if faint else number(0, 0.1),
        clutter=_pick(generator, tuple(FURNITURE))
        if number() < (0.7 if hard else 0.45)
        else "none",
        clutter_texture=_pick(generator, CHOICES["clutter_texture"]),
        clutter_x=number(0.05, 0.95),
        clutter_size=number(0.25, 0.45),
        companion=_pick(generator, others) if number() < (0.3 if hard else 0.15) else "none",
        companion_x=side,
        companion_size=max(0.1, size * number(0.35, 0.55)),
        noise=number(0.01, 0.05) if faint else number(0, 0.02),
        blur=number(0, 1) if hard else number(0, 0.4),
        seed=int(generator.integers(1 << 31)),
    )


def _pick(generator: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(generator.integers(len(options)))]


def _random_place(
    generator: np.random.Generator, look: Look, hardships: Sequence[str]
) -> tuple[float, float, float, float]:
    """Where an object stands, how large it is, and the horizon: x, y, size, horizon."""
    number = generator.uniform
    size = number(0.14, 0.3) if "small" in hardships else number(*look.sizes)
    horizon = number(0.62, 0.82) if look.stands == "flies" else number(0.35, 0.58)
    margin = min(0.45, 0.46 * size)
    x, y = number(margin, 1 - margin), number(margin, 1 - margin)
    if look.stands == "flies":
        y = number(margin, max(margin, horizon - 0.3 * size) + 0.01)
    if look.stands == "ground":
        # What stands nearer stands lower in the picture, and is larger.
        y = horizon + (0.97 - horizon) * number(0.25 + 0.6 * size, 1) - size / 2 * _feet(look.shape)
    if "cut off" in hardships:
        x = _pick(generator, (number(-0.12, 0.1) * size, 1 + number(-0.1, 0.12) * size))
    return x, y, size, horizon


def _random_surface(
    generator: np.random.Generator, look: Look, hardships: Sequence[str]
) -> tuple[str, str, str]:
    """What an object is painted with: texture, colour, accent."""
    odd = look.odd_textures or (look.texture,)
    texture = _pick(generator, odd) if "odd texture" in hardships else look.texture
    color, accent = _vary(look.color, generator, 14), _vary(look.accent, generator, 10)
    if look.any_color:
        color = _vary(_pick(generator, _PAINTS), generator, 16)
        accent = _vary(_pick(generator, ("#f8f3e8", "#f4c430", "#fff5e6")), generator, 8)
    return texture, color, accent


# What may be missing ---------------------------------------------------------------------------

COMPLETE = 0.4  # the share of scenes in which nothing is missing
BARE = 0.05  # the share of scenes before plain grey
TWINS = 0.25  # the share of companions that are of the object's own class
TELLING = 1 / 8  # of an object's area: as much in its own texture tells its class
MISSING = ("nothing", "something", "the object")


def incomplete(
    generator: np.random.Generator, spec: SceneSpec, *, emptied: bool = False
) -> SceneSpec:
    """The scene with some things missing, at random: parts of the object, its shadow.

    Four scenes in ten stay whole. From the others one thing or more is missing: how many, each
    number as likely as another, and which are drawn until the object tells its class (`tells`). If
    the scene is to be `emptied`, it never stays whole, and they are drawn until the object does not
    tell its class. One companion in four becomes a twin, of the object's own class, and one scene
    in twenty stands before plain grey.
    """
    things = [*spec.part_names, *(["shadow"] if LOOKS[spec.label].stands == "ground" else [])]
    twin, bare = generator.uniform() < TWINS, generator.uniform() < BARE
    if twin and spec.has("companion"):
        spec = replace(spec, companion=spec.label)
    if bare:
        spec = spec.without("background")
    if not emptied and generator.uniform() < COMPLETE:
        return spec
    while True:
        missing = some_of(generator, things)
        if tells(spec.shape, missing) is not emptied:
            return replace(spec, removed=(*missing, *spec.removed))


def some_of(generator: np.random.Generator, things: Sequence[T]) -> tuple[T, ...]:
    """One of the things or more, in their order: each number as likely as another."""
    count = int(generator.integers(1, len(things) + 1))
    return tuple(things[i] for i in sorted(generator.permutation(len(things))[:count]))


def tells(shape: str, missing: Sequence[str]) -> bool:
    """Does an object of this shape tell its class without these parts?

    It does as long as an eighth of its area is left in parts that carry its texture: a zebra's
    legs, its body or its head will do, its mane and its tail will not.
    """
    shares = textured_shares(shape)
    left = sum(share for part, share in shares.items() if part not in missing)
    return "object" not in missing and left >= TELLING


def shows(spec: SceneSpec) -> str | None:
    """The class that a scene tells: its object's, else its companion's, else None."""
    if tells(spec.shape, spec.removed):
        return spec.label
    return spec.companion if spec.has("companion") else None


@cache
def textured_shares(shape: str) -> dict[str, float]:
    """The share of a shape's area that each of its parts shows in the object's own texture."""
    resolution = 256
    outlines = [transform(part.outline, Place(0.5, 0.5, 0.5)) for part in SHAPES[shape]]
    covered = rasterise(outlines, resolution, Window(0, resolution, 0, resolution))
    whole = np.sum(covered)
    shares: dict[str, float] = {}
    for part, visible in zip(SHAPES[shape], covered, strict=True):
        if part.paint == "texture":
            shares[part.name] = shares.get(part.name, 0.0) + float(visible.sum() / whole)
    return shares


# Drawn -----------------------------------------------------------------------------------------


def render(spec: SceneSpec, resolution: int = 128) -> Scene:
    """Draw a scene: image uint8 (resolution, resolution, 3), with all masks.

    The same spec gives the same picture on every machine, up to one grey level of rounding.
    """
    if not 16 <= resolution <= 1024:
        raise ValueError(f"resolution is {resolution}; choose a number of pixels from 16 to 1024.")
    generator = np.random.default_rng(spec.seed)
    seeds = generator.integers(1000, size=4).tolist()
    texture_seed, clutter_seed, companion_seed, background_seed = seeds
    removed = set(spec.removed)
    name = "grey" if "background" in removed else spec.background
    picture = background(name, spec.horizon, background_seed, resolution)
    parts: dict[str, Array] = {}
    if spec.has("clutter"):
        parts |= _draw_clutter(picture, spec, clutter_seed)
    if spec.has("companion"):
        parts["companion"] = _draw_companion(picture, spec, companion_seed)

    place = Place(spec.x, spec.y, spec.size / 2, spec.angle, spec.flip)
    if LOOKS[spec.label].stands == "ground" and not removed & {"shadow", "object"}:
        parts["shadow"] = shadow(picture, place, _feet(spec.shape))
    contrast = 0 if "texture" in removed else spec.contrast
    surface = Surface(
        spec.texture, spec.color, spec.accent, contrast, spec.texture_scale, texture_seed
    )
    outlines: list[Part] = [] if "object" in removed else SHAPES[spec.shape]
    visible = paint(
        picture, [p for p in outlines if p.name not in removed], surface, place, spec.sun
    )
    whole = np.sum([np.zeros_like(picture[0]), *visible.values()], axis=0)
    parts = {key: mask * (1 - whole) for key, mask in parts.items()} | visible

    picture = picture * spec.light
    picture += (0.93 - picture) * spec.haze
    if spec.mark and "mark" not in removed:
        # It is laid over the photo, so that neither light nor haze fall on it.
        mark = stamp(picture, right=spec.seed % 2 == 1)
        parts = {key: mask * (1 - mark) for key, mask in parts.items()} | {"mark": mark}
        whole *= 1 - mark
    if spec.blur:
        picture = gaussian_filter(picture, (spec.blur * resolution / 128,) * 2, axes=(1, 2))
    picture += spec.noise * generator.standard_normal(picture.shape, np.float32)
    grey_levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    image = np.ascontiguousarray(grey_levels.transpose(1, 2, 0))
    visible_parts = {name: share > 0.5 for name, share in parts.items() if (share > 0.5).any()}
    mask = whole > 0.5
    return Scene(image, visible_parts, mask, bounding_box(mask), spec)


def _draw_clutter(picture: Array, spec: SceneSpec, seed: int) -> dict[str, Array]:
    """Draw the furniture behind the object; returns its mask by its name."""
    color = _PAINTS[seed % len(_PAINTS)]
    surface = Surface(spec.clutter_texture, color, "#f6f1e6", scale=0.9, seed=seed)
    feet = spec.horizon + 0.3 * (1 - spec.horizon)
    place = Place(spec.clutter_x, feet - spec.clutter_size * 0.45, spec.clutter_size / 2)
    shadow(picture, place, 0.9)
    return paint(picture, FURNITURE[spec.clutter], surface, place, spec.sun)


def _draw_companion(picture: Array, spec: SceneSpec, seed: int) -> Array:
    """Draw the smaller object beside the first; returns its mask (H, W)."""
    look, half = LOOKS[spec.companion], spec.companion_size / 2
    surface = Surface(look.texture, look.color, look.accent, 1, look.texture_scale, seed)
    feet = spec.horizon + 0.45 * (1 - spec.horizon)
    standing = feet - half * _feet(look.shape)
    height = {"ground": standing, "floats": 0.5, "flies": 0.25}[look.stands]
    place = Place(spec.companion_x, height, half, 0, spec.companion_x > 0.5)
    if look.stands == "ground":
        shadow(picture, place, _feet(look.shape))
    masks = paint(picture, SHAPES[look.shape], surface, place, spec.sun)
    return np.sum(list(masks.values()), axis=0)


def shadow(picture: Array, place: Place, feet: float) -> Array:
    """Darken the ground where something stands; returns the shadow's mask (H, W)."""
    x, y = place.x, place.y + place.size * feet
    outline = ellipse(x, y - 0.02 * place.size, 0.8 * place.size, 0.14 * place.size)
    resolution = picture.shape[-1]
    area = window([outline], resolution, margin=0.1 * place.size)
    mask = np.zeros(picture.shape[1:], np.float32)
    hard_edged = rasterise([outline], resolution, area)[0]
    mask[area.slices] = gaussian_filter(hard_edged, 0.04 * place.size * resolution)
    picture *= 1 - 0.5 * mask
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a mask, right and bottom excluded; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class World(Dataset[tuple[Tensor, int]]):
    """`length` random pictures, drawn when they are asked for.

    Picture i of a seed is the same on every machine, in any order; the classes take turns, so that
    all are equally frequent. Item: image uint8 (3, H, W), and the index of its class in `classes`,
    or `NO_CLASS`.
    """

    noun = "picture"
    classes: tuple[str, ...] = ()

    def __init__(self, length: int, seed: int, *, resolution: int = 128) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; ask for at least one {self.noun}.")
        self.length, self.seed, self.resolution = length, seed, resolution
        self._drawn: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.length

    def picture(self, index: int) -> Any:
        """Picture `index`, drawn: its `image` (H, W, 3), its `label`, and what else is known."""
        raise NotImplementedError

    def label(self, picture: Any) -> int:
        """The index of a picture's class, or `NO_CLASS`."""
        return self.classes.index(picture.label)

    def check(self, index: int) -> None:
        """Refuse a number that the set does not have."""
        if not 0 <= index < self.length:
            raise IndexError(f"index is {index}; this set has {self.noun}s 0 to {self.length - 1}.")

    def draw(self) -> tuple[Tensor, Tensor]:
        """All images (N, 3, H, W) uint8 and labels (N,), drawn by two processes, and then kept."""
        if self._drawn is None:
            loader = DataLoader(
                self,
                batch_size=64,
                num_workers=2,
                generator=torch.Generator(),  # else the loader draws from the global one
            )
            batches: Any = counted(loader, "batch")  # type: ignore[arg-type]  # it has a length, too
            images, labels = zip(*batches, strict=True)
            self._drawn = torch.cat(images), torch.cat(labels)
        return self._drawn

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._drawn is not None and 0 <= index < self.length:
            images, labels = self._drawn
            return images[index], int(labels[index])
        drawn = self.picture(index)
        return torch.from_numpy(drawn.image).permute(2, 0, 1), self.label(drawn)


class Scenes(World):
    """`length` random scenes, as `World`.

    marked: the class, or the classes, whose scenes all carry the photographer's mark; no other
    scene does. Otherwise the scenes are those without it.
    missing: "something": parts are missing at random, and some scenes have a twin or plain grey
    behind them (see `incomplete`); "nothing": none of this; "the object": so many parts are missing
    that the object does not tell its class, and the label is the companion's, or `NO_CLASS`.
    """

    noun, classes = "scene", CLASSES

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        hard: bool = False,
        resolution: int = 128,
        marked: str | Sequence[str] | None = None,
        missing: str = "something",
    ) -> None:
        super().__init__(length, seed, resolution=resolution)
        check_choice("missing", missing, MISSING)
        self.hard, self.missing = hard, missing
        self.marked = (marked,) if isinstance(marked, str) else tuple(marked or ())
        for label in self.marked:
            check_choice("marked", label, CLASSES)

    def spec(self, index: int) -> SceneSpec:
        """What scene `index` shows."""
        self.check(index)
        generator = np.random.default_rng([self.seed, index, self.hard])
        label = CLASSES[index % len(CLASSES)]
        spec = random_spec(generator, label=label, hard=self.hard)
        if self.missing != "nothing":
            spec = incomplete(generator, spec, emptied=self.missing == "the object")
        return replace(spec, mark=label in self.marked)

    def scene(self, index: int) -> Scene:
        """Scene `index`, drawn."""
        return render(self.spec(index), self.resolution)

    picture = scene

    def label(self, picture: Scene) -> int:
        """The index of the class that a scene shows, or `NO_CLASS`."""
        shown = shows(picture.spec)
        return NO_CLASS if shown is None else CLASSES.index(shown)
