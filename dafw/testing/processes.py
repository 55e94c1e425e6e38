"""Other processes for the checks: one that resumes, and a pair of ranks. Each is started once and serves all cases."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from dafw.callbacks import Checkpointing
from dafw.nn.distributed import leave_process_group
from dafw.run.loggers import CsvLog
from dafw.testing.cases import STEPS_PER_EPOCH, Case, read_cases, write_cases

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
    """Starts ``resume`` below in a new process."""
    write_cases(items, folder / "cases.json")
    subprocess.run([sys.executable, "-m", __name__, "resume", str(folder)], env=_environment(), check=True, timeout=600)


def run_ranks(items: list[Case], folder: Path) -> None:
    """Starts ``rank`` below in two new processes that form a gloo group."""
    folder.mkdir(parents=True, exist_ok=True)
    write_cases(items, folder / "cases.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "contract"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, "rank", str(folder)],
            env={**_environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise AssertionError(f"the ranks ended with {codes}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def resume(folder: Path) -> None:
    """Resumes each case from its checkpoint in the middle of the second epoch."""
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


def rank(folder: Path) -> None:
    """Trains each case on this rank."""
    for item in read_cases(folder / "cases.json"):
        strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
        log = CsvLog(folder / f"{item.name}-two.csv")
        method, trainer = item.train(folder, precision="64-true", devices=2, strategy=strategy, logger=log)
        if trainer.is_global_zero:
            torch.save(method.state_dict(), folder / f"{item.name}.pt")
    leave_process_group()


if __name__ == "__main__":
    {"resume": resume, "rank": rank}[sys.argv[1]](Path(sys.argv[2]))
