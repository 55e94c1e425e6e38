"""Contrast of an image's embeddings with those of its reference, cell by cell, against a queue of others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision
from dafw.problems.ranks import share_of_all


def pool(values: Tensor, cells: int) -> Tensor:
    """The means over a grid of G x G cells: (n, d, h, w) -> (n G^2, d), cell by cell and image by image."""
    return F.adaptive_avg_pool2d(values, cells).flatten(2).transpose(1, 2).flatten(0, 1)


def cell_contrast(
    anchors: Tensor,
    positives: Tensor,
    confidence: Tensor,
    queue: Tensor,
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
        cells: G, cells in a row and in a column.
        temperature: T.
        least_confidence: see above.

    Returns:
        A scalar, 0 if no cell counts. The mean of the ranks' values is the mean over the cells of all ranks.
    """
    sure = full_precision(confidence)
    anchor, positive = (pool(full_precision(one) * sure, cells) for one in (anchors, positives))
    counts = (pool(sure, cells)[:, 0] >= least_confidence) & (anchor != 0).any(1) & (positive != 0).any(1)
    anchor, positive = (F.normalize(torch.where(counts[:, None], one, 1), dim=1) for one in (anchor, positive))
    scores = torch.cat([(anchor * positive).sum(1, keepdim=True), anchor @ queue.to(anchor)], 1) / temperature
    losses = scores.logsumexp(1) - scores[:, 0]
    return share_of_all(counts.sum().to(losses.dtype)) * losses.masked_fill(~counts, 0).sum()


def enqueue(queue: Tensor, pointer: Tensor, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """A ring buffer after some rows entered it; nothing is read by the host.

    Args:
        queue: (d, Q).
        pointer: int64 scalar, the place of the next row.
        rows: (m, d).
        counts: (m,) bool, the rows that enter; of more than Q of them the last Q do.

    Returns:
        The new queue and pointer.
    """
    size, number = queue.shape[1], counts.sum()
    order = counts.cumsum(0) - 1
    enters = counts & (order >= number - size)
    places = torch.where(enters, (pointer + order) % size, size)  # the last place is thrown away
    wider = torch.cat([queue, queue.new_zeros(len(queue), 1)], 1)
    return wider.index_copy_(1, places, rows.T.to(queue))[:, :size], (pointer + number) % size
