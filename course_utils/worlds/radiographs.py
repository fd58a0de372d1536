"""Frontal chest radiographs drawn by a program, with or without a consolidation.

A radiograph is a sum: each structure adds what it absorbs of the beam, air takes it away. So a
finding can be put in or left out with nothing else changed, and the radiologist's outline is known.
As on every frontal radiograph the patient faces us: their left is on the right of the picture.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes, gaussian_filter
from scipy.ndimage import label as connected
from scipy.special import comb

from course_utils.contract import check_choice
from course_utils.worlds.scenery import (
    SUPERSAMPLING,
    Array,
    Place,
    Window,
    curve,
    ellipse,
    noise,
    shape_coordinates,
    smoothstep,
    transform,
)
from course_utils.worlds.scenes import World, bounding_box, check_fields, some_of

CLASSES = ("no finding", "consolidation")

# Where a consolidation of each lobe is centred, in units of the chest: x to the right of the
# picture, y down, about −1 to 1. The lingula is the left lung's counterpart of the middle lobe.
LOBES = {
    "right upper": (-0.45, -0.40),
    "right middle": (-0.40, 0.14),
    "right lower": (-0.56, 0.30),
    "left upper": (0.46, -0.38),
    "lingula": (0.56, 0.10),
    "left lower": (0.54, 0.31),
}
SWITCHES = ("leads", "pacemaker", "nodule", "catheter")
CONFOUNDED = {"no finding": 0.01, "consolidation": 0.99}  # the share of films with a confounder
STRUCTURES = ("vessels", "ribs", "clavicles", "breasts")
COMPLETE = 0.4  # the share of films on which no structure is missing
REMOVABLE = ("consolidation", "marker", *SWITCHES, *STRUCTURES)

CHOICES: dict[str, tuple[str, ...]] = {"lobe": ("none", *LOBES), "marker": ("none", "L", "R")}
RANGES: dict[str, tuple[float, float]] = {
    "strength": (0, 1),
    "extent": (0.03, 0.25),
    "shift_x": (-0.2, 0.2),
    "shift_y": (-0.2, 0.2),
    "patchiness": (0, 1),
    "bronchograms": (0, 1),
    "x": (0.3, 0.7),
    "y": (0.3, 0.7),
    "size": (0.3, 0.7),
    "angle": (-20, 20),
    "rotation": (-1, 1),
    "inspiration": (-1, 1),
    "heart": (0.35, 0.65),
    "habitus": (0, 1),
    "breasts": (0, 1),
    "rib_spacing": (0.8, 1.25),
    "vessels": (0, 1.5),
    "marker_x": (0, 1),
    "marker_y": (0, 1),
    "exposure": (-1, 1),
    "gradient": (-1, 1),
    "contrast": (0.5, 1.5),
    "noise": (0, 0.2),
    "blur": (0, 3),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class RadiographSpec:
    """Everything about a radiograph. Each field is one control.

    The finding: `lobe` ("none" for a healthy chest), `strength` (the share of the air that it
    replaces), `extent` (its radius), `shift_x` and `shift_y` (from the middle of the lobe),
    `patchiness`, `bronchograms` (how clear the air-filled bronchi in it are).
    The patient: place, `size`, `angle` in the plane (degrees), `rotation` about the body's axis
    (1: about ten degrees), `inspiration`, `heart` (its width by the chest's), `habitus` (0 slim, 1
    stout), `breasts`, `rib_spacing`, `vessels`.
    What belongs to no class: a side `marker`, `leads` of an ECG, a `pacemaker`, a calcified
    `nodule`, a central venous `catheter`.
    The film: `exposure` (1 is black, −1 white), `gradient` across it, `contrast`, `noise` (a
    standard deviation), `blur` (a standard deviation in pixels of a 128-pixel picture).
    Positions and lengths are shares of the picture, 0 to 1, y downwards.
    Errors: ValueError or TypeError that names the field.
    """

    lobe: str = "none"
    strength: float = 0.7
    extent: float = 0.11
    shift_x: float = 0.0
    shift_y: float = 0.0
    patchiness: float = 0.4
    bronchograms: float = 0.0
    x: float = 0.5
    y: float = 0.52
    size: float = 0.5
    angle: float = 0.0
    rotation: float = 0.0
    inspiration: float = 0.0
    heart: float = 0.46
    habitus: float = 0.3
    breasts: float = 0.0
    rib_spacing: float = 1.0
    vessels: float = 0.8
    marker: str = "none"
    marker_x: float = 0.9
    marker_y: float = 0.1
    leads: bool = False
    pacemaker: bool = False
    nodule: bool = False
    catheter: bool = False
    exposure: float = 0.0
    gradient: float = 0.0
    contrast: float = 1.0
    noise: float = 0.02
    blur: float = 0.3
    removed: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, CHOICES, RANGES)
        for field in SWITCHES:
            if not isinstance(getattr(self, field), bool | np.bool_):
                raise TypeError(f"{field} is {getattr(self, field)!r}; it must be True or False.")
        if not isinstance(self.removed, tuple):
            raise TypeError(f"removed is {self.removed!r}; it must be a tuple of names.")
        for part in self.removed:
            check_choice("removed", part, REMOVABLE)

    @property
    def label(self) -> str:
        """The class: "consolidation" if one is asked for and was not removed."""
        removed = "consolidation" in self.removed
        return CLASSES[self.lobe != "none" and self.strength > 0 and not removed]

    def without(self, part: str) -> "RadiographSpec":
        """The same radiograph, grain and all, without one of `REMOVABLE`."""
        check_choice("part", part, REMOVABLE)
        return self if part in self.removed else replace(self, removed=(*self.removed, part))


@dataclass(frozen=True)
class Radiograph:
    """A radiograph and the truth about it.

    `image` is uint8 (H, W, 3), grey. `parts` maps "right lung", "left lung", "heart" and what else
    there is of "consolidation", "marker", "leads", "pacemaker", "nodule", "catheter" to a bool mask
    (H, W); they overlap, as shadows do. `mask` is the filled outline a radiologist would draw
    around the consolidation, a little generous, and `box` its (left, top, right, bottom) in pixels,
    right and bottom excluded; both empty where there is none.
    """

    image: NDArray[np.uint8]
    parts: dict[str, NDArray[np.bool_]]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    spec: RadiographSpec

    @property
    def label(self) -> str:
        """The class of what is to be seen: a consolidation moved off the lungs is none."""
        return CLASSES[bool(self.mask.any())]


def random_spec(generator: np.random.Generator, *, label: str | None = None) -> RadiographSpec:
    """A random radiograph, of a random class unless `label` says which.

    One consolidation in seven is faint. On six films in ten one to four of `STRUCTURES` are
    missing, so that a film drawn again without them is one that a model may have met. The same
    state of the generator gives the same spec everywhere, and the same chest for both labels.
    """
    if label is not None:
        check_choice("label", label, CLASSES)
    number = generator.uniform

    def sometimes(share: float) -> bool:
        return bool(number() < share)

    drawn = CLASSES[int(generator.integers(2))]
    ill = (label or drawn) == "consolidation"
    lobe = tuple(LOBES)[int(generator.integers(len(LOBES)))]
    faint = sometimes(1 / 7)
    side = ("L", "R")[int(generator.integers(2))]
    across = number(0.03, 0.13)
    spec = RadiographSpec(
        lobe=lobe if ill else "none",
        strength=number(0.3, 0.5) if faint else number(0.55, 1),
        extent=number(0.08, 0.15),
        shift_x=number(-0.06, 0.06),
        shift_y=number(-0.06, 0.06),
        patchiness=number(0.1, 0.8),
        bronchograms=number(0.3, 0.9) if sometimes(0.35) else 0.0,
        x=number(0.47, 0.53),
        y=number(0.48, 0.55),
        size=number(0.44, 0.54),
        angle=number(-5, 5),
        rotation=number(-1, 1),
        inspiration=number(-1, 1),
        heart=number(0.4, 0.56),
        habitus=number(0, 1),
        breasts=number(0.3, 1) if sometimes(0.4) else 0.0,
        rib_spacing=number(0.88, 1.15),
        vessels=number(0.4, 1.2),
        marker=side if sometimes(0.5) else "none",
        marker_x=1 - across if side == "L" else across,
        marker_y=number(0.06, 0.3),
        leads=sometimes(0.15),
        pacemaker=sometimes(0.08),
        nodule=sometimes(0.12),
        catheter=sometimes(0.12),
        exposure=number(-0.8, 0.8),
        gradient=number(-1, 1),
        contrast=number(0.8, 1.2),
        noise=number(0.01, 0.035),
        blur=number(0, 0.7),
        seed=int(generator.integers(1 << 31)),
    )
    if sometimes(COMPLETE):
        return spec
    return replace(spec, removed=some_of(generator, STRUCTURES))


# --- the chest ------------------------------------------------------------------------------------

_BODY = curve(
    (-0.22, -1.5), (-0.23, -0.98), (-0.5, -0.86), (-0.95, -0.74), (-1.6, -0.6), (-1.6, -0.3),
    (-1.1, -0.2), (-0.98, 0.05), (-0.99, 0.5), (-1.02, 1.0), (-1.0, 1.6), (0, 1.7), (1.0, 1.6),
    (1.02, 1.0), (0.99, 0.5), (0.98, 0.05), (1.1, -0.2), (1.6, -0.3), (1.6, -0.6), (0.95, -0.74),
    (0.5, -0.86), (0.23, -0.98), (0.22, -1.5),
)  # fmt: skip
_CAVITY = curve(  # of the left lung; the right one is its mirror image
    (0.34, -0.84), (0.51, -0.75), (0.67, -0.46), (0.78, -0.06), (0.845, 0.34), (0.87, 0.7),
    (0.6, 0.9), (0.1, 0.85), (0.06, 0.3), (0.06, -0.15), (0.09, -0.5), (0.17, -0.76),
)  # fmt: skip
_WALL = np.array([(-0.84, 0.36), (-0.75, 0.53), (-0.46, 0.68), (-0.06, 0.79), (0.34, 0.855),
                  (0.7, 0.88), (1.2, 0.9)])  # fmt: skip
_HEART = curve(
    (-0.13, -0.14), (-0.22, 0.06), (-0.28, 0.26), (-0.25, 0.46), (-0.1, 0.62), (0.15, 0.68),
    (0.42, 0.65), (0.53, 0.54), (0.52, 0.38), (0.43, 0.16), (0.31, 0.0), (0.2, -0.14), (0, -0.22),
)  # fmt: skip
_MEDIASTINUM = curve(
    (-0.11, -1.0), (-0.13, -0.7), (-0.17, -0.4), (-0.18, -0.1), (-0.14, 0.4), (0, 0.6), (0.16, 0.4),
    (0.22, 0.0), (0.21, -0.14), (0.17, -0.2), (0.22, -0.28), (0.21, -0.38), (0.14, -0.46),
    (0.12, -0.7), (0.11, -1.0),
)  # fmt: skip


class Chest(NamedTuple):
    """The chest on the film: coordinates and coverage (H, W) of what finds its place by them."""

    place: Place
    u: Array  # the chest's own coordinates, −1 to 1
    v: Array
    lungs: tuple[Array, Array]  # right, left: what is seen of them above the diaphragm
    body: Array
    heart: Array
    air: Array  # how much air the beam crosses, 1 in the middle of a lung


def cover(place: Place, resolution: int, *outlines: NDArray[np.float64]) -> Array:
    """The share of each pixel (H, W) that outlines in the chest's coordinates cover together."""
    canvas = Image.new("L", (resolution * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    placed = transform(np.concatenate(outlines), place) * (resolution * SUPERSAMPLING)
    for outline in np.split(placed, np.cumsum([len(o) for o in outlines])[:-1]):
        pen.polygon(outline.ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def soften(coverage: Array, width: float) -> Array:
    """Blur by a standard deviation of `width` as a share of the picture."""
    return gaussian_filter(coverage, width * len(coverage), truncate=3)


def arcs(
    paths: ArrayLike, width: float, end: float | None = None, points: int = 12
) -> NDArray[np.float64]:
    """Bands (M, 2 points, 2) along M Bézier curves of K control points, paths (M, K, 2).

    `width` is the half width, `end` that at the end of the curve if it is another.
    """
    control = np.array(paths, float)
    order = control.shape[1] - 1
    spine = bernstein(order, points) @ control
    step = bernstein(order - 1, points) @ np.diff(control, axis=1)
    normal = np.stack([-step[..., 1], step[..., 0]], -1) / np.linalg.norm(step, axis=-1)[..., None]
    offset = normal * np.linspace(width, width if end is None else end, points)[:, None]
    return np.concatenate([spine + offset, (spine - offset)[:, ::-1]], 1)


@cache
def bernstein(order: int, points: int) -> Array:
    """The weights (points, order + 1) of a Bézier curve's control points along it."""
    t = np.linspace(0, 1, points)[:, None]
    k = np.arange(order + 1)
    return comb(order, k) * t**k * (1 - t) ** (order - k)


def mirrored(outline: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The outline for the patient's left (side 1) or right (side −1)."""
    return outline * (side, 1)


def chest(spec: RadiographSpec, resolution: int) -> tuple[Chest, Array]:
    """Where everything lies, and what the soft tissue absorbs (H, W)."""
    place = Place(spec.x, spec.y, spec.size, spec.angle)
    u, v = shape_coordinates(place, resolution, Window(0, resolution, 0, resolution))
    heart_outline = (_HEART - (0.1, 0)) * (spec.heart / 0.46, 1)
    heart_outline = heart_outline + np.array((0.1 + front(spec), 0))
    heart = soften(cover(place, resolution, heart_outline), 0.008)
    middle = cover(place, resolution, _MEDIASTINUM + np.array((0.6 * front(spec), 0)))
    middle = soften(middle, 0.01)
    hidden = np.maximum(heart, middle)

    lungs, air, abdomen = [], np.zeros_like(u), np.zeros_like(u)
    for side in (-1, 1):
        cavity = cover(place, resolution, mirrored(_CAVITY, side))
        lower = v - dome(spec, side, side * u)
        below = smoothstep(lower, -0.012, 0.012) * (side * u > -0.02)
        abdomen = np.maximum(abdomen, below)
        lung = cavity * (1 - below)
        # Air thins out towards the wall, and behind the dome where the lung reaches deeper.
        recess = cavity * below * 0.22 * (1 - smoothstep(lower, 0.02, 0.2))
        filled = (0.45 + 0.55 * soften(lung, 0.035)) * lung + recess
        air += filled * (1 + 0.1 * side * spec.rotation)  # the side turned to the tube is darker
        lungs.append(lung * (1 - hidden))
    air *= 1 - np.maximum(0.45 * heart, 0.5 * middle)
    body = cover(place, resolution, _BODY * (1 + 0.05 * spec.habitus, 1))
    tissue = body * (0.62 + 0.1 * spec.habitus * smoothstep(v, -0.8, 0.6))
    tissue += 0.13 * middle + 0.15 * np.maximum(heart, abdomen * body)
    tissue -= gas(spec, place, resolution)
    return Chest(place, u, v, (lungs[0], lungs[1]), body, heart, air), tissue


def gas(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """What the air outside the lungs takes away (H, W): stomach, trachea, main bronchi."""
    bubble = cover(place, resolution, ellipse(0.42, float(dome(spec, 1, 0.42)) + 0.17, 0.17, 0.06))
    t = 0.5 * front(spec)
    windpipe = cover(
        place,
        resolution,
        *arcs([[(0, -1.3), (0.02 + t, -0.8), (0.01 + t, -0.24)]], 0.045),
        *arcs([[(0.01 + t, -0.28), (-0.08 + t, -0.16), (-0.17 + t, -0.06)]], 0.035, 0.02),
        *arcs([[(0.01 + t, -0.28), (0.1 + t, -0.18), (0.22 + t, -0.1)]], 0.03, 0.015),
    )
    return 0.2 * soften(bubble, 0.015) + 0.12 * windpipe


def dome(spec: RadiographSpec, side: int, u: Array | float) -> Array:
    """The height v of the diaphragm, u to the side from the middle.

    The right dome (side −1) stands higher, over the liver; both fall steeply to the angle at the
    wall and gently to the heart. A deep breath lowers them.
    """
    top = (0.42 if side < 0 else 0.47) + 0.06 * spec.inspiration
    away = (u - 0.4) / 0.45
    return top + 0.24 * np.maximum(away, 0) ** 2.4 + 0.09 * np.minimum(away, 0) ** 2


def front(spec: RadiographSpec) -> float:
    """How far turning the patient moves what lies in front of the spine."""
    return 0.05 * spec.rotation


def ribs(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """Bone along the beam (H, W): ribs at the back fall gently, in front steeply and fainter."""
    v = -0.76 + 0.142 * spec.rib_spacing * np.arange(10)
    end = v + 0.2
    edge = np.interp(end, *_WALL.T)
    back = np.array(
        [(0 * v + 0.06, v), (0.3 * edge, v - 0.12), (0.95 * edge, v - 0.08), (edge, end)]
    ).transpose(2, 0, 1)
    backs, hollows, fronts = [], [], []
    for side in (-1, 1):
        last = 0 * v + 0.3 + side * front(spec)
        ahead = np.array([(edge, end), (0.95 * edge, end + 0.2), (last, end + 0.3)])
        backs += [*mirrored(arcs(back, 0.03, 0.034), side)]
        hollows += [*mirrored(arcs(back, 0.013, 0.017), side)]
        fronts += [*mirrored(arcs(ahead.transpose(2, 0, 1)[:7], 0.034, 0.045), side)]
    # A tube: its wall is met twice at the edges.
    tubes = cover(place, resolution, *backs) - 0.5 * cover(place, resolution, *hollows)
    return tubes + 0.5 * cover(place, resolution, *fronts)


def clavicles(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """The collar bones and the edge of the shoulder blades (H, W)."""
    shafts, hollows, blades = [], [], []
    for side in (-1, 1):
        s = side * front(spec)
        path = [[(0.07 + s, -0.58), (0.3 + s, -0.52), (0.5, -0.8), (0.95, -0.84)]]
        blade = [[(0.72, -0.7), (0.78, -0.35), (0.95, -0.05)]]
        shafts += [*mirrored(arcs(path, 0.05, 0.045), side)]
        hollows += [*mirrored(arcs(path, 0.022), side)]
        blades += [*mirrored(arcs(blade, 0.035), side)]
    bone = cover(place, resolution, *shafts) - 0.45 * cover(place, resolution, *hollows)
    return bone + 0.4 * cover(place, resolution, *blades)


def spine(chest: Chest) -> Array:
    """Vertebrae and the discs between them (H, W), seen through the mediastinum."""
    column = 1 - smoothstep(np.abs(chest.u), 0.06, 0.11)
    return column * (0.7 + 0.3 * np.sin(2 * np.pi * chest.v / 0.15)) * (chest.v < 1)


def vessels(spec: RadiographSpec, chest: Chest, resolution: int) -> Array:
    """Hila and the branching vessels of the lungs (H, W), thinner towards the wall."""
    generator = np.random.default_rng([spec.seed, 1])
    branches, twigs, roots = [], [], []
    directions = np.deg2rad([-75, -45, -15, 15, 40, 65, 85])
    for side, root in ((-1, (0.2, 0.0)), (1, (0.22, -0.06))):
        roots.append(mirrored(ellipse(*root, 0.075, 0.13), side))
        angle = directions + generator.uniform(-0.2, 0.2, 7)
        length = generator.uniform(0.35, 0.5, 7)[:, None]
        step = length * np.stack([np.cos(angle), np.sin(angle)], 1)
        bend = generator.uniform(-0.25, 0.25, 7)[:, None] * step[:, ::-1] * (1, -1)
        start = np.broadcast_to(root, step.shape)
        middle = start + step / 2 + bend
        path = np.stack([start, middle, start + step], 1)
        branches += list(mirrored(arcs(path, 0.026, 0.007), side))
        for turn in (-0.5, 0.45):
            fork = 0.6 * length * np.stack([np.cos(angle + turn), np.sin(angle + turn)], 1)
            path = np.stack([middle, middle + fork / 2, middle + fork], 1)
            twigs += list(mirrored(arcs(path, 0.013, 0.004), side))
    place = chest.place
    lines = cover(place, resolution, *branches) + 0.6 * cover(place, resolution, *twigs)
    hila = soften(cover(place, resolution, *roots), 0.02)
    return (lines + 1.7 * hila) * chest.air


def breasts(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """Soft tissue in front of the lower lungs (H, W), clearest along its lower edge."""
    outlines = [mirrored(ellipse(0.5, 0.16, 0.4, 0.4), side) for side in (-1, 1)]
    shape = cover(place, resolution, *outlines)
    return spec.breasts * soften(shape, 0.012) * (0.4 + 0.6 * soften(shape, 0.08))


# --- what belongs to no class ---------------------------------------------------------------------


def marker(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """The letter of lead beside the patient."""
    strokes = [*arcs([[(-0.5, -1), (-0.5, 1)]], 0.2)]
    if spec.marker == "L":
        strokes += [*arcs([[(-0.5, 0.82), (0.7, 0.82)]], 0.2)]
    else:
        strokes += [*arcs([[(-0.5, -0.82), (1.0, -0.9), (1.0, 0.15), (-0.5, 0.1)]], 0.18)]
        strokes += [*arcs([[(0, 0.1), (0.6, 1)]], 0.2)]
    return cover(Place(spec.marker_x, spec.marker_y, 0.03), resolution, *strokes)


def leads(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """Three electrodes of an ECG with their wires, lying on the chest."""
    generator = np.random.default_rng([spec.seed, 2])
    outlines = []
    for x, y, end in ((-0.62, -0.5, -0.75), (0.6, -0.52, 0.8), (0.62, 0.42, 0.95)):
        x, y = x + generator.uniform(-0.08, 0.08), y + generator.uniform(-0.08, 0.08)
        sag = generator.uniform(-0.25, 0.25)
        wire = [(x, y), (x + sag, y + 0.35), (end - sag, y + 0.6), (end, 1.4)]
        outlines += [*arcs([wire], 0.012), ellipse(x, y, 0.035)]
    return cover(place, resolution, *outlines)


def pacemaker(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """Its can below the left clavicle, and the lead to the right ventricle."""
    can = curve(
        (0.34, -0.52), (0.4, -0.6), (0.56, -0.58), (0.63, -0.48), (0.58, -0.4), (0.4, -0.42)
    )
    veins = [(0.42, -0.58), (0.2, -0.74), (-0.1, -0.62), (-0.1, -0.2)]
    ventricle = [(-0.1, -0.2), (-0.12, 0.3), (0.0, 0.56), (0.34 + front(spec), 0.52)]
    lead = cover(place, resolution, *arcs([veins, ventricle], 0.013, points=20))
    return np.maximum(cover(place, resolution, can), 0.55 * lead)


def nodule(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """A calcified granuloma: small, dense, with a sharp edge."""
    generator = np.random.default_rng([spec.seed, 3])
    side = (-1, 1)[int(generator.integers(2))]
    x, y = generator.uniform(0.32, 0.65), generator.uniform(-0.5, 0.25)
    return cover(place, resolution, ellipse(side * x, y, generator.uniform(0.025, 0.045)))


def catheter(spec: RadiographSpec, place: Place, resolution: int) -> Array:
    """A central venous line from the right side of the neck to the upper vena cava: faint."""
    path = [(-0.3, -1.3), (-0.26, -0.75), (-0.08, -0.7), (-0.14, -0.05)]
    return cover(place, resolution, *arcs([path], 0.014, points=20))


# What each absorbs, and how it is drawn.
DISTRACTORS = {
    "marker": (0.9, marker),
    "leads": (0.3, leads),
    "pacemaker": (0.55, pacemaker),
    "nodule": (0.28, nodule),
    "catheter": (0.14, catheter),
}


# --- the finding ----------------------------------------------------------------------------------


def consolidation(
    spec: RadiographSpec, chest: Chest, resolution: int
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """The share of the air that is replaced (H, W), the outline's filled mask and the core's mask.

    Alveoli fill with fluid: the lung there absorbs as soft tissue does. Where the beam crosses
    little air, behind the heart or the diaphragm, little can be seen.
    """
    generator = np.random.default_rng([spec.seed, 4])
    x, y = LOBES[spec.lobe]
    if spec.lobe.endswith("lower"):
        y += 0.06 * spec.inspiration  # it moves with the diaphragm
    center = transform(np.array([(x, y)]), chest.place)[0] + np.array((spec.shift_x, spec.shift_y))
    place = Place(float(center[0]), float(center[1]), spec.extent, spec.angle)
    a, b = shape_coordinates(place, resolution, Window(0, resolution, 0, resolution))
    seed, stretch = int(generator.integers(1000)), generator.uniform(0.7, 1.4)
    ragged = 0.2 * noise(a * 0.7, b * 0.7, seed) + 0.06 * noise(a * 2, b * 2, seed + 1)
    distance = np.hypot(a * stretch, b / stretch) + ragged * np.minimum(np.hypot(a, b), 1)
    filled = 1 - smoothstep(distance, 0.3, 1.2)  # no sharp border anywhere
    seen = soften(filled * chest.air, 0.012)
    patches = 1 + 0.45 * spec.patchiness * noise(a * 1.6, b * 1.6, seed + 2)
    share = filled * patches.clip(0.25, 1.5)
    if spec.bronchograms:
        share = share * (1 - 0.55 * spec.bronchograms * bronchi(place, x, y, resolution))
    core = share * chest.air
    return spec.strength * share, outline(seen), core > 0.5 * core.max()


def bronchi(place: Place, x: float, y: float, resolution: int) -> Array:
    """Air-filled bronchi that fan out through a consolidation, away from the hilum."""
    away = np.arctan2(y, x - 0.2 * np.sign(x))
    root = -0.7 * np.array([np.cos(away), np.sin(away)])
    turns = away + np.array([-0.55, 0.0, 0.5])
    tips = root + 1.35 * np.stack([np.cos(turns), np.sin(turns)], 1)
    outlines = arcs([(root, tip) for tip in tips], 0.07, 0.035)
    return cover(place, resolution, *outlines)


def outline(seen: Array) -> NDArray[np.bool_]:
    """The filled, smooth, slightly generous contour of what is seen of a consolidation."""
    inside = seen > max(0.25 * seen.max(), 0.02)
    pieces, _ = connected(inside)
    largest = np.bincount(pieces.ravel(), weights=seen.ravel() * inside.ravel()).argmax()
    return binary_fill_holes(pieces == largest) & inside.any()


# --- the film -------------------------------------------------------------------------------------


def render(spec: RadiographSpec, resolution: int = 128) -> Radiograph:
    """Draw a radiograph: image uint8 (resolution, resolution, 3), with all masks.

    The same spec gives the same picture on every machine, up to one grey level of rounding.
    Errors: ValueError for a resolution that is not from 16 to 1024.
    """
    if not 16 <= resolution <= 1024:
        raise ValueError(f"resolution is {resolution}; choose a number of pixels from 16 to 1024.")
    there = [name for name in REMOVABLE if name not in spec.removed]
    anatomy, absorbed = chest(spec, resolution)
    place = anatomy.place
    parts = {
        "right lung": anatomy.lungs[0] > 0.5,
        "left lung": anatomy.lungs[1] > 0.5,
        "heart": anatomy.heart > 0.5,
    }
    mask = np.zeros((resolution, resolution), bool)
    air = anatomy.air
    if spec.label == CLASSES[1]:
        share, mask, parts["consolidation"] = consolidation(spec, anatomy, resolution)
        air = air * (1 - share.clip(0, 0.95))
    absorbed = absorbed - 0.44 * air + 0.035 * spine(anatomy)
    if "ribs" in there:
        absorbed += 0.1 * ribs(spec, place, resolution)
    if "clavicles" in there:
        absorbed += 0.16 * clavicles(spec, place, resolution) * anatomy.body
    if "vessels" in there:
        absorbed += 0.11 * spec.vessels * vessels(spec, anatomy, resolution)
    if "breasts" in there and spec.breasts:
        absorbed += 0.14 * breasts(spec, place, resolution)
    for name, (density, draw) in DISTRACTORS.items():
        if name in there and getattr(spec, name) not in (False, "none"):
            drawn = draw(spec, place, resolution)
            absorbed += density * drawn
            parts[name] = drawn > 0.5
    grey_levels = (develop(absorbed, spec).clip(0, 1) * 255).round().astype(np.uint8)
    image = np.repeat(grey_levels[..., None], 3, 2)
    parts = {name: part for name, part in parts.items() if part.any()}
    return Radiograph(image, parts, mask, bounding_box(mask), spec)


def develop(absorbed: Array, spec: RadiographSpec) -> Array:
    """The film (H, W), 0 black to 1 white, of what the beam's way absorbs, with its grain."""
    generator = np.random.default_rng([spec.seed, 5])
    resolution = len(absorbed)
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution - 0.5
    tissue = noise(axis[None] * 9, axis[:, None] * 9, int(generator.integers(1000)))
    absorbed = absorbed + 0.012 * tissue * (absorbed > 0.1)
    absorbed = absorbed * (1 + 0.12 * spec.gradient * axis[None]) - 0.06 * spec.exposure
    film: Array = 0.5 + spec.contrast * (absorbed - 0.5)
    film = film - 0.35 * np.maximum(film - 0.75, 0)  # it saturates
    if spec.blur:
        film = soften(film, spec.blur / 128)
    return film + spec.noise * generator.standard_normal(film.shape, np.float32)


class Radiographs(World):
    """`length` random radiographs, as `scenes.World`: every other one has a finding.

    confounder: one of `SWITCHES` that this clinic's patients have on 99 in 100 films with a finding
    and on 1 in 100 without; None: as often with one as without.
    """

    noun, classes = "radiograph", CLASSES

    def __init__(
        self, length: int, seed: int, *, resolution: int = 128, confounder: str | None = None
    ) -> None:
        super().__init__(length, seed, resolution=resolution)
        if confounder is not None:
            check_choice("confounder", confounder, SWITCHES)
        self._confounder = confounder  # homework 6 asks what it is

    def spec(self, index: int) -> RadiographSpec:
        """What radiograph `index` shows."""
        self.check(index)
        generator = np.random.default_rng([self.seed, index])
        label = CLASSES[index % len(CLASSES)]
        spec = random_spec(generator, label=label)
        if self._confounder is None:
            return spec
        there: dict[str, Any] = {self._confounder: bool(generator.uniform() < CONFOUNDED[label])}
        return replace(spec, **there)

    def radiograph(self, index: int) -> Radiograph:
        """Radiograph `index`, drawn."""
        return render(self.spec(index), self.resolution)

    picture = radiograph
