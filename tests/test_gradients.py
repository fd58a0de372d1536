from collections.abc import Callable

import pytest
import torch
from torch import nn

from course_utils.gradients import gradient
from tests.networks import NETWORKS, batch, make


class ByHand(nn.Module):
    """f = 5x + y² of an "image" with the two pixels x and y, and g = xy as a second class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, y = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.stack([5 * x + y**2, x * y], 1)


def test_by_hand() -> None:
    image = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    assert gradient(ByHand(), image, 0).flatten().tolist() == [5, 20]
    assert gradient(ByHand(), image, 1).flatten().tolist() == [10, 1]
    both = gradient(ByHand(), image.repeat(2, 1, 1, 1), torch.tensor([1, 0]))
    assert both.flatten(1).tolist() == [[10, 1], [5, 20]]


def finite_differences(
    score: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, step: float = 1e-6
) -> torch.Tensor:
    steps = torch.eye(image.numel(), dtype=image.dtype).view(-1, *image.shape) * step
    return ((score(image + steps) - score(image - steps)) / (2 * step)).view(image.shape)


@pytest.mark.parametrize("network", NETWORKS)
def test_against_finite_differences(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution = gradient(model, images, 3)
    with torch.no_grad():
        for image, row in zip(images, attribution, strict=True):
            slow = finite_differences(lambda x: model(x.clone())[:, 3], image)
            torch.testing.assert_close(row, slow, rtol=1e-5, atol=1e-7)


def test_an_input_the_model_ignores_has_gradient_zero() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(x), -1)

    assert gradient(Constant(), batch(), 0).abs().sum() == 0


def test_no_parameter_gradient_is_computed() -> None:
    model = make("Residual")
    asked: list[torch.Tensor] = []
    for parameter in model.parameters():
        parameter.register_hook(asked.append)
    gradient(model, batch())
    assert not asked


def test_bfloat16() -> None:
    model, images = make("Residual"), batch()
    exact = gradient(model, images, 0)
    rough = gradient(model.bfloat16(), images.bfloat16(), 0)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_autocast_is_left_to_the_caller() -> None:
    model, images = make("Residual"), batch()
    exact = gradient(model, images, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradient(model, images, 0)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.references
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "InPlaceFirst"])
def test_equals_captum(network: str) -> None:
    from captum.attr import Saliency

    model, images = make(network).eval(), batch()
    target = torch.tensor([1, 4, 0])
    reference = Saliency(model).attribute(images.clone().requires_grad_(), target=target, abs=False)
    torch.testing.assert_close(gradient(model, images, target), reference)
