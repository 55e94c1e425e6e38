"""Two gloo processes against one, for what must not depend on how many ranks there are.

What is to be found is in a script: ``everything(rank, world)``, of which each process makes a file.
"""

import importlib.util
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dafw.nn.distributed import leave_process_group
from dafw.testing.processes import rank_variables
from dafw.testing.server import run_fresh


def load(script: Path) -> Callable[[int, int], Any]:
    """The script's ``everything``."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    everything: Callable[[int, int], Any] = module.everything
    return everything


def one_and_both(script: Path, folder: Path) -> tuple[Any, Any, Any]:
    """What this process alone, rank 0 and rank 1 find.

    Args:
        script: with ``everything(rank, world)``; on the ranks a Lightning trainer takes part in their group.
        folder: an empty one, where the ranks meet.
    """
    for rank in run_fresh("two_ranks:main", [str(script), str(folder)], variables=rank_variables(), timeout=120):
        assert rank.code == 0, rank.err
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    return load(script)(0, 1), first, second


def main(script: str, where: str) -> None:
    """Takes part as one rank."""
    rank, world, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(where)
    torch.set_num_threads(1)
    # Before there is a group: torch.distributed.nn, once imported, holds the one that it finds.
    everything = load(Path(script))
    meet = (folder / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    torch.save(everything(rank, world), folder / f"rank{rank}.pt")
    leave_process_group()
    assert not gloo_threads()


def gloo_threads() -> list[str]:
    """Names of gloo's threads in this process."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]
