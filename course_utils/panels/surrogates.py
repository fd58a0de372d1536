"""The panels of lecture 08: a line fitted nearby, LIME of a picture, and coalitions of parts."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import mark_boundaries
from torch import Tensor

from course_utils import models, plotting, regions, scenes
from course_utils import shapley as shapley_values
from course_utils.lime import agreement, cosine_distance, proximity, sample_image, surrogate
from course_utils.panels.base import (
    WIDTH,
    Canvas,
    Panel,
    choice,
    classifier_of,
    decimal,
    offered,
    pixels_of,
    slider,
)
from course_utils.plotting import BLUE, FAINT, INK, MUTED, ORANGE, PAPER

ANSWER = "the model's answer"
Array = NDArray[np.float64]


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
        answers = function(points)
        fit = surrogate(points, answers, weights)

        side = 400
        canvas = Canvas(760, 440)

        def at(p: Array) -> tuple[float, float]:
            share = (np.clip(p, -REACH, REACH) / REACH + 1) / 2
            return side * share[0], side * (1 - share[1])

        canvas.picture(0, 0, side, plotting.colorize(field, "signed", 1.6), smooth=True)
        shown = (np.abs(points) < REACH).all(1)
        for point, weight, answer in zip(
            points[shown], weights[shown], answers[shown], strict=True
        ):
            half = 1 + 3.5 * weight**0.5
            x, y = at(point)
            canvas.box(
                x - half, y - half, 2 * half, 2 * half, fill=ORANGE if answer > 0.5 else BLUE
            )
        ends = _half_line(fit.coefficients, fit.intercept)
        if ends is not None:
            canvas.line([at(end) for end in ends], INK, 3)
        x, y = at(here)
        canvas.box(x - 5, y - 5, 10, 10, fill="#ffd800", edge=INK, line=2)
        canvas.text(0, 410, "dots: samples, larger where they count more;  line: g = ½", size=12)
        canvas.heading(430, 0, "the line's model", f"kernel width {width:.1f}")
        value = float(function(here[None])[0])
        lines = (
            f"f at the point  {decimal(value)}",
            f"g at the point  {decimal(float(here @ fit.coefficients + fit.intercept))}",
            f"weight of a  {decimal(fit.coefficients[0])}",
            f"weight of b  {decimal(fit.coefficients[1])}",
            f"R²  {_known(fit.r2)}",
            f"it rests on as much as {_effective(weights):.0f} of {samples} samples",
        )
        for row, line in enumerate(lines):
            canvas.text(430, 52 + 24 * row, line, size=14, bold=row in (2, 3))
        canvas.alt = (
            f"A curved boundary, {samples} samples around ({decimal(a)}, {decimal(b)}), seed "
            f"{seed}, and the line fitted with kernel width {width:.1f}: weights "
            f"{decimal(fit.coefficients[0])} and {decimal(fit.coefficients[1])}, "
            f"R² {_known(fit.r2)}."
        )
        return canvas

    return Panel("neighbourhood", controls, draw)


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

PAIR = scenes.canonical(
    "tiger", x=0.28, size=0.5, companion="zebra", companion_x=0.75, companion_size=0.5
)
COARSE = 8  # samples before the first picture
SAMPLES = (50, 100, 200, 300, 400, 500)
ALL = "all"


class Sampled(NamedTuple):
    """What the model said of a picture with segments hidden."""

    z: Tensor  # bool (S, P)
    logits: Tensor  # (S, K), of which the first is of the picture itself
    fill: Tensor  # what hides (1, C, 1, 1)


def lime(model: Any = None, image: Any = None) -> Panel:
    """LIME of a picture: its segments, one sample, the map, and the K best segments alone.

    Below, every sample: what the model says against what the linear model says. A first map comes
    from few samples. Kernel width, K and the class cost no further pass.
    """
    classifier = classifier_of(model)
    specs = {"tiger and zebra": PAIR}
    specs |= {label: scenes.canonical(label) for label in ("zebra", "toadstool", "cow", "crow")}
    pictures = offered(classifier, image, specs)
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "segments": slider("segments", 10, 120, 50),
        "samples": choice("samples", SAMPLES, 200),
        "seed": slider("seed", 0, 9, 0),
        "width": slider("kernel width", 0.1, 1.0, 0.25, 0.05),
        "features": choice("K", [ALL, 1, 2, 3, 5, 8, 12]),
    }

    @cache
    def look(name: str) -> Tensor:
        return classifier.to_input(pixels_of(pictures[name]))

    @cache
    def cut(name: str, count: int) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """The segments, and the picture with their outlines."""
        pixels = classifier.to_image(look(name))
        labels = regions.segment(pixels, n_segments=count)
        outlined = mark_boundaries(pixels, labels, color=(1, 1, 1))
        return labels, np.rint(255 * outlined).astype(np.uint8)

    kept: dict[tuple[Any, ...], Sampled] = {}  # of the last choice: other fits need no pass

    def ask(picture: str, segments: int, samples: int, seed: int) -> Sampled:
        x, generator = look(picture), torch.Generator().manual_seed(seed)
        z, logits = sample_image(
            classifier.model, x, cut(picture, segments)[0], samples=samples, generator=generator,
            progress=False,
        )  # fmt: skip
        return Sampled(z, logits, x.mean((2, 3), keepdim=True))

    def draw(
        picture: str,
        target: str,
        segments: int,
        samples: int,
        seed: int,
        width: float,
        features: Any,
    ) -> Iterator[Canvas]:
        x, (labels, outlined) = look(picture), cut(picture, segments)
        key = picture, segments, samples, seed
        if key not in kept:
            kept.clear()
        for count in [samples] if key in kept else [COARSE, samples]:
            sampled = kept.get(key) or ask(picture, segments, count, seed)
            if count == samples:
                kept[key] = sampled
            best = int(sampled.logits[0].argmax())
            index = best if target == ANSWER else classifier.classes.index(target)
            yield _lime_canvas(classifier, x, labels, outlined, sampled, index, controls)

    return Panel("lime", controls, draw)


def _lime_canvas(
    classifier: models.Classifier,
    x: Tensor,
    labels: NDArray[np.intp],
    outlined: NDArray[np.uint8],
    sampled: Sampled,
    index: int,
    controls: dict[str, Any],
) -> Canvas:
    width, features = controls["width"].value, controls["features"].value
    z, count, wanted = sampled.z, len(sampled.z), controls["samples"].value
    scores = sampled.logits[:, index].numpy()
    weights = proximity(cosine_distance(z), width)
    most = None if features == ALL else features
    fit = surrogate(z, scores, weights, features=most)
    w, name, side = fit.coefficients, classifier.classes[index], 225
    note = f"of {count} samples" if count == wanted else f"{count} samples, more coming …"

    def hidden(present: NDArray[np.bool_]) -> NDArray[np.uint8]:
        seen = torch.from_numpy(present[labels]).to(x.device)
        return classifier.to_image(torch.where(seen, x, sampled.fill))

    canvas = Canvas(960, 470)
    canvas.heading(0, 0, "segments", f"{z.shape[1]} of them")
    canvas.picture(0, 44, side, outlined, smooth=True)
    canvas.heading(245, 0, "a sample", f"it gets {decimal(scores[1])}, weight {weights[1]:.2f}")
    canvas.picture(245, 44, side, hidden(z[1].numpy()), smooth=True)
    canvas.heading(490, 0, f"LIME of “{name}”", note)
    canvas.picture(490, 44, side, plotting.colorize(w[labels], "signed"))
    canvas.text(490, 274, f"from {decimal(w.min())} to {decimal(w.max())} logits", size=12)
    best = np.argsort(-w, kind="stable")[: most or 5]
    best = best[w[best] > 0]
    canvas.heading(735, 0, "the best alone", f"{len(best)} segments with the largest weights")
    canvas.picture(735, 44, side, hidden(np.isin(np.arange(len(w)), best)), smooth=True)

    _scatter(canvas, 0, 300, z.numpy() @ w + fit.intercept, scores, weights)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    try:
        parts = [surrogate(z[h], scores[h], weights[h], features=most).coefficients for h in halves]
        alike = _known(agreement(np.stack(parts)))
    except ValueError:  # a narrow kernel may leave one half with a single sample that counts
        alike = "cannot be said"
    error = np.nanmedian(fit.standard_error) if np.isfinite(fit.standard_error).any() else np.nan
    lines = (
        f"R² of the fit, nearby  {_known(fit.r2)}",
        f"it rests on as much as {_effective(weights):.0f} of {count} samples",
        f"standard error of a weight  {_known(error)} (median)",
        f"two halves of the samples agree to  {alike}",
        f"logit of the picture  {decimal(scores[0])},  the linear model's  "
        f"{decimal(float(w.sum() + fit.intercept))}",
    )
    for row, line in enumerate(lines):
        canvas.text(490, 312 + 24 * row, line, bold=row in (0, 3))
    canvas.alt = (
        f"LIME of “{name}”, {z.shape[1]} segments, {count} samples, seed "
        f"{controls['seed'].value}, kernel width {width:.2f}, K {features}: R² "
        f"{_known(fit.r2)}, two halves of the samples agree to {alike}."
        f"{'' if count == wanted else ' Coarse, more coming.'}"
    )
    return canvas


def _scatter(
    canvas: Canvas, left: float, top: float, fitted: Array, scores: Array, weights: Array
) -> None:
    """Each sample's score against the linear model's, larger where it counts more."""
    canvas.text(left, top, "model (up) and linear model (right), every sample", bold=True)
    low = float(min(fitted.min(), scores.min()))
    room = float(max(fitted.max(), scores.max())) - low or 1.0
    wide, tall, above = 440, 120, top + 24

    def at(g: float, f: float) -> tuple[float, float]:
        return left + wide * (g - low) / room, above + tall * (1 - (f - low) / room)

    canvas.line([at(low, low), at(low + room, low + room)], FAINT, 2)
    shade = weights / weights.max()
    for g, f, share in list(zip(fitted, scores, shade, strict=True))[::-1]:
        half = 1 + 2 * share**0.5
        x, y = at(g, f)
        canvas.box(x - half, y - half, 2 * half, 2 * half, fill=BLUE)
    x, y = at(fitted[0], scores[0])
    canvas.box(x - 4, y - 4, 8, 8, fill=ORANGE)
    canvas.text(
        left, above + tall + 6, "orange: the picture itself;  line: equal", size=11, color=MUTED
    )


# -- coalitions ------------------------------------------------------------------------------------

MOST = 8  # players: 256 coalitions
DRAWN = "drawn away"
LADYBIRDS = scenes.canonical(
    "ladybird", x=0.3, size=0.5, background="beach",
    companion="ladybird", companion_x=0.78, companion_size=0.6,
)  # fmt: skip
GAMES: dict[str, tuple[scenes.SceneSpec, tuple[str, ...]]] = {
    "two ladybirds": (LADYBIRDS, ("object", "companion", "background")),
    "zebra": (scenes.canonical("zebra"), ("head", "mane", "body", "legs", "tail", "background")),
    "crow": (scenes.canonical("crow"), ("beak", "head", "wing", "body", "legs", "background")),
    "toadstool": (scenes.canonical("toadstool"), ("cap", "gills", "stem", "shadow", "background")),
    "tiger and zebra": (PAIR, ("head", "body", "legs", "tail", "companion", "background")),
}


@cache
def _strangers(classifier: models.Classifier) -> Tensor:
    """Ordinary scenes to show where something is absent (4, C, H, W)."""
    return torch.cat([classifier.inputs(scenes.Scenes(4, seed=9))[i][None] for i in range(4)])


ABSENT: dict[str, Callable[[models.Classifier, Tensor], Tensor]] = {
    "mean colour": lambda classifier, x: x.mean((2, 3), keepdim=True),
    "blurred": lambda classifier, x: classifier.blurred(x),
    "black": lambda classifier, x: classifier.black(x),
    "other scenes": lambda classifier, x: _strangers(classifier).to(x),
}


def _few_segments(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """At most `MOST` segments; SLIC makes about as many as it is asked for."""
    for count in range(MOST, 0, -1):
        labels = regions.segment(pixels, n_segments=count)
        if labels.max() < MOST:
            break
    return labels


class Game:
    """A picture whose players can be there or not, in any coalition."""

    def __init__(self, classifier: models.Classifier, name: str, source: Any) -> None:
        self.classifier, self.spec = classifier, None
        pixels = pixels_of(source)
        self.x = classifier.to_input(pixels)
        if isinstance(source, scenes.Scene):
            source = source.spec
        if isinstance(source, scenes.SceneSpec):
            scene = scenes.render(source, classifier.size)
            self.spec = source
            parts = GAMES[name][1] if name in GAMES else (*scene.parts, "background")[-MOST:]
            masks = {"object": scene.mask, **scene.parts}
            # Where two parts meet, the object may cover a pixel of which no part covers half.
            taken = [masks[part] for part in {*scene.parts, *parts} - {"background"}]
            masks["background"] = ~np.any(taken, axis=0)
            self.parts = parts
            self.names = [source.label if part == "object" else part for part in parts]
            self.masks = torch.from_numpy(np.stack([masks[part] for part in parts]))
        else:
            labels = _few_segments(classifier.to_image(self.x))
            self.parts = ()
            self.names = [f"segment {i + 1}" for i in range(labels.max() + 1)]
            self.masks = torch.from_numpy(labels == np.arange(labels.max() + 1)[:, None, None])
        self.tables: dict[str, Tensor] = {}  # absent → logits (2^P, K), NaN where not asked yet

    def shown(self, present: Sequence[bool], absent: str) -> Tensor:
        """What the model gets: (D, C, H, W), one picture or one for each stranger."""
        if absent == DRAWN:
            if self.spec is None:
                others = ", ".join(ABSENT)
                raise ValueError(f"only a scene can be drawn without a part; choose {others}.")
            spec = self.spec
            for part, on in zip(self.parts, present, strict=True):
                spec = spec if on else spec.without(part)
            return self.classifier.to_input(scenes.render(spec).image)
        hidden = self.masks[[not on for on in present]].any(0).to(self.x.device)
        return torch.where(hidden, ABSENT[absent](self.classifier, self.x), self.x)

    def ask(self, numbers: Sequence[int], absent: str) -> Tensor:
        """Fill in what is not known yet of these coalitions; bit i is player i. The whole table."""
        table = self.tables.get(absent)
        if table is None:
            count = 2 ** len(self.names)
            table = torch.full((count, len(self.classifier.classes)), torch.nan)
            self.tables[absent] = table
        for number in numbers:
            if table[number].isnan().any():
                pictures = self.shown(self.present(number), absent)
                with torch.no_grad():
                    table[number] = self.classifier.model(pictures).mean(0).cpu()
        return table

    def present(self, number: int) -> list[bool]:
        """Who is in a coalition."""
        return [bool(number >> i & 1) for i in range(len(self.names))]


def shapley(model: Any = None, image: Any = None) -> Panel:
    """Switch the parts of a picture on and off, and see what each of them is worth.

    Three numbers for every player: what it adds to those who are there now, the mean of what it
    added in some random orders of joining, and its exact Shapley value, the mean over all orders.
    """
    classifier = classifier_of(model)
    pictures = offered(classifier, image, {name: spec for name, (spec, _) in GAMES.items()})
    game_of = cache(lambda name: Game(classifier, name, pictures[name]))
    switches = {
        f"player{i}": widgets.Checkbox(
            value=True, description=f"player {i + 1}", indent=True,
            style={"description_width": "110px"}, layout=widgets.Layout(width=WIDTH),
        )
        for i in range(MOST)
    }  # fmt: skip
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": choice("class", [ANSWER, *classifier.classes]),
        "absent": choice("absent means", [DRAWN, *ABSENT]),
        **switches,
        "orders": slider("random orders", 1, 60, 5),
    }

    def choose(picture: str) -> dict[str, Any]:
        changes: dict[str, Any] = dict.fromkeys(switches, True)
        if game_of(picture).spec is None and controls["absent"].value == DRAWN:
            changes["absent"] = "mean colour"
        return changes

    controls["absent"].value = DRAWN if game_of(next(iter(pictures))).spec else "mean colour"

    def draw(picture: str, target: str, absent: str, orders: int, **on: bool) -> Iterator[Canvas]:
        game = game_of(picture)
        players = len(game.names)
        for i, switch in enumerate(switches.values()):
            switch.layout.display = None if i < players else "none"
            switch.description = game.names[i] if i < players else f"player {i + 1}"
        now = sum(2**i for i in range(players) if on[f"player{i}"])
        last = 2**players - 1
        best = int(game.ask([last], absent)[last].argmax())
        index = best if target == ANSWER else classifier.classes.index(target)
        todo = [now, *(now ^ 2**i for i in range(players)), 0, *range(2**players)]
        known = game.ask([now], absent)
        # Soon after each other, so that a switch can be moved on: at most 16 pictures at a time.
        while known.isnan().any():
            yield _game_canvas(game, now, absent, known[:, index], index, orders)
            known = game.ask([n for n in todo if known[n].isnan().any()][:16], absent)
        yield _game_canvas(game, now, absent, known[:, index], index, orders)

    return Panel("shapley", controls, draw, linked={"picture": choose})


def mean_of_orders(v: Tensor, players: int, orders: int) -> Array:
    """What each player adds when it joins, the mean over random orders (players,). v: (2^P,)."""
    generator, total = np.random.default_rng(0), np.zeros(players)
    for _ in range(orders):
        number = 0
        for i in generator.permutation(players).tolist():
            total[i] += float(v[number | 2**i] - v[number])
            number |= 2**i
    return total / orders


def _game_canvas(game: Game, now: int, absent: str, v: Tensor, index: int, orders: int) -> Canvas:
    players, name = len(game.names), game.classifier.classes[index]
    present, v = game.present(now), v.double()
    here = np.array([float(v[now | 2**i] - v[now & ~(2**i)]) for i in range(players)])
    columns: dict[str, Array | None] = {"adds to these": here, f"mean of {orders}": None}
    columns["exact"] = None
    asked = int((~v.isnan()).sum())
    if asked == len(v):
        bits = 2 ** torch.arange(players)
        exact = shapley_values.exact_shapley(
            lambda coalitions: v[(coalitions * bits).sum(1)], players, batch_size=len(v),
            progress=False,
        ).numpy()  # fmt: skip
        columns = {
            "adds to these": here,
            f"mean of {orders}": mean_of_orders(v, players, orders),
            "exact": exact,
        }
    row, top = 34, 62
    height = max(346, top + row * players + 30)
    canvas = Canvas(940, height)
    who = [n for n, on in zip(game.names, present, strict=True) if on]
    canvas.heading(0, 0, f"v = {decimal(float(v[now]))}", f"logit of “{name}”, {len(who)} present")
    picture = game.shown(present, absent)
    canvas.picture(0, 44, 250, game.classifier.to_image(picture[0]), smooth=True)
    if not game.parts:
        for i, mask in enumerate(game.masks):
            rows, cols = np.nonzero(mask.numpy())
            scale = 250 / mask.shape[-1]
            x, y = scale * cols.mean(), 44 + scale * rows.mean()
            canvas.box(x - 10, y - 11, 20, 22, fill=PAPER)
            canvas.text(x, y, str(i + 1), size=15, bold=True, anchor="mm")
    status = f"{asked} of {len(v)} coalitions asked"
    canvas.text(0, 304, status + ("" if asked == len(v) else ", more coming …"), color=MUTED)

    finite = [c[np.isfinite(c)] for c in columns.values() if c is not None]
    limit = max(1.0, max((float(np.abs(c).max()) for c in finite if len(c)), default=1.0))
    below = {"adds to these": "if it comes, or goes", "exact": "Shapley value, all orders"}
    for number, (title, values) in enumerate(columns.items()):
        left = 420 + 178 * number
        canvas.heading(left, 0, title, below.get(title, "random orders of joining"))
        zero = left + 60
        for i in range(players):
            y = top + row * i
            if number == 0:
                canvas.text(
                    408, y + 9, f"{game.names[i]}{'' if present[i] else ' (absent)'}",
                    size=14, anchor="rm", bold=present[i], color=INK if present[i] else MUTED,
                )  # fmt: skip
            value = np.nan if values is None else values[i]
            if np.isfinite(value):
                length = 60 * value / limit
                color = ORANGE if number == 2 else BLUE
                canvas.box(zero + min(length, 0), y, abs(length), 18, fill=color)
                canvas.text(zero + max(length, 0) + 6, y + 9, decimal(value), anchor="lm")
        canvas.line([(zero, top - 6), (zero, top + row * players)], MUTED, 1)
        if values is not None and number:
            text = f"sum {decimal(float(np.sum(values)))}"
            canvas.text(zero, top + row * players + 6, text, bold=True)
    if asked == len(v):
        canvas.text(0, 324, f"v(all) − v(none) = {decimal(float(v[-1] - v[0]))}", bold=True)
    words = "; ".join(
        f"{n} {decimal(e)}" for n, e in zip(game.names, columns["exact"], strict=True)
    ) if columns["exact"] is not None else "coming"  # fmt: skip
    canvas.alt = (
        f"Of {', '.join(game.names)}, present: {', '.join(who) or 'nobody'}; absent means "
        f"{absent}. The logit of “{name}” is {decimal(float(v[now]))}. Shapley values: {words}."
    )
    return canvas
