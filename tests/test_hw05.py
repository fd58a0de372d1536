"""Homework 05: other right answers are accepted, fresh wrong ones get the hint that helps."""

import copy
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

from course_utils.homework import cases, check, guard, hw02, hw05
from course_utils.methods import cam, gradients, propagation, shapley
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
    starts = baseline.expand_as(images)[:, None]
    for x, start, c in zip(images, starts, target.tolist(), strict=True):
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
    with torch.no_grad():
        scores = model(images)[rows, target] - model(start)[rows, target]
    return maps, maps.sum((1, 2, 3)) - scores


def ig_in_double_precision(**case: Any) -> tuple[Tensor, Tensor]:
    """A double copy of the model; maps and gaps come back in single precision."""
    case["model"] = copy.deepcopy(case["model"]).double()
    case["images"], case["baseline"] = case["images"].double(), case["baseline"].double()
    maps, gaps = ig_slopes_then_difference(**case)
    return maps.float(), gaps.float()


def grad_cam_interpolate(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    from captum.attr import LayerGradCam

    module = dict(model.named_modules())[layer]
    small = LayerGradCam(model, module).attribute(images.clone().requires_grad_(), target)
    small = small.detach().clamp(min=0)
    return F.interpolate(small, images.shape[2:], mode="bilinear").squeeze(1)


def grad_cam_one_by_one(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
    """Image by image, upsampled by nn.Upsample."""
    from captum.attr import LayerGradCam

    explainer = LayerGradCam(model, model.get_submodule(layer))
    up = nn.Upsample(tuple(images.shape[2:]), mode="bilinear")
    maps = [
        up(explainer.attribute(images[i : i + 1], int(target[i]), relu_attributions=True))
        for i in range(len(images))
    ]
    return torch.cat(maps)[:, 0].detach()


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


def shap_one_picture_a_call(**case: Any) -> Tensor:
    """Captum's default: the model gets one hidden picture at a time."""
    from captum.attr import KernelShap

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case["seed"])
        values = KernelShap(case["model"]).attribute(
            case["images"],
            baselines=case["baseline"],
            target=case["target"],
            feature_mask=case["segments"][:, None],
            n_samples=case["samples"],
        )
    return values[:, 0]


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

    separate = Separate()
    separate.training = model.training
    return separate


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


RIGHT: list[tuple[str, Callable[..., Any]]] = [
    ("captum_ig", ig_one_by_one),
    ("captum_ig", ig_slopes_then_difference),
    ("captum_ig", ig_in_double_precision),
    ("captum_grad_cam", grad_cam_interpolate),
    ("captum_grad_cam", grad_cam_one_by_one),
    ("captum_shap", shap_one_by_one),
    ("captum_shap", shap_one_picture_a_call),
    ("captum_shap", shap_per_segment),
    ("own_relus", relus_by_interpreter),
    ("own_relus", relus_by_tracing_first),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[answer.__name__ for _, answer in RIGHT])
def test_other_manner_passes(name: str, answer: Callable[..., Any], seed: int) -> None:
    check(f"hw05.{name}", answer, seed=seed)


# The reference is the course's ---------------------------------------------------------------


def test_the_reference_equals_the_course() -> None:
    for case in hw05.small_cases():
        model, images, target = case["model"], case["images"], case["target"]
        white = torch.ones(1, 3, 1, 1).double()
        maps, gaps = hw05.captum_ig(model, images, target, white, 8, 6)
        ours = gradients.integrated_gradients(model, images, target, baseline=1.0, steps=8)
        assert off(maps, ours) < 1e-6
        assert off(gaps, hw02.completeness_gap(model, images, maps, target, white)) < 1e-6
        layer = "norm" if hasattr(model, "norm") else "act"
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
    model = copy.deepcopy(hw05.network(cases.Shared))
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

    for name, answer, module in (
        ("captum_ig", courses_ig, "methods.gradients"),
        ("captum_grad_cam", courses_grad_cam, "methods.cam"),
        ("captum_shap", courses_shap, "methods.shapley"),
    ):
        said = hint_of(name, answer)
        assert f"the answer calls course_utils.{module}." in said
        assert "about the library" in said
    for name in ("captum_ig", "captum_grad_cam", "captum_shap"):
        assert "let " in hint_of(name, lambda **_: torch.zeros(3))


def test_one_image_is_a_batch_too() -> None:
    def one_gap(**case: Any) -> tuple[Tensor, Tensor]:
        maps, gaps = ig_one_by_one(**case)
        return maps, gaps.squeeze()

    def one_map(**case: Any) -> Tensor:
        return shap_one_picture_a_call(**case).squeeze()

    assert "(1,)" in hint_of("captum_ig", one_gap)
    assert "(1, H, W)" in hint_of("captum_shap", one_map)


def test_all_steps_of_an_image_at_once() -> None:
    """Image by image, and yet more pictures at once than batch_size."""
    from captum.attr import IntegratedGradients

    def whole_paths(**case: Any) -> tuple[Tensor, Tensor]:
        starts = case["baseline"].expand_as(case["images"])
        pairs = [
            IntegratedGradients(case["model"]).attribute(
                case["images"][i : i + 1],
                starts[i : i + 1],
                target=int(case["target"][i]),
                n_steps=case["steps"],
                method="riemann_middle",
                return_convergence_delta=True,
            )
            for i in range(len(starts))
        ]
        maps, gaps = zip(*pairs, strict=True)
        return torch.cat(maps), torch.cat(gaps)

    assert "internal_batch_size" in hint_of("captum_ig", whole_paths)


def test_guided_grad_cam_is_not_grad_cam() -> None:
    """It calls what lies inside LayerGradCam.attribute, past the check's watch."""
    from captum.attr import GuidedGradCam

    def guided(model: nn.Module, images: Tensor, target: Tensor, layer: str) -> Tensor:
        network = copy.deepcopy(model)
        explainer = GuidedGradCam(network, network.get_submodule(layer))
        return explainer.attribute(images.clone(), target).sum(1).relu().detach()

    assert "never calls Captum's LayerGradCam" in hint_of("captum_grad_cam", guided)


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

    def doubled_ig(**case: Any) -> tuple[Tensor, Tensor]:
        maps, gaps = ig_slopes_then_difference(**case)
        return 2 * maps, gaps

    def doubled_grad_cam(**case: Any) -> Tensor:
        return 2 * grad_cam_interpolate(**case)

    def doubled_shap(**case: Any) -> Tensor:
        return 2 * shap_per_segment(**case)

    def one_mask(**case: Any) -> Tensor:
        mask = case["segments"][:1].expand_as(case["segments"])
        return shap_one_picture_a_call(**{**case, "segments": mask})

    def twice_the_samples(**case: Any) -> Tensor:
        return shap_one_picture_a_call(**{**case, "samples": 2 * case["samples"]})

    def first_baseline(**case: Any) -> tuple[Tensor, Tensor]:
        return ig_slopes_then_difference(**{**case, "baseline": case["baseline"][:1]})

    def requiring_grad(**case: Any) -> Tensor:
        case["images"].requires_grad_()
        return grad_cam_interpolate(**case)

    def on_the_graph(**case: Any) -> Tensor:
        images = case["images"].clone().requires_grad_()
        explainer = attr.LayerGradCam(case["model"], case["model"].get_submodule(case["layer"]))
        small = explainer.attribute(images, case["target"], relu_attributions=True)
        return F.interpolate(small, images.shape[2:], mode="bilinear")[:, 0]

    def traced(model: nn.Module, recompiled: bool = True) -> nn.Module:
        network = torch.fx.symbolic_trace(model)
        for i, node in enumerate(network.graph.nodes):
            own = node.op == "call_module" and type(network.get_submodule(node.target)) is nn.ReLU
            if own or node.target in (torch.relu, F.relu):
                network.add_submodule(f"r{i}", nn.ReLU())
                node.op, node.target, node.kwargs = "call_module", f"r{i}", {}
        if recompiled:
            network.recompile()
        return network

    def not_recompiled(model: nn.Module) -> nn.Module:
        return traced(copy.deepcopy(model), recompiled=False)

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
        ("captum_ig", one_gap, "one for each image"),
        ("captum_ig", maps_alone, "Captum gives both"),
        ("captum_ig", doubled_ig, "compare each option"),
        ("captum_grad_cam", doubled_grad_cam, "needs the module itself"),
        ("captum_shap", doubled_shap, "compare each option"),
        ("captum_ig", half_the_steps, "each option"),
        ("captum_ig", first_baseline, "baseline of its own"),
        ("captum_shap", occluded, "never calls Captum's KernelShap"),
        ("captum_shap", one_mask, "cut in its own way"),
        ("captum_shap", twice_the_samples, "how many coalitions an image gets in all"),
        ("captum_grad_cam", small_map, "take that axis away"),
        ("captum_grad_cam", requiring_grad, guard.NEEDS_GRADIENT),
        ("captum_grad_cam", on_the_graph, guard.ON_THE_GRAPH),
        ("own_relus", traced, guard.SHARED),
        ("own_relus", not_recompiled, "call recompile()"),
        ("own_relus", dropped, "another one must come in"),
        ("own_relus", retrained, "copied, too"),
        ("own_relus", lambda model: model, guard.ITSELF),
        ("own_relus", lambda model: None, "end with return"),
    ):
        assert said in hint_of(name, answer)


def test_checks_leave_the_generators_as_they_were() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    check("hw05.captum_shap", shap_one_by_one)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]  # noqa: NPY002
