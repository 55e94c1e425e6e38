"""Checkpoints that are either complete or absent."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from dafw.errors import UserError

#: What the operating system says of a full disk, a full quota and a file that may not grow.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step=*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


class Files(TorchCheckpointIO):
    """Writes straight into the given file: Lightning's own way leaves a copy in /tmp when it is killed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes and syncs one file."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class Checkpointing(Checkpoint):
    """Writes ``step=N.ckpt`` every so many steps and at the end; keeps the newest few.

    A file is written under another name, synced and renamed: a kill, a crash or a full disk leaves the older
    ones intact. The terms of all steps so far are checked first, and the weights, so no checkpoint holds what followed
    a NaN. The first one is written before any step, so that there is a good one however early a loss becomes NaN; it
    goes when there is a later one, for what it holds is made anew from the seed.

    Args:
        folder: where checkpoints go.
        every: steps between two of them.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, every: int = 500, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise UserError("run.checkpoint_every and run.keep_checkpoints must be at least 1")
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.kept_at = 0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Sets how files are written, and the weights' type: Lightning reads a checkpoint first and would round it."""
        trainer.strategy.checkpoint_io = Files()
        trainer.precision_plugin.convert_module(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes where the training starts, unless it goes on from a checkpoint."""
        self.kept_at = pl_module.steps_done
        if trainer.ckpt_path is None:
            self.save(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Writes one if it was time after the last step, whose validation, if it had one, is over by now."""
        steps = pl_module.steps_done
        if steps // self.every > self.kept_at // self.every and between_updates(trainer, steps):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the final one."""
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, method: Any) -> None:
        """Writes a checkpoint of this moment (all ranks call it).

        Raises:
            NonFiniteLoss: if a term of the steps so far, or a weight, is NaN or infinite.
            UserError: if the disk is full; older checkpoints are intact.
        """
        method.flush()
        check_weights(method)
        path = self.folder / f"step={method.steps_done}.ckpt"
        unfinished = path.with_suffix(".unfinished")
        failure = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno not in FULL:
                raise
            failure = error
        if failure is not None:
            older = checkpoints(self.folder)
            intact = f"; {older[0].name} is intact" if older else ""
            raise UserError(f"no space left while writing {path}{intact}") from failure
        if trainer.is_global_zero:
            self.forget()
        self.kept_at = method.steps_done

    def forget(self) -> None:
        """Removes what is older than the newest few, and the start once there is a later one."""
        _, *older = checkpoints(self.folder)
        for path in older:
            if path in older[self.keep - 1 :] or path.name == "step=0.ckpt":
                path.unlink()


def between_updates(trainer: pl.Trainer, steps: int) -> bool:
    """Whether no gradients wait for more batches (``accumulate_grad_batches``), which a checkpoint would lose."""
    return steps % int(trainer.num_training_batches) % trainer.accumulate_grad_batches == 0


def check_weights(method: Any) -> None:
    """Reads the device once.

    Raises:
        NonFiniteLoss: naming the first weight that is NaN or infinite although all terms of the loss were finite.
    """
    from dafw.methods.step_log import NonFiniteLoss

    weights = dict(method.named_parameters())
    largest = torch._foreach_norm([weight.detach() for weight in weights.values()], torch.inf)
    finite = torch.stack([norm.float() for norm in largest]).isfinite().tolist()
    for name, good in zip(weights, finite, strict=True):
        if not good:
            raise NonFiniteLoss(f'the weight "{name}" became NaN or infinite by step {method.steps_done}')
