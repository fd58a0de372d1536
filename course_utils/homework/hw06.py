"""Homework 6, the audit: the two models, the clinic's films, and the checks of its four functions.

What cheats, and by what, is not written here: the checks draw films again, and measure it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any

import torch

from course_utils import models
from course_utils.homework.checks import Answer, Mistake, Wrong, exercise
from course_utils.models import Classifier
from course_utils.radiographs import CLASSES, REMOVABLE, Radiograph, Radiographs, render

FINDING = CLASSES.index("consolidation")


def candidates() -> dict[str, Classifier]:
    """The two models that the clinic may buy, under the names A and B."""
    names = {"A": "radiographs-cheating", "B": "radiographs"}
    return {letter: replace(models.load(name), name=letter) for letter, name in names.items()}


def clinic(length: int = 200, seed: int = 606) -> Radiographs:
    """Films of this clinic, as `Radiographs`; every other one has a consolidation."""
    return Radiographs(length, seed, confounder=models.RECIPES["radiographs-cheating"].confounder)


def margin(classifier: Classifier, film: Radiograph) -> float:
    """The log odds of a consolidation, f_consolidation − f_no finding."""
    with torch.no_grad():
        logits = classifier.model(classifier.to_input(film.image))[0]
    return float(logits[FINDING] - logits[1 - FINDING])


_drawn = lru_cache(maxsize=128)(render)  # the same few films for every mistake that is tried


@cache
def _both() -> dict[str, Classifier]:
    return candidates()


@cache
def _films(length: int, seed: int) -> Radiographs:
    films = clinic(length, seed)
    films.draw(progress=False)
    return films


def _number(result: object, what: str) -> float:
    """A number that an answer returned, be it of Python, NumPy or torch."""
    if hasattr(result, "item"):
        result = result.item()
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise Wrong(
            f"{what} is {type(result).__name__}, wanted is a number",
            "does the function end with return, and what does it return?",
        )
    return float(result)


def _find(
    got: list[float],
    wanted: list[float],
    mistakes: tuple[Mistake, ...],
    cases: list[tuple[Any, ...]],
    what: str,
    hint: str,
) -> None:
    """Raise `Wrong` unless the numbers agree; a mistake that gives the same numbers is named."""

    def same(ours: list[float], theirs: list[float]) -> bool:
        return all(abs(a - b) <= 1e-3 for a, b in zip(ours, theirs, strict=True))

    if same(got, wanted):
        return
    for mistake in mistakes:
        if same(got, [mistake.answer(*case) for case in cases]):
            hint = mistake.hint
            break
    off = max(range(len(got)), key=lambda i: abs(got[i] - wanted[i]))
    raise Wrong(f"{what} is not right: for one of our cases yours is {got[off]:.2f}", hint)


# Performance ---------------------------------------------------------------------------------


def _performance(
    classifier: Classifier,
    films: Radiographs,
    *,
    ill: int = FINDING,
    of_called: bool = False,
    percent: bool = False,
    balanced: bool = False,
) -> dict[str, float]:
    images, labels = films.draw(progress=False)
    called = models.predictions(classifier, images).argmax(1)
    right = (called == labels).float()
    group = called if of_called else labels
    sensitivity, specificity = right[group == ill].mean(), right[group != ill].mean()
    accuracy = (sensitivity + specificity) / 2 if balanced else right.mean()
    found = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity}
    return {key: float(value) * (100 if percent else 1) for key, value in found.items()}


PERFORMANCE = (
    Mistake(
        "classes swapped",
        partial(_performance, ill=1 - FINDING),
        "sensitivity is of the ill, specificity of the healthy. Which class number is which?",
    ),
    Mistake(
        "predictive values",
        partial(_performance, of_called=True),
        "you divide by how many were *called* ill. Sensitivity asks: of those who *are* ill?",
    ),
    Mistake(
        "percent",
        partial(_performance, percent=True),
        "the task asks for shares from 0 to 1, not for percent.",
    ),
    Mistake(
        "mean of the two",
        partial(_performance, balanced=True),
        "the mean of sensitivity and specificity is the balanced accuracy. It differs where the "
        "two groups are not equally large.",
    ),
    Mistake(
        "first film only",
        lambda classifier, films: dict.fromkeys(("accuracy", "sensitivity", "specificity"), 1.0),
        "these numbers do not change with the model or the films. Are all films looked at?",
    ),
)


@exercise("hw06.performance", *PERFORMANCE)
def performance(answer: Answer) -> Iterator[str]:
    """Accuracy, sensitivity and specificity, on odd sets so that the groups differ in size."""
    cases = [(model, _films(*which)) for model in _both().values() for which in ((15, 9), (13, 31))]
    results = [answer(*case) for case in cases]
    keys = ["accuracy", "sensitivity", "specificity"]
    for result in results:
        if not isinstance(result, dict) or sorted(result) != sorted(keys):
            raise Wrong(
                "the result is not a dict with just the keys of the docstring",
                f"return a dict with the keys {', '.join(keys)}.",
            )
    yield "a dict with three numbers"
    numbers = [[_number(result[key], key) for key in keys] for result in results]
    if numbers.count(numbers[0]) == len(numbers):
        raise Wrong("the same numbers for every model and set of films", PERFORMANCE[4].hint)

    def flat(function: Answer) -> Callable[..., list[float]]:
        return lambda *case: [function(*case)[key] for key in keys]

    for k, key in enumerate(keys):
        _find(
            [row[k] for row in numbers],
            [flat(_performance)(*case)[k] for case in cases],
            tuple(
                Mistake(m.name, lambda *case, m=m, k=k: flat(m.answer)(*case)[k], m.hint)
                for m in PERFORMANCE
            ),
            cases,
            key,
            "count on paper with four films: two ill, two healthy, one error of each kind.",
        )
        yield f"{key} is right for two models and two sets of films"


# The effect of a part ------------------------------------------------------------------------


def _effect(
    classifier: Classifier,
    film: Radiograph,
    part: str,
    *,
    score: Callable[[Classifier, Radiograph], float] = margin,
    sign: int = 1,
) -> float:
    return sign * (score(classifier, film) - score(classifier, _drawn(film.spec.without(part))))


def _logit(classifier: Classifier, film: Radiograph) -> float:
    with torch.no_grad():
        return float(classifier.model(classifier.to_input(film.image))[0, FINDING])


def _probability(classifier: Classifier, film: Radiograph) -> float:
    return float(torch.sigmoid(torch.tensor(margin(classifier, film))))


def _covered(classifier: Classifier, film: Radiograph, part: str) -> float:
    """The part's pixels set to grey, rather than the film drawn again."""
    picture = film.image.copy()
    if part in film.parts:
        picture[film.parts[part]] = 128
    return margin(classifier, film) - margin(classifier, replace(film, image=picture))


EFFECT = (
    Mistake(
        "turned around",
        partial(_effect, sign=-1),
        "the sign is turned around: what raises the margin has a positive effect.",
    ),
    Mistake(
        "logit of one class",
        partial(_effect, score=_logit),
        "a logit alone moves for both classes at once. The task asks for the margin.",
    ),
    Mistake(
        "probability",
        partial(_effect, score=_probability),
        "a probability near 0 or 1 hardly moves, whatever the part does. Use the margin.",
    ),
    Mistake(
        "covered in grey",
        _covered,
        "a grey patch is something new on the film (lecture 10). Draw the film without the part.",
    ),
    Mistake(
        "magnitude",
        lambda *case: abs(_effect(*case)),
        "the sign is lost: a part can speak against a consolidation, too.",
    ),
)


@exercise("hw06.effect", *EFFECT)
def effect(answer: Answer) -> Iterator[str]:
    """margin(film) − margin(film drawn without the part), for two models and several parts."""
    films = [_films(31, 1).radiograph(index) for index in (3, 4)]
    shown = [
        film
        for film in map(_films(31, 1).radiograph, range(31))
        if {"pacemaker", "leads"} & film.parts.keys()
    ][:2]
    cases = [
        (model, film, part)
        for model in _both().values()
        for film in (*films, *shown)
        for part in ("consolidation", "ribs", *sorted({"pacemaker", "leads"} & film.parts.keys()))
    ]
    got = [_number(answer(*case), "the effect") for case in cases]
    yield "a number"
    _find(
        got,
        [_effect(*case) for case in cases],
        EFFECT,
        cases,
        "the effect",
        "the effect of a part is a difference of two margins, of two films.",
    )
    yield f"the right number for all {len(cases)} cases: two models, films with and without"


# Verdicts that turn --------------------------------------------------------------------------


def _turned(
    classifier: Classifier,
    films: Radiographs,
    part: str,
    *,
    of_all: bool = False,
    true_ill: bool = False,
    both_ways: bool = False,
    count: bool = False,
) -> float:
    """Of the films that show the part and are called ill: the share called healthy without it."""
    images, labels = films.draw(progress=False)
    called = models.predictions(classifier, images).argmax(1) == FINDING
    turned = total = 0
    for index in range(len(films)):
        film = _drawn(films.spec(index))
        considered = part in film.parts
        before = bool(labels[index] == FINDING) if true_ill else bool(called[index])
        total += of_all or (considered and (before or both_ways))
        if considered and (before or both_ways):
            after = margin(classifier, _drawn(film.spec.without(part))) > 0
            turned += after != before if both_ways else not after
    return float(turned) if count else turned / total if total else float("nan")


TURNED = (
    Mistake(
        "of all films",
        partial(_turned, of_all=True),
        "a film without the part cannot turn. Divide by the films that could.",
    ),
    Mistake(
        "of the truly ill",
        partial(_turned, true_ill=True),
        "you start from the truth. The question is whether the model's *answer* turns: start from "
        "the films that it calls ill.",
    ),
    Mistake(
        "both ways",
        partial(_turned, both_ways=True),
        "you also count films that were called healthy before.",
    ),
    Mistake("a number of films", partial(_turned, count=True), "the task asks for a share."),
    Mistake(
        "constant",
        lambda *case: 0.0,
        "is the film drawn again, and is the model asked again?",
    ),
)


@exercise("hw06.turned", *TURNED)
def turned(answer: Answer) -> Iterator[str]:
    """The share of verdicts that turn, for two models and two parts, each on a small set."""
    elsewhere = Radiographs(15, 3)
    cases = [
        (model, films, part)
        for model in _both().values()
        for films, part in ((_films(15, 9), "consolidation"), (elsewhere, "catheter"))
    ]
    got = [_number(answer(*case), "the share") for case in cases]
    yield "a number"
    _find(
        got,
        [_turned(*case) for case in cases],
        TURNED,
        cases,
        "the share",
        "two conditions choose the films: the part is there, and the model calls the film ill.",
    )
    yield "the right share for two models and two parts"


# The verdict ---------------------------------------------------------------------------------


@cache
def _effects(part: str) -> dict[str, float]:
    """The mean effect of a part on each model, over the clinic's films that show it."""
    films = _films(40, 606)
    shown = [film for film in map(films.radiograph, range(40)) if part in film.parts]
    return {
        letter: sum(_effect(model, film, part) for film in shown) / max(len(shown), 1)
        for letter, model in _both().items()
    }


def _verdict(cheats: str, by: str) -> dict[str, str]:
    return {"cheats": cheats, "by": by}


WRONG_MODEL = "draw the part away for both models. Which of the two changes its mind?"
FINDING_ITSELF = "this part is the finding itself. To use it is what we want."
ANATOMY = "this is a part of every chest. Look for what a patient may have, and illness is not."
NO_EFFECT = "draw this part away from films that show it: that model hardly minds."
NOT_A_PART = 'each is the name of something: "cheats" a model, "by" a part as in film.parts.'


def _other() -> dict[str, str]:
    """The right part, and the model that it moves less."""
    part = models.RECIPES["radiographs-cheating"].confounder or ""
    effects = _effects(part)
    return _verdict(min(effects, key=effects.__getitem__), part)


VERDICT = (
    Mistake("the other model", _other, WRONG_MODEL),
    Mistake("the finding", partial(_verdict, "B", "consolidation"), FINDING_ITSELF),
    Mistake("anatomy", partial(_verdict, "A", "ribs"), ANATOMY),
    Mistake("harmless", partial(_verdict, "B", "nodule"), NO_EFFECT),
    Mistake("no part", partial(_verdict, "A", "the background"), NOT_A_PART),
)


@exercise("hw06.verdict", *VERDICT)
def verdict(answer: Answer) -> Iterator[str]:
    """The named part moves the named model far more than the other one, and is no finding."""
    found = answer()
    if not isinstance(found, dict) or sorted(found) != ["by", "cheats"]:
        raise Wrong("the result is not a dict with the keys cheats and by", NOT_A_PART)
    letter, part = found["cheats"], found["by"]
    for what, name, names in (("model", letter, [*_both()]), ("part", part, REMOVABLE)):
        if name not in names:
            raise Wrong(f"there is no {what} {name!r}", NOT_A_PART)
    yield "a model and a part"
    if part == "consolidation":
        raise Wrong("to use a consolidation is no cheating", FINDING_ITSELF)
    if part in ("vessels", "ribs", "clavicles", "breasts"):
        raise Wrong(f"{part} are anatomy", ANATOMY)
    yield "the part is neither the finding nor anatomy"
    effects = _effects(part)
    if max(effects.values()) < 1:
        raise Wrong(f"{part} moves neither margin by 1 on average", NO_EFFECT)
    if letter != max(effects, key=effects.__getitem__):
        raise Wrong(f"{part} moves the other model more", WRONG_MODEL)
    yield "without it that model's margin falls by more than 1 on average, the other's by less"
