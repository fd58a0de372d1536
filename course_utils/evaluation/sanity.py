"""Sanity checks: a map must depend on what the model has learnt, and not on invisible noise."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from course_utils.contract import (
    Model,
    Target,
    check,
    check_attribution,
    check_choice,
    check_count,
    check_generator,
    check_number,
    drawn_again,
    explaining,
    known_options,
    predict_target,
    to_type_of,
    unwrapped,
)
from course_utils.layers import Watch, tensors_in
from course_utils.methods import lime
from course_utils.progress import counted, in_batches

Member = nn.Module | nn.Parameter  # what is drawn anew at once

COMPUTES = (WeightNorm, SpectralNorm, BasePruningMethod)  # a weight, before the forward pass
POWER_ITERATIONS = 15  # as torch takes when it makes a spectral norm
STD = 0.02  # of parameters that were 0 everywhere; vision transformers begin with it


def parameter_randomization(
    model: nn.Module,
    images: Tensor,
    method: Callable[..., Tensor],
    target: Target = None,
    *,
    cascading: bool = True,
    similarity: str = "spearman",
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """How similar the map stays while layer after layer forgets what it has learnt.

    From the output to the input each layer gets random parameters by its own `reset_parameters`:
    with `cascading` it keeps them, else it gets its own back before the next. A map that stays the
    same does not depend on what the model has learnt.

    A layer is a module with weights, such as a convolution; those with nothing but scales and
    shifts (BatchNorm, PReLU) are reset, to 1 and 0, with the layer they run after. BatchNorm's
    running statistics stay. A weight that is computed from others (weight_norm, spectral_norm,
    pruning, parametrizations) is drawn as without that, and computed from what was drawn.
    Parameters that no layer draws, such as a position embedding, are layers of their own, drawn
    normally with mean 0 and the root mean square that they had. Layers are ordered as the forward
    pass reads them, of several times the last; those that it does not read are left out. Costs one
    run of the method for each layer and one for the model as it is.

    images: (N, C, H, W), in model space. method: any attribution method.
    target: a class, a LongTensor (N,), or None for the argmax of the model as it is.
    similarity: one of SIMILARITIES; 1 means identical. "spearman" ranks the map's sums over the
    channels, "spearman of abs" the sums of absolute values; "ssim" and "hog" (correlation of the
    histograms of oriented gradients) compare the latter as pictures scaled from 0 to 1, of 7 × 7
    pixels at least.
    generator: seeds the layers; None for one of seed 0.
    Returns layer → (N,), in the order randomised, output first; NaN for a map without contrast.
    The model keeps its Parameter objects and gets their values back, also after an error.

    Raises ValueError or TypeError naming the argument, ValueError also for a layer that stays as it
    is when it is drawn anew.
    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, Sanity Checks for Saliency Maps, 2018.
    """
    check(model, images, target)
    check_method(method)
    _check_similarity(similarity, images)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)
    members = _members(model)
    with explaining(model), _restored(model):
        classes = predict_target(model, images, target, batch_size)
        layers = _layers(model, members, images[:1])
        seeds = torch.randint(2**62, (len(layers),), generator=generator).tolist()
        original = maps_of(method, model, images, classes, batch_size)
        seen, result = _views(original, similarity), {}
        for (name, layer), seed in counted([*zip(layers.items(), seeds, strict=True)], "layer"):
            with nullcontext() if cascading else _restored(model):
                torch.manual_seed(seed)  # `explaining` gives the global generator's state back
                _randomize(name, layer)
                maps = maps_of(method, model, images, classes, batch_size)
            result[name] = to_type_of(_compared(seen, maps, similarity), images)
    return result


def max_sensitivity(
    model: Model,
    images: Tensor,
    method: Callable[..., Tensor],
    target: Target = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far the map moves under noise too small to see, at worst and relative to its size:

        max over ε of  ‖M(x + ε) − M(x)‖ / ‖M(x)‖,  ε uniform from −radius to radius

    The largest of `samples` draws, so a lower bound of the maximum over all ε. Costs samples + 1
    runs of the method. Small is stable, not right: a map that ignores the image scores 0.

    images: (N, C, H, W), in model space. method: any attribution method.
    target: a class, a LongTensor (N,), or None for the argmax of the image without noise.
    radius: in units of model space.
    generator: draws ε, the same for all images; None for one of seed 0.
    Returns (N,); NaN where M(x) is zero everywhere.

    Raises ValueError or TypeError naming the argument.
    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, On the (In)fidelity and Sensitivity of
    Explanations, 2019.

    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> constant = lambda model, x, target: torch.ones_like(x)
    >>> sanity.max_sensitivity(lambda x: x.flatten(1), x, method=constant)
    tensor([0.])
    """
    check(model, images, target, black_box=True)
    check_method(method)
    check_number("radius", radius)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    seeds = torch.randint(2**62, (samples,), generator=check_generator(generator)).tolist()
    n = len(images)
    with explaining(model):
        images = images.detach()
        worst = torch.zeros(n, dtype=torch.float64)
        classes = predict_target(model, images, target, batch_size)
        original = maps_of(method, model, images, classes, batch_size)
        for number in in_batches(samples * n, batch_size):
            image, sample = number % n, number // n
            uniform = drawn_again(torch.rand, [seeds[k] for k in sample], images)
            noise = radius * (2 * uniform - 1)
            maps = maps_of(method, model, images[image] + noise, classes[image], batch_size)
            change = (maps - original[image]).flatten(1).norm(dim=1)
            worst.scatter_reduce_(0, image, change, "amax")
    size = original.flatten(1).norm(dim=1)
    return to_type_of((worst / size).where(size > 0, torch.nan), images)


def label_randomization(
    model: Model,
    images: Tensor,
    method: Callable[..., Tensor],
    target: Target = None,
    *,
    shuffled: Model,
    similarity: str = "spearman",
    batch_size: int = 16,
) -> Tensor:
    """How similar the map is to that of a model which was trained on permuted labels.

    That model is trained on the same images until it gives all permuted labels right. It fits the
    images as well and has learnt nothing of the classes; a map that stays the same was not about
    them. Two models of true labels and different seeds tell what to compare with: their maps
    differ, too.

    model: trained on the true labels. images: (N, C, H, W), in model space, of those that both
    models were trained on. method: any attribution method.
    target: a class, a LongTensor (N,), or None for the argmax of the model of the true labels.
    shuffled: the same network trained on permuted labels.
    similarity: one of SIMILARITIES, see `parameter_randomization`; 1 means identical.
    Returns (N,); NaN for a map without contrast.

    Raises ValueError or TypeError naming the argument.
    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, Sanity Checks for Saliency Maps, 2018.
    """
    check(model, images, target, black_box=True)
    if not callable(shuffled):
        raise TypeError(
            "shuffled must be a model that was trained on permuted labels, not "
            f"{type(shuffled).__name__}"
        )
    check_method(method)
    _check_similarity(similarity, images)
    check_count("batch_size", batch_size)
    with explaining(model), explaining(shuffled):
        classes = predict_target(model, images, target, batch_size)
        learnt = maps_of(method, model, images, classes, batch_size)
        memorised = maps_of(method, shuffled, images, classes, batch_size)
    return to_type_of(_compared(_views(learnt, similarity), memorised, similarity), images)


def agreement(
    model: Model,
    images: Tensor,
    method: Callable[..., Tensor],
    target: Target = None,
    *,
    runs: int = 5,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """How similar the maps of a method that draws are: Spearman's ρ, the mean over pairs of runs.

    Each run gets a generator of its own, and the global one a seed, for methods that draw from
    that. Costs `runs` runs of the method. One that draws nothing gets 1, which says nothing of how
    good it is; `lime.rank_agreement` compares maps that are there already.

    images: (N, C, H, W), in model space. method: any attribution method; its map is summed over
    the channels.
    target: a class, a LongTensor (N,), or None for each image's argmax. runs: at least 2.
    generator: seeds the runs; None for one of seed 0. options: the method's own, as `samples=200`.
    Returns (N,), from −1 to 1; NaN where a run's map is constant.

    Raises ValueError or TypeError naming the argument.

    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> sanity.agreement(lambda x: x.flatten(1), x, lambda model, x, target: 2 * x)
    tensor([1.])
    """
    check(model, images, target, black_box=True)
    check_method(method)
    check_count("runs", runs, lowest=2)
    check_count("batch_size", batch_size)
    method, options = unwrapped(method, options)
    batched = known_options(method, batch_size=batch_size)
    seeds = torch.randint(2**62, (runs,), generator=check_generator(generator)).tolist()

    def seeded(model: Model, images: Tensor, classes: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        fresh = known_options(method, generator=torch.Generator().manual_seed(seed))
        return method(model, images, classes, **batched | options | fresh)

    maps = []
    with torch.random.fork_rng(devices=[]), explaining(model):
        classes = predict_target(model, images, target, batch_size)
        for seed in counted(seeds, "run"):
            run = partial(seeded, seed=seed)
            maps.append(maps_of(run, model, images, classes, batch_size).sum(1))
    values = [lime.rank_agreement(torch.stack(one)) for one in zip(*maps, strict=True)]
    return to_type_of(torch.tensor(values, dtype=torch.float64), images)


def check_method(method: Callable[..., Tensor]) -> None:
    """Refuse what cannot be called."""
    if not callable(method):
        raise TypeError(f"method must be an attribution method, not {type(method).__name__}")


def _check_similarity(similarity: str, images: Tensor) -> None:
    check_choice("similarity", similarity, SIMILARITIES)
    if similarity in ("ssim", "hog") and min(images.shape[2:]) < 7:
        raise ValueError(
            f"similarity {similarity!r} needs images of at least 7 × 7 pixels, but they are "
            f"{images.shape[2]} high and {images.shape[3]} wide"
        )


def _members(model: nn.Module) -> dict[str, Member]:
    """Name → what is drawn anew at once: a layer, or a parameter that no layer draws."""
    members: dict[str, Member] = {}
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue  # drawn with the layer whose weights they make
        if _own(module) and (hasattr(module, "reset_parameters") or _computed(module)):
            members[name] = module
        else:
            for own, parameter in module.named_parameters(name, recurse=False):
                if parameter.is_floating_point():
                    members[own] = parameter
    if not members:
        raise ValueError("model has no parameters that could be randomised")
    return members


def _own(member: Member) -> list[nn.Parameter]:
    """The parameters themselves; of a layer not those of its children."""
    if isinstance(member, nn.Parameter):
        return [member]
    behind = _parametrizations(member).values()
    return [*member.parameters(False), *(own for one in behind for own in one.parameters())]


class _Reading(Watch):
    """Notes the parameters that operations read, as a module or without one; the last read last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[nn.Parameter, None] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for value in tensors_in([*args, *(kwargs or {}).values()]):
            if isinstance(value, nn.Parameter):
                self.seen.pop(value, None)
                self.seen[value] = None
        return func(*args, **(kwargs or {}))


def _layers(
    model: nn.Module, members: dict[str, Member], image: Tensor
) -> dict[str, dict[str, Member]]:
    """Layer → what is drawn with it, the last to be read first."""
    with torch.no_grad(), _Reading() as reading:
        model(image.clone())
    place = {parameter: number for number, parameter in enumerate(reading.seen)}
    last = {
        name: max(place[parameter] for parameter in _own(member) if parameter in place)
        for name, member in members.items()
        if not place.keys().isdisjoint(_own(member))
    }
    layers: list[dict[str, Member]] = []
    for name in sorted(last, key=last.__getitem__):
        scales = all(parameter.ndim <= 1 for parameter in _own(members[name]))
        if layers and scales:
            layers[-1][name] = members[name]
        else:
            layers.append({name: members[name]})
    if not layers:
        raise ValueError("model reads none of its parameters, so none can be randomised")
    return {next(iter(layer)): layer for layer in reversed(layers)}


def _randomize(name: str, members: dict[str, Member]) -> None:
    """Draw a layer anew; ValueError if that changes nothing that the forward pass reads."""
    before = [value.clone() for member in members.values() for value in _read(member)]
    for member in members.values():
        draw(member)
    after = [value for member in members.values() for value in _read(member)]
    if all(map(torch.equal, before, after)):
        raise ValueError(
            f"model cannot be randomised: drawing its layer {name!r} anew changes nothing; it is "
            "as it starts, or pruned to nothing"
        )


def _read(member: Member) -> list[nn.Parameter]:
    """The values that the forward pass computes with."""
    return [member] if isinstance(member, nn.Parameter) else [*_plain(member).parameters(False)]


def _places(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module keeps tensors; as attributes those that hooks compute."""
    return [module._parameters, module._buffers, vars(module)]


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """The same tensors with the same values on the way out, also after an error."""
    kept = [
        (place, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for place in _places(module)
        for name, tensor in place.items()
        if isinstance(tensor, Tensor)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for place, name, tensor, value in kept:
                place[name] = tensor
                # Written only when it changed: a graph may hold the parameter.
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


@torch.no_grad()
def draw(member: Member) -> None:
    """New parameters, as a layer draws them itself; buffers, BatchNorm's statistics, stay.

    Those that no `reset_parameters` draws become normal, of mean 0 and the size that they had. What
    a weight is computed from is drawn so that the weight is what the layer draws without that.
    """
    if isinstance(member, nn.Parameter):
        size = float(member.float().square().mean().sqrt())
        member.normal_(0, size or STD)
        return
    kept = [(buffer, buffer.clone()) for buffer in member.buffers(False)]
    plain = _plain(member)
    before = [(parameter, parameter._version, parameter.clone()) for parameter in _own(plain)]
    if hasattr(plain, "reset_parameters"):
        plain.reset_parameters()  # type: ignore[operator]
    for buffer, value in kept:
        buffer.copy_(value)
    now = set(_own(plain))
    for parameter, version, value in before:
        # One that is drawn through `.data` has the version that it had.
        if parameter in now and parameter._version == version and torch.equal(parameter, value):
            draw(parameter)
    if plain is not member:
        _take(member, dict(plain.named_parameters(recurse=False)))


def _computed(module: nn.Module) -> list[str]:
    """The weights that the forward pass computes from other parameters."""
    hooked = [vars(hook).get("name") or hook._tensor_name for hook in _computing(module)]
    return [*_parametrizations(module), *hooked]


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    """Weight → what `torch.nn.utils.parametrize` computes it with."""
    found = module.parametrizations if parametrize.is_parametrized(module) else None
    return dict(found.items()) if isinstance(found, nn.ModuleDict) else {}


def _computing(module: nn.Module) -> list[Any]:
    """The hooks that compute a weight before the forward pass."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, COMPUTES)]


def _plain(module: nn.Module) -> nn.Module:
    """A layer whose weights are parameters: itself, or one with the weights that it computes."""
    computed = _computed(module)
    if not computed:
        return module
    weights = {name: nn.Parameter(getattr(module, name).detach().clone()) for name in computed}
    behind = {f"{name}_{end}" for name in computed for end in ("orig", "g", "v")}
    own = {name: value for name, value in module._parameters.items() if name not in behind}
    plain: nn.Module = object.__new__(parametrize.type_before_parametrizations(module))
    vars(plain).update({name: value for name, value in vars(module).items() if name not in weights})
    children = {
        name: child for name, child in module._modules.items() if name != "parametrizations"
    }
    vars(plain).update(_parameters=own | weights, _modules=children)
    return plain


def _take(module: nn.Module, weights: dict[str, nn.Parameter]) -> None:
    """Let a layer compute these weights, as nearly as it can."""
    names, parametrizations = _computed(module), _parametrizations(module)
    for name in names:
        weight = weights[name].detach()
        if name in parametrizations:
            try:
                setattr(module, name, weight)
            except RuntimeError:  # the parametrization has no inverse
                for parameter in parametrizations[name].parameters():
                    draw(parameter)
        elif hasattr(module, f"{name}_g"):
            size = getattr(module, f"{name}_g")
            size.copy_(weight.square().sum_to_size(size.shape).sqrt())
            getattr(module, f"{name}_v").copy_(weight)
        else:
            getattr(module, f"{name}_orig").copy_(weight)
    mode = module.training
    module.train()  # in which a pass takes a step of the power iteration for a spectral norm
    for _ in range(POWER_ITERATIONS):
        for hook in _computing(module):
            hook(module, ())
        for name in names:
            getattr(module, name)
    module.train(mode)


def randomized_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with all parameters drawn anew, where `parameter_randomization` ends: frozen."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for member in _members(other).values():
            draw(member)
    return other.eval().requires_grad_(False)


def maps_of(
    method: Callable[..., Tensor], model: Model, images: Tensor, classes: Tensor, batch_size: int
) -> Tensor:
    """The method's maps (N, C or 1, H, W), in double precision on the CPU."""
    options = known_options(method, batch_size=batch_size)
    parts = []
    for number in in_batches(len(images), batch_size):
        part = images[number]
        maps = method(model, part, classes[number], **options)
        check_attribution(maps, part, "method: what it returned")
        parts.append(maps.detach().cpu().double())
    maps = torch.cat(parts)
    return maps if maps.ndim == 4 else maps[:, None]


def _views(maps: Tensor, similarity: str) -> list[np.ndarray]:
    """What a similarity sees of each map."""
    return [VIEWS[similarity](one) for one in maps.numpy()]


def _compared(seen: list[np.ndarray], maps: Tensor, similarity: str) -> Tensor:
    """How alike what was seen is to what is seen of these maps (N,)."""
    pairs = zip(seen, _views(maps, similarity), strict=True)
    return torch.tensor([_compare(similarity, *pair) for pair in pairs], dtype=torch.float64)


def _compare(similarity: str, one: np.ndarray, other: np.ndarray) -> float:
    """Two views of maps, by SSIM or by their correlation; NaN where one has no contrast."""
    if not (np.ptp(one) and np.ptp(other)):
        return np.nan
    if similarity == "ssim":
        from skimage.metrics import structural_similarity  # takes a while to import

        return structural_similarity(one, other, data_range=1)
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Each number's rank, from 1; equal numbers share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[place]


def _picture(maps: np.ndarray) -> np.ndarray:
    """A map's absolute values summed over channels (H, W) and scaled from 0 to 1."""
    size = np.abs(maps).sum(0)
    return (size - size.min()) / (np.ptp(size) or 1)


def _orientations(maps: np.ndarray) -> np.ndarray:
    from skimage.feature import hog  # takes a while to import

    cell = min(maps.shape[1:]) // 16 or 1
    return hog(_picture(maps), pixels_per_cell=(cell, cell))


# What each similarity sees of a map (C, H, W). Ranks take longest: a first map is ranked once.
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "spearman": lambda maps: _ranks(maps.sum(0)),
    "spearman of abs": lambda maps: _ranks(np.abs(maps).sum(0)),
    "ssim": _picture,
    "hog": _orientations,
}


def _similarity(name: str, a: np.ndarray, b: np.ndarray) -> float:
    """How alike two maps (C, H, W) are, from −1 to 1."""
    return _compare(name, VIEWS[name](a), VIEWS[name](b))


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    name: partial(_similarity, name) for name in VIEWS
}
