"""What each rank finds of the parts of Lightning that several ranks need."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from dafw.callbacks import Stopping
from dafw.methods import SourceOnly
from dafw.testing.steps import Operations
from dafw.testing.toys import ToyData, toy_network, toy_trainer

STEPS = 6


class Watch(pl.Callback):
    """Counts, between the starts of two steps that follow each other late in training, broadcasts and host reads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.mode = Operations()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 2:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        elif batch_idx == STEPS - 1:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            names = [*self.mode.counts.elements(), *self.mode.host_reads]
            self.counts = Counter(name.removeprefix("c10d::") for name in names if "broadcast" in name)
            self.counts["host reads"] = len(self.mode.host_reads)


def train(world: int, limit_val_batches: float) -> tuple[dict[str, int], list[float]]:
    """The counts, and the target's loss of each validation. In it rank 0 has three batches and rank 1 two."""
    watch = Watch()
    data = ToyData("a", "b", count=40, batch_size=8, steps_per_epoch=STEPS, eval_batch_size=5)
    strategy: Any = DDPStrategy(process_group_backend="gloo") if world > 1 else "auto"
    torch.manual_seed(0)
    method = SourceOnly(toy_network(), num_classes=3)
    with TemporaryDirectory() as folder:
        trainer = toy_trainer(
            Path(folder),
            callbacks=[watch, Stopping(agree_every=10**6)],
            epochs=1,
            devices=world,
            strategy=strategy,
            precision="64-true",
            limit_val_batches=limit_val_batches,
        )
        trainer.fit(method, datamodule=data)
    return dict(watch.counts), [float(entry["validators"]["source_accuracy"]) for entry in method.history]


def everything(rank: int, world: int) -> dict[str, Any]:
    """Counts with both parts replaced, in a training with validations, and with each left to Lightning, without."""
    found: dict[str, Any] = {"replaced": train(world, 1.0)}
    for name in (
        "dafw.callbacks.step_logger.leave_buffers_alone",
        "dafw.callbacks.stopping.agree_on_signals_ourselves",
    ):
        with patch(name):
            found[name.rpartition(".")[2]] = train(world, 0)[0]
    return found
