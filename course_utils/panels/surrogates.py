"""The panels of lecture 08: a line fitted nearby, and LIME of a picture."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import mark_boundaries
from torch import Tensor

from course_utils import plotting
from course_utils.methods import regions
from course_utils.methods.lime import (
    Surrogate,
    cosine_distance,
    proximity,
    rank_agreement,
    sample_image,
    surrogate,
)
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, Plot, decimal
from course_utils.panels.panel import Panel, choice, coarse_to_fine, slider
from course_utils.panels.pictures import (
    PAIR,
    Array,
    Seen,
    class_choice,
    classifier_of,
    picture_reader,
    standards,
)
from course_utils.plotting import BLUE, FAINT, INK, MUTED, ORANGE


def _effective(weights: Array) -> float:
    """As how many equal weights these count: (Σ π)² / Σ π²."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _known(value: float) -> str:
    """A number with two decimals, or that there is none."""
    return "unknown" if np.isnan(value) else decimal(value)


# -- a line in the plane ---------------------------------------------------------------------------

REACH = 2.0  # the plane shown is [−2, 2]²


def wave(points: Array) -> Array:
    """A model of two numbers (N, 2) → (N,): a probability, ½ on a curved line."""
    a, b = points.T
    return 1 / (1 + np.exp(-6 * (b - 0.8 * np.sin(2.2 * a))))


def neighbourhood(model: Any = None, image: Any = None) -> Panel:
    """A model of two numbers, samples around a point, and the line that fits them best nearby.

    model: points (N, 2) → (N,), from 0 to 1; None for a wavy one. The samples are drawn around the
    point with standard deviation 1; the larger a dot, the more it counts. `image` is not used.
    """
    function = wave if model is None else model
    if not callable(function):
        raise TypeError(f"model must be a function of points, not {type(model).__name__}.")
    controls: dict[str, Any] = {
        "width": slider("kernel width", 0.1, 4.0, 0.5, 0.1),
        "a": slider("a of the point", -1.6, 1.6, 0.3, 0.1),
        "b": slider("b of the point", -1.6, 1.6, 0.3, 0.1),
        "samples": slider("samples", 10, 400, 200),
        "seed": slider("seed", 0, 9, 0),
    }
    ticks = np.linspace(-REACH, REACH, 81)
    plane = np.stack(np.meshgrid(ticks, ticks[::-1]), -1)
    field = function(plane.reshape(-1, 2)).reshape(81, 81) - 0.5

    def draw(width: float, a: float, b: float, samples: int, seed: int) -> Canvas:
        here = np.array([a, b])
        points = here + np.random.default_rng(seed).standard_normal((samples, 2))
        points[0] = here
        weights = proximity(np.linalg.norm(points - here, axis=1), width)
        near = Near(points, weights, function(points))
        about = f"{samples} samples around ({decimal(a)}, {decimal(b)}), seed {seed}"
        return _plane_canvas(field, near, width, float(function(here[None])[0]), about)

    return Panel("neighbourhood", controls, draw)


class Near(NamedTuple):
    """Samples around a point, which is the first of them."""

    points: Array  # (N, 2)
    weights: Array  # (N,)
    answers: Array  # (N,)


def _plane_canvas(field: Array, near: Near, width: float, value: float, about: str) -> Canvas:
    line, here = surrogate(near.points, near.answers, near.weights), near.points[0]
    canvas = Canvas(760, 440)
    canvas.picture(0, 0, 400, plotting.colorize(field, "signed", 1.6), smooth=True)
    _samples(canvas, near, line)
    canvas.text(0, 410, "dots: samples, larger where they count more;  line: g = ½", size=12)
    canvas.heading(430, 0, "the line's model", f"kernel width {width:.1f}")
    a, b = map(decimal, line.coefficients)
    lines = (
        f"f at the point  {decimal(value)}",
        f"g at the point  {decimal(float(here @ line.coefficients + line.intercept))}",
        f"weight of a  {a}",
        f"weight of b  {b}",
        f"R²  {_known(line.r2)}",
        f"it rests on as much as {_effective(near.weights):.0f} of {len(near.points)} samples",
    )
    canvas.lines(430, 52, lines, 24, size=14, bold=(2, 3))
    canvas.alt = (
        f"A curved boundary, {about}, and the line fitted with kernel width {width:.1f}: weights "
        f"{a} and {b}, R² {_known(line.r2)}."
    )
    return canvas


def _samples(canvas: Canvas, near: Near, line: Surrogate) -> None:
    """The samples on the plane, the line on which the linear model says ½, and the point."""
    plot = Plot(canvas, (0, 0, 400, 400), across=(-REACH, REACH), up=(-REACH, REACH))
    inside = (np.abs(near.points) < REACH).all(1)
    for (a, b), weight, answer in zip(*(values[inside] for values in near), strict=True):
        plot.dot(a, b, 1 + 3.5 * weight**0.5, ORANGE if answer > 0.5 else BLUE)
    ends = _half_line(line.coefficients, line.intercept)
    if ends is not None:
        plot.line([tuple(end) for end in ends], INK, 3)
    x, y = plot.at(*near.points[0])
    canvas.box(x - 5, y - 5, 10, 10, fill="#ffd800", edge=INK, line=2)


def _half_line(coefficients: Array, intercept: float) -> tuple[Array, Array] | None:
    """Two points of the plane's rim between which intercept + coefficients · p = ½."""
    normal, level = coefficients, 0.5 - intercept
    length = float(normal @ normal)
    if length < 1e-12:
        return None
    foot, along = level * normal / length, np.array([-normal[1], normal[0]]) / length**0.5
    # Where the line is inside the square on both axes; along one of them it may be constant.
    low, high = -np.inf, np.inf
    for start, step in zip(foot, along, strict=True):
        if abs(step) > 1e-9:
            ends = sorted([(-REACH - start) / step, (REACH - start) / step])
            low, high = max(low, ends[0]), min(high, ends[1])
        elif abs(start) > REACH:
            return None
    return (foot + low * along, foot + high * along) if low < high else None


# -- LIME ------------------------------------------------------------------------------------------

COARSE = 8  # samples before the first picture
SAMPLES = (50, 100, 200, 300, 400, 500)
ALL = "all"
SCENES = {"tiger and zebra": PAIR} | standards("zebra", "toadstool", "cow", "crow")


class Cut(NamedTuple):
    """A picture in segments."""

    labels: NDArray[np.intp]  # (H, W)
    outlined: NDArray[np.uint8]  # the picture with their outlines


class Sampled(NamedTuple):
    """What the model said of a picture with segments hidden."""

    z: Tensor  # bool (S, P)
    logits: Tensor  # (S, K), of which the first is of the picture itself


class Fitted(NamedTuple):
    """A linear model of the samples, for one class."""

    line: Surrogate
    scores: Array  # (S,)
    weights: Array  # (S,)
    alike: str  # how well two halves of the samples agree


def lime(model: Any = None, image: Any = None) -> Panel:
    """LIME of a picture: its segments, one sample, the map, and the K best segments alone.

    Below, every sample: what the model says against what the linear model says. A first map comes
    from few samples. Kernel width, K and the class cost no further pass.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "segments": slider("segments", 10, 120, 50),
        "samples": choice("samples", SAMPLES, 200),
        "seed": slider("seed", 0, 9, 0),
        "width": slider("kernel width", 0.1, 1.0, 0.25, 0.05),
        "features": choice("K", [ALL, 1, 2, 3, 5, 8, 12]),
    }
    cut = cache(lambda picture, count: cut_up(look(picture).pixels, count))
    kept: dict[tuple[Any, ...], Sampled] = {}

    def draw(
        picture: str,
        target: str,
        segments: int,
        samples: int,
        seed: int,
        width: float,
        features: Any,
    ) -> Iterator[Canvas]:
        seen, pieces = look(picture, target), cut(picture, segments)
        ask = partial(sampled, classifier, seen.x, pieces.labels, seed)
        few, all_ = partial(ask, COARSE), partial(ask, samples)
        for found in coarse_to_fine(kept, (picture, segments, samples, seed), few, all_):
            fitted = fit(found, seen.target, width, None if features == ALL else features)
            more = "" if len(found.z) == samples else ", more coming …"
            about = f"seed {seed}, kernel width {width:.2f}, K {features}"
            yield _lime_canvas(classifier, seen, pieces, found, fitted, features, about, more)

    return Panel("lime", controls, draw)


def cut_up(pixels: NDArray[np.uint8], count: int) -> Cut:
    """About that many segments of a picture."""
    labels = regions.segment(pixels, n_segments=count)
    outlined = mark_boundaries(pixels, labels, color=(1, 1, 1))
    return Cut(labels, np.rint(255 * outlined).astype(np.uint8))


def sampled(
    classifier: Classifier, x: Tensor, labels: NDArray[np.intp], seed: int, samples: int
) -> Sampled:
    """Ask the model about a picture with segments hidden by its mean colour."""
    generator = torch.Generator().manual_seed(seed)
    given = classifier.model, x, labels
    return Sampled(*sample_image(*given, samples=samples, generator=generator))


def fit(found: Sampled, target: int, width: float, features: int | None) -> Fitted:
    """LIME's linear model of a class, and of each half of the samples."""
    scores = found.logits[:, target].numpy()
    weights = proximity(cosine_distance(found.z), width)
    line = surrogate(found.z, scores, weights, features=features)
    try:
        halves = [
            surrogate(found.z[half::2], scores[half::2], weights[half::2], features=features)
            for half in (0, 1)
        ]
        alike = _known(rank_agreement(np.stack([half.coefficients for half in halves])))
    except ValueError:  # a narrow kernel may leave one half with a single sample that counts
        alike = "cannot be said"
    return Fitted(line, scores, weights, alike)


def _lime_canvas(
    classifier: Classifier,
    seen: Seen,
    cut: Cut,
    found: Sampled,
    fitted: Fitted,
    features: Any,
    about: str,
    more: str,
) -> Canvas:
    canvas, side, x = Canvas(960, 470), 225, seen.x
    w, scores, weights = fitted.line.coefficients, fitted.scores, fitted.weights
    samples, players = found.z.shape

    def only(present: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """The picture with all other segments hidden."""
        shown = torch.from_numpy(present[cut.labels]).to(x.device)
        return classifier.to_image(torch.where(shown, x, x.mean((2, 3), keepdim=True)))

    canvas.figure(0, 0, side, cut.outlined, "segments", f"{players} of them", smooth=True)
    below = f"it gets {decimal(scores[1])}, weight {weights[1]:.2f}"
    canvas.figure(245, 0, side, only(found.z[1].numpy()), "a sample", below, smooth=True)
    colors = plotting.colorize(w[cut.labels], "signed")
    below = f"{samples} samples{more}" if more else f"of {samples} samples"
    canvas.figure(490, 0, side, colors, f"LIME of “{seen.name}”", below)
    canvas.text(490, 274, f"from {decimal(w.min())} to {decimal(w.max())} logits", size=12)
    best = np.argsort(-w, kind="stable")[: 5 if features == ALL else features]
    best = best[w[best] > 0]
    below = f"{len(best)} segments with the largest weights"
    alone = only(np.isin(np.arange(len(w)), best))
    canvas.figure(735, 0, side, alone, "the best alone", below, smooth=True)
    _scatter(canvas, 0, 300, found.z.numpy() @ w + fitted.line.intercept, scores, weights)
    _quality(canvas, fitted)
    canvas.alt = (
        f"LIME of “{seen.name}”, {players} segments, {samples} samples, {about}: R² "
        f"{_known(fitted.line.r2)}, two halves of the samples agree to {fitted.alike}."
        f"{' Coarse, more coming.' if more else ''}"
    )
    return canvas


def _quality(canvas: Canvas, fitted: Fitted) -> None:
    """How far the linear model can be trusted."""
    line, scores, weights = fitted.line, fitted.scores, fitted.weights
    errors = line.standard_error
    error = np.nanmedian(errors) if np.isfinite(errors).any() else np.nan
    there = decimal(float(line.coefficients.sum() + line.intercept))
    lines = (
        f"R² of the fit, nearby  {_known(line.r2)}",
        f"it rests on as much as {_effective(weights):.0f} of {len(scores)} samples",
        f"standard error of a weight  {_known(error)} (median)",
        f"two halves of the samples agree to  {fitted.alike}",
        f"logit of the picture  {decimal(scores[0])},  the linear model's  {there}",
    )
    canvas.lines(490, 312, lines, 24, bold=(0, 3))


def _scatter(
    canvas: Canvas, left: float, top: float, fitted: Array, scores: Array, weights: Array
) -> None:
    """Each sample's score against the linear model's, larger where it counts more."""
    canvas.text(left, top, "model (up) and linear model (right), every sample", bold=True)
    low = float(min(fitted.min(), scores.min()))
    high = low + (float(max(fitted.max(), scores.max())) - low or 1.0)
    plot = Plot(canvas, (left, top + 24, 440, 120), across=(low, high), up=(low, high))
    plot.line([(low, low), (high, high)], FAINT, 2)
    shade = weights / weights.max()
    for g, f, share in list(zip(fitted, scores, shade, strict=True))[::-1]:
        plot.dot(g, f, 1 + 2 * share**0.5, BLUE)
    plot.dot(fitted[0], scores[0], 4)
    below = "orange: the picture itself;  line: equal"
    canvas.text(left, top + 150, below, size=11, color=MUTED)
