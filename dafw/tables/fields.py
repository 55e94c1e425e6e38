"""Checks the values in a table file. Each function raises a UserError that names the place of a wrong value."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

from dafw.errors import UserError, choose
from dafw.tables.overlay import OBJECT_KEYS, SECTIONS

#: How many domains a side of a task may have that is shown whole.
MOST_NAMES = 6


def split_task(task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sources and targets of ``a,b->c``.

    Raises:
        UserError: if it is not of that form, or names a domain twice on one side.
    """
    sides = [tuple(name.strip() for name in side.split(",")) for side in task.split("->")]
    if len(sides) != 2 or not all(name for side in sides for name in side):
        raise UserError(f'the task "{task}" is not of the form source->target (quote one of several sources: "a,b->c")')
    if any(len(set(side)) != len(side) for side in sides):
        raise UserError(f'the task "{task}" names a domain twice')
    return sides[0], sides[1]


def in_short(task: str) -> str:
    """A task for a line of text: of a side with more than :data:`MOST_NAMES` domains the first and how many more.

    >>> in_short("clean->a,b,c,d,e,f,g")
    'clean->a and 6 more'
    >>> in_short("a,b,c->d")
    'a,b,c->d'
    """
    sides = [side.split(",") for side in task.split("->")]
    shown = [f"{one[0]} and {len(one) - 1} more" if len(one) > MOST_NAMES else ",".join(one) for one in sides]
    return "->".join(shown)


def target_columns(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The columns of single targets, by name: the task and the target, for every task of several targets.

    >>> list(target_columns(["photo->cartoon,sketch"]))
    ['photo->cartoon', 'photo->sketch']
    >>> list(target_columns(["a->b", "a->b,c"]))
    ['a->b,c on b', 'a->c']
    """
    found = []
    for task in tasks:
        sources, targets = split_task(task)
        found += [(f"{','.join(sources)}->{name}", task, name) for name in targets if len(targets) > 1]
    names = [*tasks, *(name for name, _, _ in found)]
    return {name if names.count(name) == 1 else f"{task} on {target}": (task, target) for name, task, target in found}


def mapping(where: str, given: Any, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the value if it is a mapping with no other keys."""
    if not isinstance(given, dict):
        raise UserError(f"{where} is not a mapping of keys to values")
    for key in given:
        choose(f"key in {where}", str(key), keys)
    return given


def strings(where: str, given: Any) -> tuple[str, ...]:
    """Returns one name or several as a tuple, each once."""
    names = tuple(str(name) for name in (given if isinstance(given, list) else [given]))
    if len(set(names)) != len(names) or not names:
        raise UserError(f"{where} is empty or names something twice")
    return names


def read_name(where: str, given: Any) -> str:
    """Returns a name of the table's own as one line.

    Raises:
        UserError: if it is empty or holds a control character.
    """
    name = " ".join(str(given).split())
    if not name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise UserError(f"{where} must be a word or more, without control characters, not {name!r}")
    return name


def read_seeds(where: str, given: Any) -> tuple[int, ...]:
    """Returns the seeds, each once."""
    if not isinstance(given, list) or not all(type(seed) is int and 0 <= seed < 2**32 for seed in given):
        raise UserError(f"seeds in {where} is a list of whole numbers from 0 to 2**32 - 1, as in [0, 1, 2]")
    if len(set(given)) != len(given):
        raise UserError(f"seeds in {where} names a seed twice")
    return tuple(given)


def read_tasks(where: str, given: Any) -> tuple[str, ...]:
    """Returns the names of the tasks. Shorthands are written out."""
    if isinstance(given, dict):
        shorthand = mapping(f"tasks of {where}", given, ("pairs", "leave_one_out"))
        if len(shorthand) != 1:
            raise UserError(f"tasks in {where} takes one of pairs and leave_one_out")
        ((kind, domains),) = shorthand.items()
        names = strings(f"{kind} in {where}", domains)
        if len(names) < 2:
            raise UserError(f"{kind} in {where} needs at least two domains")
        for name in names:
            if "," in name or "->" in name or name != name.strip() or not name:
                raise UserError(f'{kind} in {where} names the domain "{name}": "," and "->" separate domains in a task')
        if kind == "pairs":
            return tuple(f"{source}->{target}" for source, target in permutations(names, 2))
        return tuple(f"{','.join(name for name in names if name != target)}->{target}" for target in names)
    tasks = tuple(
        "->".join(",".join(side) for side in split_task(task)) for task in strings(f"tasks in {where}", given)
    )
    for task in tasks:
        sources, targets = split_task(task)
        if both := set(sources) & set(targets):
            raise UserError(f'the task "{task}" in {where} has {min(both)} as a source and as a target')
    return strings(f"tasks in {where}", list(tasks))


def read_notes(where: str, given: Any) -> tuple[str, ...]:
    """Returns the sentences of a note, each as one line."""
    notes = given if isinstance(given, list) else [given]
    if not notes or not all(isinstance(note, str) and note.strip() for note in notes):
        raise UserError(f"note in {where} is a sentence, or a list of sentences")
    return tuple(read_name(f"note in {where}", note) for note in notes)


def check_parts(where: str, parts: Mapping[str, Any]) -> None:
    """Refuses keys that no part has, values of another form, and what a table itself decides."""
    for section in SECTIONS:
        part = parts.get(section) or {}
        mapping(f"{section} of {where}", part, OBJECT_KEYS if section in ("model", "data") else part)
        if section in ("model", "data"):
            if not isinstance(part.get("class_path", ""), str):
                raise UserError(f"class_path of {section} of {where} is the name of a class, not {part['class_path']}")
            for key in OBJECT_KEYS[1:]:
                mapping(f"{key} of {section} of {where}", part.get(key) or {}, part.get(key) or {})
    for key in ("source", "target"):
        if key in ((parts.get("data") or {}).get("init_args") or {}):
            raise UserError(f'{where} sets the {key} of the data, which comes from "tasks"')
    if (parts.get("trainer") or {}).get("limit_test_batches") not in (None, 1.0):
        raise UserError(f"{where} sets trainer.limit_test_batches, and a table shows accuracies of whole test splits")


def read_parts(where: str, given: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Returns the parts of a configuration that are among the keys and not empty."""
    found = mapping(where, given, keys)
    check_parts(where, found)
    return {section: found[section] for section in SECTIONS if found.get(section)}
