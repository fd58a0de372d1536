"""Attributions made by changing the image and looking at what the class's logit does.

Nothing but the model's answers is used: any function of images will do, and no gradient is taken.
"""

from collections.abc import Callable

import torch

from course_utils.contract import (
    Details,
    Fill,
    Model,
    Target,
    check,
    check_count,
    check_fill,
    check_generator,
    check_logits,
    check_set,
    class_scores,
    explaining,
    like,
    portions,
    targets,
)


def occlusion(
    model: Model,
    images: torch.Tensor,
    target: Target = None,
    *,
    window: int = 16,
    stride: int = 8,
    fill: Fill = 0.0,
    batch_size: int = 16,
    progress: bool = True,
) -> torch.Tensor:
    """How far the target's logit falls when a window is covered: the mean of f(x) − f(x covered).

    A pixel's value is the mean over the windows that cover it. A window starts every `stride`
    pixels, and one more ends at the edge, so that every pixel is covered. An image costs a forward
    pass for each of its P windows and one for f(x).

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax.
    window: side of the square, in pixels. stride: from one window to the next; at most `window`.
    fill: what covers, in model space: a number (0 is the mean colour where images are normalised)
    or a tensor broadcastable to the images.
    Returns (N, H, W), signed, in logits: positive where covering takes evidence away.

    Raises ValueError or TypeError naming the argument.
    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
    """
    check(model, images, target, black_box=True)
    rows, columns = _windows(images, window, stride)
    cover = check_fill("fill", fill, images)
    check_count("batch_size", batch_size)

    def covered(image: torch.Tensor, place: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        return cover[image]

    drop, _ = _drops(model, images, target, rows, columns, covered, 1, batch_size, progress)
    return like(_total(drop, rows, columns) / _cover_count(rows, columns), images)


def prediction_difference(
    model: Model,
    images: torch.Tensor,
    target: Target = None,
    *,
    window: int = 16,
    stride: int = 8,
    samples: int = 8,
    background: torch.Tensor,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
    details: bool = False,
    progress: bool = True,
) -> torch.Tensor | tuple[torch.Tensor, Details]:
    """What a window's content adds to the logit: f(x) − E[f(x with other content in the window)].

    The other content is the same window of background images drawn at random, `samples` for each
    window: the window still looks like a piece of an image, where a grey square does not. Windows,
    and the mean over those that cover a pixel, are `occlusion`'s; an image costs 1 + P · samples
    forward passes. The paper draws content that fits the window's surroundings (conditional
    sampling) and compares log odds of probabilities; here content is drawn whatever the
    surroundings (marginal sampling) and logits are compared.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax.
    window, stride: in pixels; stride is at most `window`.
    background: (M, C, H, W), ordinary images in model space, as large as the images.
    generator: draws; None for one of seed 0. All images of a call meet the same draws.
    Returns (N, H, W), signed, in logits. With details=True also Details: `standard_error` (N, H, W)
    of each value, from the draws alone, and `spread` (N, H, W), what it would be at one sample.

    Raises ValueError or TypeError naming the argument.
    Source: Zintgraf, Cohen, Adel, Welling, Visualizing Deep Neural Network Decisions: Prediction
    Difference Analysis, 2017.
    """
    check(model, images, target, black_box=True)
    rows, columns = _windows(images, window, stride)
    check_count("samples", samples, lowest=2 if details else 1)  # one sample has no spread
    others = check_set("background", background, images)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)

    # One table for all images, so that an image's draws do not depend on its batch.
    shape = (len(rows) * len(columns), samples)
    drawn = torch.randint(len(others), shape, generator=generator)

    def replaced(image: torch.Tensor, place: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        return others[drawn[place, sample]]

    drop, variance = _drops(
        model, images, target, rows, columns, replaced, samples, batch_size, progress
    )
    count = _cover_count(rows, columns)
    result = like(_total(drop, rows, columns) / count, images)
    if not details:
        return result
    # A pixel's value is a mean of independent windows: Var(Σ dₚ / n) = Σ Var(dₚ) / n².
    spread = like(_total(variance, rows, columns).sqrt() / count, images)
    return result, Details(standard_error=spread / samples**0.5, spread=spread)


def _windows(images: torch.Tensor, window: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def _intervals(size: int, length: int, stride: int) -> torch.Tensor:
    """Along one axis: (places, size), True inside the interval that starts at 0, stride, …"""
    last = size - length
    starts = torch.tensor([*range(0, last, stride), last])[:, None]
    pixels = torch.arange(size)
    return (starts <= pixels) & (pixels < starts + length)


def _total(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each pixel's sum over the windows that cover it: (N, A · B) → (N, H, W)."""
    grid = values.view(-1, len(rows), len(columns))
    return rows.T.double() @ grid @ columns.double()


def _cover_count(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """How many windows cover each pixel (H, W)."""
    return rows.sum(0)[:, None] * columns.sum(0)


def _drops(
    model: Model,
    images: torch.Tensor,
    target: Target,
    rows: torch.Tensor,
    columns: torch.Tensor,
    replacement: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    samples: int,
    batch_size: int,
    progress: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (N, P) over samples of f(x) − f(x with each of the P windows replaced).

    replacement: numbers of images, windows and samples (B,) → the pictures (B, C, H, W) whose
    content goes into the windows.
    """
    n, places = len(images), len(rows) * len(columns)
    with explaining(model), torch.no_grad():
        # Sums in double precision on the CPU: not every device has it, and they are small.
        total, squares = torch.zeros(2, n * places, dtype=torch.float64)
        scores, classes = _scores(model, images, target, batch_size)
        for number in portions(n * places * samples, batch_size, progress):
            pair, sample = number // samples, number % samples
            image, place = pair // places, pair % places
            inside = rows[place // len(columns), :, None] & columns[place % len(columns), None, :]
            changed = torch.where(
                inside[:, None].to(images.device), replacement(image, place, sample), images[image]
            )
            drop = scores[image] - _double(class_scores(model(changed), classes[image]))
            total.index_add_(0, pair, drop)
            squares.index_add_(0, pair, drop**2)
    mean = total / samples
    variance = (squares / samples - mean**2).clamp(min=0) * samples / max(samples - 1, 1)
    return mean.view(n, places), variance.view(n, places)


def _scores(
    model: Model, images: torch.Tensor, target: Target, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) (N,), and the classes (N,) it is about, from one forward pass an image."""
    logits = torch.cat([check_logits(model(part.clone())) for part in images.split(batch_size)])
    classes = logits.argmax(1) if target is None else targets(model, images, target, batch_size)
    return _double(class_scores(logits, classes)), classes.cpu()


def _double(scores: torch.Tensor) -> torch.Tensor:
    return scores.cpu().double()
