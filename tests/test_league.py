import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.filters import sobel
from torch import Tensor

from course_utils import models, plotting
from course_utils.contract import known_options
from course_utils.evaluation import (
    columns,
    controls,
    deletion,
    faithfulness_correlation,
    insertion,
    league,
    standings,
)
from course_utils.evaluation.columns import (
    METRICS,
    SCORES,
    Cost,
    MeasuredScenes,
    Metric,
    maps_by_score,
    measure_scenes,
)
from course_utils.evaluation.league import league_table
from course_utils.evaluation.sanity import randomized_copy
from course_utils.evaluation.standings import PAINTED, Table, compare, groups, order_agreement
from course_utils.evaluation.truth import effect_agreement, true_effects, visible_parts
from course_utils.methods import METHODS, Method
from course_utils.methods.cam import grad_cam
from course_utils.methods.gradients import gradient, smoothgrad
from course_utils.networks import Classifier
from course_utils.worlds.scenes import Scene, Scenes, render, standard
from tests.networks import NETWORKS, batch, few_passes, make, small_classifier

pytestmark = pytest.mark.slow

SIZE = 64
nan = float("nan")


@cache
def scenes() -> tuple[Scene, ...]:
    """Three scenes of three or four parts."""
    labels = ("beach umbrella", "ladybird", "goldfish")
    return tuple(render(standard(label, clutter="vase"), SIZE) for label in labels)


@cache
def classifier() -> Classifier:
    return small_classifier(size=SIZE)


@cache
def small_table() -> Table:
    methods = ["gradient", "smoothgrad", "|gradient|", "noise", PAINTED]
    return league_table(classifier(), scenes(), methods=methods)


@cache
def measured() -> MeasuredScenes:
    return measure_scenes(classifier(), scenes(), batch_size=16)


def maps(seed: int = 0) -> Tensor:
    return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


# the table


def test_the_table_has_a_value_for_every_scene() -> None:
    table = small_table()
    assert list(table.values) == list(METRICS)
    for metric, column in table.values.items():
        for name, values in column.items():
            assert values.shape == (3,)
            if metric == "partial":  # NaN where the truth itself is in the areas' order
                painted = column[PAINTED]
                assert np.array_equal(np.isnan(values), np.isnan(painted)), name
            elif metric != "runs" or name in ("smoothgrad", "noise"):
                assert np.isfinite(values).all(), (metric, name)
    assert table.setup["scenes"] == 3
    assert table.setup["parts"] == {"4": 2, "5": 1}


def test_the_painted_truth_is_first_and_agrees() -> None:
    table = small_table()
    assert table.methods[0] == PAINTED
    assert table.headline == "density"
    for metric in ("density", "sums", "contrast", "runner_up"):
        assert table.mean(metric, PAINTED) == pytest.approx((1, 1, 1))
    assert np.isnan(table.mean("sensitivity", PAINTED)).all()


def test_intervals_are_those_of_the_mean() -> None:
    table = small_table()
    for metric, column in table.values.items():
        for name in column:
            value, low, high = table.mean(metric, name)
            if not np.isnan(value):
                assert low - 1e-9 <= value <= high + 1e-9
    generator = np.random.default_rng(1)
    values = generator.normal(2, 3, size=400)
    values[::7] = nan
    large = Table({"density": {"a": values}}, {"a": Cost(0, 0, 0)}, {"scenes": 400})
    value, low, high = large.mean("density", "a")
    finite = values[np.isfinite(values)]
    assert value == pytest.approx(finite.mean())
    error = 1.96 * finite.std() / len(finite) ** 0.5
    assert (value - low, high - value) == pytest.approx((error, error), rel=0.15)


def test_passes_are_counted() -> None:
    methods = ["gradient", "|smoothgrad|", "integrated_gradients", "cam", "grad_cam", "occlusion"]
    methods += ["deeplift", "edges", PAINTED]
    table = league_table(classifier(), scenes(), methods=methods, metrics=[])
    windows = ((SIZE - 16) // 8 + 1) ** 2
    passes = {name: (cost.forwards, cost.backwards) for name, cost in table.costs.items()}
    assert passes == {
        "gradient": (1, 1),
        "|smoothgrad|": (25, 25),
        "integrated_gradients": (32, 32),
        "cam": (1, 0),
        "grad_cam": (1, 1),
        "occlusion": (1 + windows, 0),
        "deeplift": (4 / 3, 1),  # one baseline for the three of them
        "edges": (0, 0),
        PAINTED: ((16 + 16 + 32) / 3, 0),
    }
    assert list(table.values) == ["density"]


def test_passes_of_a_method_of_ones_own() -> None:
    def thrice(model: Any, images: Tensor, target: Any = None) -> Tensor:
        model(images)
        return gradient(model, images, target) + gradient(model, images, target)

    table = league_table(classifier(), scenes()[:2], methods={"thrice": thrice}, metrics=["iou"])
    assert table.costs["thrice"][1:] == (3, 2)
    assert table.costs["thrice"].seconds > 0


def test_a_scene_does_not_depend_on_the_others() -> None:
    metrics = ["contrast", "runner_up", "deletion", "subsets", "iou"]
    methods = ["input_x_gradient", "grad_cam", "noise"]
    options: Any = {"methods": methods, "metrics": metrics}
    both = league_table(classifier(), scenes(), batch_size=2, **options)
    alone = league_table(classifier(), scenes()[2:], **options)
    for metric in metrics:
        for name in methods:
            assert both.values[metric][name][2:] == pytest.approx(
                alone.values[metric][name], abs=1e-3
            )


def test_it_prints_as_a_table() -> None:
    lines = str(small_table()).splitlines()
    assert len(lines) == 1 + 5
    assert lines[0].split() == [*METRICS, "seconds", "passes"]
    assert lines[1].startswith(f"{PAINTED}   ")
    assert "1.00 ± 0.00" in lines[1]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_the_model_stays_as_it_was() -> None:
    own = small_classifier(size=SIZE)
    own.model.train()
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    state = torch.get_rng_state()
    league_table(own, scenes()[:1], methods=["gradient"])
    assert own.model.training
    assert not own.model._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in own.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scenes": []}, ValueError),
        ({"scenes": ["zebra"]}, TypeError),
        ({"scenes": [render(standard("cow"), 32)]}, ValueError),
        ({"methods": ["gradcam"]}, ValueError),
        ({"methods": []}, ValueError),
        ({"metrics": ["beauty"]}, ValueError),
        ({"batch_size": 0}, ValueError),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"scenes": scenes()} | changes
    with pytest.raises(error, match=f"^{next(iter(changes)).rstrip('s')}") as caught:
        league_table(classifier(), **arguments)
    assert "\n" not in str(caught.value)


# what is explained: the answer, the runner-up, and their difference


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_the_map_of_a_difference_where_a_method_is_linear(name: str, network: str) -> None:
    """The network gets a class more, whose logit is that of class 1 minus that of class 3."""
    model, images = make(network).double(), batch(dtype=torch.float64)
    fc = model.fc
    assert isinstance(fc, torch.nn.Linear)
    wider = torch.nn.Linear(fc.in_features, 6, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(wider.parameters(), fc.parameters(), strict=True):
            one.copy_(torch.cat([other, (other[1] - other[3])[None]]))
    model.fc = wider
    entry = METHODS[name].bind(batch(4, seed=7, dtype=torch.float64))
    # LRP is linear but for its ε; guided IG's path depends on the score, where nothing limits it.
    options = few_passes(entry) | known_options(entry, epsilon=0.0, max_distance=1.0)
    parts = entry(model, images, 1, **options) - entry(model, images, 3, **options)
    whole = {"class": entry(model, images, 5, **options)}
    if name != "cam":  # which is about classes
        difference = entry(model, images, lambda f: f[:, 1] - f[:, 3], **options)
        whole["function"] = difference
    for found in whole.values():
        error = float((found - parts).abs().max() / parts.abs().max())
        assert (error < 1e-9) if entry.linear else (error > 1e-2), error


def test_maps_of_each_score() -> None:
    case = measured()
    logits = case.model(case.images)
    assert torch.equal(case.target, logits.argmax(1))
    second = logits.scatter(1, case.target[:, None], -torch.inf).argmax(1)
    assert torch.equal(case.runner_up, second)
    found = maps_by_score(grad_cam, case, SCORES)
    for i, (a, b) in enumerate(zip(case.target.tolist(), second.tolist(), strict=True)):
        x = case.images[i : i + 1]

        def difference(f: Tensor, a: int = a, b: int = b) -> Tensor:
            return f[:, a] - f[:, b]

        for score, target in {"answer": a, "runner_up": b, "contrast": difference}.items():
            expected = grad_cam(case.model, x, target)[0].double()
            torch.testing.assert_close(found[score][i], expected, rtol=1e-4, atol=1e-6)
    quick, slow = (maps_by_score(gradient, case, SCORES, linear=flag) for flag in (True, False))
    for score in SCORES:
        torch.testing.assert_close(quick[score], slow[score], rtol=1e-4, atol=1e-6)
    assert list(maps_by_score(gradient, case, ["answer"])) == ["answer"]


def test_the_truth_about_each_score() -> None:
    case, scene = measured(), scenes()[0]
    a, b = int(case.target[0]), int(case.runner_up[0])
    targets: dict[str, Any] = {"answer": a, "runner_up": b, "contrast": lambda f: f[:, a] - f[:, b]}
    for score, target in targets.items():
        expected = true_effects(classifier(), scene, kind="shapley", target=target)
        assert case.effects[score][0] == pytest.approx(expected, abs=1e-5)
    columns = {"answer": "density", "runner_up": "runner_up", "contrast": "contrast"}
    for score, column in columns.items():
        heat = maps()
        wanted = effect_agreement(heat, scenes(), case.effects[score])
        assert torch.equal(METRICS[column].measure(case, heat), wanted)
        assert METRICS[column].score == score
        assert METRICS[column].measure(case, case.painted(score)).tolist() == pytest.approx([1] * 3)


def test_a_map_that_is_the_same_for_every_class_pays() -> None:
    """Where the runner-up's truth is the reverse of the answer's, the same map is wrong once."""
    case = measured()
    reversed_ = [{part: -e for part, e in effects.items()} for effects in case.effects["answer"]]
    case = case._replace(effects=case.effects | {"runner_up": reversed_})
    heat = case.painted("answer")

    def blind(model: Any, images: Tensor, target: Any = None) -> Tensor:
        return torch.stack(
            [heat[i] for x in images for i in range(3) if torch.equal(x, case.images[i])]
        )

    found = maps_by_score(blind, case, SCORES)
    for score in SCORES:  # it never asks for the class
        assert torch.equal(found[score], heat)
    assert METRICS["density"].measure(case, found["answer"]).tolist() == pytest.approx([1] * 3)
    assert METRICS["runner_up"].measure(case, found["runner_up"]).tolist() == pytest.approx(
        [-1] * 3
    )


def test_noise_agrees_with_nothing_but_sums() -> None:
    """Sixteen scenes of five parts or more, each with forty maps of noise."""
    world = Scenes(400, seed=11, resolution=SIZE)
    many = (scene for i in range(400) if len((scene := world.scene(i)).parts) >= 5)
    drawn = [next(many) for _ in range(16)]
    case = measure_scenes(classifier(), drawn, batch_size=16)
    generator = torch.Generator().manual_seed(0)
    noise = [controls.noise(None, case.images, generator=generator).double() for _ in range(40)]
    for metric in ("density", "partial", "contrast", "runner_up"):
        values = torch.stack([METRICS[metric].measure(case, heat) for heat in noise])
        each = values.mean(0)  # of a scene
        each = each[each.isfinite()]
        assert len(each) > 8
        error = float(each.std()) / len(each) ** 0.5
        assert error < 0.05, metric
        assert abs(float(each.mean())) < 3 * error, metric


# its metrics


def test_faithfulness_is_that_of_evaluation() -> None:
    case = measured()
    heat = maps().cumsum(1)
    options: Any = {"patch": SIZE // columns.GRID, "baseline": columns.BASELINE}
    expected = faithfulness_correlation(case.model, case.images, heat, case.target, **options)
    found = columns.faithfulness(case, heat, alone=True)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert columns.faithfulness(case, torch.ones(3, SIZE, SIZE), alone=True).isnan().all()


def test_faithfulness_of_subsets_by_hand() -> None:
    case, heat = measured(), maps().cumsum(1)
    sets = case.sets[columns.GRID**2 :]
    assert sets.sum(1).tolist() == [columns.GRID**2 // 4] * columns.SETS
    assert len(set(map(tuple, sets.tolist()))) == columns.SETS
    side = SIZE // columns.GRID
    found = columns.faithfulness(case, heat, alone=False)
    for i in range(3):
        total, drop = [], []
        for chosen in sets:
            mask = chosen.view(columns.GRID, columns.GRID).numpy().repeat(side, 0).repeat(side, 1)
            x = case.images[i : i + 1].clone()
            x[:, :, torch.from_numpy(mask)] = columns.BASELINE
            pair = case.model(torch.cat([case.images[i : i + 1], x]))[:, case.target[i]].tolist()
            total.append(float(heat[i].double()[torch.from_numpy(mask)].sum()))
            drop.append(pair[0] - pair[1])
        assert found[i] == pytest.approx(np.corrcoef(total, drop)[0, 1], abs=1e-4)


def test_areas_run_from_the_baseline_to_the_whole_image() -> None:
    case, heat = measured(), maps()
    options: Any = {"steps": columns.STEPS, "baseline": columns.BASELINE}
    with torch.no_grad():
        whole, replaced = (
            case.model(x).gather(1, case.target[:, None])[:, 0]
            for x in (case.images, torch.full_like(case.images, columns.BASELINE))
        )
    for judge in (deletion, insertion):
        auc = judge(case.model, case.images, heat, case.target, **options).auc
        expected = ((auc - replaced) / (whole - replaced)).where(whole > replaced, torch.nan)
        found = columns.area(case, heat, judge)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4, nan_ok=True)
    # What deletion takes first, insertion of the reverse order puts in last: the areas are equal.
    one, other = columns.area(case, heat, deletion), columns.area(case, -heat, insertion)
    assert one.tolist() == pytest.approx(other.tolist(), abs=1e-4, nan_ok=True)
    assert one.isfinite().any()


def test_a_randomized_copy_knows_nothing_and_the_model_is_untouched() -> None:
    model = models.load("scenes", device="cpu").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    other = randomized_copy(model)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name, value in model.named_parameters():
        assert not torch.equal(value, other.get_parameter(name)), name
    for name, value in model.named_buffers():
        assert torch.equal(value, other.get_buffer(name))


def test_controls_look_at_no_model_and_no_other_image() -> None:
    images = torch.randn(3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    for control in (*controls.LEAGUE_CONTROLS.values(), *controls.ROAR_CONTROLS.values()):
        found = control(None, images)
        assert found.shape == (3, 20, 30)
        assert torch.equal(control(None, images[1:2]), found[1:2])
        assert found.dtype == images.dtype
    noise = controls.noise(None, images)
    assert not torch.equal(noise[0], noise[1])
    again = controls.noise(None, images, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(noise, again)
    middle = controls.centre(None, images[:, :, :19, :29])[0]
    assert middle.argmax() == 9 * 29 + 14
    step = torch.zeros(1, 3, 20, 30)
    step[..., 15:] = 1
    assert set(controls.edges(None, step)[0].nonzero()[:, 1].tolist()) == {14, 15}
    torch.testing.assert_close(controls.edges(None, step), 3 * controls.grey_edges(None, step))


def test_the_slope_is_that_of_scikit_image() -> None:
    plane = np.random.default_rng(0).normal(size=(9, 12))
    np.testing.assert_allclose(controls.slope(plane), 32**0.5 * sobel(plane))
    rising = np.arange(12.0) * np.ones((9, 1))
    assert (controls.slope(rising)[:, 1:-1] == 8).all()


def test_magnitudes() -> None:
    images, model = measured().images, classifier().model
    method = league.magnitudes(smoothgrad)
    generator = torch.Generator().manual_seed(3)
    found = method(model, images, 2, samples=2, generator=generator)
    generator.manual_seed(3)
    expected = smoothgrad(model, images, 2, samples=2, generator=generator)
    assert torch.equal(found, expected.abs().sum(1))
    named = league.methods_by_name(classifier(), ["|gradient|", "gradient"])
    assert named["gradient"](model, images, 2).shape == images.shape
    assert (named["|gradient|"](model, images, 2) >= 0).all()


def test_every_method_has_a_row() -> None:
    data = torch.cat([classifier().to_input(scene.image) for scene in scenes()])
    names = [name for name in league.NAMES if name != PAINTED]
    assert list(league.methods_by_name(classifier(), names, data)) == names
    assert set(METHODS) < set(names)
    assert {name.strip("|") for name in names if "|" in name} == {
        name for name, method in METHODS.items() if method.magnitudes
    }


# do the metrics order the methods as the truth does?


def table_of(**columns: list[list[float]]) -> Table:
    """Methods a, b, c … and noise, a row of scenes each."""
    names = [*"abcdefgh"[: len(columns["density"]) - 1], "noise"]
    values = {
        metric: {name: np.array(row) for name, row in zip(names, rows, strict=True)}
        for metric, rows in columns.items()
    }
    scenes = len(columns["density"][0])
    return Table(values, dict.fromkeys(names, Cost(0, 1, 0)), {"scenes": scenes})


def test_order_agreement_by_hand() -> None:
    table = table_of(
        density=[[0.9, 0.9], [0.5, 0.5], [0.1, 0.1], [0.0, 0.0]],
        iou=[[0.4, 0.4], [0.3, 0.3], [0.2, 0.2], [0.1, 0.1]],  # the truth's order
        deletion=[[0.4, 0.4], [0.3, 0.3], [0.2, 0.2], [0.1, 0.1]],  # the lowest is the best
        insertion=[[0.4, 0.4], [0.2, 0.2], [0.3, 0.3], [0.5, 0.5]],  # 2 of 6 pairs in order
        pointing=[[1.0, 1.0]] * 4,
    )
    assert {metric: tau for metric, (tau, _, _) in order_agreement(table).items()} == pytest.approx(
        {"iou": 1, "deletion": -1, "insertion": -1 / 3, "pointing": 0}
    )
    without = order_agreement(table, controls=False)
    assert without["insertion"] == pytest.approx((1 / 3,) * 3)  # 2 of 3
    assert order_agreement(table, against="deletion")["iou"] == pytest.approx((-1, -1, -1))
    assert "deletion" not in order_agreement(table, against="deletion")
    with pytest.raises(ValueError, match="^against"):
        order_agreement(table, against="beauty")


def test_the_interval_of_an_agreement_is_wide_where_scenes_disagree() -> None:
    density = [[0.9] * 40, [0.5] * 40, [0.1] * 40, [0.0] * 40]
    noisy = np.random.default_rng(0).normal(size=(4, 40)) + np.array([[0.3], [0.2], [0.1], [0]])
    table = table_of(density=density, iou=noisy.tolist())
    tau, low, high = order_agreement(table)["iou"]
    assert low < tau <= high
    assert high - low > 0.3


def test_methods_that_a_metric_does_not_judge_are_left_out() -> None:
    table = table_of(
        density=[[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]],
        runs=[[0.4, nan], [nan, nan], [0.1, nan]],
        iou=[[nan, 0.2], [nan, 0.3], [0.1, nan]],
    )
    found = order_agreement(table)
    assert found["runs"][0] == 1  # of a and noise
    assert found["iou"][0] == pytest.approx(1 / 3)


def test_another_table_brings_its_own_metrics() -> None:
    metrics = {"far": Metric("how far", -1, torch.abs), "near": Metric("how near", 1, torch.abs)}
    rows = {"a": np.array([2.0, 3.0]), "b": np.array([0.0, 1.0]), "c": np.array([nan, nan])}
    costs = dict.fromkeys("abc", Cost(0, 1, 0))
    table = Table({"near": rows, "far": rows}, costs, {"scenes": 2}, metrics)
    assert table.columns == ["far", "near"]
    assert table.headline == "far"
    assert table.methods == ["b", "a", "c"]  # the less the better; no value comes last
    assert order_agreement(table)["near"][0] == -1
    assert groups(table) == [["b"], ["a"]]
    assert standings.markdown(table, ["near"]).splitlines() == [
        "| method | group | how near | passes |",
        "| --- | --- | --- | --- |",
        "| b | A | 0.50 ± 0.50 | 1 F 0 B |",
        "| a | B | 2.50 ± 0.50 | 1 F 0 B |",
        "| c |  |  | 1 F 0 B |",
    ]


# which differences are no chance?


def test_a_difference_is_paired() -> None:
    generator = np.random.default_rng(0)
    easy = generator.normal(0, 5, size=200)  # what makes a scene easy for all
    values = {"a": easy + 0.3 + generator.normal(0, 1, 200), "b": easy, "c": easy + nan}
    values["b"][:5] = nan
    table = Table({"density": values}, dict.fromkeys("abc", Cost(0, 0, 0)), {"scenes": 200})
    value, low, high = compare(table, "density", "a", "b")
    difference = (values["a"] - values["b"])[5:]
    assert value == pytest.approx(difference.mean())
    half = 1.96 * difference.std() / 195**0.5
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.15)
    assert low > 0
    apart = [table.mean("density", name) for name in "ab"]
    assert apart[0][1] < apart[1][2]  # while the intervals of the two means overlap
    assert compare(table, "density", "a", "b") == (value, low, high)  # the same resamples
    assert compare(table, "density", "b", "a") == pytest.approx((-value, -high, -low))
    assert np.isnan(compare(table, "density", "a", "c")).all()
    assert compare(table, "density", "a", "a") == (0, 0, 0)
    for arguments, name in {("iou", "a", "b"): "metric", ("density", "z", "b"): "one"}.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            compare(table, *arguments)


@pytest.mark.parametrize(("metric", "sign"), [("density", 1), ("deletion", -1)])
def test_groups_of_a_planted_table(metric: str, sign: int) -> None:
    generator = np.random.default_rng(0)
    scene = generator.normal(0, 3, size=100)
    levels = {"a": 1.0, "b": 0.99, "c": 0.5, "d": 0.49, "e": 0.1}
    values = {
        name: sign * (level + scene + generator.normal(0, 0.3, 100))
        for name, level in levels.items()
    }
    table = Table({metric: values}, dict.fromkeys("edcba", Cost(0, 0, 0)), {"scenes": 100})
    found = groups(table, metric)
    assert [sorted(group) for group in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert sum(found, []) == table.methods  # noqa: RUF017 - five names
    assert groups(table) == found
    with pytest.raises(ValueError, match="^metric"):
        groups(table, "beauty")


def test_a_group_is_measured_from_its_first() -> None:
    """Each may be as good as the one before, but the third is worse than the first."""
    one, other = np.tile([-0.5, 0.5], 50), np.tile([-0.5, -0.5, 0.5, 0.5], 25)
    values = {"a": 0.16 + one + other, "b": 0.08 + other, "c": np.zeros(100)}
    table = Table({"density": values}, dict.fromkeys("abc", Cost(0, 0, 0)), {"scenes": 100})
    for pair in ("ab", "bc"):  # 0.08, and a standard error of 0.05
        _, low, high = compare(table, "density", *pair)
        assert low < 0 < high
    assert compare(table, "density", "a", "c")[1] > 0  # 0.16, and one of 0.07
    assert groups(table) == [["a", "b"], ["c"]]


# on disk, and as a picture


def test_round_trip(tmp_path: Path) -> None:
    table, path = small_table(), tmp_path / "league.json"
    standings.save(table, path)
    again = standings.load(path)
    assert again.methods == table.methods
    assert again.setup == table.setup
    for metric, column in table.values.items():
        assert list(again.values[metric]) == list(column)
        for name, values in column.items():
            assert again.values[metric][name] == pytest.approx(values, abs=5.1e-4, nan_ok=True)
    for name, cost in table.costs.items():
        assert again.costs[name] == pytest.approx(cost, rel=5e-3)
    assert [path] == list(tmp_path.iterdir())  # and nothing half-written


def test_a_failed_save_leaves_the_old_table(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "league.json"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        standings.save(small_table(), path)
    assert path.read_text() == "old"
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"setup": {}, "costs": {}}', "\x00"])
def test_a_damaged_table(content: str, tmp_path: Path) -> None:
    path = tmp_path / "league.json"
    with pytest.raises(FileNotFoundError, match="^path: there is no .*`course league` makes it"):
        standings.load(path)
    path.write_text(content)
    with pytest.raises(ValueError, match="^path: .* is damaged; `course league` makes it again"):
        standings.load(path)


def test_a_table_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "league.json"
    standings.save(table_of(density=[[0.5], [0.1]], iou=[[0.2], [0.1]]), path)
    assert standings.load(path).columns == ["density", "iou"]
    with pytest.raises(ValueError, match="^path: .* no longer measured, density; `course league`"):
        standings.load(path, {"iou": METRICS["iou"]})
    with pytest.raises(ValueError, match="^metrics: there is no 'deletion'"):
        standings.markdown(standings.load(path), ["iou", "deletion"])


def test_held_out_scenes_have_five_parts_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = league.held_out(12)
    assert len(drawn) == 12
    seen = [sum(mask.any() for mask in visible_parts(scene).values()) for scene in drawn]
    assert min(seen) == 5
    again = league.held_out(3)
    assert all(
        np.array_equal(one.image, two.image) for one, two in zip(again, drawn[:3], strict=True)
    )
    with pytest.raises(ValueError, match="^scenes is 0"):
        league.held_out(0)
    monkeypatch.setattr(league, "PARTS", 99)
    with pytest.raises(ValueError, match="^scenes is 1, but of 180 scenes only 0 show 99 parts"):
        league.held_out(1)


@pytest.mark.parametrize("seconds", [0.0123, 0.09449])  # the second: 0.094, but kept as 0.0945
def test_make_writes_what_it_returns(tmp_path: Path, monkeypatch: Any, seconds: float) -> None:
    asked: dict[str, Any] = {}

    def measure(classifier: Classifier, scenes: tuple[Scene, ...], **options: Any) -> Table:
        asked.update(model=classifier.name, scenes=len(scenes), **options)
        table = small_table()
        costs = {name: cost._replace(seconds=seconds) for name, cost in table.costs.items()}
        return replace(table, costs=costs)

    monkeypatch.setattr(league, "league_table", measure)
    table = league.make(tmp_path / "league.json", scenes=2)
    assert asked == {"model": "scenes", "scenes": 2, "methods": None, "metrics": None}
    numbers = [number for number, _ in league._held_out(2)]
    assert (table.setup["seed"], table.setup["skipped"]) == (500, numbers[-1] - 1)
    again = standings.load(tmp_path / "league.json")
    assert again.setup == table.setup
    assert str(again) == str(table)


def test_processes_side_by_side_measure_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(league.models, "load", lambda *_, **__: classifier())
    monkeypatch.setattr(league, "_held_out", lambda n: list(enumerate(scenes()[:n])))
    monkeypatch.setattr(league, "TOGETHER", 2)
    monkeypatch.setattr(league, "FEW", 2)
    names = ["gradient", "|smoothgrad|", "grad_cam", "noise", PAINTED]
    two, one = (league._measured(3, names, workers) for workers in (2, 1))
    whole = league_table(classifier(), scenes(), methods=names)
    for table in (two, one):
        assert list(table.costs) == names
        assert table.setup == one.setup
        assert table.setup.items() >= whole.setup.items()
        for metric, column in whole.values.items():
            assert list(table.values[metric]) == list(column)
            for name, values in column.items():
                found = table.values[metric][name]
                assert found == pytest.approx(values, abs=1e-3, nan_ok=True), (metric, name)
        for name in names:
            assert table.costs[name][1:] == pytest.approx(whole.costs[name][1:])
    with pytest.raises(ValueError, match="^workers is 0"):
        league.make(workers=0)


# rows measured again


@pytest.fixture
def three_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make_rows` takes the small classifier, and our scenes for the held-out ones."""
    monkeypatch.setattr(league.models, "load", lambda *_, **__: classifier())
    monkeypatch.setattr(league, "_held_out", lambda n: list(enumerate(scenes()[:n])))


@pytest.mark.usefixtures("three_held_out")
def test_a_row_measured_alone_is_as_in_the_whole_table(tmp_path: Path) -> None:
    names = ["gradient", "smoothgrad", "noise", PAINTED]
    path, whole = tmp_path / "league.json", tmp_path / "whole.json"
    standings.save(league._measured(2, [*names[:2], "|gradient|", *names[2:]]), whole)
    standings.save(league._measured(2, names), path)
    before, wanted = standings.load(path), standings.load(whole)
    table = league.make_rows(["|gradient|"], path)
    assert list(table.costs) == list(wanted.costs)
    assert table.setup == wanted.setup
    for metric, column in wanted.values.items():
        assert list(table.values[metric]) == list(column)
        for name, values in column.items():
            assert np.array_equal(table.values[metric][name], values, equal_nan=True)
    for name in names:
        assert table.costs[name] == before.costs[name]  # the seconds, too
    assert [path, whole] == sorted(tmp_path.iterdir())


@pytest.mark.usefixtures("three_held_out")
def test_a_row_measured_again_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "league.json"
    standings.save(league._measured(1, ["lime_image", "edges"]), path)
    stored = json.loads(path.read_text())
    for column in stored["thousandths"].values():
        column.update({name: [7] for name in column})
    stored["costs"] = {name: [1.0, 2.0, 3.0] for name in stored["costs"]}
    stored["setup"]["options"] = {"lime_image": {"samples": 3}, "lrp": {"epsilon": 1}}
    path.write_text(json.dumps(stored))
    table = league.make_rows(["lime_image"], path)
    assert tuple(table.costs["edges"]) == (1, 2, 3)
    assert tuple(table.costs["lime_image"]) != (1, 2, 3)
    for column in table.values.values():
        assert column["edges"].tolist() == [0.007]
        assert column["lime_image"].tolist() != [0.007]
    assert table.setup["options"]["lime_image"] == METHODS["lime_image"].quick


@pytest.mark.usefixtures("three_held_out")
def test_rows_measured_differently_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "league.json"
    table = league._measured(1, ["edges"])
    for changes in ({"steps": 3}, {"seed": 1}):
        standings.save(replace(table, setup=table.setup | changes), path)
        before = path.read_text()
        with pytest.raises(ValueError, match=rf"^table: its {next(iter(changes))} is .* all rows"):
            league.make_rows(["noise"], path)
        assert path.read_text() == before
    values = {name: column for name, column in table.values.items() if name != "iou"}
    standings.save(replace(table, values=values), path)
    with pytest.raises(ValueError, match="^table: its metrics is "):
        league.make_rows(["noise"], path)
    with pytest.raises(ValueError, match="^name: there is no 'edgse'; did you mean 'edges'"):
        league.make_rows(["edgse"], path)
    with pytest.raises(FileNotFoundError, match="`course league` makes it"):
        league.make_rows(["edges"], tmp_path / "none.json")


def test_a_method_that_the_stored_table_lacks_breaks_nothing(monkeypatch: Any) -> None:
    """It has a row from `make_rows` on; till then the table is what it was."""

    def brightness(model: Any, images: Tensor, target: Any = None) -> Tensor:
        return images.mean(1)

    before = standings.markdown(standings.load())
    entry = Method(brightness, "Brightness", "none", 2024, cost="0 F", magnitudes=True)
    monkeypatch.setitem(METHODS, "brightness", entry)
    assert standings.markdown(standings.load()) == before
    assert order_agreement(standings.load())
    monkeypatch.setattr(league, "NAMES", [*METHODS, "|brightness|"])
    names = ["brightness", "|brightness|"]
    table = league_table(classifier(), scenes(), methods=names, metrics=["iou"])
    assert list(table.costs) == names
    assert "brightness" in standings.markdown(table, ["iou"])


def test_the_picture_shows_every_method(monkeypatch: Any) -> None:
    shown = []
    monkeypatch.setattr(plotting, "show", lambda figure, alt: shown.append((figure, alt)))
    standings.picture(small_table(), ["density", "iou", "sensitivity"], title="On three scenes")
    ((figure, alt),) = shown
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["the truth, per\npixel", "IoU", "max-\nsensitivity"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == small_table().methods
    assert all(name in alt for name in labels)
    dots = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert np.ravel(dots) == pytest.approx([small_table().mean("density", n)[0] for n in labels])
    assert [axes.xaxis_inverted() for axes in figure.axes] == [False, False, True]
    for axes in figure.axes:  # a line where a group ends
        lines = [line for line in axes.lines if np.allclose(line.get_xdata(), [0, 1])]
        ends = np.cumsum([len(group) for group in groups(small_table())])[:-1] - 0.5
        assert [line.get_ydata()[0] for line in lines] == ends.tolist()
    assert "; ".join(", ".join(group) for group in groups(small_table())) in alt
    with pytest.raises(ValueError, match="^metrics"):
        standings.picture(small_table(), ["beauty"])


# the table that the course ships


def test_the_shipped_table_is_complete_and_small() -> None:
    table = standings.load()
    assert standings.PATH.stat().st_size < 400_000
    assert table.setup["scenes"] >= 200
    assert table.setup["seed"] == league.SEED
    assert min(map(int, table.setup["parts"])) >= league.PARTS
    assert table.setup["model"] == "scenes"
    missing = [name for name in league.NAMES if name not in table.costs]
    assert not missing, f"measure them by `course league --only NAME`: {missing}"
    assert list(table.costs) == league.NAMES
    assert list(table.values) == list(METRICS)
    for metric, column in table.values.items():
        few = METRICS[metric].few
        assert set(column) == set(league.NAMES) - ({PAINTED} if few else set())
        for name, values in column.items():
            if metric == "sensitivity":
                assert np.isfinite(values).sum() == table.setup["few"], name
            elif metric == "partial":  # NaN where the truth itself is in the areas' order
                assert np.isfinite(values).mean() > 0.5, name
            elif not few:  # a random model may leave a map empty, and most methods draw nothing
                assert np.isfinite(values).mean() > 0.9, (metric, name)
    for key, value in {
        "baseline": columns.BASELINE,
        "steps": columns.STEPS,
        "few": league.FEW,
    }.items():
        assert table.setup[key] == value
    options = json.loads(json.dumps(league.quick_options(league.NAMES)))
    assert table.setup["options"] == options


def test_the_shipped_table_is_what_the_library_measures_now() -> None:
    table, drawn = standings.load(), league.held_out(16)
    chosen = [i for i, scene in enumerate(drawn) if len(scene.parts) == 5][:3]
    metrics = [name for name in METRICS if not METRICS[name].few]
    methods = ["integrated_gradients", "|gradient|", "grad_cam", "edges", PAINTED]
    now = league_table(
        models.load("scenes", device="cpu"),
        [drawn[i] for i in chosen],
        methods=methods,
        metrics=metrics,
    )
    for metric in metrics:
        for name in methods:
            stored, found = table.values[metric][name][chosen], now.values[metric][name]
            assert found == pytest.approx(stored, abs=0.02, nan_ok=True), (metric, name)


def test_the_shipped_table_answers_the_question() -> None:
    table = standings.load()
    assert table.methods[0] == PAINTED
    for metric in ("density", "partial", "sums", "contrast", "runner_up"):
        assert table.mean(metric, PAINTED)[0] > 0.99
    for metric in ("density", "partial", "contrast", "runner_up"):  # noise knows nothing
        value, low, high = table.mean(metric, "noise")
        assert abs(value) < high - low, metric  # four standard errors
    assert table.mean("sums", "noise")[0] > table.mean("density", "noise")[2]
    for tau, low, high in order_agreement(table, controls=False).values():
        assert -1 <= low <= high <= 1
        assert low - 0.1 <= tau <= high + 0.1


def test_the_readme_shows_the_shipped_table() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    assert standings.markdown(standings.load()) in readme.read_text(encoding="utf-8")
