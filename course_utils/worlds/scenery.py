"""The paint box of the scenes: outlines of shapes, surface textures, backgrounds.

Everything is drawn in two steps. Shapes are polygons, rasterised by Pillow at three times the
resolution, so that edges are smooth. Colour is computed for each pixel with NumPy. Lengths are in
units of the shape (about −1 to 1, y downwards) or as a share of the picture (0 to 1, y downwards).
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from scipy.ndimage import uniform_filter, zoom

Array = NDArray[np.floating]
SUPERSAMPLING = 3


class Part(NamedTuple):
    """A piece of a shape. `paint`: "texture", "color", "accent" or a fixed "#rrggbb"."""

    name: str
    outline: NDArray[np.float64]
    paint: str
    shade: float = 1.0  # below 1: further away, darker
    turn: float = 0.0  # how far the texture is turned on this part, in degrees


class Surface(NamedTuple):
    """What a shape is painted with."""

    texture: str
    color: str
    accent: str
    contrast: float = 1.0
    scale: float = 1.0
    seed: int = 0


class Place(NamedTuple):
    """Where a shape stands: centre (x, y) and half extent `size` as shares of the picture."""

    x: float
    y: float
    size: float
    angle: float = 0.0
    flip: bool = False


def rgb(color: str) -> Array:
    """ "#rrggbb" as numbers in [0, 1], (3, 1, 1): pictures are (3, H, W) while they are painted."""
    return np.array(ImageColor.getrgb(color)[:3], np.float32)[:, None, None] / 255


def mix(a: Array, b: Array, share: Array) -> Array:
    """a where share (H, W) is 0, b where it is 1."""
    return a + (b - a) * share


def smoothstep(x: Array, low: float, high: float) -> Array:
    """A soft step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# --- outlines -------------------------------------------------------------------------------------


def curve(*points: tuple[float, float]) -> NDArray[np.float64]:
    """Smooth closed outline through the points (Catmull–Rom spline)."""
    p1 = np.array(points, float)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, 6, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    spline = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    return (spline + (3 * (p1 - p2) + p3 - p0) * t**3).reshape(-1, 2) / 2


def polygon(*points: tuple[float, float]) -> NDArray[np.float64]:
    """Outline with corners."""
    return np.array(points, float)


def ellipse(x: float, y: float, a: float, b: float | None = None) -> NDArray[np.float64]:
    """Ellipse with half axes a and b (a circle without b)."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + a * np.cos(t), y + (a if b is None else b) * np.sin(t)], 1)


def limb(*points: tuple[float, float, float]) -> NDArray[np.float64]:
    """A leg, tail or pole along (x, y, half width)."""
    spine = np.array(points, float)
    step = np.gradient(spine[:, :2], axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.linalg.norm(step, axis=1, keepdims=True)
    offset = normal * spine[:, 2:]
    return np.concatenate([spine[:, :2] + offset, (spine[:, :2] - offset)[::-1]])


# fmt: off
_HORSE_BODY = [
    Part("legs", limb((-0.42, 0.02, 0.12), (-0.47, 0.4, 0.06), (-0.4, 0.6, 0.045), (-0.44, 0.86, 0.045)), "texture", 0.65, 90),
    Part("legs", limb((0.3, 0.02, 0.1), (0.27, 0.42, 0.06), (0.29, 0.62, 0.045), (0.27, 0.86, 0.045)), "texture", 0.65, 90),
    Part("legs", polygon((-0.49, 0.83), (-0.38, 0.83), (-0.37, 0.92), (-0.5, 0.92)), "#2a211c", 0.7),
    Part("legs", polygon((0.22, 0.83), (0.33, 0.83), (0.34, 0.92), (0.21, 0.92)), "#2a211c", 0.7),
    Part("tail", limb((-0.64, -0.18, 0.05), (-0.76, -0.06, 0.06), (-0.82, 0.16, 0.07), (-0.8, 0.42, 0.02)), "accent"),
    Part("body", curve((0.5, -0.12), (0.3, -0.3), (0.0, -0.25), (-0.38, -0.31), (-0.64, -0.2), (-0.68, 0.05), (-0.5, 0.19), (-0.1, 0.23), (0.25, 0.22), (0.46, 0.1)), "texture"),
    Part("legs", limb((-0.55, 0.02, 0.14), (-0.6, 0.36, 0.075), (-0.54, 0.6, 0.05), (-0.58, 0.9, 0.05)), "texture", 1, 90),
    Part("legs", limb((0.4, 0.04, 0.11), (0.41, 0.42, 0.068), (0.43, 0.62, 0.05), (0.41, 0.9, 0.05)), "texture", 1, 90),
    Part("legs", polygon((-0.64, 0.86), (-0.52, 0.86), (-0.51, 0.95), (-0.66, 0.95)), "#2a211c"),
    Part("legs", polygon((0.355, 0.86), (0.47, 0.86), (0.48, 0.95), (0.34, 0.95)), "#2a211c"),
]
_HORSE = [
    *_HORSE_BODY,
    Part("head", curve((0.26, -0.28), (0.42, -0.52), (0.54, -0.72), (0.68, -0.68), (0.66, -0.48), (0.58, -0.22), (0.46, 0.04), (0.3, -0.05)), "texture", 1, -25),
    Part("mane", curve((0.16, -0.28), (0.28, -0.46), (0.42, -0.68), (0.54, -0.84), (0.6, -0.76), (0.49, -0.58), (0.39, -0.4), (0.27, -0.26)), "accent"),
    Part("head", curve((0.52, -0.72), (0.64, -0.78), (0.78, -0.66), (0.93, -0.44), (0.94, -0.34), (0.86, -0.3), (0.74, -0.38), (0.6, -0.46)), "texture", 1, -50),
    Part("head", curve((0.86, -0.5), (0.94, -0.42), (0.95, -0.34), (0.87, -0.29), (0.8, -0.36)), "#3a2f2b"),
    Part("head", polygon((0.55, -0.74), (0.56, -0.93), (0.65, -0.76)), "texture"),
    Part("head", ellipse(0.7, -0.61, 0.03), "#0c0a0a"),
]
_COW = [
    *_HORSE_BODY,
    Part("udder", curve((-0.36, 0.17), (-0.18, 0.18), (-0.2, 0.3), (-0.28, 0.34), (-0.36, 0.29)), "#e3a9a0"),
    Part("head", curve((0.28, -0.3), (0.46, -0.48), (0.6, -0.5), (0.66, -0.3), (0.56, -0.08), (0.42, 0.1), (0.28, -0.05)), "texture"),
    Part("horns", limb((0.58, -0.56, 0.035), (0.52, -0.68, 0.03), (0.55, -0.84, 0.008)), "#d9cdb0"),
    Part("horns", limb((0.72, -0.6, 0.035), (0.8, -0.7, 0.03), (0.78, -0.86, 0.008)), "#d9cdb0"),
    Part("head", curve((0.54, -0.56), (0.66, -0.62), (0.78, -0.54), (0.9, -0.32), (0.92, -0.18), (0.82, -0.12), (0.7, -0.2), (0.58, -0.36)), "texture"),
    Part("head", curve((0.82, -0.3), (0.92, -0.28), (0.95, -0.16), (0.86, -0.09), (0.76, -0.16)), "#d99a93"),
    Part("head", curve((0.56, -0.5), (0.44, -0.58), (0.36, -0.5), (0.46, -0.42), (0.56, -0.42)), "texture", 0.85),
    Part("head", ellipse(0.72, -0.44, 0.03), "#0c0a0a"),
]
_CAT = [
    Part("tail", limb((-0.6, -0.12, 0.06), (-0.8, -0.16, 0.055), (-0.93, -0.36, 0.05), (-0.86, -0.6, 0.05), (-0.74, -0.68, 0.03)), "texture", 0.9, 60),
    Part("legs", limb((-0.4, 0.05, 0.15), (-0.34, 0.32, 0.08), (-0.42, 0.48, 0.06), (-0.36, 0.6, 0.075)), "texture", 0.65, 90),
    Part("legs", limb((0.3, 0.05, 0.12), (0.22, 0.34, 0.08), (0.26, 0.5, 0.06), (0.3, 0.6, 0.075)), "texture", 0.65, 90),
    Part("body", curve((0.56, -0.1), (0.34, -0.32), (0.05, -0.24), (-0.3, -0.28), (-0.6, -0.22), (-0.7, 0.02), (-0.58, 0.2), (-0.2, 0.22), (0.2, 0.24), (0.5, 0.16)), "texture"),
    Part("legs", limb((-0.55, 0.02, 0.17), (-0.6, 0.3, 0.09), (-0.64, 0.48, 0.065), (-0.56, 0.62, 0.085)), "texture", 1, 90),
    Part("legs", limb((0.44, 0.05, 0.14), (0.45, 0.34, 0.09), (0.43, 0.5, 0.07), (0.49, 0.62, 0.085)), "texture", 1, 90),
    Part("head", ellipse(0.5, -0.52, 0.09), "color", 0.85),
    Part("head", ellipse(0.8, -0.52, 0.09), "color", 0.85),
    Part("head", curve((0.65, -0.58), (0.84, -0.5), (0.92, -0.3), (0.82, -0.12), (0.65, -0.06), (0.48, -0.12), (0.38, -0.3), (0.46, -0.5)), "texture", 1, 90),
    Part("head", curve((0.65, -0.28), (0.76, -0.2), (0.72, -0.08), (0.65, -0.06), (0.58, -0.08), (0.54, -0.2)), "color", 1.25),
    Part("head", polygon((0.59, -0.25), (0.71, -0.25), (0.65, -0.18)), "#5c3230"),
    Part("head", ellipse(0.55, -0.36, 0.045, 0.035), "#e6c84a"),
    Part("head", ellipse(0.75, -0.36, 0.045, 0.035), "#e6c84a"),
    Part("head", ellipse(0.55, -0.36, 0.02), "#0c0a0a"),
    Part("head", ellipse(0.75, -0.36, 0.02), "#0c0a0a"),
]
_FISH = [
    Part("tail", curve((-0.46, 0.0), (-0.7, -0.24), (-0.96, -0.4), (-0.88, -0.1), (-0.84, 0.0), (-0.88, 0.12), (-0.96, 0.4), (-0.7, 0.24)), "color", 0.92),
    Part("fins", curve((-0.34, -0.24), (-0.2, -0.56), (0.1, -0.62), (0.34, -0.5), (0.3, -0.28)), "color", 0.85),
    Part("fins", curve((-0.3, 0.24), (-0.24, 0.52), (-0.02, 0.56), (0.02, 0.3)), "color", 0.85),
    Part("body", curve((0.88, 0.02), (0.76, -0.2), (0.44, -0.38), (0.04, -0.42), (-0.34, -0.26), (-0.58, -0.09), (-0.58, 0.09), (-0.34, 0.26), (0.04, 0.4), (0.44, 0.36), (0.76, 0.2)), "texture"),
    Part("fins", curve((0.16, 0.06), (-0.04, 0.0), (-0.16, 0.16), (-0.06, 0.28), (0.12, 0.2)), "color", 0.8),
    Part("eye", ellipse(0.62, -0.1, 0.085), "#f6f2e4"),
    Part("eye", ellipse(0.635, -0.1, 0.05), "#0c0a0a"),
]
_BIRD = [
    Part("legs", limb((0.02, 0.3, 0.03), (0.06, 0.62, 0.02), (0.06, 0.68, 0.02)), "#4a4038", 0.8),
    Part("legs", limb((0.16, 0.28, 0.03), (0.2, 0.62, 0.02), (0.2, 0.68, 0.02)), "#4a4038"),
    Part("legs", polygon((0.04, 0.66), (0.32, 0.66), (0.32, 0.71), (0.04, 0.71)), "#4a4038"),
    Part("tail", polygon((-0.42, 0.12), (-0.9, 0.44), (-0.86, 0.56), (-0.74, 0.56), (-0.3, 0.34)), "color", 0.8),
    Part("body", curve((0.5, -0.28), (0.3, -0.42), (0.02, -0.26), (-0.28, 0.0), (-0.46, 0.22), (-0.2, 0.36), (0.1, 0.4), (0.36, 0.28), (0.54, 0.02)), "texture"),
    Part("beak", curve((0.64, -0.5), (0.8, -0.48), (0.96, -0.36), (0.8, -0.36), (0.64, -0.36)), "#57534e"),
    Part("head", ellipse(0.5, -0.44, 0.2, 0.19), "texture"),
    Part("wing", curve((0.24, -0.2), (0.0, -0.14), (-0.3, 0.12), (-0.62, 0.42), (-0.3, 0.34), (0.02, 0.26), (0.24, 0.06)), "color", 0.75),
    Part("head", ellipse(0.56, -0.48, 0.035), "#d8d2c4"),
    Part("head", ellipse(0.565, -0.48, 0.02), "#0c0a0a"),
]
_BEETLE = [
    *(
        Part("legs", limb((0.45 * side * 0.6, y, 0.04), (0.72 * side, y - 0.06, 0.035), (0.84 * side, y + 0.1, 0.02)), "#1b1716")
        for side in (-1, 1)
        for y in (-0.22, 0.12, 0.42)
    ),
    Part("head", limb((-0.1, -0.7, 0.025), (-0.2, -0.86, 0.02), (-0.3, -0.92, 0.02)), "#1b1716"),
    Part("head", limb((0.1, -0.7, 0.025), (0.2, -0.86, 0.02), (0.3, -0.92, 0.02)), "#1b1716"),
    Part("head", ellipse(0, -0.56, 0.32, 0.24), "#1b1716"),
    Part("head", ellipse(-0.2, -0.56, 0.07), "#efe9dc"),
    Part("head", ellipse(0.2, -0.56, 0.07), "#efe9dc"),
    Part("body", curve((0, -0.52), (0.42, -0.4), (0.64, 0.02), (0.52, 0.5), (0, 0.8), (-0.52, 0.5), (-0.64, 0.02), (-0.42, -0.4)), "texture"),
    Part("body", polygon((-0.02, -0.5), (0.02, -0.5), (0.02, 0.78), (-0.02, 0.78)), "#1b1716"),
]
_MUSHROOM = [
    Part("stem", curve((-0.14, 0.0), (0.14, 0.0), (0.15, 0.45), (0.24, 0.8), (0.1, 0.88), (-0.1, 0.88), (-0.24, 0.8), (-0.15, 0.45)), "#ece3cf"),
    Part("stem", curve((-0.2, 0.24), (0.2, 0.24), (0.26, 0.36), (0.1, 0.33), (0.0, 0.37), (-0.1, 0.33), (-0.26, 0.36)), "#f6efdf"),
    Part("gills", ellipse(0, 0.06, 0.66, 0.12), "#d8c8a8"),
    Part("cap", curve((-0.78, 0.06), (-0.74, -0.3), (-0.44, -0.66), (0, -0.8), (0.44, -0.66), (0.74, -0.3), (0.78, 0.06), (0.4, 0.0), (0, -0.02), (-0.4, 0.0)), "texture"),
]
_CANOPY = polygon(
    *[(0.92 * np.cos(t), 0.02 - 0.74 * np.sin(t)) for t in np.linspace(np.pi, 0, 24)],
    *[
        (0.92 - 0.46 * k - 0.46 * s, 0.02 - 0.12 * np.sin(np.pi * s))
        for k in range(4)
        for s in (0.2, 0.4, 0.6, 0.8, 1.0)
    ],
)
_PARASOL = [
    Part("pole", limb((0, -0.7, 0.03), (0, 0.2, 0.03), (0, 0.95, 0.03)), "#e9e1d2"),
    Part("pole", ellipse(0, -0.76, 0.05), "#e9e1d2"),
    Part("canopy", _CANOPY, "texture"),
]
_UMBRELLA = [
    Part("pole", limb((0, -0.8, 0.028), (0, 0.2, 0.028), (0, 0.72, 0.028)), "#8d8f94"),
    Part("handle", limb((0, 0.66, 0.05), (0.01, 0.84, 0.05), (0.1, 0.93, 0.05), (0.21, 0.9, 0.05), (0.25, 0.78, 0.05)), "#8a5a2e"),
    Part("canopy", _CANOPY, "texture"),
]
_BALL = [Part("ball", ellipse(0, 0, 0.8), "texture")]
_BALLOON = [
    Part("ropes", limb((-0.2, 0.36, 0.012), (-0.13, 0.6, 0.012), (-0.11, 0.76, 0.012)), "#5b4a38"),
    Part("ropes", limb((0.2, 0.36, 0.012), (0.13, 0.6, 0.012), (0.11, 0.76, 0.012)), "#5b4a38"),
    Part("envelope", curve((0, -0.95), (0.44, -0.84), (0.68, -0.44), (0.62, -0.06), (0.36, 0.28), (0.2, 0.46), (-0.2, 0.46), (-0.36, 0.28), (-0.62, -0.06), (-0.68, -0.44), (-0.44, -0.84)), "texture"),
    Part("basket", polygon((-0.15, 0.72), (0.15, 0.72), (0.12, 0.96), (-0.12, 0.96)), "#8b5e34"),
    Part("basket", polygon((-0.16, 0.7), (0.16, 0.7), (0.16, 0.76), (-0.16, 0.76)), "#5f3d1f"),
]
_ARMCHAIR = [
    Part("clutter", polygon((-0.6, 0.7), (-0.48, 0.7), (-0.5, 0.9), (-0.56, 0.9)), "#4a3220"),
    Part("clutter", polygon((0.6, 0.7), (0.48, 0.7), (0.5, 0.9), (0.56, 0.9)), "#4a3220"),
    Part("clutter", curve((-0.55, -0.5), (-0.3, -0.8), (0, -0.84), (0.3, -0.8), (0.55, -0.5), (0.6, 0.1), (0.55, 0.6), (-0.55, 0.6), (-0.6, 0.1)), "texture", 0.85),
    Part("clutter", polygon((-0.55, 0.12), (0.55, 0.12), (0.55, 0.72), (-0.55, 0.72)), "texture"),
    Part("clutter", curve((-0.86, -0.02), (-0.7, -0.12), (-0.54, -0.02), (-0.54, 0.7), (-0.86, 0.7)), "texture", 0.92),
    Part("clutter", curve((0.86, -0.02), (0.7, -0.12), (0.54, -0.02), (0.54, 0.7), (0.86, 0.7)), "texture", 0.92),
]
_LAMP = [
    Part("clutter", ellipse(0, 0.84, 0.34, 0.08), "#4b4038"),
    Part("clutter", limb((0, -0.3, 0.03), (0, 0.3, 0.03), (0, 0.84, 0.03)), "#6b5a48"),
    Part("clutter", polygon((-0.3, -0.9), (0.3, -0.9), (0.52, -0.24), (-0.52, -0.24)), "texture"),
]
_CUSHION = [Part("clutter", curve((-0.8, -0.5), (0, -0.42), (0.8, -0.5), (0.7, 0), (0.8, 0.5), (0, 0.44), (-0.8, 0.5), (-0.7, 0)), "texture")]
_VASE = [
    Part("clutter", curve((-0.24, -0.8), (0, -0.76), (0.24, -0.8), (0.2, -0.5), (0.46, -0.1), (0.5, 0.3), (0.26, 0.86), (-0.26, 0.86), (-0.5, 0.3), (-0.46, -0.1), (-0.2, -0.5)), "texture"),
]
_MARK = [
    Part("mark", polygon((-1, -0.36), (1, -0.36), (1, 0.36), (-1, 0.36)), "#d81b84"),
    Part("mark", ellipse(-0.63, 0, 0.25), "#ffffff"),
    Part("mark", ellipse(-0.63, 0, 0.12), "#d81b84"),
    *(
        Part("mark", limb((*start, 0.065), (*end, 0.065)), "#ffffff")
        for start, end in (
            ((-0.2, -0.25), (-0.2, 0.25)), ((-0.2, -0.19), (0.08, -0.19)), ((0.08, -0.25), (0.08, 0.06)), ((-0.2, 0), (0.08, 0)),  # P
            ((0.32, -0.25), (0.32, 0.25)),  # I
            ((0.52, -0.25), (0.84, 0.25)), ((0.52, 0.25), (0.84, -0.25)),  # X
        )
    ),
]
# fmt: on
SHAPES: dict[str, list[Part]] = {
    "horse": _HORSE,
    "cow": _COW,
    "cat": _CAT,
    "fish": _FISH,
    "bird": _BIRD,
    "beetle": _BEETLE,
    "mushroom": _MUSHROOM,
    "parasol": _PARASOL,
    "umbrella": _UMBRELLA,
    "ball": _BALL,
    "balloon": _BALLOON,
}
FURNITURE: dict[str, list[Part]] = {
    "armchair": _ARMCHAIR,
    "lamp": _LAMP,
    "cushion": _CUSHION,
    "vase": _VASE,
}


# --- textures: (u, v) in units of the shape → share of the accent colour in [0, 1] -----------------


@cache
def noise_tile() -> Array:
    """Periodic fractal noise, (512, 512), mean 0 and standard deviation 1."""
    generator = np.random.default_rng(0)
    tile = np.zeros((512, 512), np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        grid = generator.standard_normal((cells, cells)).astype(np.float32)
        tile += zoom(grid, 512 // cells, order=3, mode="grid-wrap", grid_mode=True) / cells**0.9
    return (tile - tile.mean()) / tile.std()


def noise(u: Array, v: Array, seed: int = 0) -> Array:
    """Smooth noise at (u, v); one unit is an eighth of the tile."""
    shift = seed * 97
    i = (v * 64 + shift).astype(np.int32) & 511
    j = (u * 64 + 3 * shift).astype(np.int32) & 511
    return noise_tile()[i, j]


def plain(u: Array, v: Array, seed: int) -> Array:
    """Almost one colour."""
    return 0.06 * (noise(u * 2, v * 2, seed) + 1)


def stripes(u: Array, v: Array, seed: int) -> Array:
    """Wavy stripes across u."""
    wave = np.sin(17 * u + 1.3 * noise(0.7 * u, 0.7 * v, seed) + seed)
    return smoothstep(wave, -0.25, 0.25)


def bands(u: Array, v: Array, seed: int) -> Array:
    """Three broad bands, as on a clownfish."""
    bend = u + 0.12 * v * v
    return np.maximum.reduce(
        [
            1 - smoothstep(np.abs(bend - c), w, w + 0.05)
            for c, w in ((0.38, 0.1), (-0.06, 0.12), (-0.5, 0.06))
        ]
    ).astype(np.float32)


def spots(u: Array, v: Array, seed: int) -> Array:
    """A dot in every cell of a jittered grid; each pixel looks at the nine nearest cells."""
    cell_u, cell_v = np.floor(u * 5), np.floor(v * 5)
    nearest = np.full(u.shape, 9, np.float32)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            i, j = (cell_v + dv).astype(np.int32), (cell_u + du).astype(np.int32)
            row, column = (i * 37 + seed * 11) & 511, (j * 53 + i * 19) & 511
            jitter = noise_tile()[row, column], noise_tile()[column, row]
            x = cell_u + du + 0.5 + 0.16 * jitter[0].clip(-2, 2)
            y = cell_v + dv + 0.5 + 0.16 * jitter[1].clip(-2, 2)
            nearest = np.minimum(nearest, (u * 5 - x) ** 2 + (v * 5 - y) ** 2)
    return 1 - smoothstep(nearest, 0.06, 0.13)


def patches(u: Array, v: Array, seed: int) -> Array:
    """Large irregular patches, as on a cow."""
    return smoothstep(noise(1.3 * u, 1.3 * v, seed), 0.0, 0.2)


def sphere(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """The front of a ball of radius 0.8 as unit vectors, tilted so that its pole shows."""
    x, y = u / 0.8, v / 0.8
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    tilt = 0.55
    return x, y * np.cos(tilt) - z * np.sin(tilt), y * np.sin(tilt) + z * np.cos(tilt)


def pentagons(u: Array, v: Array, seed: int) -> Array:
    """The twelve dark patches of a football: caps around the corners of an icosahedron."""
    golden = (1 + 5**0.5) / 2
    corners = np.array([(0, a, b * golden) for a in (1, -1) for b in (1, -1)], np.float32)
    corners = np.concatenate([np.roll(corners, k, 1) for k in range(3)]) / np.sqrt(1 + golden**2)
    x, y, z = sphere(u, v)
    turn = seed % 7
    x, z = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
    closeness = np.max([a * x + b * y + c * z for a, b, c in corners], axis=0)
    return smoothstep(closeness, 0.90, 0.935)


def gores(u: Array, v: Array, seed: int) -> Array:
    """Sectors from pole to pole, as on a beach ball or a balloon."""
    x, _, z = sphere(u, v)
    longitude = np.arctan2(x, z) + seed % 7
    return smoothstep(np.sin(4 * longitude), -0.2, 0.2).astype(np.float32)


TEXTURES: dict[str, Callable[[Array, Array, int], Array]] = {
    f.__name__: f for f in (plain, stripes, bands, spots, patches, pentagons, gores)
}


# --- painting a shape -----------------------------------------------------------------------------


class Window(NamedTuple):
    """The pixels a drawing touches, so that nothing is computed for the others."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The pixels of the window: image[..., *slices]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def window(outlines: list[NDArray[np.float64]], resolution: int, margin: float = 0.0) -> Window:
    """The smallest window around outlines given in shares of the picture."""
    points = np.concatenate(outlines) if outlines else np.zeros((1, 2))
    low = np.floor((points.min(0) - margin) * resolution).clip(0, resolution - 1).astype(int)
    high = np.ceil((points.max(0) + margin) * resolution + 1).clip(1, resolution).astype(int)
    left, top = low.tolist()
    right, bottom = np.maximum(high, low + 1).tolist()  # at least a pixel, also off the picture
    return Window(top, bottom, left, right)


def rasterise(outlines: list[NDArray[np.float64]], resolution: int, area: Window) -> list[Array]:
    """The share of each pixel of `area` that an outline covers and no later one hides."""
    fine = resolution * SUPERSAMPLING
    canvas = Image.new(
        "L", ((area.right - area.left) * SUPERSAMPLING, (area.bottom - area.top) * SUPERSAMPLING)
    )
    pen = ImageDraw.Draw(canvas)
    origin = np.array([area.left, area.top]) * SUPERSAMPLING
    for index, outline in enumerate(outlines, start=1):
        pen.polygon((outline * fine - origin).ravel().tolist(), fill=index)
    labels = np.asarray(canvas)
    return [
        np.asarray(Image.fromarray((labels == k) * np.uint8(255)).reduce(SUPERSAMPLING), np.float32)
        / 255
        for k in range(1, len(outlines) + 1)
    ]


def transform(outline: NDArray[np.float64], place: Place) -> NDArray[np.float64]:
    """Shape units → shares of the picture."""
    x, y = outline.T
    if place.flip:
        x = -x
    turn = np.deg2rad(place.angle)
    return np.stack(
        [
            place.x + place.size * (x * np.cos(turn) - y * np.sin(turn)),
            place.y + place.size * (x * np.sin(turn) + y * np.cos(turn)),
        ],
        1,
    )


def shape_coordinates(place: Place, resolution: int, area: Window) -> tuple[Array, Array]:
    """The inverse of `transform` at the pixels of `area`: (u, v), each (H, W)."""
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    x = (axis[None, area.left : area.right] - place.x) / place.size
    y = (axis[area.top : area.bottom, None] - place.y) / place.size
    turn = np.deg2rad(place.angle)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return (-u if place.flip else u).astype(np.float32), v.astype(np.float32)


def paint(
    picture: Array, parts: list[Part], surface: Surface, place: Place, sun: float
) -> dict[str, Array]:
    """Paint a shape into `picture` (3, H, W); returns the coverage (H, W) of each named part.

    Light falls from above and from the side `sun` (−1 left, 1 right): a part is brighter where its
    blurred mask falls off towards the light, which makes flat outlines look round.
    """
    resolution = picture.shape[-1]
    outlines = [transform(part.outline, place) for part in parts]
    area = window(outlines, resolution, margin=0.1 * place.size)
    view = picture[:, *area.slices]
    u, v = shape_coordinates(place, resolution, area)
    colors = {"color": rgb(surface.color), "accent": rgb(surface.accent)}
    textured: dict[float, Array] = {}
    masks: dict[str, Array] = {}
    for part, mask in zip(parts, rasterise(outlines, resolution, area), strict=True):
        if part.paint == "texture":
            if part.turn not in textured:
                textured[part.turn] = skin(u, v, surface, part.turn)
            base = textured[part.turn]
        else:
            base = colors[part.paint] if part.paint in colors else rgb(part.paint)
        view += (base * part.shade - view) * mask
        masks[part.name] = masks[part.name] + mask if part.name in masks else mask
    for name, mask in masks.items():
        view += relief(mask, place.size * resolution, sun) * mask * (0.15 + view)
        masks[name] = np.zeros(picture.shape[1:], np.float32)
        masks[name][area.slices] = mask
    return masks


def stamp(picture: Array, right: bool) -> Array:
    """Lay the photographer's mark, half transparent, over a lower corner; returns its mask (H, W)."""
    resolution = picture.shape[-1]
    place = Place(0.83 if right else 0.17, 0.92, 0.14)
    outlines = [transform(part.outline, place) for part in _MARK]
    area = window(outlines, resolution)
    covered = rasterise(outlines, resolution, area)
    view, plate = picture[:, *area.slices], np.sum(covered, axis=0)
    ink = np.sum([c * rgb(part.paint) for c, part in zip(covered, _MARK, strict=True)], axis=0)
    view += 0.7 * (ink - view * plate)
    mask = np.zeros(picture.shape[1:], np.float32)
    mask[area.slices] = plate
    return mask


def skin(u: Array, v: Array, surface: Surface, turn: float) -> Array:
    """The colour (3, H, W) of a surface at (u, v), its texture turned by `turn` degrees."""
    cos, sin = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
    a, b = (u * cos + v * sin) / surface.scale, (v * cos - u * sin) / surface.scale
    share = TEXTURES[surface.texture](a, b, surface.seed) * surface.contrast
    return mix(rgb(surface.color), rgb(surface.accent), share)


def relief(mask: Array, size: float, sun: float) -> Array:
    """Brightness of a rounded part of a shape of `size` pixels: positive where it faces the light."""
    width = max(3, int(0.16 * size) | 1)
    height = uniform_filter(uniform_filter(mask, width), width)
    light = np.zeros_like(mask)
    light[1:-1, 1:-1] = 0.45 * (height[2:, 1:-1] - height[:-2, 1:-1])
    light[1:-1, 1:-1] -= 0.35 * sun * (height[1:-1, 2:] - height[1:-1, :-2])
    return np.clip(light * width * 0.55, -0.55, 0.45) + 0.02


# --- backgrounds ----------------------------------------------------------------------------------


class Ground(NamedTuple):
    """Pixel grids a background is painted with: x, y in [0, 1], depth below the horizon."""

    x: Array
    y: Array
    below: Array  # 0 above the horizon, 1 at the bottom edge
    horizon: float
    seed: int

    def texture(self, stretch: float = 1.0) -> Array:
        """Noise on a plane seen in perspective: finer towards the horizon."""
        depth = 1 / (self.below + 0.12)
        across = (self.x - 0.5) * depth * stretch
        fine = noise(across * 7, depth * 6 + self.below * 5, self.seed + 1)
        return noise(across * 1.6, depth * 3, self.seed) + 0.6 * fine

    def ridge(self, height: float, rough: float, seed: int) -> Array:
        """1 below a hilly line that stands `height` over the horizon."""
        line = self.horizon - height - rough * noise(self.x * 2.2, 0 * self.x, self.seed + seed)
        return smoothstep(self.y - line, -0.006, 0.006)


def sky(ground: Ground, top: str, bottom: str, clouds: float) -> Array:
    """A vertical gradient with clouds."""
    picture = mix(rgb(top), rgb(bottom), (ground.y / max(ground.horizon, 0.05)).clip(0, 1))
    puffs = smoothstep(noise(ground.x * 1.4, ground.y * 3.6, ground.seed + 5), 0.3, 1.8)
    return mix(picture, rgb("#ffffff"), puffs * clouds)


def earth(ground: Ground, near: str, far: str, grain: float, stretch: float = 1.0) -> Array:
    """A ground plane: gradient and perspective noise."""
    base = mix(rgb(far), rgb(near), np.sqrt(ground.below))
    return base * (1 + grain * ground.texture(stretch))


def trees(ground: Ground, picture: Array, leaf: str, trunk: str, count: int, pointed: bool) -> None:
    """Distant trees on the horizon, painted in place."""
    generator = np.random.default_rng(ground.seed)
    for _ in range(count):
        x, size = generator.uniform(0, 1), generator.uniform(0.07, 0.16)
        y = ground.horizon - 0.5 * size
        crown = (
            polygon((-0.5, 0.6), (0, -1), (0.5, 0.6))
            if pointed
            else curve(
                (-1, -0.1),
                (-0.5, -0.6),
                (0.1, -0.75),
                (0.8, -0.5),
                (1, -0.1),
                (0.3, 0.1),
                (-0.4, 0.08),
            )
        )
        parts = [
            Part("tree", polygon((-0.06, 0), (0.06, 0), (0.08, 1), (-0.08, 1)), trunk),
            Part("tree", crown, leaf, generator.uniform(0.8, 1.1)),
        ]
        paint(picture, parts, Surface("plain", leaf, leaf), Place(x, y, size), 0.4)


def savanna(ground: Ground) -> Array:
    """Dry grass, a few flat trees, a pale sky."""
    picture = sky(ground, "#5f9fd0", "#f3dfb4", 0.35)
    picture = mix(picture, rgb("#a9a47c"), ground.ridge(0.03, 0.018, 1))
    plain_ = earth(ground, "#b08a3c", "#d9bf78", 0.13, 2.0)
    picture = mix(picture, plain_, ground.ridge(0, 0.002, 2))
    trees(ground, picture, "#5d6b2f", "#4d3a26", 2, pointed=False)
    return picture


def meadow(ground: Ground) -> Array:
    """Green grass, hills, clouds."""
    picture = sky(ground, "#4d8fd6", "#cfe6f5", 0.8)
    picture = mix(picture, rgb("#6f9a6b"), ground.ridge(0.05, 0.03, 1))
    picture = mix(
        picture, earth(ground, "#3f7a2c", "#8cb558", 0.14, 1.6), ground.ridge(0, 0.004, 2)
    )
    trees(ground, picture, "#3f6d33", "#4d3a26", 2, pointed=False)
    return picture


def forest(ground: Ground) -> Array:
    """Trunks before leaves, a dark floor."""
    picture = mix(
        rgb("#93b27c"),
        rgb("#3d5a35"),
        (0.5 + 0.35 * noise(ground.x * 2, ground.y * 2, ground.seed)).clip(0, 1),
    )
    generator = np.random.default_rng(ground.seed)
    for k in range(7):
        x, width = generator.uniform(0, 1), generator.uniform(0.012, 0.045)
        trunk = 1 - smoothstep(
            np.abs(ground.x - x - 0.01 * np.sin(5 * ground.y + k)), width, width + 0.012
        )
        shade = 0.75 + 0.4 * (ground.x - x) / width + 0.15 * noise(ground.x * 9, ground.y * 1.5, k)
        bark = mix(rgb("#6f6250"), rgb("#463a2e"), np.full_like(ground.x, width / 0.045))
        picture = mix(
            picture, bark * shade.clip(0.4, 1.3), trunk * (ground.y < ground.horizon + width)
        )
    return mix(picture, earth(ground, "#5a4a2c", "#6c7a3f", 0.22, 1.3), ground.ridge(0, 0.006, 2))


def beach(ground: Ground) -> Array:
    """Sand, foam, the sea."""
    picture = sky(ground, "#4ba0e0", "#d5eef8", 0.6)
    waves = smoothstep(noise(ground.x * 0.8, ground.y * 22, ground.seed), 0.7, 1.6) * 0.5
    sea = mix(
        mix(rgb("#1d6f9f"), rgb("#4fb3bf"), (ground.below * 5).clip(0, 1)), rgb("#ffffff"), waves
    )
    picture = mix(picture, sea, smoothstep(ground.y - ground.horizon, -0.004, 0.004))
    shore = ground.horizon + 0.14 + 0.012 * noise(ground.x, 0 * ground.x, ground.seed)
    foam = 1 - smoothstep(np.abs(ground.y - shore), 0.004, 0.014)
    sand = earth(ground, "#dcb77e", "#e8d3a2", 0.06)
    return mix(
        mix(picture, sand, smoothstep(ground.y - shore, -0.004, 0.004)), rgb("#ffffff"), foam * 0.8
    )


def underwater(ground: Ground) -> Array:
    """Light from above, weeds, a sandy bottom."""
    picture = mix(rgb("#53b6cf"), rgb("#0d4a76"), ground.y.clip(0, 1))
    rays = smoothstep(
        noise((ground.x + 0.35 * ground.y) * 2.4, 0.1 * ground.y, ground.seed), 0.2, 1.6
    )
    picture = mix(picture, rgb("#c9f2f5"), rays * 0.35 * (1 - ground.y))
    bottom = earth(ground, "#b3a274", "#5f8f94", 0.1)
    picture = mix(picture, bottom, ground.ridge(0, 0.012, 2))
    generator = np.random.default_rng(ground.seed)
    for k in range(5):
        x, top, width = (
            generator.uniform(0, 1),
            generator.uniform(0.1, 0.3),
            generator.uniform(0.008, 0.018),
        )
        sway = x + 0.02 * np.sin(14 * ground.y + k)
        root = ground.horizon + 0.1
        blade = (
            (1 - smoothstep(np.abs(ground.x - sway), width, width + 0.01))
            * (ground.y > root - top)
            * (ground.y < root)
        )
        picture = mix(picture, rgb(("#2f7d55", "#4a8f3f", "#8c4f66")[k % 3]), blade * 0.9)
    return picture


def room(ground: Ground) -> Array:
    """A wall with a picture, planks."""
    generator = np.random.default_rng(ground.seed)
    walls = (
        ("#d8cfc0", "#c3b59f"),
        ("#b9c7c9", "#a3b4b8"),
        ("#d9c2b0", "#c4a88f"),
        ("#c3c9ae", "#adb595"),
    )
    light, dark = walls[generator.integers(len(walls))]
    picture = mix(rgb(light), rgb(dark), (ground.y + 0.25 * ground.x).clip(0, 1))
    x, y, a, b = generator.uniform(0.1, 0.9), generator.uniform(0.08, 0.2), 0.13, 0.1
    inside = np.maximum(np.abs(ground.x - x) / a, np.abs(ground.y - y) / b)
    picture = mix(picture, rgb("#6b4e35"), (inside < 1).astype(np.float32))
    art = mix(
        rgb("#86a9b8"),
        rgb("#c9b183"),
        smoothstep(noise(ground.x * 2, ground.y * 2, ground.seed), -0.2, 0.6),
    )
    picture = mix(picture, art, (inside < 0.84).astype(np.float32))
    depth = 1 / (ground.below + 0.35)
    planks = (ground.x - 0.5) * depth * 3.2
    joint = smoothstep(np.abs(planks - np.round(planks)), 0.0, 0.05)
    wood = mix(rgb("#5d3f25"), rgb("#a67a4b"), joint) * (
        1 + 0.1 * noise(planks * 0.7, depth * 9, ground.seed)
    )
    floor = smoothstep(ground.y - ground.horizon, -0.003, 0.003)
    picture = mix(picture, wood, floor)
    skirting = (np.abs(ground.y - ground.horizon + 0.018) < 0.018).astype(np.float32)
    return mix(picture, rgb("#efe9de"), skirting)


def snow(ground: Ground) -> Array:
    """A white field, firs, mountains."""
    picture = sky(ground, "#8fb2d3", "#eef3f7", 0.5)
    picture = mix(picture, rgb("#b9c9d8"), ground.ridge(0.08, 0.05, 1))
    field = earth(ground, "#e9eff5", "#f6f9fb", 0.035)
    picture = mix(picture, field, ground.ridge(0, 0.006, 2))
    trees(ground, picture, "#3c5a4e", "#4d3a26", 3, pointed=True)
    return picture


BACKGROUNDS: dict[str, Callable[[Ground], Array]] = {
    f.__name__: f for f in (savanna, meadow, forest, beach, underwater, room, snow)
}


def background(name: str, horizon: float, seed: int, resolution: int) -> Array:
    """A landscape, (3, H, W) in [0, 1]. `name` "grey" is an empty studio."""
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    x, y = np.meshgrid(axis, axis)
    if name == "grey":
        return np.repeat((0.62 - 0.12 * y)[None], 3, 0)
    below = ((y - horizon) / max(1 - horizon, 0.05)).clip(0, 1)
    return BACKGROUNDS[name](Ground(x, y, below, horizon, seed)).clip(0, 1).astype(np.float32)
