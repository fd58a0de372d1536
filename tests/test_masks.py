"""RISE and extremal perturbation."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course_utils import models
from course_utils.contract import Estimate
from course_utils.methods import masks, perturbation
from course_utils.methods.masks import (
    GAMES,
    extremal_perturbation,
    mask_variance,
    random_masks,
    rise,
    rise_estimate,
    smooth_mask,
)
from course_utils.worlds import photographs
from tests.networks import NETWORKS, Recorder, Returning, batch, make, pixels

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_perturbation_has_them() -> None:
    assert perturbation.rise is rise
    assert perturbation.rise_estimate is rise_estimate
    assert perturbation.extremal_perturbation is extremal_perturbation


# -- random masks ----------------------------------------------------------------------------------


def twin_masks(
    shape: tuple[int, int], samples: int, keep: float, cells: int, seed: int
) -> list[Tensor]:
    """Pixel by pixel: between the four nodes around it."""
    generator = seeded(seed)
    height, width = shape
    down, across = math.ceil(height / cells), math.ceil(width / cells)
    nodes = torch.rand(samples, cells + 2, cells + 2, generator=generator) < keep
    tops = torch.randint(down, (samples,), generator=generator)
    lefts = torch.randint(across, (samples,), generator=generator)
    result = []
    for k in range(samples):
        mask = torch.zeros(shape, dtype=DOUBLE)
        for row, column in itertools.product(range(height), range(width)):
            y, x = (row + int(tops[k])) / down, (column + int(lefts[k])) / across
            i, j = math.floor(y), math.floor(x)
            t, u = y - i, x - j
            for di, dj in itertools.product((0, 1), (0, 1)):
                weight = (t if di else 1 - t) * (u if dj else 1 - u)
                if weight:
                    mask[row, column] += weight * float(nodes[k, i + di, j + dj])
        result.append(mask)
    return result


@pytest.mark.parametrize(
    ("shape", "cells"), [((8, 8), 7), ((8, 8), 3), ((7, 10), 2), ((1, 3), 7), ((5, 4), 1)]
)
def test_masks_against_their_twin(shape: tuple[int, int], cells: int) -> None:
    draw = random_masks(shape, 6, keep=0.4, cells=cells, generator=seeded(3))
    expected = torch.stack(twin_masks(shape, 6, 0.4, cells, 3))
    torch.testing.assert_close(draw(torch.arange(6)), expected, rtol=0, atol=1e-12)
    assert torch.equal(draw(torch.tensor([4, 1])), draw(torch.arange(6))[[4, 1]])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("shape", "cells"), [((9, 9), 3), ((1, 4), 7), ((12, 5), 2)])
def test_all_pixels_are_alike(shape: tuple[int, int], cells: int, keep: float) -> None:
    """Also at the edge: the mean is `keep` and the variance is known."""
    n = 20_000
    drawn = random_masks(shape, n, keep=keep, cells=cells)(torch.arange(n))
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    variance = mask_variance(shape, keep, cells)
    assert ((drawn.mean(0) - keep).abs() < 5 * (variance / n) ** 0.5).all()
    squares = (drawn - keep) ** 2
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / n**0.5 + 1e-12).all()


def test_a_mask_whose_cells_are_pixels_is_of_zeros_and_ones() -> None:
    drawn = random_masks((4, 4), 50, cells=4)(torch.arange(50))
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    assert mask_variance((4, 4), 0.5, 4) == 0.25


# -- RISE ------------------------------------------------------------------------------------------


def twin_rise(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    drawn: list[Tensor],
    keep: float,
    variance: float,
    baseline: Tensor,
) -> Tensor:
    """The covariance of score and mask, pixel by pixel."""
    scores = [float(score((mask * image + (1 - mask) * baseline)[None])) for mask in drawn]
    n = len(drawn)
    result = torch.zeros(image.shape[1:], dtype=DOUBLE)
    for row, column in itertools.product(*map(range, result.shape)):
        for value, mask in zip(scores, drawn, strict=True):
            result[row, column] += (value - sum(scores) / n) * float(mask[row, column] - keep)
    return result / (n - 1) / variance


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("keep", "cells"), [(0.5, 7), (0.2, 3)])
def test_rise_against_its_twin(network: str, keep: float, cells: int) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=DOUBLE)
    baseline = torch.linspace(-1, 1, 3 * 8 * 8, dtype=DOUBLE).view(3, 8, 8)
    options: dict[str, Any] = {"keep": keep, "cells": cells}
    found = rise(
        model, images, 3, samples=9, baseline=baseline, generator=seeded(5), batch_size=4, **options
    )
    drawn = twin_masks((8, 8), 9, keep, cells, 5)
    variance = mask_variance((8, 8), **options)
    with torch.no_grad():
        for image, row in zip(images, found, strict=True):
            slow = twin_rise(lambda x: model(x)[0, 3], image, drawn, keep, variance, baseline)
            torch.testing.assert_close(row, slow, rtol=0, atol=1e-10)


def linear(weights: Tensor, constant: float = 0.0) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * weights).sum((1, 2, 3))[:, None] + constant


X = torch.tensor([[4.0, -2, 0, 1], [3, 5, -1, 2], [0, 0, 7, -3]], dtype=DOUBLE)[None, None]
WEIGHTS = torch.tensor([[1.0, 2, 3, -1], [0, 1, -2, 1], [5, 1, 1, 2]], dtype=DOUBLE)


def known(cells: int) -> Tensor:
    """E[R] of the linear function of X: each pixel's part, by how much its mask goes with m."""
    # The covariance of two pixels of a row, over where the grid starts; the nodes' own is 1.
    along = []
    for size in X.shape[2:]:
        side = math.ceil(size / cells)
        covariance = torch.zeros(size, size, dtype=DOUBLE)
        for i, j, start, node in itertools.product(
            range(size), range(size), range(side), range(cells + 2)
        ):
            near = [max(0.0, 1 - abs((place + start) / side - node)) for place in (i, j)]
            covariance[i, j] += near[0] * near[1] / side
        along.append(covariance / covariance[0, 0])
    down, across = along
    return down @ (WEIGHTS * X[0, 0]) @ across


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("cells", [1, 2, 4, 7])
def test_of_a_linear_function_it_is_known_and_unbiased(cells: int, keep: float) -> None:
    """At any p: 200 estimates by 20 masks each have that mean, and the error that each one says."""
    found = [
        rise_estimate(
            linear(WEIGHTS), X, 0, samples=20, keep=keep, cells=cells, generator=seeded(seed)
        )
        for seed in range(200)
    ]
    maps = torch.cat([one.value for one in found])
    error = maps.std(0) / len(found) ** 0.5
    assert ((maps.mean(0) - known(cells)).abs() < 5 * error).all()
    stated = torch.cat([one.standard_error**2 for one in found if one.standard_error is not None])
    torch.testing.assert_close(stated.mean(0).sqrt(), maps.std(0), rtol=0.3, atol=0)
    if cells >= 4:  # a cell is a pixel
        torch.testing.assert_close(known(cells), WEIGHTS * X[0, 0])


def paper_map(score: Callable[[Tensor], Tensor], keep: float, n: int) -> tuple[Tensor, float]:
    """Petsiuk's map of X by binary masks, and the mean score."""
    drawn = random_masks((3, 4), n, keep=keep)(torch.arange(n))
    scores = score(drawn[:, None] * X)[:, 0]
    return (scores[:, None, None] * drawn).mean(0) / keep, float(scores.mean())


def test_the_papers_map_depends_on_p_and_on_a_constant() -> None:
    """E[f | kept] has in it what all pixels together are worth; the corrected one has not."""
    n, contribution = 20_000, WEIGHTS * X[0, 0]
    level = {}
    for constant, keep in itertools.product((0.0, 100.0), (0.1, 0.5, 0.9)):
        found, _ = paper_map(linear(WEIGHTS, constant), keep, n)
        others = keep * (contribution.sum() - contribution) + constant
        error = (constant + 20) * ((1 - keep) / keep / n) ** 0.5
        torch.testing.assert_close(found, contribution + others, rtol=0, atol=5 * error)
        level[constant, keep] = float(found.mean())
    assert level[0.0, 0.9] - level[0.0, 0.1] > 5
    assert level[100.0, 0.5] - level[0.0, 0.5] == pytest.approx(100, abs=5)
    # Ours is the same at each p, up to its own standard error, and exactly whatever the constant.
    for keep in (0.1, 0.5, 0.9):
        plain = rise_estimate(linear(WEIGHTS), X, 0, samples=n, keep=keep, batch_size=n)
        assert plain.standard_error is not None
        assert ((plain.value - contribution).abs() < 5 * plain.standard_error).all()
        more = rise(linear(WEIGHTS, 100.0), X, 0, samples=n, keep=keep, batch_size=n)
        torch.testing.assert_close(more, plain.value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_the_papers_map_is_ours_and_a_level(keep: float) -> None:
    """For any draw: Σ f m / (n p) = (n − 1) / n · R Var(m) / p + f̄ m̄ / p, of which m̄ is noise."""
    n = 50

    def score(x: Tensor) -> Tensor:
        return x.sum((1, 2, 3), keepdim=True)[:, 0, 0].exp()

    found, level = paper_map(score, keep, n)
    ours = rise(score, X, 0, samples=n, keep=keep)[0]
    covered = random_masks((3, 4), n, keep=keep)(torch.arange(n)).mean(0)
    part = (n - 1) / n * ours * mask_variance((3, 4), keep, 7) / keep
    torch.testing.assert_close(found, part + level * covered / keep)
    assert covered.std() > 0.01


def test_a_cells_value_at_one_half_is_banzhafs() -> None:
    """The mean over all sets of the other pixels of what this one adds: by all eight masks."""

    def score(x: Tensor) -> Tensor:
        a, b, c = x[:, 0, 0].unbind(1)
        return (a * b * c + a + 3)[:, None]

    x = pixels(2, 3, 5)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=DOUBLE)
    scores = score(every[:, None, None] * x)[:, 0]
    exact = torch.stack(
        [scores[every[:, i] == 1].mean() - scores[every[:, i] == 0].mean() for i in range(3)]
    )
    assert exact.tolist() == [9.5, 7.5, 7.5]
    found = rise_estimate(score, x, 0, samples=20_000, batch_size=1000)
    assert found.standard_error is not None
    assert ((found.value[0, 0] - exact).abs() < 4 * found.standard_error[0, 0]).all()
    assert found.standard_error.max() < 0.2
    assert exact.sum() < scores[-1] - scores[0] - 7  # so it is not complete
    torch.testing.assert_close(found.spread, found.standard_error * 20_000**0.5)


def test_hidden_pixels_show_the_baseline() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.sum((2, 3))

    rise(model, pixels(5, 5, 5), 0, samples=8, baseline=pixels(-1, 0, 1))
    assert {tuple(row) for row in torch.cat(seen)[:, 0, 0].tolist()} <= set(
        itertools.product((-1.0, 5.0), (0.0, 5.0), (1.0, 5.0))
    )
    assert torch.cat(seen).unique().tolist() == [-1, 0, 1, 5]


def test_passes_of_rise_and_its_batches() -> None:
    model, images = Recorder(), batch(3)
    together = rise(model, images, samples=10, batch_size=7)
    assert sum(model.calls) == 3 * (10 + 1)  # one more for the answer
    assert max(model.calls) == 7
    model.calls.clear()
    torch.testing.assert_close(rise(model, images, 0, samples=10, batch_size=4), together)
    assert sum(model.calls) == 30
    alone = torch.cat([rise(model, image[None], samples=10) for image in images])
    torch.testing.assert_close(alone, together)


def test_the_estimate_of_rise() -> None:
    model, images = make("Residual"), batch()
    before, generator = torch.get_rng_state(), seeded(0)
    found = rise_estimate(model, images, 1, samples=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(found, Estimate)
    assert found.r2 is None
    for one in found[:3]:
        assert one is not None
        assert (one.shape, one.dtype) == ((3, 8, 8), torch.float32)
        assert one.isfinite().all()
    assert torch.equal(rise(model, images, 1, samples=6, generator=generator), found.value)
    other = rise(model, images, 1, samples=6, generator=seeded(1))
    assert not torch.equal(other, found.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rise_keeps_the_type(dtype: torch.dtype) -> None:
    images = batch(dtype=torch.float32).to(dtype)
    found = rise(make("Functional").to(dtype), images, 1, samples=20)
    wanted = rise(make("Functional").double(), images.double(), 1, samples=20)
    assert found.dtype == dtype
    assert (found - wanted).norm() < 0.1 * wanted.norm()


# -- the best mask ---------------------------------------------------------------------------------


def twin_smooth_mask(grid: Tensor, side: int, shape: tuple[int, int]) -> Tensor:
    """Pixel by pixel, over the nodes no more than two cells away, absent ones counting as 0."""
    height, width = grid.shape
    rows = []
    for row, column in itertools.product(range(shape[0]), range(shape[1])):
        values = []
        for i, j in itertools.product(range(-2, 3), range(-2, 3)):
            a, b = row // side + i, column // side + j
            dy, dx = row - (a * side + (side - 1) / 2), column - (b * side + (side - 1) / 2)
            z = math.hypot(dy, dx) / (1.5 * side)
            inside = 0 <= a < height and 0 <= b < width
            node = grid[a, b] if inside else grid.new_zeros(())
            values.append(math.exp(-2 * max(0.0, z - 0.5) ** 2) * node)
        near = torch.stack(values)
        rows.append((near * (20 * near).exp()).sum() / (20 * near).exp().sum())
    return torch.stack(rows).view(shape)


@pytest.mark.parametrize(("side", "shape"), [(1, (8, 8)), (3, (8, 10)), (4, (4, 7))])
def test_smooth_masks_against_their_twin(side: int, shape: tuple[int, int]) -> None:
    size = [math.ceil(length / side) for length in shape]
    grid = torch.rand(2, *size, generator=seeded(0), dtype=DOUBLE)
    found = smooth_mask(grid, side, shape)
    for one, row in zip(grid, found, strict=True):
        torch.testing.assert_close(row, twin_smooth_mask(one, side, shape), rtol=0, atol=1e-12)


def test_masks_of_nothing_and_of_all() -> None:
    assert torch.equal(smooth_mask(torch.zeros(1, 4, 4), 2, (8, 8)), torch.zeros(1, 8, 8))
    every = smooth_mask(torch.ones(1, 8, 8), 2, (16, 16))
    assert every.max() <= 1
    assert every.min() > 0.8  # the smooth maximum is a little less than the largest


def twin_extremal(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    baseline: Tensor,
    *,
    area: float,
    game: str,
    cells: int,
    steps: int,
) -> Tensor:
    """By autograd through the mask's twin and the model at once."""
    _, height, width = image.shape
    side = math.ceil(min(height, width) / cells)
    size = math.ceil(height / side), math.ceil(width / side)
    ones = max(1, round(area * height * width))
    wanted = torch.tensor([0.0] * (height * width - ones) + [1.0] * ones, dtype=DOUBLE)
    grid, unit = torch.nn.Parameter(torch.full(size, 0.5, dtype=DOUBLE)), None
    optimizer = torch.optim.Adam([grid], lr=0.05, betas=(0.9, 0.99), maximize=True)
    for step in range(steps):
        mask = twin_smooth_mask(grid, side, (height, width))
        shown = mask if game == "preserve" else 1 - mask
        f = score((shown * image + (1 - shown) * baseline)[None])
        (up,) = torch.autograd.grad(f if game == "preserve" else -f, grid, retain_graph=True)
        order = sorted(range(height * width), key=mask.flatten().tolist().__getitem__)
        loss = sum((mask.flatten()[k] - r) ** 2 for k, r in zip(order, wanted, strict=True))
        (down,) = torch.autograd.grad(loss / side**2, grid)
        unit = up.abs().max() if unit is None else unit
        grid.grad = up / unit - 10 * step / steps * down
        optimizer.step()
        with torch.no_grad():
            grid.clamp_(0, 1)
    return twin_smooth_mask(grid.detach(), side, (height, width))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("game", "cells"), [("preserve", 16), ("delete", 3)])
def test_extremal_against_its_twin(network: str, game: str, cells: int) -> None:
    model, images = make(network).double().eval(), batch(1, dtype=DOUBLE)
    baseline = torch.linspace(-1, 1, 3 * 8 * 8, dtype=DOUBLE).view(3, 8, 8)
    options: dict[str, Any] = {"area": 0.3, "game": game, "cells": cells, "steps": 3}
    found = extremal_perturbation(model, images, 3, baseline=baseline, **options)
    for image, row in zip(images, found, strict=True):
        slow = twin_extremal(lambda x: model(x)[0, 3], image, baseline, **options)
        torch.testing.assert_close(row, slow, rtol=0, atol=1e-10)


class Weighted(nn.Module):
    """f(x) = factor · Σ w x + constant."""

    def __init__(self, weights: Tensor, factor: float = 1.0, constant: float = 0.0) -> None:
        super().__init__()
        self.weights, self.factor, self.constant = weights, factor, constant

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (x * self.weights).sum((1, 2, 3))[:, None] + self.constant


def blocks(*corners: tuple[int, int], size: int = 16) -> Tensor:
    """32 × 32 zeros, with a square of ones at each corner."""
    result = torch.zeros(32, 32)
    for top, left in corners:
        result[top : top + size, left : left + size] = 1
    return result


@pytest.mark.parametrize("corner", [(0, 0), (3, 12), (16, 16)])
def test_the_best_mask_of_a_linear_function(corner: tuple[int, int]) -> None:
    """The square, which has the area; all other pixels tie, and count against f."""
    square = blocks(corner)
    mask = extremal_perturbation(Weighted(square - 0.1), torch.ones(1, 1, 32, 32), 0, area=0.25)[0]
    assert mask.mean() == pytest.approx(0.25, abs=0.03)
    assert mask[square == 1].mean() > 0.85
    assert mask[square == 0].mean() < 0.08
    # What it keeps is, up to the rim, as much as a mask of that area can keep.
    assert ((mask > 0.5) == (square == 1)).float().mean() > 0.95


def test_larger_areas_take_what_matters_next() -> None:
    strong, weak = blocks((2, 2), size=10), blocks((20, 18), size=10)
    model, x = Weighted(2 * strong + weak - 0.1), torch.ones(1, 1, 32, 32)
    small, large = (extremal_perturbation(model, x, 0, area=100 / 1024 * k)[0] for k in (1, 2))
    assert small[strong == 1].mean() > 0.8
    assert small[weak == 1].mean() < 0.1
    assert large[weak == 1].mean() > 0.5


def test_both_games_are_one_for_a_linear_function_and_no_unit_matters() -> None:
    weights = torch.randn(32, 32, generator=seeded(0))
    x = torch.ones(1, 1, 32, 32)
    options: dict[str, Any] = {"steps": 20}
    plain = extremal_perturbation(Weighted(weights), x, 0, **options)
    for model, game in (
        (Weighted(weights), "delete"),
        (Weighted(weights, factor=100), "preserve"),
        (Weighted(weights, constant=50), "preserve"),
    ):
        found = extremal_perturbation(model, x, 0, game=game, **options)
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-3)


def test_twins_of_which_one_is_enough() -> None:
    """f = max(left, right): one square suffices to preserve, both must go to delete."""

    class Either(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = ((x[:, 0] * square).mean((1, 2)) for square in squares)
            return torch.maximum(1.01 * left, right)[:, None]

    squares = blocks((10, 1), size=12), blocks((10, 19), size=12)
    x = (squares[0] + squares[1])[None, None]
    area = 144 / 1024
    kept = extremal_perturbation(Either(), x, 0, area=area)[0]
    assert kept[squares[0] == 1].mean() > 0.85
    assert kept[squares[1] == 1].mean() < 0.1
    hidden = extremal_perturbation(Either(), x, 0, area=2 * area, game="delete")[0]
    assert min(hidden[square == 1].mean() for square in squares) > 0.55


@pytest.mark.parametrize("network", NETWORKS)
def test_a_mask_for_the_class_keeps_more_than_one_against_it(network: str) -> None:
    model, images = make(network).eval(), batch()
    speaks = extremal_perturbation(model, images, 1, area=0.25, cells=4)
    against = extremal_perturbation(model, images, lambda y: -y[:, 1], area=0.25, cells=4)
    with torch.no_grad():
        high, low = (model(mask[:, None] * images)[:, 1] for mask in (speaks, against))
    assert (high > low).all()


def test_passes_of_the_search_and_its_batches() -> None:
    model, images = Returning(make("Residual"), lambda y: y), batch(3, dtype=DOUBLE)
    model = model.double()
    together = extremal_perturbation(model, images, 1, steps=6)
    assert model.forwards == 6
    assert together.min() >= 0
    assert together.max() <= 1
    small = extremal_perturbation(model, images, 1, steps=6, batch_size=2)
    torch.testing.assert_close(small, together)
    assert model.forwards == 6 + 12


BAD: dict[str, list[object]] = {
    "cells": [0, 2.5, None],
    "batch_size": [0, 1.5],
    "baseline": [float("nan"), "grey", torch.zeros(2, 8, 8), None],
}
SHARES: list[object] = [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), "0.5", None, True]
BAD_FOR_RISE = BAD | {"samples": [1, 0, 2.5], "keep": SHARES, "generator": [0, "cpu"]}
BAD_FOR_EXTREMAL = BAD | {"area": SHARES, "steps": [0, 1.5], "game": ["hide", None, 1]}


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    [
        (method, argument, value)
        for method, table in ((rise, BAD_FOR_RISE), (extremal_perturbation, BAD_FOR_EXTREMAL))
        for argument, values in table.items()
        for value in values
    ],
)
def test_bad_options(method: Callable[..., Tensor], argument: str, value: object) -> None:
    model = Returning(make("Residual"), lambda y: y)
    with pytest.raises((ValueError, TypeError), match=f"^{argument}[ :]") as error:
        method(model, batch(), **{argument: value})
    assert not model.forwards
    assert "\n" not in str(error.value)


def test_what_an_error_says() -> None:
    with pytest.raises(ValueError, match=r"^keep is 1; it must be a share, more than 0 and less"):
        random_masks((8, 8), 4, keep=1)
    with pytest.raises(ValueError, match="^game: there is no 'hide'; choose one of preserve, del"):
        extremal_perturbation(make("Residual"), batch(), game="hide")
    with pytest.raises(TypeError, match="^model must be a torch.nn.Module"):
        extremal_perturbation(Recorder(), batch())  # type: ignore[arg-type]
    assert GAMES == ("preserve", "delete")
    assert masks.rise.__name__ == "rise"


# -- on a real network -----------------------------------------------------------------------------


@pytest.mark.slow
def test_rise_on_a_real_network() -> None:
    """Against the definition, mask by mask."""
    classifier = models.load("efficientnet_lite0")
    x = classifier.to_input(photographs.picture("chelsea"))
    drawn = random_masks((224, 224), 6)(torch.arange(6))
    with torch.no_grad():
        logits = [classifier.model(mask[None, None].float() * x)[0] for mask in drawn]
    scores = torch.stack(logits)[:, 281].double()
    difference = (scores - scores.mean())[:, None, None] * (drawn - 0.5)
    expected = difference.sum(0) / 5 / mask_variance((224, 224), 0.5, 7)
    found = rise(classifier.model, x, 281, samples=6)
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_extremal_perturbation_on_a_real_network() -> None:
    """The mask keeps more than the photograph's best of twenty smooth masks of its area."""
    classifier = models.load("efficientnet_lite0")
    x = classifier.to_input(photographs.picture("chelsea"))
    mask = extremal_perturbation(classifier.model, x, 281, steps=30)
    assert mask.shape == (1, 224, 224)
    assert 0.08 < float(mask.mean()) < 0.16

    others = smooth_mask(torch.rand(20, 16, 16, generator=seeded(0)) ** 8, 14, (224, 224))
    others *= mask.mean() / others.mean((1, 2), keepdim=True)
    with torch.no_grad():
        kept = classifier.model(torch.cat([mask, others.clamp(max=1)])[:, None] * x)[:, 281]
    assert kept[0] > kept[1:].max() + 2
