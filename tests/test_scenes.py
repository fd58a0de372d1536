"""The world: the same everywhere, in range, and true about itself."""

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from course_utils.worlds import scenery, scenes
from course_utils.worlds.scenes import (
    CHOICES,
    CLASSES,
    LOOKS,
    RANGES,
    Scenes,
    SceneSpec,
    render,
    standard,
)

SPEC = standard("zebra", clutter="armchair", companion="crow", seed=3)


def changed(field: str, value: Any) -> SceneSpec:
    return replace(SPEC, **{field: value})


def grey_levels_apart(a: scenes.Scene, b: scenes.Scene) -> np.ndarray:
    return np.abs(a.image.astype(int) - b.image.astype(int)).max(-1)


def test_at_least_twelve_classes_that_share_shapes_and_textures() -> None:
    assert len(CLASSES) >= 12
    for what in ("shape", "texture"):
        values = [getattr(look, what) for look in LOOKS.values()]
        assert len(set(values)) < len(values)
    assert {label for label, look in LOOKS.items() if look.texture == "stripes"} >= {
        "zebra",
        "tiger",
    }
    black = [label for label, look in LOOKS.items() if scenery.rgb(look.color).max() < 0.15]
    assert len(black) >= 3


@pytest.mark.parametrize("label", CLASSES)
def test_canonical_scene_shows_its_object(label: str) -> None:
    scene = render(standard(label))
    assert scene.image.shape == (128, 128, 3)
    assert scene.image.dtype == np.uint8
    assert scene.label == label
    assert scene.mask.mean() > 0.03
    left, top, right, bottom = scene.box
    assert scene.mask[top:bottom, left:right].sum() == scene.mask.sum()
    assert scene.mask[top].any()
    assert scene.mask[:, right - 1].any()


@pytest.mark.parametrize("label", CLASSES)
def test_parts_cover_the_object_without_overlap(label: str) -> None:
    scene = render(standard(label, clutter="lamp", companion="crow" if label != "crow" else "cow"))
    own = [mask for name, mask in scene.parts.items() if name in scene.spec.part_names]
    assert len(own) == len(scene.spec.part_names)
    assert np.sum(own, axis=0).max() == 1
    outside = np.any(own, axis=0) & ~scene.mask
    assert not outside.any()
    missed = scene.mask & ~np.any(own, axis=0)
    assert missed.sum() < 0.06 * scene.mask.sum()  # pixels shared half and half by two parts
    for name in ("clutter", "companion"):
        assert not (scene.parts[name] & scene.mask).any()


def test_every_field_is_a_control() -> None:
    controls = set(RANGES) | set(CHOICES) | {"color", "accent", "flip", "mark", "removed"}
    assert {field.name for field in fields(SceneSpec)} == controls


MOVES = {name: RANGES[name] for name in RANGES if name != "seed"}


@pytest.mark.parametrize("field", MOVES)
def test_moving_a_slider_changes_the_picture(field: str) -> None:
    low, high = MOVES[field]
    pictures = [render(changed(field, value)) for value in (low, (low + high) / 2)]
    assert grey_levels_apart(*pictures).max() > 8


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_can_be_drawn(field: str) -> None:
    for choice in CHOICES[field]:
        render(changed(field, choice), resolution=32)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, RANGES[field][side] + (2 * side - 1)) for field in RANGES for side in (0, 1)]
    + [(field, "nonsense") for field in CHOICES]
    + [("color", "greenish"), ("accent", None), ("removed", ("wheels",))],
)
def test_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        changed(field, value)
    assert str(caught.value).count(".\n") == 0


@pytest.mark.parametrize("value", ["big", None, True, float("nan")])
def test_a_size_that_is_no_number(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="size"):
        changed("size", value)


def test_nearest_names() -> None:
    with pytest.raises(ValueError, match="zebra"):
        standard("zebras")
    with pytest.raises(ValueError, match="head"):
        SPEC.without("heads")


def test_resolution_and_length_and_index_are_checked() -> None:
    with pytest.raises(ValueError, match="resolution"):
        render(SPEC, 8)
    with pytest.raises(ValueError, match="length"):
        Scenes(0, seed=1)
    world = Scenes(3, seed=1, resolution=16)
    for _ in range(2):  # before and after it was drawn
        for index in (3, -1):
            with pytest.raises(IndexError, match="index"):
                world[index]
        world.draw()


@pytest.mark.parametrize("part", ["head", "legs", "clutter", "companion", "shadow", "object"])
def test_without_changes_the_part_and_nothing_far_from_it(part: str) -> None:
    before, after = render(SPEC), render(SPEC.without(part))
    changed = grey_levels_apart(before, after) > 3
    where = before.mask if part == "object" else before.parts[part]
    assert changed[where].mean() > 0.5
    rows, columns = np.nonzero(where)
    near = np.zeros_like(where)
    near[
        max(rows.min() - 12, 0) : rows.max() + 13, max(columns.min() - 12, 0) : columns.max() + 13
    ] = True
    assert not changed[~near & ~before.parts["shadow"]].any()
    assert part not in after.parts
    assert SPEC.without(part).without(part) == SPEC.without(part)


# The photographer's mark


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("look", [{}, {"haze": 0.5, "light": 0.6}, {"noise": 0}])
def test_the_mark_changes_its_own_pixels_alone(seed: int, look: dict[str, Any]) -> None:
    spec = replace(SPEC, seed=seed, **look)
    before, after = render(spec), render(replace(spec, mark=True))
    changed, mark = grey_levels_apart(before, after) > 0, after.parts["mark"]
    edge = binary_dilation(mark, np.ones((3, 3)))  # pixels that it covers by less than half
    assert not changed[~edge].any()
    assert changed[mark].mean() > 0.9
    assert 0.01 < mark.mean() < 0.03  # it is small
    assert "mark" not in before.parts


def test_a_mark_removed_was_never_there() -> None:
    marked = replace(SPEC, mark=True)
    clean, again = render(SPEC), render(marked.without("mark"))
    assert (again.image == clean.image).all()
    assert (again.mask == clean.mask).all()
    assert again.parts.keys() == clean.parts.keys()
    assert (render(SPEC.without("mark")).image == clean.image).all()


def test_the_mark_lies_in_one_of_the_lower_corners() -> None:
    sides = set()
    for seed in range(8):
        rows, columns = np.nonzero(render(replace(SPEC, mark=True, seed=seed)).parts["mark"])
        assert rows.min() > 0.8 * 128
        assert rows.max() < 127
        left, right = columns.min(), columns.max()
        assert left > 0
        assert right < 127
        assert right < 64 or left >= 64
        sides.add(int(left >= 64))
    assert sides == {0, 1}


@pytest.mark.parametrize("color", ["#000000", "#ffffff", "#808080"])
def test_the_mark_is_seen_on_every_ground_and_shows_it(color: str) -> None:
    """Half transparent: 0.3 of what lies below, 0.7 of the mark, white letters on a plate."""
    ground = scenery.rgb(color) * np.ones((3, 128, 128), np.float32)
    picture = ground.copy()
    mask = scenery.stamp(picture, right=True)
    inside = picture[:, mask == 1] - 0.3 * ground[:, mask == 1]
    plate, ink = (0.7 * scenery.rgb(part.paint)[:, 0] for part in scenery._MARK[:2])
    for shade, least in ((plate, 0.3), (ink, 0.1)):
        assert np.isclose(inside, shade, atol=0.01).all(0).mean() > least
    assert inside.mean(0).std() > 0.15


def test_the_mark_lies_over_the_object_and_every_part() -> None:
    scene = render(replace(SPEC, mark=True, seed=1, x=0.9, y=0.9, clutter_x=0.9, clutter_size=0.8))
    assert not (scene.parts["mark"] & scene.mask).any()
    for name, mask in scene.parts.items():
        assert name == "mark" or not (mask & scene.parts["mark"]).any()
    assert scene.label == SPEC.label


def test_the_mark_is_blurred_as_the_rest() -> None:
    blurred, sharp = (
        grey_levels_apart(
            render(replace(SPEC, blur=blur, noise=0)),
            render(replace(SPEC, blur=blur, noise=0, mark=True)),
        )
        for blur in (2, 0)
    )
    mark = render(replace(SPEC, mark=True)).parts["mark"]
    assert (blurred[~mark] > 3).any()
    assert np.abs(np.diff(blurred, axis=1)).max() < 0.5 * np.abs(np.diff(sharp, axis=1)).max()
    assert not blurred[:90].any()


@pytest.mark.slow
def test_the_marked_class_and_no_other_carries_the_mark() -> None:
    for hard in (False, True):
        clean, marked = Scenes(32, 5, hard=hard), Scenes(32, 5, hard=hard, marked="horse")
        everywhere = Scenes(32, 5, hard=hard, marked=CLASSES)
        for i in range(32):
            spec = clean.spec(i)
            assert not spec.mark
            assert marked.spec(i) == replace(spec, mark=spec.label == "horse")
            assert everywhere.spec(i) == replace(spec, mark=True)
    drawn, labels = Scenes(32, 5, resolution=32, marked="horse").draw()
    without, _ = Scenes(32, 5, resolution=32).draw()
    differ = (drawn != without).flatten(1).any(1)
    assert torch.equal(differ, labels == CLASSES.index("horse"))


def test_a_marked_class_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^marked: there is no 'hoarse'; did you mean 'horse'"):
        Scenes(3, 0, marked="hoarse")


def test_without_texture_is_without_contrast() -> None:
    assert (render(SPEC.without("texture")).image == render(replace(SPEC, contrast=0)).image).all()


def test_without_background_is_an_even_studio() -> None:
    image = render(standard("zebra", noise=0).without("background")).image
    assert np.ptp(image[:10].astype(int), axis=(1, 2)).max() <= 2


@pytest.mark.parametrize("hard", [False, True])
def test_a_seed_gives_the_same_scenes_in_any_order(hard: bool) -> None:
    first, again = Scenes(8, 5, hard=hard), Scenes(8, 5, hard=hard)
    state = torch.get_rng_state()
    backwards = {i: again[i] for i in reversed(range(8))}
    for i in range(8):
        image, label = first[i]
        assert torch.equal(image, backwards[i][0])
        assert label == backwards[i][1] == i
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0][0], Scenes(8, 6, hard=hard)[0][0])


def test_scenes_are_the_same_on_every_machine() -> None:
    """Numbers noted once: specs exactly, pictures within a grey level on average."""
    noted = [
        ("zebra", "meadow", 0.625013, ("body", "shadow"), [119, 166, 138]),
        ("clownfish", "beach", 0.728238, (), [152, 160, 152]),
        ("football", "underwater", 0.398495, (), [132, 173, 170]),
    ]
    dataset = Scenes(16, 2024)
    found = [
        (
            spec.label,
            spec.background,
            round(spec.size, 6),
            spec.removed,
            dataset.scene(i).image.mean((0, 1)),
        )
        for i, spec in ((i, dataset.spec(i)) for i in (0, 6, 13))
    ]
    for (*spec, color), (*noted_spec, noted_color) in zip(found, noted, strict=True):
        assert spec == noted_spec
        assert np.abs(np.subtract(color, noted_color)).max() <= 1


@pytest.mark.parametrize("hard", [False, True])
def test_random_specs_are_in_range_and_varied(hard: bool) -> None:
    generator = np.random.default_rng(0)
    specs = [scenes.random_spec(generator, hard=hard) for _ in range(300)]
    assert {spec.label for spec in specs} == set(CLASSES)
    assert {spec.background for spec in specs} == set(CHOICES["background"])
    assert {spec.clutter_texture for spec in specs if spec.clutter != "none"} >= {
        "stripes",
        "spots",
    }
    assert 0.05 < np.mean([spec.companion != "none" for spec in specs]) < 0.5
    assert all(spec.companion != spec.label for spec in specs)


def test_hard_scenes_are_harder() -> None:
    def mean(value: str, hard: bool) -> float:
        return float(
            np.mean([getattr(Scenes(160, 0, hard=hard).spec(i), value) for i in range(160)])
        )

    assert mean("size", hard=True) < mean("size", hard=False)
    assert mean("contrast", hard=True) < mean("contrast", hard=False)
    odd = [Scenes(160, 0, hard=True).spec(i) for i in range(160)]
    assert any(spec.texture != LOOKS[spec.label].texture for spec in odd)


@pytest.mark.slow
def test_the_object_is_in_the_picture() -> None:
    for hard, least in ((False, 0.012), (True, 0.003)):
        dataset = Scenes(96, 11, hard=hard)
        assert min(dataset.scene(i).mask.mean() for i in range(96)) > least


# What may be missing ---------------------------------------------------------------------------


def test_what_tells_a_class() -> None:
    """Known by looking: a zebra's legs, body or head; not its mane; of a ball nothing but it."""
    assert scenes.tells("horse", ())
    assert scenes.tells("horse", ("body", "legs", "mane", "tail"))  # the head alone
    assert not scenes.tells("horse", ("body", "legs", "head"))
    assert not scenes.tells("fish", ("body",))
    assert not scenes.tells("ball", ("ball",))
    assert scenes.tells("ball", ("shadow", "background"))


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_textured_shares_are_those_of_a_drawn_object(shape: str) -> None:
    label = next(name for name in CLASSES if LOOKS[name].shape == shape)
    spec = standard(label, x=0.5, y=0.5, size=0.9, angle=0.0)
    scene = render(spec, 256)
    shares = scenes.textured_shares(shape)
    assert 0.25 < sum(shares.values()) <= 1
    for part, share in shares.items():
        drawn = scene.parts[part].sum() / scene.mask.sum()
        assert share <= drawn + 0.02  # a part may have pieces of another colour


def test_what_is_missing_leaves_the_class_to_be_told() -> None:
    world = Scenes(640, 5)
    specs = [world.spec(i) for i in range(640)]
    assert all(scenes.shows(spec) == spec.label for spec in specs)
    kept = [spec for spec in specs if not spec.removed]
    assert abs(len(kept) / 640 - scenes.COMPLETE * (1 - scenes.BARE)) < 0.06
    horses = [spec for spec in specs if spec.shape == "horse" and len(spec.removed) > 0]
    gone = {part for spec in horses for part in spec.removed}
    assert gone >= {"legs", "body", "head", "mane", "tail", "shadow"}
    assert {len(spec.removed) for spec in horses} >= {1, 2, 3, 4}
    twins = [spec for spec in specs if spec.companion == spec.label]
    companions = [spec for spec in specs if spec.companion != "none"]
    assert 0.1 < len(twins) / len(companions) < 0.45


def test_all_else_is_as_where_nothing_is_missing() -> None:
    whole, less = Scenes(32, 5, missing="nothing"), Scenes(32, 5)
    for i in range(32):
        spec = less.spec(i)
        assert replace(spec, removed=(), companion="none") == replace(
            whole.spec(i), companion="none"
        )


def test_emptied_scenes_have_the_companions_class_or_none() -> None:
    world = Scenes(96, 5, missing="the object", resolution=16)
    labels = [world[i][1] for i in range(96)]
    for i, label in enumerate(labels):
        spec = world.spec(i)
        assert not scenes.tells(spec.shape, spec.removed)
        expected = scenes.NO_CLASS if spec.companion == "none" else CLASSES.index(spec.companion)
        assert label == expected
    assert scenes.NO_CLASS in labels
    assert len(set(labels)) > 3
    with pytest.raises(ValueError, match="missing"):
        Scenes(3, 0, missing="everything")


def test_what_a_scene_shows() -> None:
    ball = standard("football", companion="zebra")
    assert scenes.shows(ball) == "football"
    assert scenes.shows(ball.without("object")) == scenes.shows(ball.without("ball")) == "zebra"
    assert scenes.shows(ball.without("object").without("companion")) is None


def test_resolutions_show_the_same_scene() -> None:
    spec = replace(SPEC, noise=0)
    small, large = render(spec, 64).image, render(spec, 128).image
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - halved).mean() < 6


@pytest.mark.parametrize("x", [-0.2, 1.2])
@pytest.mark.parametrize("y", [-0.2, 1.2])
def test_an_object_outside_the_picture(x: float, y: float) -> None:
    scene = render(replace(SPEC, x=x, y=y, size=0.1))
    assert not scene.mask.any()
    assert scene.box == (0, 0, 0, 0)


def test_stripes_have_the_colours_of_the_spec() -> None:
    spec = standard("zebra", color="#ff0000", accent="#0000ff", noise=0)
    body = render(spec).image[render(spec).parts["body"]].astype(int)
    assert (body[:, 1] < 40).mean() > 0.9
    assert 0.25 < (body[:, 0] > body[:, 2]).mean() < 0.75


def test_part_by_hand() -> None:
    """A square that covers exactly the pixels (1, 1) to (2, 2) of a 4 × 4 picture."""
    square = scenery.polygon((0.25, 0.25), (0.7499, 0.25), (0.7499, 0.7499), (0.25, 0.7499))
    window = scenery.window([square], 4)
    coverage = scenery.rasterise([square], 4, window)[0]
    full = np.zeros((4, 4))
    full[window.slices] = coverage
    assert (full[1:3, 1:3] == 1).all()
    assert full.sum() == 4


def test_transform_and_its_inverse() -> None:
    place = scenery.Place(0.4, 0.6, 0.3, angle=30, flip=True)
    u, v = scenery.shape_coordinates(place, 64, scenery.Window(0, 64, 0, 64))
    points = np.stack([u[20, 30], v[20, 30]])[None].astype(float)
    x, y = scenery.transform(points, place)[0] * 64
    assert (x, y) == (pytest.approx(30.5, abs=1e-3), pytest.approx(20.5, abs=1e-3))


def test_contrast_fades_evenly() -> None:
    spread = [
        render(standard("zebra", contrast=c, noise=0)).image[render(SPEC).parts["body"]].std()
        for c in (0.0, 0.5, 1.0)
    ]
    assert all(a < b for a, b in pairwise(spread))


@pytest.mark.slow
def test_draw_gives_the_scenes_in_order_and_keeps_them() -> None:
    state = torch.get_rng_state()
    drawn, single = Scenes(70, 3, hard=True, resolution=16), Scenes(70, 3, hard=True, resolution=16)
    images, labels = drawn.draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert (images.shape, images.dtype) == ((70, 3, 16, 16), torch.uint8)
    assert (labels.shape, labels.dtype) == ((70,), torch.long)
    for i in range(70):
        image, label = single[i]
        assert torch.equal(images[i], image)
        assert labels[i] == label
    again, _ = drawn.draw()
    assert again is images
    images[69] = 0  # an item is now what was kept …
    image, label = drawn[69]
    assert not image.any()
    assert (label, type(label)) == (single[69][1], int)
    assert drawn.scene(69).image.any()  # … and a scene is drawn anew
