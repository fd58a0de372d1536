"""Layers: their names, their activations, the last ones, and a model left as it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def capture(
    model: nn.Module, names: str | Iterable[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Keep the activations of layers: `with capture(model, ["layer4"]) as kept: model(images)`.

    names: layers as in `model.named_modules()`; None means all. Yields a dict from name to
    activation, filled by each call of the model; of a layer that runs several times the last
    activation stays. Gradients with respect to an activation can be taken.

    Raises ValueError for a name the model does not have.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> with layers.capture(model, "0") as kept:
    ...     logits = model(torch.tensor([[[[-1.0, 3.0]]]]))
    >>> kept["0"]
    tensor([[[[0., 3.]]]])
    """
    if names is None:
        names = [name for name, _ in model.named_modules() if name]
    names = [names] if isinstance(names, str) else list(names)
    layers = {name: find(model, name) for name in names}
    if layers and isinstance(model, torch.jit.ScriptModule):
        raise ValueError("layer: the layers of a TorchScript model cannot be looked into")
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple, output: Any) -> Any:
            kept[name] = output
            # The network goes on with a copy: an in-place ReLU after the layer would change what
            # was kept, and a copy on the side would not be on the way to the logits.
            return output.clone() if isinstance(output, Tensor) else output

        return hook

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(keep(name)))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ablate(
    model: nn.Module, name: str, units: int | Sequence[int], value: float | Tensor = 0.0
) -> Iterator[None]:
    """Take units of a layer away: inside, channels `units` of its output have this value.

    value: a number, or a tensor with one number for each of the units, such as their mean over
    many images: zero may be a value the next layer has never seen. Raises ValueError for a layer
    that is not there, and when the model runs, for a unit that is not there.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> with layers.ablate(model, "0", units=1):
    ...     model(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 0., 3.]])
    """
    channels, constant = torch.as_tensor(units).flatten(), torch.as_tensor(value).flatten()
    if len(channels) and (channels.is_floating_point() or channels.dtype == torch.bool):
        raise TypeError(f"units must be whole numbers, not {units!r}")
    if len(constant) not in (1, len(channels)):
        raise ValueError(
            f"value must be one number, or one for each of the {len(channels)} units, but holds "
            f"{len(constant)}"
        )
    channels = channels.long()

    def replace(layer: nn.Module, inputs: tuple, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            came = tuple(output.shape) if hasattr(output, "shape") else type(output).__name__
            raise ValueError(f"layer {name!r} gives {came}; units are (N, C, H, W) or (N, C)")
        count = output.shape[1]
        missing = channels[(channels < 0) | (channels >= count)]
        if len(missing):
            raise ValueError(
                f"units: layer {name!r} has no unit {missing[0]}; its units are 0 to {count - 1}"
            )
        output = output.clone()
        output[:, channels] = constant.to(output).view(-1, *[1] * (output.ndim - 2))
        return output

    handle = find(model, name).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def preserve(model: nn.Module) -> Iterator[None]:
    """Give the model back as it came, also after an error.

    Restores every submodule's training flag and hooks, every parameter's requires_grad and .grad,
    all buffers, and the state of torch's global random generator.

    >>> model = nn.Sequential(nn.Dropout())
    >>> with layers.preserve(model):
    ...     model.eval().training
    False
    >>> model.training
    True
    """
    modules = list(model.modules())
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    flags = [getattr(module, "training", None) for module in modules]  # a frozen script has none
    hooks = [_hooks(module) for module in modules]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    gradients = [
        (p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters
    ]
    devices = {tensor.device for tensor in parameters}
    devices |= {buffer.device for _, _, buffer, _ in buffers if buffer is not None}
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        with torch.no_grad():
            # Written only where it changed: a module has many attributes, a network many modules.
            for module, training, saved in zip(modules, flags, hooks, strict=True):
                if training is not None and module.training != training:
                    module.training = training
                if _hooks(module) != saved:
                    _restore_hooks(module, saved)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                _restore_value(buffer, value)
            for parameter, (wanted, gradient, value) in zip(parameters, gradients, strict=True):
                if parameter.requires_grad != wanted:
                    parameter.requires_grad_(wanted)
                if parameter.grad is not gradient:
                    parameter.grad = gradient
                _restore_value(gradient, value)


HOOKS = [name for name in vars(nn.Module()) if "_hook" in name]


def _hooks(module: nn.Module) -> dict[str, Any]:
    """Copies of the dicts in which a module keeps its hooks, of those that hold one."""
    attributes = vars(module)
    return {
        name: value.copy() if isinstance(value, dict) else value
        for name in HOOKS
        if (value := attributes.get(name))
    }


def _restore_hooks(module: nn.Module, saved: dict[str, Any]) -> None:
    for name in HOOKS:
        current = getattr(module, name, None)
        if isinstance(current, dict):  # the same dict: handles that remove hooks point at it
            current.clear()
            current.update(saved.get(name, {}))
        else:
            setattr(module, name, saved.get(name))


def _restore_value(tensor: Tensor | None, value: Tensor | None) -> None:
    # Writing would invalidate a graph that holds the tensor.
    if tensor is not None and value is not None and not torch.equal(tensor, value):
        tensor.copy_(value)


def conv_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every 2-D convolution by name, in the order in which the model defines them.

    >>> layers.conv_layers(nn.Sequential(nn.Conv2d(3, 8, kernel_size=5), nn.ReLU()))
    {'0': Conv2d(3, 8, kernel_size=(5, 5), stride=(1, 1))}
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def last_conv(model: nn.Module) -> str:
    """The name of the last 2-D convolution; ValueError where there is none.

    >>> layers.last_conv(nn.Sequential(nn.Conv2d(3, 8, 5), nn.Conv2d(8, 16, 3), nn.ReLU()))
    '1'
    """
    names = list(conv_layers(model))
    if not names:
        raise ValueError(f"model: this {type(model).__name__} has no nn.Conv2d")
    return names[-1]


def find(model: nn.Module, name: str) -> nn.Module:
    """The layer of that name; ValueError with the nearest names where there is none.

    >>> layers.find(nn.Sequential(nn.Flatten(), nn.ReLU()), "1")
    ReLU()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    layers = dict(model.named_modules(remove_duplicate=False))
    if name and name in layers:
        return layers[name]
    near = get_close_matches(str(name), filter(None, layers), n=3, cutoff=0.4)
    raise ValueError(
        f"layer: the model has no layer {name!r}; "
        + (f"near it are {', '.join(near)}" if near else "print(model) shows their names")
    )


# -- from feature maps to logits -------------------------------------------------------------------


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
    >>> with layers.Head():
    ...     logits = images.relu().amax((2, 3))
    >>> layers.last_maps(logits).shape
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


class Watch(TorchDispatchMode):
    """While such a mode is on, it sees each of a network's operations, as PyTorch's basic ones."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would load its compiler, for seconds, to keep it away from here


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among what an operation was given or made, those in lists, too.

    >>> layers.tensors_in([torch.tensor(1), 2, [torch.tensor(3)]])
    [tensor(1), tensor(3)]
    """
    found = []
    for value in values:  # by hand: the general way, for any tree, takes ten times as long
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found
