"""A table file: methods x tasks x seeds.

::

    name: digits                          # default: the file's name; the folder of the results
    title: Digits                         # default: the name
    note: Settings are those of the paper.   # a sentence or a list of them, printed in the caption as they are
    metric: accuracy                      # default: accuracy; of several, each has a block of its own
    tasks: [mnist->mnistm, "mnist,usps->mnistm"]   # quote a task of several sources; or:
    # tasks: {pairs: [amazon, webcam, dslr]}       # every ordered pair
    # tasks: {leave_one_out: [art, cartoon, photo, sketch]}   # each is the target once, the others are its sources
    seeds: [0, 1, 2]
    select: [last]    # what chooses the checkpoint: last, a validator, leave_one_domain_out, oracle; a block each
    allow_oracle: false                   # oracle in select needs true; it is printed in the caption
    published: digits.csv                 # beside this file, see dafw.tables.published
    base:                                 # what every cell shares, laid out like the configuration of `dafw fit`
      data: {class_path: Digits, init_args: {batch_size: 32}}
      trainer: {max_epochs: 5}
    per_task:                             # what one task's cells take beside that, over base and row
      mnist->mnistm: {trainer: {max_epochs: 9}}
    rows:
      - {name: source only, model: {class_path: SourceOnly}}
      - name: DANN
        model: {class_path: DANN, init_args: {gamma: 10}}
        control: true                     # adds a row "DANN control": its adaptation weight at 0; or names a row
        published: DANN                   # the method's name in the CSV; default: the row's name
      - name: SHOT
        model: {class_path: SHOT}
        from: source only                 # each run starts from that row's run of the same task and seed
        further_sources: [svhn]           # labelled domains to train on besides the task's, before them
      - {name: train on target, model: {class_path: SourceOnly}, data: {init_args: {oracle: true}}}

``base`` and the rows take ``model``, ``data``, ``trainer`` and ``run``; a row wins over the base. The seed, the source
and the target are the table's to set.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dafw.errors import UserError, choose, sentence
from dafw.files import user_path
from dafw.names import cut, quoted
from dafw.plain_yaml import load_yaml
from dafw.tables.controls import control_arguments
from dafw.tables.fields import (
    mapping,
    read_name,
    read_notes,
    read_parts,
    read_seeds,
    read_tasks,
    split_task,
    strings,
    target_columns,
)
from dafw.tables.grid import Row, Table, starts_of
from dafw.tables.overlay import SECTIONS, merge
from dafw.tables.published import read_published

KEYS = (
    *("name", "title", "note", "metric", "tasks", "seeds", "select", "allow_oracle", "published"),
    *("base", "per_task", "rows"),
)
NAMES = frozenset({"name", "tasks"})
"""Keys whose value is text: a row may be called ``010``, ``no`` or ``null``."""
OPTIONAL = frozenset({"title", "from", "published"})
"""Keys whose value is text or null."""
ROW_KEYS = ("name", "control", "published", "from", "further_sources", *SECTIONS)
FOLDERS = (
    Path(__file__).resolve().parents[2] / "experiments" / "tables",
    Path(__file__).resolve().parents[1] / "experiments" / "tables",
)
"""Where a table is looked up by name: in a checkout, in an installed package."""


def find_table(name: str, folders: Sequence[Path] = FOLDERS) -> Path:
    """The file of a table, given its path or its name.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    path = user_path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f'there is no table file "{name}"')
        return path
    known = table_files(folders)
    return known[choose("table", name, known)]


def table_files(folders: Sequence[Path] = FOLDERS) -> dict[str, Path]:
    """The tables that can be named, with their files."""
    return {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}


def load_table(path: Path) -> Table:
    """Reads and checks a table file.

    Raises:
        UserError: naming the key, the task, the row or the file that is wrong.
    """
    try:
        given = load_yaml(quoted(path.read_text(encoding="utf-8"), NAMES, OPTIONAL))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(f"{path.name} is not YAML{f': look at line {mark.line + 1}' if mark else ''}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} is not YAML: {sentence(error)}") from error
    given = mapping(path.name, given, KEYS)
    for key in ("tasks", "seeds", "rows"):
        if not given.get(key):
            raise UserError(f'{path.name} lacks "{key}"')
    name = str(given.get("name", path.stem))
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith(".") or cut(name, 120) != name:
        raise UserError(
            f'the name "{name}" in {path.name} names a folder: use up to 120 letters, digits, ".", "_" and "-"'
        )
    tasks = read_tasks(path.name, given["tasks"])
    metric, *further_metrics = strings(f"metric in {path.name}", given.get("metric", "accuracy"))
    select = given.get("select", ["last"])
    allow_oracle = given.get("allow_oracle", False)
    if not isinstance(allow_oracle, bool):
        raise UserError(f"allow_oracle in {path.name} is true or false")
    published = given.get("published")
    return Table(
        name=name,
        title=read_name(f"title in {path.name}", given.get("title", name)),
        metric=metric,
        further_metrics=tuple(further_metrics),
        tasks=tasks,
        seeds=read_seeds(path.name, given["seeds"]),
        select=("last",),
        allow_oracle=allow_oracle,
        rows=_rows(
            path.name, given["rows"], read_parts(f"base of {path.name}", given.get("base") or {}, SECTIONS), tasks
        ),
        notes=read_notes(path.name, given["note"]) if given.get("note") is not None else (),
        published=read_published(path.parent / str(published), {*tasks, *target_columns(tasks)}) if published else (),
        per_task=tuple(
            (task, read_parts(f"{task} in per_task of {path.name}", parts, SECTIONS))
            for task, parts in mapping(f"per_task of {path.name}", given.get("per_task") or {}, tasks).items()
        ),
    ).with_selection(strings(f"select in {path.name}", select), allow_oracle)


def _rows(where: str, given: Any, base: dict[str, Any], tasks: Sequence[str]) -> tuple[Row, ...]:
    if not isinstance(given, list):
        raise UserError(f"rows in {where} is a list of rows, each with a name and a model")
    rows: list[Row] = []
    for number, one in enumerate(given, start=1):
        spot = (
            f'row "{one["name"]}" of {where}' if isinstance(one, dict) and "name" in one else f"row {number} of {where}"
        )
        config = merge(base, read_parts(spot, one, ROW_KEYS))
        if "name" not in one:
            raise UserError(f"{spot} lacks a name")
        for section in ("model", "data"):
            if not config.get(section, {}).get("class_path"):
                raise UserError(f"{spot} lacks the class_path of its {section}")
        control = one.get("control", False)
        if not isinstance(control, bool | str):
            raise UserError(f"control in {spot} is true, false or the name of another row, in quotes")
        name = read_name(f"name of {spot}", one["name"])
        shared = read_name(f"control of {spot}", control) if isinstance(control, str) else None
        start = one.get("from")
        if start is not None and "checkpoint" in config["model"].get("init_args", {}):
            raise UserError(f'{spot} sets the checkpoint of its model, which comes from the row in its "from"')
        start = None if start is None else read_name(f"from of {spot}", start)
        published = str(one.get("published") or name)
        further = _further_sources(spot, one.get("further_sources"), tasks)
        row = Row(name, config, published, controlled_by=shared, start=start, further_sources=further)
        rows.append(row)
        if control is True:
            off = {"model": {"init_args": control_arguments(config["model"]["class_path"])}}
            rows.append(replace(row, name=f"{name} control", published="", control_of=name, control=off))
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'two rows of {where} are called "{name}"')
    for row in rows:
        if row.controlled_by is not None:
            choose(f'control of row "{row.name}" of {where}', row.controlled_by, [n for n in names if n != row.name])
        if row.start is not None:
            choose(f'from of row "{row.name}" of {where}', row.start, [n for n in names if n != row.name])
    starts = starts_of(rows)
    for row in rows:
        if row.name in starts[row.name]:
            raise UserError(f'the row "{row.name}" of {where} starts from itself, by way of "{row.start}"')
    return tuple(rows)


def _further_sources(spot: str, given: Any, tasks: Sequence[str]) -> tuple[str, ...]:
    """The labelled domains that a row trains on besides each task's.

    Raises:
        UserError: if one is a domain of a task, whose labels no row may see in another way.
    """
    if given is None:
        return ()
    names = strings(f"further_sources of {spot}", given)
    for task in tasks:
        if both := set(names) & {name for side in split_task(task) for name in side}:
            raise UserError(f"further_sources of {spot} has {min(both)}, which the task {task} has already")
    return names
