"""What every attribution method promises, in one place: the checks, the mode, the target."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from course_utils.layers import preserve

Target = int | torch.Tensor | None


def check(model: nn.Module, images: torch.Tensor, target: Target = None) -> None:
    """Refuse bad arguments before any work: ValueError or TypeError, in one sentence."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
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


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, autograd on whatever the caller's mode; after it all is as it was."""
    with preserve(model), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        yield


def class_scores(logits: torch.Tensor, target: Target) -> torch.Tensor:
    """The logit of each image's target class: logits (N, K) → (N,)."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits (N, K), one row an image, but returned {came}")
    n, k = logits.shape
    if target is None:
        target = logits.argmax(1)
    elif isinstance(target, int):
        target = torch.full((n,), target)
    outside = target[(target < 0) | (target >= k)]
    if len(outside):
        raise ValueError(
            f"target: there is no class {int(outside[0])}; the model has the classes 0 to {k - 1}"
        )
    return logits.gather(1, target.to(logits.device)[:, None])[:, 0]
