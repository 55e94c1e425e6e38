"""Losses on the Euclidean norms of features."""

import torch
from torch import Tensor

from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision


def stepwise_norm(features: Tensor, step: float = 1.0) -> Tensor:
    """mean_i (|f_i| - (|f_i| without gradient) - step)^2: a constant force towards larger norms.

    The value is always step^2. Only the gradient, -2 step f_i / (|f_i| n), matters.
    Xu et al., "Larger Norm More Transferable", ICCV 2019, https://arxiv.org/abs/1811.07456 (SAFN).

    Args:
        features: (n, d).
        step: increase of each norm that is aimed at.

    Returns:
        A scalar; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    norms: Tensor = torch.linalg.vector_norm(full_precision(features), dim=1)
    loss: Tensor = (norms - norms.detach() - step).square().mean()
    return loss


def norm_to_radius(features: Tensor, radius: float = 25.0) -> Tensor:
    """(mean_i |f_i| - radius)^2: Xu et al., ICCV 2019, https://arxiv.org/abs/1811.07456 (HAFN).

    Args:
        features: (n, d); on several ranks this rank's rows; all ranks' rows are gathered.
        radius: target value of the mean norm.

    Returns:
        A scalar.
    """
    norms = torch.linalg.vector_norm(full_precision(features), dim=1)
    return (gather_rows(norms).mean() - radius).square()
