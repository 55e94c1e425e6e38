"""Common base of the datamodules whose samples are rows of features: how rows are scaled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.feature_files import Matrix
from dafw.data.features import FeatureRows, RowNorm, Scaling, normalised, scaling_of
from dafw.data.roles import Split
from dafw.errors import UserError, choose
from datamodules.base import DomainDataModule

Standardise = Literal["none", "source", "domain"]


class Part(NamedTuple):
    """The samples of a domain's split.

    Attributes:
        rows: features (n, d), dense or csr.
        labels: (n,) numbers of the classes; ``None`` without labels.
        ids: a name for each row.
    """

    rows: Matrix
    labels: NDArray[np.int64] | None
    ids: Sequence[str]


class FeatureModule(DomainDataModule):
    """Domains of rows of features. A subclass writes :meth:`part` and :meth:`count_features`.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        standardise: which rows give the mean that is subtracted from each feature, and the standard deviation that it
            is divided by. They are training rows, and their labels have no part. ``source``: the rows of all sources
            together, for all domains. ``domain``: each domain's own. ``none``: features stay as they are.
        row_norm: before that, each row is divided by the sum of its absolute values (``l1``) or by its length (``l2``).
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: for an unknown word, or for a word for ``augment``, since words stand for changes of images.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        standardise: Standardise = "none",
        row_norm: RowNorm = "none",
        **base: Any,
    ) -> None:
        if isinstance(base.get("augment"), str) and base["augment"] != "none":
            raise UserError(f"data.augment {base['augment']} changes images, and features are none: leave it out")
        super().__init__(source, target, **base)
        choose("standardise", standardise, get_args(Standardise))
        choose("row_norm", row_norm, get_args(RowNorm))
        self.standardise: Standardise = standardise
        self.row_norm: RowNorm = row_norm
        self._normalised: dict[tuple[str, Split], Part] = {}
        self._scalings: dict[tuple[str, ...], Scaling] = {}

    def part(self, name: str, split: Split) -> Part:
        """The samples of one domain's split as they are stored."""
        raise NotImplementedError(f"{type(self).__name__} must define part(name, split)")

    @classmethod
    def count_features(cls, arguments: Mapping[str, Any]) -> int:
        """The number d of features of a row, for a network that is made for it.

        Args:
            arguments: of the constructor, by name.
        """
        raise NotImplementedError(f"{cls.__name__} must define count_features(arguments)")

    def load(self, name: str, split: Split) -> Domain:
        """The rows of one split of one domain, float32 (d,), scaled.

        Raises:
            UserError: for an unknown domain or split, or see :meth:`part`.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, ("train", "val", "test"))
        part = self._part(name, split)
        return Domain(name, FeatureRows(part.rows, self._scaling(name)), part.labels, part.ids)

    def _part(self, name: str, split: Split) -> Part:
        if (name, split) not in self._normalised:
            part = self.part(name, split)
            self._normalised[name, split] = part._replace(rows=normalised(part.rows, self.row_norm))
        return self._normalised[name, split]

    def _scaling(self, name: str) -> Scaling | None:
        """What a domain's rows are scaled by."""
        if self.standardise == "none":
            return None
        of = (name,) if self.standardise == "domain" else tuple(self.source)
        setting = self.request.setting
        if self.standardise == "domain" and name in self.target and (not setting.sees_target or setting.streams_target):
            raise UserError(
                f"data.standardise domain reads training rows of the target {name}, which a {setting.name} method does "
                "not see: take source"
            )
        if of not in self._scalings:
            self._scalings[of] = scaling_of([self._part(one, "train").rows for one in of])
        return self._scalings[of]

    def evaluation_transform(self) -> Callable[[Any], Any]:
        """Refuses: a row of features is no file.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} serves rows of features, and no images can be predicted with such a run: predict "
            "its target, or give other data in data.root"
        )
