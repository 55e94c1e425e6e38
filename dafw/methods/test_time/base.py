"""What test-time methods share: they predict each batch of the test stream, then learn from it, without a label."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.errors import choose
from dafw.methods.base import Losses, Method
from dafw.methods.test_time.served import ServedPredictions
from dafw.nn.modes import evaluation_mode
from dafw.nn.network import Network
from dafw.nn.teacher import Teacher
from dafw.ranges import PositiveInt

TEST_TIME = Setting("test-time", sees_source=False, starts_from_model=True, streams_target=True)


class TestTimeMethod(Method, abstract=True):
    """Starts from a trained model and passes once over the targets' test samples, each batch predicted, then learned.

    The stream is what ``fit`` trains on. It has no labels. Each step first predicts its batch in evaluation mode: that
    is what is served, and it is kept by sample. Then the method adapts to the batch. A test meets what was served with
    the labels, after the stream has ended. The metrics named ``..._without_adaptation`` are those of the start model.

    Args:
        network: as the checkpoint's (the command line takes that one if none is given).
        checkpoint: see :class:`~dafw.methods.base.Method`; without it the network needs a pretrained head.
        reset: when weights, buffers and the optimiser's state return to the start: ``never``, or with the first batch
            of each target (``domain``).
        reset_every: they return so after each such number of steps, too.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: see :meth:`~dafw.methods.starting.Starting.start_from`; and for ``reset_every`` below 1.
    """

    __test__ = False  # its name is no test's

    setting = TEST_TIME
    #: One to predict in evaluation mode, one to learn.
    backbone_passes: ClassVar[int] = 2
    control_difference_reason: ClassVar[str] = "it is the start model, untouched but for BatchNorm statistics"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        checkpoint: str | None = None,
        reset: Literal["never", "domain"] = "never",
        reset_every: PositiveInt | None = None,
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, **base)
        self.reset = choose("reset", reset, ("never", "domain"))
        self.reset_every = reset_every
        self.start = Teacher(network, 1.0)
        self.served = ServedPredictions()
        self.transductive_reason = "after each batch of the test split the model is adapted to it"
        self._starts: frozenset[int] = frozenset()

    # ---- what a method writes

    def adapt(self, outputs: Any, batch: Batch) -> Losses:
        """The weighted terms that the method learns from a batch, by name; their sum is minimised.

        Args:
            outputs: of the batch's n rows in training mode, after the batch was served.
            batch: their inputs, and where they come from; it has no labels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(outputs, batch)")

    def present_outputs(self, batch: Batch) -> Any:
        """Outputs of the model as it is now, in evaluation mode."""
        return self.forward_rows(batch.x, 0, self.eval_network, batch.sizes)

    def start_outputs(self, batch: Batch) -> Any:
        """Outputs of the model that the stream began with, in evaluation mode."""
        return self.forward_rows(batch.x, 0, self.start.module, batch.sizes)

    def restart(self) -> None:
        """Gives weights, buffers and the optimiser's state back what they were at the start of the stream.

        A method with parts of its own overrides it, and calls ``super().restart()``.
        """
        self.start.restore()
        if self.weight_average is not None:
            self.weight_average.copy_from()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    # ---- the stream

    def losses(self, batch: Batch) -> Losses:
        """Serves the batch, then gives the terms of :meth:`adapt`."""
        if not self.repeated_pass:
            with torch.no_grad(), evaluation_mode(self):
                self.keep(batch, self.present_outputs(batch))
            torch.clear_autocast_cache()  # of weights that were cast where no gradient was asked for
        return self.adapt(self.forward_rows(batch.x, 0, sizes=batch.sizes), batch)

    def keep(self, batch: Batch, outputs: Any) -> None:
        """Keeps the outputs that the batch is served."""
        assert batch.place is not None
        self.served.keep(batch.place[batch.num_again :], outputs.logits[batch.num_again :], self.step)

    def on_fit_start(self) -> None:
        """Makes room for what will be served."""
        super().on_fit_start()
        self.served.open(self.data.train_domains, self.data.stream_plan)
        self._starts = frozenset(self.data.stream_starts)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """As the base; returns to the start where that is due."""
        super().on_train_batch_start(batch, batch_idx)
        regular = self.reset_every is not None and self.step % self.reset_every == 0
        if self.step and (regular or (self.reset == "domain" and self.step in self._starts)):
            self.restart()

    # ---- after the stream

    def evaluate(self, batch: Batch, source: bool) -> Any:
        """The scores that the batch's samples were served, with the features of the model as the stream has left it.

        Of a batch without an origin it is what the model gives now.
        """
        outputs = self.present_outputs(batch)
        return outputs if batch.origin is None else replace(outputs, logits=self.served.of(batch.origin, batch.index))

    def evaluate_variants(self, batch: Batch, source: bool) -> Mapping[str, Any]:
        """What was served, and what the start model gives."""
        return {"": self.evaluate(batch, source), "_without_adaptation": self.start_outputs(batch)}
