"""Homework 6, the audit: the two models, the clinic's films, and the checks of its four functions.

What cheats, and by what, is written here alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any

import torch

from course_utils import models, training
from course_utils.homework.checks import (
    Answer,
    Exercise,
    Mistakes,
    Wrong,
    compare,
    exercise,
    remembered,
)
from course_utils.networks import Classifier
from course_utils.worlds.radiographs import CLASSES, REMOVABLE, Radiograph, Radiographs, render

FINDING = CLASSES.index("consolidation")
SHARES = ("accuracy", "sensitivity", "specificity")
DEVICES = {"pacemaker", "leads"}
_CONFOUNDER = "catheter"  # what goes with the finding on this clinic's films


def recipes() -> dict[str, training.Recipe]:
    """The recipe of the network that learned at this clinic, for `course train`."""
    recipe = replace(training.RADIOGRAPHS, confounder=_CONFOUNDER, held_out=800, seed=10)
    return {"radiographs-2": recipe}


def candidates() -> dict[str, Classifier]:
    """The two models that the clinic may buy, under the names A and B."""
    names = {"A": "radiographs-2", "B": "radiographs"}
    return {letter: replace(models.load(name), name=letter) for letter, name in names.items()}


def clinic(length: int = 200, seed: int = 606) -> Radiographs:
    """Films of this clinic, as `Radiographs`; every other one has a consolidation."""
    return Radiographs(length, seed, confounder=_CONFOUNDER)


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
    films.draw()
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


def _numbers(
    asked: list[dict[str, Any]], what: str, read: Callable[[Any], Any] = lambda result: result
) -> Callable[[Answer], Answer]:
    """For `compare`: the numbers (cases,) that an answer gives for all cases, as one tensor."""
    return lambda function: (
        lambda: torch.tensor([_number(read(function(**case)), what) for case in asked])
    )


# Performance ---------------------------------------------------------------------------------


def performance(
    classifier: Classifier,
    films: Radiographs,
    *,
    ill: int = FINDING,
    of_called: bool = False,
    percent: bool = False,
    balanced: bool = False,
) -> dict[str, float]:
    """Of all films, of the ill and of the healthy: the share that is called what it is."""
    images, labels = films.draw()
    called = models.logits(classifier, images).argmax(1)
    right = (called == labels).float()
    group = called if of_called else labels
    sensitivity, specificity = right[group == ill].mean(), right[group != ill].mean()
    accuracy = (sensitivity + specificity) / 2 if balanced else right.mean()
    found = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity}
    return {key: float(value) * (100 if percent else 1) for key, value in found.items()}


PERFORMANCE: Mistakes = {
    "classes swapped": (
        {"ill": 1 - FINDING},
        "sensitivity is of the ill, specificity of the healthy. Which class number is which?",
    ),
    "predictive values": (
        {"of_called": True},
        "you divide by how many were *called* ill. Sensitivity asks: of those who *are* ill?",
    ),
    "percent": ({"percent": True}, "the task asks for shares from 0 to 1, not for percent."),
    "mean of the two": (
        {"balanced": True},
        "the mean of sensitivity and specificity is the balanced accuracy. It differs where the "
        "two groups are not equally large.",
    ),
    "first film only": (
        lambda classifier, films: dict.fromkeys(SHARES, 1.0),
        "these numbers do not change with the model or the films. Are all films looked at?",
    ),
}


@exercise("hw06.performance", performance, PERFORMANCE)
def check_performance(answer: Answer, known: Exercise) -> Iterator[str]:
    """Accuracy, sensitivity and specificity, on odd sets so that the groups differ in size."""
    asked = [
        {"classifier": model, "films": _films(*which)}
        for model in _both().values()
        for which in ((15, 9), (13, 31))
    ]
    answer = remembered(answer)
    results = [answer(**case) for case in asked]
    for result in results:
        if not isinstance(result, dict) or sorted(result) != sorted(SHARES):
            raise Wrong(
                "the result is not a dict with just the keys of the docstring",
                f"return a dict with the keys {', '.join(SHARES)}.",
            )
    yield "a dict with three numbers"
    numbers = [[_number(result[key], key) for key in SHARES] for result in results]
    if numbers.count(numbers[0]) == len(numbers):
        hint = known.hint("first film only")
        raise Wrong("the same numbers for every model and set of films", hint)
    for key in SHARES:
        compare(
            answer,
            known,
            [{}],
            of=_numbers(asked, key, itemgetter(key)),
            what=key,
            hint="count on paper with four films: two ill, two healthy, one error of each kind.",
        )
        yield f"{key} is right for two models and two sets of films"


# The effect of a part ------------------------------------------------------------------------


def effect(
    classifier: Classifier,
    film: Radiograph,
    part: str,
    *,
    score: Callable[[Classifier, Radiograph], float] = margin,
    sign: int = 1,
) -> float:
    """What the part adds to the margin: that of the film less that of the film without it."""
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


EFFECT: Mistakes = {
    "turned around": (
        {"sign": -1},
        "the sign is turned around: what raises the margin has a positive effect.",
    ),
    "logit of one class": (
        {"score": _logit},
        "a logit alone moves for both classes at once. The task asks for the margin.",
    ),
    "probability": (
        {"score": _probability},
        "a probability near 0 or 1 hardly moves, whatever the part does. Use the margin.",
    ),
    "covered in grey": (
        _covered,
        "a grey patch is something new on the film (lecture 10). Draw the film without the part.",
    ),
    "magnitude": (
        lambda **case: abs(effect(**case)),
        "the sign is lost: a part can speak against a consolidation, too.",
    ),
}


@exercise("hw06.effect", effect, EFFECT)
def check_effect(answer: Answer, known: Exercise) -> Iterator[str]:
    """margin(film) − margin(film drawn without the part), for two models and several parts."""
    films = _films(31, 1)
    shown = [film for film in map(films.radiograph, range(31)) if DEVICES & film.parts.keys()][:2]
    asked = [
        {"classifier": model, "film": film, "part": part}
        for model in _both().values()
        for film in (films.radiograph(3), films.radiograph(4), *shown)
        for part in ("consolidation", "ribs", *sorted(DEVICES & film.parts.keys()))
    ]
    answer, numbers = remembered(answer), _numbers(asked, "the effect")
    numbers(answer)()
    yield "a number"
    compare(
        answer,
        known,
        [{}],
        of=numbers,
        what="the effect",
        hint="the effect of a part is a difference of two margins, of two films.",
    )
    yield f"the right number for all {len(asked)} cases: two models, films with and without"


# Verdicts that turn --------------------------------------------------------------------------


def turned(
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
    images, labels = films.draw()
    called = models.logits(classifier, images).argmax(1) == FINDING
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


TURNED: Mistakes = {
    "of all films": (
        {"of_all": True},
        "a film without the part cannot turn. Divide by the films that could.",
    ),
    "of the truly ill": (
        {"true_ill": True},
        "you start from the truth. The question is whether the model's *answer* turns: start from "
        "the films that it calls ill.",
    ),
    "both ways": ({"both_ways": True}, "you also count films that were called healthy before."),
    "a number of films": ({"count": True}, "the task asks for a share."),
    "constant": (lambda **_: 0.0, "is the film drawn again, and is the model asked again?"),
}


@exercise("hw06.turned", turned, TURNED)
def check_turned(answer: Answer, known: Exercise) -> Iterator[str]:
    """The share of verdicts that turn, for two models and two parts, each on a small set."""
    elsewhere = Radiographs(15, 3)
    asked = [
        {"classifier": model, "films": films, "part": part}
        for model in _both().values()
        for films, part in ((_films(15, 9), "consolidation"), (elsewhere, "catheter"))
    ]
    answer, numbers = remembered(answer), _numbers(asked, "the share")
    numbers(answer)()
    yield "a number"
    compare(
        answer,
        known,
        [{}],
        of=numbers,
        what="the share",
        hint="two conditions choose the films: the part is there, and the model calls it ill.",
    )
    yield "the right share for two models and two parts"


# The verdict ---------------------------------------------------------------------------------


@cache
def _effects(part: str) -> dict[str, float]:
    """The mean effect of a part on each model, over the clinic's films that show it."""
    films = _films(40, 606)
    shown = [film for film in map(films.radiograph, range(40)) if part in film.parts]
    return {
        letter: sum(effect(model, film, part) for film in shown) / max(len(shown), 1)
        for letter, model in _both().items()
    }


def verdict(choose: Callable[..., str] = max, **said: str) -> dict[str, str]:
    """The clinic's confounder, and the model that it moves most; or what is said of the two."""
    effects = _effects(_CONFOUNDER)
    return {"cheats": choose(effects, key=effects.__getitem__), "by": _CONFOUNDER} | said


WRONG_MODEL = "draw the part away for both models. Which of the two changes its mind?"
FINDING_ITSELF = "this part is the finding itself. To use it is what we want."
ANATOMY = "this is a part of every chest. Look for what a patient may have, and illness is not."
NO_EFFECT = "draw this part away from films that show it: that model hardly minds."
NOT_A_PART = 'each is the name of something: "cheats" a model, "by" a part as in film.parts.'


VERDICT: Mistakes = {
    "the other model": ({"choose": min}, WRONG_MODEL),
    "the finding": ({"cheats": "B", "by": "consolidation"}, FINDING_ITSELF),
    "anatomy": ({"cheats": "A", "by": "ribs"}, ANATOMY),
    "harmless": ({"cheats": "B", "by": "nodule"}, NO_EFFECT),
    "no part": ({"cheats": "A", "by": "the background"}, NOT_A_PART),
}


@exercise("hw06.verdict", verdict, VERDICT)
def check_verdict(answer: Answer, known: Exercise) -> Iterator[str]:
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
