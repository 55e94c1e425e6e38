"""Metrics of boxes: COCO's average precision, by torchmetrics."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.detection import MeanAveragePrecision

#: What torchmetrics gives for what is undefined.
UNDEFINED = -1.0


class BoxPrecision(MeanAveragePrecision):
    """``map`` (mean over overlaps from 0.5 to 0.95 and over classes), ``map_50``, ``map_75``, and ``ap`` of each class.

    A class without a labelled box has no value: -1, and no mean counts it. The metric is exact on several ranks.

    Lin et al., Microsoft COCO, ECCV 2014, https://arxiv.org/abs/1405.0312, and its evaluation code.

    Args:
        num_classes: number K of classes.
        most: detections of an image that count, the highest scores first (COCO: 100).
    """

    _STATES = (
        *("detection_box", "detection_scores", "detection_labels"),
        *("groundtruth_box", "groundtruth_labels", "groundtruth_crowds", "groundtruth_area"),
    )

    def __init__(self, num_classes: int, most: int = 100) -> None:
        super().__init__(class_metrics=True, max_detection_thresholds=[1, 10, most], backend="faster_coco_eval")
        self.num_classes = num_classes
        self.warn_on_many_detections = False

    def compute(self) -> dict[str, Tensor]:
        """Scalars, and ``ap`` (K,)."""
        found = super().compute()
        ap = torch.full((self.num_classes,), UNDEFINED)
        seen = found["classes"].reshape(-1).long().cpu()
        if len(seen):
            ap[seen] = found["map_per_class"].reshape(-1).float().cpu()
        return {**{name: found[name] for name in ("map", "map_50", "map_75")}, "ap": ap}

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Joins the images of all ranks. Torchmetrics' own way waits for ever if one rank has more images."""
        own = {name: [value.cpu() for value in getattr(self, name)] for name in self._STATES}
        shares: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(shares, own, group=process_group)
        for name in self._STATES:
            setattr(self, name, [value.to(self.device) for share in shares for value in share[name]])


def box_metrics(num_classes: int) -> MetricCollection:
    """One :class:`BoxPrecision`, in a collection."""
    return MetricCollection({"boxes": BoxPrecision(num_classes)})
