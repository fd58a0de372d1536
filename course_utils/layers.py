"""Layers: their names, their activations, the last ones, and a model left as it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
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
    flags = [module.training for module in modules]
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
                if module.training != training:
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


def functions(*names: str) -> list[Callable]:
    """All functions and methods of these names: plain, in place, and as operators."""
    spellings = [form.format(name) for name in names for form in ("{}", "{}_", "__{}__", "__i{}__")]
    places = (torch, Tensor, F)
    return [getattr(place, name) for place in places for name in spellings if hasattr(place, name)]


AVERAGES = functions("avg_pool2d", "adaptive_avg_pool2d", "mean", "interpolate")
MAXIMA: list[Callable] = [F.max_pool2d, F.adaptive_max_pool2d]
# These move values about and change none.
MOVES = functions(
    "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose",
    "expand", "expand_as", "contiguous", "clone", "to", "cat", "concat", "stack", "getitem",
    "setitem", "chunk", "split", "pad", "channel_shuffle", "dropout", "dropout2d",
)  # fmt: skip
# Poolings that leave one place, as a rule; others are layers like any other.
GLOBAL = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, Tensor.mean)


class Head(TorchFunctionMode):
    """While this is on, it watches a model run, from its feature maps to its last linear layer:

        with Head() as head:
            logits = model(images)

    maps: the feature maps (N, C, h, w) that were pooled or flattened last; where poolings follow
    each other, those that entered the first. None if nothing was.
    vector, weight, logits: the input (N, C), the weight (K, C) and the output (N, K) of the last
    linear layer. `vector` is None if there was none.
    """

    maps: Tensor | None = None
    vector: Tensor | None = None
    weight: Tensor
    logits: Tensor

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not given or not isinstance(output, Tensor):
            return output
        if function is F.linear:
            self.vector, self.weight, self.logits = given[0], given[1], output
        elif given[0].ndim == 4:
            maps, whole = next((v.pooled for v in given if hasattr(v, "pooled")), (None, False))
            flattens = output.ndim < 4 and function in MOVES
            if flattens or function in AVERAGES or function in MAXIMA:
                self.maps = maps = given[0] if maps is None else maps
                whole = whole or (function in GLOBAL and maps.shape[2:].numel() > 1)
            elif not whole or output.numel() > len(given[0]) * max(output.shape[1:], default=1):
                # What is made of pooled maps is again feature maps, unless it is a mere vector.
                maps, whole = None, False
            output.pooled = maps, whole  # type: ignore[attr-defined]
        return output

    def averages_into(self, logits: Tensor) -> bool:
        """Whether the logits are one linear layer's of the mean of the feature maps."""
        if self.maps is None or self.vector is None or not torch.equal(self.logits, logits):
            return False
        mean = self.maps.mean((2, 3))
        error = torch.finfo(mean.dtype).eps ** 0.5
        return mean.shape == self.vector.shape and torch.allclose(
            mean, self.vector, rtol=error, atol=error * float(mean.abs().max())
        )
