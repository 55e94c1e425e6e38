"""One small critic per class; all critics are computed in a few batched operations."""

import math

import torch
from torch import Tensor, nn

from dafw.nn.norm import DomainBatchNorm


class GroupedLinear(nn.Module):
    """K linear layers side by side: (n, K, in) -> (n, K, out); each is initialised like ``nn.Linear``.

    Args:
        groups: K.
        in_features: width of each group's input.
        out_features: width of each group's output.

    Attributes:
        weight: (K, in, out).
        bias: (K, 1, out).
    """

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(groups, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(n, K, in) -> (n, K, out)."""
        return torch.baddbmm(self.bias, x.transpose(0, 1), self.weight).transpose(0, 1)

    def extra_repr(self) -> str:
        """The text that ``print`` shows between the parentheses."""
        return "{}, {}, {}".format(*self.weight.shape)


class ClassCritics(nn.Module):
    """One critic for each of K classes, Linear-BatchNorm-ReLU-Linear-BatchNorm-ReLU-Linear, without shared weights.

    As in ParetoDA: Lv et al., NeurIPS 2021, https://arxiv.org/abs/2112.04137. All critics together take eight
    operations, whatever K is. The batch statistics are over all rows of a call, on all ranks.

    Args:
        in_features: width d of the features.
        num_classes: K.
        width: width of the two hidden layers of each critic (the authors' program: 1024).
        out_features: number of scores of each critic.
    """

    def __init__(self, in_features: int, num_classes: int, *, width: int = 1024, out_features: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Linear(in_features, num_classes * width)  # all critics get the same features: one matrix
        self.first_norm = DomainBatchNorm(num_classes * width)
        self.second = GroupedLinear(num_classes, width, width)
        self.second_norm = DomainBatchNorm(num_classes * width)
        self.third = GroupedLinear(num_classes, width, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, d) to scores (n, K, out_features)."""
        n = len(features)
        hidden = self.first_norm(self.first(features)).relu()
        hidden = self.second(hidden.view(n, self.num_classes, -1)).reshape(n, -1)
        hidden = self.second_norm(hidden).relu()
        scores: Tensor = self.third(hidden.view(n, self.num_classes, -1))
        return scores
