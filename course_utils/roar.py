"""ROAR: is what a method calls important missed by a network that learns without it?"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from course_utils import plotting
from course_utils.cam import grad_cam
from course_utils.contract import Model, check_count, check_logits, check_whole, explaining
from course_utils.gradients import gradient, guided_backprop, integrated_gradients, smoothgrad
from course_utils.models import DATA
from course_utils.scenes import Scenes

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W) and their classes (N,)
Fit = Callable[[Tensor, Tensor, int], Model]  # images, labels, seed → a trained model
CONTROLS = ("random", "sobel")
FILE = DATA / "roar.json"


class Roar(NamedTuple):
    """How accurate networks become without the pixels that a method ranks highest."""

    fractions: tuple[float, ...]  # the shares of the pixels removed
    accuracy: dict[str, Tensor]  # method → (fractions, repeats), from 0 to 1
    chance: float  # the accuracy of always answering the most frequent class


# The benchmark -------------------------------------------------------------------------------


def roar(
    train: Labelled,
    test: Labelled,
    attributions: Mapping[str, Sequence[Tensor]],
    fit: Fit,
    *,
    fractions: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 0.9),
    repeats: int = 3,
    seed: int = 0,
    holes: bool = False,
    progress: bool = True,
) -> Roar:
    """Remove the pixels that a method ranks highest, retrain from scratch, measure the accuracy.

        accuracy(t) = accuracy of fit(train without its top t) on (test without its top t)

    A method is good where the accuracy falls faster than for a random ranking. Each image loses its
    own pixels; the training images' mean colour takes their place, so that a new network meets in
    the test what it has learned from. Repeat k trains with the seed `seed` + k, for all methods
    alike: differences between methods are paired.

    What it cannot see: evidence that is there twice is not missed when one copy goes; and the hole
    itself may tell the class, as a map of the class does. `holes` measures that: a network learns
    from the holes alone, 1 where a pixel went and 0 elsewhere.

    train, test: (images (N, C, H, W), labels (N,) LongTensor), images of any type.
    attributions: method → (map of the training images, map of the test images), floating point,
    as the images, summed over channels, or (N, H, W). The highest go first; equal ones in random
    order, so that a constant map is a random ranking. See `attributions` and `controls`.
    fit: (images, labels, seed) → a newly trained model: images → logits (N, K).
    fractions: of the pixels, 0 ≤ t < 1, rising. Without 0 the untouched images are not trained on.

    Costs repeats × (methods × fractions above 0, and one for 0) trainings.
    Raises ValueError or TypeError naming the argument.
    Source: Hooker, Erhan, Kindermans, Kim, A Benchmark for Interpretability Methods in Deep Neural
    Networks, 2019.
    """
    _check_set("train", train)
    _check_set("test", test)
    _check_attributions(attributions, train[0], test[0])
    _check_fractions(fractions)
    check_count("repeats", repeats)
    check_whole("seed", seed)
    (images, labels), (unseen, truth) = train, test
    if holes:
        images, unseen = torch.zeros_like(images[:, :1]), torch.zeros_like(unseen[:, :1])
    fill = mean_color(images) + int(holes)
    removing = [fraction for fraction in fractions if fraction > 0]
    first = len(fractions) - len(removing)  # 1 where fractions start with 0
    accuracy = {name: torch.empty(len(fractions), repeats).double() for name in attributions}
    total = repeats * (len(attributions) * len(removing) + first)
    with tqdm(total=total, unit="training", disable=not progress, leave=False) as bar:
        for repeat in range(repeats):
            if first:
                untouched = _accuracy(fit(images, labels, seed + repeat), unseen, truth)
                for values in accuracy.values():
                    values[0, repeat] = untouched
                bar.update()
            for name, maps in attributions.items():
                generator = torch.Generator().manual_seed(seed + repeat)
                seen, new = (removal_order(each, generator) for each in maps)
                for row, fraction in enumerate(removing, start=first):
                    model = fit(remove(images, seen, fraction, fill), labels, seed + repeat)
                    left = remove(unseen, new, fraction, fill)
                    accuracy[name][row, repeat] = _accuracy(model, left, truth)
                    bar.update()
    return Roar(tuple(map(float, fractions)), accuracy, _chance(truth))


def removal_order(attribution: Tensor, generator: torch.Generator) -> Tensor:
    """When each pixel goes, (N, H, W) from 0, the highest value first and ties in random order."""
    values = attribution.detach().cpu().double()
    values = (values.sum(1) if values.ndim == 4 else values).flatten(1)
    shuffled = torch.rand(values.shape, generator=generator).argsort(1)
    order = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    rank = shuffled.gather(1, order).argsort(1)
    return rank.view(len(rank), *attribution.shape[-2:])


def remove(images: Tensor, order: Tensor, fraction: float, fill: Tensor) -> Tensor:
    """The images (N, C, H, W) with that share of their pixels replaced, first those of order 0.

    order: (N, H, W), see `removal_order`. fill: the colour (C, 1, 1) that takes their place.
    """
    count = round(fraction * order[0].numel())
    return torch.where((order < count)[:, None].to(images.device), fill, images)


def mean_color(images: Tensor) -> Tensor:
    """The images' (N, C, H, W) mean a channel (C, 1, 1), in their type: whole for whole numbers."""
    mean = images.double().mean((0, 2, 3))[:, None, None]
    return (mean if images.is_floating_point() else mean.round()).to(images.dtype)


def _accuracy(model: Model, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    with explaining(model), torch.no_grad():
        logits = [check_logits(model(batch)) for batch in images.split(batch_size)]
    return (torch.cat(logits).argmax(1).cpu() == labels.cpu()).double().mean().item()


def _chance(labels: Tensor) -> float:
    return labels.bincount().max().item() / len(labels)


# What it says --------------------------------------------------------------------------------


def t_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over repeats (…, n) → (…), and the half width of its 95 % interval:

        t · s / √n,    t: the 97.5 % quantile of Student's distribution with n − 1 degrees

    One repeat says nothing about the spread: its half width is NaN. Three have t = 4.3, five 2.8.
    The interval is about the repeats (start and order of training, ties); the data stay the same.
    """
    from scipy.stats import t  # takes half a second to import

    n = values.shape[-1]
    spread = values.std(-1) if n > 1 else values.new_full(values.shape[:-1], torch.nan)
    return values.mean(-1), spread * float(t.ppf(0.975, n - 1)) / n**0.5


def advantage(result: Roar, over: str = "random") -> dict[str, tuple[float, float]]:
    """How much more accuracy each method costs than a control, with its 95 % half width.

        mean over t > 0 of  accuracy of the control − accuracy of the method, paired by repeat

    Above 0 the method finds more than the control does. One number a method, where testing it at
    every fraction would find something by chance. Raises ValueError for an unknown control.
    """
    if over not in result.accuracy:
        raise ValueError(f"over: {over!r} was not measured; choose of {', '.join(result.accuracy)}")
    removing = torch.tensor(result.fractions) > 0
    gaps = {
        name: (result.accuracy[over] - values)[removing].mean(0)
        for name, values in result.accuracy.items()
        if name != over
    }
    return {
        name: (mean.item(), half.item())
        for name, gap in gaps.items()
        for mean, half in [t_interval(gap)]
    }


def plot(result: Roar, *, alt: str, title: str | None = None, size: float = 7.0) -> None:
    """Accuracy against the share removed: a line a method, a band its 95 % interval.

    The controls are grey and dashed; a dotted line marks chance. `alt` says in words what is shown.
    """
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(size, 0.66 * size))
        axes = figure.add_axes((0, 0, 1, 1))
        x = np.array(result.fractions)
        methods = [name for name in result.accuracy if name not in CONTROLS]
        for name, values in result.accuracy.items():
            mean, half = (numbers.numpy() for numbers in t_interval(values))
            look: dict[str, Any] = {"color": plotting.MUTED, "ls": "--"}
            if name in methods:
                number = methods.index(name)
                look = {"color": plotting.SERIES[number % 6], "marker": "osD^vPX*"[number % 8]}
                look["ls"] = "-" if number < 6 else "-."
            axes.plot(x, mean, label=name, clip_on=False, **look)
            axes.fill_between(x, mean - half, mean + half, color=look["color"], alpha=0.15, lw=0)
        axes.set(xlabel="share of the pixels removed", ylabel="accuracy after retraining")
        axes.set(xticks=x, xlim=(0, x[-1] or 1), ylim=(0, 1))
        axes.grid(axis="y", color=plotting.FAINT, lw=0.8)
        _label_ends(axes)
        axes.axhline(result.chance, color=plotting.MUTED, ls=":", lw=1.2)
        if title:
            axes.set_title(title, weight="bold", loc="left", pad=12)
    plotting.show(figure, alt)


def _label_ends(axes: Axes, gap: float = 0.052) -> None:
    """Each line's name beside its end, none over another, tied to it by a thin line."""
    ends = sorted(
        (float(np.asarray(line.get_ydata())[-1]), str(line.get_label()), line.get_color())
        for line in axes.get_lines()
    )
    heights = [end for end, _, _ in ends]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    top = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], top)
        top = heights[index] - gap
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
    for (end, name, color), height in zip(ends, heights, strict=True):
        axes.plot([1.01, 1.05], [end, height], color=color, lw=0.8, **beside)
        axes.text(1.06, height, name, color=color, va="center", weight="bold", **beside)


# The rankings --------------------------------------------------------------------------------


def controls(*sets: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What knows no model, for sets of images (N, C, H, W): "random" and "sobel".

    "random" is a constant map, whose ties `roar` breaks at random, anew in each repeat; "sobel" is
    the size of the grey image's slope, √(Sx² + Sy²), by Sobel's filters. Each (N, H, W).
    """
    return {
        "random": tuple(torch.zeros_like(images[:, 0], dtype=torch.float32) for images in sets),
        "sobel": tuple(torch.stack([_edges(image) for image in images]) for images in sets),
    }


def _edges(image: Tensor) -> Tensor:
    grey = image.double().mean(0).cpu().numpy()
    return torch.from_numpy(np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))).float()


def attributions(
    model: nn.Module, *sets: Tensor, samples: int = 15, steps: int = 16, progress: bool = True
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
    with tqdm(total=sum(map(len, sets)), unit="image", disable=not progress, leave=False) as bar:
        for images in sets:
            parts = []
            for batch in images.split(256):
                parts.append(_maps(model, batch, samples, steps))
                bar.update(len(batch))
            found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return {name: tuple(maps[name] for maps in found) for name in found[0]}


def _maps(model: nn.Module, images: Tensor, samples: int, steps: int) -> dict[str, Tensor]:
    quick: dict[str, Any] = {"batch_size": 256, "progress": False}
    slope = gradient(model, images)
    smooth, details = smoothgrad(model, images, samples=samples, details=True, **quick)
    variance = details.spread**2
    return {
        "gradient": slope,
        "gradient squared": slope**2,
        "integrated_gradients": integrated_gradients(model, images, steps=steps, **quick),
        "guided_backprop": guided_backprop(model, images),
        "grad_cam": grad_cam(model, images),
        "smoothgrad": smooth,
        "smoothgrad squared": smooth**2 + variance * (samples - 1) / samples,
        "vargrad": variance,
    }


# Two worlds ----------------------------------------------------------------------------------


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
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([images.shape[1], *widths], widths, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        height, width = (math.ceil(side / 2 ** len(widths)) for side in images.shape[2:])
        output = nn.Linear(widths[-1] * height * width, int(labels.max()) + 1)
        model = nn.Sequential(*layers, nn.Flatten(), output)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps = epochs * -(-len(images) // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(batch_size):
                loss = F.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


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
class Recipe:
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


RECIPE = Recipe()


def scenes(recipe: Recipe = RECIPE, progress: bool = True) -> tuple[Labelled, Labelled]:
    """The benchmark's scenes, to train on and to test, in model space: (pixel − 0.5) / 0.25."""
    sets = [
        Scenes(length, seed, resolution=recipe.resolution).draw(progress)
        for length, seed in ((recipe.train, recipe.seed + 20), (recipe.test, recipe.seed + 21))
    ]
    train, test = (((images.float() / 255 - 0.5) / 0.25, labels) for images, labels in sets)
    return train, test


def make(
    path: str | os.PathLike[str] = FILE, progress: bool = True, recipe: Recipe = RECIPE
) -> Path:
    """Run the benchmark on small scenes, and the largest holes alone; write both to a file.

    The maps are of one network trained on the untouched scenes. 123 trainings: five to ten
    minutes on one core. Returns where the file is.
    """
    train, test = scenes(recipe, progress)
    shape = {name: getattr(recipe, name) for name in ("widths", "epochs", "batch_size", "lr")}
    fit: Fit = partial(fit_cnn, **shape)
    maps = attributions(
        fit_cnn(*train, recipe.seed, **shape),
        train[0],
        test[0],
        samples=recipe.samples,
        steps=recipe.steps,
        progress=progress,
    ) | controls(train[0], test[0])
    again = partial(roar, train, test, maps, fit, repeats=recipe.repeats, seed=recipe.seed)
    results = {
        "pixels": again(fractions=recipe.fractions, progress=progress),
        "holes": again(fractions=recipe.fractions[-1:], holes=True, progress=progress),
    }
    return save(results, path, recipe=asdict(recipe))


# The file ------------------------------------------------------------------------------------


def save(results: Mapping[str, Roar], path: str | os.PathLike[str], **facts: Any) -> Path:
    """Write results, and facts about them, as JSON; the file is there whole or not at all."""
    path = Path(path)
    content: dict[str, Any] = dict(facts)
    for name, result in results.items():
        rounded = {method: _rounded(values) for method, values in result.accuracy.items()}
        content[name] = {**result._asdict(), "accuracy": rounded}
    text = json.dumps(content, indent=1)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    return path


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]


def load(path: str | os.PathLike[str] = FILE, *, holes: bool = False) -> Roar:
    """What `make` wrote: the benchmark, or that of the holes alone.

    Raises FileNotFoundError, or ValueError where the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no {path}; run `course roar` to make it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["holes" if holes else "pixels"]
        accuracy = {
            name: torch.tensor(rows, dtype=torch.float64)
            for name, rows in content["accuracy"].items()
        }
        return Roar(tuple(content["fractions"]), accuracy, float(content["chance"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"path: {path.name} is damaged; run `course roar` again") from None


# Checks --------------------------------------------------------------------------------------


def _check_set(name: str, labelled: Labelled) -> None:
    if not isinstance(labelled, Sequence) or len(labelled) != 2:
        raise TypeError(f"{name} must be (images, labels), not {type(labelled).__name__}")
    images, labels = labelled
    for part, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: its {part} must be a tensor, not {type(value).__name__}")
    if images.ndim != 4 or not images.numel():
        raise ValueError(
            f"{name}: its images must be (N, C, H, W), not empty, but are {tuple(images.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError(f"{name}: its images must be finite, but hold NaN or infinity")
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name}: its labels must be ({len(images)},) in int64, one an image, but are "
            f"{tuple(labels.shape)} in {labels.dtype}"
        )
    if labels.min() < 0:
        raise ValueError(f"{name}: its labels must count from 0, but one is {int(labels.min())}")
    if len(labels.unique()) < 2:
        raise ValueError(
            f"{name}: its labels are all {int(labels[0])}; with one class every network is right"
        )


def _check_attributions(
    attributions: Mapping[str, Sequence[Tensor]], train: Tensor, test: Tensor
) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"test: its images must be {tuple(train.shape[1:])} each, as those of train, but are "
            f"{tuple(test.shape[1:])}"
        )
    if not isinstance(attributions, Mapping) or not attributions:
        raise ValueError("attributions must hold at least one method: {name: (of train, of test)}")
    for name, maps in attributions.items():
        if not isinstance(maps, Sequence) or len(maps) != 2:
            raise ValueError(
                f"attributions: {name!r} must have two maps, of the training and the test images"
            )
        for which, each, images in zip(("train", "test"), maps, (train, test), strict=True):
            _check_map(f"attributions: {name!r} of {which}", each, images)


def _check_map(name: str, attribution: Tensor, images: Tensor) -> None:
    if not isinstance(attribution, Tensor) or not attribution.is_floating_point():
        came = attribution.dtype if isinstance(attribution, Tensor) else type(attribution).__name__
        raise TypeError(f"{name} must be a floating point tensor, not {came}")
    if attribution.shape not in (images.shape, images[:, 0].shape):
        raise ValueError(
            f"{name} must be {tuple(images.shape)}, as the images, or without the channels, but "
            f"its shape is {tuple(attribution.shape)}"
        )
    if not attribution.isfinite().all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")


def _check_fractions(fractions: Sequence[float]) -> None:
    values = list(fractions)
    if not values or any(
        isinstance(value, bool) or not isinstance(value, int | float) for value in values
    ):
        raise TypeError(f"fractions must be numbers, at least one, not {fractions!r}")
    if not all(0 <= value < 1 for value in values):
        raise ValueError(f"fractions must be at least 0 and below 1, but are {values}")
    if values != sorted(set(values)):
        raise ValueError(f"fractions must rise, but are {values}")
