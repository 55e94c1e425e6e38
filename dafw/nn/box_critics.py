"""The two critics of a detector: one of each position of its feature maps, one of its regions."""

from typing import Literal

import torch
from torch import Tensor, nn

LevelCritics = Literal["each", "shared"]


class ImageCritic(nn.Module):
    """A score of each position of each level of a feature pyramid: 1x1 convolution, ReLU, 1x1 convolution.

    The image critic of Chen et al., CVPR 2018, https://arxiv.org/abs/1803.03243, section 4.2. Its initial weights are
    normal with standard deviation 0.001, as in the authors' code.

    Args:
        channels: C, of every level.
        width: channels of the hidden layer.
        levels: number of critics, one for each level; 1: all levels share one.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1)) for _ in range(levels)
        )
        _start(self, 0.001, 0.001)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Feature maps (N, C, h_i, w_i) to scores (N, h_i w_i), high for the source."""
        critics = [*self.critics] * (len(levels) // len(self.critics))
        return [critic(level).flatten(1) for critic, level in zip(critics, levels, strict=True)]


class InstanceCritic(nn.Module):
    """A score of each region: two hidden layers with ReLU and dropout.

    The instance critic of Chen et al., CVPR 2018, https://arxiv.org/abs/1803.03243, section 4.2. Its initial weights
    are normal with standard deviation 0.01, and 0.05 in the last layer, as in the authors' code.

    Args:
        features: d, of a region.
        width: of both hidden layers.
        dropout: share of the hidden units to drop.
    """

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        dropping = [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(
            *(nn.Linear(features, width), nn.ReLU(), *dropping),
            *(nn.Linear(width, width), nn.ReLU(), *dropping),
            nn.Linear(width, 1),
        )
        _start(self, 0.01, 0.05)

    def forward(self, regions: Tensor) -> Tensor:
        """Features (R, d) to scores (R,), high for the source."""
        scores: Tensor = self.layers(regions).squeeze(1)
        return scores


def _start(module: nn.Module, std: float, last: float) -> None:
    """Normal initial weights; the layers with one output have another standard deviation."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=last if len(layer.weight) == 1 else std)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def by_group(values: list[Tensor], together: bool) -> list[Tensor]:
    """Values (N, m_i) of each level, or those of all levels as one: (N, sum of m_i)."""
    return [torch.cat(values, 1)] if together else values
