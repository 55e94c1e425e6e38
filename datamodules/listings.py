"""Listings of large benchmarks are kept, so that a run does not read folders of half a million images again."""

import json
import logging
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dafw.data.entries import Entries, PassedOver
from dafw.data.files import Arrays, cache_dir, digest
from dafw.data.strings import Strings, Words
from dafw.files import replacing
from datamodules.layouts import Benchmark, find_domain
from datamodules.sign_files import LABELS

log = logging.getLogger(__name__)

VERSION = 1
"""Number of the way in which folders are listed: another way, another file."""
LEAST = 10_000
"""Images from which a listing is kept. Smaller ones are quick to make."""
QUIET = 2.0
"""Seconds that a folder must have been left alone before it was listed: times of change are not finer everywhere."""


def read_listing(facts: Benchmark, home: Path, name: str) -> Entries | None:
    """The kept listing of a domain; ``None`` if there is none, or a folder or a list has changed since it was made.

    Args:
        facts: what is known of the benchmark.
        home: the folder of the domains.
        name: the domain.
    """
    file = _file(facts, home, name)
    try:
        with np.load(file, allow_pickle=False) as stored:
            head: dict[str, Any] = json.loads(bytes(stored["head"]).decode())
            if head["key"] != _key(facts) or _marks(home, head["marks"], head["made"]) != head["marks"]:
                return None
            labels, domains, splits = (
                Words(tuple(words), stored[column]) for column, words in zip(_COLUMNS, head["words"], strict=True)
            )
            passed = PassedOver()
            passed.found = {kind: (count, first) for kind, (count, first) in head["passed_over"].items()}
            return Entries(
                Strings(bytes(stored["text"]), stored["starts"], stored["ends"]), labels, domains, splits, passed
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s) and will be made anew", file, error)
        return None


def keep_listing(facts: Benchmark, home: Path, name: str, entries: Entries, begun: float, wait: bool = False) -> None:
    """Keeps the listing of a domain if it is long.

    Args:
        facts: what is known of the benchmark.
        home: the folder of the domains.
        name: the domain.
        entries: its images.
        begun: when the listing began, in seconds since the epoch.
        wait: the listing began just after its files were written; wait until their times can be told from it.
    """
    if len(entries) < LEAST:
        return
    marks = _marks(home, dict.fromkeys(sorted(_touched(facts, home, name, entries)), None))
    newest = max((mark[1] for mark in marks.values() if mark is not None), default=0) / 1e9
    if wait and newest > begun - QUIET:
        time.sleep(min(QUIET, max(0.0, newest + QUIET - time.time())))
        begun = time.time()
        if _marks(home, marks) != marks:
            return
    columns = (entries.labels, entries.domains, entries.splits)
    head = {
        "key": _key(facts),
        "made": begun,
        "marks": marks,
        "words": [column.words for column in columns],
        "passed_over": entries.passed_over.found,
    }
    paths, file = Strings.of(entries.paths), _file(facts, home, name)
    arrays: Arrays = {column: words.codes for column, words in zip(_COLUMNS, columns, strict=True)}
    arrays |= {"starts": paths.starts, "ends": paths.ends, "text": np.frombuffer(paths.text, np.uint8)}
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    try:
        with replacing(file) as written:
            np.savez(written, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.warning("cannot write %s (%s): the next run lists %s again", file, error, name)


_COLUMNS = ("labels", "domains", "splits")
_Marks = dict[str, list[int] | None]


def _file(facts: Benchmark, home: Path, name: str) -> Path:
    return cache_dir() / "listings" / f"{facts.name}-{name}-{digest([str(home.resolve()), name])[:16]}.npz"


def _key(facts: Benchmark) -> str:
    return digest([VERSION, asdict(facts)])


def _touched(facts: Benchmark, home: Path, name: str, entries: Entries) -> Iterator[str]:
    """What the listing of a domain depends on, relative to its home: folders, and files that name images."""
    folders = {path.rpartition("/")[0] for path in entries.paths}
    domain = find_domain(facts, home, name)
    if domain is not None:
        folders.add(domain.relative_to(home).as_posix())
        tops = [domain, *(domain / part for parts in facts.parts for part in parts if (domain / part).is_dir())]
        folders |= {one.relative_to(home).as_posix() for top in tops for one in top.iterdir() if one.is_dir()}
    for folder in list(folders):
        folders |= {parent.as_posix() for parent in Path(folder).parents}
    if not facts.annotations:  # of a home without them only its lists and the domain's folder count
        folders -= {".", ""}
    yield from folders
    yield from [form.format(domain=name) for form in facts.lists]
    yield from facts.domains[name].numbered
    if facts.annotations:
        yield from (one.relative_to(home).as_posix() for one in (*home.glob("*.json"), *home.glob("*/*.json")))
    for folder in {"", *folders}:  # a list inside, as those of traffic signs
        yield from (
            f"{folder}/{one}".lstrip("/") for one in (LABELS, "train_labelling.txt") if (home / folder / one).is_file()
        )


def _marks(home: Path, names: _Marks, made: float | None = None) -> _Marks:
    """Size and time of change of each file, and 0 and the time of each folder; ``None`` if it is not there.

    With ``made`` a folder that changed up to :data:`QUIET` seconds before then, or later, has no mark either.
    """
    marks: _Marks = {}
    for name in names:
        try:
            found = (home / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            marks[name] = None
            continue
        quiet = made is None or found.st_mtime <= made - QUIET
        marks[name] = [0 if (home / name).is_dir() else found.st_size, found.st_mtime_ns] if quiet else [-1, -1]
    return marks
