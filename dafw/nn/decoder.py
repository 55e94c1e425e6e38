"""A decoder from embeddings to images."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F

from dafw.errors import UserError


class UpsamplingBlock(nn.Module):
    """Enlarges maps and adds a correction: u + conv(relu(norm(conv(relu(norm(u)))))), where u are the enlarged maps.

    If the number of channels changes, a 1x1 convolution brings u to the new number. Normalisation is over groups of a
    row's own channels, so that no row depends on the batch.

    Args:
        before: channels of the input maps.
        after: channels of the output maps.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = group_norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, before, h, w) -> (n, after, *size), enlarged by nearest neighbours."""
        x = F.interpolate(x, size=size, mode="nearest")
        correction = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        enlarged: Tensor = self.shortcut(x) + correction
        return enlarged


class Decoder(nn.Module):
    """Decodes embeddings (n, D) to images (n, C, H, W) of any size: a small map, then residual blocks that enlarge it.

    A Linear makes a map of ``start`` x ``start``. Block b of B blocks enlarges it to round(start (H / start)^(b / B))
    rows, and columns in the same way. The last block ends at H x W. With ``start=7``, two blocks give 7, 14, 28, and
    five give 7, 14, ..., 224. The last layer is a convolution, so the values of the images are not bounded. The design
    is ours.

    Args:
        dim: D.
        channels: C.
        widths: channels of the first map and of the output of each block; one more than there are blocks.
        start: side of the first map.

    Raises:
        UserError: if there is no block, or a size is below 1.
    """

    def __init__(self, dim: int, channels: int, widths: Sequence[int] = (64, 32, 16), *, start: int = 7) -> None:
        super().__init__()
        if len(widths) < 2 or min(dim, channels, start, *widths) < 1:
            raise UserError(
                f"a decoder needs two widths or more, and sizes of 1 or more: {list(widths)}, start {start}"
            )
        self.first, self.start = widths[0], start
        self.project = nn.Linear(dim, widths[0] * start * start)
        self.blocks = nn.ModuleList(UpsamplingBlock(before, after) for before, after in pairwise(widths))
        self.norm = group_norm(widths[-1])
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the maps after each block."""
        shares = [(b + 1) / len(self.blocks) for b in range(len(self.blocks))]
        return [(self.between(height, share), self.between(width, share)) for share in shares]

    def between(self, end: int, share: float) -> int:
        """The side at ``share`` of the geometric way from the first side to the last."""
        side: float = self.start * (end / self.start) ** share
        return max(1, round(side))

    def forward(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """Embeddings (n, D) and (H, W) -> images (n, C, H, W)."""
        x = self.project(z).view(-1, self.first, self.start, self.start)
        for block, end in zip(self.blocks, self.sizes(*size), strict=True):
            x = block(x, end)
        images: Tensor = self.last(self.norm(x).relu())
        return images


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with gcd(8, channels) groups, at most eight."""
    return nn.GroupNorm(gcd(8, channels), channels)
