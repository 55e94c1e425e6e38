"""The directory of a run: its name, and the lock that one process holds."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dafw.files import Busy, locked, locked_folder
from dafw.names import cut
from dafw.run.identity import config_hash
from dafw.run.result import RESULT, TEST

CONFIG = "config.yaml"
"""The complete configuration of a run, in its directory."""
EXAMPLES = "plots/examples.json"
"""Predictions for a few samples of the targets, in a run's directory, which a table draws beside those of others."""
EVIDENCE = "source_evidence.safetensors"
"""What a run keeps of its held-out source samples, see :class:`dafw.estimation.SourceEvidence`."""
SERVED = "served.csv"
"""What a test-time run served, a line for each position of its stream, in its directory."""
LOCK = ".lock"
TRACES = (CONFIG, "asked.yaml", "checkpoints", "metrics.csv", "log.txt")
"""What a training leaves in its directory before it ends. A test or a prediction leaves none of them."""


def run_directory(config: dict[str, Any], root: Path) -> Path:
    """The directory of the run of ``config``. Its name has method, task and seed, and the hash that makes it unique.

    A name has at most 129 bytes, since file systems take 255.
    """
    method = str(config["model"]["class_path"]).rpartition(".")[2]
    arguments = config["data"].get("init_args", {})
    sides = [arguments.get(side, "") for side in ("source", "target")]
    task = "-".join("+".join(map(str, side if isinstance(side, list | tuple) else [side])) for side in sides)
    slug = re.sub(r"[^\w.+-]+", "_", f"{method}-{task}-s{config.get('seed_everything', 0)}")
    return Path(root) / f"{cut(slug, 120)}-{config_hash(config)}"


def run_of(folder: Path) -> Path | None:
    """The run directory that a folder is, or lies in; ``None`` if it is none."""
    return next((each for each in (folder, folder.parent) if (each / CONFIG).is_file()), None)


def discard(folder: Path) -> None:
    """Removes what a finished run left, so that it is made again. A run that is not finished stays as it is.

    The result goes last: until then the run is done, and no part of it is taken for an interrupted run.
    """
    if not (folder / RESULT).exists():
        return
    for name in ("checkpoints", "plots"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    for name in ("metrics.csv", EVIDENCE, TEST, RESULT):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Holds a run directory while the block runs. The lock ends with the process, however it ends.

    The lock file is for file systems that cannot lock a folder. Where they can, its removal lets no second process in.

    Yields:
        A check that the directory is still there, see :func:`dafw.files.locked_folder`.

    Raises:
        Busy: if another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, wait=False))
            check = stack.enter_context(locked_folder(folder))
        except Busy as error:
            raise Busy(f"another process works on {folder}") from error
        yield check


def is_running(folder: Path) -> bool:
    """Whether a process holds the run directory."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock(folder):
            return False
    except Busy:
        return True


def began(folder: Path) -> bool:
    """Whether a training has begun in the run directory."""
    return any((folder / name).exists() for name in TRACES)
