"""Backward rules: one mechanism for every modified backward pass.

DeconvNet, Guided Backpropagation, DeepLIFT, LRP and PatternNet are the gradient, except for what a
few operations do on the way back. Here each operation of a running network is looked up in a table
of rules. A rule turns the gradient of an operation's output into that of its inputs:

    def guided(operation, gradient):
        (x,) = operation.inputs
        return gradient.clamp(min=0) * (x > 0)

    propagate(model, images, Rules("guided_backprop", {"relu": guided}), score)

Modules, functions and methods, in place or not, used once or twice: all arrive here, and the model
itself is not touched. An operation without a rule is an error that names it, never a silent
gradient.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from course_utils.layers import AVERAGES, MAXIMA, MOVES, capture, functions

Rule = Callable[["Operation", Tensor], Tensor | tuple[Tensor, ...]]


ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardsigmoid",
    "sigmoid", "tanh", "softplus",
)  # fmt: skip
LINEAR = ("conv", "linear", "batch_norm", "average", "sum", "scale")
KINDS: dict[str, list[Callable]] = {
    **{name: functions(name) for name in ACTIVATIONS},
    "conv": [F.conv1d, F.conv2d, F.conv3d],
    "linear": [F.linear],
    "batch_norm": [F.batch_norm],
    "average": AVERAGES,
    "max_pool": MAXIMA,
    "sum": functions("add", "radd", "sub", "rsub", "sum", "neg"),
    "product": functions("mul", "rmul", "multiply"),
    "quotient": functions("div", "truediv", "true_divide", "divide"),
    "route": MOVES,
}  # fmt: skip
KIND_OF = {function: kind for kind, members in KINDS.items() for function in members}


class Operation:
    """One operation of a forward pass, kept so that a rule can look at it and do it again.

    kind: of KINDS, or "scale". function, args, kwargs: the call.
    inputs: those of its arguments that depend on the images. output: what it made of them. Both are
    detached from the network's graph: the graph holds this operation, and if the operation held the
    graph, neither would ever be freed.
    number: its place among the operations with a rule, in the order in which the network runs.
    """

    number: int

    def __init__(self, kind: str, function: Callable, args: Sequence[Any], kwargs: Any) -> None:
        self.kind, self.function, self.args, self.kwargs = kind, function, list(args), kwargs
        self.places = [i for i, value in enumerate(args) if _depends(value)]
        self.inplace = _works_in_place(function, args, kwargs)
        if self.inplace:
            self.args[0] = args[0].detach().clone()  # what it works on will be gone
        for place in self.places:
            self.args[place] = self.args[place].detach()
        self.inputs = tuple(self.args[place] for place in self.places)
        self._versions = [value._version for value in self.inputs]
        self._leaves = [value.detach().requires_grad_() for value in self.inputs]
        self._result = self(*self._leaves)
        self.output = self._result.detach()

    def __call__(self, *inputs: Tensor, **changed: Any) -> Tensor:
        """The operation done again, on other inputs; `changed` are keyword arguments."""
        args = list(self.args)
        for place, value in zip(self.places, inputs, strict=True):
            args[place] = value
        if self.inplace:
            args[0] = args[0].clone()
        return self.function(*args, **{**self.kwargs, **changed})

    @property
    def intact(self) -> bool:
        """Whether its inputs are what they were: nobody has worked in place on them since."""
        return [value._version for value in self.inputs] == self._versions

    def gradient(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Its true backward pass: the gradient of the output → that of each input."""
        return torch.autograd.grad(self._result, self._leaves, gradient, retain_graph=True)


class Rules(TorchFunctionMode):
    """While this is on, the operations of a network go backward by these rules.

    method: the name that errors mention. rules: kind of operation → rule; the kinds are those of
    KINDS, and "scale" for a product or quotient with a constant. What has no rule keeps its
    gradient if it is linear, moves values about, or takes a maximum; all else is an error.
    merge: a BatchNorm right after a convolution is merged into it.
    operations: what rules were applied to, in the order in which the network ran.
    """

    def __init__(self, method: str, rules: Mapping[str, Rule], *, merge: bool = False) -> None:
        super().__init__()
        self.method, self.rules, self.merge = method, rules, merge
        self.operations: list[Operation] = []
        # Of each convolution: what went into it, and the version of what came out.
        self._convolved: dict[Operation, tuple[Tensor, int]] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._convolved.clear()

    def __torch_function__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = _positional(function, args, kwargs or {})
        inputs = _dependent(args, kwargs)
        cut = self._cut(function, inputs, args, kwargs)
        kind = _kind(function, args, kwargs, len(inputs))
        if (
            inputs
            and not cut
            and kind is not None
            and kind in self.rules
            and torch.is_grad_enabled()
        ):
            return self._apply(kind, function, args, kwargs)
        output = function(*args, **kwargs)
        made = args[0] if function is Tensor.__setitem__ else output
        if _dependent(made):
            if cut:
                raise ValueError(
                    f"model: {self.method} must follow each operation, but no gradient passes "
                    f"through {cut}, which decides on a value here"
                )
            if kind not in (*LINEAR, "route", "max_pool"):
                raise ValueError(
                    f"model: {self.method} has no rule for its operation {_name(function)}"
                )
            _see(made)
        elif (inputs or cut) and not re.search("^new_|_like$", _name(function)):
            for value in tree_leaves(output):
                if isinstance(value, Tensor):
                    value.cut = cut or _name(function)  # type: ignore[attr-defined]
        return output

    def _cut(self, function: Callable, inputs: Sequence[Tensor], *args: Any) -> str | None:
        """What cut one of the arguments off the images, as y > 0 does; an error if it is hidden."""
        if not all(hasattr(value, "made_by") for value in inputs):
            raise ValueError(
                f"model: {self.method} must see each operation, but what comes before "
                f"{_name(function)} is hidden (a compiled or a custom function)"
            )
        return next((value.cut for value in tree_leaves(args) if hasattr(value, "cut")), None)

    def _apply(self, kind: str, function: Callable, args: Any, kwargs: Any) -> Tensor:
        """The operation's output, with its rule as the backward pass."""
        merged = self._merged(args) if self.merge and kind == "batch_norm" else None
        kind, function, args, kwargs = merged or (kind, function, args, kwargs)
        operation = Operation(kind, function, args, kwargs)
        operation.number = len(self.operations)
        self.operations.append(operation)
        sources = [args[place] for place in operation.places]
        output = _Backward.apply(operation, self.rules[kind], *sources)
        if operation.inplace:
            output = args[0].copy_(output)
        _see(output, operation)
        if kind == "conv":
            self._convolved[operation] = sources[0], output._version
        return output

    def _merged(self, args: Any) -> tuple[str, Callable, Any, Any] | None:
        """A BatchNorm and the convolution right before it, as one convolution, if that is so."""
        y, mean, variance, scale, shift, _, _, eps = args
        conv = y.made_by
        if conv not in self._convolved:
            return None
        x, version = self._convolved[conv]
        if y._version != version or not conv.intact:
            return None  # somebody worked in place on what went in or came out
        _, weight, *rest = conv.args
        bias = rest[0] if rest else None
        fused = nn.utils.fuse_conv_bn_weights(weight, bias, mean, variance, eps, scale, shift)
        if conv in self.operations:  # unless another BatchNorm was merged into it
            self.operations.remove(conv)
        args = (x, *(value.detach() for value in fused), *rest[1:])
        return "conv", conv.function, args, conv.kwargs


class _Backward(torch.autograd.Function):
    """An operation's output, whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, rule: Rule, *sources: Tensor) -> Tensor:
        ctx.operation, ctx.rule = operation, rule
        return operation.output.clone()  # what comes next may work in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), operation = gradients, ctx.operation
        if not operation.intact:
            raise ValueError(
                f"model: it works in place on what its {_name(operation.function)} was given "
                "before, and that is needed on the way back; use inplace=False"
            )
        if gradient.stride() != operation.output.stride():  # a convolution is slow with two layouts
            gradient = torch.empty_like(operation.output).copy_(gradient)
        result = ctx.rule(operation, gradient)
        return None, None, *(result if isinstance(result, tuple) else (result,))


def propagate(
    model: nn.Module,
    images: Tensor,
    rules: Rules,
    score: Callable[[Tensor], Tensor],
    *,
    layer: str | None = None,
    start: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Tensor:
    """What reaches the images (N, C, H, W) when a score of each goes backward by the rules.

    score: makes the scores (N,) of the logits, or of the layer's activations if one is named.
    start: what the way back starts with, given the scores; 1 as in a gradient.
    To be called inside `explaining(model)`.
    """
    with capture(model, layer or []) as kept:
        x, output = run(model, images, rules)
    if layer:
        if not isinstance(kept.get(layer), Tensor):
            raise ValueError(f"layer: {layer!r} gives no activations when the model runs")
        output = kept[layer]
    scores = score(output)
    (result,) = torch.autograd.grad(scores, x, start(scores.detach()))
    return result


def run(model: nn.Module, images: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """A forward pass under the rules: what the gradient can be taken to, and the output."""
    x = images.detach().clone().requires_grad_()
    _see(x)
    with rules:
        output = model(x.clone())  # a copy: its first layer may work in place
    if isinstance(output, Tensor) and not hasattr(output, "made_by"):
        raise ValueError(
            f"model: {rules.method} must see each operation, but those of this model are hidden: "
            "it is compiled, or its logits carry no gradient to the images"
        )
    return x, output


def _see(values: Any, operation: Operation | None = None) -> None:
    """Write on tensors by which operation with a rule they were made; None: by one without."""
    for value in _dependent(values):
        value.made_by = operation  # type: ignore[attr-defined]


def _positional(function: Callable, args: Any, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
    """The arguments with tensors in their places: the images' first, then weights or the other."""
    kwargs = dict(kwargs)
    if function is F.batch_norm:
        bound = inspect.signature(F.batch_norm).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.args, {}
    weighted = KIND_OF.get(function) in ("conv", "linear")
    for name in (("input", "weight", "bias") if weighted else ("input", "other"))[len(args) :]:
        if name not in kwargs:
            break
        args = (*args, kwargs.pop(name))
    return tuple(args), kwargs


def _kind(function: Callable, args: Any, kwargs: Mapping[str, Any], inputs: int) -> str | None:
    """The kind of an operation; None where nobody can have a rule for it."""
    kind = KIND_OF.get(function)
    if kwargs.get("rounding_mode") or kwargs.get("training"):
        return None  # a quotient that is rounded, a dropout that is never off
    if kind in ("product", "quotient") and inputs == 1:
        divided = kind == "product" or _depends(args[0])
        return "scale" if divided else None
    if kind == "hardtanh":
        lowest = args[1] if len(args) > 1 else kwargs.get("min_val", -1)
        return "relu6" if lowest == 0 else kind  # nn.ReLU6 is a hardtanh from 0 to 6
    if kind == "batch_norm" and args[5]:
        return None  # it uses the batch's own statistics, and those depend on the images
    several = kind in ("sum", "product", "route")
    return kind if kind != "quotient" and (several or inputs <= 1) else None


def _works_in_place(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    marked = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    asked = name in ACTIVATIONS and any(value is True for value in (*args, kwargs.get("inplace")))
    return marked or asked


def _depends(value: Any) -> bool:
    # Inside `explaining` the parameters are frozen: only what comes from the images has a gradient.
    return isinstance(value, Tensor) and value.requires_grad


def _dependent(*values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if _depends(value)]


def _name(function: Callable) -> str:
    if getattr(function, "__name__", "") == "__get__":  # an attribute, as in x.mT
        function = function.__self__  # type: ignore[attr-defined]
    return getattr(function, "__name__", str(function)).strip("_")
