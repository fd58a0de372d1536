from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from course_utils.methods import lime, regions
from course_utils.methods.lime import (
    cosine_distance,
    lime_image,
    lime_image_fit,
    proximity,
    rank_agreement,
    sample_image,
    surrogate,
)
from tests.networks import NETWORKS, Recorder, batch, make

SEGMENTS = torch.arange(64).view(8, 8) // 8 // 2 * 3 - 5  # four bands, labels −5, −2, 1, 4
TEXT = "Good film, good cast: the film isn't bad, the film is long."
WORDS = ["Good", "film", "good", "cast", "the", "isn't", "bad", "is", "long"]
WEIGHTS = dict(zip(WORDS, [2.0, 0.5, -1, 0, 3, 0.25, -4, 1, 0.125], strict=True))
DATA = np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 5, 0] + 3

# Untyped: they are also given what they refuse.
lime_text: Any = lime.lime_text
lime_tabular: Any = lime.lime_tabular
# Untyped: what an Estimate may leave out, these estimate.
lime_text_fit: Any = lime.lime_text_fit
lime_tabular_fit: Any = lime.lime_tabular_fit


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def explain(*arguments: Any, **options: Any) -> Tensor:
    return lime_image(*arguments, **{"segments": SEGMENTS, "samples": 40, **options})


def estimate(*arguments: Any, **options: Any) -> Any:
    return lime_image_fit(*arguments, **{"segments": SEGMENTS, "samples": 40, **options})


class Reader:
    """Scores of texts: a weighted count of words, and how many texts each call had."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.calls.append(texts)
        bare = [text.replace(",", " ").replace(":", " ").replace(".", " ") for text in texts]
        score = [sum(WEIGHTS[word] for word in text.split()) for text in bare]
        return np.stack([np.zeros(len(texts)), score], 1)


class Columns:
    """Scores of rows: linear in the columns, and how many rows each call had."""

    weights = np.array([1.0, -2, 0.5, 7])

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, rows: np.ndarray) -> Tensor:
        self.calls.append(len(rows))
        return torch.from_numpy(np.stack([rows @ self.weights, np.zeros(len(rows))], 1))


# The core, by hand and against a slow twin.


def test_weights_by_hand() -> None:
    z = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    expected = [0, 1 - (2 / 3) ** 0.5, 1 - (1 / 3) ** 0.5, 1]
    np.testing.assert_allclose(cosine_distance(z), expected, atol=1e-15)
    # e^0, e^−0.539…, e^−2.859…, e^−16
    near = proximity(cosine_distance(z))
    np.testing.assert_allclose(near, [1, 0.58325, 0.05735, 1.125e-7], rtol=1e-3)
    np.testing.assert_allclose(proximity(np.array([0.5]), 0.5), np.exp([-1]))


def test_the_fit_by_hand() -> None:
    # Where z = 1 the weighted mean of the scores is (4 + 3 · 8) / 4 = 7, where z = 0 it is 2.
    z, scores, weights = np.array([[1], [1], [0]]), np.array([4, 8, 2]), np.array([1, 3, 4])
    fit = surrogate(z, scores, weights, ridge=0)
    np.testing.assert_allclose([*fit.coefficients, fit.intercept], [5, 2])
    # Σπ(f − 4.5)² = 0.25 + 36.75 + 25 = 62 and Σπ(f − g)² = 9 + 3 = 12
    np.testing.assert_allclose(fit.r2, 1 - 12 / 62)
    np.testing.assert_allclose(surrogate(z, scores, weights, ridge=1.0).coefficients, [2.5])


def twin(
    z: np.ndarray, scores: np.ndarray, weights: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients with the intercept last, their sandwich covariance, and R², by loops."""
    samples, players = z.shape
    rows = [np.append(row, 1) for row in z]
    mean = sum(p * row for p, row in zip(weights, z, strict=True)) / weights.sum()
    spread = sum(p * (row - mean) ** 2 for p, row in zip(weights, z, strict=True))
    left, right = np.zeros((players + 1, players + 1)), np.zeros(players + 1)
    for p, row, score in zip(weights, rows, scores, strict=True):
        left += p * np.outer(row, row)
        right += p * row * score
    for i in range(players):
        left[i, i] += ridge * spread.mean()
    solution = np.linalg.solve(left, right)
    middle, unexplained, variance = np.zeros_like(left), 0.0, 0.0
    level = (weights * scores).sum() / weights.sum()
    for p, row, score in zip(weights, rows, scores, strict=True):
        error = score - solution @ row
        middle += p**2 * error**2 * np.outer(row, row)
        unexplained += p * error**2
        variance += p * (score - level) ** 2
    covariance = np.linalg.inv(left) @ middle @ np.linalg.inv(left)
    return solution, covariance * samples / (samples - players - 1), 1 - unexplained / variance


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1, 3.0])
@pytest.mark.parametrize("real", [False, True])
def test_the_fit_against_its_twin(ridge: float, real: bool) -> None:
    draw = np.random.default_rng(1)
    z = draw.normal(size=(40, 5)) if real else draw.integers(0, 2, (40, 5))
    scores, weights = draw.normal(size=40) + z[:, 0] * z[:, 1], draw.uniform(size=40)
    fit = surrogate(z, scores, weights, ridge=ridge)
    solution, covariance, r2 = twin(z, scores, weights, ridge)
    np.testing.assert_allclose([*fit.coefficients, fit.intercept], solution, atol=1e-10)
    np.testing.assert_allclose(fit.standard_error**2, covariance.diagonal()[:5], atol=1e-10)
    np.testing.assert_allclose(fit.r2, r2, atol=1e-10)
    tensors = surrogate(*map(torch.as_tensor, (z, scores, weights)), ridge=ridge)
    np.testing.assert_array_equal(tensors.coefficients, fit.coefficients)


def test_features_are_the_strongest_and_fitted_again() -> None:
    draw = np.random.default_rng(2)
    z, truth = draw.integers(0, 2, (200, 6)), np.array([0, 3.0, 0.2, -5, 0.1, 1])
    scores, weights = 7 + z @ truth, draw.uniform(size=200)
    chosen = {k: np.flatnonzero(surrogate(z, scores, weights, features=k)[0]) for k in range(1, 9)}
    assert chosen[1].tolist() == [3]
    assert chosen[2].tolist() == [1, 3]
    assert chosen[3].tolist() == [1, 3, 5]
    two = surrogate(z, scores, weights, features=2)
    again = surrogate(z[:, [1, 3]], scores, weights)
    np.testing.assert_allclose(two.coefficients[[1, 3]], again.coefficients)
    np.testing.assert_allclose([two.intercept, two.r2], [again.intercept, again.r2])
    assert np.isnan(two.standard_error).tolist() == [True, False, True, False, True, True]
    for k in (6, 7, 8):
        full = surrogate(z, scores, weights, features=k)
        np.testing.assert_allclose(full.coefficients, truth, atol=1e-4)


def test_a_player_that_never_changes_gets_nothing() -> None:
    z = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    for ridge in (0.0, 1e-6):
        fit = surrogate(z, np.array([3, 1, 3, 1]), np.ones(4), ridge=ridge)
        np.testing.assert_allclose(fit.coefficients, [0, 2, 0], atol=1e-5)


def test_what_cannot_be_judged_is_nan() -> None:
    z = np.random.default_rng(0).integers(0, 2, (30, 4))
    constant = surrogate(z, np.full(30, 0.1), np.ones(30))
    np.testing.assert_allclose(constant.coefficients, 0, atol=1e-12)
    assert np.isnan(constant.r2)
    for options in ({}, {"features": 4}):
        few = surrogate(z[:5], np.arange(5), np.ones(5), **options)  # five unknowns match five
        assert np.isnan(few.r2)
        assert np.isnan(few.standard_error).all()
    assert surrogate(z[:6], np.arange(6) ** 2, np.ones(6)).r2 <= 1
    none = surrogate(z, np.full(30, 0.1), np.ones(30), features=2)
    assert none.coefficients.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("z", {"z": np.ones(3)}),
        ("z", {"z": np.ones((3, 0))}),
        ("z", {"z": [[1], [0], [1]]}),
        ("scores", {"scores": np.ones(2)}),
        ("scores", {"scores": np.ones((3, 1))}),
        ("scores", {"scores": np.array([1, 2, np.nan])}),
        ("scores", {"scores": np.array(["a", "b", "c"])}),
        ("weights", {"weights": np.array([1, 1, -1.0])}),
        ("weights", {"weights": np.zeros(3)}),
        ("weights", {"weights": np.ones(4)}),
        ("weights:", {"weights": np.array([1.0, 0, 0])}),
        ("weights:", {"weights": np.array([1.0, 1e-20, 0])}),
        ("weights:", {"weights": np.array([1.0, 0, 1])}),
        ("ridge", {"ridge": -1.0}),
        ("ridge", {"ridge": "strong"}),
        ("features", {"features": 0}),
        ("features", {"features": 1.5}),
        ("samples", {"z": np.ones((3, 3)), "ridge": 0}),
        ("samples", {"z": np.ones((1, 1)), "scores": np.ones(1), "weights": np.ones(1)}),
    ],
)
def test_bad_samples(argument: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "z": np.array([[1], [0], [1]]),
        "scores": np.arange(3),
        "weights": np.ones(3),
    }
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        surrogate(**good | change)
    assert "\n" not in str(error.value)


def test_bad_widths() -> None:
    for width in (0, -1, float("inf"), "wide"):
        with pytest.raises((ValueError, TypeError), match="^width "):
            proximity(np.ones(2), width)  # type: ignore[arg-type]


# Images.


@pytest.mark.parametrize("options", [{}, {"kernel_width": 0.1}, {"features": 4}, {"ridge": 0.0}])
def test_a_model_linear_in_the_segments_is_recovered(options: dict[str, Any]) -> None:
    images = batch(2, dtype=torch.float64)
    result = estimate(Recorder(), images, 0, **options)
    # Hidden, a segment holds the image's mean colour: its part of the sum goes from Σx to n · mean.
    for image, row in zip(images, result.value, strict=True):
        for label in SEGMENTS.unique():
            inside = label == SEGMENTS
            truth = (image - image.mean((1, 2), keepdim=True))[:, inside].sum()
            torch.testing.assert_close(row[inside], truth.expand(16), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.r2, torch.ones(2).double())
    assert result.standard_error.max() < 1e-4


def test_features_limit_the_segments() -> None:
    result = estimate(Recorder(), batch(2), 0, features=2)
    for row, error in zip(result.value, result.standard_error, strict=True):
        assert len(row.unique()) == 3
        assert ((row == 0) == error.isnan()).all()
    assert (result.r2 < 1).all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("fill", [None, 0.5])
def test_images_against_their_twin(network: str, fill: float | None) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    result = estimate(model, images, 3, baseline=fill, generator=seeded(5), ridge=0.1)
    drawn = torch.rand(40, 4, generator=seeded(5)) < 0.5
    drawn[0] = True
    z = drawn.double().numpy()
    weights = np.array([np.exp(-((1 - (row.sum() / 4) ** 0.5) ** 2) / 0.25**2) for row in z])
    for i, image in enumerate(images):
        scores = []
        for row in z:
            changed = image.clone()
            for present, label in zip(row, (-5, -2, 1, 4), strict=True):
                for channel in range(3):
                    if not present:
                        colour = image[channel].mean() if fill is None else fill
                        changed[channel][label == SEGMENTS] = colour
            with torch.no_grad():
                scores.append(float(model(changed[None])[0, 3]))
        solution, covariance, r2 = twin(z, np.array(scores), weights, 0.1)
        for player, label in enumerate((-5, -2, 1, 4)):
            place = label == SEGMENTS
            assert (result.value[i][place] - solution[player]).abs().max() < 1e-10
            error = covariance[player, player] ** 0.5
            assert (result.standard_error[i][place] - error).abs().max() < 1e-10
        assert abs(result.r2[i] - r2) < 1e-10


def test_the_standard_error_is_that_of_the_map() -> None:
    def model(images: Tensor) -> Tensor:
        bands = images.mean((1, 3)).view(-1, 4, 2).mean(2)
        return (3 * bands[:, :1] * bands[:, 1:2] + bands[:, 2:3]).exp()

    images = 1 + batch(1)
    repeats = [
        estimate(model, images, 0, samples=100, generator=seeded(seed), batch_size=100)
        for seed in range(300)
    ]
    coefficients = torch.cat([one.value for one in repeats])[:, ::2, 0]
    errors = torch.cat([one.standard_error for one in repeats])[:, ::2, 0]
    torch.testing.assert_close(coefficients.std(0), (errors**2).mean(0).sqrt(), rtol=0.2, atol=0)


def test_one_set_of_samples_explains_every_class() -> None:
    model, images = make("Residual").double().eval(), batch(1, dtype=torch.float64)
    z, logits = sample_image(model, images, SEGMENTS, samples=40)
    assert z.shape == (40, 4)
    assert z.dtype == torch.bool
    assert z[0].all()
    with torch.no_grad():
        torch.testing.assert_close(logits[0], model(images)[0], rtol=0, atol=1e-12)
    for c in logits[0].topk(3).indices:
        w = surrogate(z, logits[:, c], proximity(cosine_distance(z))).coefficients
        result = explain(model, images, int(c))
        assert torch.equal(result[0, ::2, 0], torch.from_numpy(w))


def test_a_single_segment_has_nothing_to_be_compared_with() -> None:
    model, one = Recorder(), torch.full((8, 8), 7)
    mixed = torch.stack([SEGMENTS, one, SEGMENTS])
    for images, segments, number in ((batch(), mixed, 1), (batch()[..., :1, :1], None, 0)):
        with pytest.raises(
            ValueError, match=f"^segments must be at least two, .* {number} has one"
        ):
            explain(model, images, 0, segments=segments)
    with pytest.raises(ValueError, match="^segments must be at least two"):
        sample_image(model, batch(1), one)
    assert not model.calls


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_segments_are_found_in_any_number_of_channels(channels: int) -> None:
    images = torch.rand(1, channels, 16, 16, generator=seeded(0), dtype=torch.float64)
    result = lime_image(lambda x: x.sum((2, 3)), images, 0, baseline=0.0, samples=200)
    # f is a sum: a segment's coefficient is the sum of its pixels in the first channel.
    labels = torch.from_numpy(regions.segment(images[0]))
    for label in labels.unique():
        inside = labels == label
        truth = images[0, 0][inside].sum().expand(int(inside.sum()))
        torch.testing.assert_close(result[0][inside], truth, rtol=1e-3, atol=1e-3)


def test_segments_of_its_own_and_found() -> None:
    images = batch(2)
    own = torch.stack([SEGMENTS, SEGMENTS.T])
    result = explain(Recorder(), images, 0, segments=own)
    assert torch.equal(result[:1], explain(Recorder(), images[:1], 0))
    assert torch.equal(result[1:], explain(Recorder(), images[1:], 0, segments=SEGMENTS.T.numpy()))
    found = explain(Recorder(), images, 0, segments=None, samples=200)
    assert found.shape == (2, 8, 8)
    assert len(found[0].unique()) > 4


def test_forward_passes() -> None:
    model = Recorder()
    explain(model, batch(3), samples=23, batch_size=7)
    assert sum(model.calls) == 3 * 23
    assert max(model.calls) == 7
    model = Recorder()
    sample_image(model, batch(1), SEGMENTS, samples=23, batch_size=7)
    assert model.calls == [7, 7, 7, 2]


@pytest.mark.parametrize("network", NETWORKS)
def test_batches_do_not_matter(network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    segments = torch.stack([SEGMENTS, SEGMENTS // 5, torch.arange(64).view(8, 8) // 3])
    options: dict[str, Any] = {"ridge": 0.01}
    together = explain(model, images, segments=segments, **options)
    alone = torch.cat(
        [
            explain(model, image[None], segments=labels, **options)
            for image, labels in zip(images, segments, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    small = explain(model, images, segments=segments, batch_size=1, **options)
    torch.testing.assert_close(together, small, rtol=0, atol=1e-10)


def test_a_function_is_explained_as_a_module_is() -> None:
    model, images = make("Residual").eval(), batch()
    function = explain(lambda x: model(x), images)
    assert torch.equal(explain(model, images), function)
    assert not function.requires_grad


def test_target_none_is_the_argmax() -> None:
    model, images = make("Residual").eval(), batch()
    with torch.no_grad():
        answers = model(images).argmax(1)
    assert torch.equal(explain(model, images), explain(model, images, answers))
    assert torch.equal(explain(model, images)[1:2], explain(model, images[1:2], int(answers[1])))


def test_every_image_has_its_own_target() -> None:
    model, images = make("Residual").double(), batch(dtype=torch.float64)
    result = explain(model, images, torch.tensor([1, 4, 0]))
    for i, target in enumerate((1, 4, 0)):
        torch.testing.assert_close(result[i], explain(model, images, target)[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(dtype: torch.dtype) -> None:
    model, images = make("Residual").to(dtype), batch(dtype=torch.float32).to(dtype)
    model.train()
    result, error, spread, r2 = estimate(model, images, 1)
    assert model.training
    assert result.shape == error.shape == (3, 8, 8)
    assert result.dtype == error.dtype == r2.dtype == dtype
    assert r2.shape == (3,)
    assert spread is None
    with torch.inference_mode():
        again = explain(model, images.clone(), 1)
    assert torch.equal(result, again)
    assert torch.equal(result, explain(model, images.clone().requires_grad_(), 1))


METHODS: dict[str, Callable] = {
    "image": lambda **options: explain(make("Residual"), batch(), **options).numpy(),
    "text": lambda **options: [value for _, value in lime_text(loud, TEXT, **options)],
    "table": lambda **options: lime_tabular(curved, DATA[0], DATA, **options),
}


def loud(texts: list[str]) -> np.ndarray:
    return Reader()(texts) ** 2


def curved(rows: np.ndarray) -> Tensor:
    return Columns()(rows) ** 2


every_method = pytest.mark.parametrize("name", METHODS)


@every_method
def test_the_generator(name: str) -> None:
    method, before = METHODS[name], torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    first = method()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # type: ignore[index] # noqa: NPY002
    np.testing.assert_array_equal(first, method(generator=seeded(0)))
    generator = seeded(1)
    other = method(generator=generator)
    np.testing.assert_array_equal(other, method(generator=seeded(1)))
    assert not np.array_equal(first, other)
    assert not np.array_equal(other, method(generator=generator))  # it went on


BAD: dict[str, list[object]] = {
    "samples": [0, 1, -3, 2.5, True],
    "kernel_width": [0, -1.0, float("nan"), "wide"],
    "ridge": [-1, None],
    "features": [0, -2, 1.5],
    "batch_size": [0, 1.5],
    "generator": [0, "cpu"],
}
BAD_IMAGES: dict[str, list[object]] = {
    "segments": [SEGMENTS[:7], SEGMENTS[None].repeat(2, 1, 1), SEGMENTS.double(), SEGMENTS > 0, 50],
    "baseline": [float("nan"), "grey", torch.zeros(2, 8, 8)],
}
CASES = [
    *((name, argument, value) for name in METHODS for argument in BAD for value in BAD[argument]),
    *(("image", argument, value) for argument in BAD_IMAGES for value in BAD_IMAGES[argument]),
]


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_bad_options(name: str, argument: str, value: object) -> None:
    asked: list[tuple[Any, Callable]] = [
        (model := Recorder(), partial(explain, model, batch())),
        (reader := Reader(), partial(lime_text, reader, TEXT)),
        (columns := Columns(), partial(lime_tabular, columns, DATA[0], DATA)),
    ]
    recorder, method = asked[list(METHODS).index(name)]
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        method(**{argument: value})
    assert not recorder.calls
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_without_ridge_samples_must_suffice(name: str) -> None:
    unknown = {"image": 5, "text": 10, "table": 5}[name]
    METHODS[name](samples=unknown, ridge=0)
    with pytest.raises(ValueError, match=f"^samples is {unknown - 1}; without ridge .*{unknown},"):
        METHODS[name](samples=unknown - 1, ridge=0)
    assert np.isfinite(METHODS[name](samples=unknown - 1)).all()


def test_bad_images_and_targets() -> None:
    model = Recorder()
    for images in (batch()[0], batch().long(), batch() / 0):
        with pytest.raises((ValueError, TypeError), match="^images "):
            explain(model, images)
        with pytest.raises((ValueError, TypeError), match="^images "):
            sample_image(model, images, SEGMENTS)
    with pytest.raises(ValueError, match="^image must be one"):
        sample_image(model, batch(2), SEGMENTS)
    with pytest.raises(TypeError, match="^model must be a torch.nn.Module or a function"):
        explain("resnet18", batch())
    with pytest.raises(TypeError, match="^target must be a class number"):
        explain(model, batch(), 1.5)
    assert not model.calls
    for target in (2, -1, torch.tensor([2, 0, 0])):
        model = Recorder()
        with pytest.raises(ValueError, match="^target: there is no class"):
            explain(model, batch(), target)
        assert len(model.calls) == 1
    with pytest.raises(ValueError, match="^model must return logits"):
        explain(lambda x: x, batch())


# Texts.


def test_a_model_linear_in_the_words_is_recovered() -> None:
    result, error, _, r2 = lime_text_fit(Reader(), TEXT, 1)
    counts = dict(zip(WORDS, [1, 3, 1, 1, 2, 1, 1, 1, 1], strict=True))
    truth = {word: WEIGHTS[word] * counts[word] for word in WORDS}
    assert sorted(word for word, _ in result) == sorted(WORDS)
    sizes = [abs(value) for _, value in result]
    assert sizes == sorted(sizes, reverse=True)
    for word, value in result:
        assert abs(value - truth[word]) < 1e-4
    assert r2.shape == (1,)
    assert abs(r2 - 1) < 1e-6
    assert error.shape == (9,)
    assert lime_text(Reader(), TEXT, 1) == result
    few = lime_text(Reader(), TEXT, 1, features=2)
    assert [word for word, _ in few] == ["the", "bad"]


def test_words_go_everywhere_and_all_else_stays() -> None:
    reader = Reader()
    lime_text(reader, TEXT, 1, samples=300, batch_size=64)
    texts = [text for call in reader.calls for text in call]
    assert texts[0] == TEXT
    assert len(texts) == 300
    assert [len(call) for call in reader.calls] == [64, 64, 64, 64, 44]
    assert len(set(texts)) > 150
    for text in texts:
        assert text.count("film") in (0, 3)
        assert text.count("the") in (0, 2)
        assert "".join(sign for sign in text if sign in " ,:.") == " ,  :    ,    ."
    assert any("is " in text and "isn't" not in text for text in texts)


# In many scripts vowel signs and accents are characters of their own.
SCRIPTS = {
    "Hindi": "नमस्ते दुनिया अच्छी",
    "Hindi, joined": "क्\u200dष त्र",
    "Tamil": "தமிழ் மொழி",
    "Sinhala": "ශ්\u200dරී ලංකා",
    "Thai": "ไม่ รู้ สู้ หวัง",
    "Hebrew": "מְאֹד טוֹב",
    "Arabic": "السَّلَامُ عَلَيْكُمْ",
    "Persian": "می\u200cخواهم بروم",
    "Korean": "한국어 좋다",
    "French, decomposed": "cafe\u0301 noir d'e\u0301te\u0301",
    "Greek, decomposed": "και\u0301 αυ\u0313το\u0301ς",
    "German, hyphenated": "Donau\u00addampf schiff",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_every_script(script: str) -> None:
    text = SCRIPTS[script]
    words = text.split()
    asked: list[str] = []

    def first(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[float(words[0] in text)] for text in texts])

    result = lime_text(first, text, 0, samples=100)
    assert sorted(word for word, _ in result) == sorted(words)
    assert result[0][0] == words[0]
    np.testing.assert_allclose([value for _, value in result], np.eye(len(words))[0], atol=1e-3)
    assert all(word in words for part in asked for word in part.split())  # no mark is left behind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("well-known, isn't it’s 'quoted' rock'n'roll", "well known isn't it’s quoted rock'n'roll"),
        ("👍🏽 super ❤️ top 👨‍👩‍👧 go", "super top go"),  # emoji and their marks are no words
        ("\u0301 a\u0301-b", "a\u0301 b"),  # a mark without a letter
        ("x_1 ½ 3rd ٣", "x_1 ½ 3rd ٣"),
    ],
)
def test_what_is_a_word(text: str, words: str) -> None:
    found = lime_text(lambda texts: np.ones((len(texts), 1)), text)
    assert sorted(word for word, _ in found) == sorted(words.split())


def test_a_text_of_one_word() -> None:
    ((word, value),) = lime_text(lambda texts: np.array([[len(t)] for t in texts]), "Straße!", 0)
    assert word == "Straße"
    assert abs(value - 6) < 1e-4


# Tables.


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_model_linear_in_the_columns_is_recovered(kind: Callable) -> None:
    columns = Columns()
    result, error, _, r2 = lime_tabular_fit(
        columns, kind(DATA[0]), kind(DATA), 0, samples=300, batch_size=64
    )
    truth = Columns.weights * DATA.std(0)  # the last column does not vary
    assert truth[3] == 0
    np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-12)
    assert columns.calls == [64, 64, 64, 64, 44]
    assert abs(r2 - 1) < 1e-6
    assert error.shape == (4,)


@pytest.mark.parametrize("width", [None, 1.0])
def test_tables_against_their_twin(width: float | None) -> None:
    data, row = DATA[:, :3], DATA[7, :3]
    noise = torch.randn(50, 3, generator=seeded(5), dtype=torch.float64).numpy()
    noise[0] = 0
    wide = 0.75 * 3**0.5 if width is None else width
    weights = np.array([np.exp(-((z**2).sum()) / wide**2) for z in noise])
    rows = np.array([[row[i] + z[i] * data[:, i].std() for i in range(3)] for z in noise])
    solution, covariance, r2 = twin(noise, np.sin(rows).sum(1), weights, 0.1)
    result, error, _, share = lime_tabular_fit(
        lambda rows: np.sin(rows).sum(1, keepdims=True),
        row,
        data,
        samples=50,
        kernel_width=width,
        ridge=0.1,
        generator=seeded(5),
    )
    np.testing.assert_allclose(result, solution[:3], atol=1e-10)
    np.testing.assert_allclose(error**2, covariance.diagonal()[:3], atol=1e-10)
    np.testing.assert_allclose(share, [r2], atol=1e-10)


def test_a_table_is_explained_near_the_row() -> None:
    def square(rows: np.ndarray) -> np.ndarray:
        return rows[:, :1] ** 2

    # Near x the slope of x² is 2x, the symmetric noise adding nothing to it on average.
    spread = DATA[:, 0].std()
    for row in DATA[:3]:
        result = lime_tabular(square, row, DATA, 0, samples=20000)
        np.testing.assert_allclose(result[0] / spread, 2 * row[0], rtol=0.05, atol=0.1)
        np.testing.assert_allclose(result[1:], 0, atol=0.1)


def test_target_none_is_the_highest_score() -> None:
    def whole(texts: list[str]) -> np.ndarray:  # of the text itself, whatever the samples say
        return np.array([[text == TEXT, 0.5 + 0.1 * ("bad" in text)] for text in texts], float)

    assert lime_text(whole, TEXT) == lime_text(whole, TEXT, 0)
    assert lime_text(whole, TEXT) != lime_text(whole, TEXT, 1)
    row = DATA[0]
    best = int(Columns()(row[None])[0].argmax())
    np.testing.assert_array_equal(
        lime_tabular(Columns(), row, DATA), lime_tabular(Columns(), row, DATA, best)
    )


def test_bad_texts_and_tables() -> None:
    reader, columns = Reader(), Columns()
    for text in ("", "  ", "?!"):
        with pytest.raises(ValueError, match="^text must hold at least one word"):
            lime_text(reader, text, 1)
    with pytest.raises(TypeError, match="^text must be a string, not list$"):
        lime_text(reader, ["good"], 1)
    for row in (DATA[0, :3], DATA[0][None], DATA[0] * np.nan, [1.0] * 4):
        with pytest.raises((ValueError, TypeError), match="^(row|data) must be "):
            lime_tabular(columns, row, DATA, 0)
    for data in (DATA[:1], DATA[0], DATA[:, :3], DATA * np.inf, DATA.astype(str), DATA[:, [3] * 4]):
        with pytest.raises((ValueError, TypeError), match="^data"), np.errstate(invalid="ignore"):
            lime_tabular(columns, DATA[0], data, 0)
    for function in (partial(lime_text, text=TEXT), partial(lime_tabular, row=DATA[0], data=DATA)):
        with pytest.raises(TypeError, match="^predict must be a function, not str$"):
            function("model")
        with pytest.raises(TypeError, match="^target must be a whole number"):
            function(reader, target=1.0)
        with pytest.raises(ValueError, match="^predict must return scores .* shape "):
            function(lambda inputs: np.ones(len(inputs)))
        with pytest.raises(ValueError, match="^predict must return scores .* shape "):
            function(lambda inputs: np.ones((1, 2)))
        with pytest.raises(TypeError, match="^predict must return an array or a tensor, not list$"):
            function(lambda inputs: [[0.5, 0.5]] * len(inputs))
        with pytest.raises(ValueError, match="^scores must be finite"):
            function(lambda inputs: np.full((len(inputs), 2), np.nan))
        with pytest.raises(ValueError, match="^target: there is no class 1; .* 0 to 0$"):
            function(lambda inputs: np.ones((len(inputs), 1)), target=1)
    assert not reader.calls
    assert not columns.calls


def test_a_single_class_has_nothing_to_explain() -> None:
    result, _, _, r2 = lime_text_fit(lambda texts: np.ones((len(texts), 1)), TEXT)
    assert max(abs(value) for _, value in result) < 1e-12
    assert r2.isnan().all()


# Runs.


def test_rank_agreement() -> None:
    maps = np.random.default_rng(0).integers(0, 6, (4, 3, 5)).astype(float)
    pairs = [spearmanr(maps[i].ravel(), maps[j].ravel())[0] for i in range(4) for j in range(i)]
    np.testing.assert_allclose(rank_agreement(maps), np.mean(pairs))
    ramp = torch.arange(5.0)
    np.testing.assert_allclose(rank_agreement(torch.stack([ramp, ramp.exp()])), 1)
    np.testing.assert_allclose(rank_agreement(torch.stack([ramp, -ramp])), -1)
    assert np.isnan(rank_agreement(torch.stack([ramp, 0 * ramp])))
    for bad in (ramp, ramp[None], ramp / 0, None):
        with pytest.raises((ValueError, TypeError), match="^maps must be "):
            rank_agreement(bad)  # type: ignore[arg-type]


def test_more_samples_agree_more() -> None:
    model, segments = make("Residual").double(), torch.arange(64).view(8, 8) // 4
    images = batch(1, dtype=torch.float64)
    few, many = (
        rank_agreement(
            torch.cat(
                [
                    explain(model, images, segments=segments, samples=samples, generator=seeded(s))
                    for s in range(5)
                ]
            )
        )
        for samples in (30, 600)
    )
    assert few < many
    assert many > 0.8


# The authors' package.


def package_ridge(z: np.ndarray, weights: np.ndarray) -> float:
    """Their penalty, 1 · ‖w‖², in ours."""
    center = np.average(z, 0, weights)
    return z.shape[1] / float((weights[:, None] * (z - center) ** 2).sum())


@pytest.mark.references
def test_the_fit_equals_the_package() -> None:
    from lime.lime_base import LimeBase

    draw = np.random.default_rng(3)
    z = draw.integers(0, 2, (300, 8)).astype(float)
    z[0] = 1
    scores = z @ draw.normal(size=8) + z[:, 0] * z[:, 1] + draw.normal(size=300)
    distance = cosine_distance(z)
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)))
    # The square root makes their width √2 as large in terms of ours.
    weights = proximity(distance, 0.25 * 2**0.5)
    ridge = package_ridge(z, weights)
    for features in (3, 5, 8):
        method = "lasso_path" if features < 8 else "none"
        intercept, pairs, r2, _ = base.explain_instance_with_data(
            z, scores[:, None], distance, 0, features, feature_selection=method
        )
        chosen = sorted(number for number, _ in pairs)
        again = package_ridge(z[:, chosen], weights)
        fit = surrogate(z[:, chosen], scores, weights, ridge=again)
        picked = surrogate(z, scores, weights, ridge=ridge, features=features)
        assert np.flatnonzero(picked.coefficients).tolist() == chosen
        np.testing.assert_allclose(fit.coefficients, [dict(pairs)[i] for i in chosen], atol=1e-10)
        np.testing.assert_allclose([fit.intercept, fit.r2], [intercept, r2], atol=1e-10)


@pytest.mark.references
def test_images_equal_the_package() -> None:
    from lime.lime_image import LimeImageExplainer

    model, image = make("Residual").double().eval(), batch(1, dtype=torch.float64)
    color = image.mean((2, 3))[0].tolist()

    def predict(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pictures).permute(0, 3, 1, 2).clone()).numpy()

    _, segments = SEGMENTS.unique(return_inverse=True)
    theirs = LimeImageExplainer(random_state=0).explain_instance(
        image[0].permute(1, 2, 0).numpy(),
        predict,
        labels=(3,),
        top_labels=None,
        hide_color=color,
        num_samples=4000,
        segmentation_fn=lambda _: segments.numpy(),
    )
    z, _ = sample_image(model, image, SEGMENTS, samples=4000, batch_size=500)
    ridge = package_ridge(z.double().numpy(), proximity(cosine_distance(z), 0.25 * 2**0.5))
    result = estimate(
        model, image, 3, samples=4000, kernel_width=0.25 * 2**0.5, ridge=ridge, batch_size=500
    )
    for number, value in theirs.local_exp[3]:
        place = segments == number
        # Their draws are others: the two differ by chance alone.
        gap = (result.value[0][place] - value).abs().max()
        assert gap < 5 * 2**0.5 * result.standard_error[0][place].max()


@pytest.mark.references
def test_texts_equal_the_package() -> None:
    from lime.lime_text import LimeTextExplainer
    from sklearn.linear_model import LinearRegression

    text = TEXT.replace("isn't", "is")
    theirs = LimeTextExplainer(random_state=0).explain_instance(
        text, Reader(), labels=(1,), num_samples=400, model_regressor=LinearRegression()
    )
    ours = dict(lime_text(Reader(), text, 1))
    assert dict(theirs.as_list(1)).keys() == ours.keys()
    for word, value in theirs.as_list(1):
        assert abs(ours[word] - value) < 1e-4


@pytest.mark.references
def test_tables_equal_the_package() -> None:
    from lime.lime_tabular import LimeTabularExplainer

    data = DATA[:, :3]

    def predict(rows: np.ndarray) -> np.ndarray:
        return np.sin(rows[:, :1]) + rows[:, 1:2] * rows[:, 2:]

    theirs = LimeTabularExplainer(
        data, mode="regression", discretize_continuous=False, sample_around_instance=True,
        feature_selection="none", random_state=0,
    ).explain_instance(data[0], lambda rows: predict(rows)[:, 0], num_samples=20000)  # fmt: skip
    result, error, _, _ = lime_tabular_fit(
        predict, data[0], data, samples=20000, kernel_width=0.75 * 6**0.5
    )
    for number, value in theirs.local_exp[1]:
        # Their draws are others, and their ridge of 1 is nothing beside 20,000 samples.
        assert abs(result[number] - value) < 5 * 2**0.5 * error[number]
