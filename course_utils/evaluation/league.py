"""Every method through every metric, on scenes whose truth is known: which metric can be believed?

On a photograph a metric is all there is. On scenes the effect of every part is known (see `truth`),
and so not only the methods can be put in order, but also the metrics that put them in order.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_utils import models
from course_utils.contract import (
    check_choice,
    check_count,
    explaining,
    known_options,
    predict_target,
)
from course_utils.evaluation.columns import (
    BASELINE,
    METRICS,
    STEPS,
    AttributionMethod,
    Cost,
    Repetition,
    Values,
    maps_by_score,
    measure_scenes,
)
from course_utils.evaluation.controls import LEAGUE_CONTROLS
from course_utils.evaluation.sanity import maps_of, randomized_copy
from course_utils.evaluation.standings import PAINTED, PATH, Table, join, load, replace_rows, save
from course_utils.evaluation.truth import check_scene, visible_parts
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.progress import counted, counting, hearing
from course_utils.worlds.scenes import Scene, Scenes

FEW = 8  # scenes of the metrics that run every method again
SEED = 500  # of the held-out scenes
PARTS = 5  # that a held-out scene must show: the order of fewer is often right by chance
TOGETHER = 16  # scenes that one process measures at a time
NAMES = [
    *METHODS,
    *(f"|{name}|" for name, method in METHODS.items() if method.magnitudes),
    *LEAGUE_CONTROLS,
    PAINTED,
]


# -- the rows -------------------------------------------------------------------------------------


def methods_by_name(
    classifier: Classifier, names: Sequence[str], data: Tensor | None = None
) -> dict[str, AttributionMethod]:
    """The methods and controls of those names, with quick options and what they must be given.

    data: ordinary images (M, C, H, W), in model space, of which that is made, once; None draws 64
    scenes. A name in bars, such as "|gradient|", is that method's magnitudes: Σ_c |R_c|.
    """
    result: dict[str, AttributionMethod] = {}
    for name in names:
        if name in LEAGUE_CONTROLS:
            result[name] = LEAGUE_CONTROLS[name]
            continue
        method = METHODS[name.strip("|")]
        if method.prepare and data is None:
            world = classifier.inputs(Scenes(64, seed=501, resolution=classifier.size))
            data = torch.stack([world[i] for i in range(64)])
        made = {} if data is None else method.prepared(classifier.model, data)
        run = partial(method.function, **method.quick, **made)
        result[name] = run if name == method.name else magnitudes(run)
    return result


def magnitudes(method: AttributionMethod) -> AttributionMethod:
    """The method whose maps are the other's magnitudes, summed over channels: (N, H, W)."""

    def run(model: nn.Module, images: Tensor, target: Any = None, **options: Any) -> Tensor:
        sizes = method(model, images, target, **known_options(method, **options)).abs()
        return sizes.sum(1) if sizes.ndim == 4 else sizes

    run.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return run


# -- the table ------------------------------------------------------------------------------------


def league_table(
    classifier: Classifier,
    scenes: Sequence[Scene],
    *,
    methods: Sequence[str] | Mapping[str, AttributionMethod] | None = None,
    metrics: Sequence[str] | None = None,
    data: Tensor | None = None,
    batch_size: int = 16,
) -> Table:
    """Put methods and controls through every metric, on scenes whose truth is known.

    The logit of the model's own answer a is explained, be it right or wrong; and, since a map that
    is the same for every class might do well on that alone, also that of its runner-up b, and the
    difference f_a − f_b. A map counts as its method returns it, signed, its channels summed; |name|
    counts the same map's magnitudes, which is how papers show it. Methods keep their defaults, but
    for their entry's quick options. Three controls know nothing of the model: noise, the picture's
    edges, a blob in the middle. "the truth, painted" spreads the parts' Shapley values over their
    pixels: a metric that knows a right map puts it in front.

        density      rank correlation over parts: the map's mean with the Shapley value per pixel
        partial      the same of sums with Shapley values, the parts' areas held fixed
        sums         of sums with Shapley values, where noise does well: see `effect_agreement`
        contrast     density, of the map for f_a − f_b with the Shapley values of f_a − f_b
        runner_up    density, of the map for f_b with the Shapley values of f_b
        deletion     (AUC − f(x')) / (f(x) − f(x')), x' the mean colour; less is better
        insertion    the same; more is better
        patches      faithfulness correlation, each square of an 8 × 8 grid replaced by x'
        subsets      the same, 64 random quarters of the squares replaced
        iou, pointing   with the object's mask
        randomized   rank correlation with the map of the model with all parameters drawn anew
        sensitivity  the largest relative change in 2 draws of noise
        runs         rank correlation between the maps of two seeds

    scenes: as large as the model's input. methods: of NAMES, or a dict of your own; None for all.
    metrics: of METRICS, besides "density"; None for all. The last three take the first 8 scenes.
    data: see `methods_by_name`; what is made of it is not counted in the costs. These are of the
    answer's map alone.

    Raises ValueError or TypeError naming the argument.
    Source: see `truth`, `metrics`, `sanity`.
    """
    scenes = list(scenes)
    _check_scenes(scenes, classifier)
    columns = list(METRICS) if metrics is None else list(dict.fromkeys(["density", *metrics]))
    names = list(NAMES if methods is None else methods)
    _check_names(columns, names, own=isinstance(methods, Mapping))
    check_count("batch_size", batch_size)

    def prepared(classifier: Classifier) -> dict[str, AttributionMethod]:
        if isinstance(methods, Mapping):
            return dict(methods)
        return methods_by_name(classifier, [name for name in names if name != PAINTED], data)

    many, few = ([name for name in columns if METRICS[name].few is slow] for slow in (False, True))
    costs = {name: np.zeros(3) for name in names}
    with explaining(classifier.model):
        run = prepared(classifier)
        own = isinstance(methods, Mapping)
        linear = {name for name in names if name in METHODS and METHODS[name].linear and not own}
        values = _measure_maps(classifier, scenes, run, linear, many, costs, batch_size)
        if few:
            random = replace(classifier, model=randomized_copy(classifier.model))
            pairs = {name: (run[name], again) for name, again in prepared(random).items()}
            values |= _measure_methods(classifier, random, scenes, pairs, few, batch_size)
    each = {name: Cost(*(total / len(scenes)).tolist()) for name, total in costs.items()}
    return Table(values, each, _setup(classifier, scenes, names))


def _check_scenes(scenes: Sequence[Scene], classifier: Classifier) -> None:
    if not scenes:
        raise ValueError("scenes must hold at least one drawn scene, but are empty")
    for scene in scenes:
        check_scene(scene)
        if len(scene.image) != classifier.size:
            raise ValueError(
                f"scenes must be drawn at the model's {classifier.size} pixels, but one has "
                f"{len(scene.image)}"
            )


def _check_names(metrics: Sequence[str], methods: Sequence[str], own: bool) -> None:
    """The methods need not be of NAMES where somebody brings their own."""
    for name in metrics:
        check_choice("metrics", name, METRICS)
    if not methods:
        raise ValueError("methods must name at least one, but are empty")
    for name in () if own else methods:
        check_choice("methods", name, NAMES)


def _setup(classifier: Classifier, scenes: Sequence[Scene], names: Sequence[str]) -> dict[str, Any]:
    """What was compared, and how."""
    return {
        "model": classifier.name,
        "scenes": len(scenes),
        "parts": dict(sorted(Counter(str(len(scene.parts)) for scene in scenes).items())),
        "few": min(FEW, len(scenes)),
        "baseline": BASELINE,
        "steps": STEPS,
        "options": quick_options(names),
    }


def quick_options(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The methods of those names that do not keep their defaults, with their options."""
    named = {name: METHODS[name] for name in METHODS if name in names}
    return {name: dict(method.quick) for name, method in named.items() if method.quick}


def _measure_maps(
    classifier: Classifier,
    scenes: Sequence[Scene],
    run: Mapping[str, AttributionMethod],
    linear: Collection[str],
    metrics: Sequence[str],
    costs: dict[str, Values],
    batch_size: int,
) -> dict[str, dict[str, Values]]:
    """What the metrics say of all methods' maps; what a map costs is added to the method's."""
    found: dict[str, dict[str, list[Tensor]]] = {m: {name: [] for name in costs} for m in metrics}
    scores = {METRICS[metric].score for metric in metrics}
    with counting(len(scenes), "scene") as advance:
        for number in torch.arange(len(scenes)).split(batch_size):
            part = [scenes[i] for i in number]
            measured = measure_scenes(classifier, part, batch_size, costs.get(PAINTED))
            for name, cost in costs.items():
                if name == PAINTED:
                    maps = {score: measured.painted(score) for score in scores}
                else:
                    maps = maps_by_score(
                        run[name], measured, scores, linear=name in linear, cost=cost
                    )
                for metric in metrics:
                    judge = METRICS[metric]
                    found[metric][name].append(judge.measure(measured, maps[judge.score]))
            advance(len(part))
    return {
        metric: {name: torch.cat(parts).double().numpy() for name, parts in column.items()}
        for metric, column in found.items()
    }


def _measure_methods(
    classifier: Classifier,
    random: Classifier,
    scenes: Sequence[Scene],
    run: Mapping[str, tuple[AttributionMethod, AttributionMethod]],
    metrics: Sequence[str],
    batch_size: int,
) -> dict[str, dict[str, Values]]:
    """What the metrics say that run a method again, of the first scenes; NaN for the others.

    run: name → the method for the classifier's model, and for the random one's.
    """
    model = classifier.model
    images = torch.cat([classifier.to_input(scene.image) for scene in scenes[:FEW]])
    target = predict_target(model, images, None, batch_size)
    values = {metric: {name: np.full(len(scenes), np.nan) for name in run} for metric in metrics}
    for name, (method, other) in counted(run.items(), "method"):
        maps = maps_of(method, model, images, target, batch_size).sum(1)
        again = Repetition(method, model, other, random.model, images, target, maps, batch_size)
        for metric in metrics:
            values[metric][name][:FEW] = METRICS[metric].measure(again).double().numpy()
    return values


# -- the table that the course ships --------------------------------------------------------------


def held_out(scenes: int = 208) -> list[Scene]:
    """Ordinary scenes that no model was trained or tested on: those of seed 500 in their order.

    Scenes with fewer than five visible parts are left out.

    Raises ValueError or TypeError naming the argument.
    """
    return [scene for _, scene in _held_out(scenes)]


def _held_out(scenes: int) -> list[tuple[int, Scene]]:
    """With their numbers."""
    check_count("scenes", scenes)
    world = Scenes(20 * scenes + 160, SEED)
    drawn = ((i, world.scene(i)) for i in range(len(world)))
    found = list(islice((pair for pair in drawn if _visible(pair[1]) >= PARTS), scenes))
    if len(found) < scenes:
        raise ValueError(
            f"scenes is {scenes}, but of {len(world)} scenes only {len(found)} show {PARTS} parts; "
            "ask for fewer"
        )
    return found


def _visible(scene: Scene) -> int:
    """How many parts have a pixel that nothing hides."""
    return sum(bool(mask.any()) for mask in visible_parts(scene).values())


def make(path: Path | str = PATH, scenes: int = 208, workers: int = 2) -> Table:
    """Put all methods through all metrics on held-out scenes, and write the table to a file.

    It takes about twenty minutes on two cores. workers: processes, each on one core; a script that
    starts more than one must do so under `if __name__ == "__main__":`.

    Raises ValueError or TypeError naming the argument.
    """
    save(_measured(scenes, workers=workers), path)
    return load(path)  # rounded as it is kept: a table never differs from its file


def make_rows(names: Sequence[str], path: Path | str = PATH, workers: int = 2) -> Table:
    """Measure these rows alone, on the scenes of a file's table, and put them in place there.

    names: of NAMES, such as "grad_cam" or "|gradient|". All other rows stay as they were.
    workers: as `make`.

    Raises ValueError or FileNotFoundError naming the argument.
    """
    for name in names:
        check_choice("name", name, NAMES)
    table = load(path)
    rows = _measured(table.setup["scenes"], names, workers)
    save(replace_rows(table, rows, NAMES), path)
    return load(path)


def _measured(scenes: int, names: Sequence[str] | None = None, workers: int = 2) -> Table:
    """The table of held-out scenes, measured a few scenes at a time, in several processes."""
    check_count("workers", workers)
    numbers, drawn = zip(*_held_out(scenes), strict=True)
    classifier = models.load("scenes", device="cpu")
    pieces = [drawn[i : i + TOGETHER] for i in range(0, scenes, TOGETHER)]
    cheap = [name for name in METRICS if not METRICS[name].few]
    metrics = [None] + [cheap] * (len(pieces) - 1)  # those that take few scenes take the first
    measure = partial(_measure_piece, classifier, names)
    tables = []
    with _processes(min(workers, len(pieces))) as each, counting(scenes, "scene") as advance:
        for table in each(measure, pieces, metrics):
            tables.append(table)
            advance(table.setup["scenes"])
    table = join(tables)
    return replace(table, setup=table.setup | {"seed": SEED, "skipped": numbers[-1] + 1 - scenes})


@contextmanager
def _processes(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in so many processes of one thread each; in this one where one is enough."""
    if workers == 1:
        yield map
        return
    context = get_context("spawn")  # a forked process may wait for threads that it does not have
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield pool.map


def _measure_piece(
    classifier: Classifier,
    names: Sequence[str] | None,
    scenes: Sequence[Scene],
    metrics: Sequence[str] | None,
) -> Table:
    """`league_table`, without a bar of its own."""
    with hearing(lambda done, total: None):
        return league_table(classifier, scenes, methods=names, metrics=metrics)
