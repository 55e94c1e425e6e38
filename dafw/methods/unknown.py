"""Samples of no known class: what rejects them, what a threshold is fitted to, which metrics there are."""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

from dafw.errors import UserError
from dafw.nn.rejection import Rejection
from dafw.problems import Outputs, Problem

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from datamodules.base import Evaluation

    Base = pl.LightningModule
else:
    Base = object

log = logging.getLogger(__name__)


class UnknownClasses(Base):
    """The part of every method that concerns classes that only the target has."""

    problem: Problem
    num_classes: int
    rejection: Rejection | None
    known_logits: list[Tensor]

    def unknown_scores(self, outputs: Outputs) -> Tensor | None:
        """Margins by which samples are held to be of no known class, (N,): the positive ones are rejected.

        A method with a rule of its own overrides it. ``None`` if nothing is ever rejected.
        """
        return None if self.rejection is None else self.rejection(outputs.logits)

    @property
    def rejects_itself(self) -> bool:
        """Whether the method has a rule of its own for what is unknown."""
        return type(self).unknown_scores is not UnknownClasses.unknown_scores

    @property
    def rejects(self) -> bool:
        """Whether some samples may be held to be of no known class."""
        return self.rejects_itself or self.rejection is not None

    @property
    def has_unknown(self) -> bool:
        """Whether the target has classes of its own."""
        return bool(getattr(getattr(self.trainer, "datamodule", None), "has_unknown", False))

    def check_label_sets(self) -> None:
        """Compares what the method can say with the classes of the target.

        Raises:
            UserError: if the target has classes of its own and the method rejects nothing.
        """
        if not self.has_unknown:
            if self.rejects:
                log.warning("the target has no class of its own: what %s rejects is a mistake", type(self).__name__)
        elif not self.rejects:
            raise UserError(
                f"the target has classes that the source lacks (data.label_sets), and {type(self).__name__} rejects "
                "nothing: give model.rejection, such as Entropy"
            )

    def new_metrics(self, evaluation: "Evaluation") -> MetricCollection:
        """Metrics for one evaluation: only a target's samples are rejected, or of unknown classes."""
        target = evaluation.role.startswith("target")
        return self.problem.metrics(
            self.num_classes, rejects=target and self.rejects, has_unknown=target and self.has_unknown
        )

    def score(self, metrics: MetricCollection, role: str, outputs: Outputs, y: Tensor) -> None:
        """Updates :meth:`new_metrics`; the first target of a validation fits a threshold that was not given.

        It is fitted to the sources' validation samples, which come before any target's.

        Raises:
            UserError: if there is nothing to fit it to: in a source-free run, or in a test that no validation preceded.
        """
        if role.startswith("source"):
            self.problem.score(metrics, outputs, y)
            if role == "source_val" and self.rejection is not None and self.rejection.threshold is None:
                self.known_logits.append(outputs.logits)
            return
        if self.rejection is not None and self.rejection.threshold is None:
            if self.known_logits:
                found, self.known_logits = torch.cat(self.known_logits), []
                self.rejection.fit(torch.cat(gather_all_tensors(found)) if self.trainer.world_size > 1 else found)
            elif self.rejection.needs_fit:
                raise UserError("model.rejection has no threshold, and no source's validation has fitted one: give it")
        self.problem.score(metrics, outputs, y, self.unknown_scores(outputs))
