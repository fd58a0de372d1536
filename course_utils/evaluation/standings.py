"""The league's table: its means and intervals, the orders of its methods, its file, its picture."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from course_utils import files, plotting
from course_utils.contract import check_choice
from course_utils.evaluation.columns import METRICS, Cost, Metric, Values
from course_utils.evaluation.controls import LEAGUE_CONTROLS
from course_utils.methods import METHODS

Interval = tuple[float, float, float]  # the value, and its 95 % interval

PAINTED = "the truth, painted"
PATH = files.DATA / "league.json"


@dataclass(frozen=True, eq=False)
class Table:
    """What metrics say of methods on S scenes: values[metric][method] is (S,), NaN for no value.

    costs: of a method, for each image. setup: what was compared, and how. metrics: what the columns
    are called, and which way is better; the first of them that the table has is its `headline`.
    """

    values: dict[str, dict[str, Values]]
    costs: dict[str, Cost]
    setup: dict[str, Any]
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)

    @property
    def columns(self) -> list[str]:
        """The metrics that it has values of, in order."""
        return [name for name in self.metrics if name in self.values]

    @property
    def headline(self) -> str:
        """The metric that orders the methods."""
        return self.columns[0]

    @property
    def methods(self) -> list[str]:
        """The rows, the best by the headline first; those without a value last."""
        ranked = self.ranked(self.headline)
        return ranked + [name for name in self.costs if name not in ranked]

    def ranked(self, metric: str) -> list[str]:
        """The methods that have a value of a metric, the best first.

        Raises ValueError naming the argument.
        """
        check_choice("metric", metric, self.columns)
        means = {name: self.mean(metric, name)[0] for name in self.costs}
        known = [name for name in means if not np.isnan(means[name])]
        return sorted(known, key=lambda name: -self.metrics[metric].better * means[name])

    def mean(self, metric: str, method: str) -> Interval:
        """The mean over scenes with its 95 % interval, by bootstrap over scenes; NaN without any.

        Raises ValueError naming the argument.
        """
        return _bootstrap(self.column(metric, method))

    def column(self, metric: str, method: str) -> Values:
        """What a metric says of a method on each scene, (S,); NaN for no value.

        Raises ValueError naming the argument.
        """
        check_choice("metric", metric, self.columns)
        check_choice("method", method, self.costs)
        return self.values[metric].get(method, np.full(self.setup["scenes"], np.nan))

    def __str__(self) -> str:
        head = "".join(f"{name:>13}" for name in self.columns)
        lines = [f"{'':24}{head}{'seconds':>10}{'passes':>12}"]
        for method in self.methods:
            row = "".join(f"{_cell(self.mean(metric, method)):>13}" for metric in self.columns)
            cost = self.costs[method]
            lines.append(f"{method:24}{row}{cost.seconds:>10.3f}{_passes(cost):>12}")
        return "\n".join(lines)


def _bootstrap(column: Values) -> Interval:
    """The mean of what is no NaN, and the 95 % interval of the means of its resamples."""
    column = column[np.isfinite(column)]
    if not len(column):
        return np.nan, np.nan, np.nan
    low, high = np.quantile(_resamples(len(column)) @ column / len(column), [0.025, 0.975])
    return float(column.mean()), float(low), float(high)


def _cell(interval: Interval) -> str:
    value, low, high = interval
    return "" if np.isnan(value) else f"{value:z.2f} ± {(high - low) / 2:.2f}".replace("-", "−")


def _passes(cost: Cost) -> str:
    return f"{cost.forwards:.0f} F {cost.backwards:.0f} B"


@cache
def _resamples(scenes: int) -> Values:
    """How often each of the scenes is drawn in each of 1,000 resamples (1000, S)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(scenes, np.full(scenes, 1 / scenes), size=1000).astype(float)


# -- which differences are no chance? -------------------------------------------------------------


def compare(table: Table, metric: str, one: str, other: str) -> Interval:
    """How far one method is above another: the mean over scenes of the paired difference.

        mean over scenes of  one − other

    Both are judged on the same scenes, so that what makes a scene easy or hard for both does not
    count; two intervals of means may overlap where this one leaves no doubt. The 95 % interval is
    by bootstrap over the scenes that have a value for both. In the metric's unit: where less is
    better, below 0 means that `one` is the better.

    Raises ValueError naming the argument.
    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979.
    """
    check_choice("one", one, table.costs)
    check_choice("other", other, table.costs)
    return _bootstrap(table.column(metric, one) - table.column(metric, other))


def groups(table: Table, metric: str | None = None) -> list[list[str]]:
    """The methods by a metric, best first, in groups whose members may be as good as the first.

    A new group begins with the method that is worse than the first of the group, where the 95 %
    interval of the paired difference (see `compare`) leaves out 0. Within a group the order may be
    chance. Neighbours at the border of two groups may differ by less than members of one.

    metric: of the table's; None for its headline. Methods without a value are in no group.

    Raises ValueError naming the argument.
    """
    metric = table.headline if metric is None else metric
    result: list[list[str]] = []
    for name in table.ranked(metric):
        if not result or _worse(table, metric, name, result[-1][0]):
            result.append([])
        result[-1].append(name)
    return result


def _worse(table: Table, metric: str, one: str, other: str) -> bool:
    """Whether one method is worse than another, and that hardly by chance."""
    _, low, high = compare(table, metric, one, other)
    return high < 0 if table.metrics[metric].better > 0 else low > 0


# -- do the metrics order the methods as the truth does? ------------------------------------------


def order_agreement(
    table: Table, *, controls: bool = True, against: str | None = None
) -> dict[str, Interval]:
    """How far each metric orders the methods as the truth does: Kendall's τ over methods.

        τ = (pairs of methods in the same order − pairs in the other order) / all pairs

    Methods are ordered by their means over the scenes, the better first as the metric means it: 1
    is the truth's own order, 0 what chance achieves. The 95 % interval is by bootstrap over scenes,
    the same resamples for metric and truth; it says nothing of other methods.

    controls: False leaves out those that know nothing of the model, and the painted truth.
    against: the metric whose order counts, of the table's; None for its headline, such as
    "density", the truth for each pixel.
    Returns metric → (τ, low, high), over the methods with values of both metrics, two at least.

    Raises ValueError naming the argument.
    Source: Kendall, A New Measure of Rank Correlation, 1938.
    """
    against = table.headline if against is None else against
    check_choice("against", against, table.columns)
    result = {}
    for metric in table.columns:
        names = [
            name
            for name in table.costs
            if (controls or name not in (*LEAGUE_CONTROLS, PAINTED))
            and all(np.isfinite(table.column(m, name)).any() for m in (metric, against))
        ]
        if metric != against and len(names) > 1:
            result[metric] = kendall(*(_order(table, m, names) for m in (metric, against)))
    return result


def kendall(one: Values, other: Values) -> Interval:
    """Kendall's τ of two orders of M methods, with its 95 % interval.

    one, other: is method i better than j? 1, 0 or −1, (1 + R, M, M): by all scenes, then by each of
    R resamples.
    """
    methods = one.shape[1]
    tau = (one * other).sum((1, 2)) / (methods * (methods - 1))
    low, high = np.nanquantile(tau[1:], [0.025, 0.975])
    return float(tau[0]), float(low), float(high)


def _order(table: Table, metric: str, names: Sequence[str]) -> Values:
    """Is one better than the other? 1, 0 or −1, by all scenes and each resample (1 + R, M, M)."""
    columns = np.stack([table.column(metric, name) for name in names])
    counts = np.vstack([np.ones(columns.shape[1]), _resamples(columns.shape[1])])
    means = _means(columns, counts)
    return table.metrics[metric].better * np.sign(means[:, :, None] - means[:, None])


def _means(columns: Values, counts: Values) -> Values:
    """Means over the scenes that have a value: (M, S), how often each counts (R, S) → (R, M)."""
    finite = np.isfinite(columns)
    with np.errstate(invalid="ignore"):
        return counts @ np.where(finite, columns, 0).T / (counts @ finite.T)


# -- its file -------------------------------------------------------------------------------------


def save(table: Table, path: Path | str) -> None:
    """Write a table as JSON, values in thousandths; the file is there whole or not at all."""
    thousandths = {
        metric: {name: _thousandths(values) for name, values in column.items()}
        for metric, column in table.values.items()
    }
    costs = {
        name: [float(f"{number:.3g}") for number in cost] for name, cost in table.costs.items()
    }
    content = {"setup": table.setup, "costs": costs, "thousandths": thousandths}
    with files.whole(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def load(
    path: Path | str = PATH,
    metrics: Mapping[str, Metric] = METRICS,
    command: str = "course league",
) -> Table:
    """Read a table with these columns; an error says what to do where there is none.

    command: what makes the table.

    Raises FileNotFoundError or ValueError naming the argument.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no {path}; `{command}` makes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {
            metric: {
                name: _from_thousandths(numbers, content["setup"]["scenes"])
                for name, numbers in column.items()
            }
            for metric, column in content["thousandths"].items()
        }
        costs = {name: Cost(*numbers) for name, numbers in content["costs"].items()}
        table = Table(values, costs, content["setup"], metrics)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"path: {path} is damaged; `{command}` makes it again") from None
    if other := [name for name in values if name not in metrics]:
        raise ValueError(
            f"path: {path} has columns that are no longer measured, {', '.join(other)}; "
            f"`{command}` makes it again"
        )
    return table


def _thousandths(values: Values) -> list[int | None]:
    """As whole numbers, None for NaN, without the NaNs at the end."""
    numbers = [None if np.isnan(value) else round(1000 * value) for value in values.tolist()]
    while numbers and numbers[-1] is None:
        numbers.pop()
    return numbers


def _from_thousandths(numbers: list[int | None], scenes: int) -> Values:
    missing = [None] * (scenes - len(numbers))
    return np.array([np.nan if n is None else n / 1000 for n in [*numbers, *missing]])


def replace_rows(table: Table, rows: Table, order: Iterable[str]) -> Table:
    """The table with the rows of another in place of its own of the same names, or beside them.

    rows: measured on the same scenes, in the same way. order: of all rows; what it does not name
    comes last.

    Raises ValueError where the two were measured differently.
    """
    own, new = ({**one.setup, "metrics": [*one.values]} for one in (table, rows))
    for key in own | new:
        if key != "options" and own.get(key) != new.get(key):
            raise ValueError(
                f"table: its {key} is {own.get(key)!r}, but that of the new rows is "
                f"{new.get(key)!r}; `course league` measures all rows again"
            )
    order = dict.fromkeys([*order, *table.costs])

    def merged(old: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in old.items() if name not in rows.costs}
        both = kept | fresh
        return {name: both[name] for name in order if name in both}

    values = {name: merged(column, rows.values[name]) for name, column in table.values.items()}
    options = merged(table.setup["options"], rows.setup["options"])
    costs, setup = merged(table.costs, rows.costs), {**table.setup, "options": options}
    return replace(table, values=values, costs=costs, setup=setup)


def join(tables: Sequence[Table]) -> Table:
    """One table of the scenes of several, in their order, measured in the same way.

    What a table lacks, as those metrics that take few scenes, is NaN on its scenes.
    """
    first, counts = tables[0], [table.setup["scenes"] for table in tables]
    values = {
        metric: {
            name: np.concatenate(
                [
                    table.column(metric, name) if metric in table.values else np.full(n, np.nan)
                    for table, n in zip(tables, counts, strict=True)
                ]
            )
            for name in column
        }
        for metric, column in first.values.items()
    }
    costs = {
        name: Cost(*np.average([table.costs[name] for table in tables], 0, counts).tolist())
        for name in first.costs
    }
    parts: Counter[str] = sum((Counter(table.setup["parts"]) for table in tables), Counter())
    setup = {**first.setup, "scenes": sum(counts), "parts": dict(sorted(parts.items()))}
    return replace(first, values=values, costs=costs, setup=setup)


# -- shown ----------------------------------------------------------------------------------------


README = ("density", "partial", "contrast", "runner_up", "deletion", "insertion", "patches", "iou")


def markdown(table: Table, metrics: Sequence[str] = README) -> str:
    """The table in Markdown, as the README shows it: means, with half their 95 % intervals.

    Methods with the same letter cannot be told from the first of them (see `groups`).

    Raises ValueError naming the argument.
    """
    for name in metrics:
        check_choice("metrics", name, table.columns)
    labels = [table.metrics[name].label for name in metrics]
    letters = {name: letter for letter, names in _lettered(table) for name in names}
    rows = [["method", "group", *labels, "passes"]]
    rows.append(["---"] * len(rows[0]))
    for method in table.methods:
        name = method.replace("|", "\\|")
        name = f"`{name}`" if method.strip("|") in METHODS else name
        values = (_cell(table.mean(metric, method)) for metric in metrics)
        rows.append([name, letters.get(method, ""), *values, _passes(table.costs[method])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _lettered(table: Table) -> list[tuple[str, list[str]]]:
    """The groups by the headline, with their letters: A … Z, AA, AB …"""
    letters = [first + second for first in ("", *ascii_uppercase) for second in ascii_uppercase]
    return list(zip(letters, groups(table), strict=False))


def picture(
    table: Table, metrics: Sequence[str] | None = None, *, title: str | None = None
) -> None:
    """Every method's mean and 95 % interval under each metric, the best by the headline first.

    A metric that agreed with the headline would show a falling line, from the upper right to the
    lower left; where the less is the better, the axis runs the other way. Controls are orange, the
    painted truth is green. Lines part the `groups` of the headline.

    metrics: of the table's; None for all.

    Raises ValueError naming the argument.
    """
    shown = table.columns if metrics is None else [*metrics]
    for name in shown:
        check_choice("metrics", name, table.columns)
    names, parted = table.methods, groups(table)
    borders = np.cumsum([len(group) for group in parted])[:-1] - 0.5
    best = table.metrics[table.headline].label
    alt = f"{len(names)} methods, best first by {best}, under {', '.join(shown)}"
    alt += f": {'; '.join(', '.join(group) for group in parted)}."
    with plotting.new_figure(
        1.55 * len(shown) + 0.3, 0.27 * len(names) + 0.4, title, alt
    ) as figure:
        grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, metric in zip(grid, shown, strict=True):
            _column(axes, table, metric, names)
            for border in borders:
                axes.axhline(border, color=plotting.MUTED, lw=0.7, alpha=0.6)
        grid[0].set_yticks(range(len(names)), names)
        figure.subplots_adjust(wspace=0.2)


def _column(axes: Any, table: Table, metric: str, names: Sequence[str]) -> None:
    """One metric's dots and intervals."""
    colors = dict.fromkeys(LEAGUE_CONTROLS, plotting.ORANGE) | {PAINTED: plotting.SERIES[2]}
    for row, name in enumerate(names):
        if name in table.values[metric]:
            value, low, high = table.mean(metric, name)
            color = colors.get(name, plotting.BLUE)
            axes.plot([low, high], [row, row], color=color, lw=3, alpha=0.45, solid_capstyle="butt")
            axes.plot(value, row, "o", color=color, ms=5.5)
    axes.set(ylim=(len(names) - 0.4, -0.6))
    axes.set_title(fill(table.metrics[metric].label, 14), fontsize=11)
    axes.grid(axis="both", color=plotting.FAINT, lw=0.7)
    axes.tick_params(axis="both", length=0, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], prune="both", min_n_ticks=1))
    axes.spines[["left"]].set_visible(False)
    if table.metrics[metric].better < 0:
        axes.invert_xaxis()
