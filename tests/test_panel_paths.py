import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from course_utils import gradients, models, panels, regions, scenes
from course_utils.panels import Panel, paths

pytestmark = pytest.mark.slow

PANELS = ("integrated_gradients", "smoothgrad", "xrai")


@pytest.fixture(scope="module")
def classifier() -> models.Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.SmallResNet(len(scenes.CLASSES), (8, 8, 8, 8))
    network.eval().requires_grad_(False)
    return models.Classifier("small", network, scenes.CLASSES, 64)


@pytest.fixture(autouse=True)
def quick_segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapping segments in a tenth of the time, wherever the real ones are not the point."""
    if request.node.originalname == "test_opens_without_arguments":
        return

    def stack(image: Any) -> np.ndarray:
        cuts = [regions.segment(image, n_segments=n) for n in (9, 36)]
        return np.concatenate([cut == np.unique(cut)[:, None, None] for cut in cuts])

    monkeypatch.setattr(regions, "segment_stack", stack)


@pytest.fixture
def panel(request: pytest.FixtureRequest, classifier: models.Classifier) -> Panel:
    return getattr(panels, request.param)(classifier)


every_panel = pytest.mark.parametrize("panel", PANELS, indirect=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the panels' canvases are made of, the arguments of each in turn."""
    calls: list[Any] = []
    for name in ("_path_canvas", "_smooth_canvas", "_xrai_canvas"):
        monkeypatch.setattr(paths, name, _noting(getattr(paths, name), calls))
    return calls


def _noting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return noted


def values_of(control: Any) -> list[Any]:
    if hasattr(control, "options"):
        return list(control.options)
    return [control.min, (control.min + control.max) / 2, control.max]


@pytest.mark.parametrize("name", PANELS)
def test_opens_without_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    panel = getattr(panels, name)()
    assert repr(panel) == f"panel: {name.replace('_', ' ')}"
    assert "toadstool" in panel.words
    assert panel.status.value == ""
    assert capsys.readouterr() == ("", "")


@every_panel
def test_every_control_changes_the_picture(panel: Panel) -> None:
    opening = panel.values
    for name, control in panel.controls.items():
        panel.update(**opening)
        seen = {panel.picture.value}
        for value in values_of(control)[:4]:
            control.value = int(value) if isinstance(opening[name], int) else value
            assert panel.status.value == "", (name, value)
            seen.add(panel.picture.value)
        assert len(seen) > 1, f"{name} changes nothing"


@every_panel
def test_the_same_values_give_the_same_picture(panel: Panel) -> None:
    opening, values = panel.picture.value, panel.values
    panel.controls["picture"].value = "zebra"
    panel.update(**values)
    assert panel.picture.value == opening


@pytest.mark.parametrize("rule", list(gradients.QUADRATURES))
@pytest.mark.parametrize("baseline", list(paths.BASELINES))
def test_at_alpha_1_the_map_is_integrated_gradients(
    classifier: models.Classifier, rule: str, baseline: str
) -> None:
    x = classifier.to_input(scenes.render(scenes.canonical("crow")).image)
    start = paths.BASELINES[baseline](classifier, x)
    path = paths.walk(classifier, x, start, 8, rule, 20)
    wanted = gradients.integrated_gradients(
        classifier.model, x, 8, baseline=start, rule=rule, steps=20, progress=False
    )
    torch.testing.assert_close(path.map_until(1.0), wanted)
    with torch.no_grad():
        ends = classifier.model(torch.cat([start.expand_as(x), x]))[:, 8]
    assert path.ends == pytest.approx(ends.tolist(), abs=1e-5)
    torch.testing.assert_close((path.weights * path.slopes).sum(), wanted.sum())


def test_the_map_so_far_ends_at_alpha(classifier: models.Classifier) -> None:
    x = classifier.to_input(scenes.render(scenes.canonical("crow")).image)
    path = paths.walk(classifier, x, classifier.black(x), 8, "riemann-right", 4)
    assert not path.map_until(0.24).any()
    first = path.difference * path.gradients[:1] / 4
    torch.testing.assert_close(path.map_until(0.25), first)
    torch.testing.assert_close(path.map_until(0.49), first)


def test_a_first_path_is_coarse_and_alpha_moves_along_the_one_that_is_kept(
    classifier: models.Classifier, drawn: list[Any]
) -> None:
    panel = panels.integrated_gradients(classifier)
    lengths = [len(arguments[2].alphas) for arguments in drawn]
    assert lengths == [paths.COARSE, 16]
    panel.controls["alpha"].value = 0.9
    panel.controls["steps"].value = 4
    assert [len(arguments[2].alphas) for arguments in drawn[2:]] == [16, 4]


def test_the_panel_states_the_completeness_gap(
    classifier: models.Classifier, drawn: list[Any]
) -> None:
    panel = panels.integrated_gradients(classifier)
    panel.update(target="cow", baseline="white", steps=5)
    path = drawn[-1][2]
    gap = abs(float(path.map_until(1.0).sum()) - (path.ends[1] - path.ends[0]))
    assert "Integrated gradients of “cow” from the baseline “white”, 5 steps" in panel.words
    assert panel.words.endswith(f"a gap of {gap:.2f}.")


def test_a_trapezoid_of_one_step_is_a_sentence(classifier: models.Classifier) -> None:
    panel = panels.integrated_gradients(classifier)
    panel.update(steps=1, rule="trapezoid")
    assert "steps" in panel.status.value
    panel.controls["steps"].value = 2
    assert panel.status.value == ""


@pytest.mark.parametrize("samples", [1, 2, 7, 23])
@pytest.mark.parametrize("method", paths.SMOOTHED)
def test_portions_add_up_to_smoothgrad(
    classifier: models.Classifier, drawn: list[Any], samples: int, method: str
) -> None:
    panel = panels.smoothgrad(classifier)
    panel.update(method=method, samples=samples, noise=0.2, seed=3)
    *_, seen, _, _, _, _, map_, done, error = drawn[-1]
    chosen: Any = gradients.gradient
    if method != "gradient":
        start = classifier.blurred(seen.x)

        def chosen(model: Any, x: torch.Tensor, target: Any) -> torch.Tensor:
            return gradients.integrated_gradients(
                model, x, target, baseline=start.expand_as(x), steps=paths.STEPS, progress=False
            )

    wanted, details = gradients.smoothgrad(
        classifier.model, seen.x, seen.answer, method=chosen, samples=samples, noise=0.2,
        generator=torch.Generator().manual_seed(3), details=True, progress=False,
    )  # fmt: skip
    assert done == samples
    np.testing.assert_allclose(map_, wanted[0].sum(0).double().numpy(), atol=1e-5)
    relative = float(details.standard_error.mean() / wanted.abs().mean())
    assert error == pytest.approx(relative, rel=1e-2, nan_ok=True)


def test_one_copy_has_no_standard_error(classifier: models.Classifier) -> None:
    panel = panels.smoothgrad(classifier)
    panel.controls["samples"].value = 1
    assert "no standard error from one copy" in panel.words


@pytest.mark.parametrize("baseline", [paths.BOTH, "blurred"])
def test_xrai_ends_with_the_library_s_regions(
    classifier: models.Classifier, drawn: list[Any], baseline: str
) -> None:
    panel = panels.xrai(classifier)
    drawn.clear()
    panel.update(baseline=baseline, picture="crow")
    coarse, fine = drawn
    assert coarse[-1] != fine[-1] == ""
    seen, found = fine[1], fine[2]
    names = ["black", "white"] if baseline == paths.BOTH else [baseline]
    maps = [
        gradients.integrated_gradients(
            classifier.model, seen.x, seen.answer, steps=64 // len(names), progress=False,
            baseline=paths.BASELINES[name](classifier, seen.x),
        )
        for name in names
    ]  # fmt: skip
    wanted = regions.xrai(
        classifier.model, seen.x, seen.answer, attribution=torch.stack(maps).mean(0),
        segments=regions.segment_stack(seen.pixels), progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(found.values, wanted[0].numpy(), atol=1e-5)


def test_the_top_share_is_cut_from_the_regions_that_are_kept(
    classifier: models.Classifier, drawn: list[Any]
) -> None:
    panel = panels.xrai(classifier)
    regions_ = drawn[-1][2]
    panel.controls["top"].value = 25
    assert drawn[-1][2] is regions_
    share = (regions_.values >= np.quantile(regions_.values, 0.75)).mean()
    assert f"the best regions, {share:.0%} of the picture" in panel.words
    panel.controls["top"].value = 100
    assert "the best regions, 100% of the picture" in panel.words


def test_a_photo_has_no_object_that_is_known(classifier: models.Classifier) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    for name in PANELS:
        panel = getattr(panels, name)(classifier, photo)
        assert panel.controls["picture"].value == "your picture"
        assert "object" not in panel.words


def test_in_a_notebook_the_first_picture_is_the_coarse_one(classifier: models.Classifier) -> None:
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
