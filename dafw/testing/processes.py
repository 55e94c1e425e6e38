"""Other processes for the checks: one that resumes, and a pair of ranks."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from dafw.callbacks import Checkpointing
from dafw.nn.distributed import leave_process_group
from dafw.run.loggers import CsvLog
from dafw.testing.cases import STEPS_PER_EPOCH, Case, read_cases, write_cases
from dafw.testing.server import Ended, run_fresh

RESUMED_AT = STEPS_PER_EPOCH + 1


class Marks(pl.Callback):
    """Notes, for each step after the one that is resumed from, the samples and the random state."""

    def __init__(self, path: Path) -> None:
        self.path, self.marks = path, {}  # type: tuple[Path, dict[int, Any]]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes one step."""
        if pl_module.steps_done > RESUMED_AT:
            state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
            self.marks[pl_module.steps_done] = [batch.index.tolist(), batch.domain.tolist(), state]

    def on_train_end(self, *_: Any) -> None:
        """Writes the notes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.marks))


def run_second_process(items: list[Case], folder: Path) -> None:
    """Runs ``resume`` below in a fresh process. It has as many threads as this one: that number changes rounding."""
    write_cases(items, folder / "cases.json")
    _succeed(run_fresh(f"{__name__}:resume", [str(folder)]))


def run_ranks(items: list[Case], folder: Path) -> None:
    """Runs ``rank`` below in two fresh processes that form a gloo group."""
    folder.mkdir(parents=True, exist_ok=True)
    write_cases(items, folder / "cases.json")
    _succeed(run_fresh(f"{__name__}:rank", [str(folder)], variables=rank_variables()))


def rank_variables(world: int = 2) -> list[dict[str, str]]:
    """The environment variables by which Lightning knows each rank of a group on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    shared |= {"OMP_NUM_THREADS": "1"}  # two ranks share the cores, and are compared up to rounding
    shared |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "contract"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def _succeed(processes: list[Ended]) -> None:
    if any(process.code for process in processes):
        said = "\n".join(process.err for process in processes if process.code)
        raise AssertionError(f"the processes ended with {[process.code for process in processes]}:\n{said}")


def resume(where: str) -> None:
    """Resumes each case from its checkpoint in the middle of the second epoch."""
    folder = Path(where)
    for item in read_cases(folder / "cases.json"):
        here = folder / item.name
        again = here / "again"
        again.mkdir()
        (again / "metrics.csv").write_bytes((here / "metrics.csv").read_bytes())
        log = CsvLog(again / "metrics.csv")
        log.forget_after(RESUMED_AT)
        item.train(
            again,
            ckpt_path=here / "checkpoints" / f"step={RESUMED_AT}.ckpt",
            callbacks=[Marks(again / "marks.json"), Checkpointing(here / "resumed", every=10**6)],
            logger=log,
        )


def rank(where: str) -> None:
    """Trains each case on this rank."""
    folder = Path(where)
    for item in read_cases(folder / "cases.json"):
        strategy = DDPStrategy(process_group_backend="gloo")
        log = CsvLog(folder / f"{item.name}-two.csv")
        method, trainer = item.train(folder, precision="64-true", devices=2, strategy=strategy, logger=log)
        if trainer.is_global_zero:
            torch.save(method.state_dict(), folder / f"{item.name}.pt")
    leave_process_group()
