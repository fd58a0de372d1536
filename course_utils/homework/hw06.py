"""Homework 6, the audit: the two models, the clinic's films, and the checks of its four functions.

What cheats, and by what, is written here alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache, partial
from math import isnan
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_utils import models, training
from course_utils.homework import cases
from course_utils.homework.checks import Exercise, Mistakes, compare, exercise, remembered
from course_utils.homework.guard import Answer, Wrong
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


_drawn = lru_cache(maxsize=256)(render)  # the same few films for every mistake that is tried


@cache
def _both() -> dict[str, Classifier]:
    return candidates()


@cases.once
def _films(length: int, seed: int, elsewhere: bool = False) -> Radiographs:
    """Films that are drawn: of the clinic, or of others, where no part tells of the finding."""
    seed = cases.moved(seed)
    films = Radiographs(length, seed) if elsewhere else clinic(length, seed)
    films.draw()
    films.radiograph = lru_cache(films.radiograph)  # type: ignore[method-assign]  # drawn once
    return films


class _Leaning(nn.Module):
    """A model whose margins are all larger by the same number, so that it errs more often."""

    def __init__(self, model: nn.Module, by: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("by", torch.tensor([0.0, by]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of images (N, 3, H, W)."""
        return self.model(x) + self.by


def leaning(classifier: Classifier, by: float) -> Classifier:
    """A classifier that calls more films ill, or with a negative number fewer."""
    model = _Leaning(classifier.model, by).to(classifier.device).eval()
    return replace(classifier, model=model)


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
    of_all: bool = False,
    percent: bool = False,
    balanced: bool = False,
    false_alarms: bool = False,
) -> dict[str, float]:
    """Of all films, of the ill and of the healthy: the share that is called what it is."""
    images, labels = films.draw()
    called = models.logits(classifier, images).argmax(1)
    right = (called == labels).float()
    group = called if of_called else labels
    sensitivity, specificity = (
        right[chosen].sum() / (len(right) if of_all else chosen.sum())
        for chosen in (group == ill, group != ill)
    )
    accuracy = (sensitivity + specificity) / 2 if balanced else right.mean()
    if false_alarms:
        specificity = 1 - specificity
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
    "of all films": (
        {"of_all": True},
        "you divide by the number of all films. Sensitivity is a share of the ill, specificity a "
        "share of the healthy.",
    ),
    "false alarms": (
        {"false_alarms": True},
        "this is the share of the healthy that are called *ill*, the false-positive rate. "
        "Specificity is the share of them that are called healthy.",
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


def _of_two_minds(classifier: Classifier, films: Radiographs, by: float) -> Classifier:
    """A classifier that leans so that its most doubtful film gets the margin `by`."""
    margins = [margin(classifier, films.radiograph(index)) for index in range(len(films))]
    return leaning(classifier, by - min(margins, key=abs))


# To import scikit-learn, whose metrics would do, moves Python's generator.
@exercise("hw06.performance", performance, PERFORMANCE, moves=("Python",))
def check_performance(answer: Answer, known: Exercise) -> Iterator[str]:
    """Accuracy, sensitivity and specificity, on odd sets so that the groups differ in size.

    The two models hardly err, and what does not err has a share of 1, however it is counted; so
    they are made to lean to one side and to the other, and to be of two minds about one film.
    """
    close, leans = _films(9, 12), (((15, 9), 4.5), ((13, 31), -5.0))
    asked = [
        {"classifier": leaning(model, by), "films": _films(*which)}
        for model in _both().values()
        for which, by in leans
    ]
    asked += [
        {"classifier": _of_two_minds(model, close, by), "films": close}
        for model, by in zip(_both().values(), (-0.2, 0.2), strict=True)
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
            hint="called ill is where the logit of class 1 is the larger one, and no share is "
            "rounded. Count on paper with four films: two ill, two healthy, one error of each "
            "kind.",
        )
        yield f"{key} is right for six models that err in different ways"


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


def _covered(classifier: Classifier, film: Radiograph, part: str, *, grey: int = 128) -> float:
    """The part's pixels set to one grey, rather than the film drawn again."""
    picture = film.image.copy()
    if part in film.parts:
        picture[film.parts[part]] = grey
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
    "covered in black": (
        partial(_covered, grey=0),
        "a black patch is something new on the film, and black means air. Draw the film without "
        "the part.",
    ),
    "magnitude": (
        lambda **case: abs(effect(**case)),
        "the sign is lost: a part can speak against a consolidation, too.",
    ),
    "0 for what is not listed": (
        lambda **case: effect(**case) if case["part"] in case["film"].parts else 0.0,
        "film.parts does not list what every chest has, such as ribs, and they have an effect, "
        "too. A film without the part needs no case of its own: drawn without it, it is the same.",
    ),
}


def _most_against(classifier: Classifier, films: Radiographs, part: str) -> Radiograph:
    """The film on which the part speaks most against a finding."""
    shown = [film for film in map(films.radiograph, range(len(films))) if part in film.parts]
    return min(shown, key=lambda film: effect(classifier, film, part))


@exercise("hw06.effect", effect, EFFECT)
def check_effect(answer: Answer, known: Exercise) -> Iterator[str]:
    """margin(film) − margin(film drawn without the part), for two models and several parts."""
    films = _films(31, 1)
    drawn = [*map(films.radiograph, range(31))]
    shown = [film for film in drawn if DEVICES & film.parts.keys()][:2]
    pairs = [(film, part) for film in drawn[3:5] for part in ("consolidation", "ribs")]
    pairs += [
        (film, part)
        for film in (*drawn[3:5], *shown)
        for part in sorted(DEVICES & film.parts.keys())
    ]
    asked = [
        {"classifier": model, "film": film, "part": part}
        for model in _both().values()
        for film, part in pairs
    ]
    asked += [
        {"classifier": model, "film": _most_against(model, films, "marker"), "part": "marker"}
        for model in _both().values()
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


class Verdict(NamedTuple):
    """What there is to know of a film: does it show the part, is it ill, is it called ill?"""

    shows: bool
    ill: bool
    before: bool
    after: bool  # called ill, drawn without the part


@lru_cache(maxsize=64)
def _verdicts(classifier: Classifier, films: Radiographs, part: str) -> list[Verdict]:
    drawn = [_drawn(films.spec(index)) for index in range(len(films))]
    without = [_drawn(film.spec.without(part)) if part in film.parts else film for film in drawn]
    before, after = ([margin(classifier, film) > 0 for film in some] for some in (drawn, without))
    shows = [part in film.parts for film in drawn]
    ill = [film.label == CLASSES[FINDING] for film in drawn]
    return [Verdict(*each) for each in zip(shows, ill, before, after, strict=True)]


def turned(
    classifier: Classifier,
    films: Radiographs,
    part: str,
    *,
    among: Callable[[Verdict], bool] = lambda film: film.shows and film.before,
    turns: Callable[[Verdict], bool] = lambda film: not film.after,
    per: Callable[[Verdict], bool] | None = None,
    count: bool = False,
    asks: bool = True,
    nothing: float = float("nan"),
) -> float:
    """Of the films that show the part and are called ill: the share called healthy without it."""
    verdicts = _verdicts(classifier, films, part)
    turn = sum(turns(film) for film in verdicts if among(film))
    total = sum(map(per or among, verdicts))
    if asks and not total:
        return nothing
    return float(turn) if count else turn / total


TURNED: Mistakes = {
    "of all films": (
        {"per": lambda film: True},
        "a film without the part cannot turn. Divide by the films that could.",
    ),
    "of all that show the part": (
        {"per": lambda film: film.shows},
        "you divide by all films that show the part. Only those that the model calls ill can be "
        "called healthy afterwards: divide by their number.",
    ),
    "of the truly ill": (
        {"among": lambda film: film.shows and film.ill},
        "you start from the truth. The question is whether the model's *answer* turns: start from "
        "the films that it calls ill.",
    ),
    "of those called ill, whatever they show": (
        {"among": lambda film: film.before},
        "you divide by all films that are called ill. Only those that show the part can turn.",
    ),
    "ill by label, too": (
        {"among": lambda film: film.shows and film.before and film.ill},
        "you leave out healthy films that the model calls ill. The label is not one of the two "
        "conditions.",
    ),
    "both ways": (
        {"among": lambda film: film.shows, "turns": lambda film: film.before != film.after},
        "you also count films that were called healthy before.",
    ),
    "the other way": (
        {"among": lambda film: film.shows and not film.before, "turns": lambda film: film.after},
        "you start from the films that are called healthy, and count those called ill without the "
        "part. Wanted is the other direction.",
    ),
    "those that stay": (
        {"turns": lambda film: film.after},
        "these are the films that are still called ill without the part. Wanted are those that "
        "turn.",
    ),
    "a number of films": (
        {"count": True},
        "the task asks for a share, from 0 to 1: neither a number of films, nor percent, nor an "
        "effect on the margin.",
    ),
    "no film, no turn": (
        {"nothing": 0.0},
        "where no film shows the part and is called ill, there is nothing to take a share of: "
        'return float("nan"), not 0.',
    ),
    "divided by nothing": (
        {"asks": False},
        "the number of films that you divide by may be 0. Ask for that before you divide, and "
        'return float("nan").',
    ),
    "constant": (
        lambda **_: 0.0,
        "this is 0 for every model and every part. Is the film drawn again, and is the model asked "
        "again?",
    ),
}


def _undecided(classifier: Classifier, films: Radiographs, part: str) -> Classifier:
    """A classifier that calls one of the films healthy, and ill once the part is drawn away."""
    film = _most_against(classifier, films, part)
    return leaning(classifier, effect(classifier, film, part) / 2 - margin(classifier, film))


@cases.once
def _fooled(classifier: Classifier, films: Radiographs) -> tuple[Classifier, str]:
    """A classifier that calls one of the healthy films ill for a single part of it; that part."""
    drawn = map(films.radiograph, range(len(films)))
    healthy = [film for film in drawn if film.label != CLASSES[FINDING]]
    pairs = [(film, part) for film in healthy for part in REMOVABLE if part in film.parts]
    film, part = max(pairs, key=lambda pair: effect(classifier, *pair))
    by = effect(classifier, film, part) / 2 - margin(classifier, film)
    return leaning(classifier, by), part


@exercise("hw06.turned", turned, TURNED)
def check_turned(answer: Answer, known: Exercise) -> Iterator[str]:
    """The share of verdicts that turn, for models and parts that turn all, some, or no films."""
    here, elsewhere = _films(15, 9), _films(15, 3, True)
    a, b = _both().values()
    fooled, part_of_it = _fooled(b, elsewhere)
    asked: list[dict[str, Any]] = [
        {"classifier": model, "films": films, "part": part}
        for model, films, part in (
            (a, here, "consolidation"),
            (b, here, "consolidation"),
            (a, elsewhere, "catheter"),
            (fooled, elsewhere, part_of_it),
            (_undecided(a, elsewhere, "marker"), elsewhere, "marker"),
            (_undecided(b, elsewhere, "marker"), elsewhere, "marker"),
            (leaning(a, -99), here, "consolidation"),  # calls nobody ill
            (leaning(b, 99), _films(1, 3, True), "consolidation"),  # a healthy film alone
        )
    ]
    empty = [case for case in asked if isnan(turned(**case))]
    shares = _numbers([case for case in asked if case not in empty], "the share")
    for share in shares(answer)().tolist():
        if share < 0 or share > 1:
            raise Wrong(f"the share is {share:g}", known.hint("a number of films"))
    compare(
        answer,
        known,
        [{}],
        of=lambda function: lambda: shares(function)().nan_to_num(-1),
        what="the share",
        hint="two conditions choose the films: the part is there, and the model calls it ill.",
    )
    for case in empty:
        _check_empty(case, answer, known)
    yield "the right share for eight models, parts and sets of films, and NaN where there is none"


def _check_empty(case: dict[str, Any], answer: Answer, known: Exercise) -> None:
    """Raise `Wrong` unless the share of no films is NaN."""
    where = "where no film shows the part and is called ill"
    try:
        share = answer(**case)
    except ZeroDivisionError:
        raise Wrong(f"{where}, you divide by 0", known.hint("divided by nothing")) from None
    if share is None or not isnan(_number(share, "the share")):
        raise Wrong(f"{where}, the result is {share}", known.hint("no film, no turn"))


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
