"""What the checks of all homework share: say what holds, find what does not, name the mistake.

The module hwNN has the exercises of homework NN, and of each exercise three things by its name:

    grad_cam          the answer, a function whose further keyword arguments make it wrong
    GRAD_CAM          its mistakes: {name: (the arguments that are changed, the hint)}
    check_grad_cam    the check, a generator function: it takes a student's answer, yields a
                      sentence for each thing that holds, and raises `Wrong` at the first that
                      does not
"""

import difflib
import functools
import importlib
import sys
import sysconfig
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.homework.cases import drawn_from
from course_utils.homework.guard import Answer, Case, Wrong, guarded, isolated

Mistakes = Mapping[str, tuple[Mapping[str, Any] | Answer, str]]  # {name: (what is changed, hint)}


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
    moves: tuple[str, ...] = ()

    def hint(self, mistake: str) -> str:
        """The hint that this mistake gets."""
        return self.mistakes[mistake].hint


Check = Callable[[Answer, Exercise], Iterator[str]]
EXERCISES: dict[str, Exercise] = {}


def exercise(
    name: str,
    answer: Answer,
    mistakes: Mistakes,
    *,
    forbidden: tuple[str, ...] = (),
    moves: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Enter a check into EXERCISES.

    mistakes: {name: (changes, hint)}. The wrong answer is `answer` with the keyword arguments of
    `changes`, or where that is a function, the function itself. forbidden: modules; an answer that
    calls what is defined in one of them is refused. moves: as in `guarded`.
    """

    def enter(function: Check) -> Check:
        known = {
            mistake: Mistake(mistake, _changed(answer, changes), hint)
            for mistake, (changes, hint) in mistakes.items()
        }
        EXERCISES[name] = Exercise(name, function, answer, known, forbidden, moves)
        return function

    return enter


def _changed(answer: Answer, changes: Mapping[str, Any] | Answer) -> Answer:
    return functools.partial(answer, **changes) if isinstance(changes, Mapping) else changes


def check(name: str, answer: Answer, *, seed: int = 0) -> None:
    """Print what holds of an answer to a homework, and stop at the first thing that does not.

    name: the exercise, such as "hw02.grad_cam"; answer: the function that was written for it.
    seed: of what the answer is tried on. Raises NotImplementedError where nothing is written yet,
    `Wrong` with a hint where something does not hold, and whatever the answer itself raises.
    """
    found = find(name)
    if not callable(answer):
        raise TypeError(
            f"answer must be the function itself, as in "
            f'check("{name}", {name.rpartition(".")[2]}), not {type(answer).__name__}'
        )
    with drawn_from(seed):
        try:
            asked = guarded(_watched(answer, found), moves=found.moves)
            for holds in found.check(asked, found):
                print(f"✓ {holds}")
        except (Wrong, NotImplementedError):
            raise
        except Exception as error:
            if _is_ours(error):
                raise Wrong(f"what came back cannot be used: {error}", UNUSABLE) from error
            raise
    print(f"{name}: all of it holds.")


UNUSABLE = "is it of the kind, the type and the shape that the text of the exercise asks for?"
LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def _is_ours(error: Exception) -> bool:
    """Whether an error came from a check, and not from what a student has written."""
    ours = str(Path(__file__).parents[1]), "<hw"  # packed in a hand-out: "<hw02, packed>"
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return all(file.startswith((*ours, "<frozen", *LIBRARY)) for file in files)


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
    function was defined, so that it does not matter how the answer imported it, nor in which
    thread it ran. The exercise's own answer and the functions of its mistakes are refused too,
    except where one of the mistakes is what is checked.
    """
    prefixes = tuple(f"{module}." for module in exercise.forbidden)
    mistaken = [mistake.answer for mistake in exercise.mistakes.values()]
    own = [] if any(answer is function for function in mistaken) else [exercise.answer, *mistaken]
    codes = {getattr(_inner(function), "__code__", None) for function in own}

    @functools.wraps(answer)
    def watched(**case: Any) -> Any:
        calls: list[str] = []

        def note(frame: types.FrameType, event: str, called: object) -> None:
            module = str(frame.f_globals.get("__name__", ""))
            if event == "call" and (f"{module}.".startswith(prefixes) or frame.f_code in codes):
                calls.append(f"{module}.{frame.f_code.co_qualname}")
            elif called is sys.setprofile and frame.f_code is not here:
                calls.append("sys.setprofile")

        before, functions, here = sys.getprofile(), _functions(), sys._getframe().f_code
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            result = answer(**case)
        except TypeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:
                raise
            raise Wrong(f"the call fails: {error}", KEEP_NAMES) from None  # nothing of it ran
        finally:
            sys.setprofile(before if callable(before) else None)  # a profiler in C is no function
            threading.setprofile(None)
            replaced = _put_back(functions)
        if replaced:
            raise Wrong(f"the answer replaces {replaced[0]}", OTHERS_FUNCTION)
        if calls:
            raise Wrong(f"the answer calls {calls[0]}", WRITE_IT)
        return result

    return watched


KEEP_NAMES = "keep the names of the arguments as the exercise has them."
WRITE_IT = "the exercise is to write this function yourself."
OTHERS_FUNCTION = "that function is others', too: write one of your own, under its own name."


def _functions() -> list[tuple[Any, dict[str, Any]]]:
    """Modules and classes whose functions the checks rely on, each with all that is in it."""
    course = [sys.modules[name] for name in sorted(sys.modules) if name.startswith("course_utils")]
    compared = {"allclose": torch.allclose, "equal": torch.equal}
    return [(torch, compared), *((holder, dict(vars(holder))) for holder in (*course, Tensor))]


def _put_back(functions: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Give modules and classes back their functions; the names of those that were replaced."""
    replaced = []
    for holder, before in functions:
        now = vars(holder)
        for name, function in before.items():
            if callable(function) and now.get(name) is not function:
                setattr(holder, name, function)
                replaced.append(f"{holder.__name__}.{name}")
        if isinstance(holder, type):
            for name in (now.keys() - before.keys()) & set(dir(holder.__base__)):
                delattr(holder, name)
                replaced.append(f"{holder.__name__}.{name}")
    return replaced


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
        return [tensor_of(of(function)(**case), what) for case in cases]

    def same(one: Tensor, result: object) -> bool:
        return _same(one, tensor_of(result, what), tolerance)

    got, wanted = results(answer), results(isolated(reference or exercise.answer))
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

    def is_it(mistake: Mistake) -> bool:
        mistaken = of(isolated(mistake.answer))
        try:
            return all(same(one, mistaken(**case)) for one, case in zip(got, cases, strict=True))
        except Wrong:  # this mistake never comes to a result
            return False

    return next((m.hint for m in exercise.mistakes.values() if is_it(m)), hint)


def tensor_of(result: object, what: str) -> Tensor:
    """The result of an answer, which must be a tensor, in double precision."""
    if not isinstance(result, Tensor):
        hint = "does the function end with return?" if result is None else MAKE_A_TENSOR
        raise Wrong(f"{what} is {type(result).__name__}, wanted is a Tensor", hint)
    return result.detach().double()


MAKE_A_TENSOR = (
    "make a tensor of it: torch.from_numpy(…) of a NumPy array, torch.tensor(…) of numbers, "
    "torch.stack(…) of a list of tensors."
)


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


SQUEEZED = (
    "a batch of one image is a batch, too, and must keep its axis: squeeze() takes away every axis "
    "of length 1. Say which one you mean."
)
FIRST = "one class is used for the whole batch; `target` names one for each image."
LOSS = (
    "this is the gradient of a loss, as in training. It has the other sign, and a softmax in it. "
    "Explain the logit itself."
)
TRAINING = (
    "BatchNorm has used the mean and variance of this batch, as in training, so that an image's "
    "result depends on the others. The model comes in eval mode: leave it there."
)
CHANNEL_LEFT = (
    "there is an axis of length 1 left, the channel's. Take it out: [:, 0], or a sum without "
    "keepdim."
)


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
    if not one.isfinite().all():
        return f"{what} holds NaN or infinity"
    off, largest = float((one - other).abs().max()), float(other.abs().max())
    share = off / largest if largest else float("inf")
    if share > 10:
        return f"{what} is far off: {off:.1e}, where its largest value is {largest:.1e}"
    return f"{what} is off by up to {max(share, 0.001):.1%} of its largest value"
