"""Where the values of a run go: a CSV file always, and W&B if it is asked for."""

import csv
import io
import os
import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from dafw.errors import UserError, sentence, warn
from dafw.files import append, write_atomically
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

    A row is added to the file when the next one begins, at :meth:`sync`, and at the end of a training or a test. The
    file is written anew where a value is new, or comes late for a row that is in the file already.

    Args:
        path: the file. Its folder is made.
        check: called before each write. It raises an error if nothing may be written any more.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.path, self.check = Path(path), check
        self.columns: list[str] = ["step"]
        self.rows: list[dict[str, str]] = []
        self.damaged = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()
        self.written = len(self.rows)
        self.outdated = self.damaged

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
        """Adds values to the row of ``step``. Without a step they belong to the last row."""
        last = self.rows[-1]["step"] if self.rows else "0"
        values = {name: repr(float(value)) for name, value in metrics.items()}
        if self.rows and (step is None or str(int(step)) == last):
            self.rows[-1].update(values)
            self.outdated |= self.written == len(self.rows)
        else:
            self._write()
            self.rows.append({"step": last if step is None else str(int(step)), **values})
        new = [name for name in values if name not in self.columns]
        self.columns += new
        self.outdated |= bool(new)

    @rank_zero_only
    def sync(self) -> None:
        """Writes all rows, and waits until the disk has them."""
        self._write()
        if self.path.exists():
            append(self.path, "", sync=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes all rows. After a failure they may be lost, since the error that ended the run is what counts."""
        with suppress(OSError, UserError) if status == "failed" else nullcontext():
            self._write()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drops the rows after ``step``, and what is damaged. A run that goes on from there writes them again.

        Raises:
            UserError: if rows up to ``step`` may be among what is damaged.
        """
        last = max((int(row["step"]) for row in self.rows), default=0)
        if self.damaged and last < step:
            raise UserError(
                f"{self.path} is damaged after step {last}: remove it, and the run goes on without what it logged"
            )
        kept = [row for row in self.rows if int(row["step"]) <= step]
        if self.damaged or len(kept) < len(self.rows):
            self.rows, self.outdated = kept, True
            self._write()

    def _read(self) -> None:
        """Reads the rows up to the first one that is damaged, as the last one is that a power cut left unfinished."""
        whole, _, unfinished = self.path.read_bytes().decode(errors="replace").rpartition("\n")
        self.damaged = bool(unfinished) or not whole
        lines = csv.reader(io.StringIO(whole, newline=""))
        try:
            columns = next(lines, [])
            if columns[:1] != ["step"]:
                raise ValueError("the first column is not the step")
            self.columns = columns
            for fields in lines:
                row = dict(zip(columns, fields, strict=True))
                int(fields[0])
                for value in filter(None, fields[1:]):
                    float(value)
                self.rows.append(row)
        except (csv.Error, ValueError, IndexError):
            self.damaged = True

    def _write(self) -> None:
        """Adds the new rows to the file, or writes it anew. It does not wait for the disk where it adds rows."""
        self.check()
        new = self.rows[self.written :]
        if not (new or self.outdated):
            return
        anew = self.outdated or not self.path.exists()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        if anew:
            writer.writeheader()
        writer.writerows(self.rows if anew else new)
        self.outdated = True  # until this is done
        if anew:
            write_atomically(self.path, text.getvalue())
        else:
            append(self.path, text.getvalue())
        self.written, self.outdated = len(self.rows), False


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
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")  # seconds; what was not sent by then stays on the disk
    if find_spec("wandb") is None:
        return None

    def start(mode: Literal["offline", "online"], run_id: str) -> Tracker:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=20, disable_git=True)
        settings.x_disable_stats = settings.x_disable_meta = True  # nothing of the machine is sent
        settings.host = "-"
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=project_name(project),
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
            return start("online", run_id)
        except Exception as error:  # of W&B or of the network
            print(f"W&B cannot be reached ({sentence(error)}); this run is logged offline")
            run_id = f"{run_id}-offline"  # W&B takes the other one for the id of a run that is being made
    try:
        return start("offline", run_id)
    except Exception as error:  # a run needs no W&B
        warn(f"W&B logs nothing of this run: {sentence(error)}")
        return None


def project_name(name: str) -> str:
    r"""A name that W&B takes for a project: without the characters that it refuses, and no longer than it allows.

    >>> project_name("digits: 10%/a\\b")
    'digits- 10--a-b'
    """
    return re.sub(r"[/\\#?%:]", "-", name)[:128]


def track_result(tracker: Tracker, folder: Path, result: Result, pictures: list[Path]) -> None:
    """Sends pictures and result to W&B, and ends its run. An error is a warning.

    Args:
        tracker: the logger.
        folder: the run directory, with the result file.
        result: its content.
        pictures: PNG files.
    """
    try:
        import wandb

        run = tracker.experiment
        run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures})
        run.summary.update({f"test/{d}/{k}": v for d, metrics in result.test.items() for k, v in metrics.items()})
        artifact = wandb.Artifact(f"result-{result.config_hash}", type="result")
        artifact.add_file(str(folder / RESULT))
        run.log_artifact(artifact)
    except Exception as error:
        tracker.fail(error)
    tracker.finish()
