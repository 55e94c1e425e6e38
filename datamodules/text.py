"""Texts in files of your own: csv, tsv, jsonl or Parquet."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.roles import Split
from dafw.data.text_files import SUFFIXES, TextColumns, TextTable, read_texts
from dafw.data.tokens import Tokenised, Tokenizer
from dafw.data.trained import known_domains, list_domains
from dafw.errors import UserError, choose
from dafw.files import reading, user_path
from datamodules.base import DomainDataModule
from datamodules.folder import natural_order
from datamodules.row_files import check_split_column, domains_in, file_of
from datamodules.splits import SHARES, Protocol, check_protocol, check_shares, in_protocol, places


class TextDomains(DomainDataModule):
    """Texts in files: one file with a column that names the domain, or one file for each domain.

    The tokens of a text are made when it is loaded, in the processes that load data. A batch is padded to its longest
    text, and a mask keeps the padding out of the features.

    A domain without the column of labels, or with empty ones, has no labels. It trains and predicts; it has no metrics.

    A hash of a text, or of its name if there is a column of names, puts it into a split, so that equal texts are in
    one split. A column may say the splits.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: the file with all domains, or the folder of one file for each domain: ``<domain>.csv``, ``.tsv``,
            ``.jsonl`` or ``.parquet``.
        files: for a folder, by domain the name of its file in ``root``; ``None``: the names of the files are the
            domains.
        text_column: name of the texts.
        label_column: name of the labels, which are words or numbers.
        domain_column: name of the column that says the domain, in a file with all of them.
        id_column: name of the column of names, one for each text; ``None``: a text is called by its domain and number.
        split_column: name of the column of ``train``, ``val`` and ``test``; ``None``: ``protocol`` decides.
        tokenizer: name or folder of the tokenizer. The command line takes that of the network's backbone. Without one,
            a sample is the text itself, for a network of your own that takes texts.
        max_length: tokens of a text that are kept, those that begin and end it among them; ``None``: as many as the
            model takes, but no more than 256.
        split: shares of training, validation and test.
        protocol: ``shares``, ``domainbed`` or ``office``, see :class:`datamodules.folder.ImageFolderDomains`.
        split_seed: number of the division.
        base: see :class:`datamodules.base.DomainDataModule`. ``augment`` has no part in texts.

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
        text_column: str = "text",
        label_column: str = "label",
        domain_column: str = "domain",
        id_column: str | None = None,
        split_column: str | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        split: tuple[float, float, float] = SHARES,
        protocol: Protocol = "shares",
        split_seed: int = 0,
        **base: Any,
    ) -> None:
        if base.get("augment") not in (None, "none"):
            raise UserError(f"data.augment {base['augment']} changes images, and texts are none: leave it out")
        if max_length is not None and max_length < 1:
            raise UserError(f"data.max_length must be at least 1, not {max_length}")
        self.root, self.files = user_path(root), files
        self.columns = TextColumns(text_column, label_column, domain_column, id_column, split_column)
        if len(set(named := [one for one in self.columns if one])) < len(named):
            raise UserError(f"the columns of data.text_column, label_column and so on must differ, not {named}")
        self.protocol, self.split_seed = check_protocol(protocol, split_seed), split_seed
        self.split = check_shares(split)
        check_split_column(split_column, protocol)
        self.holds_out_source = protocol != "office"
        self._whole: TextTable | None = None
        self.domain_names = known_domains(self._domains, source, target)
        super().__init__(source, target, **base)
        self.tokenizer = None if tokenizer is None else Tokenizer(tokenizer, max_length)
        self._tables = list_domains(self._read, self.source, self.target, True)
        labels = {word for table in self._tables.values() for word in table.labels.counts() if word is not None}
        if self.made_for is not None and not self._tables.keys() >= {*self.source, *self.target}:
            labels |= set(self.made_for.classes)
        self.class_names = tuple(sorted(labels, key=natural_order))
        self._placed: dict[str, NDArray[np.float64]] = {}

    # ---- files

    def _domains(self) -> tuple[str, ...]:
        """The names of the domains that there are."""
        with reading("the file or folder", self.root):
            self.root.stat()
        if self.root.is_file():
            self._whole = read_texts(self.root, self.columns)
            return tuple(sorted(word for word in self._whole.domains.counts() if word is not None))
        return domains_in(self.root, self.files, SUFFIXES)

    def _read(self, name: str) -> TextTable:
        """All texts of a domain."""
        if self._whole is not None:
            table = self._whole.of(np.flatnonzero(self._whole.domains.are(name)))
        else:
            table = read_texts(file_of(name, self.root, self.files, SUFFIXES), self.columns._replace(domain=None))
        if not len(table):
            raise UserError(f"{table.path} has no text of {name}")
        bare = np.flatnonzero(table.labels.are(None))
        if 0 < len(bare) < len(table):
            raise UserError(f"{table.where(bare[0])}: {name} has labels, and this row has none: label all, or none")
        if name in self.source and len(bare):
            raise UserError(f"{table.path} has no labels of the source {name} (data.label_column): make it a target")
        twice, count = Counter(table.ids or ("",)).most_common(1)[0]
        if count > 1:
            raise UserError(f"{table.path} gives {count} texts of {name} the name {twice} (data.id_column)")
        return table

    # ---- samples

    def load(self, name: str, split: Split) -> Domain:
        """The texts of one split of one domain, as tokens, or as they are without a tokenizer.

        Raises:
            UserError: for a domain that is neither source nor target, or an empty split.
        """
        table = self._tables[choose("domain", name, self._tables)]
        choose("split", split, get_args(Split))
        indices = np.flatnonzero(self._belong(name, split))
        if not len(indices):
            raise UserError(f"none of the {len(table)} texts of {name} is in its {split} split: change data.split")
        ids = table.ids if table.ids is not None else [f"{name}/{index}" for index in range(len(table))]
        return Domain(name, Tokenised(table.texts, self.tokenizer), self._labels(table), ids).subset(indices)

    def _labels(self, table: TextTable) -> NDArray[np.int64] | None:
        if table.labels.at(0) is None:
            return None
        codes: dict[str | None, int] = {label: code for code, label in enumerate(self.class_names)}
        return np.asarray([codes.get(word, -1) for word in table.labels.words], np.int64)[table.labels.codes]

    def _belong(self, name: str, split: Split) -> NDArray[np.bool_]:
        """Which texts of a domain are in its split, (n,)."""
        table = self._tables[name]
        if self.columns.split is not None:
            return table.splits.are(split)
        if name not in self._placed:
            self._placed[name] = places(table.texts if table.ids is None else table.ids, self.split_seed)
        target = name in self.target
        sides = {"target": target, "reported": target and not self.oracle}
        return in_protocol(self.protocol, self._placed[name], split, self.split, **sides)

    def _present(self, name: str) -> set[str] | None:
        """The names of the classes of all splits."""
        return {word for word in self._tables[name].labels.counts() if word is not None} or None

    def view(self, name: str) -> Callable[[Any], Any]:
        """Refuses: a text has no augmented view.

        Raises:
            UserError: always.
        """
        raise UserError(
            f'{self.request.asker} needs the augmented view "{name}" of each sample, and texts have none: take another '
            "method"
        )

    def evaluation_transform(self) -> Callable[[Any], Any]:
        """From a text to its tokens, or to itself without a tokenizer."""
        return lambda text: Tokenised([text], self.tokenizer)[0]

    def texts(self, path: Path) -> Domain:
        """Further texts to predict, from a file with the same columns; labels, domains and splits are not read.

        Raises:
            UserError: if the file cannot be read.
        """
        table = read_texts(path, TextColumns(self.columns.text, None, None, self.columns.id, None))
        ids = table.ids if table.ids is not None else [f"{path.name}/{row}" for row in table.rows.tolist()]
        return Domain("texts", Tokenised(table.texts, self.tokenizer), None, ids)

    def in_short(self) -> list[str]:
        """For each domain how many texts of how many classes it has, and how many of them are in each split."""
        return [self._in_short(name, table) for name, table in self._tables.items()]

    def _in_short(self, name: str, table: TextTable) -> str:
        parts: dict[str, int] = {}
        for split in get_args(Split):
            with suppress(UserError):  # an empty split
                parts[split] = len(self.domain(name, split))
        count = len(self._present(name) or ())
        classes = f"{count} class{'es' * (count > 1)}" if count else "no labels"
        return f"{name}: {len(table)} texts, {classes}; {', '.join(f'{n} {split}' for split, n in parts.items())}"
