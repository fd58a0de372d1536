"""What the checks of all homework share: say what holds, find what does not, name the mistake.

The module hwNN has the exercises of homework NN, and of each exercise three things by its name:

    grad_cam          the answer, a function whose further keyword arguments make it wrong
    GRAD_CAM          its mistakes: {name: (the arguments that are changed, the hint)}
    check_grad_cam    the check, a generator function: it takes a student's answer, yields a
                      sentence for each thing that holds, and raises `Wrong` at the first that
                      does not
"""

import copy
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

import numpy as np
import torch
from torch import Tensor, nn

Answer = Callable[..., Any]
Case = Mapping[str, Any]  # the keyword arguments of one call
Mistakes = Mapping[str, tuple[Mapping[str, Any] | Answer, str]]  # {name: (what is changed, hint)}


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
    """An exercise: its check, its answer, its mistakes, and the modules that hold its answer."""

    name: str
    check: Callable[[Answer, "Exercise"], Iterator[str]]
    answer: Answer
    mistakes: Mapping[str, Mistake]
    forbidden: tuple[str, ...] = ()

    def hint(self, mistake: str) -> str:
        """The hint that this mistake gets."""
        return self.mistakes[mistake].hint


Check = Callable[[Answer, Exercise], Iterator[str]]
EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str, answer: Answer, mistakes: Mistakes, *, forbidden: tuple[str, ...] = ()
) -> Callable[[Check], Check]:
    """Enter a check into EXERCISES.

    mistakes: {name: (changes, hint)}. The wrong answer is `answer` with the keyword arguments of
    `changes`, or where that is a function, the function itself. forbidden: modules; an answer that
    calls what is defined in one of them is refused.
    """

    def enter(function: Check) -> Check:
        known = {
            mistake: Mistake(mistake, _changed(answer, changes), hint)
            for mistake, (changes, hint) in mistakes.items()
        }
        EXERCISES[name] = Exercise(name, function, answer, known, forbidden)
        return function

    return enter


def _changed(answer: Answer, changes: Mapping[str, Any] | Answer) -> Answer:
    return functools.partial(answer, **changes) if isinstance(changes, Mapping) else changes


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
    for holds in found.check(_watched(answer, found), found):
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
    """The answer; called, it raises `Wrong` if any function of a forbidden module ran meanwhile.

    A profile function sees each call of a Python function and looks at the module in which that
    function was defined, so that it does not matter how the answer imported it. The exercise's own
    answer and the functions of its mistakes are refused too, except where one of the mistakes is
    what is checked.
    """
    prefixes = tuple(f"{module}." for module in exercise.forbidden)
    mistaken = [mistake.answer for mistake in exercise.mistakes.values()]
    own = [] if any(answer is function for function in mistaken) else [exercise.answer, *mistaken]
    codes = {getattr(_inner(function), "__code__", None) for function in own}

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


# Comparing ------------------------------------------------------------------------------------


def compare(
    answer: Answer,
    exercise: Exercise,
    cases: Sequence[Case],
    *,
    what: str,
    hint: str,
    reference: Answer | None = None,
    of: Callable[[Answer], Answer] = lambda function: function,
    tolerance: float = 1e-3,
) -> None:
    """Raise `Wrong` unless an answer gives what the right one gives on all cases, to rounding.

    what: what is compared, "the map", for the sentence. hint: for an error that is not one of the
    exercise's mistakes. reference: the right answer; None is the exercise's own. of: makes the
    function that is compared, which gives a tensor, of each answer, right or wrong.
    tolerance: of the largest magnitude in the right tensor.
    """

    def results(function: Answer) -> list[Tensor]:
        return [tensor_of(function(**case), what) for case in cases]

    def same(one: Tensor, result: object) -> bool:
        return _same(one, tensor_of(result, what), tolerance)

    got, wanted = results(of(answer)), results(of(reference or exercise.answer))
    for g, w in zip(got, wanted, strict=True):
        if not same(g, w):
            hint = explain(got, exercise, cases, same=same, of=of, hint=hint)
            raise Wrong(_difference(g, w, what), hint)


def explain(
    got: Sequence[Any],
    exercise: Exercise,
    cases: Sequence[Case],
    *,
    hint: str,
    same: Callable[[Any, Any], bool],
    of: Callable[[Answer], Answer] = lambda function: function,
) -> str:
    """The hint of the exercise's mistake that gives the same as was got on all cases, or `hint`."""
    for mistake in exercise.mistakes.values():
        mistaken = of(mistake.answer)
        if all(same(one, mistaken(**case)) for one, case in zip(got, cases, strict=True)):
            return mistake.hint
    return hint


def tensor_of(result: object, what: str) -> Tensor:
    """The result of an answer, which must be a tensor, in double precision."""
    if not isinstance(result, Tensor):
        raise Wrong(
            f"{what} is {type(result).__name__}, wanted is a Tensor",
            "does the function end with return, and what does it return?",
        )
    return result.detach().double()


def remembered(answer: Answer) -> Answer:
    """The answer; for the same objects as arguments it gives its first result again."""
    # With each result its case: were it deleted, another object could get its id.
    found: dict[tuple[int, ...], tuple[dict[str, Any], Any]] = {}

    @functools.wraps(answer)
    def asked(**case: Any) -> Any:
        key = tuple(map(id, case.values()))
        if key not in found:
            found[key] = case, answer(**case)
        return found[key][1]

    return asked


def part(number: int, parts: str, hint: str) -> Callable[[Answer], Answer]:
    """For `compare`: one of the two things that each answer returns; `parts` names the two."""

    def of(function: Answer) -> Answer:
        def one(**case: Any) -> Any:
            result = function(**case)
            if not isinstance(result, tuple | list) or len(result) != 2:
                raise Wrong(f"the result is {type(result).__name__}, wanted are {parts}", hint)
            return result[number]

        return one

    return of


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal to rounding; NaN is equal to nothing."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def _difference(one: Tensor, other: Tensor, what: str) -> str:
    if one.shape != other.shape:
        return f"{what} is {tuple(one.shape)}, wanted is {tuple(other.shape)}"
    away = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
    return f"{what} is off by up to {away:.0%} of its largest value"


# What an answer must not change ---------------------------------------------------------------

HOOKS_LEFT = "remove each hook when you are done, also after an error: try … finally."
MODE_LEFT = "the model came in one mode and went in another; remember its mode and give it back."
GRADIENTS_LEFT = "torch.autograd.grad gives a gradient without writing it into .grad."


@contextmanager
def untouched(model: nn.Module, images: Tensor) -> Iterator[None]:
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


def unchanged(answer: Answer) -> Answer:
    """The answer; called, it raises `Wrong` if model or images are not left as they came."""

    @functools.wraps(answer)
    def guarded(model: nn.Module, images: Tensor, **options: Any) -> Any:
        with untouched(model, images):
            return answer(model=model, images=images, **options)

    return guarded


def kept(answer: Answer, name: str, hint: str) -> Answer:
    """The answer; called, it raises `Wrong` if it changes its argument of this name."""

    @functools.wraps(answer)
    def guarded(**case: Any) -> Any:
        before = copy.deepcopy(case[name])
        result = answer(**case)
        if not np.array_equal(before, case[name]):
            raise Wrong(f"the argument {name} has changed", hint)
        return result

    return guarded


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
