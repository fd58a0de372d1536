"""The other panel of lecture 08: the parts of a picture as a game of coalitions."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.methods import regions
from course_utils.methods import shapley as shapley_values
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, decimal
from course_utils.panels.panel import Panel, choice, slider, switch
from course_utils.panels.pictures import (
    PAIR,
    Array,
    class_choice,
    classifier_of,
    index_of,
    picture_choices,
    pixels_of,
)
from course_utils.plotting import BLUE, INK, MUTED, ORANGE, PAPER
from course_utils.worlds import scenes

MOST = 8  # players: 256 coalitions
ROW = 34  # pixels of a player
DRAWN = "drawn away"
LADYBIRDS = scenes.standard(
    "ladybird", x=0.3, size=0.5, background="beach",
    companion="ladybird", companion_x=0.78, companion_size=0.6,
)  # fmt: skip
GAMES: dict[str, tuple[scenes.SceneSpec, tuple[str, ...]]] = {
    "two ladybirds": (LADYBIRDS, ("object", "companion", "background")),
    "zebra": (scenes.standard("zebra"), ("head", "mane", "body", "legs", "tail", "background")),
    "crow": (scenes.standard("crow"), ("beak", "head", "wing", "body", "tail", "background")),
    "toadstool": (scenes.standard("toadstool"), ("cap", "gills", "stem", "shadow", "background")),
    "tiger and zebra": (PAIR, ("head", "body", "legs", "tail", "companion", "background")),
}


@cache
def _strangers(classifier: Classifier) -> Tensor:
    """Ordinary scenes to show where something is absent (4, C, H, W)."""
    return torch.cat([classifier.inputs(scenes.Scenes(4, seed=9))[i][None] for i in range(4)])


ABSENT: dict[str, Callable[[Classifier, Tensor], Tensor]] = {
    "mean colour": lambda classifier, x: x.mean((2, 3), keepdim=True),
    "blurred": Classifier.blurred,
    "black": Classifier.black,
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

    def __init__(self, classifier: Classifier, name: str, source: Any) -> None:
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

    @property
    def absent(self) -> str:
        """What absence means to begin with: a scene is drawn without a part, a photo cannot be."""
        return DRAWN if self.spec else "mean colour"

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

    def tables_for(self, now: int, absent: str) -> Iterator[Tensor]:
        """The table as it fills, a few coalitions at a time: those around `now` before all others.

        The first has `now` in it, the last everything.
        """
        players = range(len(self.names))
        todo = [now, *(now ^ 2**i for i in players), 0, *range(2 ** len(players))]
        known = self.ask([now], absent)
        # Soon after each other, so that a switch can be moved on: at most 16 pictures at a time.
        while known.isnan().any():
            yield known
            known = self.ask([n for n in todo if known[n].isnan().any()][:16], absent)
        yield known

    def present(self, number: int) -> list[bool]:
        """Who is in a coalition."""
        return [bool(number >> i & 1) for i in range(len(self.names))]


def shapley(model: Any = None, image: Any = None) -> Panel:
    """Switch the parts of a picture on and off, and see what each of them is worth.

    Three numbers for every player: what it adds to those who are there now, the mean of what it
    added in some random orders of joining, and its exact Shapley value, the mean over all orders.
    """
    classifier = classifier_of(model)
    pictures = picture_choices(classifier, image, {name: spec for name, (spec, _) in GAMES.items()})
    game_of = cache(lambda picture: Game(classifier, picture, pictures[picture]))
    first = next(iter(pictures))
    switches = {f"player{i}": switch(f"player {i + 1}") for i in range(MOST)}
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "absent": choice("absent means", [DRAWN, *ABSENT], game_of(first).absent),
        **switches,
        "orders": slider("random orders", 1, 60, 5),
    }

    def choose(picture: str) -> dict[str, Any]:
        drawn = controls["absent"].value == DRAWN
        other = {"absent": game_of(picture).absent} if drawn else {}
        return {**dict.fromkeys(switches, True), **other}

    def draw(picture: str, target: str, absent: str, orders: int, **on: bool) -> Iterator[Canvas]:
        game = game_of(picture)
        _name(switches, game.names)
        now = sum(2**i for i in range(len(game.names)) if on[f"player{i}"])
        last = 2 ** len(game.names) - 1
        index = index_of(classifier, target, game.ask([last], absent)[last])
        name = classifier.classes[index]
        for known in game.tables_for(now, absent):
            yield _game_canvas(game, now, absent, known[:, index], name, orders)

    return Panel("shapley", controls, draw, linked={"picture": choose})


def _name(switches: dict[str, Any], names: Sequence[str]) -> None:
    """Give the switches the players' names, and hide those without a player."""
    for i, control in enumerate(switches.values()):
        control.layout.display = None if i < len(names) else "none"
        control.description = names[i] if i < len(names) else f"player {i + 1}"


def mean_of_orders(v: Tensor, players: int, orders: int) -> Array:
    """What each player adds when it joins, the mean over random orders (players,). v: (2^P,)."""
    generator, total = np.random.default_rng(0), np.zeros(players)
    for _ in range(orders):
        number = 0
        for i in generator.permutation(players).tolist():
            total[i] += float(v[number | 2**i] - v[number])
            number |= 2**i
    return total / orders


def worth(v: Tensor, now: int, players: int, orders: int) -> dict[str, Array | None]:
    """Each player's worth by three counts, None where not all of v (2^P,) is known yet."""
    here = np.array([float(v[now | 2**i] - v[now & ~(2**i)]) for i in range(players)])
    if v.isnan().any():
        return {"adds to these": here, f"mean of {orders}": None, "exact": None}
    bits = 2 ** torch.arange(players)
    exact = shapley_values.exact_shapley(
        lambda coalitions: v[(coalitions * bits).sum(1)], players, batch_size=len(v)
    )
    mean = mean_of_orders(v, players, orders)
    return {"adds to these": here, f"mean of {orders}": mean, "exact": exact.numpy()}


def _game_canvas(game: Game, now: int, absent: str, v: Tensor, name: str, orders: int) -> Canvas:
    v, present, top = v.double(), game.present(now), 62
    columns = worth(v, now, len(game.names), orders)
    canvas = Canvas(940, max(346, top + ROW * len(game.names) + 30))
    who = [n for n, on in zip(game.names, present, strict=True) if on]
    value, pixels = decimal(float(v[now])), game.classifier.to_image(game.shown(present, absent)[0])
    below = f"logit of “{name}”, {len(who)} present"
    canvas.figure(0, 0, 250, pixels, f"v = {value}", below, smooth=True)
    if not game.parts:
        _numbers(canvas, game.masks)
    asked = int((~v.isnan()).sum())
    more = "" if asked == len(v) else ", more coming …"
    canvas.text(0, 304, f"{asked} of {len(v)} coalitions asked{more}", color=MUTED)
    if not more:
        canvas.text(0, 324, f"v(all) − v(none) = {decimal(float(v[-1] - v[0]))}", bold=True)
    _players(canvas, 408, top, game.names, present)
    _worth(canvas, 420, top, columns)
    exact, words = columns["exact"], "coming"
    if exact is not None:
        words = "; ".join(f"{n} {decimal(e)}" for n, e in zip(game.names, exact, strict=True))
    canvas.alt = (
        f"Of {', '.join(game.names)}, present: {', '.join(who) or 'nobody'}; absent means "
        f"{absent}. The logit of “{name}” is {value}. Shapley values: {words}."
    )
    return canvas


def _numbers(canvas: Canvas, masks: Tensor) -> None:
    """The number of each segment, in its middle."""
    for i, mask in enumerate(masks, 1):
        rows, columns = np.nonzero(mask.numpy())
        scale = 250 / mask.shape[-1]
        x, y = scale * columns.mean(), 44 + scale * rows.mean()
        canvas.box(x - 10, y - 11, 20, 22, fill=PAPER)
        canvas.text(x, y, str(i), size=15, bold=True, anchor="mm")


def _players(
    canvas: Canvas, right: float, top: float, names: Sequence[str], present: Sequence[bool]
) -> None:
    """The players' names, those who are there in bold."""
    for i, (name, on) in enumerate(zip(names, present, strict=True)):
        said, color = (name, INK) if on else (f"{name} (absent)", MUTED)
        canvas.text(right, top + ROW * i + 9, said, size=14, anchor="rm", bold=on, color=color)


def _worth(canvas: Canvas, left: float, top: float, columns: dict[str, Array | None]) -> None:
    """A column of bars for each count, all on one scale."""
    known = [values for values in columns.values() if values is not None]
    limit = max(1.0, *(np.abs(values[np.isfinite(values)]).max(initial=0) for values in known))
    below = {"adds to these": "if it comes, or goes", "exact": "Shapley value, all orders"}
    players = len(known[0])
    for number, (title, values) in enumerate(columns.items()):
        x, bottom = left + 178 * number, top + ROW * players
        canvas.heading(x, 0, title, below.get(title, "random orders of joining"))
        zero = x + 60
        for i, value in enumerate([] if values is None else values):
            if np.isfinite(value):
                y, length = top + ROW * i, 60 * value / limit
                color = ORANGE if title == "exact" else BLUE
                canvas.box(zero + min(length, 0), y, abs(length), 18, fill=color)
                canvas.text(zero + max(length, 0) + 6, y + 9, decimal(value), anchor="lm")
        canvas.line([(zero, top - 6), (zero, bottom)], MUTED, 1)
        if values is not None and number:
            total = f"sum {decimal(float(np.sum(values)))}"
            canvas.text(zero, bottom + 6, total, bold=True)
