"""Rejection of samples that are of no known class, by what the logits of the known classes say."""

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.nn.precision import full_precision
from dafw.ranges import Range
from dafw.recording import Recorded


class Rejection(Recorded, nn.Module):
    """Base: a score of how unknown a sample is, and the threshold above which it is rejected.

    The threshold is given, or fitted on labelled-source validation rows, which are all of known classes; no target row
    and no target label has a part in it.

    Args:
        threshold: score above which a sample is rejected; null: fitted.
        keep: share of the source's validation rows that a fitted threshold keeps, more than 0 and at most 1.

    Attributes:
        fitted: the fitted threshold, a scalar, in checkpoints too; nan before :meth:`fit`.

    Raises:
        UserError: if an argument is out of range.
    """

    config_key: ClassVar[str] = "model.rejection"
    fitted: Tensor

    def __init__(
        self,
        threshold: Annotated[float, Range("must be a finite number or null")] | None = None,
        keep: Annotated[float, Range("is a share, more than 0 and at most 1", 0, 1, above=True)] = 0.95,
    ) -> None:
        super().__init__()
        if type(self).score is Rejection.score:
            raise UserError("model.rejection must be a class that scores samples: Entropy, Confidence or one of yours")
        self.threshold, self.keep = threshold, keep
        self.register_buffer("fitted", torch.tensor(torch.nan))

    def score(self, logits: Tensor) -> Tensor:
        """Logits (N, K) to scores (N,), higher for what is rather unknown, in float32 or float64."""
        raise NotImplementedError(f"{type(self).__name__} must define score(logits)")

    @property
    def needs_fit(self) -> bool:
        """Whether :meth:`forward` has no threshold yet. Waits for the device unless a threshold was given."""
        return self.threshold is None and bool(self.fitted.isnan())

    @torch.no_grad()
    def fit(self, source_logits: Tensor) -> None:
        """Sets ``fitted`` to the lowest score that keeps ``keep`` of the rows or more. A given threshold still wins.

        Args:
            source_logits: (N, K), of the source's validation rows; all rows on every rank, so that all agree.

        Raises:
            UserError: without a row, or if the scores are not numbers.
        """
        if not len(source_logits):
            raise UserError("there is no source validation row to fit on: set model.rejection.threshold")
        scores = self.score(source_logits).sort().values
        kept = max(1, math.ceil(self.keep * len(scores) - 1e-6))  # 0.07 * 100 is a little over 7
        self.fitted.copy_(scores[kept - 1])
        if self.fitted < scores[kept - 1]:  # rounded down to the buffer's dtype: the row itself would be rejected
            self.fitted.copy_(self.fitted.cpu().nextafter(torch.tensor(torch.inf, dtype=self.fitted.dtype)))
        if self.fitted.isnan():
            raise UserError("model.rejection cannot be fitted: the network's outputs on the source are nan")

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, K) to margins (N,), score minus threshold: positive is rejected; nan before there is one."""
        return self.score(logits) - (self.fitted if self.threshold is None else self.threshold)


class Entropy(Rejection):
    """Entropy of the softmax over the known classes, divided by log K: 0 is sure, 1 is uniform; 0 with one class.

    Args:
        threshold: see :class:`Rejection`.
        keep: see :class:`Rejection`.
    """

    def score(self, logits: Tensor) -> Tensor:
        """See :class:`Rejection`."""
        return entropy(logits) / (math.log(logits.shape[1]) or 1.0)


class Confidence(Rejection):
    """1 minus the largest probability: Hendrycks and Gimpel, ICLR 2017, https://arxiv.org/abs/1610.02136.

    It is summed from the other probabilities, so that sure samples, whose largest one rounds to 1, still differ.

    Args:
        threshold: see :class:`Rejection`.
        keep: see :class:`Rejection`.
    """

    def score(self, logits: Tensor) -> Tensor:
        """See :class:`Rejection`."""
        p = full_precision(logits).softmax(1)
        return p.scatter(1, p.argmax(1, keepdim=True), 0.0).sum(1)
