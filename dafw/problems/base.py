"""What every problem answers: how to learn from labels, how to score, how to write a prediction down."""

from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MetricCollection

from dafw.config import Recorded
from dafw.problems.outputs import Outputs


class Problem(Recorded):
    """The part of a method that depends on *what* is predicted: classes, masks, boxes, ...

    A method or a setting never looks inside ``Outputs.logits`` or at labels; it asks its problem.
    """

    #: The metric that tables print.
    primary: ClassVar[str] = ""
    #: Whether the label-free validators apply (they need one feature vector and one class score a sample).
    has_evidence: ClassVar[bool] = False

    def loss(self, outputs: Outputs, y: Any) -> Tensor:
        """Supervised loss of labelled rows: outputs (n, ...), their labels -> scalar."""
        raise NotImplementedError

    def metrics(self, num_classes: int) -> MetricCollection:
        """New metrics, updated with ``(outputs.logits, y)``; one is named :attr:`primary`."""
        raise NotImplementedError

    def predictions(self, outputs: Outputs) -> dict[str, Any]:
        """One entry per column of a prediction file, each with one value (or one row) per sample."""
        raise NotImplementedError
