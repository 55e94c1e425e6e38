"""A critic that scores each place of a feature map."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from dafw.data.padding import valid_positions


class PlaceCritic(nn.Module):
    """Feature maps (N, C, h, w) to a score for each place, (N, h, w): 3x3 convolutions, LeakyReLU 0.2 in between.

    The critic of Adaptive Teacher: Li et al., CVPR 2022, https://arxiv.org/abs/2111.13216, with the layers of the
    authors' code.

    Args:
        in_channels: channels C of a map.
        width: channels of the first convolution; the following two have half as many, the last one 1.
    """

    def __init__(self, in_channels: int, width: int = 256) -> None:
        super().__init__()
        widths = [in_channels, width, max(width // 2, 1), max(width // 2, 1), 1]
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Scores of maps.

        Args:
            x: (N, C, h, w).
            inside: (N, h, w) bool, the places that belong to the images. The others are set to 0 before each
                convolution, so that no score depends on the padding. ``None``: all places belong to them.
        """
        for number, convolution in enumerate(self.convolutions):
            x = x if inside is None else x.masked_fill(~inside[:, None], 0)
            x = convolution(x if number == 0 else self.activation(x))
        return x.squeeze(1)


def places(features: Tensor, sizes: Tensor | None, canvas: tuple[int, int]) -> Tensor | None:
    """Which places of feature maps (N, C, h, w) belong to the images, (N, h, w) bool; ``None`` if all do.

    Args:
        features: of the padded images.
        sizes: (N, 2), height and width of each image within its padding; ``None`` without padding.
        canvas: height and width of the padded images.
    """
    return None if sizes is None else valid_positions(sizes, canvas, (features.shape[2], features.shape[3]))


def unit_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """Zero, with a gradient of zero for each parameter: for a step in which nothing else reaches them."""
    return torch.stack([parameter.sum() for parameter in parameters]).sum() * 0
