"""What a field of a table's page opens: curves, losses, numbers by criterion, configuration, command and log.

All of it is plain values for the page's script. Names are text, and become text there too.
"""

import csv
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import yaml

from dafw.escape import terminal
from dafw.run.criteria import CellResult
from dafw.run.directory import CONFIG
from dafw.run.result import RESULT
from dafw.run.worker import LOG
from dafw.tables.store import Store

METRICS = "metrics.csv"
FILES = (RESULT, CONFIG, METRICS, LOG)
NOT_DRAWN = ("curves",)
"""Pictures of a run whose content the page draws itself."""
FIRST = ("embedding", "confusion", "examples", "boxes", "masks")
"""Pictures of a run, those that say most first. Any other follows."""
OF_A_SEED = ("seed_everything", "data.seed", "run.dir")
"""Keys whose values belong to one run of a cell."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
T = TypeVar("T")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Detail(NamedTuple):
    """How much of each run the page has.

    Attributes:
        points: points of a curve, at most.
        log: letters of the end of the log, at most.
    """

    points: int
    log: int


MOST, LEAST = Detail(60, 2000), Detail(0, 0)
DETAILS = (MOST, Detail(24, 600), Detail(10, 200), LEAST)
"""From all that is useful to nothing. A page takes the first with which it is small enough."""


def details(store: Store, folder: Path, detail: Detail, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """What the script of a page knows.

    Args:
        store: the results.
        folder: where the page will lie; links are relative to it.
        detail: how much of each run is kept.
        seeds: of the runs; ``None``: all.
    """
    table = store.table
    names = [row.name for row in table.rows]
    configs = {key: _config(store, *key) for key in product(names, table.tasks)}
    base = _most_common([config for config in configs.values() if config])
    cells = {}
    for (row, name), (column, task) in product(enumerate(names), enumerate(table.tasks)):
        runs = [_run(store, name, task, seed, folder, detail) for seed in (table.seeds if seeds is None else seeds)]
        if any(runs):
            own = _differences(configs[name, task], base)
            cells[f"{row},{column}"] = {"config": own, "runs": [run for run in runs if run]}
    return {
        "rows": [terminal(name) for name in names],
        "tasks": [terminal(task) for task in table.tasks],
        "metric": terminal(table.metric.replace("_", " ")),
        "criteria": [terminal(name) for name in table.select],
        "controls": {number: names.index(name) for number, name in _controls(store, names)},
        "config": base,
        "cells": cells,
    }


def control_rows(store: Store) -> dict[str, str]:
    """By row with a control, the name of the row that is its control."""
    rows = store.table.rows
    made = {row.control_of: row.name for row in rows if row.control_of is not None}
    return made | {row.name: row.controlled_by for row in rows if row.controlled_by is not None}


def _controls(store: Store, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    found = control_rows(store)
    return ((number, found[name]) for number, name in enumerate(names) if found.get(name) in names)


def pictures_of(directory: Path) -> list[Path]:
    """The pictures of a run that a page shows, the most important first."""
    found = [path for path in directory.glob("plots/*.png") if path.stem not in NOT_DRAWN]
    return sorted(found, key=lambda path: (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.stem))


def links(directory: Path, folder: Path) -> list[tuple[str, str]]:
    """The files of a run that are there: name and link from ``folder``."""
    pictures = sorted(path.relative_to(directory).as_posix() for path in directory.glob("plots/*.png"))
    place = Path(os.path.relpath(directory, folder))
    return [
        (terminal(name.removeprefix("plots/")), quote((place / name).as_posix()))
        for name in (*FILES, *pictures)
        if (directory / name).is_file()
    ]


def _run(store: Store, row: str, task: str, seed: int, folder: Path, detail: Detail) -> dict[str, Any]:
    """One run; empty if nothing of it is there."""
    directory, result = store.directories[row, task, seed], store.get(row, task, seed)
    log = _end_of_log(directory / LOG, detail.log)
    if result is None and not log:
        return {}
    command = f"dafw fit --config {shlex.quote(str(directory / CONFIG))}"
    found = {"seed": seed, "command": terminal(command), "log": log, "files": links(directory, folder)}
    if result is None:
        return found
    scores = {name: store.scores(row, task, seed, name) for name in _criteria(store, result)}
    means = {terminal(name): round(100 * fmean(one.values()), 2) for name, one in scores.items() if one}
    curves = {**_validations(result, detail.points), "logged": _logged(directory / METRICS, detail.points)}
    return {**found, "scores": means, "steps": result.run.steps, "seconds": result.run.seconds["total"], **curves}


def _criteria(store: Store, result: CellResult) -> list[str]:
    """The table's criteria, and those of the run that need no target label."""
    return list(dict.fromkeys([*store.table.select, *(name for name in result.criteria if name != "oracle")]))


def _validations(result: CellResult, most: int) -> dict[str, Any]:
    """Of the validations the steps, the target's test metric in percent, and the validators."""
    history = _thinned(result.run.history, most)
    names = list(dict.fromkeys(name for one in history for name in one.validators))
    tests = [[one.test.get(target, {}).get(result.metric) for target in result.run.target] for one in history]
    known = [[score for score in scores if score is not None] for scores in tests]
    means = [100 * fmean(found) if len(found) == len(result.run.target) else None for found in known]
    return {
        "at": [one.step for one in history],
        "test": [_short(mean) for mean in means],
        "validators": {terminal(name): [_short(one.validators.get(name)) for one in history] for name in names},
    }


def _logged(path: Path, most: int) -> dict[str, Any]:
    """Of the terms of the loss and the diagnostics in a ``metrics.csv`` the steps, and by name the values.

    They are at the steps with terms of the loss. It is empty if the file cannot be read.
    """
    with suppress(OSError, ValueError, csv.Error), path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        head = next(lines, [])
        places = {
            group: {name.removeprefix(group): place for place, name in enumerate(head) if name.startswith(group)}
            for group in ("train/", "diagnostics/")
        }
        first = min(places["train/"].values(), default=0)
        rows = _thinned([row for row in lines if first and len(row) == len(head) and row[first]], most)
        found = {
            group.rstrip("/"): {terminal(name): [_number(row[place]) for row in rows] for name, place in named.items()}
            for group, named in places.items()
        }
        return {"at": [int(row[0]) for row in rows], **found} if rows else {}
    return {}


def _number(text: str) -> float | None:
    return _short(float(text)) if text else None


def _short(value: float | None) -> float | None:
    """Four digits of a number; ``None`` if it is not finite."""
    return float(f"{value:.4g}") if value is not None and isfinite(value) else None


def _thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)] if most > 1 else []


def _end_of_log(path: Path, most: int) -> str:
    """The last lines of a log, without colours and without what a progress bar wrote over."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8 * most))
        lines = _COLOURS.sub("", file.read().decode(errors="replace")).split("\n")
        last: list[str] = []
        letters = 0
        for line in reversed(lines):  # until there are letters enough
            if letters > most:
                break
            if line.strip():
                last.append(terminal(line.rstrip("\r").rpartition("\r")[2]))
                letters += len(last[-1]) + 1
        text = "\n".join(reversed(last))
        return text[-most:].partition("\n")[2] if len(text) > most else text
    return ""


def _config(store: Store, row: str, task: str) -> dict[str, str]:
    """The configuration of a cell but for its seed, as in the file of its first run that has one."""
    for seed in store.table.seeds:
        with suppress(OSError, ValueError, yaml.YAMLError):
            text = (store.directories[row, task, seed] / CONFIG).read_text(encoding="utf-8")
            found = flat(text)
            return {key: value for key, value in found.items() if key not in OF_A_SEED}
    return {}


def flat(text: str) -> dict[str, str]:
    """The values of a YAML text by their paths, as the command line spells them.

    It follows the parser's events, so that no file can nest too deeply, and no alias is written out.

    >>> flat("{model: {class_path: DANN, init_args: {width: 8}}, data: {source: [a, b]}}")
    {'model.class_path': 'DANN', 'model.width': '8', 'data.source': 'a, b'}

    Raises:
        yaml.YAMLError: if it is not YAML.
    """
    found: dict[str, str] = {}
    path: list[str | int | None] = []  # of each open mapping the key, and of each open list the place
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            path.append(None if isinstance(event, yaml.MappingStartEvent) else 0)
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            path.pop()
        elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            value = event.value if isinstance(event, yaml.ScalarEvent) else f"*{event.anchor}"
            if path and path[-1] is None:
                path[-1] = value
                continue
            inner = path[:-1] if path and isinstance(path[-1], int) else path
            key = terminal(".".join(str(part) for part in inner if part != "init_args"))
            found[key] = f"{found[key]}, {terminal(value)}" if inner is not path and key in found else terminal(value)
        else:
            continue
        if path:
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else None
    return found


def _most_common(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """By key of any configuration, its most frequent value."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return {key: Counter(one[key] for one in configs if key in one).most_common(1)[0][0] for key in keys}


def _differences(config: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str | None]:
    """What a configuration has otherwise than ``base``, with ``None`` for a key that it lacks."""
    if not config:
        return {}
    lacking = {key: None for key in base if key not in config}
    return lacking | {key: value for key, value in config.items() if base[key] != value}
