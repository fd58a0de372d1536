"""Concepts that units answer to: what a scene shows, and how well a unit tells it."""

from collections.abc import Sequence
from colorsys import rgb_to_hsv
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from course_utils.contract import check_count, check_whole
from course_utils.networks import Classifier
from course_utils.units.features import responses
from course_utils.worlds.scenes import LOOKS, Scenes, SceneSpec


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


@cache
def in_scene(spec: SceneSpec) -> frozenset[str]:
    """What a scene shows: "class zebra", "shape horse", "texture stripes", "colour white" …

    It counts wherever it is: on the object, on its smaller companion, and a texture also on the
    furniture. The colours are those of object and companion; "place savanna" is the background.
    """
    things = [(spec.label, spec.shape, spec.texture, spec.color, spec.accent)]
    if "texture" in spec.removed or not spec.contrast:
        things = [(spec.label, spec.shape, "plain", spec.color, spec.accent)]
    if "object" in spec.removed:
        things = []
    if spec.has("companion"):
        look = LOOKS[spec.companion]
        things.append((spec.companion, look.shape, look.texture, look.color, look.accent))
    found = set()
    for label, shape, texture, color, accent in things:
        colors = {color} if texture == "plain" else {color, accent}
        found |= {f"class {label}", f"shape {shape}", f"texture {texture}"}
        found |= {f"colour {color_name(color)}" for color in colors}
    if spec.has("clutter"):
        found.add(f"texture {spec.clutter_texture}")
    if "background" not in spec.removed:
        found.add(f"place {spec.background}")
    return frozenset(found)


HUES = {
    15: "red",
    36: "orange",
    70: "yellow",
    165: "green",
    255: "blue",
    320: "purple",
    345: "pink",
}


def color_name(color: str) -> str:
    """The everyday name of a colour "#rrggbb": "red", "brown", "white" …"""
    hue, saturation, value = rgb_to_hsv(*(c / 255 for c in ImageColor.getrgb(color)[:3]))
    if value < 0.33:
        return "black"
    if saturation < 0.2 or (saturation < 0.35 and value > 0.9):
        return "white" if value > 0.75 else "grey"
    name = next((name for end, name in HUES.items() if hue * 360 < end), "red")
    return "brown" if name in ("orange", "yellow") and value < 0.65 else name


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
