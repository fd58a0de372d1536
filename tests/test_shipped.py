"""The models in data/: as good as their datasheet says, on scenes drawn for this test."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from course_utils import datasheets, features, maximize, microscope, models
from course_utils.gradients import QUADRATURES, integrated_gradients
from course_utils.scenes import CLASSES, Scenes

BARS = {"ordinary": (0.97, 1.0), "hard": (0.80, 0.95)}


@pytest.mark.parametrize("kind", BARS)
def test_stored_accuracy_is_within_the_bars(kind: str) -> None:
    low, high = BARS[kind]
    assert low <= models.datasheet("scenes")["metrics"][kind]["accuracy"] <= high


@pytest.mark.parametrize("kind", BARS)
def test_fresh_scenes_give_the_stored_accuracy(kind: str) -> None:
    stored = models.datasheet("scenes")["metrics"][kind]["accuracy"]
    classifier = models.load("scenes", device="cpu")
    images, labels = Scenes(256, 12345, hard=kind == "hard").draw(progress=False)
    found = models.evaluate(classifier, images, labels)["accuracy"]
    chance = 3 * (stored * (1 - stored) / 256) ** 0.5 + 1 / 256
    assert abs(found - stored) <= chance


def test_stored_confusions_add_up() -> None:
    for kind in BARS:
        metrics = models.datasheet("scenes")["metrics"][kind]
        confusion = torch.tensor(metrics["confusion"])
        assert confusion.sum() == models.RECIPES["scenes"].held_out
        assert confusion.diag().sum() / confusion.sum() == pytest.approx(metrics["accuracy"])
        assert list(metrics["classes"]) == list(CLASSES)


def test_first_layer_filters_are_coarse_patterns() -> None:
    """Noise has 29 % of its energy below 0.3 cycles a pixel; edges, stripes and colours most."""
    weights = models.load("scenes", device="cpu").model.get_parameter("conv1.weight")
    energy = torch.fft.fft2(weights, s=(32, 32)).abs() ** 2
    frequency = torch.fft.fftfreq(32)
    coarse = frequency[:, None] ** 2 + frequency[None] ** 2 < 0.3**2
    assert (energy * coarse).sum() / energy.sum() > 0.8


def test_the_recipe_in_the_file_is_the_recipe_in_the_library() -> None:
    recipe = json.loads(json.dumps(asdict(models.RECIPES["scenes"])))  # tuples become lists
    assert models.datasheet("scenes")["recipe"] == recipe


def test_all_models_together_are_small() -> None:
    assert sum(path.stat().st_size for path in models.DATA.glob("*.safetensors")) <= 10e6


def test_the_datasheet_is_what_the_files_say(tmp_path: Path) -> None:
    written = datasheets.write(tmp_path / "README.md").read_text(encoding="utf-8")
    assert written == (models.DATA / "README.md").read_text(encoding="utf-8")
    for label in CLASSES:
        assert label in written


def test_in_every_layer_synthesised_pictures_beat_scenes() -> None:
    survey = microscope.load("scenes")
    for layer, best in survey.scenes.items():
        assert (survey.scores[layer] > best).mean() >= 0.9, layer


def test_the_stored_scores_are_what_the_ascent_gives_now() -> None:
    classifier, survey = models.load("scenes", device="cpu"), microscope.load("scenes")
    ascent = maximize.activation_maximization(classifier, "layer4.0", [*range(16)], steps=16)
    _, stored = ascent.scores[[0, -1]], torch.from_numpy(survey.scores["layer4.0"][:16])
    assert (ascent.scores[-1] < 1.5 * stored).all()  # a quarter of the steps: lower, not another
    assert torch.corrcoef(torch.stack([ascent.scores[-1].double(), stored]))[0, 1] > 0.5


def test_the_stored_top_scenes_give_the_stored_activations() -> None:
    classifier, survey = models.load("scenes", device="cpu"), microscope.load("scenes")
    inputs = classifier.inputs(survey.units["fc"].world)
    for layer in ("relu", "layer2.1", "layer4.0", "fc"):
        units = survey.units[layer]
        unit = int(units.best[:, 0].argmax())
        images = torch.stack([inputs[int(index)] for index in units.top[unit, :3]])
        maps = features.feature_maps(classifier.model, images, [layer])[layer][:, unit]
        found = maps.reshape(3, -1).mean(1).double()
        torch.testing.assert_close(found, torch.from_numpy(units.best[unit, :3]), rtol=5e-3, atol=0)


@pytest.mark.references  # the reference is the same sum with 600 steps, and takes a while
def test_the_default_rule_of_integrated_gradients_is_the_best() -> None:
    classifier = models.load("scenes", device="cpu")
    pictures, _ = Scenes(4, 5).draw(progress=False)
    inputs = classifier.inputs(pictures)
    images = torch.stack([inputs[i] for i in range(len(inputs))])
    black = classifier.black(images)

    def integrated(steps: int, rule: str = "midpoint") -> torch.Tensor:
        return integrated_gradients(
            classifier.model, images, baseline=black, steps=steps, rule=rule, progress=False
        )

    reference = integrated(600)
    for steps in (16, 32):
        errors = {
            rule: float((integrated(steps, rule) - reference).flatten(1).norm(dim=1).mean())
            for rule in QUADRATURES
        }
        assert min(errors, key=errors.__getitem__) == "midpoint", errors
    with torch.no_grad():
        logits, from_black = classifier.model(images), classifier.model(black.expand_as(images))
    difference = (logits - from_black).gather(1, logits.argmax(1, keepdim=True))[:, 0]
    gap = (integrated(32).sum((1, 2, 3)) - difference).abs() / difference.abs()
    assert gap.median() <= 0.01
