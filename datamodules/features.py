"""Features in files of your own: npz, mat, Parquet or CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from dafw.data.feature_files import SUFFIXES, FeatureTable, Matrix, Words, read_features
from dafw.data.roles import Split
from dafw.data.trained import known_domains, list_domains
from dafw.errors import UserError, choose, nearest
from dafw.files import reading, user_path
from datamodules.feature_rows import FeatureModule, Part
from datamodules.folder import natural_order
from datamodules.row_files import check_split_column, domains_in, file_of
from datamodules.splits import SHARES, Protocol, check_protocol, check_shares, in_protocol, places

COLUMNS = ("label", "domain", "id", "split")
"""What columns beside the features may say of a row."""


class Rows(NamedTuple):
    """All rows of a domain: features (n, d), and for each a label or ``None``, a name, and perhaps a split."""

    rows: Matrix
    labels: Words
    ids: Sequence[str]
    splits: Words | None


class FeatureDomains(FeatureModule):
    """Rows of features in files: one file with a column that names the domain, or one file for each domain.

    Files are npz, mat (of MATLAB up to 7.3), Parquet or CSV. Features are one matrix (n, d), or columns of numbers. A
    sparse matrix (csr) stays sparse in memory. In an npz file it is the arrays ``data``, ``indices``, ``indptr`` and
    ``shape``, each behind a common name and ``_``, or without one. A csr matrix of a mat file is one of its own.

    A domain without the column of labels, or with empty ones, has no labels. Numbers are labels as they are written,
    so that -1 is a class too.

    A hash of its name puts each row into a split, as :class:`datamodules.folder.ImageFolderDomains` does with images,
    unless a column says it.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: the file with all domains, or the folder of one file for each domain, ``<domain>.npz`` or with another
            ending.
        files: for a folder, by domain the name of its file in ``root``; ``None``: the names of the files are the
            domains.
        features: name of the matrix, or of a column of lists, or names of the columns that are features. ``None``:
            the only matrix, or all columns that are none of the following.
        label_column: name of the labels.
        domain_column: name of the column that says the domain, in a file with all of them.
        id_column: name of the column of names, one for each row; ``None``: a row is called by its number.
        split_column: name of the column of ``train``, ``val`` and ``test``; ``None``: ``protocol`` decides.
        split: shares of training, validation and test.
        protocol: ``shares``, ``domainbed`` or ``office``, see :class:`datamodules.folder.ImageFolderDomains`.
        split_seed: number of the division.
        base: see :class:`datamodules.feature_rows.FeatureModule`.

    Raises:
        UserError: if a file, a column or an argument is wrong.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        files: dict[str, str] | None = None,
        features: str | list[str] | None = None,
        label_column: str = "label",
        domain_column: str = "domain",
        id_column: str | None = None,
        split_column: str | None = None,
        split: tuple[float, float, float] = SHARES,
        protocol: Protocol = "shares",
        split_seed: int = 0,
        **base: Any,
    ) -> None:
        self.root, self.files, self.features = user_path(root), files, features
        named_columns = (label_column, domain_column, id_column, split_column)
        self.columns: dict[str, str | None] = dict(zip(COLUMNS, named_columns, strict=True))
        if len(set(named := [one for one in self.columns.values() if one])) < len(named):
            raise UserError(f"data.label_column, domain_column, id_column and split_column must differ, not {named}")
        self.protocol, self.split_seed = check_protocol(protocol, split_seed), split_seed
        self.split = check_shares(split)
        check_split_column(split_column, protocol)
        self.holds_out_source = protocol != "office"
        self.domain_names = known_domains(self._domains, source, target)
        super().__init__(source, target, **base)
        self._rows = list_domains(self._read, self.source, self.target, True)
        self._check_widths()
        labels = {one for rows in self._rows.values() for one in rows.labels if one is not None}
        if self.made_for is not None and not self._rows.keys() >= {*self.source, *self.target}:
            labels |= set(self.made_for.classes)
        if not labels and self._rows:
            raise self._no_labels()
        self.class_names = tuple(sorted(labels, key=natural_order))
        self._placed: dict[str, NDArray[np.float64]] = {}

    @classmethod
    def count_features(cls, arguments: Mapping[str, Any]) -> int:
        """See the base; the width of the first domain that is read."""
        named = ("source", "target", "root", "files", "features", *(f"{one}_column" for one in COLUMNS))
        data = cls(**{key: arguments[key] for key in named if key in arguments})
        return int(next(iter(data._rows.values())).rows.shape[1])

    # ---- files

    def _domains(self) -> tuple[str, ...]:
        """The names of the domains that there are."""
        with reading("the file or folder", self.root):
            is_folder = self.root.is_dir()
            if not is_folder:
                self.root.stat()
        if not is_folder:
            words = self._table(self.root).words.get(self.columns["domain"] or "")
            if words is None:
                raise self._lacks(self.root, "domain", "or give the folder of one file for each domain as data.root")
            return tuple(sorted({one for one in words if one is not None}))
        return domains_in(self.root, self.files, SUFFIXES)

    def _table(self, path: Path) -> FeatureTable:
        return read_features(path, self.features, [one for one in self.columns.values() if one])

    def _lacks(self, path: Path, column: str, otherwise: str = "") -> UserError:
        named, others = self.columns[column], self._table(path).others
        advice = f"give data.{column}_column{f', {otherwise}' if otherwise else ''}"
        return UserError(
            f'{path} has no column "{named}" of each row\'s {column}: {nearest(str(named), others)} {advice}'
        )

    def _no_labels(self) -> UserError:
        path = self.root if self.root.is_file() else file_of(next(iter(self._rows)), self.root, self.files, SUFFIXES)
        if self.columns["label"] not in self._table(path).words:
            return self._lacks(path, "label")
        return UserError(f"the column {self.columns['label']} of {path} is empty: a source needs labels")

    def _read(self, name: str) -> Rows:
        """All rows of a domain."""
        whole = self.root.is_file()
        path = self.root if whole else file_of(name, self.root, self.files, SUFFIXES)
        table = self._table(path)
        chosen: NDArray[np.int64] | None = None
        if whole:
            words = table.words[cast(str, self.columns["domain"])]
            chosen = np.flatnonzero(np.asarray(words, dtype=object) == name)
        found: dict[str, Words] = {}
        for column in ("label", "id", "split"):
            named = self.columns[column]
            if named is not None and named in table.words:
                words = table.words[named]
                found[column] = words if chosen is None else [words[index] for index in chosen.tolist()]
            elif named is not None and column != "label":
                raise self._lacks(path, column)
        rows = table.rows if chosen is None else table.rows[chosen]
        count = rows.shape[0]
        labels = found.get("label", [None] * count)
        if None in labels and len(set(labels)) > 1:
            row = labels.index(None)
            raise UserError(f"row {row} of {name} has no label, and others have one: give all of them a label, or none")
        for row, one in enumerate(found.get("split", ())):
            if one not in ("train", "val", "test"):
                raise UserError(f'row {row} of {name} has the split "{one}", which must be train, val or test')
        ids = [f"{name}/{one}" for one in (range(count) if "id" not in found else found["id"])]
        if len(set(ids)) < count:
            raise UserError(
                f"{self.columns['id']} of {path} names two rows of {name} alike: data.id_column must differ"
            )
        return Rows(rows, labels, ids, found.get("split"))

    def _check_widths(self) -> None:
        widths = {name: rows.rows.shape[1] for name, rows in self._rows.items()}
        first = next(iter(widths), "")
        for name, width in widths.items():
            if width != widths[first]:
                raise UserError(
                    f"{name} has {width} features and {first} {widths[first]}: all domains need the same features"
                )

    # ---- samples

    def part(self, name: str, split: Split) -> Part:
        """The samples of one domain's split as they are stored.

        Raises:
            UserError: for a domain that is neither source nor target, or an empty split.
        """
        rows = self._rows[choose("domain", name, self._rows)]
        indices = np.flatnonzero(self._belong(name, split))
        if not len(indices):
            raise UserError(f"none of the {len(rows.ids)} rows of {name} is in its {split} split: change data.split")
        codes = {label: code for code, label in enumerate(self.class_names)}
        words = [rows.labels[index] for index in indices.tolist()]
        labels = None if words[0] is None else np.asarray([codes[cast(str, one)] for one in words], np.int64)
        return Part(rows.rows[indices], labels, [rows.ids[index] for index in indices.tolist()])

    def _belong(self, name: str, split: Split) -> NDArray[np.bool_]:
        """Which rows of a domain are in its split, (n,)."""
        rows = self._rows[name]
        if rows.splits is not None:
            return np.asarray([one == split for one in rows.splits])
        if name not in self._placed:
            self._placed[name] = places(rows.ids, self.split_seed)
        target = name in self.target
        sides = {"target": target, "reported": target and not self.oracle}
        return in_protocol(self.protocol, self._placed[name], split, self.split, **sides)

    def _present(self, name: str) -> set[str] | None:
        """The names of the classes of all splits."""
        return {one for one in self._rows[name].labels if one is not None} or None

    def in_short(self) -> list[str]:
        """For each domain how many rows of how many features it has."""
        return [
            f"{name}: {rows.rows.shape[0]} rows of {rows.rows.shape[1]} features, "
            f"{len(self._present(name) or ()) or 'no'} classes"
            for name, rows in self._rows.items()
        ]
