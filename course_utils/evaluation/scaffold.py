"""A scaffold that hides a biased model from whoever explains it by changed rows of a table.

LIME and Kernel SHAP ask a model about rows that they make up. A model that can tell these from real
rows can be biased for real ones, and innocent for made-up ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.contract import check_count, check_whole
from course_utils.methods.lime import Surrogate, proximity, surrogate

Predict = Callable[[np.ndarray], np.ndarray]  # rows (B, F) → scores or probabilities (B, K)
IsReal = Callable[[np.ndarray], np.ndarray]  # rows (B, F) → bool (B,)


def changed_as_lime(rows: np.ndarray, copies: int, seed: int = 0) -> np.ndarray:
    """Rows as `lime.lime_tabular` makes them up: each column moved on its own, by its spread.

        x + σ ⊙ z,     z ~ N(0, I)

    rows: (M, F). Returns (M · copies, F).
    """
    check_rows("rows", rows)
    check_count("copies", copies)
    z = np.random.default_rng(seed).standard_normal((len(rows) * copies, rows.shape[1]))
    return np.repeat(rows, copies, 0) + rows.std(0) * z


def changed_as_shap(
    rows: np.ndarray, background: np.ndarray, copies: int, seed: int = 0
) -> np.ndarray:
    """Rows as Kernel SHAP makes them up: some columns are another row's.

    How many is drawn first, each number equally often, from 1 to F − 1; then which, and whose.
    rows: (M, F). background: (B, F), the rows that stand for absence. Returns (M · copies, F).
    """
    check_rows("rows", rows)
    check_rows("background", background, rows.shape[1])
    if rows.shape[1] < 2:
        raise ValueError("rows has a single column, so none can come from another row")
    check_count("copies", copies)
    draw = np.random.default_rng(seed)
    many = np.repeat(rows, copies, 0)
    count = draw.integers(1, rows.shape[1], (len(many), 1))
    absent = draw.random(many.shape).argsort(1) < count
    return np.where(absent, background[draw.integers(len(background), size=len(many))], many)


def detector(real: np.ndarray, made_up: np.ndarray, seed: int = 0) -> IsReal:
    """A random forest that tells real rows from made-up ones: rows (B, F) → True where real.

    real: (M, F). made_up: (N, F), as from `changed_as_lime`; those that are real rows by chance
    are left out. Both kinds count the same, however many there are of each.
    """
    from sklearn.ensemble import RandomForestClassifier  # takes a second to import

    check_rows("real", real)
    check_rows("made_up", made_up, real.shape[1])
    known = set(map(tuple, real.tolist()))
    others = [row for row in made_up.tolist() if tuple(row) not in known]
    if not others:
        raise ValueError("made_up: all of its rows are real ones, so there is nothing to tell")
    # Leaves of five rows: a forest that learnt the real rows by heart would not know new ones.
    forest = RandomForestClassifier(
        min_samples_leaf=5, class_weight="balanced", random_state=seed
    ).fit(np.concatenate([real, others]), np.arange(len(real) + len(others)) < len(real))
    return lambda rows: forest.predict(rows)


def scaffold(biased: Predict, innocent: Predict, is_real: IsReal) -> Predict:
    """A model that is biased where it counts, and innocent where it is examined:

        e(x) = f(x) where x is real, ψ(x) where it is not

    biased: f. innocent: ψ. is_real: as from `detector`.
    Source: Slack, Hilgard, Jia, Singh, Lakkaraju, Fooling LIME and SHAP, 2020.

    >>> always = lambda answer: lambda rows: np.full((len(rows), 1), answer)
    >>> e = scaffold.scaffold(always(1.0), always(0.0), lambda rows: rows[:, 0] > 5)
    >>> e(np.array([[9.0], [2.0]])).ravel()
    array([1., 0.])
    """
    for name, function in (("biased", biased), ("innocent", innocent), ("is_real", is_real)):
        if not callable(function):
            raise TypeError(f"{name} must be a function of rows, not {type(function).__name__}")

    def predict(rows: np.ndarray) -> np.ndarray:
        return np.where(is_real(rows)[:, None], biased(rows), innocent(rows))

    return predict


def coalition_game(
    predict: Predict, row: np.ndarray, background: np.ndarray, target: int
) -> Callable[[Tensor], Tensor]:
    """The game of a row's columns, for `shapley.kernel_shap`:

        v(S) = mean over b of f_c(the row in the columns S, b in the others)

    row: (F,). background: b, (B, F). target: c. The game takes coalitions (N, F), bool, and gives
    (N,), float64.
    Source: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017.

    >>> row, others = np.array([5.0, 1.0]), np.zeros((1, 2))
    >>> game = scaffold.coalition_game(lambda rows: rows.sum(1, keepdims=True), row, others, 0)
    >>> game(torch.tensor([[True, False], [True, True]]))
    tensor([5., 6.], dtype=torch.float64)
    """
    check_rows("background", background, _columns(row))

    def game(present: Tensor) -> Tensor:
        rows = np.where(present.numpy()[:, None], row, background)
        scores = predict(rows.reshape(-1, len(row)))[:, target]
        return torch.from_numpy(scores.reshape(len(present), -1).mean(1).astype(float))

    return game


def real_surrogate(predict: Predict, row: np.ndarray, data: np.ndarray, target: int) -> Surrogate:
    """LIME's linear model of a row, fitted to the answers for real rows alone:

        z = (x' − x) / σ for each row x' of the data,     π = exp(−‖z‖² / width²)

    The width is that of `lime.lime_tabular`, 0.75 · √F. No row is made up, so a scaffold has
    nothing to see; in return columns that go together cannot be told apart.

    row: x, (F,). data: (M, F). target: the class. Returns the Surrogate, per standard deviation.
    """
    check_rows("data", data, _columns(row))
    z = (data - row) / np.where(np.ptp(data, 0) > 0, data.std(0), 1)
    weights = proximity(np.linalg.norm(z, axis=1), 0.75 * len(row) ** 0.5)
    return surrogate(z, predict(data)[:, target].astype(float), weights)


def swapped(rows: np.ndarray, column: int) -> np.ndarray:
    """Rows (M, F) with the other value of a column that has two.

    >>> scaffold.swapped(np.array([[1.0, 7.0], [2.0, 8.0]]), column=0)
    array([[2., 7.],
           [1., 8.]])
    """
    check_rows("rows", rows)
    check_whole("column", column)
    if not 0 <= column < rows.shape[1]:
        raise ValueError(f"column is {column}; the columns are 0 to {rows.shape[1] - 1}")
    values = np.unique(rows[:, column])
    if len(values) != 2:
        raise ValueError(f"column {column} must have two values to swap, but it has {len(values)}")
    other = rows.copy()
    other[:, column] = values.sum() - rows[:, column]
    return other


def _columns(row: np.ndarray) -> int:
    """How many columns a row has, if it is one."""
    if np.ndim(row) != 1:
        raise ValueError(f"row must be (F,), one row of the table, but is {np.shape(row)}")
    return len(row)


def check_rows(name: str, rows: Any, columns: int | None = None) -> None:
    """Refuse what is no table (M, F) of finite numbers, or has not so many columns."""
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
        came = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TypeError(f"{name} must be an array of numbers (M, F), not {came}")
    if rows.ndim != 2 or not rows.size or columns not in (None, rows.shape[1]):
        wanted = "F" if columns is None else columns
        raise ValueError(f"{name} must be (M, {wanted}), not empty, but its shape is {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
