"""What is collected over the batches and ranks of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dafw.nn.distributed import gather_unequal


@dataclass(frozen=True)
class TestColumns:
    """Tensors with a row for each of n test samples of one target.

    Args:
        columns: the method's tensors by name, (n, ...).
        labels: (n,) int64, the samples' labels, which the evaluator adds.
        index: (n,) int64, positions in the domain.
    """

    __test__ = False  # its name is no test's

    columns: Mapping[str, Tensor]
    labels: Tensor
    index: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several batches, one after the other."""
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
        return cls(columns, torch.cat([part.labels for part in parts]), torch.cat([part.index for part in parts]))

    def of_all_ranks(self) -> Self:
        """The shares of all ranks together, in the domain's order."""
        labels, index = gather_unequal(self.labels), gather_unequal(self.index)
        order = index.argsort()
        columns = {name: gather_unequal(column)[order] for name, column in self.columns.items()}
        return type(self)(columns, labels[order], index[order])


def evidence_of_all_ranks(batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The batches of one domain of all ranks in one, in the domain's order. The list is emptied, as they may be large.

    Args:
        batches: of this rank, each with features (m, d), logits (m, K) and keys (2, m): the position of the sample that
            a row is of, and the row's label.
    """
    found = [torch.cat(values, -1 if i == 2 else 0) for i, values in enumerate(zip(*batches, strict=True))]
    batches.clear()
    features, logits, keys = (gather_unequal(value, -1 if i == 2 else 0) for i, value in enumerate(found))
    order = keys[0].argsort(stable=True)
    return features[order], logits[order], keys[:, order]
