"""Where the values of a run go: a CSV file always, and W&B if it is asked for."""

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from dafw.errors import UserError, sentence, warn
from dafw.files import write_atomically
from dafw.run.result import RESULT, Result

WandbMode = Literal["offline", "online", "disabled"]


def rank() -> int:
    """Number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def first_on_machine() -> bool:
    """Whether this process is the first of its machine among those that train together."""
    return not rank() or os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID")) == "0"


class CsvLog(Logger):
    """Writes ``metrics.csv``: a row for each step, a column for each value. A resumed run goes on in the same file.

    Args:
        path: the file.

    Raises:
        UserError: if the file is there and damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = ["step"]
        self.rows: list[dict[str, str]] = []
        if self.path.exists():
            try:
                with self.path.open(newline="", encoding="utf-8") as file:
                    reader = csv.DictReader(file)
                    self.rows = list(reader)
                    self.columns = list(reader.fieldnames or [])
                    for row in self.rows:
                        int(row["step"])
                if self.columns[:1] != ["step"]:
                    raise ValueError("the first column is not the step")
            except (csv.Error, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged: remove it, and the run goes on without it") from error

    @property
    def name(self) -> str:
        """Part of Lightning's paths. It is not used."""
        return ""

    @property
    def version(self) -> str:
        """Part of Lightning's paths. It is not used."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Does nothing, since ``config.yaml`` holds the parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds values to the row of ``step``."""
        values = {name: repr(float(value)) for name, value in metrics.items()}
        if self.rows and self.rows[-1]["step"] == str(step):
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": str(step), **values})
        new = [name for name in values if name not in self.columns]
        self.columns += new
        self._write()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drops the rows after ``step``. A run that goes on from there writes them again."""
        kept = [row for row in self.rows if int(row["step"]) <= step]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write()

    def _write(self) -> None:
        """Writes the file. It does not wait for the disk: a step would, and a lost row costs no number of a result."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue(), sync=False)


class Tracker(WandbLogger):
    """Lightning's W&B logger. After its first error it warns, and logs nothing more: the run goes on without it."""

    failed = False

    def _try(self, action: str, *arguments: Any, **options: Any) -> None:
        if not self.failed:
            try:
                getattr(super(), action)(*arguments, **options)
            except Exception as error:  # of W&B, of its service process or of the network
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Warns of the first error of W&B, and logs nothing more."""
        if not self.failed:
            warn(f"W&B logs no more of this run: {sentence(error)}")
        self.failed = True

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Sends values to W&B."""
        self._try("log_metrics", metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Sends hyper-parameters to W&B."""
        self._try("log_hyperparams", params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends what Lightning logs."""
        self._try("finalize", status)

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run, even after an error, so that the next run of this process does not go on in it."""
        try:
            self.experiment.finish(exit_code=exit_code)
        except Exception as error:
            self.fail(error)


def wandb_logger(
    folder: Path, *, mode: WandbMode, project: str, group: str, name: str, run_id: str, config: dict[str, Any]
) -> Tracker | None:
    """A W&B logger that cannot stop a run, or ``None`` if W&B is switched off, not installed or does not start.

    Args:
        folder: the run directory. W&B writes into its ``wandb/``.
        mode: ``offline`` needs neither account nor network. The environment variable ``WANDB_MODE`` wins over it.
        project: W&B project: the table's name, or the datamodule's.
        group: W&B group: the method.
        name: the run's name.
        run_id: an id that stays the same, so that a resumed run goes on in the same W&B run.
        config: the configuration that the run's page shows.
    """
    chosen = os.environ.get("WANDB_MODE", mode)
    if chosen not in ("offline", "online", "dryrun") or rank():
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        return None
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=20, x_disable_stats=True, x_disable_meta=True, disable_git=True
    )
    (folder / "wandb").mkdir(parents=True, exist_ok=True)

    def start(mode: Literal["offline", "online"]) -> Tracker:
        run = wandb.init(
            project=project,
            group=group,
            name=name,
            id=run_id,
            dir=folder.absolute(),  # W&B's process keeps the working directory that it was started in
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=settings,
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return Tracker(experiment=run, save_dir=folder)

    if chosen == "online":
        try:
            return start("online")
        except (wandb.errors.Error, OSError) as error:
            print(f"W&B cannot be reached ({error}); this run is logged offline")
    try:
        return start("offline")
    except Exception as error:  # a run needs no W&B
        warn(f"W&B logs nothing of this run: {sentence(error)}")
        return None


def track_result(tracker: Tracker, folder: Path, result: Result, pictures: list[Path]) -> None:
    """Sends pictures and result to W&B, and ends its run. An error is a warning.

    Args:
        tracker: the logger.
        folder: the run directory, with the result file.
        result: its content.
        pictures: PNG files.
    """
    import wandb

    try:
        run = tracker.experiment
        run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures})
        run.summary.update({f"test/{d}/{k}": v for d, metrics in result.test.items() for k, v in metrics.items()})
        artifact = wandb.Artifact(f"result-{result.config_hash}", type="result")
        artifact.add_file(str(folder / RESULT))
        run.log_artifact(artifact)
    except Exception as error:
        tracker.fail(error)
    tracker.finish()
