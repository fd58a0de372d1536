"""Homework 04, sanity checks: rank correlation, edges, random layers, the cascade, the verdict."""

import copy
import operator
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.homework import cases
from course_utils.homework.checks import Exercise, Mistakes, compare, exercise, explain, tensor_of
from course_utils.homework.guard import ITSELF, RESEEDED, SHARED, Answer, Wrong
from course_utils.methods import cam, gradients

SANITY = ("course_utils.evaluation.sanity",)


# 1 · Rank correlation --------------------------------------------------------------------------


def _ranks(row: np.ndarray, how: str) -> np.ndarray:
    """The ranks of numbers (M,): how many are smaller, and half of those that are equal."""
    sides = (np.searchsorted(np.sort(row), row, side) for side in ("left", "right"))
    smaller, not_larger = sides
    return {
        "average": lambda: (smaller + not_larger + 1) / 2,
        "min": lambda: smaller + 1.0,
        "max": lambda: not_larger + 0.0,
        "dense": lambda: np.unique(row, return_inverse=True)[1] + 1.0,
        "ordinal": lambda: row.argsort(kind="stable").argsort() + 1.0,
        "order": lambda: row.argsort(kind="stable") + 1.0,
        "values": lambda: row,
    }[how]()


def rank_correlation(
    a: Tensor,
    b: Tensor,
    *,
    ranks: str = "average",
    whole: bool = False,
    unsigned: bool = False,
    short: bool = False,
    constant: float = np.nan,
    finish: Callable[[Tensor], Tensor] = lambda rho: rho,
) -> Tensor:
    """Spearman's ρ of each image's two maps: two (N, H, W) → (N,)."""
    rows = [maps.detach().double().flatten(1).numpy() for maps in (a, b)]
    if unsigned:
        rows = [np.abs(values) for values in rows]
    if whole:
        rows = [values.reshape(1, -1) for values in rows]
    one, other = (np.stack([_ranks(row, ranks) for row in values]) for values in rows)
    if short:
        m = one.shape[1]
        rho = 1 - 6 * ((one - other) ** 2).sum(1) / (m * (m**2 - 1))
    else:
        one, other = (values - values.mean(1, keepdims=True) for values in (one, other))
        size = np.sqrt((one**2).sum(1) * (other**2).sum(1))
        rho = (one * other).sum(1) / np.where(size > 0, size, 1)
    flat = np.any([np.ptp(values, axis=1) == 0 for values in rows], axis=0)
    return finish(torch.from_numpy(np.where(flat, constant, rho)).expand(len(a)))


RANK_CORRELATION: Mistakes = {
    "Pearson": (
        {"ranks": "values"},
        "this is the correlation of the values. Put each pixel's rank within its map in place of "
        "its value first.",
    ),
    "argsort once": (
        {"ranks": "order"},
        "argsort says which pixel comes first, second, …; a rank says at which place a pixel "
        "comes. The one is the inverse permutation of the other.",
    ),
    "ties in some order": (
        {"ranks": "ordinal"},
        "equal values got different ranks, by where they lie in the picture. Give them all the "
        "mean of the ranks that they take up together.",
    ),
    "dense ranks": (
        {"ranks": "dense"},
        "these ranks number the different values. A value that occurs a hundred times takes up a "
        "hundred ranks, and the next one comes after them.",
    ),
    "lowest of the tied ranks": (
        {"ranks": "min"},
        "tied pixels got the first of the ranks that they take up together; wanted is the mean.",
    ),
    "highest of the tied ranks": (
        {"ranks": "max"},
        "tied pixels got the last of the ranks that they take up together; wanted is the mean.",
    ),
    "short formula": (
        {"short": True},
        "the formula with 6 Σd² holds only where no two values are equal. Take Pearson's "
        "correlation of the ranks, which always holds.",
    ),
    "unsigned": (
        {"unsigned": True},
        "the maps are compared as they come: without their signs a map and its negative are the "
        "same. Whether to drop the sign is decided in Exercise 5.",
    ),
    "whole batch": (
        {"whole": True},
        "rank the pixels of each image among themselves. One ranking over the whole batch compares "
        "the images with each other, too.",
    ),
    "constant": (
        {"constant": 0.0},
        "all ranks of a map without contrast are equal, and the equation says 0 / 0. Neither 0 nor "
        "1 is an answer to that; say NaN.",
    ),
    "NaN for the whole batch": (
        {"finish": lambda rho: rho * torch.nan if rho.isnan().any() else rho},
        "one map without contrast has made NaN of all images. Only its own image has no number.",
    ),
    "squeezed": (
        {"finish": torch.squeeze},
        "a batch of one image is a batch, too: its result has the shape (1,). squeeze() without a "
        "dimension takes away every axis of length 1.",
    ),
}


TIES = (
    "on maps without ties it is right. Pixels of equal value must all get the same rank, the mean "
    "of the ranks that they take up together."
)


def _pair(n: int, height: int, width: int, seed: int, levels: float | None = None) -> list[Tensor]:
    """Two batches of maps that have something in common; with `levels`, many values are equal."""
    a = cases.noise(n, height, width, seed=seed)
    b = a + cases.noise(n, height, width, seed=seed + 1)
    b = b * torch.tensor([1.0, -1.0]).repeat(n)[:n, None, None]  # some agree, some contradict
    if levels:
        return [(a * levels).round().clamp(min=0) / levels, (b * levels).round() / levels]
    # Other images have other units: heavy tails, another scale, another zero.
    scale = torch.arange(1.0, n + 1)[:, None, None]
    return [a.sinh() * scale - scale, (2 * b).sinh() / scale]


@exercise(
    "hw04.rank_correlation",
    rank_correlation,
    RANK_CORRELATION,
    forbidden=("scipy.stats", "pandas", *SANITY, "course_utils.methods.lime"),
)
def check_rank_correlation(answer: Answer, known: Exercise) -> Iterator[str]:
    """Maps with ties and without, what a monotone change does, and maps without contrast."""
    pairs = [_pair(5, 9, 14, seed=0), _pair(4, 12, 8, seed=2, levels=1.5), _pair(1, 6, 6, seed=4)]
    tied = _pair(3, 16, 16, seed=6, levels=4)
    asked = [{"a": a, "b": b} for a, b in (*pairs, tied)]
    for case in asked[:3]:
        got, n = tensor_of(answer(**case), "the result"), len(case["a"])
        if got.shape != (n,):
            hint = known.hint("squeezed" if n == 1 else "whole batch")
            raise Wrong(f"{n} images give {tuple(got.shape)}, wanted is ({n},)", hint)
    yield "there is one number for each image"
    for some, hint in (
        (
            [asked[0], asked[2]],
            "go through the three steps: ranks within each map, ties get the mean of their "
            "ranks, then Pearson's correlation of the ranks.",
        ),
        (asked, TIES),
    ):
        compare(answer, known, some, what="the rank correlation", hint=hint)
    yield "it is Spearman's, on maps with and without ties, each image on its own"
    a, b = pairs[0]
    for what, one, other, expected in (
        ("a map with itself", a, a, torch.ones(len(a))),
        ("a map with its negative", a, -a, -torch.ones(len(a))),
        ("after a monotone change of one map", (a / 5).exp(), b, rank_correlation(a, b)),
        ("in a unit that makes one map small", 1e-6 * a, b, rank_correlation(a, b)),
    ):
        number = tensor_of(answer(a=one, b=other), what)
        if not torch.allclose(number, expected.double(), atol=1e-3):
            raise Wrong(
                f"{what}: the number is not what it must be",
                "only ranks may count, not the values or their unit: do not round, either.",
            )
    yield "a map with itself gives 1, with its negative −1, and a monotone change changes nothing"
    flat = a.clone()
    flat[1], flat[3] = 0.0, 2.5
    for one, other in ((flat, b), (b, flat), (flat, flat)):
        number = tensor_of(answer(a=one, b=other), "the result")
        if number.shape != (5,):
            raise Wrong(
                f"5 images, 2 of them without contrast, give {tuple(number.shape)}, wanted is (5,)",
                "an image without contrast keeps its place in the result; NaN stands there.",
            )
        has_number = ~number.isnan()
        if has_number[[1, 3]].any():
            raise Wrong("a map without contrast has a number", known.hint("constant"))
        if not has_number[[0, 2, 4]].all():
            hint = known.hint("NaN for the whole batch")
            raise Wrong("images beside a map without contrast have no number", hint)
    yield "a map without contrast gets NaN, and the others keep their number"


# 2 · Edges -------------------------------------------------------------------------------------


def edges(
    images: Tensor,
    *,
    padding: str = "replicate",
    join: str = "root",
    middle: float = 2.0,
    grey: Sequence[float] | None = (1 / 3, 1 / 3, 1 / 3),
    channel: bool = False,
) -> Tensor:
    """Sobel's edges of the mean over channels: (N, C, H, W) → (N, H, W)."""
    x = images.detach().double()
    if grey is not None:
        weights = x.new_tensor(grey if x.shape[1] == 3 else [1.0])
        x = (x * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
    rise = torch.tensor([[-1.0, 0, 1], [-middle, 0, middle], [-1, 0, 1]], dtype=torch.float64)
    kernels = torch.stack([rise, rise.T])[:, None]
    if padding != "none":
        x = F.pad(x, (1, 1, 1, 1), mode=padding)
    slopes = F.conv2d(x.flatten(0, 1)[:, None], kernels)
    slopes = slopes.unflatten(0, x.shape[:2])  # (N, C or 1, 2, H, W)
    size = {
        "root": lambda: slopes.square().sum(2).sqrt(),
        "squares": lambda: slopes.square().sum(2),
        "abs": lambda: slopes.abs().sum(2),
        "signed": lambda: slopes.sum(2),
        "one way": lambda: slopes[:, :, 0].abs(),
    }[join]()
    return size.sum(1, keepdim=channel)


def _scaled(function: Answer) -> Answer:
    """The function, each image's map divided by its largest value: a unit does not matter here."""

    def scaled(images: Tensor) -> Tensor:
        maps = tensor_of(function(images=images), "the map")
        each = tuple(range(1, maps.ndim))
        return maps / maps.abs().amax(each, keepdim=True).clamp(min=1e-12) if each else maps

    return scaled


EDGES: Mistakes = {
    "zeros around": (
        {"padding": "constant"},
        "there is a bright frame: a border of zeros is an edge that the picture does not have. Let "
        "the picture go on outside with the values of its border.",
    ),
    "mirrored": (
        {"padding": "reflect"},
        "this mirror leaves out the border's own pixels, and the slope across the border vanishes. "
        "Let the picture go on outside with the values of its border.",
    ),
    "smaller map": (
        {"padding": "none"},
        "a 3 × 3 kernel takes a pixel off at each side; pad the picture before, so that each pixel "
        "of it has a value.",
    ),
    "one direction": (
        {"join": "one way"},
        "edges of one direction only. Turn the kernel by a quarter, too, and put both slopes "
        "together.",
    ),
    "signed sum": (
        {"join": "signed"},
        "slopes up and slopes down cancel in a sum. The edge's strength is the length of the "
        "vector of the two slopes.",
    ),
    "sum of magnitudes": (
        {"join": "abs"},
        "an oblique edge comes out too strong. The length of a vector is the root of the sum of "
        "squares.",
    ),
    "no root": (
        {"join": "squares"},
        "these are the squares of the lengths: strong edges come out too strong. Take the root.",
    ),
    "equal weights": (
        {"middle": 1.0},
        "this is Prewitt's kernel; in Sobel's the middle row counts twice.",
    ),
    "each colour": (
        {"grey": None},
        "edges are wanted of the grey picture: take the mean over the channels first.",
    ),
    "weighted grey": (
        {"grey": (0.299, 0.587, 0.114)},
        "this grey gives green more weight than blue, as for the eye. Here grey is the plain mean "
        "over the channels.",
    ),
    "one channel alone": (
        {"grey": (1.0, 0.0, 0.0)},
        "edges of the first channel alone. Take the mean over the channels.",
    ),
    "a channel left over": (
        {"channel": True},
        "one map an image, without an axis of channels: (N, H, W).",
    ),
}


@exercise(
    "hw04.edges",
    edges,
    EDGES,
    forbidden=("skimage", "scipy.ndimage", "kornia", "cv2", "course_utils.evaluation.controls"),
)
def check_edges(answer: Answer, known: Exercise) -> Iterator[str]:
    """Noise and squares, of one and of three channels, on grey, and an even picture."""
    square = torch.zeros(2, 3, 16, 12)
    square[0, :, 4:9, 3:8], square[1, 1, 6:, :5] = 1.0, -2.0
    noise, grey = cases.noise(3, 3, 9, 13), cases.noise(1, 1, 7, 7, seed=1) + 3
    pictures = (noise, square, square[:1] + 0.75, grey, F.avg_pool2d(noise, 2) - 1)
    compare(
        answer,
        known,
        [{"images": images} for images in pictures],
        of=_scaled,
        what="the edge map",
        hint="the steps are: mean over the channels, pad by one pixel, two slopes with Sobel's "
        "kernels, the length of the vector of the two.",
    )
    yield "Sobel's edges of the grey picture, for one and three channels, as large as the picture"
    even = tensor_of(answer(images=torch.full((2, 3, 8, 9), 0.5)), "the map")
    if not even.isfinite().all():
        raise Wrong(
            "the map of an even picture is not a number",
            "an even picture's largest edge is 0: do not divide by it.",
        )
    yield "an even picture has a map, too"


# 3 · Random layers -----------------------------------------------------------------------------


def _shuffled(value: Tensor, generator: torch.Generator) -> Tensor:
    """All numbers of a tensor in another order."""
    order = torch.randperm(value.numel(), generator=generator)
    return value.flatten()[order].view_as(value)


def _whole(value: Tensor, generator: torch.Generator, *, axis: int) -> Tensor:
    """The parts of a tensor along an axis in another order, each of them as it was."""
    axis = min(axis, value.ndim - 1)
    order = torch.randperm(value.shape[axis], generator=generator)
    return value.index_select(axis, order)


def _within(value: Tensor, generator: torch.Generator) -> Tensor:
    """Each filter's numbers in another order; a bias as a whole."""
    if value.ndim == 1:
        return _shuffled(value, generator)
    return torch.stack([_shuffled(row, generator) for row in value])


def _drawn(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=generator) * value.std()


def _flipped(value: Tensor, generator: torch.Generator) -> Tensor:
    """All numbers in another order, half of them with the other sign."""
    signs = 2 * torch.randint(2, value.shape, generator=generator) - 1
    return _shuffled(value, generator) * signs


def randomized(
    model: nn.Module,
    layers: Sequence[str],
    generator: torch.Generator,
    *,
    copied: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    only: Callable[[Tensor], bool] = lambda parameter: True,
    inside: bool = True,
    match: Callable[[str, Sequence[str]], bool] | None = None,
    buffers: bool = False,
    shuffle: Callable[[Tensor, torch.Generator], Tensor] = _shuffled,
    own: Callable[[torch.Generator], torch.Generator] = lambda generator: generator,
    finish: Callable[[nn.Module], nn.Module] = lambda result: result,
) -> nn.Module:
    """A copy with each parameter of the layers shuffled: the same values, in another order."""
    generator = own(generator)
    result = copied(model)

    def chosen(name: str) -> bool:
        if match is not None:
            return match(name, layers)
        owner = name.rpartition(".")[0]
        return any(owner == layer or (inside and name.startswith(f"{layer}.")) for layer in layers)

    values: list[tuple[str, Tensor]] = list(result.named_parameters())
    if buffers:
        values += [pair for pair in result.named_buffers() if pair[1].numel() > 1]
    with torch.no_grad():
        for name, value in values:
            if chosen(name) and only(value):
                value.copy_(shuffle(value, generator))
    return finish(result)


def _seeded_for_everybody(generator: torch.Generator) -> torch.Generator:
    torch.manual_seed(generator.initial_seed())
    return torch.default_generator


def _part_of_the_name(name: str, layers: Sequence[str]) -> bool:
    return any(layer in name for layer in layers)


def _begins_like_it(name: str, layers: Sequence[str]) -> bool:
    return name.startswith(tuple(layers))


def _weight_or_bias(name: str, layers: Sequence[str]) -> bool:
    return _belongs(name, layers) and name.endswith((".weight", ".bias"))


def _mixed(model: nn.Module, layers: Sequence[str], generator: torch.Generator) -> nn.Module:
    """A copy in which the numbers of a layer move from one of its tensors to another."""
    result = copy.deepcopy(model)
    for layer in layers:
        parameters = [*result.get_submodule(layer).parameters()]
        values = _shuffled(nn.utils.parameters_to_vector(parameters).detach(), generator)
        nn.utils.vector_to_parameters(values, parameters)
    return result


RANDOMIZED: Mistakes = {
    "in place": ({"copied": lambda model: model}, ITSELF),
    "shallow copy": ({"copied": copy.copy}, SHARED),
    "weights only": (
        {"only": lambda value: value.ndim > 1},
        "weights are not all that was learnt: a layer's biases, and the scales and shifts of "
        "BatchNorm, are parameters, too.",
    ),
    "weight and bias only": (
        {"match": _weight_or_bias},
        "a parameter may have any name, not only weight or bias: .parameters() of the layer gives "
        "all of them.",
    ),
    "only some of the layers": (
        lambda model, layers, generator: randomized(model, layers[-1:], generator),
        "`layers` is a list, and every layer in it is to be shuffled. Is the copy made once, "
        "before the loop, and returned after it?",
    ),
    "frozen ones left out": (
        {"only": lambda value: value.requires_grad},
        "a frozen parameter holds what was learnt, too: shuffle it, and leave it frozen.",
    ),
    "nothing inside a block": (
        {"inside": False},
        "a name such as layer4 means a block, whose parameters lie in the layers inside it. They "
        "all belong to it.",
    ),
    "part of a name": (
        {"match": _part_of_the_name},
        'parameters of other layers have changed, with similar names: "conv1" is also a part of '
        '"layer4.0.conv1". Take the layer itself by its name.',
    ),
    "begins like it": (
        {"match": _begins_like_it},
        'parameters of other layers have changed, whose names only begin alike: "conv10" begins '
        'with "conv1", too. Ask for the name and a dot, or take the layer itself by its name.',
    ),
    "all layers": (
        {"match": lambda name, layers: True},
        "parameters of layers that were not named have changed. Shuffle only what belongs to the "
        "named ones.",
    ),
    "buffers, too": (
        {"buffers": True},
        "BatchNorm's running mean and variance have changed. They are buffers, measured and not "
        "learnt by descent; here they stay.",
    ),
    "whole filters": (
        {"shuffle": partial(_whole, axis=0)},
        "whole filters have moved, and each of them still is what was learnt. Shuffle all numbers "
        "of the tensor among each other.",
    ),
    "whole inputs": (
        {"shuffle": partial(_whole, axis=1)},
        "all filters got the same new order of their inputs, along axis 1. Shuffle all numbers of "
        "the tensor among each other.",
    ),
    "each part within itself": (
        {"shuffle": _within},
        "numbers have moved only within a part of their tensor: each filter has its own still. "
        "Shuffle all numbers of the tensor among each other.",
    ),
    "new numbers": (
        {"shuffle": _drawn},
        "the values are not the old ones in another order. Drawing new ones is a check, too, but "
        "here each tensor keeps its values, so that the layer's outputs keep about their size.",
    ),
    "mixed between tensors": (
        _mixed,
        "numbers have moved from one tensor to another: a weight's to the bias, say. Shuffle each "
        "parameter tensor within itself.",
    ),
    "signs flipped": (
        {"shuffle": _flipped},
        "the magnitudes are the old ones, but some numbers have another sign. Change the order "
        "alone.",
    ),
    "without the generator": (
        {"own": lambda generator: torch.default_generator},
        "the shuffle ignores the generator: with equal generators two calls give different models, "
        "and nobody can repeat the result.",
    ),
    "seed for everybody": ({"own": _seeded_for_everybody}, RESEEDED),
    "always the same": (
        {"own": lambda generator: cases.seeded(0)},
        "another generator gives the same shuffle. Draw from the generator that comes in, not from "
        "one that the function makes.",
    ),
    "always in eval mode": (
        {"finish": nn.Module.eval},
        "a copy keeps the mode of the model, and of each layer in it: call neither eval() nor "
        "train().",
    ),
    "no longer frozen": (
        {"finish": lambda result: result.requires_grad_(True)},
        "a parameter that was frozen needs a gradient now. A copy keeps each requires_grad.",
    ),
    "frozen": (
        {"finish": lambda result: result.requires_grad_(False)},
        "a parameter that could be trained is frozen now. A copy keeps each requires_grad.",
    ),
}


class _Gain(nn.Module):
    """A factor for each channel: a parameter that is called neither weight nor bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W), each channel times its factor."""
        return x * self.gain[:, None, None]


def _alike_by_name() -> nn.Module:
    """Layers whose names begin alike, some in training mode, one of them frozen."""
    with cases.global_seed(7):
        layers: list[tuple[str, nn.Module]] = []
        for number, channels in (("1", 3), ("10", 8), ("2", 8)):
            block = [("conv1", nn.Conv2d(channels, 8, 1)), ("bn1", nn.BatchNorm2d(8))]
            block += [("gain", _Gain(8))]
            layers.append((f"layer{number}", nn.Sequential(OrderedDict(block))))
        model = nn.Sequential(OrderedDict([*layers, ("fc", nn.Linear(8, 8))]))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    model.train()
    model.get_submodule("layer10").eval()
    model.get_submodule("layer2").requires_grad_(False)
    return model


@exercise("hw04.randomized", randomized, RANDOMIZED, forbidden=SANITY)
def check_randomized(answer: Answer, known: Exercise) -> Iterator[str]:
    """What is shuffled, what is not, and what decides, on four networks."""
    for model, layers in (
        (cases.nested(8, 9, seed=0), ["fc", "conv1"]),
        (cases.nested(11, 8, seed=1), ["block"]),
        (_alike_by_name(), ["layer1", "layer2.bn1"]),
        (cases.shipped().model, ["fc", "layer2", "conv1"]),
    ):
        result, again, other = (
            answer(model=model, layers=layers, generator=cases.seeded(seed)) for seed in (5, 5, 6)
        )
        if not isinstance(result, nn.Module):
            raise Wrong(
                f"the result is {type(result).__name__}, wanted is a model",
                "does the function end with return, and does it return the copy?",
            )
        _check_others(model, result, layers, known)
        _check_shuffled(model, result, layers, known)
        if not _equal(result, again):
            hint = known.hint("without the generator")
            raise Wrong("equal generators give different models", hint)
        if _equal(result, other):
            raise Wrong("different generators give the same model", known.hint("always the same"))
    yield "the named layers' parameters have their values in another order, biases too"
    yield "other parameters, all buffers, modes and flags are as they were"
    yield "the generator alone decides: the same seed gives the same model, another another"
    model = cases.nested(8, 9, seed=0)
    if not _equal(model, answer(model=model, layers=[], generator=cases.seeded(0))):
        raise Wrong("with no layer named the copy differs", known.hint("all layers"))
    once = answer(model=model, layers=["fc"], generator=cases.seeded(0))
    twice = answer(model=once, layers=["block"], generator=cases.seeded(1))
    if not torch.equal(twice.fc.weight, once.fc.weight):
        raise Wrong("a copy of a copy has lost the first one's layers", known.hint("all layers"))
    yield "a copy can be copied again"


def _equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _belongs(name: str, layers: Sequence[str]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)


def _check_others(
    model: nn.Module, result: nn.Module, layers: Sequence[str], known: Exercise
) -> None:
    """Raise `Wrong` where something else than the parameters of the layers has changed."""
    old, new = dict(model.named_parameters()), dict(result.named_parameters())
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        raise Wrong("the copy has other parameters", "keep their names and shapes.")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    wrongly = {name for name in changed if not _belongs(name, layers)}
    if wrongly:
        mistake = "all layers"
        for match, name in (
            (_part_of_the_name, "part of a name"),
            (_begins_like_it, "begins like it"),
        ):
            mistake = name if all(match(other, layers) for other in wrongly) else mistake
        what = f"{min(wrongly)} has changed, but {', '.join(layers)} was named"
        raise Wrong(what, known.hint(mistake))
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, dict(result.named_buffers())[name]):
            raise Wrong(f"{name} has changed", known.hint("buffers, too"))
    if [m.training for m in model.modules()] != [m.training for m in result.modules()]:
        raise Wrong("the copy is in another mode", known.hint("always in eval mode"))
    for name in old:
        if old[name].requires_grad != new[name].requires_grad:
            mistake = "frozen" if old[name].requires_grad else "no longer frozen"
            raise Wrong(f"requires_grad of {name} has changed in the copy", known.hint(mistake))


def _check_shuffled(
    model: nn.Module, result: nn.Module, layers: Sequence[str], known: Exercise
) -> None:
    """Raise `Wrong` unless each parameter of the layers has its values in another order."""
    inside = {name: p.detach() for name, p in model.named_parameters() if _belongs(name, layers)}
    new = {name: p.detach() for name, p in result.named_parameters()}
    left = [name for name, old in inside.items() if torch.equal(old, new[name])]
    if left:
        hint = known.hint(_mistake_of_the_left(model, left, layers))
        raise Wrong(f"{left[0]} has not changed", hint)
    for name, old in inside.items():
        if not _same_numbers(old, new[name]):
            mistake = "new numbers"
            if _same_numbers(*(torch.cat([p[n].flatten() for n in inside]) for p in (inside, new))):
                mistake = "mixed between tensors"
            elif _same_numbers(old.abs(), new[name].abs()):
                mistake = "signs flipped"
            raise Wrong(f"{name} has other values", known.hint(mistake))
        if old.ndim > 1 and (parted := _in_parts(old, new[name])):
            raise Wrong(f"{name} is not shuffled as a whole", known.hint(parted))


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in whatever order."""
    return torch.equal(one.flatten().sort().values, other.flatten().sort().values)


def _mistake_of_the_left(model: nn.Module, left: Sequence[str], layers: Sequence[str]) -> str:
    """The mistake in which just these parameters of the layers are left as they were."""
    inside = {name: p for name, p in model.named_parameters() if _belongs(name, layers)}
    if {name for name, p in inside.items() if not p.requires_grad} == {*left}:
        return "frozen ones left out"
    if not any(name.endswith((".weight", ".bias")) for name in left):
        return "weight and bias only"
    if all(inside[name].ndim == 1 for name in left):
        return "weights only"
    blocks = [layer for layer in layers if [*model.get_submodule(layer).children()]]
    if all(_belongs(name, blocks) for name in left):
        return "nothing inside a block"
    return "only some of the layers"


def _in_parts(old: Tensor, new: Tensor) -> str | None:
    """The mistake in which a tensor was shuffled in parts, not as a whole; None where it was."""
    along = [[v.transpose(0, axis).flatten(1) for v in (old, new)] for axis in (0, 1)]
    for mistake, pair in zip(("whole filters", "whole inputs"), along, strict=True):
        a, b = (parts.unique(dim=0) for parts in pair)  # sorted, so their order does not matter
        if a.shape == b.shape and torch.equal(a, b):
            return mistake
    within = any(torch.equal(a.sort(1).values, b.sort(1).values) for a, b in along)
    return "each part within itself" if within else None


# 4 · The cascade -------------------------------------------------------------------------------


def _anew(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A copy whose named layers have random numbers that depend on nothing but their names.

    So it does not matter to a cascade whether it takes a layer more from the last copy, or all
    layers again from the original.
    """
    if isinstance(layers, str):
        raise Wrong(
            f"randomize was given {layers!r}", "it wants a list of names, also for a single layer."
        )
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if any(name.startswith(f"{layer}.") for layer in layers):
                noise = cases.noise(*parameter.shape, seed=zlib.crc32(name.encode()))
                parameter.copy_(noise * parameter.std())
    return result


def cascade(
    model: nn.Module,
    method: Callable[..., Tensor],
    images: Tensor,
    target: Tensor,
    layers: Sequence[str],
    randomize: Callable[[nn.Module, Sequence[str]], nn.Module],
    *,
    backwards: bool = True,
    independent: bool = False,
    first: bool = True,
    last: bool = True,
    used: bool = True,
    aim: str = "target",
    one_class: bool = False,
    summed: bool = False,
) -> Tensor:
    """The maps of the model, and with one more layer random each time: (1 + L, N, …)."""
    order = list(reversed(layers)) if backwards else list(layers)
    maps = []
    for k in range(len(order) + last):
        network = randomize(model, order[k - 1 : k] if independent else order[:k])
        network = network if used else model
        answering = {"target": None, "argmax": model, "argmax of each": network}[aim]
        with torch.no_grad():
            classes = answering(images.clone()).argmax(1) if answering else target
        if one_class:
            classes = classes[:1].expand_as(classes)
        maps.append(method(network, images, classes))
    result = torch.stack(maps if first else maps[1:])
    return result.sum(2) if summed and result.ndim == 5 else result


CASCADE: Mistakes = {
    "from the input": (
        {"backwards": False},
        "the first layers came first. The names come in the order in which the layers run; begin "
        "with the one next to the output.",
    ),
    "one at a time": (
        {"independent": True},
        "each time only one layer is random, and the others are as they were learnt. In a cascade "
        "what is random stays random.",
    ),
    "new target": (
        {"aim": "argmax of each"},
        "the map of the random network is about another class, the one that this network answers. "
        "Ask all of them for the target that was given.",
    ),
    "target ignored": (
        {"aim": "argmax"},
        "the maps are about the class that the model answers. Hand on the target that was given.",
    ),
    "the first image's class for all": (
        {"one_class": True},
        "all images are explained for the first one's class. Hand on the whole tensor `target`.",
    ),
    "not to the end": (
        {"last": False},
        "the last map is missing, with all layers random: L layers make 1 + L maps.",
    ),
    "no map of the model": (
        {"first": False},
        "the map of the model as it is belongs in front, with no layer random: all others will be "
        "compared with it.",
    ),
    "always the same model": (
        {"used": False},
        "all maps are the same: randomize gives back a copy, and leaves the model that it is given "
        "alone. Explain the copy.",
    ),
    "channels added": (
        {"summed": True},
        "the channels have been added up. Keep the maps as the method gives them; what to do with "
        "signs and channels is decided in Exercise 5.",
    ),
}


@exercise("hw04.cascade", cascade, CASCADE, forbidden=SANITY)
def check_cascade(answer: Answer, known: Exercise) -> Iterator[str]:
    """Three networks and three methods, each image explained for a class of its own."""
    asked = []
    for model, layers, method, size in (
        (cases.nested(8, 9, seed=0), ["conv1", "block", "fc"], gradients.gradient, (3, 3, 10, 13)),
        (
            cases.nested(5, 8, seed=3),
            ["conv1", "bn1", "block", "fc"],
            gradients.input_x_gradient,
            (2, 3, 9, 9),
        ),
        (cases.shipped().model, ["conv1", "layer3", "fc"], cam.grad_cam, (2, 3, 64, 64)),
    ):
        case = {"model": model, "method": method, "images": cases.noise(*size, seed=4)}
        case |= {"target": torch.arange(size[0]) + 1, "layers": layers, "randomize": _anew}
        asked.append(case)
    asked.append(asked[0] | {"layers": ["block"]})  # a single layer

    compare(
        answer,
        known,
        asked,
        what="the stack of maps",
        hint="one map of the model as it is, then one after each layer, from the output to the "
        "input, that has become random.",
    )
    yield "the maps are those of a cascade, on three networks and with three methods"


# 5 · Similarity --------------------------------------------------------------------------------


def similarities(
    maps: Tensor,
    correlation: Callable[[Tensor, Tensor], Tensor],
    signed: bool,
    *,
    sign: str = "as wanted",
    pool: str = "sum",
    before: bool = False,
    mean: bool = False,
    own: Callable[[Tensor, Tensor], Tensor] | None = None,
    finish: Callable[[Tensor], Tensor] = lambda table: table,
) -> Tensor:
    """Each step's maps compared with the first: (1 + L, N, [C,] H, W) → (1 + L, N)."""
    if sign != "late" and ((not signed and sign != "never") or sign == "always"):
        maps = maps.abs()
    if maps.ndim == 5:
        maps = maps.sum(2) if pool == "sum" else maps.amax(2)
    if sign == "late" and not signed:
        maps = maps.abs()
    wanted = maps[:1].expand_as(maps) if not before else torch.cat([maps[:1], maps[:-1]])
    compare = own or correlation
    result = finish(torch.stack([compare(a, b) for a, b in zip(wanted, maps, strict=True)]))
    return result.mean(1, keepdim=True).expand_as(result) if mean else result


SIMILARITIES: Mistakes = {
    "abs after the sum": (
        {"sign": "late"},
        "the channels have cancelled before the sign was dropped. Magnitudes first, then the sum "
        "over the channels.",
    ),
    "always abs": (
        {"sign": "always"},
        "the signs are dropped although signed is True. Then a map and its negative would be the "
        "same.",
    ),
    "never abs": (
        {"sign": "never"},
        "with signed=False only the magnitudes are to be compared, but the signs are still there.",
    ),
    "step by step": (
        {"before": True},
        "each map is compared with the one before it. Many small steps may lead far away: compare "
        "all of them with the first.",
    ),
    "largest channel": (
        {"pool": "max"},
        "the channels are to be added up, not the largest one taken.",
    ),
    "mean over the images": (
        {"mean": True},
        "keep one number for each image; how they differ is wanted later.",
    ),
    "another correlation": (
        {"own": rank_correlation},
        "the maps are always compared by rank. Use the function `correlation` that is handed in, "
        "whichever it is.",
    ),
    "NaN made 0": (
        {"finish": torch.nan_to_num},
        "a map without contrast has no similarity: what `correlation` gives for it is NaN, and 0 "
        "would be an answer. Leave it.",
    ),
    "the first row is 1": (
        {"finish": lambda table: torch.cat([torch.ones_like(table[:1]), table[1:]])},
        "the first row is not always 1: a map without contrast has no similarity to itself, "
        "either. Let `correlation` say what stands there.",
    ),
    "squeezed": (
        {"finish": torch.squeeze},
        "a batch of one image is a batch, too: its table is (1 + L, 1). squeeze() without a "
        "dimension takes away every axis of length 1.",
    ),
}


def _correlation(a: Tensor, b: Tensor, *, ranks: str) -> Tensor:
    """A correlation of two batches (N, H, W) → (N,); raises `Wrong` for anything else."""
    for maps in (a, b):
        if not isinstance(maps, Tensor) or maps.ndim != 3 or a.shape != b.shape:
            shapes = " and ".join(str(tuple(getattr(x, "shape", ()))) for x in (a, b))
            raise Wrong(
                f"correlation was given maps of shapes {shapes}",
                "it wants two batches (N, H, W): the first step's and another step's, without "
                "channels. A method without channels, such as Grad-CAM, gives one dimension less.",
            )
    return rank_correlation(a, b, ranks=ranks)


@exercise("hw04.similarities", similarities, SIMILARITIES, forbidden=SANITY)
def check_similarities(answer: Answer, known: Exercise) -> Iterator[str]:
    """Walks of maps, with and without channels, of even and odd signs, by two correlations."""
    asked = []
    for shape, seed in (
        ((4, 3, 3, 7, 9), 0),
        ((5, 4, 8, 6), 1),
        ((3, 2, 2, 6, 6), 2),
        ((3, 1, 6, 5), 3),
    ):
        # A walk: each step is like the one before, and less and less like the first.
        maps = cases.noise(*shape, seed=seed).cumsum(0)
        maps[1::2] *= -1
        maps[2, 1:2] = 0  # one map without contrast
        maps[0, 2:3] = 0  # and an image whose first map has none
        asked += [
            {"maps": maps, "correlation": partial(_correlation, ranks=ranks), "signed": signed}
            for ranks in ("average", "values")
            for signed in (True, False)
        ]

    def without_nan(function: Answer) -> Answer:  # NaN equals nothing
        return lambda **case: tensor_of(function(**case), "the table").nan_to_num(-2)

    compare(
        answer,
        known,
        asked,
        of=without_nan,
        what="the table of similarities",
        hint="drop the signs or not, add up the channels where there are any, and compare each "
        "step's maps with the first step's by `correlation`.",
    )
    yield "signed and unsigned, with and without channels, each step is compared with the first"
    yield "by the correlation that was handed in, and where that says NaN, it stays"


# 6 · The verdict -------------------------------------------------------------------------------


def layers_needed(
    similarity: Tensor,
    control: Tensor,
    margin: float,
    *,
    center: Callable[..., Any] = np.nanmedian,
    fill: bool = False,
    apart: bool = False,
    for_good: bool = True,
    compared: bool = True,
    unsigned: bool = False,
    small: Callable[[Any, float], Any] = operator.le,
    start: int = 0,
    shift: int = 0,
    never: Callable[[int], int | None] = lambda layers: None,
) -> int | None:
    """How many layers must be random before the maps are no more alike than the control?"""
    table, limit = similarity.numpy(), control.numpy()
    if fill:
        table, limit = np.nan_to_num(table), np.nan_to_num(limit)
    if apart:
        excess = center(table, axis=1) - np.median(limit)
    else:
        excess = center(table - limit if compared else table, axis=1)
    gone = small(np.abs(excess) if unsigned else excess, margin)[start:]
    if for_good:  # gone here and at all later steps
        gone = np.logical_and.accumulate(gone[::-1])[::-1]
    return int(gone.argmax()) + start + shift if gone.any() else never(len(table) - 1)


def _lower_median(values: np.ndarray, axis: int) -> np.ndarray:
    """Of an even number of values the lower one of the two in the middle, as torch.median."""
    return torch.from_numpy(values).nanmedian(axis).values.numpy()


LAYERS_NEEDED: Mistakes = {
    "first fall": (
        {"for_good": False},
        "a curve may dip and come back by accident. Count from where it stays down, at all later "
        "steps.",
    ),
    "no control": (
        {"compared": False},
        "the similarity itself is compared with the margin. Wanted is what it has in excess of the "
        "control of the same image.",
    ),
    "NaN counts": (
        {"center": np.median},
        "one image without a number makes the median of all NaN. Leave such images out.",
    ),
    "NaN taken for 0": (
        {"fill": True},
        "0 is a number like any other, and NaN is none, neither as a similarity nor as a control: "
        "leave such images out.",
    ),
    "mean": ({"center": np.nanmean}, "a single odd image pulls the mean; the median is wanted."),
    "lower median": (
        {"center": _lower_median},
        "of an even number of images torch.median and nanmedian take the lower of the two in the "
        "middle. The median is the mean of the two: nanquantile(0.5, dim=1).",
    ),
    "difference of medians": (
        {"apart": True},
        "each image has its own control: subtract image by image first, then take the median.",
    ),
    "less alike is different": (
        {"unsigned": True},
        "a similarity far below the control is not alike, either: the excess may be as negative as "
        "it likes.",
    ),
    "off by one": (
        {"shift": -1},
        "row 0 is the model as it is, with no layer random; so row k has k random layers.",
    ),
    "less than the margin": (
        {"small": operator.lt},
        "an excess that is just the margin is small, too: the rule says ≤.",
    ),
    "never 0": (
        {"start": 1},
        "k begins at 0: maps that are no more alike than the control from the first row on need no "
        "random layer.",
    ),
    "never is a number": (
        {"never": lambda layers: layers},
        "where the excess is not small in the last row either, it never happens: return None.",
    ),
}


def _tables() -> list[dict[str, Any]]:
    """Similarities (1 + L, N), controls (N,) and margins, one of them on the edge."""
    nan = float("nan")
    plain = torch.tensor([1.0, 0.9, 0.6, 0.2, 0.1])[:, None] + torch.tensor([-0.05, 0, 0.05])
    back = torch.tensor([1.0, 0.0, 0.9, 0.1, 0.0, 0.1])[:, None] + torch.tensor([-0.02, 0, 0.03])
    holes = plain.repeat(1, 2)[:, :5].clone()
    holes[2, 0] = holes[3, 3] = holes[4, 1] = holes[4, 2] = nan
    odd = torch.tensor([1.0, 0.3, 0.2, 0.1])[:, None].repeat(1, 5)
    odd[1:, 0] = 0.95
    odd[1:, 1] = 0.9
    opposite = torch.tensor([1.0, 0.8, -0.7, -0.9])[:, None] + torch.tensor([0.0, 0.02, 0.03])
    own = torch.tensor([[1.0, 1.0, 1.0], [0.9, 0.1, 0.5], [0.1, 0.0, 0.2]])
    none = torch.full((4, 3), 1.0)
    edge = torch.tensor([1.0, 0.75, 0.5, 0.25])[:, None].repeat(1, 3)  # all exact in binary
    even = torch.tensor([[1.0] * 4, [0.0, 0.1, 0.5, 0.6], [0.0, 0.1, 0.25, 0.6], [0.0] * 4])
    low, high = torch.tensor([0.1, 0.05, 0.12]), torch.tensor([0.5, 0.45, 0.4])
    wide = torch.tensor([0.1, 0.1, 0.1, 0.05, 0.02])
    late, soon = torch.tensor([1.0, 0.9, 0.6, 0.2, 0.1]), torch.tensor([1.0, 0.1, 0.1, 0.0, 0.0])
    without = torch.stack([late, *torch.full((2, 5), nan)], 1)  # two images without any number
    many = torch.stack([*[soon] * 5, *[late] * 7], 1)
    tables = [
        (plain, low, 0.2),
        (plain, high, 0.2),
        (plain, low, 0.4),
        (back, low, 0.2),
        (holes, wide, 0.2),
        (odd, wide, 0.3),
        (opposite, low, 0.2),
        (own, torch.tensor([0.1, 0.6, 0.4]), 0.15),
        (none, low, 0.2),
        (edge, torch.full((3,), 0.25), 0.25),
        (even, torch.zeros(4), 0.2),
        (plain, torch.full((3,), 0.9), 0.2),
        (without, torch.tensor([0.1, nan, nan]), 0.2),
        (torch.stack([late, soon, soon], 1), torch.tensor([0.1, nan, nan]), 0.2),
        (many, torch.zeros(12), 0.3),
        (torch.stack([late, late], 1), torch.tensor([0.1, 0.1]), 0.0),
    ]
    for seed in range(8):
        walk = 1 - torch.rand(6, 5, generator=cases.seeded(seed)).cumsum(0).roll(1, 0) * 0.4
        walk[0] = 1.0
        control = torch.rand(5, generator=cases.seeded(100 + seed)) * 0.6 - 0.2
        tables.append((walk, control, 0.1 + 0.02 * seed))
    names = ("similarity", "control", "margin")
    return [dict(zip(names, table, strict=True)) for table in tables]


@exercise("hw04.layers_needed", layers_needed, LAYERS_NEEDED, forbidden=SANITY)
def check_layers_needed(answer: Answer, known: Exercise) -> Iterator[str]:
    """Tables of similarities, some with a return, with NaN, or with no end."""
    tables = _tables()
    whole = [t for t in tables if not (t["similarity"] - t["control"]).isnan().any()]
    for some, hint in (
        (whole, "subtract, take the median over the images, and find from where on it stays small"),
        (tables, "without NaN it is right. Leave images that have no number out of the median"),
    ):
        _compare_counts(answer, known, some, hint=f"{hint}.")
    yield f"on {len(tables)} tables of similarities the number of layers is right"
    yield "where the maps stay more alike than the control it is None"


def _compare_counts(
    answer: Answer, known: Exercise, tables: Sequence[dict[str, Any]], *, hint: str
) -> None:
    """Raise `Wrong` unless the number of layers is right on all tables."""
    got = [_count(answer(**table)) for table in tables]
    wanted = [layers_needed(**table) for table in tables]
    wrong = [each for each in zip(got, wanted, tables, strict=True) if each[0] != each[1]]
    if not wrong:
        return
    with np.errstate(all="ignore"):
        hint = explain(got, known, tables, same=operator.eq, hint=hint)
    for only, mistake in ((None, "never is a number"), (0, "never 0")):
        if all(w == only for _, w, _ in wrong):
            hint = known.hint(mistake)
    g, w, table = wrong[0]
    steps, n = table["similarity"].shape
    what = f"of {n} images and {steps - 1} layers, with the margin {table['margin']:g}"
    raise Wrong(f"{what}: {g}, wanted is {w}", hint)


def _count(result: object) -> int | None:
    """A whole number in any of its forms, or None."""
    if result is None:
        return None
    try:
        number = float(result)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise Wrong(
            f"the result is {result!r}", "return a whole number of layers, or None for never."
        )
    return int(number)
