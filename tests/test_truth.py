from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from course_utils import models
from course_utils.evaluation import controls
from course_utils.evaluation.truth import (
    AGREEMENTS,
    class_effects,
    effect_agreement,
    part_sums,
    true_effects,
    truth_map,
    visible_parts,
)
from course_utils.networks import Classifier
from course_utils.worlds.scenes import CLASSES, Scene, Scenes, render, standard
from tests.networks import small_classifier

SIZE = 48
nan = float("nan")


class Linear(nn.Module):
    """Class 0 is the sum of some pixels of the picture, in grey levels; class 1 its negative."""

    def __init__(self, where: np.ndarray) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.from_numpy(where).float(), requires_grad=False)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        total = (images * self.where).sum((1, 2, 3))
        return torch.stack([total, -total], 1)


class Either(nn.Module):
    """Either of two colours in the picture is enough: max over them of "is there any pixel"."""

    def __init__(self, masks: list[np.ndarray], whole: Tensor) -> None:
        super().__init__()
        self.masks = nn.Parameter(torch.from_numpy(np.stack(masks)).float(), requires_grad=False)
        self.whole = whole

    def forward(self, images: Tensor) -> Tensor:
        same = (images - self.whole).abs().amax(1) < 1e-6  # (N, H, W): as in the whole scene
        seen = torch.stack([(same * mask).sum((1, 2)) >= mask.sum() for mask in self.masks])
        return torch.stack([seen.any(0).float(), torch.full((len(images),), -1.0)], 1)


def classifier_of(model: nn.Module) -> Classifier:
    """Model space is then the grey level from 0 to 1."""
    return Classifier("fake", model, ("a", "b"), SIZE, (0.0,) * 3, (1.0,) * 3)


def fish(**changes: Any) -> Scene:
    """A fish with clutter and a companion, well apart, and without noise."""
    return render(
        standard(
            "goldfish",
            clutter="vase",
            clutter_x=0.1,
            companion="crow",
            companion_x=0.9,
            companion_size=0.25,
            size=0.4,
            **changes,
        ),
        SIZE,
    )


def pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255


# effects


def test_an_effect_is_a_difference_of_redraws() -> None:
    scene = fish()
    where = np.random.default_rng(0).random((SIZE, SIZE))
    effects = true_effects(classifier_of(Linear(where)), scene, target=0)
    assert list(effects) == list(scene.parts)
    for part, effect in effects.items():
        without = pixels(render(scene.spec.without(part), SIZE))
        expected = ((pixels(scene) - without) * torch.from_numpy(where)).sum()
        assert effect == pytest.approx(float(expected), abs=1e-3)
        assert abs(effect) > 1e-2


def test_only_the_pixels_of_a_part_count_for_it() -> None:
    scene = fish(noise=0.2)  # the same noise in every redraw, or else all parts had an effect
    where = scene.parts["body"].astype(float)
    effects = true_effects(classifier_of(Linear(where)), scene, target=0)
    assert effects["clutter"] == effects["companion"] == 0
    assert abs(effects["body"]) > 1
    classifier = classifier_of(Linear(where))
    other = true_effects(classifier, scene, target=1)
    assert true_effects(classifier, scene, target=lambda logits: logits[:, 1]) == other
    assert other == pytest.approx({part: -effect for part, effect in effects.items()})


def test_the_class_is_the_models_answer() -> None:
    scene, where = fish(), -np.ones((SIZE, SIZE))
    effects = true_effects(classifier_of(Linear(where)), scene)
    assert effects == true_effects(classifier_of(Linear(where)), scene, target=1)
    assert effects != true_effects(classifier_of(Linear(where)), scene, target=0)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_shapley_values_sum_to_what_all_parts_do(batch_size: int) -> None:
    scene, classifier = fish(), small_classifier(size=SIZE)
    effects = true_effects(classifier, scene, kind="shapley", target=3, batch_size=batch_size)
    none = scene.spec
    for part in scene.parts:
        none = none.without(part)
    inputs = torch.cat([classifier.to_input(render(s, SIZE).image) for s in (scene.spec, none)])
    whole, bare = classifier.model(inputs)[:, 3].tolist()
    assert sum(effects.values()) == pytest.approx(whole - bare, abs=1e-4)
    assert abs(whole - bare) > 1e-3


def test_shapley_values_by_the_formula_over_orders() -> None:
    scene, classifier = fish(), small_classifier(size=SIZE)
    parts = ("body", "companion", "tail")
    effects = true_effects(classifier, scene, kind="shapley", target=3, parts=parts)
    expected = dict.fromkeys(parts, 0.0)
    for order in permutations(parts):
        spec = scene.spec
        for part in order:  # taken away one after the other
            pair = [spec, spec.without(part)]
            x = torch.cat([classifier.to_input(render(s, SIZE).image) for s in pair])
            before, after = classifier.model(x)[:, 3].tolist()
            expected[part] += (before - after) / 6
            spec = pair[1]
    assert effects == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["single", "shapley"])
def test_effects_on_all_classes_come_from_the_same_redraws(kind: str) -> None:
    scene, classifier = fish(), small_classifier(size=SIZE)
    every = class_effects(classifier, scene, kind=kind)
    assert list(every) == list(scene.parts)
    for c in (0, 3, 15):
        alone = true_effects(classifier, scene, kind=kind, target=c)
        assert {part: float(f[c]) for part, f in every.items()} == pytest.approx(alone)
    contrast = true_effects(classifier, scene, kind=kind, target=lambda f: f[:, 3] - f[:, 0])
    assert {part: float(f[3] - f[0]) for part, f in every.items()} == pytest.approx(
        contrast, abs=1e-6
    )
    model = Linear(np.ones((SIZE, SIZE)))
    class_effects(classifier_of(model), scene, kind=kind, batch_size=4)
    parts = len(scene.parts)
    assert sum(model.calls) == (2**parts if kind == "shapley" else parts + 1)


def test_one_part_alone_is_blind_to_redundant_evidence() -> None:
    scene = fish()
    masks = [scene.parts["clutter"], scene.parts["companion"]]
    classifier = classifier_of(Either(masks, pixels(scene)))
    assert set(true_effects(classifier, scene, target=0).values()) == {0.0}
    shares = true_effects(classifier, scene, kind="shapley", target=0)
    assert shares.pop("clutter") == pytest.approx(0.5)
    assert shares.pop("companion") == pytest.approx(0.5)
    assert list(shares.values()) == pytest.approx([0] * len(shares))


def test_each_redraw_takes_one_pass_in_batches() -> None:
    scene = fish()
    model = Linear(np.ones((SIZE, SIZE)))
    true_effects(classifier_of(model), scene, target=0, batch_size=4)
    assert sum(model.calls) == len(scene.parts) + 1
    model.calls.clear()
    true_effects(classifier_of(model), scene, kind="shapley", target=0, batch_size=4)
    assert sum(model.calls) == 2 ** len(scene.parts)
    assert max(model.calls) == 4


def test_parts_without_a_mask_and_none_at_all() -> None:
    scene = fish()
    classifier = classifier_of(Linear(np.ones((SIZE, SIZE))))
    effects = true_effects(classifier, scene, target=0, parts=["background", "texture"])
    assert list(effects) == ["background", "texture"]
    assert abs(effects["background"]) > 1
    assert true_effects(classifier, scene, target=0, parts=[]) == {}


def test_radiographs_or_other_worlds_bring_their_own_renderer() -> None:
    scene = fish()
    resolutions = []

    def drawn(spec: Any, resolution: int) -> Scene:
        resolutions.append(resolution)
        return render(spec.without("background"), resolution)

    where = np.ones((SIZE, SIZE))
    own = true_effects(classifier_of(Linear(where)), scene, target=0, render=drawn)
    assert set(resolutions) == {SIZE}
    assert own != true_effects(classifier_of(Linear(where)), scene, target=0)


def test_the_model_and_its_gradients_stay_as_they_were() -> None:
    classifier = small_classifier(size=SIZE)
    classifier.model.train()
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    state = torch.get_rng_state()
    true_effects(classifier, fish(), parts=["body"])
    assert classifier.model.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_every_scene_has_few_enough_parts() -> None:
    fullest = [
        len(render(standard(label, clutter="vase", companion="cow"), 128).parts)
        for label in CLASSES
        if label != "cow"
    ]
    assert 6 < max(fullest) <= 10


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": "double"}, ValueError),
        ({"parts": ["wheel"]}, ValueError),
        ({"parts": ["body", "body"]}, ValueError),
        ({"target": 2}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"scene": "zebra"}, TypeError),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"scene": fish(), **changes}
    name = next(iter(changes))
    with pytest.raises(error, match=rf"^{name.rstrip('s')}") as caught:
        true_effects(classifier_of(Linear(np.ones((SIZE, SIZE)))), **arguments)
    assert "\n" not in str(caught.value)


def test_too_many_parts_for_exact_values() -> None:
    scene = fish()
    model = Linear(np.ones((SIZE, SIZE)))
    with pytest.raises(ValueError, match="^parts are 11, but exact Shapley values take all 2"):
        true_effects(
            classifier_of(model),
            _Renamed(scene),  # type: ignore[arg-type]
            kind="shapley",
            parts=[f"part {i}" for i in range(11)],
        )
    assert not model.calls


class _Renamed:
    """A scene whose spec knows any part."""

    def __init__(self, scene: Scene) -> None:
        self.image, self.parts, self.spec = scene.image, scene.parts, self

    def without(self, part: str) -> "_Renamed":
        return self


# agreement


def masks_of(*rows: str) -> dict[str, np.ndarray]:
    """Parts a, b, c … of a picture written down, one letter a pixel."""
    letters = np.array([list(row) for row in rows])
    return {name: letters == name for name in sorted(set(letters.flat) - {"."})}


def scene_of(masks: dict[str, np.ndarray]) -> Scene:
    whole = np.any(list(masks.values()), axis=0)
    return Scene(np.zeros((*whole.shape, 3), np.uint8), masks, whole, (0, 0, 1, 1), standard("cow"))


DRAWN = scene_of(masks_of("aab", ".cc", "ccd"))


def test_agreement_by_hand() -> None:
    heat = torch.tensor([[1.0, 2, 9], [50, 1, 1], [1, 1, -2]])[None]
    # a 3, b 9, c 4, d −2. The pixel outside all parts counts for none.
    assert part_sums(heat, DRAWN) == [{"a": 3, "b": 9, "c": 4, "d": -2}]
    effects = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 0.0}
    # sums' ranks 2 4 3 1 against 3 2 4 1: 1 − 6 (1 + 4 + 1 + 0) / (4 · 15)
    assert effect_agreement(heat, DRAWN, effects, kind="sums").tolist() == pytest.approx([0.4])
    # areas 2 1 4 1: means 1.5, 9, 1, −2, of the ranks 3 4 2 1, against effects per pixel 1, 1,
    # 0.75, 0, of the ranks 3.5, 3.5, 2, 1
    wanted = np.corrcoef([3, 4, 2, 1], [3.5, 3.5, 2, 1])[0, 1]
    assert effect_agreement(heat, DRAWN, effects).tolist() == pytest.approx([wanted])


THREE = scene_of(masks_of("abb", "ccc", "ccc"))  # areas 1, 2, 6


@pytest.mark.parametrize(
    ("values", "effects", "expected"),
    [
        ((3, 2, 1), (6, 6, 6), 1),  # 6, 3, 1 per pixel, in the map's order
        ((3, 2, 1), (5, 6, 7), 1),  # 5, 3, 1.2: the largest part is the least dense
        ((1, 2, 3), (5, 6, 7), -1),
        ((1, 3, 2), (-4, 8, 6), 1),  # −4, 4, 1
        ((1, 3, 2), (6, 6, 6), -0.5),  # ranks 1 3 2 against 3 2 1: 1 − 6 (4 + 1 + 1) / 24
        ((1, 1, 1), (5, 6, 7), nan),  # an even grey is nowhere dense
    ],
)
def test_density_of_three_rectangles(
    values: tuple[float, ...], effects: tuple[float, ...], expected: float
) -> None:
    heat = torch.zeros(1, 3, 3)
    for value, mask in zip(values, THREE.parts.values(), strict=True):
        heat[0, torch.from_numpy(mask)] = value
    found = effect_agreement(heat, THREE, dict(zip("abc", effects, strict=True)))
    assert found.tolist() == pytest.approx([expected], nan_ok=True)


def test_partial_correlation_is_that_of_what_the_areas_leave() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        m, e, a = generator.normal(size=(3, 7))
        ranks = [stats.rankdata(values) for values in (m, e, a)]
        line = np.stack([ranks[2], np.ones(7)], 1)
        left = [r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in ranks[:2]]
        expected = np.corrcoef(left)[0, 1]
        assert AGREEMENTS["partial"](m, e, a) == pytest.approx(expected)


def test_partial_correlation_by_hand() -> None:
    partial, a = AGREEMENTS["partial"], np.array([1.0, 2, 3, 4])
    m, e = np.array([2.0, 1, 3, 4]), np.array([2.0, 1, 4, 3])
    # ρ(m, e) = 0.8, ρ(m, a) = 0.8, ρ(e, a) = 0.6: (0.8 − 0.48) / √(0.36 · 0.64)
    assert partial(m, e, a) == pytest.approx(0.32 / 0.48)
    for ordered in (a, -a, a**3):  # the map says no more than the areas do
        assert partial(ordered, e, a) == 0
        assert np.isnan(partial(m, ordered, a))  # nor does the truth
    assert np.isnan(partial(np.ones(4), e, a))
    assert np.isnan(partial(m, np.ones(4), a))
    assert partial(m, e, np.ones(4)) == pytest.approx(0.8)  # equal areas explain nothing


def test_noise_agrees_by_chance_alone_unless_areas_count() -> None:
    """On planted effects that grow with the area, as those of a model do."""
    generator = torch.Generator().manual_seed(0)
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {kind: [] for kind in AGREEMENTS}
    for _ in range(300):
        # Six bars of a picture, of random widths.
        edges = [0, *np.sort(random.choice(np.arange(2, 58, 2), 5, replace=False)), 60]
        masks = {}
        for name, left, right in zip("abcdef", edges[:-1], edges[1:], strict=True):
            masks[name] = np.zeros((10, 60), bool)
            masks[name][:, left:right] = True
        drawn = scene_of(masks)
        areas = {name: float(mask.sum()) for name, mask in masks.items()}
        effects = {name: area * random.lognormal(0, 0.7) for name, area in areas.items()}
        heat = controls.noise(None, torch.rand(1, 3, 10, 60, generator=generator))
        for kind, values in found.items():
            values.append(float(effect_agreement(heat, drawn, effects, kind=kind)))
    for kind in ("density", "partial"):
        each = np.array(found[kind])
        each = each[np.isfinite(each)]
        error = each.std() / len(each) ** 0.5
        assert error < 0.05
        assert abs(each.mean()) < 3 * error, kind
    assert np.nanmean(found["sums"]) > 0.5


def test_channels_are_summed_and_scenes_go_in_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 3, 3, generator=generator)
    effects = [{"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.5}, {"a": 1.0, "b": 0.0, "d": 2.0}]
    effects.append(effects[0])
    values = effect_agreement(maps, [DRAWN] * 3, effects)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert torch.equal(values, effect_agreement(maps.sum(1), [DRAWN] * 3, effects))
    for i in range(3):
        assert torch.equal(effect_agreement(maps[i : i + 1], DRAWN, effects[i]), values[i : i + 1])


@pytest.mark.parametrize("kind", AGREEMENTS)
def test_the_painted_truth_agrees_and_its_inverse_does_not(kind: str) -> None:
    classifier = models.load("scenes", device="cpu")
    drawn = [Scenes(16, seed=77).scene(i) for i in (0, 6)]
    cases = [(scene, true_effects(classifier, scene)) for scene in drawn]
    cases.append((DRAWN, {"a": 1.0, "b": 3.0, "c": 2.0, "d": -7.0}))
    for scene, effects in cases:
        heat = truth_map(scene, effects)
        assert part_sums(heat, scene)[0] == pytest.approx(effects)
        areas = {part: mask.sum() for part, mask in visible_parts(scene).items()}
        by_area = [sorted(each, key=lambda part: each[part]) for each in (areas, effects)]
        if kind == "partial" and by_area[0] == by_area[1]:
            assert scene is not DRAWN
            assert effect_agreement(heat, scene, effects, kind=kind).isnan()
            continue
        assert effect_agreement(heat, scene, effects, kind=kind) > 0.999999
        assert effect_agreement(-heat, scene, effects, kind=kind) < -0.999999


def test_what_orders_nothing_is_nan() -> None:
    effects = {"a": 1.0, "b": 2.0, "c": 3.0}
    heat = torch.arange(9.0).view(1, 3, 3)
    assert effect_agreement(heat, DRAWN, effects).isfinite().all()
    for even in (0 * heat, 0 * heat + 0.1):  # whose means differ by rounding
        assert effect_agreement(even, DRAWN, effects).isnan().all()
    equal = effect_agreement(heat, DRAWN, dict.fromkeys("abc", 1.0), kind="sums")
    assert equal.isnan().all()
    assert effect_agreement(heat, DRAWN, {"a": 1.0, "b": 2.0}).isnan().all()
    assert effect_agreement(heat, DRAWN, {}).isnan().all()


def test_a_pixel_belongs_to_the_part_drawn_last() -> None:
    masks = masks_of("aab", "bbb")
    masks["b"] = masks["b"] | np.array([[False, True, False], [False] * 3])
    scene = scene_of(masks | {"hidden first": np.zeros((2, 3), bool)})
    assert visible_parts(scene)["a"].sum() == 1
    assert part_sums(torch.ones(1, 2, 3), scene) == [{"a": 1, "b": 5, "hidden first": 0}]
    assert list(visible_parts(scene)) == list(scene.parts)
    assert torch.equal(
        truth_map(scene, {"a": 3.0, "b": 10.0, "hidden first": 5.0})[0, 0],
        torch.tensor([3.0, 2, 2]).double(),
    )


def test_a_part_that_is_hidden_does_not_count() -> None:
    masks = masks_of("aab", ".cc", "ccd")
    scene = scene_of({"hidden": masks["a"]} | masks)
    heat, effects = torch.arange(9.0).view(1, 3, 3), {"a": 1.0, "b": 3.0, "c": 2.0, "d": 7.0}
    for kind in AGREEMENTS:
        with_it = effect_agreement(heat, scene, {"hidden": -9.0} | effects, kind=kind)
        assert torch.equal(with_it, effect_agreement(heat, DRAWN, effects, kind=kind))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"attribution": torch.zeros(1, 3, 4)}, ValueError),
        ({"attribution": torch.zeros(2, 3, 3)}, ValueError),
        ({"attribution": torch.zeros(3, 3)}, ValueError),
        ({"attribution": torch.zeros(1, 3, 3, dtype=torch.long)}, TypeError),
        ({"attribution": torch.full((1, 3, 3), torch.nan)}, ValueError),
        ({"effects": {"a": 1.0, "wing": 1.0, "c": 0.0}}, ValueError),
        ({"effects": [{}, {}]}, ValueError),
        ({"kind": "pearson"}, ValueError),
        ({"scene": [1]}, TypeError),
    ],
)
def test_bad_arguments_of_agreement(changes: dict[str, Any], error: type[Exception]) -> None:
    usual = {"attribution": torch.zeros(1, 3, 3), "scene": DRAWN, "effects": {"a": 1.0}}
    arguments: dict[str, Any] = usual | changes
    with pytest.raises(error, match=f"^{next(iter(changes))}") as caught:
        effect_agreement(**arguments)
    assert "\n" not in str(caught.value)


def test_painting_wants_a_mask() -> None:
    with pytest.raises(ValueError, match="^effects: the scene has no mask of wing"):
        truth_map(DRAWN, {"wing": 1.0})
