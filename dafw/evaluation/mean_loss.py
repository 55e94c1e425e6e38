"""The mean of a loss over batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """A mean over all parts of all batches, and over all ranks; an update never waits for the device.

    Args:
        dtype: of the sums.
    """

    total: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Adds the losses of a batch.

        Args:
            total: their sum, a scalar.
            count: how many there are.
        """
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The mean; nan without a loss."""
        return self.total / self.count
