"""What every problem answers: how to learn from labels, how to score, how to write a prediction down."""

from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MetricCollection

from dafw.problems.outputs import Outputs
from dafw.recording import Recorded


class Problem(Recorded):
    """The part of a method that depends on *what* is predicted: classes, masks, boxes, ...

    A method or a setting never looks inside ``Outputs.logits`` or at labels; it asks its problem.
    """

    #: The metric that tables print.
    primary: ClassVar[str] = ""
    #: The metric that tables print where the target has classes of its own.
    open_primary: ClassVar[str] = ""
    #: Whether the label-free validators apply (they need one feature vector and one class score a sample).
    supports_unsupervised_validators: ClassVar[bool] = False

    def loss(self, outputs: Outputs, y: Any) -> Tensor:
        """Supervised loss of labelled rows: outputs (n, ...), their labels -> scalar."""
        raise NotImplementedError

    def metrics(self, num_classes: int, *, rejects: bool = False, has_unknown: bool = False) -> MetricCollection:
        """New metrics; one is named :attr:`primary`, or :attr:`open_primary` if ``has_unknown``.

        Args:
            num_classes: classes that the model predicts.
            rejects: whether the method holds some samples to be of no known class.
            has_unknown: whether there may be such samples, labelled ``num_classes``.
        """
        raise NotImplementedError

    def score(self, metrics: MetricCollection, outputs: Outputs, y: Any, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics`.

        Args:
            metrics: what to update.
            outputs: of n samples.
            y: their labels.
            unknown: (n,) margins by which the method holds them to be of no known class; ``None`` if it rejects none.
        """
        metrics.update(outputs.logits, y)

    def predictions(self, outputs: Outputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """One entry per column of a prediction file, each with one value (or one row) per sample.

        Args:
            outputs: of n samples.
            unknown: as in :meth:`score`.
        """
        raise NotImplementedError
