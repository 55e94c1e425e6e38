"""Open-set metrics for targets with unknown classes (torchmetrics classes), and how well groups separate styles."""

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
    "CommonAccuracy",
    "HScore",
    "OSStar",
    "OpenSetMetric",
    "StyleSplit",
    "UnknownAUROC",
    "UnknownAccuracy",
    "UnknownFPR95",
    "mean_split",
    "open_set_metrics",
    "style_split",
]
