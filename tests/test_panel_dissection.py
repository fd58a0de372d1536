"""The panel of dissection shows the numbers of `dissect`, and takes a picture of one's own."""

from typing import Any

import numpy as np
import pytest

from course_utils.panels import concepts, dissection
from course_utils.units.dissection import covers, dissect
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture
def classifier(few_scenes: None) -> Any:
    return small_classifier()


@pytest.mark.parametrize("quantile", [0.005, 0.1])
def test_numbers_are_those_of_dissect(classifier: Any, quantile: float) -> None:
    drawn = concepts._scenes(concepts.SCENES, classifier.size)
    wanted = dissect(classifier, "layer3.1", drawn, quantile=quantile)
    known = [concepts._known(classifier, scene) for scene in drawn]
    x = classifier.inputs([scene.image for scene in drawn])
    maps = concepts.features.feature_maps(
        classifier.model, concepts.torch.stack([x[i] for i in range(len(drawn))]), ["layer3.1"]
    )["layer3.1"]
    found = concepts._dissected(maps[:, 2], known, quantile)
    assert found.threshold == pytest.approx(wanted.thresholds[2], rel=1e-5)
    for k, name in enumerate(wanted.concepts):
        if not np.isnan(wanted.iou[2, k]):
            assert found.iou[name] == pytest.approx(wanted.iou[2, k], abs=1e-6)
    first = found.order[0]
    mask = covers(classifier, "layer3.1", 2, drawn[first], found.threshold)
    np.testing.assert_array_equal(found.above[first], mask)


def test_every_control_moves_the_picture(classifier: Any) -> None:
    panel = dissection(classifier)
    seen = [panel.picture.value]
    moves: dict[str, Any] = {
        "unit": 3,
        "quantile": 0.1,
        "concept": "colour green",
        "layer": "layer1.0",
    }
    for key, value in moves.items():
        panel.update(**{key: value})
        assert panel.status.value == ""
        assert panel.picture.value not in seen
        seen.append(panel.picture.value)
    assert "unit 3 of layer1.0" in panel.words
    assert "“colour green”" in panel.words


def test_a_picture_of_ones_own_comes_with_its_colours(classifier: Any) -> None:
    blue = np.zeros((50, 80, 3), np.uint8)
    blue[:, :, 2] = 255
    panel = dissection(classifier, blue)
    assert "of 17 pictures" in panel.words
    own = concepts._known(classifier, blue)
    assert own.name == "your picture"
    assert own.concepts == ("colour blue",)
    assert own.areas == [64 * 64]
