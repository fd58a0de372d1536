"""Two experiments with ROAR, on digits and on small scenes: pictures, networks, rankings."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from course_utils.evaluation.controls import ROAR_CONTROLS
from course_utils.evaluation.roar import FILE, Fit, Labelled, roar, save
from course_utils.methods.cam import grad_cam
from course_utils.methods.gradients import (
    gradient,
    guided_backprop,
    integrated_gradients,
    smoothgrad_estimate,
)
from course_utils.progress import counting
from course_utils.training import descend
from course_utils.worlds.scenes import Scenes

# The rankings --------------------------------------------------------------------------------


def control_maps(*sets: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What knows no model, for sets of images (N, C, H, W): name → a map (N, H, W) a set.

    "random" is a constant map, whose ties `roar` breaks at random, anew in each repeat; "sobel" is
    `controls.grey_edges`.
    """
    return {
        name: tuple(control(None, images) for images in sets)
        for name, control in ROAR_CONTROLS.items()
    }


def attributions(
    model: nn.Module, *sets: Tensor, samples: int = 15, steps: int = 16
) -> dict[str, tuple[Tensor, ...]]:
    """The paper's methods and Grad-CAM, for sets of images in model space: method → a map a set.

    The class explained is the model's answer; the true one is not known of a test image. Squared
    maps lose the sign: what speaks against the class then counts as much as what speaks for it.
    With g_k = ∂f_c(x + ε_k)/∂x over `samples` noisy copies (σ: 0.15 of each image's range),

        smoothgrad: E[g]    smoothgrad squared: E[g²] = E[g]² + Var[g]    vargrad: Var[g]

    Integrated gradients start from 0, with `steps` steps.
    Source: Hooker et al., 2019; Adebayo et al., Sanity Checks for Saliency Maps, 2018 (VarGrad).
    """
    found: list[dict[str, Tensor]] = []
    with counting(sum(map(len, sets)), "image") as advance:
        for images in sets:
            parts = []
            for batch in images.split(256):
                parts.append(_maps(model, batch, samples, steps))
                advance(len(batch))
            found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return {name: tuple(maps[name] for maps in found) for name in found[0]}


def _maps(model: nn.Module, images: Tensor, samples: int, steps: int) -> dict[str, Tensor]:
    slope = gradient(model, images)
    smooth, _, spread, _ = smoothgrad_estimate(model, images, samples=samples, batch_size=256)
    assert spread is not None  # some methods do not estimate it
    variance = spread**2
    return {
        "gradient": slope,
        "gradient squared": slope**2,
        "integrated_gradients": integrated_gradients(model, images, steps=steps, batch_size=256),
        "guided_backprop": guided_backprop(model, images),
        "grad_cam": grad_cam(model, images),
        "smoothgrad": smooth,
        "smoothgrad squared": smooth**2 + variance * (samples - 1) / samples,
        "vargrad": variance,
    }


# The networks and the pictures ---------------------------------------------------------------


def fit_cnn(
    images: Tensor,
    labels: Tensor,
    seed: int,
    *,
    widths: Sequence[int],
    epochs: int,
    batch_size: int,
    lr: float,
) -> nn.Sequential:
    """A small network, newly trained: 3×3 convolutions of stride 2 with BatchNorm, a linear layer.

    images: (N, C, H, W), floating point. Start and order come from the seed; the global generator
    stays as it was. Adam, the learning rate rising to `lr` and falling to 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([images.shape[1], *widths], widths, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        height, width = (math.ceil(side / 2 ** len(widths)) for side in images.shape[2:])
        output = nn.Linear(widths[-1] * height * width, int(labels.max()) + 1)
        model = nn.Sequential(*layers, nn.Flatten(), output)
        steps = epochs * -(-len(images) // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        orders = (torch.randperm(len(images)) for _ in range(epochs))
        batches = (rows for order in orders for rows in order.split(batch_size))
        descend(model, ((images[rows], labels[rows]) for rows in batches), optimizer, schedule)
    return model


fit_digits = partial(fit_cnn, widths=(16, 32), epochs=8, batch_size=300, lr=0.03)


def digits() -> tuple[Labelled, Labelled]:
    """Handwritten digits, 1,200 to train on and 597 to test: (images (N, 1, 8, 8), labels (N,)).

    Ink is 1, paper 0, less the training images' mean, so that 0 is the mean grey.
    Source: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits (UCI), 1998, as scikit-learn
    bundles it.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    bundled = load_digits()
    order = np.random.default_rng(0).permutation(len(bundled.target))
    images = torch.from_numpy(bundled.images[order]).float()[:, None] / 16
    labels = torch.from_numpy(bundled.target[order]).long()
    images -= images[:1200].mean()
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


@dataclass(frozen=True)
class Settings:
    """All that `make` needs to run the benchmark on scenes again."""

    train: int = 4_000
    test: int = 1_000
    resolution: int = 32
    widths: tuple[int, ...] = (16, 32, 64)
    epochs: int = 5
    batch_size: int = 100
    lr: float = 0.015
    samples: int = 15
    steps: int = 16
    fractions: tuple[float, ...] = (0.0, 0.5, 0.7, 0.9)
    repeats: int = 3
    seed: int = 0


SETTINGS = Settings()


def small_scenes(settings: Settings = SETTINGS) -> tuple[Labelled, Labelled]:
    """The benchmark's scenes, to train on and to test, in model space: (pixel − 0.5) / 0.25."""
    sets = [
        Scenes(length, seed, resolution=settings.resolution).draw()
        for length, seed in (
            (settings.train, settings.seed + 20),
            (settings.test, settings.seed + 21),
        )
    ]
    train, test = (((images.float() / 255 - 0.5) / 0.25, labels) for images, labels in sets)
    return train, test


def make(path: str | os.PathLike[str] = FILE, settings: Settings = SETTINGS) -> Path:
    """Run the benchmark on small scenes, and the largest holes alone; write both to a file.

    The maps are of one network trained on the untouched scenes. 123 trainings: five to ten
    minutes on one core. Returns where the file is.
    """
    train, test = small_scenes(settings)
    shape = {name: getattr(settings, name) for name in ("widths", "epochs", "batch_size", "lr")}
    fit: Fit = partial(fit_cnn, **shape)
    maps = attributions(
        fit_cnn(*train, settings.seed, **shape),
        train[0],
        test[0],
        samples=settings.samples,
        steps=settings.steps,
    ) | control_maps(train[0], test[0])
    benchmark = partial(roar, train, test, maps, fit, repeats=settings.repeats, seed=settings.seed)
    results = {
        "pixels": benchmark(fractions=settings.fractions),
        "holes": benchmark(fractions=settings.fractions[-1:], holes=True),
    }
    return save(results, path, recipe=asdict(settings))
