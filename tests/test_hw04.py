"""Homework 04: right answers in other manners pass; wrong ones get the hint one would want."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, signal, stats
from torch import nn
from torch.nn import functional as F

from course_utils import models
from course_utils.evaluation import sanity
from course_utils.homework import Wrong, check, hw04
from tests import keys

pytestmark = pytest.mark.slow

# right answers in other manners


def by_comparison(a: Any, b: Any) -> Any:
    """Each pixel against each other: ties count a half."""
    rho = []
    for pair in zip(a.double().flatten(1), b.double().flatten(1), strict=True):
        r, s = (((v[:, None] > v).double() + (v[:, None] == v).double() / 2).sum(1) for v in pair)
        flat = (r == r[0]).all() or (s == s[0]).all()
        rho.append(torch.tensor(torch.nan) if flat else torch.corrcoef(torch.stack([r, s]))[0, 1])
    return torch.stack(rho)


def by_unique(a: Any, b: Any) -> Any:
    """The different values, how often each occurs, and float32 throughout."""
    result = torch.full((len(a),), torch.nan)
    for i, pair in enumerate(zip(a, b, strict=True)):
        ranks = []
        for values in pair:
            _, which, count = values.flatten().unique(return_inverse=True, return_counts=True)
            ranks.append((count.cumsum(0) - (count - 1) / 2)[which])
        r, s = (rank - rank.mean() for rank in ranks)
        if r.any() and s.any():
            result[i] = F.cosine_similarity(r, s, dim=0)
    return result


def by_numpy(a: Any, b: Any) -> Any:
    """Sort, give ranks, and take the mean over each run of equal values."""

    def ranks(values: np.ndarray) -> np.ndarray:
        order = np.argsort(values)
        rank = np.empty(len(values))
        rank[order] = np.arange(1, len(values) + 1)
        for value in np.unique(values):
            rank[values == value] = rank[values == value].mean()
        return rank

    rho = []
    with np.errstate(invalid="ignore"):
        for one, other in zip(a.numpy(), b.numpy(), strict=True):
            rho.append(np.corrcoef(ranks(one.ravel()), ranks(other.ravel()))[0, 1])
    return torch.tensor(rho)


def by_slicing(images: Any) -> Any:
    """Sobel's kernels as sums of shifted pictures; the unit is another."""
    g = np.pad(images.mean(1).numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth = g[:, :-2] + 2 * g[:, 1:-1] + g[:, 2:]
    right = smooth[:, :, 2:] - smooth[:, :, :-2]
    smooth = g[:, :, :-2] + 2 * g[:, :, 1:-1] + g[:, :, 2:]
    return torch.from_numpy(np.hypot(right, smooth[:, 2:] - smooth[:, :-2]) / 8)


def by_scipy_signal(images: Any) -> Any:
    """True convolution, which turns the kernel, of the sum of the channels; symmetric border."""
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    grey = images.sum(1).double().numpy()
    slopes = [
        [signal.convolve2d(g, k, mode="same", boundary="symm") for g in grey]
        for k in (kernel, kernel.T)
    ]
    return torch.from_numpy(np.sqrt(np.square(slopes).sum(0)))


def by_separate_kernels(images: Any) -> Any:
    """A smoothing and a difference for each direction, and complex numbers for the length."""
    padded = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    smooth, slope = torch.tensor([1.0, 2, 1]), torch.tensor([-1.0, 0, 1])
    right = F.conv2d(padded, torch.outer(smooth, slope)[None, None])
    down = F.conv2d(padded, torch.outer(slope, smooth)[None, None])
    return torch.complex(right, down).abs()[:, 0]


def by_a_norm_of_one(images: Any) -> Any:
    """Each map divided by its largest value: any unit will do."""
    edges = by_separate_kernels(images)
    return edges / edges.amax((1, 2), keepdim=True).clamp(min=1e-12)


def by_state_dict(model: Any, layers: Any, generator: Any) -> Any:
    """New values for the entries that are parameters, loaded into a copy."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if any(f"{name}.".startswith(f"{layer}.") for layer in layers):
            order = torch.rand(parameter.numel(), generator=generator).argsort()
            state[name] = parameter.detach().reshape(-1)[order].reshape(parameter.shape)
    result = copy.deepcopy(model)
    result.load_state_dict(state)
    return result


def by_new_parameters(model: Any, layers: Any, generator: Any) -> Any:
    """New Parameter objects in the modules of the copy."""
    result = copy.deepcopy(model)
    for layer in layers:
        for module in result.get_submodule(layer).modules():
            for name, old in list(module.named_parameters(recurse=False)):
                order = torch.randperm(old.numel(), generator=generator)
                new = nn.Parameter(old.detach().flatten()[order].view(old.shape))
                setattr(module, name, new.requires_grad_(old.requires_grad))
    return result


def by_numpy_generator(model: Any, layers: Any, generator: Any) -> Any:
    """NumPy's permutation, seeded by a number that the generator draws."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    random, result = np.random.default_rng(seed), copy.deepcopy(model)
    for layer in layers:
        for parameter in dict(result.named_modules())[layer].parameters():
            values = random.permutation(parameter.detach().numpy().ravel())
            parameter.data = torch.from_numpy(values.reshape(parameter.shape).copy())
    return result


def by_longer_lists(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    """From the original each time, with one name more."""
    lists = [layers[len(layers) - k :] for k in range(len(layers) + 1)]
    return torch.stack([method(randomize(model, names), images, target) for names in lists])


def by_filling(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    """A tensor that is filled from behind, one image at a time."""
    result = None
    for i in range(len(images)):
        network = model
        for k, names in enumerate([[], *([name] for name in layers[::-1])]):
            network = randomize(network, names) if names else network
            map_ = method(network, images[i : i + 1], target[i : i + 1])[0]
            if result is None:
                result = torch.empty(len(layers) + 1, len(images), *map_.shape)
            result[k, i] = map_
    return result


def by_one_big_batch(maps: Any, correlation: Any, signed: bool) -> Any:
    """All steps at once: the first maps, repeated, against all."""
    maps = maps.clone() if signed else maps.abs()
    maps = torch.einsum("sn...hw->snhw", maps)
    first = maps[:1].expand_as(maps)
    return correlation(first.flatten(0, 1), maps.flatten(0, 1)).view(maps.shape[:2])


def by_one_image(maps: Any, correlation: Any, signed: bool) -> Any:
    """A loop over steps and images, with a norm over the channels for the magnitudes."""
    table = torch.empty(maps.shape[:2])
    for k, step in enumerate(maps):
        for i in range(len(step)):
            pair = [maps[0, i : i + 1], step[i : i + 1]]
            if pair[0].ndim == 4:
                pair = [m.sum(1) if signed else m.norm(p=1, dim=1) for m in pair]
            elif not signed:
                pair = [m.abs() for m in pair]
            table[k, i] = correlation(*pair)
    return table


def by_numpy_median(similarity: Any, control: Any, margin: float) -> Any:
    """After the last step with an excess."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        excess = np.nanmedian((similarity - control).numpy(), axis=1)
    above = np.flatnonzero(excess > margin)
    first = above[-1] + 1 if len(above) else 0
    return None if first == len(excess) else np.int64(first)


def by_all_of_the_rest(similarity: Any, control: Any, margin: float) -> Any:
    """`all` in a comprehension; the result is a tensor."""
    small = (similarity - control[None]).nanquantile(0.5, dim=1) <= margin
    return next((torch.tensor(k) for k in range(len(small)) if small[k:].all()), None)


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("rank_correlation", by_comparison),
    ("rank_correlation", by_unique),
    ("rank_correlation", by_numpy),
    ("edges", by_slicing),
    ("edges", by_scipy_signal),
    ("edges", by_separate_kernels),
    ("edges", by_a_norm_of_one),
    ("randomized", by_state_dict),
    ("randomized", by_new_parameters),
    ("randomized", by_numpy_generator),
    ("cascade", by_longer_lists),
    ("cascade", by_filling),
    ("similarities", by_one_big_batch),
    ("similarities", by_one_image),
    ("layers_needed", by_numpy_median),
    ("layers_needed", by_all_of_the_rest),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[answer.__name__ for _, answer in RIGHT])
def test_another_manner_is_right_too(name: str, answer: Callable[..., Any], seed: int) -> None:
    check(f"hw04.{name}", answer, seed=seed)


# wrong answers, written afresh


def hint_of(name: str, answer: Callable[..., Any]) -> str:
    return keys.refused(f"hw04.{name}", answer).hint


def from_scipy(a: Any, b: Any) -> Any:
    pairs = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    return torch.tensor([stats.spearmanr(x, y).statistic for x, y in pairs])


def pearson(a: Any, b: Any) -> Any:
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def argsort_once(a: Any, b: Any) -> Any:
    return pearson(*(maps.flatten(1).argsort(dim=1, stable=True).double() for maps in (a, b)))


def argsort_twice(a: Any, b: Any) -> Any:
    twice = (m.flatten(1).argsort(dim=1, stable=True).argsort(1).double() for m in (a, b))
    return pearson(*twice)


def one_number(a: Any, b: Any) -> Any:
    return by_comparison(a.flatten()[None, None], b.flatten()[None, None])[0]


def never_nan(a: Any, b: Any) -> Any:
    return by_comparison(a, b).nan_to_num(0.0)


def all_nan(a: Any, b: Any) -> Any:
    rho = by_comparison(a, b)
    return rho * torch.nan if rho.isnan().any() else rho


def absolute(a: Any, b: Any) -> Any:
    return by_comparison(a.abs(), b.abs())


def without_an_axis(a: Any, b: Any) -> Any:
    return by_comparison(a, b).squeeze()


def from_ndimage(images: Any) -> Any:
    maps = [np.hypot(ndimage.sobel(g, 0), ndimage.sobel(g, 1)) for g in images.mean(1).numpy()]
    return torch.tensor(np.stack(maps))


def padded_by_zeros(images: Any) -> Any:
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    grey = images.mean(1, keepdim=True)
    slopes = [F.conv2d(grey, k[None, None], padding=1) for k in (kernel, kernel.T)]
    return (slopes[0] ** 2 + slopes[1] ** 2).sqrt()[:, 0]


def differences(images: Any) -> Any:
    return by_slicing(images)[:, 1:-1, 1:-1]


def greyed_by_eye(images: Any) -> Any:
    if images.shape[1] == 3:
        images = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return by_slicing(images)


def divided_by_its_edge(images: Any) -> Any:
    edges = by_slicing(images)
    return edges / edges.amax((1, 2), keepdim=True)


def with_a_channel(images: Any) -> Any:
    return by_slicing(images)[:, None]


def itself(model: Any, layers: Any, generator: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(tuple(f"{layer}." for layer in layers)):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def shallow(model: Any, layers: Any, generator: Any) -> Any:
    return itself(copy.copy(model), layers, generator)


def zeros(model: Any, layers: Any, generator: Any) -> Any:
    result = by_state_dict(model, layers, generator)
    for layer in layers:
        for parameter in result.get_submodule(layer).parameters():
            parameter.data.zero_()
    return result


def reset(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        for layer in layers:
            for module in result.get_submodule(layer).modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.reset_parameters()
                elif isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
    return result


def convolutions_only(model: Any, layers: Any, generator: Any) -> Any:
    result = by_state_dict(model, layers, generator)
    for module, old in zip(result.modules(), model.modules(), strict=True):
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(old.state_dict())
    return result


def weight_and_bias(model: Any, layers: Any, generator: Any) -> Any:
    """Knows layers, and no blocks."""
    result = copy.deepcopy(model)
    for layer in layers:
        module = result.get_submodule(layer)
        for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
            if parameter is not None:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.data = parameter.data.flatten()[order].view(parameter.shape)
    return result


def similar_names(model: Any, layers: Any, generator: Any) -> Any:
    names = [name for name, _ in model.named_modules() if any(x in name for x in layers)]
    return by_state_dict(model, names, generator)


def ends_with(model: Any, layers: Any, generator: Any) -> Any:
    names = [name for name, _ in model.named_modules() if any(name.endswith(x) for x in layers)]
    return by_state_dict(model, [*layers, *names], generator)


def whole_state(model: Any, layers: Any, generator: Any) -> Any:
    state = {}
    for name, value in model.state_dict().items():
        mine = name.startswith(tuple(f"{layer}." for layer in layers))
        order = torch.randperm(value.numel(), generator=generator)
        state[name] = value.flatten()[order].view_as(value) if mine else value.clone()
    result = copy.deepcopy(model)
    result.load_state_dict(state)
    return result


def filters_swapped(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    for layer in layers:
        for p in result.get_submodule(layer).parameters():
            p.data = p.data[torch.randperm(len(p), generator=generator)]
    return result


def inputs_swapped(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    for layer in layers:
        for p in result.get_submodule(layer).parameters():
            axis = min(p.ndim - 1, 1)
            order = torch.randperm(p.shape[axis], generator=generator)
            p.data = p.data.index_select(axis, order)
    return result


def in_each_filter(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    for layer in layers:
        for p in result.get_submodule(layer).parameters():
            rows = p.data.view(len(p), -1) if p.ndim > 1 else p.data[None]
            order = torch.rand(rows.shape, generator=generator).argsort(1)
            p.data = rows.gather(1, order).view_as(p)
    return result


def by_beginning(model: Any, layers: Any, generator: Any) -> Any:
    names = [name for name, _ in model.named_parameters() if name.startswith(tuple(layers))]
    return by_state_dict(model, names, generator)


def evaluated(model: Any, layers: Any, generator: Any) -> Any:
    return by_state_dict(model, layers, generator).eval()


def thawed(model: Any, layers: Any, generator: Any) -> Any:
    result = by_state_dict(model, layers, generator)
    for layer in layers:
        for module in result.get_submodule(layer).modules():
            for name, old in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(old.detach().clone()))
    return result


def global_draw(model: Any, layers: Any, generator: Any) -> Any:
    return by_state_dict(model, layers, None)


def global_numpy(model: Any, layers: Any, generator: Any) -> Any:
    seed = int(np.random.randint(2**31))  # noqa: NPY002
    return by_state_dict(model, layers, torch.Generator().manual_seed(seed))


def seeded_globally(model: Any, layers: Any, generator: Any) -> Any:
    torch.manual_seed(generator.initial_seed())
    return by_state_dict(model, layers, None)


def own_seed(model: Any, layers: Any, generator: Any) -> Any:
    return by_state_dict(model, layers, torch.Generator().manual_seed(42))


def in_training(model: Any, layers: Any, generator: Any) -> Any:
    return by_state_dict(model, layers, generator).train()


def from_the_front(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    return by_longer_lists(model, method, images, target, layers[::-1], randomize)


def each_alone(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    maps = [method(model, images, target)]
    for layer in layers[::-1]:
        maps.append(method(randomize(model, [layer]), images, target))
    return torch.stack(maps)


def no_target(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    def without(network: Any, images: Any, target: Any) -> Any:
        return method(network, images)

    return by_longer_lists(model, without, images, target, layers, randomize)


def result_dropped(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    maps = [method(model, images, target)]
    for layer in layers[::-1]:
        randomize(model, [layer])
        maps.append(method(model, images, target))
    return torch.stack(maps)


def without_the_first(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    return by_longer_lists(model, method, images, target, layers, randomize)[1:]


def names_alone(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    return torch.stack([method(randomize(model, name), images, target) for name in layers])


def first_target(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    target = torch.full_like(target, int(target[0]))
    return by_longer_lists(model, method, images, target, layers, randomize)


def all_but_the_first_layer(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    return by_longer_lists(model, method, images, target, layers[1:], randomize)


def spoils_the_list(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    layers.reverse()
    return by_longer_lists(model, method, images, target, layers[::-1], randomize)


def spoils_the_model(
    model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
) -> Any:
    maps = by_longer_lists(model, method, images, target, layers, randomize)
    model.load_state_dict(randomize(model, layers).state_dict())
    return maps


def abs_last(maps: Any, correlation: Any, signed: bool) -> Any:
    maps = maps.sum(2) if maps.ndim == 5 else maps
    maps = maps if signed else maps.abs()
    return by_one_image(maps, correlation, True)


def ignores_signed(maps: Any, correlation: Any, signed: bool) -> Any:
    return by_one_image(maps, correlation, False)


def keeps_signs(maps: Any, correlation: Any, signed: bool) -> Any:
    return by_one_image(maps, correlation, True)


def neighbours(maps: Any, correlation: Any, signed: bool) -> Any:
    maps = maps if signed else maps.abs()
    maps = maps.sum(2) if maps.ndim == 5 else maps
    ones = correlation(maps[0], maps[0])
    return torch.stack([ones, *map(correlation, maps[:-1], maps[1:])])


def always_sums(maps: Any, correlation: Any, signed: bool) -> Any:
    maps = (maps if signed else maps.abs()).sum(2)
    return torch.stack([correlation(maps[0], step) for step in maps])


def whole_batch(maps: Any, correlation: Any, signed: bool) -> Any:
    maps = maps if signed else maps.abs()
    maps = (maps.sum(2) if maps.ndim == 5 else maps).flatten(1, 2)[:, None]
    return torch.stack([correlation(maps[0], step) for step in maps])


def in_place_abs(maps: Any, correlation: Any, signed: bool) -> Any:
    maps = maps if signed else maps.abs_()
    return by_one_big_batch(maps, correlation, True)


def ignores_correlation(maps: Any, correlation: Any, signed: bool) -> Any:
    return by_one_image(maps, by_comparison, signed)


def no_nan(maps: Any, correlation: Any, signed: bool) -> Any:
    return by_one_image(maps, correlation, signed).nan_to_num(0.0)


def needed(
    similarity: Any,
    control: Any,
    margin: float,
    first: int = 0,
    strict: bool = False,
    lower: bool = False,
) -> Any:
    excess = similarity - control
    excess = excess.nanmedian(1).values if lower else excess.nanquantile(0.5, dim=1)
    found = None
    for k in reversed(range(first, len(excess))):
        if (excess[k] >= margin) if strict else (excess[k] > margin):
            break
        found = k
    return found


def first_time(similarity: Any, control: Any, margin: float) -> Any:
    small = (similarity - control).nanquantile(0.5, dim=1) <= margin
    return next((k for k in range(len(small)) if small[k]), None)


def with_nan(similarity: Any, control: Any, margin: float) -> Any:
    excess = (similarity - control).quantile(0.5, dim=1)
    return by_numpy_median(excess[:, None].nan_to_num(torch.inf), torch.zeros(1), margin)


def by_mean(similarity: Any, control: Any, margin: float) -> Any:
    return by_numpy_median((similarity - control).nanmean(1, True), torch.zeros(1), margin)


def subtracted_late(similarity: Any, control: Any, margin: float) -> Any:
    middle = similarity.nanquantile(0.5, dim=1, keepdim=True)
    return by_numpy_median(middle, control.median()[None], margin)


def as_words(similarity: Any, control: Any, margin: float) -> Any:
    return "passes"


def left_out(a: Any, b: Any) -> Any:
    rho = by_comparison(a, b)
    return rho[~rho.isnan()]


def one_for_the_flat(a: Any, b: Any) -> Any:
    """A map without contrast is like another one."""
    both = (a.flatten(1).std(1) == 0) & (b.flatten(1).std(1) == 0)
    return torch.where(both, 1.0, by_comparison(a, b))


def in_random_order(a: Any, b: Any) -> Any:
    """Ranks that break ties by chance."""
    random = np.random.default_rng(0)

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.lexsort((random.random(len(values)), values)).argsort()

    rows = [maps.flatten(1).numpy() for maps in (a, b)]
    return torch.tensor([np.corrcoef(ranks(x), ranks(y))[0, 1] for x, y in zip(*rows, strict=True)])


def last_layer_only(model: Any, layers: Any, generator: Any) -> Any:
    for layer in layers:
        result = by_state_dict(model, [layer], generator)
    return result if layers else copy.deepcopy(model)


def trained_ones_only(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    for layer in layers:
        for parameter in result.get_submodule(layer).parameters():
            if parameter.requires_grad:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return result


def two_names_only(model: Any, layers: Any, generator: Any) -> Any:
    """Only parameters that are called weight or bias."""
    result, shuffled = copy.deepcopy(model), by_state_dict(model, layers, generator)
    for name, parameter in shuffled.named_parameters():
        if name.endswith((".weight", ".bias")):
            result.get_parameter(name).data = parameter.data
    return result


def through_one_vector(model: Any, layers: Any, generator: Any) -> Any:
    result = copy.deepcopy(model)
    for layer in layers:
        parameters = list(result.get_submodule(layer).parameters())
        values = torch.cat([parameter.data.flatten() for parameter in parameters])
        values = values[torch.randperm(len(values), generator=generator)]
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, values.split(sizes), strict=True):
            parameter.data = part.view_as(parameter).clone()
    return result


def with_other_signs(model: Any, layers: Any, generator: Any) -> Any:
    result = by_state_dict(model, layers, generator)
    for layer in layers:
        for parameter in result.get_submodule(layer).parameters():
            parameter.data = -parameter.data
    return result


def frozen(model: Any, layers: Any, generator: Any) -> Any:
    return by_state_dict(model, layers, generator).requires_grad_(False)


def nothing_for_one_layer(**case: Any) -> Any:
    """The layer next to the input is shuffled only where there are others."""
    case["layers"] = case["layers"] if len(case["layers"]) > 1 else []
    maps = by_longer_lists(**case)
    return maps if case["layers"] else torch.cat([maps, maps])


def begins_with_one(maps: Any, correlation: Any, signed: bool) -> Any:
    table = by_one_image(maps, correlation, signed)
    return torch.cat([torch.ones_like(table[:1]), table[1:]])


def zeros_for_nan(similarity: Any, control: Any, margin: float) -> Any:
    return needed(similarity.nan_to_num(0), control.nan_to_num(0), margin)


def zero_controls(similarity: Any, control: Any, margin: float) -> Any:
    return needed(similarity, control.nan_to_num(0), margin)


def of_eight(similarity: Any, control: Any, margin: float) -> Any:
    return needed(similarity[:, :8], control[:8], margin)


def default_margin(similarity: Any, control: Any, margin: float) -> Any:
    return needed(similarity, control, margin or 0.2)


def changed(answer: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda **case: change(answer(**case))


def hint(name: str, mistake: str) -> str:
    return keys.hint(f"hw04.{name}", mistake)


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("rank_correlation", pearson, "Pearson"),
    ("rank_correlation", argsort_once, "argsort once"),
    ("rank_correlation", argsort_twice, "ties in some order"),
    ("rank_correlation", one_number, "whole batch"),
    ("rank_correlation", never_nan, "constant"),
    ("rank_correlation", all_nan, "NaN for the whole batch"),
    ("rank_correlation", without_an_axis, "squeezed"),
    ("rank_correlation", absolute, "unsigned"),
    ("edges", padded_by_zeros, "zeros around"),
    ("edges", differences, "smaller map"),
    ("edges", greyed_by_eye, "weighted grey"),
    ("edges", with_a_channel, "a channel left over"),
    ("randomized", itself, "in place"),
    ("randomized", shallow, "shallow copy"),
    ("randomized", zeros, "new numbers"),
    ("randomized", reset, "new numbers"),
    ("randomized", convolutions_only, "weights only"),
    ("randomized", weight_and_bias, "nothing inside a block"),
    ("randomized", similar_names, "part of a name"),
    ("randomized", ends_with, "part of a name"),
    ("randomized", whole_state, "buffers, too"),
    ("randomized", filters_swapped, "whole filters"),
    ("randomized", inputs_swapped, "whole inputs"),
    ("randomized", in_each_filter, "each part within itself"),
    ("randomized", by_beginning, "begins like it"),
    ("randomized", evaluated, "always in eval mode"),
    ("randomized", thawed, "no longer frozen"),
    ("randomized", global_draw, "without the generator"),
    ("randomized", global_numpy, "seed for everybody"),
    ("randomized", seeded_globally, "seed for everybody"),
    ("randomized", own_seed, "always the same"),
    ("cascade", from_the_front, "from the input"),
    ("cascade", each_alone, "one at a time"),
    ("cascade", no_target, "new target"),
    ("cascade", result_dropped, "always the same model"),
    ("cascade", without_the_first, "no map of the model"),
    ("cascade", first_target, "the first image's class for all"),
    ("cascade", all_but_the_first_layer, "not to the end"),
    ("similarities", abs_last, "abs after the sum"),
    ("similarities", ignores_signed, "always abs"),
    ("similarities", keeps_signs, "never abs"),
    ("similarities", neighbours, "step by step"),
    ("similarities", ignores_correlation, "another correlation"),
    ("similarities", no_nan, "NaN made 0"),
    ("rank_correlation", one_for_the_flat, "constant"),
    ("randomized", last_layer_only, "only some of the layers"),
    ("randomized", trained_ones_only, "frozen ones left out"),
    ("randomized", two_names_only, "weight and bias only"),
    ("randomized", through_one_vector, "mixed between tensors"),
    ("randomized", with_other_signs, "signs flipped"),
    ("randomized", frozen, "frozen"),
    ("similarities", begins_with_one, "the first row is 1"),
    ("similarities", changed(by_one_image, torch.squeeze), "squeezed"),
    ("layers_needed", zeros_for_nan, "NaN taken for 0"),
    ("layers_needed", changed(needed, lambda k: -1 if k is None else k), "never is a number"),
    ("layers_needed", changed(needed, lambda k: k or None), "never 0"),
    ("layers_needed", first_time, "first fall"),
    ("layers_needed", with_nan, "NaN counts"),
    ("layers_needed", by_mean, "mean"),
    ("layers_needed", subtracted_late, "difference of medians"),
    ("layers_needed", partial(needed, first=1), "never 0"),
    ("layers_needed", partial(needed, strict=True), "less than the margin"),
    ("layers_needed", partial(needed, lower=True), "lower median"),
]


@pytest.mark.parametrize(
    ("name", "answer", "mistake"), WRONG, ids=[f"{name}: {mistake}" for name, _, mistake in WRONG]
)
def test_a_wrong_answer_gets_its_hint(name: str, answer: Callable[..., Any], mistake: str) -> None:
    assert hint_of(name, answer) == hint(name, mistake)


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("rank_correlation", from_scipy, "write this function yourself"),
        ("rank_correlation", left_out, "keeps its place"),
        ("rank_correlation", in_random_order, "on maps without ties it is right"),
        (
            "rank_correlation",
            lambda a, b: by_comparison(a.round(decimals=3), b.round(decimals=3)),
            "do not round",
        ),
        ("cascade", nothing_for_one_layer, "one map of the model"),
        ("layers_needed", zero_controls, "without NaN it is right"),
        ("layers_needed", of_eight, "find from where on"),
        ("layers_needed", default_margin, "find from where on"),
        ("edges", from_ndimage, "write this function yourself"),
        ("edges", divided_by_its_edge, "do not divide by it"),
        ("randomized", in_training, "keeps the mode"),
        ("cascade", names_alone, "list of names"),
        ("cascade", spoils_the_list, "works in place"),
        ("cascade", spoils_the_model, "change a copy"),
        ("similarities", always_sums, "without channels"),
        ("similarities", whole_batch, "go through|drop the signs"),
        ("similarities", in_place_abs, "works in place"),
        ("layers_needed", as_words, "whole number"),
    ],
)
def test_other_wrong_answers(name: str, answer: Callable[..., Any], words: str) -> None:
    assert any(part in hint_of(name, answer) for part in words.split("|"))


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("rank_correlation", changed(by_comparison, lambda rho: rho**3), "the three steps"),
        ("edges", changed(by_slicing, lambda maps: maps**3), "the steps are"),
        ("cascade", changed(by_longer_lists, lambda maps: 2 * maps), "one map of the model"),
        ("similarities", changed(by_one_image, lambda table: table**3), "drop the signs or not"),
        ("layers_needed", changed(needed, lambda k: k and k + 2), "find from where on"),
    ],
)
def test_an_error_of_no_known_kind_gets_the_general_hint(
    name: str, answer: Callable[..., Any], words: str
) -> None:
    assert words in hint_of(name, answer)


# constants, remembered answers, and the library's own functions


def constant(*args: Any, value: Any, **options: Any) -> Any:
    return value


@pytest.mark.parametrize("name", ["rank_correlation", "edges", "cascade", "similarities"])
@pytest.mark.parametrize("value", [torch.ones(()), torch.ones(5), torch.zeros(3, 9, 13), None])
def test_a_constant_is_no_answer(name: str, value: Any) -> None:
    with pytest.raises(Wrong):
        check(f"hw04.{name}", partial(constant, value=value))


@pytest.mark.parametrize("value", [0, 1, 3, None])
def test_a_constant_verdict_is_no_answer(value: int | None) -> None:
    with pytest.raises(Wrong, match="wanted is"):
        check("hw04.layers_needed", partial(constant, value=value))


def test_a_constant_model_is_no_answer() -> None:
    for model in (None, models.load("scenes").model):
        with pytest.raises(Wrong):
            check("hw04.randomized", partial(constant, value=model))


def test_the_library_is_no_answer() -> None:
    def borrowed(
        model: Any, method: Any, images: Any, target: Any, layers: Any, randomize: Any
    ) -> Any:
        sanity.parameter_randomization(model, images, method, target=target)
        return by_longer_lists(model, method, images, target, layers, randomize)

    assert "yourself" in hint_of("cascade", borrowed)


def test_an_answer_for_one_network_is_no_answer() -> None:
    """Right on a small network only: the names of its layers are remembered."""

    def remembered(model: Any, layers: Any, generator: Any) -> Any:
        return by_state_dict(model, ["fc", "block"], generator)

    assert hint_of("randomized", remembered) == hint("randomized", "all layers")


# the references are right


@pytest.mark.parametrize("levels", [None, 2.0])
def test_rank_correlation_is_scipys_and_the_librarys(levels: float | None) -> None:
    a, b = hw04._pair(4, 11, 7, seed=40, levels=levels)
    got = hw04.rank_correlation(a, b)
    assert torch.allclose(got, from_scipy(a, b).double(), atol=1e-6)
    library = [
        sanity.SIMILARITIES["spearman"](x[None].numpy(), y[None].numpy())
        for x, y in zip(a, b, strict=True)
    ]
    assert got.tolist() == pytest.approx(library, abs=1e-6)


def test_edges_are_scipys() -> None:
    images = torch.randn(3, 3, 10, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hw04.edges(images), from_ndimage(images).double(), atol=1e-5)


def test_checks_leave_the_global_random_state() -> None:
    before = torch.get_rng_state()
    with pytest.raises(Wrong):
        check("hw04.randomized", seeded_globally)
    check("hw04.randomized", by_state_dict)
    assert torch.equal(before, torch.get_rng_state())
