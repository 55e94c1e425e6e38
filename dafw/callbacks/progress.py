"""What a run says while it works: lines, and a bar below them on a terminal. Only rank 0 says something."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dafw.data.served import ServedDomains
from dafw.escape import terminal


class Lines(pl.Callback):
    """Lines of plain text: what run and data are, after the first step, and the main numbers at each validation.

    A test and a prediction begin with the lines of the data alone.

    A run whose first step fails, as that of a network for other images does, says nothing but why.

    A line reads no value from the device in a step. At a validation it reads those that wait to be logged.

    Args:
        title: method, task and seed.
        folder: the run directory.
    """

    def __init__(self, title: str, folder: str) -> None:
        self.title, self.folder = title, folder
        self._begun = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Says what the run is, once."""
        if not self._begun and trainer.is_global_zero:
            self._begin(trainer, pl_module)
        self._begun = True

    def _begin(self, trainer: pl.Trainer, pl_module: Any) -> None:
        import torch

        device = trainer.strategy.root_device
        threads = torch.get_num_threads()
        where = f"{threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
        forms = {"channels_last": "channels last", "fused": "fused optimizer"}
        where = ", ".join([where, *(forms[name] for name, used in pl_module.fast_forms.items() if used)])
        ranks = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        before = pl_module.steps_done - 1
        resumed = f", resuming from step {before}" if before else ""
        print(terminal(f"{self.title}: {pl_module.steps_planned} steps on {ranks}{device.type} ({where})"))
        print(terminal(f"in {self.folder}{resumed}"))
        self._say_data(trainer)

    def _say_data(self, trainer: pl.Trainer) -> None:
        """Says what the domains are, once."""
        data = getattr(trainer, "datamodule", None)
        if not self._begun and trainer.is_global_zero and isinstance(data, ServedDomains):
            print(*(f"{terminal(line)}\n" for line in data.in_short()), sep="", end="", flush=True)
        self._begun = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Says what the domains are."""
        self._say_data(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Says what the domains are."""
        self._say_data(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prints the losses since the last log, the main validators, and what target labels say, marked as such."""
        if trainer.state.fn != "fit":
            return
        pl_module.flush()  # on every rank, since they exchange what they read
        if trainer.is_global_zero and pl_module.history:
            print(terminal(validation_line(pl_module)), flush=True)


def validation_line(method: Any) -> str:
    """The last validation of a method in one line: first what needs no target label, then ``oracle/``."""
    last = method.history[-1]  # metrics.csv has all of its numbers
    terms = method.recent_terms()
    parts = [f"step {method.steps_done}/{method.steps_planned}"]
    if terms:
        inside = ", ".join(f"{name} {value:.4g}" for name, value in terms.items() if name != "loss")
        parts.append(f"loss {terms['loss']:.4g}" + (f" ({inside})" if len(terms) > 2 else ""))
    chosen = f"source_{method.problem.primary}", "entropy"
    shown = {name: value for name, value in last["validators"].items() if name in chosen}
    parts += [f"{name} {value:.4g}" for name, value in shown.items()]
    oracle = [f"oracle/{name} {value:.4g}" for name, value in last["oracle"].items()]
    return "  ".join(parts) + (f"  |  {'  '.join(oracle)} (by target labels)" if oracle else "")


class Bar(pl.Callback):
    """One line at the bottom of a terminal: the steps done, the time that is left, the loss. It reads no device.

    Args:
        console: the terminal; that of the standard output if ``None``.
        every: seconds between two pictures of it.
    """

    def __init__(self, console: Console | None = None, every: float = 0.2) -> None:
        self.console, self.every = console, every
        self._progress: Progress | None = None
        self._drawn = 0.0
        self._done = 0

    def _show(self, trainer: pl.Trainer, what: str, done: int, total: float | None) -> None:
        """Begins to count something."""
        if not trainer.is_global_zero:
            return
        self._stop()
        self._done = done
        self._progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        whole = None if total is None or total == float("inf") else int(total)
        self._progress.add_task(what, total=whole, completed=done, loss="")
        self._progress.start()

    def _count(self, done: int, loss: str = "") -> None:
        self._done = done
        now = time.monotonic()
        if self._progress is not None and now - self._drawn >= self.every:
            self._drawn = now
            self._progress.update(self._progress.task_ids[0], completed=done, loss=loss, refresh=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins to count the steps."""
        self._show(trainer, "step", pl_module.steps_done, pl_module.steps_planned)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Counts a step."""
        terms = pl_module.last_terms
        self._count(pl_module.steps_started, f"loss {terms['loss']:.4g}" if terms else "")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins to count the batches of a validation."""
        self._show(trainer, "validation", 0, sum(trainer.num_val_batches))

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins to count the batches of a test."""
        self._show(trainer, "test", 0, sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins to count the batches of a prediction."""
        self._show(trainer, "predict", 0, sum(trainer.num_predict_batches))

    def _one_more(self, *_: Any, **__: Any) -> None:
        self._count(self._done + 1)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _one_more

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Goes on to count the steps, if this is a validation of a training."""
        if trainer.state.fn == "fit":
            self.on_train_start(trainer, pl_module)
        else:
            self._stop()

    def on_train_end(self, *_: Any) -> None:
        """Takes the bar away."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """Takes the bar away."""
        self._stop()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Takes the bar away."""
        self._stop()


def progress_callbacks(lines: Lines | None, bar: bool) -> list[pl.Callback]:
    """What shows the progress of a command.

    Args:
        lines: the lines of a training; ``None`` for another command.
        bar: whether a bar is wanted. It is shown on a terminal alone.
    """
    shown: list[pl.Callback] = [lines] if lines is not None else []
    return shown + ([Bar()] if bar and sys.stdout.isatty() else [])
