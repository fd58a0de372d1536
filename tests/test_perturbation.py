from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from course_utils.contract import Estimate
from course_utils.methods.perturbation import (
    occlusion,
    prediction_difference,
    prediction_difference_estimate,
)
from tests.networks import NETWORKS, Recorder, batch, make

BACKGROUND = batch(5, seed=7)


def occlude(*arguments: Any, **options: Any) -> Tensor:
    return occlusion(*arguments, **{"window": 4, "stride": 2, **options})


SMALL: dict[str, Any] = {
    "window": 4, "stride": 2, "samples": 3, "background": BACKGROUND.double(),
}  # fmt: skip


def differ(*arguments: Any, **options: Any) -> Tensor:
    return prediction_difference(*arguments, **{**SMALL, **options})


def estimate(*arguments: Any, **options: Any) -> Any:
    return prediction_difference_estimate(*arguments, **{**SMALL, **options})


METHODS: dict[str, Callable] = {"occlusion": occlude, "prediction_difference": differ}
every_method = pytest.mark.parametrize("name", METHODS)


def places(size: int, window: int, stride: int) -> list[int]:
    starts, start = [], 0
    while start + window < size:
        starts.append(start)
        start += stride
    return [*starts, size - window]


def twin(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int,
    stride: int,
    contents: Callable[[int], list[Tensor]],
) -> Tensor:
    """From the definition: contents(number of a window) are the pictures that it shows instead."""
    _, height, width = image.shape
    total, count, number = torch.zeros(height, width).double(), torch.zeros(height, width), 0
    for top in places(height, window, stride):
        for left in places(width, window, stride):
            drops = []
            for content in contents(number):
                changed = image.clone()
                for row in range(top, top + window):
                    for column in range(left, left + window):
                        changed[:, row, column] = content[:, row, column]
                drops.append(score(image[None].clone()) - score(changed[None]))
            for row in range(top, top + window):
                for column in range(left, left + window):
                    total[row, column] += sum(float(drop) for drop in drops) / len(drops)
                    count[row, column] += 1
            number += 1
    return total / count


def test_occlusion_by_hand() -> None:
    image = torch.tensor([[1.0, 2, 4], [8, 16, 32]])[None, None]
    model = Recorder()
    # Left window 1 + 2 + 8 + 16, right window 2 + 4 + 16 + 32; both cover the middle.
    expected = torch.tensor([27, 40.5, 54]).expand(1, 2, 3)
    assert torch.equal(occlusion(model, image, 0, window=2, stride=1), expected)
    assert torch.equal(occlusion(model, image, 1, window=2, stride=1), -2 * expected)
    filled = occlusion(model, image, 0, window=2, stride=1, baseline=1.0)
    assert torch.equal(filled, expected - 4)


def test_the_last_window_ends_at_the_edge() -> None:
    image = torch.tensor([1.0, 10, 100, 1000, 10000]).view(1, 1, 1, 5).repeat(1, 1, 2, 1) / 2
    # Columns 0–1, 2–3, and 3–4, where one more stride would leave the image.
    expected = torch.tensor([11, 11, 1100, (1100 + 11000) / 2, 11000]).expand(1, 2, 5)
    assert torch.equal(occlusion(Recorder(), image, 0, window=2, stride=2), expected)


def test_prediction_difference_by_hand() -> None:
    image = torch.tensor([[1.0, 2, 4], [8, 16, 32]])[None, None]
    background = torch.ones(1, 1, 2, 3)
    result = estimate(Recorder(), image, 0, window=2, stride=1, background=background)
    assert torch.equal(result.value, torch.tensor([23, 36.5, 50]).expand(1, 2, 3))
    # There is one picture to draw, so nothing is left to chance.
    assert torch.equal(result.standard_error, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("window", "stride"), [(4, 2), (3, 3), (5, 2), (8, 8), (1, 1)])
def test_occlusion_against_its_twin(network: str, window: int, stride: int) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    fill = torch.linspace(-1, 1, 3 * 8 * 8, dtype=torch.float64).view(3, 8, 8)
    result = occlusion(model, images, 3, window=window, stride=stride, baseline=fill)
    with torch.no_grad():
        for image, row in zip(images, result, strict=True):
            slow = twin(lambda x: model(x)[0, 3], image, window, stride, lambda _: [fill])
            torch.testing.assert_close(row, slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_prediction_difference_against_its_twin(network: str) -> None:
    model, images = make(network).double().eval(), batch(2, dtype=torch.float64)
    background = BACKGROUND.double()
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(5, (9, 4), generator=generator)
    result = prediction_difference(
        model,
        images,
        3,
        window=4,
        stride=2,
        samples=4,
        background=background,
        generator=generator.manual_seed(5),
    )
    with torch.no_grad():
        for image, row in zip(images, result, strict=True):
            slow = twin(
                lambda x: model(x)[0, 3], image, 4, 2, lambda p: [background[i] for i in drawn[p]]
            )
            torch.testing.assert_close(row, slow, rtol=0, atol=1e-10)


def test_the_standard_error_is_that_of_the_map() -> None:
    images, linear = batch(1), Recorder()
    repeats = [
        estimate(linear, images, 0, generator=torch.Generator().manual_seed(seed))
        for seed in range(300)
    ]
    maps = torch.cat([one.value for one in repeats])
    variances = torch.cat([one.standard_error**2 for one in repeats])
    torch.testing.assert_close(maps.std(0), variances.mean(0).sqrt(), rtol=0.2, atol=0)
    # f is a sum, so that its mean over the background is its value at the background's mean.
    truth = occlude(linear, images, 0, baseline=BACKGROUND.mean(0))[0]
    assert ((maps.mean(0) - truth).abs() < 5 * maps.std(0) / 300**0.5).all()
    one = repeats[0]
    torch.testing.assert_close(one.spread, one.standard_error * 3**0.5)
    assert one.r2 is None


def test_the_estimate() -> None:
    model, images = make("Residual"), batch()
    result = estimate(model, images)
    assert torch.equal(result.value, differ(model, images))
    for error in (result.standard_error, result.spread):
        assert error.shape == result.value.shape
        assert error.dtype == result.value.dtype
        assert error.isfinite().all()
    assert isinstance(result, Estimate)


def test_one_sample_has_no_standard_error() -> None:
    model, images = make("Residual"), batch()
    result = estimate(model, images, samples=1)
    assert result.standard_error.isnan().all()
    assert result.spread.isnan().all()
    assert result.value.isfinite().all()
    assert torch.equal(result.value, differ(model, images, samples=1))


def test_a_window_that_does_not_matter_is_exactly_zero() -> None:
    def corner(x: Tensor) -> Tensor:
        return x[:, :, 0, 0].sum(1, keepdim=True).exp()

    for explain in METHODS.values():
        result = explain(corner, batch(), 0)
        assert result[:, :2, :2].abs().min() > 0
        assert result[:, 4:].abs().max() == 0
        assert result[:, :, 4:].abs().max() == 0


@every_method
def test_forward_passes(name: str) -> None:
    model = Recorder()
    METHODS[name](model, batch(3), batch_size=7)
    each = 9 * (3 if name == "prediction_difference" else 1)
    assert sum(model.calls) == 3 * (1 + each)
    assert max(model.calls) == 7
    assert len(model.calls) == 1 + -(-3 * each // 7)


@every_method
@pytest.mark.parametrize("network", NETWORKS)
def test_batches_do_not_matter(name: str, network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    together = METHODS[name](model, images)
    alone = torch.cat([METHODS[name](model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    small = METHODS[name](model, images, batch_size=1)
    torch.testing.assert_close(together, small, rtol=0, atol=1e-10)


@every_method
def test_a_function_is_explained_as_a_module_is(name: str) -> None:
    model, images = make("Residual").eval(), batch()
    function = METHODS[name](lambda x: model(x), images)
    assert torch.equal(METHODS[name](model, images), function)
    assert not function.requires_grad


@every_method
def test_target_none_is_the_argmax(name: str) -> None:
    model, images = make("Residual").eval(), batch()
    with torch.no_grad():
        answers = model(images).argmax(1)
    assert torch.equal(METHODS[name](model, images), METHODS[name](model, images, answers))


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_kind(name: str, dtype: torch.dtype) -> None:
    images = batch(dtype=torch.float32).to(dtype)
    result = METHODS[name](make("Residual").to(dtype), images, 1)
    assert result.shape == (3, 8, 8)
    assert result.dtype == dtype
    with torch.inference_mode():
        again = METHODS[name](make("Residual").to(dtype), images.clone(), 1)
    assert torch.equal(result, again)


def test_the_generator() -> None:
    model, images = make("Residual"), batch()
    before = torch.get_rng_state()
    first = differ(model, images)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, differ(model, images, generator=torch.Generator().manual_seed(0)))
    other = differ(model, images, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first, other)


BAD: dict[str, list[object]] = {
    "window": [9, 0, -1, 4.0, True, (4, 4)],
    "stride": [5, 0, 2.0, None],
    "batch_size": [0, 1.5],
}
BAD_FOR_OCCLUSION = BAD | {"baseline": [float("nan"), "grey", torch.zeros(2, 8, 8), None]}
BAD_FOR_DIFFERENCE = BAD | {
    "samples": [0, 2.5],
    "background": [
        None,
        BACKGROUND.numpy(),
        BACKGROUND[0],
        BACKGROUND[:0],
        BACKGROUND[..., :7],
        BACKGROUND.long(),
        BACKGROUND / 0,
    ],
    "generator": [0, "cpu"],
}
CASES = [("occlusion", *case) for case in BAD_FOR_OCCLUSION.items()] + [
    ("prediction_difference", *case) for case in BAD_FOR_DIFFERENCE.items()
]


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [(name, argument, value) for name, argument, values in CASES for value in values],
)
def test_bad_options(name: str, argument: str, value: object) -> None:
    model = Recorder()
    with pytest.raises((ValueError, TypeError), match=f"^{argument} ") as error:
        METHODS[name](model, batch(), **{argument: value})
    assert not model.calls
    assert "\n" not in str(error.value)


@every_method
def test_bad_images_and_targets(name: str) -> None:
    model = Recorder()
    for images in (batch()[0], batch().long(), batch() / 0):
        with pytest.raises((ValueError, TypeError), match="^images "):
            METHODS[name](model, images)
    with pytest.raises(TypeError, match="^model must be a torch.nn.Module or a function"):
        METHODS[name]("resnet18", batch())
    assert not model.calls
    with pytest.raises(ValueError, match="^target: there is no class 2"):
        METHODS[name](model, batch(), 2)
    with pytest.raises(ValueError, match="^model must return logits"):
        METHODS[name](lambda x: x, batch())


def test_the_default_window_wants_an_image_as_large() -> None:
    with pytest.raises(ValueError, match="^window is 16, .* 8 high and 8 wide$"):
        occlusion(Recorder(), batch())


@pytest.mark.references
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("window", "stride"), [(4, 2), (2, 2), (3, 1), (8, 3)])
def test_occlusion_equals_captum(network: str, window: int, stride: int) -> None:
    from captum.attr import Occlusion

    model, images = make(network).eval(), batch()
    target, fill = torch.tensor([1, 4, 0]), torch.tensor([0.5, -1, 2]).view(1, 3, 1, 1)
    reference = Occlusion(lambda x: model(x.clone())).attribute(
        images,
        target=target,
        strides=(3, stride, stride),
        sliding_window_shapes=(3, window, window),
        baselines=fill.expand_as(images),
    )
    result = occlusion(model, images, target, window=window, stride=stride, baseline=fill)
    for channel in reference.unbind(1):
        torch.testing.assert_close(result, channel, rtol=0, atol=1e-5)


@pytest.mark.references
def test_captum_cuts_the_last_window_off_where_it_leaves_the_image() -> None:
    from captum.attr import Occlusion

    image = torch.tensor([1.0, 10, 100, 1000, 10000]).view(1, 1, 1, 5).repeat(1, 1, 2, 1) / 2
    reference = Occlusion(Recorder()).attribute(
        image, target=0, strides=(1, 2, 2), sliding_window_shapes=(1, 2, 2)
    )
    # Its third window is column 4 alone; ours are all of one size, so that their drops compare.
    assert reference[0, 0, 0].tolist() == [11, 11, 1100, 1100, 10000]
