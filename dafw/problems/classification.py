"""Single-label classification."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from dafw.problems.base import Problem
from dafw.problems.outputs import Outputs


class Classification(Problem):
    """One class a sample: cross-entropy, accuracy over samples, and accuracy averaged over classes.

    Args:
        label_smoothing: share of the label's mass spread over all classes.
    """

    primary: ClassVar[str] = "accuracy"
    has_evidence: ClassVar[bool] = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Cross-entropy: logits (n, K), y (n,) int64 -> scalar."""
        return F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing)

    def row_losses(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Cross-entropy of each row, whose mean is :meth:`loss`: logits (n, K), y (n,) int64 -> (n,)."""
        return F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def metrics(self, num_classes: int) -> MetricCollection:
        """``accuracy`` (over samples) and ``mean_class_accuracy`` (classes without a sample left out)."""
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "mean_class_accuracy": MulticlassAccuracy(num_classes, average="macro"),
            }
        )

    def predictions(self, outputs: Outputs) -> dict[str, Any]:
        """``prediction`` (n,) class positions and ``probabilities`` (n, K)."""
        probabilities = outputs.logits.float().softmax(1)
        return {"prediction": probabilities.argmax(1), "probabilities": probabilities}
