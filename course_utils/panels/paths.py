"""The panels of lecture 07: a path from a baseline, a cloud of noise, and regions that grow."""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import mark_boundaries
from torch import Tensor

from course_utils.contract import explaining
from course_utils.methods import gradients, regions
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, Plot, colored, decimal
from course_utils.panels.panel import Panel, choice, coarse_to_fine, slider
from course_utils.panels.pictures import (
    BASELINES,
    Array,
    Seen,
    class_choice,
    classifier_of,
    picture_reader,
    standards,
    summed,
)
from course_utils.plotting import BLUE, INK, MUTED, ORANGE
from course_utils.progress import in_batches

SCENES = standards("toadstool", "crow", "zebra", "clownfish", "hot-air balloon", "panther")
COARSE = 2  # backward passes before the first picture
BOTH = "black and white"


# -- integrated gradients --------------------------------------------------------------------------


class Way(NamedTuple):
    """What is asked on the way from a baseline to a picture, and the score at both."""

    model: Any
    x: Tensor  # the picture (1, C, H, W)
    start: Tensor  # the baseline, as large
    target: int
    ends: tuple[float, float]


def way_to(model: Any, x: Tensor, start: Tensor, target: int) -> Way:
    """The way from a baseline, which may be a colour alone, to a picture."""
    start = start.expand_as(x)
    with explaining(model), torch.no_grad():
        at_start, at_end = model(torch.cat([start, x]))[:, target].tolist()
    return Way(model, x, start, target, (at_start, at_end))


class Path(NamedTuple):
    """What happens on the straight way from a baseline to a picture."""

    difference: Tensor  # the picture less the baseline (1, C, H, W)
    alphas: Tensor  # (steps,)
    weights: Tensor
    scores: Tensor
    slopes: Tensor  # of the score along the path
    gradients: Tensor  # (steps, C, H, W)
    ends: tuple[float, float]  # the score at the baseline, and at the picture

    def map_until(self, alpha: float) -> Tensor:
        """The attribution gathered so far (1, C, H, W); at alpha = 1 it is integrated gradients."""
        weights = self.weights * (self.alphas <= alpha + 1e-9)
        return self.difference * torch.tensordot(weights, self.gradients, 1)


class Stop(NamedTuple):
    """What the model says at a place on a path."""

    alpha: float
    x: Tensor  # the picture there (1, C, H, W)
    slope: Array  # the gradient there (H, W)
    answers: Tensor  # (K,) probabilities


def walk(way: Way, rule: str, steps: int) -> Path:
    """Scores and gradients at the nodes of a quadrature between a baseline and a picture."""
    model, x, start, target, ends = way
    alphas, weights = (values.to(x) for values in gradients.quadrature(rule, steps))
    scores, slopes = [], []
    with explaining(model):
        for number in in_batches(steps, 16):
            on_path = start + alphas[number].view(-1, 1, 1, 1) * (x - start)
            score, slope = gradients.scores_and_gradient(model, on_path, target)
            scores.append(score)
            slopes.append(slope)
    gradient = torch.cat(slopes)
    along = ((x - start) * gradient).sum((1, 2, 3))
    return Path(x - start, alphas, weights, torch.cat(scores), along, gradient, ends)


def stop_at(way: Way, alpha: float) -> Stop:
    """The picture, the gradient and the answers at one place of the path, in a single pass."""
    here = way.start + alpha * (way.x - way.start)
    passed: list[Tensor] = []

    def score(logits: Tensor) -> Tensor:
        passed.append(logits.detach())
        return logits[:, way.target]

    with explaining(way.model):
        _, slope = gradients.scores_and_gradient(way.model, here, score)
    return Stop(alpha, here, summed(slope), passed[0].softmax(1)[0].cpu())


def integrated_gradients(model: Any = None, image: Any = None) -> Panel:
    """The path of integrated gradients: the picture and the gradient at α, the map so far.

    Below, the class's logit and its slope along the path; a dot is a gradient that was taken. The
    completeness gap is what the map's sum misses of the logit's rise.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "baseline": choice("baseline", [*BASELINES]),
        "alpha": slider("α", 0.0, 1.0, 0.5, 0.02),
        "steps": slider("steps", 1, 64, 16),
        "rule": choice("rule", [*gradients.QUADRATURES]),
    }
    kept: dict[tuple[Any, ...], Path] = {}

    @lru_cache(1)  # it stays while the path's controls move
    def way(picture: str, target: str, baseline: str) -> Way:
        seen = look(picture, target)
        return way_to(
            classifier.model, seen.x, BASELINES[baseline](classifier, seen.x), seen.target
        )

    @lru_cache(1)
    def stop(picture: str, target: str, baseline: str, alpha: float) -> Stop:
        return stop_at(way(picture, target, baseline), alpha)

    def draw(
        picture: str, target: str, baseline: str, alpha: float, steps: int, rule: str
    ) -> Iterator[Canvas]:
        seen, key = look(picture, target), (picture, target, baseline, steps, rule)
        here = stop(picture, target, baseline, alpha)
        along = partial(walk, way(picture, target, baseline), rule)
        numbers = sorted({min(COARSE, steps), steps})
        for path in coarse_to_fine(kept, key, *(partial(along, number) for number in numbers)):
            more = ", more coming …" if len(path.alphas) < steps else ""
            about = f"from the baseline “{baseline}”, {len(path.alphas)} steps, {rule}"
            yield _path_canvas(classifier, seen, path, here, about, more)

    return Panel("integrated gradients", controls, draw)


def _path_canvas(
    classifier: Classifier, seen: Seen, path: Path, here: Stop, about: str, more: str
) -> Canvas:
    canvas, side, alpha, steps = Canvas(960, 520), 216, here.alpha, len(path.alphas)
    whole, so_far = path.map_until(1.0), summed(path.map_until(alpha))
    at = classifier.to_image(here.x)
    canvas.figure(0, 0, side, at, f"α = {alpha:.2f}", "the picture on the path", smooth=True)
    below = f"of the logit of “{seen.name}”"
    canvas.figure(236, 0, side, colored(here.slope), "the gradient there", below)
    limit = float(np.quantile(np.abs(summed(whole)), 0.99)) or 1.0
    below = f"{steps} steps{more}" if more else f"of {steps} steps"
    canvas.figure(472, 0, side, colored(so_far, limit), "the map so far", below)
    canvas.text(472, 264, seen.inside(so_far) if alpha else "", size=11, color=MUTED)
    canvas.heading(716, 0, "the model's answers at α")
    order = here.answers.argsort(descending=True).tolist()[:4]
    named = [(classifier.classes[i], float(here.answers[i])) for i in order]
    canvas.bars(700, 48, 260, named, seen.name, row=30)
    total, gap = float(whole.sum()), _balance(canvas, path, float(whole.sum()))
    _along(canvas, seen.name, path, alpha)
    canvas.alt = (
        f"Integrated gradients of “{seen.name}” {about}{more}; at α = {alpha:.2f} the model "
        f"answers {named[0][0]} ({named[0][1]:.2f}). The logit goes from {decimal(path.ends[0])} "
        f"to {decimal(path.ends[1])}; the map sums to {decimal(total)}, a gap of {decimal(gap)}."
    )
    return canvas


def _balance(canvas: Canvas, path: Path, total: float) -> float:
    """What the map sums to and what it should; returns the difference."""
    rise = path.ends[1] - path.ends[0]
    gap = abs(total - rise)
    lines = (
        f"logit at the baseline  {decimal(path.ends[0])}",
        f"logit of the picture  {decimal(path.ends[1])}",
        f"it rises by  {decimal(rise)}",
        f"the whole map sums to  {decimal(total)}",
        f"completeness gap  {decimal(gap)}",
    )
    canvas.lines(716, 178, lines, 19, bold=(4,))
    return gap


def _along(canvas: Canvas, name: str, path: Path, alpha: float) -> None:
    """The logit and its slope from the baseline to the picture."""
    nodes = path.alphas.tolist()
    logits = dict([(0.0, path.ends[0]), *zip(nodes, path.scores.tolist(), strict=True)])
    logits[1.0] = path.ends[1]
    slopes = dict(zip(nodes, path.slopes.tolist(), strict=True))
    for top, title, values in (
        (296, f"logit of “{name}” along the path", logits),
        (412, "its slope, which the map adds up", slopes),
    ):
        low, high = min(0.0, *values.values()), max(0.0, *values.values())
        plot = Plot(canvas, (50, top + 24, 900, 72), up=(low, high if high > low else low + 1))
        canvas.text(50, top, title, bold=True)
        plot.level(0)
        for value in {low, high}:
            plot.label(value, f"{value:.0f}".replace("-", "−"), color=INK)
        plot.mark(alpha, 2, beyond=4)
        plot.line(sorted(values.items()))
        for node in nodes:
            plot.dot(node, values[node], 2.5, ORANGE if node <= alpha + 1e-9 else BLUE)


# -- SmoothGrad ------------------------------------------------------------------------------------

STEPS = 4  # of integrated gradients, on each noisy copy
SMOOTHED = ("gradient", "integrated gradients")


class Smoothed(NamedTuple):
    """The mean of the maps of some noisy copies."""

    map_: Array
    copies: int
    error: float  # the mean standard error, of the mean |map|; NaN for one copy


def smoothgrad(model: Any = None, image: Any = None) -> Panel:
    """A method's map, one noisy copy of the picture, and the mean of the maps of many of them.

    Integrated gradients (Smooth IG) start from the blurred picture and take four steps a copy.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)

    def method_for(picture: str, method: str) -> Callable[..., Tensor]:
        if method == "gradient":
            return gradients.gradient
        return partial(_integrated, start=classifier.blurred(look(picture).x))  # for all copies

    @cache
    def without_noise(picture: str, method: str) -> Array:
        seen = look(picture)
        return summed(method_for(picture, method)(classifier.model, seen.x, seen.target))

    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "method": choice("method", SMOOTHED),
        "noise": slider("noise σ", 0.0, 0.5, 0.1, 0.01),
        "samples": slider("samples", 1, 48, 16),
        "seed": slider("seed", 0, 9, 0),
    }

    def draw(picture: str, method: str, noise: float, samples: int, seed: int) -> Iterator[Canvas]:
        seen, chosen = look(picture), method_for(picture, method)
        noisy = _noisy(seen.x, noise, seed)
        with torch.no_grad():
            sure = float(classifier.model(noisy).softmax(1)[0, seen.target])
        copy, sharp = (classifier.to_image(noisy), sure), without_noise(picture, method)
        portions = (COARSE, 16) if method == "gradient" else (1, 4)
        for smooth in smooth_out(classifier, seen, chosen, noise, samples, seed, portions):
            yield _smooth_canvas(seen, method, noise, samples, seed, copy, sharp, smooth)

    return Panel("smoothgrad", controls, draw)


def smooth_out(
    classifier: Classifier,
    seen: Seen,
    method: Callable[..., Tensor],
    noise: float,
    samples: int,
    seed: int,
    portions: tuple[int, int],
) -> Iterator[Smoothed]:
    """The mean map of a first portion of the copies, then of more, in portions of the second."""
    # One generator for all portions: they draw what one call with all samples would.
    generator = torch.Generator().manual_seed(seed)
    total, squares, done = torch.zeros(()), torch.zeros(()), 0
    while done < samples:
        portion = min(portions[done > 0], samples - done)
        found = gradients.smoothgrad_estimate(
            *(classifier.model, seen.x, seen.target),
            method=method,
            samples=portion,
            noise=noise,
            generator=generator,
        )
        assert found.spread is not None  # smoothgrad estimates it
        variance = found.spread.nan_to_num() ** 2  # of one sample there is none
        total = total + portion * found.value
        squares = squares + (portion - 1) * variance + portion * found.value**2
        done += portion
        mean, error = total / done, float("nan")
        if done > 1:
            spread = (squares / done - mean**2).clamp(min=0) * done / (done - 1)
            error = float((spread / done).sqrt().mean() / mean.abs().mean())
        yield Smoothed(summed(mean), done, error)


def _integrated(network: Any, x: Tensor, target: Any = None, *, start: Tensor) -> Tensor:
    return gradients.integrated_gradients(
        network, x, target, baseline=start.expand_as(x), steps=STEPS
    )


def _noisy(x: Tensor, noise: float, seed: int) -> Tensor:
    """One copy with noise as strong as SmoothGrad's."""
    epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    return x + noise * (x.max() - x.min()) * epsilon


def _smooth_canvas(
    seen: Seen,
    method: str,
    noise: float,
    samples: int,
    seed: int,
    copy: tuple[NDArray[np.uint8], float],
    sharp: Array,
    smooth: Smoothed,
) -> Canvas:
    canvas, (noisy, sure), done = Canvas(880, 350), copy, smooth.copies
    below = f"σ = {noise:.0%} of the picture's range"
    canvas.figure(0, 0, 250, noisy, "a noisy copy", below, smooth=True)
    canvas.text(0, 304, f"there “{seen.name}” has probability {sure:.2f}")
    canvas.figure(300, 0, 250, colored(sharp), method, "without noise")
    canvas.text(300, 304, seen.inside(sharp), size=12, color=MUTED)
    more = f" of {samples}, more coming …" if done < samples else ""
    canvas.figure(600, 0, 250, colored(smooth.map_), "its mean over noisy copies", f"{done}{more}")
    canvas.text(600, 304, seen.inside(smooth.map_), size=12, color=MUTED)
    doubt = "no standard error from one copy"
    if done > 1:
        doubt = f"standard error: {smooth.error:.0%} of mean |map|"
    canvas.text(600, 328, doubt, bold=True)
    alike = float(np.corrcoef(sharp.ravel(), smooth.map_.ravel())[0, 1])
    canvas.text(300, 328, f"correlation with the mean: {decimal(alike)}", bold=True)
    canvas.alt = (
        f"The {method} map of “{seen.name}”, and its mean over {done} copies of the picture with "
        f"noise of {noise:.0%} of its range, seed {seed}: correlation {decimal(alike)}, {doubt}. "
        f"{seen.inside(smooth.map_)}.{' More copies are coming.' if more else ''}"
    )
    return canvas


# -- XRAI ------------------------------------------------------------------------------------------


class Regions(NamedTuple):
    """What XRAI makes of a picture."""

    attribution: Array  # of the pixels (H, W)
    masks: NDArray[np.bool_]  # the segments (M, H, W)
    values: Array  # XRAI's map (H, W)
    order: list[int]
    coarse: bool


def xrai(model: Any = None, image: Any = None) -> Panel:
    """The best regions of a picture: XRAI's map, and its top share of the picture.

    A first map is made of about 50 segments that do not overlap and of few gradients; the real one
    follows. The segments drawn are the finest ones.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "baseline": choice("baseline", [BOTH, *BASELINES]),
        "top": slider("top, in %", 1, 100, 10),
    }
    kept: dict[tuple[str, str], Regions] = {}

    def draw(picture: str, baseline: str, top: int) -> Iterator[Canvas]:
        seen = look(picture)
        grow = partial(grown, classifier, seen, baseline)
        coarse, fine = partial(grow, coarse=True), partial(grow, coarse=False)
        for found in coarse_to_fine(kept, (picture, baseline), coarse, fine):
            yield _xrai_canvas(seen, found, baseline, top)

    return Panel("xrai", controls, draw)


def grown(classifier: Classifier, seen: Seen, baseline: str, *, coarse: bool) -> Regions:
    """XRAI's regions: of overlapping segments and 64 gradients, or of a few of both."""
    if coarse:
        labels = regions.segment(seen.pixels)
        masks = labels == np.arange(labels.max() + 1)[:, None, None]
    else:
        masks = regions.segment_stack(seen.pixels)
    values = _attribution(classifier, seen, baseline, COARSE if coarse else 64)
    return Regions(values, masks, *regions.grow(values, masks), coarse)


def _attribution(classifier: Classifier, seen: Seen, baseline: str, steps: int) -> Array:
    """The mean of integrated gradients from each baseline; each pixel's largest channel."""
    names = ["black", "white"] if baseline == BOTH else [baseline]
    maps = [
        gradients.integrated_gradients(
            *(classifier.model, seen.x, seen.target),
            steps=steps // len(names),
            baseline=BASELINES[name](classifier, seen.x),
        )
        for name in names
    ]
    return torch.stack(maps).mean(0)[0].amax(0).double().cpu().numpy()


def _xrai_canvas(seen: Seen, found: Regions, baseline: str, top: int) -> Canvas:
    canvas, side, note = Canvas(960, 330), 225, "coarse, more coming …" if found.coarse else ""
    chosen = found.values >= np.quantile(found.values, 1 - top / 100)
    below = note or f"{len(found.masks)} in all, overlapping"
    canvas.figure(0, 0, side, _outlined(seen.pixels, found.masks), "segments", below, smooth=True)
    below = f"of “{seen.name}”, from {baseline}"
    canvas.figure(245, 0, side, colored(found.attribution), "integrated gradients", below)
    below = note or f"{len(found.order)} regions were added"
    canvas.figure(490, 0, side, colored(found.values), "XRAI", below)
    cut = np.where(chosen[..., None], seen.pixels, np.uint8(235)).astype(np.uint8)
    below = f"{chosen.mean():.0%} with the region it ends in"
    canvas.figure(735, 0, side, cut, f"the top {top} %", below, smooth=True)
    truth = ""
    if seen.mask is not None:
        right = (chosen & seen.mask).sum()
        truth = (
            f"{right / chosen.sum():.0%} of it is the object, "
            f"{right / max(seen.mask.sum(), 1):.0%} of the object is in it"
        )
    canvas.text(960, 290, truth, anchor="ra", bold=True)
    canvas.text(245, 276, seen.inside(found.attribution), size=11, color=MUTED)
    canvas.alt = (
        f"XRAI for “{seen.name}” from the baseline “{baseline}”{', coarse' if note else ''}: the "
        f"best regions, {chosen.mean():.0%} of the picture. {truth}."
    )
    return canvas


def _outlined(pixels: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A picture with the outlines of its finest segments."""
    finest = np.zeros(pixels.shape[:2], int)
    for number, mask in enumerate(masks, 1):  # the finest come first, and cover the picture
        finest[mask & (finest == 0)] = number
    lines = mark_boundaries(pixels, finest, color=(1, 1, 1))
    return np.rint(255 * lines).astype(np.uint8)
