"""Dictionaries: by hand, against plain loops and scikit-learn; a planted one is found again."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.decomposition import NMF
from torch import Tensor
from torch.nn import functional as F

from course_utils.units import dictionaries
from course_utils.units.dictionaries import (
    Dictionary,
    decode,
    examples,
    found_again,
    nmf,
    sparse_autoencoder,
)
from course_utils.worlds.scenes import Scenes, render, standard
from tests.test_features import refused

seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectified(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype).relu()


def rows(maps: Tensor) -> NDArray[Any]:
    """Maps (N, C, H, W) as (N · H · W, C), position by position."""
    n, _, height, width = maps.shape
    return np.stack(
        [maps[i, :, r, c].numpy() for i in range(n) for r in range(height) for c in range(width)]
    )


# A planted dictionary --------------------------------------------------------------------------


def planted(channels: int, features: int, share: float, seed: int, *, positive: bool) -> Any:
    """Unit vectors (F, C), and maps in which each is at a share of the positions, from ½ to 1½."""
    generator = seeded(seed)
    atoms = torch.randn(features, channels, generator=generator)
    atoms = F.normalize(atoms.relu() if positive else atoms, dim=1)
    there = torch.rand(100, features, 12, 12, generator=generator) < share
    strength = there * (0.5 + torch.rand(there.shape, generator=generator))
    return atoms, torch.einsum("nfhw,fc->nchw", strength, atoms)


@pytest.mark.slow
@seeds
def test_a_planted_dictionary_in_superposition_is_found_again(seed: int) -> None:
    """64 features in 32 dimensions, three at a position: an autoencoder finds all of them."""
    atoms, maps = planted(32, 64, 3 / 64, seed, positive=False)
    found = sparse_autoencoder(maps, 128, active=4, generator=seeded(10 + seed))
    nearest = found_again(found, atoms)
    assert nearest.mean() > 0.97
    assert (nearest > 0.9).float().mean() > 0.95
    assert found.explained > 0.85
    # Directions that nobody trained come much less near, however many they are.
    control = examples(maps, 128, active=4, generator=seeded(20 + seed))
    assert found_again(control, atoms).mean() < 0.9
    axes = dictionaries.units(maps)
    assert found_again(axes, atoms).mean() < 0.6


@seeds
def test_a_planted_dictionary_of_parts_is_found_again_by_nmf(seed: int) -> None:
    atoms, maps = planted(24, 12, 0.2, seed, positive=True)
    found = nmf(maps, 12, generator=seeded(10 + seed))
    assert found_again(found, atoms).mean() > 0.97
    assert found.explained > 0.98


# The factorisation -----------------------------------------------------------------------------


def test_nmf_by_hand() -> None:
    """Two features that never meet, in three channels: (3, 4, 0) / 5, and the third channel."""
    maps = torch.zeros(2, 3, 1, 2)
    maps[0, :, 0, 0], maps[0, :, 0, 1] = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0, 0, 7.0])
    maps[1, :, 0, 0], maps[1, :, 0, 1] = torch.tensor([6.0, 8.0, 0.0]), torch.tensor([0, 0, 1.0])
    found = nmf(maps, 2)
    torch.testing.assert_close(found.atoms.sort(0).values.sum(0), torch.tensor([0.6, 0.8, 1.0]))
    features = found.encode(maps)
    assert features.shape == (2, 2, 1, 2)
    first = int(found.atoms[:, 2].argmin())
    torch.testing.assert_close(features[:, first, 0], torch.tensor([[5.0, 0.0], [10.0, 0.0]]))
    torch.testing.assert_close(features[:, 1 - first, 0], torch.tensor([[0.0, 7.0], [0.0, 1.0]]))
    torch.testing.assert_close(decode(found, features), maps)
    assert found.explained == pytest.approx(1)
    assert (found.active, found.dead) == (1, 0)


def test_features_of_nmf_are_the_nonnegative_least_squares() -> None:
    maps = rectified(3, 10, 4, 4)
    found = nmf(maps, 6)
    features = rows(found.encode(maps))
    for row, mine in zip(rows(maps), features, strict=True):
        best, _ = nnls(found.atoms.T.numpy(), row)
        np.testing.assert_allclose(mine, best, atol=1e-8)


def test_nmf_is_as_near_as_scikit_learn_gets() -> None:
    maps = rectified(4, 12, 5, 5)
    a = rows(maps)
    model = NMF(5, init="nndsvda", max_iter=1000, tol=1e-6, random_state=0)
    made = model.fit_transform(a) @ model.components_
    best = 1 - ((a - made) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert nmf(maps, 5).explained == pytest.approx(best, abs=0.01)


def test_multiplicative_update_is_that_of_scikit_learn() -> None:
    """Lee and Seung's rule, as lecture 12 writes it, with plain loops: three updates of each."""
    generator = np.random.default_rng(0)
    a, f, d = generator.random((7, 5)), generator.random((7, 3)), generator.random((3, 5))
    model = NMF(3, init="custom", solver="mu", max_iter=3, tol=0)
    theirs = model.fit_transform(a, W=f.copy(), H=d.copy())
    for _ in range(3):
        made = f @ d
        f = np.array(
            [[f[p, i] * (a[p] @ d[i]) / (made[p] @ d[i]) for i in range(3)] for p in range(7)]
        )
        made = f @ d
        d = np.array(
            [
                [d[i, c] * (f[:, i] @ a[:, c]) / (f[:, i] @ made[:, c]) for c in range(5)]
                for i in range(3)
            ]
        )
    np.testing.assert_allclose(f, theirs, rtol=1e-6)
    np.testing.assert_allclose(d, model.components_, rtol=1e-6)


# The autoencoder -------------------------------------------------------------------------------


def twin_of_training(
    maps: Tensor, features: int, k: int, steps: int, batch: int, rate: float, seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The atoms, the offset and the features, by derivatives and Adam written out with NumPy."""
    a_all, generator = rows(maps), seeded(seed)
    mean = a_all.mean(0)
    scale = np.sqrt(((a_all - mean) ** 2).sum(1).mean())
    start = torch.randn(features, a_all.shape[1], generator=generator).double().numpy()
    d = start / np.linalg.norm(start, axis=1, keepdims=True)
    values = {"w": d.copy(), "b": mean / scale, "c": np.zeros(features), "d": d}
    first = {key: np.zeros_like(value) for key, value in values.items()}
    second = {key: np.zeros_like(value) for key, value in values.items()}

    def encoded(a: NDArray[Any]) -> NDArray[Any]:
        f = np.zeros((len(a), features))
        for p, row in enumerate(a):
            z = [
                max(0.0, float(w @ (row - values["b"]) + c))
                for w, c in zip(values["w"], values["c"], strict=True)
            ]
            for i in sorted(range(features), key=lambda i: -z[i])[:k]:
                f[p, i] = z[i]
        return f

    for step in range(steps):
        a = a_all[torch.randint(len(a_all), (batch,), generator=generator).numpy()] / scale
        f = encoded(a)
        length = np.linalg.norm(values["d"], axis=1, keepdims=True)
        unit = values["d"] / length
        wrong = 2 * (values["b"] + f @ unit - a) / batch  # ∂ loss / ∂ â
        of_f = (wrong @ unit.T) * (f > 0)
        of_unit = f.T @ wrong
        slopes = {
            "w": of_f.T @ (a - values["b"]),
            "b": wrong.sum(0) - (of_f @ values["w"]).sum(0),
            "c": of_f.sum(0),
            "d": (of_unit - (of_unit * unit).sum(1, keepdims=True) * unit) / length,
        }
        now = rate * min(1, 3 * (1 - step / steps))
        for key, g in slopes.items():
            first[key] = 0.9 * first[key] + 0.1 * g
            second[key] = 0.999 * second[key] + 0.001 * g**2
            m = first[key] / (1 - 0.9 ** (step + 1))
            v = second[key] / (1 - 0.999 ** (step + 1))
            values[key] = values[key] - now * m / (np.sqrt(v) + 1e-8)
    atoms = values["d"] / np.linalg.norm(values["d"], axis=1, keepdims=True)
    return atoms, values["b"] * scale, encoded(a_all / scale) * scale


def test_autoencoder_equals_its_twin() -> None:
    maps = torch.randn(3, 4, 3, 2, generator=seeded(1), dtype=torch.float64)
    found = sparse_autoencoder(
        maps, 6, active=2, steps=5, batch_size=7, learning_rate=0.05, generator=seeded(3)
    )
    atoms, offset, features = twin_of_training(maps, 6, 2, 5, 7, 0.05, 3)
    np.testing.assert_allclose(found.atoms.numpy(), atoms, atol=1e-10)
    np.testing.assert_allclose(found.offset.numpy(), offset, atol=1e-10)
    np.testing.assert_allclose(rows(found.encode(maps)), features, atol=1e-10)


def test_what_is_measured_of_a_dictionary() -> None:
    maps = rectified(5, 8, 3, 3)
    found = sparse_autoencoder(maps, 12, active=3, steps=50)
    a, f = rows(maps), rows(found.encode(maps))
    made = found.offset.numpy() + f @ found.atoms.numpy()
    share = 1 - ((a - made) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()
    assert found.explained == pytest.approx(share, abs=1e-9)
    assert found.active == pytest.approx((f > 0).sum(1).mean())
    assert found.active <= 3
    assert found.dead == sum(not (column > 0).any() for column in f.T)
    torch.testing.assert_close(found.atoms.norm(dim=1), torch.ones(12).double())


def test_dead_features_are_counted() -> None:
    """One direction alone: most of 32 features are never among the strongest."""
    maps = torch.rand(4, 1, 4, 4) * torch.tensor([3.0, 4.0])[:, None, None]
    found = sparse_autoencoder(maps, 32, active=1, steps=30)
    assert found.dead >= 20


def test_another_start_gives_another_dictionary_and_the_same_the_same() -> None:
    maps = rectified(6, 10, 4, 4)
    one, two, other = (
        sparse_autoencoder(maps, 20, active=2, steps=40, generator=seeded(s)) for s in (0, 0, 1)
    )
    assert torch.equal(one.atoms, two.atoms)
    assert found_again(one, other.atoms).mean() < 0.99


# What all of them promise ----------------------------------------------------------------------

kinds = pytest.mark.parametrize(
    "kind",
    [
        lambda maps: nmf(maps, 4, steps=20),
        lambda maps: sparse_autoencoder(maps, 12, active=2, steps=10),
        lambda maps: examples(maps, 12, active=2),
        dictionaries.units,
    ],
    ids=["nmf", "sparse_autoencoder", "examples", "units"],
)


@kinds
def test_a_dictionary_changes_nothing_and_depends_on_no_other_image(kind: Any) -> None:
    maps = rectified(4, 6, 3, 5, dtype=torch.float32).requires_grad_()
    before, state = maps.detach().clone(), torch.get_rng_state()
    with torch.no_grad():
        found: Dictionary = kind(maps)
        features = found.encode(maps)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(maps, before)
    assert maps.grad is None
    assert not found.atoms.requires_grad
    assert not features.requires_grad
    assert features.shape == (4, len(found.atoms), 3, 5)
    assert (features >= 0).all()
    torch.testing.assert_close(found.encode(maps[2:3]), features[2:3])
    assert decode(found, features).shape == maps.shape
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert found.encode(maps.detach().to(dtype)).dtype == dtype
    with pytest.raises(ValueError, match="channels"):
        found.encode(torch.rand(1, 7, 3, 3))


def test_units_are_the_dictionary_a_layer_comes_with() -> None:
    maps = rectified(2, 3, 2, 2, dtype=torch.float32)
    found = dictionaries.units(maps)
    assert torch.equal(found.encode(maps), maps)
    assert torch.equal(decode(found, maps), maps)
    assert found.explained == 1


def test_examples_are_places_of_the_maps() -> None:
    maps = rectified(3, 5, 2, 2)
    found = examples(maps, 7, active=1)
    a = rows(maps) - rows(maps).mean(0)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    nearest = found.atoms.numpy() @ a.T
    np.testing.assert_allclose(nearest.max(1), 1, atol=1e-9)
    cosines = rows(maps) @ found.atoms.T.numpy() - found.offset.numpy() @ found.atoms.T.numpy()
    features = rows(found.encode(maps))
    for mine, row in zip(features, cosines, strict=True):
        assert mine.max() == pytest.approx(max(row.max(), 0))
        assert (mine > 0).sum() <= 1


MAPS = torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: nmf([1.0]),  # type: ignore[arg-type]
            TypeError,
            "maps must be a floating point tensor",
        ),
        (lambda: nmf(MAPS[0]), ValueError, "maps must be (N, C, H, W)"),
        (
            lambda: nmf(MAPS - 1, 2),
            ValueError,
            "maps must not be negative for nmf, but",
        ),
        (lambda: nmf(MAPS, 4), ValueError, "there are channels and positions, 3 here"),
        (lambda: nmf(MAPS, 0), ValueError, "features is 0"),
        (lambda: nmf(MAPS, 2, steps=0), ValueError, "steps is 0"),
        (lambda: nmf(MAPS / 0, 2), ValueError, "maps must be finite"),
        (lambda: nmf(MAPS, 2, generator=3), TypeError, "generator must be"),  # type: ignore[arg-type]
        (lambda: nmf(MAPS, 2).encode(MAPS - 1), ValueError, "must not be negative"),
        (lambda: sparse_autoencoder(MAPS.long()), TypeError, "floating point"),
        (lambda: sparse_autoencoder(MAPS, 3, active=4), ValueError, "active is 4; of 3 features"),
        (lambda: sparse_autoencoder(MAPS, 3.0), TypeError, "features must be a whole number"),  # type: ignore[arg-type]
        (lambda: sparse_autoencoder(MAPS, steps=0), ValueError, "steps is 0"),
        (lambda: sparse_autoencoder(MAPS, learning_rate=-1), ValueError, "learning_rate is -1"),
        (lambda: examples(MAPS, 2, active=3), ValueError, "active is 3"),
        (lambda: found_again(dictionaries.units(MAPS), MAPS[0]), ValueError, "atoms must be"),
    ],
)
def test_refusals(call: Any, error: type[Exception], words: str) -> None:
    refused(call, error, words)


# What is known of scenes -----------------------------------------------------------------------


def test_places_by_hand() -> None:
    """Every cell counted pixel by pixel; a zebra alone in the savanna."""
    scene = render(standard("zebra"), 64)
    found = dictionaries.places(scene, 4)
    striped = np.zeros_like(scene.mask)
    for name in ("body", "head", "legs"):
        if name in scene.parts:
            cells = [
                [scene.parts[name][r : r + 16, c : c + 16].mean() >= 0.5 for c in range(0, 64, 16)]
                for r in range(0, 64, 16)
            ]
            assert np.array_equal(found.get(f"part {name}", np.zeros((4, 4), bool)), cells)
    for part in dictionaries.SHAPES["horse"]:
        if part.paint == "texture" and part.name in scene.parts:
            striped |= scene.parts[part.name]
    assert striped.any()
    for r in range(4):
        for c in range(4):
            here = (slice(16 * r, 16 * r + 16), slice(16 * c, 16 * c + 16))
            assert found["class zebra"][r, c] == (scene.mask[here].mean() >= 0.5)
            assert found["texture stripes"][r, c] == (striped[here].mean() >= 0.5)
    assert np.array_equal(found["shape horse"], found["class zebra"])
    assert not (found["place savanna"] & found["class zebra"]).any()


def test_places_of_what_is_not_there() -> None:
    spec = standard("zebra")
    assert "texture stripes" not in dictionaries.places(render(spec.without("texture")), 8)
    assert "texture plain" in dictionaries.places(render(spec.without("texture")), 8)
    assert "class zebra" not in dictionaries.places(render(spec.without("object")), 8)
    bare = dictionaries.places(render(spec.without("background")), 8)
    assert not any(name.startswith("place") for name in bare)
    pair = standard("zebra", companion="tiger", companion_x=0.85, companion_size=0.4, x=0.3)
    both = dictionaries.places(render(pair), 16)
    assert both["class tiger"].any()
    assert both["shape cat"].any()


def test_match_equals_its_twin() -> None:
    generator = np.random.default_rng(0)
    features = torch.from_numpy(generator.random((12, 5, 4, 4)))
    masks = torch.from_numpy(generator.random((12, 3, 4, 4)) < 0.4)
    found = dictionaries.match(features, masks)
    for k in range(3):
        best, choice = -1.0, (0, 0.0)
        for level in dictionaries.LEVELS:
            for i in range(5):
                threshold = np.quantile(features[:6, i].numpy(), level)
                on, there = features[:6, i] > threshold, masks[:6, k]
                iou = float((on & there).sum() / (on | there).sum())
                if iou > best + 1e-7:
                    best, choice = iou, (i, float(threshold))
        assert found.feature[k] == choice[0]
        assert found.threshold[k] == pytest.approx(choice[1])
        on, there = features[6:, choice[0]] > choice[1], masks[6:, k]
        assert found.iou[k] == pytest.approx(float((on & there).sum() / (on | there).sum()))


def test_a_feature_that_is_the_concept_matches_it() -> None:
    masks = torch.rand(10, 2, 6, 6, generator=seeded(0)) < 0.3
    noise = torch.rand(10, 4, 6, 6, generator=seeded(1))
    features = torch.cat([noise, masks[:, 1:] * (1 + noise[:, :1])], 1)
    found = dictionaries.match(features, masks)
    assert found.feature[1] == 4
    assert found.iou[1] > 0.9
    assert found.iou[0] < 0.45


def test_more_candidates_are_no_advantage() -> None:
    """Noise: the best of 400 looks better where it was chosen, and not where it is judged."""
    masks = torch.rand(200, 6, 4, 4, generator=seeded(0)) < 0.3
    noise = torch.rand(200, 400, 4, 4, generator=seeded(1))
    few, many = (dictionaries.match(noise[:, :n], masks) for n in (5, 400))
    mean, low, high = dictionaries.better_by(many, few)
    assert low < 0 < high
    assert abs(mean) < 0.02


def test_interval_is_a_paired_bootstrap() -> None:
    masks = torch.rand(20, 4, 4, 4, generator=seeded(0)) < 0.4
    good = masks + 0.8 * torch.rand(masks.shape, generator=seeded(1))
    one, other = dictionaries.match(good, masks), dictionaries.match(torch.rand(masks.shape), masks)
    mean, low, high = dictionaries.better_by(one, other, resamples=500, seed=1)
    assert mean == pytest.approx((one.iou - other.iou).mean())
    generator = np.random.default_rng(7)
    drawn = []
    for _ in range(500):
        n, k = generator.integers(10, size=10), generator.integers(4, size=4)
        ious = [m.shared[n].sum(0) / m.either[n].sum(0) for m in (one, other)]
        drawn.append((ious[0] - ious[1])[k].mean())
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.03)
    assert dictionaries.better_by(one, one) == (0, 0, 0)


BOOLS = torch.rand(2, 3, 4, 4) < 0.5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dictionaries.places(render(standard("zebra")), 7), ValueError, "cells is 7"),
        (lambda: dictionaries.match(MAPS, MAPS), TypeError, "masks must be a bool tensor"),
        (
            lambda: dictionaries.match(MAPS, BOOLS[:1]),
            ValueError,
            "masks must be (N, K, H, W) with",
        ),
        (
            lambda: dictionaries.match(MAPS, torch.zeros_like(BOOLS)),
            ValueError,
            "masks: concept 0 is in no picture of one half",
        ),
        (
            lambda: dictionaries.better_by(
                dictionaries.match(MAPS, BOOLS), dictionaries.match(MAPS, BOOLS[:, :1])
            ),
            ValueError,
            "other must be of the same pictures and concepts",
        ),
    ],
)
def test_refusals_of_matches(call: Any, error: type[Exception], words: str) -> None:
    refused(call, error, words)


def test_concepts_of_places_are_those_of_scenes() -> None:
    """What has a place is in the scene, by the same name."""
    from course_utils.units.concepts import in_scene

    world = Scenes(32, seed=3)
    for index in range(32):
        scene = world.scene(index)
        named = {n for n in dictionaries.places(scene, 16) if not n.startswith("part ")}
        assert named <= in_scene(scene.spec), index


# Superposition ---------------------------------------------------------------------------------


def test_kept_and_shared_by_hand() -> None:
    """A pair in opposite directions, one alone across them, and one that is not kept."""
    weights = torch.tensor([[[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]])
    found = dictionaries.Superposition(weights, torch.zeros(1, 4), torch.zeros(1))
    assert found.kept.tolist() == [[1, 2, 3, 0]]
    assert found.shared.tolist() == [[4, 1, 0, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 4])
def test_sparse_features_are_kept_in_superposition(seed: int) -> None:
    """Elhage et al.: five features in two dimensions. Dense: two, alone. Sparse: more.

    All five from starts 0 and 1; from start 4 the descent ends with four, in two opposite pairs.
    """
    found = dictionaries.superposition([1.0, 0.05], generator=seeded(seed))
    dense, sparse = found.kept > 0.5
    assert dense.tolist() == [True, True, False, False, False]
    assert sparse.sum() >= (4 if seed == 4 else 5)
    assert found.shared[0, :2].max() < 0.1
    assert found.shared[1][sparse].min() > 0.5


def test_one_step_of_the_toy_by_its_equation() -> None:
    """The loss of the first batch, by plain loops."""
    found = dictionaries.superposition([0.5], 3, 2, steps=1, batch_size=4, generator=seeded(2))
    generator = seeded(2)
    w = torch.randn(2, 3, generator=generator) / 2**0.5
    there, size = torch.rand(2, 4, 3, generator=generator)
    total = 0.0
    for p in range(4):
        x = [float(size[p, i]) * bool(there[p, i] < 0.5) for i in range(3)]
        hidden = [sum(float(w[h, i]) * x[i] for i in range(3)) for h in range(2)]
        for i in range(3):
            back = max(0.0, sum(float(w[h, i]) * hidden[h] for h in range(2)))
            total += 0.9**i * (x[i] - back) ** 2 / 4
    assert float(found.loss[0]) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dictionaries.superposition([]), ValueError, "densities must not be empty"),
        (lambda: dictionaries.superposition([0.0]), ValueError, "densities hold 0.0"),
        (lambda: dictionaries.superposition([2.0]), ValueError, "densities hold 2.0"),
        (lambda: dictionaries.superposition([1.0], 0), ValueError, "features is 0"),
        (lambda: dictionaries.superposition([1.0], dimensions=0), ValueError, "dimensions is 0"),
    ],
)
def test_refusals_of_the_toy(call: Any, error: type[Exception], words: str) -> None:
    refused(call, error, words)
