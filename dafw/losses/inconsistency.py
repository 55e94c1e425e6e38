"""Compares the loss landscape over images with that over perturbed copies of them, and makes such copies.

The landscape is measured by the gradient of each row's cross-entropy with respect to a network's last linear layer.
With the layer's input z_n (d,), the probabilities p_n (K,) and the label y_n, let r_n = p_n - onehot(y_n). The gradient
is r_n z_n^T for the weights and r_n for the bias. If a 1 is appended to each z, both together are one matrix
(K, d + 1). Its mean and its mean square over rows are two matrix products, so the gradients of single rows, (n, K, d),
are never stored.

Shin et al., Unknown Domain Inconsistency Minimization for Domain Generalization, ICLR 2024,
https://arxiv.org/abs/2403.07329.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.nn.distributed import sum_over_ranks, world_size
from dafw.nn.precision import full_precision

Centre = Literal["own", "clean"]


class GradientMoments(NamedTuple):
    """Moments over rows of the gradients of a linear layer; both have the same shape.

    Attributes:
        mean: (K, d) for the weights alone, (K, d + 1) with the bias as the last column.
        square: mean of the squares.
    """

    mean: Tensor
    square: Tensor


def last_layer_moments(
    inputs: Tensor, logits: Tensor, labels: Tensor, *, bias: bool = True, label_smoothing: float = 0.0
) -> GradientMoments:
    """Moments over rows of the gradients of the cross-entropy, at least in float32, also under autocast.

    Args:
        inputs: (n, d), inputs of the last linear layer; on several ranks this rank's rows, as many on each. The moments
            are averaged over the ranks, so each rank gets those of all rows.
        logits: (n, K), outputs of that layer.
        labels: (n,) int64.
        bias: whether the layer has a bias.
        label_smoothing: share of the label's mass that the cross-entropy spreads over all classes.
    """
    count, classes = logits.shape
    with torch.autocast(logits.device.type, enabled=False):
        residuals = full_precision(logits).softmax(1) - label_smoothing / classes
        own = residuals.new_full((), label_smoothing - 1).expand(count, 1)
        residuals = residuals.scatter_add(1, labels[:, None], own)
        inputs = full_precision(inputs)
        inputs = F.pad(inputs, (0, 1), value=1.0) if bias else inputs
        both = torch.stack([residuals.T @ inputs, residuals.square().T @ inputs.square()])
    both = sum_over_ranks(both) / (count * world_size())
    return GradientMoments(both[0], both[1])


def variance_mismatch(clean: GradientMoments, perturbed: GradientMoments, centre: Centre = "own") -> Tensor:
    """mean_j (v_j - w_j)^2 / 4, where v and w are the variances over rows of gradient entry j, clean and perturbed.

    Because of the 1/4 this is the mean squared distance of v and w from their midpoint. The means of the squares are
    subtracted first, so that the result is exactly 0 if the rows are the same.

    Args:
        clean: moments over the images.
        perturbed: moments over their perturbed copies.
        centre: the mean about which w is taken: its ``own``, or the ``clean`` one as in the authors' code.
    """
    shift = clean.mean - perturbed.mean
    between = clean.mean + perturbed.mean if centre == "own" else 2 * clean.mean
    return (clean.square - perturbed.square - between * shift).square().mean() / 4


def mean_square(perturbed: GradientMoments, *, bias: bool = True) -> Tensor:
    """Mean square over rows and entries of the weights' gradients, plus that of the bias's gradients."""
    if not bias:
        return perturbed.square.mean()
    return perturbed.square[:, :-1].mean() + perturbed.square[:, -1:].mean()


def uphill_step(slope: Tensor, radius: float, per: Literal["image", "pixel"] = "image", eps: float = 1e-12) -> Tensor:
    """A step along ``slope``, the gradient of the objective with respect to images (n, ...).

    Args:
        slope: (n, ...), the gradient.
        radius: root mean square to which the values of each part are scaled.
        per: the parts that are scaled. ``image``: each image takes a step within a ball around it, whose radius is
            radius * sqrt(values of an image). ``pixel``: each pixel of each channel over all rows of the batch, those
            of all ranks included, as in the authors' code. The step of a pixel over the rows has length radius *
            sqrt(rows), so the authors' step of 10 is the radius 10 / sqrt(rows). Both give a batch the same mean
            square.
        eps: lower bound of a part's root mean square in the division.
    """
    slope = full_precision(slope)
    if per == "image":
        squares = slope.square().mean(list(range(1, slope.ndim)), keepdim=True)
    else:
        squares = sum_over_ranks(slope.square().mean(0, keepdim=True)) / world_size()
    return slope * (radius / squares.sqrt().clamp_min(eps))


def split_style(images: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Splits images (n, C, H, W) into normed * deviation + mean, with statistics of each channel of each image.

    Returns:
        The mean (n, C, 1, 1), the deviation (n, C, 1, 1), which is the root of the unbiased variance plus ``eps``, and
        the normed images (n, C, H, W).
    """
    variance, mean = torch.var_mean(images, (2, 3), keepdim=True)
    deviation = (variance + eps).sqrt()
    return mean, deviation, (images - mean) / deviation
