"""Manipulation: an image, or a network, changed so that the map changes and the answer does not.

A map is a slope of the network, or is made of slopes. The answer alone does not fix them: in a
network of ReLUs the slope may turn within a step that no eye sees, and a network trained again may
have any slopes off the images that it is trained on.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils.contract import (
    Baseline,
    Target,
    as_baseline,
    batched_logits,
    check,
    check_attribution,
    check_choice,
    check_count,
    check_generator,
    check_logits,
    check_number,
    drawn_again,
    explaining,
    predict_target,
    score_target,
)
from course_utils.methods import METHODS
from course_utils.methods.head import Head, functions, last_maps
from course_utils.progress import counted

# (model, images that carry a gradient, target) → maps that carry it on
DifferentiableMap = Callable[[nn.Module, Tensor, Target], Tensor]

RELUS, CUT_OFF = functions("relu"), functions("relu6", "hardtanh")


class Softened(TorchFunctionMode):
    """While this is on, each ReLU of a network that runs is a softplus:

        softplus(x) = log(1 + exp(β x)) / β,      ReLU6(x) ≈ softplus(x) − softplus(x − 6)

    Where a ReLU has a corner, and so no second derivative, a softplus bends: the slope of the
    network changes smoothly with the image, and can be optimised. With β → ∞ it is the ReLU again.

    Source: Dombrowski et al., Explanations Can Be Manipulated and Geometry Is to Blame, 2019.

    >>> with manipulation.Softened(beta=1.0):
    ...     torch.relu(torch.tensor([0.0, 9.0]))
    tensor([0.6931, 9.0001])
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in RELUS | CUT_OFF:
            return function(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        x = given.clone()
        if function in RELUS:
            result = F.softplus(x, self.beta)
        else:
            low, high = _bounds(function, *args[1:], **kwargs)
            result = low + F.softplus(x - low, self.beta) - F.softplus(x - high, self.beta)
        in_place = function.__name__.endswith("_") or kwargs.get("inplace")
        return given.copy_(result) if in_place else result


def _bounds(
    function: Any, min_val: float = -1.0, max_val: float = 1.0, **others: Any
) -> tuple[float, float]:
    """Between which values a ReLU6 or a hardtanh passes its input on."""
    return (0.0, 6.0) if "relu6" in function.__name__ else (min_val, max_val)


# Maps that carry a gradient to the image --------------------------------------------------------


def _slope(model: nn.Module, images: Tensor, classes: Target) -> Tensor:
    scores = score_target(model(images.clone()), classes)
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return slope


def _input_x_gradient(model: nn.Module, images: Tensor, classes: Target) -> Tensor:
    return images * _slope(model, images, classes)


def _smoothgrad(model: nn.Module, images: Tensor, classes: Target, samples: int = 4) -> Tensor:
    seeds = torch.randint(2**62, (samples,), generator=check_generator(None)).tolist()
    sigma = 0.15 * (images.amax((1, 2, 3), True) - images.amin((1, 2, 3), True)).detach()
    noise = drawn_again(torch.randn, seeds, images)
    slopes = [_slope(model, images + sigma * one, classes) for one in noise]
    return torch.stack(slopes).mean(0)


def _integrated_gradients(
    model: nn.Module, images: Tensor, classes: Target, steps: int = 4
) -> Tensor:
    alphas = (torch.arange(steps) + 0.5) / steps
    slopes = [_slope(model, alpha * images, classes) for alpha in alphas]
    return images * torch.stack(slopes).mean(0)


def _grad_cam(model: nn.Module, images: Tensor, classes: Target) -> Tensor:
    with Head():
        scores = score_target(model(images.clone()), classes)
    maps = last_maps(scores)
    if maps is None:
        raise ValueError("model: it has no last feature maps (N, C, h, w), which grad_cam needs")
    (slopes,) = torch.autograd.grad(scores.sum(), maps, create_graph=True)
    weighted = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    return F.interpolate(weighted.relu(), images.shape[2:], mode="bilinear")[:, 0]


# Each gives the numbers of its method in METHODS, which with these OPTIONS is quick.
DIFFERENTIABLE: dict[str, DifferentiableMap] = {
    "gradient": _slope,
    "input_x_gradient": _input_x_gradient,
    "smoothgrad": _smoothgrad,
    "integrated_gradients": _integrated_gradients,
    "grad_cam": _grad_cam,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 4},
    "integrated_gradients": {"steps": 4},
}


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of maps (N, H, W) with others, one number an image (N,).

    >>> one = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> manipulation.correlation(one, 5 - one).round()
    tensor([-1.])
    """
    one, other = (values.flatten(1) - values.flatten(1).mean(1, True) for values in (maps, others))
    # A constant map has no correlation: 0 and not NaN, from which no gradient leads away.
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-30)


def as_shown(method: str, maps: Tensor) -> Tensor:
    """A method's maps as a figure shows them (N, H, W): the sum over channels, or of magnitudes."""
    maps = maps.abs() if METHODS[method].magnitudes else maps
    return maps.sum(1) if maps.ndim == 4 else maps


def map_correlation(
    model: nn.Module,
    images: Tensor,
    others: Tensor,
    method: str,
    target: Target = None,
    **options: Any,
) -> Tensor:
    """How alike a method's maps of images and of others are, as figures show them: (N,), up to 1.

    images, others: (N, C, H, W), in model space. method: a name in METHODS. target: None for the
    argmax of the images, also where the others are explained. options: the method's own.

    Raises ValueError or TypeError naming the argument.
    """
    check(model, images, target)
    check(model, others, target)
    if images.shape != others.shape:
        raise ValueError(
            f"others must be {tuple(images.shape)}, as the images, but are {tuple(others.shape)}"
        )
    check_choice("method", method, METHODS)
    with explaining(model):
        classes = predict_target(model, images, target, len(images))
    maps = [METHODS[method](model, each, classes, **options) for each in (images, others)]
    return correlation(*(as_shown(method, each) for each in maps))


class Fooled(NamedTuple):
    """Images whose maps were moved, and what else that changed; one number an image (N,)."""

    images: Tensor  # (N, C, H, W), in model space, whole grey levels away from what they were
    levels: Tensor  # the largest change of an input value, in grey levels of 255
    probability: Tensor  # the largest change of a class's probability
    logit: Tensor  # the largest change of a class's logit
    correlation: Tensor  # of the map after with the map before
    toward: Tensor | None = None  # of the map after with the one wanted, where one was


def fool_map(
    model: nn.Module,
    images: Tensor,
    method: str = "gradient",
    target: Target = None,
    *,
    black: Baseline,
    white: Baseline,
    toward: Tensor | None = None,
    epsilon: int = 4,
    steps: int = 100,
    tolerance: float = 0.01,
    beta: float = 10.0,
    keep: float = 0.03,
    generator: torch.Generator | None = None,
) -> Fooled:
    """Change images by what no eye sees, so that a method's map moves and the answer stays:

        min over δ of  ρ(M(x + δ), M(x)) + keep · (mean_k Δf_k² + Σ_k (Δp_k / tolerance)²),
        |δ| ≤ epsilon

    ρ is the correlation of the maps as figures show them; Δf and Δp are what a class's logit and
    probability change by. The descent, Adam's, has M from a network whose ReLUs are `Softened`; the
    true network judges each step, by the method of METHODS, after δ was rounded to whole grey
    levels, as a file of 8 bits holds them. Of the steps at which no probability moved by more than
    the tolerance the one with the least ρ counts; where there is none, the images stay as they are.
    A step costs about five gradients of the map.

    images: (N, C, H, W), in model space. method: one of DIFFERENTIABLE, with their OPTIONS.
    target: the class explained, as the methods have it; all probabilities are kept.
    black, white: in model space, as of `Classifier`; a grey level is (white − black) / 255.
    toward: a map (H, W) or (N, H, W), which the new map shall resemble: −ρ(M(x + δ), toward) takes
    ρ's place. epsilon: in grey levels. beta: of the softplus. keep: how much a change of the answer
    counts. generator: for the first δ, within one grey level; None for one of seed 0.

    Raises ValueError or TypeError naming the argument; ValueError for a map that no change moves.
    Sources: Ghorbani, Abid, Zou, Interpretation of Neural Networks Is Fragile, 2019 (the attack);
    Dombrowski et al., Explanations Can Be Manipulated and Geometry Is to Blame, 2019 (softplus).
    """
    check(model, images, target)
    check_choice("method", method, DIFFERENTIABLE)
    room = _room(images, black, white, epsilon)
    goal = None if toward is None else _as_goal("toward", toward, images)
    check_count("steps", steps)
    check_number("tolerance", tolerance, lowest=1e-6)
    check_number("beta", beta, lowest=1e-3)
    check_number("keep", keep)
    generator = check_generator(generator)

    with explaining(model):
        images = images.detach()
        classes = predict_target(model, images, target, len(images))
        before, logits = _shown(model, images, method, classes), _logits(model, images)
        if goal is None:
            goal = -before  # away from a map is toward its negative

        def loss(x: Tensor) -> Tensor:
            maps = _softened(model, x, method, classes, beta)
            return keep * _moved(_logits(model, x), logits, tolerance) - correlation(maps, goal)

        best, height = images, correlation(before, goal)
        for new in _descent(loss, images, room, steps, epsilon / 5, generator):
            found = correlation(_shown(model, new, method, classes), goal)
            shift = _largest(_logits(model, new).softmax(1) - logits.softmax(1))
            better = (found > height) & (shift <= tolerance)
            height = torch.where(better, found, height)
            best = torch.where(better.view(-1, 1, 1, 1), new, best)
        after, answer = _shown(model, best, method, classes), _logits(model, best)
    return Fooled(
        best,
        levels=_largest((best - images) / room.grey).round(),
        probability=_largest(answer.softmax(1) - logits.softmax(1)),
        logit=_largest(answer - logits),
        correlation=correlation(after, before),
        toward=None if toward is None else correlation(after, goal),
    )


class _Room(NamedTuple):
    """How large a grey level is in model space, and how many a value may go down and up."""

    grey: Tensor
    lowest: Tensor
    highest: Tensor


def _room(images: Tensor, black: Baseline, white: Baseline, epsilon: int) -> _Room:
    check_count("epsilon", epsilon)
    low, high = as_baseline("black", black, images), as_baseline("white", white, images)
    if not (low < high).all():
        raise ValueError("white must be above black everywhere")
    grey = (high - low) / 255
    down, up = ((edge - images.detach()) / grey for edge in (low, high))
    return _Room(grey, down.round().clamp(-epsilon, 0), up.round().clamp(0, epsilon))


def _descent(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    room: _Room,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """The images after each of Adam's steps down a loss (N,), rounded to whole grey levels.

    In the last third the steps become shorter, so that they can keep an answer to the third digit.
    """
    seed = torch.randint(2**62, (1,), generator=generator).tolist()
    start = (2 * drawn_again(torch.rand, seed, images) - 1).expand_as(images)
    change = start.clamp(room.lowest, room.highest).requires_grad_()
    optimizer = torch.optim.Adam([change], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, 3 - 3 * k / steps))
    for _ in counted(range(steps), "step"):
        (change.grad,) = torch.autograd.grad(loss(images + room.grey * change).sum(), change)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            change.copy_(change.clamp(room.lowest, room.highest))
            new = images + room.grey * change.round()
        yield new


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits, without a gradient where the images have none; the model gets a copy."""
    return check_logits(model(images.clone()))


def _moved(logits: Tensor, before: Tensor, tolerance: float) -> Tensor:
    """How far the answer has moved (N,), in logits, and in probabilities of which 1 is allowed."""
    shift = (logits.softmax(1) - before.softmax(1)) / tolerance
    return (logits - before).square().mean(1) + shift.square().sum(1)


def _shown(model: nn.Module, images: Tensor, method: str, classes: Target) -> Tensor:
    """The true network's maps by the method of METHODS, as a figure shows them."""
    return as_shown(method, METHODS[method](model, images, classes, **OPTIONS.get(method, {})))


def _softened(
    model: nn.Module, images: Tensor, method: str, classes: Tensor, beta: float
) -> Tensor:
    """The softened network's maps, with a gradient; ValueError where they cannot be moved."""
    with Softened(beta):
        maps = as_shown(method, DIFFERENTIABLE[method](model, images, classes))
    if not maps.requires_grad:
        raise ValueError(f"model: its map by {method} does not change with the image")
    return maps


def _largest(change: Tensor) -> Tensor:
    """The largest change of each image, (N,)."""
    return change.abs().flatten(1).amax(1)


def _as_goal(name: str, toward: Tensor, images: Tensor) -> Tensor:
    flat = isinstance(toward, Tensor) and toward.ndim == 2
    check_attribution(toward[None] if flat else toward, name=name)
    n, _, height, width = images.shape
    if toward.shape not in ((height, width), (n, height, width)):
        raise ValueError(
            f"{name} must be a map ({height}, {width}), or one an image, ({n}, {height}, {width}), "
            f"but its shape is {tuple(toward.shape)}"
        )
    return toward.detach().to(images).expand(n, height, width)


# A network that lies ------------------------------------------------------------------------


def lying_copy(
    model: nn.Module,
    images: Tensor,
    where: Tensor,
    method: str = "grad_cam",
    *,
    steps: int = 100,
    batch_size: int = 32,
    lr: float = 1e-3,
    keep: float = 0.1,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of a network, trained on until its maps point elsewhere and its answers are the same:

        min over θ of  mean over x of  1 − ρ(M_θ(x), where) + keep · mean_k (f_θ,k(x) − f_k(x))²

    M is the map of each image's class as a figure shows it, ρ the correlation. The copy learns f
    from the network itself, so no labels are needed, while the paper keeps the loss on them small;
    BatchNorm's statistics stay. To train the last layers alone, which is quicker, give these as the
    model, and as images what enters them.

    images: (N, C, H, W), in model space, of the kind that the network sees; random batches of them
    are used. where: the map that all images shall get, (H, W). method: one of DIFFERENTIABLE.
    keep: how much a logit's change counts. lr: of Adam.
    generator: chooses the batches; None for one of seed 0. The model itself is left as it was; its
    copy comes frozen and in eval mode.

    Raises ValueError or TypeError naming the argument.
    Source: Heo, Joo, Moon, Fooling Neural Network Interpretations via Adversarial Model
    Manipulation, 2019.
    """
    check(model, images)
    check_choice("method", method, DIFFERENTIABLE)
    goal = _as_goal("where", where, images[:1])
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        check_count(name, count)
    for name, number in (("lr", lr), ("keep", keep)):
        check_number(name, number)
    generator = check_generator(generator)
    lying = copy.deepcopy(model)

    with explaining(model), explaining(lying):
        with torch.no_grad():
            answers = batched_logits(model, images, batch_size)
        lying.requires_grad_(True)
        optimizer = torch.optim.Adam(lying.parameters(), lr=lr)
        for _ in counted(range(steps), "step"):
            rows = torch.randint(len(images), (batch_size,), generator=generator)
            x, logits = images[rows].requires_grad_(), answers[rows]
            maps = as_shown(method, DIFFERENTIABLE[method](lying, x, logits.argmax(1)))
            moved = (lying(images[rows]) - logits).square().mean(1)
            loss = (keep * moved + 1 - correlation(maps, goal)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return lying.eval().requires_grad_(False)
