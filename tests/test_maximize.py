"""Activation maximization: the right picture, the promised steps, and a model left as it was."""

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import models
from course_utils.networks import Classifier, SmallResNet
from course_utils.units import maximize
from course_utils.units.features import Images, responses
from course_utils.units.maximize import Ascent, activation_maximization, ascend, class_model
from course_utils.worlds.scenes import Scenes
from tests.networks import NETWORKS, batch, make
from tests.test_contract import awkward, unchanged

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
STILL: dict[str, Any] = {"jitter": 0, "rotation": 0, "scaling": 0}
PIXELS: dict[str, Any] = {"fourier": False, "decorrelate": False}
PLAIN: dict[str, Any] = {**STILL, **PIXELS, "normalize_gradient": False}


def wrap(model: nn.Module, size: int = 16, classes: int = 5) -> Classifier:
    names = tuple(f"class {c}" for c in range(classes))
    return Classifier("test", model, names, size, MEAN, STD)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_of(*weights: float, bias: float = 0.0) -> nn.Sequential:
    """One unit that weighs red, green and blue of each pixel, and a ReLU after it."""
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 1, 1), relu=nn.ReLU()))
    with torch.no_grad():
        model.get_parameter("conv.weight").copy_(torch.tensor(weights).view(1, 3, 1, 1))
        model.get_parameter("conv.bias").fill_(bias)
    return model


def pixels(classifier: Classifier, images: Tensor) -> Tensor:
    """Images in model space as colours in [0, 1]."""
    std, mean = torch.tensor(classifier.std), torch.tensor(classifier.mean)
    return images * std.view(3, 1, 1) + mean.view(3, 1, 1)


def response(classifier: Classifier, layer: str, images: Images) -> Tensor:
    return responses(classifier.model, layer, images)


# Known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_red_minus_green_wants_pure_red(fourier: bool, decorrelate: bool) -> None:
    classifier = wrap(unit_of(1, -1, 0))
    options: dict[str, Any] = {"fourier": fourier, "decorrelate": decorrelate}
    found = activation_maximization(
        classifier, "conv", 0, steps=100, step_size=0.3, **options, **STILL
    )
    red, green, blue = pixels(classifier, found.images)[0]
    assert red.min() > 0.99
    assert green.max() < 0.01
    if not decorrelate:  # nothing in the score moves the blue
        assert (blue - 0.5).abs().max() < 0.3


def stripes() -> Tensor:
    """A kernel (1, 3, 8, 8) of vertical grey stripes, four pixels a period, of sum zero."""
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2)
    return wave.expand(1, 3, 8, 8).contiguous()


def striped() -> nn.Sequential:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 1, 8, bias=False), relu=nn.ReLU()))
    with torch.no_grad():
        model.get_parameter("conv.weight").copy_(stripes())
    return model


def test_a_neuron_gets_its_own_kernel_at_its_place() -> None:
    classifier = wrap(striped())
    found = activation_maximization(
        classifier, "conv", 0, position=(3, 5), steps=40, step_size=0.2, **STILL
    )
    field = found.images[..., 3:11, 5:13]
    seen = torch.stack([field.flatten(), stripes().flatten()])
    assert torch.corrcoef(seen)[0, 1] > 0.95
    assert response(classifier, "conv", field).item() == pytest.approx(found.scores[-1].item())


def test_a_channel_gets_its_stripes_everywhere() -> None:
    classifier = wrap(striped(), size=32)
    found = activation_maximization(
        classifier, "relu", 0, steps=40, step_size=0.1, **STILL, **PIXELS
    )
    grey = found.images[0].mean(0)
    power = torch.fft.rfft2(grey - grey.mean()).abs().square()
    row, column = divmod(int(power.argmax()), power.shape[1])
    assert (row, column) == (0, 8)  # no change from row to row, a period of 32 / 8 columns
    stripes_all_over = torch.where(stripes().tile(1, 1, 4, 4) > 0, 1.0, 0.0)
    best = F.conv2d(
        (stripes_all_over - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1),
        stripes(),
    )
    assert found.scores[-1] > 0.7 * best.relu().mean()


def test_a_neuron_changes_its_receptive_field_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    start = torch.zeros(1, 3, 16, 16)
    options = {**PLAIN, "steps": 3, "step_size": 1.0, "start": start}
    found = activation_maximization(wrap(model), "1", 2, position=(6, 1), **options)
    field = torch.zeros(16, 16, dtype=torch.bool)
    field[4:9, :4] = True  # two 3 × 3 kernels see 5 × 5, cut off at the border
    assert torch.equal((found.z != start).any(1)[0], field)


def test_a_direction_is_the_weighted_sum_of_channels_over_its_norm() -> None:
    classifier = wrap(make("Functional"))
    direction = torch.tensor([3.0, 0, 0, -4, 0, 0])
    found = activation_maximization(classifier, "conv1", direction, steps=4)
    rows = response(classifier, "conv1", found.images)
    expected = (3 * rows[0, 0] - 4 * rows[0, 3]) / 5
    torch.testing.assert_close(found.scores[-1, 0], expected)
    alone = activation_maximization(classifier, "conv1", 3, steps=4)
    axis = activation_maximization(classifier, "conv1", 7 * torch.eye(6)[3], steps=4)
    torch.testing.assert_close(axis.images, alone.images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_logit_is_a_unit_of_the_last_layer(network: str) -> None:
    classifier = wrap(make(network).eval())
    found = activation_maximization(classifier, "fc", 3, steps=5)
    with torch.no_grad():
        logits = classifier.model(found.images.clone())
    torch.testing.assert_close(found.scores[-1, 0], logits[0, 3], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.images, class_model(classifier, 3, steps=5).images)
    there = activation_maximization(classifier, "fc", 3, position=(0, 0), steps=5)
    assert torch.equal(found.images, there.images)


# The step ------------------------------------------------------------------------------------


def nothing(x: Tensor) -> Tensor:
    return torch.zeros(len(x))


def goal_by_hand(model: nn.Module | None, z: Tensor, l2: float, total_variation: float) -> Tensor:
    """The docstring's goal (N,) of z (N, 3, H, W) in float64, written out."""
    x = (1 / (1 + torch.exp(-z)) - z.new_tensor(MEAN).view(3, 1, 1)) / z.new_tensor(STD).view(
        3, 1, 1
    )
    score = z.new_zeros(len(z)) if model is None else model(x)[:, 2]
    down = (x[:, :, 1:] - x[:, :, :-1]).abs().mean((1, 2, 3))
    right = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    return score - l2 * (x**2).mean((1, 2, 3)) - total_variation * (down + right)


@pytest.mark.parametrize("network", [None, "Functional", "Residual"])
@pytest.mark.parametrize(("l2", "total_variation"), [(0, 0), (0.7, 0), (0, 0.3), (0.4, 0.9)])
def test_one_step_by_hand(network: str | None, l2: float, total_variation: float) -> None:
    classifier = wrap(make(network or "Functional").eval(), size=8)
    start = batch(1, seed=3)

    def score(x: Tensor) -> Tensor:
        return classifier.model(x)[:, 2] if network else nothing(x)

    found = ascend(
        classifier,
        score,
        steps=1,
        step_size=2.0,
        l2=l2,
        total_variation=total_variation,
        start=start,
        **PLAIN,
    )
    twin = make(network).double().eval() if network else None
    z = start.double()
    nudges = 1e-6 * torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape[1:])
    with torch.no_grad():
        above = goal_by_hand(twin, z + nudges, l2, total_variation)
        below = goal_by_hand(twin, z - nudges, l2, total_variation)
    slope = ((above - below) / 2e-6).view(z.shape)
    torch.testing.assert_close((found.z - start).double() / 2, slope, rtol=1e-4, atol=1e-6)
    assert network is None or slope.abs().max() > 1e-3


@pytest.mark.parametrize("fourier", [True, False])
def test_a_normalised_step_is_as_long_as_step_size(fourier: bool) -> None:
    classifier = wrap(unit_of(1, 0, 0))
    sensitive = torch.tensor([1e-6, 1.0, 1e6])
    found = [
        ascend(
            classifier,
            lambda x: sensitive * x.square().mean((1, 2, 3)),
            count=3,
            steps=steps,
            step_size=0.07,
            fourier=fourier,
            start=torch.randn((3, 3, 16, 9, 2) if fourier else (3, 3, 16, 16), generator=seeded(0)),
        ).z
        for steps in (1, 2)
    ]
    lengths = (found[1] - found[0]).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(lengths, torch.full((3,), 0.07), rtol=1e-4, atol=0)


@pytest.mark.parametrize("side", [7, 8])
def test_spectrum_by_hand(side: int) -> None:
    spectrum = torch.randn(2, 3, side, side // 2 + 1, 2, generator=seeded(0))
    values = spectrum.double().numpy()
    scaled = np.zeros(spectrum.shape[:-1], dtype=complex)
    for row in range(side):
        for column in range(side // 2 + 1):
            cycles = min(row, side - row), column  # in the whole picture; later rows are negative
            frequency = max(np.hypot(*cycles) / side, 1 / side)
            real, imaginary = values[:, :, row, column, 0], values[:, :, row, column, 1]
            scaled[:, :, row, column] = (real + 1j * imaginary) / frequency
    expected = np.fft.irfft2(scaled, (side, side), norm="ortho") / 4
    found = maximize._from_spectrum(spectrum, side)
    assert found.shape == (2, 3, side, side)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_the_picture_is_what_z_says(side: int, fourier: bool, decorrelate: bool) -> None:
    classifier = wrap(make("Functional"), size=8)
    found = class_model(
        classifier, [0, 1], steps=3, size=side, fourier=fourier, decorrelate=decorrelate
    )
    z = maximize._from_spectrum(found.z, side).numpy() if fourier else found.z.numpy()
    if decorrelate:
        light = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
        light /= max(np.linalg.norm(light[:, column]) for column in range(3))
        z = (light @ z.reshape(2, 3, -1)).reshape(z.shape)
    x = (1 / (1 + np.exp(-z)) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert found.images.shape == (2, 3, side, side)
    np.testing.assert_allclose(found.images.numpy(), x, atol=1e-5)


def test_climbing_on_is_climbing_further() -> None:
    classifier = wrap(make("Functional"))
    whole = class_model(classifier, [0, 3], steps=7, generator=seeded(4))
    generator = seeded(4)
    first = class_model(classifier, [0, 3], steps=3, generator=generator)
    kept = first.z.clone()
    second = class_model(classifier, [0, 3], steps=4, generator=generator, start=first.z)
    assert torch.equal(second.images, whole.images)
    assert torch.equal(torch.cat([first.scores[:-1], second.scores]), whole.scores)
    assert torch.equal(first.z, kept)


# The transformation --------------------------------------------------------------------------


def test_transformations_keep_within_their_limits_and_reach_them() -> None:
    generator = seeded(0)
    drawn = [maximize._random_transform(0.25, 12.0, 0.1, generator) for _ in range(500)]
    matrices = torch.stack(drawn)
    scale = torch.linalg.det(matrices[:, :, :2]).sqrt()
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg()
    for found, limit in ((matrices[:, :, 2], 0.25), (angle, 12.0), (scale - 1, 0.1)):
        assert 0.95 * limit < found.max() <= limit * (1 + 1e-4)
        assert -0.95 * limit > found.min() >= -limit * (1 + 1e-4)
        assert abs(found.mean()) < 0.1 * limit
    turned = matrices[:, :, :2] / scale[:, None, None]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(2).expand(500, 2, 2))


def test_no_transformation_is_the_identity() -> None:
    transform = maximize._random_transform(0.0, 0.0, 0.0, seeded(0))
    assert torch.equal(transform, torch.eye(2, 3))
    images = batch()
    assert torch.equal(maximize._move(images, transform), images)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, 2)])
def test_a_whole_shift_rolls_the_interior(right: int, down: int) -> None:
    images = torch.randn(2, 3, 16, 16, generator=seeded(0))
    transform = torch.eye(2, 3)
    transform[:, 2] = torch.tensor([right, down]) * 2 / 16
    moved = maximize._move(images, transform)
    rolled = images.roll((-down, -right), (2, 3))
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(moved[inside], rolled[inside], rtol=0, atol=1e-4)
    assert moved.isfinite().all()


def places(classifier: Classifier, size: int = 33, **options: float) -> Tensor:
    """Where the model saw a spot at (8, 0) pixels from the centre: x and y, (steps, 2)."""
    axis = torch.arange(size) - (size - 1) / 2
    spot = torch.exp(-((axis[None] - 8) ** 2 + axis[:, None] ** 2) / 4)
    start = (16 * spot - 8).expand(1, 3, size, size)
    seen = []

    def score(x: Tensor) -> Tensor:
        light = pixels(classifier, x)[0].detach().mean(0)
        weight = light / light.sum()
        seen.append(torch.stack([(weight.sum(0) * axis).sum(), (weight.sum(1) * axis).sum()]))
        return x.mean((1, 2, 3))

    limits = {**STILL, **options}
    ascend(classifier, score, steps=60, step_size=0, size=size, start=start, **PIXELS, **limits)
    return torch.stack(seen[:-1])


def test_the_model_sees_the_picture_moved_as_promised() -> None:
    classifier = wrap(unit_of(1, 1, 1))
    home = places(classifier)
    assert (home - home[0]).abs().max() == 0
    x, y = (places(classifier, jitter=3) - home).T
    for moved in (x, y):
        assert 2.5 < moved.abs().max() < 3.1
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.5
    turned = places(classifier, rotation=20)
    angles = torch.atan2(turned[:, 1], turned[:, 0]).rad2deg()
    assert 17 < angles.abs().max() < 20.5
    assert (turned.norm(dim=1) - home.norm(dim=1)).abs().max() < 0.1
    scales = places(classifier, scaling=0.2)[:, 0] / home[:, 0]
    assert 1 / 1.21 < scales.min() < 1 / 1.15
    assert 1 / 0.85 < scales.max() < 1 / 0.78


# What each switch does -----------------------------------------------------------------------


def small() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallResNet(5, (8, 8, 8, 8)).eval()
    return wrap(model, size=32)


def fine(images: Tensor) -> float:
    """The share of energy at more than a quarter of a cycle a pixel."""
    power = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square()
    frequency = torch.fft.fftfreq(images.shape[-1])
    high = frequency[:, None].square() + frequency.square() > 0.25**2
    return float((power * high).sum() / power.sum())


def variation(images: Tensor) -> float:
    return float(images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean())


def square(images: Tensor) -> float:
    return float(images.square().mean())


@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize(("option", "measure"), [("l2", square), ("total_variation", variation)])
def test_a_penalty_lowers_what_it_punishes(
    option: str, measure: Callable[[Tensor], float], fourier: bool
) -> None:
    classifier = small()

    def measured(weight: float) -> float:
        options: dict[str, Any] = {option: weight, "fourier": fourier, "steps": 24}
        return measure(
            activation_maximization(classifier, "layer2.0.conv1", [0, 1, 2], **options).images
        )

    none, some, much = measured(0.0), measured(2.0), measured(20.0)
    assert much < 0.7 * none
    assert much < some < none


def test_jitter_and_the_spectrum_keep_fine_patterns_out() -> None:
    classifier = small()

    def measured(**options: Any) -> float:
        found = activation_maximization(
            classifier, "layer2.0.conv1", [0, 1, 2], steps=24, **{**STILL, **options}
        )
        return fine(found.images)

    assert measured(fourier=False, jitter=4) < 0.8 * measured(fourier=False)
    assert measured(fourier=True) < 0.5 * measured(fourier=False)


@pytest.mark.parametrize("layer", ["layer2.0.conv1", "fc"])
def test_diversity_makes_the_pictures_differ(layer: str) -> None:
    classifier = small()

    def measured(diversity: float) -> float:
        """The mean cosine of two pictures' Gram matrices, pair by pair."""
        found = activation_maximization(classifier, layer, [1, 1, 1], diversity=diversity, steps=24)
        maps: dict[str, Tensor] = {}
        handle = classifier.model.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output: maps.update(here=output.detach())
        )
        classifier.model(found.images)
        handle.remove()
        grams = []
        for one in maps["here"]:
            flat = one.reshape(len(one), -1)
            grams.append(torch.stack([(a * b).sum() for a in flat for b in flat]))
        pairs = [(0, 1), (0, 2), (1, 2)]
        return float(sum(F.cosine_similarity(grams[i], grams[j], dim=0) for i, j in pairs) / 3)

    assert measured(10.0) < measured(0.0) - 0.05


def test_diversity_of_one_picture_is_nothing() -> None:
    classifier = small()
    alone = activation_maximization(classifier, "layer2.0.conv1", 0, steps=3, diversity=5.0)
    plain = activation_maximization(classifier, "layer2.0.conv1", 0, steps=3)
    torch.testing.assert_close(alone.images, plain.images, rtol=0, atol=1e-3)


# Promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.05, 30.0])
def test_every_pixel_is_a_possible_colour(step_size: float) -> None:
    classifier = small()
    images = class_model(classifier, [0, 1], steps=10, step_size=step_size).images
    assert (images >= classifier.black(images) - 1e-5).all()
    assert (images <= classifier.white(images) + 1e-5).all()
    picture = classifier.to_image(images[0])
    assert picture.shape == (32, 32, 3)
    back = classifier.to_input(picture)[0]
    assert ((back - images[0]).abs() <= 0.501 / 255 / torch.tensor(STD).view(3, 1, 1)).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_scores_are_those_of_the_pictures(network: str) -> None:
    classifier = wrap(make(network).eval(), size=8)
    layer = "conv" if network in ("InPlaceFirst", "Reused") else "conv2"
    found = activation_maximization(classifier, layer, [4, 0, 4], steps=6, **STILL)
    assert found.images.shape == (3, 3, 8, 8)
    assert found.scores.shape == (7, 3)
    assert not found.images.requires_grad
    assert not found.scores.requires_grad
    assert not found.z.requires_grad
    rows = response(classifier, layer, found.images)[range(3), [4, 0, 4]]
    torch.testing.assert_close(found.scores[-1], rows, rtol=1e-4, atol=1e-5)
    assert (found.scores[-1] > found.scores[0]).all()
    assert (found.images[0] != found.images[2]).any()
    assert (found.images < 0).any()  # an in-place ReLU at the entrance would have removed these


def test_the_generator_decides_alone() -> None:
    classifier = small()

    def found(generator: torch.Generator | None = None) -> Ascent:
        return class_model(classifier, 1, steps=3, generator=generator)

    torch.manual_seed(4)
    first = found(seeded(7))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = found(seeded(7))
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), before)
    assert (found(seeded(8)).images != first.images).any()
    assert torch.equal(found().images, found(seeded(0)).images)
    generator = seeded(7)
    found(generator)
    assert not torch.equal(generator.get_state(), seeded(7).get_state())
    assert (found(generator).images != first.images).any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    classifier = small()
    for options in (PIXELS, {}):
        expected = class_model(classifier, 1, steps=3, **options)
        with mode():
            found = class_model(classifier, 1, steps=3, **options)
            direction = torch.eye(5)[1]
            along = activation_maximization(classifier, "fc", direction, steps=3, **options)
        assert torch.equal(found.images, expected.images)
        torch.testing.assert_close(along.images, expected.images, rtol=0, atol=1e-4)
        assert not found.images.is_inference()


def test_another_size() -> None:
    classifier = small()
    assert class_model(classifier, 0, steps=2, size=21).images.shape == (1, 3, 21, 21)


# A silent start ------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("fourier", [True, False])
def test_a_unit_that_is_silent_at_first_is_found(fourier: bool, l2: float) -> None:
    classifier = wrap(unit_of(1, 0, 0, bias=-1.5))
    options: dict[str, Any] = {"fourier": fourier, "decorrelate": False, "l2": l2, **STILL}
    # At the usual strength of the noise the unit answers nothing and gives no direction.
    shape = (1, 3, 16, 9, 2) if fourier else (1, 3, 16, 16)
    faint = 0.1 * torch.randn(shape, generator=seeded(0))
    quiet = activation_maximization(classifier, "relu", 0, start=faint, steps=20, **options)
    assert quiet.scores.max() == 0
    found = activation_maximization(classifier, "relu", 0, steps=20, **options)
    assert found.scores[0] > 0
    assert found.scores[-1] > 2 * found.scores[0]


def test_only_the_silent_picture_starts_stronger() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1)
        model.get_parameter("0.bias").copy_(torch.tensor([0.0, -2.5]))
    found = activation_maximization(wrap(model), "1", [1, 0], steps=1, step_size=0, **PIXELS)
    noise = torch.randn(2, 3, 16, 16, generator=seeded(0))
    strengths = (found.z / noise).mean((1, 2, 3))
    torch.testing.assert_close(strengths, torch.tensor([1.0, 0.1]))


@pytest.mark.parametrize("normalize_gradient", [True, False])
def test_a_dead_unit_gives_noise(normalize_gradient: bool) -> None:
    classifier = wrap(unit_of(1, 1, 1, bias=-1000))
    found = activation_maximization(
        classifier, "relu", 0, steps=4, normalize_gradient=normalize_gradient
    )
    assert found.images.isfinite().all()
    assert found.images.std() > 0
    assert (found.scores == 0).all()


def test_a_score_that_does_not_look_gives_noise() -> None:
    found = ascend(wrap(unit_of(1, 1, 1)), nothing, count=2, steps=3)
    further = ascend(wrap(unit_of(1, 1, 1)), nothing, count=2, steps=1, start=found.z)
    assert torch.equal(found.z, further.z)
    assert found.images.isfinite().all()
    assert (found.scores == 0).all()


# Classes -------------------------------------------------------------------------------------


class RedTwice(nn.Module):
    """Two classes: the mean red, and twice of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].mean((1, 2))[:, None] * self.weight


def test_the_posterior_of_a_class_may_rise_as_its_score_falls() -> None:
    classifier = wrap(RedTwice(), classes=2)
    options = {"steps": 40, "step_size": 0.3, **STILL, **PIXELS}
    high = class_model(classifier, 0, **options)
    sure = class_model(classifier, 0, of="posterior", **options)
    assert pixels(classifier, high.images)[0, 0].min() > 0.95
    assert pixels(classifier, sure.images)[0, 0].max() < 0.05
    with torch.no_grad():
        logits, other = classifier.model(high.images), classifier.model(sure.images)
    torch.testing.assert_close(high.scores[-1], logits[:, 0])
    torch.testing.assert_close(sure.scores[-1].exp(), other.softmax(1)[:, 0])


def test_several_classes_get_a_picture_each() -> None:
    classifier = wrap(make("Functional"))
    targets = [4, np.int64(0), 2]
    found = class_model(classifier, targets, steps=12, **STILL)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = classifier.model(found.images)
    torch.testing.assert_close(found.scores[-1], logits[range(3), [4, 0, 2]], rtol=1e-4, atol=1e-4)
    assert (found.scores[-1] > found.scores[0]).all()
    alone = class_model(classifier, [4], steps=1)
    assert alone.images.shape == (1, 3, 16, 16)


# The model comes back as it was --------------------------------------------------------------

RUNS: dict[str, Callable[[Classifier], Any]] = {
    "unit": lambda c: activation_maximization(c, "fc", [0, 0], steps=2, diversity=1.0),
    "class": lambda c: class_model(c, 2, steps=2, of="posterior"),
    "lucent": lambda c: maximize.lucent(c, "fc", 0, steps=2),
}
every_run = pytest.mark.parametrize("run", RUNS)


@every_run
@pytest.mark.parametrize("network", NETWORKS)
def test_leaves_everything_as_it_was(run: str, network: str) -> None:
    model = awkward(network)
    modules = [id(module) for module in model.modules()]
    with unchanged(model, batch()):
        RUNS[run](wrap(model, size=8))
    assert [id(module) for module in model.modules()] == modules


@every_run
@pytest.mark.parametrize("network", NETWORKS)
def test_leaves_everything_as_it_was_after_an_error(run: str, network: str) -> None:
    model = awkward(network)
    calls = []

    def fail(*_: object) -> None:
        calls.append(torch.rand(1))
        if len(calls) == 3:
            raise ZeroDivisionError("in the middle")

    list(model.children())[-1].register_forward_hook(fail)
    with unchanged(model, batch()), pytest.raises(ZeroDivisionError, match="in the middle"):
        RUNS[run](wrap(model, size=8))


@every_run
def test_says_nothing(run: str, capfd: pytest.CaptureFixture[str]) -> None:
    RUNS[run](wrap(make("Functional"), size=8))
    assert capfd.readouterr() == ("", "")


# Lucent --------------------------------------------------------------------------------------


def test_lucent_wants_pure_red_too() -> None:
    classifier = wrap(unit_of(1, -1, 0), size=48)
    images = maximize.lucent(classifier, "conv", 0, steps=100)
    assert images.shape == (1, 3, 48, 48)
    red, green, _ = pixels(classifier, images)[0]
    assert red.mean() > green.mean() + 0.2
    assert (images >= classifier.black(images) - 1e-5).all()
    assert (images <= classifier.white(images) + 1e-5).all()


def test_the_seed_of_lucent_decides_alone() -> None:
    classifier = small()
    found = []
    for seed, elsewhere in ((0, 4), (0, 5), (1, 5)):
        torch.manual_seed(elsewhere)
        random.seed(elsewhere)
        np.random.seed(elsewhere)  # noqa: NPY002
        found.append(maximize.lucent(classifier, "layer2.0.conv1", 3, steps=3, seed=seed))
    assert torch.equal(found[0], found[1])
    assert (found[1] != found[2]).any()


def test_lucent_follows_the_type_of_the_model() -> None:
    classifier = small()
    classifier.model.double()
    image = maximize.lucent(classifier, "layer2.0.conv1", 3, steps=2)
    assert image.dtype == torch.float64
    torch.testing.assert_close(
        image.float(), maximize.lucent(small(), "layer2.0.conv1", 3, steps=2), rtol=0, atol=1e-3
    )
    classifier.model.bfloat16()
    image = maximize.lucent(classifier, "layer2.0.conv1", 3, steps=2)
    assert image.dtype == torch.bfloat16
    assert image.isfinite().all()


@pytest.mark.references
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_lucent_itself_leaves_hooks_and_gradients() -> None:
    """When this fails, Lucent was mended, and our wrapper has less to do."""
    from lucent.optvis import render

    model = make("Functional").eval()
    state, numpy_state = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            render.render_vis(model, "conv1:0", thresholds=(1,), show_image=False)
            drawn_torch = not torch.equal(torch.get_rng_state(), before)
        drawn = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        drawn_numpy = not np.array_equal(drawn["key"], numpy_state["state"]["key"]) or (
            drawn["pos"] != numpy_state["state"]["pos"]
        )
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
    assert len(model.get_submodule("conv1")._forward_hooks) == 1
    assert model.get_parameter("conv1.weight").grad is not None
    assert drawn_torch
    assert drawn_numpy


@pytest.mark.references
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_spectrum_and_colours_are_those_of_lucent() -> None:
    from lucent.optvis.param import color, spatial

    (spectrum,), image = spatial.fft_image((1, 3, 12, 12))
    spectrum = spectrum.detach().cpu()
    torch.testing.assert_close(maximize._from_spectrum(spectrum, 12), image().detach().cpu())
    np.testing.assert_allclose(maximize.COLORS, color.color_correlation_normalized, rtol=1e-6)


# Networks of the course ----------------------------------------------------------------------


@pytest.mark.slow
def test_resnet18() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None).eval()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    classifier = Classifier("resnet18", model, tuple(map(str, range(1000))), 64, mean, std)
    layer = "layer2.0.conv1"
    found = activation_maximization(classifier, layer, 5, steps=16)
    assert found.scores[-1] > found.scores[0] + 0.1
    by_lucent = response(classifier, layer, maximize.lucent(classifier, layer, 5, steps=16))
    assert by_lucent[0, 5] > found.scores[0]


@pytest.mark.slow
def test_the_picture_beats_every_scene() -> None:
    classifier = models.load("scenes", device="cpu")
    inputs, units = classifier.inputs(Scenes(64, seed=4321)), [3, 11, 23]
    for layer in ("layer2.1", "layer3.1"):
        best = response(classifier, layer, inputs).amax(0)[units]
        assert (activation_maximization(classifier, layer, units).scores[-1] > best).all()


# Bad input -----------------------------------------------------------------------------------

# The call, the start of the message, and how often the model had to run to know.
BAD: dict[str, tuple[Callable[[Classifier], Any], str, int]] = {
    "layer": (
        lambda c: activation_maximization(c, "conv3", 0),
        "layer: the model has no layer 'conv3'; near it are conv2, conv1",
        0,
    ),
    "layer of lucent": (lambda c: maximize.lucent(c, "fd", 0), "layer: .* near it are fc", 0),
    "no unit": (lambda c: activation_maximization(c, "conv1", []), "unit must be .* is empty", 0),
    "position": (
        lambda c: activation_maximization(c, "conv1", 0, position=(0, 8)),
        r"position is \(0, 8\); the maps of 'conv1' are 8 × 8",
        1,
    ),
    "negative position": (
        lambda c: activation_maximization(c, "conv1", 0, position=(-1, 0)),
        "position is",
        1,
    ),
    "option": (
        lambda c: activation_maximization(c, "conv1", 0, sharpness=1),
        ".*unexpected keyword argument 'sharpness'",
        0,
    ),
    "option of a class": (
        lambda c: class_model(c, 0, sharpness=1),
        ".*unexpected keyword argument 'sharpness'",
        0,
    ),
    "of": (
        lambda c: class_model(c, 0, of="logit"),
        "of: there is no 'logit'; choose one of score, posterior",
        0,
    ),
    "class": (lambda c: class_model(c, 5), "target: there is no class 5; .* 0 to 4", 0),
    "one class": (lambda c: class_model(c, [0, -1]), "target: there is no class -1", 0),
    "bool class": (lambda c: class_model(c, True), "target must be .* not True", 0),
    "float class": (lambda c: class_model(c, 1.0), "target must be .* not 1.0", 0),  # type: ignore[arg-type]
    "no class": (lambda c: class_model(c, []), "target must be .* is empty", 0),
    "start": (
        lambda c: class_model(c, 0, start=torch.zeros(1, 3, 8, 8)),
        r"start must be the z .* \(1, 3, 8, 5, 2\), but its shape is \(1, 3, 8, 8\)",
        0,
    ),
}
for UNIT in (6, -1, 1.0, True, [0, 6], [0.5], "ear", None):
    BAD[f"unit {UNIT}"] = (
        lambda c, unit=UNIT: activation_maximization(c, "conv1", unit),  # type: ignore[misc]
        "unit",
        1,
    )
    BAD[f"unit {UNIT} of lucent"] = (
        lambda c, unit=UNIT: maximize.lucent(c, "conv1", unit),  # type: ignore[misc]
        "unit",
        1,
    )
for DIRECTION in (torch.ones(5), torch.ones(6, dtype=torch.long), torch.ones(1, 6)):
    BAD[f"direction {DIRECTION.dtype} {tuple(DIRECTION.shape)}"] = (
        lambda c, unit=DIRECTION: activation_maximization(c, "conv1", unit),  # type: ignore[misc]
        r"unit as a direction must be a float tensor \(6,\)",
        1,
    )
NUMBERS = ("step_size", "l2", "total_variation", "jitter", "rotation", "scaling", "diversity")
for NAME in NUMBERS:
    for VALUE in (-0.1, float("nan"), float("inf"), True, "1"):
        BAD[f"{NAME} {VALUE!r}"] = (
            lambda c, options={NAME: VALUE}: activation_maximization(c, "conv1", 0, **options),  # type: ignore[misc]
            f"{NAME} (is {VALUE!r}; it must be finite|must be a number, not {VALUE!r})",
            0,
        )
for NAME, WRONG in (("steps", (0, -1, 2.5, True, "8")), ("size", (0, 1, -8, 8.0))):
    for WHOLE in WRONG:
        BAD[f"{NAME} {WHOLE!r}"] = (
            lambda c, options={NAME: WHOLE}: class_model(c, 0, **options),  # type: ignore[misc]
            f"{NAME} (is {WHOLE!r}; it must be at least|must be a whole number, not {WHOLE!r})",
            0,
        )
for WHOLE in (0, 2.5):
    BAD[f"steps {WHOLE!r} of lucent"] = (
        lambda c, steps=WHOLE: maximize.lucent(c, "conv1", 0, steps=steps),  # type: ignore[misc]
        f"steps (is {WHOLE!r}; it must be at least 1|must be a whole number, not {WHOLE!r})",
        0,
    )


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, message, passes = BAD[case]
    model = make("Functional")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.conv1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as error:
        call(wrap(model, size=8))
    assert "\n" not in str(error.value)
    assert ". " not in str(error.value)
    assert len(calls) <= 2 * passes


@pytest.mark.parametrize("network", [make("Functional"), "scenes", None])
def test_bad_classifier(network: Any) -> None:
    for call in (
        lambda: activation_maximization(network, "conv1", 0),
        lambda: class_model(network, 0),
        lambda: ascend(network, nothing),
        lambda: maximize.lucent(network, "conv1", 0),
    ):
        with pytest.raises(TypeError, match=r"^classifier must be a Classifier, .*, not ") as error:
            call()
        assert type(network).__name__ in str(error.value)


def test_a_layer_without_maps() -> None:
    class Words(nn.Module):
        """Its first layer gives words (N, words, features); its second never runs."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.spare = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.words(x.flatten(1, 2)).mean(1)

    classifier = wrap(Words(), size=8)
    with pytest.raises(ValueError, match=r"^layer 'words' gives \(1, 24, 4\); units are \(N, C"):
        activation_maximization(classifier, "words", 0)
    with pytest.raises(ValueError, match="^layer 'spare' did not run"):
        activation_maximization(classifier, "spare", 0)
    with pytest.raises(ValueError, match="^layer 'spare' did not run"):
        maximize.lucent(classifier, "spare", 0)
