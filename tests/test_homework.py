"""What every exercise of the homework promises: key, stub, mistakes; and the checks' machinery."""

import cProfile
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course_utils.homework import Wrong, check, checks
from course_utils.methods import gradients
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
def test_forbidden_modules_of_the_course_are_there(exercise: checks.Exercise) -> None:
    """A module that was renamed would forbid nothing."""
    for name in exercise.forbidden:
        if name.startswith("course_utils."):
            assert importlib.util.find_spec(name), name


@each_exercise
def test_stub_is_not_written_yet(exercise: checks.Exercise) -> None:
    with pytest.raises(NotImplementedError):
        check(exercise.name, answer_of("stub", exercise))


@pytest.mark.parametrize(
    ("exercise", "mistake"),
    [(exercise, m) for exercise in EXERCISES for m in exercise.mistakes.values()],
    ids=lambda case: case.name,
)
def test_mistake_gets_its_own_hint(exercise: checks.Exercise, mistake: checks.Mistake) -> None:
    assert keys.refused(exercise.name, mistake.answer).hint == mistake.hint


@each_exercise
def test_the_answer_that_mistakes_are_made_of_is_right(exercise: checks.Exercise) -> None:
    assert list(exercise.check(exercise.answer, exercise))


@each_exercise
def test_at_least_four_mistakes_each_with_a_hint_of_its_own(exercise: checks.Exercise) -> None:
    hints = [mistake.hint for mistake in exercise.mistakes.values()]
    assert len(set(hints)) == len(hints) >= 4


# The machinery --------------------------------------------------------------------------------


def powered(x: Tensor, *, power: int = 2) -> Tensor:
    return x**power


MISTAKES: checks.Mistakes = {
    "cubed": ({"power": 3}, "a square is not a cube."),
    "doubled": (lambda x: 2 * x, "a square is not a double."),
}
CASES = [{"x": torch.tensor([3.0, -1.0])}, {"x": torch.tensor([[0.5]])}]


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> str:
    """An exercise of the tests' own."""

    monkeypatch.setattr(checks, "EXERCISES", {})

    @checks.exercise("hw00.square", powered, MISTAKES, forbidden=(gradients.__name__,))
    def holds(answer: Callable[..., Any], known: checks.Exercise) -> Iterator[str]:
        checks.compare(answer, known, CASES, what="the square", hint="look again.")
        yield "the square is right"

    return "hw00.square"


def test_says_what_holds(square: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(square, lambda x: x**2)
    assert capsys.readouterr().out == "✓ the square is right\nhw00.square: all of it holds.\n"


@pytest.mark.parametrize(
    ("answer", "what", "hint"),
    [
        (lambda x: x + x, "off by up to", "not a double"),
        (lambda x: x * x * x, "off by up to", "not a cube"),
        (lambda x: x**2 + 0.1, "off by up to", "look again."),
        (lambda x: CASES[0]["x"] ** 2, "is (2,), wanted is (1, 1)", "look again."),
        (lambda x: None, "is NoneType, wanted is a Tensor", "return"),
        (lambda x: x * x * float("nan"), "off by", "look again."),
    ],
)
def test_says_what_does_not_hold(
    square: str, answer: Callable[..., Any], what: str, hint: str
) -> None:
    wrong = keys.refused(square, answer)
    assert what in wrong.what
    assert hint in wrong.hint
    assert wrong._render_traceback_() == [f"✗ {wrong.what}", f"  Hint: {wrong.hint}"]


def test_rounding_is_no_mistake(square: str) -> None:
    check(square, lambda x: (x.double() ** 2 * (1 + 1e-6)).float())


def test_a_call_into_a_forbidden_module_is_noticed_however_it_was_imported(square: str) -> None:
    name = gradients.gradient

    def answer(x: Tensor) -> Tensor:
        name(nn.Flatten(), torch.ones(1, 2, 1, 1), 0)
        return x * x

    with pytest.raises(Wrong, match=r"calls course_utils\.methods\.gradients\.gradient"):
        check(square, answer)


def test_the_exercises_own_answer_is_no_answer(square: str) -> None:
    cubed = checks.EXERCISES[square].mistakes["cubed"]
    assert keys.refused(square, cubed.answer).hint == cubed.hint  # tried as it is
    for answer in (powered, lambda x: powered(x), functools.partial(powered, power=2)):
        assert "calls tests.test_homework.powered" in keys.refused(square, answer).what


def test_one_of_two_results_is_compared(square: str) -> None:
    known = dataclasses.replace(checks.EXERCISES[square], mistakes={})

    def compared(answer: Callable[..., Any], number: int) -> None:
        checks.compare(
            answer,
            known,
            CASES,
            reference=lambda x: (x**2, x**2),
            of=checks.part(number, "two tensors", "return both."),
            what="one of the two",
            hint="look again.",
        )

    compared(lambda x: [x**2, 2 * x], 0)
    with pytest.raises(Wrong, match="one of the two is off by"):
        compared(lambda x: [x**2, 2 * x], 1)
    for answer in (powered, lambda x: (x, x, x)):
        with pytest.raises(Wrong, match="wanted are two tensors\nHint: return both"):
            compared(answer, 0)


def test_remembered() -> None:
    asked = checks.remembered(lambda x: x.clone())
    one, other = torch.ones(1), torch.ones(1)
    assert asked(x=one) is asked(x=one)
    assert asked(x=one) is not asked(x=other)


@pytest.mark.parametrize("change", [False, True])
def test_kept(change: bool) -> None:
    def answer(x: Tensor, steps: list[int]) -> Tensor:
        steps += [1] * change
        return x

    guarded = checks.kept(answer, "steps", "copy it.")
    if change:
        with pytest.raises(Wrong, match="the argument steps has changed"):
            guarded(x=torch.ones(1), steps=[2])
    else:
        assert guarded(x=torch.ones(1), steps=[2]) == 1


def test_works_under_a_profiler(square: str) -> None:
    with cProfile.Profile():
        check(square, lambda x: x**2)


def test_an_error_of_the_answer_is_shown_as_it_is(square: str) -> None:
    def answer(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(square, answer)


def test_what_is_not_a_function_or_no_exercise(square: str) -> None:
    with pytest.raises(TypeError, match=r'as in check\("hw00.square", square\), not Tensor'):
        check(square, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no exercise 'hw00.sqare'; the nearest are hw00.square"):
        check("hw00.sqare", powered)


def left_behind(trace: str, model: nn.Module, images: Tensor) -> None:
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
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.ones(1, 1, 2, 2)
    with pytest.raises(Wrong, match=what):
        checks.unchanged(functools.partial(left_behind, trace))(model=model, images=images)
