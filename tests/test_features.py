import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.models.feature_extraction import create_feature_extractor

from course_utils import features, layers
from course_utils.features import auroc, contributions, feature_maps, responses, top_activating
from course_utils.models import Classifier, SmallResNet
from course_utils.scenes import Scenes, canonical, render
from tests.networks import NETWORKS, batch, make

DOUBLE = torch.float64


def channel(model: nn.Module, layer: str, images: torch.Tensor, unit: int) -> torch.Tensor:
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
    responses(make("InPlaceFirst"), "conv", images, progress=False)
    contributions(make("InPlaceFirst"), "fc", 0, "conv", images)
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


# Several outputs -------------------------------------------------------------------------------


@pytest.fixture
def resnet() -> SmallResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallResNet(5, (8, 8, 12, 16)).double().eval()


def test_multi_output_equals_torchvision(resnet: SmallResNet) -> None:
    names = list(layers.conv_layers(resnet))
    images = torch.randn(2, 3, 32, 32, dtype=DOUBLE)
    ours = features.multi_output(resnet, names)(images)
    theirs = create_feature_extractor(resnet, names)(images)
    assert list(ours) == names
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)
    assert sum(len(module._forward_hooks) for module in resnet.modules()) == 0


def test_multi_output_has_the_same_weights_and_gradients(resnet: SmallResNet) -> None:
    names = ["layer2.0.conv1", "fc"]
    several = features.multi_output(resnet, names)
    assert all(a is b for a, b in zip(several.parameters(), resnet.parameters(), strict=True))
    images = torch.randn(1, 3, 32, 32, dtype=DOUBLE, requires_grad=True)
    found = several(images)
    (slope,) = torch.autograd.grad(found["fc"][0, 2], images, retain_graph=True)
    (expected,) = torch.autograd.grad(resnet(images)[0, 2], images)
    torch.testing.assert_close(slope, expected)
    found["layer2.0.conv1"].square().sum().backward()
    assert resnet.conv1.weight.grad is not None
    assert resnet.conv1.weight.grad.abs().sum() > 0
    assert resnet.get_parameter("layer3.0.conv1.weight").grad is None


# Responses and the images that a unit answers to most ------------------------------------------


class Pictures(Dataset[torch.Tensor]):
    """Images made when they are asked for; counts how many of them exist at the same time."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.alive, self.most = images, 0, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.images[index].clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.forget)
        return image

    def forget(self) -> None:
        self.alive -= 1


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda maps: maps.mean((1, 2)),
    "max": lambda maps: maps.amax((1, 2)),
    "sum": lambda maps: maps.sum((1, 2)),
}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("kind", [torch.Tensor, list, Pictures])
def test_top_activating_equals_a_slow_twin(
    kind: Callable[[torch.Tensor], Any], pool: str, batch_size: int
) -> None:
    model, images, unit = make("Functional").double(), batch(11, dtype=DOUBLE), 4
    given = images if kind is torch.Tensor else kind(images)
    options: dict[str, Any] = {"pool": pool, "batch_size": batch_size, "progress": False}
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
        logits = responses(model, "fc", images, pool=pool, progress=False)
        torch.testing.assert_close(logits, model(images).detach())
    last = torch.stack([channel(model, "conv", images, u).mean((1, 2)) for u in range(6)], 1)
    torch.testing.assert_close(responses(model, "conv", images, progress=False), last)
    found = top_activating(model, "fc", 2, images, 1, progress=False)
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
        found = top_activating(identity(), "0", 0, images, k, batch_size=batch_size, progress=False)
        assert found.indices.tolist() == [1, 3, 5, 0, 4, 6, 2, 7][:k]
        assert found.scores.tolist() == [2, 2, 2, 1, 1, 1, 0, 0][:k]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_only_a_batch_of_images_exists_at_a_time(batch_size: int) -> None:
    model, pictures = make("Residual"), Pictures(batch(23))
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    top_activating(model, "bn1", 0, pictures, 9, batch_size=batch_size, progress=False)
    assert sum(sizes) == 23
    assert max(sizes) == pictures.most == batch_size
    assert pictures.alive == 0


@pytest.mark.parametrize("progress", [False, True])
def test_progress_goes_to_stderr(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    top_activating(identity(), "0", 0, torch.rand(9, 1, 2, 2), 2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("9/9" in err or "image" in err) == progress
    assert bool(err) == progress


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(self.gratings(x).square())


def test_a_stripe_matcher_finds_the_striped_animals() -> None:
    textures = ("plain", "stripes", "spots", "patches")
    places = ((0.7, "savanna"), (0.8, "meadow"), (0.9, "snow"))
    specs = [
        canonical("zebra", texture=texture, size=size, background=place, seed=seed)
        for seed, (size, place) in enumerate(places)
        for texture in textures
    ]
    classifier = Classifier("stripes", Stripes(period=8).eval(), (), 128)
    images = classifier.inputs([render(spec).image for spec in specs])
    found = top_activating(classifier.model, "unit", 0, images, 3, progress=False)
    assert [specs[i].texture for i in found.indices] == ["stripes"] * 3
    # … and it finds them for the stripes: of the same scenes without them it likes others.
    bare = classifier.inputs([render(spec.without("texture")).image for spec in specs])
    assert responses(classifier.model, "unit", bare, progress=False).max() < found.scores.min()


@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("corner", [(0, 0), (0, 40), (40, 0), (40, 40)])
def test_positions_are_where_the_stripes_are(corner: tuple[int, int], pool: str) -> None:
    row, column = corner
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 10
    wave = 2 * (torch.arange(24) % 8 < 4) - 1.0
    images[4, :, row : row + 24, column : column + 24] += wave  # vertical
    images[2, :, row : row + 24, column : column + 24] += wave[:, None]  # horizontal
    found = top_activating(Stripes(period=8), "unit", 0, images, 1, pool=pool, progress=False)
    assert found.indices.tolist() == [4]
    ((down, right),) = found.positions.tolist()
    assert row <= down < row + 24
    assert column <= right < column + 24


def test_positions_in_pictures_that_are_not_square() -> None:
    images = torch.zeros(2, 1, 6, 10)
    images[0, 0, 1, 9] = images[1, 0, 5, 2] = 1
    found = top_activating(identity(), "0", 0, images, 2, progress=False)
    assert found.positions.tolist() == [[1, 9], [5, 2]]


@pytest.mark.parametrize("number", [np.int64, np.int32])
def test_numbers_of_numpy(number: Callable[[int], Any]) -> None:
    model, images = make("Residual"), batch()
    ours = top_activating(model, "bn1", number(2), images, number(2), progress=False)
    theirs = top_activating(model, "bn1", 2, images, 2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.bfloat16])
def test_models_of_another_precision(dtype: torch.dtype) -> None:
    model, images = make("Residual").to(dtype), batch(dtype=dtype)
    assert responses(model, "bn1", images, progress=False).dtype == dtype
    found = top_activating(model, "bn1", 0, list(images), 2, progress=False)
    expected = feature_maps(model, images, ["bn1"])["bn1"][:, 0].flatten(1).mean(1)
    assert found.scores.tolist() == expected.sort(descending=True).values[:2].tolist()
    assert contributions(model, "conv2", 0, "conv1", images).dtype == dtype


def test_images_that_require_gradients() -> None:
    model, images = make("Residual"), batch().requires_grad_()
    assert not responses(model, "bn1", images, progress=False).requires_grad
    assert not top_activating(model, "bn1", 0, images, 2, progress=False).scores.requires_grad
    assert not contributions(model, "conv2", 0, "conv1", images).requires_grad
    assert images.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_grad_mode(mode: Callable[[], Any]) -> None:
    model = make("Residual")
    expected = contributions(model, "conv2", 1, "conv1", batch())
    with mode():
        found = contributions(model, "conv2", 1, "conv1", batch())
        responses(model, "bn1", batch(), progress=False)
    assert torch.equal(found, expected)


# AUROC -----------------------------------------------------------------------------------------


def with_ties(n: int = 40, columns: int = 4) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    generator = np.random.default_rng(0)
    positive = generator.random(n) < 0.35
    shift = positive[:, None] * np.arange(columns)
    return (generator.integers(0, 5, (n, columns)) + shift).astype(float), positive


def pairs(positives: NDArray[Any], negatives: NDArray[Any]) -> NDArray[np.float64]:
    """DeLong's ψ(x, y) for each positive x and negative y: 1 where x > y, ½ for a tie, else 0."""
    won = np.empty((len(positives), len(negatives)))
    for i, x in enumerate(positives):
        for j, y in enumerate(negatives):
            won[i, j] = 1 if x > y else 0.5 if x == y else 0
    return won


def test_auroc_equals_scikit_learn_and_every_pair() -> None:
    values, positive = with_ties()
    area, _, _ = auroc(values, positive)
    assert area.shape == (4,)
    for column, found in zip(values.T, area, strict=True):
        assert found == pytest.approx(roc_auc_score(positive, column), abs=1e-12)
        assert found == pytest.approx(pairs(column[positive], column[~positive]).mean(), abs=1e-12)


def test_interval_is_that_of_delong() -> None:
    """Twin of DeLong et al., 1988, equations 3 to 5, for one curve: S₁₀ / m + S₀₁ / n."""
    values, positive = with_ties()
    area, low, high = auroc(values, positive)
    for c, column in enumerate(values.T):
        won = pairs(column[positive], column[~positive])
        theta, (m, n) = won.mean(), won.shape
        s10 = sum((v - theta) ** 2 for v in won.mean(1)) / (m - 1)
        s01 = sum((v - theta) ** 2 for v in won.mean(0)) / (n - 1)
        error = math.sqrt(s10 / m + s01 / n)
        assert 0.01 < error < 0.15
        assert low[c] == pytest.approx(max(area[c] - 1.96 * error, 0), abs=1e-12)
        assert high[c] == pytest.approx(min(area[c] + 1.96 * error, 1), abs=1e-12)
    assert (high <= 1).all()


@pytest.mark.parametrize("distance", [0.0, 1.0])
@pytest.mark.parametrize(("m", "n"), [(15, 200), (60, 60)])
def test_interval_holds_the_truth_nineteen_times_in_twenty(m: int, n: int, distance: float) -> None:
    """Two normals a distance d apart: AUROC = Φ(d / √2). Each column is a draw of its own."""
    positive = np.arange(m + n) < m
    values = np.random.default_rng(m).standard_normal((m + n, 1500))
    values[:m] += distance
    truth = norm.cdf(distance / math.sqrt(2))
    area, low, high = auroc(values, positive)
    assert area.mean() == pytest.approx(truth, abs=0.01)
    assert 0.9 < ((low <= truth) & (truth <= high)).mean() < 0.99


def test_auroc_of_perfect_useless_and_contrary_detectors() -> None:
    positive = np.array([True, True, False, False, False])
    values = np.array([[9, 8, 1, 2, 3], [5, 5, 5, 5, 5], [1, 2, 8, 9, 7]]).T
    area, low, high = auroc(values, positive)
    assert area.tolist() == [1, 0.5, 0]
    assert low.tolist() == high.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("positives", [0, 1, 5, 6])
def test_auroc_of_too_few(positives: int) -> None:
    found = auroc(np.random.default_rng(0).random((6, 2)), np.arange(6) < positives)
    assert [values.shape for values in found] == [(2,)] * 3
    assert np.isnan(found).all()


# Concepts --------------------------------------------------------------------------------------


def colors() -> Classifier:
    """Unit 0 answers to red pixels, unit 1 to green ones."""
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        weight = torch.tensor([[1, -0.5, -0.5], [-0.5, 1, -0.5]])
        model[0].weight[:] = weight[:, :, None, None]
        model[0].bias.fill_(-1)
    return Classifier("colors", model.eval(), (), 32)


@pytest.mark.slow
def test_concept_scores_find_what_a_unit_measures() -> None:
    classifier, scenes = colors(), Scenes(160, seed=5, resolution=32)
    scores = features.concept_scores(classifier, "1", scenes, progress=False)
    assert scores.auroc.shape == scores.low.shape == (2, len(scores.concepts))
    assert scores.concepts == tuple(sorted(scores.concepts))
    red = {name: row for name, *row in scores.of(0, k=5)}
    area, low, high = red["colour red"]
    assert 0.7 < low < area < high < 1
    meadow, area, low, _ = scores.of(1, k=1)[0]
    assert (meadow, area > 0.9, low > 0.85) == ("place meadow", True, True)

    rows = responses(classifier.model, "1", classifier.inputs(scenes), progress=False)
    specs = [scenes.spec(i) for i in range(160)]
    again = features.score_concepts(rows.numpy(), specs)
    assert again.concepts == scores.concepts
    assert all(np.array_equal(a, b, True) for a, b in zip(again[1:], scores[1:], strict=True))
    c = scores.concepts.index("texture stripes")
    striped = ["texture stripes" in features.concepts(spec) for spec in specs]
    assert scores.auroc[1, c] == pytest.approx(roc_auc_score(striped, rows[:, 1]))


def test_the_best_concepts_come_first_and_the_unknown_last() -> None:
    areas = np.array([[0.2, np.nan, 0.9, 0.9, 0.6]])
    scores = features.ConceptScores(tuple("abcde"), areas, areas - 0.1, areas + 0.1)
    assert [name for name, *_ in scores.of(0)] == ["c", "d", "e", "a", "b"]
    assert scores.of(0, k=1) == [("c", 0.9, 0.8, 1.0)]
    assert len(scores.of(np.int64(0), k=99)) == 5  # type: ignore[arg-type]


def test_a_concept_of_one_scene_or_of_all_has_no_score() -> None:
    specs = [canonical("zebra"), *[canonical("cow", background="snow")] * 3]
    scores = features.score_concepts(np.random.default_rng(0).random((4, 2)), specs)
    assert np.isnan(scores.auroc).all()
    assert "class zebra" in scores.concepts


def test_concepts_of_a_zebra() -> None:
    zebra = canonical("zebra")
    own = {"class zebra", "shape horse", "texture stripes", "colour white", "colour black"}
    assert features.concepts(zebra) == own | {"place savanna"}
    assert features.concepts(zebra.without("head")) == own | {"place savanna"}
    assert features.concepts(zebra.without("background")) == own
    assert features.concepts(zebra.without("object")) == {"place savanna"}
    bare = own - {"texture stripes", "colour black"} | {"texture plain", "place savanna"}
    assert features.concepts(zebra.without("texture")) == bare
    assert features.concepts(replace(zebra, contrast=0)) == bare  # the very same picture


def test_concepts_of_clutter_and_companion() -> None:
    horse = canonical("horse")
    alone = features.concepts(horse)
    assert "texture stripes" not in alone
    cluttered = replace(horse, clutter="armchair", clutter_texture="stripes")
    assert features.concepts(cluttered) - alone == {"texture stripes"}
    assert features.concepts(cluttered.without("clutter")) == alone
    together = replace(horse, companion="ladybird")
    assert features.concepts(together) - alone >= {
        *("class ladybird", "shape beetle", "texture spots", "colour red")
    }
    assert features.concepts(together.without("companion")) == alone
    assert "class ladybird" in features.concepts(together.without("object"))


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ("#ff0000", "red"),
        ("#ff0030", "red"),  # a hue just below 360°
        ("#cc1f1a", "red"),
        ("#f07a18", "orange"),
        ("#8a5228", "brown"),
        ("#f4c430", "yellow"),
        ("#2e9e5b", "green"),
        ("#2f6fd0", "blue"),
        ("#8e44ad", "purple"),
        ("#ff69b4", "pink"),
        ("#ffffff", "white"),
        ("#efe9dc", "white"),
        ("#808080", "grey"),
        ("#000000", "black"),
        ("#1c1816", "black"),
        ("#17171b", "black"),
    ],
)
def test_color_name(color: str, name: str) -> None:
    assert features.color_name(color) == name


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
    found = contributions(two_layers, "2", unit, "1", images)
    maps = feature_maps(two_layers, images, ["1"])["1"]
    weight = last.weight.detach()
    alone = [F.conv2d(maps[:, i : i + 1], weight[unit, None, i, None]) for i in range(4)]
    torch.testing.assert_close(found, torch.stack([m.mean((1, 2, 3)) for m in alone], 1))
    # Together with the bias they are the unit …
    whole = responses(two_layers, "2", images, progress=False)[:, unit]
    torch.testing.assert_close(found.sum(1) + last.bias[unit].detach(), whole)
    # … and each is what is lost without unit i.
    for i in range(4):
        with layers.ablate(two_layers, "1", i):
            left = responses(two_layers, "2", images, progress=False)[:, unit]
        torch.testing.assert_close(whole - left, found[:, i])


def test_contributions_through_a_relu() -> None:
    """Activations 3, −1 and 2 read with weights 2, 5 and −1: what is cut off adds nothing."""
    model: Any = nn.Sequential(identity(3)[0], nn.ReLU(inplace=True), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[2].weight[:] = torch.tensor([2.0, 5, -1]).view(1, 3, 1, 1)
    image = torch.tensor([3.0, -1, 2]).view(1, 3, 1, 1)
    assert contributions(model, "2", 0, "0", image).tolist() == [[6, 0, -2]]


def test_contributions_of_numbers_and_through_a_residual_sum() -> None:
    model: Any = make("Residual").double().eval()
    images = batch(dtype=DOUBLE)
    found = contributions(model, "fc", 1, "dropout", images)
    pooled = responses(model, "dropout", images, progress=False)
    torch.testing.assert_close(found, pooled * model.fc.weight[1].detach())
    # bn2 reaches the logit only through the sum and the ReLU: finite differences of a scaling.
    found = contributions(model, "fc", 1, "bn2", images)
    own = feature_maps(model, images, ["bn2"])["bn2"]

    def scaled(i: int, factor: float) -> torch.Tensor:
        handle = model.bn2.register_forward_hook(
            lambda _, inputs, output: output.index_copy(
                1, torch.tensor([i]), own[:, i : i + 1] * factor
            )
        )
        logits = responses(model, "fc", images, progress=False)[:, 1]
        handle.remove()
        return logits

    for i in range(6):
        slope = (scaled(i, 1 + 1e-6) - scaled(i, 1 - 1e-6)) / 2e-6
        torch.testing.assert_close(found[:, i], slope, rtol=1e-5, atol=1e-8)


def test_each_image_has_its_own_contributions() -> None:
    model, images = make("Residual"), batch(4)
    together = contributions(model, "conv2", 3, "conv1", images)
    alone = [contributions(model, "conv2", 3, "conv1", image[None]) for image in images]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("network", "layer", "before"),
    [("Residual", "conv1", "conv2"), ("Residual", "bn1", "fc"), ("Reused", "conv", "relu")],
)
def test_before_must_be_on_the_way(network: str, layer: str, before: str) -> None:
    call = lambda: contributions(make(network), layer, 0, before, batch())  # noqa: E731
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
    "responses": lambda model, images: responses(model, "conv1", images, progress=False),
    "top_activating": lambda model, images: top_activating(
        model, "conv1", 0, images, 1, progress=False
    ),
    "contributions": lambda model, images: contributions(model, "conv2", 0, "conv1", images),
}


def nan() -> torch.Tensor:
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


@pytest.mark.parametrize("function", [*ON_IMAGES, "multi_output"])
@pytest.mark.parametrize("model", [None, colors()])
def test_a_model_that_is_none(function: str, model: Any) -> None:
    def call() -> object:
        if function == "multi_output":
            return features.multi_output(model, ["conv1"])
        return ON_IMAGES[function](model, IMAGES)

    refused(call, TypeError, "model must be a torch.nn.Module")


QUIET: dict[str, Any] = {"progress": False}
WITH_A_LAYER: dict[str, Callable[[nn.Module, Any], object]] = {
    "feature_maps": lambda model, layer: feature_maps(model, IMAGES, [layer]),
    "multi_output": lambda model, layer: features.multi_output(model, [layer])(IMAGES),
    "responses": lambda model, layer: responses(model, layer, IMAGES, **QUIET),
    "top_activating": lambda model, layer: top_activating(model, layer, 0, IMAGES, 1, **QUIET),
    "contributions": lambda model, layer: contributions(model, layer, 0, "conv1", IMAGES),
    "before": lambda model, before: contributions(model, "conv2", 0, before, IMAGES),
    "concept_scores": lambda model, layer: features.concept_scores(
        Classifier("tiny", model, (), 16), layer, Scenes(2, 0, resolution=16), **QUIET
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
    several = features.multi_output(Odd(), ["conv1", "idle"])
    refused(lambda: several(IMAGES), ValueError, "layer 'idle' did not run")


@pytest.mark.parametrize("function", [top_activating, contributions])
@pytest.mark.parametrize(
    ("unit", "error"),
    [(-1, ValueError), (6, ValueError), (1.0, TypeError), (True, TypeError), ("0", TypeError)],
)
def test_a_unit_that_is_not_there(
    function: Callable[..., object], unit: Any, error: type[Exception]
) -> None:
    def call() -> object:
        if function is contributions:
            return contributions(make("Residual"), "conv2", unit, "conv1", IMAGES)
        return top_activating(make("Residual"), "conv2", unit, IMAGES, 1, progress=False)

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
        ({"k": 1, "pool": "median"}, ValueError, "pool must be one of mean, max, sum"),
        ({"k": 1, "pool": None}, ValueError, "pool must be one of"),
        ({"k": 1, "batch_size": 0}, ValueError, "batch_size is 0"),
        ({"k": 1, "batch_size": 1.5}, TypeError, "batch_size must be a whole number"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    asked = Pictures(IMAGES)
    options = {"progress": False, **options}
    refused(lambda: top_activating(make("Residual"), "conv1", 0, asked, **options), error, words)
    del options["k"]
    if options.keys() & {"pool", "batch_size"}:
        refused(lambda: responses(make("Residual"), "conv1", asked, **options), error, words)
    assert asked.most == 0  # refused before any work


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Conv1d(3, 2, 3), SmallResNet(2), "conv1"])
def test_filters_of_what_is_no_convolution(layer: Any) -> None:
    refused(lambda: features.filters(layer), TypeError, "layer must be an nn.Conv2d")


def test_bad_concept_scores() -> None:
    scenes = Scenes(2, 0, resolution=16)
    score: Any = features.concept_scores
    refused(lambda: score(make("Residual"), "conv1", scenes), TypeError, "classifier must be")
    refused(lambda: score(colors(), "1", [scenes.scene(0).image]), TypeError, "scenes a Scenes")


@pytest.mark.parametrize(
    ("values", "positive", "error", "words"),
    [
        (np.zeros(4), np.arange(4) < 2, ValueError, "responses must be (N, C)"),
        (np.zeros((4, 1)), np.arange(5) < 2, ValueError, "positive (N,)"),
        (np.zeros((4, 1)), np.array([0, 0, 1, 1]), TypeError, "positive must be bool"),
    ],
)
def test_bad_auroc(values: Any, positive: Any, error: type[Exception], words: str) -> None:
    refused(lambda: auroc(values, positive), error, words)


def test_bad_specs() -> None:
    values = np.zeros((3, 2))
    refused(lambda: features.score_concepts(values, []), ValueError, "specs must hold scenes")
    two = [canonical("zebra")] * 2
    refused(lambda: features.score_concepts(values, two), ValueError, "(3, 2)")


@pytest.mark.parametrize(
    ("unit", "k", "error", "words"),
    [
        (-1, 5, ValueError, "there is no unit -1; choose 0 to 1"),
        (2, 5, ValueError, "there is no unit 2"),
        (0.0, 5, TypeError, "unit must be a whole number"),
        (0, 0, ValueError, "k is 0"),
        (0, 1.5, TypeError, "k must be a whole number"),
    ],
)
def test_bad_unit_of_scores(unit: Any, k: Any, error: type[Exception], words: str) -> None:
    areas = np.zeros((2, 3))
    scores = features.ConceptScores(("a", "b", "c"), areas, areas, areas)
    refused(lambda: scores.of(unit, k), error, words)


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
    logits = responses(model, "fc", IMAGES, progress=False)
    torch.testing.assert_close(logits, make("Residual").eval()(IMAGES).detach())


@pytest.mark.parametrize("function", ON_IMAGES)
def test_the_model_comes_back_after_an_exception(function: str) -> None:
    model = make("Residual").train()
    before = state(model)
    with pytest.raises(RuntimeError):
        ON_IMAGES[function](model, torch.zeros(2, 7, 8, 8))
    with pytest.raises(ValueError, match="unit"):
        contributions(model, "conv2", 99, "conv1", IMAGES)
    with pytest.raises(ValueError, match="unit"):
        top_activating(model, "conv2", 99, IMAGES, 1, progress=False)
    assert state(model) == before
