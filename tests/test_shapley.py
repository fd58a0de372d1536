import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils.contract import Estimate
from course_utils.methods import propagation, regions, shapley
from course_utils.methods.shapley import deep_shap, exact_shapley, kernel_shap, shap_image
from tests.networks import NETWORKS, batch, make

LABELS = torch.tensor([[5, -2], [900, 0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
BACKGROUND = batch(3, seed=7)


def index(coalitions: Tensor) -> Tensor:
    return (coalitions.long() << torch.arange(coalitions.shape[1])).sum(1)


# Untyped: what an Estimate may leave out, these estimate.
kernel_shap_fit: Any = shapley.kernel_shap_fit
shap_image_fit: Any = shapley.shap_image_fit


class Game:
    """A number for each coalition, and a record of which were asked for."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.players = values, len(values).bit_length() - 1
        self.asked: list[int] = []
        self.calls: list[int] = []

    def __call__(self, coalitions: Tensor) -> Tensor:
        assert coalitions.dtype == torch.bool
        assert coalitions.shape[1] == self.players
        self.calls.append(len(coalitions))
        self.asked += index(coalitions).tolist()
        return self.values[index(coalitions)]

    def __getitem__(self, coalition: set[int] | frozenset[int]) -> float:
        return float(self.values[sum(2**i for i in coalition)])


def random_game(players: int, seed: int = 0) -> Game:
    generator = torch.Generator().manual_seed(100 * players + seed)
    return Game(torch.randn(2**players, generator=generator, dtype=torch.float64))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_orders(game: Game) -> list[float]:
    """Twin: what each adds when they come one after the other, over all orders."""
    phi = [0.0] * game.players
    for order in itertools.permutations(range(game.players)):
        there: set[int] = set()
        for i in order:
            phi[i] += (game[there | {i}] - game[there]) / math.factorial(game.players)
            there.add(i)
    return phi


def by_formula(game: Game) -> list[float]:
    n, phi = game.players, []
    for i in range(n):
        others, total = [j for j in range(n) if j != i], 0.0
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in itertools.combinations(others, size):
                s = set(chosen)
                total += weight * (game[s | {i}] - game[s])
        phi.append(total)
    return phi


def close(result: Tensor, expected: Any, tolerance: float = 1e-10) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)


# --- Exact values -----------------------------------------------------------------------------


def everything(value: Any, players: int, **options: Any) -> Tensor:
    return kernel_shap(value, players, samples=2**players, **options)


every_exact = pytest.mark.parametrize("solve", [exact_shapley, everything])


@every_exact
def test_three_players_by_hand(solve: Callable) -> None:
    # Two left gloves and a right one: a pair is worth 1.
    gloves = Game(torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1]))
    close(solve(gloves, 3), [1 / 6, 1 / 6, 4 / 6])


@every_exact
def test_one_and_two_players(solve: Callable) -> None:
    close(solve(Game(torch.tensor([3.0, 10])), 1), [7])
    # v: none 1, first 2, second 4, both 10; the first adds 1 or 6, the second 3 or 8.
    close(solve(Game(torch.tensor([1.0, 2, 4, 10])), 2), [3.5, 5.5])


@every_exact
@pytest.mark.parametrize("players", range(1, 7))
def test_mean_over_all_orders(solve: Callable, players: int) -> None:
    game = random_game(players)
    close(solve(game, players), by_orders(game))


@every_exact
@pytest.mark.parametrize("players", range(1, 11))
def test_the_formula(solve: Callable, players: int) -> None:
    game = random_game(players, seed=1)
    result = solve(game, players)
    assert result.dtype == torch.float64
    close(result, by_formula(game))


@every_exact
@pytest.mark.parametrize("players", [1, 2, 5, 8])
def test_each_coalition_is_asked_for_once(solve: Callable, players: int) -> None:
    game = random_game(players)
    solve(game, players, batch_size=7)
    assert sorted(game.asked) == list(range(2**players))
    assert game.calls[:-1] == [7] * (2**players // 7)
    assert max(game.calls) <= 7


@every_exact
def test_axioms(solve: Callable) -> None:
    n, tables = 5, [random_game(5, seed).values for seed in range(2)]
    first, second = (solve(Game(table), n) for table in tables)
    for table, phi in zip(tables, (first, second), strict=True):
        close(phi.sum(), table[-1] - table[0])  # efficiency
    close(solve(Game(2 * tables[0] - 3 * tables[1]), n), 2 * first - 3 * second)  # linearity

    number = torch.arange(2**n)
    swapped = number & ~0b10010 | (number >> 3 & 2) | (number << 3 & 16)  # players 1 and 4
    alike = solve(Game(tables[0] + tables[0][swapped]), n)
    close(alike[1], alike[4])  # symmetry
    idle = solve(Game(tables[0][number & ~0b100]), n)
    close(idle[2], 0)  # dummy
    alone = solve(Game(tables[0][number & ~0b100] + 3 * (number >> 2 & 1)), n)
    close(alone[2], 3)
    renamed = solve(Game(tables[0][swapped]), n)
    close(renamed, first[[0, 4, 2, 3, 1]])  # names do not matter


def test_twenty_players_and_no_more() -> None:
    weights = torch.arange(20, dtype=torch.float64)
    close(exact_shapley(lambda s: s.double() @ weights, 20, batch_size=2**16), weights, 1e-8)
    with pytest.raises(ValueError, match=r"^players is 21; .* all 2\^21 coalitions; use kernel_sh"):
        exact_shapley(lambda s: pytest.fail("asked"), 21)


# --- KernelSHAP -------------------------------------------------------------------------------

BUDGETS = [(4, 10), (4, 15), (5, 12), (6, 30), (8, 18), (8, 61), (9, 200), (10, 1000), (12, 63)]
every_budget = pytest.mark.parametrize(("players", "samples"), BUDGETS)


@every_budget
def test_the_budget(players: int, samples: int) -> None:
    game = random_game(players)
    phi = kernel_shap(game, players, samples=samples, batch_size=7)
    everybody = 2**players - 1
    assert samples - 1 <= len(game.asked) <= samples
    assert len(set(game.asked)) == len(game.asked)
    assert {everybody ^ number for number in game.asked} == set(game.asked)  # complements
    assert {0, everybody} <= set(game.asked)
    assert max(game.calls) <= 7
    close(phi.sum(), game.values[-1] - game.values[0], 1e-12)


@every_budget
def test_sizes_from_the_outside_in(players: int, samples: int) -> None:
    game = random_game(players)
    kernel_shap(game, players, samples=samples)
    sizes = np.bincount([number.bit_count() for number in game.asked], minlength=players + 1)
    left, whole = (samples - 2) // 2 * 2, True
    weight = {s: 1 / (s * (players - s)) for s in range(1, players)}
    for size in range(1, players // 2 + 1):
        kind = {size, players - size}
        available = sum(math.comb(players, s) for s in kind)
        others = sum(weight[s] for s in range(size, players - size + 1))
        enough = left * sum(weight[s] for s in kind) / others >= available - 1e-9
        whole = whole and (size == 1 or enough)
        if whole:
            assert sum(sizes[s] for s in kind) == available
            left -= available
        elif 2 * size < players:
            assert sizes[size] == sizes[players - size] <= math.comb(players, size)


@pytest.mark.parametrize(("players", "samples"), [(9, 96), (9, 264), (12, 170), (10, 120)])
def test_what_is_drawn_weighs_no_more_than_what_is_whole(players: int, samples: int) -> None:
    """As many samples as a size needs, and two more: these must not speak for all other sizes."""
    coalitions, weights = shapley._coalitions(players, samples, 0)
    sizes = coalitions.sum(1)
    whole = [s for s in range(1, players) if (sizes == s).sum() == math.comb(players, s)]
    assert {1, players - 1} <= set(whole)
    inside = (sizes > 0) & (sizes < players)
    drawn = inside & ~torch.isin(sizes, torch.tensor(whole))
    assert drawn.any()
    assert weights[drawn].max() <= weights[inside & ~drawn].min() * (1 + 1e-9)
    assert float(weights.sum()) == pytest.approx(
        sum((players - 1) / (s * (players - s)) for s in range(1, players))
    )


def test_more_passes_do_not_make_it_worse() -> None:
    for fewer, more in ((90, 96), (256, 270)):  # where sizes 2 and 3 of nine players fit just so
        assert error(9, more)[0] < 1.1 * error(9, fewer)[0]


@every_budget
def test_kernel_shap_is_the_weighted_least_squares_fit(players: int, samples: int) -> None:
    game = random_game(players)
    result = kernel_shap_fit(game, players, samples=samples, generator=seeded(3))
    n = players
    asked = [k for k in game.asked if k not in (0, 2**n - 1)]
    sizes = np.array([k.bit_count() for k in asked])
    # π of sizes that are there as a whole; the others share what their sizes weigh.
    whole = [(sizes == s).sum() == math.comb(n, s) for s in range(n + 1)]
    mass = [(n - 1) / (s * (n - s)) for s in range(1, n)]
    drawn = sum(not whole[s] for s in sizes)
    rest = sum(m for s, m in enumerate(mass, 1) if not whole[s])
    weights = np.array([mass[s - 1] / math.comb(n, s) if whole[s] else rest / drawn for s in sizes])
    z = np.array([[k >> i & 1 for i in range(n)] for k in asked], float)
    gain = np.array([float(game.values[k] - game.values[0]) for k in asked])
    total = float(game.values[-1] - game.values[0])
    # Lagrange: 2 ZᵀWZ φ + λ 1 = 2 ZᵀW y, 1ᵀφ = total.
    system = np.block(
        [[2 * z.T * weights @ z, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]]
    )
    solution = np.linalg.solve(system, [*(2 * z.T * weights @ gain), total])[:n]
    close(result.value, solution, 1e-9)
    mean = np.average(gain, weights=weights)
    r2 = 1 - weights @ (gain - z @ solution) ** 2 / (weights @ (gain - mean) ** 2)
    close(result.r2, r2, 1e-9)


def test_sizes_are_drawn_as_they_weigh() -> None:
    n, counts = 12, torch.zeros(13)

    def value(coalitions: Tensor) -> Tensor:
        counts.index_add_(0, coalitions.sum(1), torch.ones(len(coalitions)))
        return coalitions.sum(1)

    for seed in range(300):  # all of sizes 1 and 11, then five pairs of the others
        kernel_shap(value, n, samples=36, generator=seeded(seed), batch_size=36)
    mass = torch.tensor([1 / (s * (n - s)) for s in range(2, n - 1)])
    torch.testing.assert_close(counts[2:-2] / 300, 10 * mass / mass.sum(), rtol=0, atol=0.15)


def error(players: int, samples: int, seeds: int = 20) -> tuple[float, float]:
    """Of single estimates, and of their mean."""
    game = random_game(players, seed=5)
    exact = exact_shapley(game, players)
    off = torch.stack(
        [
            kernel_shap(game, players, samples=samples, generator=seeded(seed)) - exact
            for seed in range(seeds)
        ]
    )
    return float(off.square().mean().sqrt()), float(off.mean(0).square().mean().sqrt())


def test_convergence() -> None:
    errors = [error(10, samples)[0] for samples in (40, 160, 640, 1024)]
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert errors[3] < 1e-10
    single, mean = error(10, 100, seeds=100)
    assert mean < 0.2 * single  # 1/√100 without bias


def test_a_sum_of_players_is_found_at_the_smallest_budget() -> None:
    weights = torch.linspace(-2, 3, 50, dtype=torch.float64)
    for samples in (102, 103, 500):
        result = kernel_shap_fit(lambda s: 1 + s.double() @ weights, 50, samples=samples)
        close(result.value, weights)
        close(result.r2, 1)


@pytest.mark.parametrize("players", [1, 2, 3, 7])
def test_a_game_that_does_not_vary_has_no_r2(players: int) -> None:
    result = kernel_shap_fit(lambda s: torch.full((len(s),), 0.1), players, samples=200)
    assert isinstance(result, Estimate)
    close(result.value, [0.0] * players)
    assert result.r2 is not None
    assert result.r2.isnan()


def test_seeds() -> None:
    game = random_game(10)
    before = torch.get_rng_state()
    first = kernel_shap(game, 10, samples=100)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, kernel_shap(game, 10, samples=100, generator=seeded(0)))
    generator = seeded(1)
    one, two = (kernel_shap(game, 10, samples=100, generator=generator) for _ in range(2))
    assert not torch.equal(one, first)
    assert not torch.equal(one, two)
    # However much is drawn, the caller's generator goes on by one number.
    fresh = seeded(1)
    kernel_shap(random_game(2), 2, generator=fresh)
    kernel_shap(random_game(12), 12, samples=300, generator=fresh)
    assert torch.equal(fresh.get_state(), generator.get_state())


def test_two_hundred_players() -> None:
    calls: list[int] = []

    def value(coalitions: Tensor) -> Tensor:
        calls.append(len(coalitions))
        return coalitions[:, :100].sum(1) * coalitions[:, 100:].sum(1)

    phi = kernel_shap(value, 200)
    close(phi.sum(), 10000, 1e-8)
    assert sum(calls) == 2048
    assert max(calls) == 16


# --- Bad games --------------------------------------------------------------------------------


def refuses(function: Callable, name: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b") as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("solve", [exact_shapley, kernel_shap])
@pytest.mark.parametrize(
    ("name", "bad"),
    [("players", bad) for bad in (0, -1, 2.0, True, None, "three")]
    + [("batch_size", bad) for bad in (0, 1.5)],
)
def test_bad_counts(solve: Callable, name: str, bad: object) -> None:
    options = {"players": 3, "batch_size": 4} | {name: bad}
    refuses(solve, name, lambda s: pytest.fail("asked"), **options)


@pytest.mark.parametrize("solve", [exact_shapley, kernel_shap])
def test_bad_values(solve: Callable) -> None:
    refuses(solve, "value", torch.zeros(8), 3)
    for answer in (
        lambda s: s.double(),
        lambda s: s.double().sum(1)[:1],
        lambda s: 1.0,
        lambda s: s.numpy().sum(1),
        lambda s: s.sum(1) / 0,
    ):
        refuses(solve, "value must return", answer, 3)


@pytest.mark.parametrize(
    ("players", "samples", "fewest"),
    [(1, 1, 2), (2, 3, 4), (3, 0, 8), (3, 7, 8), (4, 9, 10), (50, 101, 102), (4, -1, 10)],
)
def test_a_budget_that_is_too_small(players: int, samples: int, fewest: int) -> None:
    with pytest.raises(ValueError, match=rf"^samples is {samples}; .* at least {fewest}:"):
        kernel_shap(lambda s: pytest.fail("asked"), players, samples=samples)
    kernel_shap(lambda s: s.sum(1), players, samples=fewest)


def test_bad_samples_and_generators() -> None:
    for bad in (2.5, True, None):
        refuses(kernel_shap, "samples", lambda s: pytest.fail("asked"), 3, samples=bad)
    for wrong in (0, "cpu"):
        refuses(kernel_shap, "generator", lambda s: pytest.fail("asked"), 3, generator=wrong)


# --- Images -----------------------------------------------------------------------------------


class Recorder:
    """A function of images that is no module, not linear, and how many images each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        corners = images[:, 0, ::7, ::7].flatten(1)
        return torch.stack([corners.prod(1), corners.exp().sum(1)], 1)


def shap(*arguments: Any, **options: Any) -> Tensor:
    return shap_image(*arguments, **{"segments": LABELS, **options})


def estimate(*arguments: Any, **options: Any) -> Any:
    return shap_image_fit(*arguments, **{"segments": LABELS, **options})


def test_each_pixel_carries_its_segment() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    labels = np.array([[7, 7, 7, -1], [7, 7, 7, -1], [3, 3, 3, 3], [3, 3, 3, 3]])

    def total(x: Tensor) -> Tensor:
        return x.sum((1, 2, 3))[:, None]

    # f is a sum: a segment's value is the sum of its pixels, not divided among them.
    sums = torch.tensor([[18.0] * 3 + [10.0]] * 2 + [[92.0] * 4] * 2)[None]
    assert torch.equal(shap(total, image, segments=labels, baseline=0.0), sums)
    size = torch.tensor([[6.0] * 3 + [2.0]] * 2 + [[8.0] * 4] * 2)
    assert torch.equal(shap(total, image, segments=labels), sums - 7.5 * size)
    ramp = torch.tensor([[-6.0] * 4] * 2 + [[-12.0] * 4] * 2)[None]
    assert torch.equal(shap(total, image, segments=labels, baseline=image + torch.arange(4)), ramp)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("absent", ["mean", "number", "tensor", "background"])
def test_shap_image_is_the_shapley_values_of_the_segments(network: str, absent: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    choices: dict[str, dict[str, Any]] = {
        "mean": {},
        "number": {"baseline": 0.7},
        "tensor": {"baseline": batch(2, seed=3, dtype=torch.float64)},
        "background": {"background": BACKGROUND.double()},
    }
    options = choices[absent]
    result = shap(model, images, 3, **options)
    names = LABELS.unique()
    for i, image in enumerate(images):
        others = {
            "mean": image.mean((1, 2), keepdim=True).expand_as(image)[None],
            "number": torch.full_like(image, 0.7)[None],
            "tensor": options.get("baseline", images)[i][None] if absent == "tensor" else None,
            "background": BACKGROUND.double(),
        }[absent]
        assert others is not None
        values = []
        for number in range(2 ** len(names)):
            seen = torch.zeros(8, 8, dtype=torch.bool)
            for k, name in enumerate(names):
                seen |= (name == LABELS) & bool(number >> k & 1)
            with torch.no_grad():
                values.append(model(torch.where(seen, image, others))[:, 3].mean())
        phi = by_orders(Game(torch.stack(values)))
        for k, name in enumerate(names):
            close(result[i][name == LABELS], [phi[k]] * 16)


def test_beyond_the_budget_it_is_kernel_shap() -> None:
    image, labels = batch(1, dtype=torch.float64), torch.arange(64).view(8, 8) // 4
    model = make("Residual").double().eval()

    def value(coalitions: Tensor) -> Tensor:
        seen = coalitions[:, labels][:, None]
        with torch.no_grad():
            return model(torch.where(seen, image, torch.zeros(()).double()))[:, 2]

    expected = kernel_shap_fit(value, 16, samples=200, generator=seeded(4))
    options: dict[str, Any] = {"segments": labels, "baseline": 0.0}
    result = estimate(model, image, 2, samples=200, generator=seeded(4), **options)
    close(result.value[0], expected.value[labels])
    close(result.r2[0], expected.r2)
    assert result.standard_error is None
    other = estimate(model, image, 2, **options)
    assert not torch.equal(other.r2, result.r2)


def test_segments_of_each_image() -> None:
    model, images = make("Residual").double(), batch(dtype=torch.float64)
    columns = torch.arange(8).expand(8, 8)
    labels = torch.stack([LABELS, columns, columns // 4])
    result = shap(model, images, segments=labels)
    for i in range(3):
        alone = shap(model, images[i : i + 1], segments=labels[i])
        close(result[i : i + 1], alone)
    for dtype in (torch.int8, torch.int32, torch.long):
        renamed = (columns * 3 - 10).to(dtype)
        assert torch.equal(shap(model, images, segments=renamed)[1], result[1])
    assert torch.equal(shap(model, images, segments=labels.numpy()), result)


def test_one_segment_is_refused() -> None:
    refuses(shap, "segments must be at least two", Recorder(), batch(), 1, segments=LABELS * 0 - 3)


def test_segments_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 24, 24, generator=generator).cumsum(2).cumsum(3)

    def model(x: Tensor) -> Tensor:
        return x.sum((1, 2, 3))[:, None].sin()

    labels = np.stack([regions.segment(image) for image in images])
    assert labels.max() > 20
    result = shap_image(model, images, samples=300)
    assert torch.equal(result, shap_image(model, images, segments=labels, samples=300))


@pytest.mark.parametrize("target", [None, 1])
def test_passes_of_shap_image(target: int | None) -> None:
    model = Recorder()
    shap(model, batch(), target, batch_size=7)
    assert sum(model.calls) == 3 * 2**4  # the whole image and the class from one pass
    assert max(model.calls) == 7
    assert len(model.calls) == 1 + 3 * 3
    for samples in (64, 201):
        model.calls.clear()
        labels = torch.arange(64).view(8, 8) // 4
        shap(model, batch(), target, segments=labels, samples=samples, batch_size=7)
        assert sum(model.calls) == 3 * (samples - samples % 2)
        assert max(model.calls) == 7
    model.calls.clear()
    shap(model, batch(), target, background=BACKGROUND, batch_size=7)
    assert sum(model.calls) == 3 * (1 + 15 * 3)
    assert max(model.calls) == 7


@pytest.mark.parametrize("network", NETWORKS)
def test_batches_do_not_matter(network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    baselines = BACKGROUND.double()
    for explain in (
        lambda x, **options: shap(model, x, **options),
        lambda x, **options: shap(model, x, background=baselines, **options),
        lambda x, **options: shap_image(
            model, x, segments=torch.arange(64).view(8, 8) // 6, samples=50, **options
        ),
        lambda x, **options: deep_shap(model, x, background=baselines, **options),
    ):
        together = explain(images)
        close(together, torch.cat([explain(image[None]) for image in images]))
        for batch_size in (1, 2, 4, 1000):
            close(together, explain(images, batch_size=batch_size))


def test_a_function_is_explained_as_a_module_is() -> None:
    model, images = make("Residual").eval(), batch()
    function = shap(lambda x: model(x), images)
    assert torch.equal(shap(model, images), function)
    assert not function.requires_grad


EXPLAIN: dict[str, Callable] = {
    "shap_image": shap,
    "deep_shap": lambda model, x, *arguments: deep_shap(
        model, x, *arguments, background=BACKGROUND.to(x)
    ),
}


@pytest.mark.parametrize("name", EXPLAIN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(name: str, dtype: torch.dtype) -> None:
    model, images = make("Residual").to(dtype), batch().to(dtype)
    result = EXPLAIN[name](model, images, 1)
    assert result.shape == ((3, 3, 8, 8) if name == "deep_shap" else (3, 8, 8))
    assert result.dtype == dtype
    with torch.inference_mode():
        again = EXPLAIN[name](model, images.clone(), 1)
    assert torch.equal(result, again)
    model.eval()
    with torch.no_grad():
        answers = model(images).argmax(1)
    assert torch.equal(EXPLAIN[name](model, images), EXPLAIN[name](model, images, answers))


def test_seeds_of_shap_image() -> None:
    model, images = Recorder(), batch()
    labels = torch.arange(64).view(8, 8) // 4
    before = torch.get_rng_state()
    first = shap(model, images, segments=labels, samples=100)
    assert torch.equal(torch.get_rng_state(), before)
    again = shap(model, images, segments=labels, samples=100, generator=seeded(0))
    assert torch.equal(first, again)
    other = shap(model, images, segments=labels, samples=100, generator=seeded(1))
    assert not torch.equal(first, other)


SETS: list[object] = [
    None,
    0.0,
    BACKGROUND.numpy(),
    BACKGROUND[0],
    BACKGROUND[:0],
    BACKGROUND[..., :7],
    BACKGROUND[:, :2],
    BACKGROUND.long(),
    BACKGROUND / 0,
]
BAD: dict[str, list[object]] = {
    "segments": [
        "slic",
        [[0, 1]],
        LABELS[:7],
        LABELS[None, None],
        LABELS.expand(2, 8, 8),
        LABELS.expand(4, 8, 8),
        LABELS.float(),
        LABELS.bfloat16(),
        LABELS > 0,
        LABELS.numpy() / 2,
    ],
    "samples": [0, -5, 9, 2.5, True, None],
    "baseline": [math.nan, "grey", True, torch.zeros(2, 8, 8)],
    "background": SETS[1:],
    "batch_size": [0, 1.5, None],
    "generator": [0, "cpu"],
}


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name in BAD for bad in BAD[name]])
def test_bad_options_of_shap_image(name: str, bad: object) -> None:
    model = Recorder()
    refuses(shap, name, model, batch(), **{name: bad})
    assert not model.calls


def test_bad_images_and_targets() -> None:
    model = Recorder()
    for images in (batch()[0], batch().long(), batch() / 0):
        refuses(shap, "images", model, images)
    refuses(shap, "model must be a torch.nn.Module or a function", "resnet18", batch())
    refuses(shap, "baseline and background", model, batch(), baseline=0.0, background=BACKGROUND)
    assert not model.calls
    refuses(shap, "target: there is no class 2", model, batch(), 2)
    assert model.calls == [3]
    refuses(shap, "model must return logits", lambda x: x, batch())
    refuses(shap, "model must return finite", lambda x: x.sum((1, 2, 3))[:, None] / 0, batch())
    refuses(shap, "model must return a tensor", lambda x: x.sum((1, 2, 3))[:3, None], batch())


# --- DeepSHAP ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_deep_shap_is_the_mean_of_deeplift(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    baselines = BACKGROUND.double()
    result = deep_shap(model, images, 3, background=baselines)
    maps = [propagation.deeplift(model, images, 3, baseline=one[None]) for one in baselines]
    close(result, torch.stack(maps).mean(0))
    with torch.no_grad():
        difference = model(images)[:, 3] - model(baselines)[:, 3].mean()
    close(result.sum((1, 2, 3)), difference)


def test_deep_shap_of_a_linear_model_is_exact() -> None:
    # Of f = w · x the Shapley value of x_i, absent as in the baselines, is w_i (x_i − mean x'_i).
    linear = nn.Linear(192, 2).double()
    model = nn.Sequential(nn.Flatten(), linear)
    images, baselines = batch(dtype=torch.float64), BACKGROUND.double()
    weight = linear.weight[1].detach().view(3, 8, 8)
    close(deep_shap(model, images, 1, background=baselines), weight * (images - baselines.mean(0)))


def test_baselines_broadcast() -> None:
    model = make("Residual").double()
    images, colours = batch(dtype=torch.float64), torch.tensor([-1.0, 2]).double().view(2, 1, 1, 1)
    whole = colours.expand(2, 3, 8, 8)
    close(
        deep_shap(model, images, background=colours), deep_shap(model, images, background=whole), 0
    )


def test_passes_of_deep_shap() -> None:
    sizes: list[int] = []
    model = make("Residual")
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    deep_shap(model, batch(2), 1, background=BACKGROUND, batch_size=4)
    # Six pairs, four and then two: of the first two baselines, then of the third, which runs once.
    assert sizes == [4, 4, 2, 1]
    sizes.clear()
    deep_shap(model, batch(1), background=batch(5), batch_size=4)
    assert sizes == [1, 4, 4, 1, 1]


@pytest.mark.parametrize("bad", SETS)
def test_bad_baselines(bad: object) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    refuses(deep_shap, "background", model, batch(), 1, background=bad)


def test_deep_shap_refuses() -> None:
    model = make("Residual")
    refuses(deep_shap, "batch_size", model, batch(), 1, background=BACKGROUND, batch_size=0)
    refuses(deep_shap, "target: there is no class 5", model, batch(), 5, background=BACKGROUND)
    refuses(
        deep_shap, "model must be a torch.nn.Module", Recorder(), batch(), background=BACKGROUND
    )


# --- The field's libraries --------------------------------------------------------------------


@pytest.mark.references
@pytest.mark.parametrize("players", [2, 5, 9])
@pytest.mark.filterwarnings("ignore")
def test_exact_values_equal_those_of_shap(players: int) -> None:
    import shap

    game = random_game(players)

    def value(rows: np.ndarray) -> np.ndarray:
        return game(torch.from_numpy(rows) > 0.5).numpy()

    ones, zeros = np.ones((1, players)), np.zeros((1, players))
    expected = exact_shapley(game, players)
    explainer = shap.KernelExplainer(value, zeros)
    reference = explainer.shap_values(ones, nsamples=2**players, l1_reg=False, silent=True)[0]
    close(expected, reference, 1e-8)
    exact = shap.ExactExplainer(value, shap.maskers.Independent(zeros))
    close(expected, exact(ones).values[0], 1e-8)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_shap_image_equals_captum() -> None:
    from captum.attr import KernelShap, ShapleyValues

    model, images = make("Residual").double().eval(), batch(1, dtype=torch.float64)
    labels = LABELS.unique(return_inverse=True)[1]
    mask = labels.repeat(1, 3, 1, 1)
    result = shap(model, images, 2, baseline=0.5)
    options: dict[str, Any] = {"baselines": 0.5, "target": 2, "feature_mask": mask}
    theirs = ShapleyValues(lambda x: model(x.clone())).attribute(images, **options)
    close(result, theirs[:, 0], 1e-8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        estimate = KernelShap(lambda x: model(x.clone())).attribute(
            images, n_samples=2000, **options
        )
    # It draws with replacement, and holds the sum by a large weight.
    close(result, estimate[:, 0], 0.1 * float(result.abs().max()))


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_deep_shap_equals_captum_and_shap() -> None:
    import shap
    from captum.attr import DeepLiftShap

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 5)
        ).double()
    images, baselines = batch(2, dtype=torch.float64), BACKGROUND.double()
    result = deep_shap(model, images, 1, background=baselines)
    theirs = DeepLiftShap(model).attribute(images.clone(), baselines, target=1)
    close(result, theirs, 1e-9)
    explainer = shap.DeepExplainer(model, baselines)
    reference = explainer.shap_values(images.clone(), check_additivity=False)[..., 1]
    close(result, torch.from_numpy(reference), 1e-9)


@pytest.mark.parametrize("players", [1, 2, 5])
def test_games_that_share_their_players_at_once_are_each_alone(players: int) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(2**players, 3, generator=generator, dtype=torch.float64)
    bits, together = 2 ** torch.arange(players), shapley.shapley_of_all(v)
    coalitions = shapley.all_coalitions(players)
    assert torch.equal((coalitions * bits).sum(1), torch.arange(2**players))
    for k in range(3):
        game = v[:, k]
        alone = shapley.exact_shapley(
            partial(lambda game, s: game[(s * bits).sum(1)], game), players
        )
        torch.testing.assert_close(together[:, k], alone)
        torch.testing.assert_close(together[:, k].sum(), v[-1, k] - v[0, k])
