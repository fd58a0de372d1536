"""A study in class: guess the model's answers, with a map and without; a score at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np

from course_utils import evaluation
from course_utils.evaluation.simulation import Gain, Rate
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels.canvas import PALE, Canvas, colored
from course_utils.panels.explainer import KNOW_NOTHING, Explainer
from course_utils.panels.panel import WIDTH, Panel, choice, coarse_to_fine, columns, slider
from course_utils.panels.pictures import Array, Seen, classifier_of, knows_scenes, picture_reader
from course_utils.plotting import BLUE, INK, MUTED, ORANGE
from course_utils.worlds import photographs, scenes

POOL = 84  # hard scenes, of which a study takes some
PICTURES = 12  # of a study; half of them errors of the model, if it makes as many
LETTERS = "ABCD"  # the answers on offer
NO_MAP = "no map"
COMING = "coarse, more coming …"

Guesses = dict[int, str]  # page → what the class says
Map = tuple[Array | None, bool]  # what there is of it, and whether that is coarse


class Question(NamedTuple):
    """One picture of a study."""

    seen: Seen
    truth: str  # nothing for a photograph, and what the model has no word for
    options: tuple[str, ...]  # the answers on offer
    mapped: bool = False  # whether it is shown with the map, else with the control

    @property
    def answer(self) -> str:
        """The model's."""
        return self.seen.name


class Design(NamedTuple):
    """What a study shows."""

    method: str
    control: str
    study: int

    def beside(self, question: Question) -> str:
        """What stands beside a picture."""
        return self.method if question.mapped else self.control


def simulatability(model: Any = None, image: Any = None) -> Panel:
    """Guess what the model answers. Do maps help? Each picture comes with a map or with a control.

    The class votes, and the lecturer clicks its guess, one a picture; the model's answers stand on
    the last page, with the share of right guesses of both kinds. The number of the study draws the
    pictures, half of them errors of the model, and which half has the map, that of the model's
    answer.
    """
    classifier = classifier_of(model)
    explainer, pool = Explainer(classifier), _pool(classifier, image)
    last = min(PICTURES, len(pool)) + 1
    controls: dict[str, Any] = {
        "method": choice("map", [*METHODS], "grad_cam"),
        "control": choice("control", [NO_MAP, *KNOW_NOTHING]),
        "study": slider("study", 0, 99, 0),
        "page": slider("page", 1, last, 1),
    }
    answers = {letter: _button() for letter in LETTERS}
    moves = {"next": _button("next page"), "again": _button("start again")}
    said: dict[Design, Guesses] = {}
    kept: dict[tuple[Design, int], Map] = {}
    questions = cache(partial(drawn_study, pool))

    def now() -> Design:
        return Design(*(controls[name].value for name in Design._fields))

    def draw(method: str, control: str, study: int, page: int) -> Canvas | Iterator[Canvas]:
        design, asked = Design(method, control, study), questions(study)
        _label(answers, () if page == last else asked[page - 1].options)
        guesses = said.get(design, {})
        if page == last:
            return _score_canvas(design, asked, guesses)
        seen, name = asked[page - 1].seen, design.beside(asked[page - 1])
        if name == NO_MAP:
            return _question_canvas(design, asked, guesses, page, (None, False))
        sketch = partial(explainer.sketch, name, seen)
        maps = coarse_to_fine(
            kept, (design, page), sketch, lambda: (explainer.map(name, seen), False)
        )
        return (_question_canvas(design, asked, guesses, page, map_) for map_ in maps)

    def say(letter: str, _: None) -> Mapping[str, Any]:
        page, number = controls["page"].value, LETTERS.index(letter)
        options = questions(now().study)[page - 1].options if page < last else ()
        if number < len(options):
            said.setdefault(now(), {})[page] = options[number]
        return {}

    def again(_: None) -> Mapping[str, Any]:
        said.pop(now(), None)
        return {"page": 1}

    linked: dict[str, Callable[[Any], Mapping[str, Any]]] = {
        **{letter: partial(say, letter) for letter in LETTERS},
        "next": lambda _: {"page": min(controls["page"].value + 1, last)},
        "again": again,
    }
    buttons = answers | moves
    arranged = columns([*controls.values(), *buttons.values()])
    return Panel("simulatability", controls | buttons, draw, linked=linked, arranged=arranged)


def _button(words: str = "") -> widgets.Button:
    return widgets.Button(description=words, tooltip=words or "an answer", layout={"width": WIDTH})


def _label(answers: Mapping[str, widgets.Button], options: Sequence[str]) -> None:
    """Write an option on each button; a button without one rests."""
    for number, (letter, button) in enumerate(answers.items()):
        there = number < len(options)
        button.description = f"{letter}  {options[number]}" if there else letter
        button.disabled = not there


# -- the study -------------------------------------------------------------------------------------


def _pool(classifier: Classifier, image: Any) -> list[Question]:
    """What is asked about: hard scenes, for a model that knows them, else photographs."""
    specs: dict[str, scenes.SceneSpec] = {}
    if knows_scenes(classifier):
        world = scenes.Scenes(POOL, seed=15, hard=True, missing="nothing")
        specs = {f"scene {index}": world.spec(index) for index in range(POOL)}
    pictures, look = picture_reader(classifier, image, specs)
    own = [] if image is None else ["your picture"]
    names = [*own, *(specs or photographs.NAMES)]
    return [_question(classifier, look(name), pictures[name]) for name in names]


def _question(classifier: Classifier, seen: Seen, source: Any) -> Question:
    """A picture, and four answers: the model's, the truth, and what else the model finds likely."""
    label = source.label if isinstance(source, scenes.SceneSpec) else ""
    truth = label if label in classifier.classes else ""
    likely = [classifier.classes[index] for index in seen.logits.argsort(descending=True).tolist()]
    first = [likely[0], truth] if truth else likely[:1]
    options = [*dict.fromkeys([*first, *likely])][: len(LETTERS)]
    return Question(seen, truth, tuple(sorted(options)))


def drawn_study(pool: Sequence[Question], study: int) -> list[Question]:
    """The questions of a study in their order: which pictures, and which half of them has a map."""
    generator = np.random.default_rng(study)
    count = min(PICTURES, len(pool))
    drawn = [pool[number] for number in generator.permutation(len(pool))]
    errors = [one for one in drawn if one.truth not in ("", one.answer)]
    others = [one for one in drawn if one.truth in ("", one.answer)]
    wrong = max(min(len(errors), count // 2), count - len(others))
    chosen = [*errors[:wrong], *others[: count - wrong]]
    maps = generator.permutation(np.arange(count) % 2 == 0)
    order = generator.permutation(count)
    return [chosen[k]._replace(mapped=bool(map_)) for k, map_ in zip(order, maps, strict=True)]


def score(
    design: Design, asked: Sequence[Question], guesses: Guesses
) -> evaluation.Simulatability | None:
    """How well the class guesses; None as long as one of the two kinds has no guess."""
    pages = sorted(guesses)
    questions = [asked[page - 1] for page in pages]
    shown = [design.beside(question) for question in questions]
    if {*shown} != {design.method, design.control}:
        return None
    return evaluation.simulatability(
        [guesses[page] for page in pages],
        [question.answer for question in questions],
        shown,
        control=design.control,
    )


# -- its pages -------------------------------------------------------------------------------------


def _question_canvas(
    design: Design, asked: Sequence[Question], guesses: Guesses, page: int, map_: Map
) -> Canvas:
    """A picture, what comes with it, and the answers on offer."""
    canvas, question, side = Canvas(900, 350), asked[page - 1], 300
    name = design.beside(question)
    title = f"picture {page} of {len(asked)}"
    canvas.figure(
        0, 0, side, question.seen.pixels, title, "what will the model answer?", smooth=True
    )
    if name == NO_MAP:
        canvas.heading(320, 0, "without a map")
        canvas.box(320, 44, side, side, fill=PALE)
    else:
        values, coarse = map_
        below = COMING if coarse else "red: for the model's answer; blue: against it"
        pixels = None if values is None else colored(values)
        canvas.figure(320, 0, side, pixels, "with a map", below)
    guess = guesses.get(page, "")
    canvas.heading(650, 0, "the model will answer", "vote; then click, or Tab and Enter")
    for row, (letter, option) in enumerate(zip(LETTERS, question.options, strict=False)):
        said = option == guess
        top = 52 + 44 * row
        canvas.box(650, top, 240, 36, fill=BLUE if said else PALE)
        color = "#ffffff" if said else INK
        canvas.text(662, top + 18, f"{letter}   {option}", size=15, color=color, anchor="lm")
    for number in range(len(asked)):
        fill = BLUE if number + 1 in guesses else PALE
        edge = ORANGE if number + 1 == page else None
        canvas.box(650 + 20 * number, 240, 14, 14, fill=fill, edge=edge, line=2)
    canvas.text(650, 264, f"{len(guesses)} of {len(asked)} pictures guessed", color=MUTED)
    half = sum(one.mapped for one in asked)
    canvas.lines(650, 296, [f"study {design.study}: {half} with {design.method},",
                            f"{len(asked) - half} with {design.control}"], color=MUTED)  # fmt: skip
    options = ", ".join(question.options)
    canvas.alt = (
        f"Study {design.study}, {half} pictures with {design.method}, {len(asked) - half} with "
        f"{design.control}; picture {page} of {len(asked)}, "
        f"{'without a map' if name == NO_MAP else 'with a map'}. What will the model answer: "
        f"{options}? Guessed: {guess or 'nothing yet'}."
    )
    return canvas


def _score_canvas(design: Design, asked: Sequence[Question], guesses: Guesses) -> Canvas:
    """All pictures with the guesses and the model's answers, and how many are right."""
    canvas, side = Canvas(910, 470), 112
    canvas.heading(
        0,
        0,
        f"study {design.study}: what the model answered",
        "blue: a right guess; ✗: the model errs",
    )
    for number, question in enumerate(asked):
        x, y = 152 * (number % 6), 48 + 174 * (number // 6)
        canvas.picture(x, y, side, question.seen.pixels, smooth=True)
        guess = guesses.get(number + 1, "")
        right = guess == question.answer
        wrong = question.truth not in ("", question.answer)
        canvas.text(x, y + 116, design.beside(question)[:20], size=11, color=MUTED)
        color = BLUE if right else ORANGE
        canvas.text(x, y + 131, f"you: {guess or '–'}", size=11, bold=right, color=color)
        canvas.text(x, y + 145, f"model: {question.answer}"[:24], size=11)
        canvas.text(x + side + 2, y, "✗" if wrong else "", size=13, color=ORANGE)
    lines = _said(design, score(design, asked, guesses), len(guesses), len(asked))
    canvas.lines(0, 402, lines, 22, size=15, bold=[2])
    canvas.alt = " ".join([f"The score of study {design.study}.", *lines])
    return canvas


def _said(
    design: Design, found: evaluation.Simulatability | None, guessed: int, pictures: int
) -> list[str]:
    """The score in words."""
    if not found:
        return [f"{guessed} of {pictures} pictures guessed: no score yet, "
                f"which takes guesses with {design.method} and with {design.control}."]  # fmt: skip
    lines = [_rate(name, found.rates[name]) for name in (design.method, design.control)]
    return [*lines, _gain(found.gains[design.method])]


def _rate(name: str, rate: Rate) -> str:
    interval = f"{rate.low:.0%} to {rate.high:.0%}"
    return f"with {name}: {rate.right} of {rate.total} right, {rate.share:.0%} ({interval})."


def _gain(gain: Gain) -> str:
    low, high = (f"{100 * end:+.0f}".replace("-", "−") for end in (gain.low, gain.high))
    points = f"{100 * gain.difference:+.0f}".replace("-", "−")
    p = f"p = {gain.p:.2f}" if gain.p >= 0.01 else "p < 0.01"
    verdict = "may be chance" if gain.p >= 0.05 else "hardly chance"
    return f"the map's gain: {points} points ({low} to {high}), {p}: {verdict}."
