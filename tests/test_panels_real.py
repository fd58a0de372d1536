"""Every panel on EfficientNet-Lite0 and a photograph: what a move waits for, in passes."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ipywidgets as widgets
import pytest
import torch

from course_utils import models, panels, photographs
from course_utils.panels import Panel, examples, units

pytestmark = pytest.mark.slow

# A move that is not to another picture: a control and its new value.
MOVES: dict[str, tuple[str, Any]] = {
    "activation_maximization": ("unit", 6),
    "convolution": ("position", 3),
    "microscope": ("unit", 1),
    "preprocessing": ("photo", "camera"),
    "prototypes": ("unit", 1),
    "side_by_side": ("first", "occlusion"),
}
OTHERS = {"Canvas", "Panel", "neighbourhood", "scene_editor", "photo"}  # no panel, or no such model
PANELS = sorted({*panels.MODULES} - OTHERS)
FIRST = 30  # forward passes that a first picture may wait for: 0.3 s on two cores
LONG = 300  # and a last one without a bar: 3 s


@pytest.fixture(scope="module")
def real() -> models.Classifier:
    return models.load("efficientnet_lite0", device="cpu")


class Passes:
    """Counts the images that go through a model; one that also goes back counts three times."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        goes_back = torch.is_grad_enabled() and inputs[0].requires_grad
        self.count += len(inputs[0]) * (3 if goes_back else 1)


@pytest.fixture
def passes(real: models.Classifier) -> Iterator[Passes]:
    counter = Passes()
    handle = real.model.register_forward_pre_hook(counter)
    yield counter
    handle.remove()


@pytest.mark.parametrize("name", PANELS)
def test_a_move_waits_for_few_passes(
    name: str, real: models.Classifier, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SCENES", 16)
    monkeypatch.setattr(examples, "N", 32)
    monkeypatch.setattr(examples, "CROPS", 4)
    panel = getattr(panels, name)(real, photographs.load("coffee").image)
    assert panel.status.value == ""
    shown: list[int] = []
    heard: list[int] = []
    advance = Panel._advance

    def counted(self: Panel) -> bool:
        more = advance(self)
        if more:
            shown.append(passes.count)
        return more

    monkeypatch.setattr(Panel, "_advance", counted)
    monkeypatch.setattr(Panel, "_hear", lambda self, done, total: heard.append(passes.count))
    passes.count = 0
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
