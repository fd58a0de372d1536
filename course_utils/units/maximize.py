"""Activation maximization: the picture that a unit wants to see, found by gradient ascent."""

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils import images
from course_utils.contract import (
    check_choice,
    check_count,
    check_generator,
    check_number,
    check_unit,
    explaining,
)
from course_utils.layers import capture, find
from course_utils.networks import Classifier
from course_utils.progress import counted
from course_utils.units.features import responses, units_of

Unit = int | Sequence[int] | Tensor

# How the colours of photographs vary together: the square root of the covariance of ImageNet's
# red, green and blue, as Olah et al. (2017) measured it. Its first column is light and dark.
COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLORS = COLORS / COLORS.norm(dim=0).max()


class Ascent(NamedTuple):
    """Where a gradient ascent ended, and how it went."""

    images: Tensor  # (N, 3, size, size) in model space; every pixel is a possible colour
    scores: Tensor  # (steps + 1, N): at every step as the model saw it, at last as it is
    z: Tensor  # where it stands: a further ascent can start here


def activation_maximization(
    classifier: Classifier,
    layer: str,
    unit: Unit,
    *,
    position: tuple[int, int] | None = None,
    diversity: float = 0.0,
    **options: Any,
) -> Ascent:
    """Pictures that a unit answers to as strongly as can be:

        x* = argmax_x  a(x) − diversity · likeness(x)

    unit: a channel of `layer`; of an output (N, K) a class. a is its mean activation, or the one at
    `position` (row, column). A list of units gives a picture each; the same one again starts
    elsewhere. A float tensor (C,) is a direction v among the channels: a = v · activations / ‖v‖.
    diversity: how much several pictures must differ; the likeness of one is its mean cosine with
    the others, between the Gram matrices of their activations at `layer`.
    options: those of `ascend`, which says how the pictures are found and kept natural.

    Raises ValueError or TypeError naming the argument; the model is left as it was.
    Source: Erhan et al., Visualizing Higher-Layer Features, 2009; Olah et al., Feature
    Visualization, 2017.
    """
    _check_classifier(classifier)
    find(classifier.model, layer)
    check_number("diversity", diversity)
    several = isinstance(unit, Sequence)
    if several and not unit:
        raise ValueError("unit must be a channel, a list of channels or a direction, but is empty")

    def score(x: Tensor) -> Tensor:
        with capture(classifier.model, layer) as kept:
            classifier.model(x)
        maps = units_of(layer, kept)
        activation = _activation(maps, layer, unit, position)
        return activation - diversity * _likeness(maps) if diversity else activation

    return ascend(classifier, score, len(unit) if several else 1, **options)  # type: ignore[arg-type]


def class_model(
    classifier: Classifier, target: int | Sequence[int], *, of: str = "score", **options: Any
) -> Ascent:
    """What the model takes for the essence of a class, a picture for each target:

        x* = argmax_x  S_c(x) − l2 · mean x²        of="score", the logit
        x* = argmax_x  log P_c(x) − l2 · mean x²    of="posterior", after the softmax

    The posterior can also be raised by lowering all other classes. options: those of `ascend`.
    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2013.
    """
    check_choice("of", of, ("score", "posterior"))
    _check_classifier(classifier)
    targets = list(target) if isinstance(target, Sequence) else [target]
    if not targets:
        raise ValueError("target must be a class number or a list of them, but is empty")
    for c in targets:
        if isinstance(c, bool) or not isinstance(c, int | np.integer):
            raise TypeError(f"target must be a class number or a list of them, not {c!r}")
        if not 0 <= c < len(classifier.classes):
            last = len(classifier.classes) - 1
            raise ValueError(
                f"target: there is no class {c}; the model has the classes 0 to {last}"
            )

    def score(x: Tensor) -> Tensor:
        logits = classifier.model(x)
        outputs = logits if of == "score" else logits.log_softmax(1)
        return outputs[torch.arange(len(targets)), targets]

    return ascend(classifier, score, len(targets), **options)


def ascend(
    classifier: Classifier,
    score: Callable[[Tensor], Tensor],
    count: int = 1,
    *,
    steps: int = 64,
    step_size: float = 0.05,
    normalize_gradient: bool = True,
    fourier: bool = True,
    decorrelate: bool = True,
    jitter: float = 4.0,
    rotation: float = 5.0,
    scaling: float = 0.05,
    l2: float = 0.0,
    total_variation: float = 0.0,
    size: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Ascent:
    """Climb from noise to `count` pictures x with a high score (N, 3, H, W) → (N,):

        goal(x) = score(T(x)) − l2 · mean x² − total_variation · mean |∇x|
        z ← z + step_size · g / rms(g),    g = ∂goal / ∂z,    x = (sigmoid(z) − mean) / std

    so every pixel of x is a possible colour.

    normalize_gradient: divide by rms(g), else step · g as it is. fourier: z is held as a spectrum
    over frequency, so that a step moves coarse patterns more than fine ones. decorrelate: z's
    channels are light, and colour against colour, mixed as in photographs. T moves the picture by
    up to `jitter` pixels, turns it by up to `rotation` degrees and scales it by up to `scaling`,
    anew at each step: what the score owes to single pixels does not survive. l2 draws towards the
    mean colour, total_variation makes smooth. `size` None is the classifier's. `start`: the z of an
    earlier ascent, with the same `size` and `fourier`, to climb on from.

    The start is faint noise, and stronger for a picture whose score has gradient zero: a unit
    behind a ReLU that sees nothing it likes gives no direction. The same state of the generator
    gives the same pictures (None: seed 0).

    Raises ValueError or TypeError naming the argument; the model is left as it was.
    Source: Mahendran, Vedaldi, 2015 (total variation); Mordvintsev et al., 2015 (jitter, normalised
    gradient); Olah et al., 2017 (spectrum, colours, rotation and scaling).
    """
    _check_classifier(classifier)
    side = classifier.size if size is None else size
    check_count("steps", steps)
    check_count("size", side, 2)
    _check_numbers(step_size=step_size, l2=l2, total_variation=total_variation)
    _check_numbers(jitter=jitter, rotation=rotation, scaling=scaling)
    shape = (count, 3, side, side // 2 + 1, 2) if fourier else (count, 3, side, side)
    _check_start(start, shape)
    generator = check_generator(generator)
    picture = _parametrization(classifier, side, fourier, decorrelate)
    scores: list[Tensor] = []

    def seen(x: Tensor) -> Tensor:
        # In the model's type, and a copy: a model may begin with an in-place ReLU.
        found = score(x.to(classifier.dtype).clone(memory_format=torch.channels_last))
        scores.append(found.detach().cpu())
        return found

    def goal(z: Tensor) -> Tensor:
        x = picture(z)
        moved = _move(x, _random_transform(2 * jitter / side, rotation, scaling, generator))
        return seen(moved) - l2 * x.square().mean((1, 2, 3)) - total_variation * _variation(x)

    with explaining(classifier.model):
        if start is None:
            noise = torch.randn(shape, generator=generator).to(classifier.device)
            start = _with_gradient(noise, lambda z: seen(picture(z)))
            scores.clear()
        z = start.detach()
        for _ in counted(range(steps), "step"):
            g = _gradient(goal, z)
            z = z + step_size * (g / _rms(g).clamp_min(1e-20) if normalize_gradient else g)
        x = picture(z)
        seen(x)
    return Ascent(x, torch.stack(scores), z)


def _parametrization(
    classifier: Classifier, side: int, fourier: bool, decorrelate: bool
) -> Callable[[Tensor], Tensor]:
    """The function that makes pictures x (N, 3, side, side) in model space of z."""

    def picture(z: Tensor) -> Tensor:
        z = _from_spectrum(z, side) if fourier else z
        z = torch.einsum("ij,njhw->nihw", COLORS.to(z), z) if decorrelate else z
        return images.normalize(z.sigmoid(), classifier.mean, classifier.std)

    return picture


def _gradient(goal: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """∂goal / ∂z of each picture; zero where the goal does not look at z."""
    z = z.detach().requires_grad_()
    total = goal(z).sum()
    return torch.autograd.grad(total, z)[0] if total.requires_grad else torch.zeros_like(z)


def _with_gradient(noise: Tensor, goal: Callable[[Tensor], Tensor]) -> Tensor:
    """Noise of the faintest strength at which each picture's gradient is not zero.

    The strengths are 0.1, 0.3, 1 and 3; at the last one it may be zero still.
    """
    z = 0.1 * noise
    for strength in (0.3, 1.0, 3.0):
        silent = _rms(_gradient(goal, z)) == 0
        if not silent.any():
            break
        z = torch.where(silent, strength * noise, z)
    return z


def _rms(g: Tensor) -> Tensor:
    return g.square().mean(tuple(range(1, g.ndim)), keepdim=True).sqrt()


def _from_spectrum(z: Tensor, side: int) -> Tensor:
    """Pictures (N, 3, side, side) of spectra (N, 3, side, side // 2 + 1, 2), scaled by 1 / f."""
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / side).to(z.device)
    spectrum = torch.view_as_complex(z) / frequency
    return torch.fft.irfft2(spectrum, (side, side), norm="ortho") / 4


def _random_transform(
    shift: float, rotation: float, scaling: float, generator: torch.Generator
) -> Tensor:
    """A matrix (2, 3) that moves, turns and scales by a little; lengths are half pictures."""
    right, down, turn, zoom = (2 * torch.rand(4, generator=generator) - 1).unbind()
    angle, scale = (rotation * turn).deg2rad(), 1 + scaling * zoom
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([cos, -sin, shift * right, sin, cos, shift * down]).view(2, 3)


def _move(x: Tensor, transform: Tensor) -> Tensor:
    if torch.equal(transform, torch.eye(2, 3)):
        return x
    grid = F.affine_grid(transform.to(x).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, (N,)."""
    return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))


def _likeness(maps: Tensor) -> Tensor:
    """The mean cosine of each image's Gram matrix with those of the others, (N,)."""
    flat = maps.reshape(*maps.shape[:2], -1)
    grams = F.normalize((flat @ flat.mT).flatten(1), dim=1)
    return (grams @ grams.T).sum(1).sub(1) / max(len(maps) - 1, 1)


def _activation(maps: Tensor, layer: str, unit: Unit, position: tuple[int, int] | None) -> Tensor:
    """The activation (N,) that is to grow, of maps (N, C, H, W) or outputs (N, C)."""
    maps = maps if maps.ndim == 4 else maps[..., None, None]
    n, channels, height, width = maps.shape
    if position is None:
        values = maps.mean((2, 3))
    elif 0 <= position[0] < height and 0 <= position[1] < width:
        values = maps[:, :, position[0], position[1]]
    else:
        raise ValueError(f"position is {position}; the maps of {layer!r} are {height} × {width}")
    if isinstance(unit, Tensor):
        if unit.shape != (channels,) or not unit.is_floating_point():
            raise ValueError(
                f"unit as a direction must be a float tensor ({channels},) for layer {layer!r}, "
                f"but is {tuple(unit.shape)} in {unit.dtype}"
            )
        return values @ F.normalize(unit.to(values), dim=0)
    units = list(unit) if isinstance(unit, Sequence) else [unit]
    for one in units:
        check_unit(layer, one, channels)
    return values[torch.arange(n), units]


def _check_classifier(classifier: Any) -> None:
    if not isinstance(classifier, Classifier):
        raise TypeError(
            f"classifier must be a Classifier, as models.load gives one, not "
            f"{type(classifier).__name__}"
        )


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        check_number(name, value)


def _check_start(start: Tensor | None, shape: tuple[int, ...]) -> None:
    if start is not None and start.shape != shape:
        raise ValueError(
            f"start must be the z of an ascent with the same size and fourier, {shape}, but its "
            f"shape is {tuple(start.shape)}"
        )


# Lucent --------------------------------------------------------------------------------------


def lucent(
    classifier: Classifier,
    layer: str,
    unit: int,
    *,
    steps: int = 64,
    seed: int = 0,
) -> Tensor:
    """The same by torch-lucent, with its own settings: (1, 3, size, size) in model space.

    Lucent leaves a hook on every layer, adds up gradients in the parameters, draws from NumPy's and
    Python's global generators and knows layers by names with underscores. Here the names are those
    of the model, the seed decides alone, and model and generators are left as they were.
    Source: Kiat, Lucent, 2020, after Olah et al., Lucid, 2017.
    """
    _check_classifier(classifier)
    check_count("steps", steps)
    device, dtype = classifier.device, classifier.dtype
    blank = torch.zeros(1, 3, classifier.size, classifier.size, device=device, dtype=dtype)
    check_unit(layer, unit, responses(classifier.model, layer, blank).shape[1])
    with warnings.catch_warnings():  # kornia, which Lucent imports, still compiles with TorchScript
        warnings.filterwarnings("ignore", r".*torch\.jit")
        from lucent.optvis import objectives, param, render, transform  # takes seconds to import

    def to_model_space(x: Tensor) -> Tensor:
        return images.normalize(x, classifier.mean, classifier.std).to(device, dtype)

    objective = objectives.channel(layer.replace(".", "_"), unit)
    with explaining(classifier.model):
        state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            torch.default_generator.manual_seed(seed)  # Lucent draws on the CPU only
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            (image,) = render.render_vis(
                classifier.model,
                objective,
                lambda: param.image(classifier.size),
                transforms=[*transform.standard_transforms, to_model_space],
                thresholds=(steps,),
                preprocess=False,
                fixed_image_size=(classifier.size,) * 2,
                progress=False,
                show_image=False,
            )
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002
    return to_model_space(torch.from_numpy(image).permute(0, 3, 1, 2))
