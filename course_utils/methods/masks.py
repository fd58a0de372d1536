"""Attributions from smooth masks: many that are drawn at random, or one that is searched for.

A mask m holds a number from 0 to 1 for each pixel, the share of the image that is kept there; the
rest is the baseline b. So the model sees m x + (1 − m) b. `perturbation` has the methods, too.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.contract import (
    Baseline,
    Estimate,
    Model,
    Target,
    as_baseline,
    check,
    check_choice,
    check_count,
    check_generator,
    check_number,
    explaining,
    mean_and_variance,
    predict_target,
    score_target,
    to_type_of,
    value_of,
)
from course_utils.methods.gradients import scores_and_gradient
from course_utils.progress import counting, in_batches

# -- random masks ----------------------------------------------------------------------------------


def rise_estimate(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    samples: int = 1000,
    keep: float = 0.5,
    cells: int = 7,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """By how much f, the logit, rises where a random mask m keeps a pixel:

        R = Cov(f, m) / Var(m) ≈ 1 / (n − 1) · Σₖ (fₖ − f̄) (mₖ − p) / Var(m),
        fₖ = f(mₖ x + (1 − mₖ) b)

    It is the slope of the line that fits f best as a function of the pixel's m. Where masks hold
    only 0 and 1 it is E[f | kept] − E[f | hidden]; with p = ½ that is a cell's Banzhaf value. The
    estimate has no bias, since p and Var(m) are known, and f̄, the mean of the fₖ, takes one of the
    n degrees of freedom. An image costs n forward passes.

    The paper's map is Σₖ fₖ mₖ / (n p), which tends to E[f | kept] = E[f] + R · Var(m) / p. The
    level E[f] tells nothing about a pixel, depends on p, and makes noise: a map of n masks is
    uneven by f̄ times how unevenly they cover the pixels, whatever the model looks at. Here E[f] is
    subtracted, and the paper's probability is a logit.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    samples: n, at least 2; the paper has 4000 to 8000. keep: p, the probability that a node of a
    mask's grid is 1 and not 0; m is bilinear between the nodes (see `random_masks`).
    cells: of the grid, down and across; a cell is H / cells by W / cells pixels, rounded up.
    baseline: what hidden pixels show, in model space: a number (0 is the mean colour of normalised
    images, as in the authors' program) or a tensor broadcastable to the images.
    generator: of the CPU, for the masks; None for one of seed 0. All images get the same masks.
    Returns an Estimate, of which `rise` returns the value alone: `value` (N, H, W), signed, in
    logits; of a linear f about the sum of what the pixels of a cell around it contribute, so that
    maps of other `cells` have another size. `standard_error` (N, H, W), due to the draws, and
    `spread` (N, H, W), the standard error that one mask would have.

    Raises ValueError or TypeError naming the argument.
    Source: Petsiuk, Das, Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
    Models, 2018.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])  # three pixels, so that each is a cell
    >>> options = {"samples": 10_000, "batch_size": 1000}
    >>> masks.rise(lambda x: x.sum((2, 3)), x, target=0, **options).round()
    tensor([[[1., 2., 4.]]])
    """
    check(model, images, target, black_box=True)
    check_count("samples", samples, 2)
    masks = random_masks(images.shape[2:], samples, keep=keep, cells=cells, generator=generator)
    baseline = as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)

    n = len(images)
    with explaining(model), torch.no_grad():
        scores = torch.zeros(n, samples, dtype=torch.float64)
        classes = predict_target(model, images, target, batch_size)
        for number in in_batches(n * samples, batch_size):
            image, sample = number // samples, number % samples
            mask = to_type_of(masks(sample), images)[:, None]
            seen = mask * images[image] + (1 - mask) * baseline[image]
            scores[image, sample] = score_target(model(seen), classes, image).cpu().double()

    # Summed over (f − f̄) (m − p) / Var(m), one mask's contribution; each mask is drawn again.
    difference = scores - scores.mean(1, keepdim=True)
    difference *= samples / (samples - 1) / mask_variance(images.shape[2:], keep, cells)
    total, squares = torch.zeros(2, n, *images.shape[2:], dtype=torch.float64)
    for sample in torch.arange(samples).split(batch_size):
        kept = masks(sample) - keep
        total += torch.tensordot(difference[:, sample], kept, 1)
        squares += torch.tensordot(difference[:, sample] ** 2, kept**2, 1)
    mean, variance = mean_and_variance(total, squares, samples)
    value, spread = to_type_of(mean, images), to_type_of(variance.sqrt(), images)
    return Estimate(value, standard_error=spread / samples**0.5, spread=spread)


rise = value_of(rise_estimate)


def random_masks(
    shape: tuple[int, ...],
    samples: int,
    *,
    keep: float = 0.5,
    cells: int = 7,
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """Smooth random masks of a shape (H, W): a function of their numbers (B,) → (B, H, W).

    A grid's nodes are 1 with probability `keep` and else 0, each by itself. A mask is bilinear
    between them, and starts at any pixel of the first cell, so that all pixels are alike: their
    mean is `keep`, their variance `mask_variance`. Only the nodes are kept in memory.

    Raises ValueError or TypeError naming the argument.

    >>> draw = masks.random_masks((1, 4), samples=8, cells=2)
    >>> draw(torch.tensor([3, 5])).shape
    torch.Size([2, 1, 4])
    """
    check_share("keep", keep)
    check_count("cells", cells)
    generator = check_generator(generator)
    sides = [-(-size // cells) for size in shape]
    nodes = (torch.rand(samples, cells + 2, cells + 2, generator=generator) < keep).double()
    starts = [torch.randint(side, (samples,), generator=generator) for side in sides]

    def draw(sample: Tensor) -> Tensor:
        down, across = (
            _hats(size, side, cells + 2, start[sample])
            for size, side, start in zip(shape, sides, starts, strict=True)
        )
        return down @ nodes[sample] @ across.mT

    return draw


def _hats(size: int, side: int, nodes: int, starts: Tensor) -> Tensor:
    """What each node, one every `side` pixels, weighs at each pixel: (B, size, nodes)."""
    place = (torch.arange(size) + starts[:, None]).double() / side
    return (1 - (place[:, :, None] - torch.arange(nodes)).abs()).clamp(min=0)


def mask_variance(shape: tuple[int, ...], keep: float, cells: int) -> float:
    """A pixel's variance over `random_masks`: p (1 − p), times E[t² + (1 − t)²] down and across.

    t is where in its cell the pixel lies, 0, 1/side … 1 − 1/side: a mean of two nodes, weighted by
    t and 1 − t, varies less than a node.

    >>> masks.mask_variance((3, 3), keep=0.5, cells=3)  # a pixel is a node
    0.25
    """
    variance = keep * (1 - keep)
    for size in shape:
        t = torch.arange(side := -(-size // cells), dtype=torch.float64) / side
        variance *= float((t**2 + (1 - t) ** 2).mean())
    return variance


def check_share(name: str, value: float) -> None:
    """Refuse what is no number between 0 and 1, or one of the two."""
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be a share, more than 0 and less than 1")


# -- the best mask ---------------------------------------------------------------------------------

GAMES = ("preserve", "delete")
SIGMA, REACH = 1.5, 2  # of a node's bump, in cells: its width, and how far it is computed
TEMPERATURE = 0.05  # of the smooth maximum
RATE, DECAYS = 0.05, (0.9, 0.99)  # of Adam
AREA_WEIGHT = 10.0  # of the area's loss at the end; the score's largest slope at the start is 1


def extremal_perturbation(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    area: float = 0.1,
    game: str = "preserve",
    baseline: Baseline = 0.0,
    cells: int = 16,
    steps: int = 100,
    batch_size: int = 16,
) -> Tensor:
    """The smooth mask m of a given area that keeps the logit highest:

        argmax over m of f(m x + (1 − m) b) − λ ‖vecsort(m) − r_a‖²
        m(u) = smax_v k(|u − v|) m̄(v)

    vecsort(m) is the mask's H W values in order; r_a is as many zeros, then a share a of ones. λ
    grows from 0: first the model ranks the pixels, then the ranks become 0 and 1. A mask is smooth
    by construction (`smooth_mask`), from the nodes v of a grid m̄. So the rim of what is kept lies
    between 0 and 1, and the area is met up to the rim. m̄ climbs along the slope, with one pass
    forward and back at each step.

    The method that it replaces (Fong, Vedaldi: Meaningful Perturbation, 2017) has λ · mean(m) in
    place of the area: a price of pixels in the unit of f, at which masks have any size. An area is
    the same question to each image and model.

    model, target: as in `gradients.gradient`. images: (N, C, H, W), in model space.
    area: a, between 0 and 1. game: one of GAMES; "preserve" seeks what keeps f high when it is left
    alone, "delete" what makes f(m b + (1 − m) x) low when it is hidden.
    baseline: b, what hidden pixels show, in model space: a number (0 is the mean colour of
    normalised images) or a tensor broadcastable to the images. In the paper it is the image itself,
    the more blurred the smaller m is; `Classifier.blurred` comes near. cells: of the grid along the
    shorter side; fewer are smoother. steps: of the ascent.
    Returns (N, H, W), from 0 to 1: the share of a pixel that is kept, or hidden in "delete". It is
    no logit and has no sign: it says which pixels suffice together, not what each contributes.

    The authors' program, TorchRay, takes 800 steps of momentum, with f's slope as it is. Here Adam
    takes fewer, with f's slope in units of its largest entry on m̄ at the start, so that f and 2 f
    have the same mask. It starts from m̄ = 1, where pixels tie and sorting decides by their order,
    in favour of the last rows; here m̄ starts from ½ and λ from 0. It flips every second picture;
    here nothing is flipped. The search is local: other settings find other masks, nearly as good.

    Raises ValueError or TypeError naming the argument.
    Source: Fong, Patrick, Vedaldi, Understanding Deep Networks via Extremal Perturbations and
    Smooth Masks, 2019.

    >>> x = torch.zeros(1, 1, 16, 16)
    >>> x[..., 4:12, 4:12] = 1  # a bright square, a quarter of the image, and f is the brightness
    >>> model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())
    >>> mask = masks.extremal_perturbation(model, x, target=0, area=0.25)
    >>> round(mask.mean().item(), 1), round(mask[..., 4:12, 4:12].mean().item(), 1)
    (0.3, 0.9)
    """
    check(model, images, target)
    check_share("area", area)
    check_choice("game", game, GAMES)
    baseline = as_baseline("baseline", baseline, images)
    check_count("cells", cells)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    images = images.detach()

    def slope(numbers: Tensor, mask: Tensor) -> Tensor:
        """∂f / ∂m (B, H, W); in "delete" that of −f, where 1 − m is kept: the same formula."""
        x, b = images[numbers], baseline[numbers]
        kept = mask.to(images.dtype)[:, None]
        if game == "delete":
            kept = 1 - kept
        seen = kept * x + (1 - kept) * b
        result = (scores_and_gradient(model, seen, classes, numbers)[1] * (x - b)).sum(1)
        advance(len(numbers))
        return result

    with explaining(model), counting(steps * len(images), "pass") as advance:
        classes = predict_target(model, images, target, batch_size)
        found = [
            _extremal(partial(slope, numbers), images[numbers], area, cells, steps)
            for numbers in torch.arange(len(images)).split(batch_size)
        ]
    return torch.cat(found)


def _extremal(
    slope: Callable[[Tensor], Tensor], images: Tensor, area: float, cells: int, steps: int
) -> Tensor:
    """The masks (N, H, W) to which the slope leads, with the area's loss."""
    height, width = images.shape[2:]
    side = -(-min(height, width) // cells)
    grid = torch.full(
        (len(images), -(-height // side), -(-width // side)),
        0.5,
        dtype=torch.promote_types(images.dtype, torch.float32),
        device=images.device,
    )
    ones = max(1, round(area * height * width))
    wanted = torch.arange(height * width, device=images.device) >= height * width - ones
    mean, square, unit = torch.zeros_like(grid), torch.zeros_like(grid), None
    for step in range(steps):
        grid.requires_grad_()
        mask = smooth_mask(grid, side, (height, width))
        (gain,) = torch.autograd.grad(mask, grid, slope(mask.detach()).to(grid), retain_graph=True)
        ordered = mask.flatten(1).sort(dim=1, stable=True).values
        # In cells, as the gain is one cell's.
        (excess,) = torch.autograd.grad(((ordered - wanted.to(grid)) ** 2).sum() / side**2, grid)
        if unit is None:
            unit = gain.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(grid.dtype).tiny)
        ascent = gain / unit - AREA_WEIGHT * step / steps * excess
        mean, square = mean.lerp(ascent, 1 - DECAYS[0]), square.lerp(ascent**2, 1 - DECAYS[1])
        way = mean / (1 - DECAYS[0] ** (step + 1))
        way /= (square / (1 - DECAYS[1] ** (step + 1))).sqrt() + 1e-8
        grid = (grid.detach() + RATE * way).clamp(0, 1)
    return smooth_mask(grid, side, (height, width)).to(images.dtype)


def smooth_mask(grid: Tensor, side: int, shape: tuple[int, int]) -> Tensor:
    """A grid's nodes (N, h, w), in the middles of cells of `side` pixels, as masks (N, H, W):

        m(u) = smax_v k(|u − v|) m̄(v),   smax z = Σ z exp(z / T) / Σ exp(z / T)

    The bump is k(d) = exp(−2 max(0, d / σ − ½)²), 1 up to σ / 2 from its node; SIGMA is σ in cells.

    >>> grid = torch.zeros(1, 5, 5)
    >>> grid[0, 2, 2] = 1  # one node, in the middle of 5 × 5 cells of 2 pixels
    >>> (10 * masks.smooth_mask(grid, 2, (10, 10))[0, 5]).round()
    tensor([ 0.,  4.,  8., 10., 10., 10., 10.,  8.,  4.,  0.])
    """
    n, h, w = grid.shape
    # How far a pixel of a cell is from the nodes around, in cells: (2 REACH + 1, side).
    inside = (torch.arange(side).to(grid) + 0.5) / side - 0.5
    away = torch.arange(-REACH, REACH + 1).to(grid)[:, None] - inside
    distance = (away[:, None, :, None] ** 2 + away[None, :, None, :] ** 2).sqrt()
    bump = torch.exp(-2 * (distance / SIGMA - 0.5).clamp(min=0) ** 2)
    nodes = F.unfold(grid[:, None], 2 * REACH + 1, padding=REACH).view(n, -1, h, 1, w, 1)
    values = nodes * bump.flatten(0, 1)[:, None, :, None, :]
    masks = (values * (values / TEMPERATURE).softmax(1)).sum(1)
    return masks.reshape(n, h * side, w * side)[:, : shape[0], : shape[1]]
