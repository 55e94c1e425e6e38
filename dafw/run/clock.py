"""Measures the seconds that a run takes."""

import time
from typing import Any

import pytorch_lightning as pl


class Clock(pl.Callback):
    """Counts the seconds of training and of evaluation, over all parts of an interrupted run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = {"total": 0.0, "train": 0.0, "evaluate": 0.0}
        self._fit = self._evaluation = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Starts to count the training."""
        self._fit = time.monotonic()

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

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, kept in checkpoints so that a resumed run adds to them."""
        running = time.monotonic() - self._fit if self._fit else 0.0
        return {**self.now(), "train": self.seconds["train"] + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the seconds in a checkpoint."""
        self.seconds = {name: float(value) for name, value in state_dict.items()}
