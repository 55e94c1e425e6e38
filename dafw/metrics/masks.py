"""Metrics of masks, which hold one class for each pixel.

The mean IoU and the pixel accuracy follow from one confusion matrix of all pixels of a data set. A Dice coefficient is
computed for each image, or for each volume of slices, and then averaged. A class that no pixel of the data is labelled
with has no value: it is nan, and no mean counts it, whatever was predicted. So every method is averaged over the same
classes. All states are whole numbers that are added up: the values are the same on any number of ranks and in any
batches, bit for bit. An update never waits for the device.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dafw.errors import UserError

_UNIT = 2**40
"""A Dice coefficient of 1 as a whole number, so that sums do not depend on their order."""


def confusions(prediction: Tensor, target: Tensor, num_classes: int, ignored: int) -> Tensor:
    """The confusion matrix of each image, (N, K, K) int64 counts of pixels; rows are true classes.

    Args:
        prediction: (N, H, W) integers from 0 to K - 1.
        target: (N, H, W) integers from 0 to K - 1, or the ignored value.
        num_classes: K.
        ignored: value of pixels without a label.

    Raises:
        RuntimeError: if a label is neither; on an accelerator the device reports it later.
    """
    n, cells = len(target), num_classes**2
    if target.device.type == "cpu":
        found = torch.empty(n, num_classes, num_classes, dtype=torch.int64)
        rows = max(num_classes, ignored + 1)
        for image, row in enumerate(found):
            cell = target[image].to(torch.int32) * num_classes + prediction[image].to(torch.int32)
            counts = torch.bincount(cell.flatten(), minlength=rows * num_classes)
            strange = counts[cells:].clone()
            strange[(ignored - num_classes) * num_classes :][:num_classes] = 0
            if strange.any():
                label = num_classes + int(strange.argmax()) // num_classes
                raise RuntimeError(f"pixels have the label {label}, and there are {num_classes} classes")
            row.copy_(counts[:cells].view(num_classes, num_classes))
        return found
    target = target.long()
    first = (cells + 1) * torch.arange(n, device=target.device).view(-1, 1, 1)
    wrong = (target < 0) | (target >= num_classes)
    cell = target * num_classes + prediction.long() + first
    cell = torch.where(wrong, n * (cells + 1), cell)  # not a cell: it must not be counted in another one
    cell = torch.where(target == ignored, cells + first, cell).flatten()
    counts = torch.zeros(n * (cells + 1), dtype=torch.int64, device=target.device)
    counts = counts.scatter_add_(0, cell, torch.ones_like(cell))
    return counts.view(n, cells + 1)[:, :-1].reshape(n, num_classes, num_classes)


class PixelMetric(Metric):
    """Base of the metrics that follow from the confusion matrices of images.

    Args:
        num_classes: number K of classes.
        ignored: value of pixels without a label, which do not count.
        options: passed to :class:`torchmetrics.Metric`.

    Attributes:
        confusion: (K, K) int64 counts of pixels of all images. Rows are true classes, columns predicted ones.
        dice: (K,) int64, the sum over images of the Dice coefficient of each class, in units of 2^-40.
        images: (K,) int64, the number of images in which the class is labelled or predicted.

    Raises:
        UserError: if there is no class.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    confusion: Tensor
    dice: Tensor
    images: Tensor

    def __init__(self, num_classes: int, ignored: int, **options: Any) -> None:
        super().__init__(**options)
        if num_classes < 1:
            raise UserError(f"a metric of masks needs at least one class, not {num_classes}")
        self.num_classes, self.ignored = num_classes, ignored
        for name, shape in (
            ("confusion", (num_classes, num_classes)),
            ("dice", (num_classes,)),
            ("images", (num_classes,)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts the pixels of a batch; see :func:`confusions`."""
        found = confusions(prediction, target, self.num_classes, self.ignored)
        self.confusion = self.confusion + found.sum(0)
        hits, either = found.diagonal(dim1=1, dim2=2), found.sum(1) + found.sum(2)
        self.dice = self.dice + (2 * hits * _UNIT).div(either.clamp_min(1), rounding_mode="floor").sum(0)
        self.images = self.images + (either > 0).sum(0)

    def overlaps(self) -> Tensor:
        """(K,) intersection over union of each class; nan for a class that no pixel is labelled with."""
        hits, labelled = self.confusion.diagonal().double(), self.confusion.sum(1)
        return (hits / (self.confusion.sum(0) + labelled - hits)).masked_fill(labelled == 0, torch.nan)

    def dices(self) -> Tensor:
        """(K,) mean over images of the Dice coefficient of each class; nan as in :meth:`overlaps`."""
        return (self.dice.double() / _UNIT / self.images).masked_fill(self.confusion.sum(1) == 0, torch.nan)


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


class ClassDice(PixelMetric):
    """Dice coefficient of each class, 2 hits / (labelled + predicted pixels), a mean over images, (K,).

    An image in which a class is neither labelled nor predicted has no part in the mean of the class.
    """

    def compute(self) -> Tensor:
        """Each value in [0, 1], or nan."""
        return self.dices()


class MeanDice(PixelMetric):
    """Mean over the classes of :class:`ClassDice` that have a value."""

    def compute(self) -> Tensor:
        """In [0, 1]; nan without a labelled pixel."""
        return self.dices().nanmean()


class VolumeDice(Metric):
    """Dice coefficient of each class, a mean over volumes: the slices of a volume are one image, (K,).

    Args:
        num_classes: number K of classes.
        ignored: value of pixels without a label, which do not count.
        num_volumes: number V of volumes.
        options: passed to :class:`torchmetrics.Metric`.

    Attributes:
        counts: (V, 3, K) int64 pixels of each class in each volume: hits, labelled ones, predicted ones.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    counts: Tensor

    def __init__(self, num_classes: int, ignored: int, num_volumes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes, self.ignored = num_classes, ignored
        self.add_state("counts", torch.zeros(num_volumes, 3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, volume: Tensor) -> None:
        """Counts the pixels of a batch of slices.

        Args:
            prediction: see :func:`confusions`.
            target: see :func:`confusions`.
            volume: (N,) int64, the number of the volume of each slice.
        """
        found = confusions(prediction, target, self.num_classes, self.ignored)
        parts = torch.stack([found.diagonal(dim1=1, dim2=2), found.sum(2), found.sum(1)], 1)
        self.counts = self.counts.index_add(0, volume, parts)

    def compute(self) -> Tensor:
        """Each value in [0, 1]; nan for a class that no pixel is labelled with."""
        hits, labelled, predicted = self.counts.double().unbind(1)
        return (2 * hits / (labelled + predicted)).nanmean(0).masked_fill(labelled.sum(0) == 0, torch.nan)


class MeanVolumeDice(VolumeDice):
    """Mean over the classes of :class:`VolumeDice` that have a value."""

    def compute(self) -> Tensor:
        """In [0, 1]; nan without a labelled pixel."""
        return super().compute().nanmean()


def mask_metrics(num_classes: int, ignored: int) -> MetricCollection:
    """``miou``, ``mdice``, ``pixel_accuracy`` and the vectors ``iou`` and ``dice``, which share their counts."""
    options: dict[str, Any] = {"num_classes": num_classes, "ignored": ignored}
    made: dict[str, type[Any]] = {
        "miou": MeanIoU,
        "mdice": MeanDice,
        "pixel_accuracy": PixelAccuracy,
        "iou": ClassIoU,
        "dice": ClassDice,
    }
    metrics = {name: kind(**options) for name, kind in made.items()}
    return MetricCollection(metrics, compute_groups=[[*made]])


def volume_metrics(num_classes: int, ignored: int, num_volumes: int) -> MetricCollection:
    """``mdice_volume`` and the vector ``dice_volume``, which share their counts."""
    options: dict[str, Any] = {"num_classes": num_classes, "ignored": ignored, "num_volumes": num_volumes}
    metrics: dict[str, Metric] = {"mdice_volume": MeanVolumeDice(**options), "dice_volume": VolumeDice(**options)}
    return MetricCollection(metrics, compute_groups=[[*metrics]])  # type: ignore[arg-type]
