"""Tiny networks (N, 3, 8, 8) → (N, 5), one for each thing a method must cope with."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.contract import known_options
from course_utils.methods import Method
from course_utils.networks import Classifier, SmallResNet
from course_utils.worlds.scenes import CLASSES


class InPlaceFirst(nn.Module):
    """An in-place ReLU is the first layer; another follows the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(self.relu(x)))
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """ReLU and pooling are function calls, also in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Reused(nn.Module):
    """One convolution and one ReLU run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.relu(self.conv(x))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """BatchNorm, Dropout, and a residual sum before an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    network.__name__: network for network in (InPlaceFirst, Functional, Reused, Residual)
}


def make(name: str, seed: int = 0) -> nn.Module:
    """The network of that name, its parameters and running statistics random but fixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean = torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
    return model


def batch(n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images (n, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator, dtype=dtype)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(num_classes=10)
        if name == "vgg11":  # its classifier with 64 units a layer: 4,096 prove no more
            hidden = (nn.Linear(25088, 64), nn.Linear(64, 64))
            layers = [(linear, nn.ReLU(inplace=True), nn.Dropout()) for linear in hidden]
            model.classifier = nn.Sequential(*itertools.chain(*layers), nn.Linear(64, 10))
        model = model.double()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            norm.momentum = None  # the statistics of one random batch, so that no signal dies out
        if norms:
            with torch.no_grad():
                model.train()(torch.randn(8, 3, 64, 64).double())
    return model.eval()


def _scenes() -> nn.Module:
    from course_utils import models

    return models.load("scenes").model.double()


# Real networks (N, 3, 64, 64) → (N, 10 or 16) in float64, random but for the course's own.
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "scenes": _scenes,
    "resnet18": lambda: _torchvision("resnet18"),
    "vgg11": lambda: _torchvision("vgg11"),
    "densenet121": lambda: _torchvision("densenet121"),
    "squeezenet1_0": lambda: _torchvision("squeezenet1_0"),
    "mobilenet_v3_small": lambda: _torchvision("mobilenet_v3_small"),
}


def few_passes(method: Method) -> dict[str, Any]:
    """Options for images of 8 × 8, of those that the method has."""
    segments = torch.arange(64).view(8, 8) // 16
    return known_options(
        method, window=4, stride=3, samples=12, steps=5, segments=segments, min_pixels=1
    )


def pictures(n: int = 2, seed: int = 0) -> Tensor:
    """Random images (n, 3, 64, 64), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 64, 64, generator=generator, dtype=torch.float64)


class Saturating(nn.Module):
    """y = 1 − max(0, 1 − i₁ − i₂)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - torch.relu(1 - x.sum((1, 2, 3)))[:, None]


class Jump(nn.Module):
    """max(0, x − 10)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.sum((1, 2, 3)) - 10)[:, None]


def pixels(*values: float) -> Tensor:
    """One row of numbers as an image (1, 1, 1, n)."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def small_classifier(last: int = 8, size: int = 64) -> Classifier:
    """A classifier of scenes that nobody has trained, with `last` units in its last layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallResNet(len(CLASSES), (8, 8, 8, last))
    return Classifier("small", network.eval().requires_grad_(False), CLASSES, size)


class Returning(nn.Module):
    """A network, and what is made of its logits; `forwards` counts its passes."""

    def __init__(self, model: nn.Module, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.output, self.forwards = model, output, 0

    def forward(self, x: Tensor) -> Any:
        self.forwards += 1
        return self.output(self.model(x))


class Recorder:
    """A function of images that is no module: two classes, and how many images each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        total = images.sum((1, 2, 3))
        return torch.stack([total, -2 * total], 1)


def noting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The function, but the arguments of each call are kept."""

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return noted
