"""Attributions computed from the gradient of a class's logit with respect to the image."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from course_utils.contract import (
    Baseline,
    Estimate,
    Target,
    as_background,
    as_baseline,
    check,
    check_choice,
    check_count,
    check_generator,
    check_number,
    check_unit,
    drawn_again,
    explaining,
    known_options,
    mean_and_variance,
    predict_target,
    score_target,
    to_type_of,
    value_of,
)
from course_utils.layers import find
from course_utils.methods import backward
from course_utils.methods.operations import Operation
from course_utils.progress import counting, in_batches


def gradient(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    """How much the target's logit changes per change of each input value: ∂f_c(x) / ∂x.

    model: images → logits (N, K). images: (N, C, H, W), floating point, in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; two classes (a, b), or a
    LongTensor (N, 2), for f_a − f_b: why a, and not b? Or a function of whatever the model returns,
    which makes a score (N,) of it: lambda logits: logits[:, 1:4].logsumexp(1).
    Returns (N, C, H, W), signed, in logits (or what the score is in) per unit of model space.

    Raises ValueError or TypeError naming the argument.
    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2013.

    >>> class Squares(nn.Module):  # f_c(x) = x_c²
    ...     def forward(self, x):
    ...         return x.flatten(1) ** 2
    >>> gradients.gradient(Squares(), torch.tensor([[[[1.0, 3.0]]]]), target=1)
    tensor([[[[0., 6.]]]])
    >>> gradients.gradient(Squares(), torch.tensor([[[[1.0, 3.0]]]]), target=(1, 0))
    tensor([[[[-2.,  6.]]]])
    """
    check(model, images, target)
    with explaining(model):
        return scores_and_gradient(model, images, target)[1]


def scores_and_gradient(
    model: nn.Module, images: Tensor, target: Target, numbers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The target's logit (N,) and its gradient (N, C, H, W), in one pass; inside `explaining`.

    numbers: which images these are (N,), where the target holds the classes of more.
    """
    x = images.detach().clone().requires_grad_()
    # The model gets a copy: its first layer may work in place.
    scores, result = score_target(model(x.clone()), target, numbers), None
    if scores.requires_grad:
        # Each score depends on its own image alone, so the sum's gradient holds all of theirs.
        (result,) = torch.autograd.grad(scores.sum(), x, allow_unused=True)
    if result is None:
        raise ValueError("model: its logits carry no gradient to the images")
    return scores.detach(), result


def input_x_gradient(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    """What each input value would contribute if the model were linear: x · ∂f_c(x) / ∂x.

    Arguments as `gradient`. Returns (N, C, H, W), signed, in logits. An input of 0 gets 0, and 0 is
    the mean colour where the images are normalised, black only where they are not.

    Raises ValueError or TypeError naming the argument.
    Source: Shrikumar, Greenside, Shcherbina, Kundaje, Not Just a Black Box, 2016.

    >>> class Squares(nn.Module):  # f_c(x) = x_c²
    ...     def forward(self, x):
    ...         return x.flatten(1) ** 2
    >>> gradients.input_x_gradient(Squares(), torch.tensor([[[[1.0, 3.0]]]]), target=1)
    tensor([[[[ 0., 18.]]]])
    """
    return gradient(model, images, target) * images.detach()


def _deconvnet(relu: Operation, above: Tensor, derived: Sequence[Tensor]) -> Tensor:
    return above.clamp(min=0)


def _guided(relu: Operation, above: Tensor, derived: Sequence[Tensor]) -> Tensor:
    return derived[0].clamp(min=0)


def deconvnet(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    unit: int | None = None,
) -> Tensor:
    """A unit's activation propagated backward, where each ReLU lets only positive values pass:

        R_in = R_out · 1[R_out > 0]        (the gradient: R_out · 1[x > 0])

    Max pooling passes a value to the position of its maximum (the paper's switches). A ReLU6 is
    treated as a ReLU; normalisations and gates (a value times a sigmoid) keep their gradient.
    Without max pooling the map depends on the class or unit, not on the image.
    Arguments as `gradient`; with a layer (as in `model.named_modules()`) and a unit, a channel of
    it, the strongest position of that unit is explained instead of a class. Returns (N, C, H, W),
    signed; its size has no unit.

    Raises ValueError or TypeError naming the argument; ValueError for a network without ReLU or
    with other activations.
    Source: Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.

    >>> model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), torch.tensor([[[[-1.0, 3.0]]]])
    >>> gradients.deconvnet(model, x, target=0)  # the gradient is 0: the ReLU is not active
    tensor([[[[1., 0.]]]])
    """
    return _rectified(model, images, target, layer, unit, "deconvnet", _deconvnet)


def guided_backprop(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    unit: int | None = None,
) -> Tensor:
    """The gradient, but each ReLU lets only positive values pass, and only where it was active:

        R_in = R_out · 1[R_out > 0] · 1[x > 0]        (of a ReLU6: 1[0 < x < 6])

    Arguments, result and errors as `deconvnet`.
    Source: Springenberg, Dosovitskiy, Brox, Riedmiller, Striving for Simplicity, 2014.

    >>> model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), torch.tensor([[[[-1.0, 3.0]]]])
    >>> gradients.guided_backprop(model, x, target=0)
    tensor([[[[0., 0.]]]])
    >>> gradients.guided_backprop(model, x, target=1)
    tensor([[[[0., 1.]]]])
    """
    return _rectified(model, images, target, layer, unit, "guided_backprop", _guided)


def _rectified(
    model: nn.Module,
    images: Tensor,
    target: Target,
    layer: str | None,
    unit: int | None,
    method: str,
    relu: backward.Rule,
) -> Tensor:
    check(model, images, target)
    if (layer is None) != (unit is None):
        raise ValueError("layer and unit go together: give both, or none to explain a class")
    if layer is not None:
        find(model, layer)
        if target is not None:
            raise ValueError("target must be left out where a layer and a unit are given")

    def score(output: Tensor) -> Tensor:
        if layer is None:
            return score_target(output, target)
        check_unit(layer, unit, output.shape[1])  # type: ignore[arg-type]
        return output[:, unit].reshape(len(output), -1).amax(1)

    others = ("product", "norm", "softmax")  # nothing that stands in the place of a ReLU
    table = {"relu": relu, "gate": backward.derivative}
    rules = backward.Rules(method, table, derivative=others)
    with explaining(model):
        result = backward.propagate(model, images, rules, score, layer=layer)
    for operation in rules.operations:
        if operation.kind == "gate" and {*operation.readers} != {"mul"}:
            raise ValueError(f"model: {method} has no rule for its operation {operation.name}")
    if not any(operation.kind == "relu" for operation in rules.operations):
        raise ValueError(f"model: {method} is about ReLUs, but this model has none; use gradient")
    return result


def smoothgrad_estimate(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    method: Callable[..., Tensor] = gradient,
    samples: int = 25,
    noise: float = 0.15,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """The mean of a method's maps over noisy copies of the image: E[M(x + ε)], ε ~ N(0, σ²).

    Arguments as `gradient`. method: any attribution method; Smooth IG is that of
    `integrated_gradients`. noise: σ as a share of each image's range, its maximum − minimum.
    generator: of the CPU, None means seed 0; all images get the same noise, times their σ.
    Returns an Estimate, of which `smoothgrad` returns the value alone: `value`, the mean map, of
    the method's shape and unit; `standard_error`, that of the mean; `spread`, the standard
    deviation over the samples; both are NaN where samples is 1.

    Raises ValueError or TypeError naming the argument.
    Source: Smilkov, Thorat, Kim, Viégas, Wattenberg, SmoothGrad, 2017.

    >>> model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), torch.tensor([[[[0.0, 1.0]]]])
    >>> found = gradients.smoothgrad_estimate(model, x, target=0, samples=1000)
    >>> round(found.value[0, 0, 0, 0].item(), 1)  # the gradient is 0 or 1, as the noise has it
    0.5
    >>> round(found.standard_error[0, 0, 0, 0].item(), 3)  # √(¼ / 1000)
    0.016
    """
    check(model, images, target)
    check_count("samples", samples)
    check_number("noise", noise)
    check_count("batch_size", batch_size)
    seeds = torch.randint(2**62, (samples,), generator=check_generator(generator)).tolist()
    if not callable(method):
        raise TypeError(f"method must be an attribution method, not {type(method).__name__}")
    options = known_options(method, batch_size=batch_size)
    total, squares = torch.zeros(()), torch.zeros(())
    with explaining(model):
        images = images.detach()
        sigma = noise * (images.amax((1, 2, 3), True) - images.amin((1, 2, 3), True))
        classes = predict_target(model, images, target, batch_size)
        for number in in_batches(samples * len(images), batch_size):
            sample, image = number // len(images), number % len(images)
            epsilon = drawn_again(torch.randn, [seeds[k] for k in sample], images)
            maps = method(model, images[image] + sigma[image] * epsilon, classes[image], **options)
            # Sums in double precision on the CPU: not every device has it.
            values = maps.cpu().double()
            if not total.ndim:
                total = values.new_zeros(len(images), *maps.shape[1:])
                squares = total.clone()
            total.index_add_(0, image, values)
            squares.index_add_(0, image, values**2)
    mean, variance = mean_and_variance(total, squares, samples)
    spread = variance.sqrt()
    error = spread / samples**0.5
    return Estimate(*(to_type_of(each, maps) for each in (mean, error, spread)))


smoothgrad = value_of(smoothgrad_estimate)


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    baseline: Baseline = 0.0,
    steps: int = 32,
    rule: str = "midpoint",
    batch_size: int = 16,
) -> Tensor:
    """The gradient integrated along the straight line from a baseline x' to the image:

        (x − x') · ∫₀¹ ∂f_c(x' + α (x − x')) / ∂x dα ≈ (x − x') · Σₖ wₖ ∂f_c(x' + αₖ (x − x')) / ∂x

    Arguments as `gradient`. baseline: x', a number or a tensor that broadcasts to the images, in
    model space, where 0 is the mean colour; `Classifier.black` is black. steps: gradients taken;
    32 suffice for the course's small networks, one trained on ImageNet may need hundreds.
    rule: where the αₖ lie and what they weigh, one of QUADRATURES.
    Returns (N, C, H, W), signed, in logits; an image's sum tends to f_c(x) − f_c(x').

    Raises ValueError or TypeError naming the argument.
    Source: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, 2017.

    >>> class Squares(nn.Module):  # f_c(x) = x_c²
    ...     def forward(self, x):
    ...         return x.flatten(1) ** 2
    >>> gradients.integrated_gradients(Squares(), torch.tensor([[[[1.0, 3.0]]]]), target=1)
    tensor([[[[0., 9.]]]])
    """
    check(model, images, target)
    check_count("batch_size", batch_size)
    baseline = as_baseline("baseline", baseline, images)
    alphas, weights = quadrature(rule, steps)
    with explaining(model):
        images = images.detach()
        difference = images - baseline
        mean = torch.zeros_like(images)
        classes = predict_target(model, images, target, batch_size)
        for number in in_batches(len(images) * steps, batch_size):
            image, step = number // steps, number % steps
            alpha, weight = alphas[step].to(images), weights[step].to(images)
            x = baseline[image] + alpha.view(-1, 1, 1, 1) * difference[image]
            _, slope = scores_and_gradient(model, x, classes, image)
            mean.index_add_(0, image.to(images.device), weight.view(-1, 1, 1, 1) * slope)
    return difference * mean


def expected_gradients_estimate(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    background: Tensor,
    samples: int = 64,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """Integrated gradients without a baseline to choose: its mean over a background.

        E[(x − x') · ∂f_c(x' + α (x − x')) / ∂x],      x' from the background, α uniform in 0 … 1

    Each sample is one gradient, for one x' and one α. The α are uniform and evenly spread: the k-th
    of n lies in the k-th n-th of the line, which is more precise than independent draws.

    Arguments as `gradient`. background: (M, C, H, W), ordinary images in model space, as large as
    the images. samples: gradients taken; x' is drawn for each, with replacement.
    generator: of the CPU, None means seed 0; all images get the same draws.
    Returns an Estimate, of which `expected_gradients` returns the value alone: `value`
    (N, C, H, W), signed, in logits, whose sum over an image tends to f_c(x) − E f_c(x');
    `standard_error`, that of the mean if the α were drawn independently, and so rather too large;
    `spread`, the standard deviation over the samples; both are NaN where samples is 1.

    Raises ValueError or TypeError naming the argument.
    Source: Erion, Janizek, Sturmfels, Lundberg, Lee, Improving Performance of Deep Learning Models
    with Axiomatic Attribution Priors and Expected Gradients, 2021.

    >>> x, ones = torch.tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1, 1, 2)
    >>> gradients.expected_gradients(nn.Flatten(), x, target=1, background=ones)  # 3 − 1
    tensor([[[[0., 2.]]]])
    """
    check(model, images, target)
    others = as_background("background", background, images)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)
    drawn = torch.randint(len(others), (samples,), generator=generator)
    within = torch.rand(samples, generator=generator, dtype=torch.float64)
    alphas = (torch.arange(samples) + within) / samples
    with explaining(model):
        images = images.detach()
        # Sums in double precision on the CPU: not every device has it.
        total, squares = torch.zeros(2, *images.shape, dtype=torch.float64)
        classes = predict_target(model, images, target, batch_size)
        for number in in_batches(samples * len(images), batch_size):
            sample, image = number // len(images), number % len(images)
            start, alpha = others[drawn[sample]], alphas[sample].to(images).view(-1, 1, 1, 1)
            difference = images[image] - start
            _, slope = scores_and_gradient(model, start + alpha * difference, classes, image)
            values = (difference * slope).cpu().double()
            total.index_add_(0, image, values)
            squares.index_add_(0, image, values**2)
    mean, variance = mean_and_variance(total, squares, samples)
    spread = variance.sqrt()
    error = spread / samples**0.5
    return Estimate(*(to_type_of(each, images) for each in (mean, error, spread)))


expected_gradients = value_of(expected_gradients_estimate)


def guided_integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    baseline: Baseline = 0.0,
    steps: int = 64,
    fraction: float = 0.25,
    max_distance: float = 0.02,
    batch_size: int = 16,
) -> Tensor:
    """The gradient integrated along a path on which inputs of small gradient go first:

        Σₖ (xₖ₊₁ − xₖ) · (gₖ + gₖ₊₁) / 2,      gₖ = ∂f_c(xₖ) / ∂x,  x₀ = x',  xₙ = x

    From xₖ to xₖ₊₁, those values move whose |gₖ| is smallest, a fraction of all, until
    |x − xₖ₊₁|₁ = (1 − (k + 1) / n) |x − x'|₁; if they come as far as they may before that, the next
    ones move, too. So what the straight line meets on its way that has a large gradient is avoided.
    A value may be ahead of the straight line, or behind it, by max_distance of its way.

    The authors' code (the package `saliency`) takes the same path, but multiplies by gₖ alone. A
    value was chosen because its gₖ is small, which it is less often where it arrives; such a sum
    misses more of f_c(x) − f_c(x'), and the more so, the larger max_distance is.
    With max_distance=1, the path of the paper's equations, a change of the image that nobody sees
    gives another path and another map, in deep networks of ReLUs.

    Arguments as `integrated_gradients`. steps: n; they follow each other, an image makes n + 1
    passes. fraction: the share of an image's values that move at a time; above 0, at most 1.
    max_distance: from 0, the straight line, to 1, no limit.
    Returns (N, C, H, W), signed, in logits; an image's sum tends to f_c(x) − f_c(x'), but in a
    network of ReLUs some percent may be missing after any number of steps: the path follows kinks.

    Raises ValueError or TypeError naming the argument; ValueError for half precision.
    Source: Kapishnikov, Venugopalan, Avci, Wedin, Terry, Bolukbasi, Guided Integrated Gradients,
    2021.

    >>> class Product(nn.Module):  # f = x y
    ...     def forward(self, images):
    ...         return images.flatten(1).prod(1, keepdim=True)
    >>> x, start = torch.tensor([[[[3.0, 3.0]]]]), torch.tensor([1.0, 2.0])
    >>> options = {"baseline": start, "steps": 3, "max_distance": 1}  # y goes first
    >>> gradients.guided_integrated_gradients(Product(), x, **options)
    tensor([[[[6., 1.]]]])
    """
    check(model, images, target)
    if images.dtype.itemsize < 4:
        raise ValueError(
            f"images are {images.dtype}, which is too coarse to order gradients by size; use "
            "model.float() and images.float()"
        )
    baseline = as_baseline("baseline", baseline, images)
    check_count("steps", steps)
    for name, share in {"fraction": fraction, "max_distance": max_distance}.items():
        check_number(name, share)
        if share > 1:
            raise ValueError(f"{name} is {share}; it is a share, and must be at most 1")
    if not fraction:
        raise ValueError("fraction is 0; it must be above 0: else nothing moves")
    check_count("batch_size", batch_size)
    with explaining(model), counting(len(images) * steps, "pass") as advance:
        images = images.detach()
        result = torch.zeros_like(images)
        classes = predict_target(model, images, target, batch_size)
        for image in torch.arange(len(images)).split(batch_size):
            start, end = baseline[image], images[image]
            x, done = start, torch.zeros_like(start)  # done: each value's share of its way
            _, slope = scores_and_gradient(model, x, classes, image)
            for k in range(1, steps + 1):
                before, last = x, slope
                way = (end - start).abs()
                done = _ahead(done, way, slope.abs(), k / steps, fraction, max_distance)
                x = start.lerp(end, done)
                _, slope = scores_and_gradient(model, x, classes, image)
                result[image] += (x - before) * (last + slope) / 2
                advance(len(image))
    return result


def _ahead(
    done: Tensor, way: Tensor, size: Tensor, alpha: float, fraction: float, max_distance: float
) -> Tensor:
    """Which shares of their ways are done when alpha of all ways is: first where size is small."""
    shape, (done, way, size) = done.shape, (each.flatten(1) for each in (done, way, size))
    done = done.clamp(min=alpha - max_distance)
    furthest = torch.full_like(done, min(alpha + max_distance, 1.0))
    least = int(fraction * (size.shape[1] - 1)) + 1
    moving = torch.ones_like(done[:, 0], dtype=torch.bool)  # the images that are not there yet
    while moving.any():
        left = (furthest - done).clamp(min=0) * way
        missing = (alpha * way - done * way).sum(1).clamp(min=0)
        waiting = size.where(left > 0, torch.inf)
        limit = waiting.kthvalue(least, 1, keepdim=True).values
        chosen = (waiting <= limit) & (left > 0)
        share = (missing / (left * chosen).sum(1)).nan_to_num(0).clamp(max=1)
        done = done.lerp(furthest, (share * moving)[:, None] * chosen)
        moving &= share == 1  # all that were chosen are there, and it may not be enough
    return done.view(shape)


def blur_integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    max_sigma: float = 20.0,
    steps: int = 32,
    rule: str = "midpoint",
    batch_size: int = 16,
) -> Tensor:
    """The gradient integrated along the path on which a blurred image becomes sharp:

        ∫₀¹ ∂f_c(x(α)) / ∂x · dx(α) / dα dα ≈ Σₖ ∂f_c(x(αₖ)) / ∂x · (x(βₖ) − x(βₖ₋₁))

    x(α) is the image blurred by a Gaussian of (1 − α) · max_sigma pixels (see `blurred`), αₖ are
    the nodes of a quadrature, and βₖ the sums of its first k weights: αₖ lies between βₖ₋₁ and βₖ.
    No colour stands for absence, but what has no detail, such as a plain image, gets nothing.

    Arguments as `integrated_gradients`. max_sigma: of the path's start, in pixels, above 0.
    Returns (N, C, H, W), signed, in logits; an image's sum tends to f_c(x) − f_c(x(0)).

    Raises ValueError or TypeError naming the argument.
    Source: Xu, Venugopalan, Sundararajan, Attribution in Scale and Space, 2020.

    >>> x = torch.tensor([[[[0.0, 6.0]]]])
    >>> gradients.blur_integrated_gradients(nn.Flatten(), x, target=1).round(decimals=1)  # 6 − 3
    tensor([[[[0., 3.]]]])
    """
    check(model, images, target)
    check_number("max_sigma", max_sigma)
    if not max_sigma:
        raise ValueError("max_sigma is 0; it must be above 0: the path starts at a blurred image")
    check_count("batch_size", batch_size)
    alphas, weights = quadrature(rule, steps)
    betas = torch.cat([weights.new_zeros(1), weights.cumsum(0)]).clamp(max=1)

    def on_path(image: Tensor, alpha: Tensor) -> Tensor:
        return blurred(images[image], max_sigma * (1 - alpha))

    with explaining(model):
        images = images.detach()
        result = torch.zeros_like(images)
        classes = predict_target(model, images, target, batch_size)
        for number in in_batches(len(images) * steps, batch_size):
            image, step = number // steps, number % steps
            gain = on_path(image, betas[step + 1]) - on_path(image, betas[step])
            _, slope = scores_and_gradient(model, on_path(image, alphas[step]), classes, image)
            result.index_add_(0, image.to(images.device), gain * slope)
    return result


def blurred(images: Tensor, sigma: float | Tensor) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian of standard deviation sigma, in pixels.

    It reaches as far as 4 sigma. At the border the mean is over the pixels that there are, so that
    a plain image stays as it is. sigma: a number, or one for each image (N,).

    >>> gradients.blurred(torch.tensor([[[[0.0, 0.0, 1.0, 0.0, 0.0]]]]), 0.5).round(decimals=2)
    tensor([[[[0.0000, 0.1100, 0.7900, 0.1100, 0.0000]]]])
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64).view(-1, 1, 1).clamp(min=1e-6)
    single = images.to(torch.promote_types(images.dtype, torch.float32))  # half is too coarse
    rows, columns = (
        to_type_of(_gaussian(size, sigma)[:, None], single) for size in images.shape[2:]
    )
    return (rows @ single @ columns.mT).to(images.dtype)


def _gaussian(size: int, sigma: Tensor) -> Tensor:
    """What each of `size` places takes of each other one: sigma (B, 1, 1) → (B, size, size)."""
    place = torch.arange(size, dtype=torch.float64)
    distance = (place[:, None] - place).abs()
    weight = torch.exp(-((distance / sigma) ** 2) / 2) * (distance <= (4 * sigma + 0.5).floor())
    return weight / weight.sum(2, keepdim=True)


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)  # on −1 … 1
    return (nodes + 1) / 2, weights / 2


def _trapezoid(n: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "midpoint": lambda n: ((np.arange(n) + 0.5) / n, np.full(n, 1 / n)),
    "riemann-right": lambda n: (np.arange(1, n + 1) / n, np.full(n, 1 / n)),
    "trapezoid": _trapezoid,
    "gauss-legendre": _gauss_legendre,
}


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (steps,) of an integral from 0 to 1; the weights sum to 1.

    >>> gradients.quadrature("midpoint", 2)
    (tensor([0.2500, 0.7500], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    check_choice("rule", rule, QUADRATURES)
    check_count("steps", steps, 2 if rule == "trapezoid" else 1)
    nodes, weights = QUADRATURES[rule](steps)
    return torch.from_numpy(nodes), torch.from_numpy(weights)
