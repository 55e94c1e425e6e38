"""What is found out about files once, and kept for the next run."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dafw.data.files import cache_dir, digest, making
from dafw.files import write_atomically

log = logging.getLogger(__name__)

_CHUNK = 64


def look_once(kind: str, key: Sequence[Any], marks: Sequence[Any], look: Callable[[int], Any], what: str) -> list[Any]:
    """What ``look`` finds at each position, plain values that JSON keeps. Only what is new or has changed is looked at.

    Args:
        kind: what is found out; names the folder of the kept files.
        key: plain values that tell one collection from another.
        marks: for each position plain values that change whenever what is found there may change.
        look: looks at a position. It is called by several threads.
        what: what is looked at, for the log, as in ``12 masks``; begins behind the number.

    Raises:
        Exception: what ``look`` raises. Then nothing of this call is kept.
    """
    known = cache_dir() / kind / f"{digest(key)[:16]}.json"
    with making(known):
        kept = _read(known, what)
        keys = [digest(mark) for mark in marks]
        todo = [index for index, one in enumerate(keys) if one not in kept]
        if todo:
            log.info("%s: reading %d %s", key[1], len(todo), what)
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for start in range(0, len(todo), _CHUNK):
                    chunk = todo[start : start + _CHUNK]
                    kept |= dict(zip((keys[index] for index in chunk), pool.map(look, chunk), strict=True))
            try:
                write_atomically(known, json.dumps({one: kept[one] for one in keys}))
            except OSError as error:
                log.warning("cannot write %s (%s): the next run reads the %s again", known, error, what)
    return [kept[one] for one in keys]


def _read(known: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(known.read_bytes()) if known.exists() else {}
    except (OSError, ValueError):
        log.warning("%s is damaged: reading all %s again", known, what)
        return {}
    return found if isinstance(found, dict) else {}
