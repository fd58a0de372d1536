"""Shapley values: how much each player contributes to what all of them reach together.

A game is a function v of coalitions: what the players in a coalition reach without the others. The
players may be an image's segments, the columns of a table, the parts of a scene. Shapley values are
the only shares that sum to v(all) − v(none), are equal for players who contribute the same to every
coalition, are zero for a player who contributes nothing, and add up when games are added.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, islice
from math import comb

import torch
from torch import Tensor, nn

from course_utils.contract import (
    Baseline,
    Estimate,
    Model,
    Target,
    as_background,
    batched_logits,
    check,
    check_count,
    check_generator,
    check_whole,
    explaining,
    predict_target,
    resolve_target,
    score_target,
    value_of,
    with_score,
)
from course_utils.methods import propagation, regions
from course_utils.progress import in_batches

Value = Callable[[Tensor], Tensor]

MOST_PLAYERS = 20


def exact_shapley(value: Value, players: int, *, batch_size: int = 16) -> Tensor:
    """Each player's mean contribution over all orders in which the players can join:

        φ_i = Σ_S |S|! (n − |S| − 1)! / n! · (v(S ∪ i) − v(S)),      S without i

    value: v, coalitions (B, players), bool, True for the players in it → (B,). It is computed once
    for each of the 2ⁿ coalitions, at most batch_size at a time. players: n, from 1 to 20.
    Returns (players,), float64, in v's unit.

    Raises ValueError or TypeError naming the argument.
    Source: Shapley, A Value for n-Person Games, 1953.

    >>> def pairs(s):  # two left gloves and a right one: how many pairs
    ...     return (s[:, 0] | s[:, 1]) & s[:, 2]
    >>> shapley.exact_shapley(pairs, 3)
    tensor([0.1667, 0.1667, 0.6667], dtype=torch.float64)
    """
    _check_value(value)
    check_count("players", players)
    if players > MOST_PLAYERS:
        raise ValueError(
            f"players is {players}; it must be at most {MOST_PLAYERS}, because exact values take "
            f"all 2^{players} coalitions; use kernel_shap"
        )
    check_count("batch_size", batch_size)
    return shapley_of_all(_values(value, all_coalitions(players), batch_size))


def all_coalitions(players: int) -> Tensor:
    """All coalitions (2ⁿ, n), bool: player i is in number k where bit i of k is 1."""
    number = torch.arange(2**players)
    return torch.stack([(number >> i) % 2 == 1 for i in range(players)], 1)


def shapley_of_all(v: Tensor) -> Tensor:
    """`exact_shapley` where v of `all_coalitions` is known, of one game or of K with these players.

    v: (2ⁿ,) or (2ⁿ, K), float64. Returns (n,) or (n, K).
    """
    players = len(v).bit_length() - 1
    coalitions, number = all_coalitions(players), torch.arange(len(v))
    size = coalitions.sum(1)
    # |S|! (n − |S| − 1)! / n! for |S| = 0 … n − 1
    weight = _double([1 / (players * comb(players - 1, s)) for s in range(players)])
    phi = torch.empty(players, *v.shape[1:], dtype=torch.float64)
    for i in range(players):
        without = number[~coalitions[:, i]]
        phi[i] = weight[size[without]] @ (v[without + 2**i] - v[without])
    return phi


def kernel_shap_fit(
    value: Value,
    players: int,
    *,
    samples: int = 2048,
    generator: torch.Generator | None = None,
    batch_size: int = 16,
) -> Estimate[Tensor]:
    """Shapley values as the weighted least squares fit of a sum of players to v:

        min_φ Σ_S π(S) (v(none) + Σ_{i∈S} φ_i − v(S))²,      Σ_i φ_i = v(all) − v(none),
        π(S) = (n − 1) / (C(n, |S|) |S| (n − |S|))

    Each coalition comes with its complement. All coalitions of the sizes 1 and n − 1 are used,
    where π is largest; then those of 2 and n − 2, and so on, as long as the remaining samples,
    divided by weight, are enough for all of that size. The rest is drawn from the other sizes, in
    proportion to their weights, none twice. Exact where 2ⁿ ≤ samples.

    value: v, coalitions (B, players), bool, True for the players in it → (B,). players: n.
    samples: the most coalitions for which v is computed, the empty and the full one included; at
    least 2 n + 2, or 2ⁿ where that is less.
    generator: of the CPU, None means seed 0; one number is taken from it.
    Returns an Estimate, of which `kernel_shap` returns the value alone: `value` (players,),
    float64, in v's unit, which always sums to v(all) − v(none); `r2` (), the share of v's weighted
    variance that the fit explains, over the coalitions between none and all: negative where their
    mean would fit better, NaN where v does not vary.

    Raises ValueError or TypeError naming the argument.
    Source: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017; complements:
    Covert, Lee, Improving KernelSHAP, 2021.

    >>> def pairs(s):  # two left gloves and a right one: how many pairs
    ...     return (s[:, 0] | s[:, 1]) & s[:, 2]
    >>> found = shapley.kernel_shap_fit(pairs, 3)
    >>> found.value
    tensor([0.1667, 0.1667, 0.6667], dtype=torch.float64)
    >>> round(found.r2.item(), 2)  # the number of pairs is not a sum over gloves
    0.5
    """
    _check_value(value)
    check_count("players", players)
    _check_samples(samples, players)
    check_count("batch_size", batch_size)
    coalitions, weights = _coalitions(players, samples, _seed(generator))
    v = _values(value, coalitions, batch_size)
    phi, r2 = _fit(coalitions, weights, v)
    return Estimate(phi, r2=r2)


kernel_shap = value_of(kernel_shap_fit)


def shap_image_fit(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    segments: regions.Array | None = None,
    samples: int = 2048,
    baseline: Baseline | None = None,
    background: Tensor | None = None,
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate[Tensor]:
    """The Shapley values of an image's segments, by `kernel_shap`:

        v(S) = f_c(the image where only the segments in S are shown)

    What the hidden segments show instead defines what "absent" means, and changes the result: one
    colour, `baseline=Classifier.blurred(images)`, or background images; v(S) is their mean then.

    model: images → logits (N, K), a module or any function. images: (N, C, H, W), in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or a function of what the
    model returns, as in `gradients.gradient`.
    segments: labels (H, W) for all images or (N, H, W), any integers; None for `regions.segment` of
    each image, about 50.
    samples: forward passes of an image, that of the whole image included; see `kernel_shap`.
    baseline: what hidden segments show, in model space: None for the image's mean colour, a number
    or a tensor broadcastable to the images.
    background: (M, C, H, W), in place of baseline; each coalition then takes M passes, not one.
    generator: of the CPU, None means seed 0; images with equally many segments get the same draws.
    Returns an Estimate, of which `shap_image` returns the value alone: `value` (N, H, W), signed,
    in logits, where every pixel has its segment's whole value, so that the segments' values, each
    counted once, sum to f_c(x) − f_c(all hidden); `r2` (N,) of the fits, as in `kernel_shap`.

    Raises ValueError or TypeError naming the argument.
    Source: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017.

    >>> x, segments = torch.tensor([[[[1.0, 2.0, 4.0]]]]), torch.tensor([[0, 0, 1]])
    >>> shapley.shap_image(lambda x: x.amax((2, 3)), x, segments=segments, baseline=0)
    tensor([[[1., 1., 3.]]])
    """
    check(model, images, target, black_box=True)
    absent = _absent(baseline, background, images)
    check_whole("samples", samples)
    check_count("batch_size", batch_size)
    generator = check_generator(generator)
    labels = regions.labels_of(segments, images)
    players = [int(label.max()) + 1 for label in labels]
    _check_samples(samples, max(players))
    seed = _seed(generator)  # the same draws, whatever other images there are
    tables = {n: _coalitions(n, samples, seed) for n in set(players)}
    model, target = with_score(model, target)

    with explaining(model), torch.no_grad():
        images = images.detach()
        result, r2 = torch.empty_like(images[:, 0]), images.new_empty(len(images))
        # The coalition of all is the image itself, and that pass also says what its class is.
        logits = batched_logits(model, images, batch_size)
        classes = resolve_target(logits, target)
        full = score_target(logits, classes).cpu().double()
        for i, label in enumerate(labels):
            coalitions, weights = tables[players[i]]
            game = _game(model, images[i], label, absent[:, i], classes[i : i + 1])
            v = _values(game, coalitions[:-1], batch_size, "model")
            phi, r2[i] = _fit(coalitions, weights, torch.cat([v, full[i : i + 1]]))
            result[i] = phi[label]
    return Estimate(result, r2=r2)


shap_image = value_of(shap_image_fit)


def deep_shap(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    background: Tensor,
    batch_size: int = 16,
) -> Tensor:
    """DeepLIFT from an expectation instead of one baseline: the mean of its maps over a background.

        φ = 1/K Σₖ deeplift(x, x'ₖ),      Σ φ = f_c(x) − 1/K Σₖ f_c(x'ₖ)

    It approximates the pixels' Shapley values where "absent" means "as in another image"; in a
    network that is not linear it is not equal to them.

    Arguments as `propagation.deeplift`. background: x'ₖ, (K, C, H, W) or broadcastable to it, in
    model space, such as ordinary images; all images are compared with all of them. An image costs
    K (1 F + 1 B), B being a forward and a backward pass, and 1 F more where the target is None.
    Returns (N, C, H, W), signed, in logits.

    Raises ValueError or TypeError naming the argument; ValueError for an operation without a rule.
    Source: Lundberg, Lee, A Unified Approach to Interpreting Model Predictions, 2017.

    >>> x, others = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    >>> shapley.deep_shap(nn.Flatten(), x, target=1, background=others)  # 3 − (0 + 2) / 2
    tensor([[[[0., 2.]]]])
    """
    check(model, images, target)
    background = as_background("background", background, images)
    check_count("batch_size", batch_size)
    with explaining(model):
        images = images.detach()
        classes = predict_target(model, images, target, batch_size)
        total = torch.zeros_like(images)
        # All images with one baseline, then the next: a batch with a single one runs it once.
        for number in in_batches(len(images) * len(background), batch_size):
            other, image = number // len(images), number % len(images)
            maps = propagation.deeplift(
                model, images[image], classes[image], baseline=background[other]
            )
            total.index_add_(0, image.to(images.device), maps)
    return total / len(background)


def _coalitions(players: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """The coalitions to use (M, players), the empty one first, the full one last; weights (M,).

    All coalitions of a size s weigh Σ π(S) = (n − 1) / (s (n − s)) together. Sizes s and n − s are
    taken together; the drawn coalitions share the weight of the sizes they are drawn from.
    """
    generator = torch.Generator().manual_seed(seed)
    left = (samples - 2) // 2  # pairs of a coalition and its complement
    chosen, weights = [torch.zeros(1, players, dtype=torch.bool)], [_double([0])]

    def add(coalitions: Tensor, weight: float) -> None:
        chosen.extend([coalitions, ~coalitions])
        weights.append(_double([weight]).expand(2 * len(coalitions)))

    sizes = list(range(1, players // 2 + 1))
    while sizes:
        size, pairs = sizes[0], _pairs(players, sizes[0])
        # Its share of what is left, by weight: else too few would stand for the other sizes.
        share = left * _mass(players, size) / sum(_mass(players, other) for other in sizes)
        if size > 1 and share < pairs - 1e-9:
            break
        sizes.pop(0)
        # Where complements are as large, the first half, in this order, holds player 0.
        members = islice(combinations(range(players), size), pairs)
        add(_of_members(list(members), players), _mass(players, size) / (2 * pairs))
        left -= pairs
    if sizes and left:
        mass = _double([_mass(players, size) for size in sizes])
        weight = float(mass.sum()) / (2 * left)
        for size, pairs in zip(sizes, _shares(mass, left, generator), strict=True):
            add(_drawn(players, size, pairs, generator), weight)
    chosen.append(torch.ones(1, players, dtype=torch.bool))
    weights.append(_double([0]))
    return torch.cat(chosen), torch.cat(weights)


def _double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _pairs(players: int, size: int) -> int:
    """How many pairs of a coalition of that size and its complement there are."""
    return comb(players, size) // (2 if 2 * size == players else 1)


def _mass(players: int, size: int) -> float:
    """The sum of π over the coalitions of these pairs."""
    return (players - 1) / (size * (players - size)) * (1 if 2 * size == players else 2)


def _shares(mass: Tensor, total: int, generator: torch.Generator) -> list[int]:
    """Whole numbers that sum to `total`, each within 1 of its share, and on average equal to it."""
    edges = total * mass.cumsum(0) / mass.sum()
    edges[-1] = total
    passed = (edges - torch.rand((), generator=generator, dtype=torch.float64)).ceil().long()
    return passed.diff(prepend=torch.zeros(1, dtype=torch.long)).tolist()


def _drawn(players: int, size: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Different coalitions of that size (pairs, players), of which none is another's complement."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < pairs:
        rank = torch.rand(pairs, players, generator=generator)
        if 2 * size == players:
            rank[:, 0] = -1  # player 0 is always in, and so never in a complement
        members = rank.argsort(1)[:, :size].sort(1).values
        found.update(dict.fromkeys(map(tuple, members.tolist())))
    return _of_members(list(found)[:pairs], players)


def _of_members(members: Sequence[tuple[int, ...]], players: int) -> Tensor:
    coalitions = torch.zeros(len(members), players, dtype=torch.bool)
    return coalitions.scatter_(1, torch.tensor(members), True) if len(members) else coalitions


def _fit(coalitions: Tensor, weights: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted least squares fit φ (players,) that sums to v(all) − v(none), and its R²."""
    inside, gain, weights = coalitions[1:-1].double(), v[1:-1] - v[0], weights[1:-1]
    total = v[-1] - v[0]
    # The last unknown is what the others leave: φ_n = total − Σ φ_i.
    a, b = inside[:, :-1] - inside[:, -1:], gain - inside[:, -1] * total
    weighted = (weights[:, None] * a).T
    phi = torch.linalg.solve(weighted @ a, weighted @ b)
    phi = torch.cat([phi, (total - phi.sum())[None]])

    residual = gain - inside @ phi
    deviation = gain - (weights @ gain) / weights.sum()
    r2 = 1 - (weights @ residual**2) / (weights @ deviation**2)
    varies = (deviation.abs() > 1e-12 * v.abs().max()).any()  # by more than rounding
    return phi, r2.where(varies, torch.nan)


def _values(value: Value, coalitions: Tensor, batch_size: int, name: str = "value") -> Tensor:
    """v of the coalitions (M, players), a few at a time: (M,), float64 on the CPU."""
    v = torch.empty(len(coalitions), dtype=torch.float64)
    for number in in_batches(len(coalitions), batch_size):
        answers = value(coalitions[number])
        if not isinstance(answers, Tensor) or answers.shape != number.shape:
            is_tensor = isinstance(answers, Tensor)
            came = f"shape {tuple(answers.shape)}" if is_tensor else type(answers).__name__
            raise ValueError(
                f"{name} must return a tensor of one number for each coalition, shape "
                f"({len(number)},), but returned {came}"
            )
        v[number] = answers.detach().cpu().double()
    if not v.isfinite().all():
        raise ValueError(f"{name} must return finite numbers, but returned NaN or infinity")
    return v


def _game(model: Model, image: Tensor, label: Tensor, absent: Tensor, c: Tensor) -> Value:
    """v of one image's segments: the logit of class c where only those in the coalition are seen.

    image: (C, H, W). c: (1,), or (1, 2) for a difference. absent: what hidden segments show
    (D, C, H, W); v is the mean over the D.
    """
    label = label.to(image.device)

    def value(coalitions: Tensor) -> Tensor:
        seen = coalitions.to(image.device)[:, label][:, None]
        scores = [score_target(model(torch.where(seen, image, other)), c) for other in absent]
        return torch.stack(scores).cpu().double().mean(0)

    return value


def _absent(baseline: Baseline | None, background: Tensor | None, images: Tensor) -> Tensor:
    """What hidden segments show: (D, N, C, H, W), one baseline or D background images."""
    if background is None:
        return regions.cover(baseline, images)[None]
    if baseline is not None:
        raise ValueError(
            "baseline and background exclude each other: hidden segments show one of them"
        )
    others = as_background("background", background, images)
    return others[:, None].expand(-1, *images.shape)


def _check_value(value: Value) -> None:
    if not callable(value):
        raise TypeError(
            "value must be a function of coalitions (B, players) that returns (B,), not "
            f"{type(value).__name__}"
        )


def _check_samples(samples: int, players: int) -> None:
    check_whole("samples", samples)
    fewest = min(2**players, 2 * players + 2)
    if samples < fewest:
        raise ValueError(
            f"samples is {samples}; for {players} players it must be at least {fewest}: nobody, "
            "all, each player alone, and all but each"
        )


def _seed(generator: torch.Generator | None) -> int:
    return int(torch.randint(2**62, (), generator=check_generator(generator)))
