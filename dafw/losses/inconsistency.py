"""How differently the loss's landscape lies over images and over perturbed copies of them; and such copies.

The landscape is seen through the gradients of each row's cross-entropy with respect to a network's last linear layer.
With the layer's input z_n (d,), the probabilities p_n (K,) and the label y_n, that gradient is r_n z_n^T for the
weights and r_n for the bias, r_n = p_n - onehot(y_n). With a 1 behind each z both are one matrix (K, d + 1), and its
mean and mean square over rows are two matrix products: no gradient of a single row, (n, K, d), is ever made.

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
    """Moments over rows of the gradients of a linear layer; of the same shape.

    Attributes:
        mean: (K, d) for the weights alone, (K, d + 1) with the bias as the last column.
        square: mean of the squares.
    """

    mean: Tensor
    square: Tensor


def last_layer_moments(
    inputs: Tensor, logits: Tensor, labels: Tensor, *, bias: bool = True, label_smoothing: float = 0.0
) -> GradientMoments:
    """Moments of the rows' gradients of the cross-entropy, at least in float32 and whatever the autocast.

    Args:
        inputs: (n, d), what the last linear layer sees; on several ranks this rank's rows, as many on each, whose
            moments are averaged over the ranks: each rank gets those of all rows.
        logits: (n, K), what it returns.
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
    """mean_j (v_j - w_j)^2 / 4: v and w are the variances over rows of the gradients' entries j, clean and perturbed.

    The quarter makes it the mean squared distance of the two from their middle. The difference is formed before the
    squares of the means enter, so that it is exactly 0 where the rows are the same.

    Args:
        clean: moments over the images.
        perturbed: moments over their perturbed copies.
        centre: w is about its ``own`` mean, or about the ``clean`` one as in the authors' code.
    """
    shift = clean.mean - perturbed.mean
    between = clean.mean + perturbed.mean if centre == "own" else 2 * clean.mean
    return (clean.square - perturbed.square - between * shift).square().mean() / 4


def mean_square(perturbed: GradientMoments, *, bias: bool = True) -> Tensor:
    """Mean squared entry of the gradients of the weights, plus that of the bias, over rows and entries."""
    if not bias:
        return perturbed.square.mean()
    return perturbed.square[:, :-1].mean() + perturbed.square[:, -1:].mean()


def uphill_step(slope: Tensor, radius: float, per: Literal["image", "pixel"] = "image", eps: float = 1e-12) -> Tensor:
    """A step along ``slope``, of the objective with respect to images (n, ...).

    Args:
        slope: the gradient.
        radius: Euclidean length of what has one length.
        per: what that is: each ``image`` (a step within a ball around it), or each ``pixel`` of each channel over all
            rows of the batch, those of all ranks, as in the authors' code: the length of an image's step then depends
            on the size of the batch, about radius * sqrt(pixels * channels / rows).
        eps: the least length that is divided by.
    """
    slope = full_precision(slope)
    if per == "image":
        squares = slope.square().sum(list(range(1, slope.ndim)), keepdim=True)
    else:
        squares = sum_over_ranks(slope.square().sum(0, keepdim=True))
    return slope * (radius / squares.sqrt().clamp_min(eps))


def split_style(images: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, C, H, W) as normed * deviation + mean.

    Returns:
        The mean and the deviation, the root of the unbiased variance plus ``eps``, of each channel of each image,
        (n, C, 1, 1), and what is left, (n, C, H, W).
    """
    variance, mean = torch.var_mean(images, (2, 3), keepdim=True)
    deviation = (variance + eps).sqrt()
    return mean, deviation, (images - mean) / deviation
