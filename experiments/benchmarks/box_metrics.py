"""What the metrics of boxes take beyond inference, beside torchmetrics' own with the values of each class."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import Measure, interleave, timed
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dafw.metrics.boxes import Form, box_metrics

Found = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Setting:
    """What is evaluated.

    Args:
        images: number of images.
        boxes: labelled boxes of each.
        detections: detections of each.
        classes: number of classes.
        rounds: rounds of two evaluations of each kind.
    """

    images: int = 1000
    boxes: int = 20
    detections: int = 100
    classes: int = 8
    rounds: int = 3


QUICK = Setting(20, 3, 6, 2, rounds=1)
BATCH = 8


def samples(setting: Setting) -> tuple[Found, Found]:
    """Detections, some of them near a labelled box, and labels; both of all images."""
    generator = torch.Generator().manual_seed(0)

    def boxes(count: int) -> Tensor:
        corner = 500 * torch.rand(count, 2, generator=generator)
        return torch.cat([corner, corner + 4 + 150 * torch.rand(count, 2, generator=generator)], 1)

    found, truth = [], []
    for _ in range(setting.images):
        true, classes = boxes(setting.boxes), torch.randint(setting.classes, (setting.boxes,), generator=generator)
        others = setting.detections - setting.boxes
        near = true + 4 * torch.randn(true.shape, generator=generator)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        labels = torch.cat([classes, torch.randint(setting.classes, (others,), generator=generator)])
        scores = torch.rand(setting.detections, generator=generator)
        found.append({"boxes": torch.cat([near, boxes(others)]), "scores": scores, "labels": labels})
        truth.append({"boxes": true, "labels": classes})
    return found, truth


def ours(setting: Setting, form: Form, found: Found, truth: Found) -> float:
    """Seconds of processor time of all updates and one computation."""
    metrics, start = box_metrics(setting.classes, form), time.process_time()
    for first in range(0, setting.images, BATCH):
        metrics.update(found[first : first + BATCH], truth[first : first + BATCH])
    metrics.compute()
    return time.process_time() - start


def theirs(found: Found, truth: Found) -> float:
    """The same of torchmetrics."""
    metric, start = MeanAveragePrecision(class_metrics=True, backend="faster_coco_eval"), time.process_time()
    for first in range(0, len(found), BATCH):
        metric.update(found[first : first + BATCH], truth[first : first + BATCH])
    metric.compute()
    return time.process_time() - start


def measure(quick: bool = False) -> list[Measure]:
    """The evaluation of boxes, with COCO's numbers alone and with VOC's too."""
    setting = QUICK if quick else Setting()
    found, truth = samples(setting)
    runs: dict[str, Callable[[], float]] = {"torchmetrics": partial(theirs, found, truth)}
    forms: tuple[Form, ...] = ("coco", "voc")
    runs |= {form: partial(ours, setting, form, found, truth) for form in forms}
    taken = interleave(runs, setting.rounds, "metrics of boxes, s")
    where = f"{setting.images:,} images, {setting.boxes} boxes and {setting.detections} detections each"
    limit = {} if quick else {"limit": 3.0}
    return [
        *(timed(f"evaluation beyond inference, {where}, ap: {form}", "s", taken[form], **limit) for form in forms),
        timed(f"the same beside torchmetrics, {where}", "s", taken["coco"], taken["torchmetrics"]),
    ]
