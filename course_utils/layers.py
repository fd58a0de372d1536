"""Layers: their names, their activations, and a model left as it was."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


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
