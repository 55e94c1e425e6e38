"""Amazon reviews of four kinds of products as they were written, in the folders of their authors."""

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.review_files import LABELS, written_reviews
from dafw.data.roles import Split
from dafw.data.strings import Coder, Strings
from dafw.data.text_files import TextTable
from dafw.data.tokens import Tokenised
from dafw.errors import UserError, choose
from datamodules.review_layouts import existing_review_file, find_reviews, review_layouts
from datamodules.splits import SHARES, Protocol, in_shares, places
from datamodules.text import TextDomains


class AmazonTexts(TextDomains):
    """Reviews of books, dvd, electronics and kitchen as they were written, positive or negative.

    The files are those of Blitzer et al. (ACL 2007): ``<domain>/positive.review``, ``<domain>/negative.review`` and,
    without labels, ``<domain>/unlabeled.review``, in ``root`` or in ``sorted_data_acl`` below it. The folder of kitchen
    may be ``kitchen_&_housewares``, and the file of books without labels may be ``book.unlabeled``.

    Some reviews are there more than once, for several editions of a product. A hash of the text puts a review into a
    split, so that equal ones are in one split.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: the folder of the domains.
        unlabelled: a target trains on its file without labels, a share of which is its validation split, and its test
            split are all of its reviews with labels. Otherwise the reviews with labels are divided.
        tokenizer: see :class:`datamodules.text.TextDomains`.
        max_length: likewise.
        split: likewise.
        protocol: likewise.
        split_seed: likewise.
        base: see :class:`datamodules.base.DomainDataModule`. ``augment`` has no part in texts.

    Raises:
        UserError: if a file is missing or broken, a review is empty, or an argument is wrong.
    """

    domain_names = ("books", "dvd", "electronics", "kitchen")

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        unlabelled: bool = False,
        tokenizer: str | None = None,
        max_length: int | None = None,
        split: tuple[float, float, float] = SHARES,
        protocol: Protocol = "shares",
        split_seed: int = 0,
        **base: Any,
    ) -> None:
        self.facts, self.unlabelled = review_layouts()["AmazonTexts"], unlabelled
        self._bare: dict[str, TextTable] = {}
        super().__init__(
            source,
            target,
            root=root,
            files=None,
            text_column="text",
            label_column="label",
            domain_column="domain",
            id_column=None,
            split_column=None,
            tokenizer=tokenizer,
            max_length=max_length,
            split=split,
            protocol=protocol,
            split_seed=split_seed,
            **base,
        )
        if unlabelled and self.oracle:
            raise UserError("data.oracle trains on the target's labels, and data.unlabelled leaves them to the test")

    def _domains(self) -> tuple[str, ...]:
        self.root = find_reviews(self.facts, self.root)
        return self.facts.domains

    def _read(self, name: str) -> TextTable:
        """The reviews of a domain that have labels, the negative ones first."""
        return self._table(choose("domain", name, self.facts.domains), LABELS)

    def _table(self, name: str, kinds: tuple[str, ...]) -> TextTable:
        words, lines, texts = Coder(), array("q"), list[str]()
        for kind in kinds:
            path = existing_review_file(self.facts, self.root, name, kind)
            for review in written_reviews(path):
                texts.append(review.text)
                lines.append(review.line)
                words.add((kind if kind in LABELS else None, None, None))
        labels, domains, splits = words.columns(3)
        return TextTable(path, Strings.of(texts), labels, domains, splits, None, np.array(lines, np.int64))

    def load(self, name: str, split: Split) -> Domain:
        """See the base. What a target trains on has no labels with ``unlabelled``.

        Raises:
            UserError: as the base, or if the file without labels is missing or broken.
        """
        if not self.unlabelled or name not in self.target or split == "test":
            return super().load(name, split)
        if name not in self._bare:
            self._bare[name] = self._table(name, ("unlabeled",))
        texts = self._bare[name].texts
        held = in_shares(places(texts, self.split_seed), "val", self.split)
        indices = np.flatnonzero(held if split == "val" else ~held)
        if not len(indices):
            raise UserError(f"none of the {len(texts)} unlabelled reviews of {name} is in its {split} split")
        ids = [f"{name}/unlabelled/{index}" for index in range(len(texts))]
        return Domain(name, Tokenised(texts, self.tokenizer), None, ids).subset(indices)

    def _belong(self, name: str, split: Split) -> NDArray[np.bool_]:
        if self.unlabelled and name in self.target:
            return np.ones(len(self._tables[name]), np.bool_)
        return super()._belong(name, split)
