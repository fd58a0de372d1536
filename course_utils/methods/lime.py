"""LIME: a linear model that approximates another model near an image, a text or a table's row.

The three differ in what a player is (a segment, a word, a column) and in how it is changed; then
`surrogate` fits the same weighted linear model to the scores of the model that is explained.
"""

import re
import unicodedata
import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils.contract import (
    Baseline,
    Estimate,
    Model,
    Target,
    check,
    check_count,
    check_generator,
    check_logits,
    check_number,
    check_whole,
    explaining,
    resolve_target,
    score_target,
    value_of,
    with_score,
)
from course_utils.methods.regions import Array, cover, labels_of
from course_utils.progress import in_batches

WIDTH = 0.25  # of the kernel, in cosine distance
RIDGE = 1e-6  # chooses between solutions that fit equally well; else it changes next to nothing


class Surrogate(NamedTuple):
    """A linear model g(z) = intercept + coefficients · z, and how well it fits."""

    coefficients: np.ndarray  # (P,), 0 for a player that was not chosen
    intercept: float
    r2: float  # share of the scores' weighted variance that it explains
    standard_error: np.ndarray  # (P,), of the coefficients; NaN for a player that was not chosen


def surrogate(
    z: Array,
    scores: Array,
    weights: Array,
    *,
    ridge: float = RIDGE,
    features: int | None = None,
) -> Surrogate:
    """The linear model that fits the scores best, by weighted least squares:

        min over w, b of Σₛ πₛ (f(zₛ) − b − w · zₛ)² + Ω(w)

    Ω is λ ‖w‖² with λ = ridge · v, where v = Σₛ πₛ (zₛ − z̄)², the mean over the players. So a
    coefficient is multiplied by about 1 / (1 + ridge), for any number of samples. The authors'
    package has λ = 1, which takes a few percent of w at hundreds of samples, and most of it at ten.
    With `features` also ‖w‖₀ ≤ features: the players are those of the last point on the lasso's
    path with at most so many coefficients; then these are fitted again without the lasso, because
    it makes coefficients too small.

    z: (S, P), for each sample which players are present, or real numbers. scores: f (S,), in any
    unit. weights: π (S,), as from `proximity`.
    The standard error is right also where f is not linear (a sandwich estimator): it estimates the
    standard deviation of a coefficient over repeated draws of the samples, with the same chosen
    players. It and r2 are NaN where they are not defined: for constant scores (r2 only), and where
    there are no more samples than coefficients and the intercept.

    Raises ValueError or TypeError naming the argument.
    Source: Ribeiro, Singh, Guestrin, "Why Should I Trust You?" Explaining the Predictions of Any
    Classifier, 2016; White, A Heteroskedasticity-Consistent Covariance Matrix Estimator, 1980.

    >>> z, scores, weights = np.array([[1], [1], [0]]), np.array([4, 8, 2]), np.array([1, 3, 4])
    >>> fit = lime.surrogate(z, scores, weights, ridge=0)
    >>> fit.coefficients.round(2), round(fit.intercept, 2)  # 7, a weighted mean, is 2 + 5
    (array([5.]), 2.0)
    >>> round(fit.r2, 2)  # 1 − 12 / 62
    0.81
    """
    z, scores, weights = _check_samples(z, scores, weights)
    samples, players = z.shape
    _check_omega(samples, players, ridge, features)
    center, level = np.average(z, 0, weights), float(np.average(scores, weights=weights))
    # About the weighted means the intercept is 0; √π on both sides makes the fit an ordinary one.
    root = np.sqrt(weights)
    x, y = root[:, None] * (z - center), root * (scores - level)
    total = weights.sum()
    if total - weights.max() < 1e-15 * total or not x.any():
        raise ValueError(
            "weights: one sample counts alone, or all that count are the same; widen the kernel or "
            "draw more samples"
        )
    penalty = ridge * (x**2).sum() / players
    chosen = _lasso_choice(x, y, features)
    x = x[:, chosen]
    # pinv: without ridge, and where a player was always or never present, its coefficient is 0.
    inverse = np.linalg.pinv(x.T @ x + penalty * np.eye(x.shape[1]), rcond=1e-12, hermitian=True)
    coefficients = np.zeros(players)
    coefficients[chosen] = inverse @ x.T @ y
    residual = y - x @ coefficients[chosen]

    standard_error, r2 = np.full(players, np.nan), np.nan
    free = samples - x.shape[1] - 1
    if free > 0:
        influence = inverse @ (x * residual[:, None]).T  # of each sample on each coefficient
        standard_error[chosen] = np.sqrt((influence**2).sum(1) * samples / free)
        if np.ptp(scores) > 0:
            r2 = float(1 - residual @ residual / (y @ y))
    return Surrogate(coefficients, float(level - coefficients @ center), r2, standard_error)


def _lasso_choice(x: np.ndarray, y: np.ndarray, features: int | None) -> np.ndarray:
    """Which players the surrogate may use: bool (P,)."""
    if features is None or features >= x.shape[1]:
        return np.ones(x.shape[1], bool)
    # Takes a second to import, and only a sparse surrogate needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path

    with warnings.catch_warnings():
        # The path may end early, once the scores are matched: what comes later is not needed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        used = lars_path(x, y, method="lasso")[2] != 0
    few = used.sum(0) <= features
    return used[:, np.flatnonzero(few)[-1]]


def cosine_distance(z: Array) -> np.ndarray:
    """The distance of samples (S, P) of 0 and 1 from the one where all are present: 1 − cos(z, 1).

    The cosine is √(share of players that are present); where none is, the distance is 1.

    >>> lime.cosine_distance(np.array([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]))
    array([0. , 0.5, 1. ])
    """
    return 1 - np.sqrt(_numbers("z", z).mean(1))


def proximity(distance: Array, width: float = WIDTH) -> np.ndarray:
    """The weight of a sample in the fit: π = exp(−D² / width²).

    The authors' package takes the square root of it, which equals ours at √2 times the width.

    >>> lime.proximity(np.array([0.0, 0.25, 0.5])).round(2)
    array([1.  , 0.37, 0.02])
    """
    _check_width("width", width)
    return np.exp(-((_numbers("distance", distance) / width) ** 2))


def sample_image(
    model: Model,
    image: Tensor,
    segments: Array | None = None,
    *,
    samples: int = 1000,
    baseline: Baseline | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's logits for an image with random segments hidden: one set of samples, all classes.

    From these samples several classes can be explained without running the model again:

        z, logits = sample_image(model, image, segments)
        for c in logits[0].topk(3).indices:
            w = surrogate(z, logits[:, c], proximity(cosine_distance(z))).coefficients

    image: (1, C, H, W). segments: labels (H, W). All arguments are as in `lime_image`.
    Returns z, bool (S, P), True where a segment is present, in ascending order of the labels, the
    first sample being the image itself; and the logits (S, K), float64, both on the CPU.

    Raises ValueError or TypeError naming the argument.
    Source: Ribeiro, Singh, Guestrin, "Why Should I Trust You?", 2016.

    >>> x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> segments = torch.tensor([[0, 0, 1]])
    >>> z, logits = lime.sample_image(lambda x: x.sum((2, 3)), x, segments, samples=3, baseline=0)
    >>> (z.double() @ torch.tensor([[3.0], [4.0]]).double() == logits).all()  # 3 and 4 where shown
    tensor(True)
    """
    check(model, image, black_box=True)
    if len(image) != 1:
        raise ValueError(f"image must be one, (1, C, H, W), but its shape is {tuple(image.shape)}")
    (labels,) = labels_of(segments, image)
    hidden = cover(baseline, image)
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    z = _draw(samples, _players(labels), check_generator(generator))
    with explaining(model), torch.no_grad():
        return z, _logits(model, image, labels, hidden, z, None, batch_size)


def lime_image_fit(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    segments: Array | None = None,
    samples: int = 1000,
    baseline: Baseline | None = None,
    kernel_width: float = WIDTH,
    ridge: float = RIDGE,
    features: int | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """What each segment adds to the target's logit, by a linear model fitted near the image.

        g(z) = b + Σᵢ wᵢ zᵢ ≈ f_c(the image with the segments where zᵢ = 0 hidden)

    Each segment is present with probability ½; the first sample is the image itself. Samples near
    it have larger weights (`proximity` of `cosine_distance`); `surrogate` is the fit. An image
    costs `samples` forward passes.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    segments: labels (H, W) for all images, or (N, H, W), any integers; None for
    `regions.segment` of each image. At least two, for the surrogate compares them.
    baseline: what hidden segments show, in model space: a number, a tensor broadcastable to the
    images, or None for the image's mean colour, the same for all its segments.
    kernel_width: in cosine distance; where it is small, only samples with few hidden segments
    count. ridge: the share by which coefficients are made smaller, roughly. features: the most
    segments whose coefficient is not 0. With no more samples than segments many surrogates fit
    equally well, and the ridge alone chooses one.
    generator: of the CPU, for the draws; None for one of seed 0. Images with equally many segments
    get the same draws.
    Returns an Estimate, of which `lime_image` returns the value alone: `value` (N, H, W), signed,
    in logits, where every pixel has its segment's coefficient; `standard_error` (N, H, W) of it;
    `r2` (N,) of the weighted fit (see `surrogate` for both).

    Raises ValueError or TypeError naming the argument.
    Source: Ribeiro, Singh, Guestrin, "Why Should I Trust You?" Explaining the Predictions of Any
    Classifier, 2016.

    >>> x, segments = torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.tensor([[0, 0, 1]])
    >>> found = lime.lime_image(lambda x: x.sum((2, 3)), x, segments=segments, baseline=0)
    >>> found.round(decimals=2)
    tensor([[[3., 3., 4.]]])
    """
    check(model, images, target, black_box=True)
    regions = labels_of(segments, images)
    hidden = cover(baseline, images)
    for labels in regions:
        _check_options(samples, _players(labels), kernel_width, ridge, features, batch_size)
    generator = check_generator(generator)

    model, target = with_score(model, target)
    start = generator.get_state()  # each image's, so that its draws do not depend on its batch
    with explaining(model), torch.no_grad():
        result, error = images.new_empty(2, *images[:, 0].shape)
        r2 = images.new_empty(len(images))
        for i, labels in enumerate(regions):
            z = _draw(samples, _players(labels), generator.set_state(start))
            one = slice(i, i + 1)
            logits = _logits(model, images[one], labels, hidden[one], z, target, batch_size)
            scores = score_target(logits, resolve_target(logits[:1], target, torch.tensor([i])))
            fit = surrogate(z, scores, _near(z, kernel_width), ridge=ridge, features=features)
            result[i] = torch.from_numpy(fit.coefficients)[labels]
            error[i] = torch.from_numpy(fit.standard_error)[labels]
            r2[i] = fit.r2
    return Estimate(result, standard_error=error, r2=r2)


lime_image = value_of(lime_image_fit)


def lime_text_fit(
    predict: Callable[[list[str]], Any],
    text: str,
    target: int | None = None,
    *,
    samples: int = 1000,
    kernel_width: float = WIDTH,
    ridge: float = RIDGE,
    features: int | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Estimate[list[tuple[str, float]]]:
    """What each word of a text adds to the target's score: `lime_image` with words for segments.

    A word is a sequence of letters, digits and inner apostrophes, of any script, with the accents
    and vowel signs that are characters of their own; where a script sets no spaces, put them
    between the words. It is removed everywhere in the text, in this spelling, and spaces and
    punctuation stay. Each word is present with probability ½; the first sample is the text itself.
    The authors' package draws how many words to remove, each number equally often, and measures
    distance in percent: their width of 25 is 0.25 here.

    predict: texts → scores or probabilities (B, K), an array or a tensor.
    target: a class, or None for the one with the highest score. `samples` counts texts; `predict`
    gets at most `batch_size` at a time. All other arguments are as in `lime_image`.
    Returns an Estimate, of which `lime_text` returns the value alone: `value`, a list of (word,
    coefficient) in the scores' unit, the largest in size first, at most `features`;
    `standard_error` of each coefficient, in the list's order; `r2` (1,).

    Raises ValueError or TypeError naming the argument.
    Source: Ribeiro, Singh, Guestrin, "Why Should I Trust You?", 2016.

    >>> def score(texts):
    ...     return np.array([[text.count("good") - 3 * text.count("dull")] for text in texts])
    >>> found = lime.lime_text(score, "good, good, dull")  # removes both "good" at once
    >>> [(word, round(coefficient, 2)) for word, coefficient in found]
    [('dull', -3.0), ('good', 2.0)]
    """
    _check_predict(predict, target)
    words = _words(text)
    _check_options(samples, len(words), kernel_width, ridge, features, batch_size)
    z = _draw(samples, len(words), check_generator(generator))
    texts = [_keep(text, {word for word, on in zip(words, row, strict=True) if on}) for row in z]
    scores = _scores(predict, texts, target, batch_size)
    fit = surrogate(z, scores, _near(z, kernel_width), ridge=ridge, features=features)
    order = np.argsort(-np.abs(fit.coefficients), kind="stable")[:features]
    result = [(words[i], float(fit.coefficients[i])) for i in order]
    r2 = torch.tensor([fit.r2], dtype=torch.float64)
    return Estimate(result, torch.from_numpy(fit.standard_error[order]), r2=r2)


lime_text = value_of(lime_text_fit)


def lime_tabular_fit(
    predict: Callable[[np.ndarray], Any],
    row: Array,
    data: Array,
    target: int | None = None,
    *,
    samples: int = 1000,
    kernel_width: float | None = None,
    ridge: float = RIDGE,
    features: int | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Estimate[np.ndarray]:
    """How the target's score changes near a row of a table, per standard deviation of each column.

        f(x + σ ⊙ z) ≈ b + w · z,     z ~ N(0, I),     π(z) = exp(−‖z‖² / width²)

    The first sample is the row itself, z = 0. σ is the standard deviation of the data's columns;
    one that does not vary is not changed and gets 0. Columns are changed independently, also where
    the data are correlated. The authors' package by default cuts columns into quartiles, draws from
    the whole data, and measures what it adds that a value lies in the row's quartile; ours is what
    it does with discretize_continuous=False, sample_around_instance=True: a smoothed gradient.

    predict: rows (B, F), float64 → scores or probabilities (B, K), an array or a tensor.
    row: (F,). data: (M, F), for σ alone. target: a class, or None for the highest score.
    kernel_width: None for the authors' 0.75 · √F. `samples` counts rows; `predict` gets at most
    `batch_size` at a time. All other arguments are as in `lime_image`.
    Returns an Estimate, of which `lime_tabular` returns the value alone: `value` (F,), in the
    scores' unit; `standard_error` (F,); `r2` (1,).

    Raises ValueError or TypeError naming the argument.
    Source: Ribeiro, Singh, Guestrin, "Why Should I Trust You?", 2016.

    >>> row, data = np.array([5.0, 1.0]), np.array([[0.0, 0.0], [2.0, 1.0]])  # σ is 1 and ½
    >>> found = lime.lime_tabular(lambda rows: rows @ np.array([[3.0], [4.0]]), row, data)
    >>> found.round(2)
    array([3., 2.])
    """
    _check_predict(predict, target)
    row, spread = _check_table(row, data)
    width = 0.75 * len(row) ** 0.5 if kernel_width is None else kernel_width
    _check_options(samples, len(row), width, ridge, features, batch_size)
    generator = check_generator(generator)
    z = torch.randn(samples, len(row), generator=generator, dtype=torch.float64).numpy()
    z *= spread > 0
    z[0] = 0
    scores = _scores(predict, row + spread * z, target, batch_size)
    weights = proximity(np.linalg.norm(z, axis=1), width)
    fit = surrogate(z, scores, weights, ridge=ridge, features=features)
    r2 = torch.tensor([fit.r2], dtype=torch.float64)
    return Estimate(fit.coefficients, torch.from_numpy(fit.standard_error), r2=r2)


lime_tabular = value_of(lime_tabular_fit)


def rank_agreement(maps: Array) -> float:
    """How similar the maps of several runs are: the mean over pairs of Spearman's rank correlation.

    maps: (R, …), R ≥ 2, one for each run, for instance of a stochastic method with R generators. 1
    means that all runs give the same order of places, 0 that their orders are unrelated. In maps of
    pixels a segment counts by its area; in coefficients (R, P) each counts once. NaN where a map is
    constant and has no order. `maps.std(0)` is the spread in the map's own unit.

    Raises ValueError or TypeError naming the argument.

    >>> round(lime.rank_agreement(np.array([[1, 2, 3], [10, 20, 90]])), 2)  # one order
    1.0
    >>> round(lime.rank_agreement(np.array([[1, 2, 3], [3, 2, 1]])), 2)
    -1.0
    """
    from scipy.stats import rankdata  # takes half a second to import

    values = _numbers("maps", maps)
    if values.ndim < 2 or len(values) < 2:
        raise ValueError(
            f"maps must be (R, …) of at least 2 runs, but their shape is {np.shape(maps)}"
        )
    ranks = rankdata(values.reshape(len(values), -1), axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1)
    if not length.all():
        return float("nan")
    return float(np.mean([a @ b for a, b in combinations(ranks / length[:, None], 2)]))


def _draw(samples: int, players: int, generator: torch.Generator) -> Tensor:
    """Which players are present: bool (S, P), each with probability ½, in the first sample all."""
    z = torch.rand(samples, players, generator=generator) < 0.5
    z[0] = True
    return z


def _players(labels: Tensor) -> int:
    return int(labels.max()) + 1


def _near(z: Tensor, kernel_width: float) -> np.ndarray:
    return proximity(cosine_distance(z), kernel_width)


def _logits(
    model: Model,
    image: Tensor,
    labels: Tensor,
    hidden: Tensor,
    z: Tensor,
    target: Target,
    batch_size: int,
) -> Tensor:
    """The logits (S, K) of an image (1, C, H, W) whose segments with z = False are hidden."""
    result = []
    labels = labels.to(image.device)
    for number in in_batches(len(z), batch_size):
        present = z[number].to(image.device)[:, labels]
        logits = check_logits(model(torch.where(present[:, None], image, hidden)))
        # A class that does not exist is said after the first call.
        resolve_target(logits[:1], target, torch.tensor([0]))
        result.append(logits.detach().cpu().double())
    return torch.cat(result)


def _scores(
    predict: Callable[[Any], Any],
    inputs: list[str] | np.ndarray,
    target: int | None,
    batch_size: int,
) -> Tensor:
    """The target's score (S,) of texts or rows."""
    result = []
    for number in in_batches(len(inputs), batch_size):
        part = inputs[number[0] : number[-1] + 1]
        answer = predict(part)
        if not isinstance(answer, np.ndarray | Tensor):
            raise TypeError(
                f"predict must return an array or a tensor, not {type(answer).__name__}"
            )
        if answer.ndim != 2 or len(answer) != len(part):
            raise ValueError(
                f"predict must return scores ({len(part)}, K) for {len(part)} inputs, but returned "
                f"the shape {tuple(answer.shape)}"
            )
        answer = torch.as_tensor(answer).detach().cpu().double()
        if target is None:
            target = int(answer[0].argmax())
        result.append(score_target(answer, target))
    return torch.cat(result)


def _word(text: str) -> re.Pattern[str]:
    r"""What a word of this text is.

    Accents and vowel signs may be characters of their own, combining marks, which \w does not
    match. They belong to the letter before. Letters may be joined by apostrophes, by the joiners of
    Indic and Persian spelling, and by hyphens that show only at the end of a line.
    """
    marks = [sign for sign in set(text) if unicodedata.category(sign).startswith("M")]
    letters = rf"\w[\w{''.join(sorted(marks))}]*"
    return re.compile(rf"{letters}(?:['’\u200c\u200d\u00ad]{letters})*")


def _words(text: str) -> list[str]:
    """The different words of a text, in the order in which they come."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    words = list(dict.fromkeys(_word(text).findall(text)))
    if not words:
        raise ValueError(f"text must hold at least one word, but is {text[:40]!r}")
    return words


def _keep(text: str, words: set[str]) -> str:
    return _word(text).sub(lambda word: word[0] if word[0] in words else "", text)


def _numbers(name: str, values: Array) -> np.ndarray:
    """A tensor or an array in double precision; ValueError or TypeError for what is not numbers."""
    if not isinstance(values, np.ndarray | Tensor):
        raise TypeError(f"{name} must be an array or a tensor, not {type(values).__name__}")
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold numbers, not {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return values.astype(float)


def _check_samples(
    z: Array, scores: Array, weights: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, scores, weights = (
        _numbers(name, values)
        for name, values in (("z", z), ("scores", scores), ("weights", weights))
    )
    if z.ndim != 2 or not z.size:
        raise ValueError(f"z must be (samples, players), at least one, but its shape is {z.shape}")
    for name, values in (("scores", scores), ("weights", weights)):
        if values.shape != (len(z),):
            raise ValueError(
                f"{name} must be ({len(z)},), one for each sample, but its shape is {values.shape}"
            )
    if weights.min() < 0 or not weights.any():
        raise ValueError("weights must not be negative, nor all 0")
    return z, scores, weights


def _check_omega(samples: int, players: int, ridge: float, features: int | None) -> None:
    check_number("ridge", ridge)
    if features is not None:
        check_count("features", features)
    check_count("samples", samples, lowest=2)  # the first is what is explained, with nothing hidden
    unknown = min(players, features or players) + 1
    if not ridge and samples < unknown:
        raise ValueError(
            f"samples is {samples}; without ridge it must be at least {unknown}, one for each "
            "coefficient and the intercept"
        )


def _check_options(
    samples: int,
    players: int,
    kernel_width: float,
    ridge: float,
    features: int | None,
    batch_size: int,
) -> None:
    check_whole("samples", samples)
    _check_omega(samples, players, ridge, features)
    _check_width("kernel_width", kernel_width)
    check_count("batch_size", batch_size)


def _check_width(name: str, width: float) -> None:
    check_number(name, width)
    if not width:
        raise ValueError(f"{name} is 0; it must be above 0")


def _check_predict(predict: Callable, target: int | None) -> None:
    if not callable(predict):
        raise TypeError(f"predict must be a function, not {type(predict).__name__}")
    if target is not None:
        check_whole("target", target)


def _check_table(row: Array, data: Array) -> tuple[np.ndarray, np.ndarray]:
    """The row (F,) and the spread of the data's columns (F,)."""
    row, data = _numbers("row", row), _numbers("data", data)
    if row.ndim != 1 or not row.size:
        raise ValueError(f"row must be (F,), one row of the table, but its shape is {row.shape}")
    if data.ndim != 2 or len(data) < 2 or data.shape[1] != len(row):
        raise ValueError(
            f"data must be (M, {len(row)}), at least 2 rows as long as row, but its shape is "
            f"{data.shape}"
        )
    # Of a constant column std may be a rounding error instead of 0.
    spread = np.where(np.ptp(data, 0) > 0, data.std(0), 0.0)
    if not spread.any():
        raise ValueError("data: no column varies, so there is nothing to change in the row")
    return row, spread
