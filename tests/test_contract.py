"""What every method in METHODS promises (a new method joins by its line there)."""

import inspect
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from course_utils import contract, progress
from course_utils.evaluation import metrics
from course_utils.evaluation.sanity import max_sensitivity, parameter_randomization
from course_utils.methods import AXIOMS, METHODS, NEEDS, Method
from course_utils.methods.gradients import integrated_gradients, smoothgrad
from tests.networks import NETWORKS, Recorder, Returning, batch, few_passes, make

ROOT = Path(__file__).resolve().parents[1]
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}

every_method = pytest.mark.parametrize("name", METHODS)
every_network = pytest.mark.parametrize("network", NETWORKS)


def method(name: str, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """The method with what it needs, quick where it repeats passes."""
    entry = METHODS[name]
    return partial(entry.bind(batch(4, seed=7, dtype=dtype)), **few_passes(entry))


def prepared(name: str, model: nn.Module, data: Tensor) -> dict[str, Any]:
    """What the method's entry makes of the data."""
    return METHODS[name].prepared(model, data)


@contextmanager
def unchanged(model: nn.Module, images: Tensor) -> Iterator[None]:
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

    def values() -> list[Tensor]:
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
    "no class": (),
    "one of two": (1,),
    "three classes": (0, 1, 2),
    "names": ("zebra", "tiger"),
    "the same twice": (2, 2),
    "the same twice in a row": torch.tensor([[0, 1], [2, 2], [1, 0]]),
    "the second too large": (1, 5),
    "a pair too few": torch.tensor([[0, 1], [1, 2]]),
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


def options_of(name: str) -> dict[str, Any]:
    """What the method needs, made beforehand, and few passes."""
    return few_passes(METHODS[name]) | prepared(name, make("Residual"), batch(4, seed=7))


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda y: (y, y.sum()), r"tuple; .* returns self.model\(x\)\[0\], or"),
    "dict": (lambda y: {"out": y}, r"dict; .* returns self.model\(x\)\['out'\], or"),
    "(N,)": (lambda y: y[:, 0], r"\(\d+,\); .* returns self.model\(x\)\[:, None\], or"),
    "(N, K, h, w)": (
        lambda y: y[:, :, None, None].expand(-1, -1, 2, 4),
        r"\(\d+, 5, 2, 4\); .* returns self.model\(x\).flatten\(2\).mean\(2\), or",
    ),
    "none": (lambda y: None, r"NoneType; .* returns self.model\(x\).logits, or"),
}


@every_method
@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_is_no_logits(name: str, case: str) -> None:
    """It is said after one pass, with the line that makes logits of it."""
    output, said = OUTPUTS[case]
    model = Returning(make("Residual"), output)
    pattern = rf"^model must return logits \(N, K\), one row an image, but returned {said}"
    with unchanged(model, IMAGES), pytest.raises(ValueError, match=pattern) as error:
        METHODS[name](model, IMAGES, 2, **options_of(name))
    assert "\n" not in str(error.value)
    assert model.forwards == 1


@every_method
def test_a_class_that_there_is_not_is_said_after_one_pass(name: str) -> None:
    for target in (5, -1, torch.tensor([0, 1, 5]), torch.tensor([-1, 0, 1])):
        model = Returning(make("Residual"), lambda y: y)
        with pytest.raises(ValueError, match="^target: there is no class"):
            METHODS[name](model, IMAGES, target, **options_of(name))
        assert model.forwards == 1


@every_method
def test_a_function_as_the_target(name: str) -> None:
    def explain(model: nn.Module, target: Any) -> Tensor:
        return METHODS[name](model, IMAGES, target, **options_of(name))

    def difference(logits: Tensor) -> Tensor:
        return logits[:, 3] - logits[:, 1]

    model = make("Residual")
    if name == "cam":
        with pytest.raises(ValueError, match="^target must be a class here, not a function"):
            explain(model, difference)
        return
    torch.testing.assert_close(explain(model, lambda logits: logits[:, 1]), explain(model, 1))
    # Whatever the model returns:
    both = Returning(model, lambda y: {"aux": y.sum(), "out": (None, y[:, :, None])})
    found = explain(both, lambda output: difference(output["out"][1][:, :, 0]))
    torch.testing.assert_close(found, explain(model, difference))
    if not name.startswith("pattern"):  # there the score would be one more layer
        only = Returning(model, lambda y: difference(y)[:, None])
        torch.testing.assert_close(found, explain(only, 0))
    assert found.abs().sum() > 0


@every_method
def test_a_difference_of_two_classes(name: str) -> None:
    """Why 3, and not 1? The target (3, 1) is the function f_3 − f_1, of each image its own pair."""

    def explain(target: Any, images: Tensor = IMAGES) -> Tensor:
        return METHODS[name](model, images, target, **options_of(name))

    model = make("Residual")
    found = explain((3, 1))
    assert found.abs().sum() > 0
    if name == "cam":
        torch.testing.assert_close(found, explain(3) - explain(1))
    else:
        torch.testing.assert_close(found, explain(lambda logits: logits[:, 3] - logits[:, 1]))
    pairs = [(3, 1), (0, 2), (4, 3)]
    rows = [explain(pair, image[None]) for pair, image in zip(pairs, IMAGES, strict=True)]
    torch.testing.assert_close(explain(torch.tensor(pairs)), torch.cat(rows))


BAD_SCORES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "number": (lambda y: 3.0, ", not float$"),
    "classes": (lambda y: y.argmax(1), ", not torch.int64$"),
    "no rank": (lambda y: y.sum(), r"returned is \(\)$"),
    "column": (lambda y: y[:, :1], r"returned is \(\d+, 1\)$"),
    "one image's": (lambda y: y[0], r"returned is \(5,\)$"),
}


@every_method
@pytest.mark.parametrize("case", BAD_SCORES)
def test_a_function_that_makes_no_scores(name: str, case: str) -> None:
    if name == "cam":
        pytest.skip("it is about a class")
    function, said = BAD_SCORES[case]
    model = awkward("Residual")
    begin = "^target must return one number for each image, a floating point tensor"
    with (
        unchanged(model, IMAGES),
        pytest.raises((ValueError, TypeError), match=f"{begin}.*{said}") as error,
    ):
        METHODS[name](model, IMAGES, function, **options_of(name))
    assert "\n" not in str(error.value)


OF_GRADIENTS = [name for name in METHODS if "gradients" in METHODS[name].needs]


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_a_function_without_gradient(name: str) -> None:
    with pytest.raises(ValueError, match="^target: its scores carry no gradient to"):
        METHODS[name](make("Residual"), IMAGES, lambda y: y.detach()[:, 0], **options_of(name))


@every_method
def test_a_function_of_images_with_a_function_as_the_target(name: str) -> None:
    if METHODS[name].specific:
        with pytest.raises(TypeError, match="^model must be a torch.nn.Module"):
            METHODS[name](Recorder(), IMAGES, 0, **options_of(name))
        return
    found = METHODS[name](Recorder(), IMAGES, lambda y: y[:, 1] + 3 * y[:, 0], **options_of(name))
    torch.testing.assert_close(
        found, METHODS[name](Recorder(), IMAGES, 0, **options_of(name)), rtol=1e-4, atol=1e-4
    )


def test_what_judges_maps_takes_a_function_too() -> None:
    model, maps = make("Residual"), batch(seed=1)

    def first(output: dict[str, Tensor]) -> Tensor:
        return output["out"][:, 1]

    both = Returning(model, lambda y: {"out": y})
    for judge in (metrics.deletion, metrics.insertion):
        expected = judge(model, IMAGES, maps, 1, steps=3)
        for found, wanted in zip(judge(both, IMAGES, maps, first, steps=3), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        with pytest.raises(ValueError, match="^of is 'probability', which a class has"):
            judge(both, IMAGES, maps, first, of="probability")
    for check in (
        partial(metrics.faithfulness_correlation, attribution=maps, patch=4),
        partial(max_sensitivity, method=METHODS["gradient"], samples=2),
        partial(max_sensitivity, method=METHODS["lime_image"], samples=2),
    ):
        found = check(both, IMAGES, target=first)
        torch.testing.assert_close(found, check(model, IMAGES, target=1))


def exported(model: nn.Module) -> nn.Module:
    batches = {"x": {0: torch.export.Dim.DYNAMIC}}
    return torch.export.export(model, (IMAGES,), dynamic_shapes=batches).module()


COMPILED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": torch.jit.script,
    "frozen": lambda model: torch.jit.freeze(torch.jit.script(model)),
    "traced": lambda model: torch.jit.trace(model, IMAGES),
    "exported": exported,
}
# These look for feature maps, or for the convolution before a BatchNorm.
MAY_REFUSE = {
    *("cam", "grad_cam", "hires_cam", "guided_grad_cam"),
    *("layer_cam", "grad_cam_plus_plus", "score_cam", "eigen_cam"),
    *("pattern_net", "pattern_attribution"),
}


def said_or_found(name: str, model: nn.Module, **options: Any) -> str | Tensor:
    try:
        return METHODS[name](model, IMAGES, 2, **options_of(name) | options)
    except ValueError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", COMPILED)
def test_a_model_that_is_no_longer_python(kind: str) -> None:
    """Black boxes and gradients are the same; what looks inside is so or says why it cannot."""
    model = make("Residual").eval()
    compiled = COMPILED[kind](model)
    for name in METHODS:
        found = said_or_found(name, compiled)
        if isinstance(found, str):
            assert name in MAY_REFUSE
            assert re.match(r"^(model|layer): [^\n]*$", found)
        else:
            torch.testing.assert_close(found, said_or_found(name, model), rtol=1e-4, atol=1e-4)
    assert "layer: " in str(said_or_found("grad_cam", compiled, layer="conv2"))


@pytest.mark.parametrize("name", ["gradient", "occlusion", "deeplift"])
def test_a_model_exported_for_another_number_of_images(name: str) -> None:
    alone = torch.export.export(make("Residual").eval(), (IMAGES[:1],)).module()
    with pytest.raises(
        ValueError, match="^model: it was exported for images of one shape, [^\n]*$"
    ):
        METHODS[name](alone, IMAGES, 2, **options_of(name))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Right up to its rounding, and of its type; or refused."""
    images, data = batch().to(dtype), batch(4, seed=7).to(dtype)
    options = few_passes(METHODS[name])
    if name == "smoothgrad":
        options["noise"] = 0  # other types draw other numbers
    model = make("Functional").to(dtype)
    if name.startswith("pattern") or name == "guided_integrated_gradients":
        with pytest.raises(ValueError, match=f"^images are {dtype}, which is too coarse"):
            METHODS[name].bind(data)(model, images, 1, **options)
        return
    found = METHODS[name].bind(data)(model, images, 1, **options)
    expected = METHODS[name].bind(data.double())(model.double(), images.double(), 1, **options)
    assert found.dtype == dtype
    assert (found - expected).norm() < 0.1 * expected.norm()


THREADED = ("occlusion", "gradient", "guided_backprop", "grad_cam", "lrp", "smoothgrad")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", THREADED)
def test_threads_take_turns(name: str, frozen: bool) -> None:
    """Of one model, with a layer's hook where the method has one."""
    model, images = make("Residual").train(not frozen).requires_grad_(not frozen), batch()
    options = few_passes(METHODS[name])
    if "layer" in METHODS[name].options and name != "guided_backprop":
        options["layer"] = "conv2"
    want = METHODS[name](model, images, 1, **options)

    def explain(_: int) -> Tensor:
        return METHODS[name](model, images, 1, **options)

    with unchanged(model, images), ThreadPoolExecutor(4) as threads:
        for found in threads.map(explain, range(24)):
            torch.testing.assert_close(found, want)


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
    assert entry.label
    assert entry.needs <= set(NEEDS)
    assert entry.claims <= set(AXIOMS)
    assert entry.function.__doc__
    assert "Source:" in entry.function.__doc__
    options = {p.name for p in parameters[3:]}
    assert set(entry.options) == options
    assert set(entry.prepare) | set(entry.quick) <= options
    # What takes many passes has a sketch of few, and the other way round.
    assert (entry.sketch is not None) == bool(re.search(r"\b[nPMK]\b", entry.cost))
    assert name in repr(entry)
    assert ("baseline" in entry.needs) == bool({"baseline", "attribution"} & options)
    assert ("segments" in entry.needs) == ("segments" in options)
    assert ("data" in entry.needs) == bool(entry.prepare)


class Counted(nn.Module):
    """A network that counts the images that go through it, and the gradients that come back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = {"F": 0, "B": 0}
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes["F"] += len(x)
        self.largest = max(self.largest, len(x))
        if x.requires_grad:
            x.register_hook(self.came_back)
        return self.model(x)

    def came_back(self, gradient: Tensor) -> None:
        self.passes["B"] += len(gradient)


@every_method
def test_the_passes_it_costs(name: str) -> None:
    entry, data = METHODS[name], batch(4, seed=7)
    options = few_passes(entry) | prepared(name, make_network(), data)
    # XRAI leaves the steps to integrated gradients.
    steps = inspect.signature(integrated_gradients).parameters["steps"].default
    n = options.get("samples", options.get("steps", steps))
    cost = passes(entry.cost, n=n, P=WINDOWS, M=MAPS, K=len(data))
    model = Counted(make_network())
    entry(model, batch(1), 2, **options)
    assert model.passes == cost


WINDOWS = 9  # at 0, 3 and 4, down and across
MAPS = 6  # of the network's last convolution


def passes(cost: str, **given: int) -> dict[str, int]:
    """A cost such as "(1 + P) F" in numbers; a backward pass has a forward pass."""
    counts = {
        kind: eval(count.replace("·", "*"), dict(given))
        for count, kind in re.findall(r"(\(.*?\)|\S+) ([FB])\b", cost)
    }
    back = counts.get("B", 0)
    return {"F": counts.get("F", 0) + back, "B": back}


@every_method
def test_a_sketch_takes_few_passes(name: str) -> None:
    """On an image of 32 × 32, with what its entry prepares: no more than thirty, and a map."""
    entry = METHODS[name]
    if entry.sketch is None:
        pytest.skip("its map takes few passes anyway")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 32, 32, generator=generator)
    made = prepared(name, make_network(), batch(4, seed=7).repeat(1, 1, 4, 4))
    model = Counted(make_network())
    options = entry.sketch(model, image, 2, made)
    result = entry(model, image, 2, **made | options)
    assert result.shape in (image.shape, image[:, 0].shape)
    assert 0 < sum(model.passes.values()) <= 30


def make_network() -> nn.Module:
    return make("Residual")


@every_method
@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_call_is_larger_than_the_batch_size(name: str, batch_size: int) -> None:
    entry = METHODS[name]
    if "batch_size" not in entry.options:
        pytest.skip("it makes one pass")
    model, images = Counted(make_network()), batch(4)
    options = few_passes(entry) | prepared(name, model, batch(4, seed=7))
    model.largest = 0
    result = entry(model, images, **options, batch_size=batch_size)
    # Steps that follow one another share no call.
    alone = name == "extremal_perturbation"
    assert model.largest == (min(batch_size, len(images)) if alone else batch_size)
    torch.testing.assert_close(result, entry(model, images, **options))


def with_background(
    model: nn.Module,
    images: Tensor,
    target: None = None,
    *,
    background: Tensor,
    steps: int = 3,
) -> Tensor:
    return (images - background.mean(0)) * steps


def test_bind_supplies_what_a_method_needs() -> None:
    prepare = {"background": lambda model, data: data}
    needy = Method(with_background, "needy", "none", 2000, "0", prepare=prepare)
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
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    for name in ("gradient", "integrated_gradients", "smoothgrad"):
        with pytest.raises(ValueError, match="^model: its logits carry no gradient"):
            METHODS[name](Detached(), IMAGES)


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("name", [*OF_GRADIENTS, "cam"])  # CAM reads the last layer's weight
def test_a_quantised_layer_is_refused_by_what_needs_gradients(name: str) -> None:
    model = make("Residual").eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="^model: [^\n]*$"):
        METHODS[name](quantised, IMAGES, 1, **options_of(name))
    for asking in ("occlusion", "score_cam"):
        options = contract.known_options(METHODS[asking], window=4, stride=4)
        assert METHODS[asking](quantised, IMAGES, 1, **options).abs().sum() > 0


class Bar:
    """Stands in for tqdm's bar, and keeps which were shown, and how many at a time."""

    def __init__(self, shown: list[tuple[str, int]], now: list[str], **options: Any) -> None:
        self.shown, self.now = shown, now
        self.unit = options["unit"]
        assert 0 < options["initial"] <= options["total"]
        assert not options["leave"]
        self.now.append(self.unit)
        self.shown.append((self.unit, len(self.now)))

    def close(self) -> None:
        self.now.remove(self.unit)

    def update(self, steps: int) -> None:
        assert steps > 0


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The bars that were shown, each with the number of those on the screen then."""
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(progress, "tqdm", partial(Bar, shown, []))
    monkeypatch.setattr(progress, "DELAY", -1)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return shown


@every_method
def test_one_bar_at_most_is_shown(name: str, bars: list[tuple[str, int]]) -> None:
    """First that of the passes for the map as it is, then that of the layers."""
    randomised = parameter_randomization(make("Residual"), batch(), method(name))
    assert randomised
    assert bars == [("pass", 1), ("layer", 1)]


def test_the_method_of_smoothgrad_shows_no_bar_of_its_own(bars: list[tuple[str, int]]) -> None:
    smoothgrad(make("Residual"), batch(), method=integrated_gradients, samples=2)
    assert bars == [("pass", 1)]


def test_two_bars_come_one_after_the_other(bars: list[tuple[str, int]]) -> None:
    for _ in range(2):
        integrated_gradients(make("Residual"), batch(), steps=2)
    assert bars == [("pass", 1)] * 2


def test_a_bar_stays_away_where_the_environment_says_so() -> None:
    """It is tqdm's own variable, so that one word silences everything."""
    code = """
from course_utils import progress
progress.DELAY = 0
for step in progress.counted([1, 2], "step"):
    pass
"""
    for disable, shown in (("1", False), ("", True)):
        environment = os.environ | {"TQDM_DISABLE": disable, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert (run.returncode, run.stdout) == (0, "")
        assert ("step" in run.stderr) == shown


def test_a_notebooks_bar_stays_away_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm.notebook import tqdm

    bars = []

    def made(*arguments: Any, **options: Any) -> tqdm:
        bars.append(tqdm(*arguments, **options))
        return bars[-1]

    monkeypatch.setattr(progress, "tqdm", made)
    monkeypatch.setattr(progress, "DELAY", -1)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress.counted([1, 2], "step")) == [1, 2]
    assert bars == []


def test_a_listener_hears_the_outer_steps_alone(bars: list[tuple[str, int]]) -> None:
    heard: list[tuple[int, int]] = []

    def inner() -> None:
        list(progress.in_batches(3, 1))

    with progress.hearing(lambda done, total: heard.append((done, total))):
        for _ in progress.in_batches(4, 2):
            inner()
        inner()
    assert heard == [(2, 4), (4, 4), (1, 3), (2, 3), (3, 3)]
    assert bars == []
    inner()  # nobody listens any more
    assert len(heard) == 5
    assert bars == [("pass", 1)]


def test_a_listener_hears_again_after_an_error() -> None:
    heard: list[int] = []
    with progress.hearing(lambda done, total: heard.append(done)):
        with pytest.raises(RuntimeError), progress.counting(2, "step"):
            raise RuntimeError
        list(progress.in_batches(2, 1))
    assert heard == [1, 2]


# What methods and metrics share


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("slick", "did you mean 'slic'?"),
        ("Slic", "did you mean 'slic'?"),
        ("", "choose one of slic, felzenszwalb"),
        (None, "choose one of slic, felzenszwalb"),
        (np.zeros(2), "choose one of slic, felzenszwalb"),
    ],
)
def test_a_choice_that_there_is_not(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^method: there is no ") as error:
        contract.check_choice("method", value, ("slic", "felzenszwalb"))
    assert str(error.value) == f"method: there is no {value!r}; {said}"


def test_a_choice_that_there_is() -> None:
    contract.check_choice("method", "slic", iter(["felzenszwalb", "slic"]))


def test_of_many_choices_an_error_names_some() -> None:
    with pytest.raises(ValueError, match="choose one of 0, 1, .*, 11, …$"):
        contract.check_choice("name", "x", map(str, range(100)))


def test_the_classes_of_all_images_are_checked() -> None:
    logits = torch.tensor([[1.0, 2.0], [5.0, 4.0]])
    classes, second = torch.tensor([1, 0, 1]), torch.tensor([1, 2])
    assert contract.score_target(logits, classes, second).tolist() == [1, 4]
    assert contract.resolve_target(logits, None, second).tolist() == [1, 0]
    assert contract.resolve_target(logits, 1, second).tolist() == [1, 1]
    with pytest.raises(ValueError, match="^target: there is no class 2; .* classes 0 to 1$"):
        contract.score_target(logits, torch.tensor([2, 0, 1]), second)


def test_a_function_joins_the_model() -> None:
    model = make("Residual")
    assert contract.with_score(model, 3) == (model, 3)
    joined, target = contract.with_score(model, lambda logits: logits[:, 3])
    assert target == 0
    assert list(joined.parameters()) == list(model.parameters())
    assert torch.equal(joined.eval()(IMAGES), model.eval()(IMAGES)[:, 3:4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sum_channels(dtype: torch.dtype) -> None:
    values = batch().to(dtype).requires_grad_()
    for given, wanted in ((values, values.double().sum(1)), (values[:, 0], values[:, 0].double())):
        found = contract.sum_channels(given, IMAGES)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert torch.equal(found, wanted)
        assert torch.equal(contract.sum_channels(given), wanted)


NO_MAPS = "(N, C, H, W) or (N, H, W), not empty, but its shape is"
OTHERS = "(3, 3, 8, 8), as the images, or without the channels, but its shape is"


@pytest.mark.parametrize(
    ("attribution", "images", "said"),
    [
        (IMAGES.numpy(), None, "a floating point tensor, not ndarray"),
        (IMAGES.long(), None, "a floating point tensor, not torch.int64"),
        (IMAGES[0, 0], None, f"{NO_MAPS} (8, 8)"),
        (IMAGES[:0], None, f"{NO_MAPS} (0, 3, 8, 8)"),
        (IMAGES[:2], IMAGES, f"{OTHERS} (2, 3, 8, 8)"),
        (IMAGES[:, :1], IMAGES, f"{OTHERS} (3, 1, 8, 8)"),
        (IMAGES / 0, IMAGES, "finite, but holds NaN or infinity"),
    ],
)
def test_what_is_no_attribution(attribution: Any, images: Any, said: str) -> None:
    for check in (contract.check_attribution, contract.sum_channels):
        with pytest.raises((ValueError, TypeError)) as error:
            check(attribution, images, "map")
        assert str(error.value) == f"map must be {said}"


def test_logits_in_batches() -> None:
    model, images = make("InPlaceFirst").eval(), batch()
    before = images.clone()
    counted = Counted(model)
    with torch.no_grad():
        found = contract.batched_logits(counted, images, 2)
        assert torch.equal(images, before)  # though the model works in place
        torch.testing.assert_close(found, model(images.clone()))
    assert (counted.largest, counted.passes["F"]) == (2, 3)
    with pytest.raises(ValueError, match=r"^model must return logits \(N, K\)"):
        contract.batched_logits(lambda x: x, images, 2)
