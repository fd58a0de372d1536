"""Homework 7: thresholds, overlaps and fooled maps, in other manners, and wrong in others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course_utils.homework import check
from tests import keys

# right answers in other manners


def by_sorting(maps: Any, share: float) -> Any:
    """Each unit's values in order, and a line between the two next to the quantile."""
    found = []
    for unit in range(maps.shape[1]):
        row = maps[:, unit].reshape(-1).sort().values
        place = (1 - share) * (len(row) - 1)
        low = int(place)
        high = min(low + 1, len(row) - 1)
        found.append(row[low] + (place - low) * (row[high] - row[low]))
    return torch.stack(found)


def by_numpy_quantile(maps: Any, share: float) -> Any:
    return torch.from_numpy(np.quantile(maps.numpy(), 1 - share, axis=(0, 2, 3)))


def by_loops(maps: Any, thresholds: Any, masks: Any) -> Any:
    """A loop over units, concepts and images."""
    table = torch.empty(maps.shape[1], masks.shape[1])
    large = F.interpolate(maps, size=masks.shape[-2:], mode="bilinear")
    for k in range(maps.shape[1]):
        for c in range(masks.shape[1]):
            both = either = 0
            for i in range(len(maps)):
                active = large[i, k] > thresholds[k]
                both += int((active & masks[i, c]).sum())
                either += int((active | masks[i, c]).sum())
            table[k, c] = both / either if either else torch.nan
    return table


def by_broadcasting(maps: Any, thresholds: Any, masks: Any) -> Any:
    large = F.interpolate(maps, size=masks.shape[2:], mode="bilinear", align_corners=False)
    active = (large > thresholds[:, None, None])[:, :, None]
    both = (active & masks[:, None]).sum((0, 3, 4))
    return both / (active | masks[:, None]).sum((0, 3, 4))


def one_at_a_time(
    model: Any,
    images: Any,
    target: Any,
    wanted: Any,
    epsilon: float,
    steps: int,
    rate: float,
    weight: float,
) -> Any:
    """Each image by itself, and the change in place of the picture."""
    result = []
    for image, c, w in zip(images, target, wanted, strict=True):
        with torch.no_grad():
            before = model(image[None])[0, c]
        change = torch.zeros_like(image)
        for _ in range(steps):
            change.requires_grad_(True)
            now = model((image + change)[None])[0, c]
            (slope,) = torch.autograd.grad(now, change, create_graph=True)
            map_ = slope.abs().sum(0)
            loss = (map_ / map_.sum() - w).pow(2).sum() + weight * (now - before) ** 2
            (g,) = torch.autograd.grad(loss, change)
            change = (change - rate * g / g.abs().max()).detach().clamp(-epsilon, epsilon)
        result.append(image + change)
    return torch.stack(result)


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("thresholds", by_sorting),
    ("thresholds", by_numpy_quantile),
    ("overlap", by_loops),
    ("overlap", by_broadcasting),
    ("fooled", one_at_a_time),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[answer.__name__ for _, answer in RIGHT])
def test_another_manner_is_right_too(name: str, answer: Callable[..., Any], seed: int) -> None:
    check(f"hw07.{name}", answer, seed=seed)


# wrong answers, written afresh


def each_image(maps: Any, share: float) -> Any:
    return torch.stack([by_numpy_quantile(image[None], share) for image in maps]).mean(0)


def for_all_units(maps: Any, share: float) -> Any:
    return maps.quantile(1 - share).expand(maps.shape[1])


def lower(maps: Any, share: float) -> Any:
    return by_numpy_quantile(maps, 1 - share)


def of_the_largest(maps: Any, share: float) -> Any:
    return maps.amax((0, 2, 3)) * (1 - share)


def positive(maps: Any, share: float) -> Any:
    rows = [maps[:, k][maps[:, k] > 0] for k in range(maps.shape[1])]
    return torch.stack([row.quantile(1 - share) for row in rows])


def mean_of_images(maps: Any, thresholds: Any, masks: Any) -> Any:
    each = [by_broadcasting(m[None], thresholds, t[None]) for m, t in zip(maps, masks, strict=True)]
    return torch.stack(each).nanmean(0)


def in_blocks(maps: Any, thresholds: Any, masks: Any) -> Any:
    height, width = (m // s for m, s in zip(masks.shape[2:], maps.shape[2:], strict=True))
    blocks = maps.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return by_broadcasting(blocks, thresholds, masks)


def precision(maps: Any, thresholds: Any, masks: Any) -> Any:
    large = F.interpolate(maps, size=masks.shape[2:], mode="bilinear")
    active = (large > thresholds[:, None, None])[:, :, None]
    return (active & masks[:, None]).sum((0, 3, 4)) / active.sum((0, 3, 4))


def no_nan(maps: Any, thresholds: Any, masks: Any) -> Any:
    return by_broadcasting(maps, thresholds, masks).nan_to_num(0.0)


def at_least(maps: Any, thresholds: Any, masks: Any) -> Any:
    return by_broadcasting(maps, thresholds - 1e-6, masks)


def unbounded(**case: Any) -> Any:
    return one_at_a_time(**{**case, "epsilon": 1e9})


def a_step_less(**case: Any) -> Any:
    return one_at_a_time(**{**case, "steps": case["steps"] - 1})


def nothing_kept(**case: Any) -> Any:
    return one_at_a_time(**{**case, "weight": 0.0})


def upward(**case: Any) -> Any:
    return one_at_a_time(**{**case, "rate": -case["rate"]})


WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("thresholds", each_image, "each image"),
    ("thresholds", for_all_units, "all units together"),
    ("thresholds", lower, "the lower end"),
    ("thresholds", of_the_largest, "a share of the maximum"),
    ("thresholds", positive, "active values only"),
    ("overlap", mean_of_images, "a mean over images"),
    ("overlap", in_blocks, "nearest"),
    ("overlap", precision, "precision"),
    ("overlap", no_nan, "zero for nothing"),
    ("overlap", at_least, "at the threshold"),
    ("fooled", unbounded, "not clipped"),
    ("fooled", a_step_less, "one step too few"),
    ("fooled", nothing_kept, "no term for the answer"),
    ("fooled", upward, "the other way"),
]


@pytest.mark.parametrize(("name", "answer", "mistake"), WRONG, ids=[w[1].__name__ for w in WRONG])
def test_a_wrong_answer_gets_the_hint_of_its_mistake(
    name: str, answer: Callable[..., Any], mistake: str
) -> None:
    wrong = keys.refused(f"hw07.{name}", answer)
    assert wrong.hint == keys.hint(f"hw07.{name}", mistake)


def test_the_pictures_are_not_changed_in_place() -> None:
    def in_place(**case: Any) -> Any:
        case["images"].copy_(one_at_a_time(**case))
        return case["images"]

    assert "images" in str(keys.refused("hw07.fooled", in_place))


def test_the_examples_of_the_text() -> None:
    """Each number that the exercises promise."""
    maps = torch.tensor([[[[0.0, 1], [2, 3]]], [[[4, 5], [6, 7]]]])
    assert by_numpy_quantile(maps, 0.25).tolist() == [5.25]
