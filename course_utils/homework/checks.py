"""What the checks of all homework share: say what holds, find what does not, name the mistake.

The module hwNN has the exercises of homework NN. An exercise is a generator function. It takes the
answer, yields a sentence for each thing that holds, and raises `Wrong` at the first that does not.
Beside it stand the mistakes that people make, each with its hint.
"""

import difflib
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Answer = Callable[..., Any]


class Wrong(AssertionError):
    """What does not hold, and a hint; a notebook shows these two lines in place of a traceback."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(f"{what}\nHint: {hint}")
        self.what, self.hint = what, hint

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self.what}", f"  Hint: {self.hint}"]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and the hint that it gets."""

    name: str
    answer: Answer
    hint: str


@dataclass(frozen=True)
class Exercise:
    """An exercise: its check, the mistakes it knows, and the modules that hold its answer."""

    name: str
    check: Callable[[Answer], Iterator[str]]
    mistakes: tuple[Mistake, ...]
    forbidden: tuple[str, ...]


EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str, *mistakes: Mistake, forbidden: tuple[str, ...] = ()
) -> Callable[[Callable[[Answer], Iterator[str]]], Callable[[Answer], Iterator[str]]]:
    """Enter a check into EXERCISES; calls into the `forbidden` modules are not an answer."""

    def enter(function: Callable[[Answer], Iterator[str]]) -> Callable[[Answer], Iterator[str]]:
        EXERCISES[name] = Exercise(name, function, mistakes, forbidden)
        return function

    return enter


def check(name: str, answer: Answer) -> None:
    """Print what holds of an answer to a homework, and stop at the first thing that does not.

    name: the exercise, such as "hw02.grad_cam"; answer: the function that was written for it.
    Raises NotImplementedError where nothing is written yet, `Wrong` with a hint where something
    does not hold, and whatever the answer itself raises.
    """
    found = find(name)
    if not callable(answer):
        raise TypeError(
            f"answer must be the function itself, as in "
            f'check("{name}", {name.rpartition(".")[2]}), not {type(answer).__name__}'
        )
    for holds in found.check(_watched(answer, found)):
        print(f"✓ {holds}")
    print(f"{name}: all of it holds.")


def find(name: str) -> Exercise:
    """The exercise of that name; ValueError with the nearest names where there is none."""
    homeworks = sorted(path.stem for path in Path(__file__).parent.glob("hw*.py"))
    asked = str(name).partition(".")[0]
    for homework in [asked] if asked in homeworks else homeworks:
        importlib.import_module(f"{__package__}.{homework}")
    if name not in EXERCISES:
        near = difflib.get_close_matches(str(name), EXERCISES, n=3, cutoff=0) or list(EXERCISES)
        raise ValueError(f"name: there is no exercise {name!r}; the nearest are {', '.join(near)}")
    return EXERCISES[name]


def _watched(answer: Answer, exercise: Exercise) -> Answer:
    """The answer, which is refused where it calls what it was to be written in place of.

    However a function was imported, its code still belongs to its module. The check's own
    reference, of which the mistakes are variants, is no answer either.
    """
    prefixes = tuple(f"{module}." for module in exercise.forbidden)
    mistaken = [mistake.answer for mistake in exercise.mistakes]
    codes = {getattr(_inner(function), "__code__", None) for function in mistaken}
    if any(answer is function for function in mistaken):
        codes = set()

    @functools.wraps(answer)
    def watched(*args: Any, **options: Any) -> Any:
        calls: list[str] = []

        def note(frame: types.FrameType, event: str, _: object) -> None:
            module = str(frame.f_globals.get("__name__", ""))
            if event == "call" and (f"{module}.".startswith(prefixes) or frame.f_code in codes):
                calls.append(f"{module}.{frame.f_code.co_qualname}")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            result = answer(*args, **options)
        finally:
            sys.setprofile(before if callable(before) else None)  # a profiler in C is no function
        if calls:
            raise Wrong(
                f"the answer calls {calls[0]}", "the exercise is to write this function yourself."
            )
        return result

    return watched


def _inner(function: Answer) -> Answer:
    """The function whose arguments a partial fixes."""
    return _inner(function.func) if isinstance(function, functools.partial) else function


def compare(
    answer: Answer,
    reference: Answer,
    cases: Sequence[Mapping[str, Any]],
    mistakes: Sequence[Mistake],
    *,
    what: str,
    hint: str,
    tolerance: float = 1e-3,
) -> None:
    """Raise `Wrong` unless answer and reference give the same on all cases, to rounding.

    cases: keyword arguments of one call each. Where a known mistake gives just what the answer
    gives, on all cases, its hint is told; else `hint`. what: "the map", for the sentence.
    tolerance: of the largest magnitude in the reference's tensor.
    """
    got = [tensor_of(answer(**case), what) for case in cases]
    wanted = [tensor_of(reference(**case), what) for case in cases]
    if all(_same(g, w, tolerance) for g, w in zip(got, wanted, strict=True)):
        return
    for mistake in mistakes:
        if all(
            _same(g, tensor_of(mistake.answer(**case), what), tolerance)
            for g, case in zip(got, cases, strict=True)
        ):
            hint = mistake.hint
            break
    for g, w in zip(got, wanted, strict=True):
        if g.shape != w.shape:
            raise Wrong(f"{what} is {tuple(g.shape)}, wanted is {tuple(w.shape)}", hint)
        if not _same(g, w, tolerance):
            away = float((g - w).abs().max() / w.abs().max().clamp(min=1e-30))
            raise Wrong(f"{what} is off by up to {away:.0%} of its largest value", hint)


def tensor_of(result: object, what: str) -> torch.Tensor:
    """The result of an answer, which must be a tensor, in double precision."""
    if not isinstance(result, torch.Tensor):
        raise Wrong(
            f"{what} is {type(result).__name__}, wanted is a torch.Tensor",
            "does the function end with return, and what does it return?",
        )
    return result.detach().double()


def _same(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal to rounding; NaN is equal to nothing."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


HOOKS_LEFT = "remove each hook when you are done, also after an error: try … finally."
MODE_LEFT = "the model came in one mode and went in another; remember its mode and give it back."
GRADIENTS_LEFT = "torch.autograd.grad gives a gradient without writing it into .grad."


@contextmanager
def untouched(model: nn.Module, images: torch.Tensor) -> Iterator[None]:
    """Raise `Wrong` where what was done inside left something on the model or the images."""
    before, pixels = _state(model), images.clone()
    yield
    after = _state(model)
    for key, what, hint in (
        ("hooks", "a hook is left on the model", HOOKS_LEFT),
        ("modes", "the model's mode has changed", MODE_LEFT),
        ("gradients", "a gradient is left in .grad of the model", GRADIENTS_LEFT),
        ("flags", "requires_grad of the model's parameters has changed", "give each flag back."),
    ):
        if before[key] != after[key]:
            raise Wrong(what, hint)
    if images.grad is not None or not torch.equal(images.detach(), pixels.detach()):
        raise Wrong("the images have changed", "work on images.clone() or images.detach().")


def _state(model: nn.Module) -> dict[str, list[Any]]:
    """What a function could leave on a model."""
    modules, parameters = list(model.modules()), list(model.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "hooks": [len(getattr(module, name)) for module in modules for name in hooks],
        "modes": [module.training for module in modules],
        "gradients": [parameter.grad is not None for parameter in parameters],
        "flags": [parameter.requires_grad for parameter in parameters],
    }
