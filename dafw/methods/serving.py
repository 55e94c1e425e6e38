"""The evaluation of a method: Lightning's hooks hand each batch to the evaluator, which keeps the labels to itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.evaluation.columns import TestColumns
from dafw.evaluation.evaluator import Evaluator, ExtraTestMetrics
from dafw.evaluation.rejection import Rejection
from dafw.lightning_adapter import has_trainer

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class Serving(Base):
    """The part of every method that is evaluated. It gets batches without labels."""

    evaluator: Evaluator
    rejection: Rejection | None

    if TYPE_CHECKING:

        def flush(self) -> None: ...  # noqa: D102
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
        return {"": self.evaluate(batch, source)}

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
        """Flushes the record, then prepares method and evaluator for ``validate``, ``test`` or ``predict``."""
        self.flush()
        if stage != "validate":
            self.evaluator.open_set.check_threshold()
        self.prepare_evaluation(stage)
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
