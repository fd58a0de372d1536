"""How good is an attribution? Metrics that compare it with a mask, or with what the model does.

None of them knows what the model really looks at; each asks a question that stands in for it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils.contract import (
    Baseline,
    Model,
    Target,
    as_baseline,
    batched_logits,
    check,
    check_choice,
    check_count,
    check_generator,
    check_logits,
    check_number,
    check_whole,
    explaining,
    resolve_target,
    score_target,
    sum_channels,
    to_type_of,
    with_score,
)
from course_utils.progress import in_batches

SCORES = ("logit", "probability")


class Curve(NamedTuple):
    """What the model says while pixels are deleted or inserted."""

    fraction: Tensor  # (steps + 1,): the share of the pixels deleted or inserted, from 0 to 1
    score: Tensor  # (N, steps + 1)
    auc: Tensor  # (N,): the area under the curve, by the trapezoid rule; NaN for a constant map


def iou(attribution: Tensor, mask: Tensor | np.ndarray, *, quantile: float = 0.9) -> Tensor:
    """How well the most relevant pixels S cover the object M: |S ∩ M| / |S ∪ M|.

    S are the pixels whose attribution reaches the map's quantile and lies above its minimum: a
    constant map selects nothing and gets 0. S holds a tenth of the picture at 0.9, so an object of
    another size cannot be met exactly.

    attribution: (N, C, H, W), summed over channels, or (N, H, W). quantile: from 0 to 1.
    mask: bool, (N, H, W), or (H, W) for all; see `box_mask`. An empty one gives NaN: with nothing
    to be found, 0 would blame every map and 1 praise it.
    Returns (N,), from 0 to 1.

    Raises ValueError or TypeError naming the argument.
    Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, Learning Deep Features for Discriminative
    Localization, 2016 (with boxes).

    >>> heat, mask = torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[False, True, True]])
    >>> metrics.iou(heat, mask)
    tensor([0.5000])
    """
    relevance = sum_channels(attribution).flatten(1)
    inside = _check_mask(mask, attribution).flatten(1)
    check_number("quantile", quantile)
    if quantile > 1:
        raise ValueError(f"quantile is {quantile}; it must lie between 0 and 1")
    threshold = torch.from_numpy(np.quantile(relevance.numpy(), quantile, axis=1, keepdims=True))
    selected = (relevance >= threshold) & (relevance > relevance.amin(1, keepdim=True))
    value = (selected & inside).sum(1) / (selected | inside).sum(1).double()
    return to_type_of(value.where(inside.any(1), torch.nan), attribution)


def pointing_game(attribution: Tensor, mask: Tensor | np.ndarray) -> Tensor:
    """Does the map's maximum lie on the object? The share of the maximal pixels that do.

    A single maximum is a hit, 1, or a miss, 0; a constant map points nowhere and gets 0. There is
    no tolerance around the mask, where the paper allows 15 pixels.

    attribution, mask: as `iou`; an empty mask gives NaN. Returns (N,); the paper's accuracy is the
    mean over images.

    Raises ValueError or TypeError naming the argument.
    Source: Zhang, Lin, Brandt, Shen, Sclaroff, Top-down Neural Attention by Excitation Backprop,
    2016.

    >>> heat, mask = torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[False, True, True]])
    >>> metrics.pointing_game(heat, mask)
    tensor([1.])
    """
    relevance = sum_channels(attribution).flatten(1)
    inside = _check_mask(mask, attribution).flatten(1)
    highest = relevance.amax(1, keepdim=True)
    maximal = (relevance == highest) & (relevance.amin(1, keepdim=True) < highest)
    value = (maximal & inside).sum(1) / maximal.sum(1).clamp(min=1).double()
    return to_type_of(value.where(inside.any(1), torch.nan), attribution)


def box_mask(box: Sequence[int], size: Sequence[int]) -> Tensor:
    """A box (left, top, right, bottom), right and bottom excluded, as a bool mask of size (H, W).

    Raises ValueError or TypeError naming the argument.

    >>> metrics.box_mask((1, 0, 3, 1), (2, 3)).int()
    tensor([[0, 1, 1],
            [0, 0, 0]], dtype=torch.int32)
    """
    for name, value, wanted in (("box", box, 4), ("size", size, 2)):
        if not isinstance(value, Sequence) or len(value) != wanted:
            raise ValueError(f"{name} must be {wanted} whole numbers, not {value!r}")
        for number in value:
            check_whole(name, number)
    (left, top, right, bottom), (height, width) = box, size
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise ValueError(
            f"box must be (left, top, right, bottom) within {height} rows and {width} columns, "
            f"not {tuple(box)}"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def faithfulness_correlation(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    patch: int | None = None,
    subsets: int | None = None,
    size: int | None = None,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Does the logit fall most where the attribution is largest?

        corr over S of  Σ_{i ∈ S} R_i  and  f(x) − f(x with S replaced)

    S is each patch of the image alone (Alvarez-Melis and Jaakkola), or, with `subsets`, that many
    random sets of `size` patches (Bhatt et al.). A patch alone is often compensated by its
    neighbours; a large set takes the image far from what the model has seen. An image costs a
    forward pass for f(x) and one for each S.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    attribution: as the images, summed over channels, or (N, H, W).
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    patch: side of the squares, in pixels, the last ones cut off at the edge; 1 for single pixels,
    None for a sixteenth of the image's shorter side.
    baseline: what replaces, in model space: a number or a tensor broadcastable to the images.
    generator: draws the sets, the same for all images; None for one of seed 0.
    Returns (N,), Pearson's correlation, from −1 to 1; NaN where either side is constant, the drops
    up to the rounding of the images' type.

    Raises ValueError or TypeError naming the argument.
    Source: Alvarez-Melis, Jaakkola, Towards Robust Interpretability with Self-Explaining Neural
    Networks, 2018; Bhatt, Weller, Moura, Evaluating and Aggregating Feature-based Model
    Explanations, 2020.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> metrics.faithfulness_correlation(lambda x: x.sum((2, 3)), x, 3 * x, patch=1)
    tensor([1.])
    """
    check(model, images, target, black_box=True)
    relevance = sum_channels(attribution, images)
    cell, patches = patches_of(images, patch)
    _check_subsets(subsets, size, patches)
    replacement = as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)
    chosen = _subsets(patches, subsets, size, check_generator(generator))

    def without(image: Tensor, subset: Tensor) -> Tensor:
        taken = torch.zeros(len(subset), patches, dtype=torch.bool)
        away = taken.scatter_(1, chosen[subset], True)[:, None, cell].to(images.device)
        return torch.where(away, replacement[image], images[image])

    scores, changed = changed_scores(model, images, target, without, len(chosen), batch_size)
    drop = scores[:, None] - changed
    each = torch.zeros(len(images), patches, dtype=torch.float64)
    each.index_add_(1, cell.flatten(), relevance.flatten(1))
    total = torch.stack([row[chosen].sum(1) for row in each])
    # Differences of the order of the model's own rounding say nothing.
    rounding = 4 * torch.finfo(images.dtype).eps * scores.abs()
    return to_type_of(
        pearson(total, drop).where(drop.amax(1) - drop.amin(1) > rounding, torch.nan), images
    )


def deletion(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    steps: int = 32,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    of: str = "logit",
) -> Curve:
    """How fast the score falls as pixels are replaced, the most relevant first: low AUC is good.

        score_k = f(x with the k / steps most relevant pixels replaced),  k = 0 … steps

    The curve goes from f(x) to f(baseline). Pixels of equal attribution go row by row, from the top
    left; a constant map orders nothing, and its AUC is NaN. An image costs steps + 1 forward
    passes.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    attribution: as the images, summed over channels, or (N, H, W).
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    steps: pixels go in that many portions, equal up to one pixel.
    baseline: what replaces, in model space: a number (0 is the mean colour of normalised images)
    or a tensor broadcastable to the images, such as `Classifier.blurred(images)`.
    of: "logit", or "probability", the softmax over the classes, as in the paper.

    Raises ValueError or TypeError naming the argument.
    Source: Petsiuk, Das, Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
    Models, 2018.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> metrics.deletion(lambda x: x.sum((2, 3)), x, x, steps=3).score
    tensor([[7., 3., 1., 0.]])
    """
    return _curve(model, images, attribution, target, True, steps, baseline, batch_size, of)


def insertion(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    steps: int = 32,
    baseline: Baseline = 0.0,
    batch_size: int = 16,
    of: str = "logit",
) -> Curve:
    """How fast the score rises as pixels are put in, the most relevant first: high AUC is good.

        score_k = f(baseline with the k / steps most relevant pixels of x),  k = 0 … steps

    The curve goes from f(baseline) to f(x). Arguments, cost, errors and source as `deletion`; the
    paper inserts into a blurred copy of the image.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> metrics.insertion(lambda x: x.sum((2, 3)), x, x, steps=3).score
    tensor([[0., 4., 6., 7.]])
    """
    return _curve(model, images, attribution, target, False, steps, baseline, batch_size, of)


def _check_mask(mask: Tensor | np.ndarray, attribution: Tensor) -> Tensor:
    """The mask as (N, H, W), on the CPU; ValueError or TypeError where it does not fit."""
    if not isinstance(mask, Tensor | np.ndarray):
        raise TypeError(f"mask must be a tensor or an array of bool, not {type(mask).__name__}")
    mask = torch.as_tensor(mask).cpu()
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, not {mask.dtype}")
    n, *_, height, width = attribution.shape
    if mask.shape not in ((n, height, width), (height, width)):
        raise ValueError(
            f"mask must be ({n}, {height}, {width}) or ({height}, {width}), as the attribution, "
            f"but its shape is {tuple(mask.shape)}"
        )
    return mask.expand(n, height, width)


def patches_of(images: Tensor, patch: int | None) -> tuple[Tensor, int]:
    """Each pixel's patch (H, W), numbered row by row, and how many patches there are."""
    height, width = images.shape[2:]
    patch = max(min(height, width) // 16, 1) if patch is None else patch
    check_count("patch", patch)
    rows, columns = torch.arange(height) // patch, torch.arange(width) // patch
    cell = rows[:, None] * (int(columns[-1]) + 1) + columns
    patches = int(cell[-1, -1]) + 1
    if patches < 2:
        raise ValueError(
            f"patch is {patch}, but must leave at least two patches of images that are {height} "
            f"high and {width} wide"
        )
    return cell, patches


def _check_subsets(subsets: int | None, size: int | None, patches: int) -> None:
    if (subsets is None) != (size is None):
        raise ValueError(
            "subsets and size go together: give both, or none to take every patch alone"
        )
    if subsets is None or size is None:
        return
    check_count("subsets", subsets, lowest=2)
    check_count("size", size)
    if size >= patches:
        raise ValueError(
            f"size is {size}, but must be smaller than the number of patches, which is {patches}: "
            "no two subsets would differ"
        )


def _subsets(
    patches: int, subsets: int | None, size: int | None, generator: torch.Generator
) -> Tensor:
    """The patches in each set (S, size): every patch alone, or random sets."""
    if subsets is None:
        return torch.arange(patches)[:, None]
    return torch.rand(subsets, patches, generator=generator).argsort(1)[:, :size]


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row: two (N, S) → (N,); NaN where one of them is constant.

    >>> found = metrics.pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[30.0, 20.0, 10.0]]))
    >>> found.round(decimals=3)
    tensor([-1.])
    """
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    a, b = (values - values.mean(1, keepdim=True) for values in (a, b))
    value = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return value.clamp(-1, 1).masked_fill(constant, torch.nan)


def _curve(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target,
    deleting: bool,
    steps: int,
    baseline: Baseline,
    batch_size: int,
    of: str,
) -> Curve:
    check(model, images, target, black_box=True)
    relevance = sum_channels(attribution, images)
    check_count("steps", steps)
    replacement = as_baseline("baseline", baseline, images)
    check_count("batch_size", batch_size)
    check_choice("of", of, SCORES)
    check_class_score(of, target)

    rank, pixels = ranks(relevance), relevance[0].numel()
    counts = (torch.arange(steps + 1).double() * pixels / steps).round().long()

    def mixed(image: Tensor, step: Tensor) -> Tensor:
        relevant = rank[image] < counts[step + deleting, None, None]
        away = (relevant if deleting else ~relevant)[:, None].to(images.device)
        return torch.where(away, replacement[image], images[image])

    # f(x) is where deletion starts and insertion ends.
    whole, changed = changed_scores(model, images, target, mixed, steps, batch_size, of)
    parts = (whole[:, None], changed) if deleting else (changed, whole[:, None])
    return curve(relevance, counts.double() / pixels, torch.cat(parts, 1), images)


def check_class_score(of: str, target: Target) -> None:
    """Refuse a probability or an accuracy of what is no class, and an accuracy of two."""
    if of != "logit" and callable(target):
        raise ValueError(f"of is {of!r}, which a class has; a target function makes its own")
    pair = isinstance(target, tuple) or (isinstance(target, Tensor) and target.ndim == 2)
    if of == "accuracy" and pair:
        raise ValueError("of is 'accuracy', which a single class has; of two classes take 'logit'")


def ranks(relevance: Tensor) -> Tensor:
    """Each pixel's place (N, H, W) in its map's order, from 0, the highest first; ties by position.

    >>> metrics.ranks(torch.tensor([[[1.0, 9.0, 9.0]]]))
    tensor([[[2, 0, 1]]])
    """
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1).view_as(relevance)


def curve(relevance: Tensor, fraction: Tensor, score: Tensor, images: Tensor) -> Curve:
    """The scores as a Curve in the images' type; NaN is the area of a map that orders nothing."""
    ordered = relevance.flatten(1).amax(1) > relevance.flatten(1).amin(1)
    auc = torch.trapezoid(score, fraction).where(ordered, torch.nan)
    return Curve(*(to_type_of(values, images) for values in (fraction, score, auc)))


def changed_scores(
    model: Model,
    images: Tensor,
    target: Target,
    change: Callable[[Tensor, Tensor], Tensor],
    count: int,
    batch_size: int,
    of: str = "logit",
) -> tuple[Tensor, Tensor]:
    """What the model says of N images, (N,), and of S changes of each, (N, S); float64 on the CPU.

    change: numbers of images and of changes (B,), (B,) → the changed images (B, C, H, W).
    count: S. of: "logit", "probability", or "accuracy", 1 where the target is the answer, else 0.
    An image costs S + 1 forward passes; the first tells the class where the target is None.
    """
    n = len(images)
    model, target = with_score(model, target)
    with explaining(model), torch.no_grad():
        changed = torch.empty(n * count, dtype=torch.float64)
        logits = batched_logits(model, images, batch_size)
        classes = resolve_target(logits, target).cpu()
        for number in in_batches(n * count, batch_size):
            image, step = number // count, number % count
            changed[number] = _score(model(change(image, step)), classes[image], of)
    return _score(logits, classes, of), changed.view(n, count)


def _score(logits: Tensor, classes: Tensor, of: str) -> Tensor:
    """What the model says of each row's class (N,), in double precision on the CPU."""
    values = check_logits(logits).cpu().double()
    if of == "accuracy":
        return (values.argmax(1) == classes).double()
    return score_target(values.softmax(1) if of == "probability" else values, classes)
