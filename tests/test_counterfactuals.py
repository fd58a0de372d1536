"""The smallest redraw that flips an answer: found where it is known, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import models
from course_utils.evaluation.counterfactuals import VALUES, Redraw, smallest_redraw
from course_utils.networks import Classifier
from course_utils.worlds.scenes import RANGES, Scene, Scenes, SceneSpec, render, standard

SIZE = 16
PLACE = {name: i for i, name in enumerate(VALUES)}
PARTS = ("body", "head", "legs", "companion", "background", "texture", "clutter", "shadow")


def coded(spec: SceneSpec, resolution: int) -> Scene:
    """A picture whose first row says what the fields are, and whose second what is missing."""
    image = np.zeros((resolution, resolution, 3), np.uint8)
    for name, i in PLACE.items():
        if name == "without":
            continue
        value = getattr(spec, name)
        if isinstance(value, str):
            value = 0 if value not in VALUES[name] else VALUES[name].index(value)
            image[i // SIZE, i % SIZE] = 10 * value
        else:
            image[i // SIZE, i % SIZE] = round(100 * abs(value))
    for k, part in enumerate(PARTS):
        image[3, k] = 100 * (part in spec.removed)
    empty = np.zeros((resolution, resolution), bool)
    return Scene(image, {}, empty, (0, 0, 0, 0), spec)


def read(images: Tensor, name: str) -> Tensor:
    """A field's code, or 100 where a part is missing."""
    i = PLACE.get(name)
    place = (3, PARTS.index(name)) if i is None else (i // SIZE, i % SIZE)
    return (images[:, 0, place[0], place[1]] * 255).round()


class Reads(nn.Module):
    """Three classes: 0, unless what it reads speaks for another one."""

    def __init__(self, others: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.others, self.seen = others, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        one = self.others(images).float()
        return torch.stack([torch.full_like(one, 0.5), one, one - 0.1], 1)


def search(others: Callable[[Tensor], Tensor], spec: SceneSpec, **options: Any) -> Redraw:
    model = Reads(others)
    fake = Classifier("fake", model, ("a", "b", "c"), SIZE, (0.0,) * 3, (1.0,) * 3)
    found = smallest_redraw(fake, coded(spec, SIZE), render=coded, **options)
    assert found.passes == model.seen
    assert (found.scene is None) == (found.after is None) == (not found.changes)
    if found.scene is not None and found.after is not None:
        image = fake.to_input(found.scene.image)
        torch.testing.assert_close(found.after, model(image)[0])
        assert found.after.argmax() != found.before.argmax()
    return found


ZEBRA = standard("zebra", companion="crow")


def test_it_finds_the_one_thing_that_matters() -> None:
    found = search(lambda x: read(x, "shadow") > 0, ZEBRA)
    assert found.changes == ("without the shadow",)
    assert found.scene is not None
    assert found.scene.spec == ZEBRA.without("shadow")
    assert found.before.tolist() == pytest.approx([0.5, 0, -0.1])
    # One number of 16 · 16 changes, in three channels, by 100 of 255.
    assert found.size == pytest.approx(100 / 255 / SIZE**2)
    snow = 10 * VALUES["background"].index("snow")
    found = search(lambda x: read(x, "background") == snow, ZEBRA)
    assert found.changes == ("background: savanna → snow",)


def test_of_several_it_takes_the_smallest() -> None:
    found = search(lambda x: read(x, "contrast") < 50, ZEBRA)
    assert found.changes == ("contrast: 1.00 → 0.45",)
    # The head's absence is one thing, too, but a larger change than this haze.
    either = search(lambda x: (read(x, "head") > 0) | (read(x, "haze") >= 40), ZEBRA)
    assert either.changes == ("haze: 0.00 → 0.40",)


def test_two_things_where_one_is_not_enough() -> None:
    snow = 10 * VALUES["background"].index("snow")

    def others(x: Tensor) -> Tensor:
        return 0.3 * (read(x, "background") == snow).float() + 0.3 * (read(x, "texture") == 0)

    assert search(others, ZEBRA, most=1).scene is None
    found = search(others, ZEBRA)
    assert set(found.changes) == {"background: savanna → snow", "texture: stripes → plain"}
    assert found.scene is not None
    assert (found.scene.spec.background, found.scene.spec.texture) == ("snow", "plain")


def test_nothing_flips_what_reads_nothing() -> None:
    found = search(lambda x: 0 * x[:, 0, 0, 0], ZEBRA)
    assert found.scene is None
    assert np.isnan(found.size)
    assert found.passes > 300


def test_a_given_class_and_given_fields() -> None:
    def others(x: Tensor) -> Tensor:
        return read(x, "shadow") > 0

    assert search(others, ZEBRA, target=1).changes == ("without the shadow",)
    assert search(others, ZEBRA, target=2).scene is None  # it is never the largest
    assert search(others, ZEBRA, fields=["texture", "x"]).scene is None
    assert search(others, ZEBRA, fields=["without"]).changes == ("without the shadow",)


def test_what_is_missing_comes_back() -> None:
    spec = ZEBRA.without("background")
    meadow = 10 * VALUES["background"].index("meadow")

    def others(x: Tensor) -> Tensor:
        return (read(x, "background") == meadow) & (x[:, 0, 3, PARTS.index("background")] == 0)

    found = search(others, spec)
    assert found.changes == ("background: savanna → meadow",)
    assert found.scene is not None
    assert found.scene.spec.removed == ()


def test_on_drawn_pictures() -> None:
    """A model that sees whether the companion's place is black."""
    scene = render(
        standard("goldfish", companion="crow", companion_x=0.9, companion_size=0.3, size=0.4), 48
    )
    where = torch.from_numpy(scene.parts["companion"])

    def others(x: Tensor) -> Tensor:
        return (x.mean(1) * where).sum((1, 2)) / where.sum() > 0.25

    fake = Classifier("fake", Reads(others), ("a", "b", "c"), 48, (0.0,) * 3, (1.0,) * 3)
    fields = ("without", "flip", "texture", "contrast")
    found = smallest_redraw(fake, scene, fields=fields)
    assert found.changes == ("without the companion",)
    # Another companion is a smaller change: it stands where the crow stood.
    other = smallest_redraw(fake, scene, fields=(*fields, "companion"))
    assert other.changes[0].startswith("companion: crow → ")
    assert other.size < found.size


def test_values_are_those_of_scenes() -> None:
    for name, values in VALUES.items():
        if name == "without":
            continue
        for value in values:
            given: dict[str, Any] = {name: value}
            assert getattr(SceneSpec(**given), name) == value
            if name in RANGES:
                low, high = RANGES[name]
                assert isinstance(value, float)
                assert low <= value <= high


@pytest.mark.slow
def test_on_the_shipped_model() -> None:
    """Held-out scenes: one change flips each answer."""
    net, world = models.load("scenes", device="cpu"), Scenes(96, 7)
    found = [smallest_redraw(net, world.scene(i), most=1) for i in (4, 40, 60)]
    for one in found:
        assert one.scene is not None
        assert one.after is not None
        answer = net.model(net.to_input(one.scene.image))[0]
        torch.testing.assert_close(answer, one.after, rtol=0, atol=1e-4)
        assert answer.argmax() != one.before.argmax()
        assert 0 < one.size < 0.05
    assert found[0].changes[0].startswith("color: ")
    zebra = smallest_redraw(net, world.scene(0), most=1, fields=["without", "texture"])
    assert "color" not in " ".join(zebra.changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "zebra"}, "^scene must be a drawn scene"),
        ({"target": 1.5}, "^target must be a whole number"),
        ({"target": 3}, "^target: there is no class 3"),
        ({"target": 0}, "^target is 0, which is the model's answer already"),
        ({"most": 0}, "^most is 0; it must be at least 1"),
        ({"fields": []}, "^fields must name at least one"),
        ({"fields": ["colour"]}, "^fields: there is no 'colour'; did you mean 'color'"),
        ({"batch_size": 0}, "^batch_size is 0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    model = Reads(lambda x: 0 * x[:, 0, 0, 0])
    fake = Classifier("fake", model, ("a", "b", "c"), SIZE, (0.0,) * 3, (1.0,) * 3)
    given: dict[str, Any] = {"scene": coded(ZEBRA, SIZE), "render": coded} | options
    with pytest.raises((ValueError, TypeError), match=message) as error:
        smallest_redraw(fake, given.pop("scene"), given.pop("target", None), **given)
    assert "\n" not in str(error.value)
    assert model.seen <= 1


def test_no_call_is_larger_than_the_batch() -> None:
    sizes: list[int] = []

    def others(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return 0 * x[:, 0, 0, 0]

    search(others, ZEBRA, most=1, batch_size=5)
    assert max(sizes) == 5
