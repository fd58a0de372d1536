"""Attributions made by changing the image and measuring how the class's logit changes.

They use the model's outputs alone: any function of images can be explained, without gradients. Only
`extremal_perturbation`, which searches for one change, asks for the slope; it and `rise` stand in
`masks`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.contract import (
    Baseline,
    Estimate,
    Model,
    Target,
    as_background,
    as_baseline,
    batched_logits,
    check,
    check_count,
    check_generator,
    explaining,
    mean_and_variance,
    resolve_target,
    score_target,
    to_type_of,
    value_of,
    with_score,
)
from course_utils.methods.masks import extremal_perturbation, rise, rise_estimate
from course_utils.progress import in_batches

__all__ = [
    "extremal_perturbation",
    "occlusion",
    "prediction_difference",
    "prediction_difference_estimate",
    "rise",
    "rise_estimate",
]


def occlusion(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    window: int = 16,
    stride: int = 8,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
) -> Tensor:
    """By how much the target's logit falls when a window is covered: f(x) − f(x covered).

    A pixel's value is the mean over the windows that cover it. A window starts every `stride`
    pixels, and one more ends at the edge, so that every pixel is covered. An image costs a forward
    pass for each of its P windows and one for f(x).

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    window: side of the square, in pixels. stride: from one window to the next; at most `window`.
    baseline: what a covered window shows, in model space: a number (0 is the mean colour of
    normalised images) or a tensor broadcastable to the images.
    Returns (N, H, W), signed, in logits: positive where covering lowers the logit.

    Raises ValueError or TypeError naming the argument.
    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> perturbation.occlusion(lambda x: x.sum((2, 3)), x, target=0, window=1, stride=1)
    tensor([[[1., 2., 4.]]])
    """
    check(model, images, target, black_box=True)
    rows, columns = _windows(images, window, stride)
    cover = as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)

    def covered(image: Tensor, place: Tensor, sample: Tensor) -> Tensor:
        return cover[image]

    drop, _ = _drops(model, images, target, rows, columns, covered, 1, batch_size)
    return to_type_of(_total(drop, rows, columns) / _cover_count(rows, columns), images)


def prediction_difference_estimate(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    window: int = 16,
    stride: int = 8,
    samples: int = 8,
    background: Tensor,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """What a window's content adds to the logit: f(x) − E[f(x with other content in the window)].

    The other content is the same window of background images drawn at random, `samples` for each
    window: unlike a grey square, it still looks like part of an image. Windows, and the mean over
    those that cover a pixel, are `occlusion`'s; an image costs 1 + P · samples forward passes. The
    paper draws content that fits the window's surroundings (conditional
    sampling) and compares log odds of probabilities; here content is drawn whatever the
    surroundings (marginal sampling) and logits are compared.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    window, stride: in pixels; stride is at most `window`.
    background: (M, C, H, W), ordinary images in model space, as large as the images.
    generator: of the CPU, for the draws; None for one of seed 0. All images get the same draws.
    Returns an Estimate, of which `prediction_difference` returns the value alone: `value`
    (N, H, W), signed, in logits; `standard_error` (N, H, W), due to the draws alone; `spread`
    (N, H, W), the standard error that one sample would have; both are NaN where samples is 1.

    Raises ValueError or TypeError naming the argument.
    Source: Zintgraf, Cohen, Adel, Welling, Visualizing Deep Neural Network Decisions: Prediction
    Difference Analysis, 2017.

    >>> x, ones = torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.ones(1, 1, 1, 3)
    >>> options = {"window": 1, "stride": 1, "background": ones}
    >>> perturbation.prediction_difference(lambda x: x.sum((2, 3)), x, target=0, **options)
    tensor([[[0., 1., 3.]]])
    """
    check(model, images, target, black_box=True)
    rows, columns = _windows(images, window, stride)
    check_count("samples", samples)
    others = as_background("background", background, images)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)

    # One table for all images, so that an image's draws do not depend on its batch.
    shape = (len(rows) * len(columns), samples)
    drawn = torch.randint(len(others), shape, generator=generator)

    def replaced(image: Tensor, place: Tensor, sample: Tensor) -> Tensor:
        return others[drawn[place, sample]]

    drop, variance = _drops(model, images, target, rows, columns, replaced, samples, batch_size)
    count = _cover_count(rows, columns)
    result = to_type_of(_total(drop, rows, columns) / count, images)
    # A pixel's value is a mean of independent windows: Var(Σ dₚ / n) = Σ Var(dₚ) / n².
    spread = to_type_of(_total(variance, rows, columns).sqrt() / count, images)
    return Estimate(result, standard_error=spread / samples**0.5, spread=spread)


prediction_difference = value_of(prediction_difference_estimate)


def _windows(images: Tensor, window: int, stride: int) -> tuple[Tensor, Tensor]:
    """The windows' rows (A, H) and columns (B, W), True inside: window (a, b) is their product."""
    check_count("window", window)
    check_count("stride", stride)
    height, width = images.shape[2:]
    if window > min(height, width):
        raise ValueError(
            f"window is {window}, but must not be larger than the images, which are {height} high "
            f"and {width} wide"
        )
    if stride > window:
        raise ValueError(
            f"stride is {stride}, but must not be larger than the window, which is {window}: no "
            "window would cover the pixels between two of them"
        )
    return _intervals(height, window, stride), _intervals(width, window, stride)


def _intervals(size: int, length: int, stride: int) -> Tensor:
    """Along one axis: (places, size), True inside the interval that starts at 0, stride, …"""
    last = size - length
    starts = torch.tensor([*range(0, last, stride), last])[:, None]
    pixels = torch.arange(size)
    return (starts <= pixels) & (pixels < starts + length)


def _total(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each pixel's sum over the windows that cover it: (N, A · B) → (N, H, W)."""
    grid = values.view(-1, len(rows), len(columns))
    return rows.T.double() @ grid @ columns.double()


def _cover_count(rows: Tensor, columns: Tensor) -> Tensor:
    """How many windows cover each pixel (H, W)."""
    return rows.sum(0)[:, None] * columns.sum(0)


def _drops(
    model: Model,
    images: Tensor,
    target: Target,
    rows: Tensor,
    columns: Tensor,
    replacement: Callable[[Tensor, Tensor, Tensor], Tensor],
    samples: int,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, P) over samples of f(x) − f(x with each of the P windows replaced).

    replacement: numbers of images, windows and samples (B,) → the pictures (B, C, H, W) whose
    content goes into the windows.
    """
    n, places = len(images), len(rows) * len(columns)
    model, target = with_score(model, target)
    with explaining(model), torch.no_grad():
        # Sums in double precision on the CPU: not every device has it, and they are small.
        total, squares = torch.zeros(2, n * places, dtype=torch.float64)
        scores, classes = _scores(model, images, target, batch_size)
        for number in in_batches(n * places * samples, batch_size):
            pair, sample = number // samples, number % samples
            image, place = pair // places, pair % places
            inside = rows[place // len(columns), :, None] & columns[place % len(columns), None, :]
            changed = torch.where(
                inside[:, None].to(images.device), replacement(image, place, sample), images[image]
            )
            drop = scores[image] - _double(score_target(model(changed), classes[image]))
            total.index_add_(0, pair, drop)
            squares.index_add_(0, pair, drop**2)
    mean, variance = mean_and_variance(total, squares, samples)
    return mean.view(n, places), variance.view(n, places)


def _scores(model: Model, images: Tensor, target: Target, batch_size: int) -> tuple[Tensor, Tensor]:
    """f(x) (N,), and the classes (N,) it is about, from one forward pass an image."""
    logits = batched_logits(model, images, batch_size)
    classes = resolve_target(logits, target)
    return _double(score_target(logits, classes)), classes.cpu()


def _double(scores: Tensor) -> Tensor:
    return scores.cpu().double()
