"""Class activation maps: where in its feature maps a network finds its class."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.contract import (
    Baseline,
    Target,
    as_baseline,
    check,
    check_count,
    explaining,
    predict_target,
    resolve_target,
    score_target,
    to_type_of,
)
from course_utils.layers import capture, find
from course_utils.methods.gradients import guided_backprop
from course_utils.methods.head import Head, last_maps
from course_utils.progress import in_batches


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
    name = _name(model, layer)
    with explaining(model):
        x = images.detach().clone().requires_grad_()
        maps, scores = _maps_and_scores(model, x, target, name)
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


def layer_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    relu: bool = True,
    upsample: bool = True,
) -> Tensor:
    """Feature maps A_k of a layer, each times its gradient where that is positive, added:

        ReLU(Σ_k ReLU(∂f_c / ∂A_k) · A_k)

    HiResCAM without what speaks against the class: places are weighted one by one, so that the fine
    maps of an early layer can be explained. The outer ReLU cuts only where maps are negative, which
    after a ReLU they are not. So the map never says where the logit falls.

    Arguments, result and errors as `grad_cam`.
    Source: Jiang, Zhang, Hou, Cheng, Wei, LayerCAM: Exploring Hierarchical Class Activation Maps
    for Localization, 2021.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> model[2].weight.data = torch.tensor([[1.0, -1.0]])
    >>> cam.layer_cam(model, torch.tensor([[[[3.0]], [[2.0]]]]))  # HiResCAM: 3 − 2
    tensor([[[3.]]])
    """
    maps, slopes = maps_and_slopes(model, images, target, layer)
    return _finished((slopes.relu() * maps).sum(1), images, relu, upsample)


def grad_cam_plus_plus(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    relu: bool = True,
    upsample: bool = True,
) -> Tensor:
    """Feature maps A_k of a layer, each weighted by its positive gradients, added, negatives cut:

        ReLU(Σ_k w_k · A_k),    w_k = Σ_ij α_kij · ReLU(g_kij),    g_k = ∂f_c / ∂A_k
        α_kij = g_kij² / (2 g_kij² + g_kij³ · Σ_ab A_kab) = 1 / (2 + g_kij · Σ_ab A_kab)

    A map counts where its gradient is positive, and less if it is large in many places (Σ A_k), so
    that several objects of a class weigh alike. The paper's α is a ratio of second and third
    derivatives of exp(f_c), not of f_c, and is this closed form only where those of f_c itself are
    0, as in a network that is piecewise linear from the layer on; exp(f_c), a factor of all
    weights, is left out. The maps must not be negative: after a ReLU, 2 + g · Σ A is at least 2
    wherever g is positive; for negative maps it may be near 0, or below, and the weights mean
    nothing.
    (pytorch-grad-cam adds 1e-6 to the first denominator, which is as much as 2 g² where g is
    7e-4; its maps then are others.)

    Arguments, result and errors as `grad_cam`.
    Source: Chattopadhay, Sarkar, Howlader, Balasubramanian, Grad-CAM++: Improved Visual
    Explanations for Deep Convolutional Networks, 2018.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.grad_cam_plus_plus(model, torch.tensor([[[[1.0, 3.0]]]]))  # g is ½, α ¼, and so w ¼
    tensor([[[0.2500, 0.7500]]])
    """
    maps, slopes = maps_and_slopes(model, images, target, layer)
    below = 2 + slopes * maps.sum((2, 3), keepdim=True)
    below = below.where(below != 0, torch.inf)  # of maps with negative values
    weights = (slopes.relu() / below).sum((2, 3), keepdim=True)
    return _finished((weights * maps).sum(1), images, relu, upsample)


def score_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    channels: int | None = None,
    baseline: Baseline = 0.0,
    relu: bool = True,
    upsample: bool = True,
    batch_size: int = 16,
) -> Tensor:
    """Feature maps A_k of a layer, each weighted by the logit of what it lets through, added:

        ReLU(Σ_k w_k · A_k),    w = softmax_k(f_c(x' + H_k · (x − x')))

    H_k is A_k, enlarged bilinearly to the image and scaled to 0 … 1; it is 0 where A_k is the same
    everywhere. No gradient is taken: for each of the layer's M maps the image goes through the
    network once more, so that an image costs 1 + M forward passes.
    The weights are positive and add up to 1: a Score-CAM is a mean of maps, which says of no place
    that it lowers the logit. The paper's Algorithm 1 takes f_c(x') from each logit, which softmax
    over the maps does not change. Its authors' program has the class's probability as the weight
    instead, and no softmax over the maps. pytorch-grad-cam has these weights, but enlarges the
    masks with their corners aligned.

    Arguments and errors as `grad_cam`; the target may be any score, with a gradient or without.
    channels: try only so many maps, those of largest variance (Faster Score-CAM); None: all.
    baseline: x', what stands where H is 0, in model space: a number (0 is the mean colour of
    normalised images) or a tensor broadcastable to the images.
    Returns (N, H, W), or (N, h, w) with upsample=False, in the maps' unit.
    Source: Wang et al., Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural
    Networks, 2020.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.score_cam(model, torch.tensor([[[[1.0, 3.0]]]]))  # a single map has the weight 1
    tensor([[[1., 3.]]])
    """
    check(model, images, target)
    absent = as_baseline("baseline", baseline, images)
    if channels is not None:
        check_count("channels", channels)
    check_count("batch_size", batch_size)
    name = _name(model, layer)
    with explaining(model), torch.no_grad():
        classes = predict_target(model, images, target, batch_size)
        parts = torch.arange(len(images)).split(batch_size)
        maps = torch.cat(
            [_maps_and_scores(model, images[part], classes, name, part)[0] for part in parts]
        )
        if channels is not None:
            maps = _most_varied(maps, channels)
        n, k = maps.shape[:2]
        scores = maps.new_empty(n * k)
        for number in in_batches(n * k, batch_size):
            image, channel = number // k, number % k
            shown = _scaled(maps[image, channel], images)
            masked = absent[image] + shown * (images[image] - absent[image])
            scores[number] = score_target(model(masked), classes[image])
    weights = scores.view(n, k, 1, 1).softmax(1)
    return _finished((weights * maps).sum(1), images, relu, upsample)


def eigen_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    upsample: bool = True,
) -> Tensor:
    """What a layer's feature maps have most in common, whatever the class:

        A · v₁,    A = U S Vᵀ

    A (h·w, K) has a row for each place and a column for each map; v₁ is the first column of V, the
    direction in which rows of A are longest. The target is checked, and changes nothing: the map
    is the same for every class. v₁ and −v₁ are equally right; here the map's sum is positive. Then
    the map of what comes after a ReLU has no negative value. (pytorch-grad-cam subtracts each
    column's mean first, which the paper does not, and leaves the sign to chance.)

    Arguments and errors as `grad_cam`. An image costs one forward pass.
    Returns (N, H, W), or (N, h, w) with upsample=False, in the maps' unit.
    Source: Muhammad, Yeasin, Eigen-CAM: Class Activation Map using Principal Components, 2020.

    >>> image = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cam.eigen_cam(model, image)  # √(3² + 4²)
    tensor([[[5., 0.]]])
    """
    check(model, images, target)
    name = _name(model, layer)
    with explaining(model), torch.no_grad():
        maps, _ = _maps_and_scores(model, images.detach(), target, name)
    # In double precision on the CPU: not every device and type has it, and the matrices are small.
    _, sizes, ways = torch.linalg.svd(maps.cpu().double().flatten(2), full_matrices=False)
    result = sizes[:, :1] * ways[:, 0]  # of Aᵀ, which has the maps as rows
    result = torch.where(result.sum(1, keepdim=True) < 0, -result, result)
    result = to_type_of(result.view(-1, *maps.shape[2:]), images)
    return _finished(result, images, relu=False, upsample=upsample)


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


def _maps_and_scores(
    model: nn.Module,
    images: Tensor,
    target: Target,
    name: str | None,
    numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A layer's feature maps, or the last ones, and the target's score (N,) from the same pass.

    numbers: of these images among those that the target is about, as `resolve_target`.
    """
    with capture(model, name or []) as kept, Head() if name is None else nullcontext():
        scores = score_target(model(images.clone()), target, numbers)
    return _maps(last_maps(scores) if name is None else kept.get(name), name), scores


def _most_varied(maps: Tensor, channels: int) -> Tensor:
    """Of each image's maps (N, K, h, w) the `channels` that vary most over the places."""
    variances = maps.flatten(2).var(2, correction=0)
    chosen = variances.topk(min(channels, maps.shape[1])).indices
    return maps.take_along_dim(chosen[..., None, None], 1)


def _scaled(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (B, h, w) as large as the images and from 0 to 1, (B, 1, H, W); 0 if a map is flat."""
    large = _finished(maps, images, relu=False, upsample=True)
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    # Bilinear rounding leaves a flat map not quite flat.
    flat = high - low <= 4 * torch.finfo(maps.dtype).eps * large.abs().amax((1, 2), keepdim=True)
    return torch.where(flat, 0, (large - low) / (high - low))[:, None]


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


def _name(model: nn.Module, layer: str | nn.Module | None) -> str | None:
    """A layer's name, given its name or the module itself; ValueError if the model lacks it.

    None, for the last feature maps, stays None.
    """
    if layer is None:
        return None
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if name and module is layer:
                return name
        raise ValueError(f"layer: this {type(layer).__name__} is no layer of the model")
    find(model, layer)
    return layer
