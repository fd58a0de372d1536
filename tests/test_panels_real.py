"""What the first picture after a move waits for, in passes: on `scenes`, and on EfficientNet-Lite0.

Passes take nearly all the time, and are the same on every machine.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils import models, panels
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels import Panel, judges
from course_utils.worlds import photographs

pytestmark = pytest.mark.slow

PANELS = [name for name in panels.__all__ if name not in ("Canvas", "Panel")]
MODELLESS = {"neighbourhood", "photo"}  # they ask no classifier


class Passes:
    """Counts the images that go through a model; one that also goes back counts `back` times."""

    def __init__(self, back: float) -> None:
        self.back, self.count = back, 0.0

    def __call__(self, model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        goes_back = torch.is_grad_enabled() and inputs[0].requires_grad
        self.count += len(inputs[0]) * (self.back if goes_back else 1)


@contextmanager
def counted(model: torch.nn.Module, back: float) -> Iterator[Passes]:
    counter = Passes(back)
    handle = model.register_forward_pre_hook(counter)
    yield counter
    handle.remove()


# -- scenes ----------------------------------------------------------------------------------------

SHORT = 70  # forward passes in 100 ms on two cores, or 30 that also go back
# A set of pictures passes through the model when it is first chosen, and is then kept.
ONCE = {("prototypes", "chosen")}


def others(control: Any, seen: set[str]) -> list[Any]:
    """A value far from where a control stands; every method of a menu of methods, once."""
    if isinstance(control, widgets.Button | widgets.FileUpload):
        return []
    if isinstance(control, widgets.SelectMultiple):
        return [control.options[:1]]
    if isinstance(control, widgets.Dropdown):
        some = [option for option in control.options if option != control.value]
        methods = [option for option in some if option in METHODS and option not in seen]
        seen.update(methods)
        return methods or some[-1:]
    if isinstance(control, widgets.Checkbox):
        return [not control.value]
    if isinstance(control, widgets.ColorPicker):
        return ["#d55e00"]
    if isinstance(control, widgets.FloatText):
        return [2.5]
    return [control.max if control.value != control.max else control.min]


async def moves(panel: Panel, passes: Passes) -> dict[tuple[str, Any], float]:
    """What the first picture waits for after each move; the finer pictures are never drawn."""
    waited: dict[tuple[str, Any], float] = {}
    seen: set[str] = set()
    for name, control in panel.controls.items():
        for value in others(control, seen):
            passes.count = 0
            control.value = value
            assert panel.status.value == "", (name, value)
            waited[name, value] = passes.count
    if panel._refinement:
        panel._refinement.cancel()
    return waited


@pytest.mark.parametrize("name", PANELS)
def test_a_move_on_scenes_waits_for_few_passes(
    name: str, few_scenes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "MOMENT", np.inf)  # so that as much is added as on a fast machine
    scenes = models.load("scenes", device="cpu")
    with counted(scenes.model, SHORT / 30) as passes:
        panel = getattr(panels, name)(*([] if name in MODELLESS else [scenes]))
        assert passes.count or name in {*MODELLESS, "convolution"}
        waited = asyncio.run(moves(panel, passes))
    assert {key for key, _ in waited} == {*panel.values} - {"upload"}
    slow = {key: n for key, n in waited.items() if n > SHORT and (name, key[0]) not in ONCE}
    assert not slow, f"{name}: {slow}"


# -- EfficientNet-Lite0 ----------------------------------------------------------------------------

# A move that is not to another picture: a control and its new value.
MOVES: dict[str, tuple[str, Any]] = {
    "activation_maximization": ("unit", 6),
    "convolution": ("position", 3),
    "dictionary": ("feature", 1),
    "dissection": ("unit", 1),
    "microscope": ("unit", 1),
    "preprocessing": ("photo", "camera"),
    "prototypes": ("unit", 1),
    "side_by_side": ("first", "occlusion"),
    "simulatability": ("page", 4),
}
REAL = [name for name in PANELS if name not in {*MODELLESS, "scene_editor"}]  # of photographs
FIRST = 30  # forward passes that a first picture may wait for: 0.3 s on two cores
LONG = 300  # and a last one without a bar: 3 s


@pytest.fixture(scope="module")
def real() -> Classifier:
    return models.load("efficientnet_lite0", device="cpu")


@pytest.mark.parametrize("name", REAL)
def test_a_move_waits_for_few_passes(
    name: str, real: Classifier, few_scenes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = getattr(panels, name)(real, photographs.load("coffee").image)
    assert panel.status.value == ""
    shown: list[float] = []
    heard: list[float] = []
    advance = Panel._advance
    with counted(real.model, back=3) as passes:

        def noted(self: Panel) -> bool:
            more = advance(self)
            if more:
                shown.append(passes.count)
            return more

        monkeypatch.setattr(Panel, "_advance", noted)
        monkeypatch.setattr(Panel, "_hear", lambda self, done, total: heard.append(passes.count))
        key, value = MOVES.get(name, ("picture", "camera"))
        control = panel.controls[key]
        assert not isinstance(control, widgets.Button)
        assert control.value != value
        control.value = value
    assert panel.status.value == ""
    assert shown[0] <= FIRST
    # Between two pictures, or two moves of the bar, nothing takes long.
    stops = sorted([0, *shown, *heard])
    assert max(b - a for a, b in pairwise(stops)) <= LONG
