import importlib.machinery
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from course_utils.networks import Classifier
from course_utils.worlds import photographs
from course_utils.worlds.photographs import (
    NAMES,
    Photograph,
    blurred,
    collage,
    exchanged,
    painted_over,
)


def frame(size: int, resize: int | None = None) -> Classifier:
    model = torch.nn.Conv2d(3, 2, 1)
    return Classifier("frame", model, ("a", "b"), size, resize=resize)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("name", NAMES)
def test_every_photograph_is_there_with_its_outlines(name: str) -> None:
    photo = photographs.load(name)
    assert photo.name == name
    assert photo.image.dtype == np.uint8
    assert photo.image.ndim == 3
    assert photo.image.std() > 10
    assert photographs.SOURCES[name].credit in photo.credit
    assert len(photo.masks) >= 2
    for thing, mask in photo.masks.items():
        assert mask.dtype == bool
        assert mask.shape == photo.image.shape[:2]
        assert 20 < mask.sum() < 0.9 * mask.size, thing


def test_outlines_lie_within_their_photographs() -> None:
    outlines = json.loads(photographs.OUTLINES.read_text(encoding="utf-8"))
    assert set(outlines) == set(NAMES)
    for name, things in outlines.items():
        height, width = photographs.load(name).image.shape[:2]
        for polygons in things.values():
            for corners in polygons:
                x, y = np.array(corners).T
                assert len(corners) >= 3
                assert 0 <= x.min() <= x.max() <= width
                assert 0 <= y.min() <= y.max() <= height


@pytest.mark.parametrize(
    ("name", "part", "whole"),
    [
        ("chelsea", "eyes", "cat"),
        ("chelsea", "nose", "muzzle"),
        ("coffee", "drink", "cup"),
        ("camera", "head", "man"),
        ("motorcycle_left", "tank", "motorcycle"),
        ("flower", "centre", "flower"),
        ("china", "roofs", "temple"),
        ("grace_hopper", "cap", "person"),
        ("astronaut", "face", "person"),
    ],
)
def test_parts_lie_in_their_wholes(name: str, part: str, whole: str) -> None:
    masks = photographs.load(name).masks
    assert (masks[part] & masks[whole]).sum() > 0.97 * masks[part].sum()
    assert masks[part].sum() < masks[whole].sum()


@pytest.mark.parametrize(
    ("name", "thing", "color"),
    [
        ("coffee", "cup", None),
        ("china", "sky", None),
        ("astronaut", "suit", (0, 2)),  # red above blue
        ("motorcycle_left", "tank", (0, 2)),
        ("grace_hopper", "uniform", None),
    ],
)
def test_outlines_lie_on_edges(name: str, thing: str, color: tuple[int, int] | None) -> None:
    """What is inside looks unlike what is just outside: an outline at another place would not."""
    from scipy import ndimage

    photo = photographs.load(name)
    mask = photo.masks[thing]
    inside = mask & ~ndimage.binary_erosion(mask, iterations=4)
    outside = ndimage.binary_dilation(mask, iterations=4) & ~mask
    pixels = photo.image.astype(float)
    contrast = np.abs(pixels[inside].mean(0) - pixels[outside].mean(0)).max()
    assert contrast > 25
    if color:
        over, under = color
        assert pixels[mask][:, over].mean() > pixels[mask][:, under].mean() + 40


def test_a_polygon_inside_another_is_a_hole() -> None:
    outer, hole = [(1, 1), (9, 1), (9, 7), (1, 7)], [(3, 3), (6, 3), (6, 5), (3, 5)]
    mask = photographs._filled([outer, hole], 8, 10)  # type: ignore[list-item]
    wanted = square(8, 10, 1, 1, 0)
    wanted[1:7, 1:9] = True
    wanted[3:5, 3:6] = False
    assert np.array_equal(mask, wanted)


@pytest.mark.parametrize(("size", "resize"), [(50, None), (40, 50)])
def test_masks_are_cut_as_the_picture_is(size: int, resize: int | None) -> None:
    """A white square on black: where the model sees white is where its mask is."""
    mask = square(100, 160, 30, 60, 40)
    image = np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)
    photo = Photograph("square", image, {"square": mask}, "nobody")
    classifier = frame(size, resize)
    seen = photo.seen_by(classifier)["square"]
    white = classifier.to_image(classifier.to_input(image))[:, :, 0] > 127
    assert seen.shape == (size, size)
    assert np.array_equal(seen, white)
    assert 0 < seen.sum() < seen.size


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="there is no 'chelsey'; did you mean 'chelsea'"):
        photographs.load("chelsey")
    with pytest.raises(ValueError, match="choose one of chelsea, coffee, camera"):
        photographs.load("")


@pytest.mark.parametrize("gone", ["package", "file"])
def test_a_missing_package_or_file_is_a_sentence(
    gone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    origin = str(tmp_path / "__init__.py")
    spec = None if gone == "package" else importlib.machinery.ModuleSpec("m", None, origin=origin)
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match="'china' comes with sklearn") as error:
        photographs.load("china")
    assert "\n" not in str(error.value)


def test_a_collage_keeps_things_of_one_name_in_both_photographs() -> None:
    both = collage(photographs.load("grace_hopper"), photographs.load("astronaut"))
    people, middle = both.masks["person"], both.image.shape[1] // 2
    assert people[:, :middle].mean() > 0.1
    assert people[:, middle:].mean() > 0.1


def test_collage() -> None:
    left, right = photographs.load("coffee"), photographs.load("chelsea")
    both = collage(left, right)
    assert both.name == "coffee | chelsea"
    assert both.image.shape == (512, 512, 3)
    assert set(both.masks) == {"coffee", "chelsea", *left.masks, *right.masks}
    assert len(both.masks) == 2 + len(left.masks) + len(right.masks)  # no name twice
    half = square(512, 512, 0, 256, 512)
    assert np.array_equal(both.masks["coffee"], square(512, 512, 0, 0, 512) & ~half)
    assert np.array_equal(both.masks["chelsea"], half)
    assert not (both.masks["spoon"] & both.masks["chelsea"]).any()
    assert not (both.masks["eyes"] & ~both.masks["chelsea"]).any()
    assert left.credit in both.credit
    assert right.credit in both.credit
    # Each half shows what its photograph shows: the eyes are yellow, the cup's rim is light.
    assert both.image[both.masks["eyes"]].mean(0)[2] < both.image[both.masks["eyes"]].mean(0)[0]


def picture() -> np.ndarray:
    """A horizontal ramp of grey: smooth continuation restores it."""
    ramp = np.linspace(40, 200, 32).round().astype(np.uint8)
    return np.repeat(np.tile(ramp, (24, 1))[:, :, None], 3, axis=2)


MASK = square(24, 32, 8, 12, 8)


def test_painting_over_continues_what_lies_around() -> None:
    image = picture()
    damaged = exchanged(image, MASK, np.full_like(image, 255))
    assert (damaged[MASK] == 255).all()
    mended = painted_over(damaged, MASK)
    assert np.array_equal(mended[~MASK], image[~MASK])
    assert np.abs(mended[MASK].astype(int) - image[MASK]).max() <= 2
    assert mended.dtype == np.uint8


def test_blurring_keeps_the_mean_and_what_is_outside() -> None:
    image = picture()
    image[12, 16] = 255
    soft = blurred(image, MASK, sigma=2)
    assert np.array_equal(soft[~MASK], image[~MASK])
    assert soft[12, 16, 0] < 200
    assert abs(float(soft[MASK].mean()) - float(image[MASK].mean())) < 4
    assert np.array_equal(image, image.copy())


@pytest.mark.parametrize("change", [painted_over, blurred])
def test_a_mask_that_does_not_fit(change: object) -> None:
    for bad in (MASK.astype(int), MASK[:-1]):
        with pytest.raises(ValueError, match=r"^mask must be bool, \(24, 32\)"):
            change(picture(), bad)  # type: ignore[operator]


def test_exchange_wants_a_picture_of_the_same_size() -> None:
    with pytest.raises(ValueError, match=r"^other has shape \(23, 32, 3\) but must match"):
        exchanged(picture(), MASK, picture()[1:])
