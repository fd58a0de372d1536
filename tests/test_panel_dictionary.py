"""The panel `dictionary`: what it learns, when it learns it, and which pictures it shows."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from course_utils import panels
from course_utils.networks import Classifier
from course_utils.panels import dictionaries as panel_
from course_utils.panels.dictionaries import AXES, NMF, SAE, Shelf
from course_utils.units import features
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture
def classifier(few_scenes: None) -> Classifier:
    return small_classifier()


def test_features_of_the_units_are_the_units(classifier: Classifier) -> None:
    shelf = Shelf(classifier)
    layer = next(iter(shelf.maps))
    inputs = classifier.inputs(shelf.pictures)
    images = torch.stack([inputs[index] for index in range(len(inputs))])
    maps = features.feature_maps(classifier.model, images, [layer])[layer]
    torch.testing.assert_close(shelf.learned(layer, AXES).maps, maps.relu())
    assert shelf.size(layer, AXES) == maps.shape[1]


def test_each_kind_is_learned_once_and_only_when_asked_for(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    learn = panel_.dictionaries.sparse_autoencoder

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return learn(*arguments, **options)

    monkeypatch.setattr(panel_.dictionaries, "sparse_autoencoder", counted)
    panel = panels.dictionary(classifier)
    assert calls == []
    assert "NMF" in panel.words
    panel.update(kind=SAE)
    panel.update(feature=7)
    panel.update(kind=NMF)
    panel.update(kind=SAE)
    assert calls == [1]
    assert "feature 7 of 96" in panel.words or panel.controls["feature"].value == 7


def test_a_move_does_not_wait_for_what_is_learned(classifier: Classifier) -> None:
    panel = panels.dictionary(classifier)

    async def move() -> str:
        panel.controls["kind"].value = SAE
        words = panel.words
        assert panel._refinement
        panel._refinement.cancel()
        return words

    assert "being learned, coming" in asyncio.run(move())


def test_the_pictures_are_those_with_the_largest_mean(classifier: Classifier) -> None:
    shelf = Shelf(classifier)
    learned = shelf.learned(list(shelf.maps)[-1], AXES)
    means = learned.maps[:, 2].mean((1, 2)).numpy()
    canvas = panels.Canvas(960, 640)
    best = panel_._top(canvas, 262, shelf.pictures, learned.maps[:, 2])
    np.testing.assert_array_equal(best, np.argsort(-means, kind="stable")[: panel_.TOP])


def test_a_model_of_photographs_sees_squares_of_them(few_scenes: None) -> None:
    other = small_classifier()
    object.__setattr__(other, "classes", ("tench", "goldfish", "shark")[: len(other.classes)])
    panel = panels.dictionary(other)
    assert panel.status.value == ""
    assert "tells" not in panel.words


def test_a_model_without_small_maps_is_refused(few_scenes: None) -> None:
    large = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    with pytest.raises(ValueError, match="^model: no stage of this Sequential has maps of at most"):
        Shelf(Classifier("large", large, ("a", "b", "c", "d"), size=64))
