"""Two gloo processes against one, for what must not depend on how many ranks there are; as a script, one rank.

What is to be found is in a script: ``everything(rank, world)``, of which each process makes a file.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dafw.nn.distributed import leave_process_group


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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(script), str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    return load(script)(0, 1), first, second


def main(script: Path, folder: Path, rank: int, world: int) -> None:
    """Takes part as one rank."""
    torch.set_num_threads(1)
    everything = load(script)  # before there is a group: torch.distributed.nn, once imported, holds the one it finds
    meet = (folder / "meet").as_uri()
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    torch.save(everything(rank, world), folder / f"rank{rank}.pt")
    leave_process_group()
    assert not gloo_threads()


def gloo_threads() -> list[str]:
    """Names of gloo's threads in this process."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
