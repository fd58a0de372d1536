"""Sanity checks: a map must depend on what the model has learnt, and not on invisible noise."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_utils import lime
from course_utils.contract import (
    Model,
    Target,
    accepted,
    check,
    check_count,
    check_generator,
    check_number,
    counting,
    explaining,
    like,
    portions,
    targets,
    unwrapped,
)


def parameter_randomization(
    model: nn.Module,
    images: Tensor,
    method: Callable[..., Tensor],
    *,
    target: Target = None,
    cascading: bool = True,
    similarity: str = "spearman",
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Does the map depend on what the model has learnt? How like it stays without that.

    Layer after layer, from the output to the input, gets random parameters by its own
    `reset_parameters`: with `cascading` it stays so, else it gets its own back before the next. A
    layer is a module with weights, such as a convolution; those with nothing but scales and shifts
    (BatchNorm, PReLU) are reset, to 1 and 0, with the layer they run after. BatchNorm's running
    statistics stay. Layers are ordered as they run, of several runs the last; those that do not run
    are left out. Costs one run of the method for each layer and one for the model as it is.

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
        classes = targets(model, images, target, batch_size)
        layers = _layers(model, modules, images[:1])
        seeds = torch.randint(2**62, (len(layers),), generator=generator).tolist()
        original = maps_of(method, model, images, classes, batch_size)
        result = {}
        with counting(len(layers), "layer", progress) as advance:
            for (name, members), seed in zip(layers.items(), seeds, strict=True):
                with nullcontext() if cascading else _restored(members):
                    torch.manual_seed(seed)  # `explaining` gives the global generator's state back
                    for module in members:
                        _reset(module)
                    maps = maps_of(method, model, images, classes, batch_size)
                result[name] = like(_similarities(original, maps, similarity), images)
                advance(1)
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
    progress: bool = True,
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
        classes = targets(model, images, target, batch_size)
        original = maps_of(method, model, images, classes, batch_size)
        for number in portions(samples * n, batch_size, progress):
            image, sample = number % n, number // n
            noise = radius * _uniform([seeds[k] for k in sample], images)
            maps = maps_of(method, model, images[image] + noise, classes[image], batch_size)
            change = (maps - original[image]).flatten(1).norm(dim=1)
            worst.scatter_reduce_(0, image, change, "amax")
    size = original.flatten(1).norm(dim=1)
    return like((worst / size).where(size > 0, torch.nan), images)


def label_randomization(
    model: Model,
    shuffled: Model,
    images: Tensor,
    method: Callable[..., Tensor],
    *,
    target: Target = None,
    similarity: str = "spearman",
    batch_size: int = 16,
) -> Tensor:
    """Does the map depend on how images and labels belong together? How like it is without that.

    A second model is trained on the same images with their labels permuted, until it knows them by
    heart. It fits the images as well and has learnt nothing of the classes; a map that stays the
    same was not about them. Two models of true labels and different seeds tell what to compare
    with: their maps differ, too.

    model: trained on the true labels. shuffled: the same network trained on permuted ones.
    images: (N, C, H, W), in model space, of those that both were trained on. method: any
    attribution method.
    target: a class, a LongTensor (N,), or None for the argmax of the model of the true labels.
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
        classes = targets(model, images, target, batch_size)
        learnt = maps_of(method, model, images, classes, batch_size)
        memorised = maps_of(method, shuffled, images, classes, batch_size)
    return like(_similarities(learnt, memorised, similarity), images)


def agreement(
    method: Callable[..., Tensor],
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    runs: int = 5,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **options: Any,
) -> Tensor:
    """Does a method that draws say the same again? Spearman's ρ between runs, each pair's mean.

    Each run gets a generator of its own, and the global one a seed, for methods that draw from
    that. Costs `runs` runs of the method. One that draws nothing gets 1, which says nothing of how
    good it is; `lime.agreement` compares maps that are there already.

    method: any attribution method. images: (N, C, H, W), in model space. A map is summed over the
    channels.
    target: a class, a LongTensor (N,), or None for each image's argmax. runs: at least 2.
    generator: seeds the runs; None for one of seed 0. options: the method's own, as `samples=200`.
    Returns (N,), from −1 to 1; NaN where a run's map is constant.

    Raises ValueError or TypeError naming the argument.
    """
    check(model, images, target, black_box=True)
    check_method(method)
    check_count("runs", runs, lowest=2)
    check_count("batch_size", batch_size)
    method, options = unwrapped(method, options)
    quiet = accepted(method, batch_size=batch_size, progress=False)
    seeds = torch.randint(2**62, (runs,), generator=check_generator(generator)).tolist()

    def run(model: Model, images: Tensor, classes: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        fresh = accepted(method, generator=torch.Generator().manual_seed(seed))
        return method(model, images, classes, **quiet | options | fresh)

    maps = []
    with torch.random.fork_rng(devices=[]), explaining(model):
        classes = targets(model, images, target, batch_size)
        with counting(runs, "run", progress) as advance:
            for seed in seeds:
                again = partial(run, seed=seed)
                maps.append(maps_of(again, model, images, classes, batch_size).sum(1))
                advance(1)
    values = [lime.agreement(torch.stack(one)) for one in zip(*maps, strict=True)]
    return like(torch.tensor(values, dtype=torch.float64), images)


def check_method(method: Callable[..., Tensor]) -> None:
    """Refuse what cannot be called."""
    if not callable(method):
        raise TypeError(f"method must be an attribution method, not {type(method).__name__}")


def _check_similarity(similarity: str, images: Tensor) -> None:
    if similarity not in SIMILARITIES:
        near = difflib.get_close_matches(str(similarity), SIMILARITIES, n=1, cutoff=0)[0]
        raise ValueError(f"similarity: there is no {similarity!r}; did you mean {near!r}?")
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


def _reset(module: nn.Module) -> None:
    """New parameters; buffers, BatchNorm's statistics, stay."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers(False)]
    module.reset_parameters()  # type: ignore[operator]
    for buffer, value in kept:
        buffer.copy_(value)


def maps_of(
    method: Callable[..., Tensor], model: Model, images: Tensor, classes: Tensor, batch_size: int
) -> Tensor:
    """The method's maps (N, C or 1, H, W), in double precision on the CPU."""
    options = accepted(method, batch_size=batch_size, progress=False)
    parts = []
    for number in portions(len(images), batch_size, False):
        part = images[number]
        maps = method(model, part, classes[number], **options)
        if not isinstance(maps, Tensor) or maps.shape not in (part.shape, part[:, 0].shape):
            came = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"method must return a map for each image, {tuple(part.shape)} or without the "
                f"channels, but returned {came}"
            )
        if not maps.isfinite().all():
            raise ValueError("method must return finite maps, but one holds NaN or infinity")
        parts.append(maps.detach().cpu().double())
    maps = torch.cat(parts)
    return maps if maps.ndim == 4 else maps[:, None]


def _uniform(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Numbers from −1 to 1 like an image for each seed: drawn again when needed, never kept."""
    draws = {
        seed: torch.rand(
            like.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=like.dtype
        )
        for seed in set(seeds)
    }
    return 2 * torch.stack([draws[seed] for seed in seeds]).to(like.device) - 1


def _similarities(a: Tensor, b: Tensor, similarity: str) -> Tensor:
    """Two batches of maps (N, C, H, W) → (N,)."""
    compare = SIMILARITIES[similarity]
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return torch.tensor([compare(one, other) for one, other in pairs], dtype=torch.float64)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if not (np.ptp(a) and np.ptp(b)):
        return np.nan
    from scipy.stats import spearmanr  # takes half a second to import

    return spearmanr(a, b, axis=None).statistic


def _picture(maps: np.ndarray) -> np.ndarray:
    """A map's absolute values summed over channels (H, W) and scaled from 0 to 1."""
    size = np.abs(maps).sum(0)
    return (size - size.min()) / (np.ptp(size) or 1)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    one, other = _picture(a), _picture(b)
    if not (np.ptp(one) and np.ptp(other)):  # two maps of nothing are not alike
        return np.nan
    from skimage.metrics import structural_similarity  # takes a while to import

    return structural_similarity(one, other, data_range=1)


def _hog(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import pearsonr  # both take a while to import
    from skimage.feature import hog

    cell = min(a.shape[1:]) // 16 or 1
    one, other = (hog(_picture(maps), pixels_per_cell=(cell, cell)) for maps in (a, b))
    if not (np.ptp(one) and np.ptp(other)):
        return np.nan
    return pearsonr(one, other).statistic


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": lambda a, b: _spearman(a.sum(0), b.sum(0)),
    "spearman of abs": lambda a, b: _spearman(np.abs(a).sum(0), np.abs(b).sum(0)),
    "ssim": _ssim,
    "hog": _hog,
}
