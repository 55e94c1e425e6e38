"""Losses of the features' Euclidean norms."""

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def stepwise_norm(features: Tensor, step: float = 1.0) -> Tensor:
    """mean_i (|f_i| - (|f_i| without gradient) - step)^2: a pull by a constant force towards larger norms.

    The value is always step^2; only the gradient, -2 step f_i / (|f_i| n), says something.
    Xu et al., "Larger Norm More Transferable", ICCV 2019, https://arxiv.org/abs/1811.07456 (SAFN).

    Args:
        features: (n, d).
        step: how much larger each norm is to become.

    Returns:
        A scalar; a mean over rows, so the ranks' own values average to that of the whole batch.
    """
    norms: Tensor = torch.linalg.vector_norm(full_precision(features), dim=1)
    loss: Tensor = (norms - norms.detach() - step).square().mean()
    return loss


def norm_to_radius(features: Tensor, radius: float = 25.0) -> Tensor:
    """(mean_i |f_i| - radius)^2: Xu et al., ICCV 2019, https://arxiv.org/abs/1811.07456 (HAFN).

    Args:
        features: (n, d); on several ranks this rank's rows, all of which are gathered.
        radius: what the mean norm is to become.

    Returns:
        A scalar.
    """
    norms = torch.linalg.vector_norm(full_precision(features), dim=1)
    return (gather_rows(norms).mean() - radius).square()
