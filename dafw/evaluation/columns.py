"""What a method says of each test sample, beside the sample's label."""

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
