from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils.evaluation import Flipping, impute, pixel_flipping, road
from course_utils.models import load
from course_utils.worlds import photographs
from tests.networks import NETWORKS, Recorder, batch, make, pixels

nan = float("nan")
each_network = pytest.mark.parametrize("network", NETWORKS)
NEIGHBOURS = {
    (y, x): 1 / 12 if y and x else 1 / 6 for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x
}


def holes(n: int, side: int, share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, side, side, generator=generator) < share


def solved_slowly(image: Tensor, hole: Tensor) -> Tensor:
    """The equations of one image (C, H, W), written with plain loops, in a full matrix."""
    height, width = hole.shape
    places = [tuple(place) for place in hole.nonzero().tolist()]
    matrix = np.zeros((len(places), len(places)))
    known = np.zeros((len(places), len(image)))
    for row, (y, x) in enumerate(places):
        for (down, right), weight in NEIGHBOURS.items():
            there = (y + down, x + right)
            if not (0 <= there[0] < height and 0 <= there[1] < width):
                continue
            matrix[row, row] += weight
            if there in places:
                matrix[row, places.index(there)] -= weight
            else:
                known[row] += weight * image[:, there[0], there[1]].numpy()
    result = image.clone()
    for place, value in zip(places, np.linalg.solve(matrix, known), strict=True):
        result[:, place[0], place[1]] = torch.from_numpy(value)
    return result


# imputation


def test_one_missing_pixel_is_its_neighbours_mean() -> None:
    image = torch.tensor([[1.0, 2, 3], [4, 100, 6], [7, 8, 30]], dtype=torch.float64)[None, None]
    away = torch.zeros(1, 3, 3, dtype=torch.bool)
    away[0, 1, 1] = True
    found = impute(image, away, noise=0.0)
    assert found[0, 0, 1, 1].item() == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 30) / 12)
    away = torch.zeros(1, 3, 3, dtype=torch.bool)
    away[0, 0, 0] = True  # in a corner three neighbours are left, of weights 1/6, 1/6, 1/12
    found = impute(image, away, noise=0.0)
    assert found[0, 0, 0, 0].item() == pytest.approx((2 / 6 + 4 / 6 + 100 / 12) / (5 / 12))
    assert torch.equal(found.flatten()[1:], image.flatten()[1:])


def test_a_row_of_missing_pixels_is_a_straight_line() -> None:
    image = pixels(2, 9, 9, 9, 10)
    found = impute(image, image[:, 0] == 9, noise=0.0)
    torch.testing.assert_close(found, pixels(2, 4, 6, 8, 10))
    # At the image's edge there is one neighbour alone.
    torch.testing.assert_close(
        impute(pixels(9, 9, 4), torch.tensor([[[True, True, False]]]), noise=0.0), pixels(4, 4, 4)
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_imputation_against_its_twin(share: float) -> None:
    images, away = batch(3, dtype=torch.float64)[:, :, :, :7], holes(3, 8, share)[:, :, :7]
    away[:, 4, 4] = False
    found = impute(images, away, noise=0.0)
    for image, hole, one in zip(images, away, found, strict=True):
        torch.testing.assert_close(one, solved_slowly(image, hole), rtol=0, atol=1e-10)


def test_what_is_smooth_is_found_again() -> None:
    """A plane is its neighbours' mean everywhere within it, whatever is away."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    image = (2 * y - 3 * x + 5).double()[None, None]
    away = holes(1, 9, 0.6)
    away[:, [0, -1]] = away[:, :, [0, -1]] = False
    assert away.sum() > 25
    torch.testing.assert_close(impute(image, away, noise=0.0), image)


def test_the_noise_is_where_pixels_went_and_as_large_as_asked() -> None:
    images, away = batch(2)[..., :, :], holes(2, 8, 0.5)
    smooth, noisy = (impute(images, away, noise=noise) for noise in (0.0, 0.2))
    difference = (noisy - smooth).transpose(0, 1)
    assert (difference[:, ~away] == 0).all()
    assert difference[:, away].std() == pytest.approx(0.2, rel=0.15)
    both = away[0] & away[1]  # the same noise for all images
    torch.testing.assert_close(difference[:, 0, both], difference[:, 1, both], rtol=0, atol=1e-5)
    again = impute(images, away, noise=0.2, generator=torch.Generator().manual_seed(0))
    other = impute(images, away, noise=0.2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)


def test_nothing_away_and_bad_holes() -> None:
    images = batch(2)
    nothing = torch.zeros(2, 8, 8, dtype=torch.bool)
    assert torch.equal(impute(images, nothing), images)
    whole = nothing.clone()
    whole[1] = True
    bad_holes: list[Any] = [
        None,
        nothing.float(),
        nothing[:1],
        nothing[:, :7],
        nothing[:, None],
        whole,
    ]
    for bad in bad_holes:
        with pytest.raises((ValueError, TypeError), match="^away must "):
            impute(images, bad)
    for noise in (-0.1, nan, "0", None):
        with pytest.raises((ValueError, TypeError), match="^noise "):
            impute(images, nothing, noise=noise)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^images must be"):
        impute(images[0], nothing)


# ROAD


def test_road_by_hand() -> None:
    image, attribution = pixels(1, 2, 4, 8), pixels(5, -1, 7, 0)
    morf, lerf, area = road(Recorder(), image, attribution, 0, fractions=(0.25, 0.5), noise=0.0)
    # 4 goes first, and becomes (2 + 8) / 2; then 1, the neighbour of 2 alone.
    assert morf.fraction.tolist() == [0, 0.25, 0.5]
    assert morf.score.tolist() == [[15, 16, 17]]
    # 2 goes first, and becomes 2.5; then 8, the neighbour of 4 alone.
    assert lerf.score.tolist() == [[15, 15.5, 11.5]]
    expected = (15.5 - 16) * 0.25 + (11.5 - 17) * 0.125
    assert area.item() == pytest.approx(expected)


@each_network
@pytest.mark.parametrize("of", ["logit", "probability", "accuracy"])
def test_road_against_its_twin(network: str, of: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    attribution, target = batch(2, seed=5, dtype=torch.float64), torch.tensor([1, 3])
    shares = (0.2, 0.45, 0.9)
    found = road(model, images, attribution, target, fractions=shares, noise=0.0, of=of)
    for curve, sign in ((found.morf, 1), (found.lerf, -1)):
        for i, (image, label) in enumerate(zip(images, target.tolist(), strict=True)):
            values = (sign * attribution[i]).sum(0).flatten().tolist()
            order = sorted(range(64), key=lambda k: -values[k])
            scores = []
            for count in (0, 13, 29, 58):
                hole = torch.zeros(64, dtype=torch.bool)
                hole[order[:count]] = True
                changed = solved_slowly(image, hole.view(8, 8)) if count else image
                with torch.no_grad():
                    logits = model(changed[None].clone())[0]
                answers = {
                    "logit": logits[label],
                    "probability": logits.softmax(0)[label],
                    "accuracy": logits.argmax() == label,
                }
                scores.append(float(answers[of]))
            torch.testing.assert_close(
                curve.score[i], torch.tensor(scores).double(), rtol=0, atol=1e-6
            )
            share = curve.fraction.tolist()
            assert share == pytest.approx([0, 13 / 64, 29 / 64, 58 / 64])
            area = sum(
                (a + b) / 2 * (after - before)
                for (a, b), (before, after) in zip(pairwise(scores), pairwise(share), strict=True)
            )
            assert curve.auc[i].item() == pytest.approx(area, abs=1e-6)
    torch.testing.assert_close(found.area, found.lerf.auc - found.morf.auc)


def middle(images: Tensor) -> Tensor:
    """A model that sums up how far the pixels of a stripe lie above what is beside it."""
    stripe = images[..., 3:5].mean((1, 2, 3)) - images[..., [1, 6]].mean((1, 2, 3))
    return torch.stack([stripe, 0 * stripe], 1)


def test_road_orders_perfect_random_inverted() -> None:
    """Where what is guessed says nothing of what was there: a bright stripe on grey."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64)
    images[..., 3:5] += 1
    truth = torch.zeros(20, 8, 8, dtype=torch.float64)
    truth[..., 3:5] = 1
    noise = torch.rand(20, 8, 8, generator=generator, dtype=torch.float64)
    measure = partial(road, middle, images, target=0)
    perfect, random, inverted = (measure(map_).area for map_ in (truth, noise, -truth))
    assert (perfect > random).all()
    assert (random > inverted).all()
    torch.testing.assert_close(inverted, -perfect)
    # It is an area up to 0.9, which 0.9 of the logit's fall can fill at most.
    assert (perfect > 0.3).all()


def test_the_hole_itself_tells_nothing() -> None:
    """A model that reads the edges of holes is fooled by one colour, and not by what is guessed."""
    images = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
    detector = lambda x: (x.diff(dim=3).abs().sum((1, 2, 3)))[:, None]  # noqa: E731
    attribution = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    flipped = pixel_flipping(detector, images, attribution, 0, steps=10)
    guessed = road(detector, images, attribution, 0, noise=0.0)
    assert flipped.morf.score[0, 3] > 20
    assert guessed.morf.score.abs().max() < 1e-10


# what all that run the model promise

MEASURES: dict[str, Callable] = {
    of: partial(road, fractions=(0.2, 0.6), of=of) for of in ("logit", "probability", "accuracy")
}
every_measure = pytest.mark.parametrize("name", MEASURES)


def value(result: Flipping) -> Tensor:
    return torch.cat([result.morf.score, result.lerf.score, result.area[:, None]], 1)


@every_measure
def test_passes(name: str) -> None:
    model = Recorder()
    MEASURES[name](model, batch(3), batch(3), batch_size=4)
    assert sum(model.calls) == 3 * 6
    assert max(model.calls) <= 4


@every_measure
@each_network
def test_batches_do_not_matter(name: str, network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    attribution = batch(seed=3)
    together = value(MEASURES[name](model, images, attribution))
    for size in (1, 5):
        parts = [
            MEASURES[name](model, image[None], one[None], batch_size=size)
            for image, one in zip(images, attribution, strict=True)
        ]
        alone = torch.cat([value(part) for part in parts])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@every_measure
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(name: str, dtype: torch.dtype) -> None:
    model, images, attribution = make("Residual").to(dtype), batch().to(dtype), batch(seed=1)
    before, state = images.clone(), torch.get_rng_state()
    result = value(MEASURES[name](model, images, attribution.requires_grad_()))
    assert result.dtype == dtype
    assert not result.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    with torch.inference_mode():
        again = value(MEASURES[name](model, images.clone(), attribution.clone()))
    assert torch.equal(again, result)


def test_targets() -> None:
    model, images, attribution = make("Residual").eval(), batch(), batch(seed=1)
    with torch.no_grad():
        answers = model(images).argmax(1)
    expected = value(road(model, images, attribution))
    assert torch.equal(value(road(model, images, attribution, answers)), expected)
    of_class = value(road(model, images, attribution, 2))
    function = value(road(lambda x: model(x), images, attribution, lambda y: y[:, 2]))
    torch.testing.assert_close(function, of_class)
    pair = value(road(model, images, attribution, (2, 1)))
    contrast = value(road(model, images, attribution, lambda y: y[:, 2] - y[:, 1]))
    torch.testing.assert_close(pair, contrast)
    for two in ((2, 1), torch.tensor([[2, 1]] * 3)):
        with pytest.raises(ValueError, match="^of is 'accuracy', which a single class has"):
            road(model, images, attribution, two, of="accuracy")
    accuracy = road(model, images, attribution, of="accuracy")
    assert accuracy.morf.score[:, 0].tolist() == [1, 1, 1]  # of its own answer
    wrong = (answers + 1) % 5
    assert (
        road(model, images, attribution, wrong, of="accuracy").morf.score[:, 0].tolist() == [0] * 3
    )


def test_the_generator_and_a_constant_map() -> None:
    model, images, attribution = make("Residual"), batch(), batch(seed=1)
    measure = partial(road, model, images, attribution, noise=0.3)
    generator = torch.Generator().manual_seed(0)
    first = value(measure())
    assert torch.equal(first, value(measure(generator=generator)))
    assert not torch.equal(first, value(measure(generator=generator)))
    assert road(model, images, 0 * attribution).area.isnan().all()


def test_few_pixels_leave_one_to_guess_from() -> None:
    found = road(Recorder(), pixels(1, 2), pixels(1, 2), fractions=(0.1, 0.9), noise=0.0)
    assert found.morf.fraction.tolist() == [0, 0, 0.5]
    assert found.morf.score.tolist() == [[3, 3, 2]]


CASES: dict[str, list[Any]] = {
    "attribution": [None, batch().numpy(), batch().long(), batch()[:2], batch() / 0],
    "images": [batch()[0], batch().long(), batch() / 0],
    "batch_size": [0, 1.5],
    "fractions": [(), 0.5, (0.0, 0.5), (0.5, 1.0), (0.5, 0.3), (0.5, 0.5), "0.5", (nan,), (True,)],
    "noise": [-1, nan, "0.1", None],
    "of": ["logits", "Accuracy", None],
    "generator": [0, "cpu"],
}


@pytest.mark.parametrize(
    ("argument", "bad"), [(name, bad) for name, values in CASES.items() for bad in values]
)
def test_bad_options(argument: str, bad: object) -> None:
    model = Recorder()
    arguments: dict[str, Any] = {"images": batch(), "attribution": batch(), argument: bad}
    with pytest.raises((ValueError, TypeError), match=f"^{argument}\\b") as error:
        road(model, **arguments)
    assert not model.calls
    assert "\n" not in str(error.value)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="^fractions must rise and lie between 0 and 1, but are"):
        road(Recorder(), batch(), batch(), fractions=(0.5, 0.2))
    for of in ("probability", "accuracy"):
        with pytest.raises(ValueError, match=f"^of is '{of}', which a class has"):
            road(Recorder(), batch(), batch(), lambda y: y[:, 0], of=of)
    with pytest.raises(ValueError, match="^target: there is no class 2"):
        road(Recorder(), batch(), batch(), 2)
    with pytest.raises(ValueError, match="^model must return logits"):
        road(lambda x: x, batch(), batch())


# beside the field's libraries


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_equals_pytorch_grad_cam_and_quantus(share: float) -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from quantus.functions.perturb_func import noisy_linear_imputation

    images, away = torch.rand(2, 3, 24, 24), holes(2, 24, share, seed=1)
    found = impute(images, away, noise=0.0)
    for image, hole, one in zip(images, away, found, strict=True):
        theirs = NoisyLinearImputer(noise=0)(image, 1 - hole.float())
        torch.testing.assert_close(one, theirs, rtol=0, atol=1e-5)
        indices = hole.flatten().nonzero()[:, 0].numpy()
        quantus = noisy_linear_imputation(image.numpy(), indices, noise=0)
        np.testing.assert_allclose(one, quantus, rtol=0, atol=1e-5)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["most", "least"])
def test_road_equals_pytorch_grad_cam(order: str) -> None:
    """It removes what reaches a percentile, and says by how much the score falls."""
    from pytorch_grad_cam.metrics import road as theirs

    model, images = make("Functional").eval(), batch()
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    shares = (6 / 64, 32 / 64, 51 / 64)  # their percentile lies between two pixels
    found = road(model, images, maps, 3, fractions=shares, noise=0.0)
    metric = theirs.ROADMostRelevantFirst if order == "most" else theirs.ROADLeastRelevantFirst
    curve = found.morf if order == "most" else found.lerf
    targets = [lambda logits: logits[3]] * 3
    for column, share in enumerate(shares, 1):
        measure = metric(100 - 100 * share)
        measure.perturbation.imputer.noise = 0
        reference = measure(images, maps.numpy(), targets, model)
        drop = curve.score[:, column] - curve.score[:, 0]
        np.testing.assert_allclose(drop, reference, rtol=0, atol=1e-5)


@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_road_equals_quantus() -> None:
    """Its accuracies, the most relevant pixels first; other orders and colours it does not take."""
    import quantus

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    model, images = nn.Sequential(*layers).eval(), batch(12)[:, :1]
    maps = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answers = model(images).argmax(1)
    plain: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True}
    metric = quantus.ROAD(percentages=[25, 50, 75], noise=0.0, **plain)
    batches = (images.numpy(), answers.numpy())
    reference: Any = metric(model, *batches, a_batch=maps[:, None].numpy(), softmax=False)
    found = road(model, images, maps, answers, fractions=(0.25, 0.5, 0.75), noise=0, of="accuracy")
    expected = found.morf.score.mean(0)[1:].tolist()
    assert list(reference.values()) == pytest.approx(expected)
    assert len(set(expected)) > 1


@pytest.mark.slow
@pytest.mark.references
@pytest.mark.filterwarnings("ignore")
def test_imputation_on_a_real_photograph() -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    classifier = load("efficientnet_lite0")
    image = classifier.to_input(photographs.load("chelsea").image)
    away = image.mean(1) > image.mean(1).quantile(0.7)
    found = impute(image, away, noise=0.0)
    theirs = NoisyLinearImputer(noise=0)(image[0], 1 - away[0].float())
    torch.testing.assert_close(found[0], theirs, rtol=0, atol=1e-5)
