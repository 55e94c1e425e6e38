"""Stacked features of marginalised denoising autoencoders (mSDA), in closed form.

Chen, Xu, Weinberger and Sha, Marginalized Denoising Autoencoders for Domain Adaptation, ICML 2012,
https://arxiv.org/abs/1206.4683.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dafw.data.feature_files import Matrix

PIECE = 1024
"""Rows that are encoded together."""


def denoising_weights(rows: NDArray[np.float32], corruption: float, ridge: float) -> NDArray[np.float32]:
    """The linear map that best rebuilds rows from copies of them in which each feature is 0 with a probability.

    It is the limit of infinitely many copies: W = P (Q + ridge I)^-1, where a constant 1 that is never lost stands
    behind each row, S is the sum of x x' over the rows, P = S with column j times q_j, Q = S with element ij times
    q_i q_j, but q_i on the diagonal, q = 1 - corruption, and 1 for the constant. The constant has no ridge.

    Args:
        rows: (n, d).
        corruption: probability that a feature is lost, at least 0 and below 1.
        ridge: added to the diagonal of Q, so that features which no row has cause no trouble.

    Returns:
        W, (d, d + 1). Its last column belongs to the constant.
    """
    from scipy.linalg import solve

    width = rows.shape[1]
    kept = np.full(width + 1, 1 - corruption)
    kept[-1] = 1
    scatter = np.zeros((width + 1, width + 1))
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE].astype(np.float64)
        scatter[:-1, :-1] += piece.T @ piece
        scatter[-1, :-1] += piece.sum(0)
    scatter[:-1, -1], scatter[-1, -1] = scatter[-1, :-1], len(rows)
    rebuilt = scatter[:, :-1] * kept[:, None]  # P', whose columns are solved for
    diagonal = kept * scatter.diagonal()
    scatter *= kept[:, None]
    scatter *= kept[None]
    np.fill_diagonal(scatter, diagonal + np.append(np.full(width, ridge), 0))
    found = solve(scatter, rebuilt, assume_a="pos", overwrite_a=True, overwrite_b=True, check_finite=False)
    return np.ascontiguousarray(found.T, np.float32)


def encode(rows: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """tanh(W x + b) of each row: (n, d) -> (n, d)."""
    made = np.empty((len(rows), len(weights)), np.float32)
    for start in range(0, len(rows), PIECE):
        piece = slice(start, start + PIECE)
        np.tanh(rows[piece] @ weights[:, :-1].T + weights[:, -1], out=made[piece])
    return made


def stacked_msda(
    fitted: Matrix, others: Sequence[Matrix], *, layers: int, corruption: float, ridge: float
) -> Iterator[list[NDArray[np.float32]]]:
    """Yields the output of each layer, first the rows themselves. Side by side, they are the representation.

    Each layer is fitted on the output of the one before it, and its output is tanh of what it rebuilds.

    Args:
        fitted: the rows that the layers are fitted on, (n, d), dense or csr.
        others: further matrices of rows that are encoded.
        layers: number of layers.
        corruption: see :func:`denoising_weights`.
        ridge: see :func:`denoising_weights`.

    Yields:
        For each matrix of ``others`` its output (m, d).
    """
    current = [
        np.asarray(one if isinstance(one, np.ndarray) else one.toarray(), np.float32) for one in (fitted, *others)
    ]
    yield current[1:]
    for _ in range(layers):
        weights = denoising_weights(current[0], corruption, ridge)
        current = [encode(one, weights) for one in current]
        yield current[1:]
