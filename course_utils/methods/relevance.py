"""The rules by which LRP divides a layer's relevance among its inputs, and composites of them.

A rule says which terms t of a sum count, and divides in proportion to them:

    R_i = Σ_j t_ij R_j / t_j,      t_j = Σ_i t_ij + bias

    ε      t = x w                   all terms, as they are
    γ      t = x w + γ (x w)⁺        those that agree with their sum count 1 + γ times
    z⁺     t = (x w)⁺                the positive ones alone
    αβ     α times by the positive terms, −β times by the negative ones
    flat   t = 1                     each input the same
    z^B    t = x w − l w⁺ − h w⁻     how far each input is from the end of its range l … h

v⁺ is max(v, 0), v⁻ is min(v, 0), so that (x w)⁺ = x⁺ w⁺ + x⁻ w⁻. A `Composite` says which layer
goes by which rule; `COMPOSITES` is a table of those that the field uses.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.contract import check_choice
from course_utils.methods.operations import Operation, is_weighted, merged

Terms = Sequence[tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """A convolution or a linear layer, z = w ∗ x + b, as a rule sees it.

    x: its inputs. w, b: its weights and biases, a BatchNorm that follows merged in; b is 0 where
    it has none.
    """

    operation: Operation
    x: Tensor
    w: Tensor
    b: Tensor

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """w ∗ x: what it makes of any inputs by any weights, without a bias."""
        if self.operation.name != "convolution":
            return x @ w.T
        return self.operation.function(x, w, None, *self.operation.args[3:])

    def back(self, s: Tensor, w: Tensor) -> Tensor:
        """wᵀ ∗ s: a number for each output, brought to the inputs by the weights' transpose."""
        if self.operation.name != "convolution":
            return s @ w
        # What torch.jit.trace has made has more of them.
        options, only_x = self.operation.args[3:9], [True, False, False]
        return torch.ops.aten.convolution_backward(s, self.x, w, None, *options, only_x)[0]

    def filled(self, value: float | Tensor) -> Tensor:
        """Inputs that are `value` everywhere, but 0 in a border that the network puts around."""
        before = self.operation.before
        if before and before.kind == "pad":
            inner = torch.zeros_like(before.inputs[0]) + value
            return before.function(inner, before.args[1], 0)
        return torch.zeros_like(self.x) + value

    def divide(self, relevance: Tensor, terms: Terms, bias: Tensor | float, eps: float) -> Tensor:
        """R_i = Σ_j t_ij R_j / (t_j + ε sign t_j): relevance divided in proportion to terms.

        terms: pairs of inputs and weights, whose products are the terms, added up.
        """
        terms = [(x, w) for x, w in terms if x.any()] or terms[:1]  # after a ReLU x⁻ is nothing
        t = torch.stack([self.forward(x, w) for x, w in terms]).sum(0) + bias
        per_t = over(relevance, t, eps)
        return torch.stack([x * self.back(per_t, w) for x, w in terms]).sum(0)


# (layer, relevance of its outputs, ε of the denominators) → relevance of its inputs
Rule = Callable[[Layer, Tensor, float], Tensor]


def epsilon(layer: Layer, relevance: Tensor, eps: float) -> Tensor:
    """LRP-ε: all terms, t_ij = x_i w_ij.

    Source: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation, 2015.
    """
    return layer.divide(relevance, [(layer.x, layer.w)], layer.b, eps)


def epsilon_relative(layer: Layer, relevance: Tensor, eps: float, *, share: float = 0.25) -> Tensor:
    """LRP-ε with an ε that counts: a share of the root mean square of an image's z in this layer.

    It takes relevance away where a sum almost cancels, and with it the noise.

    Source: Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019.
    """
    z = layer.forward(layer.x, layer.w) + layer.b
    size = z.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (z.ndim - 1))
    return layer.x * layer.back(over(relevance, z, eps + share * size), layer.w)


def gamma(layer: Layer, relevance: Tensor, eps: float, *, gamma: float = 0.25) -> Tensor:
    """LRP-γ: terms that agree with their sum z_j count 1 + γ times.

        t_ij = x_i w_ij + γ (x_i w_ij)⁺ if z_j ≥ 0,      x_i w_ij + γ (x_i w_ij)⁻ if z_j < 0

    For x ≥ 0 before a ReLU that is the paper's x (w + γ w⁺). γ = 0 is LRP-ε, γ → ∞ LRP-z⁺.

    Source: Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019; for x of both
    signs: Andéol et al., Learning Domain Invariant Representations by Joint Wasserstein Distance
    Minimization, 2021.
    """
    (xp, xn), (wp, wn), (bp, bn) = map(parts, (layer.x, layer.w, layer.b))
    up, down = layer.w + gamma * wp, layer.w + gamma * wn
    below = layer.forward(layer.x, layer.w) + layer.b < 0
    of_above = layer.divide(
        relevance.masked_fill(below, 0), [(xp, up), (xn, down)], layer.b + gamma * bp, eps
    )
    of_below = layer.divide(
        relevance.masked_fill(~below, 0), [(xp, down), (xn, up)], layer.b + gamma * bn, eps
    )
    return of_above + of_below


def z_plus(layer: Layer, relevance: Tensor, eps: float) -> Tensor:
    """LRP-z⁺: the positive terms alone, t_ij = (x_i w_ij)⁺, so that R keeps its sign.

    Source: Montavon et al., Explaining Nonlinear Classification Decisions with Deep Taylor
    Decomposition, 2017.
    """
    return alpha_beta(layer, relevance, eps, alpha=1, beta=0)


def alpha_beta(
    layer: Layer, relevance: Tensor, eps: float, *, alpha: float = 2.0, beta: float = 1.0
) -> Tensor:
    """LRP-αβ: α times by the positive terms, −β times by the negative ones; α − β = 1.

        R_i = α Σ_j t⁺_ij R_j / t⁺_j − β Σ_j t⁻_ij R_j / t⁻_j,      t⁺_ij = (x_i w_ij)⁺

    Of a unit that has no negative terms α R_j goes on, not (α − β) R_j.

    Source: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation, 2015.
    """
    (xp, xn), (wp, wn), (bp, bn) = map(parts, (layer.x, layer.w, layer.b))
    result = alpha * layer.divide(relevance, [(xp, wp), (xn, wn)], bp, eps)
    if beta:
        result = result - beta * layer.divide(relevance, [(xp, wn), (xn, wp)], bn, eps)
    return result


def flat(layer: Layer, relevance: Tensor, eps: float) -> Tensor:
    """LRP-flat: each input of a unit gets the same, t_ij = 1, whatever the picture shows there.

    Source: Lapuschkin et al., Unmasking Clever Hans Predictors and Assessing What Machines Really
    Learn, 2019.
    """
    return layer.divide(relevance, [(layer.filled(1), torch.ones_like(layer.w))], 0, eps)


def box(
    layer: Layer,
    relevance: Tensor,
    eps: float,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """LRP-z^B, for inputs in a box l ≤ x ≤ h: t_ij = x_i w_ij − l_i w⁺_ij − h_i w⁻_ij ≥ 0.

    low, high: l and h; None: the smallest box that holds 0 and what an image's own inputs are,
    channel by channel; where they are all the same, t is that of LRP-z⁺.

    Source: Montavon et al., Explaining Nonlinear Classification Decisions with Deep Taylor
    Decomposition, 2017.
    """
    places = tuple(range(2, layer.x.ndim)) or (1,)
    low = layer.x.amin(places, keepdim=True).clamp(max=0) if low is None else low
    high = layer.x.amax(places, keepdim=True).clamp(min=0) if high is None else high
    wp, wn = parts(layer.w)
    terms = [(layer.x, layer.w), (layer.filled(-low), wp), (layer.filled(-high), wn)]
    return layer.divide(relevance, terms, 0, eps)


def parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """v⁺ = max(v, 0) and v⁻ = min(v, 0).

    >>> relevance.parts(torch.tensor([2.0, -3.0]))
    (tensor([2., 0.]), tensor([ 0., -3.]))
    """
    return values.clamp(min=0), values.clamp(max=0)


def over(relevance: Tensor, t: Tensor, eps: float | Tensor) -> Tensor:
    """R / (t + ε sign t) with sign 0 = 1; where that is R / 0, it is 0.

    >>> relevance.over(torch.tensor([6.0, 6.0]), torch.tensor([2.0, -2.0]), 1.0)
    tensor([ 2., -2.])
    """
    away = torch.as_tensor(eps, dtype=t.dtype, device=t.device)  # of a type in which it may be 0
    divisor = t + away.expand_as(t).copysign(t)
    return torch.where(divisor == 0, 0, relevance / divisor)


class Composite(NamedTuple):
    """Which rule each layer goes by, by its place in the network: a row of `COMPOSITES`.

    first: of the layer that runs first, a convolution or a linear one. lower, middle, upper: of
    the convolutions after it, of a third each in the order in which they run. dense: of linear
    layers. `composite._replace(lower=…)` is the same with another rule there.

    >>> relevance.COMPOSITES["epsilon-plus"]._replace(first=relevance.flat).first.__name__
    'flat'
    """

    first: Rule
    lower: Rule
    middle: Rule
    upper: Rule
    dense: Rule

    def assign(self, operations: Sequence[Operation]) -> dict[Operation, tuple[Layer, Rule]]:
        """Each layer of a pass with its rule, but those by ε: all that is linear goes by it."""
        layers = [one for one in operations if is_weighted(one)]
        convolutions = [one for one in layers[1:] if one.name == "convolution"]
        rule_of = dict.fromkeys(layers, self.dense) | dict.fromkeys(layers[:1], self.first)
        for k, one in enumerate(convolutions):
            rule_of[one] = (self.lower, self.middle, self.upper)[3 * k // len(convolutions)]
        norm_of = {one.before: one for one in operations if one.merges}
        return {
            one: (_layer(one, norm_of.get(one)), rule)
            for one, rule in rule_of.items()
            if rule is not epsilon
        }


def _layer(operation: Operation, norm: Operation | None) -> Layer:
    (x,), (w, b) = operation.inputs, merged(operation, norm)
    b = w.new_zeros(len(w)) if b is None else b
    # In a convolution's output the units are the second axis, in a linear layer's the last.
    b = b.view(-1, *[1] * (w.ndim - 2))
    return Layer(operation, x, w, b)


# fmt: off
COMPOSITES: dict[str, Composite] = {
    # Named by their rules from the output to the input, as in Zennit.
    #                                      first       lower       middle      upper       dense
    "epsilon":                   Composite(epsilon,    epsilon,    epsilon,    epsilon,    epsilon),
    "epsilon-plus":              Composite(z_plus,     z_plus,     z_plus,     z_plus,     epsilon),
    "epsilon-plus-flat":         Composite(flat,       z_plus,     z_plus,     z_plus,     epsilon),
    "epsilon-alpha2-beta1":      Composite(alpha_beta, alpha_beta, alpha_beta, alpha_beta, epsilon),
    "epsilon-alpha2-beta1-flat": Composite(flat,       alpha_beta, alpha_beta, alpha_beta, epsilon),
    "epsilon-gamma-box":         Composite(box,        gamma,      gamma,      gamma,      epsilon),
    "zero-epsilon-gamma-box":
        Composite(box, gamma, epsilon_relative, epsilon_relative, epsilon),  # Montavon's overview
}
# fmt: on


def as_composite(composite: str | Composite) -> Composite:
    """The composite itself, or the one of that name; ValueError or TypeError where it is none."""
    if isinstance(composite, str):
        check_choice("composite", composite, COMPOSITES)
        return COMPOSITES[composite]
    if not isinstance(composite, Composite):
        raise TypeError(
            "composite must be the name of one, such as 'epsilon-plus-flat', or a "
            f"relevance.Composite of rules, not {type(composite).__name__}"
        )
    for place, rule in composite._asdict().items():
        if not callable(rule):
            raise TypeError(f"composite: its rule for {place!r} must be a function, not {rule!r}")
    return composite
