"""The panels of lecture 09: a curve judges a map, a network forgets, and maps side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import sobel
from torch import Tensor, nn

from course_utils import evaluation, gradients, models, photographs, plotting, regions, scenes
from course_utils.contract import accepted, explaining
from course_utils.methods import METHODS
from course_utils.panels.base import (
    Canvas,
    Panel,
    Seen,
    choice,
    classifier_of,
    decimal,
    knows_scenes,
    looker,
    slider,
)
from course_utils.plotting import BLUE, FAINT, MUTED, ORANGE

SCENES = ("zebra", "toadstool", "crow", "clownfish", "tiger", "hot-air balloon")
ANSWER, NOTHING = "the model's answer", "none"
EDGES, CHANCE = "edges of the picture", "random numbers"
KNOW_NOTHING = (EDGES, CHANCE)  # they never ask the model
LOCAL = tuple(name for name, method in METHODS.items() if method.scope == "local")
BACKGROUND = 64  # scenes, for methods that need data
FILLS: dict[str, Callable[[models.Classifier, Tensor], Tensor]] = {
    "mean colour": lambda classifier, x: torch.zeros_like(x),
    "black": lambda classifier, x: classifier.black(x),
    "white": lambda classifier, x: classifier.white(x),
    "blurred": lambda classifier, x: classifier.blurred(x),
}
# Enough for a class to look at, and within two seconds.
OPTIONS: dict[str, dict[str, Any]] = {
    "prediction_difference": {"window": 16, "stride": 16, "samples": 4},
    "lime_image": {"samples": 256},
    "shap_image": {"samples": 256},
}

MOMENT = 0.04  # seconds in which more may be added to a first picture
PALE = "#9aa5b1"  # what is still to come of a line

Array = NDArray[np.float64]


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says to one picture: (K,)."""
    with explaining(model), torch.no_grad():
        return model(x)[0].double().cpu()


class Explainer:
    """Every method's map (H, W) of a picture, channels added; the maps of one class are kept."""

    def __init__(self, classifier: models.Classifier) -> None:
        self.classifier = classifier
        self._kept: dict[str, Array] = {}
        self._of: tuple[Any, int] = (None, -1)
        self._prepared: dict[str, dict[str, Any]] = {}

    def map(self, name: str, seen: Seen, index: int) -> Array:
        """The method's map."""
        self._about(seen, index)
        if name not in self._kept:
            self._kept[name] = self._run(name, seen, index, OPTIONS.get(name, {}))
        return self._kept[name]

    def sketch(self, name: str, seen: Seen, index: int) -> tuple[Array | None, bool]:
        """A map within a moment, and whether it is only coarse; None where there is not even one.

        The first map of a method that needs data waits for the data.
        """
        self._about(seen, index)
        if name in self._kept:
            return self._kept[name], False
        if name in METHODS and METHODS[name].prepare and name not in self._prepared:
            return None, True
        options = self._coarse(name, seen, index)
        if not options:
            return self.map(name, seen, index), False
        return self._run(name, seen, index, options), True

    def _about(self, seen: Seen, index: int) -> None:
        if self._of[0] is not seen or self._of[1] != index:
            self._kept, self._of = {}, (seen, index)

    def _coarse(self, name: str, seen: Seen, index: int) -> dict[str, Any]:
        """Options of few passes for the methods that take many."""
        quarter = -(-min(seen.x.shape[2:]) // 4)
        match name:
            case "occlusion":
                return {"window": quarter, "stride": quarter}
            case "prediction_difference":
                return {"window": quarter, "stride": quarter, "samples": 1}
            case "smoothgrad":
                return {"samples": 4}
            case "integrated_gradients":
                return {"steps": 4}
            case "lime_image" | "shap_image":
                segments = regions.segment(seen.x[0], n_segments=8)
                return {"segments": segments, "samples": 2 * int(segments.max() + 1) + 2}
            case "xrai":
                path = gradients.integrated_gradients(
                    self.classifier.model, seen.x, index, steps=4, progress=False
                )
                return {"attribution": path, "segments": regions.segment(seen.x[0])}
            case "deep_shap":
                return {"baselines": self._prepared[name]["baselines"][:1]}
        return {}

    def _run(self, name: str, seen: Seen, index: int, options: Mapping[str, Any]) -> Array:
        if name == EDGES:
            return _edges(seen.pixels)
        if name == CHANCE:
            return np.random.default_rng(0).random(seen.pixels.shape[:2])
        method, model = METHODS[name], self.classifier.model
        if name not in self._prepared:
            self._prepared[name] = {
                option: make(model, self._data) for option, make in method.prepare.items()
            }
        given = {**accepted(method, progress=False), **self._prepared[name], **options}
        return _flat(method(model, seen.x, index, **given))

    @cached_property
    def _data(self) -> Tensor:
        """Ordinary pictures, as the model gets them: scenes, or all photographs."""
        ordinary: Any
        if knows_scenes(self.classifier):
            world = scenes.Scenes(BACKGROUND, seed=0, resolution=self.classifier.size)
            ordinary = world.draw(progress=False)[0]
        else:
            ordinary = [photographs.picture(name) for name in photographs.NAMES]
        inputs = self.classifier.inputs(ordinary)
        return torch.stack([inputs[i] for i in range(len(inputs))])


def _edges(pixels: NDArray[np.uint8]) -> Array:
    """The edges of a picture (H, W): what an eye takes for an explanation."""
    return sobel(pixels.mean(2) / 255)


def _flat(map_: Tensor) -> Array:
    """One image's attribution as a map (H, W), channels added."""
    values = map_[0].detach().double().cpu()
    return (values.sum(0) if values.ndim == 3 else values).numpy()


def _tensor(map_: Array) -> Tensor:
    """A map (H, W) as an attribution of one image (1, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(map_))[None]


def _colored(map_: Array) -> NDArray[np.uint8]:
    """A signed map in colours; its strongest hundredth takes the end colours."""
    return plotting.colorize(map_, "signed", float(np.quantile(np.abs(map_), 0.99)) or 1.0)


def _tile(canvas: Canvas, x: float, y: float, side: float, map_: Array | None) -> None:
    """A map, or the place where it will be."""
    if map_ is None:
        canvas.box(x, y, side, side, fill="#eef1f4")
        canvas.text(x + side / 2, y + side / 2, "coming …", color=MUTED, anchor="mm")
    else:
        canvas.picture(x, y, side, _colored(map_))


class Line(NamedTuple):
    """A line of a plot."""

    points: Sequence[tuple[float, float]]
    color: str
    width: float = 2


def _plot(
    canvas: Canvas,
    at: tuple[float, float],
    size: tuple[float, float],
    lines: Sequence[Line],
    limits: tuple[float, float],
) -> Callable[[float, float], tuple[float, float]]:
    """Lines over x from 0 to 1, y within limits; returns where a point of them lies."""
    (left, top), (width, height), (low, high) = at, size, limits

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * x, top + height * (high - y) / (high - low)

    apart = 16 / height * (high - low)  # zero has a line of its own where its label has room
    zero = {0.0} if low + apart < 0 < high - apart else set()
    for value in {low, high} | zero:
        canvas.line([place(0, value), place(1, value)], FAINT, 1)
        label = f"{value:.1f}".removesuffix(".0").replace("-", "−")
        canvas.text(left - 8, place(0, value)[1], label, anchor="rm", color=MUTED)
    for line in lines:
        if len(line.points) > 1:
            canvas.line([place(x, y) for x, y in line.points], line.color, line.width)
    return place


# -- deletion and insertion ------------------------------------------------------------------------

STEPS, FEW = 32, 4
METRICS: dict[str, Callable[..., evaluation.Curve]] = {
    "deletion": evaluation.deletion,
    "insertion": evaluation.insertion,
}


class Judged(NamedTuple):
    """What a metric finds of a map, and of a random ranking."""

    map_: Array
    coarse: bool
    fraction: Array
    score: Array  # (2, steps + 1): of the map, of a random ranking
    auc: tuple[float, float]


def deletion_insertion(model: Any = None, image: Any = None) -> Panel:
    """Delete or insert the pixels a map ranks highest, and watch the score of its class.

    The picture is what the model sees at the share; the dot on the curve is what it says to it. The
    grey curve is that of a random ranking of the pixels.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)
    explainer = Explainer(classifier)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "method": choice("method", [*LOCAL, *KNOW_NOTHING], "integrated_gradients"),
        "metric": choice("metric", [*METRICS]),
        "fill": choice("fill", [*FILLS]),
        "of": choice("of the", evaluation.SCORES),
        "share": slider("share, in %", 0, 100, 10),
    }
    kept: dict[tuple[str, ...], Judged] = {}  # of the last choice, so that the share moves along it

    def judged(seen: Seen, map_: Array, coarse: bool, index: int, steps: int) -> Judged:
        chance = np.random.default_rng(1).random(map_.shape)
        curve = METRICS[controls["metric"].value](
            classifier.model, seen.x.expand(2, -1, -1, -1),
            torch.cat([_tensor(map_), _tensor(chance)]), index, steps=steps,
            fill=FILLS[controls["fill"].value](classifier, seen.x), of=controls["of"].value,
            progress=False,
        )  # fmt: skip
        fraction, score = (values.double().cpu().numpy() for values in curve[:2])
        return Judged(map_, coarse, fraction, score, (float(curve.auc[0]), float(curve.auc[1])))

    def draw(
        picture: str, target: str, method: str, metric: str, fill: str, of: str, share: int
    ) -> Iterator[Canvas]:
        seen, key = look(picture), (picture, target, method, metric, fill, of)
        index = seen.answer if target == ANSWER else classifier.classes.index(target)
        if key not in kept:
            kept.clear()
            begin = perf_counter()
            map_, coarse = explainer.sketch(method, seen, index)
            if map_ is None or perf_counter() - begin > MOMENT:
                yield _waiting_canvas(seen, method, map_)
            else:
                first = judged(seen, map_, coarse, index, FEW)
                yield _curve_canvas(classifier, seen, first, index, controls)
            whole = explainer.map(method, seen, index)
            kept[key] = judged(seen, whole, False, index, STEPS)
        yield _curve_canvas(classifier, seen, kept[key], index, controls)

    return Panel("deletion insertion", controls, draw)


def changed(
    classifier: models.Classifier, x: Tensor, map_: Array, deleting: bool, fill: str, share: float
) -> Tensor:
    """The picture (1, C, H, W) with a share of its pixels, those ranked highest, gone or alone."""
    order = np.argsort(-map_.ravel(), kind="stable")
    top = np.zeros(map_.size, dtype=bool)
    top[order[: round(share * map_.size)]] = True
    away = torch.from_numpy((top == deleting).reshape(map_.shape)).to(x.device)
    return torch.where(away, FILLS[fill](classifier, x), x)


def _waiting_canvas(seen: Seen, method: str, map_: Array | None) -> Canvas:
    """What there is before there is a curve."""
    canvas = Canvas(960, 350)
    canvas.heading(0, 0, "the picture")
    canvas.picture(0, 44, 250, seen.pixels, smooth=True)
    canvas.heading(275, 0, method, "coarse, more coming …")
    _tile(canvas, 275, 44, 250, map_)
    canvas.heading(590, 0, "the curve", "coming …")
    canvas.alt = f"A picture and its map by {method}, coarse; the curve is coming."
    return canvas


def _curve_canvas(
    classifier: models.Classifier,
    seen: Seen,
    found: Judged,
    index: int,
    controls: Mapping[str, Any],
) -> Canvas:
    method, metric, fill, of = (controls[key].value for key in ("method", "metric", "fill", "of"))
    share, name = controls["share"].value / 100, classifier.classes[index]
    deleting = metric == "deletion"
    x = changed(classifier, seen.x, found.map_, deleting, fill, share)
    logits = _logits(classifier.model, x)
    probability = float(logits.softmax(0)[index])
    now = float(logits[index]) if of == "logit" else probability
    canvas, steps = Canvas(960, 350), len(found.fraction) - 1
    done = "gone, from the top" if deleting else "put in, from the top"
    coarse = found.coarse or steps < STEPS
    covered = "they are" if deleting else "all others are"
    canvas.heading(0, 0, f"{share:.0%} {done}", f"{covered} {fill} now")
    canvas.picture(0, 44, 250, classifier.to_image(x), smooth=True)
    best = classifier.classes[int(logits.argmax())]
    canvas.text(0, 304, f"the model answers “{best}”", bold=True)
    canvas.text(0, 324, f"“{name}”: logit {decimal(float(logits[index]))}, P {probability:.2f}")
    canvas.heading(275, 0, method, "coarse, more coming …" if found.coarse else f"for “{name}”")
    _tile(canvas, 275, 44, 250, found.map_)

    below = "coarse, more coming …" if coarse else f"{steps} steps; the dot is the picture"
    canvas.heading(590, 0, f"{metric}: {of} of “{name}”", below)
    low, high = float(found.score.min()), float(found.score.max())
    low, high = min(0.0, low, now), max(1.0 if of == "probability" else 0.0, high, now)
    fraction = found.fraction.tolist()
    mine, random = (
        list(zip(fraction, row, strict=True)) for row in found.score.tolist()
    )  # fmt: skip
    place = _plot(
        canvas, (590, 52), (360, 200), [Line(random, MUTED), Line(mine, BLUE, 2.5)],
        (low, high if high > low else low + 1),
    )  # fmt: skip
    dot_x, dot_y = place(share, now)
    canvas.line([(dot_x, 52), (dot_x, 252)], ORANGE, 1)
    canvas.box(dot_x - 4, dot_y - 4, 8, 8, fill=ORANGE)
    canvas.text(590, 262, "0 %", size=12, color=MUTED)
    canvas.text(950, 262, "100 % of the pixels", size=12, color=MUTED, anchor="ra")
    auc, chance = found.auc
    wish = "low is good" if deleting else "high is good"
    better = (auc < chance) == deleting and auc != chance
    verdict = "better than random" if better else "no better than random"
    canvas.text(590, 286, f"area under it (AUC) {decimal(auc)}, {wish}", color=BLUE, bold=True)
    canvas.text(590, 306, f"of a random ranking {decimal(chance)}", color=MUTED, bold=True)
    canvas.text(590, 326, f"on this picture: {verdict}")
    canvas.alt = (
        f"{metric} by {method} for “{name}”, filled with {fill}{', coarse' if coarse else ''}: at "
        f"{share:.0%} of the pixels the {of} is {decimal(now)}. AUC {decimal(auc)}, of a random "
        f"ranking {decimal(chance)} ({wish}): {verdict}."
    )
    return canvas


# -- cascading randomisation -----------------------------------------------------------------------

# As often as there are layers, so in few passes each.
SHORT: dict[str, dict[str, Any]] = {
    "gradient": {},
    "input_x_gradient": {},
    "deconvnet": {},
    "guided_backprop": {},
    "smoothgrad": {"samples": 4},
    "integrated_gradients": {"steps": 4},
    "cam": {},
    "grad_cam": {},
    "guided_grad_cam": {},
    "deeplift": {},
    "lrp": {},
}


class Forgotten(NamedTuple):
    """What becomes of a map while a network forgets layer after layer, the output first."""

    maps: list[Array]  # (H, W), the first one of the network as it is
    sure: list[float]  # the probability of the class
    layers: list[str]
    likeness: list[float]  # to the first map, by layer


def cascading_randomization(model: Any = None, image: Any = None) -> Panel:
    """Take what was learnt from a network, layer after layer from the output. Does the map change?

    The curve is the map's similarity to the one of the trained network; a map that stays the same
    cannot explain what the network has learnt. The model itself is left as it was.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)
    opening = look(next(iter(pictures)))
    names = forget(classifier, opening, lambda network, x, target: 0 * x, "spearman", 0).layers
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "method": choice("method", [*SHORT, EDGES], "guided_backprop"),
        "layers": slider("layers gone", 0, len(names), min(3, len(names))),
        "similarity": choice("similarity", [*evaluation.SIMILARITIES]),
        "seed": slider("seed", 0, 9, 0),
    }
    kept: dict[tuple[Any, ...], Forgotten] = {}  # of the last choice, so that the layers move

    def draw(
        picture: str, method: str, layers: int, similarity: str, seed: int
    ) -> Iterator[Canvas]:
        seen, key = look(picture), (picture, method, similarity, seed)
        if key not in kept:
            kept.clear()
            name, run = classifier.classes[seen.answer], _short(method, seen)
            first = _flat(run(classifier.model, seen.x, seen.answer))
            yield _forgotten_canvas(name, Forgotten([first], [], names, []), controls)
            kept[key] = forget(classifier, seen, run, similarity, seed)
        name = classifier.classes[seen.answer]
        yield _forgotten_canvas(name, kept[key], controls)

    return Panel("cascading randomization", controls, draw)


def _short(method: str, seen: Seen) -> Callable[..., Tensor]:
    """A method of SHORT with its options, or the edges."""
    if method == EDGES:
        edges = _tensor(_edges(seen.pixels))
        return lambda network, x, target: edges.to(x)
    return partial(METHODS[method], **SHORT[method], **accepted(METHODS[method], progress=False))


def forget(
    classifier: models.Classifier,
    seen: Seen,
    method: Callable[..., Tensor],
    similarity: str,
    seed: int,
) -> Forgotten:
    """The maps and answers that `parameter_randomization` meets on its way."""
    maps: list[Array] = []
    sure: list[float] = []

    def noted(network: Any, x: Tensor, target: Any) -> Tensor:
        map_ = method(network, x, target)
        maps.append(_flat(map_))
        sure.append(float(_logits(network, x).softmax(0)[seen.answer]))
        return map_

    likeness = evaluation.parameter_randomization(
        classifier.model, seen.x, noted, target=seen.answer, similarity=similarity,
        generator=torch.Generator().manual_seed(seed), progress=False,
    )  # fmt: skip
    return Forgotten(maps, sure, [*likeness], [float(value) for value in likeness.values()])


def _forgotten_canvas(name: str, found: Forgotten, controls: Mapping[str, Any]) -> Canvas:
    method, similarity = controls["method"].value, controls["similarity"].value
    gone, all_, side = controls["layers"].value, len(found.layers), 240
    coarse = not found.likeness
    canvas = Canvas(960, 350)
    canvas.heading(0, 0, "the map", f"{method} of “{name}”")
    _tile(canvas, 0, 44, side, found.maps[0])
    last = found.layers[gone - 1] if gone else "none"
    canvas.heading(260, 0, f"{gone} of {all_} layers gone", f"the last one to go: {last}")
    _tile(canvas, 260, 44, side, None if coarse else found.maps[gone])
    canvas.heading(
        560, 0, "how like the first map", f"{similarity}; 1 is identical, layer by layer"
    )
    values = dict(enumerate([1.0, *found.likeness]))
    known = {k: value for k, value in values.items() if np.isfinite(value)}
    low = min(0.0, *known.values())
    so_far = [(k / all_, value) for k, value in known.items() if k <= gone]
    rest = [(k / all_, value) for k, value in known.items() if k >= gone]
    place = _plot(
        canvas, (560, 56), (390, 200), [Line(rest, PALE), Line(so_far, BLUE, 2.5)], (low, 1.0)
    )
    canvas.text(560, 264, "the output", size=12, color=MUTED)
    canvas.text(950, 264, "the input", size=12, color=MUTED, anchor="ra")
    now, told = values.get(gone, float("nan")), ", coarse, more coming …"
    if gone in known:
        x, y = place(gone / all_, now)
        canvas.line([(x, 56), (x, 256)], ORANGE, 1)
        canvas.box(x - 4, y - 4, 8, 8, fill=ORANGE)
    if not coarse:
        alike = decimal(now) if gone in known else "not defined: a map is constant"
        told = f": similarity {alike}; the model gives “{name}” a probability of "
        told += f"{found.sure[gone]:.2f}, before it was {found.sure[0]:.2f}"
        canvas.text(560, 290, f"similarity {alike}", bold=True)
        lines = f"P of “{name}” is {found.sure[gone]:.2f}, was {found.sure[0]:.2f}"
        canvas.text(560, 312, lines)
    else:
        canvas.text(560, 290, "coarse, more coming …", color=MUTED)
    canvas.alt = (
        f"{method} of “{name}” with {gone} of {all_} layers randomised, the last one {last}, "
        f"{similarity}{told}."
    )
    return canvas


# -- maps side by side -----------------------------------------------------------------------------

SHARE = "share inside the object"


def _drop(metric: Callable[..., evaluation.Curve], map_: Tensor, asked: tuple[Any, ...]) -> Tensor:
    model, x, index = asked
    return metric(model, x, map_, index, progress=False).auc


def _faithfulness(map_: Tensor, asked: tuple[Any, ...]) -> Tensor:
    model, x, index = asked
    return evaluation.faithfulness_correlation(
        model, x, map_, index, patch=max(min(x.shape[2:]) // 8, 1), progress=False
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


def side_by_side(model: Any = None, image: Any = None) -> Panel:
    """Two to four methods' maps of a picture beside each other, with what a metric says of each.

    Methods that need data get ordinary scenes. The two at the end of the list, the picture's edges
    and random numbers, never ask the model.
    """
    classifier = classifier_of(model)
    pictures, look = looker(classifier, image, SCENES)
    explainer = Explainer(classifier)
    every = [*LOCAL, *KNOW_NOTHING]
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "metric": choice("metric", [*BY_MASK, *BY_MODEL]),
        "first": choice("first", every, "gradient"),
        "second": choice("second", every, "guided_backprop"),
        "third": choice("third", [NOTHING, *every], "grad_cam"),
        "fourth": choice("fourth", [NOTHING, *every], EDGES),
    }

    def score(metric: str, map_: Array, seen: Seen, index: int) -> float:
        if metric in BY_MODEL:
            return float(BY_MODEL[metric](_tensor(map_), (classifier.model, seen.x, index)))
        if seen.mask is None:
            return float("nan")
        return float(BY_MASK[metric](_tensor(map_), seen.mask))

    def draw(picture: str, target: str, metric: str, **chosen: str) -> Iterator[Canvas]:
        seen = look(picture)
        index = seen.answer if target == ANSWER else classifier.classes.index(target)
        names = [name for name in chosen.values() if name != NOTHING]
        maps: dict[str, Array | None] = dict.fromkeys(names)
        coarse, begin = set(names), perf_counter()
        for name in names:
            if perf_counter() - begin < MOMENT:
                maps[name], only = explainer.sketch(name, seen, index)
                coarse -= set() if only else {name}
        values: dict[str, float] = {}
        title = classifier.classes[index]
        yield _beside_canvas(seen, title, names, maps, coarse, values, metric)
        for name in maps:
            map_ = maps[name] = explainer.map(name, seen, index)
            coarse.discard(name)
            values[name] = score(metric, map_, seen, index)
            yield _beside_canvas(seen, title, names, maps, coarse, values, metric)

    return Panel("side by side", controls, draw)


def _beside_canvas(
    seen: Seen,
    title: str,
    names: Sequence[str],
    maps: Mapping[str, Array | None],
    coarse: set[str],
    values: Mapping[str, float],
    metric: str,
) -> Canvas:
    side, told = 184, []
    canvas = Canvas(5 * side + 4 * 12, 300)
    canvas.heading(0, 0, "the picture", f"maps of “{title}”")
    canvas.picture(0, 44, side, seen.pixels, smooth=True)
    canvas.text(0, 240, metric, bold=True)
    if seen.mask is not None:
        canvas.text(0, 262, f"the object is {seen.mask.mean():.0%} of it", size=12, color=MUTED)
    for column, name in enumerate(names, 1):
        x = column * (side + 12)
        cost = METHODS[name].cost if name in METHODS else "never asks the model"
        canvas.heading(x, 0, name, "coarse, more coming …" if name in coarse else cost)
        _tile(canvas, x, 44, side, maps[name])
        value = values.get(name)
        said = "…" if value is None else "no value" if np.isnan(value) else decimal(value)
        canvas.text(x, 236, said, size=20, bold=True)
        told.append(f"{name} {said}{' (coarse)' if name in coarse else ''}")
    canvas.alt = f"Maps of “{title}”. {metric}: {', '.join(told)}."
    return canvas
