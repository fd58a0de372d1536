"""What every exercise of the homework promises: key, stub, mistakes; and the checks' machinery."""

import cProfile
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from course_utils import gradients
from course_utils.homework import Wrong, check, checks
from tests import keys

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in keys.SOLUTIONS.glob("hw*.ipynb"))


def exercises() -> list[checks.Exercise]:
    with pytest.raises(ValueError, match="there is no exercise"):
        checks.find("")  # reads them all
    return [checks.EXERCISES[name] for name in sorted(checks.EXERCISES)]


EXERCISES = exercises()
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)


@functools.cache
def functions(kind: str, homework: str) -> dict[str, Any]:
    folder = keys.SOLUTIONS if kind == "key" else keys.RELEASE
    (path,) = folder.glob(f"{homework}_*.ipynb")
    return keys.functions(path)


def answer_of(kind: str, exercise: checks.Exercise) -> Callable[..., Any]:
    homework, _, name = exercise.name.partition(".")
    function: Callable[..., Any] = functions(kind, homework)[name]
    return function


@each_exercise
def test_key_passes(exercise: checks.Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    check(exercise.name, answer_of("key", exercise))
    assert capsys.readouterr().out.endswith(f"{exercise.name}: all of it holds.\n")


@each_exercise
def test_stub_is_not_written_yet(exercise: checks.Exercise) -> None:
    with pytest.raises(NotImplementedError):
        check(exercise.name, answer_of("stub", exercise))


@pytest.mark.parametrize(
    ("exercise", "mistake"),
    [(exercise, mistake) for exercise in EXERCISES for mistake in exercise.mistakes],
    ids=lambda case: case.name,
)
def test_mistake_gets_its_own_hint(exercise: checks.Exercise, mistake: checks.Mistake) -> None:
    with pytest.raises(Wrong) as wrong:
        check(exercise.name, mistake.answer)
    assert wrong.value.hint == mistake.hint


@each_exercise
def test_at_least_four_mistakes_each_with_a_hint_of_its_own(exercise: checks.Exercise) -> None:
    hints = [mistake.hint for mistake in exercise.mistakes]
    assert len(set(hints)) == len(hints) >= 4


# The machinery --------------------------------------------------------------------------------


def squared(x: torch.Tensor) -> torch.Tensor:
    return x * x


DOUBLED = checks.Mistake("doubled", lambda x: 2 * x, "a square is not a double.")
CASES = [{"x": torch.tensor([3.0, -1.0])}, {"x": torch.tensor([[0.5]])}]


def compared(answer: Callable[..., Any]) -> None:
    checks.compare(answer, squared, CASES, [DOUBLED], what="the square", hint="look again.")


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> str:
    """An exercise of the tests' own."""

    def holds(answer: Callable[..., Any]) -> Iterator[str]:
        compared(answer)
        yield "the square is right"

    entered = checks.Exercise("hw00.square", holds, (DOUBLED,), ("course_utils.gradients",))
    monkeypatch.setitem(checks.EXERCISES, "hw00.square", entered)
    return "hw00.square"


def test_says_what_holds(square: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(square, lambda x: x**2)
    assert capsys.readouterr().out == "✓ the square is right\nhw00.square: all of it holds.\n"


@pytest.mark.parametrize(
    ("answer", "what", "hint"),
    [
        (lambda x: x + x, "off by up to", DOUBLED.hint),
        (lambda x: x**2 + 0.1, "off by up to", "look again."),
        (lambda x: CASES[0]["x"] ** 2, "is (2,), wanted is (1, 1)", "look again."),
        (lambda x: None, "is NoneType, wanted is a torch.Tensor", "return"),
        (lambda x: x * x * float("nan"), "off by", "look again."),
    ],
)
def test_says_what_does_not_hold(
    square: str, answer: Callable[..., Any], what: str, hint: str
) -> None:
    with pytest.raises(Wrong) as wrong:
        check(square, answer)
    assert what in wrong.value.what
    assert hint in wrong.value.hint
    assert wrong.value._render_traceback_() == [
        f"✗ {wrong.value.what}",
        f"  Hint: {wrong.value.hint}",
    ]


def test_rounding_is_no_mistake(square: str) -> None:
    check(square, lambda x: (x.double() ** 2 * (1 + 1e-6)).float())


def test_a_call_into_a_forbidden_module_is_noticed_however_it_was_imported(square: str) -> None:
    name = gradients.gradient

    def answer(x: torch.Tensor) -> torch.Tensor:
        name(nn.Flatten(), torch.ones(1, 2, 1, 1), 0)
        return x * x

    with pytest.raises(Wrong, match=r"calls course_utils\.gradients\.gradient"):
        check(square, answer)


def test_the_checks_own_reference_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def reference(x: torch.Tensor, *, power: int = 2) -> torch.Tensor:
        return x**power

    mistake = checks.Mistake("cubed", functools.partial(reference, power=3), "a square, not a cube")
    entered = checks.Exercise("hw00.square", lambda answer: iter([answer(2)]), (mistake,), ())
    monkeypatch.setitem(checks.EXERCISES, "hw00.square", entered)
    check("hw00.square", mistake.answer)  # tried as it is
    with pytest.raises(Wrong, match="calls tests.test_homework"):
        check("hw00.square", lambda x: reference(x))


def test_works_under_a_profiler(square: str) -> None:
    with cProfile.Profile():
        check(square, lambda x: x**2)


def test_an_error_of_the_answer_is_shown_as_it_is(square: str) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(square, answer)


def test_what_is_not_a_function_or_no_exercise(square: str) -> None:
    with pytest.raises(TypeError, match=r'as in check\("hw00.square", square\), not Tensor'):
        check(square, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no exercise 'hw00.sqare'; the nearest are hw00.square"):
        check("hw00.sqare", squared)


def left_behind(trace: str, model: nn.Module, images: torch.Tensor) -> None:
    """Leave one thing on a model or its images."""
    match trace:
        case "hook":
            model.register_forward_hook(lambda *_: None)
        case "mode":
            model.train()
        case "gradient":
            model(images).sum().backward()
        case "flag":
            model.requires_grad_(False)
        case "pixels":
            images += 1


@pytest.mark.parametrize(
    ("trace", "what"),
    [
        ("hook", "a hook is left"),
        ("mode", "mode has changed"),
        ("gradient", "left in .grad"),
        ("flag", "requires_grad"),
        ("pixels", "images have changed"),
    ],
)
def test_untouched(trace: str, what: str) -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.ones(1, 1, 2, 2)
    with checks.untouched(model, images):
        model(images)
    with pytest.raises(Wrong, match=what), checks.untouched(model, images):
        left_behind(trace, model, images)
