"""Homework 6: the audit's functions, written in other manners, and wrong in other ways."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import models
from course_utils.homework import check, hw06
from course_utils.networks import Classifier
from course_utils.worlds import radiographs
from course_utils.worlds.radiographs import Radiograph, Radiographs
from tests import keys

pytestmark = pytest.mark.slow


def answers(classifier: Classifier, films: Radiographs) -> np.ndarray:
    """True where a film is called ill, one film after the other."""
    logits = [
        classifier.model(classifier.to_input(films.radiograph(index).image))
        for index in range(len(films))
    ]
    return torch.cat(logits).detach().softmax(1).numpy()[:, 1] > 0.5


def performance_by_counting(classifier: Classifier, films: Radiographs) -> dict[str, Any]:
    counts = {(truth, called): 0 for truth in (False, True) for called in (False, True)}
    for index, called in enumerate(answers(classifier, films)):
        counts[films.radiograph(index).label == "consolidation", bool(called)] += 1
    found_ill, found_healthy = counts[True, True], counts[False, False]
    return {
        "specificity": np.float64(found_healthy / (found_healthy + counts[False, True])),
        "sensitivity": torch.tensor(found_ill / (found_ill + counts[True, False])),
        "accuracy": (found_ill + found_healthy) / len(films),
    }


def effect_in_one_batch(classifier: Classifier, film: Radiograph, part: str) -> Tensor:
    without = radiographs.render(replace(film.spec, removed=(*film.spec.removed, part)))
    x = torch.cat([classifier.to_input(one.image) for one in (film, without)])
    logits = classifier.model(x)
    margins = logits @ torch.tensor([-1.0, 1.0])
    return (margins[0] - margins[1]).detach()


def turned_by_comprehension(classifier: Classifier, films: Radiographs, part: str) -> float:
    def ill(film: Radiograph) -> bool:
        return classifier.predict(film.image, 1)[0][0] == "consolidation"

    chosen = [
        film
        for film in (films.radiograph(index) for index in range(len(films)))
        if part in film.parts and ill(film)
    ]
    after = [ill(radiographs.render(film.spec.without(part))) for film in chosen]
    return float(1 - np.mean(after)) if chosen else float("nan")


ANATOMY = {"ribs", "vessels", "clavicles", "breasts"}


def effect_by_the_text(classifier: Classifier, film: Radiograph, part: str) -> float:
    """0 without a look where the film does not show the part."""
    if part not in film.parts and part not in ANATOMY:
        return 0.0
    return float(effect_in_one_batch(classifier, film, part))


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("performance", performance_by_counting),
    ("effect", effect_in_one_batch),
    ("effect", effect_by_the_text),
    ("turned", turned_by_comprehension),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[answer.__name__ for _, answer in RIGHT])
def test_another_manner_is_accepted(name: str, answer: Callable[..., Any]) -> None:
    check(f"hw06.{name}", answer, seed=1)


def test_a_verdict_may_be_worked_out() -> None:
    def verdict() -> dict[str, str]:
        models, films = hw06.candidates(), hw06.clinic(20)
        parts = ("leads", "catheter", "nodule")
        gaps = {
            (letter, part): sum(
                float(effect_in_one_batch(classifier, films.radiograph(i), part))
                for i in range(1, 20, 2)
            )
            for letter, classifier in models.items()
            for part in parts
        }
        letter, part = max(gaps, key=gaps.__getitem__)
        return {"by": part, "cheats": letter}

    check("hw06.verdict", verdict)


def always_well(classifier: Classifier, films: Radiographs) -> dict[str, float]:
    return {"accuracy": 0.97, "sensitivity": 0.95, "specificity": 0.99}


def of_the_first_model(classifier: Classifier, film: Radiograph, part: str) -> float:
    return float(effect_in_one_batch(hw06.candidates()["A"], film, part))


def effect_on_probability_in_percent(classifier: Classifier, film: Radiograph, part: str) -> float:
    before, after = (
        dict(classifier.predict(one.image))["consolidation"]
        for one in (film, radiographs.render(film.spec.without(part)))
    )
    return before - after


def never(classifier: Classifier, films: Radiographs, part: str) -> float:
    return 0.0


def without_asking_for_the_part(classifier: Classifier, films: Radiographs, part: str) -> float:
    called = answers(classifier, films)
    margins = [
        hw06.margin(classifier, radiographs.render(films.radiograph(int(i)).spec.without(part)))
        for i in np.flatnonzero(called)
    ]
    return float(np.mean(np.array(margins) <= 0)) if margins else float("nan")


def truly_ill_alone(classifier: Classifier, films: Radiographs, part: str) -> float:
    """The share among the films that are ill, too."""
    turns = [
        hw06.margin(classifier, radiographs.render(film.spec.without(part))) <= 0
        for film in map(films.radiograph, range(len(films)))
        if part in film.parts and film.label == "consolidation"
        if hw06.margin(classifier, film) > 0
    ]
    return float(np.mean(turns)) if turns else float("nan")


def in_percent(classifier: Classifier, films: Radiographs, part: str) -> float:
    return 100 * turned_by_comprehension(classifier, films, part)


def mean_effect(classifier: Classifier, films: Radiographs, part: str) -> float:
    some = map(films.radiograph, range(len(films)))
    effects = [
        float(effect_in_one_batch(classifier, film, part)) for film in some if part in film.parts
    ]
    return sum(effects) / len(effects) if effects else float("nan")


def none_for_nothing(classifier: Classifier, films: Radiographs, part: str) -> float | None:
    share = turned_by_comprehension(classifier, films, part)
    return share if share == share else None


def zero_unless_listed(classifier: Classifier, film: Radiograph, part: str) -> float:
    return float(effect_in_one_batch(classifier, film, part)) if part in film.parts else 0.0


def by_another_threshold(classifier: Classifier, films: Radiographs) -> dict[str, float]:
    """Called ill where the probability is at least 0.45."""
    images, labels = films.draw()
    right = (models.logits(classifier, images).softmax(1)[:, 1] >= 0.45).long() == labels
    ill = labels == 1
    groups = {"accuracy": right, "sensitivity": right[ill], "specificity": right[~ill]}
    return {name: float(group.float().mean()) for name, group in groups.items()}


def no_film_no_turn(classifier: Classifier, films: Radiographs, part: str) -> float:
    share = turned_by_comprehension(classifier, films, part)
    return share if share == share else 0.0


def divided(classifier: Classifier, films: Radiographs, part: str) -> float:
    some = map(films.radiograph, range(len(films)))
    ill = [f for f in some if part in f.parts and hw06.margin(classifier, f) > 0]
    still = [
        f for f in ill if hw06.margin(classifier, radiographs.render(f.spec.without(part))) > 0
    ]
    return (len(ill) - len(still)) / len(ill)


def those_that_become_ill(classifier: Classifier, films: Radiographs, part: str) -> float:
    some = map(films.radiograph, range(len(films)))
    healthy = [f for f in some if part in f.parts and hw06.margin(classifier, f) <= 0]
    without = [radiographs.render(f.spec.without(part)) for f in healthy]
    ill = [f for f in without if hw06.margin(classifier, f) > 0]
    return len(ill) / len(healthy) if healthy else float("nan")


def black_patch(classifier: Classifier, film: Radiograph, part: str) -> float:
    picture = film.image.copy()
    picture[film.parts.get(part, np.zeros(picture.shape[:2], bool))] = 0
    return hw06.margin(classifier, film) - hw06.margin(classifier, replace(film, image=picture))


def of_all_films(classifier: Classifier, films: Radiographs) -> dict[str, float]:
    ill, truth = answers(classifier, films), films.draw()[1].numpy() == 1
    return {
        "accuracy": float((ill == truth).mean()),
        "sensitivity": float((ill & truth).mean()),
        "specificity": float((~ill & ~truth).mean()),
    }


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("effect", lambda **case: 2 * effect_in_one_batch(**case), "a difference of two margins"),
        ("turned", lambda **case: turned_by_comprehension(**case) / 2, "two conditions choose"),
        ("performance", of_all_films, "by the number of all films"),
        ("effect", black_patch, "black means air"),
        ("turned", no_film_no_turn, "nothing to take a share of"),
        ("turned", divided, "may be 0"),
        ("turned", those_that_become_ill, "the other direction"),
        ("performance", always_well, "do not change with the model"),
        ("performance", lambda **_: (0.9, 0.9, 0.9), "return a dict with the keys"),
        ("effect", of_the_first_model, "difference of two margins"),
        ("effect", effect_on_probability_in_percent, "a probability near 0 or 1"),
        ("effect", lambda **_: None, "does the function end with return"),
        ("turned", never, "Is the film drawn again"),
        ("turned", without_asking_for_the_part, "Only those that show the part"),
        ("turned", truly_ill_alone, "The label is not one"),
        ("turned", in_percent, "nor percent"),
        ("turned", mean_effect, "nor an effect"),
        ("turned", none_for_nothing, 'return float("nan")'),
        ("turned", lambda **_: None, "does the function end with return"),
        ("effect", zero_unless_listed, "does not list"),
        ("performance", by_another_threshold, "the larger one"),
        ("verdict", lambda: {"cheats": "C", "by": "catheter"}, "is the name of something"),
        ("verdict", lambda: ("A", "catheter"), "is the name of something"),
        ("verdict", lambda: {"cheats": "A", "by": "clavicles"}, "part of every chest"),
    ],
)
def test_a_wrong_answer_gets_a_fitting_hint(
    name: str, answer: Callable[..., Any], hint: str
) -> None:
    assert hint in keys.refused(f"hw06.{name}", answer).hint


def test_an_untested_suspicion_about_both_models_is_told_apart() -> None:
    """Nothing but the confounder moves one model by 1 and not the other."""
    for letter, part in itertools.product("AB", ("leads", "marker", "pacemaker", "nodule")):
        wrong = keys.refused("hw06.verdict", functools.partial(dict, cheats=letter, by=part))
        assert "hardly minds" in wrong.hint


def test_the_two_models_go_by_neutral_names() -> None:
    assert [model.name for model in hw06.candidates().values()] == ["A", "B"]
