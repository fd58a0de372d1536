"""The truth about a drawn scene: what each part does to the model, known by drawing it without.

A metric that blurs or greys pixels shows the model what it has never seen. A redraw has no patch:
the part is simply not there. Whether the model might have met such a picture, `redraws` measures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from course_utils.contract import (
    Target,
    check_choice,
    check_count,
    check_logits,
    explaining,
    predict_target,
    score_target,
    sum_channels,
)
from course_utils.methods.shapley import all_coalitions, shapley_of_all
from course_utils.networks import Classifier
from course_utils.progress import in_batches
from course_utils.worlds import scenes
from course_utils.worlds.scenes import Scene

KINDS = ("single", "shapley")
MOST_PARTS = 10  # as many as the fullest scene has: 1,024 redraws, about ten seconds

Effects = Mapping[str, float]
Values = NDArray[np.float64]


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
    dropped or grouped, whatever it costs. Most scenes have two to six parts, and the fullest ten.
    Everything else, the noise of the picture too, is the same in all redraws.

    classifier: see `models.load`. scene: drawn by `render`; the model gets it in its own size.
    kind: "single", P + 1 redraws, or "shapley", 2^P; each costs a forward pass.
    target: a class, two for the difference of their logits, a function of the model's output, or
    None for its answer to the whole scene.
    parts: what is drawn away; None for all of `scene.parts`, which is what can be seen of the
    object's parts, of clutter and companion (each with the shadow it throws), and of the object's
    own shadow. Any name that `scene.spec.without` knows will do, such as "texture"; "background"
    puts plain grey there. The others stay. At most ten with "shapley".
    render: spec, resolution → scene.
    Returns part → effect, in logits; positive where the part speaks for the class.

    Raises ValueError or TypeError naming the argument.
    Source: Shapley, A Value for n-Person Games, 1953.
    """
    names = _part_names(scene, kind, parts)
    check_count("batch_size", batch_size)
    if not names:
        return {}
    image = classifier.to_input(scene.image)
    with explaining(classifier.model):
        target = predict_target(classifier.model, image, target, 1)

    def score(output: Any) -> Tensor:
        return score_target(output, target)  # all redraws share it

    effects = _effects(classifier, scene, kind, names, score, render, batch_size)
    return dict(zip(names, effects.tolist(), strict=True))


def class_effects(
    classifier: Classifier, scene: Scene, *, kind: str = "shapley", batch_size: int = 16
) -> dict[str, Tensor]:
    """`true_effects` on the logits of all classes, from the same redraws: part → (K,), float64.

    Effects on a difference of two logits are the difference of the effects on each.

    Arguments, errors and source as `true_effects`.
    """
    names = _part_names(scene, kind)
    check_count("batch_size", batch_size)
    render = scenes.render
    effects = _effects(classifier, scene, kind, names, check_logits, render, batch_size)
    return dict(zip(names, effects, strict=True))


def _part_names(scene: Scene, kind: str, parts: Sequence[str] | None = None) -> list[str]:
    """The parts to draw away, checked."""
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
    return names


def _effects(
    classifier: Classifier,
    scene: Scene,
    kind: str,
    names: Sequence[str],
    score: Callable[[Any], Tensor],
    render: Callable[..., Any],
    batch_size: int,
) -> Tensor:
    """The parts' effects (P,), or (P, K), on the scores (B,), or (B, K), of the redraws."""
    size = len(scene.image)
    if kind == "shapley":
        drawn = all_coalitions(len(names))
    else:  # the whole scene, then all but each part
        drawn = torch.cat([torch.zeros(1, len(names)), torch.eye(len(names))]) == 0
    scores = []
    with explaining(classifier.model), torch.no_grad():
        for number in in_batches(len(drawn), batch_size):
            images = []
            for present in drawn[number].tolist():
                spec = scene.spec
                for name, there in zip(names, present, strict=True):
                    spec = spec if there else spec.without(name)
                images.append(classifier.to_input(render(spec, size).image))
            scores.append(score(classifier.model(torch.cat(images))).cpu().double())
    f = torch.cat(scores)
    return shapley_of_all(f) if kind == "shapley" else f[0] - f[1:]


# -- do maps know it? -----------------------------------------------------------------------------


def effect_agreement(
    attribution: Tensor,
    scene: Scene | Sequence[Scene],
    effects: Effects | Sequence[Effects],
    *,
    kind: str = "density",
) -> Tensor:
    """Does an attribution order the parts as the truth does? 1 says yes, −1 the wrong way round.

        density:  ρ(m / a, e / a),      m_i = Σ_{pixels of part i} R,  a_i their number
        sums:     ρ(m, e)
        partial:  (ρ(m, e) − ρ(m, a) ρ(e, a)) / √((1 − ρ(m, a)²) (1 − ρ(e, a)²))

    ρ is the rank correlation over the parts: a map in another unit, or out of all proportion, can
    still tell which part matters more. All is signed: what speaks against the class comes last.

    "sums" compares what the parts get with what they do. But large parts get more from any map of
    positive numbers, and do more: noise agrees, too. The others leave the area out. "density" asks
    where a pixel matters most: the map's mean in a part with the part's effect per pixel. "partial"
    asks what the sums say beyond the areas; sums in the areas' own order, or in the reverse of it,
    say nothing: 0.

    attribution: (N, C, H, W), summed over channels, or (N, H, W).
    scene: one, or N of them, as large as the maps. effects: as `true_effects`, one for each scene;
    parts that they do not name do not count, nor those of which no pixel is seen.
    Returns (N,), float64; NaN where there are fewer than three parts, of which any order is right
    or wrong by chance, where the effects or the sums are all equal, which orders nothing, and for
    "partial" where the effects are in the areas' own order, or in the reverse of it.

    Raises ValueError or TypeError naming the argument.
    Source: Spearman, The Proof and Measurement of Association between Two Things, 1904; partial:
    Yule, On the Theory of Correlation for any Number of Variables, 1907.
    """
    check_choice("kind", kind, AGREEMENTS)
    drawn = [scene] if not isinstance(scene, Sequence) else list(scene)
    truth = [effects] if isinstance(effects, Mapping) else list(effects)
    if len(truth) != len(drawn):
        raise ValueError(
            f"effects must be given for each scene, {len(drawn)} times, not {len(truth)}"
        )
    found = part_sums(attribution, drawn)
    values = torch.full((len(drawn),), torch.nan, dtype=torch.float64)
    for i, (one, sums, wanted) in enumerate(zip(drawn, found, truth, strict=True)):
        _check_parts(wanted, sums)
        areas = {part: int(mask.sum()) for part, mask in visible_parts(one).items()}
        seen = [part for part in wanted if areas[part]]
        if len(seen) >= 3:
            m, e, a = (np.array([each[p] for p in seen], float) for each in (sums, wanted, areas))
            values[i] = AGREEMENTS[kind](m, e, a)
    return values


def _density(m: Values, e: Values, a: Values) -> float:
    return rank_correlation(m / a, e / a)


def _sums(m: Values, e: Values, a: Values) -> float:
    return rank_correlation(m, e)


def _partial(m: Values, e: Values, a: Values) -> float:
    me, ma, ea = (rank_correlation(*pair) for pair in ((m, e), (m, a), (e, a)))
    if np.isnan(me) or np.ptp(a) == 0:
        return me  # areas that are all equal explain nothing
    if np.isclose(abs(ea), 1):
        return np.nan
    if np.isclose(abs(ma), 1):
        return 0.0
    return (me - ma * ea) / ((1 - ma**2) * (1 - ea**2)) ** 0.5


AGREEMENTS: dict[str, Callable[[Values, Values, Values], float]] = {
    "density": _density,
    "partial": _partial,
    "sums": _sums,
}


def rank_correlation(x: Values, y: Values) -> float:
    """Spearman's rank correlation of two (P,); NaN where one of them is constant.

    Numbers that differ by rounding alone share their mean rank.

    >>> truth.rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 90.0, 20.0]))
    0.5
    """
    from scipy.stats import rankdata  # takes half a second to import

    ranks = [rankdata((v / (np.abs(v).max() or 1)).round(12)) for v in (x, y)]
    if not np.ptp(ranks, axis=1).all():
        return np.nan
    return float(np.corrcoef(ranks)[0, 1])


def part_sums(attribution: Tensor, scene: Scene | Sequence[Scene]) -> list[dict[str, float]]:
    """What an attribution gives each visible part of each scene: its sum over the mask.

    A pixel belongs to the part that was drawn last: a companion hides the clutter behind it. Of a
    part that is hidden altogether the sum is 0.

    Arguments, errors as `effect_agreement`.
    """
    drawn = [scene] if not isinstance(scene, Sequence) else list(scene)
    for one in drawn:
        check_scene(one)
    return [
        {part: float(heat[mask].sum()) for part, mask in visible_parts(one).items()}
        for one, heat in zip(drawn, _maps(attribution, drawn), strict=True)
    ]


def truth_map(scene: Scene, effects: Effects) -> Tensor:
    """The effects spread evenly over the parts' pixels: the map (1, H, W) that has the right sums.

    It is the answer to `effect_agreement`, and so a way to ask other metrics whether they know a
    right map when they see one. The effect of a part that is hidden altogether is on no pixel.

    Raises ValueError or TypeError naming the argument.
    """
    check_scene(scene)
    masks = visible_parts(scene)
    _check_parts(effects, masks)
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


def _check_parts(effects: Effects, parts: Mapping[str, Any]) -> None:
    if missing := [part for part in effects if part not in parts]:
        raise ValueError(f"effects: the scene has no mask of {', '.join(missing)}")
