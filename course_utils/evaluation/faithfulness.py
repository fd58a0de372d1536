"""Is a map faithful to the model? What it predicts of a changed image, beside what the model says.

A map is read in one of two ways. A *contribution* says, in logits, how much of the score a pixel
brings: integrated gradients, Shapley values, occlusion. A *slope* says how steep the score is, in
logits per unit of the input: the gradient. A slope times (x − baseline) is a contribution.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from course_utils.contract import (
    Baseline,
    Estimate,
    Model,
    Target,
    as_baseline,
    check,
    check_attribution,
    check_count,
    check_generator,
    check_number,
    drawn_again,
    mean_and_variance,
    sum_channels,
    to_type_of,
    value_of,
)
from course_utils.evaluation.metrics import (
    Curve,
    changed_scores,
    deletion,
    faithfulness_correlation,
    patches_of,
)
from course_utils.progress import counted


class Sensitivity(NamedTuple):
    """How well a map predicts the fall of the score, for sets of each size."""

    size: tuple[int, ...]  # patches in a set
    correlation: Tensor  # (N, sizes), from −1 to 1


class Flipping(NamedTuple):
    """Two curves over the same share of the pixels, and the area between them."""

    morf: Curve  # the most relevant pixels first
    lerf: Curve  # the least relevant first
    area: Tensor  # (N,): between the curves, positive where the second lies above the first


def infidelity_estimate(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    side: int | None = None,
    noise: float | None = None,
    samples: int = 100,
    scaled: bool = False,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """How wrong is what the map predicts of a random change? The mean squared error, 0 at best.

        E over I of  (Iᵀ R − (f(x) − f(x changed by I)))²

    Without `noise` I is 1 on a square at a random place and 0 elsewhere, the square is replaced by
    the baseline, and R is a contribution in logits: Iᵀ R is its sum over the square. With `noise` I
    is Gaussian, x − I is what the model sees, and R is a slope in logits per unit of the input.

    A map in another unit predicts badly however right its shape is. `scaled` takes β R for R, with
    the factor that suits the image best, β = max(0, E[Iᵀ R Δ] / E[(Iᵀ R)²]), Δ = f(x) − f(x
    changed); it then says how far the shape predicts Δ, from E[Δ²], no better than nothing, to 0.
    Captum's `normalize` allows β below 0 as well, which praises an inverted map as the map itself.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    attribution: as the images, or (N, H, W), which stands for each channel with `noise`.
    target: a class, a LongTensor (N,), two classes for the difference of their logits, or None for
    each image's argmax; or a function of what the model returns, as in `gradients.gradient`.
    side: of the square, in pixels, which lies within the image; None for a quarter of the image's
    shorter side. noise: its standard deviation in model space. Give at most one of the two.
    samples: draws of I, the same for all images. An image costs samples + 1 forward passes.
    baseline: what replaces a square, in model space, as in `metrics.deletion`.
    generator: draws I; None for one of seed 0.
    Returns (N,) in squared logits, with its standard error and the standard deviation of one draw,
    NaN with a single one.

    Raises ValueError or TypeError naming the argument.
    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, On the (In)fidelity and Sensitivity of
    Explanations, 2019.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> faithfulness.infidelity_estimate(lambda x: x.sum((2, 3)), x, x, samples=9).value
    tensor([0.])
    """
    check(model, images, target, black_box=True)
    check_attribution(attribution, images)
    draw = _squares(images, side) if noise is None else _gaussians(images, noise, side)
    check_count("samples", samples)
    replacement = as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)
    perturbation = draw(samples, check_generator(generator))

    def change(image: Tensor, sample: Tensor) -> Tensor:
        if noise is None:
            return torch.where(perturbation(sample) > 0, replacement[image], images[image])
        return images[image] - perturbation(sample)

    relevance = attribution.detach().cpu().double().reshape(len(images), -1, *images.shape[2:])
    scores, changed = changed_scores(model, images, target, change, samples, batch_size)
    drop, predicted = scores[:, None] - changed, torch.empty(len(images), samples).double()
    for sample in torch.arange(samples).split(batch_size):
        drawn = perturbation(sample).cpu().double()
        predicted[:, sample] = torch.einsum("schw,nchw->ns", drawn, relevance)
    if scaled:
        squares = predicted.square().sum(1, keepdim=True)
        beta = (predicted * drop).sum(1, keepdim=True) / squares
        predicted *= beta.clamp(min=0).where(squares > 0, 0.0)
    error = (predicted - drop).square()
    mean, variance = mean_and_variance(error.sum(1), error.square().sum(1), samples)
    found = (mean, (variance / samples).sqrt(), variance.sqrt())
    return Estimate(*(to_type_of(values, images) for values in found))


infidelity = value_of(infidelity_estimate)


def sensitivity_n(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    sizes: Sequence[int] | None = None,
    patch: int | None = None,
    subsets: int = 100,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Sensitivity:
    """Does the map predict how far the score falls, for sets of n pixels, few or many?

        for each n:  corr over sets S of n of  Σ_{i ∈ S} R_i  and  f(x) − f(x with S replaced)

    `metrics.faithfulness_correlation` for many sizes: of a linear model, w · (x − baseline) gets 1
    at each. Where a score saturates, a map may be right about single pixels and wrong about many,
    or the reverse: hence a curve. An image costs subsets + 1 forward passes for each size.

    sizes: n, in patches; None for the powers of two below the number of patches. subsets: sets of
    each size. Other arguments as `metrics.faithfulness_correlation`; the paper takes single pixels,
    `patch=1`, and a baseline of 0.
    Returns the sizes and (N, sizes), from −1 to 1; NaN where either side is constant.

    Raises ValueError or TypeError naming the argument.
    Source: Ancona, Ceolini, Öztireli, Gross, Towards Better Understanding of Gradient-based
    Attribution Methods for Deep Neural Networks, 2018.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
    >>> faithfulness.sensitivity_n(lambda x: x.sum((2, 3)), x, 3 * x, sizes=(1, 3)).correlation
    tensor([[1., 1.]])
    """
    check(model, images, target, black_box=True)
    sum_channels(attribution, images)
    _, patches = patches_of(images, patch)
    sizes = _check_sizes(sizes, patches)
    check_count("subsets", subsets, lowest=2)
    as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)
    columns = [
        faithfulness_correlation(
            model,
            images,
            attribution,
            target,
            patch=patch,
            subsets=subsets,
            size=size,
            baseline=baseline,
            batch_size=batch_size,
            generator=generator,
        )
        for size in counted(sizes, "size")
    ]
    return Sensitivity(sizes, torch.stack(columns, 1))


def pixel_flipping(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    steps: int = 32,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    of: str = "logit",
) -> Flipping:
    """Replace pixels from both ends of the map's order: the area between the curves, high is good.

        area = ∫ (score, least relevant first − score, most relevant first) d share of the pixels

    The first curve (MoRF) is `metrics.deletion`; the second (LeRF) asks what a single curve leaves
    out, whether the pixels ranked last can go without loss. Both start at f(x) and end at
    f(baseline), so that what any hole does to the model cancels: a random order gets 0 on average,
    and the inverted map the same area below 0. Costs two curves of steps + 1 forward passes.

    Arguments, errors as `metrics.deletion`. Pixels of equal relevance go row by row in both curves;
    a constant map has the area NaN. The paper replaces squares by random colours and averages over
    the first steps (AOPC); the area between the curves is also called ABPC or symmetric relevance
    gain.

    Source: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation, 2015; Samek, Binder, Montavon, Lapuschkin, Müller, Evaluating
    the Visualization of What a Deep Neural Network Has Learned, 2017; the area between: Blücher,
    Vielhaben, Strodthoff, Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI
    Benchmarks, 2024.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> faithfulness.pixel_flipping(lambda x: x.sum((2, 3)), x, x, steps=3).lerf.score
    tensor([[7., 6., 4., 0.]])
    """
    options: dict[str, Any] = {"steps": steps, "baseline": baseline, "of": of}
    options["batch_size"] = batch_size
    morf = deletion(model, images, attribution, target, **options)
    lerf = deletion(model, images, -attribution, target, **options)
    return Flipping(morf, lerf, lerf.auc - morf.auc)


Perturbation = Callable[[Tensor], Tensor]  # numbers of samples (B,) → I (B, 1 or C, H, W)


def _squares(images: Tensor, side: int | None) -> Callable[[int, torch.Generator], Perturbation]:
    """Squares at random places: 1 inside, 0 outside, (B, 1, H, W)."""
    height, width = images.shape[2:]
    side = max(min(height, width) // 4, 1) if side is None else side
    check_count("side", side)
    if side > min(height, width):
        raise ValueError(
            f"side is {side}, but a square must lie within images that are {height} high and "
            f"{width} wide"
        )

    def drawn(samples: int, generator: torch.Generator) -> Perturbation:
        top, left = (
            torch.randint(length - side + 1, (samples, 1), generator=generator)
            for length in (height, width)
        )

        def square(sample: Tensor) -> Tensor:
            rows, columns = (
                (torch.arange(length) >= start[sample])
                & (torch.arange(length) < start[sample] + side)
                for length, start in ((height, top), (width, left))
            )
            return (rows[:, None, :, None] & columns[:, None, None]).to(images)

        return square

    return drawn


def _gaussians(
    images: Tensor, noise: float, side: int | None
) -> Callable[[int, torch.Generator], Perturbation]:
    """Gaussian noise, (B, C, H, W)."""
    check_number("noise", noise)
    if noise == 0:
        raise ValueError("noise is 0, which changes nothing; it must be above 0")
    if side is not None:
        raise ValueError("side and noise are two kinds of change; give one of them")

    def drawn(samples: int, generator: torch.Generator) -> Perturbation:
        seeds = torch.randint(2**62, (samples,), generator=generator).tolist()
        return lambda sample: noise * drawn_again(torch.randn, [seeds[i] for i in sample], images)

    return drawn


def _check_sizes(sizes: Sequence[int] | None, patches: int) -> tuple[int, ...]:
    """The sizes, by default powers of two, each checked."""
    if sizes is None:
        sizes = [2**k for k in range((patches - 1).bit_length())]
    if not isinstance(sizes, Sequence) or not sizes:
        raise TypeError(f"sizes must be whole numbers, at least one, not {sizes!r}")
    for size in sizes:
        check_count("sizes", size)
        if size >= patches:
            raise ValueError(
                f"sizes are {', '.join(map(str, sizes))}, but must be smaller than the number of "
                f"patches, which is {patches}: no two sets would differ"
            )
    return tuple(sizes)
