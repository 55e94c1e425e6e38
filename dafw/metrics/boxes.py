"""Metrics of boxes: COCO's precision by faster-coco-eval, VOC's and GWHD's by :mod:`dafw.metrics.box_matching`."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dafw.errors import UserError
from dafw.metrics.box_matching import ERRORS, Image, accuracy, errors, match, voc_precision

Form = Literal["coco", "voc07", "voc"]
MOST = 100
"""Detections of an image and a class that COCO's numbers count, the highest scores first."""
OVERLAPS = torch.linspace(0.5, 0.95, 10).double().numpy()
RECALLS = torch.linspace(0.0, 1.0, 101).double().numpy()
"""Overlaps and recalls at which COCO's numbers are computed, as torchmetrics has them."""
NAMES = {
    "ap": 0,
    "ap50": 1,
    "ap75": 2,
    "ap_small": 3,
    "ap_medium": 4,
    "ap_large": 5,
    f"recall{MOST}": 8,
}
"""Our names of the numbers of COCO's code, with their places among them."""


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
        """COCO's numbers by name, rounded to float32."""
        from faster_coco_eval import COCO, COCOeval_faster

        by_class = np.full((2, self.num_classes), np.nan)
        if not pairs:
            return dict.fromkeys(NAMES, np.nan) | {"ap_by_class": by_class[0], "ap50_by_class": by_class[1]}
        found, truth = ([pair[kind] for pair in pairs] for kind in (0, 1))
        classes = np.unique(np.concatenate([one[:, 5] for one in found] + [one[:, 4] for one in truth])).astype(int)
        datasets = []
        for tables, describe in ((truth, _labelled), (found, _detected)):
            datasets.append(COCO())
            datasets[-1].dataset = {
                "images": [{"id": image} for image in range(len(pairs))],
                "annotations": _annotations(tables, describe),
                "categories": [{"id": number, "name": str(number)} for number in classes.tolist()],
            }
            datasets[-1].createIndex()
        evaluation = COCOeval_faster(*datasets, iouType="bbox")
        evaluation.params.iouThrs, evaluation.params.recThrs = OVERLAPS, RECALLS
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        statistics = np.asarray(evaluation.stats).astype(np.float32).astype(np.float64)
        values: dict[str, Any] = {name: _defined(statistics[place]) for name, place in NAMES.items()}
        if len(classes):
            curves = _defined(evaluation.eval["precision"][..., 0, -1])  # overlaps, recalls, classes
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


def _annotations(images: Sequence[NDArray[Any]], describe: Callable[[list[float]], dict[str, Any]]) -> list[Any]:
    """The rows of all images in COCO's form; numbers of annotations begin at 1."""
    rows = [(image, row) for image, table in enumerate(images) for row in table.tolist()]
    return [{"id": number, "image_id": image, **describe(row)} for number, (image, row) in enumerate(rows, 1)]


def _detected(row: list[float]) -> dict[str, Any]:
    """A detected box: corners, score, class."""
    return {**_placed(row), "category_id": int(row[5]), "score": row[4], "iscrowd": 0}


def _labelled(row: list[float]) -> dict[str, Any]:
    """A labelled box: corners, class, whether it is a crowd, area or 0."""
    box = _placed(row)
    return {**box, "category_id": int(row[4]), "iscrowd": int(row[5]), "area": row[6] if row[6] > 0 else box["area"]}


def _placed(row: list[float]) -> dict[str, Any]:
    left, top, width, height = row[0], row[1], row[2] - row[0], row[3] - row[1]
    return {"bbox": [left, top, width, height], "area": width * height}


def _image(found: NDArray[Any], truth: NDArray[Any]) -> Image:
    return Image(found[:, :4], found[:, 4], found[:, 5], truth[:, :4], truth[:, 4], truth[:, 5] > 0)


def _defined(values: Any) -> Any:
    """COCO's code says -1 for what is undefined; here it is nan."""
    return np.where(values < 0, np.nan, values)


def mean(values: NDArray[Any]) -> float:
    """The mean of the values that are not nan; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def box_metrics(num_classes: int, form: Form = "coco") -> MetricCollection:
    """One :class:`BoxPrecision`, in a collection."""
    return MetricCollection({"boxes": BoxPrecision(num_classes, form)})
