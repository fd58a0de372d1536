"""What every exercise of the homework promises: key, stub, mistakes; and the checks' machinery."""

import copy
import cProfile
import dataclasses
import functools
import importlib.util
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils.homework import Wrong, cases, check, checks, guard
from course_utils.methods import gradients
from course_utils.worlds import radiographs
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
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_key_passes(
    exercise: checks.Exercise, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check(exercise.name, answer_of("key", exercise), seed=seed)
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


# Students see seed 0; the others take turns.
EACH_MISTAKE = [
    pytest.param(exercise, mistake, seed, id=f"{exercise.name}-{mistake.name}-{seed}")
    for exercise in EXERCISES
    for number, mistake in enumerate(exercise.mistakes.values())
    for seed in (0, 1 + number % 2)
]


@pytest.mark.parametrize(("exercise", "mistake", "seed"), EACH_MISTAKE)
def test_mistake_gets_its_own_hint(
    exercise: checks.Exercise, mistake: checks.Mistake, seed: int
) -> None:
    assert keys.refused(exercise.name, mistake.answer, seed=seed).hint == mistake.hint


@each_exercise
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_answer_that_mistakes_are_made_of_is_right(
    exercise: checks.Exercise, seed: int
) -> None:
    with cases.drawn_from(seed):
        answer = guard.guarded(exercise.answer, moves=exercise.moves)
        assert list(exercise.check(answer, exercise))


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
        (lambda x: None, "is NoneType, wanted is a Tensor", "end with return?"),
        (lambda x: (x**2).numpy(), "is ndarray, wanted is a Tensor", "torch.from_numpy"),
        (lambda x: (x**2).tolist(), "is list, wanted is a Tensor", "torch.tensor"),
        (lambda x: x * x * float("nan"), "holds NaN", "look again."),
        (lambda x: 1e9 * x, "far off: 3.0e+09, where its largest value is 9.0e+00", "look again."),
        (lambda x: x**2 * 1.0012, "off by up to 0.1%", "look again."),
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


def test_works_under_a_profiler(square: str) -> None:
    with cProfile.Profile():
        check(square, lambda x: x**2)


def test_an_error_of_the_answer_is_shown_as_it_is(square: str) -> None:
    def answer(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(square, answer)


def test_other_names_of_arguments(square: str) -> None:
    wrong = keys.refused(square, lambda y: y**2)
    assert "unexpected keyword argument 'x'" in wrong.what
    assert wrong.hint == checks.KEEP_NAMES

    def own(x: Tensor) -> Tensor:
        return len(3)  # type: ignore[arg-type, return-value]

    with pytest.raises(TypeError, match="has no len"):
        check(square, own)


def test_what_is_not_a_function_or_no_exercise(square: str) -> None:
    with pytest.raises(TypeError, match=r'as in check\("hw00.square", square\), not Tensor'):
        check(square, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no exercise 'hw00.sqare'; the nearest are hw00.square"):
        check("hw00.sqare", powered)


def test_an_error_of_the_check_is_told_as_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EXERCISES", {})
    measure = importlib.import_module("course_utils.images").to_tensor

    @checks.exercise("hw00.picture", powered, MISTAKES)
    def holds(answer: Callable[..., Any], known: checks.Exercise) -> Iterator[str]:
        measure(answer(), 8)
        yield "a picture"

    monkeypatch.setattr(checks, "_is_ours", lambda error: "picture" in str(error))
    with pytest.raises(Wrong, match="what came back cannot be used"):
        check("hw00.picture", lambda: "no picture")


def test_whose_error_it_is() -> None:
    def raised(function: Callable[..., Any]) -> Exception:
        with pytest.raises(ValueError, match="mine|hw00") as error:
            function()
        error.value.__traceback__ = error.tb.tb_next
        return error.value

    assert not checks._is_ours(raised(lambda: int("mine")))
    assert not checks._is_ours(raised(lambda: checks.find("hw00")))


def test_a_library_called_in_another_thread_is_noticed(square: str) -> None:
    def answer(x: Tensor) -> Tensor:
        thread = threading.Thread(
            target=gradients.gradient, args=(nn.Flatten(), torch.ones(1, 2, 1, 1), 0)
        )
        thread.start()
        thread.join()
        return x * x

    assert "calls course_utils.methods.gradients" in keys.refused(square, answer).what


def test_who_looks_on_cannot_be_sent_away(square: str) -> None:
    def answer(x: Tensor) -> Tensor:
        looking = sys.getprofile()
        sys.setprofile(None)
        gradients.gradient(nn.Flatten(), torch.ones(1, 2, 1, 1), 0)
        sys.setprofile(looking)
        return x * x

    assert "calls sys.setprofile" in keys.refused(square, answer).what


@pytest.mark.parametrize(
    ("holder", "name"),
    [(checks, "_same"), (torch, "allclose"), (Tensor, "__le__"), (gradients, "gradient")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_function_that_an_answer_replaces_is_put_back(
    square: str, holder: Any, name: str
) -> None:
    before = getattr(holder, name)

    def answer(x: Tensor) -> Tensor:
        setattr(holder, name, lambda *_, **__: True)
        return x

    assert f"replaces {holder.__name__}.{name}" in keys.refused(square, answer).what
    assert getattr(holder, name) is before


# What is drawn --------------------------------------------------------------------------------


def test_the_seed_moves_what_is_drawn() -> None:
    def drawn(seed: int) -> list[Tensor]:
        with cases.drawn_from(seed):
            networks = cases.unpooled(), cases.double(cases.Shared)
            return [cases.noise(3), *(next(network.parameters()) for network in networks)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert torch.equal(cases.noise(3), first[0])  # what students see
    with cases.drawn_from(1):
        assert cases.chosen("a", "b") == "b"
    assert cases.chosen("a", "b") == "a"


# The guard ------------------------------------------------------------------------------------


class Small(nn.Module):
    """A network with a little of everything that a function could leave changed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu, self.fc = nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)
        self.colours = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.norm(x.flatten(1))))


def lent() -> dict[str, Any]:
    model = Small().eval()
    model.fc.bias.grad = torch.ones(2)
    return {
        "model": model,
        "images": torch.arange(8.0).view(2, 1, 2, 2),
        "table": np.array([1.0, np.nan]),
        "layers": ["fc", "norm"],
    }


def seed_all(**_: Any) -> None:
    torch.manual_seed(3)


def moved_statistics(model: nn.Module, images: Tensor, **_: Any) -> None:
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()


def raises_halfway(model: nn.Module, **_: Any) -> None:
    model.register_forward_hook(lambda *_: None)
    raise guard.Stumble


LEFT: dict[str, tuple[Callable[..., Any], str, str]] = {
    "hook": (
        lambda model, **_: model.fc.register_forward_pre_hook(lambda *_: None) and None,
        "a hook is left on model.fc",
        guard.HOOKS_LEFT,
    ),
    "mode": (lambda model, **_: model.train() and None, "the mode of model", guard.MODE_LEFT),
    "mode of one layer": (
        lambda model, **_: model.norm.train() and None,
        "the mode of model.norm",
        guard.MODE_LEFT,
    ),
    "gradient": (
        lambda model, images, **_: model(images).sum().backward(),
        ".grad of the parameters of model",
        guard.GRADIENTS_LEFT,
    ),
    "gradient thrown away": (
        lambda model, **_: model.zero_grad(),
        "something has changed in .grad of the parameters of model",
        guard.GRADIENTS_LEFT,
    ),
    "flag": (
        lambda model, **_: model.fc.requires_grad_(False) and None,
        "requires_grad of the parameters of model",
        guard.FLAGS_LEFT,
    ),
    "weights": (
        lambda model, **_: model.fc.weight.data.zero_() is None,
        "the weights of model",
        guard.WEIGHTS_LEFT,
    ),
    "dtype": (lambda model, **_: model.double() and None, "model", guard.WEIGHTS_LEFT),
    "layer": (
        lambda model, **_: setattr(model, "relu", nn.Identity()),
        "model has other parts",
        guard.WEIGHTS_LEFT,
    ),
    "running statistics": (moved_statistics, "the running statistics", guard.STATISTICS_LEFT),
    "inplace": (
        lambda model, **_: setattr(model.relu, "inplace", False),
        "model.relu.inplace has changed",
        guard.ATTRIBUTE_LEFT,
    ),
    "list on the model": (
        lambda model, **_: model.colours.append(3),
        "model.colours has changed",
        guard.ATTRIBUTE_LEFT,
    ),
    "forward": (
        lambda model, **_: setattr(model, "forward", lambda x: x),
        "model.forward has changed",
        guard.ATTRIBUTE_LEFT,
    ),
    "pixels": (
        lambda images, **_: images.add_(1) is None,
        "the argument images has changed",
        guard.IN_PLACE,
    ),
    "shape": (
        lambda images, **_: images.resize_(1) is None,
        "the argument images has changed",
        guard.IN_PLACE,
    ),
    "requires_grad": (
        lambda images, **_: images.requires_grad_() is None,
        "requires_grad of the argument images",
        guard.NEEDS_GRADIENT,
    ),
    "array": (
        lambda table, **_: table.fill(2),
        "the argument table has changed",
        guard.IN_PLACE,
    ),
    "list": (
        lambda layers, **_: layers.reverse(),
        "the argument layers has changed",
        guard.IN_PLACE,
    ),
    "torch's generator": (seed_all, "torch's global generator", guard.RESEEDED),
    "NumPy's generator": (
        lambda **_: np.random.seed(3),  # noqa: NPY002
        "NumPy's global generator",
        guard.RESEEDED,
    ),
    "Python's generator": (lambda **_: random.seed(3), "Python's global", guard.RESEEDED),
    "grad mode": (
        lambda **_: torch.set_grad_enabled(False) and None,
        "gradients are switched",
        guard.GRAD_MODE_LEFT,
    ),
    "default dtype": (
        lambda **_: torch.set_default_dtype(torch.float64),
        "default dtype",
        guard.DTYPE_LEFT,
    ),
    "after an error": (raises_halfway, "a hook is left on model", guard.HOOKS_LEFT),
}


def seen(case: dict[str, Any]) -> list[Any]:
    """All that a caller would notice."""
    model = case["model"]
    state = [(name, value.clone()) for name, value in model.state_dict().items()]
    flags = [
        (p.requires_grad, p.grad if p.grad is None else p.grad.clone(), p.dtype)
        for p in model.parameters()
    ]
    modules = [
        (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            getattr(module, "inplace", None),
        )
        for module in model.modules()
    ]
    rest = [
        model.colours[:],
        "forward" in vars(model),
        case["images"].clone(),
        case["images"].requires_grad,
        case["table"].copy(),
        case["layers"][:],
    ]
    generators = [torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()]  # noqa: NPY002
    return [state, flags, modules, rest, generators, torch.is_grad_enabled(),
            torch.get_default_dtype()]  # fmt: skip


@pytest.mark.parametrize("trace", LEFT)
def test_what_an_answer_leaves_is_refused_and_put_back(trace: str) -> None:
    answer, what, hint = LEFT[trace]
    case = lent()
    before = seen(case)
    with pytest.raises(Wrong) as wrong:
        guard.guarded(answer)(**case)
    assert what in wrong.value.what
    assert wrong.value.hint == hint
    assert guard.alike(seen(case), before)
    guard.isolated(answer)(**case)  # says nothing, and puts back
    assert guard.alike(seen(case), before)


def test_an_answer_that_leaves_nothing_passes() -> None:
    def answer(model: nn.Module, images: Tensor, table: np.ndarray, layers: list[str]) -> Tensor:
        nn.Linear(3, 3)  # draws from torch's generator, which is no fault
        worker = copy.deepcopy(model).train()
        worker(images).sum().backward()
        handle = model.register_full_backward_hook(lambda *_: None)
        x = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x)
        handle.remove()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
        return slope

    case = lent()
    before = seen(case)
    guard.guarded(answer)(**case)
    assert guard.alike(seen(case), before)


def test_an_error_of_an_answer_puts_back_too() -> None:
    def answer(model: nn.Module, images: Tensor, **_: Any) -> None:
        model.train().register_forward_hook(lambda *_: None)
        raise KeyError("mine")

    case = lent()
    before = seen(case)
    with pytest.raises(KeyError, match="mine"):
        guard.guarded(answer)(**case)
    assert guard.alike(seen(case), before)


@pytest.mark.parametrize(
    "name",
    [
        "hw01.input_x_gradient",
        "hw01.class_activation_map",
        "hw01.four_maps",
        "hw02.maps_and_slopes",
        "hw02.grad_cam",
        "hw02.integrated_gradients",
        "hw02.completeness_gap",
        "hw03.unfair",
    ],
)
def test_what_is_left_after_an_error_of_the_model_is_refused(name: str) -> None:
    key = answer_of("key", checks.find(name))

    def answer(model: nn.Module, **case: Any) -> Any:
        flags = [parameter.requires_grad for parameter in model.parameters()]
        model.requires_grad_(False)
        result = key(model=model, **case)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        return result

    wrong = keys.refused(name, answer)
    assert wrong.what.startswith("after an error in the model requires_grad of the parameters")
    assert wrong.hint == guard.AFTER_ERROR


def test_a_model_that_raises_is_a_copy() -> None:
    case = lent()
    guard.after_an_error(guard.guarded(lambda model, images, **_: model(images)), case)
    assert case["model"](case["images"]).shape == (2, 2)


def test_a_generator_that_a_library_moves() -> None:
    moves = guard.guarded(lambda **_: random.seed(3), moves=("Python",))
    moves(**lent())
    with pytest.raises(Wrong, match="NumPy's"):
        guard.guarded(lambda **_: np.random.seed(3), moves=("Python",))(**lent())  # noqa: NPY002


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda model, images, **_: model(images), guard.ON_THE_GRAPH),
        (lambda model, images, **_: (images, model(images)), guard.ON_THE_GRAPH),
        (lambda model, images, **_: {"map": model(images)}, guard.ON_THE_GRAPH),
        (lambda model, **_: model, guard.ITSELF),
        (lambda model, **_: copy.copy(model), guard.SHARED),
        (lambda model, **_: nn.Sequential(model), guard.SHARED),
    ],
)
def test_what_comes_back_hangs_on_nothing(answer: Callable[..., Any], hint: str) -> None:
    with pytest.raises(Wrong) as wrong:
        guard.guarded(answer)(**lent())
    assert wrong.value.hint == hint


def test_other_objects_are_looked_at_too() -> None:
    film = radiographs.render(radiographs.Radiographs(2, 0).spec(1), 64)
    classifier = cases.shipped()
    guard.guarded(lambda **_: 1)(film=film, classifier=classifier, films=film.spec)

    def paints(film: Any, **_: Any) -> None:
        film.image[:] = 0

    def trains(classifier: Any, **_: Any) -> None:
        classifier.model.train()

    for answer, what in ((paints, "film.image has changed"), (trains, "the mode of classifier")):
        with pytest.raises(Wrong, match=what):
            guard.guarded(answer)(film=film, classifier=classifier)
    assert film.image.any()
    assert not classifier.model.training
