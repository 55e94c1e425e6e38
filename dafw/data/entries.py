"""Lists of images with their labels and domains."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dafw.data.strings import Coder, Strings, Words


@dataclass(frozen=True)
class Entry:
    """One image.

    Args:
        path: its file, relative to the root folder, with ``/`` between the parts.
        label: its class's name in Unicode's composed form (NFC); ``None`` if it has no label.
        domain: its domain's name.
        split: ``train``, ``val`` or ``test``; ``None`` lets the datamodule decide.
    """

    path: str
    label: str | None
    domain: str
    split: str | None = None


class Entries(Sequence[Entry]):
    """Images in columns, so that a list of half a million takes 40 MB. An :class:`Entry` is made when it is asked for.

    Args:
        paths: the path of each image.
        labels: the label of each.
        domains: the domain of each.
        splits: the split of each.
        passed_over: what was found beside the images and is none of them.
    """

    def __init__(
        self, paths: Strings, labels: Words, domains: Words, splits: Words, passed_over: "PassedOver | None" = None
    ) -> None:
        self.paths, self.labels, self.domains, self.splits = paths, labels, domains, splits
        self.passed_over = PassedOver() if passed_over is None else passed_over

    @classmethod
    def of(cls, entries: Iterable[Entry], passed_over: "PassedOver | None" = None) -> "Entries":
        """Collects entries, which may come one by one."""
        rows = ((entry.path, entry.label, entry.domain, entry.split) for entry in entries)
        return cls.of_rows(rows, passed_over)

    @classmethod
    def of_rows(
        cls, rows: Iterable[tuple[str, str | None, str, str | None]], passed_over: "PassedOver | None" = None
    ) -> "Entries":
        """Collects rows of path, label, domain and split, which may come one by one."""
        words = Coder()

        def paths() -> Iterator[str]:
            for path, *others in rows:
                words.add(tuple(others))
                yield path

        found = Strings.of(paths())
        labels, domains, splits = words.columns(3)
        return cls(found, labels, domains, splits, passed_over)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """One entry, or for a slice or an array of positions a selection."""
        if isinstance(index, slice | np.ndarray):
            columns = (self.labels[index], self.domains[index], self.splits[index])
            return Entries(self.paths[index], *columns, self.passed_over)
        words = (column.at(index) for column in (self.labels, self.domains, self.splits))
        return Entry(self.paths[index], *words)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Entry]:
        columns = [(column.words, column.codes) for column in (self.labels, self.domains, self.splits)]
        for path, *codes in zip(self.paths, *(codes for _, codes in columns), strict=True):
            yield Entry(path, *(words[code] for (words, _), code in zip(columns, codes, strict=True)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entries({list(self[:3])}{' and more' if len(self) > 3 else ''})"

    def of_domain(self, name: str) -> "Entries":
        """The images of one domain."""
        return self[np.flatnonzero(self.domains.are(name))]  # type: ignore[no-any-return]


class PassedOver:
    """What a scan of folders leaves out: how many of each kind, and which is the first."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, path: str) -> None:
        """Adds one.

        Args:
            kind: what it is, in the plural, as in ``files ending in .txt``.
            path: where it is.
        """
        count, first = self.found.get(kind, (0, path))
        self.found[kind] = (count + 1, first)

    def merge(self, other: "PassedOver") -> None:
        """Adds all that ``other`` holds."""
        for kind, (count, path) in other.found.items():
            before, first = self.found.get(kind, (0, path))
            self.found[kind] = (before + count, first)

    def __bool__(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        """What was left out, as in ``2 files ending in .heic (a/cat/1.heic first)``."""
        return ", ".join(
            f"{count} {kind} ({path}{' first' if count > 1 else ''})" for kind, (count, path) in self.found.items()
        )
