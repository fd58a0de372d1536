"""Homework 03: right answers in other manners pass, and wrong ones get the hint one would want."""

import functools
import random
from collections.abc import Callable
from itertools import combinations, permutations
from math import factorial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.evaluation import axioms as library
from course_utils.homework import Wrong, check, hw03
from course_utils.methods import AXIOMS, METHODS, gradients, propagation, shapley
from tests import keys, networks

pytestmark = pytest.mark.slow

TABLE: dict[str, dict[str, str]] = {
    "absolute_gradient": {"completeness": "flat", "sensitivity": "flat", "linearity": "minimum"},
    "integrated_gradients": {},
    "occlusion": {"completeness": "both"},
    "equal_shares": {"dummy": "flat"},
}


def refused(name: str, answer: Callable[..., Any]) -> Wrong:
    return keys.refused(f"hw03.{name}", answer)


# The table ------------------------------------------------------------------------------------


def test_the_two_new_methods() -> None:
    model, images = networks.make("Functional").double().eval(), networks.batch(dtype=torch.double)
    target = torch.tensor([4, 0, 2])
    slopes = gradients.gradient(model, images, target)
    assert torch.equal(hw03.absolute_gradient(model, images, target), slopes.abs())
    baseline = torch.full_like(images, 0.5)
    shares = hw03.equal_shares(model, images, target, baseline=baseline)
    gained = (model(images) - model(baseline)).gather(1, target[:, None])
    assert torch.allclose(shares.flatten(1).sum(1, keepdim=True), gained)
    assert all(share.unique().numel() == 1 for share in shares)


def by_hand(method: str, name: str) -> tuple[list[float], float]:
    """What each method gives to the two pixels, and f(x) − f(0), by paper and pencil."""
    networks: dict[str, tuple[list[float], list[float], list[float], float]] = {
        "flat": ([0, 0], [1, 0], [1, 0], 1),
        "minimum": ([0, 1], [1, 1], [0, 1], 1),
        "difference": ([1, -1], [2, -1], [2, -1], 1),
        "first": ([3, 0], [3, 0], [3, 0], 3),
        "both": ([1, 1], [1, 1], [0.5, 0.5], 1),
    }
    slopes, hidden, path, gained = networks[name]
    maps = {
        "absolute_gradient": [abs(slope) for slope in slopes],
        "integrated_gradients": path,
        "occlusion": hidden,
        "equal_shares": [gained / 2] * 2,
    }
    return [float(share) for share in maps[method]], gained


@pytest.mark.parametrize("method", TABLE)
@pytest.mark.parametrize("name", hw03.NETWORKS)
def test_maps_of_the_five_networks(method: str, name: str) -> None:
    f, image = hw03.network(name)
    given, gained = by_hand(method, name)
    assert hw03.shares(method, f, image) == pytest.approx(given, abs=0.02)
    assert float(f(image) - f(0 * image)) == gained


PROOFS = {  # by paper and pencil
    ("absolute_gradient", "completeness"): {"flat", "difference", "both"},
    ("absolute_gradient", "sensitivity"): {"flat"},
    ("absolute_gradient", "linearity"): {"minimum", "difference", "first", "both"},
    ("occlusion", "completeness"): {"minimum", "both"},
    ("equal_shares", "dummy"): {"flat", "first"},
}


@pytest.mark.parametrize("method", TABLE)
@pytest.mark.parametrize("axiom", AXIOMS)
@pytest.mark.parametrize("name", hw03.NETWORKS)
def test_each_proof(method: str, axiom: str, name: str) -> None:
    """A broken promise and a network that proves it pass; whatever else is said is refused."""
    table = {**TABLE, method: {**TABLE[method], axiom: name}}
    if name in PROOFS.get((method, axiom), set()):
        check("hw03.promises", lambda: table)
    else:
        broken = axiom in TABLE[method]
        wanted = hw03.NO_PROOF if broken else hw03.KEPT[method]
        assert refused("promises", lambda: table).hint == wanted


@pytest.mark.parametrize(("method", "axiom"), PROOFS)
def test_each_promise_that_is_not_named(method: str, axiom: str) -> None:
    proofs = {name: proof for name, proof in TABLE[method].items() if name != axiom}
    wrong = refused("promises", lambda: {**TABLE, method: proofs})
    assert wrong.hint == hw03.MISSED[method, axiom]
    assert axiom not in wrong.what + wrong.hint


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: None, "the table holds NoneType"),
        (lambda: {}, "the table holds nothing"),
        (lambda: {**TABLE, "lrp": {}}, "lrp"),
        (lambda: dict.fromkeys(TABLE), "absolute_gradient: None is no dictionary"),
        (lambda: {**TABLE, "occlusion": {"completeness"}}, "is no dictionary"),
        (lambda: {**TABLE, "occlusion": {"complete": "both"}}, "occlusion: complete"),
        (lambda: {**TABLE, "occlusion": {"completeness": "linear"}}, "occlusion: linear"),
        (lambda: {**TABLE, "occlusion": {"completeness": None}}, "occlusion: None"),
        (lambda: {**TABLE, "occlusion": {"completeness": ["both"]}}, "cannot be used"),
        (
            lambda: (library.axioms(METHODS["occlusion"]), TABLE)[1],
            "the answer calls course_utils.evaluation.axioms.axioms",
        ),
    ],
)
def test_table_refused(answer: Callable[[], Any], words: str) -> None:
    assert words in refused("promises", answer).what


# Networks of one's own ------------------------------------------------------------------------


class Layers(nn.Module):
    """Linear layers with these weights and biases, and an activation between them."""

    def __init__(self, *layers: tuple[list, list], activation: Callable = torch.relu) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.tensor(w) for w, _ in layers])
        self.biases = nn.ParameterList([torch.tensor(b) for _, b in layers])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(self.activation(x) if number else x, w, b)
        return x


class Of(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x).reshape(len(x), -1)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float).view(1, 1, 1, -1)


def convolution() -> tuple[nn.Module, Tensor]:
    """min(pixel, 1) of a colour picture, summed over its places, and a second class."""
    first, last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        for parameter, value in zip(
            [*first.parameters(), *last.parameters()], (-1, 1, -1, 0), strict=True
        ):
            parameter.fill_(value)
    network = nn.Sequential(first, nn.ReLU(inplace=True), last, nn.AdaptiveAvgPool2d(1))
    image = torch.zeros(1, 3, 2, 2)
    image[0, :, 1, 0] = torch.tensor([2.0, 0.5, 1.0])
    return nn.Sequential(network, nn.Flatten()), image


SPOTS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "layers": lambda: (Layers(([[-1.0]], [1.0]), ([[-1.0]], [1.0])), row(3)),
    "negative pixel": lambda: (Of(lambda x: F.relu(x + 1) - 7), row(-2)),
    "convolution": convolution,
    "saturated sigmoid": lambda: (Of(torch.sigmoid), row(30)),
    "steep sigmoid": lambda: (Of(lambda x: torch.sigmoid(1000 * (x - 1))), row(2)),
    "stationary": lambda: (Of(lambda x: 3 * x * (2 - x)), row(1)),
    "minimum": lambda: (Of(lambda x: torch.minimum(x, torch.ones_like(x))), row(5)),
    "clamp, in double": lambda: (Of(lambda x: x.clamp(max=1)[..., 1]), row(0, 9).double()),
    "small numbers": lambda: (Of(lambda x: 0.02 * x.clamp(max=1)), row(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOTS)
def test_spot_passes(name: str) -> None:
    check("hw03.blind_spot", SPOTS[name])


@pytest.mark.parametrize(
    ("f", "image", "hint"),
    [
        (lambda x: 0 * x, row(2), hw03.CONSTANT),
        (lambda x: x.clamp(max=1)[..., :1], row(0, 2), hw03.CONSTANT),  # the other pixel
        (torch.tanh, row(1), hw03.NOT_FLAT),
        (lambda x: x.clamp(max=1).sum(3), row(2, 3), hw03.TWO_PIXELS),
        (lambda x: x.clamp(max=1), 0 * row(2), hw03.TWO_PIXELS),
        (lambda x: 1 - F.relu(1 - x), row(1.0), hw03.KINK),
        (lambda x: 1 - F.relu(1 - x), row(1.001), hw03.KINK),
        (lambda x: torch.round(x), row(2), hw03.JUMP),
        (lambda x: torch.sign(x), row(2), hw03.JUMP),
        (lambda x: x.data * 2, row(2), hw03.CUT),
        (lambda x: x.detach() + 0 * x, row(2), hw03.CUT),
        (lambda x: (x > 0) * x.detach() + F.relu(1 - x), row(2), hw03.CUT),
    ],
)
def test_spot_refused(f: Callable[[Tensor], Tensor], image: Tensor, hint: str) -> None:
    assert refused("blind_spot", lambda: (Of(f), image)).hint == hint


def test_too_small_a_difference_is_told_the_bound() -> None:
    small = lambda x: (1 - F.relu(1 - x)) / 1000  # noqa: E731
    assert (
        "is 0.001, wanted is at least 0.01"
        in refused("blind_spot", lambda: (Of(small), row(2))).what
    )


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "NoneType came back"),
        ((Of(torch.relu),), "tuple came back"),
        ((torch.relu, row(2)), "wanted is an nn.Module"),
        ((Of, row(2)), "wanted is an nn.Module"),
        ((Of(torch.relu), torch.tensor([2.0])), "wanted is (1, C, H, W)"),
        ((Of(torch.relu), 2.0), "wanted is (1, C, H, W)"),
        ((Of(torch.relu), torch.ones(1, 1, 1, 1, dtype=torch.long)), "floating point"),
        ((Of(torch.relu), torch.ones(1, 3, 128, 128)), "has 49152 values"),
        ((nn.Flatten(0), row(2)), "wanted are logits"),
        ((library._saturating(), row(2, 0).double()), "the library's"),
    ],
)
def test_what_is_no_network_and_image(result: object, words: str) -> None:
    assert words in refused("blind_spot", lambda: result).what


# One function, two networks -------------------------------------------------------------------


def absolute(x: Tensor) -> Tensor:
    """|x| of each pixel, summed, by two ReLUs."""
    return (F.relu(x) + F.relu(-x)).sum((1, 2, 3))


def permuted() -> tuple[nn.Module, nn.Module, Tensor]:
    """Two hidden units; in g one of them is split in three, one of them negative."""
    f = Layers(([[1.0, -2.0], [0.5, 1.0]], [0.5, 0.0]), ([[1.0, -1.0]], [0.0]))
    split = [[1.0, -2.0], [1.5, 3.0], [0.5, 1.0], [0.5, 1.0]]
    g = Layers((split, [0.5, 0.0, 0.0, 0.0]), ([[1.0, -1.0, 1.0, 1.0]], [0.0]))
    return f, g, row(3, 1)


PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module, Tensor]]] = {
    "relu − relu": lambda: (
        Of(lambda x: 2 * F.relu(x)), Of(lambda x: F.relu(5 * x) - 3 * F.relu(x)), row(2)
    ),
    "minimum": lambda: (  # min(a, b) by the one or by the other, and 0 · relu for the rule's sake
        Of(lambda x: x[..., 0] - F.relu(x[..., 0] - x[..., 1])),
        Of(lambda x: x[..., 1] - F.relu(x[..., 1] - x[..., 0])),
        row(2, 1),
    ),
    "absolute value": lambda: (
        Of(absolute), Of(lambda x: absolute(2 * x) - absolute(x)), row(-2, 1)
    ),
    "split units": permuted,
    "identity": lambda: (
        Of(lambda x: F.relu(x) - F.relu(-x)), Of(lambda x: 2 * F.relu(x) - F.relu(2 * x) + x
        + 0 * F.relu(x)), row(-3)
    ),
    "in double": lambda: (
        Of(lambda x: 1 - F.relu(1 - x)), Of(lambda x: x - F.relu(x - 1)), row(0.25).double()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pair_passes(name: str) -> None:
    check("hw03.rewired", PAIRS[name])


@pytest.mark.parametrize(
    ("f", "g", "image", "hint"),
    [
        (F.relu, lambda x: x * (x > -1), row(2), hw03.POSITIVE),
        (F.relu, lambda x: 1.01 * F.relu(x), row(2), hw03.DIFFERENT),
        (F.relu, lambda x: F.relu(x) + F.relu(x - 50), row(2), hw03.DIFFERENT),
        (F.relu, lambda x: F.relu(x) - F.relu(x - 1e3), row(2e2), hw03.DIFFERENT),
        (F.relu, F.relu, row(2), hw03.NOTHING_TO_CLAMP),
        (lambda x: -F.relu(x) + x, lambda x: x - F.relu(x), row(2), hw03.SAME_WIRING),
        (lambda x: 0 * x, lambda x: F.relu(2 * x) - 2 * F.relu(x), row(2), hw03.NO_FUNCTION),
        (torch.tanh, lambda x: 2 * torch.sigmoid(2 * x) - 1, row(2), hw03.ONLY_RELUS),
        (lambda x: 3 * x, lambda x: F.relu(3 * x) - F.relu(-3 * x), row(2), hw03.ONLY_RELUS),
        (F.relu, lambda x: F.relu(x.detach()) + 0 * x, row(2), hw03.CUT),
        (F.relu, lambda x: 2 * F.relu(x) - F.relu(x.detach()), row(2), hw03.CUT),
        (F.relu, lambda x: F.relu(2 * x) - F.relu(x), row(0), hw03.KINK),
        (F.relu, lambda x: F.relu(2 * x) - F.relu(x), row(1e-9, 3), hw03.KINK),
    ],
)
def test_pair_refused(f: Callable, g: Callable, image: Tensor, hint: str) -> None:
    assert refused("rewired", lambda: (Of(f), Of(g), image)).hint == hint


def test_pair_of_the_library_is_refused() -> None:
    verdict = library.axioms(METHODS["guided_backprop"])["implementation invariance"]
    assert verdict.counterexample is not None
    f, g = verdict.counterexample.networks
    image = verdict.counterexample.image
    assert "the library's" in refused("rewired", lambda: (f, g, image)).what
    assert "calls course_utils.evaluation.axioms" in refused("rewired", library._shifted).what


# Shapley --------------------------------------------------------------------------------------


def by_orders(value: hw03.Game, players: int) -> Tensor:
    shares = torch.zeros(players)
    count = 0
    for order in permutations(range(players)):
        reached = [value(frozenset(order[:k])) for k in range(players + 1)]
        shares[list(order)] += torch.tensor(reached).diff()
        count += 1
    return shares / count


def by_subsets(value: hw03.Game, players: int) -> Tensor:
    """Each size's mean, then the mean of the sizes."""
    shares = []
    for i in range(players):
        others = frozenset(range(players)) - {i}
        sizes = []
        for size in range(players):
            sets = [frozenset(s) for s in combinations(others, size)]
            sizes.append(sum(value(s | {i}) - value(s) for s in sets) / len(sets))
        shares.append(sum(sizes) / players)
    return torch.tensor(shares)


def by_dividends(value: hw03.Game, players: int) -> Tensor:
    """Harsanyi: what each coalition adds to its parts, in equal shares to its members."""
    sets = [frozenset(s) for n in range(players + 1) for s in combinations(range(players), n)]
    dividends: dict[frozenset[int], float] = {}
    for s in sets:
        dividends[s] = value(s) - sum(d for part, d in dividends.items() if part < s)
    shares = [sum(d / len(s) for s, d in dividends.items() if i in s) for i in range(players)]
    return torch.tensor(shares)


@pytest.mark.parametrize("answer", [by_orders, by_subsets, by_dividends])
def test_shapley_passes(answer: Callable[..., Tensor]) -> None:
    check("hw03.shapley_values", answer)


def test_players_from_one() -> None:
    def answer(value: hw03.Game, players: int) -> Tensor:
        shares = torch.zeros(players, dtype=torch.float64)
        for order in permutations(range(1, players + 1)):
            for j, player in enumerate(order):
                shares[player - 1] += value(frozenset(order[: j + 1])) - value(frozenset(order[:j]))
        return shares / factorial(players)

    wrong = refused("shapley_values", answer)
    assert wrong.what == "value of 3 players was given 1, 2, 3"
    assert wrong.hint == hw03.FROM_ZERO


@pytest.mark.parametrize("kind", [set, list, tuple, torch.tensor])
def test_a_coalition_is_a_frozenset(kind: Callable[..., Any]) -> None:
    def answer(value: Callable[[Any], float], players: int) -> Tensor:
        return by_orders(lambda coalition: value(kind(list(coalition))), players)

    assert refused("shapley_values", answer).hint == hw03.FROZEN


def of_all(value: hw03.Game, players: int) -> tuple[list[float], float, float]:
    everyone = frozenset(range(players))
    lost = [value(everyone) - value(everyone - {i}) for i in range(players)]
    return lost, value(everyone), value(frozenset())


def scaled(value: hw03.Game, players: int) -> Tensor:
    lost, most, least = of_all(value, players)
    return torch.tensor(lost) / sum(lost) * (most - least)


def sampled(value: hw03.Game, players: int) -> Tensor:
    draw = random.Random(0)
    shares = torch.zeros(players)
    for _ in range(20):
        order = draw.sample(range(players), players)
        reached = [value(frozenset(order[:k])) for k in range(players + 1)]
        shares[order] += torch.tensor(reached).diff() / 20
    return shares


def banzhaf(value: hw03.Game, players: int) -> Tensor:
    shares = torch.zeros(players)
    for number in range(2**players):
        s = frozenset(i for i in range(players) if number >> i & 1)
        for i in set(range(players)) - s:
            shares[i] += (value(s | {i}) - value(s)) / 2 ** (players - 1)
    return shares


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda value, players: torch.tensor(of_all(value, players)[0]), "occlusion"),
        (banzhaf, "Banzhaf"),
        (scaled, "the mean of"),
        (sampled, "the mean of"),
        (lambda value, players: torch.full((players,), 0.5), "the mean of"),
        (lambda value, players: by_orders(value, players).roll(1), "the mean of"),
        (lambda value, players: by_orders(hw03._game(3, 3), 3), "the mean of"),
        (lambda value, players: by_orders(value, players).sum(), "the mean of"),
        (lambda value, players: by_orders(value, players).tolist(), "torch.tensor"),
        (lambda value, players: by_orders(value, min(players, 5)), "how many players"),
        (lambda value, players: shapley.exact_shapley(lambda c: 0 * c[:, 0], players), "yourself"),
    ],
)
def test_shapley_refused(answer: Callable[..., Any], words: str) -> None:
    assert words in refused("shapley_values", answer).hint


# All but symmetry -----------------------------------------------------------------------------


def backwards(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The pixels leave in reading order, each image by itself."""
    maps = []
    for image, label in zip(images, target, strict=True):
        steps = [image.flatten(1).clone()]
        for pixel in range(steps[0].shape[1]):
            steps.append(steps[-1].clone())
            steps[-1][:, pixel] = 0
        scores = model(torch.stack(steps).view(-1, *image.shape))[:, label]
        maps.append(-scores.diff().view(image.shape[1:]))
    return torch.stack(maps).detach()


def bent_path(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Gradients along x · tᵏ, with a k of its own for each pixel."""
    steps, (n, _, h, w) = 200, images.shape
    power = torch.linspace(1, 3, h * w).to(images).view(h, w)
    t = ((torch.arange(steps) + 0.5) / steps).to(images).view(-1, 1, 1, 1, 1)
    way = (images * t**power).flatten(0, 1)
    slopes = gradients.gradient(model, way, target.repeat(steps)).view(steps, n, -1, h, w)
    return (slopes * images * power * t ** (power - 1)).mean(0)


def by_columns(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Masks of a triangle: all pixels before, and all pixels up to this one; from the last."""
    n, _, h, w = images.shape
    shown = torch.tril(torch.ones(h * w + 1, h * w), -1).flip(1).to(images).view(-1, 1, 1, h, w)
    stack = (images * shown).flatten(0, 1)
    with torch.no_grad():
        scores = model(stack).view(h * w + 1, n, -1)[:, range(n), target]
    return scores.diff(dim=0).T.flip(1).reshape(n, h, w)


def in_loops(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Pixel by pixel into new tensors, which are float32."""
    maps = torch.zeros(len(images), *images.shape[2:])
    for n in range(len(images)):
        shown = torch.zeros(images[n].shape)
        reached = model(shown[None])[0, target[n]].item()
        for i in range(images.shape[2]):
            for j in range(images.shape[3]):
                shown[:, i, j] = images[n, :, i, j]
                now = model(shown[None])[0, target[n]].item()
                maps[n, i, j], reached = now - reached, now
    return maps


@pytest.mark.parametrize("answer", [backwards, bent_path, by_columns, in_loops])
def test_unfair_passes(answer: Callable[..., Tensor]) -> None:
    check("hw03.unfair", answer)


def starting_from_nothing(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Right, but the first pixel also gets what f says of the baseline."""
    maps = backwards(model, images, target)
    maps[:, 0, 0] += model(0 * images).detach().gather(1, target[:, None])[:, 0]
    return maps


def first_row_only(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    maps = torch.zeros_like(images[:, 0])
    first = torch.zeros_like(images)
    first[:, :, 0] = images[:, :, 0]
    maps[:, 0] = backwards(model, first, target)[:, 0]
    return maps


def two_orders(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The mean of an order and its reverse: pairs are treated alike, but not three."""
    return (by_columns(model, images, target) + backwards(model, images, target)) / 2


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda model, images, target: 0 * images, "completeness"),
        (lambda model, images, target: gradients.input_x_gradient(model, images, target),
         "completeness"),
        (lambda model, images, target: propagation.deeplift(model, images, target), "dummy"),
        (lambda model, images, target: hw03.equal_shares(model, images, target), "dummy"),
        (lambda model, images, target: gradients.integrated_gradients(
            model, images, target, steps=400), "symmetry"),
        (lambda model, images, target: backwards(
            model, images, target.flip(0)), "batch"),
        (lambda model, images, target: backwards(
            model, images, model(images).argmax(1)),
         hw03.ALL_CHANNELS),
        (lambda model, images, target: starting_from_nothing(model, images, target), hw03.ONLY_X),
        (lambda model, images, target: first_row_only(model, images, target), hw03.ONE_ROW),
        (lambda model, images, target: backwards(model, images, target)[:, :, :-1],
         "return a number for each input value, (N, C, H, W), or each pixel, (N, H, W)."),
        (lambda model, images, target: backwards(model, images, target).add(float("nan")),
         "do you divide by what can be 0?"),
    ],
)  # fmt: skip
def test_unfair_refused(answer: Callable[..., Tensor], hint: str) -> None:
    wrong = refused("unfair", answer)
    assert wrong.hint == hw03.BREAKS.get(hint, hint)


def test_shapley_values_keep_all_six() -> None:
    def fair(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        maps = []
        for image, label in zip(images, target, strict=True):
            pixels = image[0].numel()

            def value(shown: frozenset[int], image: Tensor = image, label: Tensor = label) -> float:
                keep = torch.tensor([float(p in shown) for p in range(image[0].numel())])
                with torch.no_grad():
                    x = image * keep.to(image).view(image.shape[1:])
                    return float(model(x[None])[0, label])

            maps.append(by_dividends(functools.cache(value), pixels).view(image.shape[1:]))
        return torch.stack(maps).to(images)

    assert refused("unfair", fair).hint == hw03.BREAKS["symmetry"]


def test_unfair_where_only_three_show_it() -> None:
    check("hw03.unfair", two_orders)
