"""Methods that propagate the class's logit backward, operation by operation, by their own rules."""

from collections.abc import Callable, Sequence

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
    score_target,
)
from course_utils.methods.backward import (
    ACTIVATIONS,
    LINEAR,
    Operation,
    Rule,
    Rules,
    propagate,
    run,
)
from course_utils.progress import in_batches


def deeplift(
    model: nn.Module, images: Tensor, target: Target = None, *, baseline: Baseline = 0.0
) -> Tensor:
    """How much each input value's difference from a baseline x' changes the logit (rescale rule).

    A linear operation has the same slope m for any difference. An activation σ gets the slope of
    the line through its values for the two images, in place of its derivative at x:

        m_in = m_out · (σ(z) − σ(z')) / (z − z'),      attribution = (x − x') · m

    A maximum divides its difference between its positions in the two images; the slope of a product
    with respect to one factor is the other's mean. So the map sums to f_c(x) − f_c(x').

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
    table = {**dict.fromkeys(ACTIVATIONS, _rescale), "max_pool": _maximum, "product": _product}
    reference = Rules("deeplift", table)  # type: ignore[arg-type]  # it never goes backward

    def beside_reference(rule: Callable[[Operation, Operation, Tensor], object]) -> Callable:
        return lambda operation, m: rule(operation, _partner(operation, reference), m)

    rules = Rules("deeplift", {kind: beside_reference(rule) for kind, rule in table.items()})
    with explaining(model):
        run(model, baseline[:1] if shared else baseline, reference)
        m = propagate(model, images, rules, lambda logits: score_target(logits, target))
    return (images.detach() - baseline) * m


def _rescale(operation: Operation, reference: Operation, m: Tensor) -> Tensor:
    (z,), (z0,) = operation.inputs, reference.inputs
    return _slope(m * (operation.output - reference.output), z, z0, operation, m)


def _maximum(operation: Operation, reference: Operation, m: Tensor) -> Tensor:
    (z,) = operation.inputs
    z0 = reference.inputs[0].expand_as(z)
    (y, now), (y0, before) = operation(z, return_indices=True), operation(z0, return_indices=True)
    # First up to the higher maximum, at its place, then down to y; windows may overlap, so add.
    top = torch.maximum(y, y0)
    given = torch.zeros_like(z).flatten(2)
    given.scatter_add_(2, now.flatten(2), (m * (top - y0)).flatten(2))
    given.scatter_add_(2, before.flatten(2), (m * (y - top)).flatten(2))
    return _slope(given.view_as(z), z, z0, operation, m)


def _product(operation: Operation, reference: Operation, m: Tensor) -> tuple[Tensor, Tensor]:
    (a, b), (a0, b0) = operation.inputs, reference.inputs
    return (m * (b + b0) / 2).sum_to_size(a.shape), (m * (a + a0) / 2).sum_to_size(b.shape)


def _slope(given: Tensor, z: Tensor, z0: Tensor, operation: Operation, m: Tensor) -> Tensor:
    """given / (z − z'); where they differ by rounding alone, the limit, which is the gradient."""
    rounding = torch.finfo(z.dtype).eps ** (2 / 3) * torch.maximum(z.abs(), z0.abs())
    same = (z - z0).abs() <= rounding
    return torch.where(same, operation.gradient(m)[0], given / (z - z0).where(~same, 1))


def _partner(operation: Operation, reference: Rules) -> Operation:
    partners = reference.operations[operation.number : operation.number + 1]
    if not partners or partners[0].kind != operation.kind:
        raise ValueError("baseline: the model does other operations for it than for the images")
    return partners[0]


def lrp(
    model: nn.Module, images: Tensor, target: Target = None, *, epsilon: float = 1e-6
) -> Tensor:
    """The logit divided among the inputs, layer by layer, in proportion to their terms (LRP-ε).

        R_i = Σ_j x_i w_ij · R_j / (z_j + ε sign z_j),      z_j = Σ_i x_i w_ij + b_j,  sign 0 = 1

    R is called relevance; at the output it is the logit. An activation passes it on unchanged, a
    maximum gives all of it to its largest input, a product half to each factor. BatchNorm is merged
    into the convolution before it. Biases keep their share: the map sums to f_c(x) only in a
    network without them. As ε → 0 it is Gradient × Input if all activations are ReLUs.

    Arguments as `gradients.gradient`. epsilon: ≥ 0, in units of z. Returns (N, C, H, W), signed,
    in logits.

    Raises ValueError or TypeError naming the argument; ValueError for an operation without a rule.
    Source: Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
    Layer-Wise Relevance Propagation, 2015; the product: Achtibat et al., AttnLRP, 2024.

    >>> fc = nn.Linear(2, 1, bias=False)
    >>> fc.weight.data = torch.tensor([[3.0, -1.0]])
    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> propagation.lrp(nn.Sequential(nn.Flatten(), fc), x, epsilon=0)  # 3 · 1 and −1 · 2
    tensor([[[[ 3., -2.]]]])
    """
    check(model, images, target)
    check_number("epsilon", epsilon)

    def in_proportion(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
        z = operation.output
        z = torch.where(z < 0, z - epsilon, z + epsilon)
        gradients = operation.gradient(torch.where(z == 0, 0, relevance / z))
        return tuple(x * w for x, w in zip(operation.inputs, gradients, strict=True))

    rules = Rules(
        "lrp",
        {
            **dict.fromkeys(LINEAR, in_proportion),
            **dict.fromkeys(ACTIVATIONS, lambda operation, relevance: relevance),
            "product": _halves,
        },
        merge=True,
    )
    with explaining(model):
        # What goes back is relevance, and it starts as the logit itself.
        return propagate(
            model, images, rules, lambda logits: score_target(logits, target), start=torch.clone
        )


def _halves(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
    return tuple((relevance / 2).sum_to_size(x.shape) for x in operation.inputs)


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

    pattern_of: dict[Operation, Tensor] = {}

    def scores(logits: Tensor) -> Tensor:
        layers = _layers(rules)
        shapes = [_weight(layer).shape for layer in layers]
        if [a.shape for a in patterns] != shapes:
            raise ValueError(
                f"patterns do not fit: the model's {len(shapes)} layers need one each, of the "
                f"weight's shape, and {len(patterns)} came; {advice}"
            )
        pattern_of.update(zip(layers, patterns, strict=True))
        return score_target(logits, target)

    def back(layer: Operation, signal: Tensor) -> tuple[Tensor, ...]:
        if layer.kind == "sum" and len(layer.inputs) == 1:
            return layer.gradient(signal)  # over places, or with a constant
        if layer not in pattern_of:
            raise ValueError(
                "model: the output of one of its convolutions is used by a BatchNorm and elsewhere "
                "too, so that no single pattern fits it"
            )
        weight = _weight(layer)
        pattern = pattern_of[layer].to(weight).clone()
        leaves = tuple(x.detach().requires_grad_() for x in layer.inputs)
        with torch.enable_grad():
            y = _linear(layer, leaves, combine(pattern, weight))
        return torch.autograd.grad(y, leaves, signal)

    rules = Rules(method, _pattern_rules(back), merge=True)
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
    check_count("batch_size", batch_size)
    moments: list[_Moments] = []
    with explaining(model):
        for number in in_batches(len(images), batch_size):
            rules = Rules("estimate_patterns", _pattern_rules(Operation.gradient), merge=True)
            run(model, images[number], rules)
            layers = _layers(rules)
            moments = moments or [_Moments(layer) for layer in layers]
            for moment, layer in zip(moments, layers, strict=True):
                moment.add(layer)
        return [moment.pattern() for moment in moments]


class _Moments:
    """Sums over the places where each unit of a layer is positive, for its patterns."""

    def __init__(self, layer: Operation) -> None:
        self.weight = _weight(layer)
        self.xy = self.x = torch.zeros_like(self.weight)
        self.y = self.places = self.weight.new_zeros(len(self.weight))

    def add(self, layer: Operation) -> None:
        y, positive = layer.output, (layer.output > 0).to(layer.output)
        others = _other_axes(layer)
        # The sum of x · g over all places is how a weight's gradient is made of the output's g.
        with torch.enable_grad():
            leaf = self.weight.detach().requires_grad_()
            result = _linear(layer, layer.inputs, leaf)
        self.xy = self.xy + torch.autograd.grad(result, leaf, positive * y, retain_graph=True)[0]
        self.x = self.x + torch.autograd.grad(result, leaf, positive)[0]
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


def _pattern_rules(layer: Rule) -> dict[str, Rule]:
    return {
        **dict.fromkeys(("conv", "linear", "sum"), layer),
        **dict.fromkeys(("relu", "relu6"), Operation.gradient),
        "batch_norm": _refuse,
    }


def _layers(rules: Rules) -> list[Operation]:
    """What has a pattern: layers with weights, and sums of two activations."""
    for operation in rules.operations:
        if operation.kind == "batch_norm":
            _refuse(operation, operation.output)
    weighted = ("conv", "linear")
    return [one for one in rules.operations if one.kind in weighted or len(one.inputs) == 2]


def _refuse(operation: Operation, signal: Tensor) -> Tensor:
    raise ValueError(
        "model: patterns are for layers with weights, and one of its BatchNorms follows no "
        "convolution that it could be merged into"
    )


def _weight(layer: Operation) -> Tensor:
    """The weight of a layer; of a sum, what each channel's two summands are multiplied with."""
    if layer.kind != "sum":
        return layer.args[1]
    leaves = [x.expand_as(layer.output).detach().requires_grad_() for x in layer.inputs]
    with torch.enable_grad():
        factors = torch.autograd.grad(layer(*leaves).sum(), leaves)
    return torch.stack([factor.mean(_other_axes(layer)) for factor in factors], 1)


def _other_axes(layer: Operation) -> list[int]:
    """All axes of a layer's output but that of its units, which is a linear layer's last."""
    axes = list(range(layer.output.ndim))
    axes.pop(-1 if layer.kind == "linear" else 1)
    return axes


def _linear(layer: Operation, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """A layer without its bias, on other inputs or with another weight."""
    if layer.kind == "sum":
        shape = (1, -1, *[1] * (layer.output.ndim - 2))
        return sum(w.view(shape) * x for w, x in zip(weight.unbind(1), inputs, strict=True))  # type: ignore[return-value]
    kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
    return layer.function(*inputs, weight, None, *layer.args[3:], **kwargs)
