"""LRP's rules and composites: by hand, against loops over every term, and against Zennit."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.methods import relevance
from course_utils.methods.propagation import lrp, lrp_epsilon_gamma_box, lrp_epsilon_plus_flat
from course_utils.methods.relevance import COMPOSITES, Composite
from tests.networks import ARCHITECTURES, NETWORKS, batch, make, pictures, pixels

IMAGES = batch(dtype=torch.float64)
LOW, HIGH = torch.tensor(-5.0).double(), torch.tensor(6.0).double()


def off(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).detach().abs().max() / reference.detach().abs().max())


def everywhere(rule: relevance.Rule) -> Composite:
    return Composite(rule, rule, rule, rule, rule)


# --- By hand ----------------------------------------------------------------------------------

# Two inputs 3 and 2, weights 2 and −1: terms 6 and −2, whose sum z = 4 is the relevance.
# With −2 for the second input, both terms are positive, 6 and 2, and z = 8.
BY_HAND: list[tuple[relevance.Rule, tuple, list]] = [
    (relevance.epsilon, (3, 2), [6, -2]),
    (relevance.epsilon, (3, -2), [6, 2]),
    (relevance.z_plus, (3, 2), [4, 0]),
    (relevance.z_plus, (3, -2), [6, 2]),
    (relevance.alpha_beta, (3, 2), [8, -4]),
    (partial(relevance.alpha_beta, alpha=3, beta=2), (3, 2), [12, -8]),
    (partial(relevance.gamma, gamma=1), (3, 2), [4.8, -0.8]),  # 12 and −2 of 10
    (partial(relevance.gamma, gamma=0), (3, 2), [6, -2]),
    (partial(relevance.gamma, gamma=1), (1, 4), [2 / 3, -8 / 3]),  # z = −2: 2 and −8 of −6
    (relevance.flat, (3, 2), [2, 2]),
    # Between 0 and 4: 6 − 0 · 2 = 6 and −2 + 4 · 1 = 2, of 8.
    (partial(relevance.box, low=torch.zeros(()), high=torch.tensor(4.0)), (3, 2), [3, 1]),
    # Between 0 and 3, which is the image's own box: 6 and −2 + 3 · 1 = 1, of 7.
    (relevance.box, (3, 2), [24 / 7, 4 / 7]),
    # Between −2 and 3: 6 + 2 · 2 = 10 and 2 + 3 · 1 = 5, of 15.
    (relevance.box, (3, -2), [8 * 10 / 15, 8 * 5 / 15]),
    # ε = |z| / 4, since there is one z.
    (relevance.epsilon_relative, (3, 2), [4.8, -1.6]),
]


@pytest.mark.parametrize(("rule", "image", "expected"), BY_HAND)
def test_rules_by_hand(rule: relevance.Rule, image: tuple, expected: list) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    model[1].weight.data = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    result = lrp(model, pixels(*image), 0, composite=everywhere(rule), epsilon=0)
    assert result.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bias", "rule", "expected"),
    [
        (2, relevance.z_plus, [6 * 6 / 8, 0]),  # z = 6 − 2 + 2; b⁺ has 2 of 8
        (2, relevance.alpha_beta, [2 * 6 * 6 / 8, -6]),
        (-2, relevance.alpha_beta, [2 * 2, -2 / 2]),  # z = 2; b⁻ has half of what is negative
        (2, partial(relevance.gamma, gamma=1), [6 * 12 / 14, -6 * 2 / 14]),
        (2, relevance.flat, [3, 3]),
        (2, relevance.box, [6 * 6 / 7, 6 / 7]),
    ],
)
def test_a_bias_keeps_its_share(bias: float, rule: relevance.Rule, expected: list) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)).double()
    model[1].weight.data = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    model[1].bias.data = torch.tensor([bias], dtype=torch.float64)
    result = lrp(model, pixels(3, 2), 0, composite=everywhere(rule), epsilon=0)
    assert result.flatten().tolist() == pytest.approx(expected)


def test_where_all_terms_are_nothing() -> None:
    model = make("Functional").double().eval()
    dark = torch.zeros_like(IMAGES)
    for composite in COMPOSITES:
        for epsilon in (0.0, 1e-6):
            result = lrp(model, dark, 1, composite=composite, epsilon=epsilon)
            assert result.isfinite().all()


# --- Against loops ----------------------------------------------------------------------------

RULES: dict[str, relevance.Rule] = {
    "epsilon": relevance.epsilon,
    "relative": partial(relevance.epsilon_relative, share=0.3),
    "gamma": partial(relevance.gamma, gamma=0.4),
    "z_plus": relevance.z_plus,
    "alpha_beta": partial(relevance.alpha_beta, alpha=1.5, beta=0.5),
    "flat": relevance.flat,
    "box": partial(relevance.box, low=LOW, high=HIGH),
}
EPS = 0.01


def share(name: str, x: list, w: list, b: float, count: int, size: float) -> list[float]:
    """Of one unit: what share of its relevance each input gets, by the rule's formula.

    count: how many inputs it reads; those with weight None it does not. size: root mean square of
    all units' z.
    """

    def stable(t: float, eps: float = EPS) -> float:
        return t - eps if t < 0 else t + eps

    terms = [0.0 if weight is None else value * weight for value, weight in zip(x, w, strict=True)]
    z = sum(terms) + b
    match name:
        case "epsilon":
            return [term / stable(z) for term in terms]
        case "relative":
            return [term / stable(z, EPS + 0.3 * size) for term in terms]
        case "gamma":
            sign = -1 if z < 0 else 1
            grown = [term * (1.4 if term * sign > 0 else 1) for term in terms]
            t = sum(grown) + b * (1.4 if b * sign > 0 else 1)
            return [term / stable(t) for term in grown]
        case "z_plus":
            t = sum(max(term, 0) for term in terms) + max(b, 0)
            return [max(term, 0) / stable(t) for term in terms]
        case "alpha_beta":
            up = sum(max(term, 0) for term in terms) + max(b, 0)
            down = sum(min(term, 0) for term in terms) + min(b, 0)
            return [
                1.5 * max(term, 0) / stable(up) - 0.5 * min(term, 0) / stable(down)
                for term in terms
            ]
        case "flat":
            return [0.0 if weight is None else 1 / stable(count) for weight in w]
        case "box":
            low, high = float(LOW), float(HIGH)
            above = [
                0.0 if weight is None else value * weight - (low if weight > 0 else high) * weight
                for value, weight in zip(x, w, strict=True)
            ]
            return [term / stable(sum(above)) for term in above]
    raise AssertionError(name)


def dense(layer: Callable[[Tensor], Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """A linear layer as a matrix, a row for each output, and its bias."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        return (layer(basis) - zero).flatten(1).T, zero.flatten()


def one_back(
    name: str, layer: Callable[[Tensor], Tensor], reads: Tensor, x: Tensor, arrived: Tensor
) -> Tensor:
    """Relevance of a layer's inputs (1, ...): a loop over all units and their inputs."""
    weights, biases = dense(layer, x.shape[1:])
    size = float((weights @ x.flatten() + biases).square().mean().sqrt())
    result = torch.zeros(x.numel(), dtype=torch.float64)
    for j in range(len(weights)):
        row = [w if r else None for w, r in zip(weights[j].tolist(), reads[j], strict=True)]
        shares = share(name, x.flatten().tolist(), row, float(biases[j]), int(reads[j].sum()), size)
        for i, value in enumerate(shares):
            result[i] += value * arrived[j]
    return result


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", RULES)
def test_rules_against_loops(name: str, activation: Callable[[], nn.Module]) -> None:
    """Convolution with padding, BatchNorm, activation, average, convolution, activation, linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(3, 4, 3, stride=3, padding=1), nn.BatchNorm2d(4)
        second, fc = nn.Conv2d(4, 4, 2, groups=2), nn.Linear(4, 5)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    pool, act = nn.AvgPool2d(2, 1), activation()
    model = nn.Sequential(conv, norm, act, pool, second, activation(), nn.Flatten(), fc)
    model.double().eval()
    image = IMAGES[:1]
    with torch.no_grad():
        hidden = act(norm(conv(image)))
        pooled = pool(hidden)
        last = act(second(pooled)).flatten(1)
        logits = fc(last)[0]
    arrived = torch.zeros(5, dtype=torch.float64)
    arrived[2] = logits[2]

    def reads(layer: nn.Module, x: Tensor) -> Tensor:
        ones = copy.deepcopy(layer)
        nn.init.ones_(ones.weight)  # type: ignore[arg-type]
        return dense(ones, x.shape[1:])[0] > 0

    arrived = one_back(name, fc, reads(fc, last), last, arrived)
    arrived = one_back(name, second, reads(second, pooled), pooled, arrived)
    everything = torch.ones(pooled.numel(), hidden.numel())
    arrived = one_back("epsilon", pool, everything, hidden, arrived)  # whatever the composite
    arrived = one_back(name, lambda x: norm(conv(x)), reads(conv, image), image, arrived)
    result = lrp(model, image, 2, composite=everywhere(RULES[name]), epsilon=EPS)
    torch.testing.assert_close(result.flatten(), arrived, rtol=1e-10, atol=1e-12)


# --- What composites are ----------------------------------------------------------------------


def noting(place: str, seen: list[tuple[str, int]]) -> relevance.Rule:
    """LRP-ε, and the number of units of each layer that it is used for."""

    def noted(layer: relevance.Layer, arrived: Tensor, eps: float) -> Tensor:
        seen.append((place, len(layer.w)))
        return relevance.epsilon(layer, arrived, eps)

    return noted


@pytest.mark.parametrize("network", NETWORKS)
def test_epsilon_by_its_rule_is_epsilon_by_the_derivative(network: str) -> None:
    model = make(network).double().eval()
    ours = lrp(model, IMAGES, 1, epsilon=0.1)
    rule = noting("any", [])
    each = lrp(model, IMAGES, 1, composite=everywhere(rule), epsilon=0.1)
    torch.testing.assert_close(ours, each, rtol=1e-10, atol=1e-12)


def test_which_layer_goes_by_which_rule() -> None:
    widths = [3, 4, 5, 6, 7, 8, 9, 10]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 6),
                          nn.ReLU(), nn.Linear(6, 5))  # fmt: skip
    seen: list[tuple[str, int]] = []
    first, lower, middle, upper, dense = (noting(place, seen) for place in Composite._fields)
    composite = Composite(first, lower, middle, upper, dense)
    lrp(model, batch(), 1, composite=composite)
    assert seen[::-1] == [
        ("first", 4), ("lower", 5), ("lower", 6), ("middle", 7), ("middle", 8), ("upper", 9),
        ("upper", 10), ("dense", 6), ("dense", 5),
    ]  # fmt: skip
    seen.clear()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.ReLU(), nn.Linear(7, 5))
    lrp(linear, batch(), 1, composite=composite)
    assert seen == [("dense", 5), ("first", 7)]


def test_flat_and_box_do_not_count_a_border() -> None:
    """Whether a convolution pads or the network does before it, the border is no input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3, padding=1)
        inside = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)).double()
    bare = nn.Conv2d(3, 4, 3)
    bare.load_state_dict(conv.state_dict())
    before = nn.Sequential(nn.ZeroPad2d(1), bare, *list(inside)[1:]).double()
    full = IMAGES.new_zeros(1) - 5 - IMAGES.abs()
    for rule in (relevance.flat, partial(relevance.box, low=full, high=HIGH), relevance.z_plus):
        composite = COMPOSITES["epsilon"]._replace(first=rule)
        expected = lrp(inside, IMAGES, 1, composite=composite)
        torch.testing.assert_close(lrp(before, IMAGES, 1, composite=composite), expected)


def test_what_is_kept_without_biases() -> None:
    """z⁺, flat and z^B hand all of the relevance on; α2β1 as well where both signs are there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 24, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5, bias=False),
        ).double()  # fmt: skip
    logits = model(IMAGES)[:, 3].detach()
    assert (logits.abs() > 1e-3).all()
    for composite in COMPOSITES:
        total = lrp(model, IMAGES, 3, composite=composite, epsilon=1e-12).sum((1, 2, 3))
        torch.testing.assert_close(total, logits, rtol=1e-6, atol=0)
    absorbing = everywhere(relevance.epsilon_relative)
    total = lrp(model, IMAGES, 3, composite=absorbing, epsilon=0).sum((1, 2, 3))
    assert (total.abs() < 0.9 * logits.abs()).all()


def test_signs_stay_apart_by_z_plus() -> None:
    """Below linear layers, what a convolution gets decides the sign of all that it hands on."""
    model = make("Functional").double().eval()
    with torch.no_grad():
        model.fc.weight.abs_()  # type: ignore[operator, union-attr]
    result = lrp_epsilon_plus_flat(model, IMAGES, 1)
    assert result.min() >= 0
    assert result.max() > 0


@pytest.mark.parametrize(("value", "end"), [(0.0, relevance.epsilon), (1e9, relevance.z_plus)])
def test_gamma_goes_from_epsilon_to_z_plus(value: float, end: relevance.Rule) -> None:
    """In convolutions before a ReLU: where z < 0, γ → ∞ leaves the negative terms."""
    model = nn.Sequential(*ready())
    gamma = everywhere(partial(relevance.gamma, gamma=value))._replace(dense=relevance.epsilon)
    expected = everywhere(end)._replace(dense=relevance.epsilon)
    result = lrp(model, IMAGES, 1, composite=gamma, epsilon=1e-12)
    assert off(result, lrp(model, IMAGES, 1, composite=expected, epsilon=1e-12)) < 1e-6


def ready(activation: Callable[[], nn.Module] = nn.ReLU) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [layer.double() for layer in (
            nn.Conv2d(3, 6, 3), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 4, 2, padding=1),
            activation(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6), activation(),
            nn.Linear(6, 5),
        )]  # fmt: skip


def test_the_two_of_the_tables() -> None:
    model = make("Residual").double().eval()
    flat = lrp(model, IMAGES, 1, composite="epsilon-plus-flat")
    torch.testing.assert_close(lrp_epsilon_plus_flat(model, IMAGES, 1), flat)
    box = lrp(model, IMAGES, 1, composite="epsilon-gamma-box")
    torch.testing.assert_close(lrp_epsilon_gamma_box(model, IMAGES, 1), box)
    low, high = IMAGES.amin((2, 3), keepdim=True), IMAGES.amax((2, 3), keepdim=True)
    own = lrp_epsilon_gamma_box(model, IMAGES, 1, low=low, high=high)
    torch.testing.assert_close(own, box)
    wider = lrp_epsilon_gamma_box(model, IMAGES, 1, low=-9, high=torch.tensor([9.0]))
    assert off(wider, box) > 0.1
    assert off(lrp_epsilon_gamma_box(model, IMAGES, 1, gamma=3), box) > 0.1


# --- Bad options ------------------------------------------------------------------------------

BAD: list[tuple[Callable, str, Any, str]] = [
    (lrp, "composite", "epsilon-gama-box", "did you mean 'epsilon-gamma-box'"),
    (lrp, "composite", None, "not NoneType"),
    (lrp, "composite", relevance.epsilon, "not function"),
    (lrp, "composite", everywhere("flat"), "'first' must be a function, not 'flat'"),  # type: ignore[arg-type]
    (lrp, "epsilon", -1, "at least 0"),
    (lrp_epsilon_gamma_box, "gamma", -0.1, "at least 0"),
    (lrp_epsilon_gamma_box, "gamma", math.nan, "finite"),
    (lrp_epsilon_gamma_box, "low", 0.0, r"values beyond it.*Classifier\.black"),
    (lrp_epsilon_gamma_box, "high", 1, r"values beyond it.*Classifier\.white"),
    (lrp_epsilon_gamma_box, "low", "black", "not str"),
    (lrp_epsilon_gamma_box, "high", torch.zeros(2, 5), "broadcastable"),
]


@pytest.mark.parametrize(("method", "option", "bad", "said"), BAD)
def test_bad_option(method: Callable, option: str, bad: object, said: str) -> None:
    model = make("Residual")
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises((ValueError, TypeError), match=rf"^{option}\b.*{said}") as error:
        method(model, batch(), 1, **{option: bad})
    assert "\n" not in str(error.value)


# --- Zennit -----------------------------------------------------------------------------------


def zennit_composite(name: str, low: Tensor, high: Tensor, canonizers: list) -> Any:
    from zennit import composites

    match name:
        case "epsilon":
            from zennit.rules import Epsilon
            from zennit.types import Linear

            rules = [*composites.layer_map_base(1e-6), (Linear, Epsilon(1e-6))]
            return composites.LayerMapComposite(rules, canonizers=canonizers)
        case "epsilon-gamma-box":
            return composites.EpsilonGammaBox(low=low, high=high, canonizers=canonizers)
    return composites.COMPOSITES[name.replace("-", "_")](canonizers=canonizers)


def zennit(
    model: nn.Module, images: Tensor, target: int, name: str, canonizers: list | None = None
) -> Tensor:
    from zennit.attribution import Gradient

    low, high = (bound((2, 3), keepdim=True) for bound in (images.amin, images.amax))
    logits = model(images.clone()).detach()
    start = F.one_hot(torch.full((len(images),), target), logits.shape[1]) * logits
    composite = zennit_composite(name, low, high, canonizers or [])
    with Gradient(model, composite) as attributor:
        return attributor(images.clone(), start)[1].detach()


OF_ZENNIT = [name for name in COMPOSITES if name != "zero-epsilon-gamma-box"]


@pytest.mark.references
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ReLU6])
@pytest.mark.parametrize("name", OF_ZENNIT)
def test_composites_equal_zennits(name: str, activation: Callable[[], nn.Module]) -> None:
    """With Tanh, layers get inputs of both signs, and so their general form."""
    model = nn.Sequential(*ready(activation))
    ours = lrp(model, IMAGES, 1, composite=name)
    assert off(ours, zennit(model, IMAGES, 1, name)) < 1e-9


@pytest.mark.references
def test_relative_epsilon_equals_zennits() -> None:
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.core import Stabilizer
    from zennit.rules import Epsilon
    from zennit.types import Linear

    model = nn.Sequential(*ready(nn.Tanh))
    rule = Epsilon(Stabilizer(0.25, norm_scale=True))
    start = F.one_hot(torch.tensor([1, 1, 1]), 5) * model(IMAGES).detach()
    with Gradient(model, LayerMapComposite([*layer_map_base(0), (Linear, rule)])) as attributor:
        theirs = attributor(IMAGES.clone(), start)[1]
    ours = lrp(model, IMAGES, 1, composite=everywhere(relevance.epsilon_relative), epsilon=0)
    assert off(ours, theirs) < 1e-9


def harmless(model: nn.Module) -> nn.Module:
    """The same network with the ε of each BatchNorm put into its variance.

    Zennit merges a BatchNorm and leaves it its ε, so that it goes on dividing by √(1 + ε).
    """
    model = copy.deepcopy(model)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var, norm.eps = norm.running_var + norm.eps, 0.0  # type: ignore[operator, assignment]
    return model


@pytest.mark.references
@pytest.mark.parametrize("name", ["epsilon-plus-flat", "epsilon-gamma-box"])
def test_zennits_merged_batch_norm_divides_once_more(name: str) -> None:
    """What it explains is then another network, with other logits."""
    from zennit.canonizers import SequentialMergeBatchNorm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6, eps=0.1)
        norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
        layers = (nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5)).double().eval()
    ours = lrp(model, IMAGES, 1, composite=name)
    merge = SequentialMergeBatchNorm()
    assert off(ours, zennit(copy.deepcopy(model), IMAGES, 1, name, [merge])) > 1e-3
    assert off(ours, zennit(harmless(model), IMAGES, 1, name, [merge])) < 1e-9


def resnets_canonizer() -> Any:
    """Zennit's for torchvision's ResNets, for the course's own, which has the same names."""
    from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
    from zennit.layer import Sum
    from zennit.torchvision import ResNetBasicBlockCanonizer

    def with_sum(name: str, module: nn.Module) -> dict[str, Any] | None:
        if type(module).__name__ != "BasicBlock":
            return None
        forward = ResNetBasicBlockCanonizer.forward.__get__(module)
        return {"forward": forward, "canonizer_sum": Sum()}

    return CompositeCanonizer([SequentialMergeBatchNorm(), AttributeCanonizer(with_sum)])


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "scenes":
        return harmless(ARCHITECTURES["scenes"]())
    from torchvision.models.resnet import BasicBlock, ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).double()
        model.train()(pictures(8))  # statistics, so that no signal dies out
    return harmless(model.eval())


@pytest.mark.references
@pytest.mark.parametrize("name", OF_ZENNIT)
@pytest.mark.parametrize("network", ["torchvision's", "scenes"], indirect=True)
def test_composites_equal_zennits_on_residual_networks(name: str, network: nn.Module) -> None:
    images = pictures(1)
    theirs = zennit(copy.deepcopy(network), images, 1, name, [resnets_canonizer()])
    assert off(lrp(network, images, 1, composite=name), theirs) < 1e-6
