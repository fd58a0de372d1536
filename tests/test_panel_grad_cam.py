import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from course_utils.methods import cam
from course_utils.networks import Classifier, SmallResNet
from course_utils.panels import Panel, grad_cam
from course_utils.panels.cams import LAST, SCENES
from course_utils.panels.canvas import decimal
from course_utils.panels.pictures import ANSWER, pixels_of
from course_utils.worlds import scenes
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(12)


@pytest.fixture
def panel(classifier: Classifier) -> Panel:
    return grad_cam(classifier)


def raw(classifier: Classifier, picture: str, **options: Any) -> Tensor:
    x = classifier.to_input(pixels_of(SCENES[picture]))
    return cam.grad_cam(classifier.model, x, upsample=False, **options)


def pixels(panel: Panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"))


def test_every_control_changes_the_picture(panel: Panel) -> None:
    opening, words, shown = panel.values, panel.words, panel.picture.value
    others = {
        "picture": "football and tiger",
        "layer": "layer2.1",
        "class_": "umbrella",
        "relu": False,
        "smooth": False,
        "strength": 0.2,
    }
    assert set(others) == set(opening)
    for name, value in others.items():
        panel.controls[name].value = value
        assert panel.status.value == "", name
        assert panel.picture.value != shown, name
        if name not in ("smooth", "strength"):
            assert panel.words != words, name
        panel.update(**opening)
        assert panel.picture.value == shown


def test_every_layer_and_picture_works(panel: Panel) -> None:
    names = panel.controls["layer"].options
    assert names[:3] == ("conv1", "relu", "layer1.0")
    assert names[-2:] == ("layer4.1", LAST)
    seen = set()
    for layer in names:
        panel.controls["layer"].value = layer
        assert panel.status.value == "", layer
        assert f"at {layer} for" in panel.words
        seen.add(panel.picture.value)
    assert len(seen) == len(names)
    for picture in panel.controls["picture"].options:
        panel.controls["picture"].value = picture
        assert panel.status.value == "", picture


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layer", [LAST, "layer3.0", "conv1"])
def test_the_numbers_are_those_of_grad_cam(
    panel: Panel, classifier: Classifier, layer: str, relu: bool
) -> None:
    picture = "clownfish, hard"
    panel.update(picture=picture, layer=layer, class_="tiger", relu=relu)
    target = classifier.classes.index("tiger")
    name = None if layer == LAST else layer
    found = raw(classifier, picture, target=target, layer=name, relu=relu)
    low, high, total = (decimal(float(v)) for v in (found.min(), found.max(), found.sum()))
    assert f"from {low} to {high} logits a place, together {total}" in panel.words
    logits = classifier.model(classifier.to_input(pixels_of(SCENES[picture])))
    assert f"the logit is {decimal(float(logits[0, target]))}." in panel.words
    assert ("negative parts cut" in panel.words) == relu


def test_the_answer_is_the_class_with_the_largest_logit(
    panel: Panel, classifier: Classifier
) -> None:
    panel.update(picture="hot-air balloon", class_=ANSWER)
    logits = classifier.model(classifier.to_input(pixels_of(SCENES["hot-air balloon"])))
    assert f"for “{classifier.classes[int(logits.argmax())]}”" in panel.words


def test_raw_places_have_one_colour_and_smooth_ones_do_not(panel: Panel) -> None:
    def variation() -> float:
        area = pixels(panel)[72:492, 838:1258].astype(float)  # the map: 4 × 4 places
        inner = area.reshape(4, 105, 4, 105, 3)[:, 20:-20, :, 20:-20]
        return float(inner.std(axis=(1, 3)).mean())

    panel.update(relu=False, smooth=False, class_="tiger")
    assert variation() < 2
    panel.update(smooth=True)
    assert variation() > 5


def test_without_strength_the_picture_stays_as_it_is(panel: Panel, classifier: Classifier) -> None:
    panel.update(strength=0.0, relu=False)
    shown = pixels(panel)[72:567, 314:809]
    x = classifier.to_input(pixels_of(SCENES["zebra"]))
    plain = Image.fromarray(classifier.to_image(x)).resize(
        shown.shape[1::-1], Image.Resampling.BICUBIC
    )
    assert np.abs(shown.astype(int) - np.asarray(plain)).mean() < 6


def test_a_picture_of_your_own_comes_first(classifier: Classifier) -> None:
    blue = np.zeros((50, 70, 3), np.uint8)
    blue[..., 2] = 255
    panel = grad_cam(classifier, blue)
    assert panel.controls["picture"].value == "your picture"
    assert np.abs(pixels(panel)[150, 100].astype(int) - (0, 0, 255)).max() < 8


def test_a_dead_map_still_shows(classifier: Classifier) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallResNet(len(scenes.CLASSES), (8, 8, 8, 8))
    torch.nn.init.zeros_(network.fc.weight)
    network.eval().requires_grad_(False)
    panel = grad_cam(Classifier("dead", network, scenes.CLASSES, 64))
    for relu in (True, False):
        panel.update(relu=relu)
        assert panel.status.value == ""
    assert "from 0.00 to 0.00 logits a place, together 0.00" in panel.words


def test_an_error_is_a_sentence(panel: Panel) -> None:
    panel.controls["picture"].options = [*panel.controls["picture"].options, "nowhere"]
    shown = panel.picture.value
    panel.controls["picture"].value = "nowhere"
    assert "nowhere" in panel.status.value
    assert panel.picture.value == shown
    panel.controls["picture"].value = "zebra"
    assert panel.status.value == ""


def test_a_model_that_cannot_be_shown_is_refused_in_a_sentence() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 16))
    with pytest.raises(ValueError, match="model: this Sequential has no convolution"):
        grad_cam(Classifier("flat", network, scenes.CLASSES, 64))
