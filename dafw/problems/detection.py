"""Object detection: boxes with classes."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.data.domain import Domain
from dafw.data.geometry import move_boxes
from dafw.errors import UserError
from dafw.files import write_atomically
from dafw.problems.base import Predicted, Problem, Shown
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.problems.pictures import picture
from dafw.problems.reads import needed_reads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Boxes = Sequence[Mapping[str, Tensor]]


class BoxNetwork(Protocol):
    """What a network must be able to do with its own outputs; see :class:`~dafw.nn.detector.Detector`."""

    def losses(self, outputs: BoxOutputs, y: Boxes, *, over_ranks: bool = True) -> dict[str, Tensor]:
        """By name the terms of the loss."""

    def row_losses(self, outputs: BoxOutputs, y: Boxes) -> dict[str, Tensor]:
        """By name the terms of the loss of each image, (N,)."""

    def proposals(self, outputs: BoxOutputs, count: int | None = None) -> list[Tensor]:
        """Boxes (n, 4) of each image that may hold an object."""

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """Features and class scores of any boxes."""

    def detections(self, outputs: BoxOutputs) -> list[dict[str, Tensor]]:
        """``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) of each image."""


class Detection(Problem):
    """Boxes with classes: the losses of the detector, and COCO's average precision.

    The labels of n images are a list of n mappings with ``boxes`` (k, 4), as x1, y1, x2, y2 in pixels, and ``labels``
    (k,) int64 from 0.

    Outputs of a detector become losses and boxes by its own modules. So this problem works on the outputs of the
    network that it is bound to, see :meth:`~dafw.problems.base.Problem.bind`.
    """

    kind: ClassVar[str] = "detection"
    primary: ClassVar[str] = "map"
    is_spatial: ClassVar[bool] = True
    undefined: ClassVar[float | None] = -1.0
    most_shown: ClassVar[int] = 3
    predictions_name: ClassVar[str] = "predictions.json"

    _network: BoxNetwork | None = None

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

    # ---- learning

    def terms(self, outputs: BoxOutputs, y: Boxes) -> dict[str, Tensor]:
        """The detector's terms by name; each is a mean over the anchors or regions that count of all ranks."""
        return self.network.losses(outputs, y)

    def row_losses(self, outputs: BoxOutputs, y: Boxes) -> Tensor:
        """The loss of each image (n,); the mean is the loss of the same random state."""
        return torch.stack(list(self.network.row_losses(outputs, y).values())).sum(0)

    def summed_loss(self, outputs: BoxOutputs, y: Boxes) -> tuple[Tensor, Tensor | int]:
        """The sum of the losses that each image has alone, with the same random numbers, and the number of images.

        So the loss of an evaluation depends neither on its batches nor on what was drawn before.
        """
        losses = []
        for row in range(len(outputs)):
            one = replace(outputs[row : row + 1], seeds=[0])
            found = self.network.losses(one, y[row : row + 1], over_ranks=False)
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
        """``map``, ``map_50``, ``map_75``, and the ``ap`` of each class, see :class:`~dafw.metrics.boxes.BoxPrecision`.

        Raises:
            UserError: if samples may be unknown.
        """
        from dafw.metrics.boxes import box_metrics  # which takes a second to import

        if rejects or has_unknown:
            raise UserError("Detection knows no unknown classes: leave out data.label_sets and model.rejection")
        return box_metrics(num_classes)

    def score(self, metrics: MetricCollection, outputs: BoxOutputs, y: Boxes, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics` by the detections."""
        metrics.update(
            self.network.detections(outputs), [{name: one[name] for name in ("boxes", "labels")} for one in y]
        )

    # ---- showing

    def predictions(self, outputs: BoxOutputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """``boxes`` (k, 4), ``scores`` (k,) and ``labels`` (k,) of each sample, on the CPU."""
        found = self.network.detections(outputs)
        return {name: [one[name].cpu() for one in found] for name in ("boxes", "scores", "labels")}

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        """Writes one JSON file in COCO's format for results: a list with one entry for each box.

        An entry has ``image_id`` (the sample's name), ``category_id`` (from 0), ``bbox`` (x, y, width, height in
        pixels) and ``score``; beside COCO's keys ``domain`` and ``category``, the class's name.
        """
        entries = []
        for one in found:
            columns = [one.columns[name] for name in ("boxes", "scores", "labels")]
            for sample, *parts in zip(one.ids, *columns, strict=True):
                for (left, top, right, bottom), score, label in zip(*(part.tolist() for part in parts), strict=True):
                    box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
                    entry = {"image_id": sample, "category_id": label, "bbox": box, "score": round(score, 6)}
                    entries.append({**entry, "domain": one.domain, "category": class_names[label]})
        write_atomically(path, json.dumps(entries))

    def pictures(self, shown: Sequence[Shown], class_names: Sequence[str]) -> "dict[str, Figure]":
        """``boxes``: images of each domain with their labels and with their detections of at least half a score."""
        from dafw import plots

        rows = []
        for one in shown:
            found = zip(*(one.predictions[name] for name in ("boxes", "scores", "labels")), strict=True)
            for index, (boxes, scores, labels) in enumerate(found):
                likely = scores >= 0.5
                truth = None if one.labels is None else one.labels[index]
                rows.append(
                    plots.BoxRow(
                        one.domain,
                        picture(one.inputs[index]),
                        None if truth is None else (truth["boxes"].numpy(), truth["labels"].numpy()),
                        (boxes[likely].numpy(), labels[likely].numpy()),
                    )
                )
        return {"boxes": plots.boxes(rows, list(class_names))} if rows else {}

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
