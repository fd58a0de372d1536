"""What every method in METHODS promises (a new method joins by its line there)."""

import inspect
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from course_utils import contract
from course_utils.methods import AXIOMS, METHODS, NEEDS, Method
from tests.networks import NETWORKS, batch, make

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}

every_method = pytest.mark.parametrize("name", METHODS)
every_network = pytest.mark.parametrize("network", NETWORKS)


# What suits images of 8 × 8, and makes few passes.
QUICK: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 4, "stride": 3},
    "prediction_difference": {"window": 4, "stride": 3, "samples": 2},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 5},
    "lime_image": {"segments": torch.arange(64).view(8, 8) // 16, "samples": 12},
    "shap_image": {"segments": torch.arange(64).view(8, 8) // 16, "samples": 16},
    "xrai": {"segments": torch.arange(64).view(8, 8) // 7, "min_pixels": 1},
}
WINDOWS = 9  # at 0, 3 and 4, down and across


def method(name: str, dtype: torch.dtype = torch.float32) -> Callable[..., torch.Tensor]:
    """The method with what it needs, quick where it repeats passes."""
    return partial(METHODS[name].bind(batch(4, seed=7, dtype=dtype)), **QUICK.get(name, {}))


@contextmanager
def unchanged(model: nn.Module, images: torch.Tensor) -> Iterator[None]:
    """The body leaves model, images and the global generators as they are."""

    def objects() -> dict[str, Any]:
        modules = list(model.modules())
        return {
            "training": [m.training for m in modules],
            "hooks": [{k: repr(v) for k, v in vars(m).items() if "hook" in k} for m in modules],
            "attributes": [set(vars(m)) for m in modules],
            "forwards": [m.forward for m in modules],
            "parameters": [id(p) for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "grad": [id(p.grad) for p in model.parameters()],
            "buffers": [id(b) for b in model.buffers()],
            "images": (images.requires_grad, images.grad, images.stride()),
            "python": random.getstate(),
            "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        }

    def values() -> list[torch.Tensor]:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        numpy = torch.tensor(np.random.get_state(legacy=False)["state"]["key"].astype(np.int64))  # noqa: NPY002
        held = [*model.state_dict().values(), *gradients, images, torch.get_rng_state(), numpy]
        return [tensor.detach().clone() for tensor in held]

    before, values_before = objects(), values()
    try:
        yield
    finally:
        assert objects() == before
        assert all(map(torch.equal, values(), values_before))


def awkward(network: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network in a state that is easily lost: mixed modes, some frozen, a gradient, a hook."""
    model = make(network).to(dtype).train()
    list(model.children())[-1].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    next(model.children()).register_forward_hook(lambda *_: None)
    return model


@every_method
@every_network
@pytest.mark.parametrize("dtype", CLOSE)
def test_shape_and_kind(name: str, network: str, dtype: torch.dtype) -> None:
    images = batch(dtype=dtype)
    result = method(name, dtype)(make(network).to(dtype), images, 2)
    assert result.shape in (images.shape, (3, 8, 8))
    assert result.dtype == dtype
    assert result.device == images.device
    assert not result.requires_grad
    assert result.isfinite().all()
    # One class may have nothing that speaks for it, but not all.
    every = [method(name, dtype)(make(network).to(dtype), images, c) for c in range(5)]
    assert torch.stack(every).abs().sum() > 0


@every_method
@every_network
def test_an_image_alone_gives_its_row_of_the_batch(name: str, network: str) -> None:
    model, images = make(network).double(), batch(dtype=torch.float64)
    explain = method(name, torch.float64)
    together = explain(model, images)
    alone = torch.cat([explain(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@every_method
@every_network
def test_the_same_call_gives_the_same(name: str, network: str) -> None:
    model, images = make(network).train(), batch()
    first = method(name)(model, images)
    torch.manual_seed(1)  # must not matter
    assert torch.equal(method(name)(model, images), first)


@every_method
@every_network
def test_the_mode_it_comes_in_does_not_matter(name: str, network: str) -> None:
    model, images = make(network), batch()
    expected = method(name)(model.eval(), images)
    assert torch.equal(method(name)(model.train(), images), expected)
    with torch.no_grad():
        assert torch.equal(method(name)(model, images), expected)
    with torch.inference_mode():
        assert torch.equal(method(name)(model, images.clone()), expected)
    model.requires_grad_(False)
    assert torch.equal(method(name)(model, images), expected)
    assert torch.equal(method(name)(model, images.clone().requires_grad_()), expected)


@every_method
@every_network
def test_leaves_everything_as_it_was(name: str, network: str) -> None:
    model, images = awkward(network), batch()
    with unchanged(model, images):
        method(name)(model, images)


@every_method
@every_network
def test_leaves_everything_as_it_was_after_an_error(name: str, network: str) -> None:
    model, images = awkward(network), batch()
    last = list(model.children())[-1]

    def fail(*_: object) -> None:
        torch.rand(1)
        raise RuntimeError("in the middle")

    last.register_forward_hook(fail)
    with unchanged(model, images), pytest.raises(RuntimeError, match="in the middle"):
        method(name)(model, images)


@every_method
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded", "sliced"])
def test_any_memory_layout(name: str, layout: str) -> None:
    plain = batch()
    images = {
        "channels_last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": plain[:1].expand(3, -1, -1, -1),
        "sliced": torch.cat([plain, plain], 3)[..., :8],
    }[layout]
    model = make("Residual")
    expected = method(name)(model, images.contiguous())
    with unchanged(model, images):
        torch.testing.assert_close(method(name)(model, images), expected)


@every_method
def test_targets(name: str) -> None:
    model, images = make("Residual"), batch()
    explain = method(name)
    classes = torch.tensor([4, 0, 2])
    rows = [explain(model, image[None], int(c)) for image, c in zip(images, classes, strict=True)]
    torch.testing.assert_close(explain(model, images, classes), torch.cat(rows))
    answers = model.eval()(images).argmax(1)
    assert torch.equal(explain(model, images), explain(model, images, answers))


IMAGES = batch()
BAD_IMAGES: dict[str, object] = {
    "array": IMAGES.numpy(),
    "one image": IMAGES[0],
    "rank 5": IMAGES[None],
    "integers": IMAGES.long(),
    "NaN": IMAGES.where(IMAGES < 2, torch.nan),
    "infinity": IMAGES / 0,
    "no image": IMAGES[:0],
    "no pixel": IMAGES[..., :0],
    "other type": IMAGES.double(),
    "other device": IMAGES.to("meta"),
}
BAD_TARGETS: dict[str, object] = {
    "too large": 5,
    "negative": -1,
    "one too large": torch.tensor([0, 5, 1]),
    "one negative": torch.tensor([0, -1, 1]),
    "too short": torch.tensor([0, 1]),
    "no rank": torch.tensor(0),
    "floating": torch.tensor([0.0, 1.0, 2.0]),
    "list": [0, 1, 2],
    "bool": True,
    "name": "zebra",
}


@every_method
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(name: str, case: str) -> None:
    model = make("Residual")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises((ValueError, TypeError), match="^images ") as error:
        method(name)(model, BAD_IMAGES[case])
    assert not calls
    assert "\n" not in str(error.value)


@every_method
@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_target(name: str, case: str) -> None:
    model = awkward("Residual")
    with (
        unchanged(model, IMAGES),
        pytest.raises((ValueError, TypeError), match="^target") as error,
    ):
        method(name)(model, IMAGES, BAD_TARGETS[case])
    assert "\n" not in str(error.value)


@every_method
def test_bad_model(name: str) -> None:
    with pytest.raises(TypeError, match="^model "):
        method(name)("resnet18", IMAGES)
    with pytest.raises(ValueError, match=r"^model must return logits \(N, K\).*\(\d+, 6, 8, 8\)"):
        method(name)(nn.Conv2d(3, 6, 1), IMAGES)


@every_method
def test_unknown_option(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has no option 'sharpness'"):
        method(name)(make("Residual"), IMAGES, sharpness=1)


@every_method
def test_the_entry_is_complete(name: str) -> None:
    entry = METHODS[name]
    parameters = list(inspect.signature(entry.function).parameters.values())
    assert entry.name == name
    assert [p.name for p in parameters[:3]] == ["model", "images", "target"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[3:])
    assert 1950 < entry.year < 2100
    assert entry.paper
    assert entry.family
    assert entry.scope in ("local", "global")
    assert entry.needs <= set(NEEDS)
    assert entry.axioms <= set(AXIOMS)
    assert entry.function.__doc__
    assert "Source:" in entry.function.__doc__
    options = {p.name for p in parameters[3:]}
    assert set(entry.prepare) <= options
    assert entry.stochastic == ("generator" in options)
    assert ("baseline" in entry.needs) == bool(
        {"baseline", "baselines", "fill", "attribution"} & options
    )


class Counted(nn.Module):
    """A network that counts the images that go through it, and the gradients that come back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = {"F": 0, "B": 0}
        self.largest = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes["F"] += len(x)
        self.largest = max(self.largest, len(x))
        if x.requires_grad:
            x.register_hook(self.came_back)
        return self.model(x)

    def came_back(self, gradient: torch.Tensor) -> None:
        self.passes["B"] += len(gradient)


@every_method
def test_the_passes_it_costs(name: str) -> None:
    entry, quick = METHODS[name], dict(QUICK.get(name, {}))
    data = batch(4, seed=7)
    quick |= {option: make(make_network(), data) for option, make in entry.prepare.items()}
    steps = {"smoothgrad": 3, "integrated_gradients": 5, "prediction_difference": 2, "xrai": 32}
    steps |= {"lime_image": 12, "shap_image": 16}
    given = {"n": steps.get(name, 1), "P": WINDOWS, "K": len(data)}
    cost = {
        kind: eval(count.replace("·", "*"), given)
        for count, kind in re.findall(r"(\(.*?\)|\S+) ([FB])\b", entry.cost)
    }
    model = Counted(make_network())
    entry(model, batch(1), 2, **quick)
    back = cost.get("B", 0)
    assert model.passes == {"F": cost.get("F", 0) + back, "B": back}


def make_network() -> nn.Module:
    return make("Residual")


@every_method
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_call_is_larger_than_the_batch_size(name: str, batch_size: int) -> None:
    entry, quick = METHODS[name], dict(QUICK.get(name, {}))
    if "batch_size" not in inspect.signature(entry.function).parameters:
        pytest.skip("it makes one pass")
    model, images, data = Counted(make_network()), batch(3), batch(4, seed=7)
    quick |= {option: make(model, data) for option, make in entry.prepare.items()}
    model.largest = 0
    result = entry(model, images, **quick, batch_size=batch_size)
    assert model.largest == batch_size
    torch.testing.assert_close(result, entry(model, images, **quick))


def with_background(
    model: nn.Module,
    images: torch.Tensor,
    target: None = None,
    *,
    background: torch.Tensor,
    steps: int = 3,
) -> torch.Tensor:
    return (images - background.mean(0)) * steps


def test_bind_supplies_what_a_method_needs() -> None:
    needy = Method(
        with_background, "none", 2000, "test", "0", prepare={"background": lambda model, data: data}
    )
    model, data = make("Residual"), batch(4, seed=7)
    bound = needy.bind(data)
    assert torch.equal(bound(model, IMAGES), (IMAGES - data.mean(0)) * 3)
    assert torch.equal(bound(model, IMAGES, steps=1), IMAGES - data.mean(0))
    given = bound(model, IMAGES, background=torch.zeros(1, 3, 8, 8), steps=1)
    assert torch.equal(given, IMAGES)
    with pytest.raises(TypeError, match="with_background needs background"):
        needy(model, IMAGES)
    with pytest.raises(TypeError, match="did you mean steps"):
        bound(model, IMAGES, step=1)


def test_a_call_without_gradient_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach().mean((2, 3))

    with pytest.raises(ValueError, match="^model: its logits carry no gradient"):
        METHODS["gradient"](Detached(), IMAGES)


def test_a_listener_hears_the_outer_steps_alone() -> None:
    heard: list[tuple[int, int]] = []

    def inner() -> None:
        for _ in contract.portions(3, 1, False):
            pass

    with contract.hearing(lambda done, total: heard.append((done, total))):
        for _ in contract.portions(5, 2, False):
            inner()
        inner()
    inner()
    assert heard == [(2, 5), (4, 5), (5, 5), (1, 3), (2, 3), (3, 3)]


def test_a_listener_hears_again_after_an_error() -> None:
    heard: list[int] = []
    with contract.hearing(lambda done, total: heard.append(done)):
        with pytest.raises(RuntimeError), contract.counting(2, "step", False):
            raise RuntimeError
        for _ in contract.portions(2, 1, False):
            pass
    assert heard == [1, 2]
