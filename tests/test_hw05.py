"""Homework 05: other right answers are accepted, fresh wrong ones get the hint that helps."""

import copy
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from course_utils.homework import cases, check, hw02, hw05
from course_utils.layers import preserve
from course_utils.methods import cam, gradients, propagation, shapley
from course_utils.networks import Classifier
from course_utils.units import maximize
from tests import keys

pytestmark = pytest.mark.slow


def hint_of(name: str, answer: Callable[..., Any]) -> str:
    wrong = keys.refused(f"hw05.{name}", answer)
    return f"{wrong.what}. {wrong.hint}"


def off(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


# Other manners -------------------------------------------------------------------------------


def ig_one_by_one(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Each image alone; the gap from Captum's own function."""
    from captum.attr import IntegratedGradients

    explainer, maps, gaps = IntegratedGradients(model), [], []
    for x, c in zip(images, target.tolist(), strict=True):
        start = baseline[0].expand_as(x)[None]
        map_ = explainer.attribute(
            x[None], start, c, n_steps=steps, method="riemann_middle", internal_batch_size=1
        )
        gaps.append(explainer.compute_convergence_delta(map_, start, x[None], target=c))
        maps.append(map_)
    return torch.cat(maps), torch.cat(gaps)


def ig_slopes_then_difference(
    model: nn.Module, images: Tensor, target: Tensor, baseline: Tensor, steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Captum's mean slopes, multiplied afterwards; the target as a list."""
    from captum import attr

    start = torch.zeros_like(images) + baseline
    slopes = attr.IntegratedGradients(lambda x: model(x), multiply_by_inputs=False).attribute(
        images,
        start,
        target=target.tolist(),
        n_steps=steps,
        method="riemann_middle",
        internal_batch_size=batch_size,
    )
    maps = slopes * (images - start)
    rows = torch.arange(len(images))
    scores = model(images)[rows, target] - model(start)[rows, target]
    return maps, maps.sum((1, 2, 3)) - scores


def grad_cam_interpolate(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    from captum.attr import LayerGradCam

    module = dict(model.named_modules())[layer]
    small = LayerGradCam(model, module).attribute(images.clone().requires_grad_(), target)
    return F.interpolate(small.clamp(min=0), images.shape[2:], mode="bilinear").squeeze(1)


def grad_cam_one_by_one(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """Image by image, upsampled by nn.Upsample."""
    from captum.attr import LayerGradCam

    explainer = LayerGradCam(model, model.get_submodule(layer))
    up = nn.Upsample(tuple(images.shape[2:]), mode="bilinear")
    maps = [
        up(explainer.attribute(images[i : i + 1], int(target[i]), relu_attributions=True))
        for i in range(len(images))
    ]
    return torch.cat(maps)[:, 0]


def shap_one_by_one(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    segments: Tensor,
    baseline: Tensor,
    samples: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Each image alone, a baseline of the image's shape, the generator's state by hand."""
    from captum.attr import KernelShap

    state = torch.get_rng_state()
    torch.manual_seed(seed + 100)
    values = [
        KernelShap(model).attribute(
            images[i : i + 1],
            baselines=baseline.expand_as(images[:1]),
            target=int(target[i]),
            feature_mask=segments[i].expand_as(images[:1]),
            n_samples=samples,
            perturbations_per_eval=batch_size // 2,
        )
        for i in range(len(images))
    ]
    torch.set_rng_state(state)
    return torch.cat(values).mean(1)


def shap_per_segment(**case: Any) -> Tensor:
    """Captum's values for each segment, put back onto the pixels."""
    from captum.attr import KernelShap

    masks = case["segments"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(case["seed"])
        rows = []
        for i, mask in enumerate(masks):
            values = KernelShap(case["model"]).attribute(
                case["images"][i : i + 1],
                case["baseline"],
                case["target"][i : i + 1],
                feature_mask=mask[None, None],
                n_samples=case["samples"],
                perturbations_per_eval=case["batch_size"],
                return_input_shape=False,
            )
            rows.append(values[0][mask])
    return torch.stack(rows)


def relus_by_interpreter(model: nn.Module) -> nn.Module:
    """All ReLUs by a list, in the order in which they run: a new forward, no edited graph."""

    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = torch.fx.symbolic_trace(copy.deepcopy(model))
            self.own = nn.ModuleList(nn.ReLU() for _ in range(64))

        def forward(self, x: Tensor) -> Tensor:
            own = iter(self.own)

            class Run(torch.fx.Interpreter):
                def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
                    if isinstance(self.fetch_attr(target), nn.ReLU):
                        return next(own)(*args)
                    return super().call_module(target, args, kwargs)

                def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                    if target in (F.relu, torch.relu):
                        return next(own)(args[0])
                    return super().call_function(target, args, kwargs)

            return Run(self.graph).run(x)

    return Separate().eval()


def relus_by_tracing_first(model: nn.Module) -> nn.Module:
    """The graph is copied after tracing; new nodes are put in, old ones erased."""
    traced = copy.deepcopy(torch.fx.symbolic_trace(model))
    names = {name for name, m in traced.named_modules() if isinstance(m, nn.ReLU)}
    for node in list(traced.graph.nodes):
        if node.target in names or node.target in (F.relu, torch.relu):
            name = f"separate_{len(traced._modules)}"
            traced.add_module(name, nn.ReLU(inplace=False))
            with traced.graph.inserting_after(node):
                new = traced.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def lucent_cleaned(
    model: nn.Module,
    layer: str,
    unit: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int,
    steps: int,
    seed: int,
) -> Tensor:
    """On the model itself, which `preserve` gives back; an objective in words, other moves."""
    from lucent.optvis import param, transform
    from lucent.optvis.render import render_vis

    low, high = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    with preserve(model):
        torch.manual_seed(seed)
        pictures = render_vis(
            model,
            layer.replace(".", "_") + f":{unit}",
            param_f=lambda: param.image(size, fft=True),
            transforms=[transform.pad(4), transform.jitter(4), lambda x: (x - low) / high],
            thresholds=(steps // 2, steps),
            preprocess=False,
            fixed_image_size=size,
            progress=False,
            show_image=False,
        )
    picture = torch.tensor(np.moveaxis(pictures[-1], -1, 1))
    return (picture - low) / high


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("captum_ig", ig_one_by_one),
    ("captum_ig", ig_slopes_then_difference),
    ("captum_grad_cam", grad_cam_interpolate),
    ("captum_grad_cam", grad_cam_one_by_one),
    ("captum_shap", shap_one_by_one),
    ("captum_shap", shap_per_segment),
    ("own_relus", relus_by_interpreter),
    ("own_relus", relus_by_tracing_first),
    ("lucent_picture", lucent_cleaned),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=lambda case: getattr(case, "__name__", ""))
def test_other_manner_passes(name: str, answer: Callable[..., Any]) -> None:
    check(f"hw05.{name}", answer)


# The reference is the course's ---------------------------------------------------------------


def test_the_reference_equals_the_course() -> None:
    for case in hw05.small_cases():
        model, images, target = case["model"], case["images"], case["target"]
        white = torch.ones(1, 3, 1, 1).double()
        maps, gaps = hw05.captum_ig(model, images, target, white, 8, 6)
        ours = gradients.integrated_gradients(model, images, target, baseline=1.0, steps=8)
        assert off(maps, ours) < 1e-6
        assert off(gaps, hw02.completeness_gap(model, images, maps, target, white)) < 1e-6
        layer = "stem" if hasattr(model, "stem") else "conv1"
        theirs = hw05.captum_grad_cam(model, images, target, layer)
        assert off(theirs, cam.grad_cam(model, images, target, layer=layer)) < 1e-6


def test_the_copy_makes_captums_deeplift_the_courses() -> None:
    from captum.attr import DeepLift

    for case in hw05.small_cases():
        images, target = case["images"], case["target"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explainer = DeepLift(hw05.own_relus(case["model"]))
            theirs = explainer.attribute(images.clone(), 0 * images + 1, target=target).detach()
        ours = propagation.deeplift(case["model"], images, target, baseline=1.0)
        assert off(theirs, ours) < 1e-6


def test_a_refusal_of_captums_deeplift_leaves_a_gradient_on_the_images() -> None:
    """When this fails, Captum was mended, and the homework's warning can go."""
    from captum.attr import DeepLift

    images = hw05.noise(2, 8, 12)
    model = copy.deepcopy(cases.double(cases.Shared))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="used more than once"):
            DeepLift(model).attribute(images, 0 * images, target=1)
    assert images.requires_grad


# Wrong answers -------------------------------------------------------------------------------


def test_a_constant_or_the_courses_own_is_no_answer() -> None:
    def courses_ig(**case: Any) -> tuple[Tensor, Tensor]:
        maps = gradients.integrated_gradients(
            case["model"],
            case["images"],
            case["target"],
            baseline=case["baseline"],
            steps=case["steps"],
        )
        return maps, maps.sum((1, 2, 3))

    def courses_grad_cam(**case: Any) -> Tensor:
        return cam.grad_cam(case["model"], case["images"], case["target"], layer=case["layer"])

    def courses_shap(**case: Any) -> Tensor:
        return shapley.shap_image(case["model"], case["images"], segments=case["segments"])

    def courses_picture(**case: Any) -> Tensor:
        names = ("red", "green", "blue")
        classifier = Classifier("", case["model"], names, case["size"])
        return maximize.lucent(classifier, case["layer"], case["unit"], steps=case["steps"])

    for name, answer, module in (
        ("captum_ig", courses_ig, "methods.gradients"),
        ("captum_grad_cam", courses_grad_cam, "methods.cam"),
        ("captum_shap", courses_shap, "methods.shapley"),
        ("lucent_picture", courses_picture, "units.maximize"),
    ):
        assert f"the answer calls course_utils.{module}." in hint_of(name, answer)
    for name in ("captum_ig", "captum_grad_cam", "captum_shap", "lucent_picture"):
        assert "let " in hint_of(name, lambda **_: torch.zeros(3))


def test_an_answer_for_the_courses_network_alone() -> None:
    def pooled(**case: Any) -> Tensor:
        return grad_cam_interpolate(**{**case, "layer": "layer4"})

    with pytest.raises(KeyError, match="layer4"):
        check("hw05.captum_grad_cam", pooled)

    def blocks(model: nn.Module) -> nn.Module:
        """ReLUs of the blocks of a ResNet, and of nothing else."""

        def forward(self: Any, x: Tensor) -> Tensor:
            out = self.relu2(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            return self.relu(out + (x if self.downsample is None else self.downsample(x)))

        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
            if isinstance(module, BasicBlock):
                module.relu2 = nn.ReLU()
                module.forward = types.MethodType(forward, module)
        return model

    assert "runs 3 times" in hint_of("own_relus", blocks)


def test_fresh_wrong_answers_get_the_hint_that_helps() -> None:
    from captum import attr

    def one_gap(**case: Any) -> tuple[Tensor, Tensor]:
        maps, gaps = ig_slopes_then_difference(**case)
        return maps, gaps.mean()

    def maps_alone(**case: Any) -> Tensor:
        return ig_slopes_then_difference(**case)[0]

    def half_the_steps(**case: Any) -> tuple[Tensor, Tensor]:
        return ig_slopes_then_difference(**{**case, "steps": case["steps"] // 2})

    def occluded(**case: Any) -> Tensor:
        explainer = attr.FeatureAblation(case["model"])
        return explainer.attribute(case["images"], target=case["target"])[:, 0]

    def small_map(**case: Any) -> Tensor:
        return grad_cam_interpolate(**case)[:, None]

    def dropped(model: nn.Module) -> nn.Module:
        other = copy.deepcopy(model)
        for module in other.modules():
            if hasattr(module, "relu"):
                module.relu = nn.Identity()
        return other

    def retrained(model: nn.Module) -> nn.Module:
        other = relus_by_tracing_first(model)
        for parameter in other.parameters():
            parameter.data = parameter.data + 0.1
        return other

    for name, answer, said in (
        ("captum_ig", one_gap, "one number an image"),
        ("captum_ig", maps_alone, "Captum gives both"),
        ("captum_ig", half_the_steps, "each option"),
        ("captum_shap", occluded, "never calls Captum's KernelShap"),
        ("captum_grad_cam", small_map, "channel's axis"),
        ("own_relus", dropped, "another one must come in"),
        ("own_relus", retrained, "copied too"),
        ("own_relus", lambda model: model, "not a copy"),
        ("own_relus", lambda model: None, "end with return"),
    ):
        assert said in hint_of(name, answer)


def test_wrong_settings_of_lucent_get_the_hint_that_helps() -> None:
    def upright(**case: Any) -> Tensor:
        return lucent_cleaned(**case).permute(0, 2, 3, 1)

    def few_steps(**case: Any) -> Tensor:
        return lucent_cleaned(**{**case, "steps": 8})

    def same_seed(**case: Any) -> Tensor:
        return lucent_cleaned(**{**case, "seed": 0})

    for answer, said in (
        (upright, "render_vis gives a list"),
        (few_steps, "thresholds"),
        (same_seed, "use the argument `seed`"),
    ):
        assert said in hint_of("lucent_picture", answer)


def test_checks_leave_the_generators_as_they_were() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    check("hw05.lucent_picture", lucent_cleaned)
    check("hw05.captum_shap", shap_one_by_one)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]  # noqa: NPY002
