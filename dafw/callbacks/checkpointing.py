"""Checkpoints that are either complete or absent."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from dafw.errors import UserError

NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step=*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


class Checkpointing(Checkpoint):
    """Writes ``step=N.ckpt`` every so many steps and at the end; keeps the newest few.

    A file is written under another name, synced and renamed: a kill, a crash or a full disk leaves the older
    ones intact. The terms of all steps so far are checked first, so no checkpoint holds what followed a NaN.

    Args:
        folder: where checkpoints go.
        every: steps between two of them.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, every: int = 500, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise UserError("run.checkpoint_every and run.keep_checkpoints must be at least 1")
        self.folder, self.every, self.keep = Path(folder), every, keep

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Writes one if it is time."""
        if pl_module.steps_done % self.every == 0 and pl_module.steps_done < pl_module.steps_planned:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the final one."""
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, method: Any) -> None:
        """Writes a checkpoint of this moment (all ranks call it).

        Raises:
            UserError: if the disk is full; older checkpoints are intact.
        """
        method.look()
        path = self.folder / f"step={method.steps_done}.ckpt"
        unfinished = path.with_suffix(".unfinished")
        failure = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                _sync(unfinished)
                os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            failure = error
        if failure is not None:
            older = checkpoints(self.folder)
            intact = f"; {older[0].name} is intact" if older else ""
            raise UserError(f"no space left while writing {path}{intact}") from failure
        if trainer.is_global_zero:
            for old in checkpoints(self.folder)[self.keep :]:
                old.unlink()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
