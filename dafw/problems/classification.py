"""Single-label classification."""

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.metrics import CommonAccuracy, open_set_metrics
from dafw.problems.base import Problem
from dafw.problems.outputs import Outputs


class Classification(Problem):
    """One class a sample: cross-entropy, accuracy over samples, and accuracy averaged over classes.

    Args:
        label_smoothing: share of the label's mass spread over all classes.
    """

    primary: ClassVar[str] = "accuracy"
    open_primary: ClassVar[str] = "h_score"
    supports_unsupervised_validators: ClassVar[bool] = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Cross-entropy: logits (n, K), y (n,) int64 -> scalar."""
        return F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing)

    def row_losses(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Cross-entropy of each row, whose mean is :meth:`loss`: logits (n, K), y (n,) int64 -> (n,)."""
        return F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def metrics(self, num_classes: int, *, rejects: bool = False, has_unknown: bool = False) -> MetricCollection:
        """``accuracy`` (over samples) and ``mean_class_accuracy`` (classes without a sample left out).

        Where the target has classes of its own, :func:`dafw.metrics.open_set_metrics` instead. Where it has none, a
        sample that is rejected counts as a mistake.
        """
        if has_unknown:
            return open_set_metrics(num_classes)
        kinds: dict[str, Literal["sample", "class"]] = {"accuracy": "sample", "mean_class_accuracy": "class"}
        return MetricCollection({name: CommonAccuracy(num_classes, average=kind) for name, kind in kinds.items()})

    def score(self, metrics: MetricCollection, outputs: Outputs, y: Tensor, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics`: logits (n, K), y (n,), ``unknown`` (n,), of which what is positive is rejected."""
        prediction = outputs.logits.argmax(1) if unknown is None else _rejecting(outputs.logits, unknown)
        metrics.update(prediction=prediction, unknown=unknown, target=y)

    def predictions(self, outputs: Outputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """``prediction`` (n,) positions, K for unknown, and ``probabilities`` (n, K); ``unknown`` (n,) if given."""
        probabilities = outputs.logits.float().softmax(1)
        if unknown is None:
            return {"prediction": probabilities.argmax(1), "probabilities": probabilities}
        prediction = _rejecting(outputs.logits, unknown)
        return {"prediction": prediction, "probabilities": probabilities, "unknown": unknown.float()}


def _rejecting(logits: Tensor, unknown: Tensor) -> Tensor:
    return logits.argmax(1).masked_fill(unknown > 0, logits.shape[1])
