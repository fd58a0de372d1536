"""What every attribution method promises, in one place: the checks, the mode, the target."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from course_utils.layers import preserve

Model = nn.Module | Callable[[torch.Tensor], torch.Tensor]
Target = int | torch.Tensor | None
Fill = float | torch.Tensor


class Details(NamedTuple):
    """How far an estimated map can be trusted; what a method does not estimate is None."""

    standard_error: torch.Tensor | None = None  # of each value of the map, in the map's unit
    r2: torch.Tensor | None = None  # (N,): share of the variance that a surrogate model explains
    spread: torch.Tensor | None = None  # standard deviation of a single sample's value


def check(
    model: Model, images: torch.Tensor, target: Target = None, *, black_box: bool = False
) -> None:
    """Refuse bad arguments before any work: ValueError or TypeError, in one sentence.

    black_box: the method only calls the model, so that any callable will do.
    """
    if not isinstance(model, nn.Module) and not (black_box and callable(model)):
        wanted = "a torch.nn.Module" + (" or a function of images" if black_box else "")
        raise TypeError(f"model must be {wanted}, not {type(model).__name__}")
    if not isinstance(images, torch.Tensor):
        raise TypeError(
            f"images must be a tensor (N, C, H, W), not {type(images).__name__}; "
            "Classifier.to_input makes one of a picture"
        )
    shape = tuple(images.shape)
    if len(shape) != 4:
        raise ValueError(
            f"images must be (N, C, H, W), but their shape is {shape}"
            + ("; images[None] makes a batch of one" if len(shape) == 3 else "")
        )
    if not images.numel():
        raise ValueError(f"images must not be empty, but their shape is {shape}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point, as the model wants them, but are {images.dtype}; "
            "Classifier.to_input prepares a picture"
        )
    if isinstance(model, nn.Module):
        _check_fit(model, images)
    if not images.isfinite().all():
        raise ValueError("images must be finite, but hold NaN or infinity")
    _check_target(target, len(images))


def _check_fit(model: nn.Module, images: torch.Tensor) -> None:
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is None:
        return
    # Under autocast the two types may differ.
    same = images.dtype == weight.dtype or torch.is_autocast_enabled(images.device.type)
    if not same or images.device != weight.device:
        raise ValueError(
            f"images are {images.dtype} on {images.device}, but the model is {weight.dtype} on "
            f"{weight.device}; use images.to({weight.device.type!r}, {weight.dtype})"
        )


def _check_target(target: Target, n: int) -> None:
    if target is None or (isinstance(target, int) and not isinstance(target, bool)):
        return
    if not isinstance(target, torch.Tensor) or target.dtype != torch.long:
        came = target.dtype if isinstance(target, torch.Tensor) else type(target).__name__
        raise TypeError(
            f"target must be a class number, a LongTensor with one an image, or None for each "
            f"image's argmax, not {came}"
        )
    if target.shape != (n,):
        raise ValueError(
            f"target must hold one class for each of the {n} images, shape ({n},), but its shape "
            f"is {tuple(target.shape)}"
        )


def check_fill(name: str, fill: Fill, images: torch.Tensor) -> torch.Tensor:
    """A number or a tensor in model space, as a tensor of the images' shape; ValueError if not."""
    if isinstance(fill, bool) or not isinstance(fill, int | float | torch.Tensor):
        raise TypeError(f"{name} must be a number or a tensor, not {type(fill).__name__}")
    value = torch.as_tensor(fill, dtype=images.dtype, device=images.device).detach()
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    try:
        return value.expand(images.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must be a number or broadcastable to the images {tuple(images.shape)}, but "
            f"its shape is {tuple(value.shape)}"
        ) from None


def check_set(name: str, values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Images to compare with, (M, C, H, W), in the images' type; ValueError if they do not fit."""
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating point tensor (M, C, H, W), not {came}")
    shape, wanted = tuple(values.shape), tuple(images.shape[1:])
    fits = (
        len(shape) == 4
        and shape[0]
        and all(have in (1, want) for have, want in zip(shape[1:], wanted, strict=True))
    )
    if not fits:
        raise ValueError(
            f"{name} must be images (M, {', '.join(map(str, wanted))}), as large as those to "
            f"explain, but its shape is {shape}"
        )
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return like(values.detach(), images).expand(-1, *wanted)


def check_whole(name: str, value: int) -> None:
    """Refuse what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, not {value!r}")


def check_count(name: str, value: int, lowest: int = 1) -> None:
    """Refuse what is no whole number, or less than `lowest`."""
    check_whole(name, value)
    if value < lowest:
        raise ValueError(f"{name} is {value}; it must be at least {lowest}")


def check_number(name: str, value: float, lowest: float = 0.0) -> None:
    """Refuse what is no finite number, or less than `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < lowest:
        raise ValueError(f"{name} is {value}; it must be finite and at least {lowest:g}")


def check_unit(layer: str, unit: int, units: int) -> None:
    """Refuse a unit that the layer does not have."""
    check_whole("unit", unit)
    if not 0 <= unit < units:
        raise ValueError(
            f"unit: layer {layer!r} has no unit {unit}; its units are 0 to {units - 1}"
        )


def check_generator(generator: torch.Generator | None) -> torch.Generator:
    """The generator itself, or one of seed 0 for None; TypeError for anything else."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(
            "generator must be a torch.Generator of the CPU, or None for one of seed 0, not "
            + (f"one of {generator.device}" if hasattr(generator, "device") else repr(generator))
        )
    return generator


@contextmanager
def explaining(model: Model) -> Iterator[None]:
    """The model frozen and in eval mode, autograd on; afterwards all is as it was."""
    kept = preserve(model) if isinstance(model, nn.Module) else nullcontext()
    with kept, torch.inference_mode(False), torch.enable_grad():
        if isinstance(model, nn.Module):
            model.eval().requires_grad_(False)
        yield


def accepted(method: Callable, **options: Any) -> dict[str, Any]:
    """Those of the options that a method knows and that were not chosen for it (by a partial)."""
    method, chosen = unwrapped(method, {})
    known = inspect.signature(getattr(method, "function", method)).parameters
    return {name: value for name, value in options.items() if name in known and name not in chosen}


def unwrapped(method: Callable, options: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """A partial's function, and its options together with others, which come first."""
    while isinstance(method, partial):
        options = {**method.keywords, **options}
        method = method.func
    return method, options


def portions(total: int, batch_size: int, progress: bool) -> Iterator[torch.Tensor]:
    """The numbers 0 … total − 1, at most `batch_size` at a time: what one call of the model does.

    A method that repeats passes counts them through, whatever the number of images: so a call is
    never larger than memory allows, and never smaller than it need be. A bar shows after a while.
    """
    with counting(total, "pass", progress) as advance:
        for numbers in torch.arange(total).split(batch_size):
            yield numbers
            advance(len(numbers))


Listener = Callable[[int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def counting(
    total: int, unit: str, progress: bool, delay: float = 2
) -> Iterator[Callable[[int], None]]:
    """Count up to a total by the function that this gives: a bar shows it, and a listener hears.

    The bar waits for `delay` seconds. What is counted meanwhile, inside one of these steps, is not
    heard.
    """
    listener, done = _listener.get(), 0
    _listener.set(None)
    try:
        with tqdm(total=total, unit=unit, disable=not progress, leave=False, delay=delay) as bar:

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                bar.update(steps)
                if listener is not None:
                    listener(done, total)

            yield advance
    finally:
        _listener.set(listener)


@contextmanager
def hearing(listener: Listener) -> Iterator[None]:
    """In here `listener(done, total)` hears of each step of what takes long."""
    outer = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        _listener.set(outer)


def like(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Values in the images' type and on their device, in this order: MPS has no float64."""
    return values.to(images.dtype).to(images.device)


def targets(model: Model, images: torch.Tensor, target: Target, batch_size: int) -> torch.Tensor:
    """Each image's class (N,): its argmax, which takes a forward pass, where the target is None."""
    if isinstance(target, torch.Tensor):
        return target.to(images.device)
    if target is not None:
        return torch.full((len(images),), target, device=images.device)
    with torch.no_grad():
        logits = [check_logits(model(batch.clone())) for batch in images.split(batch_size)]
    return torch.cat(logits).argmax(1)


def check_logits(logits: torch.Tensor) -> torch.Tensor:
    """The logits (N, K) themselves; ValueError for what is none."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits (N, K), one row an image, but returned {came}")
    return logits


def classes_of(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """Each image's class (N,), now that the logits (N, K) are known; ValueError for one outside."""
    n, k = check_logits(logits).shape
    if target is None:
        return logits.argmax(1)
    if isinstance(target, int):
        target = torch.full((n,), target)
    outside = target[(target < 0) | (target >= k)]
    if len(outside):
        raise ValueError(
            f"target: there is no class {int(outside[0])}; the model has the classes 0 to {k - 1}"
        )
    return target.to(logits.device)


def class_scores(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """The logit of each image's target class: logits (N, K) → (N,)."""
    return logits.gather(1, classes_of(logits, target)[:, None])[:, 0]
