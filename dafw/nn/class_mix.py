"""What is pasted, and what is hidden: masks of half of an image's classes, and masks of square blocks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.padding import IGNORE

#: Blocks in each direction that have numbers of their own; larger images repeat them.
BLOCKS = 32


def class_mask(labels: Tensor, scores: Tensor) -> Tensor:
    """The pixels of half of the classes of each image, rounded up; pixels without a label are never among them.

    Olsson et al., ClassMix, WACV 2021, https://arxiv.org/abs/2007.07936, section 3.2. The classes of an image are
    those with the lowest scores of all that it has. The host reads nothing.

    Args:
        labels: masks (n, H, W), 255 where there is no label.
        scores: random numbers (n, K), one for each class.

    Returns:
        (n, H, W) bool.
    """
    count, classes = scores.shape
    places = labels.long().flatten(1)
    present = torch.zeros(count, IGNORE + 1, dtype=torch.bool, device=labels.device).scatter_(1, places, True)
    present = present[:, :classes]
    ranks = scores.masked_fill(~present, math.inf).argsort(1).argsort(1)
    half = (present.sum(1, keepdim=True) + 1) // 2
    chosen = F.pad(present & (ranks < half), (0, IGNORE + 1 - classes))
    return chosen.gather(1, places).view(labels.shape)


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The source where a mask (n, H, W) says so, else the target: images (n, C, H, W) or masks (n, H, W)."""
    return torch.where(pasted[:, None] if source.ndim == 4 else pasted, source, target)


def block_mask(numbers: Tensor, sizes: Tensor, canvas: tuple[int, int], block: int, ratio: float) -> Tensor:
    """The pixels that stay visible when some of the square blocks of each image are hidden.

    Hoyer et al., MIC, CVPR 2023, https://arxiv.org/abs/2212.01322, section 3.2. As in the authors' code, an image of
    height h has round(h / block) rows of blocks, which differ by a pixel in height where they do not divide it. An
    image that is smaller than half a block is one block.

    Args:
        numbers: random numbers (n, r, c) in [0, 1), one for each block; images of more blocks repeat them.
        sizes: (n, 2) int64, height and width of each image without its padding.
        canvas: height H and width W of the padded images.
        block: side of a block in pixels.
        ratio: a block is visible if its number is above this share.

    Returns:
        (n, H, W) bool; what the padding has does not matter.
    """
    return _spread(numbers, (sizes / block).round().long().clamp_min(1), sizes, canvas) > ratio


def grid_mask(numbers: Tensor, sizes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The number of the patch that each pixel is in, for images that are cut into as many patches as there are numbers.

    Args:
        numbers: (n, r, c), one for each patch.
        sizes: (n, 2) int64, height and width of each image without its padding.
        canvas: height H and width W of the padded images.

    Returns:
        (n, H, W); what the padding has does not matter.
    """
    counts = torch.tensor(numbers.shape[1:], device=sizes.device).expand(len(numbers), 2)
    return _spread(numbers, counts, sizes, canvas)


def _spread(numbers: Tensor, counts: Tensor, sizes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The numbers (n, r, c) of the blocks that pixels are in, (n, H, W), for counts (n, 2) of blocks on each side."""
    places = []
    for axis in (0, 1):
        side, count = (one[:, axis : axis + 1] for one in (sizes, counts))
        pixels = torch.arange(canvas[axis], device=sizes.device)
        places.append((pixels * count // side.clamp_min(1)) % numbers.shape[1 + axis])
    rows = torch.arange(len(numbers), device=numbers.device)[:, None, None]
    return numbers[rows, places[0][:, :, None], places[1][:, None, :]]


def hide_blocks(x: Tensor, numbers: Tensor, sizes: Tensor | None, block: int, ratio: float, colour: Tensor) -> Tensor:
    """Images whose hidden blocks have one colour, see :func:`block_mask`: (n, C, H, W) -> (n, C, H, W).

    Args:
        x: images, uint8 or in [0, 1].
        numbers: random numbers (n, r, c) in [0, 1), one for each block.
        sizes: (n, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.
        block: side of a block in pixels.
        ratio: share of hidden blocks.
        colour: (C, 1, 1) in [0, 1], of hidden pixels; rounded for uint8 images.
    """
    canvas = (int(x.shape[2]), int(x.shape[3]))
    if sizes is None:
        sizes = torch.stack([torch.full((len(x),), side, device=x.device) for side in canvas], 1)
    visible = block_mask(numbers, sizes, canvas, block, ratio)
    return torch.where(visible[:, None], x, (255 * colour).round().to(x.dtype) if x.dtype == torch.uint8 else colour)
