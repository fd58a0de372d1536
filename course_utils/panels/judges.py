"""The panels of lecture 09: curves that judge maps, randomised networks, maps side by side."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils import evaluation
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, Plot, colored, decimal
from course_utils.panels.explainer import EDGES, KNOW_NOTHING, Explainer
from course_utils.panels.panel import Panel, choice, coarse_to_fine, slider
from course_utils.panels.pictures import (
    BASELINES,
    Array,
    Seen,
    class_choice,
    classifier_of,
    logits_of,
    picture_reader,
    standards,
    summed,
)
from course_utils.plotting import BLUE, MUTED

SCENES = standards("zebra", "toadstool", "crow", "clownfish", "tiger", "hot-air balloon")
MOMENT = 0.04  # seconds in which more may be added to a first picture
COMING = "coarse, more coming …"


def _tensor(map_: Array) -> Tensor:
    """A map (H, W) as an attribution of one image (1, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(map_))[None]


def _levels(plot: Plot) -> None:
    """Faint lines at the ends of a plot, and at zero where its number has room, with numbers."""
    low, high = plot.up
    apart = 16 / plot.box[3] * (high - low)
    zero = {0.0} if low + apart < 0 < high - apart else set()
    for value in {low, high} | zero:
        plot.level(value, width=1)
        plot.label(value, f"{value:.1f}".removesuffix(".0").replace("-", "−"))


def _point(plot: Plot, x: float, y: float) -> None:
    """Where a slider stands on a line."""
    plot.mark(x)
    plot.dot(x, y, 4)


# -- deletion and insertion ------------------------------------------------------------------------

STEPS, FEW = 32, 4
CURVES: dict[str, Callable[..., evaluation.Curve]] = {
    "deletion": evaluation.deletion,
    "insertion": evaluation.insertion,
}
COVERS = ("mean colour", "black", "white", "blurred")  # of BASELINES


class Task(NamedTuple):
    """How a map is judged."""

    method: str
    metric: str
    baseline: str
    of: str

    @property
    def deleting(self) -> bool:
        """Whether the pixels ranked highest go; else they come."""
        return self.metric == "deletion"


class Judged(NamedTuple):
    """What a metric finds of a map, and of a random ranking."""

    map_: Array
    coarse: bool
    fraction: Array
    score: Array  # (2, steps + 1): of the map, of a random ranking
    auc: tuple[float, float]


class Waiting(NamedTuple):
    """What there is before there is a curve."""

    map_: Array | None


def deletion_insertion(model: Any = None, image: Any = None) -> Panel:
    """Delete or insert the pixels a map ranks highest, and watch the score of its class.

    The picture is what the model sees at the share; the dot on the curve is what it says to it. The
    grey curve is that of a random ranking of the pixels.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    explainer = Explainer(classifier)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "method": choice("method", [*METHODS, *KNOW_NOTHING], "integrated_gradients"),
        "metric": choice("metric", [*CURVES]),
        "baseline": choice("baseline", COVERS),
        "of": choice("of the", evaluation.SCORES),
        "share": slider("share, in %", 0, 100, 10),
    }
    kept: dict[tuple[Any, ...], Judged | Waiting] = {}

    def draw(picture: str, target: str, share: int, **chosen: str) -> Iterator[Canvas]:
        seen, task = look(picture, target), Task(**chosen)
        first = partial(judge_a_sketch, classifier, explainer, seen, task)
        whole = partial(judge_the_map, classifier, explainer, seen, task)
        for found in coarse_to_fine(kept, (picture, target, task), first, whole):
            if isinstance(found, Waiting):
                yield _waiting_canvas(seen, task.method, found.map_)
            else:
                yield _curve_canvas(classifier, seen, found, task, share / 100)

    return Panel("deletion insertion", controls, draw)


def judge_a_sketch(
    classifier: Classifier, explainer: Explainer, seen: Seen, task: Task
) -> Judged | Waiting:
    """The curve, in few steps, of a coarse map; none where the map took longer than MOMENT."""
    begin = perf_counter()
    map_, coarse = explainer.sketch(task.method, seen)
    if map_ is None or perf_counter() - begin > MOMENT:
        return Waiting(map_)
    return judge(classifier, seen, map_, coarse, task, FEW)


def judge_the_map(classifier: Classifier, explainer: Explainer, seen: Seen, task: Task) -> Judged:
    """The whole curve of the whole map."""
    return judge(classifier, seen, explainer.map(task.method, seen), False, task, STEPS)


def judge(
    classifier: Classifier, seen: Seen, map_: Array, coarse: bool, task: Task, steps: int
) -> Judged:
    """The curve of a map, and of a random ranking, in one go."""
    chance = np.random.default_rng(1).random(map_.shape)
    curve = CURVES[task.metric](
        classifier.model,
        seen.x.expand(2, -1, -1, -1),
        torch.cat([_tensor(map_), _tensor(chance)]),
        seen.target,
        steps=steps,
        baseline=BASELINES[task.baseline](classifier, seen.x),
        of=task.of,
    )
    fraction, score = (values.double().cpu().numpy() for values in curve[:2])
    return Judged(map_, coarse, fraction, score, (float(curve.auc[0]), float(curve.auc[1])))


def changed(
    classifier: Classifier, x: Tensor, map_: Array, deleting: bool, baseline: str, share: float
) -> Tensor:
    """The picture (1, C, H, W) with a share of its pixels, those ranked highest, gone or alone."""
    order = np.argsort(-map_.ravel(), kind="stable")
    top = np.zeros(map_.size, dtype=bool)
    top[order[: round(share * map_.size)]] = True
    away = torch.from_numpy((top == deleting).reshape(map_.shape)).to(x.device)
    return torch.where(away, BASELINES[baseline](classifier, x), x)


def _waiting_canvas(seen: Seen, method: str, map_: Array | None) -> Canvas:
    """A picture, a coarse map, and the place for the curve."""
    canvas = Canvas(960, 350)
    canvas.figure(0, 0, 250, seen.pixels, "the picture", smooth=True)
    canvas.figure(275, 0, 250, None if map_ is None else colored(map_), method, COMING)
    canvas.heading(590, 0, "the curve", "coming …")
    canvas.alt = f"A picture and its map by {method}, coarse; the curve is coming."
    return canvas


def _curve_canvas(
    classifier: Classifier, seen: Seen, found: Judged, task: Task, share: float
) -> Canvas:
    canvas, (method, metric, baseline, of) = Canvas(960, 350), task
    now = _changed_picture(canvas, classifier, seen, found.map_, task, share)
    below = COMING if found.coarse else f"for “{seen.name}”"
    canvas.figure(275, 0, 250, colored(found.map_), method, below)
    steps = len(found.fraction) - 1
    coarse = found.coarse or steps < STEPS
    below = COMING if coarse else f"{steps} steps; the dot is the picture"
    canvas.heading(590, 0, f"{metric}: {of} of “{seen.name}”", below)
    _curves(canvas, found, of, share, now)
    verdict = _verdict(canvas, found.auc, task.deleting)
    canvas.alt = (
        f"{metric} by {method} for “{seen.name}”, filled with {baseline}"
        f"{', coarse' if coarse else ''}: at {share:.0%} of the pixels the {of} is {decimal(now)}. "
        f"AUC {verdict}."
    )
    return canvas


def _changed_picture(
    canvas: Canvas, classifier: Classifier, seen: Seen, map_: Array, task: Task, share: float
) -> float:
    """The picture at the share, and what the model says to it; returns the score."""
    x = changed(classifier, seen.x, map_, task.deleting, task.baseline, share)
    logits = logits_of(classifier.model, x).double()
    logit, probability = float(logits[seen.target]), float(logits.softmax(0)[seen.target])
    done = "gone, from the top" if task.deleting else "put in, from the top"
    below = f"{'they are' if task.deleting else 'all others are'} {task.baseline} now"
    pixels = classifier.to_image(x)
    canvas.figure(0, 0, 250, pixels, f"{share:.0%} {done}", below, smooth=True)
    best = classifier.classes[int(logits.argmax())]
    canvas.text(0, 304, f"the model answers “{best}”", bold=True)
    canvas.text(0, 324, f"“{seen.name}”: logit {decimal(logit)}, P {probability:.2f}")
    return logit if task.of == "logit" else probability


def _curves(canvas: Canvas, found: Judged, of: str, share: float, now: float) -> None:
    """The map's curve and the random ranking's, and where the picture is on it."""
    low = min(0.0, float(found.score.min()), now)
    high = max(1.0 if of == "probability" else 0.0, float(found.score.max()), now)
    plot = Plot(canvas, (590, 52, 360, 200), up=(low, high if high > low else low + 1))
    _levels(plot)
    mine, random = (
        list(zip(found.fraction.tolist(), row, strict=True)) for row in found.score.tolist()
    )
    plot.line(random, MUTED)
    plot.line(mine, BLUE, 2.5)
    _point(plot, share, now)
    canvas.text(590, 262, "0 %", size=12, color=MUTED)
    canvas.text(950, 262, "100 % of the pixels", size=12, color=MUTED, anchor="ra")


def _verdict(canvas: Canvas, auc: tuple[float, float], deleting: bool) -> str:
    """The areas under both curves, and which map is better; the same in words."""
    mine, chance = auc
    wish = "low is good" if deleting else "high is good"
    better = (mine < chance) == deleting and mine != chance
    verdict = "better than random" if better else "no better than random"
    area, random = decimal(mine), decimal(chance)
    canvas.text(590, 286, f"area under it (AUC) {area}, {wish}", color=BLUE, bold=True)
    canvas.text(590, 306, f"of a random ranking {random}", color=MUTED, bold=True)
    canvas.text(590, 326, f"on this picture: {verdict}")
    return f"{area}, of a random ranking {random} ({wish}): {verdict}"


# -- cascading randomisation -----------------------------------------------------------------------

REST = "#9aa5b1"  # what is still to come of a line


class Cascade(NamedTuple):
    """A method's maps of one picture while layer after layer is randomised, the output first."""

    maps: list[Array]  # (H, W), the first one of the network as it is
    sure: list[float]  # the probability of the class
    layers: list[str]
    likeness: list[float]  # to the first map, by layer; none yet where only the first is there


def cascading_randomization(model: Any = None, image: Any = None) -> Panel:
    """Give a network random parameters, layer by layer from the output. Does the map change?

    The curve is the map's similarity to the one of the trained network; a map that stays the same
    cannot explain what the network has learnt. The model itself is left as it was.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    names = layers_of(classifier, look(next(iter(pictures))))
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "method": choice("method", [*asked_per_layer(), EDGES], "guided_backprop"),
        "layers": slider("layers gone", 0, len(names), min(3, len(names))),
        "similarity": choice("similarity", [*evaluation.SIMILARITIES]),
        "seed": slider("seed", 0, 9, 0),
    }
    kept: dict[tuple[Any, ...], Cascade] = {}

    def draw(
        picture: str, method: str, layers: int, similarity: str, seed: int
    ) -> Iterator[Canvas]:
        seen, key = look(picture), (picture, method, similarity, seed)
        run = in_few_passes(method, seen)
        first = partial(not_yet_forgotten, classifier, seen, run, names)
        whole = partial(cascade, classifier, seen, run, similarity, seed)
        for found in coarse_to_fine(kept, key, first, whole):
            yield _forgotten_canvas(seen.name, found, method, layers, similarity)

    return Panel("cascading randomization", controls, draw)


def asked_per_layer() -> list[str]:
    """The methods that can be asked once a layer: they look into it, and need nothing before."""
    return [
        name
        for name, method in METHODS.items()
        if method.specific and not method.prepare and "segments" not in method.needs
    ]


def in_few_passes(name: str, seen: Seen) -> Callable[..., Tensor]:
    """A method with the options of its sketch, since it is asked once a layer; or the edges."""
    if name in KNOW_NOTHING:
        edges = _tensor(KNOW_NOTHING[name](seen.pixels))
        return lambda network, x, target: edges.to(x)
    method = METHODS[name]

    def sketched(network: Any, x: Tensor, target: int) -> Tensor:
        options = method.sketch(network, x, target, {}) if method.sketch else {}
        return method(network, x, target, **options)

    return sketched


def layers_of(classifier: Classifier, seen: Seen) -> list[str]:
    """The layers in the order in which they are forgotten."""
    nothing = evaluation.parameter_randomization(
        classifier.model, seen.x, lambda network, x, target: 0 * x, target=seen.target
    )
    return [*nothing]


def not_yet_forgotten(
    classifier: Classifier, seen: Seen, method: Callable[..., Tensor], layers: list[str]
) -> Cascade:
    """The map of the network as it is."""
    return Cascade([summed(method(classifier.model, seen.x, seen.target))], [], layers, [])


def cascade(
    classifier: Classifier,
    seen: Seen,
    method: Callable[..., Tensor],
    similarity: str,
    seed: int,
) -> Cascade:
    """The maps and answers that `parameter_randomization` meets on its way."""
    maps: list[Array] = []
    sure: list[float] = []

    def noted(network: Any, x: Tensor, target: Any) -> Tensor:
        map_ = method(network, x, target)
        maps.append(summed(map_))
        sure.append(float(logits_of(network, x).double().softmax(0)[seen.target]))
        return map_

    likeness = evaluation.parameter_randomization(
        classifier.model,
        seen.x,
        noted,
        target=seen.target,
        similarity=similarity,
        generator=torch.Generator().manual_seed(seed),
    )
    return Cascade(maps, sure, [*likeness], [float(value) for value in likeness.values()])


def _forgotten_canvas(name: str, found: Cascade, method: str, gone: int, similarity: str) -> Canvas:
    canvas, side, all_ = Canvas(960, 350), 240, len(found.layers)
    canvas.figure(0, 0, side, colored(found.maps[0]), "the map", f"{method} of “{name}”")
    last = found.layers[gone - 1] if gone else "none"
    now = colored(found.maps[gone]) if found.likeness else None
    below = f"the last one to go: {last}"
    canvas.figure(260, 0, side, now, f"{gone} of {all_} layers gone", below)
    below = f"{similarity}; 1 is identical, layer by layer"
    canvas.heading(560, 0, "how like the first map", below)
    _likeness(canvas, found.likeness, gone, all_)
    said = _alike(canvas, name, found, gone) if found.likeness else f", {COMING}"
    if not found.likeness:
        canvas.text(560, 290, COMING, color=MUTED)
    canvas.alt = (
        f"{method} of “{name}” with {gone} of {all_} layers randomised, the last one {last}, "
        f"{similarity}{said}."
    )
    return canvas


def _likeness(canvas: Canvas, likeness: Sequence[float], gone: int, layers: int) -> None:
    """How like the first map each map is; the line as far as the slider is blue."""
    known = [(k, value) for k, value in enumerate([1.0, *likeness]) if np.isfinite(value)]
    low = min(0.0, *(value for _, value in known))
    plot = Plot(canvas, (560, 56, 390, 200), across=(0, layers), up=(low, 1.0))
    _levels(plot)
    plot.line([point for point in known if point[0] >= gone], REST)
    plot.line([point for point in known if point[0] <= gone], BLUE, 2.5)
    canvas.text(560, 264, "the output", size=12, color=MUTED)
    canvas.text(950, 264, "the input", size=12, color=MUTED, anchor="ra")
    if gone in dict(known):
        _point(plot, gone, dict(known)[gone])


def _alike(canvas: Canvas, name: str, found: Cascade, gone: int) -> str:
    """The similarity and the probability where the slider stands; the same in words."""
    now, sure, before = [1.0, *found.likeness][gone], found.sure[gone], found.sure[0]
    alike = decimal(now) if np.isfinite(now) else "not defined: a map is constant"
    canvas.text(560, 290, f"similarity {alike}", bold=True)
    canvas.text(560, 312, f"P of “{name}” is {sure:.2f}, was {before:.2f}")
    return (
        f": similarity {alike}; the model gives “{name}” a probability of {sure:.2f}, before it "
        f"was {before:.2f}"
    )


# -- maps side by side -----------------------------------------------------------------------------

NOTHING = "none"
SHARE = "share inside the object"


def _drop(metric: Callable[..., evaluation.Curve], map_: Tensor, asked: tuple[Any, ...]) -> Tensor:
    model, x, index = asked
    return metric(model, x, map_, index).auc


def _faithfulness(map_: Tensor, asked: tuple[Any, ...]) -> Tensor:
    model, x, index = asked
    return evaluation.faithfulness_correlation(
        model, x, map_, index, patch=max(min(x.shape[2:]) // 8, 1)
    )


# Of a map (1, H, W), and of the object's mask (H, W) …
BY_MASK: dict[str, Callable[[Tensor, NDArray[np.bool_]], Tensor]] = {
    SHARE: lambda map_, mask: map_.abs()[:, mask].sum() / map_.abs().sum(),
    "IoU": evaluation.iou,
    "pointing game": evaluation.pointing_game,
}
# … or of the model, the picture and the class.
BY_MODEL: dict[str, Callable[[Tensor, tuple[Any, ...]], Tensor]] = {
    "faithfulness correlation": _faithfulness,
    "deletion, AUC (low is good)": partial(_drop, evaluation.deletion),
    "insertion, AUC (high is good)": partial(_drop, evaluation.insertion),
}


class Beside(NamedTuple):
    """A method's map and what a metric says of it, as far as they are known."""

    name: str
    map_: Array | None
    coarse: bool
    value: float | None = None


def side_by_side(model: Any = None, image: Any = None) -> Panel:
    """Two to four methods' maps of a picture beside each other, with what a metric says of each.

    Methods that need data get ordinary scenes. The two at the end of the list, the picture's edges
    and random numbers, never ask the model.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    explainer = Explainer(classifier)
    every = [*METHODS, *KNOW_NOTHING]
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "metric": choice("metric", [*BY_MASK, *BY_MODEL]),
        "first": choice("first", every, "gradient"),
        "second": choice("second", every, "guided_backprop"),
        "third": choice("third", [NOTHING, *every], "grad_cam"),
        "fourth": choice("fourth", [NOTHING, *every], EDGES),
    }

    def draw(picture: str, target: str, metric: str, **chosen: str) -> Iterator[Canvas]:
        seen = look(picture, target)
        names = [name for name in chosen.values() if name != NOTHING]
        maps = sketches(explainer, seen, names)
        yield _beside_canvas(seen, metric, [maps[name] for name in names])
        for name in maps:
            map_ = explainer.map(name, seen)
            maps[name] = Beside(name, map_, False, score(classifier, seen, metric, map_))
            yield _beside_canvas(seen, metric, [maps[name] for name in names])

    return Panel("side by side", controls, draw)


def sketches(explainer: Explainer, seen: Seen, names: Sequence[str]) -> dict[str, Beside]:
    """A map each, as far as there is a moment for it."""
    begin, maps = perf_counter(), {}
    for name in names:
        in_time = perf_counter() - begin < MOMENT
        maps[name] = Beside(name, *(explainer.sketch(name, seen) if in_time else (None, True)))
    return maps


def score(classifier: Classifier, seen: Seen, metric: str, map_: Array) -> float:
    """What a metric says of a map; NaN where it wants a mask and there is none."""
    if metric in BY_MODEL:
        asked = classifier.model, seen.x, seen.target
        return float(BY_MODEL[metric](_tensor(map_), asked))
    return float("nan") if seen.mask is None else float(BY_MASK[metric](_tensor(map_), seen.mask))


def _beside_canvas(seen: Seen, metric: str, maps: Sequence[Beside]) -> Canvas:
    side, told = 184, []
    canvas = Canvas(5 * side + 4 * 12, 300)
    canvas.figure(0, 0, side, seen.pixels, "the picture", f"maps of “{seen.name}”", smooth=True)
    canvas.text(0, 240, metric, bold=True)
    if seen.mask is not None:
        canvas.text(0, 262, f"the object is {seen.mask.mean():.0%} of it", size=12, color=MUTED)
    for column, (name, map_, coarse, value) in enumerate(maps, 1):
        x = column * (side + 12)
        cost = METHODS[name].cost if name in METHODS else "never asks the model"
        shown = None if map_ is None else colored(map_)
        canvas.figure(x, 0, side, shown, name, COMING if coarse else cost)
        said = "…" if value is None else "no value" if np.isnan(value) else decimal(value)
        canvas.text(x, 236, said, size=20, bold=True)
        told.append(f"{name} {said}{' (coarse)' if coarse else ''}")
    canvas.alt = f"Maps of “{seen.name}”. {metric}: {', '.join(told)}."
    return canvas
