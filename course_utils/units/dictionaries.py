"""Dictionaries of features: directions of which every position of a layer's maps uses a few.

At each of its positions a layer gives a vector a of C activations. A **dictionary** writes a as a
sum of few of F directions d (its atoms, of length 1), each times a number f ≥ 0 (its **feature**):

    a ≈ offset + Σ_i f_i · d_i

A unit is the atom along its own axis. Where a layer keeps more features than it has units (they are
in **superposition**), no axis need be a feature, and a dictionary may find those that are.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from course_utils.contract import check_count, check_generator, check_number
from course_utils.progress import counted
from course_utils.worlds.scenes import LOOKS, SHAPES, Scene

POSITIONS = 8192  # of which a factorisation is made: more of them change little and take long
SWEEPS = 100  # through all coordinates, to find the features of a position


class Dictionary(NamedTuple):
    """Directions among C channels, and how much of each is at every position of maps."""

    atoms: Tensor  # (F, C), each of length 1
    offset: Tensor  # (C,) what is there without any feature
    encode: Callable[[Tensor], Tensor]  # maps (N, C, H, W) → features (N, F, H, W), none negative
    explained: float  # share of the maps' variance, over all positions; NaN where there is none
    active: float  # features above 0 at a position, on average
    dead: int  # features that are 0 at every position


def decode(dictionary: Dictionary, features: Tensor) -> Tensor:
    """The maps (N, C, H, W) that features (N, F, H, W) make: offset + Σ_i f_i · d_i.

    >>> axes = dictionaries.Dictionary(torch.eye(2), torch.tensor([0.0, 5.0]), torch.relu, 1, 1, 0)
    >>> dictionaries.decode(axes, torch.tensor([[[[3.0]], [[1.0]]]])).flatten()
    tensor([3., 6.])
    """
    atoms, offset = dictionary.atoms.to(features), dictionary.offset.to(features)
    return torch.einsum("nfhw,fc->nchw", features, atoms) + offset[:, None, None]


def nmf(
    maps: Tensor,
    features: int = 32,
    *,
    steps: int = 200,
    generator: torch.Generator | None = None,
) -> Dictionary:
    """A dictionary by non-negative matrix factorisation of maps (N, C, H, W) that are not negative.

    A (P, C) holds the maps at P of their N · H · W positions, at most `POSITIONS` drawn at random:

        min ‖A − F D‖²   over  F (P, features) ≥ 0  and  D (features, C) ≥ 0

    Atoms are the rows of D, scaled to length 1, and the offset is 0. Nothing can be subtracted, so
    atoms are parts. `encode` keeps D and finds F alone, which has one answer wherever the atoms are
    linearly independent. `features` may be as many as channels, and 1 at least; with as many, the
    axes themselves explain everything. steps: the most that scikit-learn takes.

    Raises ValueError for negative maps: take those after a ReLU. TypeError for no tensor.
    Source: Lee, Seung, Learning the Parts of Objects by Non-Negative Matrix Factorization, 1999;
    for explanations: Fel et al., CRAFT, 2023, of the mean activations of crops.
    """
    from sklearn.decomposition import NMF  # takes a second to import, and few lectures need it
    from sklearn.exceptions import ConvergenceWarning

    rows = _rows(maps)
    check_count("features", features)
    check_count("steps", steps)
    generator = check_generator(generator)
    if features > min(rows.shape):
        raise ValueError(
            f"features is {features}; a factorisation has at most as many as there are channels "
            f"and positions, {min(rows.shape)} here; sparse_autoencoder can have more"
        )
    _check_not_negative(maps)
    drawn = rows[torch.randperm(len(rows), generator=generator)[:POSITIONS]].cpu().numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    # From the singular vectors, yet without the mean in place of their zeros ("nndsvda"): there the
    # descent may end where two atoms are the same, as on two features that never meet.
    model = NMF(features, init="nndsvdar", max_iter=steps, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():  # that `steps` were not enough for it: they are what was asked
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(drawn)
    atoms = F.normalize(torch.from_numpy(model.components_).to(rows), dim=1)

    def encode(maps: Tensor) -> Tensor:
        _check_not_negative(maps)
        return _as_maps(_nonnegative(_rows(maps, atoms.shape[1]).to(atoms), atoms), maps)

    return _measured(Dictionary(atoms, torch.zeros_like(atoms[0]), encode, 0, 0, 0), maps)


def sparse_autoencoder(
    maps: Tensor,
    features: int = 128,
    *,
    active: int = 4,
    steps: int = 600,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    generator: torch.Generator | None = None,
) -> Dictionary:
    """A dictionary by a sparse autoencoder of maps (N, C, H, W), trained here.

    Of each position's vector a (C,) it keeps the `active` (k) strongest features and rebuilds a:

        f = top_k(ReLU(W (a − b) + c)),    â = b + Σ_i f_i · d_i with ‖d_i‖ = 1,    min ‖a − â‖²

    by Adam over W (features, C), c, b (the offset) and the atoms d, in `steps` batches of random
    positions; the learning rate falls to 0 in the last third. W starts at the atoms, which start at
    random, and b at the mean. There may be more features than channels, and maps may be
    negative. Another generator gives another dictionary. Features that no position uses any more
    are counted as `dead`.

    Raises ValueError or TypeError naming the argument.
    Source: Bricken et al., Towards Monosemanticity, 2023; Cunningham et al., 2023; top_k in place
    of an L1 penalty: Gao et al., Scaling and Evaluating Sparse Autoencoders, 2024.
    """
    rows = _rows(maps)
    _check_active(active, features)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_number("learning_rate", learning_rate)
    generator = check_generator(generator)
    mean = rows.mean(0)
    # The same learning rate does for any layer where its activations have length 1 on average.
    scale = (rows - mean).square().sum(1).mean().sqrt().clamp_min(1e-12)
    start = torch.randn(features, rows.shape[1], generator=generator).to(rows)
    d = F.normalize(start, dim=1).requires_grad_()
    w, b = d.detach().clone().requires_grad_(), (mean / scale).requires_grad_()
    c = torch.zeros(features).to(rows).requires_grad_()
    adam = torch.optim.Adam([w, c, b, d], lr=learning_rate)
    slower = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min(1, 3 * (1 - s / steps)))
    with torch.enable_grad():
        for _ in counted(range(steps), "step"):
            drawn = torch.randint(len(rows), (batch_size,), generator=generator)
            a = rows[drawn.to(rows.device)] / scale
            f = _strongest(a, w, b, c, active)
            loss = (a - b - f @ F.normalize(d, dim=1)).square().sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            slower.step()
    w, b, c, atoms = w.detach(), b.detach(), c.detach(), F.normalize(d.detach(), dim=1)

    def encode(maps: Tensor) -> Tensor:
        found = _strongest(_rows(maps, len(b)).to(b) / scale, w, b, c, active)
        return _as_maps(found * scale, maps)

    return _measured(Dictionary(atoms, b * scale, encode, 0, 0, 0), maps)


def units(maps: Tensor) -> Dictionary:
    """The dictionary that a layer comes with: atom i is the axis of unit i, its feature the unit.

    What is negative in the maps (N, C, H, W) is no feature's.
    """
    axes = torch.eye(_rows(maps).shape[1]).to(maps.device)

    def encode(maps: Tensor) -> Tensor:
        return _as_maps(_rows(maps, len(axes)).relu(), maps)

    return _measured(Dictionary(axes, torch.zeros_like(axes[0]), encode, 0, 0, 0), maps)


def examples(
    maps: Tensor,
    features: int = 128,
    *,
    active: int = 4,
    generator: torch.Generator | None = None,
) -> Dictionary:
    """The control of a dictionary: nothing is learned, the atoms are activations of random places.

    With m the mean of the maps (N, C, H, W) over positions and a_i the vector at random place i:

        d_i = (a_i − m) / ‖a_i − m‖,    f = top_k(ReLU(d · (a − m)))

    What a learned dictionary does no better than this one, learning did not bring.
    """
    rows = _rows(maps)
    _check_active(active, features)
    generator = check_generator(generator)
    mean = rows.mean(0)
    chosen = torch.randint(len(rows), (features,), generator=generator).to(rows.device)
    atoms = F.normalize(rows[chosen] - mean, dim=1)
    zero = torch.zeros_like(atoms[:, 0])

    def encode(maps: Tensor) -> Tensor:
        return _as_maps(
            _strongest(_rows(maps, len(mean)).to(mean), atoms, mean, zero, active), maps
        )

    return _measured(Dictionary(atoms, mean, encode, 0, 0, 0), maps)


def found_again(dictionary: Dictionary, atoms: Tensor) -> Tensor:
    """How near a dictionary comes to each of some directions (M, C): (M,), the largest cosine.

    1: it is an atom. Of two dictionaries trained from different starts, how alike they are.

    >>> axes = dictionaries.units(torch.rand(1, 2, 3, 3))
    >>> dictionaries.found_again(axes, torch.tensor([[0.0, 2.0], [3.0, 4.0]]))
    tensor([1.0000, 0.8000])
    """
    mine = dictionary.atoms
    if not isinstance(atoms, Tensor) or atoms.ndim != 2 or atoms.shape[1] != mine.shape[1]:
        came = tuple(atoms.shape) if isinstance(atoms, Tensor) else type(atoms).__name__
        raise ValueError(f"atoms must be directions (M, {mine.shape[1]}), but are {came}")
    return (F.normalize(atoms.to(mine), dim=1) @ mine.T).amax(1)


def _strongest(a: Tensor, w: Tensor, b: Tensor, c: Tensor, k: int) -> Tensor:
    """top_k(ReLU(W (a − b) + c)): all but the k strongest features of each row are 0."""
    f = ((a - b) @ w.T + c).relu()
    values, places = f.topk(k, dim=1)
    return torch.zeros_like(f).scatter(1, places, values)


def _nonnegative(rows: Tensor, atoms: Tensor) -> Tensor:
    """argmin ‖a − f D‖² over f ≥ 0 for each row a: one coordinate after the other, again and again.

    A fixed number of times, so that a position's features do not depend on the others'.
    """
    gram, wanted = atoms @ atoms.T, rows @ atoms.T
    f = torch.zeros_like(wanted).T.contiguous()  # (F, P): a feature's numbers lie side by side
    wanted = wanted.T.contiguous()
    for _ in range(SWEEPS):
        for i in range(len(f)):
            # The atoms have length 1: the gradient is also the step to the lowest point.
            f[i] = (f[i] + wanted[i] - gram[i] @ f).clamp_(min=0)
    return f.T


def _measured(dictionary: Dictionary, maps: Tensor) -> Dictionary:
    """The dictionary with what it explains of these maps, and how many of its features they use."""
    features = dictionary.encode(maps)
    rows, made = _rows(maps), _rows(decode(dictionary, features))
    spread = (rows - rows.mean(0)).square().sum()
    on = _rows(features) > 0
    return dictionary._replace(
        explained=float(1 - (rows - made).square().sum() / spread) if spread else float("nan"),
        active=float(on.sum(1).double().mean()),
        dead=int((~on.any(0)).sum()),
    )


def _rows(maps: Tensor, channels: int | None = None) -> Tensor:
    """Maps (N, C, H, W) as one vector a position, (N · H · W, C), in single precision at least."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        came = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"maps must be a floating point tensor (N, C, H, W), not {came}")
    if maps.ndim != 4 or not maps.numel():
        raise ValueError(
            f"maps must be (N, C, H, W) and not empty, but their shape is {tuple(maps.shape)}; "
            "features.feature_maps gives those of a layer"
        )
    if channels not in (None, maps.shape[1]):
        raise ValueError(
            f"maps have {maps.shape[1]} channels, but the dictionary is of a layer with {channels}"
        )
    if not maps.isfinite().all():
        raise ValueError("maps must be finite, but hold NaN or infinity")
    rows = maps.detach().permute(0, 2, 3, 1).flatten(0, 2)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _check_not_negative(maps: Tensor) -> None:
    if (maps < 0).any():
        raise ValueError(
            f"maps must not be negative for nmf, but their lowest is {float(maps.min()):.2g}; "
            "take a layer's output after its ReLU, or sparse_autoencoder"
        )


def _check_active(active: int, features: int) -> None:
    check_count("features", features)
    check_count("active", active)
    if active > features:
        raise ValueError(f"active is {active}; of {features} features at most {features} can be")


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    """The way back: (N · H · W, F) as (N, F, H, W), in the type and on the device of the maps."""
    n, _, height, width = like.shape
    return rows.unflatten(0, (n, height, width)).permute(0, 3, 1, 2).to(like)


# What is known of scenes ---------------------------------------------------------------------


def places(scene: Scene, cells: int) -> dict[str, NDArray[np.bool_]]:
    """Where a scene shows each concept: (cells, cells) bool, True where half a cell shows it.

    "class zebra" and "shape horse" are where the object or its companion is, "part legs" and
    "texture stripes" where the object's parts are and those that its texture covers, "place
    savanna" is where nothing but the background is. Concepts that fill no cell are left out.

    Raises ValueError where the picture's pixels cannot be dealt to so many cells.
    """
    check_count("cells", cells)
    side, spec = len(scene.mask), scene.spec
    if side % cells:
        raise ValueError(f"cells is {cells}, but a scene of {side} pixels has no such cells")
    parts, masks = scene.parts, {f"class {spec.label}": scene.mask}
    masks[f"shape {spec.shape}"] = scene.mask
    plain = "texture" in spec.removed or not spec.contrast
    texture = f"texture {'plain' if plain else spec.texture}"
    for part in SHAPES[spec.shape]:
        if part.name in parts:
            masks[f"part {part.name}"] = parts[part.name]
            if part.paint == "texture":
                masks[texture] = masks.get(texture, np.zeros_like(scene.mask)) | parts[part.name]
    if "companion" in parts:
        for name in (f"class {spec.companion}", f"shape {LOOKS[spec.companion].shape}"):
            masks[name] = masks.get(name, np.zeros_like(scene.mask)) | parts["companion"]
    if "background" not in spec.removed:
        masks[f"place {spec.background}"] = ~np.any([scene.mask, *parts.values()], axis=0)
    blocks = (cells, side // cells, cells, side // cells)
    found = {name: mask.reshape(blocks).mean((1, 3)) >= 0.5 for name, mask in masks.items()}
    return {name: mask for name, mask in found.items() if mask.any()}


class Match(NamedTuple):
    """For each of K concepts the one feature that marks its places best, judged on N pictures."""

    feature: NDArray[np.int64]  # (K,) chosen on other pictures, as its threshold was
    threshold: NDArray[np.float64]  # (K,) it marks the places where it is above
    shared: NDArray[np.float64]  # (N, K) cells marked that show the concept
    either: NDArray[np.float64]  # (N, K) cells marked or showing the concept

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union, over all pictures: (K,)."""
        return self.shared.sum(0) / self.either.sum(0)


LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)  # shares of places below a threshold


def match(features: Tensor, masks: Tensor) -> Match:
    """The feature (N, F, H, W) that matches each concept (N, K, H, W; bool) best in its places.

    On the first half of the pictures a feature and a threshold are chosen for each concept, those
    with the largest intersection over union; the second half judges them. So it is no advantage to
    have more features to choose from by luck. Thresholds: the quantiles `LEVELS` of each feature.

    Raises ValueError or TypeError naming the argument, also for a concept that a half never shows.
    Source: Bau et al., Network Dissection, 2017, which has one threshold a unit and no second half.
    """
    rows = _rows(features)
    wanted = (len(features), *features.shape[2:])
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        came = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks must be a bool tensor (N, K, H, W), not {came}")
    if masks.ndim != 4 or (len(masks), *masks.shape[2:]) != wanted:
        raise ValueError(
            f"masks must be (N, K, H, W) with the features' N, H and W, {wanted}, but their shape "
            f"is {tuple(masks.shape)}"
        )
    half, cells = len(features) // 2, features[0, 0].numel()
    for shown in (masks[:half], masks[half:]):
        if not (there := shown.any(3).any(2).any(0)).all():
            never = int((~there).nonzero()[0])
            raise ValueError(f"masks: concept {never} is in no picture of one half")
    known = _rows(masks.float()).to(rows)
    first, truth = rows[: half * cells], known[: half * cells]
    # torch.quantile refuses more than 16 million numbers.
    thresholds = torch.from_numpy(np.quantile(first.cpu().numpy(), LEVELS, axis=0)).to(first)
    ious = torch.stack(
        [_iou((first > level).to(first), truth) for level in thresholds]
    )  # (L, F, K)
    best = ious.flatten(0, 1).argmax(0).cpu()  # (K,)
    level, feature = best // rows.shape[1], best % rows.shape[1]
    threshold = thresholds.cpu()[level, feature]
    on = features[half:, feature].cpu() > threshold.to(features.dtype)[:, None, None]
    truth = masks[half:].cpu()
    shared, either = (on & truth).flatten(2).sum(2), (on | truth).flatten(2).sum(2)
    return Match(
        *(feature.numpy(), threshold.double().numpy()),
        *(shared.double().numpy(), either.double().numpy()),
    )


def _iou(on: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of every feature (P, F) with every concept (P, K): (F, K)."""
    shared = on.T @ truth
    return shared / (on.sum(0)[:, None] + truth.sum(0) - shared)


def better_by(
    one: Match, other: Match, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """By how much one dictionary's mean IoU over concepts is higher: (difference, low, high).

    The interval of 95 % is a paired bootstrap: pictures and concepts are drawn again with
    replacement, the same for both.
    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    if one.shared.shape != other.shared.shape:
        raise ValueError(
            f"other must be of the same pictures and concepts, {one.shared.shape}, but is of "
            f"{other.shared.shape}"
        )
    check_count("resamples", resamples)
    generator, (n, k) = np.random.default_rng(seed), one.shared.shape
    pictures = generator.multinomial(n, np.full(n, 1 / n), resamples)  # how often each is drawn
    concepts = generator.multinomial(k, np.full(k, 1 / k), resamples)

    def means(match: Match) -> NDArray[np.float64]:
        shared, either = pictures @ match.shared, pictures @ match.either
        iou = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
        return (concepts * iou).sum(1) / k

    low, high = np.quantile(means(one) - means(other), [0.025, 0.975])
    return float((one.iou - other.iou).mean()), float(low), float(high)


# Superposition -------------------------------------------------------------------------------


class Superposition(NamedTuple):
    """Networks that keep n features in m dimensions, one for each of D densities."""

    weights: Tensor  # (D, m, n): column i is the direction in which feature i is kept
    bias: Tensor  # (D, n)
    loss: Tensor  # (D,) of the last batches

    @property
    def kept(self) -> Tensor:
        """How much of each feature is kept, ‖W_i‖: (D, n), about 1 or about 0."""
        return self.weights.norm(dim=1)

    @property
    def shared(self) -> Tensor:
        """How much the others share a feature's direction, Σ_{j≠i} (Ŵ_i · W_j)²: (D, n)."""
        directions = F.normalize(self.weights, dim=1)
        overlap = torch.einsum("dmi,dmj->dij", directions, self.weights).square()
        return overlap.sum(2) - overlap.diagonal(dim1=1, dim2=2)


def superposition(
    densities: Sequence[float],
    features: int = 5,
    dimensions: int = 2,
    *,
    decay: float = 0.9,
    steps: int = 1500,
    batch_size: int = 512,
    learning_rate: float = 0.02,
    generator: torch.Generator | None = None,
) -> Superposition:
    """The toy in which superposition is seen: n = features squeezed through m = dimensions.

        x' = ReLU(Wᵀ W x + b),    min Σ_i decay^i (x_i − x'_i)²

    x_i is uniform from 0 to 1 with probability `density`, else 0. Where features are dense, the m
    most important get a dimension each and the rest are dropped; where they are sparse, they seldom
    meet, and more than m are kept, with directions that are not orthogonal. Trained by Adam on all
    densities at once, from the same start and on the same batches up to the density. A descent may
    end with a feature fewer than there is room for: at density 0.05, from seed 4 of 0 to 7.

    Raises ValueError or TypeError naming the argument.
    Source: Elhage et al., Toy Models of Superposition, 2022.
    """
    for density in densities:
        check_number("densities", density)
        if not 0 < density <= 1:
            raise ValueError(f"densities hold {density}; each is a probability above 0, at most 1")
    if not len(densities):
        raise ValueError("densities must not be empty")
    for name, count in (("features", features), ("dimensions", dimensions), ("steps", steps)):
        check_count(name, count)
    check_number("decay", decay)
    generator = check_generator(generator)
    start = torch.randn(dimensions, features, generator=generator) / dimensions**0.5
    w = start.repeat(len(densities), 1, 1).requires_grad_()
    b = torch.zeros(len(densities), 1, features, requires_grad=True)
    importance, p = decay ** torch.arange(features), torch.tensor(densities)[:, None, None]
    adam = torch.optim.Adam([w, b], lr=learning_rate)
    with torch.enable_grad():
        for _ in counted(range(steps), "step"):
            there, size = torch.rand(2, batch_size, features, generator=generator)
            x = size * (there < p)  # (D, B, n)
            rebuilt = (x @ w.mT @ w + b).relu()
            loss = (importance * (x - rebuilt).square()).sum(2).mean(1)  # (D,)
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
    return Superposition(w.detach(), b.detach()[:, 0], loss.detach())
