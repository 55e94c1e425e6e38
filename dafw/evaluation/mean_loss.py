"""The mean of a loss over samples and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """A mean over the samples of batches, and over all ranks; an update never waits for the device.

    Args:
        dtype: of the sums.
    """

    total: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Adds the mean loss of a batch of so many samples."""
        self.total += samples * loss
        self.count += samples

    def compute(self) -> Tensor:
        """The mean; nan without a sample."""
        return self.total / self.count
