"""Concept vectors: a direction of a layer for a concept, and whether a class moves along it."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from course_utils.contract import (
    Target,
    check,
    check_choice,
    check_count,
    check_generator,
    explaining,
    predict_target,
)
from course_utils.layers import find
from course_utils.methods.cam import maps_and_slopes
from course_utils.progress import in_batches
from course_utils.units.features import Images, batches, feature_maps, responses, units_of

ROWS = ("mean", "none")
KINDS = ("mean", "logistic")
FOLDS = 3  # as in the authors' program, a third is held out
FEWEST = 2 * FOLDS  # images of each kind
PENALTY = 0.01  # scikit-learn's C: the weaker the vector, the less it follows single images

Numbers = NDArray[np.float64]


class ConceptVector(NamedTuple):
    """A direction in a layer's activations, from images without a concept to images with it."""

    vector: Numbers  # (D,), of length 1
    step: float  # how far apart the means of both kinds of images are along it, in activations
    accuracy: float  # share of held-out images told apart by it, both kinds weighing the same


class Tcav(NamedTuple):
    """How a class's score changes towards a concept, and whether towards random images as well."""

    score: float  # share of the images whose class score rises towards the concept
    effect: float  # mean change of the class score over one step of the vector, to first order
    p: float  # share of random concepts whose effect is as far from 0
    random_scores: Numbers  # (permutations,)
    random_effects: Numbers  # (permutations,)


def concept_vector(concept: Any, others: Any, *, kind: str = "mean") -> ConceptVector:
    """The direction v of a layer that leads from ordinary images to those with a concept.

        mean:      v ∝ mean of a over the concept's images − mean of a over the others
        logistic:  v ∝ w of P(concept | a) = σ(w·a + b), fitted to both kinds of images

    The paper's is a linear classifier's w. Weights also cancel what disturbs the classifier, and so
    need not point where the concept moves the activations; the means' difference does. Lecture 11
    compares both with the change that is known, since a scene can be drawn with the concept alone
    changed.

    concept, others: activations (M, D) and (N, D) of one layer, as `activations` gives them.
    Returns the vector, its step, and the accuracy in three-fold cross-validation: 0.5 is chance.

    Raises ValueError or TypeError naming the argument.
    Source: Kim, Wattenberg, Gilmer, Cai, Wexler, Viegas, Sayres, Interpretability Beyond Feature
    Attribution: Quantitative Testing with Concept Activation Vectors, 2018; mean: Pahde et al.,
    Navigating Neural Space, 2022.

    >>> concept, others = torch.eye(6)[:, :2] + torch.tensor([3.0, 0.0]), torch.eye(6)[:, :2]
    >>> vectors.concept_vector(concept, others)
    ConceptVector(vector=array([1., 0.]), step=3.0, accuracy=1.0)
    """
    have, lack = _check_rows("concept", concept), _check_rows("others", others)
    _check_pair(have, lack)
    check_choice("kind", kind, KINDS)
    rows, labels = _together(have, lack)
    vector = _directions(rows, labels[None], kind)[0]
    step = vector @ (have.mean(0) - lack.mean(0))
    fold = np.concatenate([np.arange(len(have)) % FOLDS, np.arange(len(lack)) % FOLDS])
    shares = []
    for held_out in (fold == number for number in range(FOLDS)):
        seen, unseen = rows[~held_out], rows[held_out]
        v = _directions(seen, labels[None, ~held_out], kind)[0]
        middle = v @ (seen[labels[~held_out]].mean(0) + seen[~labels[~held_out]].mean(0)) / 2
        right = (unseen @ v > middle) == labels[held_out]
        shares.append([right[labels[held_out]].mean(), right[~labels[held_out]].mean()])
    return ConceptVector(vector, float(step), float(np.mean(shares)))


def activations(
    model: nn.Module, layer: str, images: Images, *, pool: str = "mean", batch_size: int = 16
) -> Tensor:
    """A layer's activations in images as rows (N, D), on the CPU.

    pool: "mean", one number a unit, wherever in the image a concept is; "none", one a unit and
    place, as in the paper, where a vector is also about where the concept stood in its images.
    images: as in `features.responses`. Raises ValueError or TypeError naming the argument.
    """
    check_choice("pool", pool, ROWS)
    if pool == "mean":
        return responses(model, layer, images, batch_size=batch_size)
    find(model, layer)
    kept = (feature_maps(model, batch, [layer]) for batch in batches(images, batch_size))
    return torch.cat([units_of(layer, maps).flatten(1).cpu() for maps in kept])


def class_slopes(
    model: nn.Module,
    layer: str,
    images: Tensor,
    target: Target = None,
    *,
    pool: str = "mean",
    batch_size: int = 16,
) -> Tensor:
    """How a class's score changes with a layer's activations: (N, D), for rows of `activations`.

    slopes · v is the directional derivative along v: with pool="none" of the score as a function of
    all activations, with "mean" as all places of unit k move by v_k, and with them its mean.

    Arguments and errors as `grad_cam`, whose target the score is of.
    """
    check(model, images, target)
    find(model, layer)
    check_choice("pool", pool, ROWS)
    check_count("batch_size", batch_size)
    with explaining(model):
        targets = predict_target(model, images, target, batch_size)
    rows = []
    for numbers in in_batches(len(images), batch_size):
        _, slopes = maps_and_slopes(model, images[numbers], targets[numbers], layer)
        rows.append((slopes.sum((2, 3)) if pool == "mean" else slopes.flatten(1)).cpu())
    return torch.cat(rows)


def tcav(
    slopes: Any,
    concept: Any,
    others: Any,
    *,
    kind: str = "mean",
    permutations: int = 199,
    generator: torch.Generator | None = None,
) -> Tcav:
    """Does a class's score rise towards a concept: more often, and by more, than by chance?

        score = share of the images x with ∇f(x)·v > 0,      effect = step · mean of ∇f(x)·v over x

    ∇f(x)·v is the derivative of the class's score along the concept's vector v, of length 1; `step`
    is how far the concept's images lie from the others along v. So the effect is in logits.

    The test is of the hypothesis that the concept's images are as any others. Then their names can
    be exchanged: all M + N images are thrown together, M drawn of them are a random concept, the
    rest its others; p = (1 + number of random concepts with as large an |effect|) / (1 + their
    number). p ≤ 0.05 happens to random images in at most 5 % of all cases, however few they are.

    The paper makes many vectors, of one set of concept images against many sets of random ones, and
    a t test asks whether their mean score is 0.5; in the authors' program, whether it is that of
    random sets against random sets. Both take the scores for independent. But all share the
    concept's images: what is special about those few is in each score, and more vectors only make
    the test surer of it. The program's calls random images a concept far more often than it says;
    lecture 11 measures how often. Nor does the score decide: it is near 0 or 1 for most random
    concepts in a late layer, where the slopes of all images of a class agree.

    slopes: (n, D), the `class_slopes` of the images x. concept, others, kind: as `concept_vector`.

    Raises ValueError or TypeError naming the argument.
    Source: as `concept_vector`; the test is Fisher's (The Design of Experiments, 1935).

    >>> rows, slopes = torch.eye(6)[:, :2], torch.tensor([[2.0, 0.0], [2.0, 1.0], [-1.0, 0.0]])
    >>> found = vectors.tcav(slopes, rows + torch.tensor([3.0, 0.0]), rows)
    >>> round(found.score, 2), found.effect, found.p < 0.05  # 2 of 3 rise; 3 · (2 + 2 − 1) / 3
    (0.67, 3.0, True)
    """
    gradient = _check_rows("slopes", slopes, 1)
    have, lack = _check_rows("concept", concept), _check_rows("others", others)
    _check_pair(have, lack)
    if gradient.shape[1] != have.shape[1]:
        raise ValueError(
            f"slopes must be (n, {have.shape[1]}), one for each activation of the concept's rows, "
            f"but are {gradient.shape}; use the same layer and pool for both"
        )
    check_choice("kind", kind, KINDS)
    check_count("permutations", permutations)
    seed = int(torch.randint(2**31, (), generator=check_generator(generator)))
    rows, labels = _together(have, lack)
    draws = np.random.default_rng(seed).permuted(np.tile(labels, (permutations, 1)), axis=1)
    names = np.concatenate([labels[None], draws])  # (1 + permutations, M + N), the true ones first
    v = _directions(rows, names, kind)
    steps = (v * _differences(rows, names)).sum(1)
    scores = (gradient @ v.T > 0).mean(0)
    effects = steps * (v @ gradient.mean(0))
    # Rounding must not decide between effects that are the same.
    as_large = np.abs(effects) >= np.abs(effects[0]) * (1 - 1e-9)
    p = float(as_large.mean())  # the concept itself is one of them
    return Tcav(float(scores[0]), float(effects[0]), p, scores[1:], effects[1:])


def _directions(rows: Numbers, names: NDArray[np.bool_], kind: str) -> Numbers:
    """The unit vectors (R, D) for R ways to call rows (N, D) concept or not, names (R, N)."""
    if kind == "mean":
        vectors = _differences(rows, names)
    else:
        vectors = np.stack([_weights(rows, labels) for labels in names])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)  # of images that are all the same it is 0


def _differences(rows: Numbers, names: NDArray[np.bool_]) -> Numbers:
    """The mean of the rows with the name minus that of those without: (R, D)."""
    share = names / names.sum(1, keepdims=True) - ~names / (~names).sum(1, keepdims=True)
    return np.asarray(share @ rows)


def _weights(rows: Numbers, labels: NDArray[np.bool_]) -> Numbers:
    """The weights (D,) of a logistic regression, on activations scaled to a deviation of 1."""
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    scale = rows.std(0)
    scale[scale == 0] = 1
    fit = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
    return np.asarray(fit.fit(rows / scale, labels).coef_[0] / scale)


def _together(have: Numbers, lack: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
    return np.concatenate([have, lack]), np.arange(len(have) + len(lack)) < len(have)


def _check_rows(name: str, rows: Any, fewest: int = FEWEST) -> Numbers:
    """Rows of numbers as an array (N, D), float64."""
    values = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        came = values.dtype if isinstance(values, np.ndarray) else type(rows).__name__
        raise TypeError(
            f"{name} must be floating point numbers (N, D), one row an image, not {came}; "
            "activations(model, layer, images) makes such rows"
        )
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"{name} must be (N, D), one row an image, but is {values.shape}")
    if len(values) < fewest:
        raise ValueError(f"{name} holds {len(values)} images; at least {fewest} are needed")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return values.astype(np.float64)


def _check_pair(have: Numbers, lack: Numbers) -> None:
    if have.shape[1] != lack.shape[1]:
        raise ValueError(
            f"others must have as many activations a row as concept, {have.shape[1]}, but have "
            f"{lack.shape[1]}"
        )
