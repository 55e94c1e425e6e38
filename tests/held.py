"""A table of toys whose runs a test can hold in the middle, to disturb them there."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from dafw.callbacks import Stopping
from dafw.tables.launch import Job, make_jobs
from dafw.tables.reading import load_table

#: Steps after which a run is held. There is a checkpoint of the step before.
AT = 5
#: The variable with the folder that has a file for each run to hold.
FOLDER = "DAFW_TESTS_HELD"


class Held(pl.Callback):
    """Waits while the run's file exists, or until a signal asks the run to stop.

    A file of the run's name and ``.reached`` gets the number of the process.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        file = Path(os.environ[FOLDER], Path(str(trainer.default_root_dir)).name)
        if pl_module.steps_done != AT or not file.exists():
            return
        file.with_name(f"{file.name}.reached").write_text(str(os.getpid()))
        stopping = [callback for callback in trainer.callbacks if isinstance(callback, Stopping)]  # type: ignore[attr-defined]
        while file.exists() and not any(callback.received for callback in stopping):
            time.sleep(0.05)


class Holding:
    """A table, the jobs that ``dafw table run`` makes of it, and the runs that are held.

    Args:
        folder: gets the table's file ``t.yaml``; the runs are in ``runs``.
        rows: method classes.
        seeds: of the runs.
    """

    def __init__(self, folder: Path, rows: Sequence[str], seeds: Sequence[int]) -> None:
        self.file, self.held = folder / "t.yaml", folder / "held"
        self.held.mkdir(parents=True)
        network = {"init_args": {"backbone": "dafw.testing.toys.ToyNet"}}
        data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"batch_size": 8, "steps_per_epoch": 4}}
        callbacks = [{"class_path": "held.Held"}]
        trainer = {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 3, "callbacks": callbacks}
        base = {
            "model": {"init_args": {"network": network}},
            "data": data,
            "trainer": trainer,
            "run": {"plots": False, "checkpoint_every": 2},
        }
        table = {"tasks": ["a->b"], "seeds": list(seeds), "base": base}
        table["rows"] = [{"name": name, "model": {"class_path": name}} for name in rows]
        self.file.write_text(yaml.safe_dump(table))
        self.jobs: list[Job] = make_jobs(load_table(self.file), folder / "runs")
        self.directories = [job.directory for job in self.jobs]

    @property
    def variables(self) -> Mapping[str, str]:
        """What the processes that make the runs need."""
        return {FOLDER: str(self.held), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def hold(self, *directories: Path) -> None:
        """Lets these runs wait, once they are there."""
        for directory in directories:
            (self.held / directory.name).touch()

    def release(self, directory: Path) -> None:
        """Lets a run go on."""
        (self.held / directory.name).unlink()

    def holder(self, directory: Path) -> int | None:
        """The process that waits in a run; ``None`` if none does yet."""
        path = self.held / f"{directory.name}.reached"
        return int(path.read_text() or 0) or None if path.exists() else None
