from typing import Any

import torch
from torch import Tensor, nn

from course_utils.methods.head import Head, last_maps
from tests.networks import batch


def maps_pooled_by(forward: Any) -> tuple[Tensor, Tensor | None, Head]:
    """The feature maps of a network that ends as `forward` says, those found, and the head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)
    images = batch()
    with torch.no_grad(), Head() as head:
        maps = conv(images)
        logits = forward(maps, fc)
    assert head.vector is not None
    assert head.weight is fc.weight
    assert head.ends_in(logits)
    assert not hasattr(conv.weight, "pooled")
    return maps, last_maps(logits), head


def test_head_notes_what_is_pooled_last() -> None:
    for pool in (lambda x: x.mean((2, 3)), lambda x: x.amax((2, 3)), lambda x: x[:, :, 3, 4]):
        maps, found, head = maps_pooled_by(lambda x, fc, pool=pool: fc(pool(x)))
        assert found is maps
        assert head.vector is not None
        assert torch.equal(head.vector, pool(maps))


def test_head_notes_the_first_of_poolings_in_a_row() -> None:
    maps, found, _ = maps_pooled_by(
        lambda maps, fc: fc(
            nn.functional.avg_pool2d(nn.functional.avg_pool2d(maps, 2), 4).flatten(1)
        )
    )
    assert found is maps
    maps, found, _ = maps_pooled_by(
        lambda maps, fc: fc(nn.functional.avg_pool2d(maps, 2).relu().mean((2, 3)))
    )
    assert found is not maps
    assert found is not None
    assert found.shape == (3, 6, 4, 4)


def test_head_tells_a_linear_layer_of_all_places_from_one_that_makes_maps() -> None:
    square, row = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 1, 4)
    conv2d = nn.functional.conv2d
    with Head():
        linear = conv2d(square, torch.ones(5, 3, 4, 4)).flatten(1)
        strided = conv2d(square, torch.ones(5, 3, 4, 4), stride=4).flatten(1)
        of_row = conv2d(row, torch.ones(5, 3, 1, 4)).flatten(1)
    assert last_maps(linear) is square
    for made in (strided, of_row):
        maps = last_maps(made)
        assert maps is not None
        assert maps.shape == (2, 5, 1, 1)


def test_head_keeps_the_logits_as_the_linear_layer_gave_them() -> None:
    with torch.no_grad(), Head() as head:
        logits = nn.Linear(3, 5)(batch().mean((2, 3)))
    assert head.ends_in(logits)
    assert head.ends_in(logits.clamp(min=-100))
    assert not head.ends_in(logits + 1)
    logits *= 2
    assert not head.ends_in(logits)
    with Head() as head:
        batch().relu()
    assert not head.ends_in(logits)


def test_there_are_no_last_maps_where_the_head_saw_none() -> None:
    images = batch()
    with Head():
        maps = images.mean((2, 3))
        constant = torch.ones(3, 6, 4, 4).mean((2, 3))
        weight = nn.Parameter(torch.ones(1, 6, 4, 4))
        of_parameters = (weight + weight).mean((2, 3))
        tokens = nn.functional.linear(images.flatten(2).mT, torch.ones(6, 3)).mean(1)
    assert last_maps(maps) is images
    assert last_maps(constant) is None
    assert last_maps(of_parameters) is None
    assert last_maps(tokens) is None
    assert last_maps(torch.ones(3, 5)) is None
