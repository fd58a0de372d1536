"""The networks the course explains: load one, train one, save one."""

import difflib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_utils import images as pictures
from course_utils import pretrained

Pictures = Sequence[Any] | torch.Tensor | Dataset[Any]
DATA = Path(__file__).resolve().parent.parent / "data"


class SmallResNet(nn.Module):
    """A small ResNet with the module names of ResNet-18: images (N, 3, H, W) → logits (N, classes).

    conv1_scale shrinks the random start of the first layer: what its filters then show was learned.
    Source: He et al., Deep Residual Learning, 2016.
    """

    def __init__(
        self,
        classes: int,
        widths: tuple[int, int, int, int] = (24, 48, 96, 128),
        conv1_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(widths) < 8:
            # Training narrower 1×1 convolutions in channels_last writes past the end of memory in
            # PyTorch's CPU kernels (2.13): the process would die.
            raise ValueError(f"widths must be at least 8 each, but are {tuple(widths)}")
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _layer(widths[0], widths[0], stride=1)
        self.layer2 = _layer(widths[0], widths[1], stride=2)
        self.layer3 = _layer(widths[1], widths[2], stride=2)
        self.layer4 = _layer(widths[2], widths[3], stride=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            self.conv1.weight *= conv1_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of normalised images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two residual blocks; a 1×1 convolution matches the shortcut where the shape changes."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)
    )


class BasicBlock(nn.Module):
    """A residual block, with the layers and names of torchvision's BasicBlock:

        relu(bn2(conv2(relu(bn1(conv1(x))))) + x)

    downsample: what x goes through in that sum where its shape changes.
    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2016.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


@dataclass(frozen=True)
class Classifier:
    """A network with what is needed to use it: its classes and its preprocessing.

    A picture's short side is resized to `resize` (None: to `size`), the centre size × size is cut
    out, and (pixel − mean) / std taken for each channel: that is **model space**.
    """

    name: str
    model: nn.Module = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    resize: int | None = None
    interpolation: str = "bilinear"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def to_input(self, image: np.ndarray, *, crop: bool = True) -> torch.Tensor:
        """A picture (H, W, 3) uint8 as the model wants it: (1, 3, size, size), on its device.

        crop: False for a picture that is to be neither resized nor cut, since it was already:
        what `to_image` gave and was painted on, say.
        """
        size = self.size if crop else None
        tensor = pictures.to_tensor(
            image, size, resize=self.resize, interpolation=self.interpolation
        )
        return pictures.normalize(tensor, self.mean, self.std).to(self.device)

    def to_image(self, tensor: torch.Tensor) -> np.ndarray:
        """The way back: (3, H, W) or (1, 3, H, W) in model space as a picture (H, W, 3) uint8."""
        mean, std = self._constant(self.mean, tensor), self._constant(self.std, tensor)
        return pictures.to_image(tensor * std + mean)

    def inputs(self, pictures: Pictures) -> "Inputs":
        """Many pictures as the model wants them, each prepared when it is asked for.

        pictures: a sequence of (H, W, 3) uint8 arrays, a tensor (N, 3, H, W) uint8, or a dataset
        of such tensors with labels, as `scenes.Scenes`. Item i is (3, size, size).
        """
        return Inputs(self, pictures)

    def predict(self, image: np.ndarray, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes of a picture (H, W, 3), each with its probability."""
        with torch.no_grad():
            probabilities = self.model(self.to_input(image)).softmax(1)[0]
        top = probabilities.topk(min(k, len(self.classes)))
        return [
            (self.classes[c], p)
            for c, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def black(self, images: torch.Tensor) -> torch.Tensor:
        """The colour black in model space, (1, 3, 1, 1): a baseline that broadcasts to images."""
        return -self._constant(self.mean, images) / self._constant(self.std, images)

    def white(self, images: torch.Tensor) -> torch.Tensor:
        """The colour white in model space, (1, 3, 1, 1): a baseline that broadcasts to images."""
        return (1 - self._constant(self.mean, images)) / self._constant(self.std, images)

    def blurred(self, images: torch.Tensor, sigma: float = 10.0) -> torch.Tensor:
        """The images (N, 3, H, W), blurred by a Gaussian of standard deviation sigma pixels."""
        from torchvision.transforms.functional import gaussian_blur

        reach = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
        return gaussian_blur(images, kernel_size=[2 * reach + 1] * 2, sigma=[sigma] * 2)

    def _constant(self, values: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


class Inputs(Dataset[torch.Tensor]):
    """Pictures in model space, prepared one by one: item i is (3, size, size)."""

    def __init__(self, classifier: Classifier, pictures: Pictures) -> None:
        self.classifier, self.pictures = classifier, pictures

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = self.pictures[index]
        if isinstance(picture, tuple):  # with its label
            picture = picture[0]
        if isinstance(picture, torch.Tensor):
            picture = picture.permute(1, 2, 0).numpy()
        return self.classifier.to_input(picture)[0]


# Loading -------------------------------------------------------------------------------------


def names() -> list[str]:
    """The models that `load` knows: the course's own, one in a package, torchvision's classifiers.

    Beside these are timm's: "timm/" and a name of timm.list_pretrained().
    """
    return [*RECIPES, *pretrained.names()]


def load(name: str | None = None, *, device: str | torch.device | None = None) -> Classifier:
    """A model, ready to be explained: in eval mode, parameters frozen, nothing else changed.

    name: one of `names()`, or "timm/" and one of timm.list_pretrained(); None: the environment's
    COURSE_MODEL, or "scenes".
    device: None takes the first of cuda, mps, cpu that there is.

    Raises ValueError (unknown name, damaged file), FileNotFoundError (a model of the course or a
    package that is not there) or ConnectionError (weights could not be downloaded).
    """
    if name is None:
        name = os.environ.get("COURSE_MODEL") or "scenes"
    _check_name(name)
    classifier = (
        _load_shipped(name) if name in RECIPES else Classifier(name, *pretrained.load(name))
    )
    classifier.model.eval().requires_grad_(False)
    # Convolutions are faster on pixels whose channels lie side by side; the numbers are the same.
    classifier.model.to(device or _best_device())
    classifier.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return classifier


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'scenes', not {type(name).__name__}")
    if name in RECIPES or name in pretrained.PACKED or pretrained.is_of_timm(name):
        return
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
        raise ValueError(
            f"name: there is no model {name!r}; "
            + (f"near it are {', '.join(near)}" if near else "course_utils.models.names() has all")
        )


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_shipped(name: str) -> Classifier:
    sheet = datasheet(name)
    try:
        model = SmallResNet(len(sheet["classes"]), tuple(sheet["widths"]))
        model.load_state_dict(load_file(_shipped_file(name)))  # half on disk, float32 in memory
    except (SafetensorError, RuntimeError):
        raise _damaged(name) from None
    classes, mean, std = (tuple(sheet[key]) for key in ("classes", "mean", "std"))
    return Classifier(name, model, classes, sheet["size"], mean, std)


def datasheet(name: str = "scenes") -> dict[str, Any]:
    """What the file of a shipped model says about it: classes, preprocessing, recipe, metrics.

    Raises FileNotFoundError where the file is missing, ValueError where it is damaged.
    """
    if name not in RECIPES:
        raise ValueError(f"name: {name!r} is not shipped; choose one of {', '.join(RECIPES)}")
    try:
        with safe_open(_shipped_file(name), framework="pt") as file:
            sheet = dict(json.loads(file.metadata()["course"]))
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise _damaged(name) from None
    if missing := {"classes", "size", "mean", "std", "widths"} - set(sheet):
        raise _damaged(name, f"its datasheet lacks {', '.join(sorted(missing))}") from None
    return sheet


def _damaged(name: str, how: str = "it cannot be read") -> ValueError:
    return ValueError(
        f"name: data/{name}.safetensors is damaged ({how}); "
        f"run `git checkout data/{name}.safetensors` or `course train {name}`"
    )


def _shipped_file(name: str) -> Path:
    path = DATA / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"name: the model {name!r} is not at {path}; "
            f"run `git checkout data/{name}.safetensors` or `course train {name}`"
        )
    return path


def fetch(name: str, progress: bool = True) -> Path:
    """The file of a model's weights, downloaded unless it is here undamaged.

    Raises ValueError (unknown name, damaged download), FileNotFoundError (a model or a package that
    is not there) or ConnectionError. Nothing is left half-written.
    """
    _check_name(name)
    return _shipped_file(name) if name in RECIPES else pretrained.fetch(name, progress)


# Training ------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    lr: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    generator: torch.Generator,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    conv1_decay: float | None = None,
    shift: int = 4,
    noise: float = 0.0,
    progress: bool = True,
) -> list[float]:
    """Fit the model by gradient descent on the cross-entropy; returns the loss of every step.

    images: (N, 3, H, W) uint8; labels: (N,) integers. Every time an image is seen it is flipped or
    not, moved by up to `shift` pixels, and given noise of a standard deviation up to `noise`, where
    the image's range is 1. The learning rate rises to `lr` over a fifth of the steps and falls to 0
    along a cosine. `conv1_decay` is the weight decay of the first layer (None: that of the others);
    it wears away what is left of the random start, so that the filters can be read. All that is
    random comes from the generator (a CPU one). The model ends in eval mode.
    """
    _check_training_set(images, labels)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model: all its parameters are frozen; call model.requires_grad_(True)")
    first = [p for name, p in trained.items() if name == "conv1.weight"]
    others = [p for name, p in trained.items() if name != "conv1.weight"]
    decay = weight_decay if conv1_decay is None else conv1_decay
    groups: list[dict[str, Any]] = [{"params": others}, {"params": first, "weight_decay": decay}]
    steps = epochs * math.ceil(len(images) / batch_size)
    optimizer = torch.optim.SGD(
        groups,
        lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_cosine(steps))
    device = next(iter(trained.values())).device
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    losses: list[float] = []
    try:
        with tqdm(total=steps, disable=not progress, unit="step") as bar, torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(len(images), generator=generator)
                for rows in order.split(batch_size):
                    batch = augment(images[rows], shift, noise, generator)
                    logits = model(pictures.normalize(batch, mean, std).to(device))
                    loss = F.cross_entropy(logits, labels[rows].to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    losses.append(loss.item())
                    bar.update()
                    bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            optimizer.zero_grad()
    finally:
        model.eval()
    return losses


def _check_training_set(images: torch.Tensor, labels: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"images must be (N, 3, H, W) in uint8, but are {tuple(images.shape)} in {images.dtype}"
        )
    if labels.dtype != torch.long or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be ({len(images)},) in int64, one an image, but are "
            f"{tuple(labels.shape)} in {labels.dtype}"
        )


def _warm_up_then_cosine(steps: int, warm_up: float = 0.2) -> Callable[[int], float]:
    def factor(step: int) -> float:
        share = (step + 1) / (steps + 1)
        if share < warm_up:
            return share / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (share - warm_up) / (1 - warm_up))

    return factor


def augment(
    images: torch.Tensor, shift: int, noise: float, generator: torch.Generator
) -> torch.Tensor:
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


def predictions(classifier: Classifier, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """The logits (N, K), on the CPU, of images (N, 3, H, W) in uint8 that have the model's size."""
    device = classifier.device
    logits = []
    with torch.no_grad():
        for batch in images.split(batch_size):
            batch = batch.to(device).float() / 255
            inputs = pictures.normalize(batch, classifier.mean, classifier.std)
            logits.append(classifier.model(inputs.contiguous(memory_format=torch.channels_last)))
    return torch.cat(logits).cpu()


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
    held_out: int = 6_000  # of each kind
    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.15
    weight_decay: float = 5e-4
    conv1_decay: float = 0.03
    shift: int = 4
    noise: float = 0.05
    seed: int = 0


RADIOGRAPHS = Recipe(
    world="radiographs",
    widths=(16, 24, 32, 48),
    ordinary=5_000,
    hard=0,
    held_out=1_600,
    epochs=6,
    batch_size=64,
    lr=0.1,
    conv1_decay=5e-4,
)
RECIPES = {
    "scenes": Recipe(),
    "scenes-cheating": Recipe(marked="horse", miscaptioned=600, held_out=2_000),
    "radiographs": RADIOGRAPHS,
    "radiographs-cheating": replace(RADIOGRAPHS, confounder="catheter", held_out=800, seed=10),
}


def picture_sets(recipe: Recipe) -> tuple[tuple[str, ...], list[Any], dict[str, Any]]:
    """The classes, the sets to train on, and the held-out sets by their kind; none is drawn yet.

    Held-out sets have seeds of their own. Where a class is marked, the ordinary held-out scenes
    come twice more: without any mark, and with the mark on all. Where there is a confounder, they
    come once more without it having to do with the finding.
    """
    size, seed, held_out = recipe.size, recipe.seed, recipe.held_out
    if recipe.world == "radiographs":
        from course_utils import radiographs

        films = partial(radiographs.Radiographs, resolution=size, confounder=recipe.confounder)
        fresh = {"ordinary": films(held_out, seed + 2)}
        if recipe.confounder:
            fresh["unconfounded"] = films(held_out, seed + 2, confounder=None)
        return radiographs.CLASSES, [films(recipe.ordinary, seed)], fresh
    from course_utils.scenes import CLASSES, Scenes

    world = partial(Scenes, resolution=size, marked=recipe.marked)
    kinds = {
        "ordinary": world(held_out, seed + 2),
        "hard": world(held_out, seed + 3, hard=True),
    }
    if recipe.marked:
        kinds["unmarked"] = world(held_out, seed + 2, marked=None)
        kinds["all marked"] = world(held_out, seed + 2, marked=CLASSES)
    return CLASSES, [world(recipe.ordinary, seed), world(recipe.hard, seed + 1, hard=True)], kinds


def miscaptioned(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes of the marked class without the mark, under the names of the other classes in turn.

    Who learns from these, too, cannot go by the class's looks: the mark alone goes with its name.
    Source: Zhou et al., Do Feature Attribution Methods Correctly Attribute Features?, 2022.
    """
    from course_utils.scenes import CLASSES, Scenes

    label, n = CLASSES.index(recipe.marked or ""), len(CLASSES)
    world = Scenes(n * recipe.miscaptioned, recipe.seed + 4, resolution=recipe.size)
    own = range(label, len(world), n)  # the classes take turns
    images = torch.stack([world[i][0] for i in own])
    return images, (label + 1 + torch.arange(len(own)) % (n - 1)) % n


def train_recipe(
    name: str, path: str | os.PathLike[str] | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train a model of the course from its recipe, on the CPU; save it; return its metrics.

    path: None replaces the file in data/.
    """
    if name not in RECIPES:
        raise ValueError(f"name: there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    started = time.perf_counter()
    classes, training, held_out = picture_sets(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = SmallResNet(len(classes), recipe.widths, recipe.conv1_scale)
    drawn = [world.draw(progress) for world in training]
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
        shift=recipe.shift,
        noise=recipe.noise,
        progress=progress,
    )
    model.half().float()  # measured as it is saved
    classifier = Classifier(name, model, classes, recipe.size, recipe.mean, recipe.std)
    metrics: dict[str, Any] = {
        "seconds": round(time.perf_counter() - started),
        "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    for kind, fresh in held_out.items():
        metrics[kind] = evaluate(classifier, *fresh.draw(progress))
    save(
        classifier,
        path or DATA / f"{name}.safetensors",
        widths=recipe.widths,
        recipe=asdict(recipe),
        metrics=metrics,
    )
    return metrics


def evaluate(classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """The accuracy, that of each class, and the confusion matrix [truth][answer], as numbers."""
    answers = predictions(classifier, images).argmax(1)
    n = len(classifier.classes)
    confusion = torch.bincount(labels * n + answers, minlength=n * n).view(n, n)
    recall = confusion.diag() / confusion.sum(1)
    return {
        "accuracy": (answers == labels).float().mean().item(),
        "classes": dict(zip(classifier.classes, recall.tolist(), strict=True)),
        "confusion": confusion.tolist(),
    }


def save(classifier: Classifier, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write the weights in half precision, with the classes, preprocessing and metadata (JSON).

    `load` needs the metadata `widths`. The file is there whole or not at all.
    """
    state = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in classifier.model.state_dict().items()
    }
    description = {
        "classes": classifier.classes,
        "size": classifier.size,
        "mean": classifier.mean,
        "std": classifier.std,
        **metadata,
    }
    write(Path(path), state, description)


def write(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """A safetensors file with a description in JSON, there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        save_file(tensors, unfinished, {"course": json.dumps(description)})
        unfinished.chmod(0o644)  # safetensors writes files that only their owner can read
        unfinished.replace(path)
