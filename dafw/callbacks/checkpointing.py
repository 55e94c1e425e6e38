"""Writes checkpoints. Each is complete or absent."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from dafw.checkpoints import checkpoints
from dafw.errors import NonFiniteLoss, UserError
from dafw.files import FULL, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, syncs it and renames it.

    A kill, a crash or a full disk leaves the older checkpoints intact. Lightning's own way leaves a copy in ``/tmp``
    when it is killed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one file."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


class Checkpointing(Checkpoint):
    """Writes ``step=N.ckpt`` at regular steps and at the end, and keeps the newest few.

    Before it writes, it checks all terms of the loss so far and the weights. So no checkpoint holds what followed a
    NaN. The first checkpoint is written before any step. So there is a good one however early a loss becomes NaN. It is
    removed when a later one exists, since the seed makes its content again.

    Args:
        folder: folder of the checkpoints.
        every: steps between two checkpoints.
        keep: number of the newest checkpoints that stay.
        before: called before each checkpoint. It puts on the disk what a run that goes on from there needs.

    Attributes:
        sources: by module, a digest of the code that makes the run. A checkpoint holds it beside the number of threads.

    Raises:
        UserError: if ``every`` or ``keep`` is less than 1.
    """

    def __init__(
        self, folder: Path, every: int = 500, keep: int = 2, before: Callable[[], None] = lambda: None
    ) -> None:
        if every < 1 or keep < 1:
            raise UserError("run.checkpoint_every and run.keep_checkpoints must be at least 1")
        self.folder, self.every, self.keep, self.before = Path(folder), every, keep, before
        self.saved_at = 0
        self.sources: Mapping[str, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Sets how files are written, and the type of the weights.

        Lightning reads a checkpoint before it converts the weights, and would round what it reads.
        """
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        trainer.precision_plugin.convert_module(pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds what a run that goes on must know of the process that wrote the checkpoint."""
        checkpoint["run"] = {"threads": torch.get_num_threads(), "sources": dict(self.sources)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the state before the first step, unless the training goes on from a checkpoint."""
        self.saved_at = pl_module.steps_done
        if trainer.ckpt_path is None:
            self.save(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Writes a checkpoint if one is due after the previous step and its validation."""
        steps = pl_module.steps_done
        if steps // self.every > self.saved_at // self.every and between_updates(trainer, steps):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the final checkpoint."""
        self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, method: Any) -> None:
        """Writes a checkpoint of the present state. All ranks call it together.

        Raises:
            NonFiniteLoss: if a term of the steps so far, or a weight, is NaN or infinite.
            UserError: if the disk is full. Older checkpoints are intact.
        """
        method.flush()
        check_weights(method)
        self.before()
        path = self.folder / f"step={method.steps_done}.ckpt"
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            if error.errno not in FULL:
                raise
            older = checkpoints(self.folder)
            intact = f"; {older[0].name} is intact" if older else ""
            raise UserError(f"no space left while writing {path}{intact}") from error
        if trainer.is_global_zero:
            self.remove_old()
        self.saved_at = method.steps_done

    def remove_old(self) -> None:
        """Removes all but the newest few checkpoints, and the one before the first step if a later one exists."""
        older = checkpoints(self.folder)[1:]
        for path in older:
            if path in older[self.keep - 1 :] or path.name == "step=0.ckpt":
                path.unlink(missing_ok=True)


def between_updates(trainer: pl.Trainer, steps: int) -> bool:
    """Whether all gradients so far were used. With ``accumulate_grad_batches`` a checkpoint would lose the others."""
    return steps % int(trainer.num_training_batches) % trainer.accumulate_grad_batches == 0


def check_weights(method: Any) -> None:
    """Checks that every weight is finite. It reads the device once.

    Raises:
        NonFiniteLoss: naming the first weight that is NaN or infinite although all terms of the loss were finite.
    """
    weights = dict(method.named_parameters())
    largest = torch._foreach_norm([weight.detach() for weight in weights.values()], torch.inf)
    finite = torch.stack([norm.float() for norm in largest]).isfinite().tolist()
    for name, good in zip(weights, finite, strict=True):
        if not good:
            raise NonFiniteLoss(f'the weight "{name}" became NaN or infinite by step {method.steps_done}')
