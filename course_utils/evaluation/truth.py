"""The truth about a drawn scene: what each part does to the model, known by drawing it without.

A metric that blurs or greys pixels shows the model what it has never seen. A redraw is a picture
that it might really have met, in which the part is simply not there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_utils.contract import (
    Target,
    check_choice,
    check_count,
    explaining,
    predict_target,
    score_target,
    sum_channels,
)
from course_utils.methods.shapley import exact_shapley
from course_utils.networks import Classifier
from course_utils.progress import in_batches
from course_utils.worlds import scenes
from course_utils.worlds.scenes import Scene

KINDS = ("single", "shapley")
CORRELATIONS = ("spearman", "pearson")
REDUCTIONS = ("sum", "mean")
MOST_PARTS = 10  # as many as the fullest scene has: 1,024 redraws, about ten seconds

Effects = Mapping[str, float]


def true_effects(
    classifier: Classifier,
    scene: Scene,
    *,
    kind: str = "single",
    target: Target = None,
    parts: Sequence[str] | None = None,
    render: Callable[..., Any] = scenes.render,
    batch_size: int = 16,
) -> dict[str, float]:
    """What each part of a scene does to a class's logit f, measured by drawing the scene again.

        single:   e_i = f(scene) − f(scene without i)
        shapley:  e_i = Σ_S |S|! (P − |S| − 1)! / P! · (f(drawn with S and i) − f(drawn with S))

    One part alone says nothing where evidence is redundant: of two things that each suffice,
    neither is missed. Shapley values draw the scene with every set S of its P parts, share such an
    effect out, and sum to f(scene) − f(scene without any of the parts). They are exact: no part is
    dropped or grouped, whatever it costs. Most scenes have three to six parts, and the fullest ten.
    Everything else, the noise of the picture too, is the same in all redraws.

    classifier: see `models.load`. scene: drawn by `render`; the model gets it in its own size.
    kind: "single", P + 1 redraws, or "shapley", 2^P; each costs a forward pass.
    target: a class, a function of the model's output, or None for its answer to the whole scene.
    parts: what is drawn away; None for all of `scene.parts`, which is what can be seen of the
    object's parts, of clutter and companion (each with the shadow it throws), and of the object's
    own shadow. Any name that `scene.spec.without` knows will do, such as "texture"; "background"
    puts plain grey there. The others stay. At most ten with "shapley".
    render: spec, resolution → scene.
    Returns part → effect, in logits; positive where the part speaks for the class.

    Raises ValueError or TypeError naming the argument.
    Source: Shapley, A Value for n-Person Games, 1953.
    """
    check_scene(scene)
    check_choice("kind", kind, KINDS)
    names = list(scene.parts) if parts is None else list(parts)
    for name in names:
        scene.spec.without(name)  # which says what there is to choose from
    if len(set(names)) < len(names):
        raise ValueError(f"parts must name each part once, but are {', '.join(names)}")
    if kind == "shapley" and len(names) > MOST_PARTS:
        raise ValueError(
            f"parts are {len(names)}, but exact Shapley values take all 2^{len(names)} redraws; "
            f"name at most {MOST_PARTS}"
        )
    check_count("batch_size", batch_size)
    if not names:
        return {}

    model, size = classifier.model, len(scene.image)
    with explaining(model), torch.no_grad():
        target = predict_target(model, classifier.to_input(scene.image), target, 1)

        def value(coalitions: Tensor) -> Tensor:
            images = []
            for coalition in coalitions.tolist():
                spec = scene.spec
                for name, present in zip(names, coalition, strict=True):
                    spec = spec if present else spec.without(name)
                images.append(classifier.to_input(render(spec, size).image))
            of_scene = torch.zeros(len(images), dtype=torch.long)  # they all share its target
            return score_target(model(torch.cat(images)), target, of_scene).cpu().double()

        if kind == "shapley":
            effects = exact_shapley(value, len(names), batch_size=batch_size)
        else:
            every = torch.ones(len(names) + 1, len(names), dtype=torch.bool)
            every[1:].fill_diagonal_(False)
            f = [value(every[number]) for number in in_batches(len(every), batch_size)]
            effects = torch.cat(f)[0] - torch.cat(f)[1:]
    return dict(zip(names, effects.tolist(), strict=True))


def effect_agreement(
    attribution: Tensor,
    scene: Scene | Sequence[Scene],
    effects: Effects | Sequence[Effects],
    *,
    correlation: str = "spearman",
    reduce: str = "sum",
) -> Tensor:
    """Does an attribution order the parts as the truth does? 1 says yes, −1 the wrong way round.

        corr over parts of  Σ_{i ∈ part} R_i  and  e_part

    Ranks are compared by default: a map in another unit, or out of all proportion, can still tell
    which part matters more. "pearson" compares the numbers, of which the largest part's often
    decide the result. Both are signed: a part that speaks against the class must come last.

    A part's effect is compared with the map's sum over it, because methods share out the logit
    among pixels. Large parts also tend to matter more, so even a map of positive noise, whose sums
    are the parts' areas, does better than 0: compare with one. "mean" asks how dense the map is
    instead, of which noise knows nothing, but of which a right map need not say the same.

    attribution: (N, C, H, W), summed over channels, or (N, H, W).
    scene: one, or N of them, as large as the maps. effects: as `true_effects`, one for each scene;
    parts that they do not name do not count.
    Returns (N,), float64; NaN where there are fewer than three parts, of which any order is right
    or wrong by chance, and where the effects or the sums are all equal, which orders nothing.

    Raises ValueError or TypeError naming the argument.
    """
    from scipy import stats  # takes half a second to import

    check_choice("correlation", correlation, CORRELATIONS)
    correlate = stats.spearmanr if correlation == "spearman" else stats.pearsonr
    drawn = [scene] if not isinstance(scene, Sequence) else list(scene)
    truth = [effects] if isinstance(effects, Mapping) else list(effects)
    if len(truth) != len(drawn):
        raise ValueError(
            f"effects must be given for each scene, {len(drawn)} times, not {len(truth)}"
        )
    found = part_sums(attribution, drawn, reduce=reduce)
    values = torch.full((len(drawn),), torch.nan, dtype=torch.float64)
    for i, (sums, wanted) in enumerate(zip(found, truth, strict=True)):
        if missing := [part for part in wanted if part not in sums]:
            raise ValueError(f"effects: the scene has no mask of {', '.join(missing)}")
        pairs = np.array([(sums[part], effect) for part, effect in wanted.items()])
        if len(pairs) >= 3 and np.ptp(pairs, axis=0).all():
            values[i] = float(correlate(*pairs.T).statistic)
    return values


def part_sums(
    attribution: Tensor, scene: Scene | Sequence[Scene], *, reduce: str = "sum"
) -> list[dict[str, float]]:
    """What an attribution gives each visible part of each scene: its sum, or mean, over the mask.

    A pixel belongs to the part that was drawn last: a companion hides the clutter behind it. Of a
    part that is hidden altogether the sum is 0.

    Arguments, errors as `effect_agreement`.
    """
    check_choice("reduce", reduce, REDUCTIONS)
    drawn = [scene] if not isinstance(scene, Sequence) else list(scene)
    for one in drawn:
        check_scene(one)
    maps = _maps(attribution, drawn)
    result = []
    for one, values in zip(drawn, maps, strict=True):
        masks = visible_parts(one)
        sums = {part: float(values[mask].sum()) for part, mask in masks.items()}
        if reduce == "mean":
            sums = {part: total / max(int(masks[part].sum()), 1) for part, total in sums.items()}
        result.append(sums)
    return result


def truth_map(scene: Scene, effects: Effects) -> Tensor:
    """The effects spread evenly over the parts' pixels: the map (1, H, W) that has the right sums.

    It is the answer to `effect_agreement`, and so a way to ask other metrics whether they know a
    right map when they see one. The effect of a part that is hidden altogether is on no pixel.

    Raises ValueError or TypeError naming the argument.
    """
    check_scene(scene)
    masks = visible_parts(scene)
    if missing := [part for part in effects if part not in masks]:
        raise ValueError(f"effects: the scene has no mask of {', '.join(missing)}")
    heat = np.zeros(scene.mask.shape)
    for part, effect in effects.items():
        heat[masks[part]] = effect / max(int(masks[part].sum()), 1)
    return torch.from_numpy(heat)[None]


def visible_parts(scene: Scene) -> dict[str, np.ndarray]:
    """The scene's masks, part → bool (H, W), without what a part drawn later hides."""
    masks: dict[str, np.ndarray] = {}
    hidden = np.zeros(scene.mask.shape, bool)
    for part, mask in reversed(scene.parts.items()):
        masks[part] = mask & ~hidden
        hidden |= mask
    return dict(reversed(masks.items()))


def _maps(attribution: Tensor, drawn: Sequence[Scene]) -> np.ndarray:
    """The attribution as one number a pixel (N, H, W); ValueError if it does not fit the scenes."""
    maps = sum_channels(attribution).numpy()
    wanted = (len(drawn), *(drawn[0].mask.shape if drawn else ()))
    if maps.shape != wanted or any(one.mask.shape != wanted[1:] for one in drawn):
        raise ValueError(
            f"attribution must be a map for each of the {len(drawn)} scenes, as large as they are "
            f"drawn, {wanted} or with channels, but its shape is {tuple(attribution.shape)}"
        )
    return maps


def check_scene(scene: Scene) -> None:
    """Refuse what is no drawn scene."""
    if not (hasattr(scene, "spec") and hasattr(scene, "parts")):
        raise TypeError(
            f"scene must be a drawn scene, as scenes.render's, not {type(scene).__name__}"
        )
