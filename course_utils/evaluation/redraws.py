"""Is a redraw a picture that the model might have met? A test that tries to tell redraws apart."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.contract import check_count, explaining
from course_utils.evaluation.standings import Interval
from course_utils.evaluation.truth import check_scene
from course_utils.methods.head import Head
from course_utils.networks import Classifier
from course_utils.progress import in_batches
from course_utils.worlds.scenes import Scene, SceneSpec, incomplete, random_spec, render, tells

FOLDS, RESAMPLES = 5, 1000


def distinguishability(
    classifier: Classifier,
    ordinary: Sequence[NDArray[np.uint8]],
    redrawn: Sequence[NDArray[np.uint8]],
) -> Interval:
    """How well the model's last features tell redraws from ordinary pictures: an AUROC.

        AUROC = P(s(redraw) > s(ordinary picture)) + ½ P(they are equal)

    s is the score of a logistic regression on what enters the model's last linear layer, each
    picture's by a regression that was fitted without it (five folds). 0.5 is chance: then the
    model has no sign by which a redraw is another kind of picture. 1 is certainty.

    ordinary, redrawn: pictures (H, W, 3) uint8, of different scenes.
    Returns the AUROC and its 95 % interval, by bootstrap over the pictures.

    Raises ValueError naming the argument.
    Source: Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, pictures in {"ordinary": ordinary, "redrawn": redrawn}.items():
        if len(pictures) < FOLDS:
            raise ValueError(f"{name} must hold at least {FOLDS} pictures, but has {len(pictures)}")
    seen = features(classifier, [*ordinary, *redrawn]).double().numpy()
    truth = np.repeat([0, 1], [len(ordinary), len(redrawn)])
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores = cross_val_predict(regression, seen, truth, cv=FOLDS, method="decision_function")
    generator = np.random.default_rng(0)
    groups = np.flatnonzero(truth == 0), np.flatnonzero(truth == 1)
    resampled = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([generator.choice(group, len(group)) for group in groups])
        resampled.append(roc_auc_score(truth[rows], scores[rows]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(roc_auc_score(truth, scores)), float(low), float(high)


def features(classifier: Classifier, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """What enters the model's last linear layer (N, C), for pictures (H, W, 3) uint8."""
    found = []
    with explaining(classifier.model), torch.no_grad():
        for number in in_batches(len(pictures), 32):
            images = torch.cat([classifier.to_input(pictures[i]) for i in number])
            with Head() as head:
                classifier.model(images)
            if head.vector is None:
                raise ValueError("classifier: its model has no linear layer, and so no features")
            found.append(head.vector.cpu())
    return torch.cat(found)


def redraw(scene: Scene, parts: int, generator: np.random.Generator) -> Scene:
    """The scene drawn again without some of its visible parts, chosen at random.

    parts: how many; all but one where the scene has no more.

    Raises ValueError or TypeError naming the argument.
    """
    check_scene(scene)
    check_count("parts", parts)
    names = list(scene.parts)
    spec = scene.spec
    for i in generator.permutation(len(names))[: min(parts, max(len(names) - 1, 1))]:
        spec = spec.without(names[i])
    return render(spec, len(scene.image))


def counterpart(scene: Scene, generator: np.random.Generator) -> Scene:
    """Another scene of the world, of the same kind as this one.

    Its object is of the same class and tells it; or, where this scene's object does not, neither
    does its, and it has a companion if this one has. So redraws and their counterparts differ in
    nothing but how they came about.

    Raises TypeError naming the argument.
    """
    check_scene(scene)
    wanted = _kind(scene.spec)
    told = wanted[0] is not None
    while True:
        spec = random_spec(generator, label=wanted[0])
        spec = incomplete(generator, spec, emptied=not told)
        if _kind(spec) == wanted:
            return render(spec, len(scene.image))


def _kind(spec: SceneSpec) -> tuple[str | None, bool]:
    """The class that the object tells, or None and whether there is a companion."""
    if tells(spec.shape, spec.removed):
        return spec.label, True
    return None, spec.has("companion")
