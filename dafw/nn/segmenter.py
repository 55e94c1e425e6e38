"""A fully convolutional network of a few thousand parameters, for tests and small images."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dafw.problems.model import NetworkBase
from dafw.problems.outputs import MaskOutputs


class TinyEncoder(nn.Module):
    """Images (N, C, H, W) to two feature maps, (N, w, H, W) and (N, 2 w, H / 2, W / 2), sides rounded up.

    Args:
        in_channels: C.
        width: w.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*_block(in_channels, width))
        self.coarse = nn.Sequential(*_block(width, 2 * width, stride=2), *_block(2 * width, 2 * width, dilation=2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The fine and the coarse map."""
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


class TinySegmenter(NetworkBase):
    """Images (N, C, H, W) to features (N, 2 w, H / 2, W / 2) and a score of each class for each pixel.

    A 1x1 convolution scores the classes, and bilinear interpolation brings the scores to the size of the images.

    Args:
        width: channels w of the first of three convolutions.
        auxiliary: whether a second head scores the classes on the first feature map.
        in_channels: channels C of an image.
        base: see :class:`~dafw.problems.NetworkBase`.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, width: int = 8, *, auxiliary: bool = False, in_channels: int = 3, **base
    ) -> None:
        super().__init__(TinyEncoder(in_channels, width), 2 * width, in_channels=in_channels, **base)
        self.width, self.auxiliary = width, auxiliary

    def make_head(self, num_classes: int) -> nn.ModuleDict:
        """1x1 convolutions to ``num_classes`` channels: ``main`` and, if there is one, ``auxiliary``."""
        head = nn.ModuleDict({"main": nn.Conv2d(self.num_features, num_classes, 1)})
        if self.auxiliary:
            head["auxiliary"] = nn.Conv2d(self.width, num_classes, 1)
        return head

    def forward(self, x: Any, sizes: Tensor | None = None) -> MaskOutputs:
        """Features and scores of images (N, C, H, W).

        Args:
            x: images, padded to one size.
            sizes: (N, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.

        Raises:
            RuntimeError: before :meth:`set_classes`.
        """
        head: Any = self.label_head()
        fine, coarse = self.encode(x, sizes)
        scores = F.interpolate(head["main"](coarse), size=x.shape[2:], mode="bilinear", align_corners=False)
        auxiliary = head["auxiliary"](fine) if self.auxiliary else None
        return MaskOutputs(coarse, scores, auxiliary, [fine, coarse], sizes)


def _block(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
