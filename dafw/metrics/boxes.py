"""Metrics of boxes: COCO's average precision by torchmetrics, VOC's and GWHD's by :mod:`dafw.metrics.box_matching`."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from dafw.errors import UserError
from dafw.metrics.box_matching import ERRORS, Image, accuracy, errors, match, voc_precision

Form = Literal["coco", "voc07", "voc"]
MOST = 100
"""Detections of an image and a class that COCO's numbers count, the highest scores first."""
NAMES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
    "recall100": f"mar_{MOST}",
}
"""Our names of torchmetrics' numbers."""


class BoxPrecision(Metric):
    """Average precision and errors of all images together; what is undefined is nan.

    ``ap`` is the mean over the overlaps 0.5, 0.55, ..., 0.95 and over the classes, ``ap50`` and ``ap75`` are at one of
    them, ``ap_small``, ``ap_medium`` and ``ap_large`` of boxes with areas up to 32^2, up to 96^2 and above, in pixels.
    ``recall100`` is the mean recall with 100 detections an image. ``ap_by_class`` and ``ap50_by_class`` are (K,). A
    class without a labelled box has no value, and no mean counts it. ``ap50_voc07`` and ``ap50_voc`` are VOC's forms.
    ``detection_accuracy`` is GWHD's, a mean over images; see :func:`.accuracy`. The names in :data:`.ERRORS` are
    errors for each labelled box; see :func:`.errors`. ``images_without_box`` is the share of images without a label.

    Boxes that are marked as crowd are regions to ignore. The values are the same in any batches and on any number of
    ranks, bit for bit, also if detections have equal scores: images are put into an order of their own.

    Lin et al., Microsoft COCO, ECCV 2014, https://arxiv.org/abs/1405.0312, and its evaluation code.

    Args:
        num_classes: number K of classes.
        form: ``coco``, or the form of VOC that is computed too.

    Attributes:
        found: for each image (d, 6): detected boxes, scores, classes.
        truth: for each image (g, 7): labelled boxes, classes, whether it is a crowd, area or 0.

    Raises:
        UserError: without the package faster-coco-eval.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    found: list[Tensor]
    truth: list[Tensor]

    def __init__(self, num_classes: int, form: Form = "coco") -> None:
        super().__init__()
        if find_spec("faster_coco_eval") is None:
            raise UserError(
                'the average precision of boxes needs the package faster-coco-eval: pip install "dafw[detection]"'
            )
        self.num_classes, self.form = num_classes, form
        for name in ("found", "truth"):
            self.add_state(name, [], dist_reduce_fx=None)

    def update(self, found: Sequence[Mapping[str, Tensor]], truth: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds n images.

        Args:
            found: n times ``boxes`` (d, 4), ``scores`` (d,) and ``labels`` (d,).
            truth: n times ``boxes`` (g, 4) and ``labels`` (g,), and ``crowd`` (g,) bool and ``area`` (g,) if there are.
        """
        for one, label in zip(found, truth, strict=True):
            self.found.append(_table(one["boxes"], one["scores"], one["labels"]))
            none = torch.zeros(len(label["boxes"]))
            self.truth.append(
                _table(label["boxes"], label["labels"], label.get("crowd", none), label.get("area", none))
            )

    def compute(self) -> dict[str, Tensor]:
        """Scalars and (K,) vectors by name, float64."""
        pairs = [(one.numpy(), other.numpy()) for one, other in zip(self.found, self.truth, strict=True)]
        pairs.sort(key=lambda pair: tuple(part.tobytes() for part in pair))
        values = self._coco(pairs)
        images = [_image(*pair) for pair in pairs]
        matches = [match(image) for image in images]
        if self.form != "coco":
            by_class = voc_precision(images, matches, self.num_classes, self.form)
            values[f"ap50_{self.form}"], values[f"ap50_{self.form}_by_class"] = mean(by_class), by_class
        both = list(zip(images, matches, strict=True))
        values["detection_accuracy"] = mean(np.array([accuracy(*one) for one in both]))
        labelled = np.array([(~image.crowd).sum() for image in images])
        values["images_without_box"] = mean((labelled == 0).astype(np.float64))
        labelled = labelled.sum()
        counts = sum((errors(*one) for one in both), np.zeros(len(ERRORS)))
        shares = counts / labelled if labelled else np.full(len(ERRORS), np.nan)
        values |= dict(zip(ERRORS, shares, strict=True))
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}

    def _coco(self, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, Any]:
        """COCO's numbers by name."""
        metric = MeanAveragePrecision(
            max_detection_thresholds=[1, 10, MOST],
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        parts = [(torch.from_numpy(one), torch.from_numpy(other)) for one, other in pairs]
        metric.update(
            [{"boxes": one[:, :4], "scores": one[:, 4], "labels": one[:, 5].long()} for one, _ in parts],
            [
                {"boxes": one[:, :4], "labels": one[:, 4].long(), "iscrowd": one[:, 5].long(), "area": one[:, 6]}
                for _, one in parts
            ],
        )
        found = metric.compute()
        values: dict[str, Any] = {ours: _defined(np.float64(found[theirs])) for ours, theirs in NAMES.items()}
        by_class = np.full((2, self.num_classes), np.nan)
        if "precision" in found and len(classes := found["classes"].reshape(-1).tolist()):
            curves = _defined(found["precision"][..., 0, -1].numpy())  # overlaps, recalls, classes
            by_class[:, classes] = curves.mean((0, 1)), curves[0].mean(0)
        return values | {"ap_by_class": by_class[0], "ap50_by_class": by_class[1]}

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Joins the images of all ranks. Torchmetrics' own way waits for ever if one rank has more images."""
        shares: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(shares, (self.found, self.truth), group=process_group)
        self.found = [one for found, _ in shares for one in found]
        self.truth = [one for _, truth in shares for one in truth]


def _table(*columns: Tensor) -> Tensor:
    """Columns (n,) or (n, c) side by side, float64 on the CPU."""
    wide = [column[:, None] if column.ndim == 1 else column for column in columns]
    device = wide[0].device
    return torch.cat([column.detach().to(device, torch.float32) for column in wide], 1).cpu().double()


def _image(found: NDArray[Any], truth: NDArray[Any]) -> Image:
    return Image(found[:, :4], found[:, 4], found[:, 5], truth[:, :4], truth[:, 4], truth[:, 5] > 0)


def _defined(values: Any) -> Any:
    """Torchmetrics and COCO's code say -1 for what is undefined; here it is nan."""
    return np.where(values < 0, np.nan, values)


def mean(values: NDArray[Any]) -> float:
    """The mean of the values that are not nan; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def box_metrics(num_classes: int, form: Form = "coco") -> MetricCollection:
    """One :class:`BoxPrecision`, in a collection."""
    return MetricCollection({"boxes": BoxPrecision(num_classes, form)})
