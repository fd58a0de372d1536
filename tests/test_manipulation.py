from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.evaluation.manipulation import (
    DIFFERENTIABLE,
    OPTIONS,
    Softened,
    as_shown,
    correlation,
    fool_map,
    lying_copy,
    map_correlation,
)
from course_utils.methods import METHODS
from course_utils.models import load
from course_utils.worlds import photographs
from course_utils.worlds.scenes import Scenes
from tests.networks import NETWORKS, batch, make, pixels

GREY: dict[str, Any] = {"black": 0.0, "white": 1.0}


class Larger(nn.Module):
    """f(x) = (max(x₁, x₂), 0), whose map shows the larger pixel."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.flatten(1).unbind(1)
        larger = F.relu(one - other) + other
        return torch.stack([larger, torch.zeros_like(larger)], 1)


def state(model: nn.Module) -> list[Any]:
    return [
        [(name, value.clone(), value.requires_grad, value.grad) for name, value in each]
        for each in (model.named_parameters(), model.named_buffers())
    ] + [[(module.training, dict(module._forward_hooks)) for module in model.modules()]]


# softened ReLUs


def softplus(x: Tensor, beta: float = 10.0) -> Tensor:
    return torch.log1p(torch.exp(beta * x)) / beta


@pytest.mark.parametrize(
    "relu",
    [
        torch.relu,
        F.relu,
        F.relu_,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu(input=x),
    ],
)
def test_every_spelling_of_a_relu_is_softened(relu: Any) -> None:
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    with Softened(10.0):
        found = relu(x.clone())
    torch.testing.assert_close(found, softplus(x))
    torch.testing.assert_close(relu(x.clone()), x.clamp(min=0))  # nothing is left


def test_a_relu6_bends_at_both_corners() -> None:
    x = torch.linspace(-1, 8, 19, dtype=torch.float64)
    for relu6 in (F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: F.hardtanh(x, 0, 6)):
        with Softened(10.0):
            found = relu6(x.clone())
        torch.testing.assert_close(found, softplus(x) - softplus(x - 6))
        with Softened(1e4):
            torch.testing.assert_close(relu6(x.clone()), x.clamp(0, 6), atol=1e-4, rtol=0)


def test_in_place_the_input_is_written_to() -> None:
    for relu in (torch.relu_, nn.ReLU(inplace=True), nn.ReLU6(inplace=True)):
        x = torch.tensor([-1.0, 0.0, 1.0])
        with Softened(10.0):
            assert relu(x) is x
        assert x[1] > 0
    x = torch.tensor([0.0])
    with Softened(10.0):
        torch.relu(x)
    assert x == 0


def test_a_softened_network_has_a_second_derivative() -> None:
    x = pixels(0.5, 0.4).requires_grad_()
    slope = DIFFERENTIABLE["gradient"](Larger(), x, torch.tensor([0]))
    assert slope.tolist() == [[[[1.0, 0.0]]]]
    assert torch.autograd.grad(slope[0, 0, 0, 0], x)[0].tolist() == [[[[0.0, 0.0]]]]
    with Softened(10.0):
        slope = DIFFERENTIABLE["gradient"](Larger(), x, torch.tensor([0]))
    (curvature,) = torch.autograd.grad(slope[0, 0, 0, 0], x)
    share = 1 / (1 + np.exp(-10 * 0.1))  # the slope of a softplus is a sigmoid
    assert slope[0, 0, 0, 0].item() == pytest.approx(share, abs=1e-5)
    assert curvature[0, 0, 0, 0].item() == pytest.approx(10 * share * (1 - share), abs=1e-4)


# maps that carry a gradient


@pytest.mark.parametrize("method", DIFFERENTIABLE)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_differentiable_map_is_that_of_the_method(method: str, network: str) -> None:
    model, images = make(network).double().eval(), batch(dtype=torch.float64)
    classes = torch.tensor([1, 4, 0])
    found = DIFFERENTIABLE[method](model, images.clone().requires_grad_(), classes)
    wanted = METHODS[method](model, images, classes, **OPTIONS.get(method, {}))
    torch.testing.assert_close(found.detach(), wanted, atol=1e-10, rtol=1e-10)
    assert found.requires_grad


def test_the_correlation_is_pearsons() -> None:
    one, other = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    twin = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)]
    assert correlation(one, other).tolist() == pytest.approx(twin, abs=1e-5)
    assert correlation(torch.ones(1, 2, 2), torch.rand(1, 2, 2)) == 0


def test_maps_are_compared_as_figures_show_them() -> None:
    maps = torch.tensor([[[[1.0]], [[-3.0]]]])
    assert as_shown("gradient", maps).tolist() == [[[4.0]]]  # its paper shows magnitudes
    assert as_shown("input_x_gradient", maps).tolist() == [[[-2.0]]]
    assert as_shown("grad_cam", maps[:, 0]).tolist() == [[[1.0]]]


# an image that fools


def test_by_hand_one_grey_level_turns_the_map_round() -> None:
    image = pixels(128 / 255, 127 / 255)
    fooled = fool_map(Larger(), image, target=0, **GREY, epsilon=1, steps=20)
    # The map was (1, 0) and is (0, 1); max(x₁, x₂) moved by one grey level at most.
    assert METHODS["gradient"](Larger(), image, 0).tolist() == [[[[1.0, 0.0]]]]
    assert METHODS["gradient"](Larger(), fooled.images, 0).tolist() == [[[[0.0, 1.0]]]]
    assert fooled.correlation.item() == pytest.approx(-1)
    assert fooled.levels == 1
    assert fooled.logit.item() <= 1.001 / 255
    assert (255 * fooled.images).round().tolist() in ([[[[127.0, 128.0]]]], [[[[128.0, 128.0]]]])


@pytest.mark.parametrize("method", DIFFERENTIABLE)
def test_what_is_promised_holds_and_is_what_was_measured(method: str) -> None:
    model = make("Functional").eval()
    images = (255 * batch().sigmoid()).round() / 255
    fooled = fool_map(model, images, method, **GREY, epsilon=20, steps=15, tolerance=0.005)
    change = 255 * (fooled.images - images)
    assert change.abs().max() <= 20.001
    torch.testing.assert_close(change, change.round(), atol=1e-3, rtol=0)
    assert fooled.images.min() >= 0
    assert fooled.images.max() <= 1
    assert fooled.levels.tolist() == change.abs().flatten(1).amax(1).round().tolist()
    before, after = model(images), model(fooled.images)
    moved = (after.softmax(1) - before.softmax(1)).abs().amax(1)
    torch.testing.assert_close(fooled.probability, moved)
    assert 0 < moved.max() <= 0.005
    torch.testing.assert_close(fooled.logit, (after - before).abs().amax(1))
    options = OPTIONS.get(method, {})
    found = map_correlation(model, images, fooled.images, method, **options)
    torch.testing.assert_close(fooled.correlation, found)
    assert (found < 0.7).all()


def test_a_map_that_is_wanted() -> None:
    model = make("Functional").eval()
    images = (255 * batch().sigmoid()).round() / 255
    toward = torch.zeros(8, 8)
    toward[:4] = 1
    fooled = fool_map(model, images, "input_x_gradient", **GREY, toward=toward, epsilon=20)
    maps = [
        as_shown(
            "input_x_gradient", METHODS["input_x_gradient"](model, each, model(images).argmax(1))
        )
        for each in (images, fooled.images)
    ]
    before, after = (correlation(each, toward.expand_as(each)) for each in maps)
    assert fooled.toward is not None
    torch.testing.assert_close(fooled.toward, after)
    assert (after > before + 0.1).all()
    assert (fooled.probability <= 0.01).all()


def test_without_room_the_images_stay() -> None:
    model, images = make("Residual").eval(), batch().sigmoid()
    fooled = fool_map(model, images, **GREY, steps=3, tolerance=1e-6)
    same = fooled.images.eq(images).flatten(1).all(1)
    assert same.any()
    assert (fooled.correlation[same] > 0.9999).all()
    assert fooled.probability.max() <= 1e-6


def test_an_image_is_fooled_alone_as_among_others() -> None:
    model, images = make("Functional").double().eval(), batch(dtype=torch.float64).sigmoid()
    target = torch.tensor([1, 4, 0])
    together = fool_map(model, images, "input_x_gradient", target, **GREY, steps=5)
    for i in range(3):
        alone = fool_map(
            model, images[i : i + 1], "input_x_gradient", target[i : i + 1], **GREY, steps=5
        )
        torch.testing.assert_close(alone.images[0], together.images[i])


@pytest.mark.parametrize("network", NETWORKS)
def test_everything_is_left_as_it_was(network: str) -> None:
    model, images = make(network).train(), batch()
    kept, before, random = images.clone(), state(model), torch.get_rng_state()
    fool_map(model, images, black=-5.0, white=5.0, steps=2)
    lying_copy(model, images, torch.eye(8), steps=2, batch_size=2)
    with pytest.raises(ValueError, match="does not change"):
        fool_map(nn.Sequential(nn.Flatten()), images, **GREY, steps=2)
    assert torch.equal(images, kept)
    assert str(state(model)) == str(before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_map_that_no_change_moves() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
    with pytest.raises(ValueError, match="its map by gradient does not change with the image"):
        fool_map(linear, torch.full((1, 1, 2, 2), 0.5), **GREY)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "lime_image"}, ValueError, "method: there is no 'lime_image'"),
        ({"black": 1.0}, ValueError, "white must be above black"),
        ({"black": "dark"}, TypeError, "black must be a number or a tensor"),
        ({"epsilon": 0}, ValueError, "epsilon is 0; it must be at least 1"),
        ({"epsilon": 0.5}, TypeError, "epsilon must be a whole number"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"tolerance": 0.0}, ValueError, "tolerance is 0.0"),
        ({"keep": float("nan")}, ValueError, "keep is nan"),
        ({"beta": 0.0}, ValueError, "beta is 0.0"),
        ({"toward": torch.zeros(3, 3)}, ValueError, r"toward must be a map \(8, 8\)"),
        ({"toward": [1.0]}, TypeError, "toward must be a floating point tensor"),
        ({"toward": torch.full((8, 8), torch.nan)}, ValueError, "toward must be finite"),
        ({"target": 7}, ValueError, "target: there is no class 7"),
        ({"generator": 3}, TypeError, "generator must be"),
    ],
)
def test_what_fool_map_refuses(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        fool_map(make("Residual"), batch(), **{**GREY, **options})


# a network that lies


def test_a_copy_learns_to_point_elsewhere() -> None:
    model, images = make("Residual").eval(), batch(24)
    where = torch.zeros(8, 8)
    where[:3, :3] = 1
    lying = lying_copy(model, images[:16], where, steps=60, batch_size=16, lr=3e-3)
    fresh, goal = images[16:], where.expand(8, 8, 8)
    maps = [METHODS["grad_cam"](each, fresh, model(fresh).argmax(1)) for each in (model, lying)]
    before, after = (correlation(each, goal).mean() for each in maps)
    assert after > before + 0.2
    assert (lying(fresh) - model(fresh)).abs().mean() < model(fresh).std()
    assert not any(parameter.requires_grad for parameter in lying.parameters())
    assert not lying.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"where": torch.zeros(4, 4)}, r"where must be a map \(8, 8\)"),
        ({"method": "lrp"}, "method: there is no 'lrp'"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_lying_copy_refuses(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lying_copy(make("Residual"), batch(), **{"where": torch.eye(8), **options})


def test_what_map_correlation_refuses() -> None:
    with pytest.raises(ValueError, match=r"others must be \(3, 3, 8, 8\)"):
        map_correlation(make("Residual"), batch(), batch(2), "gradient")
    with pytest.raises(ValueError, match="method: there is no 'gradiant'"):
        map_correlation(make("Residual"), batch(), batch(), "gradiant")


# the course's networks


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient", "input_x_gradient"])
def test_a_scene_whose_map_moves_and_whose_answer_stays(method: str) -> None:
    classifier, world = load("scenes"), Scenes(3, seed=1234)
    images = torch.stack([*map(classifier.inputs(world).__getitem__, range(3))])
    black, white = classifier.black(images), classifier.white(images)
    fooled = fool_map(classifier.model, images, method, black=black, white=white, steps=40)
    assert (fooled.probability <= 0.01).all()
    assert (fooled.levels <= 4).all()
    assert (fooled.correlation < 0.2).all()
    for before, after in zip(images, fooled.images, strict=True):
        pictures = [classifier.to_image(each).astype(int) for each in (before, after)]
        assert np.abs(pictures[1] - pictures[0]).max() <= 4
        again = classifier.to_input(pictures[1].astype(np.uint8), crop=False)[0]
        torch.testing.assert_close(again, after, atol=1e-5, rtol=0)  # a file of 8 bits holds it


@pytest.mark.slow
def test_a_photograph_whose_map_moves_and_whose_answer_stays() -> None:
    classifier = load("efficientnet_lite0")
    square = classifier.to_image(classifier.to_input(photographs.load("coffee").image))
    image = classifier.to_input(square, crop=False)
    black, white = classifier.black(image), classifier.white(image)
    fooled = fool_map(
        classifier.model, image, black=black, white=white, epsilon=6, steps=16, keep=0.1
    )
    assert fooled.probability.item() <= 0.01
    assert fooled.levels.item() <= 6
    assert fooled.correlation.item() < 0.2
