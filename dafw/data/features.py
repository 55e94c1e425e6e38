"""Rows of features: dense or sparse, scaled when a row is asked for."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.feature_files import Matrix

RowNorm = Literal["none", "l1", "l2"]
PIECE = 512
"""Rows of a dense matrix that are taken together where float64 is needed."""


class Scaling(NamedTuple):
    """What is subtracted from each feature, and what it is divided by, (d,) each."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


class FeatureRows(Sequence[Tensor]):
    """Rows as tensors (d,) in float32. A sparse matrix stays sparse; a row of it is dense when it is asked for.

    Args:
        rows: (n, d), float32, dense or csr.
        scaling: of each feature; ``None`` leaves it as it is.
    """

    def __init__(self, rows: Matrix, scaling: Scaling | None = None) -> None:
        self.rows, self.scaling = rows, scaling

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def __getitem__(self, index: Any) -> Any:
        row = self._dense(range(len(self))[index])
        if self.scaling is not None:
            row -= self.scaling.mean
            row /= self.scaling.deviation
        return torch.from_numpy(row)

    def _dense(self, index: int) -> NDArray[np.float32]:
        """A copy of a row."""
        if isinstance(self.rows, np.ndarray):
            return np.array(self.rows[index], np.float32)
        made = np.zeros(self.rows.shape[1], np.float32)
        part = slice(self.rows.indptr[index], self.rows.indptr[index + 1])
        made[self.rows.indices[part]] = self.rows.data[part]
        return made


def scaling_of(parts: Sequence[Matrix]) -> Scaling:
    """The mean and the standard deviation of each feature over all rows of some matrices.

    The deviation of a feature that never changes is taken as 1, so that it becomes 0.

    Args:
        parts: matrices (n, d), dense or csr, of one width.
    """
    count = sum(part.shape[0] for part in parts)
    mean = sum(_sum(one) for part in parts for one in _pieces(part)) / count
    variance = sum(_squares(one, mean) for part in parts for one in _pieces(part)) / count
    deviation = np.sqrt(variance)
    deviation[deviation <= 1e-12 * np.maximum(1, np.abs(mean))] = 1
    return Scaling(mean.astype(np.float32), deviation.astype(np.float32))


def _pieces(part: Matrix) -> Iterator[Matrix]:
    """A dense matrix in pieces, since it is computed with in twice the precision."""
    step = PIECE if isinstance(part, np.ndarray) else part.shape[0]
    for start in range(0, part.shape[0], step):
        yield part[start : start + step]


def _sum(part: Matrix) -> NDArray[np.float64]:
    return np.asarray(part.sum(0, dtype=np.float64)).ravel()


def _squares(part: Matrix, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of squared differences from the mean, (d,)."""
    if isinstance(part, np.ndarray):
        found: NDArray[np.float64] = np.square(part - mean).sum(0)
        return found
    values = part.data.astype(np.float64)
    there = np.bincount(part.indices, minlength=part.shape[1])
    differences = np.bincount(part.indices, np.square(values - mean[part.indices]), part.shape[1])
    rest: NDArray[np.float64] = differences + (part.shape[0] - there) * np.square(mean)
    return rest


def normalised(rows: Matrix, norm: RowNorm) -> Matrix:
    """Rows divided by the sum of their absolute values (``l1``) or by their length (``l2``). A row of zeros stays so.

    Args:
        rows: (n, d), dense or csr.
        norm: ``none`` returns the rows themselves.
    """
    if norm == "none":
        return rows
    from sklearn.preprocessing import normalize

    return normalize(rows, norm=norm)
