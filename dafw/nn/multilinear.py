"""Joint features of two representations: their outer product or a random projection of it."""

import math

import torch
from torch import Tensor, nn


class MultilinearMap(nn.Module):
    """Joins features and class probabilities of a sample to one vector that shows their correlations.

    f (N, d), g (N, K) -> g (x) f, (N, K * d), where entry c * d + j is g_c f_j. If that is too wide, use the random
    projection (f R_f) * (g R_g) / sqrt(width), (N, width). Its inner products are on average those of the outer
    products.  R_f (d, width) and R_g (K, width) hold standard normal numbers. They are buffers, drawn once.

    Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018, https://arxiv.org/abs/1705.10667.

    Args:
        num_features: d.
        num_classes: K.
        width: width of the random projection; null: the outer product itself.

    Attributes:
        out_features: width of the result.
    """

    R_f: Tensor | None
    R_g: Tensor | None

    def __init__(self, num_features: int, num_classes: int, width: int | None = None) -> None:
        super().__init__()
        self.out_features = num_features * num_classes if width is None else width
        self.register_buffer("R_f", None if width is None else torch.randn(num_features, width))
        self.register_buffer("R_g", None if width is None else torch.randn(num_classes, width))

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Features (N, d) and probabilities (N, K) -> (N, out_features)."""
        if self.R_f is None or self.R_g is None:
            return (probabilities[:, :, None] * features[:, None, :]).flatten(1)
        return (features @ self.R_f) * (probabilities @ self.R_g) / math.sqrt(self.out_features)
