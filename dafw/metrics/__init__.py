"""Metrics of evaluations, as torchmetrics classes: what a target whose classes are not the source's is scored by."""

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

__all__ = [
    "OS",
    "CommonAccuracy",
    "HScore",
    "OSStar",
    "OpenSetMetric",
    "UnknownAUROC",
    "UnknownAccuracy",
    "UnknownFPR95",
    "open_set_metrics",
]
