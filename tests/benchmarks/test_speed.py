"""How long each method takes beside the library that one would otherwise pick.

`pytest -m benchmark tests/benchmarks` runs each pair in turn, on the same network and pictures, and
writes the ratios of the medians into the README.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from course_utils.methods import cam, gradients, perturbation, propagation, regions
from course_utils.tools.datasheets import replace_section

README = Path(__file__).parents[2] / "README.md"
ROUNDS = 5
TARGET = 3

Run = Callable[[], object]


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    import torchvision

    model = torchvision.models.get_model(name, weights=None).eval().requires_grad_(False)
    for module in model.modules():  # Captum refuses ReLUs that work in place
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return model


def pairs() -> dict[str, tuple[str, Run, Run]]:
    """Method → (library, ours, theirs)."""
    import captum.attr
    import pytorch_grad_cam
    import saliency.core
    import zennit.attribution
    import zennit.composites
    import zennit.layer
    import zennit.rules
    import zennit.torchvision
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    resnet, vgg = network("resnet18"), network("vgg11")
    x = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(x)
    canonizer = zennit.torchvision.ResNetCanonizer()
    rules = {
        torch.nn.Conv2d: zennit.rules.Epsilon(1e-6),
        torch.nn.Linear: zennit.rules.Epsilon(1e-6),
        torch.nn.AdaptiveAvgPool2d: zennit.rules.Norm(),
        torch.nn.ReLU: zennit.rules.Pass(),
        zennit.layer.Sum: zennit.rules.Norm(),
    }
    epsilon = zennit.composites.LayerMapComposite([*rules.items()], canonizers=[canonizer])

    def zennit_lrp() -> Tensor:
        start = torch.eye(1000)[[TARGET] * len(x)]
        with zennit.attribution.Gradient(model=resnet, composite=epsilon) as attributor:
            return attributor(x, lambda output: output.detach() * start)[1]

    wanted = [ClassifierOutputTarget(TARGET)] * len(x)

    def their_cam() -> np.ndarray:
        with pytorch_grad_cam.GradCAM(model=resnet, target_layers=[resnet.layer4]) as method:
            return method(input_tensor=x.clone().requires_grad_(), targets=wanted)

    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    map_ = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(1))
    photo = picture[0].permute(1, 2, 0).numpy()
    in_channels = map_[0].numpy()[..., None].repeat(3, 2)
    their_xrai = saliency.core.XRAI()
    return {
        "gradient": (
            "Captum",
            lambda: gradients.gradient(resnet, x, TARGET),
            lambda: captum.attr.Saliency(resnet).attribute(x, TARGET, abs=False),
        ),
        "Guided Backpropagation": (
            "Captum",
            lambda: gradients.guided_backprop(resnet, x, TARGET),
            lambda: captum.attr.GuidedBackprop(resnet).attribute(x, TARGET),
        ),
        "integrated gradients, 32 steps": (
            "Captum",
            lambda: gradients.integrated_gradients(resnet, x, TARGET),
            lambda: captum.attr.IntegratedGradients(resnet).attribute(
                x, zero, TARGET, n_steps=32, method="riemann_middle", internal_batch_size=16
            ),
        ),
        "SmoothGrad, 24 samples": (
            "Captum",
            lambda: gradients.smoothgrad(resnet, x, TARGET, samples=24),
            lambda: captum.attr.NoiseTunnel(captum.attr.Saliency(resnet)).attribute(
                x, nt_samples=24, nt_samples_batch_size=4, stdevs=1.0, target=TARGET, abs=False
            ),
        ),
        "DeepLIFT": (
            "Captum, on VGG-11",
            lambda: propagation.deeplift(vgg, x, TARGET),
            lambda: captum.attr.DeepLift(vgg).attribute(x, zero, TARGET),
        ),
        "LRP-ε": (
            "Zennit",
            lambda: propagation.lrp(resnet, x, TARGET),
            zennit_lrp,
        ),
        "Grad-CAM": (
            "pytorch-grad-cam",
            lambda: cam.grad_cam(resnet, x, TARGET),
            their_cam,
        ),
        "occlusion": (
            "Captum",
            lambda: perturbation.occlusion(resnet, x[:1], TARGET),
            lambda: captum.attr.Occlusion(resnet).attribute(
                x[:1], (3, 16, 16), (3, 8, 8), zero[:1], TARGET, perturbations_per_eval=16
            ),
        ),
        "XRAI after the attribution": (
            "saliency",
            lambda: regions.xrai(resnet, picture, TARGET, attribution=map_),
            lambda: their_xrai.GetMask(photo, None, base_attribution=in_channels),
        ),
    }  # fmt: skip


def median_ratio(ours: Run, theirs: Run) -> float:
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):  # the first one warms up
        for run, taken in zip((ours, theirs), times, strict=True):
            begin = time.perf_counter()
            run()
            if round_:
                taken.append(time.perf_counter() - begin)
    return statistics.median(times[1]) / statistics.median(times[0])


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")
def test_the_table_in_the_readme() -> None:
    rows = ["| method | beside | times as fast |", "|---|---|---|"]
    for method, (library, ours, theirs) in pairs().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(f"| {method} | {library} | {median_ratio(ours, theirs):.1f} |")
    replace_section(README, "benchmark", "\n".join(rows))
