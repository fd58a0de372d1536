"""The radiographs: the same everywhere, in range, honest anatomy, and true about the finding."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, label

from course_utils.worlds import radiographs
from course_utils.worlds.radiographs import (
    CHOICES,
    CLASSES,
    COMPLETE,
    LOBES,
    RANGES,
    REMOVABLE,
    STRUCTURES,
    SWITCHES,
    Radiograph,
    Radiographs,
    RadiographSpec,
    random_spec,
    render,
)
from course_utils.worlds.scenery import Place

HEALTHY = RadiographSpec(seed=3)
ILL = replace(HEALTHY, lobe="right middle", bronchograms=0.8)
FULL = replace(ILL, marker="L", leads=True, pacemaker=True, nodule=True, catheter=True, breasts=0.8)


def changed(field: str, value: Any) -> RadiographSpec:
    return replace(FULL, **{field: value})


def grey_levels_apart(a: Radiograph, b: Radiograph) -> np.ndarray:
    return np.abs(a.image.astype(int) - b.image.astype(int)).max(-1)


def grey(drawn: Radiograph, part: str) -> float:
    return float(drawn.image[drawn.parts[part]].mean())


@pytest.mark.parametrize("resolution", [32, 128])
def test_shapes_types_and_grey(resolution: int) -> None:
    drawn = render(ILL, resolution)
    assert drawn.image.shape == (resolution, resolution, 3)
    assert drawn.image.dtype == np.uint8
    assert (drawn.image == drawn.image[..., :1]).all()
    assert drawn.mask.shape == (resolution, resolution)
    assert drawn.mask.dtype == bool
    assert all(part.shape == drawn.mask.shape for part in drawn.parts.values())


def test_anatomy() -> None:
    """Lungs are dark, the heart lies to the patient's left, the right dome stands higher."""
    drawn = render(HEALTHY)
    right, left, heart = (drawn.parts[name] for name in ("right lung", "left lung", "heart"))
    assert not (right & left).any()
    assert np.nonzero(right)[1].max() < np.nonzero(left)[1].min()
    for lung in ("right lung", "left lung"):
        assert 0.08 < drawn.parts[lung].mean() < 0.3
        assert grey(drawn, lung) < grey(drawn, "heart") - 50
    assert np.nonzero(heart)[1].mean() > 64  # the picture's right: the patient's left
    assert right.sum() > left.sum()  # the heart takes its place from the left lung
    floor = [np.nonzero(lung[:, 64 + x])[0].max() for x, lung in ((-38, right), (38, left))]
    assert floor[0] < floor[1]  # the lowest row of lung above each dome


@pytest.mark.parametrize("lobe", LOBES)
def test_the_finding_lies_in_its_lobe(lobe: str) -> None:
    drawn = render(replace(HEALTHY, lobe=lobe))
    rows, columns = np.nonzero(drawn.mask)
    assert drawn.label == "consolidation"
    assert (columns.mean() < 64) == (lobe.startswith("right"))
    third = {"upper": (0, 55), "middle": (60, 85), "lingula": (60, 85), "lower": (75, 110)}
    low, high = third[lobe.split()[-1]]
    assert low < rows.mean() < high
    assert drawn.image[drawn.mask].mean() > render(HEALTHY).image[drawn.mask].mean() + 20


def test_the_outline_is_one_smooth_piece_a_little_generous() -> None:
    for index in range(1, 80, 2):
        drawn = Radiographs(80, 4).radiograph(index)
        assert label(drawn.mask)[1] == 1
        assert label(~np.pad(drawn.mask, 1))[1] == 1  # no holes
        core = drawn.parts["consolidation"]
        assert (core & drawn.mask).sum() > 0.97 * core.sum()
        assert 1 < drawn.mask.sum() / core.sum() < 6
        left, top, right, bottom = drawn.box
        assert drawn.mask[top:bottom, left:right].sum() == drawn.mask.sum() > 20
        assert drawn.mask[top].any()
        assert drawn.mask[:, right - 1].any()


def test_healthy_has_no_finding() -> None:
    drawn = render(HEALTHY)
    assert (drawn.label, drawn.box) == ("no finding", (0, 0, 0, 0))
    assert not drawn.mask.any()
    assert set(drawn.parts) == {"right lung", "left lung", "heart"}


@pytest.mark.parametrize("index", range(1, 41, 2))
def test_with_and_without_the_finding_differ_only_there(index: int) -> None:
    ill = Radiographs(41, 9).spec(index)
    healthy = ill.without("consolidation")
    assert (ill.label, healthy.label) == ("consolidation", "no finding")
    before, after = render(ill), render(healthy)
    apart = grey_levels_apart(before, after)
    assert not after.mask.any()
    assert (after.image == render(replace(ill, lobe="none")).image).all()
    assert apart[before.mask].mean() > 3
    assert apart[~binary_dilation(before.mask, iterations=6)].max() < 25  # its thin rim
    assert apart[~binary_dilation(before.mask, iterations=14)].max() <= 1
    assert apart[~binary_dilation(before.mask, iterations=20)].max() == 0
    for name in after.parts:
        assert (before.parts[name] == after.parts[name]).all()


@pytest.mark.parametrize("part", REMOVABLE)
def test_without_takes_one_thing_away(part: str) -> None:
    before, after = render(FULL), render(FULL.without(part))
    apart = grey_levels_apart(before, after)
    assert apart.max() > 8
    assert part not in after.parts
    assert FULL.without(part).without(part) == FULL.without(part)
    if part in before.parts and part != "consolidation":
        where = before.parts[part]
        assert (apart[where] > 2).mean() > 0.8
        assert not apart[~binary_dilation(where, iterations=3)].any()
        assert set(before.parts) - set(after.parts) == {part}


def test_what_is_not_there_cannot_be_missed() -> None:
    drawn = render(HEALTHY)
    for part in ("consolidation", "marker", *SWITCHES, "breasts"):
        assert (render(HEALTHY.without(part)).image == drawn.image).all()


def test_little_is_seen_behind_the_heart() -> None:
    """The same finding replaces less air there, and none outside the lungs."""
    spec = replace(HEALTHY, lobe="left lower", extent=0.07, noise=0, patchiness=0)

    def seen(shift: float) -> int:
        moved = replace(spec, shift_x=shift, shift_y=-0.03)
        return int(grey_levels_apart(render(moved), render(HEALTHY_FILM)).max())

    HEALTHY_FILM = replace(spec, lobe="none")
    assert 3 < seen(-0.16) < 0.7 * seen(0.03)


def test_strength_is_the_share_of_air_replaced() -> None:
    healthy = render(replace(ILL, lobe="none", noise=0)).image.astype(int)
    risen = [
        (render(replace(ILL, strength=s, noise=0)).image - healthy)[render(ILL).mask].mean()
        for s in (0, 0.3, 0.6)
    ]
    assert risen[0] == 0
    assert render(replace(ILL, strength=0)).label == "no finding"
    assert risen[2] == pytest.approx(2 * risen[1], rel=0.15)


def test_shift_moves_the_finding() -> None:
    def center(**change: Any) -> np.ndarray:
        return np.mean(np.nonzero(render(replace(ILL, extent=0.05, **change)).mask), 1)

    assert render(ILL).label == "consolidation"
    away = render(replace(HEALTHY, lobe="right upper", extent=0.03, shift_x=-0.2))
    assert (away.label, away.box) == ("no finding", (0, 0, 0, 0))
    step = center(shift_x=0.05, shift_y=-0.1) - center()
    assert step == pytest.approx([-12.8, 6.4], abs=2.5)


def test_bronchograms_are_dark_lines_in_the_finding() -> None:
    plain, lined = (render(replace(ILL, bronchograms=b, noise=0)) for b in (0, 1))
    darker = plain.image[..., 0].astype(int) - lined.image[..., 0]
    assert darker.max() > 15
    assert darker.min() >= 0
    assert 0.02 < (darker > 5)[plain.mask].mean() < 0.6
    assert not darker[~plain.mask].any() or darker[~plain.mask].max() < 8


def test_every_field_is_a_control() -> None:
    controls = {*RANGES, *CHOICES, *SWITCHES, "removed"}
    assert {field.name for field in fields(RadiographSpec)} == controls


@pytest.mark.parametrize("field", [name for name in RANGES if name != "seed"])
def test_moving_a_slider_changes_the_picture(field: str) -> None:
    low, high = RANGES[field]
    pictures = [render(changed(field, value)) for value in (low, (low + high) / 2, high)]
    assert grey_levels_apart(*pictures[:2]).max() > 8
    assert grey_levels_apart(*pictures[1:]).max() > 8


@pytest.mark.parametrize("field", [*SWITCHES, "marker"])
def test_a_distractor_is_drawn_where_its_mask_says(field: str) -> None:
    value = "R" if field == "marker" else True
    before, after = render(HEALTHY), render(replace(HEALTHY, **{field: value}))  # type: ignore[arg-type]
    where = after.parts[field]
    apart = grey_levels_apart(before, after)
    assert where.sum() > 3
    assert (apart[where] > 5).mean() > 0.9
    assert not apart[~binary_dilation(where, iterations=3)].any()
    assert after.label == before.label == "no finding"


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_can_be_drawn(field: str) -> None:
    for choice in CHOICES[field]:
        render(changed(field, choice), resolution=32)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [16, 1024])
def test_the_smallest_and_the_largest_film(resolution: int) -> None:
    assert render(FULL, resolution).image.shape == (resolution, resolution, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, RANGES[field][side] + (2 * side - 1)) for field in RANGES for side in (0, 1)]
    + [(field, "nonsense") for field in CHOICES]
    + [("removed", ("wheels",)), ("lobe", "left middle"), ("lobe", None)],
)
def test_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        changed(field, value)
    assert str(caught.value).count(". ") == 0
    assert str(caught.value).endswith(".") or "there is no" in str(caught.value)


@pytest.mark.parametrize("value", ["big", None, True, float("nan"), [0.1]])
def test_an_extent_that_is_no_number(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="extent"):
        changed("extent", value)


@pytest.mark.parametrize(("field", "value"), [("leads", "yes"), ("nodule", 1), ("removed", "ribs")])
def test_a_switch_is_true_or_false(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=field):
        changed(field, value)


def test_nearest_names() -> None:
    with pytest.raises(ValueError, match="consolidation"):
        FULL.without("consolidations")
    with pytest.raises(ValueError, match="right upper"):
        changed("lobe", "right uper")
    with pytest.raises(ValueError, match="label"):
        random_spec(np.random.default_rng(0), label="pneumonia")


def test_resolution_and_length_and_index_are_checked() -> None:
    for resolution in (8, 2000):
        with pytest.raises(ValueError, match="resolution"):
            render(ILL, resolution)
    with pytest.raises(ValueError, match="length"):
        Radiographs(0, seed=1)
    films = Radiographs(3, seed=1, resolution=16)
    for _ in range(2):  # before and after they were drawn
        for index in (3, -1):
            with pytest.raises(IndexError, match="index"):
                films[index]
        films.draw()


def test_a_seed_gives_the_same_radiographs_in_any_order() -> None:
    first, again = Radiographs(8, 5), Radiographs(8, 5)
    state = torch.get_rng_state()
    backwards = {i: again[i] for i in reversed(range(8))}
    for i in range(8):
        image, number = first[i]
        assert torch.equal(image, backwards[i][0])
        assert number == backwards[i][1] == i % 2
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0][0], Radiographs(8, 6)[0][0])


def test_radiographs_are_the_same_on_every_machine() -> None:
    """Numbers noted once: specs exactly, pictures and outlines on average."""
    noted = [
        (0, "none", "none", 0.998111, ("ribs", "clavicles"), 142.3, 0),
        (5, "left upper", "none", 0.916831, (), 146.0, 994),
        (13, "right lower", "R", 0.960874, (), 134.6, 319),
    ]
    films = Radiographs(16, 2024)
    for index, lobe, marker, strength, removed, level, area in noted:
        spec, drawn = films.spec(index), films.radiograph(index)
        assert spec.removed == removed
        assert (spec.lobe, spec.marker, round(spec.strength, 6)) == (lobe, marker, strength)
        assert drawn.image.mean() == pytest.approx(level, abs=0.5)
        assert drawn.mask.sum() == pytest.approx(area, abs=4)


def test_one_generator_gives_the_same_chest_ill_and_healthy() -> None:
    ill, healthy = (random_spec(np.random.default_rng(8), label=name) for name in CLASSES[::-1])
    assert replace(ill, lobe="none") == healthy
    assert random_spec(np.random.default_rng(8)) in (ill, healthy)


def test_random_specs_are_varied_and_the_classes_share_everything_else() -> None:
    generator = np.random.default_rng(0)
    specs = [random_spec(generator) for _ in range(1200)]
    ill = [spec for spec in specs if spec.label == "consolidation"]
    healthy = [spec for spec in specs if spec.label == "no finding"]
    assert 0.45 < len(ill) / len(specs) < 0.55
    assert {spec.lobe for spec in ill} == set(LOBES)
    assert 0.1 < np.mean([spec.strength < 0.5 for spec in ill]) < 0.25
    for field in (*SWITCHES, "marker"):
        shares = [
            np.mean([getattr(spec, field) not in (False, "none") for spec in group])
            for group in (ill, healthy)
        ]
        assert min(shares) > 0.03
        assert abs(shares[0] - shares[1]) < 0.08
    for field in ("exposure", "heart", "noise", "size"):
        values = [np.mean([getattr(spec, field) for spec in group]) for group in (ill, healthy)]
        low, high = np.percentile([getattr(spec, field) for spec in specs], [0, 100])
        assert abs(values[0] - values[1]) < 0.07 * (high - low)


def test_structures_are_missing_at_random_and_from_both_classes() -> None:
    generator = np.random.default_rng(1)
    specs = [random_spec(generator) for _ in range(1200)]
    for name in CLASSES:
        missing = [spec.removed for spec in specs if spec.label == name]
        whole = [parts for parts in missing if not parts]
        assert abs(len(whole) / len(missing) - COMPLETE) < 0.06
        assert {len(parts) for parts in missing} == {0, 1, 2, 3, 4}
        for structure in STRUCTURES:
            share = np.mean([structure in parts for parts in missing])
            assert abs(share - (1 - COMPLETE) * 2.5 / 4) < 0.06


def test_resolutions_show_the_same_radiograph() -> None:
    spec = replace(FULL, noise=0)
    small, large = render(spec, 64).image, render(spec, 128).image
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small - halved).mean() < 4


@pytest.mark.slow
def test_draw_gives_the_radiographs_in_order_and_keeps_them() -> None:
    state = torch.get_rng_state()
    drawn, single = Radiographs(70, 3, resolution=16), Radiographs(70, 3, resolution=16)
    images, labels = drawn.draw()
    assert torch.equal(torch.get_rng_state(), state)
    assert (images.shape, images.dtype) == ((70, 3, 16, 16), torch.uint8)
    assert (labels.shape, labels.dtype) == ((70,), torch.long)
    for i in range(70):
        image, number = single[i]
        assert torch.equal(images[i], image)
        assert labels[i] == number
    again, _ = drawn.draw()
    assert again is images
    images[69] = 0  # an item is now what was kept …
    assert not drawn[69][0].any()
    assert drawn.radiograph(69).image.any()  # … and a radiograph is drawn anew


def test_bezier_band_by_hand() -> None:
    """A straight path from (0, 0) to (2, 0), and the middle of a quadratic arc."""
    band = radiographs.arcs([[(0, 0), (1, 0), (2, 0)]], 0.1, 0.3, points=3)[0]
    assert band.tolist() == [
        pytest.approx(p) for p in ((0, 0.1), (1, 0.2), (2, 0.3), (2, -0.3), (1, -0.2), (0, -0.1))
    ]
    top = radiographs.arcs([[(0, 0), (1, 2), (2, 0)]], 0.0, points=3)[0]
    assert top[1] == pytest.approx((1, 1))  # ¼ (0, 0) + ½ (1, 2) + ¼ (2, 0)


def test_cover_by_hand() -> None:
    """Two overlapping squares cover their union once."""
    square = np.array([(-0.5, -0.5), (-0.0001, -0.5), (-0.0001, -0.0001), (-0.5, -0.0001)])
    coverage = radiographs.cover(
        Place(0.5, 0.5, 0.5), 4, square, square + np.array((0.5, 0)), square
    )
    expected = np.zeros((4, 4))
    expected[1, 1:3] = 1
    assert coverage.tolist() == expected.tolist()


def test_a_confounder_goes_with_the_finding() -> None:
    films = Radiographs(2000, 3, confounder="catheter")
    specs = [films.spec(index) for index in range(2000)]
    assert {spec.label for spec in specs[::2]} == {"no finding"}
    assert 0 < sum(spec.catheter for spec in specs[::2]) <= 20
    assert 980 <= sum(spec.catheter for spec in specs[1::2]) < 1000
    assert films.spec(7) == Radiographs(2000, 3, confounder="catheter").spec(7)
    with pytest.raises(ValueError, match="^confounder: there is no 'lungs'"):
        Radiographs(4, 3, confounder="lungs")
