"""Normalisation of features by the batch that they are in, with a scale and a shift."""

import torch
from torch import Tensor, nn

from dafw.nn.batch_statistics import batch_statistics, normalise
from dafw.nn.distributed import world_size


class FeatureNorm(nn.Module):
    """Normalises each of the d numbers of features by its mean and variance over the batch, then scales and shifts it.

    It has no running statistics. On several ranks the batch is that of all. One row has no variance, and stays as it
    is before the scale.

    Args:
        width: d.
        eps: added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        return torch.addcmul(self.bias, self.normalised(features, over_ranks=True), self.weight)

    def normalised(self, features: Tensor, *, over_ranks: bool) -> Tensor:
        """Without scale and shift, (n, d) -> (n, d).

        Args:
            features: (n, d).
            over_ranks: whether the rows of all ranks count.
        """
        several = over_ranks and world_size() > 1
        if len(features) * (world_size() if several else 1) < 2:
            return features
        mean, var, _ = batch_statistics(features, None, several)
        return normalise(features, mean, var, None, None, self.eps)
