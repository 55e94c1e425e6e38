"""Contrast of an image's embeddings with those of its reference, cell by cell, against a queue of others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all


def pool(values: Tensor, cells: int, extents: Tensor | None = None) -> Tensor:
    """The means over a grid of G x G cells: (n, d, h, w) -> (n G^2, d), cell by cell and image by image.

    Args:
        values: (n, d, h, w).
        cells: G.
        extents: (n, 2) int64, the rows and columns of each image, over which its grid lies; ``None``: all of them.
    """
    if extents is None:
        found = F.adaptive_avg_pool2d(values, cells)
    else:
        down, across = (_cells(extents[:, axis], cells, values.shape[2 + axis], values.dtype) for axis in (0, 1))
        found = torch.einsum("ngr,ndrc,nkc->ndgk", down, values, across)
    return found.flatten(2).transpose(1, 2).flatten(0, 1)


def _cells(extent: Tensor, cells: int, length: int, dtype: torch.dtype) -> Tensor:
    """The weights (n, G, length) of the positions in the means over G stretches of each extent (n,)."""
    cell, position = torch.arange(cells, device=extent.device), torch.arange(length, device=extent.device)
    start = cell * extent[:, None] // cells
    end = ((cell + 1) * extent[:, None] + cells - 1) // cells
    inside = (position >= start[..., None]) & (position < end[..., None])
    return inside.to(dtype) / (end - start).to(dtype)[..., None]


def cell_contrast(
    anchors: Tensor,
    positives: Tensor,
    confidence: Tensor,
    queue: Tensor,
    extents: Tensor | None = None,
    *,
    cells: int = 7,
    temperature: float = 0.3,
    least_confidence: float = 0.2,
) -> Tensor:
    """The mean over cells of -log(e^(a p / T) / (e^(a p / T) + sum_q e^(a q / T))).

    a and p are the means of the embeddings in a cell, weighted by their confidence, and then of unit length. A cell
    counts if its mean confidence is at least ``least_confidence`` and neither mean is zero.

    Args:
        anchors: (n, d, h, w).
        positives: (n, d, h, w), aligned with the anchors.
        confidence: (n, 1, h, w) in [0, 1], how sure it is that both show the same place.
        queue: (d, Q), unit vectors.
        extents: see :func:`pool`.
        cells: G, cells in a row and in a column.
        temperature: T.
        least_confidence: see above.

    Returns:
        A scalar, 0 if no cell counts. The mean of the ranks' values is the mean over the cells of all ranks.
    """
    sure = full_precision(confidence)
    anchor, positive = (pool(full_precision(one) * sure, cells, extents) for one in (anchors, positives))
    counts = (pool(sure, cells, extents)[:, 0] >= least_confidence) & (anchor != 0).any(1) & (positive != 0).any(1)
    anchor, positive = (F.normalize(torch.where(counts[:, None], one, 1), dim=1) for one in (anchor, positive))
    scores = torch.cat([(anchor * positive).sum(1, keepdim=True), anchor @ queue.to(anchor)], 1) / temperature
    losses = scores.logsumexp(1) - scores[:, 0]
    return share_of_all(counts.sum().to(losses.dtype)) * losses.masked_fill(~counts, 0).sum()


def enqueue(queue: Tensor, pointer: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A ring buffer after some rows entered it; nothing is read by the host.

    Args:
        queue: (d, Q).
        pointer: int64 scalar, the place of the next row.
        rows: (m, d); of more than Q rows the last Q enter.

    Returns:
        The new queue and pointer.
    """
    size, number = queue.shape[1], len(rows)
    kept = torch.arange(max(0, number - size), number, device=rows.device)
    places = (pointer + kept) % size
    return queue.index_copy(1, places, rows[-size:].T.to(queue)), (pointer + number) % size
