"""Backward rules: one mechanism for every modified backward pass.

DeconvNet, Guided Backpropagation, DeepLIFT, LRP and PatternNet are the gradient, except for what a
few operations do on the way back. A ReLU can be written in a dozen ways, and below all of them
PyTorch has one: whatever module, function or method a network calls, in place or not, its
operations arrive at `Rules` as basic ones (`aten.relu`), one after the other. Autograd, as always,
makes a node for each, which will compute its derivative on the way back. A rule is hooked to it:

    def guided(operation, gradient, derived):
        return derived[0].clamp(min=0)

    propagate(model, images, Rules("guided_backprop", {"relu": guided}), score)

`gradient` arrives at the operation's output, `derived` is what its derivative makes of that at each
of its inputs, and what the rule returns goes on in its place. The model is not touched: the nodes
are those of this one pass, and go with it. What is linear needs no rule. Any other operation
without one is an error that names it, never a silent gradient.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_utils.layers import Watch, capture, tensors_in
from course_utils.methods.operations import (
    Operation,
    kind_of,
    name_of,
    said_of,
    storage_of,
    written_to,
)

# (operation, gradient of its output, what its derivative makes of that for each input) → what goes
# on for each input; for a single input the tensor alone.
Rule = Callable[[Operation, Tensor, Sequence[Tensor]], Tensor | Sequence[Tensor]]
# (operation, gradient of its output) → what its derivative gets in its place
Entry = Callable[[Operation, Tensor], Tensor]


class Rules(Watch):
    """While this is on, the operations of a network go backward by these rules.

    method: the name that errors mention. rules: kind of operation → rule; `entries`: kind → what
    changes a gradient before the operation's own derivative gets it. Kinds in `derivative` keep
    their derivative, as do linear operations and maxima; all other operations are errors.
    operations: those with a rule or an entry, in the order in which the network ran.
    """

    def __init__(
        self,
        method: str,
        rules: Mapping[str, Rule],
        *,
        entries: Mapping[str, Entry] | None = None,
        derivative: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.method, self.rules, self.entries = method, rules, entries or {}
        self.known = {*rules, *self.entries, *derivative, "linear", "route", "pad", "max_pool"}
        self.operations: list[Operation] = []
        self._holders: dict[int, list[Operation]] = {}  # which operations keep what is in a storage
        self._last: tuple | None = None  # what `_made` is told of the operation before

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._holders.clear()
        if error[0] is None:
            self._finish_last()

    def _finish_last(self) -> None:
        """By now autograd has made the node of the operation before."""
        last, self._last = self._last, None
        if last:
            self._made(*last)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._finish_last()
        kwargs = kwargs or {}
        given = tensors_in([*args, *kwargs.values()])
        inputs = [value for value in given if value.requires_grad]
        cut = next((value.cut for value in given if hasattr(value, "cut")), None)
        if torch.Tag.nondeterministic_seeded in function.tags:
            cut = said_of(function)  # another value in each pass
        kind, operation = None, None
        if inputs:
            kind = kind_of(function, args, kwargs)
            self._use(function, kind, inputs)
            if kind and (kind in self.rules or kind in self.entries):
                operation = Operation(kind, function, args, kwargs)
        for value in written_to(function, args):
            storage = storage_of(value)
            for holder in self._holders.pop(storage, ()):
                holder.copy(storage)
            if operation:
                operation.copy(storage)
        output = function(*args, **kwargs)
        if inputs or cut:
            self._last = function, kind, operation, output, cut, torch.is_grad_enabled()
        return output

    def _use(self, function: Any, kind: str | None, inputs: Sequence[Tensor]) -> None:
        for value in inputs:
            if not hasattr(value, "made_by") and not hasattr(value._base, "made_by"):
                raise ValueError(
                    f"model: {self.method} must see each operation, but what comes before "
                    f"{said_of(function)} is hidden (a compiled or a custom function)"
                )
            maker = getattr(value, "made_by", None)
            if maker and name_of(function) != "detach":  # by which autograd keeps a result
                maker.readers.append("norm" if kind == "norm" else name_of(function))

    def _made(
        self,
        function: Any,
        kind: str | None,
        operation: Operation | None,
        output: Any,
        cut: str | None,
        grad: bool,
    ) -> None:
        """Note on the tensors that an operation made where they come from; hook its rule."""
        tensors = tensors_in([output])
        made = [value for value in tensors if grad and value.requires_grad]
        if len(made) < len(tensors) and not _only_shapes(function):
            for value in tensors:
                if not (grad and value.requires_grad):
                    value.cut = cut or said_of(function)  # type: ignore[attr-defined]
        if not made:
            return
        if cut:
            raise ValueError(
                f"model: {self.method} must follow each operation, but no gradient passes "
                f"through {cut}, which decides on a value here"
            )
        if kind not in self.known:
            raise ValueError(
                f"model: {self.method} has no rule for its operation {said_of(function)}"
            )
        for value in made:
            mark(value, operation)
            if value._base is not None and not hasattr(value._base, "made_by"):
                mark(value._base)  # it was written to through this view
        if operation:
            operation.number = len(self.operations)
            self.operations.append(operation)
            operation.outputs = [value.detach() for value in tensors]
            for value in (*operation.args, *operation.outputs):
                if isinstance(value, Tensor):
                    self._holders.setdefault(storage_of(value), []).append(operation)
            self._hook(operation, made[0])

    def _hook(self, operation: Operation, made: Tensor) -> None:
        """Hook the operation's rule and entry to the node that autograd made for it."""
        rule, entry = self.rules.get(operation.kind), self.entries.get(operation.kind)
        base = made._base if written_to(operation.function, operation.args) else None
        node: Any = made.grad_fn if base is None else base.grad_fn
        edges = [i for i, (before, _) in enumerate(node.next_functions) if before is not None]

        def enter(gradients: tuple) -> tuple:
            return entry(operation, gradients[0]), *gradients[1:]  # type: ignore[misc]

        def leave(derived: tuple, gradients: tuple) -> tuple:
            result = rule(operation, gradients[0], [derived[i] for i in edges])  # type: ignore[misc]
            results = [result] if isinstance(result, Tensor) else result
            found = list(derived)
            for i, value in zip(edges, results, strict=True):
                found[i] = value
            return tuple(found)

        if base is not None:
            enter, leave = _in_part(made, base, enter, leave)
        if entry:
            node.register_prehook(enter)
        if rule:
            node.register_hook(leave)


def _only_shapes(function: Any) -> bool:
    """Whether an operation looks at no number of what it is given, as `zeros_like`."""
    return said_of(function).startswith("new_") or said_of(function).endswith("_like")


def derivative(
    operation: Operation, gradient: Tensor, derived: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The rule that changes nothing; with it, an operation is kept to be looked at."""
    return derived


def _in_part(made: Tensor, base: Tensor, enter: Callable, leave: Callable) -> tuple:
    """The same hooks where the operation worked in place on a part of a tensor.

    Autograd then has one node for the whole tensor, whose gradients have the whole's shape.
    """
    place = made.size(), made.stride(), made.storage_offset()
    whole = base.size(), base.stride()

    def copied(gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of the whole, laid out as its base, and the part of it."""
        copy = gradient.new_empty_strided(*whole).copy_(gradient)
        return copy, copy.as_strided(*place)

    def enter_part(gradients: tuple) -> tuple:
        copy, part = copied(gradients[0])
        part.copy_(enter((part.clone(),))[0])
        return (copy,)

    def leave_part(derived: tuple, gradients: tuple) -> tuple:
        above = copied(gradients[0])[1]
        if derived[0] is None:
            return leave(derived, (above,))
        copy, part = copied(derived[0])
        first, *others = leave((part.clone(), *derived[1:]), (above,))
        part.copy_(first)
        return copy, *others

    return enter_part, leave_part


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
    (result,) = pull_back(start(scores.detach()), scores, [x])
    return result


def pull_back(gradient: Tensor, output: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of an output → that of each input, by autograd."""
    # Of a product, since PyTorch loads a library of symbols to check a gradient it is handed.
    return torch.autograd.grad((gradient * output).sum(), inputs)


def run(model: nn.Module, images: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """A forward pass under the rules: what the gradient can be taken to, and the output."""
    x = images.detach().clone().requires_grad_()
    given = x.clone()  # its first layer may work in place
    mark(given)
    # Attention as products and a softmax, in place of one operation that does it all.
    with sdpa_kernel(SDPBackend.MATH), torch.jit.optimized_execution(False), rules:
        output = model(given)
    if isinstance(output, Tensor) and not hasattr(output, "made_by"):
        raise ValueError(
            f"model: {rules.method} must see each operation, but those of this model are hidden: "
            "it is compiled, or its logits carry no gradient to the images"
        )
    return x, output


def mark(value: Tensor, operation: Operation | None = None) -> None:
    """Write on a tensor which operation with a rule made it; None: one without a rule."""
    value.made_by = operation  # type: ignore[attr-defined]
