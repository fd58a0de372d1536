"""Every attribution method of the course, with what is known about it.

A new method joins by one entry of METHODS and appears in every comparison.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from course_utils import cam, gradients, lime, perturbation, propagation, regions, shapley
from course_utils.contract import Model, Target, check

NEEDS = ("gradients", "layers", "baseline", "segments", "data")
AXIOMS = (
    "completeness",
    "sensitivity",
    "dummy",
    "implementation invariance",
    "linearity",
    "symmetry",
)


@dataclass(frozen=True, eq=False)
class Method:
    """A method and what is known about it; call it as `method(model, images, target, **options)`.

    family: how it works. cost: passes of one image whose target is given: F is a forward, B a
    forward and backward to the image; n is the method's samples or steps, P its windows, K its
    baselines.
    needs: of NEEDS, what it must look at besides answers. specific: it looks into the network, and
    so it is model-specific; the others are model-agnostic, for any function. scope: "local"
    explains one answer, "global" the model. stochastic: it draws. axioms: of AXIOMS, those that it
    satisfies, as `axioms.axioms` measures it; what is hidden as one, a window or a segment, counts
    as a single input value.
    prepare: for each option that it cannot do without, how that is made of the model and of a
    batch of ordinary images (see `bind`).
    """

    function: Callable[..., Any]
    paper: str
    year: int
    family: str
    cost: str
    needs: frozenset[str] = frozenset()
    scope: str = "local"
    stochastic: bool = False
    axioms: frozenset[str] = frozenset()
    prepare: Mapping[str, Callable[[nn.Module, torch.Tensor], Any]] = field(default_factory=dict)
    data: torch.Tensor | None = None

    @property
    def name(self) -> str:
        """The function's name, which is also the key in METHODS."""
        return self.function.__name__

    @property
    def specific(self) -> bool:
        """Whether it looks into the network."""
        return bool({"gradients", "layers"} & self.needs)

    def __repr__(self) -> str:
        return f"Method({self.name}{', with data' if self.data is not None else ''})"

    def bind(self, data: torch.Tensor) -> "Method":
        """The method with ordinary images (M, C, H, W) at hand, of which it makes what it needs."""
        return replace(self, data=data)

    def __call__(
        self, model: Model, images: torch.Tensor, target: Target = None, **options: Any
    ) -> Any:
        """The attribution of images (N, C, H, W); TypeError for an option it does not know."""
        known = list(inspect.signature(self.function).parameters)[3:]
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
                )
                raise TypeError(f"{self.name} has no option {option!r}; {hint}")
        for option, make in self.prepare.items():
            if option not in options:
                if self.data is None:
                    raise TypeError(f"{self.name} needs {option}; give it, or bind(data) first")
                check(model, images, target, black_box=not self.specific)  # before any work
                options[option] = make(model, self.data)  # type: ignore[arg-type]
        return self.function(model, images, target, **options)


def _patterns(model: nn.Module, data: torch.Tensor) -> list[torch.Tensor]:
    return propagation.estimate_patterns(model, data, progress=False)


GRADIENTS = frozenset({"gradients"})
LAYERS = frozenset({"gradients", "layers"})
OF_A_FUNCTION = frozenset({"dummy", "implementation invariance", "linearity", "symmetry"})
OF_A_GAME = OF_A_FUNCTION | {"sensitivity"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method(
            perturbation.occlusion,
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks",
            2014,
            family="perturbation",
            cost="(1 + P) F",
            needs=frozenset({"baseline"}),
            axioms=OF_A_GAME,
        ),
        Method(
            perturbation.prediction_difference,
            "Zintgraf et al.: Visualizing Deep Neural Network Decisions",
            2017,
            family="perturbation",
            cost="(1 + P·n) F",
            needs=frozenset({"data"}),
            stochastic=True,
            axioms=OF_A_GAME,
            prepare={"background": lambda model, data: data},
        ),
        Method(
            gradients.gradient,
            "Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks",
            2013,
            family="gradient",
            cost="1 B",
            needs=GRADIENTS,
            axioms=OF_A_FUNCTION,
        ),
        Method(
            gradients.input_x_gradient,
            "Shrikumar et al.: Not Just a Black Box",
            2016,
            family="gradient",
            cost="1 B",
            needs=GRADIENTS,
            axioms=OF_A_FUNCTION,
        ),
        Method(
            gradients.deconvnet,
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks",
            2014,
            family="modified gradient",
            cost="1 B",
            needs=LAYERS,
        ),
        Method(
            gradients.guided_backprop,
            "Springenberg et al.: Striving for Simplicity",
            2014,
            family="modified gradient",
            cost="1 B",
            needs=LAYERS,
        ),
        Method(
            gradients.smoothgrad,
            "Smilkov et al.: SmoothGrad",
            2017,
            family="gradient",
            cost="n B",
            needs=GRADIENTS,
            stochastic=True,
            axioms=OF_A_FUNCTION,
        ),
        Method(
            gradients.integrated_gradients,
            "Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks",
            2017,
            family="path",
            cost="n B",
            needs=frozenset({"gradients", "baseline"}),
            axioms=frozenset(AXIOMS),
        ),
        Method(
            cam.cam,
            "Zhou et al.: Learning Deep Features for Discriminative Localization",
            2016,
            family="class activation",
            cost="1 F",
            needs=frozenset({"layers"}),
            axioms=frozenset({"linearity"}),
        ),
        Method(
            cam.grad_cam,
            "Selvaraju et al.: Grad-CAM",
            2017,
            family="class activation",
            cost="1 F and back to the layer",
            needs=LAYERS,
        ),
        Method(
            cam.guided_grad_cam,
            "Selvaraju et al.: Grad-CAM",
            2017,
            family="class activation",
            cost="1 F and back to the layer + 1 B",
            needs=LAYERS,
        ),
        Method(
            propagation.deeplift,
            "Shrikumar, Greenside, Kundaje: Learning Important Features",
            2017,
            family="propagation",
            cost="1 F + 1 B",
            needs=LAYERS | {"baseline"},
            axioms=frozenset({"completeness", "sensitivity", "linearity"}),
        ),
        Method(
            propagation.lrp,
            "Bach et al.: On Pixel-Wise Explanations for Non-Linear Classifier Decisions",
            2015,
            family="propagation",
            cost="1 B",
            needs=LAYERS,
        ),
        Method(
            propagation.pattern_net,
            "Kindermans et al.: Learning How to Explain Neural Networks",
            2018,
            family="signal",
            cost="1 B",
            needs=LAYERS | {"data"},
            prepare={"patterns": _patterns},
        ),
        Method(
            propagation.pattern_attribution,
            "Kindermans et al.: Learning How to Explain Neural Networks",
            2018,
            family="signal",
            cost="1 B",
            needs=LAYERS | {"data"},
            prepare={"patterns": _patterns},
        ),
        Method(
            regions.xrai,
            "Kapishnikov et al.: XRAI",
            2019,
            family="region",
            cost="2·n B",
            needs=frozenset({"gradients", "baseline", "segments"}),
            axioms=OF_A_GAME - {"linearity"},
        ),
        Method(
            lime.lime_image,
            'Ribeiro, Singh, Guestrin: "Why Should I Trust You?"',
            2016,
            family="surrogate",
            cost="n F",
            needs=frozenset({"baseline", "segments"}),
            stochastic=True,
            axioms=OF_A_GAME - {"dummy"},
        ),
        Method(
            shapley.shap_image,
            "Lundberg, Lee: A Unified Approach to Interpreting Model Predictions",
            2017,
            family="surrogate",
            cost="n F",
            needs=frozenset({"baseline", "segments"}),
            stochastic=True,
            axioms=frozenset(AXIOMS),
        ),
        Method(
            shapley.deep_shap,
            "Lundberg, Lee: A Unified Approach to Interpreting Model Predictions",
            2017,
            family="propagation",
            cost="K F + K B",
            needs=LAYERS | {"baseline", "data"},
            axioms=frozenset({"completeness", "sensitivity", "linearity"}),
            prepare={"baselines": lambda model, data: data[:16]},
        ),
    ]
}
