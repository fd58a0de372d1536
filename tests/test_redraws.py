"""Redraws and ordinary scenes: can they be told apart, and by the right test?"""

import numpy as np
import pytest
import torch
from torch import nn

from course_utils import models
from course_utils.evaluation import redraws
from course_utils.networks import Classifier
from course_utils.worlds import scenes
from course_utils.worlds.scenes import Scenes, render, standard

RNG = np.random.default_rng


def classifier(model: nn.Module) -> Classifier:
    return Classifier("tiny", model.eval(), ("one", "two"), 8)


BRIGHTNESS = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def grey(levels: np.ndarray) -> list[np.ndarray]:
    """Pictures of one grey level each."""
    return [np.full((8, 8, 3), level, np.uint8) for level in levels]


def test_what_differs_is_told_apart_and_what_does_not_is_not() -> None:
    generator = RNG(0)
    dark, bright = grey(generator.integers(0, 100, 200)), grey(generator.integers(120, 250, 200))
    value, low, high = redraws.distinguishability(classifier(BRIGHTNESS), dark, bright)
    assert min(value, low, high) > 1 - 1e-9
    same = grey(generator.integers(0, 100, 200))
    value, low, high = redraws.distinguishability(classifier(BRIGHTNESS), dark, same)
    assert low < 0.5 < high
    assert low < value < high


def test_the_auroc_is_that_of_two_overlapping_ranges() -> None:
    """Uniform on 0 to 200 and on 50 to 250: P(b > a) = 1 − ½ (150 / 200)² = 0.719."""
    generator = RNG(1)
    one, two = grey(generator.integers(0, 200, 1500)), grey(generator.integers(50, 250, 1500))
    _, low, high = redraws.distinguishability(classifier(BRIGHTNESS), one, two)
    assert low < 0.719 < high
    assert 0.02 < high - low < 0.06


def test_features_are_what_enters_the_last_layer() -> None:
    net = models.load("scenes")
    pictures = [render(standard(name)).image for name in ("zebra", "crow")]
    found = redraws.features(net, pictures)
    kept = []
    handle = net.model.get_submodule("fc").register_forward_pre_hook(
        lambda module, given: kept.append(given[0])
    )
    with torch.no_grad():
        net.model(torch.cat([net.to_input(picture) for picture in pictures]))
    handle.remove()
    torch.testing.assert_close(found, kept[0])


def test_a_redraw_lacks_as_many_parts_as_asked_for() -> None:
    scene = render(standard("cow", clutter="lamp"))
    for parts in (1, 2, 3):
        again = redraws.redraw(scene, parts, RNG(parts))
        assert len(again.spec.removed) == parts
        assert set(again.spec.removed) <= set(scene.parts)
        assert again.image.shape == scene.image.shape
    ball = render(standard("football").without("shadow"), 32)
    assert redraws.redraw(ball, 3, RNG(0)).spec.removed == ("shadow", "ball")
    assert redraws.redraw(scene, 2, RNG(5)).spec == redraws.redraw(scene, 2, RNG(5)).spec


def test_counterparts_are_of_the_same_kind() -> None:
    world = Scenes(48, 3, resolution=16)
    for i in range(48):
        other = redraws.counterpart(world.scene(i), RNG(i))
        assert other.label == world.spec(i).label
        assert scenes.shows(other.spec) == other.label
        assert other.image.shape == (16, 16, 3)
    empty = render(standard("ladybird").without("object"), 16)
    found = redraws.counterpart(empty, RNG(2)).spec
    assert scenes.shows(found) is None
    beside = render(standard("ladybird", companion="crow").without("object"), 16)
    found = redraws.counterpart(beside, RNG(3)).spec
    assert not scenes.tells(found.shape, found.removed)
    assert found.companion != "none"


def test_bad_input() -> None:
    pictures = grey(np.arange(6))
    with pytest.raises(ValueError, match="redrawn must hold at least 5"):
        redraws.distinguishability(classifier(BRIGHTNESS), pictures, pictures[:2])
    headless = classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ValueError, match="no linear layer"):
        redraws.features(headless, pictures)
    with pytest.raises(ValueError, match="parts"):
        redraws.redraw(render(standard("crow"), 16), 0, RNG(0))
    with pytest.raises(TypeError, match="scene"):
        redraws.redraw(pictures[0], 1, RNG(0))  # type: ignore[arg-type]
