"""The panel of LRP: a composite as a table of rules, and the map that it makes."""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from course_utils.methods import propagation, relevance
from course_utils.methods.relevance import COMPOSITES, Composite
from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas, colored
from course_utils.panels.panel import Panel, choice, slider
from course_utils.panels.pictures import (
    Array,
    Seen,
    class_choice,
    classifier_of,
    picture_reader,
    standards,
    summed,
)

SCENES = standards("zebra", "tiger", "toadstool", "clownfish", "hot-air balloon", "panther")
RULES: dict[str, relevance.Rule] = {
    "ε": relevance.epsilon,
    "ε, relative": relevance.epsilon_relative,
    "γ": relevance.gamma,
    "z⁺": relevance.z_plus,
    "α2 β1": relevance.alpha_beta,
    "flat": relevance.flat,
    "box": relevance.box,
}
NAMES = {rule: name for name, rule in RULES.items()}
OPENING, OWN = "epsilon-gamma-box", "a table of your own"


class Relevance(NamedTuple):
    """A map, and the logit that it divides."""

    map_: Array  # (H, W)
    logit: float

    @property
    def told(self) -> tuple[str, str]:
        """What it sums to, and which share of it is negative, in words."""
        total, size = float(self.map_.sum()), float(np.abs(self.map_).sum()) or 1.0
        against = float(-self.map_.clip(max=0).sum()) / size
        summed_up = f"sums to {total:.2g} of a logit of {self.logit:.1f}".replace("-", "−")
        return summed_up, f"{against:.0%} of |map| is negative"


def lrp_composites(model: Any = None, image: Any = None) -> Panel:
    """LRP by any table of rules, beside LRP-ε: choose a composite, then change a place in it.

    The rule of the first layer, of the lower, middle and upper convolutions, and of linear layers.
    γ counts where the rule is γ.
    """
    classifier = classifier_of(model)
    pictures, look = picture_reader(classifier, image, SCENES)
    places = COMPOSITES[OPENING]._asdict()
    controls: dict[str, Any] = {
        "picture": choice("picture", [*pictures]),
        "target": class_choice(classifier),
        "composite": choice("composite", [*COMPOSITES, OWN], OPENING),
        **{place: choice(place, [*RULES], NAMES[rule]) for place, rule in places.items()},
        "gamma": slider("γ", 0.0, 2.0, 0.25, 0.05),
    }

    def rules_of(composite: str) -> dict[str, str]:
        if composite == OWN:
            return {}
        return {place: NAMES[rule] for place, rule in COMPOSITES[composite]._asdict().items()}

    @lru_cache(1)  # it stays while the table is changed
    def by_epsilon(picture: str, target: str) -> Relevance:
        return relevance_of(classifier, look(picture, target), COMPOSITES["epsilon"])

    def draw(
        picture: str, target: str, composite: str, gamma: float, **table: str
    ) -> Iterator[Canvas]:
        seen, plain = look(picture, target), by_epsilon(picture, target)
        rules = {
            place: partial(relevance.gamma, gamma=gamma) if name == "γ" else RULES[name]
            for place, name in table.items()
        }
        yield _lrp_canvas(seen, composite, table, plain, None)
        ruled = relevance_of(classifier, seen, Composite(**rules))
        yield _lrp_canvas(seen, composite, table, plain, ruled)

    changed = dict.fromkeys(places, lambda name: {"composite": OWN})
    return Panel("lrp composites", controls, draw, linked={"composite": rules_of, **changed})


def relevance_of(classifier: Classifier, seen: Seen, composite: Composite) -> Relevance:
    """LRP's map of the class that is explained, by a composite."""
    map_ = propagation.lrp(classifier.model, seen.x, seen.target, composite=composite)
    return Relevance(summed(map_), float(seen.logits[seen.target]))


def _lrp_canvas(
    seen: Seen, composite: str, table: dict[str, str], plain: Relevance, ruled: Relevance | None
) -> Canvas:
    """ruled: None where its map is still to come."""
    canvas, side = Canvas(880, 368), 250
    canvas.figure(0, 0, side, seen.pixels, "the picture", f"for “{seen.name}”", smooth=True)
    canvas.figure(305, 0, side, colored(plain.map_), "LRP-ε everywhere", "red: for, blue: against")
    picture = None if ruled is None else colored(ruled.map_)
    rules = " · ".join(table.values())
    canvas.figure(610, 0, side, picture, composite, f"from the first layer up: {rules}")
    said = []
    for left, one in ((305, plain), (610, ruled)):
        lines = ("its map is coming",) if one is None else (*one.told, seen.inside(one.map_))
        if one is not None:
            canvas.lines(left, 304, lines, bold=(0,))
        said.append(f"{'; '.join(filter(None, lines))}.")
    canvas.alt = (
        f"LRP of “{seen.name}”. By ε everywhere: {said[0]} By {composite}, from the first layer up "
        f"{', '.join(table.values())}: {said[1]}"
    )
    return canvas
