from math import comb
from typing import Any

import numpy as np
import pytest

from course_utils import evaluation
from course_utils.evaluation import simulatability
from course_utils.evaluation.simulation import gain, rate


def score(with_maps: tuple[int, int], without: tuple[int, int]) -> evaluation.Simulatability:
    """Of so many right of so many, with maps and without."""
    guesses, shown = [], []
    for name, (right, total) in (("map", with_maps), ("none", without)):
        guesses += ["cat"] * right + ["dog"] * (total - right)
        shown += [name] * total
    return simulatability(guesses, ["cat"] * len(guesses), shown, control="none")


def test_rates_and_gains_by_hand() -> None:
    found = score((9, 12), (3, 6))
    assert {name: each[:3] for name, each in found.rates.items()} == {
        "map": (9, 12, 0.75),
        "none": (3, 6, 0.5),
    }
    # Wilson: (p + z²/2n ± z √(p (1 − p) / n + z²/4n²)) / (1 + z²/n)
    z = 1.959964
    for right, total, share, low, high in found.rates.values():
        assert share == right / total
        middle = share + z**2 / (2 * total)
        half = z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
        ends = ((middle - half) / (1 + z**2 / total), (middle + half) / (1 + z**2 / total))
        assert (low, high) == pytest.approx(ends, abs=1e-6)
    difference, low, high, p = found.gains["map"]
    one, other = found.rates["map"], found.rates["none"]
    assert difference == 0.25
    assert low == pytest.approx(0.25 - np.hypot(0.75 - one.low, other.high - 0.5))
    assert high == pytest.approx(0.25 + np.hypot(one.high - 0.75, 0.5 - other.low))
    # Fisher: 12 right guesses dealt to 18 pictures, of which k fall on the 12 with a map.
    chance = {k: comb(12, k) * comb(6, 12 - k) / comb(18, 12) for k in range(6, 13)}
    assert sum(chance.values()) == pytest.approx(1)
    expected = sum(each for each in chance.values() if each <= chance[9] * (1 + 1e-9))
    assert p == pytest.approx(expected)


def test_newcombes_own_example() -> None:
    """56 of 70 and 48 of 80: 0.2, from 0.0524 to 0.3339 (his table II, example a, method 10)."""
    found = gain(rate(56, 70), rate(48, 80))
    assert found[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_p_is_the_share_of_shuffled_labels_that_differ_as_much() -> None:
    """Nothing but the labels' order is chance: what a permutation test counts."""
    right = np.array([1] * 7 + [0] * 3 + [1] * 2 + [0] * 8)
    found = gain(rate(7, 10), rate(2, 10))
    generator = np.random.default_rng(0)
    shuffled = generator.permuted(np.tile(right, (20000, 1)), axis=1)
    differences = shuffled[:, :10].sum(1) - shuffled[:, 10:].sum(1)
    assert found.p == pytest.approx((np.abs(differences) >= 5).mean(), abs=0.01)


def test_right_means_what_the_model_says() -> None:
    """On a picture of a cat that the model calls a dog, "dog" is right."""
    found = simulatability(["dog", "cat"], ["dog", "dog"], ["map", "none"], control="none")
    assert (found.rates["map"].right, found.rates["none"].right) == (1, 0)
    assert found.gains["map"].difference == 1
    assert list(found.gains) == ["map"]


def test_several_maps_against_one_control() -> None:
    shown = ["grad_cam", "noise", "none"] * 4
    found = simulatability(["a"] * 12, ["a", "b", "a"] * 4, shown, control="none")
    assert [found.rates[name].right for name in ("grad_cam", "noise", "none")] == [4, 0, 4]
    assert {name: each.difference for name, each in found.gains.items()} == {
        "grad_cam": 0,
        "noise": -1,
    }


def test_extremes_have_intervals_too() -> None:
    found = score((6, 6), (0, 6))
    assert found.rates["map"].low == pytest.approx(6 / (6 + 1.959964**2))
    assert found.rates["map"].high == 1
    assert found.rates["none"].low == 0
    assert found.gains["map"].p == pytest.approx(2 / comb(12, 6))


# students


def study(helped: float, pictures: int, generator: np.random.Generator) -> Any:
    """Guesses among four answers: right at 0.5 on a picture alone, with a map more often."""
    answers = generator.integers(4, size=pictures)
    maps = generator.permutation(np.arange(pictures) % 2 == 0)
    knows = generator.random(pictures) < np.where(maps, 0.5 + helped, 0.5)
    guesses = np.where(knows, answers, (answers + generator.integers(1, 4, pictures)) % 4)
    shown = np.where(maps, "map", "none")
    return simulatability(
        [str(each) for each in guesses], [str(each) for each in answers], [*shown], control="none"
    )


def test_who_ignores_maps_gains_nothing() -> None:
    """The intervals hold the truth as often as they say, and the test errs as seldom as it says."""
    generator = np.random.default_rng(0)
    found = [study(0.0, 40, generator) for _ in range(1000)]
    gains = np.array([each.gains["map"] for each in found])
    assert abs(gains[:, 0].mean()) < 0.02
    held = ((gains[:, 1] <= 0) & (gains[:, 2] >= 0)).mean()
    assert 0.93 < held < 0.99
    assert (gains[:, 3] < 0.05).mean() <= 0.06
    shares = np.array([each.rates["none"][3:] for each in found])
    assert 0.93 < ((shares[:, 0] <= 0.5) & (shares[:, 1] >= 0.5)).mean() < 0.98


def test_who_is_helped_is_found_in_a_long_study_and_seldom_in_a_short_one() -> None:
    generator = np.random.default_rng(1)
    power = {
        pictures: np.mean(
            [study(0.3, pictures, generator).gains["map"].p < 0.05 for _ in range(300)]
        )
        for pictures in (12, 100)
    }
    assert power[12] < 0.3
    assert power[100] > 0.8


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        *[("guesses", []), ("guesses", "cat"), ("guesses", None), ("guesses", 3)],
        *[("answers", ["cat"]), ("answers", "cats"), ("answers", None)],
        *[("shown", ["map"] * 3), ("shown", "no"), ("shown", None)],
        *[("control", "nothing"), ("control", None)],
    ],
)
def test_bad_options(argument: str, bad: Any) -> None:
    arguments: dict[str, Any] = {
        "guesses": ["cat", "dog"],
        "answers": ["cat", "cat"],
        "shown": ["map", "none"],
        "control": "none",
    }
    with pytest.raises((ValueError, TypeError), match=f"^{argument}\\b") as error:
        simulatability(**arguments | {argument: bad})
    assert "\n" not in str(error.value)
