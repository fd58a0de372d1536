"""Network dissection: by hand on four pixels, against a slow twin, and its controls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from course_utils import models
from course_utils.networks import Classifier
from course_utils.units import concepts, dissection, labels
from course_utils.units.dissection import covers, dissect
from course_utils.units.features import feature_maps
from course_utils.worlds import photographs
from course_utils.worlds.photographs import Photograph
from course_utils.worlds.scenes import Scenes, render, standard
from tests.networks import make, small_classifier
from tests.test_features import refused


def red(size: int = 2) -> Classifier:
    """Unit 0 is the red of each pixel, unit 1 its opposite."""
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Identity())
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 0, 0], [-1, 0, 0]])[:, :, None, None]
    return Classifier("red", model.eval(), (), size)


def photo(reds: Sequence[Sequence[int]], thing: Sequence[Sequence[int]]) -> Photograph:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, :, 0] = reds
    return Photograph("a photo", image, {"cup": np.array(thing, bool)}, "nobody")


FOUR = [
    photo([[80, 70], [20, 10]], [[1, 0], [1, 0]]),
    photo([[60, 50], [40, 30]], [[1, 1], [0, 0]]),
]


def test_by_hand() -> None:
    """Half of the eight pixels are above 40: the upper rows. Common: 1 + 2, together: 3 + 2."""
    found = dissect(red(), "0", FOUR, quantile=0.5)
    cup = found.concepts.index("thing cup")
    assert found.thresholds == pytest.approx([(40 / 255 - 0.5) / 0.25, (0.5 - 50 / 255) / 0.25])
    assert found.iou[0, cup] == pytest.approx(3 / 5)
    assert found.iou[1, cup] == pytest.approx(1 / 7)  # the lower rows
    assert found.areas[cup] == 0.5
    assert found.of(0, k=1)[0][0] == "thing cup"
    np.testing.assert_array_equal(
        covers(red(), "0", 0, FOUR[0], found.thresholds[0]), [[True, True], [False, False]]
    )


def test_the_interval_by_hand() -> None:
    """Two pictures: a set has both, or one of them twice; each alone has 1/3 and 2/2."""
    found = dissect(red(), "0", FOUR, quantile=0.5)
    _, value, low, high = found.of(0, k=1)[0]
    assert (value, low, high) == pytest.approx((3 / 5, 1 / 3, 1))


# The twin ---------------------------------------------------------------------------------------


def bilinear(plane: NDArray[np.float64], y: float, x: float) -> float:
    """The value between the middles of four cells; beyond the outer middles the edge goes on."""
    h, w = plane.shape
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    i, j = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
    di, dj = y - i, x - j
    i1, j1 = min(i + 1, h - 1), min(j + 1, w - 1)
    above = plane[i, j] * (1 - dj) + plane[i, j1] * dj
    below = plane[i1, j] * (1 - dj) + plane[i1, j1] * dj
    return float(above * (1 - di) + below * di)


def twin(
    maps: NDArray[np.float64], masks: list[dict[str, NDArray[np.bool_]]], size: int, q: float
) -> dict[tuple[int, str], float]:
    """IoU of each unit and concept after Bau et al., pixel by pixel; maps (N, C, h, w)."""
    n, c, h, w = maps.shape
    names = {name for one in masks for name in one}
    result = {}
    for k in range(c):
        values = sorted(maps[:, k].ravel(), reverse=True)
        threshold = values[int(q * len(values))]
        for name in names:
            common, union = 0, 0
            for i in range(n):
                for y in range(size):
                    for x in range(size):
                        at = (y + 0.5) * h / size - 0.5, (x + 0.5) * w / size - 0.5
                        inside = bool(bilinear(maps[i, k], *at) > threshold)
                        shown = name in masks[i] and bool(masks[i][name][y, x])
                        common += inside and shown
                        union += inside or shown
            result[k, name] = common / union
    return result


def test_equals_the_twin() -> None:
    size, world = 16, Scenes(4, seed=3, resolution=16)
    classifier = small_classifier(size=size)
    classifier.model.double()
    drawn = [world.scene(i) for i in range(4)]
    inputs = torch.stack([classifier.inputs(world)[i] for i in range(4)])
    maps = feature_maps(classifier.model, inputs, ["layer1"])["layer1"][:, :2].numpy()
    wanted = twin(maps, [labels.concept_masks(scene) for scene in drawn], size, 0.1)
    found = dissect(classifier, "layer1", world, quantile=0.1, batch_size=3)
    again = dissect(classifier, "layer1", drawn, quantile=0.1)
    seen = 0
    for k, name in enumerate(found.concepts):
        for unit in range(2):
            value = found.iou[unit, k]
            assert again.iou[unit, k] == pytest.approx(value, nan_ok=True)
            if not np.isnan(value):
                assert value == pytest.approx(wanted[unit, name], abs=1e-6)
                seen += value > 0
    assert seen > 10


def test_a_concept_of_one_picture_has_no_score() -> None:
    found = dissect(red(), "0", [FOUR[0], FOUR[1]._replace(masks={})], quantile=0.5)
    assert np.isnan(found.iou[:, found.concepts.index("thing cup")]).all()
    assert 0 not in found.detectors(least=1)


def test_a_silent_unit_covers_nothing() -> None:
    classifier = red()
    classifier.model.register_module("1", nn.ReLU())
    dark = [photo([[10, 10], [10, 10]], [[1, 1], [0, 0]])] * 2
    assert dissect(classifier, "1", dark, quantile=0.1).iou[0].max() == 0


def test_detectors_are_above_the_threshold() -> None:
    areas = np.array([[0.03, 0.2], [0.04, 0.01], [0.05, np.nan]])
    none = np.zeros(3)
    found = dissection.Dissection(("a", "b"), areas, areas, areas, none, none)
    assert found.detectors() == {0: "b", 2: "a"}
    assert found.detectors(0.1) == {0: "b"}


@pytest.mark.slow
def test_trained_units_beat_shuffled_masks_and_a_network_that_nobody_trained() -> None:
    world = Scenes(160, seed=5)
    drawn = [world.scene(i) for i in range(160)]
    trained = models.load("scenes")
    found = dissect(trained, "layer4", drawn)
    shuffled = dissect(trained, "layer4", drawn, shuffled=True)
    untrained = dissect(small_classifier(96, 128), "layer4", drawn)
    best, by_chance, by_structure = (
        np.median(np.nanmax(one.iou, 1)) for one in (found, shuffled, untrained)
    )
    assert best > 2 * by_structure
    assert best > 3 * by_chance
    unit = int(np.nanargmax(np.nanmax(found.iou, 1)))
    _, value, low, high = found.of(unit, 1)[0]
    assert 0.2 < low < value < high


@pytest.mark.slow
def test_dissect_on_a_real_network() -> None:
    """The same numbers, all pixels of all maps at once, and the outlines as the model gets them."""
    classifier, layer, q = models.load("efficientnet_lite0"), "blocks.2.1", 0.05
    photos = [photographs.load(name) for name in photographs.NAMES[:3]]
    found = dissect(classifier, layer, photos, quantile=q)
    inputs = torch.cat([classifier.to_input(one.image) for one in photos])
    maps = feature_maps(classifier.model, inputs, [layer])[layer]
    values = maps.transpose(0, 1).flatten(1)
    above = (values > torch.from_numpy(found.thresholds)[:, None]).sum(1)
    assert (above == int(q * values.shape[1])).all()
    wide = F.interpolate(maps, inputs.shape[2:], mode="bilinear", align_corners=False).numpy()
    masks = [labels.concept_masks(one) for one in photos]
    for k, name in enumerate(found.concepts):
        if name.startswith("colour") and not np.isnan(found.iou[0, k]):
            empty = np.zeros(photos[0].image.shape[:2], bool)
            shown = [photographs.as_prepared(one.get(name, empty), classifier) for one in masks]
            for unit in (0, 7):
                above = wide[:, unit] > found.thresholds[unit]
                assert found.iou[unit, k] == pytest.approx(
                    (above & shown).sum() / (above | shown).sum(), abs=1e-4
                )


# Masks ------------------------------------------------------------------------------------------


def test_masks_are_of_what_is_in_the_scene() -> None:
    for index in range(24):
        scene = Scenes(24, seed=1).scene(index)
        known = concepts.in_scene(scene.spec)
        masks = concepts.concept_masks(scene)
        kinds = {name for name in masks if name.split()[0] not in ("part", "colour")}
        assert kinds <= known
        assert all(mask.any() and mask.shape == scene.mask.shape for mask in masks.values())
        colors = [mask for name, mask in masks.items() if name.startswith("colour")]
        assert (np.sum(colors, axis=0) == 1).all()  # each pixel has one


def test_masks_of_a_zebra_beside_a_striped_armchair() -> None:
    spec = standard("zebra", clutter="armchair", clutter_texture="stripes", companion="ladybird")
    scene = render(spec)
    masks = labels.concept_masks(scene)
    np.testing.assert_array_equal(masks["class zebra"], scene.mask)
    np.testing.assert_array_equal(masks["class ladybird"], scene.parts["companion"])
    np.testing.assert_array_equal(masks["part head"], scene.parts["head"])
    assert masks["texture stripes"][scene.parts["body"]].all()
    armchair = scene.parts["clutter"] & ~scene.parts["companion"]
    assert masks["texture stripes"][armchair].all()
    assert not masks["texture stripes"][scene.parts["mane"]].any()
    assert not (masks["place savanna"] & (scene.mask | armchair)).any()
    bare = labels.concept_masks(render(spec.without("background").without("texture")))
    assert "place savanna" not in bare
    assert bare["texture plain"][scene.parts["body"]].all()
    gone = labels.concept_masks(render(spec.without("object")))
    assert not {name for name in gone if name.startswith("part") or name == "class zebra"}


def test_masks_of_colours_are_of_pixels() -> None:
    image = np.array([[[204, 31, 26], [255, 255, 255]], [[142, 68, 173], [0, 0, 0]]], np.uint8)
    masks = labels.concept_masks(photo([[0, 0]] * 2, [[0, 0]] * 2)._replace(image=image))
    found = {name: np.argwhere(mask).tolist() for name, mask in masks.items() if mask.any()}
    assert found == {
        "colour red": [[0, 0]],
        "colour white": [[0, 1]],
        "colour purple": [[1, 0]],
        "colour black": [[1, 1]],
    }


# What is refused, and what is left as it was ----------------------------------------------------


def test_bad_dissection() -> None:
    try_it: Any = dissect
    refused(lambda: try_it(make("Residual"), "0", FOUR), TypeError, "classifier must be")
    refused(lambda: try_it(red(), "0", FOUR[0].image), TypeError, "pictures must be a Scenes")
    refused(lambda: try_it(red(), "0", []), ValueError, "pictures must not be empty")
    refused(lambda: try_it(red(), "0", [FOUR[0].image]), TypeError, "pictures[0] must be")
    refused(lambda: try_it(red(), "9", FOUR), ValueError, "no layer '9'")
    refused(lambda: try_it(red(), "0", FOUR, quantile=1.0), ValueError, "quantile is 1.0")
    refused(lambda: try_it(red(), "0", FOUR, quantile="x"), TypeError, "quantile must be a number")
    refused(lambda: try_it(red(), "0", FOUR, batch_size=0), ValueError, "batch_size is 0")
    refused(lambda: try_it(red(), "0", FOUR, generator=3), TypeError, "generator must be")
    network = small_classifier(size=16)
    drawn = [Scenes(1, 0, resolution=16).scene(0)]
    refused(lambda: try_it(network, "fc", drawn), ValueError, "layer: maps (N, C, h, w)")
    show: Any = covers
    refused(lambda: show(red(), "0", 2, FOUR[0], 0.0), ValueError, "no unit 2")
    refused(lambda: show(red(), "0", 0, FOUR[0].image, 0.0), TypeError, "pictures[0]")
    found = dissect(red(), "0", FOUR)
    refused(lambda: found.of(2), ValueError, "there is no unit 2; choose 0 to 1")
    refused(lambda: found.of(0, 0), ValueError, "k is 0")
    refused(lambda: found.detectors(-1), ValueError, "least is -1")


def test_the_same_generator_gives_the_same_and_nothing_is_left_behind() -> None:
    classifier = small_classifier(size=16)
    world = Scenes(6, 0, resolution=16)
    classifier.model.train()
    state = torch.get_rng_state()
    one, two = (
        dissect(classifier, "layer1", world, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert classifier.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks for module in classifier.model.modules())
    for a, b in zip(one[1:], two[1:], strict=True):
        np.testing.assert_array_equal(a, b)
