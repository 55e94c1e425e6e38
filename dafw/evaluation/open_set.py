"""Samples of no known class: what rejects them, what a threshold is fitted to, which metrics there are."""

import logging
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.errors import UserError
from dafw.evaluation.rejection import Rejection
from dafw.nn.distributed import gather_unequal
from dafw.problems import Outputs, Problem

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from dafw.data.batch import Batch
    from datamodules.base import Evaluation

    Base = pl.LightningModule
else:
    Base = object

log = logging.getLogger(__name__)


class UnknownClasses(Base):
    """The part of every method that concerns classes that only the target has."""

    setting: ClassVar[str]
    problem: Problem
    num_classes: int
    rejection: Rejection | None
    known_logits: list[Tensor]

    if TYPE_CHECKING:

        def evaluate(self, batch: Batch, source: bool) -> Outputs: ...  # noqa: D102

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
            UserError: if the target has classes of its own and the method rejects nothing, or if a source-free method
                would need a source for its threshold.
        """
        if self.setting == "source-free" and self.rejection is not None and self.rejection.threshold is None:
            raise UserError(
                "a source-free run has no sample of the source to fit a threshold to: give model.rejection.threshold"
            )
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
        said = {"rejects": target and self.rejects, "has_unknown": target and self.has_unknown}
        return self.problem.metrics(self.num_classes, **{name: True for name, holds in said.items() if holds})

    def score(self, metrics: MetricCollection, role: str, outputs: Outputs, y: Tensor) -> None:
        """Updates :meth:`new_metrics`; the first target of a validation fits a threshold that was not given.

        It is fitted to the sources' validation samples, which come before any target's.
        """
        if role.startswith("source"):
            self.problem.score(metrics, outputs, y)
            if role == "source_val" and self.rejection is not None and self.rejection.threshold is None:
                self.known_logits.append(outputs.logits)
            return
        if self.known_logits:
            found, self.known_logits = self.known_logits, []
            self.fit_rejection(found)
        self.problem.score(metrics, outputs, y, *self.margins(outputs))

    def margins(self, outputs: Outputs) -> tuple[Tensor, ...]:
        """:meth:`unknown_scores` as a further argument for a problem, which need not know it if nothing is rejected."""
        unknown = self.unknown_scores(outputs)
        return () if unknown is None else (unknown,)

    def check_threshold(self) -> None:
        """Asks for a threshold.

        Raises:
            UserError: if ``model.rejection`` has none, neither given nor fitted.
        """
        if self.rejection is not None and self.rejection.needs_fit:
            raise UserError("model.rejection has no threshold, and no source's validation has fitted one: give it")

    def fit_rejection(self, found: list[Tensor]) -> None:
        """Fits a threshold that was not given to logits (n, K) of this rank's source validation samples."""
        assert self.rejection is not None
        self.rejection.fit(gather_unequal(torch.cat(found)))

    @torch.no_grad()
    def fit_final_rejection(self) -> None:
        """Fits a threshold that was not given to the weights as the training leaves them.

        The last validation may have been of others: of earlier ones, or of those before their average took their place.
        """
        data = getattr(self.trainer, "datamodule", None)
        sources = getattr(data, "sources", [])
        if self.rejection is None or self.rejection.threshold is not None or not sources:
            return
        assert data is not None
        mode, found, plugin = self.training, [], self.trainer.precision_plugin
        self.eval()
        with plugin.forward_context():
            for name in sources:
                for batch in data.evaluation_loader(data.domain(name, "val")):
                    batch = self.trainer.strategy.batch_to_device(plugin.convert_input(batch))
                    found.append(self.evaluate(batch, True).logits)
        self.train(mode)
        self.fit_rejection(found)
