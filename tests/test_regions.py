from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data, segmentation
from torch import Tensor

from course_utils.methods.gradients import integrated_gradients
from course_utils.methods.regions import (
    SEGMENTATIONS,
    grow,
    labels_of,
    segment,
    segment_stack,
    xrai,
)
from course_utils.worlds import photographs, scenes
from tests.networks import NETWORKS, batch, make

every_method = pytest.mark.parametrize("method", SEGMENTATIONS)


def photo(name: str = "astronaut", size: int = 96) -> np.ndarray:
    """(size, size, 3) in uint8, small enough to be quick."""
    image = photographs.load(name).image
    step = min(image.shape[:2]) // size
    return image[: size * step : step, : size * step : step]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def overlapping(m: int, size: int, seed: int = 0) -> np.ndarray:
    """Random rectangles (m, size, size) that overlap and leave some pixels out."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((m, size, size), bool)
    for mask in masks:
        top, left = generator.integers(0, size - 4, 2)
        high, wide = generator.integers(2, size // 2, 2)
        mask[top : top + high, left : left + wide] = True
    return masks


# ---------------------------------------------------------------- segments


@every_method
@pytest.mark.parametrize("n", [12, 50])
def test_labels_run_from_zero_without_gaps(method: str, n: int) -> None:
    labels = segment(photo(), method=method, n_segments=n)
    assert labels.shape == (96, 96)
    assert labels.dtype.kind == "i"
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    for label in range(labels.max() + 1):
        assert ndimage.label(labels == label, np.ones((3, 3)))[1] == 1
    assert 1 < labels.max() + 1 <= (1.5 * n if method == "slic" else n)


def about(labels: np.ndarray, n: int) -> bool:
    """Connected, and half to one and a half times as many."""
    count = labels.max() + 1
    whole = all(ndimage.label(labels == label)[1] == 1 for label in range(count))
    return whole and n / 2 <= count <= 1.5 * n


def usual(image: np.ndarray, n: int) -> np.ndarray:
    """SLIC at its usual compactness, whatever number of segments comes."""
    return segmentation.slic(image, n, compactness=10, start_label=0, channel_axis=-1)


@pytest.mark.parametrize("name", photographs.NAMES)
@pytest.mark.parametrize("n", [12, 50])
def test_photographs_in_about_as_many_segments_as_wanted(name: str, n: int) -> None:
    image = photographs.load(name).image[::4, ::4]
    labels = segment(image, n_segments=n)
    assert about(labels, n)
    if n / 2 <= len(np.unique(usual(image, n))) <= 1.5 * n:
        assert np.array_equal(labels, usual(image, n))


# Asked for 50, SLIC at its usual compactness makes too few of all of these but the last.
HARD = {
    "scene 14": scenes.Scenes(200, 1, hard=True).scene(14).image,
    "noise": noise(96, 96, 3),
    "grey noise": noise(1, 96, 96),
    "noise on a photo": photo() + 20 * noise(96, 96, 3),
    **{name: getattr(data, name)()[None, :256, :256] for name in ("grass", "gravel")},
    "one colour": np.full((96, 96, 3), 7.0),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n", [4, 10, 50, 200])
def test_on_noise_and_texture_place_counts_more(name: str, n: int) -> None:
    assert about(segment(HARD[name], n_segments=n), n)


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_every_scene_in_about_as_many_segments_as_wanted(hard: bool) -> None:
    world = scenes.Scenes(200, 1, hard=hard)
    for i in range(len(world)):
        assert about(segment(world.scene(i).image), 50)


@every_method
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_any_number_of_channels(method: str, channels: int) -> None:
    halves = torch.zeros(channels, 20, 30)
    halves[1, :, 15:] = 1  # in one channel alone, and still two halves
    expected = np.repeat([[0] * 15 + [1] * 15], 20, 0)
    assert np.array_equal(segment(halves, method=method, n_segments=2), expected)
    image = torch.from_numpy(noise(channels, 48, 48))
    if method == "slic":
        assert about(segment(image), 50)


@pytest.mark.parametrize("n", [1, 3, 7, 50])
@pytest.mark.parametrize("size", [(3, 40), (11, 7), (16, 16), (9, 300)])
def test_small_and_long_pictures(size: tuple[int, int], n: int) -> None:
    image = noise(*size, 3)
    if n * 7 <= image[..., 0].size:
        assert about(segment(image, n_segments=n), n)
    else:  # of so few pixels each, there may be twice as many
        assert n / 2 <= segment(image, n_segments=n).max() + 1 <= 2 * n


def test_labels_of() -> None:
    images = torch.from_numpy(noise(2, 4, 24, 24))
    for labels, image in zip(labels_of(None, images), images, strict=True):
        assert np.array_equal(labels, segment(image))
    own = torch.zeros(2, 24, 24, dtype=torch.long)
    own[:, :3] = 7
    assert labels_of(own, images)[1].sum() == 3 * 24
    own[1] = 7
    sentence = "^segments must be at least two, to be compared, but image 1 has one$"
    with pytest.raises(ValueError, match=sentence):
        labels_of(own, images)
    with pytest.raises(ValueError, match="^segments must be at least two"):
        labels_of(None, images[..., :1, :1])


@every_method
def test_two_halves_are_two_segments(method: str) -> None:
    image = np.zeros((20, 30, 3))
    image[:, 15:] = (0.2, 0.9, 0.4)
    halves = segment(image, method=method, n_segments=2)
    assert np.array_equal(halves, np.repeat([[0] * 15 + [1] * 15], 20, 0))


@every_method
def test_range_layout_and_kind_do_not_matter(method: str) -> None:
    image = photo()
    expected = segment(image, method=method)
    channels_first = image.transpose(2, 0, 1)
    tensor = torch.from_numpy(channels_first.copy())
    for same in (
        image / 255.0,
        image * 3.0 - 100,
        channels_first,
        tensor,
        (tensor / 4.0).requires_grad_(),
        image[:, ::-1][:, ::-1],
    ):
        assert np.array_equal(segment(same, method=method), expected)


@every_method
def test_a_grey_image_is_three_equal_channels(method: str) -> None:
    grey = photo()[..., 1]
    expected = segment(np.stack([grey] * 3, -1), method=method)
    assert np.array_equal(segment(grey[None], method=method), expected)
    assert expected.max() > 5


@every_method
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (8, 8)])
def test_constant_and_tiny_images(method: str, size: tuple[int, int]) -> None:
    for image in (np.full((*size, 3), 7.0), noise(*size, 3)):
        labels = segment(image, method=method, n_segments=1000)
        assert labels.shape == size
    assert segment(np.ones((3, 8, 8)), method="felzenszwalb").max() == 0


def test_where_both_layouts_fit_tensors_have_channels_first() -> None:
    image = noise(3, 5, 3)
    assert segment(image).shape == (3, 5)
    assert segment(torch.from_numpy(image)).shape == (5, 3)


PICTURE = photo(size=16)
BAD_PICTURES: dict[str, object] = {
    "list": PICTURE.tolist(),
    "grey without channel": PICTURE[..., 0],
    "batch": PICTURE[None],
    "four channels": np.zeros((16, 16, 4)),
    "no pixel": PICTURE[:0],
    "NaN": PICTURE / np.nan,
    "words": PICTURE.astype(str),
}


@pytest.mark.parametrize("function", [segment, segment_stack])
@pytest.mark.parametrize("case", BAD_PICTURES)
def test_bad_pictures(function: Callable, case: str) -> None:
    with pytest.raises((ValueError, TypeError), match="^image must ") as error:
        function(BAD_PICTURES[case])
    assert "\n" not in str(error.value)


def test_bad_segmentation() -> None:
    with pytest.raises(ValueError, match=r"^method: there is no 'slick'; did you mean 'slic'\?$"):
        segment(PICTURE, method="slick")
    with pytest.raises(ValueError, match="did you mean 'felzenszwalb'"):
        segment(PICTURE, method="felsenschwalb")
    for n in (0, 2.5):
        with pytest.raises((ValueError, TypeError), match="^n_segments "):
            segment(PICTURE, n_segments=n)  # type: ignore[arg-type]


def test_the_stack_covers_the_image_at_every_scale() -> None:
    masks = segment_stack(photo())
    assert masks.dtype == bool
    assert masks.shape[1:] == (96, 96)
    assert masks.any((1, 2)).all()
    assert masks.sum(0).min() >= 6


@pytest.mark.parametrize("size", [(1, 1), (1, 7)])
def test_the_stack_of_tiny_and_constant_images(size: tuple[int, int]) -> None:
    masks = segment_stack(np.full((*size, 3), 7.0))
    assert masks.shape == (6, *size)
    assert masks.all()


# ---------------------------------------------------------------- growing


def slow_grow(
    attribution: np.ndarray, masks: np.ndarray, min_pixels: int
) -> tuple[np.ndarray, list[int]]:
    """From the definition: every turn looks at every pixel of every mask again."""
    height, width = attribution.shape
    value: dict[tuple[int, int], float] = {}
    pixels = [(i, j) for i in range(height) for j in range(width)]
    order: list[int] = []
    while True:
        best, best_gain, best_new = -1, -np.inf, []
        for number, mask in enumerate(masks):
            new = [p for p in pixels if mask[p] and p not in value]
            if len(new) >= min_pixels:
                gain = sum(attribution[p] for p in new) / len(new)
                if gain > best_gain:
                    best, best_gain, best_new = number, gain, new
        if not best_new:
            break
        order.append(best)
        value |= dict.fromkeys(best_new, best_gain)
    rest = [p for p in pixels if p not in value]
    if rest:
        value |= dict.fromkeys(rest, sum(attribution[p] for p in rest) / len(rest))
    return np.array([value[p] for p in pixels]).reshape(height, width), order


def row(*values: float) -> np.ndarray:
    return np.array([values], float)


def masks_of(*numbers: set[int], length: int) -> np.ndarray:
    return np.array([[[i in pixels for i in range(length)]] for pixels in numbers])


def test_growing_by_hand() -> None:
    masks = masks_of({0, 1}, {1, 2, 3}, {4}, length=6)
    # 2 has gain 9; then 0 has 4 and 1 has 3; of 1 the pixels 2 and 3 are left; nobody holds 5.
    result, order = grow(row(6, 2, 3, 4, 9, -1), masks, min_pixels=1)
    assert order == [2, 0, 1]
    assert result.tolist() == [[4, 4, 3.5, 3.5, 9, -1]]


def test_a_region_too_small_is_left_out() -> None:
    masks = masks_of({0, 1}, {1, 2, 3}, {4}, length=6)
    result, order = grow(row(6, 2, 3, 4, 9, -1), masks, min_pixels=2)
    assert order == [0, 1]
    assert result.tolist() == [[4, 4, 3.5, 3.5, 4, 4]]
    result, order = grow(row(6, 2, 3, 4, 9, -1), masks)
    assert order == []
    assert result.tolist() == [[23 / 6] * 6]


def test_the_gain_is_per_pixel_and_not_a_sum() -> None:
    result, order = grow(row(1, 1, 1, 2), masks_of({0, 1, 2}, {3}, length=4), min_pixels=1)
    assert order == [1, 0]
    assert result.tolist() == [[1, 1, 1, 2]]


def test_a_region_may_be_worth_more_later() -> None:
    result, order = grow(row(10, 10, 0, 9), masks_of({2, 3}, {0, 1, 2}, length=4), min_pixels=1)
    assert order == [1, 0]
    assert result.tolist() == [[20 / 3, 20 / 3, 20 / 3, 9]]


def test_of_equal_gains_the_first_wins() -> None:
    masks = masks_of({2}, {0}, {1}, {0}, length=3)
    assert grow(row(1, 1, 1), masks, min_pixels=1)[1] == [0, 1, 2]


def test_what_is_left_is_summed_and_not_subtracted() -> None:
    # 0.1 + 1e17 − 1e17 is 0, and 2 would win.
    values = row(1e17, 0.1, 0.05)
    _, order = grow(values, masks_of({0, 1}, {0}, {2}, length=3), min_pixels=1)
    assert order == [1, 0, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_pixels", [1, 3, 10, 1000])
def test_growing_against_its_twin(seed: int, min_pixels: int) -> None:
    attribution, masks = noise(14, 14, seed=seed), overlapping(12, 14, seed)
    result, order = grow(attribution, masks, min_pixels=min_pixels)
    slow, slow_order = slow_grow(attribution, masks, min_pixels)
    assert order == slow_order
    np.testing.assert_allclose(result, slow, rtol=0, atol=1e-12)
    assert result.sum() == pytest.approx(attribution.sum())


def test_growing_takes_tensors() -> None:
    attribution, masks = noise(14, 14), overlapping(12, 14)
    expected, order = grow(attribution, masks, min_pixels=3)
    tensor = torch.from_numpy(attribution).requires_grad_()
    result, same = grow(tensor, torch.from_numpy(masks), min_pixels=3)
    assert same == order
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("attribution", [[1.0]]),
        ("attribution", np.zeros((1, 4, 4))),
        ("attribution", np.zeros((0, 4))),
        ("attribution", np.full((4, 4), np.inf)),
        ("attribution", np.diag([1, 2, 3, np.nan])),
        ("attribution", np.full((4, 4), "a")),
        ("masks", [[[True]]]),
        ("masks", np.ones((2, 4, 4))),
        ("masks", np.ones((4, 4), bool)),
        ("masks", np.ones((2, 4, 5), bool)),
        ("masks", np.ones((0, 4, 4), bool)),
        ("min_pixels", 0),
        ("min_pixels", 1.5),
    ],
)
def test_bad_growing(argument: str, value: object) -> None:
    arguments: dict = {"attribution": np.zeros((4, 4)), "masks": np.ones((2, 4, 4), bool)}
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        grow(**{**arguments, argument: value})
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- XRAI


QUARTERS = np.kron([[7, -3], [0, 100]], np.ones((4, 4), int))


def quarters(values: Tensor) -> Tensor:
    """Each quarter's mean: (N, 8, 8) → (N, 8, 8)."""
    means = values.view(-1, 2, 4, 2, 4).mean((2, 4))
    return means.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_segments_that_do_not_overlap_carry_their_mean() -> None:
    model, images, attribution = make("Residual"), batch(), batch(seed=3)[:, 0]
    expected = quarters(attribution)
    for segments in (
        QUARTERS,
        torch.from_numpy(QUARTERS),
        np.stack([QUARTERS] * 3),
        np.unique(QUARTERS)[:, None, None] == QUARTERS,
    ):
        result = xrai(model, images, attribution=attribution, segments=segments, min_pixels=1)
        torch.testing.assert_close(result, expected)


def test_every_image_may_have_segments_of_its_own() -> None:
    model, images, attribution = make("Residual"), batch(2), batch(2, seed=3)[:, 0]
    own = np.stack([QUARTERS, np.zeros((8, 8), int)])
    result = xrai(model, images, attribution=attribution, segments=own, min_pixels=1)
    torch.testing.assert_close(result[:1], quarters(attribution[:1]))
    torch.testing.assert_close(result[1], attribution[1].mean().expand(8, 8))


def test_of_channels_the_largest_counts() -> None:
    model, images, attribution = make("Residual"), batch(), batch(seed=3)
    result = xrai(model, images, attribution=attribution, segments=QUARTERS, min_pixels=1)
    torch.testing.assert_close(result, quarters(attribution.amax(1)))


@pytest.mark.parametrize("network", NETWORKS)
def test_by_default_integrated_gradients_from_black_and_white(network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    low = torch.stack([c.min() for c in images.flatten(0, 1)]).view(3, 3, 1, 1)
    high = torch.stack([c.max() for c in images.flatten(0, 1)]).view(3, 3, 1, 1)
    mean = sum(integrated_gradients(model, images, 2, baseline=b) for b in (low, high)) / 2
    result = xrai(model, images, 2, segments=QUARTERS, min_pixels=1)
    torch.testing.assert_close(result, quarters(mean.amax(1)))  # type: ignore[union-attr]
    alone = [xrai(model, image[None], 2, segments=QUARTERS, min_pixels=1) for image in images]
    torch.testing.assert_close(result, torch.cat(alone), rtol=0, atol=1e-10)


def test_by_default_the_stack_of_each_image() -> None:
    pictures = [photo(name, 32) for name in ("astronaut", "chelsea")]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    attribution = torch.from_numpy(noise(2, 32, 32))
    result = xrai(make("Residual"), images, attribution=attribution)
    expected, _ = grow(attribution[1], segment_stack(pictures[1]))
    torch.testing.assert_close(result[1], torch.from_numpy(expected).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(dtype: torch.dtype) -> None:
    model, images = make("Residual").to(dtype), batch().to(dtype)
    result = xrai(model, images, segments=QUARTERS, min_pixels=1)
    assert result.shape == (3, 8, 8)
    assert result.dtype == dtype
    assert not result.requires_grad
    with torch.inference_mode():
        again = xrai(model, images.clone(), segments=QUARTERS, min_pixels=1)
    assert torch.equal(result, again)
    images.requires_grad_()
    assert torch.equal(result, xrai(model, images, segments=QUARTERS, min_pixels=1))


def test_grey_images_have_segments_too() -> None:
    class Grey(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)

    images = torch.from_numpy(photo(size=48)[None, None, ..., 0] / 255.0)
    assert xrai(Grey(), images, 1).unique().numel() > 3
    several, attribution = images.expand(1, 5, -1, -1), torch.from_numpy(noise(1, 48, 48))
    expected, _ = grow(attribution[0], segment_stack(several[0]))
    result = xrai(Grey(), several, attribution=attribution)
    torch.testing.assert_close(result[0], torch.from_numpy(expected))


def test_an_attribution_given_costs_no_pass() -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    xrai(model, batch(), attribution=batch(), segments=QUARTERS)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("attribution", batch().numpy()),
        ("attribution", batch().long()),
        ("attribution", batch(2)),
        ("attribution", batch()[..., :7]),
        ("attribution", batch() / 0),
        ("segments", QUARTERS.tolist()),
        ("segments", QUARTERS / 2),
        ("segments", QUARTERS[:7]),
        ("segments", np.stack([QUARTERS] * 2)),
        ("segments", QUARTERS > 0),
        ("segments", np.ones((0, 8, 8), bool)),
        ("segments", np.ones((5, 8, 7), bool)),
        ("min_pixels", 0),
        ("batch_size", 0),
    ],
)
def test_bad_options(argument: str, value: object) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        xrai(model, batch(), **{argument: value})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the authors' package


def added(masks: np.ndarray, order: list[int]) -> list[np.ndarray]:
    """The pixels that each region of the order adds."""
    done, new = np.zeros(masks.shape[1:], bool), []
    for number in order:
        new.append(masks[number] & ~done)
        done |= masks[number]
    return new


@pytest.mark.references
def test_xrai_equals_the_saliency_package() -> None:
    from saliency.core.xrai import XRAI, XRAIParameters, _get_segments_felzenszwalb

    picture, attribution = photo(size=128) / 255.0, noise(128, 128, 3)
    masks = segment_stack(picture)
    assert np.array_equal(masks, np.array(_get_segments_felzenszwalb(picture)))

    options = XRAIParameters(return_xrai_segments=True, flatten_xrai_segments=False)
    reference = XRAI().GetMaskWithDetails(
        picture, None, base_attribution=attribution, segments=list(masks), extra_parameters=options
    )
    images, tensor = (
        torch.from_numpy(array.transpose(2, 0, 1).copy())[None] for array in (picture, attribution)
    )
    result = xrai(make("Residual").double(), images, attribution=tensor)[0]
    np.testing.assert_allclose(result, reference.attribution_mask, rtol=0, atol=1e-12)

    values, order = grow(attribution.max(-1), masks)
    new = added(masks, order)
    # The package lists the regions by gain, which may differ from when they were added.
    by_gain = sorted(new, key=lambda mask: -values[mask][0])
    left = np.logical_not(masks[order].any(0))
    if left.any():
        by_gain.append(left)
    assert np.array_equal(by_gain, reference.segments)


@pytest.mark.references
@pytest.mark.parametrize("seed", range(5))
def test_growing_equals_the_saliency_package(seed: int) -> None:
    from saliency.core.xrai import XRAI

    attribution, masks = noise(40, 40, seed=seed).round(1), overlapping(30, 40, seed)
    reference, ranks = XRAI._xrai(attribution, list(masks))
    result, order = grow(attribution, masks)
    np.testing.assert_allclose(result, reference, rtol=0, atol=1e-12)
    assert len(order) in (ranks.max(), ranks.max() - 1)


@pytest.mark.references
def test_the_package_ranks_by_gain_and_not_by_when_a_region_was_added() -> None:
    from saliency.core.xrai import XRAI

    values, masks = row(10, 10, 0, 9), masks_of({2, 3}, {0, 1, 2}, length=4)
    reference, ranks = XRAI._xrai(values, list(masks), min_pixel_diff=1)
    result, order = grow(values, masks, min_pixels=1)
    np.testing.assert_allclose(result, reference)
    assert order == [1, 0]
    assert ranks.tolist() == [[2, 2, 2, 1]]


@pytest.mark.references
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_package_makes_nothing_of_a_constant_image() -> None:
    from saliency.core.xrai import _normalize_image

    assert np.isnan(_normalize_image(np.ones((8, 8, 3)), [-1, 1])).all()
    assert segment_stack(np.ones((8, 8, 3))).all()
