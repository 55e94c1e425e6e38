"""The directory of a run: its name, and the lock that one process holds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dafw.files import Busy, hold
from dafw.names import cut
from dafw.run.identity import config_hash

LOCK = ".lock"


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


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run directory while the block runs. The lock ends with the process, however it ends.

    Raises:
        Busy: if another process holds it.
    """
    try:
        held = hold(folder / LOCK, wait=False)
    except Busy as error:
        raise Busy(f"another process works on {folder}") from error
    try:
        yield
    finally:
        held.release()
