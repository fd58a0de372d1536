"""Operations of a running network: PyTorch's basic ones, and what each of them is.

A ReLU can be written in a dozen ways, but all arrive below autograd as `aten.relu` or as
`aten.relu_`, its form in place. `backward` looks its rules up by an operation's kind. A few kinds
go by name; whether an operation is linear is found by trying it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from course_utils.layers import tensors_in

NAMES = {
    "relu": ("relu",),
    "gate": ("sigmoid", "hardsigmoid"),
    "activation": (
        *("leaky_relu", "_prelu_kernel", "elu", "gelu", "silu", "mish", "softplus", "tanh"),
        *("hardswish", "hardtanh"),
    ),
    "max_pool": ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"),
    "norm": ("native_layer_norm", "native_group_norm"),
    "softmax": ("_softmax", "_safe_softmax"),
    # The usual ones; others are found by trying.
    "linear": (
        *("convolution", "native_batch_norm", "addmm", "mm", "add", "sub", "mean", "sum"),
        *("avg_pool2d", "_adaptive_avg_pool2d"),
    ),
    "pad": ("constant_pad_nd",),
    # These move values about, as do all views. Others that do are "linear", which is as right: what
    # is divided among a single value goes to it.
    "route": (
        *("clone", "copy", "_to_copy", "cat", "stack", "index", "flip", "roll"),
        *("_unsafe_view", "as_strided", "where", "masked_fill"),
    ),
}
KIND_OF = {name: kind for kind, names in NAMES.items() for name in names}


class Operation:
    """One operation of a forward pass, kept so that a rule can look at it.

    kind: "relu", "activation" (any other function of single values that networks use as such),
    "gate" (a sigmoid), "pointwise" (any function of single values besides), "linear", "route"
    (linear, and moves values about), "pad", "product" (linear in each of several inputs),
    "quotient", "max_pool", "norm", "softmax".
    name: PyTorch's, as "convolution". args, kwargs: of the call. All tensors are detached from the
    network's graph, and as they were, whatever the network does to them later.
    number: its place among the operations with a rule. readers: the names of those that read its
    output, "norm" for any of that kind. before: the operation that made its first input, if that
    has a rule, too.
    """

    def __init__(self, kind: str, function: Any, args: Sequence[Any], kwargs: Any) -> None:
        self.kind, self.name, self.function, self.kwargs = kind, name_of(function), function, kwargs
        self.places = [i for i, value in enumerate(args) if _depends(value)]
        self.args: list[Any] = [
            value.detach() if isinstance(value, Tensor) else value for value in args
        ]
        self.outputs: list[Tensor] = []
        self.number = 0
        self.readers: list[str] = []
        self.before = getattr(args[self.places[0]], "made_by", None) if self.places else None

    @property
    def inputs(self) -> list[Tensor]:
        """Those of its arguments that depend on the images."""
        return [self.args[place] for place in self.places]

    @property
    def output(self) -> Tensor:
        """What it made of them; the first where there are several: of a maximum, the value."""
        return self.outputs[0]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The operation done again, on other inputs."""
        args = list(self.args)
        for place, value in zip(self.places, inputs, strict=True):
            args[place] = value.clone()  # it may work in place
        return self.function(*args, **self.kwargs)

    @property
    def merges(self) -> bool:
        """Whether it is a BatchNorm that can be merged into the convolution before it."""
        return self.name == "native_batch_norm" and bool(
            self.before and self.before.merged_into_norm
        )

    @property
    def merged_into_norm(self) -> bool:
        """Whether it is a convolution whose output goes to a BatchNorm and nowhere else."""
        return self.name == "convolution" and self.readers == ["native_batch_norm"]

    def copy(self, storage: int) -> None:
        """Keep copies of what lies in a storage that is about to be written to."""
        for values in (self.args, self.outputs):
            for i, value in enumerate(values):
                if isinstance(value, Tensor) and storage_of(value) == storage:
                    values[i] = value.clone()


_kinds: dict[Any, str | None] = {}


def kind_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The kind of an operation; None where there is none for it."""
    if function is torch.ops.aten.native_batch_norm.default and args[5]:
        # An instance norm, which PyTorch makes of one of a single picture; or of the batch, whose
        # pictures then depend on each other.
        return "norm" if len(args[0]) == 1 else None
    key = (function, *map(_sort, args), *((name, _sort(value)) for name, value in kwargs.items()))
    if key not in _kinds:
        _kinds[key] = _found_kind(function, args, kwargs)
    return _kinds[key]


def _sort(value: Any) -> Any:
    """What of an argument can matter for the kind: not the numbers in a tensor, nor a shape."""
    if isinstance(value, Tensor):
        return "depends" if value.requires_grad else "tensor"
    if isinstance(value, list | tuple):
        return tuple(map(_sort, value)) if any(isinstance(v, Tensor) for v in value) else "numbers"
    return value


def _found_kind(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    name = name_of(function)
    several = sum(map(_depends, tensors_in([*args, *kwargs.values()]))) > 1
    if name in ("hardtanh", "clamp", "clamp_min") and not several:
        low, high = [*args[1:], None, None][:2]
        if isinstance(low, int | float) and low == 0 and not isinstance(high, Tensor):
            return "relu"  # with a limit above it is a ReLU6
    if name == "div" and several:
        return None if kwargs else "quotient"
    kind = "route" if _is_view(function) else KIND_OF.get(name)
    if kind and (not several or kind == "route" or name in ("add", "sub")):
        return kind
    try:
        return _tried_kind(function, args, kwargs)
    except (RuntimeError, NotImplementedError):  # it cannot be done in float64
        return None


def _tried_kind(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Whether it is linear, found by trying it in float64 on random numbers."""
    generator = torch.Generator().manual_seed(0)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        numbers = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
        return numbers.to("cpu" if value.device.type == "mps" else value.device)

    leaves = tensors_in([*args, *kwargs.values()])
    places = [i for i, value in enumerate(leaves) if value.requires_grad]
    constants = [drawn(value) for value in leaves]

    def f(inputs: Mapping[int, Tensor]) -> Tensor:
        numbers = iter([inputs.get(i, value).clone() for i, value in enumerate(constants)])
        again = tree_map(lambda v: next(numbers) if isinstance(v, Tensor) else v, (args, kwargs))
        return torch.cat(
            [v.double().flatten() for v in tree_leaves(function(*again[0], **again[1]))]
        )

    def linear(of: Sequence[int]) -> bool:
        u, v = ({i: (drawn(leaves[i]) - 1) * size for i in of} for size in (1.0, 1e3))
        nothing = {i: torch.zeros_like(u[i]) for i in of}
        both = f({i: u[i] + v[i] for i in of})
        gap = both - f(u) - f(v) + f(nothing)
        return bool(gap.abs().max() <= 1e-9 * both.abs().max())

    if linear(places):
        return "linear"
    if len(places) > 1 and all(linear([place]) for place in places):
        return "product"
    return "pointwise" if torch.Tag.pointwise in function.tags and len(places) == 1 else None


def is_weighted(operation: Operation) -> bool:
    """Whether it is a convolution or a linear layer: units with weights for what they read."""
    if operation.name == "convolution":
        return operation.places == [0] and not operation.args[6]  # none that is transposed
    fits = (operation.name, operation.places) in (("addmm", [1]), ("mm", [0]))
    return fits and not operation.kwargs


def merged(operation: Operation, norm: Operation | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight (units, ...) and bias of what `is_weighted`, the BatchNorm that follows merged in."""
    if operation.name == "addmm":
        return operation.args[2].T, operation.args[0]
    if operation.name == "mm":
        return operation.args[1].T, None
    _, weight, bias, *_ = operation.args
    if norm is None:
        return weight, bias
    _, scale, shift, mean, variance, _, _, epsilon = norm.args
    # The library's function makes parameters, which would go on needing gradients.
    fused = nn.utils.fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
    return fused[0].detach(), fused[1].detach()


def normalized(norm: Operation) -> tuple[int, Tensor | None, float]:
    """Of a "norm": the number of groups of values, each normalised by itself; weight; ε."""
    x, args = norm.inputs[0], norm.args
    along = [1, -1, *[1] * (x.ndim - 2)]  # the weight's axis is that of the channels
    if norm.name == "native_layer_norm":
        shape, weight, _, epsilon = args[1:]
        return x.numel() // torch.Size(shape).numel(), weight, epsilon
    if norm.name == "native_group_norm":
        weight, _, n, _, _, groups, epsilon = args[1:]
        return n * groups, weight if weight is None else weight.view(along), epsilon
    weight, epsilon = args[1], args[-1]
    return x.shape[1], weight if weight is None else weight.view(along), epsilon


def _depends(value: Any) -> bool:
    # Inside `explaining` the parameters are frozen: only what comes from the images has a gradient.
    return isinstance(value, Tensor) and value.requires_grad


def written_to(function: Any, args: Sequence[Any]) -> list[Tensor]:
    """What an operation works on in place."""
    if not function._schema.is_mutable:
        return []
    pairs = zip(function._schema.arguments, args, strict=False)
    return [v for a, v in pairs if a.is_write and isinstance(v, Tensor)]


def _is_view(function: Any) -> bool:
    returned = function._schema.returns[0].alias_info if function._schema.returns else None
    return returned is not None and not function._schema.is_mutable


def storage_of(value: Tensor) -> int:
    """Where a tensor's numbers lie: the same for views of the same numbers."""
    return value.untyped_storage().data_ptr()


def name_of(function: Any) -> str:
    """PyTorch's name of an operation, the same in place, and for what torch.jit.trace has made."""
    name = function._schema.name.partition("::")[2].removesuffix("_")
    return "convolution" if name == "_convolution" else name


def said_of(function: Any) -> str:
    """An operation's name in a sentence."""
    return name_of(function).strip("_").removeprefix("native_").removesuffix("_kernel")
