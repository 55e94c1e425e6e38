"""The evaluation of a method: Lightning's hooks hand each batch to the evaluator, which keeps the labels to itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.evaluation.columns import TestColumns
from dafw.evaluation.evaluated import ExtraTestMetrics
from dafw.evaluation.evaluator import Evaluator
from dafw.evaluation.rejection import Rejection
from dafw.lightning_adapter import has_trainer
from dafw.methods.target_statistics import Statistics, copied, estimate, served_with
from dafw.nn.norm import DomainBatchNorm
from dafw.nn.statistics import batch_norms

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from dafw.methods.base import Method

    Base = pl.LightningModule
else:
    Base = object


#: What the names of metrics end in that are scored with batch statistics of the target.
SECOND = "_target_statistics"


class Serving(Base):
    """The part of every method that is evaluated. It gets batches without labels."""

    evaluator: Evaluator
    rejection: Rejection | None
    #: Whether tests score the targets a second time, with batch statistics of the target.
    target_statistics: bool = False
    _second: tuple[list[DomainBatchNorm], Statistics] | None = None

    if TYPE_CHECKING:

        def flush(self) -> None: ...  # noqa: D102
        def check_start(self) -> None: ...  # noqa: D102
        @property
        def eval_network(self) -> Any: ...  # noqa: D102
        def forward_rows(  # noqa: D102
            self, x: Any, num_source: int | None, network: nn.Module | None = None, sizes: Tensor | None = None
        ) -> Any: ...

    def __dir__(self) -> list[str]:
        """The names of the attributes, without the properties while there is no trainer, since many of them ask it.

        ``torch.jit.trace`` reads every attribute that is named here.
        """
        owner = type(self)
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [one for one in names if has_trainer(self) or not isinstance(getattr(owner, one, None), property)]

    @property
    def supports_unsupervised_validators(self) -> bool:
        """Whether the label-free validators apply to this method on its problem."""
        return self.evaluator.uses_validators

    def evaluate(self, batch: Batch, source: bool) -> Any:
        """Outputs of an evaluation batch of a source or a target domain. The batch has no labels."""
        return self.forward_rows(batch.x, len(batch) if source else 0, self.eval_network, batch.sizes)

    def evaluate_variants(self, batch: Batch, source: bool) -> Mapping[str, Any]:
        """Outputs by the name of a variant: "" for those that count, other names for what is scored beside them."""
        found = {"": self.evaluate(batch, source)}
        if self._second is not None and not source:
            with served_with(*self._second):
                found[SECOND] = self.evaluate(batch, source)
        return found

    def serve_target_statistics(self) -> None:
        """Lets tests score the targets a second time, see ``target_statistics`` of :class:`~dafw.methods.base.Method`.

        Raises:
            UserError: if the network has no batch normalisation, or the method scores variants of its own.
        """
        if type(self).evaluate_variants is not Serving.evaluate_variants:
            raise UserError(f"{type(self).__name__} scores what it served: leave out model.target_statistics")
        batch_norms(self.eval_network, "model.target_statistics")
        self.target_statistics = True

    def _prepare_second(self, stage: str) -> None:
        self._second = None
        if stage == "test" and self.target_statistics:
            layers = batch_norms(self.eval_network)
            self._second = layers, copied(layers)
            estimate(cast("Method", self), *self._second)

    def unknown_scores(self, outputs: Any) -> Tensor | None:
        """Margins by which samples are held to be of no known class, (N,): the positive ones are rejected.

        A method with a rule of its own overrides it. ``None`` if nothing is ever rejected.
        """
        return None if self.rejection is None else self.rejection(outputs.logits)

    @property
    def rejects_itself(self) -> bool:
        """Whether the method has a rule of its own for what is unknown."""
        return type(self).unknown_scores is not Serving.unknown_scores

    def prepare_evaluation(self, stage: str) -> None:
        """Called before each ``validate``, ``test`` and ``predict``, on all ranks."""

    def test_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """Tensors with a row for each sample of a target's test batch, which :meth:`extra_test_metrics` needs."""
        return {}

    @staticmethod
    def extra_test_metrics(targets: list[TestColumns], class_names: tuple[str, ...]) -> ExtraTestMetrics:
        """The method's own numbers of a test. It is no part of the method's state: labels enter here.

        Args:
            targets: for each target :meth:`test_columns` of all its test samples, with their labels; empty without any.
            class_names: names of the known classes.
        """
        return ExtraTestMetrics({}, {})

    def pictures(self, data: Any) -> dict[str, Any]:
        """More figures of a finished run by name; rank 0 alone asks for them.

        Args:
            data: the datamodule; its test splits may be shown.
        """
        return {}

    def start_evaluation(self, stage: str) -> None:
        """Flushes the record, checks the weights, then prepares method and evaluator for a stage."""
        self.flush()
        if stage != "validate":
            self.evaluator.open_set.check_threshold()
        self.check_start()
        self.prepare_evaluation(stage)
        self._prepare_second(stage)
        self.evaluator.start(stage)

    def on_validation_start(self) -> None:
        """See :meth:`start_evaluation`."""
        self.start_evaluation("validate")

    def on_test_start(self) -> None:
        """See :meth:`start_evaluation`."""
        self.start_evaluation("test")

    def on_predict_start(self) -> None:
        """See :meth:`start_evaluation`."""
        self.start_evaluation("predict")

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See :class:`~dafw.evaluation.evaluator.Evaluator`."""
        self.evaluator.step(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """See :class:`~dafw.evaluation.evaluator.Evaluator`."""
        self.evaluator.step(batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The columns of the prediction file for one batch of a target."""
        return self.evaluator.predict(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """See :class:`~dafw.evaluation.evaluator.Evaluator`."""
        self.evaluator.finish_validation()

    def on_test_epoch_end(self) -> None:
        """See :class:`~dafw.evaluation.evaluator.Evaluator`."""
        self.evaluator.finish_test()
