import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import panels
from course_utils.methods import gradients, regions
from course_utils.networks import Classifier
from course_utils.panels import paths
from course_utils.panels.pictures import BASELINES
from course_utils.worlds import scenes
from tests.networks import noting, small_classifier

pytestmark = pytest.mark.slow

PANELS = ("integrated_gradients", "smoothgrad", "xrai")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


@pytest.fixture(autouse=True)
def quick_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapping segments in a tenth of the time: the real ones are not the point."""

    def stack(image: Any) -> np.ndarray:
        cuts = [regions.segment(image, n_segments=n) for n in (9, 36)]
        return np.concatenate([cut == np.unique(cut)[:, None, None] for cut in cuts])

    monkeypatch.setattr(regions, "segment_stack", stack)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the panels' canvases are made of, the arguments of each in turn."""
    calls: list[Any] = []
    for name in ("_path_canvas", "_smooth_canvas", "_xrai_canvas"):
        monkeypatch.setattr(paths, name, noting(getattr(paths, name), calls))
    return calls


@pytest.mark.parametrize("rule", list(gradients.QUADRATURES))
@pytest.mark.parametrize("baseline", list(BASELINES))
def test_at_alpha_1_the_map_is_integrated_gradients(
    classifier: Classifier, rule: str, baseline: str
) -> None:
    x = classifier.to_input(scenes.render(scenes.standard("crow")).image)
    start = BASELINES[baseline](classifier, x)
    path = paths.walk(paths.way_to(classifier.model, x, start, 8), rule, 20)
    wanted = gradients.integrated_gradients(
        classifier.model, x, 8, baseline=start, rule=rule, steps=20
    )
    torch.testing.assert_close(path.map_until(1.0), wanted)
    with torch.no_grad():
        ends = classifier.model(torch.cat([start.expand_as(x), x]))[:, 8]
    assert path.ends == pytest.approx(ends.tolist(), abs=1e-5)
    torch.testing.assert_close((path.weights * path.slopes).sum(), wanted.sum())


def test_the_map_so_far_ends_at_alpha(classifier: Classifier) -> None:
    x = classifier.to_input(scenes.render(scenes.standard("crow")).image)
    way = paths.way_to(classifier.model, x, classifier.black(x), 8)
    path = paths.walk(way, "riemann-right", 4)
    assert not path.map_until(0.24).any()
    first = path.difference * path.gradients[:1] / 4
    torch.testing.assert_close(path.map_until(0.25), first)
    torch.testing.assert_close(path.map_until(0.49), first)


def test_a_first_path_is_coarse_and_alpha_moves_along_the_one_that_is_kept(
    classifier: Classifier, drawn: list[Any]
) -> None:
    panel = panels.integrated_gradients(classifier)
    lengths = [len(arguments[2].alphas) for arguments in drawn]
    assert lengths == [paths.COARSE, 16]
    panel.controls["alpha"].value = 0.9
    panel.controls["steps"].value = paths.COARSE  # not worth a coarser one
    assert [len(arguments[2].alphas) for arguments in drawn[2:]] == [16, paths.COARSE]


def test_the_panel_states_the_completeness_gap(classifier: Classifier, drawn: list[Any]) -> None:
    panel = panels.integrated_gradients(classifier)
    panel.update(target="cow", baseline="white", steps=5)
    path = drawn[-1][2]
    gap = abs(float(path.map_until(1.0).sum()) - (path.ends[1] - path.ends[0]))
    assert "Integrated gradients of “cow” from the baseline “white”, 5 steps" in panel.words
    assert panel.words.endswith(f"a gap of {gap:.2f}.")


def test_a_trapezoid_of_one_step_is_a_sentence(classifier: Classifier) -> None:
    panel = panels.integrated_gradients(classifier)
    panel.update(steps=1, rule="trapezoid")
    assert "steps" in panel.status.value
    panel.controls["steps"].value = 2
    assert panel.status.value == ""


@pytest.mark.parametrize("samples", [1, 2, 7, 23])
@pytest.mark.parametrize("method", paths.SMOOTHED)
def test_portions_add_up_to_smoothgrad(
    classifier: Classifier, drawn: list[Any], samples: int, method: str
) -> None:
    panel = panels.smoothgrad(classifier)
    panel.update(method=method, samples=samples, noise=0.2, seed=3)
    seen, *_, (map_, done, error) = drawn[-1]
    chosen: Any = gradients.gradient
    if method != "gradient":
        start = classifier.blurred(seen.x)

        def chosen(model: Any, x: Tensor, target: Any) -> Tensor:
            return gradients.integrated_gradients(
                model, x, target, baseline=start.expand_as(x), steps=paths.STEPS
            )

    wanted = gradients.smoothgrad_estimate(
        classifier.model, seen.x, seen.target, method=chosen, samples=samples, noise=0.2,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert done == samples
    assert wanted.standard_error is not None
    np.testing.assert_allclose(map_, wanted.value[0].sum(0).double().numpy(), atol=1e-5)
    relative = float(wanted.standard_error.mean() / wanted.value.abs().mean())
    assert error == pytest.approx(relative, rel=1e-2, nan_ok=True)


def test_one_copy_has_no_standard_error(classifier: Classifier) -> None:
    panel = panels.smoothgrad(classifier)
    panel.controls["samples"].value = 1
    assert "no standard error from one copy" in panel.words


@pytest.mark.parametrize("baseline", [paths.BOTH, "blurred"])
def test_xrai_ends_with_the_library_s_regions(
    classifier: Classifier, drawn: list[Any], baseline: str
) -> None:
    panel = panels.xrai(classifier)
    drawn.clear()
    panel.update(baseline=baseline, picture="crow")
    (_, coarse, *_), (seen, found, *_) = drawn
    assert coarse.coarse
    assert not found.coarse
    names = ["black", "white"] if baseline == paths.BOTH else [baseline]
    maps = [
        gradients.integrated_gradients(
            classifier.model, seen.x, seen.target, steps=64 // len(names),
            baseline=BASELINES[name](classifier, seen.x),
        )
        for name in names
    ]  # fmt: skip
    wanted = regions.xrai(
        classifier.model, seen.x, seen.target, attribution=torch.stack(maps).mean(0),
        segments=regions.segment_stack(seen.pixels),
    )  # fmt: skip
    np.testing.assert_allclose(found.values, wanted[0].numpy(), atol=1e-5)


def test_the_top_share_is_cut_from_the_regions_that_are_kept(
    classifier: Classifier, drawn: list[Any]
) -> None:
    panel = panels.xrai(classifier)
    regions_ = drawn[-1][1]
    panel.controls["top"].value = 25
    assert drawn[-1][1] is regions_
    share = (regions_.values >= np.quantile(regions_.values, 0.75)).mean()
    assert f"the best regions, {share:.0%} of the picture" in panel.words
    panel.controls["top"].value = 100
    assert "the best regions, 100% of the picture" in panel.words


def test_a_photo_has_no_object_that_is_known(classifier: Classifier) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    for name in PANELS:
        panel = getattr(panels, name)(classifier, photo)
        assert panel.controls["picture"].value == "your picture"
        assert "object" not in panel.words


def test_in_a_notebook_the_first_picture_is_the_coarse_one(classifier: Classifier) -> None:
    async def move() -> tuple[str, str]:
        panel = panels.xrai(classifier)
        panel.controls["picture"].value = "zebra"
        first = panel.words
        assert panel._refinement
        await panel._refinement
        return first, panel.words

    first, last = asyncio.run(move())
    assert ", coarse" in first
    assert ", coarse" not in last
