"""Attributions made of the gradient of a class's logit with respect to the image."""

import torch
from torch import nn

from course_utils.contract import Target, check, class_scores, explaining


def gradient(model: nn.Module, images: torch.Tensor, target: Target = None) -> torch.Tensor:
    """How much the target's logit changes per change of each input value: ∂f_c(x) / ∂x.

    model: images → logits (N, K). images: (N, C, H, W), floating point, in model space.
    target: a class, a LongTensor (N,), or None for each image's argmax.
    Returns (N, C, H, W), signed, in logits per unit of model space.

    Raises ValueError or TypeError naming the argument.
    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2013.
    """
    check(model, images, target)
    with explaining(model):
        x = images.detach().clone().requires_grad_()
        # The model gets a copy: its first layer may work in place.
        scores = class_scores(model(x.clone()), target)
        if not scores.requires_grad:
            raise ValueError("model: its logits carry no gradient to the images")
        # Each score depends on its own image alone, so the sum's gradient holds all of theirs.
        (result,) = torch.autograd.grad(scores.sum(), x, materialize_grads=True)
    return result
