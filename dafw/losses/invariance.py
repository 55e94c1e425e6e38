"""Invariance penalty: measures by the loss's slope in the logits' scale how far a classifier is from optimal."""

import torch
from torch import Tensor

from dafw.nn.precision import full_precision


def scale_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """d/ds CE(s * logits) at s = 1, in closed form: mean_i (sum_c p_ic z_ic - z_iy), p = softmax(z).

    Args:
        logits: (n, K), z.
        labels: (n,), y.

    Returns:
        A differentiable scalar, at least in float32, also under autocast.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = full_precision(logits)
        expected = (logits.softmax(1) * logits).sum(1)
        return (expected - logits.gather(1, labels[:, None]).squeeze(1)).mean()


def invariance_penalty(logits: Tensor, labels: Tensor) -> Tensor:
    """Unbiased estimate of the squared :func:`scale_gradient` of a domain: that of even rows times that of odd rows.

    Arjovsky et al., Invariant Risk Minimization, 2019, https://arxiv.org/abs/1907.02893, the practical objective
    IRMv1. Unlike the square, this estimate from two halves of the rows can be negative.

    Args:
        logits: (n, K), of one domain and of all ranks: nothing is gathered here.
        labels: (n,).

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(labels) < 2:
        raise ValueError(f"an even and an odd row are needed, not {len(labels)} rows")
    return scale_gradient(logits[::2], labels[::2]) * scale_gradient(logits[1::2], labels[1::2])
