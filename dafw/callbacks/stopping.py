"""Ctrl-C and SIGTERM: finish the step, save, leave."""

import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from dafw.callbacks.checkpointing import Checkpointing


class Stopped(Exception):
    """A signal ended the run after a checkpoint was written.

    Args:
        signum: the signal.
        step: steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there")
        self.signum, self.step = signum, step


class Stopping(pl.Callback):
    """Turns the first SIGINT or SIGTERM into a checkpoint at the end of the step; a second one acts at once.

    On several ranks they agree every few steps whether to stop, so that all save the same step.

    Args:
        checkpointing: what writes the checkpoint.
        agree_every: steps between two agreements of the ranks.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpointing: Checkpointing, agree_every: int = 5) -> None:
        self.checkpointing, self.agree_every = checkpointing, agree_every
        self.received = 0
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes the signals over."""

        def handle(signum: int, frame: FrameType | None) -> None:
            if self.received:
                self.restore()
                signal.raise_signal(signum)
                return
            self.received = signum
            launcher = trainer.strategy.launcher
            if launcher is not None and signum == signal.SIGTERM:
                launcher.kill(signal.Signals(signum))

        try:
            self.previous = {signum: signal.signal(signum, handle) for signum in self.SIGNALS}
        except ValueError:  # not the main thread: whoever runs us there handles signals
            return
        # Lightning's own agreement reads the device at every step of a distributed run; ours replaces it.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Saves and leaves if a signal came."""
        signum = self.received
        if trainer.world_size > 1:
            if pl_module.steps_done % self.agree_every:
                return
            flag = torch.tensor(float(signum), device=pl_module.device)
            signum = int(pl_module.all_gather(flag).max())
        if signum:
            self.checkpointing.save(trainer, pl_module)
            raise Stopped(signum, pl_module.steps_done)

    def restore(self) -> None:
        """Gives the signals back."""
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        self.previous = {}

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Gives the signals back."""
        self.restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the signals back."""
        self.restore()
