"""The league's second table, on photographs and a network that others trained: what carries over?

Of a photograph nobody knows the truth. Two things are known: where the thing is that the answer
names, and, of two photographs side by side, in which half it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from course_utils import files, models
from course_utils.contract import (
    check_choice,
    check_count,
    explaining,
    known_options,
    predict_target,
)
from course_utils.evaluation import columns, league, standings
from course_utils.evaluation.columns import (
    BASELINE,
    STEPS,
    Cost,
    Metric,
    Repetition,
    Values,
    measuring_cost,
)
from course_utils.evaluation.controls import LEAGUE_CONTROLS
from course_utils.evaluation.sanity import maps_of, randomized_copy
from course_utils.evaluation.standings import Interval, Table
from course_utils.networks import Classifier
from course_utils.progress import counted
from course_utils.worlds import photographs

NETWORK = "efficientnet_lite0"
PATH = files.DATA / "league_photographs.json"
ROWS = [name for name in league.NAMES if name != standings.PAINTED]
FEW = 4  # photographs of the metric that runs every method again

# What NETWORK's answer names in each photograph. Two answers are wrong: the person is called an
# academic gown, the astronaut's helmet a football helmet. With all else in the mean colour, each
# thing keeps more than 0.7 of the answer's logit.
THINGS = {
    "chelsea": "cat",
    "coffee": "cup",
    "camera": "tripod",
    "motorcycle_left": "motorcycle",
    "flower": "flower",
    "china": "temple",
    "rocket": "rocket",
    "grace_hopper": "person",
    "astronaut": "helmet",
}


# -- the columns ----------------------------------------------------------------------------------


class Shown(NamedTuple):
    """Pictures, the class that is explained of each, and where the explanation should lie."""

    model: nn.Module
    images: Tensor  # (N, C, H, W)
    target: Tensor  # (N,)
    mask: Tensor  # (N, H, W), bool
    batch_size: int


def inside(shown: Shown, maps: Tensor) -> Tensor:
    """The share of a map's positive sum that lies in the mask M:  Σ_M R⁺ / Σ R⁺.

    A map that is the mask gets 1. Chance is the mask's share of the picture.

    maps: (N, H, W). Returns (N,), from 0 to 1; NaN for a map that is positive nowhere.
    Source: Wang et al., Score-CAM, 2020 (energy-based pointing game); of pictures put together,
    Böhle, Fritz, Schiele, Convolutional Dynamic Alignment Networks for Interpretable
    Classifications, 2021 (localisation metric).
    """
    positive = maps.double().clamp(min=0)
    return (positive * shown.mask).sum((1, 2)) / positive.sum((1, 2))


METRICS: dict[str, Metric] = {
    "half": Metric("in its own half, of two photographs", 1, inside),
    "inside": Metric("inside the thing", 1, inside),
    **{name: columns.METRICS[name] for name in ("deletion", "insertion", "randomized")},
}


# -- the photographs ------------------------------------------------------------------------------


def shown_alone(classifier: Classifier, names: Sequence[str], batch_size: int) -> Shown:
    """The photographs (N), each explained for the model's own answer; the mask is its thing."""
    photos = [photographs.load(name) for name in names]
    images = torch.cat([classifier.to_input(photo.image) for photo in photos])
    masks = [photo.seen_by(classifier)[THINGS[photo.name]] for photo in photos]
    target = predict_target(classifier.model, images, None, batch_size)
    return Shown(classifier.model, images, target, torch.from_numpy(np.stack(masks)), batch_size)


def shown_beside(classifier: Classifier, alone: Shown, names: Sequence[str]) -> Shown:
    """Each photograph left of the next in THINGS, then right of the one before: 2 N collages.

    The class is still the answer to the photograph alone; the mask is its half of the picture. So a
    map that is the same for every class has 1/2 on average over all nine photographs.
    """
    order = [*THINGS]
    before = dict(zip(order[1:] + order[:1], order, strict=True))
    after = {one: other for other, one in before.items()}
    left = [collage(classifier, name, after[name]) for name in names]
    right = [collage(classifier, before[name], name) for name in names]
    on_left = torch.arange(classifier.size) < classifier.size / 2
    sides = torch.stack([on_left] * len(names) + [~on_left] * len(names))
    mask = sides[:, None].expand(-1, classifier.size, -1)
    return alone._replace(images=torch.cat(left + right), target=alone.target.repeat(2), mask=mask)


def collage(classifier: Classifier, left: str, right: str) -> Tensor:
    """Two photographs side by side, (1, 3, size, size) in model space."""
    both = photographs.collage(photographs.load(left), photographs.load(right))
    return classifier.to_input(both.image)


def ordinary(classifier: Classifier) -> Tensor:
    """Ordinary images for methods that need some: the nine, mirrored, (9, 3, size, size).

    Mirrored, since a picture that is its own background would be replaced by itself.
    """
    return torch.cat([classifier.to_input(photographs.picture(name)) for name in THINGS]).flip(3)


# -- the table ------------------------------------------------------------------------------------


def field_table(
    classifier: Classifier,
    names: Sequence[str] = tuple(THINGS),
    *,
    methods: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Table:
    """Put methods and controls through the metrics that need no known truth, on photographs.

    A photograph's answer is what the model says of it, be it right or wrong. Maps count as in
    `league_table`: signed, channels summed; |name| counts magnitudes. A table's value is one
    photograph's, and its intervals are by bootstrap over photographs: with nine they are wide.

        half         share of the positive sum in the photograph's own half of a collage, the mean
                     of its two places; chance, and any map that is the same for all classes, is 1/2
        inside       the same share in the thing that the answer names, of the photograph alone;
                     chance is the thing's share of the picture, which noise has
        deletion, insertion   as in `league_table`, of the photograph alone
        randomized   rank correlation with the map of the model with all parameters drawn anew, of
                     the first 4 photographs; NaN where a map is constant, as the pattern methods'
                     are there: the last layer's patterns are 0

    names: of THINGS. methods: of ROWS; None for all. Windows are as large against the picture as on
    scenes, an eighth of its side; other options as in the league. All rows take about twenty
    minutes on one core.

    Raises ValueError naming the argument.
    Source: see `inside`, `metrics`, `sanity`.
    """
    rows = [*(ROWS if methods is None else methods)]
    for argument, given, known in (("names", names, THINGS), ("methods", rows, ROWS)):
        if not given:
            raise ValueError(f"{argument} must name at least one, but are empty")
        for name in given:
            check_choice(argument, name, known)
    check_count("batch_size", batch_size)
    random = replace(classifier, model=randomized_copy(classifier.model))
    costs = {row: np.zeros(3) for row in rows}
    values: dict[str, dict[str, Values]] = {metric: {} for metric in METRICS}
    with explaining(classifier.model):
        alone = shown_alone(classifier, names, batch_size)
        beside = shown_beside(classifier, alone, names)
        data = ordinary(classifier)
        run, again = (_methods(one, rows, data) for one in (classifier, random))
        for row in counted(rows, "method"):
            found = _measured(run[row], again[row], random.model, alone, beside, costs[row])
            for metric, value in found.items():
                values[metric][row] = value.double().numpy()
    each = {row: Cost(*(total / (3 * len(names))).tolist()) for row, total in costs.items()}
    return Table(values, each, _setup(classifier, names, rows, alone), METRICS)


def _methods(
    classifier: Classifier, rows: Sequence[str], data: Tensor
) -> dict[str, Callable[..., Tensor]]:
    """The league's methods, with windows of the same share of the picture as on scenes."""
    return {
        row: partial(method, **known_options(method, **_windows(classifier)))
        for row, method in league.methods_by_name(classifier, rows, data).items()
    }


def _windows(classifier: Classifier) -> dict[str, int]:
    return {"window": classifier.size // 8, "stride": classifier.size // 16}


def _measured(
    method: Callable[..., Tensor],
    random_method: Callable[..., Tensor],
    random_model: nn.Module,
    alone: Shown,
    beside: Shown,
    cost: Values,
) -> dict[str, Tensor]:
    """All that is said of a method, (N,) each; what its maps cost is added to cost (3,)."""
    model, images, target, _, batch_size = alone
    with measuring_cost(model, cost):
        maps, pairs = (
            maps_of(method, model, shown.images, shown.target, batch_size).sum(1)
            for shown in (alone, beside)
        )
    few = (images[:FEW], target[:FEW], maps[:FEW], batch_size)
    again = Repetition(method, model, random_method, random_model, *few)
    randomized = torch.full((len(images),), torch.nan)
    randomized[:FEW] = METRICS["randomized"].measure(again)
    return {
        "half": METRICS["half"].measure(beside, pairs).view(2, -1).mean(0),
        **{
            name: METRICS[name].measure(alone, maps) for name in ("inside", "deletion", "insertion")
        },
        "randomized": randomized,
    }


def _setup(
    classifier: Classifier, names: Sequence[str], rows: Sequence[str], alone: Shown
) -> dict[str, Any]:
    """What was compared, and how: of each photograph the answer, its thing, and that one's area."""
    areas = alone.mask.double().mean((1, 2)).tolist()
    answers = [classifier.classes[c] for c in alone.target.tolist()]
    return {
        "model": classifier.name,
        "scenes": len(names),
        "few": min(FEW, len(names)),
        "photographs": {
            name: {"answer": answer, "thing": THINGS[name], "area": round(area, 3)}
            for name, answer, area in zip(names, answers, areas, strict=True)
        },
        "baseline": BASELINE,
        "steps": STEPS,
        **_windows(classifier),
        "options": league.quick_options(rows),
    }


def order_kept(here: Table, there: Table, metric: str) -> Interval:
    """Does a metric order the methods here as it does there? Kendall's τ between two tables.

        τ = (pairs of methods in the same order − pairs in the other order) / all pairs

    Over the rows of both tables but the controls, by their means. The 95 % interval is by bootstrap
    over the scenes of the one and the photographs of the other.

    Raises ValueError naming the argument.
    Source: Kendall, A New Measure of Rank Correlation, 1938.
    """
    check_choice("metric", metric, [name for name in here.values if name in there.values])
    rows = [
        row
        for row in here.values[metric]
        if row not in LEAGUE_CONTROLS
        and all(np.isfinite(t.values[metric].get(row, np.nan)).any() for t in (here, there))
    ]
    generator = np.random.default_rng(0)
    return standings.kendall(
        *(_orders(table.values[metric], rows, generator) for table in (here, there))
    )


def _orders(
    column: Mapping[str, Values], rows: Sequence[str], generator: np.random.Generator
) -> Values:
    """The sign of each difference of two means, by all pictures, then by 1,000 resamples."""
    values = np.stack([column[row] for row in rows])
    values = values[:, np.isfinite(values).all(0)]
    count = values.shape[1]
    drawn = np.vstack([np.arange(count), generator.integers(count, size=(1000, count))])
    means = np.stack([values[:, pictures].mean(1) for pictures in drawn])
    return np.sign(means[:, :, None] - means[:, None])


# -- the table that the course ships --------------------------------------------------------------


def make(names: Sequence[str] | None = None, path: Path | str = PATH) -> Table:
    """Measure the rows of those names, None for all, on all photographs; write them to the file.

    With names, the file's other rows stay as they were.

    Raises ValueError or FileNotFoundError naming the argument.
    """
    old = load(path) if names else None
    table = field_table(models.load(NETWORK, device="cpu"), methods=names or None)
    standings.save(standings.replace_rows(old, table, ROWS) if old else table, path)
    return load(path)  # rounded as it is kept


def load(path: Path | str = PATH) -> Table:
    """Read the table; FileNotFoundError or ValueError says what to do where there is none."""
    return standings.load(path, METRICS, "course league --photographs")
