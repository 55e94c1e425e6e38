"""Alignment of a reference's feature map with that of another image of the same place."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.data.padding import valid_positions
from dafw.errors import UserError
from dafw.recording import Recorded


class Alignment(Recorded, nn.Module):
    """Base of all alignments; of one's own it is given by its class path. It has no trained parameters."""

    config_key: ClassVar[str] = "model.align"
    #: Whether the alignment is one of images as they are stored, so that no augmentation may move them.
    needs_stored_images: ClassVar[bool] = False

    def forward(
        self, features: Tensor, reference: Tensor, image: Tensor, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Brings features of the reference to where the image shows the same.

        Args:
            features: (n, d, h, w), of the references.
            reference: (n, C, H, W), the references.
            image: (n, C, H, W), the images.
            sizes: (n, 2), height and width of each of both without their padding; ``None`` without padding.

        Returns:
            The features (n, d, h, w) in the image's frame, and how sure each position is, (n, 1, h, w) in [0, 1]. It is
            0 in the padding.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(features, reference, image, sizes)")


class Identity(Alignment):
    """Image and reference show the same at the same pixels; every position is sure."""

    def forward(
        self, features: Tensor, reference: Tensor, image: Tensor, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Alignment`."""
        return features, inside(features, image, sizes)


class Homography(Alignment):
    """One projective map for all pairs, as of two cameras that are fixed to each other.

    Args:
        matrix: 9 numbers, row by row, of the matrix that takes a point (x, y, 1) of the image to that of the reference.
            x and y are shares of the width and the height, 0 at the left and upper edge and 1 at the right and lower.

    Raises:
        UserError: if the matrix has another number of entries or cannot be inverted.
    """

    needs_stored_images = True
    matrix: Tensor

    def __init__(self, matrix: list[float]) -> None:
        super().__init__()
        if len(matrix) != 9:
            raise UserError(f"model.align.matrix has 9 numbers, row by row, not {len(matrix)}")
        found = torch.tensor(matrix, dtype=torch.float32).view(3, 3)
        if abs(float(torch.linalg.det(found))) < 1e-8:
            raise UserError("model.align.matrix cannot be inverted, so that it maps an image to a line")
        self.register_buffer("matrix", found, persistent=False)

    def forward(
        self, features: Tensor, reference: Tensor, image: Tensor, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Alignment`. A position is sure, 1, if the reference shows it, else 0."""
        n, _, height, width = features.shape
        dtype, device = torch.promote_types(features.dtype, torch.float32), features.device
        down = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        across = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        points = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).expand(n, -1, -1, -1)
        shares = points.new_ones(n, 1, 1, 2)  # of the canvas that an image fills: its width and height
        if sizes is not None:
            canvas = torch.tensor([image.shape[3], image.shape[2]], device=device, dtype=dtype)
            shares = (sizes.flip(1).to(dtype) / canvas)[:, None, None]
        lifted = torch.cat([points / shares, torch.ones_like(points[..., :1])], -1) @ self.matrix.to(dtype).T
        depth = lifted[..., 2:]
        moved = lifted[..., :2] / torch.where(depth.abs() > 1e-6, depth, 1e-6)
        seen = ((moved >= 0) & (moved <= 1)).all(-1) & (depth[..., 0] * self.matrix[2, 2] > 0)
        grid = 2 * moved * shares - 1
        warped = F.grid_sample(features, grid.to(features.dtype), padding_mode="border", align_corners=False)
        return warped, inside(features, image, sizes) * seen[:, None]


def inside(features: Tensor, image: Tensor, sizes: Tensor | None) -> Tensor:
    """1 at the positions of a feature map that no padding covers, else 0, (n, 1, h, w)."""
    n, _, height, width = features.shape
    if sizes is None:
        return features.new_ones(n, 1, height, width)
    canvas = (image.shape[2], image.shape[3])
    return valid_positions(sizes, canvas, (height, width))[:, None].to(features.dtype)
