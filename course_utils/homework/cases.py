"""What the checks try answers on: networks, noise and scenes, the same at every call."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import models
from course_utils.networks import Classifier
from course_utils.worlds import scenes

Made = TypeVar("Made", bound=Callable[..., Any])
Option = TypeVar("Option")


# Of the check that runs: it moves all that is drawn here, so that no result can be remembered.
_SEED = ContextVar("seed", default=0)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Inside, all that this module draws is another with another seed; 0 is what students see."""
    token = _SEED.set(seed)
    try:
        yield
    finally:
        _SEED.reset(token)


def moved(seed: int) -> int:
    """A seed that depends on that of the check, too."""
    return seed + 1_000_003 * _SEED.get()


def once(function: Made) -> Made:
    """`functools.cache`, but anew for each seed of a check."""
    kept = functools.cache(lambda _, *args: function(*args))
    return cast(Made, functools.wraps(function)(lambda *args: kept(_SEED.get(), *args)))


def chosen(*options: Option) -> Option:
    """One of these, by the seed of the check; students get the first one."""
    return options[_SEED.get() % len(options)]


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU that starts from this seed, which the check's seed moves."""
    return torch.Generator().manual_seed(moved(seed))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal noise of this shape, with mean 0 and standard deviation 1."""
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


# Scenes and the network that was trained on them ----------------------------------------------


@functools.cache
def shipped() -> Classifier:
    """The course's model, on the CPU, one and the same for all checks: they leave it as it is."""
    return models.load("scenes", device="cpu")


def inputs(*specs: scenes.SceneSpec) -> Tensor:
    """Scenes as the shipped model wants them: (N, 3, 128, 128)."""
    return torch.cat([shipped().to_input(scenes.render(spec).image) for spec in specs])


def classes(*labels: str) -> Tensor:
    """The numbers (N,) that the shipped model gives to these classes."""
    return torch.tensor([shipped().classes.index(label) for label in labels])


# Networks that nobody has trained -------------------------------------------------------------


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Inside, torch's global generator starts from this seed; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(moved(seed))
        yield


class Pooled(nn.Module):
    """CAM's architecture, with two linear layers: one mixes the channels, the last one classifies.

    Names, sizes and classes are its own, and its ReLUs work in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.mix = nn.Linear(9, 9)
        self.body = nn.Sequential(nn.Conv2d(9, 9, 3), nn.BatchNorm2d(9), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 7) of images (N, 3, H, W)."""
        x = self.mix(self.stem(x).movedim(1, -1)).movedim(-1, 1)
        return self.classifier(self.body(x).mean((2, 3)))


class Shared(nn.Module):
    """A convolution and an in-place ReLU run three times, with a residual sum and a BatchNorm."""

    def __init__(self, classes: int = 5, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.relu(self.norm(self.stem(x)))
        for _ in range(2):
            x = self.relu(x + self.conv(x))
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """ReLUs that are functions, one of them in place, and one that is a module."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.act(self.conv1(x))
        x = F.relu(self.conv2(x), inplace=True).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


def pooled() -> nn.Module:
    """A `Pooled` with large weights and biases in its linear layer; new at each call."""
    with global_seed(1):
        model = Pooled().eval()
        nn.init.normal_(model.classifier.bias)
        nn.init.normal_(model.classifier.weight)
    return with_gradients(model)


def with_gradients(model: nn.Module) -> nn.Module:
    """The model, in whose .grad there is something already, as in the middle of a training."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@once
def unpooled() -> nn.Module:
    """(N, 3, 12, 20) → (N, 5), with in-place ReLUs; the linear layer sees each place."""
    with global_seed(2):
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8 * 6 * 10, 5),
        )
        for parameter in model[-1].parameters():
            nn.init.normal_(parameter)
        for statistic in model.buffers():
            if statistic.is_floating_point():
                nn.init.uniform_(statistic, 0.2, 0.6)
    return with_gradients(model.eval())


def plain(channels: int, classes: int) -> nn.Module:
    """Two convolutions, an in-place ReLU and another one, average pooling, a linear layer."""
    with global_seed(0):
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        ).eval()


def nested(classes: int, width: int, seed: int) -> nn.Module:
    """A network in eval mode, some of whose layers have names that are parts of others."""

    def block(channels: int) -> list[tuple[str, nn.Module]]:
        return [
            ("conv1", nn.Conv2d(channels, width, 3, padding=1)),
            ("bn1", nn.BatchNorm2d(width)),
            ("relu", nn.ReLU(inplace=True)),
        ]

    with global_seed(seed):
        head = [("pool", nn.AdaptiveAvgPool2d(2)), ("flat", nn.Flatten())]
        body = [*block(3), ("block", nn.Sequential(OrderedDict(block(width))))]
        fc = ("fc", nn.Linear(4 * width, classes))
        model = nn.Sequential(OrderedDict([*body, *head, fc]))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
                module.running_mean = 0.3 * torch.randn(width)
                module.running_var = torch.rand(width) + 0.5
    return model.eval()


@once
def double(kind: type[nn.Module], *sizes: Any) -> nn.Module:
    """A network of that kind in float64, random but always the same."""
    with global_seed(5):
        model = kind(*sizes).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return model
