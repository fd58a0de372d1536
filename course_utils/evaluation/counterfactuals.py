"""What would have to be different in a drawn scene for the model to answer otherwise?

A true effect says what a part does to the answer's logit. A counterfactual says what it takes to
change the answer. In the drawn world it is found by drawing the scene again, and so it is a scene,
not a pattern of noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils.contract import (
    check_choice,
    check_count,
    check_logits,
    check_whole,
    explaining,
    resolve_target,
)
from course_utils.evaluation.truth import check_scene
from course_utils.networks import Classifier
from course_utils.progress import in_batches
from course_utils.worlds import scenes
from course_utils.worlds.scenes import CHOICES, LOOKS, Scene, SceneSpec

KEPT = 4  # the changes to which another one is added

Value = str | float | bool
Change = tuple[str, Value]  # a field and its new value, or "without" and a part's name

# What a field may become: of numbers, some from the range in which random scenes have them.
VALUES: Mapping[str, tuple[Value, ...]] = {
    "texture": CHOICES["texture"],
    "color": tuple(dict.fromkeys(look.color for look in LOOKS.values())),
    "accent": tuple(dict.fromkeys(look.accent for look in LOOKS.values())),
    "contrast": (0.15, 0.3, 0.45, 0.6, 0.8, 1.0),
    "texture_scale": (0.5, 0.7, 1.0, 1.4),
    "x": (0.1, 0.3, 0.5, 0.7, 0.9),
    "y": (0.3, 0.4, 0.5, 0.6, 0.7),
    "size": (0.15, 0.25, 0.4, 0.55, 0.7, 0.85),
    "flip": (False, True),
    "background": CHOICES["background"],
    "light": (0.45, 0.7, 1.0, 1.35),
    "sun": (-1.0, 0.0, 1.0),
    "haze": (0.0, 0.2, 0.4, 0.6),
    "clutter": CHOICES["clutter"][1:],  # "none" is without it
    "clutter_texture": CHOICES["clutter_texture"],
    "companion": CHOICES["companion"][1:],
    "companion_size": (0.1, 0.2, 0.3, 0.5),
    "noise": (0.0, 0.02, 0.05),
    "blur": (0.0, 0.5, 1.0),
    "without": ("texture", "shadow", "clutter", "companion", "background", "mark"),
}


class Redraw(NamedTuple):
    """The smallest redraw found that flips an answer; `scene` is None where none was found."""

    scene: Scene | None
    changes: tuple[str, ...]  # in words, one for each thing that is changed
    before: Tensor  # the logits (K,) of the scene, and of the redraw
    after: Tensor | None
    size: float  # the mean change of the picture's numbers, as a share of the range from 0 to 255
    passes: int  # redraws that the model saw, the scene itself included


def smallest_redraw(
    classifier: Classifier,
    scene: Scene,
    target: int | None = None,
    *,
    most: int = 2,
    fields: Sequence[str] | None = None,
    render: Callable[..., Any] = scenes.render,
    batch_size: int = 16,
) -> Redraw:
    """The smallest change of a drawn scene that flips the model's answer, found by search.

        min over scenes s' with answer(s') ≠ answer(s) of (things changed, mean |s' − s|)

    Fewer changed things come first, whatever they are; among as many, the picture that differs
    least. One thing is a field of the scene's specification, which takes one of VALUES, or a part
    that is not drawn. The object stays, and keeps its shape.

    First every single change is tried: where one flips the answer, no other single change of
    VALUES that does is smaller. Else one more is added to the four that come nearest to flipping
    it, by the logits, and so on: what is found then need not be the smallest.

    A redraw may be what no class of the world is, such as a striped cow. Then the model's answer is
    only what it says; there is no right one.

    classifier: see `models.load`. scene: drawn by `render`; the model gets it in its own size.
    target: the class that the answer must become; None for any but the answer to the scene.
    most: how many things may change. A search costs about a hundred passes for the first, and four
    times as many for each further one.
    fields: what may change, of VALUES; None for all. "without" stands for all parts.
    render: spec, resolution → scene.

    Raises ValueError or TypeError naming the argument.
    Source: Wachter, Mittelstadt, Russell, Counterfactual Explanations without Opening the Black
    Box, 2017.
    """
    check_scene(scene)
    if target is not None:
        check_whole("target", target)
    check_count("most", most)
    names = _field_names(fields)
    check_count("batch_size", batch_size)

    before, passes = _logits(classifier, [scene], batch_size)[0], 1
    answer = int(before.argmax())
    if target is not None:
        resolve_target(before[None], target)
        if target == answer:
            raise ValueError(f"target is {target}, which is the model's answer already")

    kept: list[tuple[Change, ...]] = [()]
    for _ in range(most):
        tried, drawn = _redraws(scene, kept, names, render)
        logits = _logits(classifier, drawn, batch_size)
        passes += len(drawn)
        gaps = _gaps(logits, answer, target)
        sizes = [_difference(scene, one) for one in drawn]
        flipped = [i for i in range(len(drawn)) if gaps[i] < 0]
        if flipped:
            best = min(flipped, key=lambda i: sizes[i])
            words = tuple(_in_words(scene.spec, change) for change in tried[best])
            return Redraw(drawn[best], words, before, logits[best], sizes[best], passes)
        kept = [tried[i] for i in gaps.argsort(stable=True)[:KEPT].tolist()]
    return Redraw(None, (), before, None, np.nan, passes)


def _field_names(fields: Sequence[str] | None) -> list[str]:
    names = list(VALUES) if fields is None else list(fields)
    for name in names:
        check_choice("fields", name, VALUES)
    if not names:
        raise ValueError("fields must name at least one of what may change, or be None for all")
    return names


def _redraws(
    scene: Scene, kept: Sequence[tuple[Change, ...]], names: Sequence[str], render: Callable
) -> tuple[list[tuple[Change, ...]], list[Scene]]:
    """All that differ by one thing more than what was kept, and look different: changes, scenes."""
    found: dict[frozenset[Change], tuple[tuple[Change, ...], Scene]] = {}
    for changes in kept:
        base = _changed(scene.spec, changes)
        before = render(base, len(scene.image))
        for change in _single_changes(base, names):
            if any(_thing(change) == _thing(other) for other in changes):
                continue
            both = (*changes, change)
            if frozenset(both) in found:
                continue
            one = render(_changed(base, (change,)), len(scene.image))
            if not np.array_equal(one.image, before.image):
                found[frozenset(both)] = both, one
    return [changes for changes, _ in found.values()], [one for _, one in found.values()]


def _single_changes(spec: SceneSpec, names: Sequence[str]) -> Iterator[Change]:
    for name in names:
        values = VALUES[name]
        if name == "without":
            parts = (*spec.part_names, *values)
            yield from ((name, part) for part in parts if part not in spec.removed)
        else:
            yield from ((name, value) for value in values if value != getattr(spec, name))


def _thing(change: Change) -> str:
    """What a change is about: a scene without clutter has no other clutter."""
    name, value = change
    return str(value) if name == "without" else name


def _changed(spec: SceneSpec, changes: Sequence[Change]) -> SceneSpec:
    for name, value in changes:
        if name == "without":
            spec = spec.without(str(value))
        else:
            back = tuple(part for part in spec.removed if part != name)
            new: Any = {name: value, "removed": back}
            spec = replace(spec, **new)
    return spec


def _logits(classifier: Classifier, drawn: Sequence[Scene], batch_size: int) -> Tensor:
    """The logits (N, K) of the scenes, on the CPU."""
    found = []
    with explaining(classifier.model), torch.no_grad():
        for number in in_batches(len(drawn), batch_size):
            images = torch.cat([classifier.to_input(drawn[i].image) for i in number])
            found.append(check_logits(classifier.model(images)).cpu())
    return torch.cat(found)


def _gaps(logits: Tensor, answer: int, target: int | None) -> Tensor:
    """How far the wanted answer is behind the best other one (N,); below 0 where it is given."""
    wanted = torch.zeros(logits.shape[1], dtype=torch.bool)
    wanted[slice(None) if target is None else target] = True
    if target is None:
        wanted[answer] = False
    inside = logits.masked_fill(~wanted, -torch.inf).amax(1)
    return logits.masked_fill(wanted, -torch.inf).amax(1) - inside


def _difference(one: Scene, other: Scene) -> float:
    return float(np.abs(one.image.astype(float) - other.image).mean() / 255)


def _in_words(spec: SceneSpec, change: Change) -> str:
    name, value = change
    if name == "without":
        return f"without the {value}"
    was = getattr(spec, name)
    was, value = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in (was, value))
    return f"{name.replace('_', ' ')}: {was} → {value}"
