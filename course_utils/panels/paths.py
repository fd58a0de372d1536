"""The panels of lecture 07: a path from a baseline, a cloud of noise, and regions that grow."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import mark_boundaries
from torch import Tensor

from course_utils import gradients, models, plotting, regions
from course_utils.contract import explaining, portions
from course_utils.panels.base import (
    Canvas,
    Panel,
    Seen,
    choice,
    classifier_of,
    decimal,
    looker,
    slider,
)
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE

SCENES = ("toadstool", "crow", "zebra", "clownfish", "hot-air balloon", "panther")
ANSWER = "the model's answer"
COARSE = 4  # backward passes before the first picture


def _random(classifier: models.Classifier, x: Tensor) -> Tensor:
    """Each number drawn between black and white, always the same."""
    share = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    return classifier.black(x) + share * (classifier.white(x) - classifier.black(x))


BASELINES: dict[str, Callable[[models.Classifier, Tensor], Tensor]] = {
    "black": lambda classifier, x: classifier.black(x),
    "white": lambda classifier, x: classifier.white(x),
    "mean colour": lambda classifier, x: torch.zeros_like(x),
    "random": _random,
    "blurred": lambda classifier, x: classifier.blurred(x),
}
BOTH = "black and white"


def _summed(attribution: Tensor) -> NDArray[np.float64]:
    """(1, C, H, W) → (H, W): the channels added."""
    return attribution[0].sum(0).double().cpu().numpy()


def _colored(map_: NDArray[np.float64], limit: float | None = None) -> NDArray[np.uint8]:
    """A signed map in colours; without a limit the strongest hundredth takes the end colours."""
    return plotting.colorize(map_, "signed", limit or float(np.quantile(np.abs(map_), 0.99)) or 1.0)


# -- integrated gradients --------------------------------------------------------------------------


class Path(NamedTuple):
    """What happens on the straight way from a baseline to a picture."""

    start: Tensor  # the baseline (1, C, H, W)
    difference: Tensor  # the picture less the baseline
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


def walk(
    classifier: models.Classifier, x: Tensor, start: Tensor, target: int, rule: str, steps: int
) -> Path:
    """Scores and gradients at the nodes of a quadrature between a baseline and a picture."""
    model, start = classifier.model, start.expand_as(x)
    alphas, weights = (values.to(x) for values in gradients.quadrature(rule, steps))
    scores, slopes = [], []
    with explaining(model):
        for number in portions(steps, 16, False):
            on_path = start + alphas[number].view(-1, 1, 1, 1) * (x - start)
            score, slope = gradients.scores_and_gradient(model, on_path, target)
            scores.append(score)
            slopes.append(slope)
        with torch.no_grad():
            ends = model(torch.cat([start, x]))[:, target].tolist()
    gradient = torch.cat(slopes)
    along = ((x - start) * gradient).sum((1, 2, 3))
    return Path(start, x - start, alphas, weights, torch.cat(scores), along, gradient, tuple(ends))


def integrated_gradients(model: Any = None, image: Any = None) -> Panel:
    """The path of integrated gradients: the picture and the gradient at α, the map so far.

    Below, the class's logit and its slope along the path; a dot is a gradient that was taken. The
    completeness gap is what the map's sum misses of the logit's rise.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "baseline": choice("baseline", [*BASELINES]),
        "alpha": slider("α", 0.0, 1.0, 0.5, 0.02),
        "steps": slider("steps", 1, 64, 16),
        "rule": choice("rule", [*gradients.QUADRATURES]),
    }
    kept: dict[tuple[Any, ...], Path] = {}  # of the last choice, so that α moves along it

    def draw(
        picture: str, target: str, baseline: str, alpha: float, steps: int, rule: str
    ) -> Iterator[Canvas]:
        seen, key = look(picture), (picture, target, baseline, steps, rule)
        index = seen.answer if target == ANSWER else classifier.classes.index(target)
        start = BASELINES[baseline](classifier, seen.x)
        here = start + alpha * (seen.x - start)
        with explaining(classifier.model):
            _, slope = gradients.scores_and_gradient(classifier.model, here, index)
            with torch.no_grad():
                answers = classifier.model(here).softmax(1)[0].cpu()
        if key not in kept:
            kept.clear()
        todo = [steps] if key in kept else sorted({min(COARSE, steps), steps})
        for number in todo:
            path = kept.get(key) or walk(classifier, seen.x, start, index, rule, number)
            if number == steps:
                kept[key] = path
            yield _path_canvas(
                classifier, seen, path, alpha, here, _summed(slope), answers, index, controls
            )

    return Panel("integrated gradients", controls, draw)


def _path_canvas(
    classifier: models.Classifier,
    seen: Seen,
    path: Path,
    alpha: float,
    here: Tensor,
    slope: NDArray[np.float64],
    answers: Tensor,
    index: int,
    controls: dict[str, Any],
) -> Canvas:
    name, side = classifier.classes[index], 216
    whole, so_far = path.map_until(1.0), _summed(path.map_until(alpha))
    total, rise = float(whole.sum()), path.ends[1] - path.ends[0]
    limit = float(np.quantile(np.abs(_summed(whole)), 0.99)) or 1.0
    coarse = len(path.alphas) < controls["steps"].value
    canvas = Canvas(960, 520)
    canvas.heading(0, 0, f"α = {alpha:.2f}", "the picture on the path")
    canvas.picture(0, 44, side, classifier.to_image(here), smooth=True)
    canvas.heading(236, 0, "the gradient there", f"of the logit of “{name}”")
    canvas.picture(236, 44, side, _colored(slope))
    below = f"{len(path.alphas)} steps, more coming …" if coarse else f"of {len(path.alphas)} steps"
    canvas.heading(472, 0, "the map so far", below)
    canvas.picture(472, 44, side, _colored(so_far, limit))
    canvas.heading(716, 0, "the model's answers at α")
    order = answers.argsort(descending=True).tolist()[:4]
    named = [(classifier.classes[i], float(answers[i])) for i in order]
    canvas.bars(700, 48, 260, named, name, row=30)
    gap = abs(total - rise)
    lines = (
        f"logit at the baseline  {decimal(path.ends[0])}",
        f"logit of the picture  {decimal(path.ends[1])}",
        f"it rises by  {decimal(rise)}",
        f"the whole map sums to  {decimal(total)}",
        f"completeness gap  {decimal(gap)}",
    )
    for row, line in enumerate(lines):
        canvas.text(716, 178 + 19 * row, line, bold=row == len(lines) - 1)
    canvas.text(472, 264, seen.inside(so_far) if alpha else "", size=11, color=MUTED)

    nodes = path.alphas.tolist()
    known = dict([(0.0, path.ends[0]), *zip(nodes, path.scores.tolist(), strict=True)])
    known[1.0] = path.ends[1]
    _curve(canvas, 296, f"logit of “{name}” along the path", known, nodes, alpha)
    slopes = dict(zip(nodes, path.slopes.tolist(), strict=True))
    _curve(canvas, 412, "its slope, which the map adds up", slopes, nodes, alpha)
    canvas.alt = (
        f"Integrated gradients of “{name}” from the baseline “{controls['baseline'].value}”, "
        f"{len(nodes)} steps, {controls['rule'].value}; at α = {alpha:.2f} the model answers "
        f"{named[0][0]} ({named[0][1]:.2f}). The logit goes from {decimal(path.ends[0])} to "
        f"{decimal(path.ends[1])}; the map sums to {decimal(total)}, a gap of {decimal(gap)}."
    )
    return canvas


def _curve(
    canvas: Canvas,
    top: float,
    title: str,
    values: dict[float, float],
    nodes: Sequence[float],
    alpha: float,
) -> None:
    """A line of values over α from 0 to 1, its nodes as dots, and where α is."""
    left, width, height = 50, 900, 72
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    room = high - low or 1.0

    def at(a: float, value: float) -> tuple[float, float]:
        return left + width * a, top + 24 + height * (high - value) / room

    canvas.text(left, top, title, bold=True)
    canvas.line([at(0, 0), at(1, 0)], FAINT)
    for value in {low, high}:
        canvas.text(left - 8, at(0, value)[1], f"{value:.0f}".replace("-", "−"), anchor="rm")
    canvas.line([(at(alpha, 0)[0], top + 20), (at(alpha, 0)[0], top + 28 + height)], ORANGE, 2)
    ordered = sorted(values.items())
    if len(ordered) > 1:
        canvas.line([at(a, value) for a, value in ordered], BLUE, 2)
    for a in nodes:
        x, y = at(a, values[a])
        canvas.box(x - 2.5, y - 2.5, 5, 5, fill=ORANGE if a <= alpha + 1e-9 else BLUE)


# -- SmoothGrad ------------------------------------------------------------------------------------

STEPS = 4  # of integrated gradients, on each noisy copy
SMOOTHED = ("gradient", "integrated gradients")


def smoothgrad(model: Any = None, image: Any = None) -> Panel:
    """A method's map, one noisy copy of the picture, and the mean of the maps of many of them.

    Integrated gradients (Smooth IG) start from the blurred picture and take four steps a copy.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)

    def method_for(picture: str, method: str) -> Callable[..., Tensor]:
        if method == "gradient":
            return gradients.gradient
        return partial(_integrated, start=classifier.blurred(look(picture).x))  # for all copies

    @cache
    def without_noise(picture: str, method: str) -> NDArray[np.float64]:
        seen = look(picture)
        return _summed(method_for(picture, method)(classifier.model, seen.x, seen.answer))

    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "method": choice("method", SMOOTHED),
        "noise": slider("noise σ", 0.0, 0.5, 0.1, 0.01),
        "samples": slider("samples", 1, 48, 16),
        "seed": slider("seed", 0, 9, 0),
    }

    def draw(picture: str, method: str, noise: float, samples: int, seed: int) -> Iterator[Canvas]:
        seen, generator = look(picture), torch.Generator().manual_seed(seed)
        chosen, sharp = method_for(picture, method), without_noise(picture, method)
        noisy = _noisy(seen.x, noise, seed)
        with torch.no_grad():
            sure = float(classifier.model(noisy).softmax(1)[0, seen.answer])
        most = COARSE if method == "gradient" else 1
        total, squares, done = torch.zeros(()), torch.zeros(()), 0
        while done < samples:
            # One generator for all portions: they draw what one call with all samples would.
            portion = min(most, samples - done)
            mean, more = gradients.smoothgrad(
                classifier.model, seen.x, seen.answer, method=chosen, samples=portion,
                noise=noise, generator=generator, details=True, progress=False,
            )  # fmt: skip
            variance = more.spread.nan_to_num() ** 2  # of one sample there is none
            total = total + portion * mean
            squares = squares + (portion - 1) * variance + portion * mean**2
            done, most = done + portion, 16 if method == "gradient" else 4
            mean = total / done
            error = float("nan")
            if done > 1:
                spread = (squares / done - mean**2).clamp(min=0) * done / (done - 1)
                error = float((spread / done).sqrt().mean() / mean.abs().mean())
            yield _smooth_canvas(
                classifier, seen, controls, noisy, sure, sharp, _summed(mean), done, error
            )

    return Panel("smoothgrad", controls, draw)


def _integrated(network: Any, x: Tensor, target: Any = None, *, start: Tensor) -> Tensor:
    return gradients.integrated_gradients(
        network, x, target, baseline=start.expand_as(x), steps=STEPS, progress=False
    )


def _noisy(x: Tensor, noise: float, seed: int) -> Tensor:
    """One copy with noise as strong as SmoothGrad's."""
    epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    return x + noise * (x.max() - x.min()) * epsilon


def _smooth_canvas(
    classifier: models.Classifier,
    seen: Seen,
    controls: dict[str, Any],
    noisy: Tensor,
    sure: float,
    sharp: NDArray[np.float64],
    smooth: NDArray[np.float64],
    done: int,
    error: float,
) -> Canvas:
    name, method = classifier.classes[seen.answer], controls["method"].value
    samples, noise = controls["samples"].value, controls["noise"].value
    canvas = Canvas(880, 350)
    canvas.heading(0, 0, "a noisy copy", f"σ = {noise:.0%} of the picture's range")
    canvas.picture(0, 44, 250, classifier.to_image(noisy), smooth=True)
    canvas.text(0, 304, f"there “{name}” has probability {sure:.2f}")
    canvas.heading(300, 0, method, "without noise")
    canvas.picture(300, 44, 250, _colored(sharp))
    canvas.text(300, 304, seen.inside(sharp), size=12, color=MUTED)
    more = f" of {samples}, more coming …" if done < samples else ""
    canvas.heading(600, 0, "its mean over noisy copies", f"{done}{more}")
    canvas.picture(600, 44, 250, _colored(smooth))
    canvas.text(600, 304, seen.inside(smooth), size=12, color=MUTED)
    doubt = "no standard error from one copy"
    if done > 1:
        doubt = f"standard error: {error:.0%} of mean |map|"
    canvas.text(600, 328, doubt, bold=True)
    alike = float(np.corrcoef(sharp.ravel(), smooth.ravel())[0, 1])
    canvas.text(300, 328, f"correlation with the mean: {decimal(alike)}", bold=True)
    canvas.alt = (
        f"The {method} map of “{name}”, and its mean over {done} copies of the picture with noise "
        f"of {noise:.0%} of its range, seed {controls['seed'].value}: correlation "
        f"{decimal(alike)}, {doubt}. {seen.inside(smooth)}."
    )
    return canvas


# -- XRAI ------------------------------------------------------------------------------------------


class Regions(NamedTuple):
    """What XRAI makes of a picture."""

    attribution: NDArray[np.float64]  # of the pixels (H, W)
    masks: NDArray[np.bool_]  # the segments (M, H, W)
    values: NDArray[np.float64]  # XRAI's map (H, W)
    order: list[int]


def xrai(model: Any = None, image: Any = None) -> Panel:
    """The best regions of a picture: XRAI's map, and its top share of the picture.

    A first map is made of about 50 segments that do not overlap and of few gradients; the real one
    follows. The segments drawn are the finest ones.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "baseline": choice("baseline", [BOTH, *BASELINES]),
        "top": slider("top, in %", 1, 100, 10),
    }
    kept: dict[tuple[str, str], Regions] = {}  # of the last choice, so that the top share moves

    def attribute(seen: Seen, baseline: str, steps: int) -> NDArray[np.float64]:
        """The mean of integrated gradients from each baseline; each pixel's largest channel."""
        names = ["black", "white"] if baseline == BOTH else [baseline]
        maps = [
            gradients.integrated_gradients(
                classifier.model, seen.x, seen.answer, steps=steps // len(names), progress=False,
                baseline=BASELINES[name](classifier, seen.x),
            )
            for name in names
        ]  # fmt: skip
        return torch.stack(maps).mean(0)[0].amax(0).double().cpu().numpy()

    def made(seen: Seen, coarse: bool, baseline: str) -> Regions:
        if coarse:
            labels = regions.segment(seen.pixels)
            masks = labels == np.arange(labels.max() + 1)[:, None, None]
        else:
            masks = regions.segment_stack(seen.pixels)
        attribution = attribute(seen, baseline, COARSE if coarse else 64)
        return Regions(attribution, masks, *regions.grow(attribution, masks))

    def draw(picture: str, baseline: str, top: int) -> Iterator[Canvas]:
        seen, key = look(picture), (picture, baseline)
        if key in kept:
            yield _xrai_canvas(classifier, seen, kept[key], baseline, top, "")
            return
        kept.clear()
        yield _xrai_canvas(
            classifier, seen, made(seen, True, baseline), baseline, top, "coarse, more coming …"
        )
        kept[key] = made(seen, False, baseline)
        yield _xrai_canvas(classifier, seen, kept[key], baseline, top, "")

    return Panel("xrai", controls, draw)


def _xrai_canvas(
    classifier: models.Classifier, seen: Seen, found: Regions, baseline: str, top: int, note: str
) -> Canvas:
    name, side = classifier.classes[seen.answer], 225
    chosen = found.values >= np.quantile(found.values, 1 - top / 100)
    cut = np.where(chosen[..., None], seen.pixels, np.uint8(235)).astype(np.uint8)
    finest = np.zeros(found.values.shape, int)
    for number, mask in enumerate(found.masks, 1):  # the finest come first, and cover the picture
        finest[mask & (finest == 0)] = number
    lines = mark_boundaries(seen.pixels, finest, color=(1, 1, 1))
    canvas = Canvas(960, 330)
    below = note or f"{len(found.masks)} in all, overlapping"
    canvas.heading(0, 0, "segments", below)
    canvas.picture(0, 44, side, np.rint(255 * lines).astype(np.uint8), smooth=True)
    canvas.heading(245, 0, "integrated gradients", f"of “{name}”, from {baseline}")
    canvas.picture(245, 44, side, _colored(found.attribution))
    canvas.heading(490, 0, "XRAI", note or f"{len(found.order)} regions were added")
    canvas.picture(490, 44, side, _colored(found.values))
    canvas.heading(735, 0, f"the top {top} %", f"{chosen.mean():.0%} with the region it ends in")
    canvas.picture(735, 44, side, cut, smooth=True)
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
        f"XRAI for “{name}” from the baseline “{baseline}”{', coarse' if note else ''}: the best "
        f"regions, {chosen.mean():.0%} of the picture. {truth}."
    )
    return canvas
