"""What all attribution methods share: arguments checked, the model restored, targets, estimates."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial, wraps
from threading import RLock
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from course_utils.layers import preserve

Model = nn.Module | Callable[[Tensor], Tensor]
# A class, one for each image (N,), a function of the model's output, or None: each image's argmax;
# of two classes (a, b), one pair for each image (N, 2), the difference f_a − f_b.
Target = int | tuple[int, int] | Tensor | Callable[[Any], Tensor] | None
Baseline = float | Tensor
M = TypeVar("M", bound=Model)
V = TypeVar("V")
P = ParamSpec("P")

MANY = 12  # choices that an error lists


class Estimate(NamedTuple, Generic[V]):
    """What a method computes from random samples, and how precise that is; None: not estimated."""

    value: V  # a map or coefficients, in the shape and the unit that the method states
    standard_error: Tensor | None = None  # of each number of the value, in its shape and unit
    spread: Tensor | None = None  # the same for one sample alone: its standard deviation
    r2: Tensor | None = None  # share of the variance that a surrogate explains, for each image


def value_of(estimate: Callable[P, Estimate[V]]) -> Callable[P, V]:
    """The function NAME for NAME_estimate or NAME_fit: it returns the estimate's value alone."""

    @wraps(estimate)
    def value(*arguments: P.args, **options: P.kwargs) -> V:
        return estimate(*arguments, **options).value

    value.__name__ = value.__qualname__ = estimate.__name__.rpartition("_")[0]
    signature = inspect.signature(estimate)
    (kind,) = get_args(signature.return_annotation)
    value.__signature__ = signature.replace(return_annotation=kind)  # type: ignore[attr-defined]
    return value


def mean_and_variance(total: Tensor, squares: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Of samples whose sum and whose squares' sum are known; one sample's variance is NaN (0/0).

    >>> samples = torch.tensor([1.0, 5.0, 9.0])
    >>> contract.mean_and_variance(samples.sum(), (samples**2).sum(), 3)
    (tensor(5.), tensor(16.0000))
    """
    mean = total / samples
    # Rounding may leave slightly less than 0.
    return mean, (squares / samples - mean**2).clamp(min=0) * samples / (samples - 1)


def check(model: Model, images: Tensor, target: Target = None, *, black_box: bool = False) -> None:
    """Refuse bad arguments before any work: ValueError or TypeError, in one sentence.

    black_box: the method only calls the model, so that any callable will do.

    >>> contract.check(nn.Flatten(), torch.zeros(0, 3, 8, 8))
    Traceback (most recent call last):
    ValueError: images must not be empty, but their shape is (0, 3, 8, 8)
    """
    if not isinstance(model, nn.Module) and not (black_box and callable(model)):
        wanted = "a torch.nn.Module" + (" or a function of images" if black_box else "")
        raise TypeError(f"model must be {wanted}, not {type(model).__name__}")
    if not isinstance(images, Tensor):
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


def _check_fit(model: nn.Module, images: Tensor) -> None:
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
    if target is None or callable(target):
        return
    if not isinstance(target, Tensor):
        numbers = target if isinstance(target, tuple) else (target,)
        whole = all(isinstance(c, int) and not isinstance(c, bool) for c in numbers)
        if not whole or (isinstance(target, tuple) and len(target) != 2):
            raise TypeError(f"{_WANTED}, not {_said(target)}")
        target = torch.tensor(target)[None]
    elif target.dtype != torch.long:
        raise TypeError(f"{_WANTED}, not {target.dtype}")
    elif target.shape not in ((n,), (n, 2)):
        raise ValueError(
            f"target must hold one class for each of the {n} images, shape ({n},), or two, "
            f"({n}, 2), but its shape is {tuple(target.shape)}"
        )
    if target.ndim == 2 and (target[:, 0] == target[:, 1]).any():
        same = int(target[target[:, 0] == target[:, 1]][0, 0])
        raise ValueError(f"target must name two different classes, but names {same} twice")


_WANTED = (
    "target must be a class number, a LongTensor with one an image, two classes (a, b) for the "
    "difference of their logits, a function of the model's output, or None for each image's argmax"
)


def _said(target: object) -> str:
    return repr(target) if isinstance(target, tuple) else type(target).__name__


def as_baseline(name: str, baseline: Baseline, images: Tensor) -> Tensor:
    """A number or a tensor in model space, as a tensor of the images' shape; ValueError if not.

    >>> contract.as_baseline("baseline", 0.5, torch.zeros(1, 1, 1, 2))
    tensor([[[[0.5000, 0.5000]]]])
    """
    if isinstance(baseline, bool) or not isinstance(baseline, int | float | Tensor):
        raise TypeError(f"{name} must be a number or a tensor, not {type(baseline).__name__}")
    value = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).detach()
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    try:
        return value.expand(images.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must be a number or broadcastable to the images {tuple(images.shape)}, but "
            f"its shape is {tuple(value.shape)}"
        ) from None


def as_background(name: str, values: Tensor, images: Tensor) -> Tensor:
    """Images to compare with, (M, C, H, W), in the images' type; ValueError if they do not fit."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
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
    return to_type_of(values.detach(), images).expand(-1, *wanted)


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


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is none of the choices; ValueError with the nearest ones.

    >>> contract.check_choice("rule", "midpont", ["midpoint", "trapezoid"])
    Traceback (most recent call last):
    ValueError: rule: there is no 'midpont'; did you mean 'midpoint'?
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return
    near = get_close_matches(str(value).lower(), names, n=3, cutoff=0.5)
    some = ", ".join(names[:MANY]) + (", …" if len(names) > MANY else "")
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {some}"
    raise ValueError(f"{name}: there is no {value!r}; {hint}")


def check_attribution(
    attribution: Tensor, images: Tensor | None = None, name: str = "attribution"
) -> None:
    """Refuse what is no attribution (N, C, H, W) or (N, H, W), or none of these images."""
    if not isinstance(attribution, Tensor) or not attribution.is_floating_point():
        came = attribution.dtype if isinstance(attribution, Tensor) else type(attribution).__name__
        raise TypeError(f"{name} must be a floating point tensor, not {came}")
    shape = tuple(attribution.shape)
    if images is not None and shape not in (images.shape, images[:, 0].shape):
        raise ValueError(
            f"{name} must be {tuple(images.shape)}, as the images, or without the channels, but "
            f"its shape is {shape}"
        )
    if len(shape) not in (3, 4) or not attribution.numel():
        raise ValueError(
            f"{name} must be (N, C, H, W) or (N, H, W), not empty, but its shape is {shape}"
        )
    if not attribution.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")


def sum_channels(
    attribution: Tensor, images: Tensor | None = None, name: str = "attribution"
) -> Tensor:
    """An attribution, checked, as one number a pixel: (N, H, W), in double precision on the CPU.

    >>> contract.sum_channels(torch.tensor([[[[1.0, 2.0]], [[10.0, 20.0]]]]))
    tensor([[[11., 22.]]], dtype=torch.float64)
    """
    check_attribution(attribution, images, name)
    values = attribution.detach().cpu().double()
    return values.sum(1) if values.ndim == 4 else values


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


def drawn_again(draw: Callable[..., Tensor], seeds: Sequence[int], images: Tensor) -> Tensor:
    """Random numbers like an image for each seed: drawn again when needed, never kept.

    draw: torch.randn or torch.rand. Returns (len(seeds), C, H, W), on the images' device.
    """
    draws = {
        seed: draw(
            images.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=images.dtype
        )
        for seed in set(seeds)
    }
    return torch.stack([draws[seed] for seed in seeds]).to(images.device)


_turn = RLock()


@contextmanager
def explaining(model: Model) -> Iterator[None]:
    """The model frozen and in eval mode, autograd on; afterwards all is as it was.

    Threads take turns here: mode, frozen parameters and hooks are the model's own, the same for
    each thread that runs it. So nothing may be yielded to a caller in between.
    """
    kept = preserve(model) if isinstance(model, nn.Module) else nullcontext()
    with _turn, kept, torch.inference_mode(False), torch.enable_grad():
        if isinstance(model, nn.Module):
            # What torch.jit.freeze made has no mode.
            if any(getattr(module, "training", False) for module in model.modules()):
                nn.Module.train(model, False)  # an exported model has an eval() that refuses
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        try:
            yield
        except RuntimeError as error:  # autograd's own words are about its versions of tensors
            if "modified by an inplace operation" not in str(error):
                raise
            raise ValueError(
                "model: it works in place on values that its gradient needs; use inplace=False"
            ) from error
        except AssertionError as error:  # an exported model checks what it is given
            if "Guard failed" not in str(error):
                raise
            raise ValueError(
                "model: it was exported for images of one shape, which these do not have "
                f"({error}); export it with dynamic_shapes, or give it one image at a time"
            ) from error


def known_options(method: Callable, **options: Any) -> dict[str, Any]:
    """Those of the options that the method has, except what a partial has set already.

    Whatever the method, `method(model, images, target, **known_options(method, batch_size=8))` runs
    and keeps what was chosen for it. method: a function, an entry of METHODS, or a partial of one.

    >>> contract.known_options(lambda images, batch_size: images, batch_size=16, steps=4)
    {'batch_size': 16}
    """
    method, chosen = unwrapped(method, {})
    known = inspect.signature(getattr(method, "function", method)).parameters
    return {name: value for name, value in options.items() if name in known and name not in chosen}


def unwrapped(method: Callable, options: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """A partial's function, and its options together with others, which come first."""
    while isinstance(method, partial):
        options = {**method.keywords, **options}
        method = method.func
    return method, options


def to_type_of(values: Tensor, images: Tensor) -> Tensor:
    """Values in the images' type and on their device, in this order: MPS has no float64."""
    return values.to(images.dtype).to(images.device)


def predict_target(model: Model, images: Tensor, target: Target, batch_size: int) -> Tensor:
    """Each image's class (N,): its argmax, which takes a forward pass, where the target is None.

    Of two classes it is a pair an image (N, 2), of a function a Score, which stands for one.
    """
    if isinstance(target, Tensor):
        return target.to(images.device)
    if callable(target):
        return Score(target)  # type: ignore[return-value]
    if target is not None:
        return torch.tensor([target] * len(images), device=images.device)
    with torch.no_grad():
        return batched_logits(model, images, batch_size).argmax(1)


class Score:
    """A target that is a function of the model's output, indexed as a tensor of classes is."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function = function

    def __call__(self, output: Any) -> Tensor:
        """One number for each image, (N,)."""
        return self.function(output)

    def __getitem__(self, images: Any) -> "Score":
        return self  # the same for each image


class Scored(nn.Module):
    """A model and a function of its output as one model, whose only logit is the score."""

    def __init__(self, model: Model, target: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 1)."""
        return score_target(self.model(images), self.target)[:, None]


def with_score(model: M, target: Target) -> tuple[M, Target]:
    """Model and target, so that the target is no function: it joins the model, and is class 0.

    For methods that are about logits, or that must see each operation from image to score.

    >>> model, target = contract.with_score(nn.Flatten(), lambda logits: logits.sum(1))
    >>> model(torch.tensor([[[[5.0, 3.0]]]])), target
    (tensor([[8.]]), 0)
    """
    if callable(target):
        return Scored(model, target), 0  # type: ignore[return-value]
    return model, target


def batched_logits(model: Model, images: Tensor, batch_size: int) -> Tensor:
    """The logits (N, K) of images (N, C, H, W), at most `batch_size` of them a call."""
    # A copy each: the model may work in place.
    parts = images.split(batch_size)
    return torch.cat([check_logits(model(part.clone())) for part in parts])


def check_logits(logits: Any) -> Tensor:
    """The logits (N, K) themselves; ValueError for what is none, with the line that makes them."""
    if isinstance(logits, Tensor) and logits.ndim == 2:
        return logits
    came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise ValueError(
        f"model must return logits (N, K), one row an image, but returned {came}; wrap it in a "
        f"module whose forward returns {_line_to_logits(logits)}, or give as target a function of "
        "what it returns"
    )


def _line_to_logits(output: Any) -> str:
    """The line of code that makes logits of a model's output."""
    if isinstance(output, Mapping):
        return f"self.model(x)[{next(iter(output), 'logits')!r}]"
    if not isinstance(output, Tensor):
        return "self.model(x)[0]" if isinstance(output, Sequence) else "self.model(x).logits"
    return "self.model(x)[:, None]" if output.ndim < 2 else "self.model(x).flatten(2).mean(2)"


def resolve_target(logits: Tensor, target: Target, images: Tensor | None = None) -> Tensor:
    """Each image's class (N,), or pair (N, 2), now that the logits (N, K) are known.

    images: the numbers (N,) of those that the logits are of, where the target holds the classes of
    more: they are all checked. The target of a single image is that of all rows.

    Raises ValueError for a class that the model does not have.

    >>> contract.resolve_target(torch.tensor([[1.0, 2.0], [5.0, 4.0]]), None)
    tensor([1, 0])
    """
    if callable(target):
        raise ValueError(
            "target must be a class here, not a function of the model's output: what is computed "
            "is about a class"
        )
    n, k = check_logits(logits).shape
    if target is None:
        return logits.argmax(1)
    if not isinstance(target, Tensor):
        target, images = torch.tensor([target]), None
    outside = target[(target < 0) | (target >= k)]
    if len(outside):
        raise ValueError(
            f"target: there is no class {int(outside[0])}; the model has the classes 0 to {k - 1}"
        )
    classes = target if images is None else target[images]
    return classes.to(logits.device).expand(n, *classes.shape[1:])


def score_target(output: Any, target: Target, images: Tensor | None = None) -> Tensor:
    """What is explained of each image (N,): its class's logit, or what the target makes of it.

    Of two classes (a, b) it is the difference of their logits: why a, and not b?

    output: the model's, logits (N, K) unless the target is a function. images: as `resolve_target`.

    >>> logits = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    >>> contract.score_target(logits, 1)
    tensor([2., 4.])
    >>> contract.score_target(logits, (1, 0))
    tensor([ 1., -1.])
    >>> contract.score_target(logits, lambda logits: logits.sum(1))
    tensor([3., 9.])
    """
    if callable(target):
        return _check_scores(target(output), output)
    classes = resolve_target(output, target, images)
    if classes.ndim == 2:
        of_a, of_b = output.gather(1, classes).unbind(1)
        return of_a - of_b
    return output.gather(1, classes[:, None])[:, 0]


def _check_scores(scores: Any, output: Any) -> Tensor:
    """What a target function made of the model's output, if it is a score for each image."""
    n = len(output) if isinstance(output, Tensor) and output.ndim else "N"
    wanted = f"target must return one number for each image, a floating point tensor ({n},)"
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        came = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{wanted}, not {came}")
    if scores.ndim != 1 or n not in ("N", len(scores)):
        raise ValueError(f"{wanted}, but the shape of what it returned is {tuple(scores.shape)}")
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if any(leaf.requires_grad for leaf in leaves) and not scores.requires_grad:
        raise ValueError("target: its scores carry no gradient to the model's output")
    return scores
