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


def train(world: int) -> dict[str, int]:
    """The counts of one rank."""
    watch = Watch()
    strategy: Any = DDPStrategy(process_group_backend="gloo") if world > 1 else "auto"
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        callbacks = [watch, Stopping(agree_every=10**6)]
        options: dict[str, Any] = {"devices": world, "strategy": strategy, "limit_val_batches": 0}
        trainer = toy_trainer(Path(folder), callbacks=callbacks, epochs=1, **options)
        data = ToyData("a", "b", batch_size=8, steps_per_epoch=STEPS)
        trainer.fit(SourceOnly(toy_network(), num_classes=3), datamodule=data)
    return dict(watch.counts)


def everything(rank: int, world: int) -> dict[str, dict[str, int]]:
    """The counts with both parts replaced, and with either left to Lightning."""
    found = {"replaced": train(world)}
    for name in ("step_logger.leave_buffers_alone", "stopping.agree_on_signals_ourselves"):
        with patch(f"dafw.callbacks.{name}"):
            found[name.partition(".")[2]] = train(world)
    return found
