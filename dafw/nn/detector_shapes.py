"""What the outputs of a detector look like, found on a black image."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dafw.nn.modes import evaluation_mode


class DetectorShapes(NamedTuple):
    """What parts that see a detector's outputs must know.

    Attributes:
        channels: of each level.
        strides: of the levels, in pixels.
        region_width: width of the features of a region; 0 if it was not asked for.
        has_background: whether the scores of a region have one for the background; false if it was not asked for.
    """

    channels: int
    strides: tuple[int, ...]
    region_width: int
    has_background: bool


@torch.no_grad()
def detector_shapes(network: Any, *, regions: bool = True) -> DetectorShapes:
    """The shapes of a detector's outputs; its modes and statistics stay.

    Args:
        network: a detector.
        regions: whether to look at the features of a region, too.
    """
    like: Tensor = network.shift
    with evaluation_mode(network):
        outputs = network(like.new_zeros(1, len(like), 64, 64))
        width, has_background = 0, False
        if regions:
            found = network.regions(outputs, [outputs.anchors[0].new_tensor([[8.0, 8.0, 40.0, 40.0]])])
            width, has_background = int(found.features.shape[1]), found.exclusive
    levels = list(outputs.levels.values())
    strides = tuple(round(outputs.canvas[0] / level.shape[2]) for level in levels)
    return DetectorShapes(int(levels[0].shape[1]), strides, width, has_background)
