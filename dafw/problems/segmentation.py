"""Semantic segmentation: one class for each pixel."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.data.domain import Domain
from dafw.data.geometry import nearest
from dafw.data.padding import IGNORE
from dafw.errors import UserError
from dafw.metrics.masks import mask_metrics, volume_metrics
from dafw.problems.base import Predicted, Problem, Shown
from dafw.problems.mask_files import Masks, check_folder, write_masks
from dafw.problems.outputs import MaskOutputs
from dafw.problems.pictures import picture
from dafw.problems.ranks import share_of_all
from dafw.ranges import NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Segmentation(Problem):
    """One class for each pixel: cross-entropy over the labelled pixels, and the mean intersection over union.

    Masks are uint8, (n, H, W). The value 255 means that a pixel has no label: no loss and no metric counts it. Padding
    has this value too. Masks that are smaller than the padded images lie in their upper left corner.

    Args:
        auxiliary_weight: weight of the auxiliary head's cross-entropy, for networks that have such a head (Zhao et al.,
            Pyramid Scene Parsing Network, CVPR 2017, https://arxiv.org/abs/1612.01105, section 3.3: 0.4).
        evidence_grid: the label-free validators see g x g pixels of each image, evenly spaced over it.

    Raises:
        UserError: if a value is out of range.
    """

    kind: ClassVar[str] = "segmentation"
    label_form: ClassVar[str] = "masks of height and width"
    primary: str = "miou"
    supports_unsupervised_validators: bool = True
    is_spatial: ClassVar[bool] = True
    ignore_index: ClassVar[int | None] = IGNORE
    most_shown: ClassVar[int] = 3
    shows_earlier: ClassVar[bool] = True
    predictions_name: ClassVar[str] = "predictions"

    def __init__(self, auxiliary_weight: NonNegativeFloat = 0.4, evidence_grid: PositiveInt = 4) -> None:
        self.auxiliary_weight, self.evidence_grid = auxiliary_weight, evidence_grid

    def takes(self, label: Any) -> bool:
        """See :meth:`~dafw.problems.base.Problem.takes`."""
        return not isinstance(label, Mapping) and getattr(label, "ndim", 0) == 2

    # ---- learning

    def terms(self, outputs: MaskOutputs, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropies: logits (n, K, H, W), y (n, h, w) -> ``supervised``, and ``auxiliary`` of an auxiliary head.

        Each is a mean over the labelled pixels of all rows of all ranks: several ranks minimise what one process would.
        It is 0 without a labelled pixel.
        """
        precision = torch.promote_types(outputs.logits.dtype, torch.float32)
        share = share_of_all((y != IGNORE).sum().to(precision))
        terms = {"supervised": share * pixel_losses(outputs.logits, y).sum()}
        if outputs.auxiliary is not None:
            terms["auxiliary"] = self.auxiliary_weight * share * pixel_losses(outputs.auxiliary, y).sum()
        return terms

    def row_losses(self, outputs: MaskOutputs, y: Tensor) -> Tensor:
        """The loss of each image, the mean over its own labelled pixels: logits (n, K, H, W), y (n, h, w) -> (n,)."""
        count = (y != IGNORE).sum((1, 2)).clamp_min(1)
        return self._pixel_losses(outputs, y).sum((1, 2)) / count

    def summed_loss(self, outputs: MaskOutputs, y: Tensor) -> tuple[Tensor, Tensor | int]:
        """The sum over the labelled pixels, and their number."""
        return self._pixel_losses(outputs, y).sum(), (y != IGNORE).sum()

    def weighted_loss(self, outputs: MaskOutputs, y: Tensor, weights: Tensor) -> Tensor:
        """The mean of weight times cross-entropy over the labelled pixels of all rows of all ranks, 0 without any.

        Args:
            outputs: logits (n, K, H, W).
            y: masks (n, H, W), 255 where there is no label.
            weights: (n, H, W), of the pixels; what those without a label have does not matter.
        """
        precision = torch.promote_types(outputs.logits.dtype, torch.float32)
        share = share_of_all((y != IGNORE).sum().to(precision))
        return share * (weights * self._pixel_losses(outputs, y)).sum()

    def _pixel_losses(self, outputs: MaskOutputs, y: Tensor) -> Tensor:
        losses = pixel_losses(outputs.logits, y)
        if outputs.auxiliary is None:
            return losses
        return losses + self.auxiliary_weight * pixel_losses(outputs.auxiliary, y)

    def pseudo_labels(self, outputs: MaskOutputs, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
        """The most probable class of each pixel.

        Returns:
            Masks (n, H, W) uint8, 255 where the probability is below the threshold and in the padding; and weights (n,
            H, W), 1 where there is a class, else 0.
        """
        share, label = outputs.logits.detach().float().softmax(1).max(1)
        counts, valid = share >= threshold, outputs.valid()
        if valid is not None:
            counts = counts & valid
        return label.to(torch.uint8).masked_fill(~counts, IGNORE), counts.float()

    def carry(self, labels: Tensor, maps: Tensor, size: tuple[int, int], sizes: Tensor | None = None) -> Tensor:
        """Masks (n, h, w) after affine maps (n, 2, 3) -> (n, *size): the nearest pixel, 255 where there was none."""
        return nearest(labels, maps, size, IGNORE, sizes)

    # ---- measuring

    def metrics(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] = (),
        rejects: bool = False,
        has_unknown: bool = False,
    ) -> MetricCollection:
        """``miou``, ``mdice``, ``pixel_accuracy``, and the ``iou`` and ``dice`` of each class.

        A class that no pixel is labelled with is nan, and in no mean; see :mod:`dafw.metrics.masks`.

        Raises:
            UserError: if samples may be unknown, or there are so many classes that 255 is one.
        """
        if rejects or has_unknown:
            raise UserError("Segmentation knows no unknown classes: leave out data.label_sets and model.rejection")
        if num_classes > IGNORE:
            raise UserError(f"a mask tells {IGNORE} classes apart, and the data has {num_classes}")
        return mask_metrics(num_classes, IGNORE)

    def score(self, metrics: MetricCollection, outputs: MaskOutputs, y: Tensor, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics`: logits (n, K, H, W), y (n, h, w)."""
        metrics.update(outputs.logits.argmax(1), on_canvas(y, outputs.logits))

    def volume_metrics(self, num_classes: int, num_volumes: int) -> MetricCollection:
        """``mdice_volume``, and the ``dice_volume`` of each class."""
        return volume_metrics(num_classes, IGNORE, num_volumes)

    def score_volumes(self, metrics: MetricCollection, outputs: MaskOutputs, y: Tensor, volume: Tensor) -> None:
        """Updates :meth:`volume_metrics`: logits (n, K, H, W), y (n, h, w), numbers of volumes (n,)."""
        metrics.update(outputs.logits.argmax(1), on_canvas(y, outputs.logits), volume)

    def evidence(self, outputs: MaskOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """Features (n g^2, d) and logits (n g^2, K) at g x g places of each image, none in its padding; the images."""
        height, width = outputs.logits.shape[2:]
        down, across = self._grid(outputs)
        rows, columns = outputs.features.shape[2:]
        logits = _at(outputs.logits, down, across)
        image = torch.arange(len(outputs), device=logits.device).repeat_interleave(self.evidence_grid**2)
        return _at(outputs.features, down * rows // height, across * columns // width), logits, image

    def evidence_labels(self, outputs: MaskOutputs, y: Tensor) -> Tensor:
        """The labels (n g^2,) of the same places, 255 for none."""
        return _at(on_canvas(y, outputs.logits)[:, None], *self._grid(outputs))[:, 0].long()

    def _grid(self, outputs: MaskOutputs) -> tuple[Tensor, Tensor]:
        """Row (n, g, 1) and column (n, 1, g) of the places."""
        n, _, height, width = outputs.logits.shape
        device, g = outputs.logits.device, self.evidence_grid
        sizes = outputs.sizes
        if sizes is None:
            sizes = torch.stack([torch.full((n,), side, device=device) for side in (height, width)], 1)
        steps = 2 * torch.arange(g, device=device) + 1
        places = steps * sizes[:, :, None] // (2 * g)
        return places[:, 0, :, None], places[:, 1, None, :]

    # ---- showing

    def predictions(self, outputs: MaskOutputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """``prediction``: a mask of classes for each sample, (n, H, W) uint8; a list if the images differ in size.

        ``confidence``: (n,), the mean over a sample's pixels of the largest probability.
        """
        masks, valid = outputs.logits.argmax(1).to(torch.uint8).cpu(), outputs.valid()
        largest = outputs.logits.float().softmax(1).amax(1)
        inside = torch.ones_like(largest, dtype=torch.bool) if valid is None else valid
        confidence = largest.masked_fill(~inside, 0).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
        if outputs.sizes is None:
            return {"prediction": masks, "confidence": confidence}
        sizes = outputs.sizes.tolist()
        cut = [mask[:height, :width] for mask, (height, width) in zip(masks, sizes, strict=True)]
        return {"prediction": cut, "confidence": confidence}

    def predictions_at(
        self, outputs: MaskOutputs, sizes: Sequence[tuple[int, int] | None], unknown: Tensor | None = None
    ) -> dict[str, Any]:
        """As :meth:`predictions`; the scores of a scaled image are scaled back before the class is chosen.

        Its confidence is the mean over the pixels of the mask that was scaled back.
        """
        found = self.predictions(outputs)
        if not any(sizes):
            return found
        masks, confidence = list(found["prediction"]), found["confidence"].clone()
        for index, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
            if size is not None and size != tuple(mask.shape):
                height, width = mask.shape
                scores = outputs.logits[index : index + 1, :, :height, :width].float()
                scaled = F.interpolate(scores, size, mode="bilinear", align_corners=False)
                masks[index] = scaled.argmax(1)[0].to(torch.uint8).cpu()
                confidence[index] = scaled.softmax(1).amax(1).mean()
        return {**found, "prediction": masks, "confidence": confidence}

    def check_output(self, path: Path) -> None:
        """Asks for a folder that may be written."""
        check_folder(path)

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        """Writes a folder of PNG files, see :func:`~dafw.problems.mask_files.write_masks`.

        Raises:
            UserError: if ``path`` is a file.
        """
        masks = [
            Masks(one.domain, one.ids, one.columns["prediction"], one.columns["confidence"], one.sizes) for one in found
        ]
        write_masks(masks, class_names, path)

    def pictures(self, shown: Sequence[Shown], class_names: Sequence[str]) -> "dict[str, Figure]":
        """``masks``: images of each domain with their labels and predictions side by side, earlier ones too."""
        from dafw import plots

        rows = []
        for one in shown:
            for index, (image, label, found) in enumerate(drawn_masks(one)):
                sets = {"label": label}
                if one.earlier is not None:
                    sets[one.earlier_name] = one.earlier["prediction"][index].numpy()
                rows.append(plots.MaskRow(one.domain, image, {**sets, "prediction": found}))
        return {"masks": plots.masks(rows, list(class_names), ignored=IGNORE)} if rows else {}

    def examples(self, shown: Sequence[Shown], class_names: Sequence[str]) -> dict[str, Any]:
        """By target, its images with their labels and predictions, see :func:`~dafw.plots.same_images`."""
        from dafw import plots

        targets: dict[str, list[Any]] = {one.domain: [] for one in shown if one.is_target}
        for one in shown:
            if one.is_target:
                targets[one.domain] += [plots.kept_masks(*parts) for parts in drawn_masks(one)]
        return {"kind": "masks", "ignored": IGNORE, "classes": list(class_names), "targets": targets}

    def wrong_samples(self, domain: Domain, num_classes: int) -> list[str]:
        """The samples with a mask of another size than the image's, or a value that is neither a class nor 255."""
        found = []
        for index, mask in enumerate(() if domain.labels is None else domain.labels):
            name = domain.id(index)
            if isinstance(mask, Mapping) or getattr(mask, "ndim", 0) != 2:
                found.append(f"{name} has a label that is no mask of height and width")
                continue
            size, expected = tuple(mask.shape), tuple(domain.inputs[index].shape[-2:])
            if size != expected:
                found.append(f"{name} is {expected[0]}x{expected[1]} and its mask {size[0]}x{size[1]}")
            values = torch.unique(torch.as_tensor(mask)).tolist()
            if wrong := [value for value in values if not 0 <= value < num_classes and value != IGNORE]:
                found.append(f"{name} has pixels of class {wrong[0]}, but there are {num_classes} classes")
        return found


def drawn_masks(shown: Shown) -> "Iterator[tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]]]":
    """Each image of a batch without its padding, its label (h, w), and its predicted classes (h, w)."""
    for index, mask in enumerate(shown.predictions["prediction"]):
        height, width = mask.shape
        label = None if shown.labels is None else shown.labels[index][:height, :width].numpy()
        yield picture(shown.inputs[index][:, :height, :width]), label, mask.numpy()


def on_canvas(y: Tensor, logits: Tensor) -> Tensor:
    """Masks (n, h, w) in the upper left corner of the padded images (n, H, W); the rest has no label.

    Raises:
        ValueError: if the masks are larger than the scores.
    """
    missing = [full - own for full, own in zip(logits.shape[2:], y.shape[1:], strict=True)]
    if min(missing) < 0:
        raise ValueError(f"masks of {tuple(y.shape[1:])} for class scores of {tuple(logits.shape[2:])}")
    return F.pad(y, (0, missing[1], 0, missing[0]), value=IGNORE) if any(missing) else y


def pixel_losses(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each pixel, 0 where it has no label: logits (n, K, H, W), masks (n, h, w) -> (n, H, W)."""
    return F.cross_entropy(logits, on_canvas(y, logits).long(), ignore_index=IGNORE, reduction="none")


def _at(values: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Values (n, c, H, W) at g x g places of each image -> (n g^2, c)."""
    places = (down * values.shape[3] + across).flatten(1)
    found = values.flatten(2).gather(2, places[:, None].expand(-1, values.shape[1], -1))
    return found.transpose(1, 2).flatten(0, 1)
