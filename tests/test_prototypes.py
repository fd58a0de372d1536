import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils.networks import Classifier
from course_utils.panels import Panel, examples, prototypes
from course_utils.panels.examples import PHOTOS, SETS, Furniture, OnePaint, crops
from course_utils.units import concepts, features
from course_utils.worlds import scenes
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def small_sets() -> Any:
    """Sets of 32 scenes: the tests ask for the logic, not for the pictures."""
    for length in (32, 192):
        for made in SETS.values():
            made.length, made._drawn = length, None
        examples._drawn.cache_clear()
        if length == 32:
            yield


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(12)


@pytest.fixture(scope="module")
def panel(classifier: Classifier) -> Panel:
    return prototypes(classifier)


def test_every_control_changes_the_picture_and_the_words(panel: Panel) -> None:
    opening, words, shown = panel.values, panel.words, panel.picture.value
    others = {"chosen": PHOTOS, "layer": "layer4.1", "unit": 1, "pool": "max", "k": 4}
    assert set(others) == set(opening)
    for name, value in others.items():
        panel.update(**{name: value})
        assert panel.status.value == ""
        assert panel.picture.value != shown
        assert panel.words != words
        panel.update(**opening)
        assert panel.picture.value == shown


def test_it_shows_what_top_activating_finds(panel: Panel, classifier: Classifier) -> None:
    panel.update(layer="layer3.1", unit=2, pool="max", k=1, chosen="hard scenes")
    found = features.top_activating(
        *(classifier.model, "layer3.1", 2, classifier.inputs(SETS["hard scenes"]), 1),
        pool="max",
    )
    assert "The 1 pictures of the set “hard scenes”" in panel.words
    label = SETS["hard scenes"].spec(int(found.indices[0])).label
    assert f"the strongest: {label} ({found.scores[0]:.2f})" in panel.words


def test_the_units_on_offer_are_those_of_the_layer(panel: Panel) -> None:
    panel.update(layer="layer4.1", unit=11)
    panel.update(layer="relu")
    assert panel.controls["unit"].max == 7
    assert "unit 7 of relu" in panel.words
    assert panel.status.value == ""


def test_without_zebras_there_are_none(panel: Panel) -> None:
    for pool in ("mean", "max"):
        panel.update(chosen="without zebras", layer="layer4.0", unit=0, pool=pool, k=12)
        assert "zebra (" not in panel.words
        assert "class zebra" not in panel.words


@pytest.mark.parametrize("chosen", [*SETS, PHOTOS])
def test_every_set_gives_a_small_static_picture(panel: Panel, chosen: str) -> None:
    panel.update(chosen=chosen, k=9)
    data, metadata = panel._repr_mimebundle_()
    assert len(data["image/png"]) < 300_000
    assert metadata["image/png"]["alt"] == panel.words
    assert Image.open(io.BytesIO(panel.picture.value)).width > 500
    assert ("No concepts" in panel.words) == (chosen == PHOTOS)


def test_the_made_up_sets_are_what_they_say() -> None:
    for spec in map(Furniture(32, seed=1, missing="nothing").spec, range(32)):
        assert {c.split()[0] for c in concepts.in_scene(spec)} == {"texture", "place"}
    painted = [OnePaint(64, seed=1).spec(index) for index in range(64)]
    assert len({(spec.label, spec.texture) for spec in painted}) == 64
    assert len({(spec.color, spec.accent) for spec in painted}) == 1


def test_crops_are_squares_from_the_photo_and_always_the_same() -> None:
    photo = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    first, again = (crops(photo, 5, np.random.default_rng(2)) for _ in range(2))
    assert [crop.shape for crop in first] == [(128, 128, 3)] * 5
    assert np.array_equal(first, again)


def test_a_picture_of_your_own_replaces_the_photographs(classifier: Classifier) -> None:
    blue = np.zeros((50, 70, 3), np.uint8)
    blue[..., 2] = 255
    panel = prototypes(classifier, blue)
    panel.update(chosen=PHOTOS, k=1)
    pixels = np.asarray(Image.open(io.BytesIO(panel.picture.value)).convert("RGB"))
    assert np.abs(pixels[150, 30].astype(int) - (0, 0, 255)).max() < 8  # JPEG rounds


def test_a_model_that_cannot_be_shown_is_refused_in_a_sentence() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 16))
    with pytest.raises(ValueError, match="model: this Sequential has no convolution"):
        prototypes(Classifier("flat", network, scenes.CLASSES, 64))
