"""Measures what a run costs: seconds, samples and memory."""

import time
from typing import Any

import pytorch_lightning as pl

from dafw.run.memory import peaks, restart_peaks


class Clock(pl.Callback):
    """Counts seconds of training and of evaluation, and training samples, over all parts of an interrupted run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = {"total": 0.0, "train": 0.0, "evaluate": 0.0}
        self.samples = 0
        self._fit = self._evaluation = 0.0
        restart_peaks()

    def on_train_start(self, *_: Any) -> None:
        """Starts to count the training."""
        self._fit = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Counts the samples of a step on all ranks."""
        self.samples += len(batch) * trainer.world_size

    def on_train_end(self, *_: Any) -> None:
        """Stops to count the training, without its validations."""
        self.seconds["train"] += time.monotonic() - self._fit

    def on_validation_start(self, *_: Any) -> None:
        """Starts to count the evaluation."""
        self._evaluation = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        """Stops to count the evaluation."""
        spent = time.monotonic() - self._evaluation
        self.seconds["evaluate"] += spent
        self.seconds["train"] -= spent

    def on_test_start(self, *_: Any) -> None:
        """Starts to count the evaluation."""
        self._evaluation = time.monotonic()

    def on_test_end(self, *_: Any) -> None:
        """Stops to count the evaluation."""
        self.seconds["evaluate"] += time.monotonic() - self._evaluation

    def now(self) -> dict[str, float]:
        """Seconds so far: "total", "train" and "evaluate"."""
        return {**self.seconds, "total": self.seconds["total"] + time.monotonic() - self.started}

    def cost(self) -> dict[str, int]:
        """Samples that training steps saw so far, and the peaks of memory of this part of the run, in bytes."""
        return {"samples": self.samples, **peaks()}

    def state_dict(self) -> dict[str, Any]:
        """Seconds and samples so far, kept in checkpoints so that a resumed run adds to them."""
        running = time.monotonic() - self._fit if self._fit else 0.0
        return {**self.now(), "train": self.seconds["train"] + running, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the seconds and samples in a checkpoint."""
        self.samples = int(state_dict.get("samples", 0))
        self.seconds = {name: float(state_dict[name]) for name in self.seconds}
