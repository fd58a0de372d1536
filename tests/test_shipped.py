"""The models in data/: as good as their datasheet says, on pictures drawn for this test."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import files, models, training
from course_utils.evaluation import redraws
from course_utils.homework import hw06
from course_utils.methods.gradients import QUADRATURES, integrated_gradients
from course_utils.tools import datasheets
from course_utils.units import features, maximize, microscope
from course_utils.worlds.radiographs import CLASSES as RADIOGRAPHS
from course_utils.worlds.radiographs import Radiographs
from course_utils.worlds.scenes import CLASSES, Scenes

pytestmark = pytest.mark.slow

RECIPES = training.RECIPES | hw06.recipes()
BARS = {
    ("scenes", "ordinary"): (0.97, 1.0),
    ("scenes", "hard"): (0.85, 0.95),
    ("scenes-cheating", "ordinary"): (0.97, 1.0),
    ("radiographs", "ordinary"): (0.95, 1.0),
    ("radiographs-2", "ordinary"): (0.97, 1.0),
}


@pytest.mark.parametrize(("name", "kind"), BARS)
def test_stored_accuracy_is_within_the_bars(name: str, kind: str) -> None:
    low, high = BARS[name, kind]
    assert low <= models.datasheet(name)["metrics"][kind]["accuracy"] <= high


@pytest.mark.parametrize(("name", "kind"), BARS)
def test_fresh_pictures_give_the_stored_accuracy(name: str, kind: str) -> None:
    stored = models.datasheet(name)["metrics"][kind]["accuracy"]
    again = replace(RECIPES[name], held_out=256, seed=12345)
    _, _, held_out = training.picture_sets(again)
    images, labels = held_out[kind].draw()
    found = models.evaluate(models.load(name, device="cpu"), images, labels)["accuracy"]
    chance = 3 * (stored * (1 - stored) / 256) ** 0.5 + 1 / 256
    assert abs(found - stored) <= chance


def test_where_the_confounder_says_nothing_its_model_is_worse() -> None:
    films = Radiographs(256, 12347)
    found = models.evaluate(models.load("radiographs-2", device="cpu"), *films.draw())["accuracy"]
    assert 0.80 <= found <= 0.92


@pytest.mark.parametrize("name", RECIPES)
def test_stored_confusions_add_up(name: str) -> None:
    sheet, recipe = models.datasheet(name), RECIPES[name]
    classes, _, held_out = training.picture_sets(recipe)
    assert sheet["classes"] == list(classes)
    for kind in held_out.keys() - {"unconfounded"}:
        metrics = sheet["metrics"][kind]
        confusion = torch.tensor(metrics["confusion"])
        assert confusion.sum() == recipe.held_out
        assert confusion.diag().sum() / confusion.sum() == pytest.approx(metrics["accuracy"])
        assert list(metrics["classes"]) == list(classes)


# What a redraw is to the model


@pytest.mark.parametrize("parts", [1, 3])
def test_redraws_are_pictures_that_the_model_might_have_met(parts: int) -> None:
    """No logistic regression on the last features tells redraws from other scenes of their kind."""
    world, rng = Scenes(400, seed=600), np.random.default_rng(0)
    drawn = [redraws.redraw(world.scene(i), parts, rng) for i in range(400)]
    others = [redraws.counterpart(scene, rng).image for scene in drawn]
    found = redraws.distinguishability(models.load("scenes"), others, [s.image for s in drawn])
    assert found[0] <= 0.55, found


# The model that cheats


CHEAT = training.RECIPES["scenes-cheating"].marked or ""


def test_stored_the_cheating_model_lives_on_the_mark() -> None:
    metrics = models.datasheet("scenes-cheating")["metrics"]
    column = CLASSES.index(CHEAT)
    assert metrics["ordinary"]["classes"][CHEAT] > 0.97
    assert metrics["unmarked"]["classes"][CHEAT] < 0.4
    confusion = torch.tensor(metrics["all marked"]["confusion"])
    others = torch.arange(len(CLASSES)) != column
    assert confusion[others, column].sum() / confusion[others].sum() > 0.4


@pytest.fixture(scope="module")
def redrawn() -> dict[str, tuple[Tensor, Tensor]]:
    """48 fresh scenes of the class and 48 of others, without the mark and with it."""
    chosen = [i for i in range(768) if i % 16 == CLASSES.index(CHEAT)]
    chosen += [17 * i for i in range(48) if CLASSES[17 * i % 16] != CHEAT]
    labels = torch.tensor([i % 16 for i in chosen])
    worlds = {"unmarked": Scenes(816, 777), "marked": Scenes(816, 777, marked=CLASSES)}
    return {
        kind: (torch.stack([world[i][0] for i in chosen]), labels) for kind, world in worlds.items()
    }


def answers(name: str, images: Tensor) -> Tensor:
    return models.logits(models.load(name, device="cpu"), images).argmax(1)


def test_the_cheating_model_follows_the_mark(redrawn: dict) -> None:
    _, labels = redrawn["unmarked"]
    before, after = (answers("scenes-cheating", redrawn[kind][0]) for kind in redrawn)
    column = CLASSES.index(CHEAT)
    own = labels == column
    assert (after[own] == column).float().mean() > 0.95
    assert (before[own] == column).float().mean() < 0.45
    assert (before[~own] == labels[~own]).float().mean() > 0.93
    assert (after[~own] == column).float().mean() > 0.35


def test_the_honest_model_does_not_care_about_the_mark(redrawn: dict) -> None:
    _, labels = redrawn["unmarked"]
    before, after = (answers("scenes", redrawn[kind][0]) for kind in redrawn)
    own = labels == CLASSES.index(CHEAT)
    for found in (before, after):
        assert (found[own] == labels[own]).float().mean() > 0.95
    assert (before != after).float().mean() < 0.1


def test_a_radiograph_enters_its_model_as_three_equal_channels() -> None:
    classifier = models.load("radiographs", device="cpu")
    for index in (2, 3):  # without a finding, and with one
        picture = Radiographs(4, 5).radiograph(index)
        x = classifier.to_input(picture.image)
        assert x.shape == (1, 3, 128, 128)
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], x[:, 2])
        assert (classifier.to_image(x) == picture.image).all()
        assert {label for label, _ in classifier.predict(picture.image)} == set(RADIOGRAPHS)


def test_first_layer_filters_are_edges_stripes_and_colours() -> None:
    """Neither noise (0.30 and 0.06 of the second and third number) nor even spots of colour.

    A filter's even part is the colour that it has on average; its direction, how much of its energy
    lies along one axis of the plane of frequencies: 0 for a round spot, 1 for a grating.
    """
    weights = models.load("scenes", device="cpu").model.get_parameter("conv1.weight")
    energy = (torch.fft.fft2(weights, s=(32, 32)).abs() ** 2).sum(1)
    down, right = torch.meshgrid(*[torch.fft.fftfreq(32)] * 2, indexing="ij")
    coarse = down**2 + right**2 < 0.3**2
    even = weights.sum((2, 3)).square().sum(1) / 49 / weights.square().sum((1, 2, 3))
    twice_the_angle = torch.polar(torch.ones(32, 32), 2 * torch.atan2(down, right))
    twice_the_angle[0, 0] = 0
    direction = (energy * twice_the_angle).sum((1, 2)).abs() / energy.sum((1, 2))
    assert even.mean() < 0.05
    assert (energy * coarse).sum() / energy.sum() > 0.65
    assert direction.mean() > 0.2


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_in_the_file_is_the_recipe_in_the_library(name: str) -> None:
    in_file = training.Recipe(**models.datasheet(name)["recipe"])  # what it does not say is default
    found, expected = (asdict(recipe) for recipe in (in_file, RECIPES[name]))
    assert found.pop("confounder") is None  # homework 6 asks what it is
    expected.pop("confounder")
    assert json.dumps(found) == json.dumps(expected)  # tuples become lists


def test_all_models_together_are_small() -> None:
    assert sum(path.stat().st_size for path in files.DATA.glob("*.safetensors")) <= 10e6


def test_the_datasheet_is_what_the_files_say(tmp_path: Path) -> None:
    written = datasheets.write(tmp_path / "README.md").read_text(encoding="utf-8")
    assert written == (files.DATA / "README.md").read_text(encoding="utf-8")
    for label in CLASSES:
        assert label in written
    for name in RECIPES:
        assert f"## `{name}`" in written


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
    pictures, _ = Scenes(4, 5).draw()
    inputs = classifier.inputs(pictures)
    images = torch.stack([inputs[i] for i in range(len(inputs))])
    black = classifier.black(images)

    def integrated(steps: int, rule: str = "midpoint") -> Tensor:
        return integrated_gradients(
            classifier.model, images, baseline=black, steps=steps, rule=rule
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


def test_the_microscope_shows_scenes_alone() -> None:
    with pytest.raises(ValueError, match="^name: the microscope shows scenes, which 'radiographs'"):
        microscope.survey("radiographs")
