"""Where values go: a CSV file always, W&B as asked."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

WandbMode = Literal["offline", "online", "disabled"]


def rank() -> int:
    """Number of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


class CsvLog(Logger):
    """One row a step and a column a value, in ``metrics.csv``; a resumed run goes on in the same file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = ["step"]
        self.rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.rows = list(reader)
                self.columns = list(reader.fieldnames or self.columns)

    @property
    def name(self) -> str:
        """Part of Lightning's paths; unused."""
        return ""

    @property
    def version(self) -> str:
        """Part of Lightning's paths; unused."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

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
        """Drops the rows behind ``step``: a run that goes on from there writes them again."""
        kept = [row for row in self.rows if int(row["step"]) <= step]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        unfinished.replace(self.path)


def wandb_logger(
    folder: Path, *, mode: WandbMode, project: str, group: str, name: str, run_id: str, config: dict[str, Any]
) -> Logger | None:
    """A W&B logger that cannot stop or delay a run; ``None`` if W&B is switched off or not installed.

    Args:
        folder: run directory; W&B writes into its ``wandb/``.
        mode: ``offline`` needs neither account nor network; the environment's ``WANDB_MODE`` wins over it.
        project: W&B project: the table's name, or the datamodule's.
        group: W&B group: the method.
        name: the run's name.
        run_id: stable id, so that a resumed run goes on in the same W&B run.
        config: what the run's page shows as its configuration.
    """
    chosen = os.environ.get("WANDB_MODE", mode)
    if chosen not in ("offline", "online", "dryrun") or rank():
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
        from pytorch_lightning.loggers import WandbLogger
    except ImportError:
        return None
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=20, x_disable_stats=True, x_disable_meta=True, disable_git=True
    )
    (folder / "wandb").mkdir(parents=True, exist_ok=True)

    def start(mode: Literal["offline", "online"]) -> Logger:
        run = wandb.init(
            project=project,
            group=group,
            name=name,
            id=run_id,
            dir=folder,
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=settings,
        )
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return WandbLogger(experiment=run, save_dir=folder)

    if chosen == "online":
        try:
            return start("online")
        except (wandb.errors.Error, OSError) as error:
            print(f"W&B cannot be reached ({error}); this run is logged offline")
    return start("offline")
