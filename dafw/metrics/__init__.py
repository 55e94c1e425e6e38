"""Metrics of unknown classes and of masks (torchmetrics classes), of styles in groups, and of two domains' distance."""

from dafw.metrics.arguments import check_arguments, update_metrics
from dafw.metrics.domain_distance import proxy_a_distance
from dafw.metrics.masks import (
    ClassDice,
    ClassIoU,
    MeanDice,
    MeanIoU,
    MeanVolumeDice,
    PixelAccuracy,
    PixelMetric,
    VolumeDice,
    mask_metrics,
    volume_metrics,
)
from dafw.metrics.open_set import (
    OS,
    CommonAccuracy,
    HScore,
    OpenSetMetric,
    OSStar,
    UnknownAccuracy,
    UnknownAUROC,
    UnknownFPR95,
    open_set_metrics,
)
from dafw.metrics.styles import StyleSplit, mean_split, style_split

__all__ = [
    "OS",
    "ClassDice",
    "ClassIoU",
    "CommonAccuracy",
    "HScore",
    "MeanDice",
    "MeanIoU",
    "MeanVolumeDice",
    "OSStar",
    "OpenSetMetric",
    "PixelAccuracy",
    "PixelMetric",
    "StyleSplit",
    "UnknownAUROC",
    "UnknownAccuracy",
    "UnknownFPR95",
    "VolumeDice",
    "check_arguments",
    "mask_metrics",
    "mean_split",
    "open_set_metrics",
    "proxy_a_distance",
    "style_split",
    "update_metrics",
    "volume_metrics",
]
