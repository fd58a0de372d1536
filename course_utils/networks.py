"""Networks: one with its classes and its preprocessing, and the small one of the course."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils import images as pictures

Pictures = Sequence[Any] | Tensor | Dataset[Any]


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
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of number in which the model computes."""
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        parameters = (p for p in self.model.parameters() if p.is_floating_point())
        return next(parameters, torch.zeros((), dtype=torch.float32))

    def to_input(self, image: np.ndarray, *, crop: bool = True) -> Tensor:
        """A picture (H, W, 3) uint8 for the model: (1, 3, size, size), in its type, on its device.

        crop: False for a picture that is to be neither resized nor cut, since it was already:
        what `to_image` gave and was painted on, say.
        """
        size = self.size if crop else None
        tensor = pictures.to_tensor(
            image, size, resize=self.resize, interpolation=self.interpolation
        )
        return pictures.normalize(tensor, self.mean, self.std).to(self.device, self.dtype)

    def to_image(self, tensor: Tensor) -> np.ndarray:
        """The way back: (3, H, W) or (1, 3, H, W) in model space as a picture (H, W, 3) uint8."""
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))  # half is too coarse
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

    def black(self, images: Tensor) -> Tensor:
        """The colour black in model space, (1, 3, 1, 1): a baseline that broadcasts to images.

        >>> classifier = networks.Classifier("no name", nn.Flatten(), ("cat", "dog"), size=8)
        >>> classifier.black(torch.zeros(1, 3, 8, 8)).flatten()  # (0 − mean) / std
        tensor([-2., -2., -2.])
        """
        return -self._constant(self.mean, images) / self._constant(self.std, images)

    def white(self, images: Tensor) -> Tensor:
        """The colour white in model space, (1, 3, 1, 1): a baseline that broadcasts to images."""
        return (1 - self._constant(self.mean, images)) / self._constant(self.std, images)

    def blurred(self, images: Tensor, sigma: float = 10.0) -> Tensor:
        """The images (N, 3, H, W), blurred by a Gaussian of standard deviation sigma pixels."""
        from torchvision.transforms.functional import gaussian_blur

        reach = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
        return gaussian_blur(images, kernel_size=[2 * reach + 1] * 2, sigma=[sigma] * 2)

    def _constant(self, values: tuple[float, float, float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


class Inputs(Dataset[Tensor]):
    """Pictures in model space, prepared one by one: item i is (3, size, size)."""

    def __init__(self, classifier: Classifier, pictures: Pictures) -> None:
        self.classifier, self.pictures = classifier, pictures

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Tensor:
        picture = self.pictures[index]
        if isinstance(picture, tuple):  # with its label
            picture = picture[0]
        if isinstance(picture, Tensor):
            picture = picture.permute(1, 2, 0).numpy()
        return self.classifier.to_input(picture)[0]


class SmallResNet(nn.Module):
    """A small ResNet with the module names of ResNet-18: images (N, 3, H, W) → logits (N, classes).

    conv1_scale shrinks the random start of the first layer: what its filters then show was learned.
    Source: He et al., Deep Residual Learning, 2016.

    >>> networks.SmallResNet(classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
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

    def forward(self, x: Tensor) -> Tensor:
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

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)
