"""Concepts that units and layers answer to: how well a unit tells them, and where to look further.

What a scene shows is in `labels`, dissection in `dissection`, concept vectors in `vectors`; their
main functions are here, too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from course_utils.contract import check_count, check_whole
from course_utils.networks import Classifier
from course_utils.units.dissection import dissect
from course_utils.units.features import responses
from course_utils.units.labels import color_name, concept_masks, in_scene
from course_utils.units.vectors import activations, class_slopes, concept_vector, tcav
from course_utils.worlds.scenes import Scenes, SceneSpec

__all__ = [
    "ConceptScores",
    "activations",
    "auroc",
    "class_slopes",
    "color_name",
    "concept_masks",
    "concept_scores",
    "concept_vector",
    "dissect",
    "in_scene",
    "score_concepts",
    "tcav",
]


class ConceptScores(NamedTuple):
    """How well each of C units tells each of K concepts, with a 95 % confidence interval."""

    concepts: tuple[str, ...]
    auroc: NDArray[np.float64]  # (C, K)
    low: NDArray[np.float64]  # (C, K)
    high: NDArray[np.float64]  # (C, K)

    def of(self, unit: int, k: int = 5) -> list[tuple[str, float, float, float]]:
        """The k concepts that a unit tells best: (name, AUROC, low, high)."""
        check_whole("unit", unit)
        if not 0 <= unit < len(self.auroc):
            raise ValueError(f"unit: there is no unit {unit}; choose 0 to {len(self.auroc) - 1}")
        check_count("k", k)
        best = np.argsort(-self.auroc[unit], kind="stable")[:k]
        rows = ((self.concepts[c], *(a[unit, c] for a in self[1:])) for c in best)
        return [(name, float(a), float(low), float(high)) for name, a, low, high in rows]


def concept_scores(
    classifier: Classifier,
    layer: str,
    scenes: Scenes,
    *,
    pool: str = "mean",
    batch_size: int = 16,
) -> ConceptScores:
    """How well each unit of a layer tells scenes with a concept from scenes without it.

    AUROC = P(response to a scene with the concept > response to one without it), ties count half:
    1 is a perfect detector, 0.5 knows nothing, 0 is silent where the concept is. The concepts are
    those of `in_scene`. One that fewer than two scenes have, or fewer than two lack, gets NaN.
    """
    if not isinstance(classifier, Classifier) or not isinstance(scenes, Scenes):
        raise TypeError(
            "classifier must be a Classifier and scenes a Scenes, not "
            f"{type(classifier).__name__} and {type(scenes).__name__}"
        )
    rows = responses(
        classifier.model,
        layer,
        classifier.inputs(scenes),
        pool=pool,
        batch_size=batch_size,
    )
    return score_concepts(rows.numpy(), [scenes.spec(index) for index in range(len(scenes))])


def score_concepts(responses: NDArray[Any], specs: Sequence[SceneSpec]) -> ConceptScores:
    """As `concept_scores`, from responses (N, C) to N scenes that are already there."""
    known = [in_scene(spec) for spec in specs]
    names = tuple(sorted(frozenset().union(*known)))
    if not names:
        raise ValueError("specs must hold scenes that show something")
    columns = [auroc(responses, np.array([name in have for have in known])) for name in names]
    scores, low, high = (np.stack(column, axis=1) for column in zip(*columns, strict=True))
    return ConceptScores(names, scores, low, high)


def auroc(
    responses: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The AUROC of each column of responses (N, C) for the bool labels (N,), and its 95 % interval.

    With m positives and n negatives, from the ranks R of the positives among all:
    AUROC = (ΣR − m(m + 1)/2) / mn. The interval is 1.96 standard errors after DeLong, whose
    variance is that of each positive's share of negatives below it, over m, plus that of each
    negative's share of positives above it, over n.

    Fewer than two positives or negatives give NaN. Where every positive is above every negative the
    interval has no width, however few they are.

    Source: DeLong, DeLong, Clarke-Pearson, 1988; by ranks: Sun, Xu, 2014.
    """
    from scipy.stats import rankdata  # takes seconds to import, and few lectures need it

    responses, positive = np.asarray(responses), np.asarray(positive)
    if responses.ndim != 2 or positive.shape != responses.shape[:1]:
        raise ValueError(
            f"responses must be (N, C) and positive (N,), but are {responses.shape} and "
            f"{positive.shape}"
        )
    if positive.dtype != bool:
        raise TypeError(f"positive must be bool, one for each image, not {positive.dtype}")
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        area, low, high = np.full((3, responses.shape[1]), np.nan)
        return area, low, high
    ranks = rankdata(responses, axis=0)
    below = (ranks[positive] - rankdata(responses[positive], axis=0)) / n
    above = 1 - (ranks[~positive] - rankdata(responses[~positive], axis=0)) / m
    area = below.mean(axis=0)
    error = np.sqrt(below.var(axis=0, ddof=1) / m + above.var(axis=0, ddof=1) / n)
    return area, np.clip(area - 1.96 * error, 0, 1), np.clip(area + 1.96 * error, 0, 1)
