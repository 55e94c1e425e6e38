"""A U-Net of 0.1 M parameters, for tests and small images.

Ronneberger et al., U-Net, MICCAI 2015, https://arxiv.org/abs/1505.04597, with three poolings in place of four, batch
norm, and padding, so that maps keep the size of the images.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyUNetEncoder(nn.Module):
    """Images (N, C, H, W) to four maps: (N, w, H, W), then half the sides and twice the channels each time.

    Args:
        in_channels: C.
        width: w.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.channels = [width << stage for stage in range(4)]
        self.stages = nn.ModuleList(_block(a, b) for a, b in pairwise([in_channels, *self.channels]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, the finest first."""
        levels: list[Tensor] = []
        for stage in self.stages:
            levels.append(stage(F.max_pool2d(levels[-1], 2) if levels else x))
        return levels


class TinyUNetDecoder(nn.Module):
    """The maps of :class:`TinyUNetEncoder` to one map (N, w, H, W): bigger, joined with the next finer map, two layers.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_block(a + b, a) for a, b in pairwise(channels))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The map."""
        x = levels[-1]
        for stage, level in zip(reversed(self.stages), reversed(levels[:-1]), strict=True):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), level], 1))
        return x


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Twice a convolution of 3x3, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for a, b in ((inputs, outputs), (outputs, outputs)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
