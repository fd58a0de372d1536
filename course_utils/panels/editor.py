"""The panel of lecture 00: a scene of which everything can be changed."""

from dataclasses import fields, replace
from typing import Any

import ipywidgets as widgets
import numpy as np

from course_utils.networks import Classifier
from course_utils.panels.canvas import Canvas
from course_utils.panels.panel import Panel, choice, columns, named, slider, switch
from course_utils.panels.pictures import classifier_of, with_truth
from course_utils.plotting import MUTED
from course_utils.worlds import scenes

NAMES = {
    "label": "class",
    "color": "colour",
    "accent": "second colour",
    "texture_scale": "texture size",
    "x": "x (rightwards)",
    "y": "y (downwards)",
    "flip": "facing left",
    "mark": "photographer's mark",
    "removed": "left out",
    "seed": "chance (seed)",
}
GROUPS = {
    "object": (
        "label",
        "shape",
        "texture",
        "contrast",
        "texture_scale",
        "color",
        "accent",
        "size",
        "x",
        "y",
        "angle",
        "flip",
    ),
    "place": ("background", "horizon", "light", "sun", "haze", "noise", "blur", "seed"),
    "extras": (
        "clutter",
        "clutter_texture",
        "clutter_x",
        "clutter_size",
        "companion",
        "companion_x",
        "companion_size",
        "mark",
        "removed",
    ),
}
# What a class's typical look sets, when the class is chosen.
LOOK = (
    "shape",
    "texture",
    "color",
    "accent",
    "contrast",
    "texture_scale",
    "size",
    "x",
    "y",
    "angle",
    "background",
    "horizon",
    "removed",
)
BUTTONS = {"reset": "start again", "random": "another scene", "hard": "a hard scene"}


def scene_editor(model: Any = None, image: Any = None) -> Panel:
    """A scene of which everything can be changed, beside the model's five best answers.

    Choosing a class gives the object and its place the class's typical look. `image` may be a
    SceneSpec to start from.
    """
    if not isinstance(image, scenes.SceneSpec | None):
        raise TypeError(f"image must be a SceneSpec to start from, not {type(image).__name__}.")
    classifier = classifier_of(model)
    start = image or scenes.standard("zebra")
    generator = np.random.default_rng(0)
    fieldset = {
        name: _field(name, getattr(start, name)) for group in GROUPS.values() for name in group
    }
    buttons = {name: _button(words) for name, words in BUTTONS.items()}

    def draw(**values: Any) -> Canvas:
        spec = scenes.SceneSpec(**values)
        return _editor_canvas(classifier, replace(spec, removed=_offer(fieldset["removed"], spec)))

    def look(spec: scenes.SceneSpec) -> dict[str, Any]:
        _offer(fieldset["removed"], spec)
        return {field.name: getattr(spec, field.name) for field in fields(spec)}

    linked = {
        "label": lambda label: {name: getattr(scenes.standard(label), name) for name in LOOK},
        "reset": lambda _: look(start),
        "random": lambda _: look(scenes.random_spec(generator)),
        "hard": lambda _: look(scenes.random_spec(generator, hard=True)),
    }
    return Panel(
        "scene editor",
        fieldset | buttons,
        draw,
        linked=linked,
        arranged=_arranged(fieldset, buttons),
    )


def _offer(removable: Any, spec: scenes.SceneSpec) -> tuple[str, ...]:
    """Offer the parts that this shape has, and forget those left out that it has not."""
    options = (*spec.part_names, *scenes.REMOVABLE)
    if removable.options != options:
        kept = tuple(part for part in removable.value if part in options)
        removable.options = options
        removable.value = kept
    return tuple(removable.value)


def _editor_canvas(classifier: Classifier, spec: scenes.SceneSpec) -> Canvas:
    pixels = scenes.render(spec).image
    answers = with_truth(classifier.predict(pixels, len(classifier.classes)), spec.label)
    canvas = Canvas(880, 424)
    about = f"{spec.shape} shape, {spec.texture}"
    canvas.figure(0, 0, 380, pixels, f"the scene: {spec.label}", about, smooth=True)
    first = answers[0][0]
    verdict = "right" if first == spec.label else f"the truth is {spec.label}"
    canvas.heading(420, 0, f"the model says: {first}", verdict)
    canvas.bars(420, 56, 460, answers, spec.label, row=52)
    canvas.text(570, 52 + 52 * len(answers), "probability", size=12, color=MUTED)
    said = ", ".join(f"{name} {value:.2f}" for name, value in answers)
    canvas.alt = f"A scene with a {spec.label}; the model's answers: {said}."
    return canvas


def _field(name: str, value: Any) -> widgets.Widget:
    """The control of one field of a SceneSpec."""
    shown = NAMES.get(name, name.replace("_", " "))
    if name in scenes.CHOICES:
        return choice(shown, scenes.CHOICES[name], value)
    if name == "seed":
        low, high = scenes.RANGES[name]
        return widgets.BoundedIntText(value, min=int(low), max=int(high), **named(shown))
    if name in scenes.RANGES:
        low, high = scenes.RANGES[name]
        return slider(shown, low, high, value, 1 if high - low > 100 else 0.01)
    if name in ("flip", "mark"):
        return switch(shown, value)
    if name == "removed":
        return widgets.SelectMultiple(options=value, value=value, rows=8, **named(shown))
    return widgets.ColorPicker(value=value, **named(shown))


def _button(words: str) -> widgets.Button:
    return widgets.Button(description=words, layout={"width": "auto", "flex": "1 1 auto"})


def _arranged(fieldset: dict[str, Any], buttons: dict[str, Any]) -> widgets.VBox:
    """The buttons, and below them the fields, a tab a group."""
    pages = [columns(fieldset[name] for name in group) for group in GROUPS.values()]
    tabs = widgets.Tab(pages, titles=list(GROUPS), selected_index=0)
    return widgets.VBox([widgets.HBox([*buttons.values()]), tabs])
