import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.models
from safetensors.numpy import load_file, save_file
from torch import nn

from course_utils import files, models
from course_utils.networks import Classifier, SmallResNet
from course_utils.tools import datasheets
from course_utils.units import concepts, features, microscope
from course_utils.worlds.scenes import Scenes
from tests.networks import small_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier(size=32)


@pytest.fixture(scope="module")
def world() -> Scenes:
    world = Scenes(40, seed=4, resolution=32)
    world.draw()
    return world


def test_stages() -> None:
    small = microscope.stages(SmallResNet(3, (8, 8, 8, 8)))
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert small == ["relu", *blocks, "fc"]
    assert microscope.stages(torchvision.models.resnet18(weights=None)) == small
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    assert microscope.stages(plain) == ["0", "2"]
    assert microscope.stages(plain.append(nn.Linear(4, 2))) == ["0", "2", "4"]


def test_stages_of_other_networks() -> None:
    """Seven stages between stem and head, and the blocks of a network of Sequentials alone."""
    real = timm.create_model("tf_efficientnet_lite0")
    assert microscope.stages(real) == [
        "bn1", *(f"blocks.{i}" for i in range(7)), "bn2", "classifier"
    ]  # fmt: skip
    mobile = torchvision.models.mobilenet_v3_small(weights=None)
    assert microscope.stages(mobile) == [*(f"features.{i}" for i in range(13)), "classifier.3"]
    vgg = torchvision.models.vgg11(init_weights=False)
    assert microscope.stages(vgg) == [
        *(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)),
        "classifier.6",
    ]


def test_examine_is_top_activating_and_concept_scores_for_every_unit(
    classifier: Classifier, world: Scenes
) -> None:
    found = microscope.examine(classifier, ["layer2.0", "fc"], world)
    inputs = classifier.inputs(world)
    for layer, unit in (("layer2.0", 0), ("layer2.0", 7), ("fc", 3)):
        expected = features.top_activating(classifier.model, layer, unit, inputs, microscope.TOP)
        units = found[layer]
        assert units.top[unit].tolist() == expected.indices.tolist()
        assert units.places[unit].tolist() == expected.positions.tolist()
        np.testing.assert_allclose(units.best[unit], expected.scores, rtol=1e-5)
        scores = concepts.concept_scores(classifier, layer, world)
        assert units.concepts.concepts == scores.concepts
        np.testing.assert_array_equal(units.concepts.auroc, scores.auroc)


def test_strongest_inputs_of_the_output_are_weights_times_activations(
    classifier: Classifier, world: Scenes
) -> None:
    units = microscope.examine(classifier, ["fc"], world)["fc"]
    added = microscope.strongest_inputs(classifier, "fc", "layer4.1", units, [2, 5])
    inputs = classifier.inputs(world)
    for row, unit in zip(added, (2, 5), strict=True):
        images = torch.stack([inputs[int(index)] for index in units.top[unit]])
        maps = features.feature_maps(classifier.model, images, ["layer4.1"])["layer4.1"]
        expected = classifier.model.get_parameter("fc.weight")[unit] * maps.mean((0, 2, 3))
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.fixture(scope="module")
def stored(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A survey of a small model, with few scenes and steps, in a data folder of its own."""
    folder = tmp_path_factory.mktemp("data")
    few = partial(microscope.activation_maximization, steps=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(files, "DATA", folder)
        monkeypatch.setattr(microscope, "activation_maximization", few)
        monkeypatch.setattr(
            microscope, "Scenes", lambda length, seed: Scenes(min(length, 24), seed, resolution=32)
        )
        models.save(classifier, folder / "scenes.safetensors", widths=(8, 8, 8, 8))
        yield microscope.survey("scenes")


def test_a_survey_comes_back_as_it_was_seen(stored: Path) -> None:
    assert stored.name == "scenes-units.safetensors"
    survey, small = microscope.load("scenes"), models.load("scenes", device="cpu")
    stages = microscope.stages(small.model)
    assert list(survey.units) == stages
    assert set(survey.inputs) == set(stages[1:])
    assert set(survey.scores) == {*stages, *features.conv_layers(small.model)}
    world = Scenes(24, 10, resolution=32)
    seen = microscope.examine(small, stages, world)
    for layer, units in seen.items():
        kept = survey.units[layer]
        assert kept.top.tolist() == units.top.tolist()
        assert kept.places.tolist() == units.places.tolist()
        np.testing.assert_allclose(kept.best, units.best, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(kept.concepts.auroc, units.concepts.auroc, atol=1e-3)
        np.testing.assert_allclose(survey.scenes[layer], units.best[:, 0], rtol=1e-6)
        pictures, scores = microscope.synthesise(small, layer, range(len(units.top)))
        np.testing.assert_allclose(survey.scores[layer], scores, rtol=1e-3, atol=1e-4)
        difference = np.abs(survey.pictures[layer].astype(int) - pictures)
        assert difference.mean() < 25  # WebP
        assert survey.pictures[layer].shape == (len(units.top), 96, 96, 3)


def test_the_datasheet_shows_the_units_of_these_weights_alone(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasheets, "describe", lambda name: f"## {name}")
    path = tmp_path / "README.md"
    assert "The units of `scenes`" in datasheets.write(path).read_text(encoding="utf-8")
    monkeypatch.setattr(microscope, "_fingerprint", lambda name: "of a model trained again")
    assert "The units of" not in datasheets.write(path).read_text(encoding="utf-8")


def test_no_survey_a_damaged_one_and_one_of_other_weights(stored: Path) -> None:
    again = "run `course microscope scenes`"
    tensors = load_file(stored)
    facts = {"model": "0" * 16, "world": {"length": 24, "seed": 10}, "concepts": []}
    assert microscope.surveyed("scenes")
    save_file(tensors, stored, {"course": json.dumps(facts)})
    assert not microscope.surveyed("scenes")
    with pytest.raises(ValueError, match=f"of other weights .*{again}"):
        microscope.load("scenes")
    stored.write_bytes(stored.read_bytes()[:-100])
    assert not microscope.surveyed("scenes")
    with pytest.raises(ValueError, match=f"is damaged; {again}"):
        microscope.load("scenes")
    stored.unlink()
    assert not microscope.surveyed("scenes")
    assert not microscope.surveyed("resnet18")
    with pytest.raises(FileNotFoundError, match=again):
        microscope.load("scenes")
