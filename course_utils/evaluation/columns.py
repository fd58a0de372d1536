"""The columns of the league's table: what is measured of a map on a scene, or of a method."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.contract import batched_logits, known_options, score_target
from course_utils.evaluation.metrics import (
    Curve,
    deletion,
    insertion,
    iou,
    pearson,
    pointing_game,
)
from course_utils.evaluation.sanity import maps_of, max_sensitivity
from course_utils.evaluation.truth import class_effects, effect_agreement, truth_map
from course_utils.methods import lime
from course_utils.networks import Classifier
from course_utils.progress import in_batches
from course_utils.worlds.scenes import Scene

BASELINE = 0.0  # of deletion, insertion, faithfulness: the mean colour, in model space
STEPS = 10  # of deletion and insertion
GRID, SETS = 8, 64  # faithfulness cuts the picture in 8 × 8 squares, and draws 64 sets of a quarter
RADIUS, DRAWS = 0.02, 2  # of the noise of max-sensitivity

# What is explained: the logit of the model's answer a, that of its runner-up b, and f_a − f_b.
SCORES = ("answer", "runner_up", "contrast")

Values = NDArray[np.float64]
AttributionMethod = Callable[..., Tensor]


class Cost(NamedTuple):
    """What one image costs, given its class: measured, and counted."""

    seconds: float
    forwards: float
    backwards: float


@contextmanager
def measuring_cost(model: nn.Module, cost: Values) -> Iterator[None]:
    """Add to cost (3,) the seconds, and how many images pass the model forwards and backwards."""

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        cost[1] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: cost.__setitem__(2, cost[2] + len(gradient)))

    handle, start = model.register_forward_hook(count), time.perf_counter()
    try:
        yield
    finally:
        handle.remove()
        cost[0] += time.perf_counter() - start


# -- of a map -------------------------------------------------------------------------------------


class MeasuredScenes(NamedTuple):
    """Some scenes, and all that is measured of them before there is any map."""

    model: nn.Module
    scenes: Sequence[Scene]
    images: Tensor  # (N, C, H, W)
    target: Tensor  # (N,) the model's answers
    runner_up: Tensor  # (N,) its second choices
    batch_size: int
    effects: dict[str, list[dict[str, float]]]  # of SCORES → the parts' Shapley values
    drops: Tensor  # (N, GRID² + SETS): what replacing each set of squares takes from the logit
    sets: Tensor  # (GRID² + SETS, GRID²), bool: each square alone, and random quarters

    @property
    def mask(self) -> Tensor:
        """Where the object is, (N, H, W)."""
        return torch.from_numpy(np.stack([scene.mask for scene in self.scenes]))

    def painted(self, score: str) -> Tensor:
        """The truth about one of SCORES, spread over the parts' pixels, (N, H, W)."""
        pairs = zip(self.scenes, self.effects[score], strict=True)
        return torch.cat([truth_map(*pair) for pair in pairs])


def measure_scenes(
    classifier: Classifier, scenes: Sequence[Scene], batch_size: int, cost: Values | None = None
) -> MeasuredScenes:
    """Measure the truth, and what faithfulness compares with.

    cost: (3,), to which that of the Shapley values is added, as `measuring_cost` does.
    """
    model = classifier.model
    images = torch.cat([classifier.to_input(scene.image) for scene in scenes])
    with torch.no_grad():
        target, runner_up = batched_logits(model, images, batch_size).topk(2).indices.T
    effects: dict[str, list[dict[str, float]]] = {score: [] for score in SCORES}
    with measuring_cost(model, np.zeros(3) if cost is None else cost):
        for scene, a, b in zip(scenes, target, runner_up, strict=True):
            e = class_effects(classifier, scene, batch_size=batch_size)
            effects["answer"].append({part: float(f[a]) for part, f in e.items()})
            effects["runner_up"].append({part: float(f[b]) for part, f in e.items()})
            effects["contrast"].append({part: float(f[a] - f[b]) for part, f in e.items()})
    sets = _sets()
    drops = _drops(model, images, target, sets, batch_size)
    return MeasuredScenes(
        model, scenes, images, target, runner_up, batch_size, effects, drops, sets
    )


def maps_by_score(
    method: AttributionMethod,
    measured: MeasuredScenes,
    scores: Collection[str],
    *,
    linear: bool = False,
    cost: Values | None = None,
) -> dict[str, Tensor]:
    """A method's maps of each score, channels summed, (N, H, W); those of the answer in any case.

    linear: the map of a difference is the difference of the maps. cost: (3,), to which that of the
    answer's maps is added.
    """
    model, images, batch_size = measured.model, measured.images, measured.batch_size

    def run(images: Tensor, target: Any) -> Tensor:
        return maps_of(method, model, images, target, batch_size).sum(1)

    with measuring_cost(model, np.zeros(3) if cost is None else cost):
        maps = {"answer": run(images, measured.target)}
    if "runner_up" in scores or ("contrast" in scores and linear):
        maps["runner_up"] = run(images, measured.runner_up)
    if "contrast" in scores and linear:
        maps["contrast"] = maps["answer"] - maps["runner_up"]
    elif "contrast" in scores:
        maps["contrast"] = run(images, torch.stack([measured.target, measured.runner_up], 1))
    return maps


def _sets() -> Tensor:
    squares = GRID**2
    order = torch.rand(SETS, squares, generator=torch.Generator().manual_seed(0)).argsort(1)
    return torch.cat([torch.eye(squares, dtype=torch.bool), order < squares // 4])


def _drops(
    model: nn.Module, images: Tensor, target: Tensor, sets: Tensor, batch_size: int
) -> Tensor:
    """f(x) − f(x with a set of squares replaced), (N, S): the same for all maps, so taken once."""
    n, count = len(images), len(sets)
    size = images.shape[2:]
    changed = torch.empty(n * count, dtype=torch.float64)
    with torch.no_grad():
        whole = score_target(batched_logits(model, images, batch_size), target).cpu().double()
        for number in in_batches(n * count, batch_size):
            image, chosen = number // count, sets[number % count].view(-1, 1, GRID, GRID)
            away = F.interpolate(chosen.to(images), size=size, mode="nearest-exact") > 0
            mixed = images[image].masked_fill(away, BASELINE)
            changed[number] = score_target(model(mixed), target[image]).cpu().double()
    return whole[:, None] - changed.view(n, count)


def faithfulness(measured: MeasuredScenes, maps: Tensor, alone: bool) -> Tensor:
    """`metrics.faithfulness_correlation`, of the squares alone or of the sets, (N,)."""
    squares = F.adaptive_avg_pool2d(maps.double()[:, None], GRID).flatten(1)
    chosen = slice(GRID**2) if alone else slice(GRID**2, None)
    return pearson(squares @ measured.sets[chosen].double().T, measured.drops[:, chosen])


def area(measured: MeasuredScenes, maps: Tensor, curve: Callable[..., Curve]) -> Tensor:
    """The area under the curve, where f(x') is 0 and f(x) is 1; NaN if f(x) ≤ f(x'), (N,)."""
    options: Any = {"steps": STEPS, "baseline": BASELINE, "batch_size": measured.batch_size}
    maps = maps.to(measured.images)
    _, score, auc = curve(measured.model, measured.images, maps, measured.target, **options)
    ends = (score[:, 0], score[:, -1])
    whole, replaced = ends if curve is deletion else reversed(ends)
    return ((auc - replaced) / (whole - replaced)).where(whole > replaced, torch.nan)


def agreement(measured: MeasuredScenes, maps: Tensor, kind: str, score: str = "answer") -> Tensor:
    """`truth.effect_agreement` with the Shapley values of a score, (N,)."""
    return effect_agreement(maps, measured.scenes, measured.effects[score], kind=kind)


def on_object(
    measured: MeasuredScenes, maps: Tensor, judge: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`metrics.iou` or `metrics.pointing_game` with the object's mask, (N,)."""
    return judge(maps, measured.mask)


# -- of a method ----------------------------------------------------------------------------------


class Repetition(NamedTuple):
    """A method to run again: for the model, and for the same with all parameters drawn anew."""

    method: AttributionMethod
    model: nn.Module
    random_method: AttributionMethod  # the same, given what it needs of the random model
    random_model: nn.Module
    images: Tensor
    target: Tensor
    maps: Tensor  # (N, H, W): what it found the first time, its channels summed
    batch_size: int

    def compared(self, method: AttributionMethod, model: nn.Module) -> Tensor:
        """Spearman of the maps with those that a method makes now, (N,)."""
        again = maps_of(method, model, self.images, self.target, self.batch_size).sum(1)
        pairs = torch.stack([self.maps, again], 1)
        return torch.tensor([lime.rank_agreement(pair) for pair in pairs])


def random_model_agreement(repetition: Repetition) -> Tensor:
    """Spearman of the map with that of the model with all its parameters drawn anew, (N,)."""
    return repetition.compared(repetition.random_method, repetition.random_model)


def sensitivity(repetition: Repetition) -> Tensor:
    """`sanity.max_sensitivity`, (N,)."""
    return max_sensitivity(
        repetition.model,
        repetition.images,
        repetition.method,
        repetition.target,
        radius=RADIUS,
        samples=DRAWS,
        batch_size=repetition.batch_size,
    )


def seed_agreement(repetition: Repetition) -> Tensor:
    """Spearman of the map with that of another seed, (N,); NaN for a method that draws nothing."""
    if not known_options(repetition.method, generator=None):
        return torch.full((len(repetition.images),), torch.nan)
    again = partial(repetition.method, generator=torch.Generator().manual_seed(1))
    return repetition.compared(again, repetition.model)


# -- all of them ----------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A column of the table."""

    label: str
    better: int  # 1: the more the better; −1: the less
    measure: Callable[..., Tensor]  # of (MeasuredScenes, maps), or of a Repetition where few
    few: bool = False  # it runs the method again, and so only for few scenes
    score: str = "answer"  # of SCORES, what the maps are of


SCALE = "0 = mean colour, 1 = whole picture"


def _truth(label: str, kind: str, score: str = "answer") -> Metric:
    return Metric(label, 1, partial(agreement, kind=kind, score=score), score=score)


# The first orders the methods.
METRICS: dict[str, Metric] = {
    "density": _truth("the truth, per pixel", "density"),
    "partial": _truth("the truth, area held fixed", "partial"),
    "sums": _truth("the truth, sums", "sums"),
    "contrast": _truth("answer − runner-up, per pixel", "density", "contrast"),
    "runner_up": _truth("runner-up, per pixel", "density", "runner_up"),
    "deletion": Metric(f"deletion AUC, {SCALE}", -1, partial(area, curve=deletion)),
    "insertion": Metric(f"insertion AUC, {SCALE}", 1, partial(area, curve=insertion)),
    "patches": Metric("faithfulness (patches)", 1, partial(faithfulness, alone=True)),
    "subsets": Metric("faithfulness (subsets)", 1, partial(faithfulness, alone=False)),
    "iou": Metric("IoU", 1, partial(on_object, judge=iou)),
    "pointing": Metric("pointing game", 1, partial(on_object, judge=pointing_game)),
    "randomized": Metric("like a random model's", -1, random_model_agreement, few=True),
    "sensitivity": Metric("max-sensitivity", -1, sensitivity, few=True),
    "runs": Metric("run-to-run agreement", 1, seed_agreement, few=True),
}
