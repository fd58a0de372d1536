"""The head of a network: what it makes of its last feature maps, however it is written."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from course_utils.layers import tensors_in


def functions(*names: str) -> set[Callable]:
    """All functions and methods of these names: plain, in place, and as operators."""
    spellings = [form.format(name) for name in names for form in ("{}", "{}_", "__{}__", "__i{}__")]
    places = (torch, Tensor, F)
    return {getattr(place, name) for place in places for name in spellings if hasattr(place, name)}


LAYER = ("input", "weight", "bias", "stride")  # arguments of F.linear and, all, of F.conv2d
CONVOLUTIONS = functions("conv2d", "convolution")
WINDOWS = functions("avg_pool2d", "max_pool2d", "lp_pool2d")
# These may leave as many places, or more; any other function that leaves fewer pools as well.
POOLINGS = WINDOWS | functions("adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate")
PRODUCTS = functions("mul", "multiply", "rmul")
COPIES = functions("clone", "contiguous")
MOVES = functions("permute", "movedim", "moveaxis")
TELLING = POOLINGS | PRODUCTS | MOVES  # of maps (N, C, h, w) they may make others as large


class Head(TorchFunctionMode):
    """While this is on, it watches a model run, from its feature maps to its last linear layer:

        with Head() as head:
            logits = model(images)
        maps = last_maps(logits)

    Each value learns whether it is feature maps (N, C, h, w), or of which it is made.
    vector, weight, logits: the input (N, C), the weight (K, C) and a copy of the output (N, K) of
    the last linear layer. `vector` is None if there was none.
    """

    vector: Tensor | None = None
    weight: Tensor
    logits: Tensor

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        values = tensors_in([*args, *kwargs.values()])
        if function not in TELLING and _goes_on(values, output):
            return output
        named = dict(zip(LAYER, args, strict=False)) | kwargs
        if function is F.linear:
            self.vector, self.weight = named["input"], named["weight"]
            self.logits = output.detach().clone()  # whatever happens to them later
        convolves = function in CONVOLUTIONS and not _connects_all(**named)
        for made in tensors_in([args[0] if function is Tensor.__setitem__ else output]):
            pooled = _pooled(function, convolves, values, made)
            if pooled or hasattr(made, "pooled"):
                made.pooled = pooled  # type: ignore[attr-defined]
        return output

    def ends_in(self, logits: Tensor) -> bool:
        """Whether a model's logits are what its last linear layer gave, unchanged."""
        return self.vector is not None and torch.equal(self.logits.to(logits.dtype), logits)


def last_maps(logits: Tensor) -> Tensor | None:
    """The feature maps (N, C, h, w) that logits are made of, given those that `Head` saw made.

    They are the last ones: what follows has a single place, or pools them. Where poolings follow
    each other, they are those that enter the first. None where the logits are made of several
    feature maps, or of tokens.

    >>> images = torch.ones(1, 3, 4, 4)
    >>> with head.Head():
    ...     logits = images.relu().amax((2, 3))
    >>> head.last_maps(logits).shape
    torch.Size([1, 3, 4, 4])
    """
    maps = _sources(logits)
    return maps[0] if len(maps) == 1 else None


class Pooled(NamedTuple):
    """What a value is made of, if it is no feature maps itself; a constant is made of none."""

    maps: list[Tensor | None]  # None stands for tokens
    whole: bool = True  # False: it may become feature maps again, in a layer that follows


def _goes_on(values: Sequence[Tensor], made: Any) -> bool:
    """Whether it is feature maps as large as those it was made of: nothing is to be noted of it."""
    if not values or not isinstance(made, Tensor) or made.ndim != 4 or any(map(_noted, values)):
        return False
    first = values[0]
    return made.shape[2:] == first.shape[2:] and _has_places(first) and bool(_sources(first))


def _pooled(
    function: Callable, convolves: bool, values: Sequence[Tensor], made: Tensor
) -> Pooled | None:
    """What a function made of values; None if that is feature maps."""
    given = [value for value in values if _sources(value)]
    maps = _join(given)
    in_place = any(made is value for value in values)
    if not given:
        return _noted(made) if in_place else Pooled([])
    first = given[0]
    if function in COPIES:
        return _noted(first)
    if made.ndim != 4:
        tokens = function is F.linear and made.ndim > 2
        # Of the axes of (N, h, w, C), a mean over places leaves the first and the last.
        tokens |= first is maps[0] and made.shape == first.shape[::3] != first.shape[:2]
        return Pooled([None] if tokens else maps)
    one_axis = made.numel() == len(made) * max(made.shape[1:])
    if one_axis and any(map(_is_vector, given)):
        return Pooled(maps)
    if _has_places(made):
        fewer = made.shape[:2] == first.shape[:2] and made.numel() < first.numel()
        # A weighted mean, as attention takes it, starts with this product.
        weighs = function in PRODUCTS and any(_weighs_places(value, made) for value in values)
        # From (N, C, h, w) to (N, h, w, C).
        moves = function in MOVES and made.shape[1:] == (*first.shape[2:], first.shape[1])
        pools = function in POOLINGS or weighs or moves or (fewer and not convolves)
        return Pooled(maps, whole=False) if pools and not in_place else None
    # One place is left. Of a small image a convolution or a window does that, too.
    if convolves:
        return None
    if any(map(_has_places, given)):
        return Pooled(maps, whole=function not in WINDOWS)
    still = any(map(_has_places, maps)) and all(map(_noted, given))
    return Pooled(maps, whole=False) if still else None


def _connects_all(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, **others: Any
) -> bool:
    """Whether a convolution is a linear layer of all places: its kernel has the maps' size.

    Not in maps of a single row (N, C, 1, w), where it is taken to make the maps.
    """
    kernel = weight.shape[2:]
    fits = kernel == input.shape[2:] and set(tree_leaves(stride)) == {1}
    return fits and (kernel.numel() == 1 or min(kernel) > 1)


def _weighs_places(value: Tensor, maps: Tensor) -> bool:
    """Whether it is weights (N, 1, h, w) for the places of maps (N, C, h, w), with the sum 1."""
    if (
        value.shape[1:] != (1, *maps.shape[2:])
        or maps.shape[1] == 1
        or not value.is_floating_point()
    ):
        return False
    total, error = value.detach().sum((2, 3)), torch.finfo(value.dtype).eps ** 0.5
    return torch.allclose(total, torch.ones_like(total), atol=error)


def _noted(value: Tensor) -> Pooled | None:
    """What was noted of a value; None if it is feature maps, or nothing that the head saw made."""
    return getattr(value, "pooled", None)


def _sources(value: Tensor) -> list[Tensor | None]:
    """The feature maps that a value is, or is made of; none for a constant."""
    pooled = _noted(value)
    if pooled:
        return pooled.maps
    return [value] if value.ndim == 4 and not isinstance(value, nn.Parameter) else []


def _join(values: Iterable[Tensor]) -> list[Tensor | None]:
    """The sources of several values, each once, without those that are mere weights of others."""
    found = list({id(maps): maps for value in values for maps in _sources(value)}.values())
    spread = [maps for maps in found if maps is None or _has_places(maps)] or found
    weighted = {maps.shape[2:] for maps in spread if maps is not None and maps.shape[1] > 1}
    return [m for m in spread if m is None or m.shape[1] > 1 or m.shape[2:] not in weighted]


def _has_places(value: Tensor | None) -> bool:
    return value is not None and value.ndim == 4 and value.shape[2:].numel() > 1


def _is_vector(value: Tensor) -> bool:
    """Whether it is made of feature maps that had several places, and has none itself."""
    pooled = _noted(value)
    return pooled is not None and pooled.whole and any(map(_has_places, pooled.maps))
