"""Compares the samples that made the results of a table with those that its data has now.

``dafw table run`` lists the files of each data configuration once and keeps in ``<root>/tables/.data`` what it found.
``show`` and ``status`` read that, so that they open no data.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dafw.errors import UserError, warning_that_names
from dafw.files import write_atomically
from dafw.run.criteria import CellResult
from dafw.run.identity import data_paths
from dafw.samples import Samples, changed_parts
from dafw.tables.grid import Cell

Key = tuple[str, str, int]
"""Row, task and seed of a cell."""
Found = Mapping[str, Samples]
"""By domain and part, the samples that the data has."""


class Listings:
    """What the data of a table's runs was last found to have.

    Args:
        root: folder of the run directories.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "tables" / ".data"
        self._kept = {path.stem for path in self.folder.glob("*.json")}
        self._read: dict[str, Found] = {}

    def changes(self, cell: Cell, result: CellResult) -> tuple[str, ...]:
        """How the samples of a result differ from those of the data, a sentence for each part; empty if unknown."""
        if not result.run.samples or not self._kept:
            return ()
        own, shared = (self._name(cell, result, seed) for seed in (cell.seed, None))
        now = self._of(own if own in self._kept else shared)
        return tuple(f"{what}: {how}" for what, how in changed_parts(result.run.samples, now).items())

    def refresh(self, cells: Mapping[Key, Cell], results: Mapping[Key, CellResult]) -> None:
        """Lists the data of the results: once for all seeds, and for a seed of its own where it seems to differ.

        A datamodule may give each seed other samples. Data that is not there is forgotten, and not compared.
        """
        listed: dict[str, int] = {}
        for (_, _, seed), cell, result in ((key, cells[key], each) for key, each in results.items()):
            if not result.run.samples:
                continue
            shared, own = (self._name(cell, result, one) for one in (None, seed))
            if shared not in listed:
                listed[shared] = seed
                self._keep(shared, self._list(cell, result))
            if own in listed:
                continue
            if listed[shared] != seed and changed_parts(result.run.samples, self._of(shared)):
                listed[own] = seed
                self._keep(own, self._list(cell, result))
            elif own in self._kept:
                self._keep(own, None)

    def _list(self, cell: Cell, result: CellResult) -> Found | None:
        from dafw.run.listing import list_samples  # imports torch

        what = f"the data of {cell.line} could not be listed, so its result is not compared with it"
        with warning_that_names(what), suppress(UserError, OSError):  # data that is not there
            return list_samples(cell.config, result.directory)
        return None

    def _name(self, cell: Cell, result: CellResult, seed: int | None) -> str:
        """The name of what decides the samples: the data, the seed, and the part of it that the method sees."""
        setting, parts = result.run.setting, result.run.samples
        own = any("/held-out/" in name or name.endswith("/one image") for name in parts)
        asked = [result.run.method, cell.config["model"].get("init_args", {}).get("image")] if own else ""
        seen = [setting.source, setting.target, setting.stream, asked]
        said = json.dumps([cell.config["data"], data_paths(cell.config), seen, seed], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def _of(self, name: str) -> Found:
        if name not in self._read:
            found: Found = {}
            if name in self._kept:
                with suppress(OSError, ValueError):
                    found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            self._read[name] = found
        return self._read[name]

    def _keep(self, name: str, found: Found | None) -> None:
        path = self.folder / f"{name}.json"
        if found is None:
            self._kept.discard(name)
            path.unlink(missing_ok=True)
        else:
            self._kept.add(name)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found))
        self._read[name] = found or {}
