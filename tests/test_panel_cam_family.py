import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from course_utils.methods import METHODS, cam
from course_utils.networks import Classifier
from course_utils.panels import Panel, cam_family
from course_utils.panels.cams import FAMILY, LAST, SCENES
from course_utils.panels.canvas import decimal
from course_utils.panels.pictures import pixels_of
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(24)


@pytest.fixture
def panel(classifier: Classifier) -> Panel:
    return cam_family(classifier)


def found(classifier: Classifier, picture: str, method: Any, **options: Any) -> Tensor:
    x = classifier.to_input(pixels_of(SCENES[picture]))
    return method(classifier.model, x, upsample=False, **options)


def ends(map_: Tensor) -> str:
    return f"from {decimal(float(map_.min()))} to {decimal(float(map_.max()))}"


def test_every_control_changes_the_picture(panel: Panel) -> None:
    opening, words, shown = panel.values, panel.words, panel.picture.value
    others = {
        "picture": "zebra",
        "method": "layer_cam",
        "layer": "layer2.1",
        "class_": "umbrella",
    }
    assert set(others) == set(opening)
    for name, value in others.items():
        panel.controls[name].value = value
        assert panel.status.value == "", name
        assert panel.picture.value != shown, name
        assert panel.words != words, name
        panel.update(**opening)
        assert panel.picture.value == shown


@pytest.mark.parametrize("layer", [LAST, "layer3.0"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_numbers_are_those_of_the_methods(
    panel: Panel, classifier: Classifier, name: str, layer: str
) -> None:
    panel.update(picture="zebra and tiger", method=name, layer=layer, class_="tiger")
    given = {"target": classifier.classes.index("tiger"), "layer": layer if layer != LAST else None}
    pair = [
        found(classifier, "zebra and tiger", method, **given)
        for method in (cam.grad_cam, getattr(cam, name))
    ]
    first, second = (ends(map_) for map_ in pair)
    assert f"Grad-CAM (1 F and back to the layer) {first}, {METHODS[name].label} (" in panel.words
    assert f") {second}. Their correlation is" in panel.words
    alike = torch.corrcoef(torch.stack([map_.flatten().double() for map_ in pair]))[0, 1]
    assert f"Their correlation is {decimal(float(alike.nan_to_num()))}." in panel.words


def test_eigen_cam_does_not_move_with_the_class(panel: Panel) -> None:
    panel.update(method="eigen_cam", layer="layer3.0")
    told = []
    for name in ("tiger", "umbrella"):
        panel.update(class_=name)
        told.append(panel.words.partition("Eigen-CAM")[2].partition(". Their")[0])
    assert told[0] == told[1]


def test_score_cam_shows_few_maps_first(panel: Panel, classifier: Classifier) -> None:
    few, every = (
        found(classifier, "zebra", cam.score_cam, **options) for options in ({"channels": 16}, {})
    )
    panel.update(picture="zebra", method="layer_cam")

    async def moved() -> str:
        panel.update(method="score_cam")
        return panel.words

    first = asyncio.run(moved())
    assert f"(1 + M) F, at most 16 channels, more coming …) {ends(few)}" in first
    panel._finish()
    assert f"(1 + M) F, at most 128 channels) {ends(every)}" in panel.words
    assert ends(few) != ends(every)
