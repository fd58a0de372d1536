"""Class activation maps: where in its feature maps a network finds its class."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.contract import Target, check, explaining, resolve_target, score_target
from course_utils.layers import capture, find
from course_utils.methods.gradients import guided_backprop
from course_utils.methods.head import Head, last_maps


def cam(
    model: nn.Module, images: Tensor, target: Target = None, *, upsample: bool = True
) -> Tensor:
    """How much each place of the last feature maps A_k adds to the class's logit: Σ_k w_ck · A_k.

    For networks that end in global average pooling and one linear layer with weight w, bias b.
    There the map and the logit are one thing: mean(CAM) + b_c = f_c(x). Where each class has a
    feature map of its own, whose mean is its logit, as in SqueezeNet, the CAM is A_c, and b is 0.

    model: images → logits (N, K). images: (N, C, H, W), floating point, in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax; or two classes (a, b), as
    in `gradients.gradient`.
    upsample: bilinear to (N, H, W); False leaves the feature maps' (N, h, w). Signed, in logits.

    Raises ValueError or TypeError naming the argument; ValueError for any other kind of network.
    Source: Zhou, Khosla, Lapedriza, Oliva, Torralba, Learning Deep Features for Discriminative
    Localization, 2016.

    >>> fc = nn.Linear(1, 1)
    >>> fc.weight.data, fc.bias.data = torch.tensor([[2.0]]), torch.tensor([1.0])
    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    >>> cam.cam(model, torch.tensor([[[[1.0, 3.0]]]]))  # the logit is 5: their mean and the bias
    tensor([[[2., 6.]]])
    """
    check(model, images, target)
    with explaining(model), torch.no_grad(), Head() as head:
        logits = model(images.detach().clone())
    classes = F.one_hot(resolve_target(logits, target), logits.shape[1])
    # Of each logit the score has 1 or 0, and of a difference f_a − f_b also −1.
    shares = (classes[:, 0] - classes[:, 1] if classes.ndim == 3 else classes).to(logits)
    maps = last_maps(logits)
    if maps is not None and _averages(maps, head.vector) and head.ends_in(logits):
        weights = (shares @ head.weight.detach().to(logits)).to(maps.dtype)
        result = torch.einsum("nk,nkhw->nhw", weights, maps)
    elif maps is not None and _averages(maps, logits):
        result = torch.einsum("nk,nkhw->nhw", shares.to(maps.dtype), maps)
    else:
        raise ValueError(
            "model: it does not end in global average pooling and one linear layer, which CAM "
            "needs; use grad_cam"
        )
    return _finished(result, images, relu=False, upsample=upsample)


def maps_and_slopes(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    layer: str | nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """A layer's feature maps A, and how the target's logit changes with them, ∂f_c / ∂A.

    Arguments as `grad_cam`. Returns two tensors (N, K, h, w), K the number of the layer's maps.

    Raises ValueError or TypeError naming the argument; ValueError for a layer that gives no feature
    maps, or on which the logits do not depend.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.maps_and_slopes(model, torch.tensor([[[[1.0, -3.0]]]]))
    (tensor([[[[ 1., -3.]]]]), tensor([[[[0.5000, 0.5000]]]]))
    """
    check(model, images, target)
    name = None if layer is None else _name(model, layer)
    with explaining(model):
        x = images.detach().clone().requires_grad_()
        with capture(model, name or []) as kept, Head() if name is None else nullcontext():
            scores = score_target(model(x.clone()), target)
        maps = _maps(last_maps(scores) if name is None else kept.get(name), name)
        slopes = None
        if scores.requires_grad and maps.requires_grad:
            (slopes,) = torch.autograd.grad(scores.sum(), maps, allow_unused=True)
    if slopes is None:
        maker = f"layer: {name!r} makes" if name else "model: it pools"
        raise ValueError(f"{maker} feature maps on which the logits do not depend; choose another")
    return maps.detach(), slopes


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

    Raises ValueError or TypeError naming the argument; ValueError where the logits are not all made
    of the same last feature maps, as those of a ViT, and no layer is given.
    Source: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization, 2017.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.grad_cam(model, torch.tensor([[[[1.0, -3.0]]]]))  # α is ½
    tensor([[[0.5000, 0.0000]]])
    """
    maps, slopes = maps_and_slopes(model, images, target, layer)
    result = (slopes.mean((2, 3), keepdim=True) * maps).sum(1)
    return _finished(result, images, relu, upsample)


def hires_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    relu: bool = True,
    upsample: bool = True,
) -> Tensor:
    """Feature maps A_k of a layer, each times its gradient place by place, added, negatives cut:

        ReLU(Σ_k ∂f_c / ∂A_k · A_k)

    Grad-CAM takes the gradient's mean first, and so may show places that lower the logit. Where
    the gradient is the same everywhere, at the last maps of a network made for CAM, the two agree.

    Arguments, result and errors as `grad_cam`.
    Source: Draelos, Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks, 2020.
    """
    maps, slopes = maps_and_slopes(model, images, target, layer)
    return _finished((slopes * maps).sum(1), images, relu, upsample)


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

    >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.guided_grad_cam(model, torch.tensor([[[[4.0, -2.0]]]]))  # ½ · 4, and the slope ½
    tensor([[[[1., 0.]]]])
    """
    place = grad_cam(model, images, target, layer=layer)
    return guided_backprop(model, images, target) * place[:, None]


def _finished(maps: Tensor, images: Tensor, relu: bool, upsample: bool) -> Tensor:
    """Maps (N, h, w) without what is negative, and at the images' height and width, as asked."""
    maps = maps.relu() if relu else maps
    if not upsample:
        return maps
    size = images.shape[2:]
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _averages(maps: Tensor, vector: Tensor | None) -> bool:
    """Whether there is a vector (N, K), and it is the mean of feature maps (N, K, h, w)."""
    mean = maps.mean((2, 3))
    if vector is None or vector.shape != mean.shape:
        return False
    error = torch.finfo(mean.dtype).eps ** 0.5
    return torch.allclose(
        mean, vector.to(mean.dtype), rtol=error, atol=error * float(mean.abs().max())
    )


def _maps(output: Any, name: str | None) -> Tensor:
    """A layer's output, if it is feature maps; else a ValueError that says what it is."""
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    if name is None:
        raise ValueError(
            "model: it has no last feature maps (N, C, h, w) of which all of its logits are made; "
            "give layer=, as 'layer4' or a module"
        )
    came = f"gives {tuple(output.shape)}" if isinstance(output, Tensor) else "gives none"
    came = "did not run" if output is None else came
    raise ValueError(
        f"layer: feature maps (N, C, h, w) are needed, but {name!r} {came}; choose a "
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
