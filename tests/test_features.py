import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.models.feature_extraction import create_feature_extractor

from course_utils import layers
from course_utils.networks import Classifier, SmallResNet
from course_utils.units import concepts, features
from course_utils.units.features import (
    activation_x_gradient,
    feature_maps,
    responses,
    top_activating,
)
from course_utils.worlds.scenes import Scenes, render, standard
from tests.networks import NETWORKS, batch, make

DOUBLE = torch.float64


def channel(model: nn.Module, layer: str, images: Tensor, unit: int) -> Tensor:
    """The maps of one unit, kept by a plain hook."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, inputs, output: kept.append(output.detach().clone())
    )
    with torch.no_grad():
        model.eval()(images.clone())
    handle.remove()
    return kept[-1][:, unit]


# Filters ---------------------------------------------------------------------------------------


def test_filters_that_read_colours_are_coloured() -> None:
    layer = nn.Conv2d(3, 2, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0, 1] = 4  # red
        layer.weight[0, 2, 1, 0] = -2  # blue taken away
    tiles = features.filters(layer)
    assert tiles.shape == (2, 2, 2, 3)
    assert tiles.dtype == np.uint8
    assert tiles[0, 0, 1].tolist() == [255, 128, 128]
    assert tiles[0, 1, 0].tolist() == [128, 128, 64]
    assert (tiles[1] == 128).all()


def test_other_filters_show_the_mean_over_their_inputs() -> None:
    layer = nn.Conv2d(4, 3, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :, 0, 0] = torch.tensor([3.0, 1, 0, 0])
        layer.weight[0, :, 1, 1] = torch.tensor([-4.0, 0, 0, 0])
        layer.weight[1, :, 0, 0] = torch.tensor([1.0, -1, 5, -5])
    tiles = features.filters(layer).astype(int)
    assert tiles.shape == (3, 2, 2, 3)
    (red, _, blue), (cold_red, _, cold_blue) = tiles[0, 0, 0], tiles[0, 1, 1]
    assert red > blue + 50
    assert cold_blue > cold_red + 50
    assert (tiles[1:] == tiles[2, 0, 0]).all()  # a mean of zero, as a kernel of zeros


def test_filters_of_groups_have_no_colours() -> None:
    """Each kernel reads three channels, but of six: they are not red, green and blue."""
    layer = nn.Conv2d(6, 2, 3, groups=2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 0] = 1
        layer.weight[:, 1] = -1
    assert len(np.unique(features.filters(layer).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("dtype", [DOUBLE, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 3, 5])
def test_filters_of_any_precision(dtype: torch.dtype, inputs: int) -> None:
    assert features.filters(nn.Conv2d(inputs, 2, 3, dtype=dtype)).shape == (2, 3, 3, 3)


# Feature maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_feature_maps_are_what_hooks_give(network: str) -> None:
    model, images = make(network), batch()
    maps = feature_maps(model, images)
    assert list(maps) == list(layers.conv_layers(model))
    for name, found in maps.items():
        for unit in range(found.shape[1]):
            assert torch.equal(found[:, unit], channel(model, name, images, unit))
        assert not found.requires_grad


def test_a_layer_before_an_in_place_relu_keeps_its_own_value() -> None:
    model: Any = make("Residual").eval()
    maps = feature_maps(model, batch(), ["bn1", "conv1"])
    assert list(maps) == ["bn1", "conv1"]
    assert maps["bn1"].min() < 0
    assert torch.equal(maps["bn1"], model.bn1(maps["conv1"]).detach())


def test_the_images_are_not_changed() -> None:
    images = batch()
    feature_maps(make("InPlaceFirst"), images)  # an in-place ReLU is its first layer
    responses(make("InPlaceFirst"), "conv", images)
    activation_x_gradient(make("InPlaceFirst"), "fc", 0, "conv", images)
    assert torch.equal(images, batch())


def test_one_layer_by_its_name() -> None:
    assert list(feature_maps(make("Residual"), batch(), "bn1")) == ["bn1"]


def test_the_first_layer_by_hand() -> None:
    """The maps of the real first layer, from weight, stride, padding and normalisation."""
    torch.manual_seed(0)
    model = SmallResNet(5, (8, 8, 12, 16)).double().eval()
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.3])
    normalised = ((picture / 255 - mean) / std).transpose(2, 0, 1)
    images = torch.from_numpy(normalised)[None]
    maps = feature_maps(model, images, ["conv1"])["conv1"]
    weight = model.conv1.weight.detach().numpy()
    padded = np.pad(normalised, ((0, 0), (3, 3), (3, 3)))
    by_hand = np.empty((8, 10, 12))
    for row in range(10):
        for column in range(12):
            window = padded[:, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
            by_hand[:, row, column] = (weight * window).sum((1, 2, 3))
    np.testing.assert_allclose(maps[0].numpy(), by_hand, rtol=1e-10, atol=1e-12)
    bare = F.conv2d(images, model.conv1.weight)
    assert bare.shape != maps.shape


def test_feature_maps_are_those_of_torchvisions_extractor() -> None:
    """Lecture 02 shows both; torchvision follows the computation, the library hooks the layers."""
    torch.manual_seed(0)
    model = SmallResNet(5, (8, 8, 12, 16)).double().eval()
    names, images = list(layers.conv_layers(model)), torch.randn(2, 3, 32, 32, dtype=DOUBLE)
    ours = feature_maps(model, images, names)
    theirs = create_feature_extractor(model, names)(images)
    assert list(ours) == names
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


# Responses and the images that a unit answers to most ------------------------------------------


class Pictures(Dataset[Tensor]):
    """Images made when they are asked for; counts how many of them exist at the same time."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.alive, self.most = images, 0, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index].clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.forget)
        return image

    def forget(self) -> None:
        self.alive -= 1


POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean((1, 2)),
    "max": lambda maps: maps.amax((1, 2)),
    "sum": lambda maps: maps.sum((1, 2)),
}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("kind", [Tensor, list, Pictures])
def test_top_activating_equals_a_slow_twin(
    kind: Callable[[Tensor], Any], pool: str, batch_size: int
) -> None:
    model, images, unit = make("Functional").double(), batch(11, dtype=DOUBLE), 4
    given = images if kind is Tensor else kind(images)
    options: dict[str, Any] = {"pool": pool, "batch_size": batch_size}
    found = top_activating(model, "conv2", unit, given, 5, **options)
    maps = channel(model, "conv2", images, unit)  # (11, 2, 2) of images (11, 3, 8, 8)
    scores = POOLED[pool](maps).tolist()
    order = sorted(range(11), key=lambda i: (-scores[i], i))[:5]
    assert found.indices.tolist() == order
    assert found.scores.tolist() == pytest.approx([scores[i] for i in order], rel=1e-12)
    for i, (row, column) in zip(order, found.positions.tolist(), strict=True):
        assert row % 4 == column % 4 == 2  # the centre of a cell of 4 × 4 pixels
        assert maps[i, row // 4, column // 4] == maps[i].max()
    rows = responses(model, "conv2", given, **options)
    assert rows.shape == (11, 6)
    assert rows[:, unit].tolist() == pytest.approx(scores, rel=1e-12)


def test_responses_of_logits_and_of_a_layer_that_runs_twice() -> None:
    model, images = make("Reused").double(), batch(5, dtype=DOUBLE)
    for pool in POOLED:
        logits = responses(model, "fc", images, pool=pool)
        torch.testing.assert_close(logits, model(images).detach())
    last = torch.stack([channel(model, "conv", images, u).mean((1, 2)) for u in range(6)], 1)
    torch.testing.assert_close(responses(model, "conv", images), last)
    found = top_activating(model, "fc", 2, images, 1)
    assert found.indices.item() == logits[:, 2].argmax()
    assert found.positions.tolist() == [[4, 4]]


def identity(channels: int = 1) -> nn.Sequential:
    """A network whose only layer gives the image back."""
    layer = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.eye(channels)[:, :, None, None]
    return nn.Sequential(layer)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_of_equal_scores_the_earlier_image_comes_first(batch_size: int) -> None:
    levels = torch.tensor([1.0, 2, 0, 2, 1, 2, 1, 0])
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    for k in range(1, 9):
        found = top_activating(identity(), "0", 0, images, k, batch_size=batch_size)
        assert found.indices.tolist() == [1, 3, 5, 0, 4, 6, 2, 7][:k]
        assert found.scores.tolist() == [2, 2, 2, 1, 1, 1, 0, 0][:k]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_only_a_batch_of_images_exists_at_a_time(batch_size: int) -> None:
    model, pictures = make("Residual"), Pictures(batch(23))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    top_activating(model, "bn1", 0, pictures, 9, batch_size=batch_size)
    assert sum(sizes) == 23
    assert max(sizes) == pictures.most == batch_size
    assert pictures.alive == 0


class Stripes(nn.Module):
    """One unit for vertical stripes: two gratings a quarter of a period apart, squared, summed."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.gratings = nn.Conv2d(3, 2, 2 * period, stride=4, bias=False)
        self.unit = nn.Conv2d(2, 1, 1, bias=False)
        x = torch.arange(2 * period) - period + 0.5
        envelope = torch.exp(-2 * (x / period) ** 2)
        waves = torch.stack([f(2 * math.pi * x / period) for f in (torch.cos, torch.sin)])
        kernels = waves[:, None] * envelope * envelope[:, None]
        kernels -= kernels.mean((1, 2), keepdim=True)  # silent on an even surface
        with torch.no_grad():
            self.gratings.weight[:] = kernels[:, None] / 3
            self.unit.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.gratings(x).square())


def test_a_stripe_matcher_finds_the_striped_animals() -> None:
    textures = ("plain", "stripes", "spots", "patches")
    places = ((0.7, "savanna"), (0.8, "meadow"), (0.9, "snow"))
    specs = [
        standard("zebra", texture=texture, size=size, background=place, seed=seed)
        for seed, (size, place) in enumerate(places)
        for texture in textures
    ]
    classifier = Classifier("stripes", Stripes(period=8).eval(), (), 128)
    images = classifier.inputs([render(spec).image for spec in specs])
    found = top_activating(classifier.model, "unit", 0, images, 3)
    assert [specs[i].texture for i in found.indices] == ["stripes"] * 3
    # … and it finds them for the stripes: of the same scenes without them it likes others.
    bare = classifier.inputs([render(spec.without("texture")).image for spec in specs])
    assert responses(classifier.model, "unit", bare).max() < found.scores.min()


@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("corner", [(0, 0), (0, 40), (40, 0), (40, 40)])
def test_positions_are_where_the_stripes_are(corner: tuple[int, int], pool: str) -> None:
    row, column = corner
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 10
    wave = 2 * (torch.arange(24) % 8 < 4) - 1.0
    images[4, :, row : row + 24, column : column + 24] += wave  # vertical
    images[2, :, row : row + 24, column : column + 24] += wave[:, None]  # horizontal
    found = top_activating(Stripes(period=8), "unit", 0, images, 1, pool=pool)
    assert found.indices.tolist() == [4]
    ((down, right),) = found.positions.tolist()
    assert row <= down < row + 24
    assert column <= right < column + 24


def test_positions_in_pictures_that_are_not_square() -> None:
    images = torch.zeros(2, 1, 6, 10)
    images[0, 0, 1, 9] = images[1, 0, 5, 2] = 1
    found = top_activating(identity(), "0", 0, images, 2)
    assert found.positions.tolist() == [[1, 9], [5, 2]]


@pytest.mark.parametrize("number", [np.int64, np.int32])
def test_numbers_of_numpy(number: Callable[[int], Any]) -> None:
    model, images = make("Residual"), batch()
    ours = top_activating(model, "bn1", number(2), images, number(2))
    theirs = top_activating(model, "bn1", 2, images, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.bfloat16])
def test_models_of_another_precision(dtype: torch.dtype) -> None:
    model, images = make("Residual").to(dtype), batch(dtype=dtype)
    assert responses(model, "bn1", images).dtype == dtype
    found = top_activating(model, "bn1", 0, list(images), 2)
    expected = feature_maps(model, images, ["bn1"])["bn1"][:, 0].flatten(1).mean(1)
    assert found.scores.tolist() == expected.sort(descending=True).values[:2].tolist()
    assert activation_x_gradient(model, "conv2", 0, "conv1", images).dtype == dtype


def test_images_that_require_gradients() -> None:
    model, images = make("Residual"), batch().requires_grad_()
    assert not responses(model, "bn1", images).requires_grad
    assert not top_activating(model, "bn1", 0, images, 2).scores.requires_grad
    assert not activation_x_gradient(model, "conv2", 0, "conv1", images).requires_grad
    assert images.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_grad_mode(mode: Callable[[], Any]) -> None:
    model = make("Residual")
    expected = activation_x_gradient(model, "conv2", 1, "conv1", batch())
    with mode():
        found = activation_x_gradient(model, "conv2", 1, "conv1", batch())
        responses(model, "bn1", batch())
    assert torch.equal(found, expected)


# Contributions ---------------------------------------------------------------------------------


@pytest.fixture
def two_layers() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).double().eval()


def test_contributions_of_a_linear_path_are_weight_times_activation(
    two_layers: nn.Sequential,
) -> None:
    images, unit, last = batch(dtype=DOUBLE), 2, two_layers[2]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    found = activation_x_gradient(two_layers, "2", unit, "1", images)
    maps = feature_maps(two_layers, images, ["1"])["1"]
    weight = last.weight.detach()
    alone = [F.conv2d(maps[:, i : i + 1], weight[unit, None, i, None]) for i in range(4)]
    torch.testing.assert_close(found, torch.stack([m.mean((1, 2, 3)) for m in alone], 1))
    # Together with the bias they are the unit …
    whole = responses(two_layers, "2", images)[:, unit]
    torch.testing.assert_close(found.sum(1) + last.bias[unit].detach(), whole)
    # … and each is what is lost without unit i.
    for i in range(4):
        with layers.ablate(two_layers, "1", i):
            left = responses(two_layers, "2", images)[:, unit]
        torch.testing.assert_close(whole - left, found[:, i])


def test_contributions_through_a_relu() -> None:
    """Activations 3, −1 and 2 read with weights 2, 5 and −1: what is cut off adds nothing."""
    model: Any = nn.Sequential(identity(3)[0], nn.ReLU(inplace=True), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[2].weight[:] = torch.tensor([2.0, 5, -1]).view(1, 3, 1, 1)
    image = torch.tensor([3.0, -1, 2]).view(1, 3, 1, 1)
    assert activation_x_gradient(model, "2", 0, "0", image).tolist() == [[6, 0, -2]]


def test_contributions_of_numbers_and_through_a_residual_sum() -> None:
    model: Any = make("Residual").double().eval()
    images = batch(dtype=DOUBLE)
    found = activation_x_gradient(model, "fc", 1, "dropout", images)
    pooled = responses(model, "dropout", images)
    torch.testing.assert_close(found, pooled * model.fc.weight[1].detach())
    # bn2 reaches the logit only through the sum and the ReLU: finite differences of a scaling.
    found = activation_x_gradient(model, "fc", 1, "bn2", images)
    own = feature_maps(model, images, ["bn2"])["bn2"]

    def scaled(i: int, factor: float) -> Tensor:
        handle = model.bn2.register_forward_hook(
            lambda _, inputs, output: output.index_copy(
                1, torch.tensor([i]), own[:, i : i + 1] * factor
            )
        )
        logits = responses(model, "fc", images)[:, 1]
        handle.remove()
        return logits

    for i in range(6):
        slope = (scaled(i, 1 + 1e-6) - scaled(i, 1 - 1e-6)) / 2e-6
        torch.testing.assert_close(found[:, i], slope, rtol=1e-5, atol=1e-8)


def test_each_image_has_its_own_contributions() -> None:
    model, images = make("Residual"), batch(4)
    together = activation_x_gradient(model, "conv2", 3, "conv1", images)
    alone = [activation_x_gradient(model, "conv2", 3, "conv1", image[None]) for image in images]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("network", "layer", "before"),
    [("Residual", "conv1", "conv2"), ("Residual", "bn1", "fc"), ("Reused", "conv", "relu")],
)
def test_before_must_be_on_the_way(network: str, layer: str, before: str) -> None:
    call = lambda: activation_x_gradient(make(network), layer, 0, before, batch())  # noqa: E731
    refused(call, ValueError, f"before: layer {before!r} is not on the way to {layer!r}")


# What is refused -------------------------------------------------------------------------------


def refused(call: Callable[[], object], error: type[Exception], words: str) -> None:
    """The call fails with this error, in one sentence that says this."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert ". " not in message.rstrip(".")


IMAGES = batch()
ON_IMAGES: dict[str, Callable[[Any, Any], object]] = {
    "feature_maps": lambda model, images: feature_maps(model, images, ["conv1"]),
    "responses": lambda model, images: responses(model, "conv1", images),
    "top_activating": lambda model, images: top_activating(model, "conv1", 0, images, 1),
    "contributions": lambda model, images: activation_x_gradient(
        model, "conv2", 0, "conv1", images
    ),
}


def nan() -> Tensor:
    images = batch()
    images[1, 0, 2, 2] = torch.nan
    return images


@pytest.mark.parametrize("function", ON_IMAGES)
@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (IMAGES[0], ValueError, "images must be (N, C, H, W)"),
        (IMAGES[None], ValueError, "images must be (N, C, H, W)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "images must be floating point"),
        (nan(), ValueError, "images must be finite"),
        (IMAGES.double(), ValueError, "images are torch.float64"),
        (IMAGES[:0], ValueError, "images must not be empty"),
        (None, TypeError, "images must be a tensor"),
        ("zebra.png", TypeError, "images must be a tensor"),
        ((image for image in IMAGES), TypeError, "images must be a tensor"),
        ({0: IMAGES[0]}, TypeError, "images must be a tensor"),
    ],
)
def test_bad_images(function: str, images: Any, error: type[Exception], words: str) -> None:
    refused(lambda: ON_IMAGES[function](make("Residual"), images), error, words)


@pytest.mark.parametrize("function", ["responses", "top_activating"])
@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], ValueError, "images must not be empty"),
        (Scenes(2, seed=0, resolution=16), TypeError, "images[0] must be a tensor (C, H, W)"),
        ([*IMAGES, np.zeros((3, 8, 8))], TypeError, "images[3] must be a tensor (C, H, W)"),
        ([IMAGES[:1], IMAGES[1:2]], TypeError, "not (1, 3, 8, 8)"),
        ([IMAGES[0], IMAGES[0, :, :4]], ValueError, "images[1] is (3, 4, 8)"),
        ([*nan()], ValueError, "images must be finite"),
        ([*IMAGES.double()], ValueError, "images are torch.float64"),
    ],
)
def test_bad_sequences(function: str, images: Any, error: type[Exception], words: str) -> None:
    refused(lambda: ON_IMAGES[function](make("Residual"), images), error, words)


@pytest.mark.parametrize("function", ON_IMAGES)
@pytest.mark.parametrize("model", [None, Classifier("tiny", make("Residual"), (), 16)])
def test_a_model_that_is_none(function: str, model: Any) -> None:
    call = lambda: ON_IMAGES[function](model, IMAGES)  # noqa: E731
    refused(call, TypeError, "model must be a torch.nn.Module")


WITH_A_LAYER: dict[str, Callable[[nn.Module, Any], object]] = {
    "feature_maps": lambda model, layer: feature_maps(model, IMAGES, [layer]),
    "responses": lambda model, layer: responses(model, layer, IMAGES),
    "top_activating": lambda model, layer: top_activating(model, layer, 0, IMAGES, 1),
    "contributions": lambda model, layer: activation_x_gradient(model, layer, 0, "conv1", IMAGES),
    "before": lambda model, before: activation_x_gradient(model, "conv2", 0, before, IMAGES),
    "concept_scores": lambda model, layer: concepts.concept_scores(
        Classifier("tiny", model, (), 16), layer, Scenes(2, 0, resolution=16)
    ),
}


@pytest.mark.parametrize("function", WITH_A_LAYER)
@pytest.mark.parametrize("layer", ["conv9", 3, None])
def test_a_layer_that_is_not_there(function: str, layer: Any) -> None:
    call = lambda: WITH_A_LAYER[function](make("Residual"), layer)  # noqa: E731
    refused(call, ValueError, f"the model has no layer {layer!r}")
    if layer == "conv9":
        refused(call, ValueError, "near it are conv2, conv1")


class Odd(nn.Module):
    """Layers without units: one gives a pair, one words (N, words, features), one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.pair = nn.MaxPool2d(2, return_indices=True)
        self.words = nn.Flatten(2)
        self.idle = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.pair(self.conv1(x))
        return self.conv2(self.words(x).unflatten(2, x.shape[2:])).mean((2, 3))


@pytest.mark.parametrize("function", ["responses", "top_activating", "contributions", "before"])
@pytest.mark.parametrize(
    ("layer", "words"),
    [("pair", "a tuple"), ("words", "gives (3, 4, 9)"), ("idle", "did not run")],
)
def test_a_layer_without_units(function: str, layer: str, words: str) -> None:
    refused(lambda: WITH_A_LAYER[function](Odd(), layer), ValueError, f"layer {layer!r}")
    refused(lambda: WITH_A_LAYER[function](Odd(), layer), ValueError, words)


def test_feature_maps_of_odd_layers() -> None:
    assert list(feature_maps(Odd(), IMAGES)) == ["conv1", "conv2"]
    refused(lambda: feature_maps(Odd(), IMAGES, ["pair"]), ValueError, "'pair' gives a tuple")


@pytest.mark.parametrize("function", [top_activating, activation_x_gradient])
@pytest.mark.parametrize(
    ("unit", "error"),
    [(-1, ValueError), (6, ValueError), (1.0, TypeError), (True, TypeError), ("0", TypeError)],
)
def test_a_unit_that_is_not_there(
    function: Callable[..., object], unit: Any, error: type[Exception]
) -> None:
    def call() -> object:
        if function is activation_x_gradient:
            return activation_x_gradient(make("Residual"), "conv2", unit, "conv1", IMAGES)
        return top_activating(make("Residual"), "conv2", unit, IMAGES, 1)

    refused(call, error, "unit")
    refused(call, error, "0 to 5" if error is ValueError else f"not {unit!r}")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": 0}, ValueError, "k is 0; choose from 1 to the number of images, 3"),
        ({"k": -1}, ValueError, "k is -1"),
        ({"k": 4}, ValueError, "k is 4"),
        ({"k": 2.0}, TypeError, "k must be a whole number, not 2.0"),
        ({"k": True}, TypeError, "k must be a whole number"),
        (
            {"k": 1, "pool": "last"},
            ValueError,
            "pool: there is no 'last'; choose one of mean, max, sum",
        ),
        ({"k": 1, "pool": None}, ValueError, "pool: there is no None; choose one of"),
        ({"k": 1, "batch_size": 0}, ValueError, "batch_size is 0"),
        ({"k": 1, "batch_size": 1.5}, TypeError, "batch_size must be a whole number"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    asked = Pictures(IMAGES)
    options = {**options}
    refused(lambda: top_activating(make("Residual"), "conv1", 0, asked, **options), error, words)
    del options["k"]
    if options.keys() & {"pool", "batch_size"}:
        refused(lambda: responses(make("Residual"), "conv1", asked, **options), error, words)
    assert asked.most == 0  # refused before any work


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Conv1d(3, 2, 3), SmallResNet(2), "conv1"])
def test_filters_of_what_is_no_convolution(layer: Any) -> None:
    refused(lambda: features.filters(layer), TypeError, "layer must be an nn.Conv2d")


# The model is left as it was -------------------------------------------------------------------


def state(model: nn.Module) -> Sequence[object]:
    return (
        [module.training for module in model.modules()],
        [dict(module._forward_hooks) for module in model.modules()],
        [len(module._backward_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("function", ON_IMAGES)
def test_a_model_in_train_mode_runs_in_eval_mode_and_comes_back(function: str) -> None:
    model: Any = make("Residual").train()
    model.bn2.eval()
    model.conv1.weight.requires_grad_(False)
    before = state(model)
    first, again = (ON_IMAGES[function](model, IMAGES) for _ in range(2))
    assert state(model) == before
    evaluated = ON_IMAGES[function](make("Residual").eval(), IMAGES)
    for found in (first, again):
        torch.testing.assert_close(found, evaluated, rtol=0, atol=0)
    # Dropout was off: behind it the numbers are those of eval mode.
    logits = responses(model, "fc", IMAGES)
    torch.testing.assert_close(logits, make("Residual").eval()(IMAGES).detach())


@pytest.mark.parametrize("function", ON_IMAGES)
def test_the_model_comes_back_after_an_exception(function: str) -> None:
    model = make("Residual").train()
    before = state(model)
    with pytest.raises(RuntimeError):
        ON_IMAGES[function](model, torch.zeros(2, 7, 8, 8))
    with pytest.raises(ValueError, match="unit"):
        activation_x_gradient(model, "conv2", 99, "conv1", IMAGES)
    with pytest.raises(ValueError, match="unit"):
        top_activating(model, "conv2", 99, IMAGES, 1)
    assert state(model) == before
