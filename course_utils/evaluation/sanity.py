"""Sanity checks: a map must depend on what the model has learnt, and not on invisible noise."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from course_utils.methods import lime
from course_utils.progress import counted, in_batches


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
    running statistics stay. Layers are ordered as they run, of several runs the last; those that do
    not run are left out. Costs one run of the method for each layer and one for the model as it is.

    images: (N, C, H, W), in model space. method: any attribution method.
    target: a class, a LongTensor (N,), or None for the argmax of the model as it is.
    similarity: one of SIMILARITIES; 1 means identical. "spearman" ranks the map's sums over the
    channels, "spearman of abs" the sums of absolute values; "ssim" and "hog" (correlation of the
    histograms of oriented gradients) compare the latter as pictures scaled from 0 to 1, of 7 × 7
    pixels at least.
    generator: seeds the layers; None for one of seed 0.
    Returns layer → (N,), in the order randomised, output first; NaN for a map without contrast.
    The model keeps its Parameter objects and gets their values back, also after an error.

    Raises ValueError or TypeError naming the argument.
    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, Sanity Checks for Saliency Maps, 2018.
    """
    check(model, images, target)
    check_method(method)
    _check_similarity(similarity, images)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)
    modules = _resettable(model)
    with explaining(model), _restored(model.modules()):
        classes = predict_target(model, images, target, batch_size)
        layers = _layers(model, modules, images[:1])
        seeds = torch.randint(2**62, (len(layers),), generator=generator).tolist()
        original = maps_of(method, model, images, classes, batch_size)
        seen, result = _views(original, similarity), {}
        for (name, members), seed in counted([*zip(layers.items(), seeds, strict=True)], "layer"):
            with nullcontext() if cascading else _restored(members):
                torch.manual_seed(seed)  # `explaining` gives the global generator's state back
                for module in members:
                    reset_parameters(module)
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


def _resettable(model: nn.Module) -> dict[nn.Module, str]:
    """The modules with parameters of their own, and their names; ValueError if one has no reset."""
    modules = {
        module: name
        for name, module in model.named_modules()
        if next(module.parameters(False), None) is not None
    }
    if not modules:
        raise ValueError("model has no parameters that could be randomised")
    for module, name in modules.items():
        if not hasattr(module, "reset_parameters"):
            raise ValueError(
                f"model cannot be randomised: its {type(module).__name__} {name!r} has parameters "
                "of its own, but no reset_parameters"
            )
    return modules


def _layers(
    model: nn.Module, modules: dict[nn.Module, str], image: Tensor
) -> dict[str, list[nn.Module]]:
    """Layer → what is reset with it, the last to run first."""
    runs: dict[nn.Module, None] = {}

    def note(module: nn.Module, inputs: Any) -> None:
        runs.pop(module, None)
        runs[module] = None

    handles = [module.register_forward_pre_hook(note) for module in modules]
    with torch.no_grad():
        model(image.clone())
    for handle in handles:
        handle.remove()
    layers: list[list[nn.Module]] = []
    for module in runs:
        if layers and all(parameter.ndim == 1 for parameter in module.parameters(False)):
            layers[-1].append(module)
        else:
            layers.append([module])
    return {modules[members[0]]: members for members in reversed(layers)}


@contextmanager
def _restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The same Parameter objects with the same values on the way out, also after an error."""
    kept = [
        (module, name, parameter, parameter.detach().clone())
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, parameter, value in kept:
                module._parameters[name] = parameter
                # Written only when it changed: a graph may hold the parameter.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)


def reset_parameters(module: nn.Module) -> None:
    """New parameters, drawn as the module does it itself; buffers, BatchNorm's statistics, stay."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers(False)]
    module.reset_parameters()  # type: ignore[operator]
    for buffer, value in kept:
        buffer.copy_(value)


def randomized_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with all parameters drawn anew, where `parameter_randomization` ends: frozen."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                reset_parameters(module)
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
