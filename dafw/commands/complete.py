"""What ``dafw data list`` and ``dafw data check`` say alike of every benchmark."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dafw.errors import UserError
from dafw.files import reading


def origin(facts: Mapping[str, Any]) -> Iterator[str]:
    """How the facts are known, and where the data comes from: a line each."""
    for what, how in facts["provenance"].items():
        yield f"  {what}: {how}"
    for what in ("get", "licence", "paper"):
        yield f"  {'from' if what == 'get' else what}: {facts[what]}"


def check_root(root: Path) -> None:
    """Checks that the folder of the datasets is there.

    Raises:
        UserError: if it is not, or cannot be read.
    """
    with reading("the folder", root):
        if not root.is_dir():
            raise UserError(f"the folder {root} (--root) does not exist")


def difference(found: int, count: int, what: str = "images") -> str:
    """``complete``, or how many images (or ``what`` it is) are missing or too many."""
    if found == count:
        return "complete"
    return f"{abs(found - count):,} {what} {'too many' if found > count else 'are missing'}"


def verdict(name: str, lines: Sequence[str], facts: Mapping[str, Any], complete: bool) -> tuple[list[str], bool]:
    """The lines of a comparison with what they come to at the end, and whether all is there."""
    if complete:
        return [*lines, f"{name} is complete"], True
    how = [f"how that is known, {what}: {said}" for what, said in facts["provenance"].items()]
    return [*lines, f"{name} is not complete", *how, f"where to get it: {facts['get']}"], False
