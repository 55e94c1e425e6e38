"""Accuracy on held-out source samples."""

from typing import ClassVar

from torch import Tensor

from dafw.selection.base import Evidence, Validator, precise


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows whose greatest logit is the label's (of equal ones, the first); nan if any logit is not finite.

    Args:
        logits: (N, K).
        labels: (N,) integers.
    """
    share = precise(logits.argmax(-1) == labels).mean()
    return share.where(logits.isfinite().all().to(share.device), float("nan"))


class SourceAccuracy(Validator):
    """Says whether the network still solves its own task, and nothing of the target."""

    name: ClassVar[str] = "source_accuracy"
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[str] = "Gulrajani and Lopez-Paz, ICLR 2021, https://arxiv.org/abs/2007.01434"

    def __call__(self, evidence: Evidence) -> Tensor:
        """Accuracy in [0, 1]."""
        return accuracy(evidence.source_logits, evidence.source_labels)
