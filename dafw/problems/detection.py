"""Object detection: boxes with classes."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, get_args

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.data.domain import Domain
from dafw.data.geometry import move_boxes
from dafw.errors import UserError, choose
from dafw.problems.base import Predicted, Problem, Shown
from dafw.problems.box_files import write_boxes
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.problems.pictures import picture
from dafw.problems.reads import needed_reads
from dafw.ranges import ClosedUnitInterval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dafw.plots import Boxes as Drawn

Boxes = Sequence[Mapping[str, Tensor]]
Precision = Literal["coco", "voc07", "voc"]


class BoxNetwork(Protocol):
    """What a network must be able to do with its own outputs; see :class:`~dafw.nn.detector.Detector`."""

    def losses(self, outputs: BoxOutputs, y: Boxes, *, over_ranks: bool = True) -> dict[str, Tensor]:
        """By name the terms of the loss."""

    def row_losses(self, outputs: BoxOutputs, y: Boxes) -> dict[str, Tensor]:
        """By name the terms of the loss of each image, (N,)."""

    def detections(self, outputs: BoxOutputs) -> list[dict[str, Tensor]]:
        """``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) of each image."""


class RegionNetwork(BoxNetwork, Protocol):
    """What a method asks of a network whose regions it aligns or compares."""

    def proposals(self, outputs: BoxOutputs, count: int | None = None) -> list[Tensor]:
        """Boxes (n, 4) of each image that may hold an object."""

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """Features and class scores of any boxes."""


class Detection(Problem):
    """Boxes with classes: the losses of the detector, and COCO's average precision.

    The labels of n images are a list of n mappings with ``boxes`` (k, 4), as x1, y1, x2, y2 in pixels, and ``labels``
    (k,) int64 from 0. In evaluation they may also have ``crowd`` (k,) bool, the regions that are no single object,
    which no metric and no loss counts, and ``area`` (k,) in square pixels, which decides what is a small object. The
    data leaves crowds out of training.

    Outputs of a detector become losses and boxes by its own modules. So this problem works on the outputs of the
    network that it is bound to, see :meth:`~dafw.problems.base.Problem.bind`.

    Args:
        ap: which average precision at an overlap of 0.5 tables print: ``coco`` with 101 recalls (``ap50``), ``voc07``
            with 11 recalls (``ap50_voc07``), or ``voc``, the area under the curve (``ap50_voc``). Papers differ.
        evidence_score: the label-free validators see the detections with a higher score.

    Raises:
        UserError: if a value is out of range.
    """

    kind: ClassVar[str] = "detection"
    label_form: ClassVar[str] = "boxes with classes"
    is_spatial: ClassVar[bool] = True
    supports_unsupervised_validators: bool = True
    validators: ClassVar[tuple[str, ...]] = ("entropy", "im", "pseudo_boxes")
    most_shown: ClassVar[int] = 3
    predictions_name: ClassVar[str] = "predictions.json"

    _network: BoxNetwork | None = None

    def __init__(self, ap: Precision = "coco", evidence_score: ClosedUnitInterval = 0.5) -> None:
        choose("ap", ap, get_args(Precision))
        self.ap: Precision = ap
        self.evidence_score = evidence_score
        self.primary = "ap50" if ap == "coco" else f"ap50_{ap}"

    def bind(self, network: Any) -> Self:
        """A copy for the outputs of one detector.

        Raises:
            UserError: if the network makes no losses and boxes of its outputs.
        """
        if lacking := [name for name in vars(BoxNetwork) if name[0] != "_" and not hasattr(network, name)]:
            raise UserError(
                f"model.problem is Detection, and {type(network).__name__} is no detector (it lacks {lacking[0]}): set "
                "model.network to Detector"
            )
        bound = copy.copy(self)
        bound._network = network
        bound.supports_unsupervised_validators = hasattr(network, "regions")  # whose features they look at
        return bound

    @property
    def network(self) -> BoxNetwork:
        """The detector that this problem is bound to.

        Raises:
            RuntimeError: if there is none.
        """
        if self._network is None:
            raise RuntimeError("Detection needs the network that made the outputs: problem.bind(network) first")
        return self._network

    def takes(self, label: Any) -> bool:
        """See :meth:`~dafw.problems.base.Problem.takes`."""
        return isinstance(label, Mapping) and {"boxes", "labels"} <= label.keys()

    # ---- learning

    def terms(self, outputs: BoxOutputs, y: Boxes) -> dict[str, Tensor]:
        """The detector's terms by name; each is a mean over the anchors or regions that count of all ranks."""
        return self.network.losses(outputs, y)

    def row_losses(self, outputs: BoxOutputs, y: Boxes) -> Tensor:
        """The loss of each image (n,); the mean is the loss of the same random state."""
        return torch.stack(list(self.network.row_losses(outputs, y).values())).sum(0)

    def part_losses(self, outputs: BoxOutputs, y: Boxes, parts: int) -> tuple[Tensor, Tensor]:
        """See :meth:`~dafw.problems.base.Problem.part_losses`; a detector that can finds anchors and regions once."""
        if not hasattr(self.network, "part_losses"):
            return super().part_losses(outputs, y, parts)
        whole, each = self.network.part_losses(outputs, y, parts)
        return reduce(add, whole.values()), reduce(add, each.values())

    def summed_loss(self, outputs: BoxOutputs, y: Boxes) -> tuple[Tensor, Tensor | int]:
        """The sum of the losses that each image has alone, with the same random numbers, and the number of images.

        So the loss of an evaluation depends neither on its batches nor on what was drawn before.
        """
        losses = []
        for row in range(len(outputs)):
            one = replace(outputs[row : row + 1], seeds=[0])
            found = self.network.losses(one, [uncrowded(y[row])], over_ranks=False)
            losses.append(torch.stack(list(found.values())).sum())
        return torch.stack(losses).sum(), len(losses)

    def pseudo_labels(
        self, outputs: BoxOutputs, threshold: float | Tensor = 0.0
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The detections of each image with a score of at least a threshold; the host reads which they are.

        Args:
            outputs: of n images.
            threshold: for all classes, or one for each, (K,).

        Returns:
            Labels with ``scores`` (k,) beside boxes and classes, and weights (n,): 1 for an image with a box, else 0.
        """
        found = self.network.detections(outputs)
        limits = [threshold[one["labels"]] if isinstance(threshold, Tensor) else threshold for one in found]
        kept = [one["scores"] >= limit for one, limit in zip(found, limits, strict=True)]
        labels = _select(found, kept)
        weights = [float(len(one["boxes"]) > 0) for one in labels]
        return labels, torch.tensor(weights, device=outputs.anchors[0].device)

    def carry(
        self, labels: Boxes, maps: Tensor, size: tuple[int, int], sizes: Tensor | None = None
    ) -> list[dict[str, Any]]:
        """The boxes around the moved corners of boxes, clipped to the images.

        Boxes with a side below one pixel are left out, and their entries of every other tensor with them; the host
        reads which they are.
        """
        limits = torch.tensor(size, device=maps.device).expand(len(labels), 2) if sizes is None else sizes
        moved = [
            {**label, "boxes": move_boxes(label["boxes"], affine, limit).to(label["boxes"].dtype)}
            for label, affine, limit in zip(labels, maps, limits, strict=True)
        ]
        return _select(moved, [(one["boxes"][:, 2:] - one["boxes"][:, :2] >= 1).all(1) for one in moved])

    # ---- measuring

    def metrics(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] = (),
        rejects: bool = False,
        has_unknown: bool = False,
    ) -> MetricCollection:
        """``ap50``, ``ap``, ``ap75``, those of each class and size, and errors by kind.

        See :class:`~dafw.metrics.boxes.BoxPrecision`.

        Raises:
            UserError: if samples may be unknown, or without the package faster-coco-eval.
        """
        from dafw.metrics.boxes import box_metrics  # which takes a second to import

        if rejects or has_unknown:
            raise UserError("Detection knows no unknown classes: leave out data.label_sets and model.rejection")
        return box_metrics(num_classes, self.ap)

    def score(self, metrics: MetricCollection, outputs: BoxOutputs, y: Boxes, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics` by the detections. Labels may have ``crowd`` and ``area`` too."""
        metrics.update(self.network.detections(outputs), y)

    def evidence(self, outputs: BoxOutputs) -> tuple[Tensor, Tensor, Tensor]:
        """What each detection with a score above ``evidence_score`` says, m of them; the host reads how many.

        Returns:
            The features (m, d) of their regions; logits (m, K + 1) of a distribution that gives the score to the class
            and the rest to the background, which comes first; and the images (m,).
        """
        kept = self._likely(outputs)
        network: Any = self.network
        regions: Regions = network.regions(outputs, [one["boxes"] for one in kept])
        scores = torch.cat([one["scores"] for one in kept])
        labels = torch.cat([one["labels"] for one in kept])
        share = scores.new_zeros(len(scores), regions.probabilities.shape[1] + 1)
        share[:, 0] = 1 - scores
        share.scatter_(1, labels[:, None] + 1, scores[:, None])
        return regions.features, share.clamp_min(torch.finfo(share.dtype).tiny).log(), regions.image

    def evidence_labels(self, outputs: BoxOutputs, y: Boxes) -> Tensor:
        """1 + the class of the labelled box that each of these detections overlaps by half or more; else 0."""
        from torchvision.ops import box_iou

        found = []
        for one, label in zip(self._likely(outputs), y, strict=True):
            true = uncrowded(label)
            if len(true["boxes"]):
                overlap, place = box_iou(one["boxes"], true["boxes"].to(one["boxes"].dtype)).max(1)
                found.append((1 + true["labels"][place]).where(overlap >= 0.5, 0))
            else:
                found.append(torch.zeros_like(one["labels"]))
        return torch.cat(found)

    def _likely(self, outputs: BoxOutputs) -> list[dict[str, Tensor]]:
        """The detections of each image with a score above ``evidence_score``."""
        found = self.network.detections(outputs)
        return [{name: value[one["scores"] > self.evidence_score] for name, value in one.items()} for one in found]

    # ---- showing

    def predictions(self, outputs: BoxOutputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """``boxes`` (k, 4), ``scores`` (k,) and ``labels`` (k,) of each sample, on the CPU; and ``size``.

        Boxes are in pixels of the images that the network was given, whose heights and widths ``size`` says.
        """
        found = self.network.detections(outputs)
        sizes = [list(outputs.canvas)] * len(found) if outputs.sizes is None else outputs.sizes.tolist()
        return {**{name: [one[name].cpu() for one in found] for name in ("boxes", "scores", "labels")}, "size": sizes}

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        """Writes JSON files in COCO's format for results, see :func:`~dafw.problems.box_files.write_boxes`."""
        write_boxes(found, class_names, path)

    def pictures(self, shown: Sequence[Shown], class_names: Sequence[str]) -> "dict[str, Figure]":
        """``boxes``: images of each domain with their labels, and with their detections with a score above 0.5."""
        from dafw import plots

        rows = [
            plots.BoxRow(one.domain, image, {"label": label, "prediction": found})
            for one in shown
            for image, label, found in likely_boxes(one)
        ]
        return {"boxes": plots.boxes(rows, list(class_names))} if rows else {}

    def metric_pictures(self, test: Mapping[str, Mapping[str, float]]) -> "dict[str, Figure]":
        """``errors``: how many errors of each kind there are for each labelled box, by domain."""
        from dafw import plots
        from dafw.metrics.box_matching import ERRORS, LIKELY

        shares = {
            domain: {kind: values[kind] for kind in ERRORS}
            for domain, values in test.items()
            if all(math.isfinite(values.get(kind, math.nan)) for kind in ERRORS)
        }
        return {"errors": plots.box_errors(shares, score=LIKELY)} if shares else {}

    def examples(self, shown: Sequence[Shown], class_names: Sequence[str]) -> dict[str, Any]:
        """By target, its images with their labels and likely detections, see :func:`~dafw.plots.same_images`."""
        from dafw import plots

        targets: dict[str, list[Any]] = {one.domain: [] for one in shown if one.is_target}
        for one in shown:
            if one.is_target:
                targets[one.domain] += [plots.kept_boxes(*parts) for parts in likely_boxes(one)]
        return {"kind": "boxes", "classes": list(class_names), "targets": targets}

    def wrong_samples(self, domain: Domain, num_classes: int) -> list[str]:
        """The samples with a box without area, a box outside the image, or a class that does not exist."""
        found = []
        for index, label in enumerate(() if domain.labels is None else domain.labels):
            name = domain.id(index)
            if not isinstance(label, Mapping) or not {"boxes", "labels"} <= label.keys():
                found.append(f"{name} has a label without boxes and labels")
                continue
            boxes, classes = label["boxes"], label["labels"]
            if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(classes):
                found.append(f"{name} has boxes {tuple(boxes.shape)} and labels {tuple(classes.shape)}")
                continue
            height, width = domain.inputs[index].shape[-2:]
            limit = boxes.new_tensor([width, height, width, height])
            for box, number in zip(boxes.tolist(), classes.tolist(), strict=True):
                if not (box[0] < box[2] and box[1] < box[3]):
                    found.append(f"{name} has a box without area, {box}")
                elif min(box) < 0 or any(side > most for side, most in zip(box, limit.tolist(), strict=True)):
                    found.append(f"{name} is {height}x{width} and has a box outside, {box}")
                if not 0 <= number < num_classes:
                    found.append(f"{name} has a box of class {number}, but there are {num_classes} classes")
        return found


def _select(labels: Boxes, kept: list[Tensor]) -> list[dict[str, Any]]:
    """Labels of the boxes that are kept, (k,) bool for each image; their entries of every other tensor go with them."""
    with needed_reads():
        flags = iter(torch.cat(kept).tolist() if kept else [])
    places = [[place for place in range(len(one)) if next(flags)] for one in kept]
    flat = torch.tensor([place for one in places for place in one], dtype=torch.int64)
    counts = [len(one) for one in places]
    indices = torch.split(flat.to(kept[0].device, non_blocking=True), counts) if kept else ()
    found = []
    for label, index, one in zip(labels, indices, kept, strict=True):
        of_boxes = {name: v for name, v in label.items() if isinstance(v, Tensor) and v.ndim and len(v) == len(one)}
        found.append({**label, **{name: value[index] for name, value in of_boxes.items()}})
    return found


def uncrowded(label: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``boxes`` and ``labels`` of one image without those that are marked as crowd; the host reads how many remain."""
    parts = {name: label[name] for name in ("boxes", "labels")}
    return {name: part[~label["crowd"]] for name, part in parts.items()} if "crowd" in label else parts


def likely_boxes(shown: Shown) -> "Iterator[tuple[Any, Drawn | None, Drawn]]":
    """Each image of a batch without its padding, its labels, and its detections with a score above 0.5."""
    from dafw.metrics.box_matching import LIKELY
    from dafw.plots import Boxes as Drawn

    columns = (shown.predictions[name] for name in ("size", "boxes", "scores", "labels"))
    for index, ((height, width), boxes, scores, labels) in enumerate(zip(*columns, strict=True)):
        kept = scores > LIKELY
        truth = None
        if shown.labels is not None:
            known = uncrowded(shown.labels[index])
            truth = Drawn(known["boxes"].numpy(), known["labels"].numpy())
        image = picture(shown.inputs[index][:, :height, :width])
        yield image, truth, Drawn(boxes[kept].numpy(), labels[kept].numpy(), scores[kept].numpy())
