"""Attributions of regions: an image cut into segments, and XRAI, which ranks them."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage, sparse
from skimage import segmentation, transform
from torch import Tensor, nn

from course_utils.contract import (
    Baseline,
    Target,
    as_baseline,
    check,
    check_attribution,
    check_choice,
    check_count,
)
from course_utils.methods import gradients

Array = np.ndarray | Tensor

SEGMENTATIONS = ("slic", "felzenszwalb")
# How much place counts against colour in SLIC: tried in turn, until about as many segments come as
# are wanted. The last makes a grid of almost any picture.
COMPACTNESS = [10 * 2**i for i in range(8)]

# XRAI's segments, as in the authors' package `saliency`.
SCALES = (50, 100, 150, 250, 500, 1200)
SIZE = (224, 224)  # the scales and the smallest segment are meant for images of this size
SMALLEST = 150
RADIUS = 5


def segment(image: Array, *, method: str = "slic", n_segments: int = 50) -> np.ndarray:
    """Cut an image into connected segments of similar colour: labels (H, W) from 0, without gaps.

    image: (C, H, W) or (H, W, 3), any range: what counts is where a value lies between the image's
    lowest and its highest. Three channels are a colour; of any other number (of tensors; an array
    has 1 or 3) each is compared as it is.
    method: "slic" clusters pixels by colour and place into about n_segments compact segments of
    similar size, half to one and a half times as many; on noise and fine texture, whose clusters
    fall to pieces, place counts more. Where a segment has less than seven pixels there may be twice
    as many. "felzenszwalb" joins pixels as long as their difference is small against that inside
    the segments, into at most n_segments of any shape.

    Raises ValueError or TypeError naming the argument.
    Source: Achanta et al., SLIC Superpixels Compared to State-of-the-art Superpixel Methods, 2012;
    Felzenszwalb, Huttenlocher, Efficient Graph-Based Image Segmentation, 2004.

    >>> halves = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 4, 8)
    >>> regions.segment(halves, n_segments=2)[0]
    array([0, 0, 0, 0, 1, 1, 1, 1])
    """
    picture = _picture(image)
    check_count("n_segments", n_segments)
    check_choice("method", method, SEGMENTATIONS)
    if method == "slic":
        return _slic(picture, n_segments)
    # If none is smaller than this, there are at most n_segments.
    smallest = -(-picture[..., 0].size // n_segments)
    return _numbered(_felzenszwalb(picture, scale=SCALES[0], min_size=smallest))


def labels_of(segments: Array | None, images: Tensor) -> list[Tensor]:
    """Each image's segments, as labels (H, W) from 0 without gaps; None is `segment` of each image.

    segments: labels (H, W) for all images or (N, H, W), any integers; ValueError or TypeError where
    they do not fit the images (N, C, H, W), and where an image has only one: nothing can be said of
    it by hiding others.

    >>> regions.labels_of(torch.tensor([[7, 7, -1, 3]]), torch.zeros(1, 3, 1, 4))
    [tensor([[2, 2, 0, 1]])]
    """
    if segments is None:
        found = [segment(image) for image in images]
    else:
        found = [_numbered(labels) for labels in _segments_of(segments, images)]
    for i, labels in enumerate(found):
        if not labels.any():
            raise ValueError(
                f"segments must be at least two, to be compared, but image {i} has one"
            )
    return [torch.from_numpy(labels) for labels in found]


def cover(baseline: Baseline | None, images: Tensor) -> Tensor:
    """What hidden segments show, of the images' shape; None is each image's mean colour.

    >>> regions.cover(None, torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[2., 2.]]]])
    """
    colour = images.mean((2, 3), keepdim=True) if baseline is None else baseline
    return as_baseline("baseline", colour, images)


def xrai(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    attribution: Tensor | None = None,
    segments: Array | None = None,
    min_pixels: int = 50,
    batch_size: int = 16,
) -> Tensor:
    """An attribution of regions: each segment carries its pixels' mean attribution (see `grow`).

    model: images → logits (N, K). images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    attribution: of pixels (N, H, W), or (N, C, H, W), of which each pixel's largest channel counts,
    as in the authors' package; `attribution.sum(1)` makes it the sum. None: the mean of integrated
    gradients from black and from white. In model space these are unknown, so each image's lowest
    and highest value of each channel stand for them; with a Classifier's own `black` and `white`
    compute the attribution and give it.
    segments: None for `segment_stack` of each image; labels (H, W) for all images or (N, H, W),
    any integers; or masks (M, H, W), bool, that may overlap, for all images.
    min_pixels: a segment that would add fewer is not added.
    Returns (N, H, W), signed, in the attribution's unit.

    Raises ValueError or TypeError naming the argument.
    Source: Kapishnikov, Bolukbasi, Viégas, Terry, XRAI: Better Attributions Through Regions, 2019.

    >>> attribution = torch.tensor([[[4.0, 2.0, 0.0]]])
    >>> segments = torch.tensor([[0, 0, 1]])
    >>> options = {"attribution": attribution, "segments": segments, "min_pixels": 1}
    >>> regions.xrai(nn.Flatten(), torch.zeros(1, 1, 1, 3), **options)
    tensor([[[3., 3., 0.]]])
    """
    check(model, images, target)
    if attribution is not None:
        check_attribution(attribution, images)
    segments = _check_segments(segments, images)
    check_count("min_pixels", min_pixels)
    check_count("batch_size", batch_size)
    if attribution is None:
        black, white = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        from_black, from_white = (
            gradients.integrated_gradients(
                model, images, target, baseline=baseline, batch_size=batch_size
            )
            for baseline in (black, white)
        )
        attribution = (from_black + from_white) / 2
    if attribution.ndim == 4:
        attribution = attribution.amax(1)
    result = torch.empty_like(images[:, 0], requires_grad=False)
    for i, image in enumerate(images):
        values, _ = grow(attribution[i], _masks(segments, image, i), min_pixels=min_pixels)
        result[i] = torch.from_numpy(values)
    return result


def segment_stack(image: Array) -> np.ndarray:
    """XRAI's segments: masks (M, H, W) that overlap, of a picture cut finely, coarsely and between.

    image: as in `segment`. Felzenszwalb's segments at six scales, each grown by five pixels so that
    it holds its own edges, where attributions are largest.

    Raises ValueError or TypeError naming the argument.
    Source: Kapishnikov, Bolukbasi, Viégas, Terry, XRAI: Better Attributions Through Regions, 2019.
    """
    picture = _picture(image)
    small = transform.resize(picture, SIZE, order=3, mode="constant", anti_aliasing=True)
    masks: list[np.ndarray] = []
    for scale in SCALES:
        labels = _felzenszwalb(small, scale=scale, sigma=0.8, min_size=SMALLEST)
        labels = transform.resize(
            labels, picture.shape[:2], order=0, preserve_range=True, anti_aliasing=False
        ).astype(int)
        masks += _dilated(labels)
    return np.stack(masks)


def grow(attribution: Array, masks: Array, *, min_pixels: int = 50) -> tuple[np.ndarray, list[int]]:
    """Add regions, each time the one with the largest mean attribution of the pixels it adds.

        gain(s) = Σ A over the pixels of s not yet added / their number

    A pixel's value is the gain with which it was added. A region that would add fewer than
    `min_pixels` is left out; pixels that no region added get the mean of their attribution. So the
    map sums to what the attribution sums to.

    attribution: (H, W). masks: (M, H, W), bool; they may overlap.
    Returns the map (H, W), and the numbers of the regions in the order they were added. The gain
    may rise on the way: a region whose poor pixels another one took is richer than before.

    Raises ValueError or TypeError naming the argument.
    Source: Kapishnikov, Bolukbasi, Viégas, Terry, XRAI: Better Attributions Through Regions, 2019.

    >>> attribution = np.array([[4.0, 2.0, 0.0]])
    >>> masks = np.array([[[True, True, False]], [[False, True, True]]])
    >>> regions.grow(attribution, masks, min_pixels=1)  # (4 + 2) / 2, then what is left, 0
    (array([[3., 3., 0.]]), [0, 1])
    """
    values, regions = _check_growing(attribution, masks)
    check_count("min_pixels", min_pixels)
    members, cell = _cells(regions)
    # Of each cell: the sum of the attribution, and the number of pixels.
    contents = np.stack([np.bincount(cell, values.ravel()), np.bincount(cell)], 1)
    index = sparse.csr_array(members, dtype=float)
    left, result, order = np.ones(len(contents), bool), np.empty(len(contents)), []
    while True:
        total, number = (index @ (contents * left[:, None])).T
        gain = np.where(number >= min_pixels, total / np.maximum(number, 1), -np.inf)
        best = int(gain.argmax())
        if number[best] < min_pixels:
            break
        added = members[best] & left
        result[added] = gain[best]
        left &= ~added
        order.append(best)
    if left.any():
        total, number = contents[left].sum(0)
        result[left] = total / number
    return result[cell].reshape(values.shape), order


def _cells(regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that lie in the same regions are added together: they make one cell.

    There are far fewer cells than pixels. Returns which region has which cell, bool (M, cells), and
    each pixel's cell (H · W,).
    """
    pixels = regions.reshape(len(regions), -1)
    packed = np.ascontiguousarray(np.packbits(pixels, axis=0).T)  # a pixel's regions, as bits
    keys = packed.view(f"V{packed.shape[1]}")[:, 0]
    _, first, cell = np.unique(keys, return_index=True, return_inverse=True)
    return pixels[:, first], cell


def _slic(picture: np.ndarray, n_segments: int) -> np.ndarray:
    """About n_segments of a picture (H, W, C), as labels (H, W)."""
    high, wide, channels = picture.shape
    wanted = min(n_segments, high * wide)
    # Colours are compared in Lab, which reaches to 100; other channels, in skimage, to 1.
    unit = 1 if channels == 3 else 0.01
    for compactness in COMPACTNESS:
        labels = _numbered(
            segmentation.slic(
                picture, n_segments, compactness=compactness * unit, start_label=0, channel_axis=-1
            )
        )
        if wanted / 2 <= labels.max() + 1 <= wanted * 3 / 2:
            break
    return labels


def _felzenszwalb(picture: np.ndarray, **options: float) -> np.ndarray:
    with warnings.catch_warnings():
        # More than three channels, it says, may not be meant; here they are.
        warnings.filterwarnings("ignore", "Got image with third dimension")
        return segmentation.felzenszwalb(picture, **options)


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The labels from 0 without gaps, in their order."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _dilated(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Each label's pixels and those at most RADIUS away from one: (H, W), bool."""
    for number, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None:  # lost when the labels were made smaller
            continue
        # Nothing outside the widened box can be as near.
        wide = tuple(slice(max(side.start - RADIUS, 0), side.stop + RADIUS) for side in box)
        mask = np.zeros(labels.shape, bool)
        mask[wide] = ndimage.distance_transform_edt(labels[wide] != number) <= RADIUS
        yield mask


def _segments_array(segments: Array) -> np.ndarray:
    if not isinstance(segments, np.ndarray | Tensor):
        raise TypeError(f"segments must be a tensor or an array, not {type(segments).__name__}")
    return _array(segments)


def _segments_of(segments: Array, images: Tensor) -> np.ndarray:
    """Labels (N, H, W); ValueError or TypeError where they do not fit the images."""
    n, _, high, wide = images.shape
    array = _segments_array(segments)
    if array.dtype.kind not in "iu":
        raise TypeError(f"segments must be labels, whole numbers, not {array.dtype}")
    if array.shape not in ((high, wide), (n, high, wide)):
        raise ValueError(
            f"segments must be labels ({high}, {wide}) or ({n}, {high}, {wide}), as the images, "
            f"but their shape is {array.shape}"
        )
    return np.broadcast_to(array, (n, high, wide))


def _check_segments(segments: Array | None, images: Tensor) -> np.ndarray | None:
    """The segments, if any, as an array; ValueError or TypeError where they do not fit."""
    if segments is None:
        return None
    array = _segments_array(segments)
    n, _, *size = images.shape
    if array.dtype.kind not in "iub":
        raise TypeError(
            f"segments must be whole numbers, or bool where they overlap, not {array.dtype}"
        )
    bool_fits = array.ndim == 3 and len(array)
    labels_fit = array.ndim == 2 or (array.ndim == 3 and len(array) == n)
    fits = bool_fits if array.dtype == bool else labels_fit
    if not fits or list(array.shape[-2:]) != size:
        high, wide = size
        raise ValueError(
            f"segments must be labels ({high}, {wide}) or ({n}, {high}, {wide}), or masks "
            f"(M, {high}, {wide}) of bool, but are {array.dtype} of shape {array.shape}"
        )
    return array


def _check_growing(attribution: Array, masks: Array) -> tuple[np.ndarray, np.ndarray]:
    for name, value in (("attribution", attribution), ("masks", masks)):
        if not isinstance(value, np.ndarray | Tensor):
            raise TypeError(f"{name} must be a tensor or an array, not {type(value).__name__}")
    values, regions = _array(attribution), _array(masks)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"attribution must be (H, W), but its shape is {values.shape}")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError("attribution must hold finite numbers")
    if regions.dtype != bool or not len(regions) or regions.shape[1:] != values.shape:
        raise ValueError(
            f"masks must be bool, (M, {values.shape[0]}, {values.shape[1]}), but are "
            f"{regions.dtype} of shape {regions.shape}"
        )
    return values.astype(float), regions


def _masks(segments: np.ndarray | None, image: Tensor, i: int) -> np.ndarray:
    """The masks (M, H, W) of image number i."""
    if segments is None:
        return segment_stack(image)
    if segments.dtype == bool:
        return segments
    labels = segments if segments.ndim == 2 else segments[i]
    return labels == np.unique(labels)[:, None, None]


def _array(values: Array) -> np.ndarray:
    """A tensor as an array, floats in double precision (numpy knows no bfloat16)."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def _picture(image: Array) -> np.ndarray:
    """The image as (H, W, C) with values from −1 to 1; grey becomes three equal channels."""
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"image must be a tensor or an array, not {type(image).__name__}")
    shape = tuple(image.shape)
    # Of an array of four layers, nobody knows which axis they are.
    known = len(shape) == 3 and (shape[0] in (1, 3) or shape[2] == 3 or isinstance(image, Tensor))
    if not known or 0 in shape:
        raise ValueError(
            "image must be a tensor (C, H, W), or an array (H, W, 3) or (C, H, W) with 1 or 3 "
            f"channels, but its shape is {shape}"
        )
    picture = _array(image)
    if picture.dtype.kind not in "fiub":
        raise TypeError(f"image must hold numbers, not {picture.dtype}")
    picture = picture.astype(float)
    if not np.isfinite(picture).all():
        raise ValueError("image must be finite, but holds NaN or infinity")
    # Where both readings fit, tensors have their channels first and arrays last.
    if shape[2] != 3 or (shape[0] in (1, 3) and isinstance(image, Tensor)):
        picture = picture.transpose(1, 2, 0)
    low, high = picture.min(), picture.max()
    picture = 2 * (picture - low) / (high - low or 1) - 1
    high, wide, channels = picture.shape
    if channels == 1:
        picture = np.broadcast_to(picture, (high, wide, 3))
    return np.ascontiguousarray(picture)
