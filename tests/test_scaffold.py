from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

from course_utils.evaluation.scaffold import (
    changed_as_lime,
    changed_as_shap,
    coalition_game,
    detector,
    real_surrogate,
    scaffold,
    swapped,
)
from course_utils.methods.lime import lime_tabular
from course_utils.methods.shapley import exact_shapley, kernel_shap

SEX, BMI = 1, 2


def by(column: int, edge: float) -> Any:
    """A rule: class 1 where the column is above the edge."""
    return lambda rows: np.eye(2)[(rows[:, column] > edge).astype(int)]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return load_diabetes(scaled=False).data[np.random.default_rng(0).permutation(442)]


def test_rows_changed_as_lime_changes_them() -> None:
    rows = np.array([[0.0, 7.0, 100.0], [2.0, 7.0, 300.0]])  # σ is 1, 0 and 100
    made = changed_as_lime(rows, 4000)
    assert made.shape == (8000, 3)
    assert (made[:, 1] == 7).all()
    for row, copies in zip(rows, np.split(made, 2), strict=True):
        assert copies.mean(0) == pytest.approx(row, abs=5)
        assert copies.std(0) == pytest.approx([1, 0, 100], rel=0.05)
    assert (changed_as_lime(rows, 2) == changed_as_lime(rows, 2)).all()
    assert (changed_as_lime(rows, 2) != changed_as_lime(rows, 2, seed=1)).any()


def test_rows_changed_as_shap_changes_them() -> None:
    rows, background = np.zeros((2, 4)), np.array([[1.0, 1, 1, 1], [2, 2, 2, 2]])
    made = changed_as_shap(rows, background, 3000)
    assert made.shape == (6000, 4)
    absent = (made > 0).sum(1)
    assert set(absent) == {1, 2, 3}
    assert np.bincount(absent)[1:] / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)
    for row in made:  # all that is absent comes from one row
        assert len(set(row[row > 0])) == 1
    assert (made.max(1) == 1).mean() == pytest.approx(0.5, abs=0.03)


def test_the_detector_tells_made_up_rows_from_real_ones(rows: np.ndarray) -> None:
    is_real = detector(rows[:300], changed_as_lime(rows[:300], 5))
    assert is_real(rows[300:]).dtype == bool
    assert is_real(rows[300:]).mean() > 0.9
    assert is_real(changed_as_lime(rows[300:], 5)).mean() < 0.1


def test_what_is_real_by_chance_is_not_learnt_as_made_up() -> None:
    real = np.arange(40.0).reshape(20, 2)
    made_up = np.concatenate([real, real + 100])
    assert detector(real, made_up)(real).all()
    with pytest.raises(ValueError, match="made_up: all of its rows are real ones"):
        detector(real, real)


def test_the_game_of_a_linear_model_is_known() -> None:
    row, background = np.array([5.0, 1.0, 2.0]), np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 4.0]])
    weights = np.array([[0.0, 3.0], [0.0, 5.0], [0.0, -1.0]])
    game = coalition_game(lambda rows: rows @ weights, row, background, 1)
    # Each column's weight times its difference from the background's mean.
    assert exact_shapley(game, 3).tolist() == pytest.approx([3 * 4, 0, 0])
    assert kernel_shap(game, 3).tolist() == pytest.approx([12, 0, 0])


def test_the_game_is_the_mean_over_the_background_in_plain_loops(rows: np.ndarray) -> None:
    row, background, predict = rows[0], rows[1:6], by(BMI, 25.0)
    present = torch.rand(7, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    twin = []
    for coalition in present:
        answers = []
        for other in background:
            mixed = [row[k] if coalition[k] else other[k] for k in range(10)]
            answers.append(predict(np.array([mixed]))[0, 1])
        twin.append(sum(answers) / 5)
    assert coalition_game(predict, row, background, 1)(present).tolist() == pytest.approx(twin)


def test_a_surrogate_of_real_rows_finds_a_linear_model(rows: np.ndarray) -> None:
    weights = np.zeros((10, 1))
    weights[BMI] = 2.0
    found = real_surrogate(lambda rows: rows @ weights, rows[0], rows, 0)
    wanted = np.zeros(10)
    wanted[BMI] = 2 * rows[:, BMI].std()
    assert found.coefficients == pytest.approx(wanted, abs=1e-3)
    assert found.r2 == pytest.approx(1)


def test_swapped_twice_is_the_same(rows: np.ndarray) -> None:
    other = swapped(rows, SEX)
    assert (other[:, SEX] != rows[:, SEX]).all()
    assert (swapped(other, SEX) == rows).all()
    with pytest.raises(ValueError, match="column 0 must have two values to swap"):
        swapped(rows, 0)


@pytest.mark.slow
def test_the_scaffold_fools_what_it_is_made_for_and_is_found_out(rows: np.ndarray) -> None:
    train, test, background = rows[:300], rows[300:], rows[:10]
    biased, innocent = by(SEX, 1.5), by(BMI, 25.7)

    def by_lime(predict: Any, row: np.ndarray) -> np.ndarray:
        return lime_tabular(predict, row, train, 1, batch_size=1000)

    def by_shap(predict: Any, row: np.ndarray) -> np.ndarray:
        game = coalition_game(predict, row, background, 1)
        return kernel_shap(game, 10, samples=256, batch_size=256).numpy()

    def on_top(explain: Any, predict: Any, column: int) -> float:
        tops = [np.abs(explain(predict, row)).argmax() for row in test[:12]]
        return float(np.mean(np.array(tops) == column))

    for explain, made_up in (
        (by_lime, changed_as_lime(train, 5)),
        (by_shap, changed_as_shap(train, background, 5)),
    ):
        fooling = scaffold(biased, innocent, detector(train, made_up))
        assert on_top(explain, biased, SEX) == 1
        assert on_top(explain, fooling, SEX) <= 0.3
        assert on_top(explain, fooling, BMI) >= 0.7
        # Real rows alone tell what it does, and a swap of the column, what decides.
        real = [real_surrogate(fooling, row, rows, 1).coefficients for row in test[:12]]
        assert np.mean(np.abs(real).argmax(1) == SEX) >= 0.5
        assert (fooling(test) != fooling(swapped(test, SEX))).any(1).mean() > 0.5


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([[1.0]], TypeError, "must be an array of numbers"),
        (np.array([["a"]]), TypeError, "must be an array of numbers"),
        (np.zeros(3), ValueError, r"must be \(M, F\), not empty, but its shape is \(3,\)"),
        (np.zeros((0, 3)), ValueError, r"must be \(M, F\), not empty"),
        (np.array([[np.nan]]), ValueError, "must be finite"),
    ],
)
def test_a_table_that_is_none(rows: Any, error: type, words: str) -> None:
    good = np.eye(3)
    with pytest.raises(error, match=f"rows {words}"):
        changed_as_lime(rows, 2)
    with pytest.raises(error, match=f"real {words}"):
        detector(rows, good)
    with pytest.raises(error, match="background"):
        changed_as_shap(good, rows, 2)


def test_other_refusals() -> None:
    with pytest.raises(TypeError, match="innocent must be a function of rows, not float"):
        scaffold(by(0, 0), 0.5, by(0, 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="copies is 0"):
        changed_as_lime(np.eye(3), 0)
    with pytest.raises(ValueError, match=r"background must be \(M, 3\)"):
        changed_as_shap(np.eye(3), np.eye(4), 2)
    with pytest.raises(ValueError, match=r"data must be \(M, 3\)"):
        real_surrogate(by(0, 0), np.zeros(3), np.eye(4), 0)
    with pytest.raises(ValueError, match=r"row must be \(F,\), one row of the table"):
        coalition_game(by(0, 0), np.eye(3), np.eye(3), 0)
    with pytest.raises(ValueError, match="rows has a single column, so none can come from"):
        changed_as_shap(np.ones((2, 1)), np.ones((2, 1)), 2)
    with pytest.raises(ValueError, match="column is 3; the columns are 0 to 2"):
        swapped(np.eye(3), 3)
