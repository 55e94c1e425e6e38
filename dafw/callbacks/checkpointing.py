"""Checkpoints that are either complete or absent."""

import copy
import errno
import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

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
    a NaN. A copy of the last state that was found good waits in the host's memory; when a loss becomes NaN it is
    written, so that there is a checkpoint however early that happens.

    Args:
        folder: where checkpoints go.
        every: steps between two of them.
        keep: how many of the newest stay.
        remember_every: least number of steps between two copies in memory; they are made after a look at the terms.
    """

    def __init__(self, folder: Path, every: int = 500, keep: int = 2, remember_every: int = 10) -> None:
        if every < 1 or keep < 1:
            raise UserError("run.checkpoint_every and run.keep_checkpoints must be at least 1")
        self.folder, self.every, self.keep, self.remember_every = Path(folder), every, keep, remember_every
        self.good: tuple[int, dict[str, Any]] | None = None
        self.kept_at = 0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Sets how files are written, and the weights' type: Lightning reads a checkpoint first and would round it."""
        trainer.strategy.checkpoint_io = Files()
        trainer.precision_plugin.convert_module(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remembers where the training starts, unless a checkpoint does."""
        self.kept_at = pl_module.steps_done
        if not checkpoints(self.folder):
            self.remember(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Writes one if it was time after the last step, whose validation, if it had one, is over by now."""
        steps = pl_module.steps_done
        if steps == self.kept_at or not between_updates(trainer, steps):
            return
        if steps // self.every > self.kept_at // self.every:
            self.save(trainer, pl_module)
        elif pl_module.looks and steps - self.kept_at >= self.remember_every:
            self.remember(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the final one."""
        self.save(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """After a NaN, writes the last state that was found good."""
        from dafw.methods.record import NonFiniteLoss

        if isinstance(exception, NonFiniteLoss) and self.good is not None and trainer.is_global_zero:
            steps, checkpoint = self.good
            self._write(steps, lambda path: Files().save_checkpoint(checkpoint, path))

    def remember(self, trainer: pl.Trainer, method: Any) -> None:
        """Copies the state of this moment into the host's memory, if its weights are finite (all ranks call it)."""
        check_weights(method)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self.kept_at = method.steps_done
        if trainer.is_global_zero:
            self.good = method.steps_done, _copy(checkpoint)

    def save(self, trainer: pl.Trainer, method: Any) -> None:
        """Writes a checkpoint of this moment (all ranks call it).

        Raises:
            NonFiniteLoss: if a term of the steps so far, or a weight, is NaN or infinite.
            UserError: if the disk is full; older checkpoints are intact.
        """
        method.look()
        check_weights(method)
        self._write(method.steps_done, trainer.save_checkpoint, trainer.is_global_zero)
        self.good, self.kept_at = None, method.steps_done

    def _write(self, steps: int, write: Any, keeps_files: bool = True) -> None:
        path = self.folder / f"step={steps}.ckpt"
        unfinished = path.with_suffix(".unfinished")
        failure = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            if keeps_files:
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
        if keeps_files:
            for old in checkpoints(self.folder)[self.keep :]:
                old.unlink()


def between_updates(trainer: pl.Trainer, steps: int) -> bool:
    """Whether no gradients wait for more batches (``accumulate_grad_batches``), which a checkpoint would lose."""
    return steps % int(trainer.num_training_batches) % trainer.accumulate_grad_batches == 0


def check_weights(method: Any) -> None:
    """Reads the device once.

    Raises:
        NonFiniteLoss: naming the first weight that is NaN or infinite although all terms of the loss were finite.
    """
    from dafw.methods.record import NonFiniteLoss

    weights = dict(method.named_parameters())
    largest = torch._foreach_norm([weight.detach() for weight in weights.values()], torch.inf)
    finite = torch.stack([norm.float() for norm in largest]).isfinite().tolist()
    for name, good in zip(weights, finite, strict=True):
        if not good:
            raise NonFiniteLoss(f'the weight "{name}" became NaN or infinite by step {method.steps_done}')


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copy(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    return copy.deepcopy(value)
