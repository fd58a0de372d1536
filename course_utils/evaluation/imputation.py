"""ROAD: pixels are removed by guessing them from their neighbours, and nothing is trained again.

A hole of one colour has edges that the model sees. What is guessed from around the hole has none,
so that less of the answer comes from the hole itself. ROAR trains the model again for that.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from course_utils.contract import (
    Model,
    Target,
    check,
    check_choice,
    check_count,
    check_generator,
    check_number,
    sum_channels,
    to_type_of,
)
from course_utils.evaluation.faithfulness import Flipping
from course_utils.evaluation.metrics import (
    SCORES,
    Curve,
    changed_scores,
    check_class_score,
    curve,
    ranks,
)

OF = (*SCORES, "accuracy")
BESIDE, ACROSS = 1 / 6, 1 / 12  # the weights of the nearest four neighbours, of the diagonal four


def road(
    model: Model,
    images: Tensor,
    attribution: Tensor,
    target: Target = None,
    *,
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    noise: float = 0.01,
    batch_size: int = 16,
    of: str = "logit",
    generator: torch.Generator | None = None,
) -> Flipping:
    """Remove and debias: `pixel_flipping` with each removed pixel guessed by `impute`.

        score_t = f(x with the share t of its pixels imputed),  t = 0 and each of the fractions

    In both orders, the most and the least relevant pixels first. The area lies between the two
    curves, up to the last fraction, since of a whole image there is nothing to guess from; a large
    area is good. An image costs 2 · fractions + 2 forward passes, and 2 · fractions sparse systems
    of equations, each 0.02 to 0.2 s at 128 × 128 pixels.

    fractions: of the pixels, 0 < t < 1, rising. noise: as `impute`.
    of: "logit", "probability", or "accuracy", the paper's: 1 where the target is the model's
    answer, else 0, whose mean over images is the accuracy.
    Other arguments as `metrics.deletion`; equal pixels go row by row, a constant map has area NaN.

    Raises ValueError or TypeError naming the argument.
    Source: Rong, Leemann, Borisov, Kasneci, Kasneci, A Consistent and Efficient Evaluation Strategy
    for Attribution Methods, 2022.

    >>> x = torch.tensor([[[[1.0, 2.0, 3.0, 8.0]]]])
    >>> f = lambda x: x.sum((2, 3))
    >>> imputation.road(f, x, x, fractions=(0.25,), noise=0.0).morf.score  # 8 becomes 3
    tensor([[14.,  9.]])
    """
    check(model, images, target, black_box=True)
    relevance = sum_channels(attribution, images)
    fractions = _check_fractions(fractions)
    check_number("noise", noise)
    check_count("batch_size", batch_size)
    check_choice("of", of, OF)
    check_class_score(of, target)
    seed = int(torch.randint(2**62, (), generator=check_generator(generator)))

    def along(relevance: Tensor) -> Curve:
        rank, pixels = ranks(relevance), relevance[0].numel()
        counts = (torch.tensor(fractions).double() * pixels).round().long().clamp(max=pixels - 1)

        def change(image: Tensor, step: Tensor) -> Tensor:
            away = rank[image] < counts[step, None, None]
            again = torch.Generator().manual_seed(seed)
            return impute(images[image], away, noise=noise, generator=again)

        found = changed_scores(model, images, target, change, len(fractions), batch_size, of)
        share = torch.cat([torch.zeros(1), counts / pixels]).double()
        return curve(relevance, share, torch.cat([found[0][:, None], found[1]], 1), images)

    morf, lerf = along(relevance), along(-relevance)
    return Flipping(morf, lerf, lerf.auc - morf.auc)


def impute(
    images: Tensor,
    away: Tensor,
    *,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noisy linear imputation: each pixel that is away becomes the mean of its neighbours.

        x_p = Σ_q w_pq x_q / Σ_q w_pq + ε_p,    q: the eight neighbours of p within the image

    w is 1/6 for the four nearest and 1/12 for the four diagonal ones, ε Gaussian. Neighbours may be
    away themselves, so that all unknown x_p of an image solve one sparse system of linear
    equations, to which ε is added at the end: the hole is spanned smoothly from its rim, and the
    noise hides from the model that it is smooth.

    images: (N, C, H, W), in model space. away: bool, (N, H, W), at least one pixel of each False.
    noise: the standard deviation of ε in model space. generator: draws ε, the same for all images;
    None for one of seed 0.
    Returns (N, C, H, W), in the images' type; what is not away stays exactly as it is.

    Raises ValueError or TypeError naming the argument.
    Source: as `road`.

    >>> x = torch.tensor([[[[1.0, 9.0, 9.0, 7.0]]]])
    >>> imputation.impute(x, x[:, 0] == 9, noise=0.0)
    tensor([[[[1., 3., 5., 7.]]]])
    """
    check(lambda x: x, images, black_box=True)
    _check_away(away, images)
    check_number("noise", noise)
    shape, generator = images.shape[1:], check_generator(generator)
    epsilon = noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    guesses = [
        _solved(image, hole.numpy())
        for image, hole in zip(images.detach().cpu().double().numpy(), away.cpu(), strict=True)
    ]
    filled = to_type_of(torch.from_numpy(np.stack(guesses)) + epsilon, images)
    return torch.where(away[:, None].to(images.device), filled, images)


def _solved(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The image (C, H, W) with the hole (H, W) filled: L_hh x_h = −L_hk x_k, of known pixels k."""
    from scipy.sparse.linalg import spsolve

    if not hole.any():
        return image
    flat, away = image.reshape(len(image), -1).T.copy(), hole.ravel()
    rows = _laplacian(*hole.shape)[away]
    solution = spsolve(rows[:, away].tocsc(), -(rows[:, ~away] @ flat[~away]))
    flat[away] = solution.reshape(-1, len(image))
    return flat.T.reshape(image.shape)


@cache
def _laplacian(height: int, width: int) -> sparse.csr_matrix:
    """L = diag(Σ_q w_pq) − w of an image's pixels: L x = 0 where x is its neighbours' mean."""

    def line(length: int) -> sparse.csr_matrix:
        """Who is next to whom in a row of pixels."""
        ones = np.ones(length - 1)
        return sparse.diags([ones, ones], [-1, 1], shape=(length, length))

    def both(of_rows: sparse.csr_matrix, of_columns: sparse.csr_matrix) -> sparse.csr_matrix:
        return sparse.kron(of_rows, of_columns, format="csr")

    up, along = line(height), line(width)
    same_row, same_column = (sparse.identity(length) for length in (height, width))
    beside = both(same_row, along) + both(up, same_column)
    weights = BESIDE * beside + ACROSS * both(up, along)
    return (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()


def _check_fractions(fractions: Sequence[float]) -> list[float]:
    if not isinstance(fractions, Sequence) or not fractions:
        raise TypeError(f"fractions must be numbers, at least one, not {fractions!r}")
    for fraction in fractions:
        check_number("fractions", fraction)
    values = [0.0, *map(float, fractions), 1.0]
    if any(one >= another for one, another in pairwise(values)):
        raise ValueError(f"fractions must rise and lie between 0 and 1, but are {fractions!r}")
    return values[1:-1]


def _check_away(away: Tensor, images: Tensor) -> None:
    if not isinstance(away, Tensor) or away.dtype != torch.bool:
        came = away.dtype if isinstance(away, Tensor) else type(away).__name__
        raise TypeError(f"away must be a tensor of bool, not {came}")
    wanted = (len(images), *images.shape[2:])
    if away.shape != wanted:
        raise ValueError(f"away must be {wanted}, as the images, but is {tuple(away.shape)}")
    if away.flatten(1).all(1).any():
        raise ValueError("away must leave at least one pixel of each image, to guess from")
