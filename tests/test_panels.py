import asyncio
import html
import inspect
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import panels, progress
from course_utils.methods import METHODS
from course_utils.networks import Classifier
from course_utils.panels import (
    Canvas,
    Panel,
    canvas,
    crash_course,
    pictures,
)
from course_utils.panels import panel as panel_
from course_utils.worlds import scenes
from tests.networks import small_classifier

pytestmark = pytest.mark.slow

Simple = tuple[Panel, list[tuple[int, int]]]
PANELS = [name for name in panels.__all__ if name not in ("Canvas", "Panel")]
# Words with which a panel opens on the course's own model.
OPENING = {
    "cam_family": "at the last maps for “football”, 8 × 8 places: Grad-CAM",
    "cascading_randomization": "of “zebra” with 3 of 21 layers randomised",
    "deletion_insertion": "deletion by integrated_gradients for “zebra”",
    "dissection": "in which unit 0 of layer4.1 is highest",
    "grad_cam": "Grad-CAM of “zebra” at the last maps for “zebra”, 8 × 8 places",
    "gradient": "gradient of the logit of “zebra”",
    "integrated_gradients": "toadstool",
    "lime": "tiger",
    "neighbourhood": "boundary",
    "photo": "chelsea",
    "rise": "RISE of “zebra”, kept − hidden, by 200 masks, p = 0.5",
    "shapley": "ladybird",
    "side_by_side": "Maps of “zebra”",
    "smoothgrad": "toadstool",
    "xrai": "toadstool",
}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return small_classifier()


def takes_a_classifier(name: str) -> bool:
    """Neither `photo`, which asks no model, nor `neighbourhood`, whose model is any function."""
    return name not in ("photo", "neighbourhood")


def opened(name: str, classifier: Classifier) -> Panel:
    panel: Panel = getattr(panels, name)(*([classifier] if takes_a_classifier(name) else []))
    return panel


@pytest.fixture
def panel(request: pytest.FixtureRequest, classifier: Classifier, few_scenes: None) -> Panel:
    return opened(request.param, classifier)


every_panel = pytest.mark.parametrize("panel", PANELS, indirect=True)


def shown(panel: Panel) -> tuple[bytes, ...]:
    return tuple(picture.value for picture in panel.pictures)


def test_the_names_of_the_panels_in_words() -> None:
    assert [repr(Panel(name, {}, lambda: Canvas(4, 4))) for name in ("a", "scene editor")] == [
        "panel: a",
        "panel: scene editor",
    ]


def test_what_is_offered_is_there_and_nothing_else() -> None:
    assert dir(panels) == sorted(panels.__all__)
    assert all(callable(getattr(panels, name)) for name in panels.__all__)
    assert all("image" in inspect.signature(getattr(panels, name)).parameters for name in PANELS)
    assert {*OPENING} <= {*PANELS}
    with pytest.raises(
        AttributeError, match=r"^module 'course_utils\.panels' has no attribute 'x'"
    ):
        _ = panels.x


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_opens_without_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    panel = getattr(panels, name)()
    assert isinstance(panel, widgets.Widget)
    assert repr(panel) == f"panel: {name.replace('_', ' ')}"
    assert panel.status.value == ""
    assert OPENING.get(name, "") in panel.words
    assert "coming" not in panel.words
    assert "coarse" not in panel.words
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in PANELS if takes_a_classifier(name)])
def test_a_panel_opens_on_a_model_of_another_type(name: str, few_scenes: None) -> None:
    classifier = small_classifier()
    classifier.model.bfloat16()
    assert opened(name, classifier).status.value == ""


def ends(control: widgets.Widget) -> list[Any]:
    """Values across the range of a control, its ends among them."""
    if isinstance(control, widgets.Dropdown):
        # Menus of methods are tried one by one in test_panel_judges.
        methods = METHODS.keys() & {*control.options}
        return list(control.options)[:: 6 if len(methods) > 6 else 1]
    if isinstance(control, widgets.SelectMultiple):
        return [(part,) for part in control.options] + [tuple(control.options), ()]
    if isinstance(control, widgets.Checkbox):
        return [True, False]
    if isinstance(control, widgets.ColorPicker):
        return ["#000000", "#ffffff", "#d55e00"]
    if isinstance(control, widgets.FloatText):
        return [-100.0, 0.0, 0.5]
    low, high = control.min, control.max
    return [low, type(control.value)((low + high) / 2), high]


ASCENT = (
    *("layer", "unit", "step_size", "fourier", "decorrelate", "jitter", "rotation"),
    *("scaling", "l2", "total_variation", "seed"),
)

# What shows only when something else is set, or as well in fewer steps.
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    **{("activation maximization", name): {"steps": 16} for name in ASCENT},
    ("convolution", "filter"): {"kernel": crash_course.LEARNED},
    ("scene editor", "clutter_texture"): {"clutter": "armchair"},
    ("scene editor", "clutter_x"): {"clutter": "lamp"},
    ("scene editor", "clutter_size"): {"clutter": "lamp"},
    ("scene editor", "companion_x"): {"companion": "crow"},
    ("scene editor", "companion_size"): {"companion": "crow"},
}


@every_panel
def test_every_control_across_its_range_changes_the_picture_without_an_error(
    panel: Panel, capsys: pytest.CaptureFixture[str]
) -> None:
    opening = panel.values
    for name, control in panel.controls.items():
        panel.update(**opening | NEEDS.get((panel.name, name), {}))
        if isinstance(control, widgets.Button | widgets.FileUpload):
            continue
        if control.layout.display == "none":
            continue  # a switch without a player
        seen = {(shown(panel), panel.words)}
        for value in ends(control):
            control.value = value
            assert panel.status.value == "", (name, value)
            seen.add((shown(panel), panel.words))
        assert len({picture for picture, _ in seen}) > 1, f"{name} changes nothing"
    assert capsys.readouterr() == ("", "")


@every_panel
def test_the_same_values_give_the_same_picture(panel: Panel) -> None:
    opening, values = shown(panel), panel.values
    name, control = next((n, c) for n, c in panel.controls.items() if n in values)
    control.value = next(value for value in ends(control) if value != values[name])
    assert shown(panel) != opening
    panel.update(**values)
    assert panel.controls[name].value == values[name]
    assert shown(panel) == opening


@every_panel
def test_controls_have_names_and_pictures_have_words(panel: Panel) -> None:
    for control in panel.controls.values():
        assert getattr(control, "description", "") or control.tooltip
    assert len(panel.words) > 20
    assert panel.words.split("“")[0] in html.unescape(panel.caption.value)
    for picture in panel.pictures:
        image = Image.open(io.BytesIO(picture.value))
        assert image.width > 500


@every_panel
def test_the_mimebundle_has_widget_picture_and_fixed_text(panel: Panel) -> None:
    data, metadata = panel._repr_mimebundle_()
    assert data["text/plain"] == repr(panel)
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    static = Image.open(io.BytesIO(data["image/png"])).convert("RGB")
    live = Image.open(io.BytesIO(panel.picture.value))
    assert static.size == live.size
    difference = np.abs(np.asarray(static, int) - np.asarray(live, int))
    assert difference.mean() < 6  # the same picture in 256 colours
    assert len(data["image/png"]) < 300_000
    assert metadata["image/png"]["alt"] == panel.words


@pytest.mark.parametrize("name", [name for name in PANELS if takes_a_classifier(name)])
def test_a_wrong_model_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(TypeError, match=r"model must be a Classifier .*not Linear"):
        getattr(panels, name)(torch.nn.Linear(2, 2))


# -- the panel ----------------------------------------------------------------------------------


@pytest.fixture
def simple() -> Simple:
    """A panel of a slider, a follower and a button, which counts its drawings and fails at 7."""
    drawings: list[tuple[int, int]] = []

    def draw(level: int, other: int) -> Canvas:
        drawings.append((level, other))
        if level == 7:
            raise ValueError("level is 7 <b>, choose\nanother one.")
        if level == 8:
            raise RuntimeError("broken")
        if level == 9:
            raise KeyError
        canvas = Canvas(40, 40)
        canvas.alt = f"level {level}"
        canvas.box(0, 0, 2 * level, 2 + other, fill="#000000")
        return canvas

    def go(_: None) -> dict[str, int]:
        return {"level": 3, "other": 4}

    controls = {
        "level": widgets.IntSlider(1, max=10, description="level"),
        "other": widgets.IntSlider(1, max=10, description="other"),
        "go": widgets.Button(description="go"),
    }
    linked = {"level": lambda level: {"other": level}, "go": go}
    panel = Panel("simple", controls, draw, linked=linked)
    return panel, drawings


def test_a_new_value_has_redrawn_when_the_assignment_returns(simple: Simple) -> None:
    panel, drawings = simple
    before = panel.picture.value
    panel.controls["other"].value = 5
    assert drawings == [(1, 1), (1, 5)]
    assert panel.picture.value != before
    assert panel.words == "level 1"


def test_linked_controls_and_buttons_redraw_once(simple: Simple) -> None:
    panel, drawings = simple
    panel.controls["level"].value = 2
    assert drawings[1:] == [(2, 2)]
    panel.controls["go"].click()
    assert drawings[2:] == [(3, 4)]
    panel.update(level=5, other=6)
    assert drawings[3:] == [(5, 6)]


def test_an_error_is_a_sentence_in_the_panel_until_the_next_good_picture(
    simple: Simple, capsys: pytest.CaptureFixture[str]
) -> None:
    panel, _ = simple
    before = panel.picture.value
    panel.controls["level"].value = 7
    assert 'role="alert"' in panel.status.value
    assert "level is 7 &lt;b&gt;, choose" in panel.status.value
    assert panel.picture.value == before
    panel.controls["level"].value = 8
    assert "RuntimeError: broken" in panel.status.value
    panel.controls["level"].value = 9
    assert "KeyError" in panel.status.value
    panel.controls["level"].value = 6
    assert panel.status.value == ""
    assert panel.picture.value != before
    assert capsys.readouterr() == ("", "")


def test_an_error_in_a_linked_function_is_shown_too(simple: Simple) -> None:
    panel, drawings = simple
    panel._linked["go"] = lambda _: {"level": 1 / 0}
    panel.controls["go"].click()
    assert "ZeroDivisionError" in panel.status.value
    panel._linked["go"] = lambda _: {"nothing": 1}
    panel.controls["go"].click()
    assert "no control" in panel.status.value
    panel.controls["other"].value = 9
    assert panel.status.value == ""
    assert drawings[-1] == (1, 9)


def test_an_error_on_opening_is_raised() -> None:
    def draw() -> Canvas:
        raise ValueError("nothing to show")

    with pytest.raises(ValueError, match="nothing to show"):
        Panel("broken", {}, draw)


def test_a_bar_shows_how_far_a_long_drawing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what takes longer than a moment; it is gone once the picture is there."""
    shown: list[tuple[float, bool]] = []
    slow = widgets.IntSlider()
    made: list[Panel] = []

    def draw(slow: int) -> Canvas:
        for _ in progress.in_batches(4, 1):
            if slow:
                shown.append((made[0].bar.value, made[0].bar.layout.display is None))
        return Canvas(9, 9)

    monkeypatch.setattr(panel_, "PATIENCE", 0)
    monkeypatch.setattr(panel_, "perf_counter", iter(range(100)).__next__)
    made.append(Panel("slow", {"slow": slow}, draw))
    bar = made[0].bar
    assert bar.layout.display == "none"
    slow.value = 1
    assert shown == [(0, False), (0.25, True), (0.5, True), (0.75, True)]
    assert bar.layout.display == "none"


def test_a_model_of_photographs_is_offered_photographs_first(
    classifier: Classifier,
) -> None:
    spec = {"zebra": scenes.standard("zebra")}
    other = replace(classifier, classes=("tench", "goldfish"))
    assert [*pictures.picture_choices(classifier, None, spec)][:2] == ["zebra", "chelsea"]
    assert [*pictures.picture_choices(other, None, spec)][::9] == ["chelsea", "zebra"]
    assert "your picture" in pictures.picture_choices(other, np.zeros((9, 9, 3), np.uint8), spec)
    assert pictures.pixels_of(pictures.typical(other)).shape == (300, 451, 3)


def test_update_names_the_nearest_control(simple: Simple) -> None:
    panel, drawings = simple
    with pytest.raises(ValueError, match="no control 'levle'; near it are level"):
        panel.update(levle=2)
    assert len(drawings) == 1


def test_several_pictures_stand_below_each_other_in_the_static_one() -> None:
    panel = Panel("two", {}, lambda: [Canvas(40, 20), Canvas(60, 30)])
    assert len(panel.pictures) == 2
    data, metadata = panel._repr_mimebundle_()
    size = Image.open(io.BytesIO(data["image/png"])).size
    first, second = (canvas.image.size for canvas in panel._canvases)
    assert size == (second[0], first[1] + second[1])
    assert metadata["image/png"]["width"] == 60 + 2 * canvas.MARGIN


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (0.5, ".5"), (-0.25, "−.25"), (-0.001, "0"), (-1.55, "−1.6"), (12.3, "12"),
     (10, "10"), (100, "100"), (0.998, "1"), (0.05, ".05"), (-20, "−20")],
)  # fmt: skip
def test_numbers_in_cells_are_short(value: Any, text: str) -> None:
    assert canvas.short(value) == text


# -- convolution -------------------------------------------------------------------------------


def test_the_convolution_panel_states_what_conv2d_gives(classifier: Classifier) -> None:
    panel = panels.convolution(classifier)
    size = classifier.size - 8
    panel.update(left=size // 2, top=size // 2, padding=0, stride=2, position=5)
    picture = classifier.to_image(
        classifier.to_input(scenes.render(scenes.standard("zebra")).image)
    )
    grey = picture @ np.array([0.299, 0.587, 0.114]) / 255
    patch = torch.tensor(grey[size // 2 :, size // 2 :][:8, :8])[None, None]
    sobel = torch.tensor(crash_course.KERNELS["Sobel x (vertical edges)"]).double()[None, None]
    output = torch.nn.functional.conv2d(patch, sobel, stride=2)[0, 0]
    assert output.shape == (3, 3)
    assert "gives an output of 3 × 3" in panel.words
    total = canvas.decimal(float(output[1, 1]))
    assert panel.words.endswith(f"the products add up to {total}.")


@pytest.mark.parametrize(
    ("stride", "padding", "size"),
    [(s, p, (8 + 2 * p - 3) // s + 1) for s in (1, 2, 3, 4) for p in (0, 1, 2, 3)],
)
def test_the_position_slider_ends_with_the_output(
    classifier: Classifier, stride: int, padding: int, size: int
) -> None:
    panel = panels.convolution(classifier)
    panel.update(stride=stride, padding=padding)
    assert panel.controls["position"].max == size**2
    assert panel.controls["position"].value <= size**2
    assert f"an output of {size} × {size}" in panel.words


def test_choosing_a_kernel_sets_its_numbers_and_editing_one_makes_it_your_own(
    classifier: Classifier,
) -> None:
    panel = panels.convolution(classifier)
    panel.controls["kernel"].value = "Laplacian"
    assert panel.controls["w11"].value == -4
    panel.controls["w11"].value = -3.5
    assert panel.controls["kernel"].value == crash_course.BY_HAND
    assert panel.controls["w01"].value == 1
    assert panel.controls["filter"].disabled
    panel.controls["kernel"].value = crash_course.LEARNED
    assert not panel.controls["filter"].disabled
    assert (panel.controls["stride"].value, panel.controls["padding"].value) == (2, 3)


def test_the_bias_of_a_learned_filter_is_added(classifier: Classifier) -> None:
    layer = torch.nn.Conv2d(3, 2, 3)
    torch.nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    torch.nn.init.constant_(layer.bias, 2.5)
    network = torch.nn.Sequential(layer, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    panel = panels.convolution(replace(classifier, model=network))
    panel.controls["kernel"].value = crash_course.LEARNED
    assert panel.words.endswith("the products add up to 2.50.")


def test_a_model_without_convolution_is_refused(classifier: Classifier) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 16))
    with pytest.raises(ValueError, match="model: small has no convolution"):
        panels.convolution(replace(classifier, model=network))


# -- preprocessing -----------------------------------------------------------------------------


def test_prepared_as_in_training_both_answers_agree_with_the_model(
    classifier: Classifier,
) -> None:
    spec = scenes.standard("tiger")
    panel = panels.preprocessing(classifier, spec)
    assert panel.controls["normalise"].value == "none"
    panel.controls["reset"].click()
    (name, probability), *_ = classifier.predict(scenes.render(spec, 256).image, 1)
    words = panel.words
    assert words.count(f"answers {name} ({probability:.2f})") == 2


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [
        ({}, 0, 1),
        ({"scale": crash_course.SCALES[1]}, 0, 255),
        ({"normalise": crash_course.NORMALS[0]}, -2, 2),
        ({"normalise": "min–max of this picture", "scale": crash_course.SCALES[1]}, 0, 1),
        ({"normalise": "twice"}, -10, 6),
    ],
)
def test_the_numbers_that_the_model_gets(
    classifier: Classifier, changes: Any, low: Any, high: Any
) -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2] = 255
    panel = panels.preprocessing(classifier, board)
    panel.update(**({"normalise": "none"} | changes))
    low, high = canvas.decimal(low), canvas.decimal(high)
    assert f"gets numbers from {low} to {high} " in panel.words


def test_a_flat_picture_has_no_range_to_stretch(classifier: Classifier) -> None:
    panel = panels.preprocessing(classifier, np.full((30, 90, 3), 7, np.uint8))
    panel.controls["normalise"].value = "min–max of this picture"
    assert panel.status.value == ""


# -- scene editor ------------------------------------------------------------------------------


def test_the_scene_editor_has_a_control_for_every_field(classifier: Classifier) -> None:
    panel = panels.scene_editor(classifier)
    assert set(panel.values) == set(scenes.SceneSpec.__dataclass_fields__)
    for name, (low, high) in scenes.RANGES.items():
        assert (panel.controls[name].min, panel.controls[name].max) == (low, high)


def test_choosing_a_class_gives_it_its_looks_and_keeps_the_rest(
    classifier: Classifier,
) -> None:
    panel = panels.scene_editor(classifier)
    panel.update(texture="plain", noise=0.1, clutter="lamp", removed=("head",))
    panel.controls["label"].value = "clownfish"
    look = scenes.standard("clownfish")
    for name in ("shape", "texture", "color", "accent", "background", "removed"):
        assert panel.values[name] == getattr(look, name)
    assert (panel.values["noise"], panel.values["clutter"]) == (0.1, "lamp")
    assert panel.status.value == ""


def test_the_parts_on_offer_are_those_of_the_shape(classifier: Classifier) -> None:
    panel = panels.scene_editor(classifier)
    assert {"mane", "texture", "background"} <= set(panel.controls["removed"].options)
    panel.controls["removed"].value = ("mane", "shadow")
    panel.controls["shape"].value = "ball"
    assert "mane" not in panel.controls["removed"].options
    assert panel.controls["removed"].value == ("shadow",)
    assert panel.status.value == ""


def test_it_starts_from_a_scene_and_comes_back_to_it(classifier: Classifier) -> None:
    spec = scenes.standard("cow", removed=("udder",), angle=30.0, flip=True)
    panel = panels.scene_editor(classifier, spec)
    opening = shown(panel)
    assert scenes.SceneSpec(**panel.values) == spec
    panel.controls["random"].click()
    first = scenes.SceneSpec(**panel.values)
    panel.controls["hard"].click()
    assert spec != first != scenes.SceneSpec(**panel.values)
    assert panel.status.value == ""
    panel.controls["reset"].click()
    assert scenes.SceneSpec(**panel.values) == spec
    assert shown(panel) == opening


def test_the_truth_is_among_the_answers(classifier: Classifier) -> None:
    panel = panels.scene_editor(classifier)
    for label in scenes.CLASSES:
        panel.controls["label"].value = label
        assert f"with a {label};" in panel.words
        assert f" {label} 0." in panel.words.split("answers:")[1]


def test_a_photo_is_not_a_scene(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="image must be a SceneSpec .*not ndarray"):
        panels.scene_editor(classifier, np.zeros((9, 9, 3), np.uint8))


def coarse_then_fine(log: list[str]) -> Panel:
    def draw(size: int) -> Iterator[Canvas]:
        for step in ("coarse", "fine"):
            log.append(f"{step} {size}")
            yield Canvas(10 + size, 10 + len(step))

    return Panel("steps", {"size": widgets.IntSlider(1, min=1, max=9)}, draw)


def test_a_panel_without_a_running_loop_draws_to_the_end_at_once() -> None:
    log: list[str] = []
    panel = coarse_then_fine(log)
    assert panel.words == ""
    panel.controls["size"].value = 5
    assert log == ["coarse 1", "fine 1", "coarse 5", "fine 5"]


def test_in_a_notebook_a_move_stops_the_refinement_of_the_one_before() -> None:
    log: list[str] = []

    async def moves() -> list[int]:
        panel = coarse_then_fine(log)
        log.clear()
        heights = []
        for size in (2, 3):
            panel.controls["size"].value = size
            heights.append(Image.open(io.BytesIO(panel.picture.value)).height)
        await panel._refinement
        heights.append(Image.open(io.BytesIO(panel.picture.value)).height)
        return heights

    coarse, same, fine = asyncio.run(moves())
    assert log == ["coarse 2", "coarse 3", "fine 3"]
    assert coarse == same > fine


def test_moves_that_follow_soon_keep_the_refinement_from_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is fine is drawn in one piece, for which the next move would have to wait."""
    log: list[str] = []
    monkeypatch.setattr("course_utils.panels.panel.REST", 3600)

    async def moves() -> None:
        panel = coarse_then_fine(log)
        log.clear()
        for size in (2, 3, 4):
            panel.controls["size"].value = size
            await asyncio.sleep(0.05)

    asyncio.run(moves())
    assert log == ["coarse 2", "coarse 3", "coarse 4"]


def test_what_a_page_keeps_of_a_panel_is_the_fine_picture() -> None:
    async def move_and_show() -> bytes:
        panel = coarse_then_fine([])
        panel.controls["size"].value = 2
        return panel._repr_mimebundle_()[0]["image/png"]

    fine = Canvas(12, 14).image.size
    assert Image.open(io.BytesIO(asyncio.run(move_and_show()))).size == fine


def test_an_error_in_the_refinement_is_said_and_the_coarse_picture_stays() -> None:
    def draw(size: int) -> Iterator[Canvas]:
        yield Canvas(10, 10)
        if size > 1:
            raise ValueError("size is too large.")

    panel = Panel("steps", {"size": widgets.IntSlider(1, min=1, max=9)}, draw)

    async def move() -> None:
        panel.controls["size"].value = 2
        assert panel.status.value == ""
        await panel._refinement

    asyncio.run(move())
    assert "size is too large." in panel.status.value
    panel.controls["size"].value = 1
    assert panel.status.value == ""
