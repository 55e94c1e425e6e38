"""Files that are kept between runs: their place, and arrays that take long to make."""

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafw.files import Busy, hold, remove_unfinished, replacing

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]


def cache_dir() -> Path:
    """Where caches live: the environment variable ``DAFW_CACHE``, or ``~/.cache/dafw``."""
    given = os.environ.get("DAFW_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "dafw"


def digest(key: Any) -> str:
    """A hash of plain values (64 hexadecimal digits), the same in every process."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Holds the lock file beside ``path``. Says so if another process makes ``path`` meanwhile, and waits for it."""
    lock = path.with_name(path.name + ".lock")
    try:
        held = hold(lock, wait=False)
    except Busy:
        log.info("waiting for the process that is making %s", path)
        held = hold(lock)
    try:
        remove_unfinished(path.parent, path.name)
        yield
    finally:
        held.release()


def cached_arrays(name: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``make`` returns, made once for each ``key`` and user.

    Of several processes that ask at once, one makes them and the others wait. A damaged file is made anew
    (its format carries checksums). Where nothing can be written, they are made each time and a warning says so.

    Args:
        name: what they are; begins the file's name.
        key: plain values on which the arrays depend, a version among them.
        make: makes the arrays.
    """
    path = cache_dir() / "arrays" / f"{name}-{digest(key)[:16]}.npz"
    found = _read(path)
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(making(path))
        except OSError as error:
            log.warning("cannot lock %s (%s): set DAFW_CACHE to a folder that can be written", path, error)
        return _read(path) or _keep(path, make())


def _read(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s) and will be made anew", path, error)
        return None


def _keep(path: Path, arrays: Arrays) -> Arrays:
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.warning("cannot write %s (%s): the next run makes it anew", path, error)
    return arrays
