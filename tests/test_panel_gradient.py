import html
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from course_utils import panels
from course_utils.methods import gradients
from course_utils.networks import Classifier
from course_utils.panels import Panel
from course_utils.panels import gradients as module
from course_utils.panels.gradients import AGGREGATIONS, LOGIT_ONLY, OFFERED, prepare
from course_utils.panels.pictures import ANSWER
from course_utils.worlds import scenes
from tests.networks import small_classifier

pytestmark = pytest.mark.slow

PAIR = "tiger and zebra"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(12)


@pytest.fixture
def panel(classifier: Classifier) -> Panel:
    return panels.gradient(classifier)


def test_the_course_s_own_model_knows_its_zebra() -> None:
    assert "The model answers zebra (1.00)." in panels.gradient().words


def test_every_control_changes_the_picture_and_the_words(panel: Panel) -> None:
    opening, words, shown = panel.values, panel.words, panel.picture.value
    others = {
        "picture": PAIR,
        "target": "umbrella",
        "method": "Guided Backprop",
        "score": "softmax",
        "aggregation": "signed sum",
        "quantile": 0.9,
        "sigma": 3.0,
        "over": True,
    }
    assert set(others) == set(opening)
    for name, value in others.items():
        panel.update(**{name: value})
        assert panel.status.value == ""
        assert panel.picture.value != shown, name
        assert panel.words != words, name
        panel.update(**opening)
        assert panel.picture.value == shown


@pytest.mark.parametrize("name", ["picture", "target", "method", "aggregation"])
def test_every_choice_gives_a_picture(panel: Panel, name: str) -> None:
    for value in panel.controls[name].options:
        panel.update(**{name: value})
        assert panel.status.value == ""
        assert html.unescape(panel.caption.value).count(panel.words) == 1


@pytest.mark.parametrize("method", OFFERED)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_values_are_those_of_the_method(
    panel: Panel, classifier: Classifier, method: str, aggregation: str
) -> None:
    panel.update(picture="tiger", target="cow", method=method, aggregation=aggregation, quantile=1)
    x = classifier.to_input(scenes.render(scenes.standard("tiger")).image)
    values = OFFERED[method](classifier.model, x, scenes.CLASSES.index("cow"))[0]
    by_hand = {
        "abs + max": values.abs().max(0).values,
        "abs + sum": values.abs().sum(0),
        "sum + abs": values.sum(0).abs(),
        "signed sum": values.sum(0).abs(),
    }[aggregation]
    mask = scenes.render(scenes.standard("tiger"), 64).mask
    assert f"the largest value shown is {by_hand.max():.2g}." in panel.words
    inside = by_hand[torch.from_numpy(mask)].sum() / by_hand.sum()
    assert f"{inside:.0%} of the map lies inside the tiger ({mask.mean():.0%}" in panel.words


def test_softmax_is_the_gradient_of_the_probability(panel: Panel, classifier: Classifier) -> None:
    panel.update(score="softmax", target="horse", quantile=1)
    x = classifier.to_input(scenes.render(scenes.standard("zebra")).image).requires_grad_()
    p = classifier.model(x).softmax(1)[0, scenes.CLASSES.index("horse")]
    (expected,) = torch.autograd.grad(p, x)
    assert "gradient of the softmax of “horse”" in panel.words
    assert f"the largest value shown is {expected.abs().max():.2g}." in panel.words


@pytest.mark.parametrize("method", LOGIT_ONLY)
def test_softmax_is_not_on_offer_where_the_rules_know_none(panel: Panel, method: str) -> None:
    panel.update(score="softmax")
    assert not panel.controls["score"].disabled
    panel.update(method=method)
    assert panel.controls["score"].disabled
    assert panel.controls["score"].value == "logit"
    assert f"{method} of the logit of" in panel.words
    panel.update(method="gradient")
    assert not panel.controls["score"].disabled
    assert "gradient of the logit of" in panel.words


def test_prepare_aggregates_then_clamps_then_smooths() -> None:
    values = torch.zeros(3, 10, 10)
    values[:, 0, 0] = torch.tensor([0.5, -0.75, 0.125])
    values[1, 5, 5] = -0.25
    expected = {"abs + max": 0.75, "abs + sum": 1.375, "sum + abs": 0.125, "signed sum": -0.125}
    for name, value in expected.items():
        assert prepare(values, name, 1, 0)[0, 0] == value
    assert prepare(values, "signed sum", 1, 0)[5, 5] == -0.25
    noise = torch.randn(3, 20, 20, generator=torch.Generator().manual_seed(0))
    clamped = prepare(noise, "signed sum", 0.9, 0)
    limit = np.quantile(np.abs(noise.sum(0).numpy()), 0.9)
    assert clamped.max() == pytest.approx(limit) == -clamped.min()
    assert prepare(noise, "signed sum", 0.9, 2) == pytest.approx(gaussian_filter(clamped, 2))


def test_two_objects_have_two_shares(panel: Panel) -> None:
    panel.update(picture=PAIR)
    assert "inside the tiger (" in panel.words
    assert "inside the zebra (" in panel.words
    panel.update(picture="chelsea")
    assert "inside" not in panel.words


def test_the_model_answers_for_itself(panel: Panel, classifier: Classifier) -> None:
    assert panel.values["target"] == ANSWER
    best = classifier.predict(scenes.render(scenes.standard("zebra")).image, 1)[0]
    assert f"of “{best[0]}” for" in panel.words
    assert f"The model answers {best[0]} ({best[1]:.2f})." in panel.words


def test_a_picture_of_your_own_comes_first(classifier: Classifier) -> None:
    blue = np.zeros((50, 70, 3), np.uint8)
    blue[..., 2] = 255
    panel = panels.gradient(classifier, blue)
    assert "for the picture “your picture”" in panel.words
    pixels = np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"))
    assert np.abs(pixels[200, 100].astype(int) - (0, 0, 255)).max() < 8  # JPEG rounds


def test_an_error_shows_as_a_sentence(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Tensor:
        raise ValueError("model: it is broken.")

    before = panel.picture.value
    monkeypatch.setitem(module.OFFERED, "DeconvNet", broken)
    panel.controls["method"].value = "DeconvNet"
    assert "model: it is broken." in panel.status.value
    assert panel.picture.value == before
    panel.controls["method"].value = "gradient"
    assert panel.status.value == ""


def test_a_model_without_relu_says_so_when_its_rules_are_asked_for() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 16))
    panel = panels.gradient(Classifier("flat", network, scenes.CLASSES, 32))
    assert panel.status.value == ""
    panel.controls["method"].value = "Guided Backprop"
    assert "this model has none; use gradient" in panel.status.value


def test_the_model_stays_as_it_was(classifier: Classifier, panel: Panel) -> None:
    x = classifier.to_input(scenes.render(scenes.standard("cow")).image)
    before = gradients.gradient(classifier.model, x, 2)
    panel.update(score="softmax", method="Gradient × Input")
    assert not classifier.model.training
    assert not any(p.requires_grad for p in classifier.model.parameters())
    assert torch.equal(gradients.gradient(classifier.model, x, 2), before)
