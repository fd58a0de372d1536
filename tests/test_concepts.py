"""Concepts: the AUROC by every pair of images, and what a scene shows by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn

from course_utils.networks import Classifier
from course_utils.units import concepts
from course_utils.units.concepts import auroc
from course_utils.units.features import responses
from course_utils.worlds.scenes import Scenes, standard
from tests.networks import make
from tests.test_features import refused

# AUROC -----------------------------------------------------------------------------------------


def with_ties(n: int = 40, columns: int = 4) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    generator = np.random.default_rng(0)
    positive = generator.random(n) < 0.35
    shift = positive[:, None] * np.arange(columns)
    return (generator.integers(0, 5, (n, columns)) + shift).astype(float), positive


def pairs(positives: NDArray[Any], negatives: NDArray[Any]) -> NDArray[np.float64]:
    """DeLong's ψ(x, y) for each positive x and negative y: 1 where x > y, ½ for a tie, else 0."""
    won = np.empty((len(positives), len(negatives)))
    for i, x in enumerate(positives):
        for j, y in enumerate(negatives):
            won[i, j] = 1 if x > y else 0.5 if x == y else 0
    return won


def test_auroc_equals_scikit_learn_and_every_pair() -> None:
    values, positive = with_ties()
    area, _, _ = auroc(values, positive)
    assert area.shape == (4,)
    for column, found in zip(values.T, area, strict=True):
        assert found == pytest.approx(roc_auc_score(positive, column), abs=1e-12)
        assert found == pytest.approx(pairs(column[positive], column[~positive]).mean(), abs=1e-12)


def test_interval_is_that_of_delong() -> None:
    """Twin of DeLong et al., 1988, equations 3 to 5, for one curve: S₁₀ / m + S₀₁ / n."""
    values, positive = with_ties()
    area, low, high = auroc(values, positive)
    for c, column in enumerate(values.T):
        won = pairs(column[positive], column[~positive])
        theta, (m, n) = won.mean(), won.shape
        s10 = sum((v - theta) ** 2 for v in won.mean(1)) / (m - 1)
        s01 = sum((v - theta) ** 2 for v in won.mean(0)) / (n - 1)
        error = math.sqrt(s10 / m + s01 / n)
        assert 0.01 < error < 0.15
        assert low[c] == pytest.approx(max(area[c] - 1.96 * error, 0), abs=1e-12)
        assert high[c] == pytest.approx(min(area[c] + 1.96 * error, 1), abs=1e-12)
    assert (high <= 1).all()


@pytest.mark.parametrize("distance", [0.0, 1.0])
@pytest.mark.parametrize(("m", "n"), [(15, 200), (60, 60)])
def test_interval_holds_the_truth_nineteen_times_in_twenty(m: int, n: int, distance: float) -> None:
    """Two normals a distance d apart: AUROC = Φ(d / √2). Each column is a draw of its own."""
    positive = np.arange(m + n) < m
    values = np.random.default_rng(m).standard_normal((m + n, 1500))
    values[:m] += distance
    truth = norm.cdf(distance / math.sqrt(2))
    area, low, high = auroc(values, positive)
    assert area.mean() == pytest.approx(truth, abs=0.01)
    assert 0.9 < ((low <= truth) & (truth <= high)).mean() < 0.99


def test_auroc_of_perfect_useless_and_contrary_detectors() -> None:
    positive = np.array([True, True, False, False, False])
    values = np.array([[9, 8, 1, 2, 3], [5, 5, 5, 5, 5], [1, 2, 8, 9, 7]]).T
    area, low, high = auroc(values, positive)
    assert area.tolist() == [1, 0.5, 0]
    assert low.tolist() == high.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("positives", [0, 1, 5, 6])
def test_auroc_of_too_few(positives: int) -> None:
    found = auroc(np.random.default_rng(0).random((6, 2)), np.arange(6) < positives)
    assert [values.shape for values in found] == [(2,)] * 3
    assert np.isnan(found).all()


# Concepts --------------------------------------------------------------------------------------


def colors() -> Classifier:
    """Unit 0 answers to red pixels, unit 1 to green ones."""
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        weight = torch.tensor([[1, -0.5, -0.5], [-0.5, 1, -0.5]])
        model[0].weight[:] = weight[:, :, None, None]
        model[0].bias.fill_(-1)
    return Classifier("colors", model.eval(), (), 32)


@pytest.mark.slow
def test_concept_scores_find_what_a_unit_measures() -> None:
    classifier, scenes = colors(), Scenes(160, seed=5, resolution=32)
    scores = concepts.concept_scores(classifier, "1", scenes)
    assert scores.auroc.shape == scores.low.shape == (2, len(scores.concepts))
    assert scores.concepts == tuple(sorted(scores.concepts))
    red = {name: row for name, *row in scores.of(0, k=5)}
    area, low, high = red["colour red"]
    assert 0.7 < low < area < high < 1
    meadow, area, low, _ = scores.of(1, k=1)[0]
    assert (meadow, area > 0.9, low > 0.85) == ("place meadow", True, True)

    rows = responses(classifier.model, "1", classifier.inputs(scenes))
    specs = [scenes.spec(i) for i in range(160)]
    again = concepts.score_concepts(rows.numpy(), specs)
    assert again.concepts == scores.concepts
    assert all(np.array_equal(a, b, True) for a, b in zip(again[1:], scores[1:], strict=True))
    c = scores.concepts.index("texture stripes")
    striped = ["texture stripes" in concepts.in_scene(spec) for spec in specs]
    assert scores.auroc[1, c] == pytest.approx(roc_auc_score(striped, rows[:, 1]))


def test_the_best_concepts_come_first_and_the_unknown_last() -> None:
    areas = np.array([[0.2, np.nan, 0.9, 0.9, 0.6]])
    scores = concepts.ConceptScores(tuple("abcde"), areas, areas - 0.1, areas + 0.1)
    assert [name for name, *_ in scores.of(0)] == ["c", "d", "e", "a", "b"]
    assert scores.of(0, k=1) == [("c", 0.9, 0.8, 1.0)]
    assert len(scores.of(np.int64(0), k=99)) == 5  # type: ignore[arg-type]


def test_a_concept_of_one_scene_or_of_all_has_no_score() -> None:
    specs = [standard("zebra"), *[standard("cow", background="snow")] * 3]
    scores = concepts.score_concepts(np.random.default_rng(0).random((4, 2)), specs)
    assert np.isnan(scores.auroc).all()
    assert "class zebra" in scores.concepts


def test_concepts_of_a_zebra() -> None:
    zebra = standard("zebra")
    own = {"class zebra", "shape horse", "texture stripes", "colour white", "colour black"}
    assert concepts.in_scene(zebra) == own | {"place savanna"}
    assert concepts.in_scene(zebra.without("head")) == own | {"place savanna"}
    assert concepts.in_scene(zebra.without("background")) == own
    assert concepts.in_scene(zebra.without("object")) == {"place savanna"}
    bare = own - {"texture stripes", "colour black"} | {"texture plain", "place savanna"}
    assert concepts.in_scene(zebra.without("texture")) == bare
    assert concepts.in_scene(replace(zebra, contrast=0)) == bare  # the very same picture


def test_concepts_of_clutter_and_companion() -> None:
    horse = standard("horse")
    alone = concepts.in_scene(horse)
    assert "texture stripes" not in alone
    cluttered = replace(horse, clutter="armchair", clutter_texture="stripes")
    assert concepts.in_scene(cluttered) - alone == {"texture stripes"}
    assert concepts.in_scene(cluttered.without("clutter")) == alone
    together = replace(horse, companion="ladybird")
    assert concepts.in_scene(together) - alone >= {
        *("class ladybird", "shape beetle", "texture spots", "colour red")
    }
    assert concepts.in_scene(together.without("companion")) == alone
    assert "class ladybird" in concepts.in_scene(together.without("object"))


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ("#ff0000", "red"),
        ("#ff0030", "red"),  # a hue just below 360°
        ("#cc1f1a", "red"),
        ("#f07a18", "orange"),
        ("#8a5228", "brown"),
        ("#f4c430", "yellow"),
        ("#2e9e5b", "green"),
        ("#2f6fd0", "blue"),
        ("#8e44ad", "purple"),
        ("#ff69b4", "pink"),
        ("#ffffff", "white"),
        ("#efe9dc", "white"),
        ("#808080", "grey"),
        ("#000000", "black"),
        ("#1c1816", "black"),
        ("#17171b", "black"),
    ],
)
def test_color_name(color: str, name: str) -> None:
    assert concepts.color_name(color) == name


# What is refused -------------------------------------------------------------------------------


def test_bad_concept_scores() -> None:
    scenes = Scenes(2, 0, resolution=16)
    score: Any = concepts.concept_scores
    refused(lambda: score(make("Residual"), "conv1", scenes), TypeError, "classifier must be")
    refused(lambda: score(colors(), "1", [scenes.scene(0).image]), TypeError, "scenes a Scenes")


@pytest.mark.parametrize(
    ("values", "positive", "error", "words"),
    [
        (np.zeros(4), np.arange(4) < 2, ValueError, "responses must be (N, C)"),
        (np.zeros((4, 1)), np.arange(5) < 2, ValueError, "positive (N,)"),
        (np.zeros((4, 1)), np.array([0, 0, 1, 1]), TypeError, "positive must be bool"),
    ],
)
def test_bad_auroc(values: Any, positive: Any, error: type[Exception], words: str) -> None:
    refused(lambda: auroc(values, positive), error, words)


def test_bad_specs() -> None:
    values = np.zeros((3, 2))
    refused(lambda: concepts.score_concepts(values, []), ValueError, "specs must hold scenes")
    two = [standard("zebra")] * 2
    refused(lambda: concepts.score_concepts(values, two), ValueError, "(3, 2)")


@pytest.mark.parametrize(
    ("unit", "k", "error", "words"),
    [
        (-1, 5, ValueError, "there is no unit -1; choose 0 to 1"),
        (2, 5, ValueError, "there is no unit 2"),
        (0.0, 5, TypeError, "unit must be a whole number"),
        (0, 0, ValueError, "k is 0"),
        (0, 1.5, TypeError, "k must be a whole number"),
    ],
)
def test_bad_unit_of_scores(unit: Any, k: Any, error: type[Exception], words: str) -> None:
    areas = np.zeros((2, 3))
    scores = concepts.ConceptScores(("a", "b", "c"), areas, areas, areas)
    refused(lambda: scores.of(unit, k), error, words)
