"""Every method through every metric, on scenes whose truth is known: which metric can be believed?

On a photograph a metric is all there is. On scenes the effect of every part is known (see `truth`),
and so not only the methods can be put in order, but also the metrics that put them in order.
"""

import copy
import inspect
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from skimage.filters import sobel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from course_utils import lime, models, plotting
from course_utils.contract import accepted, check_count, class_scores, explaining, portions
from course_utils.methods import METHODS
from course_utils.metrics import Curve, deletion, insertion, iou, pointing_game
from course_utils.models import Classifier
from course_utils.sanity import max_sensitivity
from course_utils.scenes import Scene, Scenes, check_choice
from course_utils.truth import check_scene, effect_agreement, painted, true_effects

Entrant = Callable[..., Tensor]
Values = NDArray[np.float64]
Interval = tuple[float, float, float]  # the value, and its 95 % interval

FILL = 0.0  # of deletion, insertion, faithfulness: the mean colour, in model space
STEPS = 10  # of deletion and insertion
GRID, SETS = 8, 64  # faithfulness cuts the picture in 8 × 8 squares, and draws 64 sets of a quarter
RADIUS, DRAWS = 0.02, 2  # of the noise of max-sensitivity
FEW = 8  # scenes of the metrics that run every method again
OPTIONS: dict[str, dict[str, Any]] = {  # all else is each method's default
    "prediction_difference": {"samples": 1},
    "lime_image": {"samples": 256},
    "shap_image": {"samples": 256},
}
MAGNITUDES = (  # methods whose papers show the size of what they find, whatever its sign
    "gradient",
    "deconvnet",
    "guided_backprop",
    "smoothgrad",
    "guided_grad_cam",
    "pattern_net",
)
PAINTED = "the truth, painted"
SEED = 500  # of the held-out scenes
PATH = models.DATA / "league.json"


# -- controls: maps that know nothing of the model ------------------------------------------------


def noise(
    model: Any, images: Tensor, target: Any = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Random numbers (N, H, W), others for each image: what chance alone achieves."""
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator))
    return torch.stack([_noise(image, seed) for image in images])


def _noise(image: Tensor, seed: int) -> Tensor:
    content = zlib.crc32(image.detach().cpu().contiguous().numpy().tobytes())
    generator = torch.Generator().manual_seed(content + seed)
    return torch.rand(image.shape[1:], generator=generator).to(image)


def edges(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """The strength of the picture's own edges (N, H, W), by the Sobel operator."""
    channels = images.detach().cpu().double().numpy()
    found = [sum(sobel(channel) for channel in image) for image in channels]
    return torch.from_numpy(np.stack(found)).to(images)


def centre(model: Any, images: Tensor, target: Any = None) -> Tensor:
    """A round blob in the middle (N, H, W), where photographers put what they mean."""
    y, x = (torch.linspace(-2, 2, side).to(images) for side in images.shape[2:])
    blob = (-(y[:, None] ** 2 + x**2) / 2).exp()
    return blob.expand(len(images), -1, -1).clone()


CONTROLS: dict[str, Entrant] = {"noise": noise, "edges": edges, "centre": centre}
NAMES = [*METHODS, *(f"|{name}|" for name in MAGNITUDES), *CONTROLS, PAINTED]


def entrants(
    classifier: Classifier, names: Sequence[str], data: Tensor | None = None
) -> dict[str, Entrant]:
    """The methods and controls of those names, with OPTIONS, and with what they must be given.

    data: ordinary images (M, C, H, W), in model space, of which that is made, once; None draws 64
    scenes. A name in bars, such as "|gradient|", is that method's magnitudes: Σ_c |R_c|.
    """
    result: dict[str, Entrant] = {}
    for name in names:
        if name in CONTROLS:
            result[name] = CONTROLS[name]
            continue
        method = METHODS[name.strip("|")]
        options = dict(OPTIONS.get(method.name, {}))
        if method.prepare and data is None:
            world = classifier.inputs(Scenes(64, seed=501, resolution=classifier.size))
            data = torch.stack([world[i] for i in range(64)])
        for option, make in method.prepare.items():
            options[option] = make(classifier.model, data)  # type: ignore[arg-type]
        run = partial(method.function, **options)
        result[name] = run if name == method.name else magnitudes(run)
    return result


def magnitudes(method: Entrant) -> Entrant:
    """The method whose maps are the other's magnitudes, summed over channels: (N, H, W)."""

    def run(model: nn.Module, images: Tensor, target: Any = None, **options: Any) -> Tensor:
        return method(model, images, target, **accepted(method, **options)).abs().sum(1)

    run.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return run


# -- metrics --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Some scenes, and all that is measured of them before there is any map."""

    model: nn.Module
    scenes: Sequence[Scene]
    images: Tensor  # (N, C, H, W)
    target: Tensor  # (N,) the model's answers
    batch_size: int
    effects: list[dict[str, float]]  # the parts' Shapley values
    single: list[dict[str, float]]
    drops: Tensor  # (N, GRID² + SETS): what replacing each set of squares takes from the logit
    sets: Tensor  # (GRID² + SETS, GRID²), bool: each square alone, and random quarters

    @property
    def mask(self) -> Tensor:
        """Where the object is, (N, H, W)."""
        return torch.from_numpy(np.stack([scene.mask for scene in self.scenes]))


def case_of(
    classifier: Classifier, scenes: Sequence[Scene], batch_size: int, costs: Values | None = None
) -> Case:
    """Measure the truth, and what faithfulness compares with; `costs` gets the truth's (3,)."""
    model = classifier.model
    images = torch.cat([classifier.to_input(scene.image) for scene in scenes])
    with torch.no_grad():
        target = model(images).argmax(1)

    def effects(kind: str) -> list[dict[str, float]]:
        options: Any = {"kind": kind, "batch_size": batch_size, "progress": False}
        pairs = zip(scenes, target.tolist(), strict=True)
        return [true_effects(classifier, scene, target=c, **options) for scene, c in pairs]

    with measured(model, np.zeros(3) if costs is None else costs):
        shares = effects("shapley")
    sets = _sets()
    drops = _drops(model, images, target, sets, batch_size)
    return Case(model, scenes, images, target, batch_size, shares, effects("single"), drops, sets)


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
        whole = class_scores(model(images.clone()), target).cpu().double()
        for number in portions(n * count, batch_size, False):
            image, chosen = number // count, sets[number % count].view(-1, 1, GRID, GRID)
            away = F.interpolate(chosen.to(images), size=size, mode="nearest-exact") > 0
            mixed = images[image].masked_fill(away, FILL)
            changed[number] = class_scores(model(mixed), target[image]).cpu().double()
    return whole[:, None] - changed.view(n, count)


def faithfulness(case: Case, maps: Tensor, alone: bool) -> Tensor:
    """`metrics.faithfulness_correlation`, of the squares alone or of the sets, (N,)."""
    squares = F.adaptive_avg_pool2d(maps.double()[:, None], GRID).flatten(1)
    chosen = slice(GRID**2) if alone else slice(GRID**2, None)
    sums, drops = squares @ case.sets[chosen].double().T, case.drops[:, chosen]
    a, b = (values - values.mean(1, keepdim=True) for values in (sums, drops))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    flat = (sums.amax(1) == sums.amin(1)) | (lengths == 0)
    return ((a * b).sum(1) / lengths).masked_fill(flat, torch.nan)


def area(case: Case, maps: Tensor, curve: Callable[..., Curve]) -> Tensor:
    """The area under the curve, where f(fill) is 0 and f(x) is 1; NaN if f(x) ≤ f(fill), (N,)."""
    options: Any = {"steps": STEPS, "fill": FILL, "batch_size": case.batch_size}
    maps = maps.to(case.images)
    _, score, auc = curve(case.model, case.images, maps, case.target, **options, progress=False)
    ends = (score[:, 0], score[:, -1])
    whole, filled = ends if curve is deletion else reversed(ends)
    return ((auc - filled) / (whole - filled)).where(whole > filled, torch.nan)


class Rerun(NamedTuple):
    """A method to run again, the same for a model that knows nothing, and what it explains."""

    method: Entrant
    other: Entrant
    model: nn.Module
    random_model: nn.Module
    images: Tensor
    target: Tensor
    maps: Tensor  # (N, H, W): what it says, its channels summed
    batch_size: int


def randomized(run: Rerun) -> Tensor:
    """Spearman of the map with that of the model with all its parameters drawn anew, (N,)."""
    maps = _map_of(run.other, run.random_model, run.images, run.target, run.batch_size)
    return _alike(run.maps, maps)


def sensitivity(run: Rerun) -> Tensor:
    """`sanity.max_sensitivity`, (N,)."""
    return max_sensitivity(
        run.model,
        run.images,
        run.method,
        run.target,
        radius=RADIUS,
        samples=DRAWS,
        batch_size=run.batch_size,
        progress=False,
    )


def runs(run: Rerun) -> Tensor:
    """Spearman of the map with that of another seed, (N,); NaN for a method that draws nothing."""
    if not accepted(run.method, generator=None):
        return torch.full((len(run.images),), torch.nan)
    again = partial(run.method, generator=torch.Generator().manual_seed(1))
    return _alike(run.maps, _map_of(again, run.model, run.images, run.target, run.batch_size))


def _alike(maps: Tensor, others: Tensor) -> Tensor:
    return torch.tensor([lime.agreement(pair) for pair in torch.stack([maps, others], 1)])


class Metric(NamedTuple):
    """A column of the table: what it says of a map, or of a method."""

    label: str
    better: int  # 1: the more the better; −1: the less
    judge: Callable[..., Tensor]  # of a case and its maps; or of what `_rerun` is given
    few: bool = False  # it runs the method again, and so only for few scenes


def _agreement(**options: Any) -> Callable[[Case, Tensor], Tensor]:
    return lambda case, maps: effect_agreement(maps, case.scenes, case.effects, **options)


METRICS: dict[str, Metric] = {
    "truth": Metric("the truth", 1, _agreement()),
    "single": Metric(
        "one part at a time", 1, lambda case, maps: effect_agreement(maps, case.scenes, case.single)
    ),
    "linear": Metric("the truth (Pearson)", 1, _agreement(correlation="pearson")),
    "density": Metric("the truth (means)", 1, _agreement(reduce="mean")),
    "deletion": Metric("deletion", -1, partial(area, curve=deletion)),
    "insertion": Metric("insertion", 1, partial(area, curve=insertion)),
    "patches": Metric("faithfulness (patches)", 1, partial(faithfulness, alone=True)),
    "subsets": Metric("faithfulness (subsets)", 1, partial(faithfulness, alone=False)),
    "iou": Metric("IoU", 1, lambda case, maps: iou(maps, case.mask)),
    "pointing": Metric("pointing game", 1, lambda case, maps: pointing_game(maps, case.mask)),
    "randomized": Metric("like a random model's", -1, randomized, few=True),
    "sensitivity": Metric("max-sensitivity", -1, sensitivity, few=True),
    "runs": Metric("run-to-run agreement", 1, runs, few=True),
}


def random_model(model: nn.Module) -> nn.Module:
    """A copy with all parameters drawn anew, the end of `sanity.parameter_randomization`."""
    other = copy.deepcopy(model)
    buffers = dict(model.named_buffers())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
    other.load_state_dict(buffers, strict=False)  # BatchNorm's statistics stay
    return other.eval().requires_grad_(False)


def _map_of(
    method: Entrant, model: nn.Module, images: Tensor, target: Tensor, batch_size: int
) -> Tensor:
    """A method's maps on the CPU, their channels summed, (N, H, W)."""
    maps = method(model, images, target, **accepted(method, batch_size=batch_size, progress=False))
    return (maps.sum(1) if maps.ndim == 4 else maps).cpu()


# -- the table ------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What one image costs, given its class: measured, and counted."""

    seconds: float
    forwards: float
    backwards: float


@contextmanager
def measured(model: nn.Module, costs: Values) -> Iterator[None]:
    """Add to costs (3,) the seconds, and how many images pass the model forwards and backwards."""

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        costs[1] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: costs.__setitem__(2, costs[2] + len(gradient)))

    handle, start = model.register_forward_hook(note), time.perf_counter()
    try:
        yield
    finally:
        handle.remove()
        costs[0] += time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Table:
    """How S scenes judge the methods: values[metric][method] is (S,), NaN where there is none.

    costs: of a method, for each image. setup: what was compared, and how.
    """

    values: dict[str, dict[str, Values]]
    costs: dict[str, Cost]
    setup: dict[str, Any]

    @property
    def methods(self) -> list[str]:
        """The rows, those that agree most with the truth first."""
        return sorted(self.costs, key=lambda name: -np.nan_to_num(self.mean("truth", name)[0]))

    def mean(self, metric: str, method: str) -> Interval:
        """The mean over scenes with its 95 % interval, by bootstrap over scenes; NaN without any.

        Raises ValueError naming the argument.
        """
        check_choice("metric", metric, tuple(self.values))
        check_choice("method", method, tuple(self.costs))
        column = self.values[metric].get(method, np.array([]))
        column = column[np.isfinite(column)]
        if not len(column):
            return np.nan, np.nan, np.nan
        low, high = np.quantile(_resamples(len(column)) @ column / len(column), [0.025, 0.975])
        return float(column.mean()), float(low), float(high)

    def __str__(self) -> str:
        metrics = [name for name in METRICS if name in self.values]
        head = "".join(f"{name:>13}" for name in metrics)
        lines = [f"{'':24}{head}{'seconds':>10}{'passes':>12}"]
        for method in self.methods:
            row = "".join(f"{_cell(self.mean(metric, method)):>13}" for metric in metrics)
            cost = self.costs[method]
            passes = f"{cost.forwards:.0f} F {cost.backwards:.0f} B"
            lines.append(f"{method:24}{row}{cost.seconds:>10.3f}{passes:>12}")
        return "\n".join(lines)


def _cell(interval: Interval) -> str:
    value, low, high = interval
    return "" if np.isnan(value) else f"{value:.2f} ± {(high - low) / 2:.2f}".replace("-", "−")


@cache
def _resamples(scenes: int) -> Values:
    """How often each of the scenes is drawn in each of 1,000 resamples (1000, S)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(scenes, np.full(scenes, 1 / scenes), size=1000).astype(float)


def league_table(
    classifier: Classifier,
    scenes: Sequence[Scene],
    *,
    methods: Sequence[str] | Mapping[str, Entrant] | None = None,
    metrics: Sequence[str] | None = None,
    data: Tensor | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Table:
    """Put methods and controls through every metric, on scenes whose truth is known.

    All explain the logit of the model's own answer, be it right or wrong. A map counts as its
    method returns it, signed, its channels summed; |name| counts the same map's magnitudes, which
    is how papers show it. Methods keep their defaults but for OPTIONS. Three controls know nothing
    of the model: noise, the picture's edges, a blob in the middle. "the truth, painted" spreads the
    parts' Shapley values over their pixels: a metric that knows a right map puts it in front.

        truth        Spearman of the map's sums over the parts with their exact Shapley values
        single       the same with what one part's absence alone does
        linear       as truth, by Pearson: of the numbers, not their ranks
        density      as truth, of the means over the parts
        deletion     (AUC − f(fill)) / (f(x) − f(fill)), fill the mean colour; less is better
        insertion    the same; more is better
        patches      faithfulness correlation, each square of an 8 × 8 grid replaced by the fill
        subsets      the same, 64 random quarters of the squares replaced
        iou, pointing   with the object's mask
        randomized   Spearman with the map of the model with all parameters drawn anew
        sensitivity  the largest relative change in 2 draws of noise
        runs         Spearman between the maps of two seeds

    scenes: as large as the model's input. methods: of NAMES, or a dict of your own; None for all.
    metrics: of METRICS, besides "truth"; None for all. The last three take the first 8 scenes.
    data: see `entrants`; what is made of it is not counted in the costs.

    Raises ValueError or TypeError naming the argument.
    Source: see `truth`, `metrics`, `sanity`.
    """
    scenes = list(scenes)
    _check_scenes(scenes, classifier)
    columns = list(METRICS) if metrics is None else list(dict.fromkeys(["truth", *metrics]))
    for name in columns:
        check_choice("metrics", name, tuple(METRICS))
    names = list(NAMES if methods is None else methods)
    if not names:
        raise ValueError("methods must name at least one, but are empty")
    if not isinstance(methods, Mapping):
        for name in names:
            check_choice("methods", name, tuple(NAMES))
    check_count("batch_size", batch_size)

    def field(of: Classifier) -> dict[str, Entrant]:
        if isinstance(methods, Mapping):
            return dict(methods)
        return entrants(of, [name for name in names if name != PAINTED], data)

    many, few = ([name for name in columns if METRICS[name].few is slow] for slow in (False, True))
    costs = {name: np.zeros(3) for name in names}
    with explaining(classifier.model):
        run = field(classifier)
        values = _judged(classifier, scenes, run, many, costs, batch_size, progress)
        if few:
            other = replace(classifier, model=random_model(classifier.model))
            pairs = {name: (run[name], again) for name, again in field(other).items()}
            values |= _rerun(classifier, other, scenes, pairs, few, batch_size, progress)
    each = {name: Cost(*(total / len(scenes)).tolist()) for name, total in costs.items()}
    setup = {
        "model": classifier.name,
        "scenes": len(scenes),
        "parts": dict(sorted(Counter(str(len(scene.parts)) for scene in scenes).items())),
        "few": min(FEW, len(scenes)),
        "fill": FILL,
        "steps": STEPS,
        "options": {name: OPTIONS[name] for name in OPTIONS if name in names},
    }
    return Table(values, each, setup)


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


def _judged(
    classifier: Classifier,
    scenes: Sequence[Scene],
    run: Mapping[str, Entrant],
    metrics: Sequence[str],
    costs: dict[str, Values],
    batch_size: int,
    progress: bool,
) -> dict[str, dict[str, Values]]:
    """All metrics that judge a map, of all methods in `costs`, to which what they cost is added."""
    found: dict[str, dict[str, list[Tensor]]] = {m: {name: [] for name in costs} for m in metrics}
    model = classifier.model
    with tqdm(total=len(scenes), unit="scene", disable=not progress) as bar:
        for number in torch.arange(len(scenes)).split(batch_size):
            part = [scenes[i] for i in number]
            case = case_of(classifier, part, batch_size, costs.get(PAINTED))
            for name, cost in costs.items():
                if name == PAINTED:
                    pairs = zip(part, case.effects, strict=True)
                    maps = torch.cat([painted(*pair) for pair in pairs])
                else:
                    with measured(model, cost):
                        maps = _map_of(run[name], model, case.images, case.target, batch_size)
                for metric in metrics:
                    found[metric][name].append(METRICS[metric].judge(case, maps))
            bar.update(len(part))
    return {
        metric: {name: torch.cat(parts).double().numpy() for name, parts in column.items()}
        for metric, column in found.items()
    }


def _rerun(
    classifier: Classifier,
    other: Classifier,
    scenes: Sequence[Scene],
    run: Mapping[str, tuple[Entrant, Entrant]],
    metrics: Sequence[str],
    batch_size: int,
    progress: bool,
) -> dict[str, dict[str, Values]]:
    """The metrics that run a method again, for the first few scenes; NaN for the others."""
    model = classifier.model
    images = torch.cat([classifier.to_input(scene.image) for scene in scenes[:FEW]])
    with torch.no_grad():
        target = model(images).argmax(1)
    values = {metric: {name: np.full(len(scenes), np.nan) for name in run} for metric in metrics}
    for name, (method, other_method) in tqdm(run.items(), unit="method", disable=not progress):
        maps = _map_of(method, model, images, target, batch_size)
        again = Rerun(method, other_method, model, other.model, images, target, maps, batch_size)
        for metric in metrics:
            values[metric][name][:FEW] = METRICS[metric].judge(again).double().numpy()
    return values


# -- do the metrics order the methods as the truth does? ------------------------------------------


def verdict(table: Table, *, controls: bool = True, against: str = "truth") -> dict[str, Interval]:
    """How far each metric orders the methods as the truth does: Kendall's τ over methods.

        τ = (pairs of methods in the same order − pairs in the other order) / all pairs

    Methods are ordered by their means over the scenes, the better first as the metric means it: 1
    is the truth's own order, 0 what chance achieves. The 95 % interval is by bootstrap over scenes,
    the same resamples for metric and truth; it says nothing of other methods.

    controls: False leaves out those that know nothing of the model, and the painted truth.
    against: the metric whose order counts, of the table's.
    Returns metric → (τ, low, high), over the methods that both metrics judge, two at least.

    Raises ValueError naming the argument.
    Source: Kendall, A New Measure of Rank Correlation, 1938.
    """
    check_choice("against", against, tuple(table.values))
    result = {}
    for metric in table.values:
        names = [
            name
            for name in table.costs
            if (controls or name not in (*CONTROLS, PAINTED))
            and all(np.isfinite(table.values[m].get(name, np.nan)).any() for m in (metric, against))
        ]
        if metric != against and len(names) > 1:
            same = _order(table, metric, names) * _order(table, against, names)
            tau = same.sum((1, 2)) / (len(names) * (len(names) - 1))
            low, high = np.nanquantile(tau[1:], [0.025, 0.975])
            result[metric] = float(tau[0]), float(low), float(high)
    return result


def _order(table: Table, metric: str, names: Sequence[str]) -> Values:
    """Is one better than the other? 1, 0 or −1, by all scenes and each resample (1 + R, M, M)."""
    columns = np.stack([table.values[metric][name] for name in names])
    counts = np.vstack([np.ones(columns.shape[1]), _resamples(columns.shape[1])])
    means = _means(columns, counts)
    return METRICS[metric].better * np.sign(means[:, :, None] - means[:, None])


def _means(columns: Values, counts: Values) -> Values:
    """Means over the scenes that have a value: (M, S), how often each counts (R, S) → (R, M)."""
    finite = np.isfinite(columns)
    with np.errstate(invalid="ignore"):
        return counts @ np.where(finite, columns, 0).T / (counts @ finite.T)


# -- kept, read, shown ----------------------------------------------------------------------------


def save(table: Table, path: Path | str) -> None:
    """Write a table as JSON, values in thousandths; it is complete or not there at all."""
    thousandths = {
        metric: {name: _thousandths(values) for name, values in column.items()}
        for metric, column in table.values.items()
    }
    costs = {
        name: [float(f"{number:.3g}") for number in cost] for name, cost in table.costs.items()
    }
    content = {"setup": table.setup, "costs": costs, "thousandths": thousandths}
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path | str = PATH) -> Table:
    """Read a table; FileNotFoundError or ValueError says what to do where there is none."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no {path}; `course league` makes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {
            metric: {
                name: _from_thousandths(numbers, content["setup"]["scenes"])
                for name, numbers in column.items()
            }
            for metric, column in content["thousandths"].items()
        }
        costs = {name: Cost(*numbers) for name, numbers in content["costs"].items()}
        return Table(values, costs, content["setup"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"path: {path} is damaged; `course league` makes it again") from None


def _thousandths(values: Values) -> list[int | None]:
    """As whole numbers, None for NaN, without the NaNs at the end."""
    numbers = [None if np.isnan(value) else round(1000 * value) for value in values.tolist()]
    while numbers and numbers[-1] is None:
        numbers.pop()
    return numbers


def _from_thousandths(numbers: list[int | None], scenes: int) -> Values:
    missing = [None] * (scenes - len(numbers))
    return np.array([np.nan if n is None else n / 1000 for n in [*numbers, *missing]])


def held_out(scenes: int = 208) -> list[Scene]:
    """Ordinary scenes that no model was trained or tested on: those of seed 500 in their order.

    Scenes with fewer than three visible parts are left out: a rank says nothing of them.

    Raises ValueError or TypeError naming the argument.
    """
    return [scene for _, scene in _held_out(scenes)]


def _held_out(scenes: int) -> list[tuple[int, Scene]]:
    """With their numbers."""
    check_count("scenes", scenes)
    world = Scenes(4 * scenes + 16, SEED)
    drawn = ((i, world.scene(i)) for i in range(len(world)))
    return list(islice((pair for pair in drawn if len(pair[1].parts) >= 3), scenes))


def make(path: Path | str = PATH, scenes: int = 208, progress: bool = True) -> Table:
    """Put all methods through all metrics on held-out scenes, and write the table to a file.

    It takes about half an hour on one core.

    Raises ValueError or TypeError naming the argument.
    """
    numbers, drawn = zip(*_held_out(scenes), strict=True)
    table = league_table(models.load("scenes", device="cpu"), drawn, progress=progress)
    facts = {"seed": SEED, "skipped": numbers[-1] + 1 - scenes}
    save(replace(table, setup=table.setup | facts), path)
    return load(path)  # rounded as it is kept: a table never differs from its file


def markdown(
    table: Table,
    metrics: Sequence[str] = ("truth", "single", "deletion", "insertion", "patches", "iou"),
) -> str:
    """The table in Markdown, as the README shows it: means, with half their 95 % intervals."""
    head = ["method", *(METRICS[name].label for name in metrics), "passes"]
    rows = [head, ["---"] * len(head)]
    for method in table.methods:
        cost, name = table.costs[method], method.replace("|", "\\|")
        passes = f"{cost.forwards:.0f} F {cost.backwards:.0f} B"
        values = (_cell(table.mean(metric, method)) for metric in metrics)
        rows.append([f"`{name}`" if method.strip("|") in METHODS else name, *values, passes])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(
    table: Table, metrics: Sequence[str] | None = None, *, title: str | None = None
) -> None:
    """Every method's mean and 95 % interval under each metric, methods in the order of the truth.

    A metric that agreed with the truth would show a falling line, from the upper right to the lower
    left; where the less is the better, the axis runs the other way. Controls are orange, the
    painted truth is green.

    Raises ValueError naming the argument.
    """
    shown = [name for name in METRICS if name in table.values] if metrics is None else [*metrics]
    for name in shown:
        check_choice("metrics", name, tuple(table.values))
    names = table.methods
    alt = f"{len(names)} methods, best first by the truth, under {', '.join(shown)}"
    alt += f": {', '.join(names)}."
    with plotting._figure(1.55 * len(shown) + 0.3, 0.27 * len(names) + 0.4, title, alt) as figure:
        grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, metric in zip(grid, shown, strict=True):
            _column(axes, table, metric, names)
        grid[0].set_yticks(range(len(names)), names)
        figure.subplots_adjust(wspace=0.2)


def _column(axes: Any, table: Table, metric: str, names: Sequence[str]) -> None:
    """One metric's dots and intervals."""
    colors = dict.fromkeys(CONTROLS, plotting.ORANGE) | {PAINTED: plotting.SERIES[2]}
    for row, name in enumerate(names):
        if name in table.values[metric]:
            value, low, high = table.mean(metric, name)
            color = colors.get(name, plotting.BLUE)
            axes.plot([low, high], [row, row], color=color, lw=3, alpha=0.45, solid_capstyle="butt")
            axes.plot(value, row, "o", color=color, ms=5.5)
    axes.set(ylim=(len(names) - 0.4, -0.6))
    axes.set_title(fill(METRICS[metric].label, 14), fontsize=11)
    axes.grid(axis="both", color=plotting.FAINT, lw=0.7)
    axes.tick_params(axis="both", length=0, labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], prune="both"))
    axes.spines[["left"]].set_visible(False)
    if METRICS[metric].better < 0:
        axes.invert_xaxis()
