"""Concept vectors and TCAV: by hand, by finite differences, against Captum; the test's level."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest, ttest_ind
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from course_utils import models
from course_utils.units import concepts, vectors
from course_utils.units.vectors import activations, class_slopes, concept_vector, tcav
from course_utils.worlds import photographs
from course_utils.worlds.scenes import Scenes
from tests.networks import NETWORKS, batch, make
from tests.test_features import refused

Rows = NDArray[np.float64]


def clouds(m: int, n: int, d: int = 6, apart: float = 0.0, seed: int = 0) -> tuple[Rows, Rows]:
    """Activations of M images with a concept and of N others, `apart` along the first unit."""
    rows = np.random.default_rng(seed).standard_normal((m + n, d))
    rows[:m, 0] += apart
    return rows[:m], rows[m:]


# Vectors ----------------------------------------------------------------------------------------


def test_the_mean_difference_by_hand() -> None:
    concept, others = np.zeros((6, 2)), np.zeros((8, 2))
    concept[:, 0], concept[:, 1] = 5, [3, 5] * 3
    others[:, 0], others[:, 1] = 2, [-1, 1] * 4
    found = concept_vector(concept, others)
    assert found.vector == pytest.approx([0.6, 0.8])  # (3, 4) / 5
    assert found.step == pytest.approx(5)
    assert found.accuracy == 1


@pytest.mark.parametrize("kind", vectors.KINDS)
def test_a_vector_finds_its_direction_and_says_how_well(kind: str) -> None:
    found = concept_vector(*clouds(300, 300, apart=2), kind=kind)
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert found.vector[0] > 0.95
    assert found.step == pytest.approx(2, abs=0.2)
    assert found.accuracy == pytest.approx(0.841, abs=0.04)  # Φ(1)
    nothing = concept_vector(*clouds(300, 300), kind=kind)
    assert nothing.accuracy == pytest.approx(0.5, abs=0.07)


def test_the_logistic_vector_is_scikit_learns() -> None:
    concept, others = clouds(40, 40, apart=1)
    scale = np.array([1, 10, 0.1, 1, 1, 1])
    rows = np.concatenate([concept, others]) * scale
    fit = LogisticRegression(C=vectors.PENALTY).fit(rows / rows.std(0), np.arange(80) < 40)
    wanted = fit.coef_[0] / rows.std(0)
    found = concept_vector(concept * scale, others * scale, kind="logistic")
    np.testing.assert_allclose(found.vector, wanted / np.linalg.norm(wanted), atol=1e-4)


def test_weights_cancel_what_disturbs_and_the_means_do_not() -> None:
    """A distractor shared by both units: the concept moves unit 0 alone, as in lecture 07."""
    generator = np.random.default_rng(0)
    concept, others = clouds(2000, 2000, 2, apart=1)
    for rows in (concept, others):
        rows *= 0.3
        rows += 2 * generator.standard_normal((len(rows), 1))
    mean = concept_vector(concept, others).vector
    logistic = concept_vector(concept, others, kind="logistic").vector
    assert mean[0] > 0.9
    assert logistic[1] < -0.5  # the filter subtracts the distractor that unit 1 measures


def test_held_out_accuracy_of_kinds_of_unequal_number() -> None:
    found = concept_vector(*clouds(10, 400))
    assert found.accuracy < 0.8  # 400 of 410 would be 0.98


# Slopes -----------------------------------------------------------------------------------------


def linear() -> Any:
    """Two maps, their means, two classes: f_c = w_c · mean(A) + b_c."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    ).double()


def test_slopes_of_a_linear_network_are_its_weights() -> None:
    model, images = linear(), batch(4, dtype=torch.float64)
    for c in range(2):
        slopes = class_slopes(model, "0", images, c)
        torch.testing.assert_close(slopes, model[3].weight[c].expand(4, 2).detach())
        everywhere = class_slopes(model, "0", images, c, pool="none")
        wanted = (model[3].weight[c].detach() / 64).repeat_interleave(64).expand(4, 128)
        torch.testing.assert_close(everywhere, wanted)


def test_tcav_of_a_linear_network_by_hand() -> None:
    """v = (0.6, 0.8), step 5: the score rises by 5 · (w_c · v) for every image, or falls."""
    model = linear()
    model[3].weight.data = torch.tensor([[1.0, 0.5], [-1.0, 0.0]]).double()
    concept, others = np.zeros((9, 2)), np.zeros((9, 2))
    concept[:] = [3, 4]
    found = [
        tcav(
            class_slopes(model, "0", batch(4, dtype=torch.float64), c), concept, others, kind="mean"
        )
        for c in range(2)
    ]
    assert [one.score for one in found] == [1, 0]
    assert [one.effect for one in found] == pytest.approx([5, -3])
    assert all(one.p < 0.01 for one in found)
    assert all(one.random_scores.shape == one.random_effects.shape == (199,) for one in found)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pool", vectors.ROWS)
def test_slopes_equal_finite_differences(name: str, pool: str) -> None:
    """Twin: the score after a small step in a unit, everywhere or in one place, in float64."""
    layer = {"InPlaceFirst": "conv", "Functional": "conv1", "Reused": "stem", "Residual": "conv1"}
    model, images = make(name).double().eval(), batch(2, dtype=torch.float64)
    found = class_slopes(model, layer[name], images, torch.tensor([1, 3]), pool=pool)
    rows = activations(model, layer[name], images, pool=pool)
    assert rows.shape == found.shape
    places = range(rows.shape[1]) if pool == "mean" else range(5, rows.shape[1], 61)
    for d in places:
        moved = []
        for step in (1e-6, -1e-6):
            with shifted(model.get_submodule(layer[name]), d, step, pool), torch.no_grad():
                moved.append(model(images.clone())[[0, 1], [1, 3]])
        slope = (moved[0] - moved[1]) / 2e-6
        torch.testing.assert_close(found[:, d], slope, rtol=1e-5, atol=1e-7)


class shifted:
    """Inside, unit d (or one place of it) of a layer's output is larger by a step."""

    def __init__(self, layer: nn.Module, d: int, step: float, pool: str) -> None:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            output = output.clone()
            (output if pool == "mean" else output.flatten(1))[:, d] += step
            return output

        self.handle = layer.register_forward_hook(hook)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_activations_are_means_or_all_places() -> None:
    model, images = make("Functional"), batch(5)
    means = activations(model, "conv1", images, batch_size=2)
    places = activations(model, "conv1", images, pool="none", batch_size=2)
    assert places.shape == (5, 6 * 64)
    torch.testing.assert_close(places.view(5, 6, 64).mean(2), means)
    assert concepts.activations is activations


# Captum -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.references
def test_scores_equal_captums(tmp_path: Path) -> None:
    """With our vector and the gradient; Captum's default is Integrated Gradients, which differ."""
    from captum.attr import LayerGradientXActivation
    from captum.concept import TCAV, Classifier, Concept

    model, layer, c = models.load("scenes").model.double(), "layer3", 0
    world = Scenes(64, seed=4)
    images = models.load("scenes").inputs(world)
    x = torch.stack([images[i] for i in range(64)]).double()
    concept, others, own = x[:20], x[20:40], x[40:]

    class Ours(Classifier):
        def __init__(self) -> None: ...

        def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, Any]:
            rows, labels = map(torch.cat, zip(*[(b[0], b[1]) for b in dataloader], strict=True))
            first = labels == labels.min()  # Captum's first concept
            rows = rows.double()
            self.v = torch.tensor(concept_vector(rows[first], rows[~first]).vector)
            return {"accs": torch.tensor(1.0)}

        def weights(self) -> Tensor:
            return torch.stack([self.v, -self.v])

        def classes(self) -> list[int]:
            return [0, 1]

    method = LayerGradientXActivation(model, None, multiply_by_inputs=False)
    two = [
        Concept(number, name, torch.utils.data.DataLoader(part, batch_size=20))  # type: ignore[arg-type]
        for number, (name, part) in enumerate({"concept": concept, "others": others}.items())
    ]
    captum = TCAV(
        model, layer, classifier=Ours(), layer_attr_method=method, save_path=str(tmp_path)
    )
    score = captum.interpret(own, [two], target=c)["0-1"][layer]["sign_count"]
    rows = [activations(model, layer, part, pool="none") for part in (concept, others)]
    slopes = class_slopes(model, layer, own, c, pool="none")
    found = tcav(slopes, *rows, permutations=1)
    assert 0 < found.score < 1
    assert score[0].item() == pytest.approx(found.score, abs=1e-9)
    assert score[1].item() == pytest.approx(1 - found.score, abs=1e-9)


# The test of significance ------------------------------------------------------------------------


def t_test(slopes: Rows, concept: Rows, others: Rows, runs: int, generator: Any) -> float:
    """p of Kim et al.: the scores of one concept against many random sets, and of random sets."""
    m = len(concept)

    def score(have: Rows, lack: Rows) -> float:
        return float((slopes @ (have.mean(0) - lack.mean(0)) > 0).mean())

    ours, random = [], []
    for _ in range(runs):
        order = generator.permutation(len(others))
        ours.append(score(concept, others[order[:m]]))
        random.append(score(others[order[:m]], others[order[m : 2 * m]]))
    return p_of(ours, random)


def p_of(ours: Any, random: Any) -> float:
    """p of a t test, also where all scores are 0, or all are 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_ind(ours, random).pvalue)


def random_concepts(refuse: Callable[[Rows, Rows], float], rows: Rows, m: int, n: int) -> Rows:
    """p of a hundred concepts whose images are drawn at random."""
    generator = np.random.default_rng(0)
    drawn = [rows[generator.permutation(len(rows))[: m + n]] for _ in range(100)]
    return np.array([refuse(one[:m], one[m:]) for one in drawn])


AT_MOST = 9  # of 100 at a level of 5 %: more come by chance in less than 3 % of all cases


@pytest.mark.parametrize("kind", ["mean", pytest.param("logistic", marks=pytest.mark.slow)])
def test_random_concepts_are_refused_at_the_stated_level(kind: str) -> None:
    """Normal activations, slopes that mostly agree: p is uniform."""
    rows, slopes = clouds(100, 900)[1], np.random.default_rng(1).standard_normal((20, 6)) + 1
    p = random_concepts(
        lambda a, b: tcav(slopes, a, b, kind=kind, permutations=19).p, rows, m=15, n=30
    )
    assert (p <= 0.05).sum() <= AT_MOST
    assert kstest(p - np.random.default_rng(2).random(100) / 20, "uniform").pvalue > 0.01


@pytest.fixture(scope="module")
def scenes_rows() -> dict[str, tuple[Rows, Rows]]:
    """Of each layer: activations of 480 ordinary scenes, and the slopes of zebra in zebras."""
    classifier = models.load("scenes")
    world = Scenes(480, seed=11)
    world.draw()
    inputs = classifier.inputs(world)
    zebras = torch.stack([inputs[i] for i in range(0, 480, 16)])
    return {
        layer: (
            activations(classifier.model, layer, inputs).double().numpy(),
            class_slopes(classifier.model, layer, zebras, 0).double().numpy(),
        )
        for layer in ("layer2", "layer3", "layer4")
    }


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_a_random_concept_is_refused_and_the_papers_t_test_accepts_it(
    scenes_rows: dict[str, tuple[Rows, Rows]], layer: str
) -> None:
    rows, slopes = scenes_rows[layer]
    generator = np.random.default_rng(3)
    ours = random_concepts(lambda a, b: tcav(slopes, a, b).p, rows, 40, 160)
    papers = random_concepts(lambda a, b: t_test(slopes, a, b, 20, generator), rows, 40, 160)
    assert (ours <= 0.05).sum() <= AT_MOST
    assert (papers <= 0.05).sum() >= 20  # four times as often as it says, at least


@pytest.mark.slow
def test_more_vectors_of_the_same_images_make_the_t_test_worse(
    scenes_rows: dict[str, tuple[Rows, Rows]],
) -> None:
    """And with new concept images for every run, so that the scores are independent, it holds."""
    rows, slopes = scenes_rows["layer3"]
    generator = np.random.default_rng(3)

    def refused_of(runs: int) -> int:
        p = random_concepts(lambda a, b: t_test(slopes, a, b, runs, generator), rows, 40, 160)
        return int((p <= 0.05).sum())

    assert refused_of(80) > refused_of(5) + 10

    def apart(a: Rows, b: Rows) -> float:
        """Ten runs; each has concept images and others of its own, and so have the random ones."""
        parts = np.concatenate([a, b])[: 40 * 12].reshape(40, 12, -1)
        scores = [(slopes @ (p[:6].mean(0) - p[6:].mean(0)) > 0).mean() for p in parts]
        return p_of(scores[:20], scores[20:])

    assert (random_concepts(apart, rows, 240, 240) <= 0.05).sum() <= AT_MOST


@pytest.mark.slow
def test_tcav_on_a_real_network() -> None:
    """Striped drawings against plain ones, for the class zebra in a photograph of a cat."""
    classifier = models.load("efficientnet_lite0")
    photos = [photographs.load(name) for name in photographs.NAMES[:2]]
    x = torch.cat([classifier.to_input(one.image) for one in photos])
    layer = "blocks.4.2"
    slopes = class_slopes(classifier.model, layer, x, 340)
    assert slopes.shape == (2, activations(classifier.model, layer, x).shape[1])
    with shifted(classifier.model.get_submodule(layer), 3, 1e-2, "mean"), torch.no_grad():
        higher = classifier.model(x)[:, 340]
    with shifted(classifier.model.get_submodule(layer), 3, -1e-2, "mean"), torch.no_grad():
        lower = classifier.model(x)[:, 340]
    torch.testing.assert_close(slopes[:, 3], (higher - lower) / 2e-2, rtol=0.02, atol=1e-3)


# What is refused, and what is left as it was ----------------------------------------------------


def test_bad_vectors() -> None:
    vector: Any = concept_vector
    good = clouds(8, 8)[0]
    refused(lambda: vector([1.0], good), TypeError, "concept must be floating point numbers")
    refused(lambda: vector(good, good.astype(int)), TypeError, "others must be floating point")
    refused(lambda: vector(good[0], good), ValueError, "concept must be (N, D)")
    refused(lambda: vector(good[:5], good), ValueError, "concept holds 5 images; at least 6")
    refused(lambda: vector(good, good[:, :3]), ValueError, "others must have as many activations")
    refused(lambda: vector(good, good * np.nan), ValueError, "others must be finite")
    refused(lambda: vector(good, good, kind="svm"), ValueError, "kind: there is no 'svm'")


def test_bad_tcav() -> None:
    try_it: Any = tcav
    good = clouds(8, 8)[0]
    refused(lambda: try_it(good[:, :2], good, good), ValueError, "slopes must be (n, 6)")
    refused(lambda: try_it("up", good, good), TypeError, "slopes must be floating point")
    refused(lambda: try_it(good[:0], good, good), ValueError, "slopes holds 0 images")
    refused(lambda: try_it(good, good, good, permutations=0), ValueError, "permutations is 0")
    refused(lambda: try_it(good, good, good, kind="svm"), ValueError, "kind: there is no 'svm'")
    refused(lambda: try_it(good, good, good, generator=1), TypeError, "generator must be")


def test_bad_slopes() -> None:
    slopes: Any = class_slopes
    model, x = make("Residual"), batch()
    refused(lambda: slopes(model, "conv9", x), ValueError, "no layer 'conv9'")
    refused(lambda: slopes(model, "fc", x, 0), ValueError, "layer: feature maps")
    refused(lambda: slopes(model, "conv1", x[0], 0), ValueError, "images must be (N, C, H, W)")
    refused(lambda: slopes(model, "conv1", x, "zebra"), TypeError, "target must be")
    refused(lambda: slopes(model, "conv1", x, 9), ValueError, "there is no class 9")
    refused(lambda: slopes(model, "conv1", x, 0, pool="max"), ValueError, "pool: there is no 'max'")
    refused(lambda: slopes(model, "conv1", x, 0, batch_size=0), ValueError, "batch_size is 0")
    rows: Any = activations
    refused(lambda: rows(model, "conv1", x, pool="max"), ValueError, "pool: there is no 'max'")
    refused(lambda: rows(model, "conv9", x, pool="none"), ValueError, "no layer 'conv9'")


def test_the_same_generator_gives_the_same_and_nothing_is_left_behind() -> None:
    model, x = make("Residual").train(), batch(8)
    state = torch.get_rng_state()
    slopes = class_slopes(model, "conv1", x, 1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    rows = activations(model, "conv1", x).double().numpy()
    kept = rows.copy()
    drawn = [torch.Generator().manual_seed(seed) for seed in (3, 3, 4)]
    one, two, other = (tcav(slopes, rows, rows[::-1] + 0.1, generator=each) for each in drawn)
    np.testing.assert_array_equal(one.random_effects, two.random_effects)
    assert not np.array_equal(one.random_effects, other.random_effects)
    np.testing.assert_array_equal(rows, kept)
    assert torch.equal(state, torch.get_rng_state())


def test_one_images_slopes_do_not_depend_on_the_others() -> None:
    model, x = make("Residual").double(), batch(5, dtype=torch.float64)
    together = class_slopes(model, "conv1", x, 2, batch_size=2)
    alone = torch.cat([class_slopes(model, "conv1", one[None], 2) for one in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
