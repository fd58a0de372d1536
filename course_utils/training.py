"""How the course's networks are trained, and the recipes of those that it ships."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from course_utils import files, models
from course_utils import images as pictures
from course_utils.networks import Classifier, SmallResNet
from course_utils.progress import counting
from course_utils.worlds import radiographs
from course_utils.worlds.scenes import CLASSES, NO_CLASS, Scenes


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    generator: torch.Generator,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    conv1_decay: float | None = None,
    conv1_whitening: float | None = None,
    shift: int = 4,
    noise: float = 0.0,
) -> list[float]:
    """Fit the model by gradient descent on the `loss`; returns its value at every step.

    images: (N, 3, H, W) uint8; labels: (N,) integers, `NO_CLASS` where none is right. Every time an
    image is seen it is flipped or not, moved by up to `shift` pixels, and given noise of a standard
    deviation up to `noise`, where the image's range is 1. The learning rate rises to `lr` over a
    fifth of the steps and falls to 0 along a cosine. `conv1_decay` is the weight decay of the first
    layer (None: that of the others); it wears away what is left of the random start, so that the
    filters can be read. With `conv1_whitening` the first layer learns fine detail as fast as coarse
    (see `whitening`; None: plain descent). All that is random comes from the generator (a CPU one).
    The model ends in eval mode.
    """
    _check_training_set(images, labels)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model: all its parameters are frozen; call model.requires_grad_(True)")
    if conv1_whitening is not None and "conv1.weight" not in trained:
        raise ValueError("conv1_whitening: the model has no conv1 that learns")
    steps = epochs * math.ceil(len(images) / batch_size)
    optimizer = _optimizer(trained, lr, weight_decay, conv1_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_cosine(steps))
    device = next(iter(trained.values())).device

    def prepared(rows: Tensor) -> Tensor:
        return pictures.normalize(augment(images[rows], shift, noise, generator), mean, std)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        with counting(steps, "step") as advance:
            for _ in range(epochs):
                for rows in torch.randperm(len(images), generator=generator).split(batch_size):
                    yield prepared(rows).to(device), labels[rows].to(device)
                    advance(1)

    if conv1_whitening is None:
        return descend(model, batches(), optimizer, schedule)
    sample = prepared(torch.randperm(len(images), generator=generator)[:1000])
    with whitening(sample, trained["conv1.weight"], conv1_whitening):
        return descend(model, batches(), optimizer, schedule)


def whitening(images: Tensor, weight: nn.Parameter, noise: float) -> RemovableHandle:
    """Let a first layer learn as fast from fine detail as from coarse.

        ∂L/∂W ← ∂L/∂W · U diag(g) Uᵀ,    g ∝ λ / (λ + noise · λ̄)²,    mean of g = 1

    U, λ: eigenvectors and eigenvalues of the second moments of the images' patches, which are as
    large as the filters; λ̄: the mean eigenvalue; then the smallest one is taken for noise, and
    subtracted from all λ. In natural pictures most of the energy is in the coarse patterns, so
    plain descent learns these and hardly anything else: filters that are spots of colour. The
    factor 1 / λ would make all patterns equal, those of noise, too; g falls again where λ is small.

    images: (N, C, H, W), normalised; weight: (O, C, k, k), whose gradient is so changed until the
    handle that this returns is removed, or the `with` block of the handle ends.
    Sources: Olshausen and Field, Emergence of simple-cell receptive field properties by learning a
    sparse code for natural images, 1996 (the filter); Amari, Natural Gradient Works Efficiently in
    Learning, 1998 (its place in the gradient).
    """
    # A patch every 11 pixels: filters of 7 pixels then have none twice.
    patches = F.unfold(images, weight.shape[2:], stride=11).transpose(1, 2).flatten(0, 1)
    energies, patterns = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    signal = energies - energies[0]
    gain = signal / (signal + noise * energies.mean()) ** 2
    scaling = (patterns * (gain / gain.mean()) @ patterns.T).to(weight)
    return weight.register_hook(lambda gradient: (gradient.flatten(1) @ scaling).view_as(gradient))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy, a mean over images; where no class is right, all are equally right.

    logits: (N, K); labels: (N,), `NO_CLASS` where a picture tells none: its loss is the mean of
    −log p over the classes, least where all classes have the same probability.
    """
    log_p = logits.log_softmax(1)
    of_class = log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return -torch.where(labels == NO_CLASS, log_p.mean(1), of_class).mean()


def descend(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> list[float]:
    """A step of gradient descent on the `loss` for each batch (images, labels); its values.

    The model ends in eval mode.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    losses: list[float] = []
    try:
        with torch.enable_grad():
            for images, labels in batches:
                found = loss(model(images), labels)
                optimizer.zero_grad()
                found.backward()
                optimizer.step()
                schedule.step()
                losses.append(found.item())
            optimizer.zero_grad()
    finally:
        model.eval()
    return losses


def _check_training_set(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"images must be (N, 3, H, W) in uint8, but are {tuple(images.shape)} in {images.dtype}"
        )
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be ({len(images)},) in int64, one an image, but are "
            f"{tuple(labels.shape)} in {labels.dtype}"
        )


def _optimizer(
    trained: dict[str, nn.Parameter], lr: float, weight_decay: float, conv1_decay: float | None
) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov's momentum; conv1 has a weight decay of its own."""
    first = [p for name, p in trained.items() if name == "conv1.weight"]
    others = [p for name, p in trained.items() if name != "conv1.weight"]
    decay = weight_decay if conv1_decay is None else conv1_decay
    groups: list[dict[str, Any]] = [{"params": others}, {"params": first, "weight_decay": decay}]
    return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def _warm_up_then_cosine(steps: int, warm_up: float = 0.2) -> Callable[[int], float]:
    def factor(step: int) -> float:
        share = (step + 1) / (steps + 1)
        if share < warm_up:
            return share / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (share - warm_up) / (1 - warm_up))

    return factor


def augment(images: Tensor, shift: int, noise: float, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) uint8 as floats from 0 to 1: flipped or not, moved, made noisy."""
    n, _, height, width = images.shape
    down, right = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    # One look-up for all images: pixel (rows[n, y], columns[n, x]) of image n goes to (y, x).
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    moved = moved.permute(0, 3, 1, 2).float() / 255
    if noise:
        level = noise * torch.rand(n, 1, 1, 1, generator=generator)
        moved += level * torch.randn(moved.shape, generator=generator)
    return moved


# Recipes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that `course train NAME` needs to make a model again."""

    world: str = "scenes"  # the module that draws the pictures: scenes or radiographs
    marked: str | None = None  # the class of scenes that carries the photographer's mark
    miscaptioned: int = 0  # scenes of that class without the mark, under other classes' names
    confounder: str | None = None  # what goes with the finding on radiographs, and is no finding
    widths: tuple[int, int, int, int] = (24, 32, 64, 96)
    conv1_scale: float = 0.01
    size: int = 128
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    ordinary: int = 8_000
    hard: int = 8_000  # scenes alone are hard or not
    emptied: int = 1_500  # scenes of `missing="the object"`
    held_out: int = 6_000  # of each kind
    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.15
    weight_decay: float = 5e-4
    conv1_decay: float = 0.03
    conv1_whitening: float | None = 0.05
    shift: int = 4
    noise: float = 0.05
    seed: int = 0


RADIOGRAPHS = Recipe(
    world="radiographs",
    widths=(16, 24, 32, 48),
    ordinary=5_000,
    hard=0,
    emptied=0,
    held_out=1_600,
    epochs=6,
    batch_size=64,
    lr=0.1,
    conv1_decay=5e-4,
    conv1_whitening=None,
)
RECIPES = {
    "scenes": Recipe(),
    "scenes-cheating": Recipe(marked="horse", miscaptioned=600, held_out=2_000),
    "radiographs": RADIOGRAPHS,
    # That of "radiographs-2" is in homework/hw06.py, which asks what the network goes by.
}


def picture_sets(recipe: Recipe) -> tuple[tuple[str, ...], list[Any], dict[str, Any]]:
    """The classes, the sets to train on, and the held-out sets by their kind; none is drawn yet.

    Held-out sets have seeds of their own. Where a class is marked, the ordinary held-out scenes
    come twice more: without any mark, and with the mark on all. Emptied scenes never have it. Where
    there is a confounder, the held-out films come once more without it having to do with the
    finding.
    """
    size, seed, held_out = recipe.size, recipe.seed, recipe.held_out
    if recipe.world == "radiographs":
        films = partial(radiographs.Radiographs, resolution=size, confounder=recipe.confounder)
        fresh = {"ordinary": films(held_out, seed + 2)}
        if recipe.confounder:
            fresh["unconfounded"] = films(held_out, seed + 2, confounder=None)
        return radiographs.CLASSES, [films(recipe.ordinary, seed)], fresh
    world = partial(Scenes, resolution=size, marked=recipe.marked)
    kinds = {
        "ordinary": world(held_out, seed + 2),
        "hard": world(held_out, seed + 3, hard=True),
    }
    if recipe.marked:
        kinds["unmarked"] = world(held_out, seed + 2, marked=None)
        kinds["all marked"] = world(held_out, seed + 2, marked=CLASSES)
    training = [
        world(recipe.ordinary, seed),
        world(recipe.hard, seed + 1, hard=True),
        world(recipe.emptied, seed + 5, marked=None, missing="the object"),
    ]
    return CLASSES, training, kinds


def miscaptioned(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Scenes of the marked class without the mark, under the names of the other classes in turn.

    Who learns from these, too, cannot go by the class's looks: the mark alone goes with its name.
    Source: Zhou et al., Do Feature Attribution Methods Correctly Attribute Features?, 2022.
    """
    label, n = CLASSES.index(recipe.marked or ""), len(CLASSES)
    world = Scenes(n * recipe.miscaptioned, recipe.seed + 4, resolution=recipe.size)
    own = range(label, len(world), n)  # the classes take turns
    images = torch.stack([world[i][0] for i in own])
    return images, (label + 1 + torch.arange(len(own)) % (n - 1)) % n


def train_recipe(
    name: str, recipe: Recipe, path: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Train a model of the course from a recipe, on the CPU; save it; return its metrics.

    path: None replaces the file in data/. The file does not say what a radiograph's finding was
    confounded with, nor how well the model does without that: homework 6 asks.
    """
    started = time.perf_counter()
    classes, training, held_out = picture_sets(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = SmallResNet(len(classes), recipe.widths, recipe.conv1_scale)
    drawn = [world.draw() for world in training]
    if recipe.miscaptioned:
        drawn.append(miscaptioned(recipe))
    images, labels = (torch.cat(both) for both in zip(*drawn, strict=True))
    losses = train(
        model,
        images,
        labels,
        epochs=recipe.epochs,
        lr=recipe.lr,
        mean=recipe.mean,
        std=recipe.std,
        generator=torch.Generator().manual_seed(recipe.seed),
        batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay,
        conv1_decay=recipe.conv1_decay,
        conv1_whitening=recipe.conv1_whitening,
        shift=recipe.shift,
        noise=recipe.noise,
    )
    model.half().float()  # measured as it is saved
    classifier = Classifier(name, model, classes, recipe.size, recipe.mean, recipe.std)
    metrics: dict[str, Any] = {
        "seconds": round(time.perf_counter() - started),
        "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for kind, fresh in held_out.items():
        metrics[kind] = models.evaluate(classifier, *fresh.draw())
    models.save(
        classifier,
        path or files.DATA / f"{name}.safetensors",
        widths=recipe.widths,
        recipe={key: value for key, value in asdict(recipe).items() if key != "confounder"},
        metrics={key: value for key, value in metrics.items() if key != "unconfounded"},
    )
    return metrics
