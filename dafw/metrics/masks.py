"""Metrics of masks, which hold one class for each pixel.

All follow from one confusion matrix of pixels. A class without a pixel in labels and predictions has no value: it is
nan, and no mean counts it. The metrics are exact on several ranks, and an update never waits for the device.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dafw.errors import UserError


class PixelMetric(Metric):
    """Base of the metrics that follow from a confusion matrix of pixels.

    Args:
        num_classes: number K of classes.
        ignored: value of pixels without a label, which do not count.
        options: passed to :class:`torchmetrics.Metric`.

    Attributes:
        confusion: (K, K) int64 counts of pixels. Rows are true classes, columns predicted ones.

    Raises:
        UserError: if there is no class.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignored: int, **options: Any) -> None:
        super().__init__(**options)
        if num_classes < 1:
            raise UserError(f"a metric of masks needs at least one class, not {num_classes}")
        self.num_classes, self.ignored = num_classes, ignored
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts the pixels of a batch.

        Args:
            prediction: (N, H, W) integers from 0 to K - 1.
            target: (N, H, W) integers from 0 to K - 1, or the ignored value.

        Raises:
            RuntimeError: if a label is neither; on an accelerator the device reports it later.
        """
        classes, target = self.num_classes, target.long()
        cell = target * classes + prediction.long()
        wrong = (target < 0) | (target >= classes)
        cell = torch.where(wrong, classes**2 + 1, cell)  # not a cell: it must not be counted in another one
        cell = torch.where(target == self.ignored, classes**2, cell).flatten()
        counts = self.confusion.new_zeros(classes**2 + 1).scatter_add_(0, cell, torch.ones_like(cell))
        self.confusion = self.confusion + counts[:-1].view_as(self.confusion)

    def overlaps(self) -> Tensor:
        """(K,) intersection over union of each class; nan for a class that is neither labelled nor predicted."""
        hits = self.confusion.diagonal().double()
        return hits / (self.confusion.sum(0) + self.confusion.sum(1) - hits)


class ClassIoU(PixelMetric):
    """Intersection over union of each class, (K,)."""

    def compute(self) -> Tensor:
        """Each value in [0, 1], or nan."""
        return self.overlaps()


class MeanIoU(PixelMetric):
    """Mean over the classes of :class:`ClassIoU` that have a value."""

    def compute(self) -> Tensor:
        """In [0, 1]; nan without a labelled pixel."""
        return self.overlaps().nanmean()


class PixelAccuracy(PixelMetric):
    """Share of the labelled pixels that have the right class."""

    def compute(self) -> Tensor:
        """In [0, 1]; nan without a labelled pixel."""
        return self.confusion.diagonal().sum().double() / self.confusion.sum()


def mask_metrics(num_classes: int, ignored: int) -> MetricCollection:
    """``miou``, ``pixel_accuracy`` and the vector ``iou``, which share one confusion matrix."""
    options: dict[str, Any] = {"num_classes": num_classes, "ignored": ignored}
    return MetricCollection(
        {"miou": MeanIoU(**options), "pixel_accuracy": PixelAccuracy(**options), "iou": ClassIoU(**options)},
        compute_groups=[["miou", "pixel_accuracy", "iou"]],
    )
