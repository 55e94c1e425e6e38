"""SWAD: averages the weights over the steps in the valley of the sources' validation loss, for any method."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn

from dafw.callbacks.checkpointing import between_updates
from dafw.errors import UserError
from dafw.lightning_adapter import batch_on_device
from dafw.nn.statistics import averaged_statistics
from dafw.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from dafw.recording import Recorded

Mode = Literal["once", "authors"]
Weights = list[Tensor]
_update: Any = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]


@dataclass
class Segment:
    """The steps between two validations: the mean of the weights after each step, and the loss at the segment's end."""

    number: int
    loss: float
    weights: Weights


@dataclass
class LossValley:
    """Decides which segments are averaged.

    The valley opens at the first validation at which the oldest of the last ``n_converge`` losses is the smallest of
    them. The segment of that oldest loss is the bottom. ``threshold`` is the mean of these losses times 1 + ``ratio``.
    If ``n_tolerance`` is larger than ``n_converge``, the valley also extends back from the bottom, over the segments in
    the window of the last ``n_tolerance`` ones: as far as none of them is above the threshold, without the first of
    these. Afterwards each validation adds the oldest segment of the window. Once the lowest loss in the window is above
    the threshold, the valley has ended for good. If training ends first, the segments left in the window are added one
    by one, as long as one of the remaining losses is not above the threshold.

    Attributes:
        n_converge: number of losses that show the bottom.
        n_tolerance: number of losses that must all be above the threshold to end the valley.
        ratio: how far the threshold is above the mean loss at the bottom, relative to it.
        mode: ``once``: each segment counts once, and so does the bottom. ``authors``: as in the authors' code, the
            bottom counts only if it is added again, and the oldest segment is added anew at each validation at which it
            still is the oldest.
        threshold: nan until the valley opens.
        bottom: number of the segment at the bottom; -1 until the valley opens.
        dead: whether the valley has ended.
        count: number of segments in ``average``.
    """

    n_converge: int = 3
    n_tolerance: int = 6
    ratio: float = 0.3
    mode: Mode = "once"
    threshold: float = float("nan")
    bottom: int = -1
    dead: bool = False
    closed: int = 0
    count: int = 0
    average: Weights = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    recent: list[Segment] = field(default_factory=list)

    def close(self, weights: Weights, loss: float) -> None:
        """Takes the segment that a validation has ended.

        Args:
            weights: the mean of the segment's weights. They are stored, so the caller must not change them.
            loss: the mean loss on the sources' validation splits.
        """
        if self.dead:
            return
        self.recent.append(Segment(self.closed, loss, weights))
        self.recent = self.recent[-max(self.n_converge, self.n_tolerance) :]
        self.closed += 1
        if self.bottom < 0:
            latest = self.recent[-self.n_converge :]
            if len(latest) == self.n_converge and latest[0].loss == min(one.loss for one in latest):
                self._open(latest)
            return
        window = self.recent[-self.n_tolerance :]
        if window[0].number < self.bottom:
            return
        if min(one.loss for one in window) > self.threshold:
            self.dead, self.recent = True, []
        else:
            self._add(window[0])

    def _open(self, latest: list[Segment]) -> None:
        self.bottom = latest[0].number
        self.threshold = sum(one.loss for one in latest) / len(latest) * (1 + self.ratio)
        self.average = [weight.clone() for weight in latest[0].weights]
        if self.mode == "once":
            self.count, self.added = 1, [self.bottom]
        if self.n_tolerance < self.n_converge:
            reached = latest[1 : 1 + self.n_converge - self.n_tolerance]
        else:
            window = self.recent[-self.n_tolerance :][: self.n_tolerance - self.n_converge + 1]
            above = [position for position, one in enumerate(window) if one.loss > self.threshold]
            reached = window[above[-1] + 2 if above else 1 :] if self.n_tolerance > self.n_converge else []
        for segment in reached:
            self._add(segment)

    def _add(self, segment: Segment) -> None:
        if self.mode == "once":
            if segment.number in self.added:
                return
            self.added.append(segment.number)
        if self.count:
            _update(self.average, segment.weights, self.count)
        else:
            self.average = [weight.clone() for weight in segment.weights]
        self.count += 1

    def finish(self) -> Weights:
        """The average at the end of training; the last segment if no valley opened; empty if there is no segment."""
        if self.bottom < 0:
            return self.recent[-1].weights if self.recent else []
        left = self.recent[-self.n_tolerance :][1:]
        if self.mode == "once":
            left = [one for one in self.recent if one.number > self.bottom and one.number not in self.added]
        while left and min(one.loss for one in left) <= self.threshold:
            self._add(left.pop(0))
        self.recent = []
        return self.average

    def state(self) -> dict[str, Any]:
        """The state, as plain values and tensors."""
        names = ("threshold", "bottom", "dead", "closed", "count", "average", "added")
        recent = [[one.number, one.loss, one.weights] for one in self.recent]
        return {**{name: getattr(self, name) for name in names}, "recent": recent}

    def load(self, state: dict[str, Any]) -> None:
        """Restores the result of :meth:`state`."""
        for name, value in state.items():
            setattr(self, name, [Segment(*one) for one in value] if name == "recent" else value)


class SWAD(Recorded, pl.Callback):
    """Averages the weights after every step, over the segments of training with a low loss on the sources.

    A validation ends a segment; :class:`LossValley` decides which segments are averaged. At the end of training the
    average replaces the weights. So the last checkpoint holds the average, and the average is tested. The running
    statistics of batch norms are estimated anew. All parameters of the method are averaged, buffers are not. The
    validations of the run record the weights in training, not the average.

    Cha et al., SWAD: Domain Generalization by Seeking Flat Minima, NeurIPS 2021, https://arxiv.org/abs/2102.08604.

    Checkpoints of the run are larger: they hold the averages of ``max(n_converge, n_tolerance)`` segments and two more.

    Args:
        n_converge: number of validations that show that the loss no longer falls (paper: 3).
        n_tolerance: number of validations that must all be above the threshold to end the average (paper: 6).
        ratio: how far the threshold is above the loss at the bottom, relative to it (paper: 0.3; VLCS 0.2).
        reestimate: number of training batches from which the running statistics of batch norms are estimated anew,
            unless they are frozen (the authors' code: 500).
        mode: ``once``, or ``authors`` for the weights of segments in the authors' code; see :class:`LossValley`.

    Raises:
        UserError: if a number is out of its range; at the start of training, if the method keeps a moving average of
            its own, sees no source, or is never validated.
    """

    config_key: ClassVar[str] = "trainer.callbacks"
    #: The run ends with an average of its weights, which no validation has seen.
    averages_weights = True

    def __init__(
        self,
        n_converge: PositiveInt = 3,
        n_tolerance: PositiveInt = 6,
        ratio: NonNegativeFloat = 0.3,
        reestimate: NonNegativeInt = 500,
        mode: Mode = "once",
    ) -> None:
        self.reestimate = reestimate
        self.valley = LossValley(n_converge, n_tolerance, ratio, mode)
        self.running: Weights = []
        self.count = 0
        self.applied = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses methods and runs that it cannot average."""
        if stage != "fit":
            return
        if pl_module.weight_average is not None:
            raise UserError("SWAD averages the weights itself: leave out model.ema_decay")
        if not pl_module.setting.sees_source:
            setting = pl_module.setting.name
            raise UserError(f"SWAD reads the loss on the sources' validation splits, which a {setting} run never sees")
        if trainer.limit_val_batches == 0:
            raise UserError("SWAD reads the loss of each validation: trainer.limit_val_batches must not be 0")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Moves the weights from a checkpoint to the device."""
        self.running = [weight.to(pl_module.device) for weight in self.running]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Adds the weights to the mean of the segment, on the device."""
        if not between_updates(trainer, pl_module.steps_done):
            return
        weights = [weight.detach() for weight in pl_module.parameters()]
        if self.count == 0:
            self.running = [weight.to(_precise(weight.dtype), copy=True) for weight in weights]
        else:
            same = [weight.to(_precise(weight.dtype)) for weight in weights]
            _update(self.running, same, self.count)
        self.count += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ends the segment."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.count == 0:
            return
        loss = pl_module.history[-1]["validators"]["source_loss"]
        self.valley.close([weight.to("cpu", copy=True) for weight in self.running], loss)
        self.count = 0

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replaces the weights by the average."""
        if self.applied:
            return
        final = self.valley.finish() or self.running
        for weight, mean in zip(pl_module.parameters(), final, strict=True):
            weight.copy_(mean)
        self.estimate_statistics(trainer, pl_module)
        self.applied, self.running = True, []

    def estimate_statistics(self, trainer: pl.Trainer, method: Any) -> None:
        """Estimates running statistics of the averaged weights: the mean over the next training batches."""
        done, mode = method.steps_started, method.training
        with averaged_statistics(method.network) as number, trainer.precision_plugin.forward_context():
            loader = trainer.datamodule.train_dataloader() if number and self.reestimate else None  # type: ignore[attr-defined]
            method.train()
            while loader is not None and method.steps_started < done + self.reestimate:
                for batch in loader:
                    method.steps_started += 1
                    method.seed_step()
                    method.statistics_pass(batch_on_device(trainer, method, batch))
                    if method.steps_started == done + self.reestimate:
                        break
        method.train(mode)
        method.steps_started = done

    def state_dict(self) -> dict[str, Any]:
        """The current segment, the segments in the window, and the average."""
        return {
            "running": self.running,
            "count": self.count,
            "valley": self.valley.state(),
            "applied": self.applied,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        self.running, self.count, self.applied = (state_dict[key] for key in ("running", "count", "applied"))
        self.valley.load(state_dict["valley"])


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
