"""The guard round a call of an answer: it works on copies, and what it changes is put back."""

import copy
import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from course_utils.networks import Classifier

Answer = Callable[..., Any]
Case = Mapping[str, Any]  # the keyword arguments of one call


class Wrong(AssertionError):
    """What does not hold, and a hint; a notebook shows these two lines in place of a traceback."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}\nHint: {hint}")
        self.what, self.hint = what, hint

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self.what}", f"  Hint: {self.hint}"]


class Stumble(Exception):
    """What a model of a check raises halfway, to see what an answer leaves on it after an error."""


HOOKS_LEFT = "remove each hook when you are done, also after an error: try … finally."
MODE_LEFT = "the model came in one mode and went in another; remember its mode and give it back."
GRADIENTS_LEFT = (
    "torch.autograd.grad gives a gradient without writing it into .grad; what is in .grad already "
    "belongs to others, so leave zero_grad alone, too."
)
FLAGS_LEFT = "give each parameter its flag back, or freeze a copy (copy.deepcopy)."
WEIGHTS_LEFT = "others go on using the model that you got: change a copy (copy.deepcopy)."
STATISTICS_LEFT = (
    "BatchNorm moves its running statistics whenever it runs in training mode: stay in the mode "
    "that came, or run a copy (copy.deepcopy)."
)
ATTRIBUTE_LEFT = "set it on a copy (copy.deepcopy), or give it back its value."
RESEEDED = (
    "what the rest of the notebook draws depends on it: draw from a generator of your own, or "
    "inside torch.random.fork_rng."
)
GRAD_MODE_LEFT = "use it as `with torch.no_grad():`, which ends by itself."
DTYPE_LEFT = "give single tensors their type: .double(), .float()."
ON_THE_GRAPH = (
    "who gets it cannot make a NumPy array of it, and the whole graph stays in memory: return "
    ".detach() of it."
)
ITSELF = "give back a copy (copy.deepcopy), not the model that came."
SHARED = "its tensors are still those of the model that came: copy them, too (copy.deepcopy)."
NEEDS_GRADIENT = (
    "what is computed from it from now on gets a graph: call requires_grad_() on a copy, "
    ".detach().clone()."
)
AFTER_ERROR = (
    "what a function changes it must give back after an error, too: go on inside try, and give it "
    "back inside finally."
)
IN_PLACE = "something works in place (+=, /=, a[…] = …, abs_()): let it work on a copy of that."


def guarded(answer: Answer, *, moves: Collection[str] = ()) -> Answer:
    """The answer; called, it raises `Wrong` for what it changes, or if its result hangs on it.

    It gets copies of tensors, arrays and lists; models and other objects come as they are, and
    are put back afterwards as they were, like the global generators. moves: those of "torch",
    "NumPy" and "Python" whose generator a library that must be used moves by itself.
    """

    @functools.wraps(answer)
    def call(**case: Any) -> Any:
        result, faults = _call(answer, case)
        found = [*_faults_of(result, case), *faults]
        # What hangs on the graph may do so because of something else that is left.
        for fault in sorted(found, key=lambda fault: fault.hint == ON_THE_GRAPH):
            if not fault.what.startswith(tuple(f"{owner}'s global generator" for owner in moves)):
                raise fault
        return result

    return call


def isolated(answer: Answer) -> Answer:
    """The answer; what it changes is put back, and no word is said about it."""
    return functools.wraps(answer)(lambda **case: _call(answer, case)[0])


def after_an_error(answer: Answer, case: Case) -> None:
    """Raise `Wrong` for what a guarded answer leaves when the case's models raise an error."""
    raising = {key: _raising(value) for key, value in case.items() if isinstance(value, nn.Module)}
    try:
        answer(**{**case, **raising})
    except Wrong as wrong:
        raise Wrong(f"after an error in the model {wrong.what}", AFTER_ERROR) from None


def _raising(model: nn.Module) -> nn.Module:
    """A copy of the model that raises `Stumble` when all its layers have run."""
    raising = copy.deepcopy(model)
    raising.register_forward_hook(_stumble)
    return raising


def _stumble(*_: Any) -> None:
    raise Stumble


def _call(answer: Answer, case: Case) -> tuple[Any, list[Wrong]]:
    given = {name: _copied(value) for name, value in case.items()}
    notes = [_arguments(case, given), _global_state()]
    notes += [_object(name, value) for name, value in given.items() if _comes_as_it_is(value)]
    result, faults = None, []
    try:
        result = answer(**given)
    except Stumble:
        pass  # the model's doing; what counts is what is left on it now
    finally:
        faults = [fault for look in notes for fault in look()]
    return result, faults


# Each note looks, when it is called, at what has changed since, says so, and puts it back.
Note = Callable[[], list[Wrong]]
CONTAINERS = (list, dict, set)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return copy.deepcopy(value) if isinstance(value, (np.ndarray, *CONTAINERS)) else value


def _comes_as_it_is(value: Any) -> bool:
    plain = isinstance(value, (Tensor, np.ndarray, type, *CONTAINERS)) or callable(value)
    return isinstance(value, nn.Module) or (hasattr(value, "__dict__") and not plain)


def _arguments(case: Case, given: Case) -> Note:
    def look() -> list[Wrong]:
        faults = []
        for name, value in given.items():
            if not alike(case[name], value):
                faults.append(Wrong(f"the argument {name} has changed", IN_PLACE))
            elif isinstance(value, Tensor) and value.requires_grad != case[name].requires_grad:
                what = f"requires_grad of the argument {name} has changed"
                faults.append(Wrong(what, NEEDS_GRADIENT))
            elif isinstance(value, Tensor) and value.is_leaf and value.grad is not None:
                faults.append(Wrong(f"a gradient is left in {name}.grad", GRADIENTS_LEFT))
        return faults

    return look


def alike(one: Any, other: Any) -> bool:
    """Whether two values are of the same type, shape and content; NaN is like NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return same and bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=one.dtype.kind in "fc"
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


# Models and other objects ---------------------------------------------------------------------


def _object(name: str, value: Any) -> Note:
    """Of a model everything, of another object what does not begin with an underscore."""
    if isinstance(value, Classifier):
        notes = [_attributes(name, value), _model(f"{name}.model", value.model)]
        return lambda: [fault for look in notes for fault in look()]
    return _model(name, value) if isinstance(value, nn.Module) else _attributes(name, value)


def _attributes(name: str, value: Any) -> Note:
    before = {key: (kept, _copied(kept)) for key, kept in vars(value).items() if key[0] != "_"}

    def look() -> list[Wrong]:
        now = {key: kept for key, kept in vars(value).items() if key[0] != "_"}
        faults = []
        for key in before.keys() | now.keys():
            if key not in before:
                del vars(value)[key]
            elif key not in now or not alike(now[key], before[key][1]):
                vars(value)[key] = before[key][1]
            else:
                continue
            faults.append(Wrong(f"{name}.{key} has changed", ATTRIBUTE_LEFT))
        return faults

    return look


def _model(name: str, model: nn.Module) -> Note:
    """Its tensors, and of each module what is in it: hooks, mode, layers, attributes."""
    tensors = [*model.parameters(), *model.buffers()]
    notes = [_module(name, path, module) for path, module in model.named_modules()]
    notes += [_tensor(name, tensor) for tensor in tensors]

    def look() -> list[Wrong]:
        faults = [fault for look in notes for fault in look()]
        return sorted(faults, key=lambda fault: ORDER.index(fault.hint))  # the cause before effects

    return look


ORDER = (
    HOOKS_LEFT, MODE_LEFT, FLAGS_LEFT, WEIGHTS_LEFT, GRADIENTS_LEFT, STATISTICS_LEFT, ATTRIBUTE_LEFT
)  # fmt: skip


def _module(name: str, path: str, module: nn.Module) -> Note:
    where = f"{name}.{path}" if path else name
    seen = _attributes(where, module)
    parts = {
        key: (kept, dict(kept)) for key, kept in vars(module).items() if isinstance(kept, dict)
    }
    mode = module.training

    def look() -> list[Wrong]:
        faults = []
        for key, (kept, was) in parts.items():
            changed = list(kept) != list(was) or any(kept[name] is not was[name] for name in was)
            if changed and key[0] == "_":
                hooks = key.endswith("_hooks")
                what = f"a hook is left on {where}" if hooks else f"{where} has other parts"
                faults.append(Wrong(what, HOOKS_LEFT if hooks else WEIGHTS_LEFT))
                kept.clear()
                kept.update(was)
        if module.training != mode:
            faults.append(Wrong(f"the mode of {where} has changed", MODE_LEFT))
            module.training = mode
        return faults + seen()

    return look


def _tensor(name: str, tensor: Tensor) -> Note:
    kept, flag, grad = tensor.detach().clone(), tensor.requires_grad, tensor.grad
    gradient = None if grad is None else grad.detach().clone()
    these, hint = (
        ("weights", WEIGHTS_LEFT)
        if isinstance(tensor, nn.Parameter)
        else ("running statistics", STATISTICS_LEFT)
    )

    def look() -> list[Wrong]:
        faults = []
        if not alike(tensor.detach(), kept):
            faults.append(Wrong(f"the {these} of {name} have changed", hint))
            tensor.data = kept
        if tensor.requires_grad != flag:
            faults.append(
                Wrong(f"requires_grad of the parameters of {name} has changed", FLAGS_LEFT)
            )
            tensor.requires_grad_(flag)
        if tensor.grad is not grad or not alike(grad, gradient):
            what = "a gradient is left" if grad is None else "something has changed"
            faults.append(Wrong(f"{what} in .grad of the parameters of {name}", GRADIENTS_LEFT))
            tensor.grad = gradient
        return faults

    return look


# What belongs to everybody --------------------------------------------------------------------

_fresh = itertools.count(2**40)  # seeds that no answer takes


def _global_state() -> Note:
    generators = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    enabled, dtype, seed = torch.is_grad_enabled(), torch.get_default_dtype(), next(_fresh)
    # To build a layer draws from torch's generator, which is no fault; to seed it is one.
    torch.default_generator.manual_seed(seed)

    def look() -> list[Wrong]:
        now = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
        changed = {
            Wrong("torch's global generator was seeded", RESEEDED): torch.initial_seed() != seed,
            Wrong("NumPy's global generator has moved", RESEEDED): not alike(now[0], generators[1]),
            Wrong("Python's global generator has moved", RESEEDED): now[1] != generators[2],
            Wrong("gradients are switched on or off", GRAD_MODE_LEFT): (
                torch.is_grad_enabled() != enabled
            ),
            Wrong("torch's default dtype has changed", DTYPE_LEFT): (
                torch.get_default_dtype() != dtype
            ),
        }
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        random.setstate(generators[2])
        torch.set_grad_enabled(enabled)
        torch.set_default_dtype(dtype)
        return [fault for fault, found in changed.items() if found]

    return look


# What comes back ------------------------------------------------------------------------------


def _faults_of(result: Any, case: Case) -> Iterator[Wrong]:
    parts = list(result.values()) if isinstance(result, dict) else result
    parts = parts if isinstance(parts, list | tuple) else [parts]
    if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
        yield Wrong("the result still hangs on the graph: it needs a gradient", ON_THE_GRAPH)
    for model in case.values():
        if isinstance(result, nn.Module) and isinstance(model, nn.Module):
            if result is model:
                yield Wrong("the result is the model itself", ITSELF)
            if _storages(result) & _storages(model):
                yield Wrong("the result shares its weights with the model that came", SHARED)


def _storages(model: nn.Module) -> set[int]:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
