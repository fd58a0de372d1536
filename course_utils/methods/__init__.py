"""Every attribution method of the course, with what is known about it.

A new method joins by one entry of METHODS and appears in every comparison.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from course_utils.contract import Model, Target, check
from course_utils.methods import cam, gradients, lime, perturbation, propagation, regions, shapley

NEEDS = ("gradients", "layers", "baseline", "segments", "data")
AXIOMS = (
    "completeness",
    "sensitivity",
    "dummy",
    "implementation invariance",
    "linearity",
    "symmetry",
)

# (model, image (1, C, H, W), class, what `prepare` made) → options
Sketch = Callable[[nn.Module, Tensor, int, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Method:
    """A method and what is known about it; call it as `method(model, images, target, **options)`.

    label: its name in the field, as figures and menus show it.
    cost: passes of one image whose target is given: F is a forward, B a forward and backward to the
    image; n is the method's samples or steps, P its windows, M its layer's maps, K the images of
    its background.
    needs: of NEEDS, what it uses besides answers: gradients; layers, what happens inside
    the network; a baseline, which stands for absence; segments of the image; data, ordinary images.
    claims: of AXIOMS, those that it should satisfy; what is hidden as one, a window or a segment,
    counts as a single input value. `axioms.axioms` tries them.
    linear: whether the map of a sum of scores is the sum of their maps, so that f_a − f_b needs no
    run of its own: M(f_a − f_b) = M(f_a) − M(f_b), where a method that draws draws the same.
    magnitudes: whether its paper shows the size of what it finds, whatever the sign.
    prepare: for each option that it cannot do without, how that is made of the model and of a
    batch of ordinary images (see `bind`).
    quick: options with which a class need not wait for a map.
    sketch: options for a coarse map in a few passes, made of the model, an image (1, C, H, W), its
    class, and what `prepare` made; None where the method takes few passes anyway.
    """

    function: Callable[..., Any]
    label: str
    paper: str
    year: int
    cost: str
    needs: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    linear: bool = False
    magnitudes: bool = False
    prepare: Mapping[str, Callable[[nn.Module, Tensor], Any]] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    sketch: Sketch | None = None
    data: Tensor | None = None

    @property
    def name(self) -> str:
        """The function's name, which is also the key in METHODS."""
        return self.function.__name__

    @property
    def specific(self) -> bool:
        """Whether it looks into the network: model-specific; others work for any function."""
        return bool({"gradients", "layers"} & self.needs)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(inspect.signature(self.function).parameters)[3:]

    def __repr__(self) -> str:
        with_data = ", with data" if self.data is not None else ""
        return f"Method({self.name}: {self.paper}, {self.year}; {self.cost}{with_data})"

    def bind(self, data: Tensor) -> "Method":
        """The method with ordinary images (M, C, H, W) at hand, of which it makes what it needs."""
        return replace(self, data=data)

    def prepared(self, model: nn.Module, data: Tensor) -> dict[str, Any]:
        """The options that it cannot do without, made of ordinary images (M, C, H, W)."""
        return {option: make(model, data) for option, make in self.prepare.items()}

    def __call__(self, model: Model, images: Tensor, target: Target = None, **options: Any) -> Any:
        """The attribution of images (N, C, H, W); TypeError for an option it does not know."""
        known = self.options
        for option in options:
            if option not in known:
                near = get_close_matches(option, known, n=1)
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


def _patterns(model: nn.Module, data: Tensor) -> list[Tensor]:
    return propagation.estimate_patterns(model, data)


def _windows(model: nn.Module, image: Tensor, target: int, prepared: Any) -> dict[str, Any]:
    quarter = -(-min(image.shape[2:]) // 4)
    return {"window": quarter, "stride": quarter}


def _segments(model: nn.Module, image: Tensor, target: int, prepared: Any) -> dict[str, Any]:
    labels = regions.segment(image[0], n_segments=8)
    return {"segments": labels, "samples": 2 * int(labels.max() + 1) + 2}


def _path(model: nn.Module, image: Tensor, target: int, prepared: Any) -> dict[str, Any]:
    values = gradients.integrated_gradients(model, image, target, steps=4)
    return {"attribution": values, "segments": regions.segment(image[0])}


GRADIENTS = frozenset({"gradients"})
LAYERS = frozenset({"gradients", "layers"})
OF_A_FUNCTION = frozenset({"dummy", "implementation invariance", "linearity", "symmetry"})
OF_A_GAME = OF_A_FUNCTION | {"sensitivity"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method(
            perturbation.occlusion,
            "Occlusion",
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks",
            2014,
            cost="(1 + P) F",
            needs=frozenset({"baseline"}),
            claims=OF_A_GAME,
            linear=True,
            sketch=_windows,
        ),
        Method(
            perturbation.prediction_difference,
            "Prediction Difference",
            "Zintgraf et al.: Visualizing Deep Neural Network Decisions",
            2017,
            cost="(1 + P·n) F",
            needs=frozenset({"data"}),
            claims=OF_A_GAME,
            linear=True,
            prepare={"background": lambda model, data: data},
            quick={"samples": 1},
            sketch=lambda *given: _windows(*given) | {"samples": 1},
        ),
        Method(
            perturbation.rise,
            "RISE",
            "Petsiuk, Das, Saenko: RISE",
            2018,
            cost="n F",
            needs=frozenset({"baseline"}),
            claims=OF_A_GAME,
            linear=True,
            quick={"samples": 256},
            sketch=lambda *given: {"samples": 16, "cells": 3},
        ),
        Method(
            perturbation.extremal_perturbation,
            "Extremal Perturbation",
            "Fong, Patrick, Vedaldi: Understanding Deep Networks via Extremal Perturbations",
            2019,
            cost="n B",
            needs=frozenset({"gradients", "baseline"}),
            claims=frozenset({"implementation invariance", "sensitivity"}),
            quick={"steps": 30},
            sketch=lambda *given: {"steps": 12},
        ),
        Method(
            gradients.gradient,
            "gradient",
            "Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks",
            2013,
            cost="1 B",
            needs=GRADIENTS,
            claims=OF_A_FUNCTION,
            linear=True,
            magnitudes=True,
        ),
        Method(
            gradients.input_x_gradient,
            "Gradient × Input",
            "Shrikumar et al.: Not Just a Black Box",
            2016,
            cost="1 B",
            needs=GRADIENTS,
            claims=OF_A_FUNCTION,
            linear=True,
        ),
        Method(
            gradients.deconvnet,
            "DeconvNet",
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks",
            2014,
            cost="1 B",
            needs=LAYERS,
            magnitudes=True,
        ),
        Method(
            gradients.guided_backprop,
            "Guided Backprop",
            "Springenberg et al.: Striving for Simplicity",
            2014,
            cost="1 B",
            needs=LAYERS,
            magnitudes=True,
        ),
        Method(
            gradients.smoothgrad,
            "SmoothGrad",
            "Smilkov et al.: SmoothGrad",
            2017,
            cost="n B",
            needs=GRADIENTS,
            claims=OF_A_FUNCTION,
            linear=True,
            magnitudes=True,
            sketch=lambda *given: {"samples": 4},
        ),
        Method(
            gradients.integrated_gradients,
            "Integrated Gradients",
            "Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks",
            2017,
            cost="n B",
            needs=frozenset({"gradients", "baseline"}),
            claims=frozenset(AXIOMS),
            linear=True,
            sketch=lambda *given: {"steps": 4},
        ),
        Method(
            gradients.expected_gradients,
            "Expected Gradients",
            "Erion et al.: Improving Performance of Deep Learning Models with Axiomatic "
            "Attribution Priors and Expected Gradients",
            2021,
            cost="n B",
            needs=frozenset({"gradients", "data"}),
            claims=frozenset(AXIOMS),
            linear=True,
            prepare={"background": lambda model, data: data},
            sketch=lambda *given: {"samples": 4},
        ),
        Method(
            gradients.guided_integrated_gradients,
            "Guided IG",
            "Kapishnikov et al.: Guided Integrated Gradients",
            2021,
            cost="(n + 1) B",
            needs=frozenset({"gradients", "baseline"}),
            claims=frozenset(AXIOMS) - {"linearity"},
            sketch=lambda *given: {"steps": 4},
        ),
        Method(
            gradients.blur_integrated_gradients,
            "Blur IG",
            "Xu, Venugopalan, Sundararajan: Attribution in Scale and Space",
            2020,
            cost="n B",
            needs=GRADIENTS,
            claims=OF_A_FUNCTION - {"symmetry"},
            linear=True,
            sketch=lambda *given: {"steps": 4},
        ),
        Method(
            cam.cam,
            "CAM",
            "Zhou et al.: Learning Deep Features for Discriminative Localization",
            2016,
            cost="1 F",
            needs=frozenset({"layers"}),
            claims=frozenset({"linearity"}),
            linear=True,
        ),
        Method(
            cam.grad_cam,
            "Grad-CAM",
            "Selvaraju et al.: Grad-CAM",
            2017,
            cost="1 F and back to the layer",
            needs=LAYERS,
        ),
        Method(
            cam.hires_cam,
            "HiResCAM",
            "Draelos, Carin: Use HiResCAM instead of Grad-CAM",
            2020,
            cost="1 F and back to the layer",
            needs=LAYERS,
        ),
        Method(
            cam.layer_cam,
            "LayerCAM",
            "Jiang et al.: LayerCAM",
            2021,
            cost="1 F and back to the layer",
            needs=LAYERS,
        ),
        Method(
            cam.grad_cam_plus_plus,
            "Grad-CAM++",
            "Chattopadhay et al.: Grad-CAM++",
            2018,
            cost="1 F and back to the layer",
            needs=LAYERS,
        ),
        Method(
            cam.score_cam,
            "Score-CAM",
            "Wang et al.: Score-CAM",
            2020,
            cost="(1 + M) F",
            needs=frozenset({"layers", "baseline"}),
            quick={"channels": 128},
            sketch=lambda *given: {"channels": 16},
        ),
        Method(
            cam.eigen_cam,
            "Eigen-CAM",
            "Muhammad, Yeasin: Eigen-CAM",
            2020,
            cost="1 F",
            needs=frozenset({"layers"}),
        ),
        Method(
            cam.guided_grad_cam,
            "Guided Grad-CAM",
            "Selvaraju et al.: Grad-CAM",
            2017,
            cost="1 F and back to the layer + 1 B",
            needs=LAYERS,
            magnitudes=True,
        ),
        Method(
            propagation.deeplift,
            "DeepLIFT",
            "Shrikumar, Greenside, Kundaje: Learning Important Features",
            2017,
            cost="1 F + 1 B",
            needs=LAYERS | {"baseline"},
            claims=frozenset({"completeness", "sensitivity", "linearity"}),
            linear=True,
        ),
        Method(
            propagation.lrp,
            "LRP",
            "Bach et al.: On Pixel-Wise Explanations for Non-Linear Classifier Decisions",
            2015,
            cost="1 B",
            needs=LAYERS,
            linear=True,
        ),
        Method(
            propagation.lrp_epsilon_plus_flat,
            "LRP-ε+z⁺ (flat)",
            "Kohlbrenner et al.: Towards Best Practice with LRP",
            2020,
            cost="1 B",
            needs=LAYERS,
            linear=True,
        ),
        Method(
            propagation.lrp_epsilon_gamma_box,
            "LRP-ε+γ (box)",
            "Montavon et al.: Layer-Wise Relevance Propagation: An Overview",
            2019,
            cost="1 B",
            needs=LAYERS,
            linear=True,
        ),
        Method(
            propagation.pattern_net,
            "PatternNet",
            "Kindermans et al.: Learning How to Explain Neural Networks",
            2018,
            cost="1 B",
            needs=LAYERS | {"data"},
            magnitudes=True,
            prepare={"patterns": _patterns},
        ),
        Method(
            propagation.pattern_attribution,
            "PatternAttribution",
            "Kindermans et al.: Learning How to Explain Neural Networks",
            2018,
            cost="1 B",
            needs=LAYERS | {"data"},
            prepare={"patterns": _patterns},
        ),
        Method(
            regions.xrai,
            "XRAI",
            "Kapishnikov et al.: XRAI",
            2019,
            cost="2·n B",
            needs=frozenset({"gradients", "baseline", "segments"}),
            claims=OF_A_GAME - {"linearity"},
            sketch=_path,
        ),
        Method(
            lime.lime_image,
            "LIME",
            'Ribeiro, Singh, Guestrin: "Why Should I Trust You?"',
            2016,
            cost="n F",
            needs=frozenset({"baseline", "segments"}),
            claims=OF_A_GAME - {"dummy"},
            linear=True,
            quick={"samples": 256},
            sketch=_segments,
        ),
        Method(
            shapley.shap_image,
            "Kernel SHAP",
            "Lundberg, Lee: A Unified Approach to Interpreting Model Predictions",
            2017,
            cost="n F",
            needs=frozenset({"baseline", "segments"}),
            claims=frozenset(AXIOMS),
            linear=True,
            quick={"samples": 256},
            sketch=_segments,
        ),
        Method(
            shapley.deep_shap,
            "DeepSHAP",
            "Lundberg, Lee: A Unified Approach to Interpreting Model Predictions",
            2017,
            cost="K F + K B",
            needs=LAYERS | {"data"},
            claims=frozenset({"completeness", "sensitivity", "linearity"}),
            linear=True,
            prepare={"background": lambda model, data: data[:16]},
            sketch=lambda *given: {"background": given[-1]["background"][:1]},
        ),
    ]
}
