"""What an attribution should obey whatever the network, tried on networks whose truth is known.

An axiom is a statement about all networks and all inputs. Trying it can refute it, and then one
small network is enough; that none of the networks here refutes it is no proof.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_utils.contract import check_number, known_options, unwrapped
from course_utils.evaluation.sanity import check_method, maps_of
from course_utils.methods import AXIOMS, METHODS, Method

__all__ = ["AXIOMS", "Counterexample", "Network", "Verdict", "axioms"]

Explain = Callable[["Network", Tensor], Tensor]  # the relevance of each pixel (P,)
SUBSCRIPTS = "₁₂₃"
FACTORS = (1, 1.5, 2)  # between a network's inputs
# Enough for a method that draws; RISE changes all pixels at once, and one does little beside that.
SAMPLES, MORE = 400, {"rise": 20_000}


class Counterexample(NamedTuple):
    """All that is needed to see an axiom fail once more: `method(networks[0], image, 0)`.

    The sentence says what `expected` and `found` are; they should agree, and for sensitivity
    `found` should not be 0 where `expected` is not.
    """

    sentence: str
    networks: tuple["Network", ...]
    image: Tensor  # (1, C, 1, P), float64; the baseline is 0
    expected: float
    found: float

    def __str__(self) -> str:
        return self.sentence


class Verdict(NamedTuple):
    """Whether a method obeys an axiom, as far as it was tried."""

    holds: bool | None  # None: the method refused every network
    gap: float  # the largest difference found, relative to the numbers that should agree; 0 to 2
    counterexample: Counterexample | None  # the smallest; None where the axiom holds


class Network(nn.Module):
    """f(x) = Σ_k v_k · mean(A_k) + c for feature maps A of one row of pixels (N, C, 1, P).

    It ends in global average pooling and one linear layer, so that every method can explain it.
    bodies: each makes some of the feature maps. formula: f, as one writes it.
    """

    def __init__(
        self, formula: str, bodies: Sequence[nn.Module], v: Sequence[float], c: float = 0.0
    ) -> None:
        super().__init__()
        self.formula, self.v, self.c = formula, v, c
        self.bodies = nn.ModuleList(bodies)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = _filled(nn.Linear, (len(v), 1), [list(v)], [c])
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, 1, P) → logits (N, 1)."""
        maps = torch.cat([body(x) for body in self.bodies], 1)
        return self.fc(self.pool(maps).flatten(1))

    def plus(self, factor: float, other: "Network", formula: str) -> "Network":
        """f + factor · g, the feature maps of both side by side."""
        v = [*self.v, *(factor * value for value in other.v)]
        return Network(formula, [*self.bodies, *other.bodies], v, self.c + factor * other.c)


def axioms(
    method: Callable[..., Tensor], *, tolerance: float = 0.05, **options: Any
) -> dict[str, Verdict]:
    """Which of the axioms a method obeys, each with the smallest counterexample found.

        completeness                Σ M(f) = f(x) − f(x')
        sensitivity                 x differs from x' in one pixel and f(x) ≠ f(x') ⇒ M(f) there ≠ 0
        dummy                       f does not depend on a pixel ⇒ M(f) there = 0
        implementation invariance   f = g everywhere ⇒ M(f) = M(g)
        linearity                   M(a f + b g) = a M(f) + b M(g), the networks side by side
        symmetry                    f is symmetric in two pixels, which are equal ⇒ so is M(f)

    Sundararajan et al. call the second and the third sensitivity (a) and (b). Each is tried on a
    few networks of one to three pixels, each at several inputs off the kinks of its ReLUs, in
    double precision. A map is summed over the channels.

    A pixel is the player: where a method has the options, windows and segments hold one pixel, and
    the baseline x' is 0, and so is each image of a background. So methods of regions are
    judged as if a region were one input; inside a larger region, or where windows overlap, dummy
    and symmetry fail for single pixels. Samples and steps are many: a stochastic method is judged
    by its mean. A method without baseline is given networks with f(0) = 0. The method's refusal of
    a network (a ValueError) tells nothing; if it refuses all, `holds` is None and the sentence says
    why.

    method: any attribution method. tolerance: the largest relative gap that passes, for errors of
    sampling and of numerical integration. options: the method's own, such as `window=1`.
    Returns axiom → Verdict, in the order of AXIOMS.

    Raises ValueError or TypeError naming the argument, and what the method raises where it refuses
    every network there is.
    Source: Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, 2017.
    """
    check_method(method)
    check_number("tolerance", tolerance)
    method, options = unwrapped(method, options)
    # A function of the course is its entry in METHODS, which knows how to make what it needs.
    method = next((entry for entry in METHODS.values() if entry.function is method), method)
    explain = partial(_explain, method, options)

    verdicts, refusals = {}, []
    for axiom in _CASES:
        verdict, refused = _verdict(_cases(axiom), explain, tolerance)
        verdicts[axiom] = verdict
        refusals += refused
    if all(verdict.holds is None for verdict in verdicts.values()):
        raise refusals[0]
    return {axiom: verdicts[axiom] for axiom in AXIOMS}


class _Finding(NamedTuple):
    gap: float
    example: Counterexample


def _verdict(
    cases: Iterator[list[partial[_Finding]]], explain: Explain, tolerance: float
) -> tuple[Verdict, list[ValueError]]:
    found, refused = [], []
    for same_size in cases:
        for case in same_size:
            try:
                found.append(case(explain))
            except ValueError as error:
                refused.append(error)
        if any(one.gap > tolerance for one in found):
            break
    if not found:
        sentence = f"it refuses every network that this could be tried on: {refused[0]}"
        nothing = torch.empty(0, dtype=torch.float64)
        return Verdict(
            None, torch.nan, Counterexample(sentence, (), nothing, torch.nan, torch.nan)
        ), refused
    first = next((one.example for one in found if one.gap > tolerance), None)
    return Verdict(first is None, max(one.gap for one in found), first), refused


def _explain(method: Callable, options: dict[str, Any], network: Network, image: Tensor) -> Tensor:
    """The relevance of each pixel (P,)."""
    pixels = image.shape[3]
    zeros = torch.zeros_like(image)
    samples = MORE.get(getattr(method, "name", ""), SAMPLES)
    suitable: dict[str, Any] = {
        "baseline": 0.0, "background": zeros,
        "window": 1, "stride": 1, "segments": torch.arange(pixels)[None], "min_pixels": 1,
        "samples": samples, "steps": 100, "batch_size": samples, "max_distance": 1.0,
    }  # fmt: skip
    given = known_options(method, **suitable)
    if "baseline" in given or "baseline" in options:
        given.pop("background", None)  # in its place
    given |= options
    if isinstance(given.get("generator"), torch.Generator):  # two networks meet the same draws
        given["generator"] = given["generator"].clone_state()
    if isinstance(method, Method):  # what it makes of ordinary images, of ones as small
        generator = torch.Generator().manual_seed(0)
        shape = (64, *image.shape[1:])
        method = method.bind(torch.randn(shape, generator=generator, dtype=image.dtype))
    target = torch.zeros(1, dtype=torch.long)
    return maps_of(partial(method, **given), network, image, target, 1).sum((0, 1, 2))


# The networks


def _filled(kind: Callable, shape: tuple, weight: Any, bias: Any, **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # a layer draws parameters, which nobody needs
        layer = kind(*shape, **options, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64).view_as(layer.weight))
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float64))
    return layer


def _units(
    rows: Sequence[Sequence[float]],
    bias: Sequence[float] | None = None,
    *,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    channels: int = 1,
    padding: int = 0,
) -> nn.Sequential:
    """Units that see the whole row of pixels, one for each of `rows`, their weights."""
    width = len(rows[0]) // channels
    layer = _filled(
        nn.Conv2d,
        (channels, len(rows), (1, width)),
        rows,
        bias or [0.0] * len(rows),
        padding=(0, padding),
    )
    return nn.Sequential(layer, *([activation()] if activation else []))


def _linear(row: Sequence[float], channels: int = 1) -> nn.Sequential:
    return _units([row], activation=None, channels=channels)


def _saturating() -> Network:
    return Network("1 − relu(1 − x₁)", [_units([[-1, 0]], [1])], [-1], 1)


def _minimum() -> Network:
    """min(x₁, x₂)."""
    return Network("x₁ − relu(x₁ − x₂)", [_linear([1, 0]), _units([[1, -1]])], [1, -1])


def _figure_7(pixels: int, i: int, j: int) -> tuple[Network, Network]:
    """Equal everywhere: the paper's own example."""
    x, y = (f"x{SUBSCRIPTS[k]}" for k in (i, j))
    rows = [[float(k == place) for k in range(pixels)] for place in (i, j)]
    late = nn.Sequential(*_units(rows), *_units([[1, -1]], [-1], channels=2))
    early = nn.Sequential(*_units(rows, [-1, 0]), *_units([[1, -1]], channels=2))
    return (
        Network(f"relu(relu({x}) − 1 − relu({y}))", [late], [1]),
        Network(f"relu(relu({x} − 1) − relu({y}))", [early], [1]),
    )


def _sigmoids(row: Sequence[float], x: str) -> tuple[Network, Network]:
    """Equal everywhere: σ(x) and ½ + ½ tanh(x / 2)."""
    half = [value / 2 for value in row]
    return (
        Network(f"σ({x}) − ½", [_units([row], activation=nn.Sigmoid)], [1], -0.5),
        Network(f"½ tanh({x} / 2)", [_units([half], activation=nn.Tanh)], [0.5]),
    )


def _shifted() -> tuple[Network, Network]:
    """Equal everywhere: feature maps of two places, where each pixel lies, or the other one."""
    here = _units([[0, 1, 0]], padding=1)
    there = _units([[1, 0, 0], [0, 0, 1]], padding=1)
    formula = "relu(x₁) + relu(x₂)"
    return (
        Network(f"{formula} [each in its place of the map]", [here], [2]),
        Network(f"{formula} [places exchanged]", [there], [2, 2]),
    )


def _skewed() -> Network:
    """Symmetric in its pixels; but of its feature maps the first place holds more."""
    body = _units([[0, 1, 1], [1, 0, 0]], [-1, -1], padding=1)
    return Network("relu(x₁ + x₂ − 1) + relu(x₁ − 1) + relu(x₂ − 1)", [body], [2, 2])


def _image(*channels: Sequence[float]) -> Tensor:
    return torch.tensor(channels, dtype=torch.float64)[None, :, None]


# The axioms. Each yields its cases, the smallest networks first.


def _completeness() -> Iterator[partial]:
    def case(f: Network, image: Tensor, explain: Explain) -> _Finding:
        found, expected = float(explain(f, image).sum()), _value(f, image) - _value(f, 0 * image)
        text = f"the map sums to {_show(found)}, but f(x) − f(0) is {_show(expected)}"
        return _finding(expected, found, f"{_at(f, image)} {text}", (f,), image)

    yield partial(case, Network("2 x₁ + x₂", [_linear([2, 1])], [1]), _image([3, 1]))
    yield partial(case, _saturating(), _image([2, 0]))
    yield partial(case, _minimum(), _image([2, 1]))
    channels = Network("x₁ + y₁", [_linear([1, 0, 1, 0], channels=2)], [1])
    yield partial(case, channels, _image([2, 0], [1, 0]))
    every = Network("relu(x₁ + x₂ + x₃ − 2)", [_units([[1, 1, 1]], [-2])], [1])
    yield partial(case, every, _image([1, 1, 1]))  # each pair alone reaches nothing


def _sensitivity() -> Iterator[partial]:
    def case(f: Network, image: Tensor, explain: Explain) -> _Finding:
        change, found = _value(f, image) - _value(f, 0 * image), float(explain(f, image)[0])
        lost = abs(found) < 1e-6 * abs(change)
        text = f"x₁ alone makes f(x) differ from f(0), by {_show(change)}, but gets {_show(found)}"
        example = Counterexample(f"{_at(f, image)} {text}", (f,), image, change, found)
        return _Finding(float(lost), example)

    for value in (2, 10):  # 10: beyond the reach of SmoothGrad's noise
        yield partial(case, _saturating(), _image([value, 0]))


def _dummy() -> Iterator[partial]:
    def case(f: Network, image: Tensor, pixel: int, explain: Explain) -> _Finding:
        relevance = explain(f, image)
        x, found = f"x{SUBSCRIPTS[pixel]}", float(relevance[pixel])
        text = f"f does not depend on {x}, but {x} gets {_show(found)}"
        return _finding(0, found, f"{_at(f, image)} {text}", (f,), image, relevance)

    yield partial(case, Network("2 x₁", [_linear([2, 0])], [1]), _image([3, 1]), 1)
    twice = Network(
        "x₁ + relu(2 x₂) − 2 relu(x₂)", [_linear([1, 0]), _units([[0, 2], [0, 1]])], [1, 1, -2]
    )
    yield partial(case, twice, _image([3, 1]), 1)
    for alone, (f, g), image in (  # f − g is 0 everywhere
        (_linear([1, 0]), _sigmoids([0, 1], "x₂"), _image([3, 2])),
        (_units([[2, 0, 0]], activation=None, padding=1), _shifted(), _image([2, 1])),
        (_linear([1, 0, 0]), _figure_7(3, 1, 2), _image([1, 3, 1])),
    ):
        h = (
            Network("x₁", [alone], [1])
            .plus(1, f, "")
            .plus(-1, g, f"x₁ + ({f.formula}) − ({g.formula})")
        )
        yield partial(case, h, image, 1)
    either = Network("1 − relu(1 − x₁ − x₂)", [_units([[-1, -1, 0]], [1])], [-1], 1)
    yield partial(case, either, _image([2, 2, 1]), 2)


def _implementation() -> Iterator[partial]:
    def case(f: Network, g: Network, image: Tensor, explain: Explain) -> _Finding:
        one, other = explain(f, image), explain(g, image)
        place = int((one - other).abs().argmax())
        expected, found = float(one[place]), float(other[place])
        text = f"are equal for all x, but at x = {_numbers(image)} x{SUBSCRIPTS[place]} gets "
        text += f"{_show(expected)} in f and {_show(found)} in g"
        sentence = f"f(x) = {f.formula} and g(x) = {g.formula} {text}"
        both = torch.cat([one, other])
        return _finding(expected, found, sentence, (f, g), image, both)

    once = Network("relu(x₁)", [_units([[1, 0]])], [1])
    twice = Network("relu(2 x₁) − relu(x₁)", [_units([[2, 0], [1, 0]])], [1, -1])
    yield partial(case, once, twice, _image([2, 1]))
    yield partial(case, *_sigmoids([1, 0], "x₁"), _image([2, 1]))
    yield partial(case, *_shifted(), _image([2, 1]))
    yield partial(case, *_figure_7(2, 0, 1), _image([3, 1]))


def _linearity() -> Iterator[partial]:
    def case(f: Network, g: Network, factor: float, image: Tensor, explain: Explain) -> _Finding:
        sign = {1: "+ g", -1: "− g"}[int(factor)]
        one, other = explain(f, image), explain(g, image)
        wanted, relevance = one + factor * other, explain(f.plus(factor, g, f"f {sign}"), image)
        place = int((relevance - wanted).abs().argmax())
        x, expected, found = f"x{SUBSCRIPTS[place]}", float(wanted[place]), float(relevance[place])
        text = f"{x} gets {_show(float(one[place]))} in f and {_show(float(other[place]))} in g, "
        text += f"but {_show(found)} in f {sign}"
        sentence = f"f(x) = {f.formula} and g(x) = {g.formula} at x = {_numbers(image)}: {text}"
        return _finding(expected, found, sentence, (f, g), image, torch.cat([one, other]))

    def single(formula: str, body: nn.Module) -> Network:
        return Network(formula, [body], [1])

    one, other = single("relu(x₁)", _units([[1, 0]])), single("relu(x₂)", _units([[0, 1]]))
    yield partial(case, one, other, -1, _image([1, 2]))
    yield partial(case, _minimum(), _saturating(), -1, _image([3, 2]))
    red = single("x₁", _linear([1, 0, 0, 0], channels=2))
    green = single("y₁", _linear([0, 0, 1, 0], channels=2))
    yield partial(case, red, green, 1, _image([2, 0], [1, 0]))
    # Where f − g is 0: what hands the logit back has nothing to hand back.
    one, other = single("x₁", _linear([1, 0])), single("x₂", _linear([0, 1]))
    yield partial(case, one, other, -1, _image([1, 1]))


def _symmetry() -> Iterator[partial]:
    def case(f: Network, image: Tensor, explain: Explain) -> _Finding:
        relevance = explain(f, image)
        expected, found = float(relevance[0]), float(relevance[1])
        text = "x₁ and x₂ are equal and f does not change if they change places, but they get "
        text += f"{_show(expected)} and {_show(found)}"
        return _finding(expected, found, f"{_at(f, image)} {text}", (f,), image, relevance)

    twice = Network(
        "relu(x₁) + relu(2 x₂) − relu(x₂)", [_units([[1, 0], [0, 2], [0, 1]])], [1, 1, -1]
    )
    yield partial(case, twice, _image([2, 2]))
    f, g = _sigmoids([1, 0], "x₁")[0], _sigmoids([0, 1], "x₂")[1]
    yield partial(case, f.plus(1, g, f"{f.formula} + {g.formula}"), _image([2, 2]))
    yield partial(case, _skewed(), _image([2, 2]))
    f, g = _figure_7(3, 0, 2)[0], _figure_7(3, 1, 2)[1]
    yield partial(case, f.plus(1, g, f"{f.formula} + {g.formula}"), _image([3, 3, 1]))
    corner = Network("relu(x₁ + x₂ − 1)", [_units([[1, 1, 0]], [-1])], [1])
    yield partial(case, corner, _image([1, 1, -1]))


_CASES: dict[str, Callable[[], Iterator[partial]]] = {
    "completeness": _completeness,
    "sensitivity": _sensitivity,
    "dummy": _dummy,
    "implementation invariance": _implementation,
    "linearity": _linearity,
    "symmetry": _symmetry,
}


def _cases(axiom: str) -> Iterator[list[partial[_Finding]]]:
    """An axiom's cases, then the same at larger inputs: at a single one it may hold by accident."""
    for factor in FACTORS:
        yield [
            partial(case.func, *(factor * a if isinstance(a, Tensor) else a for a in case.args))
            for case in _CASES[axiom]()
        ]


def _finding(
    expected: float,
    found: float,
    sentence: str,
    networks: tuple[Network, ...],
    image: Tensor,
    beside: Tensor | None = None,
) -> _Finding:
    """The two numbers, and their difference relative to the largest there is."""
    others = 0.0 if beside is None else float(beside.abs().max())
    scale = max(abs(expected), abs(found), others, 1e-9)  # below that all is rounding
    example = Counterexample(sentence, networks, image, expected, found)
    return _Finding(abs(found - expected) / scale, example)


def _value(f: Network, image: Tensor) -> float:
    return float(f(image))


def _at(f: Network, image: Tensor) -> str:
    return f"f(x) = {f.formula} at x = {_numbers(image)}:"


def _numbers(image: Tensor) -> str:
    rows = ["(" + ", ".join(map(_show, row)) + ")" for row in image[0, :, 0].tolist()]
    return ", y = ".join(rows)


def _show(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-9 else value:.3g}".replace("-", "−")
