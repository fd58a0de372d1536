"""Homework 02: right answers of every kind pass, and wrong ones get the hint they need."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils import layers, models
from course_utils.homework import Wrong, cases, check, guard, hw02
from course_utils.methods import cam, gradients
from tests import keys

pytestmark = pytest.mark.slow

Answer = Callable[..., Any]


def logits_at(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The logits, and the output of a layer that they were computed from."""
    with layers.capture(model, layer) as kept:
        logits = model(images.detach().clone().requires_grad_())
    return logits, kept[layer]


# -- maps_and_slopes -------------------------------------------------------------------------------


def hooked(model: nn.Module, images: Tensor, layer: str, hook: Answer) -> Tensor:
    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        return model(images.detach().clone().requires_grad_())
    finally:
        handle.remove()


def by_gather(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    kept = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept["A"] = output
        return output.clone()

    logits = hooked(model, images, layer, keep)
    chosen = logits[torch.arange(len(images)), target]
    return [kept["A"].detach(), torch.autograd.grad(chosen.sum(), kept["A"])[0]]


def by_tensor_hook(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept["A"] = output.detach().clone()
        output.register_hook(lambda gradient: kept.update(slopes=gradient))

    x = images.detach().clone().requires_grad_()
    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = model(x)
    finally:
        handle.remove()
    logits.gather(1, target[:, None]).sum().backward(inputs=[x])
    return kept["A"], kept["slopes"]


def by_adding_nothing(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    kept = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept["A"] = output.detach().clone()
        kept["nothing"] = torch.zeros_like(output, requires_grad=True)
        return output + kept["nothing"]

    one_hot = F.one_hot(target, hooked(model, images, layer, keep).shape[1])
    logits = hooked(model, images, layer, keep)
    return kept["A"].detach(), torch.autograd.grad(
        logits, kept["nothing"], grad_outputs=one_hot.float()
    )[0]


def by_replacing_forward(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    module, kept = model.get_submodule(layer), {}
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        kept["A"] = original(x)
        return kept["A"] * 1

    module.forward = forward
    try:
        logits = model(images.detach().clone().requires_grad_())
    finally:
        del module.forward
    return kept["A"].detach(), torch.autograd.grad(
        logits.gather(1, target[:, None]).sum(), kept["A"]
    )[0]


def one_by_one(answer: Answer) -> Answer:
    """The answer, asked about each image on its own."""

    def each(model: nn.Module, images: Tensor, target: Tensor, **options: Any) -> Any:
        got = [
            answer(model, image[None], c[None], **options)
            for image, c in zip(images, target, strict=True)
        ]
        if isinstance(got[0], Tensor):
            return torch.cat(got)
        return tuple(torch.cat(parts) for parts in zip(*got, strict=True))

    return each


def in_eval_mode(answer: Answer) -> Answer:
    """The answer; it says model.eval() first, which changes nothing."""

    def careful(model: nn.Module, **case: Any) -> Any:
        return answer(model=model.eval(), **case)

    return careful


# -- grad_cam --------------------------------------------------------------------------------------


def two(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    logits, maps = logits_at(model, images, layer)
    chosen = logits.gather(1, target[:, None]).sum()
    return maps.detach(), torch.autograd.grad(chosen, maps)[0]


def by_einsum(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = two(model, images, target, layer)
    weights = torch.einsum("nkij->nk", slopes) / (maps.shape[2] * maps.shape[3])
    return torch.einsum("nk,nkij->nij", weights, maps).clamp(min=0)


def by_loop(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = two(model, images, target, layer)
    result = torch.zeros(len(images), *maps.shape[2:])
    for n in range(len(images)):
        for k in range(maps.shape[1]):
            result[n] += float(slopes[n, k].mean()) * maps[n, k]
    result[result < 0] = 0
    return result


def by_matrices(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = (tensor.double().flatten(2) for tensor in two(model, images, target, layer))
    result = slopes.mean(2)[:, None] @ maps
    _, like = logits_at(model, images, layer)
    return F.relu(result.view(len(images), *like.shape[2:]))


# -- share_inside ----------------------------------------------------------------------------------


def share_by_loop(maps: Tensor, masks: Tensor) -> Tensor:
    shares = []
    for heat, mask in zip(maps, masks, strict=True):
        large = nn.Upsample(size=mask.shape, mode="bilinear")(heat[None, None])[0, 0]
        shares.append(large[mask].sum() / large.sum())
    return torch.stack(shares)


def share_by_resize(maps: Tensor, masks: Tensor) -> Tensor:
    large = torchvision.transforms.functional.resize(maps, list(masks.shape[1:]), antialias=True)
    large = large.double() / large.double().sum((1, 2), keepdim=True)
    return torch.where(masks, large, 0).flatten(1).sum(1)


def share_by_means(maps: Tensor, masks: Tensor) -> Tensor:
    size = masks.shape[-2:]
    large = F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear").squeeze(1)
    return torch.einsum("nij,nij->n", large, masks.float()) / torch.einsum("nij->n", large)


# -- integrated_gradients --------------------------------------------------------------------------


def ig_in_one_batch(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    alphas = torch.linspace(0.5 / steps, 1 - 0.5 / steps, steps).view(-1, 1, 1, 1, 1)
    path = (baseline + alphas * (images - baseline)).flatten(0, 1).detach().requires_grad_()
    one_hot = F.one_hot(target, model(images).shape[1]).repeat(steps, 1)
    (slopes,) = torch.autograd.grad((model(path) * one_hot).sum(), path)
    return (images - baseline) * slopes.view(steps, *images.shape).mean(0)


def ig_from_the_end(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    start = baseline.expand_as(images).double()
    total = torch.zeros_like(start)
    for k in reversed(range(steps)):
        alpha = (2 * k + 1) / (2 * steps)
        x = ((1 - alpha) * start + alpha * images.double()).to(images.dtype).requires_grad_()
        model(x)[torch.arange(len(x)), target].sum().backward(inputs=[x])
        assert x.grad is not None
        total += (images - start) / steps * x.grad
    return total


def ig_by_vjp(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    slopes = []
    for alpha in (torch.arange(1, steps + 1) - 0.5) / steps:
        x = torch.lerp(baseline.expand_as(images), images, float(alpha))
        logits, *_, pull = torch.func.vjp(model, x)
        slopes.append(pull(F.one_hot(target, logits.shape[1]).to(logits))[0])
    return torch.stack(slopes).mean(0).detach() * (images - baseline)


def ig_by_points(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    """A path of steps + 1 ends, whose middles are taken; a tensor on the path filled by hand."""
    ends = torch.linspace(0, 1, steps + 1)
    result = torch.zeros(steps, *images.shape)
    for k, alpha in enumerate((ends[1:] + ends[:-1]) / 2):
        x = torch.zeros(images.shape)
        x += images * alpha
        x += baseline * (1 - alpha)
        x.requires_grad_()
        score = sum(logits[c] for logits, c in zip(model(x), target, strict=True))
        assert isinstance(score, Tensor)
        result[k] = torch.autograd.grad(score, x)[0] * (images - baseline)
    return result.mean(0)


# -- completeness_gap ------------------------------------------------------------------------------


def gap_in_one_batch(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    both = model(torch.cat([images, baseline.expand_as(images)])).view(2, len(images), -1)
    gain = (both[0] - both[1])[torch.arange(len(images)), target]
    return attribution.flatten(1).sum(1) - gain.detach()


def gap_by_loop(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    gaps, starts = [], baseline.expand_as(images)
    for x, c, start, given in zip(images, target, starts, attribution, strict=True):
        gain = model(x[None])[0, c].item() - model(start[None])[0, c].item()
        gaps.append(float(given.sum()) - gain)
    return torch.tensor(gaps)


RIGHT: dict[str, list[Answer]] = {
    "maps_and_slopes": [
        by_gather,
        by_tensor_hook,
        by_adding_nothing,
        by_replacing_forward,
        one_by_one(by_gather),
        in_eval_mode(by_gather),
    ],
    "grad_cam": [by_einsum, by_loop, by_matrices, one_by_one(by_einsum)],
    "share_inside": [share_by_loop, share_by_resize, share_by_means],
    "integrated_gradients": [
        ig_in_one_batch,
        ig_from_the_end,
        ig_by_vjp,
        ig_by_points,
        in_eval_mode(ig_by_points),
    ],
    "completeness_gap": [gap_in_one_batch, gap_by_loop],
}
EACH_RIGHT = [
    pytest.param(name, answer, id=f"{name}-{number}")
    for name, answers in RIGHT.items()
    for number, answer in enumerate(answers)
]


@pytest.mark.parametrize(("name", "answer"), EACH_RIGHT)
def test_right_answer_passes(name: str, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    check(f"hw02.{name}", answer)
    assert capsys.readouterr().out.endswith(f"hw02.{name}: all of it holds.\n")


def refused(name: str, answer: Answer) -> Wrong:
    return keys.refused(f"hw02.{name}", answer)


# -- what nobody gets away with --------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHT)
def test_constant_is_refused(name: str) -> None:
    def constant(*args: Any, **options: Any) -> Any:
        result = RIGHT[name][0](*args, **options)
        if isinstance(result, Tensor):
            return torch.zeros_like(result)
        return tuple(torch.zeros_like(part) for part in result)

    refused(name, constant)


@pytest.mark.parametrize("known", [0, 1], ids=["first image", "first network"])
@pytest.mark.parametrize("name", RIGHT)
def test_answer_for_one_case_only_is_refused(name: str, known: int) -> None:
    """Right on the first image, or on the first network; remembered or guessed on the others."""
    answer = RIGHT[name][0]
    seen: list[Any] = []

    def remembered(*args: Any, **options: Any) -> Any:
        result = answer(*args, **options)
        parts = (result,) if isinstance(result, Tensor) else tuple(result)
        key = tuple(parts[0].shape[1:]) or len(parts[0])
        seen.append(key)
        if known == 0:
            parts = tuple(part[:1].expand_as(part) for part in parts)
        elif key != seen[0]:
            parts = tuple(part * 0.9 for part in parts)
        return parts[0] if isinstance(result, Tensor) else parts

    refused(name, remembered)


def library_capture(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    return two(model, images, target, layer)


def library_grad_cam(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return cam.grad_cam(model, images, target, layer=layer, upsample=False)


def library_ig(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    return gradients.integrated_gradients(model, images, target, baseline=baseline, steps=steps)


def captum_ig(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    captum = pytest.importorskip("captum.attr")
    method = captum.IntegratedGradients(model)
    start = baseline.expand_as(images)
    return method.attribute(images, start, target, method="riemann_middle", n_steps=steps)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("maps_and_slopes", library_capture),
        ("grad_cam", library_grad_cam),
        ("integrated_gradients", library_ig),
        ("integrated_gradients", captum_ig),
        ("completeness_gap", lambda **case: hw02.completeness_gap(**case)),
    ],
)
def test_library_is_no_answer(name: str, answer: Answer) -> None:
    wrong = refused(name, answer)
    assert "the answer calls" in wrong.what
    assert "write this function yourself" in wrong.hint


# -- wrong answers that people write ---------------------------------------------------------------


def overwritten(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    """The usual forward hook: what it keeps is overwritten where an in-place ReLU follows."""
    kept: list[Tensor] = []
    logits = hooked(model, images, layer, lambda module, inputs, output: kept.append(output))
    scores = logits[range(len(target)), target]
    return kept[0].detach(), torch.autograd.grad(scores.sum(), kept[0])[0]


def without_finally(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    kept = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept["A"] = output
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(images.clone().requires_grad_())
    handle.remove()
    return kept["A"].detach(), torch.autograd.grad(
        logits.gather(1, target[:, None]).sum(), kept["A"]
    )[0]


def on_the_images(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    result = by_gather(model, images, target, layer)
    images.requires_grad_()
    model(images).sum().backward(inputs=[images])
    return result


def in_training(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    result = by_gather(model, images, target, layer)
    model.train()
    return result


def of_probability(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    return by_gather(nn.Sequential(model, nn.Softmax(1)), images, target, f"0.{layer}")


def of_the_answer(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    return by_gather(model, images, model(images).argmax(1), layer)


def of_a_loss(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    logits, maps = logits_copied(model, images, layer)
    return maps.detach(), torch.autograd.grad(nn.CrossEntropyLoss()(logits, target), maps)[0]


def of_a_mean(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    logits, maps = logits_copied(model, images, layer)
    return maps.detach(), torch.autograd.grad(logits.gather(1, target[:, None]).mean(), maps)[0]


def of_all_targets(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    logits, maps = logits_copied(model, images, layer)
    return maps.detach(), torch.autograd.grad(logits[:, target].sum(), maps)[0]


def logits_copied(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    kept = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept["A"] = output
        return output.clone()

    return hooked(model, images, layer, keep), kept["A"]


def hi_res(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = two(model, images, target, layer)
    return F.relu((maps * slopes).sum(1))


def signed(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = two(model, images, target, layer)
    return torch.einsum("nk,nkij->nij", slopes.mean((2, 3)), maps)


def mixed(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """As the early tutorials have it: one vector of weights, pooled over the batch, too."""
    maps, slopes = two(model, images, target, layer)
    pooled = torch.mean(slopes, dim=[0, 2, 3])
    for k in range(maps.shape[1]):
        maps[:, k] *= pooled[k]
    return F.relu(maps.sum(1))


def averaged(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    maps, slopes = two(model, images, target, layer)
    return F.relu(torch.mean(maps * slopes.mean((2, 3), keepdim=True), dim=1))


def enlarged_then_cut(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    small = signed(model, images, target, layer)
    large = F.interpolate(small[:, None], images.shape[2:], mode="bilinear")
    return F.relu(large[:, 0])


def squares(maps: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None], masks.shape[1:])[:, 0]
    return (large * masks).sum((1, 2)) / large.sum((1, 2))


def mean_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")[:, 0]
    return torch.stack([heat[mask].mean() for heat, mask in zip(large, masks, strict=True)])


def all_together(maps: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")[:, 0]
    return large[masks].sum() / large.sum()


def ig_at(alphas: Callable[[int], Tensor], divide: Callable[[int], float] = float) -> Answer:
    def ig(
        model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
    ) -> Tensor:
        total = torch.zeros_like(images)
        for alpha in alphas(steps):
            x = (baseline + alpha * (images - baseline)).requires_grad_()
            total += torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]
        return (images - baseline) * total / divide(steps)

    return ig


def from_grey(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    return ig_in_one_batch(model, images, target, torch.zeros_like(images), steps)


def with_signs_lost(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    return ig_in_one_batch(model, images, target, baseline, steps).abs()


def without_way(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    way = images - baseline
    return torch.nan_to_num(ig_in_one_batch(model, images, target, baseline, steps) / way, nan=0.0)


def leaving_gradients(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    total = torch.zeros_like(images)
    for k in range(steps):
        x = (baseline + (k + 0.5) / steps * (images - baseline)).requires_grad_()
        model(x).gather(1, target[:, None]).sum().backward()
        assert x.grad is not None
        total += x.grad
    return (images - baseline) * total / steps


def turned(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    return -ig_from_the_end(model, images, target, baseline, steps)


def gap_of_image(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    return attribution.sum((1, 2, 3)) - model(images).gather(1, target[:, None])[:, 0].detach()


def gap_of_magnitudes(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    return gap_in_one_batch(model, images, attribution.abs(), target, baseline)


def gap_unsigned(**case: Any) -> Tensor:
    return gap_in_one_batch(**case).abs()


def gap_upside_down(**case: Any) -> Tensor:
    return -gap_by_loop(**case)


def gap_relative(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    """As a share of what an empty map misses."""
    gap = gap_in_one_batch(model, images, attribution, target, baseline)
    return gap / gap_in_one_batch(model, images, 0 * attribution, target, baseline).abs()


def gap_of_probability(model: nn.Module, **case: Any) -> Tensor:
    return gap_in_one_batch(nn.Sequential(model, nn.Softmax(1)), **case)


def gap_of_the_first(target: Tensor, **case: Any) -> Tensor:
    return gap_in_one_batch(target=target[:1].expand_as(target), **case)


def gap_in_training(model: nn.Module, **case: Any) -> Tensor:
    result = gap_in_one_batch(model, **case)
    model.train()
    return result


def gap_of_all(**case: Any) -> Tensor:
    gaps = gap_in_one_batch(**case)
    return gaps.sum().expand_as(gaps)


def gap_backwards(
    model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor, baseline: Tensor
) -> Tensor:
    return gap_in_one_batch(model, baseline.expand_as(images), attribution, target, images)


def ig_left(change: Callable[..., Any]) -> Answer:
    """Right, but for what is left behind afterwards."""

    def ig(
        model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
    ) -> Tensor:
        result = ig_from_the_end(model, images, target, baseline, steps)
        change(model=model, images=images, baseline=baseline)
        return result

    return ig


def moved_statistics(model: nn.Module, images: Tensor, **_: Any) -> None:
    model.train()
    with torch.no_grad():
        model(images.clone())
    model.eval()


def gap_left(model: nn.Module, attribution: Tensor, **case: Any) -> Tensor:
    result = gap_in_one_batch(model=model, attribution=attribution, **case)
    attribution.abs_()
    return result


def zeroed(model: nn.Module, **_: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def images_marked(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    result = by_gather(model, images, target, layer)
    images.requires_grad_()
    return result


def on_the_graph(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
    logits, maps = logits_copied(model, images, layer)
    return maps, torch.autograd.grad(logits.gather(1, target[:, None]).sum(), maps)[0]


def ig_in_training(model: nn.Module, **case: Any) -> Tensor:
    return ig_from_the_end(copy.deepcopy(model).train(), **case)


def ig_of_the_first(target: Tensor, **case: Any) -> Tensor:
    return ig_from_the_end(target=target[:1].expand_as(target), **case)


def ig_of_a_loss(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    total = torch.zeros_like(images)
    for k in range(steps):
        x = (baseline + (k + 0.5) / steps * (images - baseline)).requires_grad_()
        total += torch.autograd.grad(nn.CrossEntropyLoss()(model(x), target), x)[0]
    return (images - baseline) * total / steps


def by_trapezoids(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int
) -> Tensor:
    alphas = torch.linspace(0, 1, steps + 1)
    slopes = []
    for alpha in alphas:
        x = (baseline + alpha * (images - baseline)).requires_grad_()
        slopes.append(torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0])
    return (images - baseline) * torch.trapezoid(torch.stack(slopes), alphas, dim=0)


def squeezed(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    return by_einsum(model, images, target, layer).squeeze()


def channel_left(maps: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")
    return (large * masks).sum((2, 3)) / large.sum((2, 3))


def share_with_epsilon(maps: Tensor, masks: Tensor) -> Tensor:
    large = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")[:, 0]
    return (large * masks).sum((1, 2)) / (large.sum((1, 2)) + 1e-4)


def one_step_at_its_end(steps: int, **case: Any) -> Tensor:
    ends = ig_at(lambda m: torch.ones(1))
    return (ig_by_points if steps > 1 else ends)(steps=steps, **case)


def gap_from_the_first(baseline: Tensor, **case: Any) -> Tensor:
    return gap_in_one_batch(baseline=baseline[:1], **case)


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("integrated_gradients", ig_left(moved_statistics), guard.STATISTICS_LEFT),
        ("integrated_gradients", ig_left(zeroed), guard.WEIGHTS_LEFT),
        ("integrated_gradients", ig_left(lambda baseline, **_: baseline.add_(1)), guard.IN_PLACE),
        ("integrated_gradients", ig_left(lambda **_: torch.manual_seed(0)), guard.RESEEDED),
        ("integrated_gradients", ig_left(lambda model, **_: model.zero_grad()),
         guard.GRADIENTS_LEFT),
        ("completeness_gap", gap_left, guard.IN_PLACE),
        ("maps_and_slopes", images_marked, guard.NEEDS_GRADIENT),
        ("maps_and_slopes", on_the_graph, guard.ON_THE_GRAPH),
        ("maps_and_slopes", without_finally, guard.AFTER_ERROR),
    ],
)  # fmt: skip
def test_what_is_left_gets_no_hint_about_the_equation(name: str, answer: Answer, hint: str) -> None:
    assert refused(name, answer).hint == hint


def test_an_epsilon_is_not_off_by_nothing() -> None:
    def answer(maps: Tensor, masks: Tensor) -> Tensor:
        large = F.interpolate(maps[:, None], masks.shape[1:], mode="bilinear")[:, 0]
        return (large * masks).sum((1, 2)) / (large.sum((1, 2)) + 1e-2)

    assert "off by up to 0.1%" in refused("share_inside", answer).what


@pytest.mark.parametrize(
    ("name", "answer", "hint"),
    [
        ("maps_and_slopes", overwritten, "overwritten"),
        ("maps_and_slopes", of_probability, "softmax"),
        ("maps_and_slopes", of_the_answer, "argmax"),
        ("maps_and_slopes", of_a_loss, "loss"),
        ("maps_and_slopes", of_a_mean, "divided by N"),
        ("maps_and_slopes", lambda **case: by_gather(**case)[::-1], "exchanged"),
        (
            "integrated_gradients",
            lambda steps, **case: ig_by_points(steps=50, **case),
            "other steps",
        ),
        (
            "integrated_gradients",
            lambda steps, **case: ig_by_points(steps=max(16, steps), **case),
            "other steps",
        ),
        (
            "integrated_gradients",
            lambda steps, **case: ig_by_points(steps=min(16, steps), **case),
            "other steps",
        ),
        ("share_inside", share_with_epsilon, "epsilon"),
        ("completeness_gap", lambda **case: gap_in_one_batch(**case).squeeze(), "squeezed"),
        ("completeness_gap", lambda **case: gap_in_one_batch(**case).round(decimals=2), "rounded"),
        ("maps_and_slopes", of_all_targets, "all pairs"),
        ("grad_cam", hi_res, "HiResCAM"),
        ("grad_cam", signed, "no ReLU"),
        ("grad_cam", mixed, "over the batch"),
        ("grad_cam", averaged, "mean of channels"),
        ("share_inside", squares, "nearest"),
        ("share_inside", mean_in_mask, "mean inside"),
        ("share_inside", all_together, "whole batch"),
        ("integrated_gradients", ig_at(lambda m: torch.linspace(0, 1, m)), "both ends"),
        ("integrated_gradients", ig_at(lambda m: torch.arange(1, m + 1) / m), "right ends"),
        ("integrated_gradients", ig_at(lambda m: torch.arange(m) / m), "left ends"),
        ("integrated_gradients", ig_at(lambda m: torch.ones(1), lambda m: 1), "end only"),
        (
            "integrated_gradients",
            ig_at(lambda m: (torch.arange(m) + 0.5) / m, lambda m: 1),
            "sum for mean",
        ),
        ("integrated_gradients", from_grey, "zero baseline"),
        ("integrated_gradients", with_signs_lost, "magnitudes"),
        ("integrated_gradients", turned, "wrong sign"),
        ("integrated_gradients", ig_in_training, "training"),
        ("integrated_gradients", ig_of_the_first, "first"),
        ("integrated_gradients", ig_of_a_loss, "loss"),
        ("integrated_gradients", by_trapezoids, "trapezoids"),
        (
            "integrated_gradients",
            ig_at(lambda m: (torch.arange(m + 1) + 0.5) / (m + 1), lambda m: m + 1),
            "one point too many",
        ),
        (
            "integrated_gradients",
            ig_at(lambda m: torch.linspace(0, 1, m + 1), lambda m: m + 1),
            "all ends",
        ),
        ("grad_cam", squeezed, "squeezed"),
        ("grad_cam", lambda **case: by_einsum(**case)[:, None], "channel left"),
        ("share_inside", channel_left, "channel left"),
        ("share_inside", lambda **case: share_by_loop(**case).squeeze(), "squeezed"),
        ("completeness_gap", gap_from_the_first, "first baseline"),
        ("completeness_gap", gap_of_image, "no baseline"),
        ("completeness_gap", gap_of_magnitudes, "magnitudes"),
        ("completeness_gap", gap_unsigned, "unsigned"),
        ("completeness_gap", gap_upside_down, "upside down"),
        ("completeness_gap", gap_relative, "relative"),
        ("completeness_gap", gap_of_probability, "softmax"),
        ("completeness_gap", gap_of_the_first, "first"),
        ("completeness_gap", gap_backwards, "wrong sign"),
    ],
)
def test_wrong_answer_gets_the_hint_it_needs(name: str, answer: Answer, hint: str) -> None:
    assert refused(name, answer).hint == keys.hint(f"hw02.{name}", hint)


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("maps_and_slopes", in_training, "the mode of model has changed"),
        ("maps_and_slopes", on_the_images, "requires_grad of the argument images"),
        ("maps_and_slopes", lambda **case: by_gather(**case)[0], "wanted are two tensors"),
        ("grad_cam", enlarged_then_cut, "(2, 64, 64), wanted is (2, 4, 4)"),
        ("grad_cam", lambda **case: by_einsum(**case).numpy(), "ndarray, wanted is a Tensor"),
        ("integrated_gradients", without_way, "off by"),
        ("integrated_gradients", one_step_at_its_end, "the attribution with steps = 1 is off"),
        ("completeness_gap", gap_of_all, "off by"),
        ("completeness_gap", lambda **case: gap_in_one_batch(**case).mean(), "wanted is (2,)"),
        ("completeness_gap", gap_in_training, "the mode of model has changed"),
        ("integrated_gradients", leaving_gradients, ".grad of the parameters of model"),
    ],
)
def test_wrong_answer_is_told_what_is_wrong(name: str, answer: Answer, said: str) -> None:
    assert said in refused(name, answer).what


def test_refused_answer_leaves_nothing_on_the_course_s_model() -> None:
    def leaves_hooks(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Any:
        result = by_gather(model, images, target, layer)
        model.get_submodule(layer).register_forward_hook(lambda *_: torch.zeros(()))
        model.train()
        return result

    refused("maps_and_slopes", leaves_hooks)
    kept = cases.shipped().model
    assert not kept.training
    assert not any(module._forward_hooks for module in kept.modules())
    fresh = models.load("scenes", device="cpu").model
    images = hw02._scenes()
    assert torch.equal(kept(images), fresh(images))
