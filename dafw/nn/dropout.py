"""Dropout that preserves norms."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


class NormPreservingDropout(nn.Module):
    """Drops units in training and scales the others so that the expected *squared norm*, not the mean, is preserved.

    y = x * mask / sqrt(1 - p): Xu et al., ICCV 2019, https://arxiv.org/abs/1811.07456 ("L2-preserved dropout"). Each
    rank of a distributed run draws its own mask.

    Args:
        p: share of the units to drop, at least 0 and below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is a share, at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns a tensor of any shape."""
        return F.dropout(x, self.p) * math.sqrt(1 - self.p) if self.training and self.p else x
