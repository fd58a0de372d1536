import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from course_utils import evaluation, panels
from course_utils.models import load
from course_utils.networks import Classifier
from course_utils.panels import Panel, studies
from course_utils.panels.studies import LETTERS, NO_MAP, Question
from course_utils.worlds import photographs
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes() -> Classifier:
    return load("scenes", device="cpu")


@pytest.fixture(scope="module")
def pool(scenes: Classifier) -> list[Question]:
    return studies._pool(scenes, None)


@pytest.fixture
def panel(scenes: Classifier, pool: list[Question], monkeypatch: pytest.MonkeyPatch) -> Panel:
    monkeypatch.setattr(studies, "_pool", lambda classifier, image: pool)
    panel: Panel = panels.simulatability(scenes)
    return panel


def click(panel: Panel, name: str) -> None:
    panel.controls[name].click()
    assert panel.status.value == ""


def answer(panel: Panel, guesses: list[str]) -> None:
    """Click a guess on every page, then go on to the next."""
    for guess in guesses:
        letter = next(
            letter for letter in LETTERS if panel.controls[letter].description.endswith(guess)
        )
        click(panel, letter)
        assert f"Guessed: {guess}." in panel.words
        click(panel, "next")


def pixels(panel: Panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"))


# the study


def test_half_of_the_pictures_are_errors_and_half_have_a_map(pool: list[Question]) -> None:
    for study in range(8):
        asked = studies.drawn_study(pool, study)
        assert len(asked) == 12
        assert len({id(one.seen) for one in asked}) == 12
        assert sum(one.answer != one.truth for one in asked) == 6
        assert sum(one.mapped for one in asked) == 6


def test_what_has_a_map_is_drawn_without_regard_to_the_picture(pool: list[Question]) -> None:
    """Errors of the model have maps as often as the other pictures, over many studies."""
    counts = np.zeros((2, 2))
    for study in range(300):
        for one in studies.drawn_study(pool, study):
            counts[int(one.answer != one.truth), int(one.mapped)] += 1
    assert counts.sum(1).tolist() == counts.sum(0).tolist() == [1800, 1800]
    assert abs(counts[1, 1] - 900) < 80  # three standard deviations of what is dealt


def test_a_study_is_the_same_again_and_others_differ(pool: list[Question]) -> None:
    def names(study: int) -> list[tuple[str, bool, int]]:
        asked = studies.drawn_study(pool, study)
        return [(one.answer, one.mapped, id(one.seen)) for one in asked]

    assert names(3) == names(3)
    assert names(3) != names(4)


def test_the_answers_on_offer(pool: list[Question], scenes: Classifier) -> None:
    for one in pool:
        assert len({*one.options}) == 4
        assert one.options == tuple(sorted(one.options))  # their order tells nothing
        assert {one.answer, one.truth} <= {*one.options}
        assert one.answer == scenes.classes[int(one.seen.logits.argmax())]


def test_few_pictures_and_classes_make_a_study_too(pool: list[Question]) -> None:
    assert len(studies.drawn_study(pool[:5], 0)) == 5
    right = [one for one in pool if one.answer == one.truth]
    wrong = [one for one in pool if one.answer != one.truth]
    assert len(studies.drawn_study(right, 0)) == 12
    assert len(wrong) >= 8
    asked = studies.drawn_study([*wrong[:8], *right[:3]], 0)
    assert len(asked) == 11
    assert sum(one.answer != one.truth for one in asked) == 8


# the page


def test_no_answer_of_the_model_shows_before_the_score(panel: Panel, pool: list[Question]) -> None:
    asked = studies.drawn_study(pool, 0)
    for page, question in enumerate(asked, 1):
        panel.controls["page"].value = page
        words = f"picture {page} of 12, {'with a map' if question.mapped else 'without a map'}."
        assert words in panel.words
        assert [panel.controls[letter].description for letter in LETTERS] == [
            f"{letter}  {option}" for letter, option in zip(LETTERS, question.options, strict=True)
        ]
        assert panel.words.endswith(
            f"What will the model answer: {', '.join(question.options)}? Guessed: nothing yet."
        )


def test_the_score_is_that_of_the_guesses(panel: Panel, pool: list[Question]) -> None:
    """Students who say what the picture shows: right where the model is, whatever map they see."""
    asked = studies.drawn_study(pool, 0)
    answer(panel, [one.truth for one in asked])
    assert panel.controls["page"].value == 13
    shown = ["grad_cam" if one.mapped else NO_MAP for one in asked]
    found = evaluation.simulatability(
        [one.truth for one in asked], [one.answer for one in asked], shown, control=NO_MAP
    )
    assert sum(rate.right for rate in found.rates.values()) == 6
    for name, rate in found.rates.items():
        assert f"with {name}: {rate.right} of 6 right, {rate.share:.0%}" in panel.words
    assert f"p = {found.gains['grad_cam'].p:.2f}" in panel.words
    assert all(panel.controls[letter].disabled for letter in LETTERS)
    panel.controls["A"].click()  # says nothing on the last page
    assert panel.status.value == ""


def test_students_who_read_the_map_are_told_so(panel: Panel, pool: list[Question]) -> None:
    asked = studies.drawn_study(pool, 0)
    wrong = [next(o for o in one.options if o != one.answer) for one in asked]
    answer(panel, [one.answer if one.mapped else w for one, w in zip(asked, wrong, strict=True)])
    assert "with grad_cam: 6 of 6 right, 100%" in panel.words
    assert "with no map: 0 of 6 right, 0%" in panel.words
    assert "gain: +100 points" in panel.words
    assert "p < 0.01: hardly chance" in panel.words


def test_students_who_ignore_maps_score_alike_over_many_studies(pool: list[Question]) -> None:
    """Who says what the picture shows is right as often with a map as without."""
    gains = []
    for study in range(300):
        asked = studies.drawn_study(pool, study)
        design = studies.Design("grad_cam", NO_MAP, study)
        found = studies.score(design, asked, {k: one.truth for k, one in enumerate(asked, 1)})
        assert found
        gains.append(found.gains["grad_cam"].difference)
    assert abs(np.mean(gains)) < 4 * np.std(gains) / 300**0.5
    assert np.std(gains) > 0.1


def test_a_guess_can_be_changed_and_all_taken_back(panel: Panel) -> None:
    click(panel, "A")
    first = panel.words
    click(panel, "B")
    assert panel.words != first
    click(panel, "next")
    assert panel.controls["page"].value == 2
    panel.controls["page"].value = 1
    assert "nothing yet" not in panel.words
    panel.controls["control"].value = "random numbers"  # another study: its own guesses
    assert "nothing yet" in panel.words
    panel.controls["control"].value = NO_MAP
    assert "nothing yet" not in panel.words
    panel.controls["page"].value = 5
    click(panel, "again")
    assert panel.controls["page"].value == 1
    assert "nothing yet" in panel.words


def test_there_is_no_score_before_both_kinds_have_a_guess(panel: Panel) -> None:
    click(panel, "A")
    panel.controls["page"].value = 13
    assert "1 of 12 pictures guessed: no score yet" in panel.words
    click(panel, "next")
    assert panel.controls["page"].value == 13


def test_a_control_map_stands_in_for_the_map_without_a_word(panel: Panel) -> None:
    panel.update(control="edges of the picture", page=2)
    assert "picture 2 of 12, with a map." in panel.words
    edges = pixels(panel)
    panel.controls["control"].value = "random numbers"
    assert not np.array_equal(edges[:, 480:940], pixels(panel)[:, 480:940])


def test_a_model_of_few_classes_and_ones_own_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(studies, "POOL", 4)
    classifier = small_classifier()
    own = np.full((40, 50, 3), 200, np.uint8)
    panel: Any = panels.simulatability(classifier, own)
    assert panel.controls["page"].max == 6
    two = replace(classifier, classes=("cow", "crow"), model=_two(classifier))
    panel = panels.simulatability(two)
    panel.controls["C"].click()
    assert panel.controls["C"].disabled
    assert "Guessed: nothing yet" in panel.words


def _two(classifier: Classifier) -> Any:
    import torch

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = classifier.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)[:, :2]

    return Two().eval()


def test_photographs_have_no_truth_and_half_a_map() -> None:
    panel: Any = panels.simulatability(load("efficientnet_lite0", device="cpu"))
    assert panel.controls["page"].max == len(photographs.NAMES) + 1
    assert "5 pictures with grad_cam, 4 with no map" in panel.words
    panel.controls["page"].value = panel.controls["page"].max
    assert "0 of 9 pictures guessed" in panel.words
