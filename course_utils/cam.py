"""Class activation maps: where in its feature maps a network finds its class."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from course_utils.backward import KINDS
from course_utils.contract import Target, check, class_scores, classes_of, explaining
from course_utils.gradients import guided_backprop
from course_utils.layers import capture, find

# Poolings that leave one place, as a rule; others are layers like any other.
GLOBAL = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, Tensor.mean)


def cam(
    model: nn.Module, images: Tensor, target: Target = None, *, upsample: bool = True
) -> Tensor:
    """How much each place of the last feature maps A_k adds to the class's logit: Σ_k w_ck · A_k.

    For networks that end in global average pooling and one linear layer with weight w, bias b.
    There the map and the logit are one thing: mean(CAM) + b_c = f_c(x).

    model: images → logits (N, K). images: (N, C, H, W), floating point, in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax.
    upsample: bilinear to (N, H, W); False leaves the feature maps' (N, h, w). Signed, in logits.

    Raises ValueError or TypeError naming the argument; ValueError for any other kind of network.
    Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, Learning Deep Features for Discriminative
    Localization, 2016.
    """
    check(model, images, target)
    with explaining(model), torch.no_grad(), Head() as head:
        logits = model(images.detach().clone())
    classes = classes_of(logits, target)
    if head.maps is None or not head.averages_into(logits):
        raise ValueError(
            "model: it does not end in global average pooling and one linear layer, which CAM "
            "needs; use grad_cam"
        )
    result = torch.einsum("nk,nkhw->nhw", head.weight.detach()[classes], head.maps)
    return _upsampled(result, images) if upsample else result


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    relu: bool = True,
    upsample: bool = True,
) -> Tensor:
    """Feature maps A_k of a layer, each weighted by its mean gradient, added, negatives cut:

        ReLU(Σ_k α_k · A_k),    α_k = 1/(h·w) Σ_ij ∂f_c / ∂A_kij

    Arguments as `cam`. layer: a name as in `model.named_modules()`, or the module; None means the
    last feature maps, those that enter the final pooling or flattening. There, in a network made
    for CAM, relu=False gives CAM / (h·w).
    Returns (N, H, W), or (N, h, w) with upsample=False: in logits per place of the feature map.

    Raises ValueError or TypeError naming the argument.
    Source: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization, 2017.
    """
    check(model, images, target)
    name = None if layer is None else _name(model, layer)
    with explaining(model):
        x = images.detach().clone().requires_grad_()
        with capture(model, name or []) as kept, Head() as head:
            logits = model(x.clone())
        scores = class_scores(logits, target)
        maps = _maps(head.maps if name is None else kept.get(name), name)
        slopes = None
        if scores.requires_grad and maps.requires_grad:
            (slopes,) = torch.autograd.grad(scores.sum(), maps, allow_unused=True)
    if slopes is None:
        maker = f"layer: {name!r} makes" if name else "model: it pools"
        raise ValueError(f"{maker} feature maps on which the logits do not depend; choose another")
    result = (slopes.mean((2, 3), keepdim=True) * maps.detach()).sum(1)
    result = result.relu() if relu else result
    return _upsampled(result, images) if upsample else result


def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
) -> Tensor:
    """Guided Backpropagation's detail where Grad-CAM finds the class: the product of the two.

    Arguments and errors as `grad_cam` and `guided_backprop`. Returns (N, C, H, W), signed.
    Source: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization, 2017.
    """
    place = grad_cam(model, images, target, layer=layer)
    return guided_backprop(model, images, target) * place[:, None]


class Head(TorchFunctionMode):
    """While this is on, it notes how a network goes from feature maps to its last linear layer.

    maps: the last tensor (N, C, h, w) that entered a pooling or a flattening, however many of
    these follow each other. vector and weight: the input and the weight of the last linear layer.
    """

    maps: Tensor | None = None
    vector: Tensor | None = None
    weight: Tensor
    logits: Tensor

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not given or not isinstance(output, Tensor):
            return output
        if function is F.linear:
            self.vector, self.weight, self.logits = given[0], given[1], output
        elif given[0].ndim == 4:
            maps, whole = next((v.pooled for v in given if hasattr(v, "pooled")), (None, False))
            flattens = output.ndim < 4 and function in KINDS["route"]
            if flattens or function in KINDS["average"] or function in KINDS["max_pool"]:
                self.maps = maps = given[0] if maps is None else maps
                whole = whole or (function in GLOBAL and maps.shape[2:].numel() > 1)
            elif not whole or output.numel() > len(given[0]) * max(output.shape[1:], default=1):
                # What is made of pooled maps is again feature maps, unless it is a mere vector.
                maps, whole = None, False
            output.pooled = maps, whole  # type: ignore[attr-defined]
        return output

    def averages_into(self, logits: Tensor) -> bool:
        """Whether the logits are one linear layer's of the mean of the feature maps."""
        if self.maps is None or self.vector is None or not torch.equal(self.logits, logits):
            return False
        mean = self.maps.mean((2, 3))
        error = torch.finfo(mean.dtype).eps ** 0.5
        return mean.shape == self.vector.shape and torch.allclose(
            mean, self.vector, rtol=error, atol=error * float(mean.abs().max())
        )


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (N, h, w) at the images' height and width (N, H, W)."""
    size = images.shape[2:]
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _maps(output: Any, name: str | None) -> Tensor:
    """A layer's output, if it is feature maps; else a ValueError that says what it is."""
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    if name is None:
        raise ValueError("model: it pools or flattens no feature maps (N, C, h, w); name a layer")
    came = f"gives {tuple(output.shape)}" if isinstance(output, Tensor) else "gives none"
    came = "did not run" if output is None else came
    raise ValueError(
        f"layer: Grad-CAM needs feature maps (N, C, h, w), but {name!r} {came}; choose a "
        "convolutional layer"
    )


def _name(model: nn.Module, layer: str | nn.Module) -> str:
    """A layer's name, given its name or the module itself; ValueError if the model lacks it."""
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if name and module is layer:
                return name
        raise ValueError(f"layer: this {type(layer).__name__} is no layer of the model")
    find(model, layer)
    return layer
