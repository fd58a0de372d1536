"""Homework 03: the axioms of attribution, first argued, then measured.

Where a student builds a network, any that has the property will do: the checks know no answer, they
try the property.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from math import comb, factorial
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.evaluation.axioms import AXIOMS, axioms
from course_utils.homework import cases
from course_utils.homework.checks import Exercise, Mistakes, compare, exercise
from course_utils.homework.guard import Answer, Wrong, after_an_error
from course_utils.methods import METHODS, gradients, perturbation, shapley

LOOKED_UP = ("course_utils.evaluation.axioms",)


# Argue ----------------------------------------------------------------------------------------


def absolute_gradient(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """|∂f_c / ∂x|, as saliency maps are often shown: (N, C, H, W)."""
    return gradients.gradient(model, images, target).abs()


def equal_shares(
    model: nn.Module, images: Tensor, target: Tensor, *, baseline: float | Tensor = 0.0
) -> Tensor:
    """(f_c(x) − f_c(x')) / (C · H · W) for each input value: (N, C, H, W)."""
    gained = _gained(model, images, target, torch.as_tensor(baseline).to(images))
    return (gained / images[0].numel()).view(-1, 1, 1, 1).expand_as(images)


def _gained(model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor) -> Tensor:
    """f_c(x) − f_c(x') of each image."""
    with torch.no_grad():
        scores = model(images) - model(baseline.expand_as(images))
    return scores.gather(1, target[:, None])[:, 0]


class _Of(nn.Module):
    """The network of a formula for the pixels (N, P) of images of one channel."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x.flatten(1)).view(-1, 1)


def _pixels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def _value(f: nn.Module, images: Tensor) -> Tensor:
    """The first logit (N,)."""
    with torch.no_grad():
        return f(images.clone())[:, 0].double()


# The networks that prove a promise broken: a formula for the pixels (N, 2), and an image.
NETWORKS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "flat": (lambda x: 1 - (1 - x[:, 0]).relu(), (2, 0)),
    "minimum": (lambda x: x[:, 0] - (x[:, 0] - x[:, 1]).relu(), (2, 1)),
    "difference": (lambda x: x[:, 0] - x[:, 1], (2, 1)),
    "first": (lambda x: 3 * x[:, 0], (1, 1)),
    "both": (lambda x: (x.sum(1) - 1).relu(), (1, 1)),
}
METHOD: dict[str, Answer] = {
    "absolute_gradient": absolute_gradient,
    "integrated_gradients": gradients.integrated_gradients,
    "occlusion": functools.partial(perturbation.occlusion, window=1, stride=1),
    "equal_shares": equal_shares,
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """The network of `NETWORKS` that has this name, and its image (1, 1, 1, 2)."""
    formula, pixels = NETWORKS[name]
    return _Of(formula), _pixels(*pixels)


def shares(method: str, f: nn.Module, image: Tensor) -> list[float]:
    """What the method gives to each pixel of the image, from the baseline 0."""
    map_ = METHOD[method](f, image, torch.tensor([0]))
    return [round(share, 4) + 0.0 for share in map_.sum(1).flatten().tolist()]


def refutes(method: str, axiom: str, name: str) -> bool:
    """Whether the axiom fails for this method on this network, at its image."""
    f, image = network(name)
    given, gained = shares(method, f, image), float(_value(f, image) - _value(f, 0 * image))
    if axiom == "completeness":
        return abs(sum(given) - gained) > 0.05
    if axiom == "sensitivity":
        (differs,) = image.flatten().nonzero(as_tuple=True)
        return len(differs) == 1 and gained != 0 and given[int(differs[0])] == 0
    if axiom == "dummy":
        return any(given[pixel] != 0 and _ignores(f, pixel) for pixel in range(2))
    if axiom == "linearity":  # with a = −1 and b = 0
        other = shares(method, _Of(lambda x: -f(x.view(-1, 1, 1, 2))), image)
        return any(abs(one + two) > 0.05 for one, two in zip(given, other, strict=True))
    if axiom == "symmetry":
        noise = cases.noise(50, 1, 1, 2)
        equal = torch.equal(image, image.flip(3)) and _equal(f, _Of(_swapped(f)), noise)
        return equal and abs(given[0] - given[1]) > 0.05
    return False  # one network alone does not refute implementation invariance


def _ignores(f: nn.Module, pixel: int) -> bool:
    one, other = cases.noise(50, 1, 1, 2), cases.noise(50, 1, 1, 2)
    other[..., pixel] = cases.noise(50, 1, 1, seed=1)
    return torch.equal(_value(f, one), _value(f, other))


def _swapped(f: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x.flip(1).view(-1, 1, 1, 2))


@functools.cache
def _broken() -> dict[str, frozenset[str]]:
    """What each method breaks: ours measured, the library's as its entries claim and tests try."""
    own = {
        name: frozenset(axiom for axiom, found in axioms(METHOD[name]).items() if found.holds)
        for name in ("absolute_gradient", "equal_shares")
    }
    every = frozenset(AXIOMS)
    return {name: every - (own.get(name) or METHODS[name].claims) for name in METHOD}


# What to think about where a promise that is broken is not named.
MISSED = {
    ("absolute_gradient", "completeness"): "absolute_gradient: a slope is no difference. Add up "
    "its map for a network with a slope that is negative somewhere, and compare with f(x) − f(0).",
    ("absolute_gradient", "sensitivity"): "absolute_gradient: it looks at f at one point alone. "
    "What can a slope there not know of the way from the baseline?",
    ("absolute_gradient", "linearity"): "absolute_gradient: a network −f is a f + b g with a = −1 "
    "and b = 0. What becomes of the map?",
    ("occlusion", "completeness"): "occlusion: hide one pixel, then the other one, of a network "
    "that needs both. What do the two differences sum to?",
    ("equal_shares", "dummy"): "equal_shares: it knows f(x), f(0) and the number of pixels, and "
    "nothing else. Which axiom asks for something that these do not say?",
}
# And where one is named that is kept.
KEPT = {
    "absolute_gradient": "what only asks for f near x, such as what f does not depend on, is in "
    "the gradient, and its absolute value keeps it.",
    "integrated_gradients": "it is a mean of gradients along a path, times a difference. The path "
    "meets what the end point does not, and a mean keeps what every single gradient has.",
    "occlusion": "each difference that it takes is one of f itself, wherever it came from. Which "
    "axioms ask for nothing more than this?",
    "equal_shares": "that a map is useless breaks no promise by itself. Which axioms ask for "
    "nothing but f(x) − f(0), and where all get the same?",
}
NO_PROOF = (
    "compute the map by hand, for this network at its image, and put it into the axiom: does the "
    "axiom speak of such a network and such an image, and are the two sides different?"
)
AN_AXIOM = "first comes the axiom, and then the network. The axioms are"
A_NAME = (
    "a verdict alone is no argument: for each broken promise name the network that proves it, "
    f"one of {', '.join(NETWORKS)}."
)
PROOFS = {
    "absolute_gradient": {
        "completeness": "difference",
        "sensitivity": "flat",
        "linearity": "difference",
    },
    "integrated_gradients": {},
    "occlusion": {"completeness": "minimum"},
    "equal_shares": {"dummy": "first"},
}


def promises(**others: Any) -> dict[str, Any]:
    """Of each method the promises that it breaks, each with its proof; or `others`."""
    return {**PROOFS, **others}


def _without(method: str, axiom: str) -> dict[str, Any]:
    proofs: dict[str, str] = PROOFS[method]
    return {method: {name: proof for name, proof in proofs.items() if name != axiom}}


PROMISES: Mistakes = {
    **{f"{method} keeps {axiom}": (_without(method, axiom), MISSED[method, axiom])
       for method, axiom in MISSED},
    "IG is a gradient, and so it is blind where the gradient is": (
        {"integrated_gradients": {"sensitivity": "flat"}},
        KEPT["integrated_gradients"],
    ),
    "what is hidden is seen at one point only": (
        {"occlusion": {"completeness": "minimum", "sensitivity": "flat"}},
        KEPT["occlusion"],
    ),
    "what is useless keeps nothing": (
        {"equal_shares": {"dummy": "first", "symmetry": "both"}},
        KEPT["equal_shares"],
    ),
    "an absolute value forgets all": (
        {"absolute_gradient": {**PROOFS["absolute_gradient"], "dummy": "first"}},
        KEPT["absolute_gradient"],
    ),
    "no proof": ({"occlusion": {"completeness": "difference"}}, NO_PROOF),
    "verdicts only": ({"occlusion": {"completeness"}}, A_NAME),
}  # fmt: skip


@exercise("hw03.promises", promises, PROMISES, forbidden=(*LOOKED_UP, "course_utils.evaluation"))
def check_promises(answer: Answer, known: Exercise) -> Iterator[str]:
    """Each broken promise, and whether the network that is named proves it."""
    table = answer()
    if not isinstance(table, dict) or set(table) != set(METHOD):
        came = ", ".join(map(str, table)) if isinstance(table, dict) else type(table).__name__
        raise Wrong(
            f"the table holds {came or 'nothing'}",
            f"return a dictionary with a dictionary for each of {', '.join(METHOD)}.",
        )
    for method, proofs in table.items():
        if not isinstance(proofs, dict):
            raise Wrong(f"{method}: {proofs!r} is no dictionary", A_NAME)
        if not set(proofs) <= set(AXIOMS):
            named = ", ".join(map(str, proofs))
            raise Wrong(f"{method}: {named}", f"{AN_AXIOM} {', '.join(AXIOMS)}.")
        if not set(proofs.values()) <= set(NETWORKS):
            raise Wrong(f"{method}: {', '.join(map(str, proofs.values()))}", A_NAME)
    yield "four methods, and a network for each promise that one of them breaks"
    for method, broken in _broken().items():
        for axiom, name in table[method].items():
            if axiom not in broken:
                raise Wrong(f"{method} is said to break {axiom}, and does not", KEPT[method])
            if not refutes(method, axiom, name):
                raise Wrong(f"{method} and {axiom}: the network {name} proves nothing", NO_PROOF)
        for axiom in AXIOMS:
            if axiom in broken - set(table[method]):
                count = len(broken - set(table[method]))
                raise Wrong(f"{method} breaks {count} more of its promises", MISSED[method, axiom])
        yield f"{method}: " + (f"{len(broken)} broken, and proved" if broken else "nothing broken")


# Networks that a student builds ---------------------------------------------------------------


def _built(result: Any, networks: int) -> tuple[list[nn.Module], Tensor]:
    """The networks and the image that an answer returned; Wrong for anything else."""
    wanted = ", ".join(["a network"] * networks + ["an image (1, C, H, W)"])
    if not isinstance(result, tuple | list) or len(result) != networks + 1:
        raise Wrong(f"{type(result).__name__} came back", f"return {wanted}, in this order.")
    *modules, image = result
    for module in modules:
        if not isinstance(module, nn.Module):
            raise Wrong(
                f"a network is {type(module).__name__}, wanted is an nn.Module",
                "write a class with forward, or stack layers in nn.Sequential, and build it.",
            )
        if any(type(part).__module__ in LOOKED_UP for part in module.modules()):
            raise Wrong("that network is the library's", "build one of your own.")
    if not isinstance(image, Tensor) or image.ndim != 4 or len(image) != 1:
        came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise Wrong(
            f"the image is {came}, wanted is (1, C, H, W)",
            "pixels can be put into shape by .view(1, 1, 1, -1).",
        )
    if image.numel() > 300:
        raise Wrong(f"the image has {image.numel()} values", "one to three pixels are enough.")
    if not image.is_floating_point() or not image.isfinite().all():
        raise Wrong("the image holds no finite floating point numbers", "write 2.0 in place of 2.")
    for module in modules:
        scores = module.eval()(torch.cat([image, image]))
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 2:
            came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise Wrong(
                f"for two images a network returns {came}, wanted are logits (2, K)",
                "a batch goes in, and a row of logits an image comes out; f is the first of them.",
            )
    return modules, image.detach()


def _slope(f: nn.Module, image: Tensor) -> Tensor:
    """The gradient by autograd; zero where nothing leads back."""
    with torch.enable_grad():
        leaf = image.clone().requires_grad_()
        score = f(leaf.clone())[:, 0].sum()
        if not score.requires_grad:
            return torch.zeros_like(image)
        (slope,) = torch.autograd.grad(score, leaf, allow_unused=True)
    return torch.zeros_like(image) if slope is None else slope


CUT = (
    "f does change there, but its gradient was cut off (detach, no_grad, .data, .item): that is "
    "a property of the program, and the axiom is about the function f."
)
KINK = (
    "the image lies on a kink of f, or beside one, where there is no gradient; move it to where "
    "the slope is the same on both sides."
)


def _check_slope(f: nn.Module, image: Tensor, directions: Tensor, unit: float) -> None:
    """Refuse a gradient that is not the slope of f; `unit` is what f changes by."""
    step = 5e-3
    scores = _value(f, torch.cat([image, image + step * directions, image - step * directions]))
    center, after, before = scores[:1], *scores[1:].chunk(2)
    told = (_slope(f, image) * directions).flatten(1).sum(1).double()
    right, left = (after - center) / step, (center - before) / step
    if ((right - left).abs() > 0.1 * unit).any():
        raise Wrong("the slope of f is not the same on both sides of the image", KINK)
    if (((right + left) / 2 - told).abs() > 0.05 * unit).any():
        raise Wrong("the gradient is not the slope of f", CUT)


# Sensitivity ----------------------------------------------------------------------------------

TWO_PIXELS = (
    "the axiom speaks of a single pixel: all others must be as in the baseline, which is 0 here."
)
CONSTANT = "it must matter: a pixel that changes nothing should get nothing."
NOT_FLAT = (
    "f still rises or falls at the image. Go on along this pixel, to where f has all that it can "
    "get and is flat."
)
JUMP = (
    "f must be continuous. A step has no slope anywhere, and no method that uses slopes could see "
    "it; a ReLU has one."
)


def _saturated(x: Tensor) -> Tensor:
    return 1 - (1 - x[:, 0]).relu()


def blind_spot(
    formula: Callable[[Tensor], Tensor] = _saturated, pixels: Sequence[float] = (2, 0)
) -> tuple[nn.Module, Tensor]:
    """1 − relu(1 − x₁) at (2, 0), or another network and another image."""
    return _Of(formula), _pixels(*pixels)


BLIND_SPOT: Mistakes = {
    "constant": ({"formula": lambda x: 0 * x.sum(1) + 1}, CONSTANT),
    "not saturated": ({"pixels": (0.5, 0)}, NOT_FLAT),
    "two pixels": ({"formula": lambda x: 1 - (1 - x.sum(1)).relu(), "pixels": (2, 2)}, TWO_PIXELS),
    "on the kink": ({"pixels": (1, 0)}, KINK),
    "cut off": ({"formula": lambda x: x[:, 0].detach()}, CUT),
    "step": ({"formula": lambda x: (x[:, 0] > 1).float()}, JUMP),
}


@exercise("hw03.blind_spot", blind_spot, BLIND_SPOT, forbidden=LOOKED_UP)
def check_blind_spot(answer: Answer, known: Exercise) -> Iterator[str]:
    """A pixel that alone makes a difference, and has no gradient."""
    (f,), image = _built(answer(), 1)
    differs = (image != 0).any(1).flatten()
    if differs.sum() != 1:
        raise Wrong(f"{int(differs.sum())} pixels differ from the baseline 0", TWO_PIXELS)
    yield "one pixel differs from the baseline"

    start, end = _value(f, torch.cat([0 * image, image]))
    change = float((end - start).abs())
    if not change >= 0.01:
        difference = f"f(x) − f(0) is {float(end - start):.3f}"
        raise Wrong(f"{difference}, wanted is at least 0.01 or at most −0.01", CONSTANT)
    yield f"f(x) differs from f(0), by {float(end - start):.2f}"

    lost = float((_slope(f, image) * image).abs().max())
    if lost > 1e-3 * change:
        raise Wrong("the pixel's gradient is not 0", NOT_FLAT)
    yield "the pixel's gradient is 0"

    jump = _largest_jump(f, image)
    if jump > 0.2 * change:
        raise Wrong(f"f jumps by {jump:.2f} on the way from 0 to x", JUMP)
    _check_slope(f, image, image, change)
    yield "and that is the function's doing: it is continuous, and flat around x"


def _largest_jump(f: nn.Module, image: Tensor) -> float:
    """What stays of the largest jump on the way from 0 to x, the closer one looks at it."""
    way = torch.linspace(0, 1, 1001).to(image)
    for _ in range(3):
        jumps = _value(f, way.view(-1, 1, 1, 1) * image).diff().abs()
        at = int(jumps.argmax())
        way = torch.linspace(float(way[at]), float(way[at + 1]), 11).to(image)
    return float(jumps.max())


# Implementation invariance --------------------------------------------------------------------

POSITIVE = (
    "they agree where all pixels are positive, and only there. Equal means equal for every image; "
    "try negative pixels, too."
)
DIFFERENT = "f and g must be one function in two spellings; compare f(x) and g(x) for many x."
ONLY_RELUS = (
    "Guided Backprop is a rule for ReLUs: both networks need some, and no other activation."
)
NOTHING_TO_CLAMP = (
    "here Guided Backprop is the gradient, and the gradient cannot tell f from g. The two differ "
    "only where something negative comes back to a ReLU that is active."
)
SAME_WIRING = (
    "Guided Backprop clamps the same in both networks. They must differ in what goes through the "
    "ReLUs, not in names or in the order of terms."
)
NO_FUNCTION = (
    "a function that is constant has nothing to attribute; let f change from image to image."
)


def _difference_of_two(x: Tensor) -> Tensor:
    return (2 * x).relu() - x.relu()


def rewired(
    f: Callable[[Tensor], Tensor] = torch.relu,
    g: Callable[[Tensor], Tensor] = _difference_of_two,
    pixel: float = 2,
) -> tuple[nn.Module, nn.Module, Tensor]:
    """relu(x) and relu(2x) − relu(x) at 2, or other networks and another image."""
    return _Of(f), _Of(g), _pixels(pixel)


REWIRED: Mistakes = {
    "only for x > 0": ({"g": lambda x: x}, POSITIVE),
    "not equal": ({"g": lambda x: x.relu() + (x - 1).relu() / 8}, DIFFERENT),
    "nothing negative": ({"g": lambda x: (2 * x).relu() / 2}, NOTHING_TO_CLAMP),
    "terms exchanged": (
        {"f": lambda x: x - (x - 1).relu(), "g": lambda x: -(x - 1).relu() + x},
        SAME_WIRING,
    ),
    "constant": (
        {"f": lambda x: 0 * x.relu(), "g": lambda x: (2 * x).relu() - 2 * x.relu()},
        NO_FUNCTION,
    ),
    "no ReLU": ({"f": lambda x: 3 * x, "g": lambda x: 2 * x + x}, ONLY_RELUS),
    "cut off": ({"g": lambda x: x.relu() + x.relu() - x.relu().detach()}, CUT),
    "on the kink": ({"g": lambda x: x + (-x).relu(), "pixel": 0}, KINK),
}


@exercise("hw03.rewired", rewired, REWIRED, forbidden=LOOKED_UP)
def check_rewired(answer: Answer, known: Exercise) -> Iterator[str]:
    """Two networks, one function, two maps of Guided Backprop."""
    (f, g), image = _built(answer(), 2)
    size = float(image.abs().max()) or 1.0
    noise = cases.noise(400, *image.shape[1:]).to(image)
    around = torch.cat([image, image + 0.01 * size * noise, image + 0.3 * size * noise])
    positive = torch.cat([noise.abs() * size, noise.abs() * 10 * size])
    anywhere = torch.cat([size * noise / 10, size * noise, 3 * size * noise, 30 * size * noise])
    hidden = cases.noise(*anywhere.shape, seed=1).to(image) > 0
    anywhere = torch.cat([anywhere, anywhere * hidden])

    every = torch.cat([anywhere, positive, around])
    if float(_value(f, every).std()) < 1e-3 * size:
        raise Wrong("f is the same for all images", NO_FUNCTION)
    if not _equal(f, g, every):
        raise Wrong(_difference(f, g, every), POSITIVE if _equal(f, g, positive) else DIFFERENT)
    yield f"f and g agree on {len(every)} images"

    directions = torch.cat([image, noise[:8] * size])
    unit = float((_value(f, image + 0.1 * directions) - _value(f, image)).abs().max()) * 10
    for one in (f, g):
        _check_slope(one, image, directions, max(unit, 1e-3))
    yield "so do their gradients"

    try:
        maps = [gradients.guided_backprop(one, image, 0) for one in (f, g)]
    except ValueError as error:
        raise Wrong(f"guided_backprop refuses a network: {error}", ONLY_RELUS) from None
    slope = _slope(f, image)
    largest = float(torch.stack([*maps, slope]).abs().max())
    if not float((maps[0] - maps[1]).abs().max()) > 0.01 * largest:
        clamps = float((maps[0] - slope).abs().max()) > 0.01 * largest
        raise Wrong(
            "Guided Backprop gives both the same map", SAME_WIRING if clamps else NOTHING_TO_CLAMP
        )
    yield "Guided Backprop gives them different maps"


def _equal(f: nn.Module, g: nn.Module, images: Tensor) -> bool:
    """Whether two networks agree up to rounding, in proportion to the size of each image."""
    one, other = _value(f, images), _value(g, images)
    scale = 1e-4 * torch.maximum(one.abs(), other.abs()).clamp(min=float(one.abs().mean()))
    return bool(((one - other).abs() <= scale).all())


def _difference(f: nn.Module, g: nn.Module, images: Tensor) -> str:
    one, other = _value(f, images), _value(g, images)
    at = int((one - other).abs().argmax())
    return f"f and g are not equal: for one image f is {one[at]:.3g} and g is {other[at]:.3g}"


# Shapley values -------------------------------------------------------------------------------

Game = Callable[[frozenset[int]], float]


def shapley_values(
    value: Game,
    players: int,
    *,
    weight: Callable[[int, int], float] = lambda n, size: 1 / (n * comb(n - 1, size)),
    sizes: slice = slice(None),
    nobody: bool = True,
    first: int = 0,
    coalition_of: Callable[[Iterable[int]], Any] = frozenset,
) -> Tensor:
    """Σ_S weight · (v(S ∪ i) − v(S)), S of these sizes; without `nobody`, v(∅) is taken for 0."""

    def worth(members: frozenset[int]) -> float:
        named = coalition_of(player + first for player in members)
        return value(named) if members or nobody else 0.0

    shares = torch.zeros(players, dtype=torch.float64)
    for i in range(players):
        others = [p for p in range(players) if p != i]
        for size in range(players)[sizes]:
            for members in combinations(others, size):
                before = frozenset(members)
                adds = worth(before | {i}) - worth(before)
                shares[i] += weight(players, size) * adds
    return shares


def _in_one_order(value: Game, players: int) -> Tensor:
    reached = [value(frozenset(range(k))) for k in range(players + 1)]
    return torch.tensor(reached, dtype=torch.float64).diff()


FROM_ZERO = "the players are the numbers 0 … n − 1, as range(players) gives them."
FROZEN = (
    "a coalition is a frozenset: frozenset(members), or S | {i} where S is one. It can be "
    "remembered, and a list or a set cannot."
)

SHAPLEY_VALUES: Mistakes = {
    "last": (
        {"weight": lambda n, size: 1.0, "sizes": slice(-1, None)},
        "that is what is lost when one player leaves all the others (occlusion). What does a "
        "player add to smaller coalitions?",
    ),
    "first": (
        {"weight": lambda n, size: 1.0, "sizes": slice(0, 1)},
        "that is what each player reaches alone. What does it add where others are already in?",
    ),
    "all coalitions alike": (
        {"weight": lambda n, size: 2.0 ** (1 - n)},
        "all coalitions count the same in it (that is Banzhaf's value). A coalition of size |S| "
        "counts as often as it stands before player i in an order of all players.",
    ),
    "all sizes alike, and summed": (
        {"weight": lambda n, size: 1 / n},
        "each size of S counts once, but there are many coalitions of one size: take their mean, "
        "not their sum.",
    ),
    "nobody is worth nothing": (
        {"nobody": False},
        "v(∅) need not be 0: of an image it is what the model says of the baseline.",
    ),
    "one order": (
        _in_one_order,
        "that is one order of joining. Who comes late would get another share in another order: "
        "take the mean over all of them.",
    ),
    "over all orders, not divided": (
        {"weight": lambda n, size: factorial(n) / (n * comb(n - 1, size))},
        "you have added up all orders; a mean is that sum divided by the number of orders.",
    ),
    "players from 1": ({"first": 1}, FROM_ZERO),
    "lists": ({"coalition_of": list}, FROZEN),
}


@exercise(
    "hw03.shapley_values",
    shapley_values,
    SHAPLEY_VALUES,
    forbidden=("course_utils.methods.shapley", "shap"),
)
def check_shapley_values(answer: Answer, known: Exercise) -> Iterator[str]:
    """A game's Shapley values, against the library's."""
    games = {n: {"value": _game(n, n), "players": n} for n in range(1, 7)}
    compare(
        answer,
        known,
        [games[3], games[4], games[5]],
        reference=_by_library,
        what="the tensor of shares",
        hint="for each player, the mean of v(S ∪ i) − v(S) over all orders in which the players "
        "could join, S being who came before i.",
        tolerance=1e-4,
    )
    yield "the shares of games of three, four and five players are right"
    for players in (1, 6):
        compare(
            answer,
            replace(known, mistakes={}),  # in so small a game one mistake looks like another
            [games[players]],
            reference=_by_library,
            what=f"a game of {players}: the result",
            hint="nothing in the definition depends on how many players there are.",
            tolerance=1e-4,
        )
    yield "of one player and of six, too"


def _game(players: int, seed: int) -> Game:
    """A random game in which also nobody reaches something."""
    table = (3 * cases.noise(2**players, seed=seed) + 2).tolist()

    def value(coalition: frozenset[int]) -> float:
        if not isinstance(coalition, frozenset):
            raise Wrong(f"value was given {coalition!r}, wanted is a frozenset", FROZEN)
        if not coalition <= set(range(players)):
            members = ", ".join(map(str, sorted(coalition, key=str)))
            raise Wrong(f"value of {players} players was given {members}", FROM_ZERO)
        return table[sum(2**player for player in coalition)]

    return value


def _by_library(value: Game, players: int) -> Tensor:
    def values(coalitions: Tensor) -> Tensor:
        members = [frozenset(row.nonzero()[:, 0].tolist()) for row in coalitions]
        return torch.tensor([value(one) for one in members], dtype=torch.float64)

    return shapley.exact_shapley(values, players)


# All axioms but one ---------------------------------------------------------------------------


def unfair(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    greedy: bool = False,
    batch: bool = False,
    shuffled: bool = False,
) -> Tensor:
    """Pixel by pixel the image takes the baseline's place; each gets what the score gains."""
    maps = torch.zeros_like(images)
    for n, image in enumerate(images):
        order: Sequence[int] = range(image[0].numel())
        x, shown = image.flatten(1), torch.zeros_like(image.flatten(1))
        one = target[:1] if batch else target[n : n + 1]

        def gained(now: Tensor, image: Tensor = image, one: Tensor = one) -> Tensor:
            return _gained(model, now.view_as(image)[None], one, 0 * image[None])[0]

        if shuffled:
            order = torch.randperm(len(order)).tolist()
        if greedy:
            alone = perturbation.occlusion(model, image[None], one, window=1, stride=1)
            order = alone.sum(1).flatten().abs().argsort(descending=True).tolist()
        reached = gained(shown)
        for pixel in order:
            shown[:, pixel] = x[:, pixel]
            now = gained(shown)
            maps[n].flatten(1)[:, pixel] = (now - reached) / len(image)
            reached = now
    return maps


def _to_one_place(place: int) -> Answer:
    def method(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        maps = torch.zeros_like(images)
        maps[:, 0].flatten(1)[:, place] = _gained(model, images, target, 0 * images)
        return maps

    return method


BREAKS = {
    "completeness": "what you hand out must add up to f(x) − f(0). Think of a way from 0 to x: "
    "each step of it gains something, and all steps together gain the whole.",
    "sensitivity": "if one pixel alone makes the difference, that pixel must get it, wherever "
    "it is.",
    "dummy": "what changes nothing must get nothing. A share must come from what the score does "
    "when this pixel changes.",
    "implementation invariance": "only what f says of images may count, or its gradient; not what "
    "happens inside.",
    "linearity": "the map of f + g must be the sum of the maps, so that the same recipe must be "
    "followed for each network. Does something in yours (an order, a path, a scale) depend on the "
    "network?",
    "symmetry": "it treats equal pixels alike, so that it keeps all six. Somewhere a choice must "
    "be made that prefers one place to another, the same choice for every network.",
    "batch": "an image's map must not depend on what else is in the batch: each has its own class "
    "in `target`.",
}
# Where completeness holds on the library's networks, but not with channels, rows and classes.
ONLY_X = (
    "your maps sum to f(x). What f says of the baseline is nobody's gain: they must sum to "
    "f(x) − f(0)."
)
ONE_ROW = "a whole row of pixels gets nothing: go through all rows of the image."
ALL_CHANNELS = "all channels of a pixel count, and the class is the one in `target`."
ANEW = (
    "the order is drawn anew at each call, so that one image has many maps. Choose one order, the "
    "same for every image, every network and every call."
)
OTHER_PLACE = "whichever pixel it is, the promise holds: yours keeps it for some places only."


UNFAIR: Mistakes = {
    # Called, not named: an answer may use them, too.
    "symmetric": (lambda **case: gradients.integrated_gradients(**case), BREAKS["symmetry"]),
    "each hidden alone": (
        lambda **case: perturbation.occlusion(**case, window=1, stride=1),
        BREAKS["completeness"],
    ),
    "all to the last": (_to_one_place(-1), BREAKS["sensitivity"]),
    "all to the first": (_to_one_place(0), OTHER_PLACE),
    "equal shares": (lambda **case: equal_shares(**case), BREAKS["dummy"]),
    "the largest first": ({"greedy": True}, BREAKS["linearity"]),
    "one class for all": ({"batch": True}, BREAKS["batch"]),
    "an order by chance": ({"shuffled": True}, ANEW),
}


@exercise("hw03.unfair", unfair, UNFAIR)
def check_unfair(answer: Answer, known: Exercise) -> Iterator[str]:
    """A method that keeps all axioms but symmetry."""

    def maps_of(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        model = (
            deepcopy(model).float().eval()
        )  # the library tries axioms in float64, students do not
        return _maps(answer(model=model, images=images.float(), target=target), images)

    model = cases.plain(2, 4).double()
    images, target = cases.noise(2, 2, 2, 3, seed=3).double(), torch.tensor([3, 1])
    maps, again = (maps_of(model, images, target) for _ in range(2))
    if not torch.allclose(maps, again, atol=1e-3 * float(maps.abs().max())):
        raise Wrong("two calls give two different maps of the same images", ANEW)
    alone = [maps_of(model, images[n : n + 1], target[n : n + 1]) for n in range(2)]
    if not torch.allclose(maps, torch.cat(alone), atol=1e-3 * float(maps.abs().max())):
        raise Wrong("two images together get other maps than each alone", BREAKS["batch"])
    yield "a map for each image, with its own class"

    ones = torch.ones(1, 1, 1, 4)
    verdicts = axioms(maps_of)
    for axiom in AXIOMS:
        if axiom != "symmetry":
            verdict = verdicts[axiom]
            if not verdict.holds:
                raise Wrong(f"{axiom}: {verdict.counterexample}", BREAKS[axiom])
            yield f"{axiom}: not refuted"

    _check_every_place(maps_of)
    _check_total(maps, model, images, target)
    yield "nor on larger images"
    after_an_error(
        answer, {"model": cases.plain(1, 1), "images": ones, "target": torch.tensor([0])}
    )

    corner = _Of(lambda x: (x.sum(1) - 3).relu()).double()
    four = maps_of(corner, ones.double(), torch.tensor([0]))
    if verdicts["symmetry"].holds and float(four.max() - four.min()) < 0.05:
        raise Wrong("symmetry: not refuted either", BREAKS["symmetry"])
    yield "symmetry: refuted"


def _check_total(maps: Tensor, model: nn.Module, images: Tensor, target: Tensor) -> None:
    """Completeness where images have channels and rows, and the target is one of four classes."""
    gained = _gained(model, images, target, 0 * images)
    reached = model(images).detach().gather(1, target[:, None])[:, 0]
    total, near = maps.flatten(1).sum(1), 0.05 * maps.flatten(1).abs().sum(1)
    if ((total - gained).abs() > near).any():
        hint = ALL_CHANNELS
        if ((total - reached).abs() <= 0.1 * near).all():
            hint = ONLY_X
        elif not maps.abs().sum((0, 1) if maps.ndim == 4 else 0).sum(1).all():
            hint = ONE_ROW
        raise Wrong(
            "with two channels, two rows and four classes the maps do not sum to f(x) − f(0)", hint
        )


def _maps(maps: object, images: Tensor) -> Tensor:
    """What came, if it is a number for each input value or each pixel."""
    if not isinstance(maps, Tensor) or maps.shape not in (images.shape, images[:, 0].shape):
        came = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise Wrong(
            f"the maps are {came}, wanted is {tuple(images.shape)}",
            "return a number for each input value, (N, C, H, W), or each pixel, (N, H, W).",
        )
    if not maps.isfinite().all():
        raise Wrong("the maps hold NaN or infinity", "do you divide by what can be 0?")
    return maps.detach().double()


def _beyond_one(pixels: list[int], x: Tensor) -> Tensor:
    return (x[:, pixels].sum(1) - 1).relu()


def _check_every_place(maps_of: Answer) -> None:
    """Sensitivity and dummy at each of five pixels."""
    for place in range(5):
        only = torch.zeros(1, 1, 1, 5).double()
        only[..., place] = 2
        saturated = _Of(lambda x: 1 - (1 - x.sum(1)).relu()).double()
        (share,) = maps_of(saturated, only, torch.tensor([0]))[..., place].flatten()
        if not share > 0.5:
            raise Wrong(
                f"x{place + 1} alone makes f differ, by 1, but gets {float(share):.2f}", OTHER_PLACE
            )
        others = [other for other in range(5) if other != place]
        blind = _Of(functools.partial(_beyond_one, others)).double()
        everywhere = torch.ones(1, 1, 1, 5).double()
        (share,) = maps_of(blind, everywhere, torch.tensor([0]))[..., place].flatten()
        if abs(float(share)) > 0.05:
            raise Wrong(
                f"f does not depend on x{place + 1}, but it gets {float(share):.2f}", OTHER_PLACE
            )
