"""What test-time methods share: they predict each batch of the test stream, then learn from it, without a label."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.errors import UserError, choose
from dafw.methods.base import Losses, Method
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.beginning import Beginning
from dafw.methods.test_time.served import ServedPredictions
from dafw.nn.distributed import mean_weights
from dafw.nn.layout import StreamStatistics
from dafw.nn.network import Network
from dafw.nn.norm import norm_parameters
from dafw.nn.teacher import Teacher
from dafw.optim.schedules import Constant, Schedule
from dafw.problems import NetworkBase
from dafw.ranges import ClosedUnitInterval, PositiveInt

TEST_TIME = Setting("test-time", sees_source=False, starts_from_model=True, streams_target=True)
StatisticsRule = Literal["running", "batch", "average", "mixed", "renorm"]
Learns = Literal["norm", "network", "head", "nothing"]
Reset = Literal["never", "shift", "own"] | PositiveInt
"""When a method returns to the start: a word, or a number of steps."""


class TestTimeMethod(Method, abstract=True):
    """Starts from a trained model and passes once over the targets' test samples, each batch predicted, then learned.

    The stream is what ``fit`` trains on. It has no labels. Each step makes one pass of its batch. The pass gives what
    the batch is served, which is kept by sample, and then what the method learns from. The network is in evaluation
    mode, without dropout; ``statistics`` says by what batch normalisation normalises. A test meets what was served with
    the labels, after the stream has ended. The metrics named ``..._without_adaptation`` are those of the start model,
    normalised by its running statistics.

    Args:
        network: as the checkpoint's (the command line takes that one if none is given).
        checkpoint: see :class:`~dafw.methods.base.Method`; without it the network needs a pretrained head.
        statistics: by what batch normalisation normalises a batch of the stream: by the ``running`` statistics of the
            checkpoint, by those of the ``batch`` over all ranks, by an ``average`` that follows the batches, by the
            running ones and the batch's ``mixed``, or by running ones that follow the batches, with the gradient of a
            normalisation by the batch (``renorm``); see :class:`~dafw.nn.layout.StreamStatistics`. The method's
            ``default_statistics`` if ``None``.
        statistics_momentum: weight of a batch in ``average`` and ``renorm``.
        target_weight: weight of the batch in ``mixed``.
        learns: which parameters of the network learn: scale and shift of all its batch, layer and group normalisations
            (``norm``), the whole ``network``, its label ``head``, or ``nothing``, with which the stream is served by
            the start model under the same statistics. The method's ``default_learns`` if ``None``.
        schedule: see :class:`~dafw.methods.base.Method`; constant if ``None``.
        reset: when all that the method has learned returns to the start: ``never``, at each ``shift`` of the stream,
            by the method's ``own`` rule, or after each such number of steps. A stream with ``reset_each_shift`` returns
            there at its shifts, too.
        base: see :class:`~dafw.methods.base.Method`.

    Attributes:
        restarts: how often the method returned to the start, a scalar int64.
        rows_used: (n,) bool, which rows of the batch count in its step, see :meth:`used`.
        moves: whether the step moves anything.

    Raises:
        UserError: see :meth:`~dafw.methods.starting.Starting.start_from`; for ``norm`` if the network has no
            normalisation that learns; for ``reset: own`` if the method has no rule. When training starts, for precision
            ``16-mixed``, and for ``reset: shift`` on a mixed stream.
    """

    __test__ = False  # its name is no test's

    setting = TEST_TIME
    control: ClassVar[dict[str, Any]] = {"learns": "nothing"}
    control_difference_reason: ClassVar[str] = "it is the start model, untouched but for BatchNorm statistics"
    default_statistics: ClassVar[StatisticsRule] = "running"
    default_learns: ClassVar[Learns] = "network"
    #: Whether the pass that learns gives what is served. If not, :meth:`present_outputs` makes a pass of its own
    #: before. It does so, too, if a moving average of the network is served.
    serves_learning_pass: ClassVar[bool] = True
    #: Whether the rows that count are those that a device sends to a cloud.
    counts_uploads: ClassVar[bool] = False
    #: Why the first batch is not served what the start model gives under the same statistics; empty if it is.
    first_served_reason: ClassVar[str] = ""
    #: The method's own rule of when to return to the start, in words; empty without one. See :meth:`restart_due`.
    own_reset: ClassVar[str] = ""
    #: How the names of those parts of the state begin that no restart changes.
    not_restarted: ClassVar[tuple[str, ...]] = ("network.", "start.", "served.", "beginning.", "restarts")
    restarts: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        checkpoint: str | None = None,
        statistics: StatisticsRule | None = None,
        statistics_momentum: ClosedUnitInterval = 0.1,
        target_weight: ClosedUnitInterval = 0.1,
        learns: Learns | None = None,
        schedule: Schedule | None = None,
        reset: Reset = "never",
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, schedule=schedule or Constant(), **base)
        self.statistics: StatisticsRule = statistics or self.default_statistics
        choose("statistics", self.statistics, get_args(StatisticsRule))
        self.statistics_momentum, self.target_weight = statistics_momentum, target_weight
        self.learns: Learns = learns or self.default_learns
        choose("learns", self.learns, get_args(Learns))
        self.reset: str | int = reset if isinstance(reset, int) else choose("reset", reset, ("never", "shift", "own"))
        if reset == "own" and not self.own_reset:
            raise UserError(f"{type(self).__name__} has no rule of its own: give another model.reset than own")
        self.choose_parameters()
        self.start = Teacher(network, 1.0)
        self.beginning = Beginning()
        self.served = ServedPredictions()
        self.register_buffer("restarts", torch.zeros((), dtype=torch.int64))
        self.transductive_reason = "after each batch of the test split the model is adapted to it"
        self.rows_used = torch.zeros(0, dtype=torch.bool)
        self.moves = True
        self._starts: frozenset[int] = frozenset()
        self.eval()

    def choose_parameters(self) -> None:
        """Leaves a gradient to those parameters of the network alone that learn; see :func:`choose_parameters`."""
        choose_parameters(self.network, self.learns, type(self).__name__)

    # ---- what a method writes

    def adapt(self, outputs: Any, batch: Batch) -> Losses:
        """The weighted terms that the method learns from a batch, by name; their sum is minimised.

        It is called after :meth:`serve`, and before the step; not at all where nothing learns.

        Args:
            outputs: of the batch's n rows, with the graph that made them.
            batch: their inputs, and where they come from; it has no labels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(outputs, batch)")

    def serve(self, outputs: Any, batch: Batch) -> Tensor:
        """The scores that a batch is served, (n, K); before the step and without a gradient.

        Args:
            outputs: of the batch's n rows: those of the pass that learns, or :meth:`present_outputs`.
            batch: see :meth:`adapt`.
        """
        scores: Tensor = outputs.logits
        return scores

    @property
    def stream_statistics(self) -> StreamStatistics | None:
        """By what batch normalisation normalises within a step; ``None``: by running statistics, as in evaluation."""
        if self.statistics == "running":
            return None
        weight = self.target_weight if self.statistics == "mixed" else self.statistics_momentum
        return StreamStatistics(self.statistics, weight)

    @property
    def statistics_in_words(self) -> str:
        """By what batch normalisation normalises, with its weight."""
        by = self.stream_statistics
        return self.statistics if by is None or by.rule == "batch" else f"{by.rule} {by.weight:g}"

    def present_outputs(self, batch: Batch) -> Any:
        """Outputs of the model as it is now."""
        return self.forward_rows(batch.x, 0, self.eval_network, batch.sizes)

    def start_outputs(self, batch: Batch) -> Any:
        """Outputs of the model that the stream began with."""
        return self.forward_rows(batch.x, 0, self.start.module, batch.sizes)

    def used(self, rows: Tensor) -> Tensor:
        """Notes which rows count in this step. If none does on any rank, the step leaves everything as it is.

        That is a read of the host: a method that asks has ``host_reads`` of 1. A method that does not ask uses all.

        Args:
            rows: (n,) bool, on this rank.

        Returns:
            (n,), a weight for each row: 0 for those that do not count. The sum of a loss over the rows, times these,
            is its mean over the rows that count, of all ranks.
        """
        weights, count = mean_weights(rows, torch.promote_types(self.network.shift.dtype, torch.float32))
        moves = bool(count > 0)
        if not self.repeated_pass:
            self.rows_used, self.moves = rows.detach(), moves
        return weights

    # ---- the stream

    def losses(self, batch: Batch) -> Losses:
        """Serves the batch, and gives the terms of :meth:`adapt`."""
        first, own_pass = not self.repeated_pass, not self.serves_learning_pass or self.eval_network is not self.network
        served = None
        if first and own_pass:
            with torch.no_grad(), self.layout.untracked():
                served = self.serve(self.present_outputs(batch), batch)
            torch.clear_autocast_cache()  # of weights that were cast where no gradient was asked for
        with torch.set_grad_enabled(self.learns != "nothing"):
            outputs = self.forward_rows(batch.x, 0, sizes=batch.sizes)
        if first and not own_pass:
            with torch.no_grad():
                served = self.serve(outputs, batch)
        nothing = {"adaptation": outputs.logits.new_zeros(())}
        terms = nothing if self.learns == "nothing" else self.adapt(outputs, batch)
        if served is not None:
            self.keep(batch, replace(outputs, logits=served.detach()))
        return terms

    def keep(self, batch: Batch, outputs: Any) -> None:
        """Keeps the outputs that the batch is served."""
        assert batch.place is not None
        new = slice(batch.num_again, None)
        self.served.keep(batch.place[new], outputs.logits[new], self.step, self.rows_used[new])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """No gradient where nothing learns, or no row counts: the optimiser then leaves weights and state alone."""
        if self.moves:
            super().backward(loss, *args, **kwargs)

    def step_teachers(self) -> None:
        """Teachers follow where the model moved."""
        if self.moves:
            super().step_teachers()

    def train(self, mode: bool = True) -> Self:
        """The model remains in evaluation mode."""
        return super().train(False)

    def setup(self, stage: str) -> None:
        """Refuses what would not let a step be left out."""
        super().setup(stage)
        if stage == "fit" and self.automatic_optimization and self.trainer.precision == "16-mixed":
            raise UserError(f"{type(self).__name__} may leave out steps: use trainer.precision bf16-mixed or 32-true")

    def on_fit_start(self) -> None:
        """Makes room for what will be served.

        Raises:
            UserError: for a return to the start at the shifts of a mixed stream.
        """
        super().on_fit_start()
        if self.reset == "shift" and not self.data.stream.has_shifts:
            raise UserError(
                "a mixed stream has no shifts to return to the start at: give model.reset never or a number"
            )
        self.served.open(self.data.train_domains, self.data.stream_plan)
        self._starts = frozenset(self.data.stream_starts)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """As the base; returns to the start where that is due."""
        if not self.steps_started:
            self.beginning.take(self, self.not_restarted)
        super().on_train_batch_start(batch, batch_idx)
        self.layout.stream = self.stream_statistics
        self.moves = self.learns != "nothing"
        self.rows_used = torch.full_like(batch.index, self.moves, dtype=torch.bool)
        if self._is_restart_due() and self.step:
            self.restart()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """As the base; evaluations normalise by running statistics."""
        self.layout.stream = None
        super().on_train_batch_end(outputs, batch, batch_idx)

    @property
    def knows_shifts(self) -> bool:
        """Whether the method returns to the start at the shifts of the stream, which a deployed model does not know."""
        return self.reset == "shift" or self.data.stream.reset_each_shift

    @property
    def reset_policy(self) -> str:
        """When the method returns to the start, in words."""
        words = {"never": "never", "shift": "never", "own": self.own_reset}
        said = f"every {self.reset} steps" if isinstance(self.reset, int) else words[self.reset]
        if self.knows_shifts:
            said = "at each shift" if said == "never" else f"at each shift, and {said}"
        return said

    def _is_restart_due(self) -> bool:
        if self.knows_shifts and self.step in self._starts:
            return True
        if isinstance(self.reset, int):
            return self.step % self.reset == 0
        return self.reset == "own" and self.restart_due()

    def restart_due(self) -> bool:
        """Whether the method's own rule returns to the start before this step. All ranks must give the same answer.

        It is asked where ``reset`` is ``own``. A read of the host is one of the method's ``host_reads``.
        """
        return False

    @torch.no_grad()
    def restart(self) -> None:
        """Gives everything back what it was at the start of the stream: all weights and buffers, and the optimiser.

        What was served stays. So do the count of steps and that of restarts. A method whose state is in buffers needs
        no more.
        """
        begun = {f"network.{name}": value for name, value in self.start.module.state_dict().items()}
        pl.LightningModule.load_state_dict(self, begun | self.beginning.tensors(), strict=False)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self.restarts += 1

    # ---- after the stream

    def evaluate(self, batch: Batch, source: bool) -> Any:
        """The scores that the batch's samples were served, with the features of the model as the stream has left it.

        Of a batch without an origin it is what the model gives now.
        """
        outputs = self.present_outputs(batch)
        return outputs if batch.origin is None else replace(outputs, logits=self.served.of(batch.origin, batch.index))

    def evaluate_variants(self, batch: Batch, source: bool) -> Mapping[str, Any]:
        """What was served, and what the start model gives.

        The features beside what was served are the start model's: no test needs features, so it makes no second pass.
        """
        start = self.start_outputs(batch)
        if batch.origin is None:
            return {"": self.present_outputs(batch), "_without_adaptation": start}
        positions = self.served.positions(batch.origin, batch.index)
        self.served.note_start(positions, start.logits)
        return {"": replace(start, logits=self.served.logits[positions]), "_without_adaptation": start}

    def on_test_epoch_end(self) -> None:
        """As the base; every rank then knows all that the start model predicted."""
        self.served.share_start()
        super().on_test_epoch_end()


def choose_parameters(network: NetworkBase, learns: Learns, method: str, place: str = "model.network") -> None:
    """Leaves a gradient to those parameters of a network alone that learn.

    Args:
        network: changed in place.
        learns: see :class:`TestTimeMethod`.
        method: whose network it is.
        place: where the network was given.

    Raises:
        UserError: if there are none.
    """
    if learns in ("network", "nothing"):
        return
    chosen = norm_parameters(network) if learns == "norm" else trained_parameters(network.label_head())
    if not chosen:
        what = "scale and shift of normalisations" if learns == "norm" else "the label head"
        raise UserError(
            f"{method} learns {what} (model.learns {learns}), and {place} has none that learn: take another network, or"
            " model.learns network"
        )
    network.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
