"""Logs the terms of the past steps regularly."""

from typing import Any

import pytorch_lightning as pl

from dafw.lightning_adapter import leave_buffers_alone, make_lean


class StepLogger(pl.Callback):
    """Logs the method's terms every ``log_every_n_steps``. Comes with every method; runs before any checkpoint."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keeps the ranks from sending each other buffers that agree."""
        leave_buffers_alone(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Makes Lightning's step lean."""
        make_lean(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Logs where the method says so."""
        if pl_module.logs_this_step:
            pl_module.log_window()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the last steps, and fits a threshold of rejection to the final weights."""
        if pl_module.window or pl_module.unlogged:
            pl_module.log_window()
        pl_module.evaluator.open_set.fit_to_final_weights()
