"""Ends a run on Ctrl-C or SIGTERM: it finishes the step, saves and leaves."""

import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from dafw.callbacks.checkpointing import Checkpointing, between_updates
from dafw.lightning_adapter import agree_on_signals_ourselves


class Stopped(Exception):
    """A signal ended the run after a checkpoint was written.

    Args:
        signum: the signal.
        step: steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there"
        )
        self.signum, self.step = signum, step


class Stopping(pl.Callback):
    """Turns the first SIGINT or SIGTERM into a checkpoint after the step. A second signal acts at once.

    A validation is finished first. Several ranks agree every few steps whether to stop, so that all save the same step.
    A test or a prediction has nothing to save, so the first signal acts at once.

    Args:
        checkpointing: writes the checkpoint. Without it nothing is saved.
        agree_every: steps between two agreements of the ranks.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpointing: Checkpointing | None = None, agree_every: int = 5) -> None:
        self.checkpointing, self.agree_every = checkpointing, agree_every
        self.received = self.agreed_at = 0
        self.previous: dict[int, Any] = {}
        self.installed: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Replaces the handlers of the signals."""

        def handle(signum: int, frame: FrameType | None) -> None:
            if self.received:
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
                signal.raise_signal(signum)
                return
            self.received = signum
            _pass_on(trainer, signum)

        if self._handle(handle):
            self.received = signal.SIGTERM if trainer.received_sigterm else 0  # it came while Lightning prepared this
            agree_on_signals_ourselves(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Does the same as :meth:`on_test_start` if there is no training."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Does the same as :meth:`on_test_start`."""
        self.on_test_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lets a signal end the test at once, since there is nothing to save."""

        def handle(signum: int, frame: FrameType | None) -> None:
            _pass_on(trainer, signum)
            raise Stopped(signum, pl_module.steps_done)

        self._handle(handle)

    def _handle(self, handler: Any) -> bool:
        self.installed = handler
        try:
            self.previous = {signum: signal.signal(signum, handler) for signum in self.SIGNALS}
        except ValueError:  # not the main thread, where signals are handled
            return False
        return True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Saves and leaves if a signal came, after the previous step and its validation."""
        steps = pl_module.steps_done
        if between_updates(trainer, steps) and (trainer.world_size == 1 or steps - self.agreed_at >= self.agree_every):
            self.agreed_at = steps
            self._leave_if_asked(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves and leaves if a signal came in the last validation."""
        self._leave_if_asked(trainer, pl_module)

    def _leave_if_asked(self, trainer: pl.Trainer, method: Any) -> None:
        signum = self.received
        if trainer.world_size > 1:
            signum = int(method.all_gather(torch.tensor(float(signum), device=method.device)).max())
        if signum:
            if self.checkpointing is not None:
                self.checkpointing.save(trainer, method)
            raise Stopped(signum, method.steps_done)

    def restore(self) -> None:
        """Puts the earlier handlers back."""
        for signum, handler in self.previous.items():
            if signal.getsignal(signum) is self.installed:  # Lightning may have put its own back already
                signal.signal(signum, handler)
        self.previous, self.installed = {}, None

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Puts the earlier handlers back."""
        self.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Puts the earlier handlers back."""
        self.restore()


def _pass_on(trainer: pl.Trainer, signum: int) -> None:
    """Sends SIGTERM to the ranks that this process started. Ctrl-C reaches them by itself."""
    launcher = trainer.strategy.launcher
    if launcher is not None and signum == signal.SIGTERM:
        launcher.kill(signal.Signals(signum))
