"""The league's table: its means and intervals, the orders of its methods, its file, its picture."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from course_utils import files, plotting
from course_utils.contract import check_choice
from course_utils.evaluation.columns import METRICS, Cost, Values
from course_utils.evaluation.controls import LEAGUE_CONTROLS
from course_utils.methods import METHODS

Interval = tuple[float, float, float]  # the value, and its 95 % interval

PAINTED = "the truth, painted"
PATH = files.DATA / "league.json"


@dataclass(frozen=True, eq=False)
class Table:
    """What metrics say of methods on S scenes: values[metric][method] is (S,), NaN for no value.

    costs: of a method, for each image. setup: what was compared, and how.
    """

    values: dict[str, dict[str, Values]]
    costs: dict[str, Cost]
    setup: dict[str, Any]

    @property
    def methods(self) -> list[str]:
        """The rows, those that agree most with the truth first."""
        return sorted(self.costs, key=lambda name: -np.nan_to_num(self.mean("truth", name)[0]))

    def mean(self, metric: str, method: str) -> Interval:
        """The mean over scenes with its 95 % interval, by bootstrap over scenes; NaN without any.

        Raises ValueError naming the argument.
        """
        check_choice("metric", metric, self.values)
        check_choice("method", method, self.costs)
        column = self.values[metric].get(method, np.array([]))
        column = column[np.isfinite(column)]
        if not len(column):
            return np.nan, np.nan, np.nan
        low, high = np.quantile(_resamples(len(column)) @ column / len(column), [0.025, 0.975])
        return float(column.mean()), float(low), float(high)

    def __str__(self) -> str:
        metrics = [name for name in METRICS if name in self.values]
        head = "".join(f"{name:>13}" for name in metrics)
        lines = [f"{'':24}{head}{'seconds':>10}{'passes':>12}"]
        for method in self.methods:
            row = "".join(f"{_cell(self.mean(metric, method)):>13}" for metric in metrics)
            cost = self.costs[method]
            lines.append(f"{method:24}{row}{cost.seconds:>10.3f}{_passes(cost):>12}")
        return "\n".join(lines)


def _cell(interval: Interval) -> str:
    value, low, high = interval
    return "" if np.isnan(value) else f"{value:.2f} ± {(high - low) / 2:.2f}".replace("-", "−")


def _passes(cost: Cost) -> str:
    return f"{cost.forwards:.0f} F {cost.backwards:.0f} B"


@cache
def _resamples(scenes: int) -> Values:
    """How often each of the scenes is drawn in each of 1,000 resamples (1000, S)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(scenes, np.full(scenes, 1 / scenes), size=1000).astype(float)


# -- do the metrics order the methods as the truth does? ------------------------------------------


def order_agreement(
    table: Table, *, controls: bool = True, against: str = "truth"
) -> dict[str, Interval]:
    """How far each metric orders the methods as the truth does: Kendall's τ over methods.

        τ = (pairs of methods in the same order − pairs in the other order) / all pairs

    Methods are ordered by their means over the scenes, the better first as the metric means it: 1
    is the truth's own order, 0 what chance achieves. The 95 % interval is by bootstrap over scenes,
    the same resamples for metric and truth; it says nothing of other methods.

    controls: False leaves out those that know nothing of the model, and the painted truth.
    against: the metric whose order counts, of the table's.
    Returns metric → (τ, low, high), over the methods with values of both metrics, two at least.

    Raises ValueError naming the argument.
    Source: Kendall, A New Measure of Rank Correlation, 1938.
    """
    check_choice("against", against, table.values)
    result = {}
    for metric in table.values:
        names = [
            name
            for name in table.costs
            if (controls or name not in (*LEAGUE_CONTROLS, PAINTED))
            and all(np.isfinite(table.values[m].get(name, np.nan)).any() for m in (metric, against))
        ]
        if metric != against and len(names) > 1:
            same = _order(table, metric, names) * _order(table, against, names)
            tau = same.sum((1, 2)) / (len(names) * (len(names) - 1))
            low, high = np.nanquantile(tau[1:], [0.025, 0.975])
            result[metric] = float(tau[0]), float(low), float(high)
    return result


def _order(table: Table, metric: str, names: Sequence[str]) -> Values:
    """Is one better than the other? 1, 0 or −1, by all scenes and each resample (1 + R, M, M)."""
    columns = np.stack([table.values[metric][name] for name in names])
    counts = np.vstack([np.ones(columns.shape[1]), _resamples(columns.shape[1])])
    means = _means(columns, counts)
    return METRICS[metric].better * np.sign(means[:, :, None] - means[:, None])


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


def load(path: Path | str = PATH) -> Table:
    """Read a table; FileNotFoundError or ValueError says what to do where there is none."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no {path}; `course league` makes it")
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
        return Table(values, costs, content["setup"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"path: {path} is damaged; `course league` makes it again") from None


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
    return Table(values, merged(table.costs, rows.costs), {**table.setup, "options": options})


# -- shown ----------------------------------------------------------------------------------------


def markdown(
    table: Table,
    metrics: Sequence[str] = ("truth", "single", "deletion", "insertion", "patches", "iou"),
) -> str:
    """The table in Markdown, as the README shows it: means, with half their 95 % intervals."""
    head = ["method", *(METRICS[name].label for name in metrics), "passes"]
    rows = [head, ["---"] * len(head)]
    for method in table.methods:
        name = method.replace("|", "\\|")
        values = (_cell(table.mean(metric, method)) for metric in metrics)
        passes = _passes(table.costs[method])
        rows.append([f"`{name}`" if method.strip("|") in METHODS else name, *values, passes])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(
    table: Table, metrics: Sequence[str] | None = None, *, title: str | None = None
) -> None:
    """Every method's mean and 95 % interval under each metric, methods in the order of the truth.

    A metric that agreed with the truth would show a falling line, from the upper right to the lower
    left; where the less is the better, the axis runs the other way. Controls are orange, the
    painted truth is green.

    Raises ValueError naming the argument.
    """
    shown = [name for name in METRICS if name in table.values] if metrics is None else [*metrics]
    for name in shown:
        check_choice("metrics", name, table.values)
    names = table.methods
    alt = f"{len(names)} methods, best first by the truth, under {', '.join(shown)}"
    alt += f": {', '.join(names)}."
    with plotting.new_figure(
        1.55 * len(shown) + 0.3, 0.27 * len(names) + 0.4, title, alt
    ) as figure:
        grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, metric in zip(grid, shown, strict=True):
            _column(axes, table, metric, names)
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
    axes.set_title(fill(METRICS[metric].label, 14), fontsize=11)
    axes.grid(axis="both", color=plotting.FAINT, lw=0.7)
    axes.tick_params(axis="both", length=0, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], prune="both"))
    axes.spines[["left"]].set_visible(False)
    if METRICS[metric].better < 0:
        axes.invert_xaxis()
