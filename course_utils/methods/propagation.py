"""Methods that propagate the class's logit backward, operation by operation, by their own rules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_utils.contract import (
    Baseline,
    Target,
    as_baseline,
    check,
    check_count,
    check_number,
    explaining,
    resolve_target,
    score_target,
    with_score,
)
from course_utils.methods import relevance
from course_utils.methods.backward import Rule, Rules, derivative, propagate, pull_back, run
from course_utils.methods.operations import Operation, is_weighted, merged, normalized
from course_utils.methods.relevance import Composite, as_composite, over
from course_utils.progress import in_batches


def deeplift(
    model: nn.Module, images: Tensor, target: Target = None, *, baseline: Baseline = 0.0
) -> Tensor:
    """How much each input value's difference from a baseline x' changes the logit (rescale rule).

    A linear operation has the same slope m for any difference. An activation σ gets the slope of
    the line through its values for the two images, in place of its derivative at x:

        m_in = m_out · (σ(z) − σ(z')) / (z − z'),      attribution = (x − x') · m

    A maximum divides its difference between its positions in the two images; the slope of a product
    with respect to one factor is the other's mean, of matrices, too. Normalisations and the softmax
    are made of such steps. So the map sums to f_c(x) − f_c(x').

    Arguments as `gradients.gradient`. baseline: x', a number or a tensor that broadcasts to the
    images, in model space, where 0 is the mean colour. Returns (N, C, H, W), signed, in logits.

    Raises ValueError or TypeError naming the argument; ValueError for an operation without a rule.
    Source: Shrikumar, Greenside, Kundaje, Learning Important Features Through Propagating
    Activation Differences, 2017.

    >>> model, x = nn.Sequential(nn.ReLU(), nn.Flatten()), torch.tensor([[[[2.0]]]])
    >>> propagation.deeplift(model, x, target=0, baseline=-6)  # 8 · (2 − 0) / 8
    tensor([[[[2.]]]])
    """
    check(model, images, target)
    baseline = as_baseline("baseline", baseline, images)
    shared = bool((baseline == baseline[:1]).all())
    rules_beside: dict[str, RuleBeside] = {
        **dict.fromkeys(("relu", "activation", "gate", "pointwise"), _rescale),
        **{"max_pool": _maximum, "product": _product, "quotient": _quotient},
        **{"norm": _norm, "softmax": _softmax},
    }
    reference = Rules("deeplift", dict.fromkeys(rules_beside, derivative))  # it never goes backward

    def beside(rule: RuleBeside) -> Rule:
        return lambda operation, m, derived: rule(
            operation, _reference(operation, reference), m, derived
        )

    rules = Rules("deeplift", {kind: beside(rule) for kind, rule in rules_beside.items()})
    model, target = with_score(model, target)

    def score(logits: Tensor) -> Tensor:
        scores = score_target(logits, target)  # a bad target is said before the baseline's pass
        run(model, baseline[:1] if shared else baseline, reference)
        return scores

    with explaining(model):
        m = propagate(model, images, rules, score)
    return (images.detach() - baseline) * m


class Reference(NamedTuple):
    """What an operation had to do with the baseline, once for each image."""

    inputs: list[Tensor]
    outputs: list[Tensor]


RuleBeside = Callable[[Operation, Reference, Tensor, Sequence[Tensor]], Tensor | Sequence[Tensor]]


def _reference(operation: Operation, rules: Rules) -> Reference:
    """What the operation's partner had, the one of the same number in the other pass."""
    partners = rules.operations[operation.number : operation.number + 1]
    if not partners or partners[0].name != operation.name:
        raise ValueError("baseline: the model does other operations for it than for the images")
    before = partners[0]
    pairs = (operation.inputs, before.inputs), (operation.outputs, before.outputs)
    return Reference(*([*map(_for_each, now, then)] for now, then in pairs))


def _for_each(now: Tensor, before: Tensor) -> Tensor:
    """A baseline's values, in the shape of those of several images."""
    shares = [a // b for a, b in zip(now.shape, before.shape, strict=True)]
    if all(b == 1 or share == 1 for b, share in zip(before.shape, shares, strict=True)):
        return before.expand_as(now)
    return before.repeat(shares)  # an axis that counts images and parts of them


def _rescale(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Tensor:
    (z,), (z0,) = operation.inputs, reference.inputs
    return _slope(m * (operation.output - reference.outputs[0]), z, z0, derived[0])


def _maximum(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Tensor:
    (z,), (z0,) = operation.inputs, reference.inputs
    (y, now), (y0, before) = operation.outputs, reference.outputs
    # First up to the higher maximum, at its place, then down to y; windows may overlap, so add.
    top = torch.maximum(y, y0)
    given = z.new_zeros(z.shape).flatten(2)
    given.scatter_add_(2, now.flatten(2), (m * (top - y0)).flatten(2))
    given.scatter_add_(2, before.flatten(2), (m * (y - top)).flatten(2))
    return _slope(given.view(z.shape), z, z0, derived[0])


def _product(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Sequence[Tensor]:
    pairs = zip(operation.inputs, reference.inputs, strict=True)
    means = [((z + z0) / 2).requires_grad_() for z, z0 in pairs]
    with torch.enable_grad():
        return pull_back(m, operation(*means), means)


def _quotient(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Sequence[Tensor]:
    (a, b), (a0, b0) = operation.inputs, reference.inputs
    of_a, of_b = m * (1 / b + 1 / b0) / 2, -m * (a + a0) / 2 / (b * b0)
    return of_a.sum_to_size(a.shape), of_b.sum_to_size(b.shape)


def _norm(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Tensor:
    """Of y = c · r with c = x − mean(x) and r = 1 / √(mean(c²) + ε): products, and a rescale."""
    (x,), (x0,) = operation.inputs, reference.inputs
    groups, weight, epsilon = normalized(operation)
    c, c0 = (z.reshape(groups, -1) for z in (x, x0))
    c, c0 = c - c.mean(1, keepdim=True), c0 - c0.mean(1, keepdim=True)
    v, v0 = (z.square().mean(1, keepdim=True) + epsilon for z in (c, c0))
    r, r0 = v.rsqrt(), v0.rsqrt()
    m = (m if weight is None else m * weight).reshape(groups, -1)
    m_r = (m * (c + c0) / 2).sum(1, keepdim=True)
    m_v = _slope(m_r * (r - r0), v, v0, -m_r * r**3 / 2)
    m_c = m * (r + r0) / 2 + m_v * (c + c0) / c.shape[1]
    return (m_c - m_c.mean(1, keepdim=True)).view(x.shape)


def _softmax(
    operation: Operation, reference: Reference, m: Tensor, derived: Sequence[Tensor]
) -> Tensor:
    """Of y = exp(z − L) with L = log Σ exp(z): three rescales, none of which grows large."""
    (z,), (z0,), axis = operation.inputs, reference.inputs, operation.args[1]
    y, y0 = operation.output, reference.outputs[0]
    log, log0 = (value.logsumexp(axis, keepdim=True) for value in (z, z0))
    m_u = _slope(m * (y - y0), z - log, z0 - log0, m * y)  # u = z − L
    top = torch.maximum(log, log0)
    e, e0 = (z - top).exp(), (z0 - top).exp()
    s, s0 = (value.sum(axis, keepdim=True) for value in (e, e0))
    m_log = -m_u.sum(axis, keepdim=True)
    m_s = _slope(m_log * (log - log0), s, s0, m_log / s)
    return m_u + _slope(m_s * (e - e0), z, z0, m_s * e)


def _slope(given: Tensor, z: Tensor, z0: Tensor, limit: Tensor) -> Tensor:
    """given / (z − z'); where they differ by rounding alone, the limit, which is the derivative."""
    difference = z - z0
    rounding = torch.finfo(z.dtype).eps ** (2 / 3) * torch.maximum(z.abs(), z0.abs())
    return torch.where(difference.abs() <= rounding, limit, given / difference)


def lrp(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    composite: str | Composite = "epsilon",
    epsilon: float = 1e-6,
) -> Tensor:
    """The logit divided among the inputs, layer by layer, in proportion to their terms (LRP).

        R_i = Σ_j t_ij R_j / (t_j + ε sign t_j),      t_j = Σ_i t_ij + bias,      sign 0 = 1

    R is called relevance; at the output it is the logit. The composite says which terms t_ij count
    in which layer, by rules of `relevance`; in "epsilon" all do, t_ij = x_i w_ij. BatchNorm is
    merged into the convolution before it, unless that is used elsewhere, too. Other linear
    operations, such as a mean or the sum of two branches, go by ε. An activation (also a ReLU6) and
    a normalisation pass relevance on unchanged, a maximum gives all of it to its largest input, a
    product half to each factor, a softmax s gives x_i (R_i − s_i Σ_j R_j). Biases keep their share:
    the map sums to f_c(x) only in a network without them. As ε → 0, "epsilon" is Gradient × Input
    if all activations are ReLUs.

    Arguments as `gradients.gradient`. composite: a name in `relevance.COMPOSITES`, or a
    `relevance.Composite`. epsilon: ≥ 0, in units of t. Returns (N, C, H, W), signed, in logits.

    Raises ValueError or TypeError naming the argument; ValueError for an operation without a rule.
    Source: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation, 2015; composites: Montavon et al., Layer-Wise Relevance
    Propagation: An Overview, 2019; product, normalisation and softmax: Achtibat et al., AttnLRP,
    2024.

    >>> fc = nn.Linear(2, 1, bias=False)
    >>> fc.weight.data = torch.tensor([[3.0, -1.0]])
    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> propagation.lrp(nn.Sequential(nn.Flatten(), fc), x, epsilon=0)  # 3 · 1 and −1 · 2
    tensor([[[[ 3., -2.]]]])
    """
    check(model, images, target)
    composite = as_composite(composite)
    check_number("epsilon", epsilon)
    model, target = with_score(model, target)
    ruled: dict[Operation, tuple[relevance.Layer, relevance.Rule]] = {}

    def score(logits: Tensor) -> Tensor:
        """Its gradient is the relevance that the logits start with: f_c, or f_a and −f_b."""
        classes = resolve_target(logits, target)
        ruled.update(composite.assign(rules.operations))
        return score_target(logits * logits.detach(), classes)

    def enter(operation: Operation, relevance: Tensor) -> Tensor:
        if operation in ruled or (operation.merges and operation.before in ruled):
            return relevance
        if operation.merged_into_norm:
            return relevance  # of the two, the BatchNorm's z counts
        return over(relevance, operation.output, epsilon)

    def divide(
        operation: Operation, arrived: Tensor, derived: Sequence[Tensor]
    ) -> Tensor | Sequence[Tensor]:
        if operation in ruled:
            layer, rule = ruled[operation]
            return rule(layer, arrived, epsilon)
        if operation.merges:
            return arrived if operation.before in ruled else derived
        return [x * w for x, w in zip(operation.inputs, derived, strict=True)]

    rules = Rules(
        "lrp",
        {
            "linear": divide,
            "product": _halves,
            "softmax": _taylor,
            "pad": derivative,
            **dict.fromkeys(("relu", "activation", "gate", "norm"), _pass_on),
        },
        entries={
            "linear": enter,
            "product": lambda operation, relevance: over(relevance, operation.output, 0),
        },
    )
    with explaining(model):
        return propagate(model, images, rules, score)


def lrp_epsilon_plus_flat(
    model: nn.Module, images: Tensor, target: Target = None, *, epsilon: float = 1e-6
) -> Tensor:
    """LRP by ε in linear layers, z⁺ in convolutions, and flat in the first: positive terms alone.

        R_i = Σ_j (x_i w_ij)⁺ R_j / (Σ_i (x_i w_ij)⁺ + b_j⁺)      in a convolution

    The first convolution spreads what arrives evenly over its window, whatever the image's values.

    Arguments, result and errors as `lrp`.
    Source: Kohlbrenner et al., Towards Best Practice in Explaining Neural Network Decisions with
    LRP, 2020.

    >>> conv = nn.Conv2d(1, 1, (1, 2), bias=False)
    >>> conv.weight.data = torch.tensor([[[[2.0, -1.0]]]])
    >>> model, x = nn.Sequential(conv, nn.Flatten()), torch.tensor([[[[3.0, 2.0]]]])
    >>> propagation.lrp_epsilon_plus_flat(model, x)  # 4, in equal shares
    tensor([[[[2.0000, 2.0000]]]])
    """
    return lrp(model, images, target, composite="epsilon-plus-flat", epsilon=epsilon)


def lrp_epsilon_gamma_box(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    low: Baseline | None = None,
    high: Baseline | None = None,
) -> Tensor:
    """LRP by ε in linear layers, γ in convolutions, and z^B in the first.

        R_i = Σ_j x_i (w_ij + γ w_ij⁺) R_j / (Σ_i x_i (w_ij + γ w_ij⁺) + b_j + γ b_j⁺)

    That is γ in a convolution with x ≥ 0; `relevance.gamma` has the rest. The first convolution
    divides by how far a value is from the lowest l and the highest h that it could have:
    x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻.

    Arguments, result and errors as `lrp`. gamma: ≥ 0. low, high: numbers or tensors that broadcast
    to the images, such as `Classifier.black(images)` and `Classifier.white(images)`; None: the
    smallest box that holds 0 and the image's own values, channel by channel.
    Source: Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019.

    >>> conv = nn.Conv2d(1, 1, (1, 2), bias=False)
    >>> conv.weight.data = torch.tensor([[[[2.0, -1.0]]]])
    >>> model, x = nn.Sequential(conv, nn.Flatten()), torch.tensor([[[[3.0, 2.0]]]])
    >>> propagation.lrp_epsilon_gamma_box(model, x, low=0, high=4)  # 4, as 6 to −2 + 4
    tensor([[[[3.0000, 1.0000]]]])
    """
    check(model, images, target)
    check_number("gamma", gamma)
    low, high = _bound("low", low, images, torch.lt), _bound("high", high, images, torch.gt)
    first = partial(relevance.box, low=low, high=high)
    others = partial(relevance.gamma, gamma=gamma)
    composite = Composite(first, others, others, others, dense=relevance.epsilon)
    return lrp(model, images, target, composite=composite, epsilon=epsilon)


def _bound(
    name: str, value: Baseline | None, images: Tensor, beyond: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | None:
    """An end of the box as a tensor; ValueError where an image's values are beyond it."""
    if value is None:
        return None
    bound = as_baseline(name, value, images)
    if (images - bound)[beyond(images, bound)].abs().gt(1e-3).any():  # more than rounding
        raise ValueError(
            f"{name}: the images hold values beyond it; give it in model space, where "
            "Classifier.black(images) is the lowest and Classifier.white(images) the highest"
        )
    return bound


def _pass_on(operation: Operation, relevance: Tensor, derived: Sequence[Tensor]) -> Tensor:
    return relevance


def _halves(operation: Operation, per_z: Tensor, derived: Sequence[Tensor]) -> Sequence[Tensor]:
    return [x * w / len(derived) for x, w in zip(operation.inputs, derived, strict=True)]


def _taylor(operation: Operation, relevance: Tensor, derived: Sequence[Tensor]) -> Tensor:
    (x,), total = operation.inputs, relevance.sum(operation.args[1], keepdim=True)
    return x * (relevance - operation.output * total)


def pattern_net(
    model: nn.Module, images: Tensor, target: Target = None, *, patterns: Sequence[Tensor]
) -> Tensor:
    """The part of the image that changes with the logit: the gradient, but with patterns a for w.

    A layer computes y = wᵀx, and x is the sum of a signal s = a y and a distractor. The weight must
    also cancel the distractor; only the pattern has the signal's direction. So the logit is
    propagated backward as in the gradient, but through a linear layer by R_in = a R_out.

    Arguments as `gradients.gradient`. patterns: those of `estimate_patterns(model, images)`.
    Returns (N, C, H, W), signed. Its size means nothing: in each layer all units return the signal
    that they have in common, so that it grows from layer to layer.

    Raises ValueError or TypeError naming the argument; ValueError for other activations than ReLU
    and ReLU6, and where the network is too deep for the images' type.
    Source: Kindermans et al., Learning How to Explain Neural Networks, 2018.

    >>> fc = nn.Linear(2, 1, bias=False)
    >>> fc.weight.data = torch.tensor([[1.0, -1.0]])
    >>> model, x = nn.Sequential(nn.Flatten(), fc), torch.tensor([[[[3.0, 1.0]]]])
    >>> propagation.pattern_net(model, x, patterns=[torch.tensor([[1.0, 0.0]])])  # 2 a
    tensor([[[[2., 0.]]]])
    """
    return _by_patterns("pattern_net", lambda a, w: a, model, images, target, patterns)


def pattern_attribution(
    model: nn.Module, images: Tensor, target: Target = None, *, patterns: Sequence[Tensor]
) -> Tensor:
    """What each input value's signal contributes to the logit: R_in = (a ⊙ w) R_out in each layer.

    Arguments and errors as `pattern_net`. Returns (N, C, H, W), signed, in logits. What arrives at
    a unit whose ReLU is 0 is lost; in a deep network that is almost all of the logit.
    Source: Kindermans et al., Learning How to Explain Neural Networks, 2018.
    """
    return _by_patterns("pattern_attribution", torch.mul, model, images, target, patterns)


def _by_patterns(
    method: str,
    combine: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    images: Tensor,
    target: Target,
    patterns: Sequence[Tensor],
) -> Tensor:
    check(model, images, target)
    advice = "patterns = estimate_patterns(model, images) makes them"
    if not isinstance(patterns, Sequence) or not all(isinstance(a, Tensor) for a in patterns):
        raise TypeError(
            f"patterns must be a list of tensors, not {type(patterns).__name__}; {advice}"
        )

    pattern_of: dict[Operation, tuple[Layer, Tensor]] = {}

    def scores(logits: Tensor) -> Tensor:
        layers = _layers(rules)
        shapes = [layer.weight.shape for layer in layers]
        if [a.shape for a in patterns] != shapes:
            raise ValueError(
                f"patterns do not fit: the model's {len(shapes)} layers need one each, of the "
                f"weight's shape, and {len(patterns)} came; {advice}"
            )
        for layer, pattern in zip(layers, patterns, strict=True):
            pattern_of[layer.operation] = layer, pattern
        return score_target(logits, target)

    def back(
        operation: Operation, signal: Tensor, derived: Sequence[Tensor]
    ) -> Tensor | Sequence[Tensor]:
        if operation.merges:
            return signal  # the pattern is that of the convolution together with it
        if operation not in pattern_of:
            return derived  # a mean, a sum over places, or with a constant
        layer, pattern = pattern_of[operation]
        pattern = pattern.to(layer.weight).clone()
        leaves = [x.clone().requires_grad_() for x in operation.inputs]
        with torch.enable_grad():
            y = layer.linear(leaves, combine(pattern, layer.weight))
            return pull_back(signal, y, leaves)

    rules = Rules(method, {"linear": back}, derivative=["relu"])
    with explaining(model):
        result = propagate(model, images, rules, scores, start=torch.clone)
    if not result.isfinite().all():
        raise ValueError(
            f"model: it is so deep that {method} leaves the range of {result.dtype}; use "
            "model.double() and images.double()"
        )
    return result


def estimate_patterns(model: nn.Module, images: Tensor, *, batch_size: int = 16) -> list[Tensor]:
    """The pattern of each layer, from images that pass through it (two-component estimator).

        a = cov₊(x, y) / wᵀcov₊(x, y),      cov₊(x, y) = E₊[x y] − E₊[x] E₊[y],      y = wᵀx

    E₊ is the mean over the positions where the layer's output is positive, so that a ReLU passes
    it on. (With E[y] in place of E₊[y], as some texts have it, a distractor whose mean is not 0
    becomes part of the pattern.)
    Layers are convolutions, with the BatchNorm that follows, linear layers, and sums of two
    activations, which are layers of weight 1 for each channel.

    images: (M, C, H, W) in model space, the more the better. Returns a pattern for each layer, in
    the order in which the model runs them, of the weight's shape; for a sum (C, 2). A unit that was
    never active has pattern 0.

    Raises ValueError or TypeError naming the argument; ValueError for other activations than ReLU
    and ReLU6, and for a BatchNorm that follows no convolution.
    Source: Kindermans et al., Learning How to Explain Neural Networks, 2018.

    >>> fc = nn.Linear(2, 1, bias=False)
    >>> fc.weight.data = torch.tensor([[1.0, -1.0]])  # cancels what both inputs have in common
    >>> signal, distractor = torch.tensor([1.0, 1, 2, 2]), torch.tensor([-1.0, 1, -1, 1])
    >>> images = torch.stack([signal + distractor, distractor], 1).view(4, 1, 1, 2)
    >>> propagation.estimate_patterns(nn.Sequential(nn.Flatten(), fc), images)
    [tensor([[1., 0.]])]
    """
    check(model, images)
    if images.dtype.itemsize < 4:
        raise ValueError(
            f"images are {images.dtype}, which is too coarse to estimate patterns; use "
            "model.float() and images.float()"
        )
    check_count("batch_size", batch_size)
    moments: list[_Moments] = []
    with explaining(model):
        for number in in_batches(len(images), batch_size):
            rules = Rules("estimate_patterns", {"linear": derivative}, derivative=["relu"])
            run(model, images[number], rules)
            layers = _layers(rules)
            moments = moments or [_Moments(layer) for layer in layers]
            for moment, layer in zip(moments, layers, strict=True):
                moment.add(layer)
        return [moment.pattern() for moment in moments]


class Layer(NamedTuple):
    """What has a pattern: an operation with weights, or a sum of two activations.

    norm: the BatchNorm that follows a convolution and is merged into it.
    weight: (units, ...); of a sum (C, 2), what each channel's two summands are multiplied with.
    """

    operation: Operation
    norm: Operation | None
    weight: Tensor

    @property
    def output(self) -> Tensor:
        """What it made of its inputs, normalised."""
        return (self.norm or self.operation).output

    @property
    def other_axes(self) -> list[int]:
        """All axes of its output but that of its units, which is a linear layer's last."""
        axes = list(range(self.output.ndim))
        axes.pop(-1 if self.operation.name in ("addmm", "mm") else 1)
        return axes

    def linear(self, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
        """What it does without its bias, on other inputs or with another weight."""
        operation = self.operation
        if operation.name == "convolution":
            return operation.function(*inputs, weight, None, *operation.args[3:])
        if operation.name in ("addmm", "mm"):
            return inputs[0] @ weight.T
        shape = (1, -1, *[1] * (self.output.ndim - 2))
        return sum(w.view(shape) * x for w, x in zip(weight.unbind(1), inputs, strict=True))  # type: ignore[return-value]


def _layers(rules: Rules) -> list[Layer]:
    """Those of a pass, in the order in which the network ran; ValueError where one has none."""
    norm_of = {one.before: one for one in rules.operations if one.merges}
    return [
        Layer(one, norm_of.get(one), _weight(one, norm_of.get(one)))
        for one in rules.operations
        if _has_pattern(one)
    ]


def _has_pattern(operation: Operation) -> bool:
    name, places = operation.name, operation.places
    if name == "native_batch_norm" and not operation.merges:
        if operation.before and operation.before.name == "convolution":
            raise ValueError(
                "model: the output of one of its convolutions is used by a BatchNorm and elsewhere "
                "too, so that no single pattern fits it"
            )
        raise ValueError(
            "model: patterns are for layers with weights, and one of its BatchNorms follows no "
            "convolution that it could be merged into"
        )
    weighted = name in ("convolution", "addmm", "mm", "bmm", "baddbmm", "mv")
    if weighted and not is_weighted(operation):
        raise ValueError(
            "model: patterns are for convolutions and linear layers, not for what one of its "
            f"operations {name} does"
        )
    return weighted or (len(places) == 2 and name in ("add", "sub"))


def _weight(operation: Operation, norm: Operation | None) -> Tensor:
    if is_weighted(operation):
        return merged(operation, norm)[0]
    leaves = [x.expand_as(operation.output).clone().requires_grad_() for x in operation.inputs]
    with torch.enable_grad():
        factors = torch.autograd.grad(operation(*leaves).sum(), leaves)
    others = [axis for axis in range(operation.output.ndim) if axis != 1]
    return torch.stack([factor.mean(others) for factor in factors], 1)


class _Moments:
    """Sums over the places where each unit of a layer is positive, for its patterns."""

    def __init__(self, layer: Layer) -> None:
        self.weight = layer.weight
        self.xy = self.x = torch.zeros_like(self.weight)
        self.y = self.places = self.weight.new_zeros(len(self.weight))

    def add(self, layer: Layer) -> None:
        y, positive = layer.output, (layer.output > 0).to(layer.output)
        others = layer.other_axes
        # The sum of x · g over all places is how a weight's gradient is made of the output's g.
        with torch.enable_grad():
            leaf = self.weight.detach().requires_grad_()
            result = layer.linear(layer.operation.inputs, leaf)
            of_xy, of_x = (result * positive * y).sum(), (result * positive).sum()
        self.xy = self.xy + torch.autograd.grad(of_xy, leaf, retain_graph=True)[0]
        self.x = self.x + torch.autograd.grad(of_x, leaf)[0]
        self.y, self.places = (
            self.y + (positive * y).sum(others),
            self.places + positive.sum(others),
        )

    def pattern(self) -> Tensor:
        def each(values: Tensor) -> Tensor:  # one number a unit, along the weight's first axis
            return values.view(-1, *[1] * (self.weight.ndim - 1))

        places = each(self.places)
        product = self.xy / places
        covariance = product - self.x / places * each(self.y) / places  # free of any bias
        variance = each((self.weight * covariance).flatten(1).sum(1))
        rounding = each((self.weight * product).abs().flatten(1).sum(1))
        rounding = 100 * torch.finfo(product.dtype).eps * rounding
        return torch.where(variance > rounding, covariance / variance, 0)
