"""The parts of a domain, and the part that each evaluation plays."""

from dataclasses import dataclass
from typing import Literal

from dafw.data.domain import Domain

Split = Literal["train", "val", "test"]
Role = Literal[
    "source_train", "source_train_labelled", "source_val", "target_val", "source_test", "target_test", "target_all"
]
_PARTS = {"train": "training", "labelled": "training", "val": "validation"}


@dataclass(frozen=True)
class Evaluation:
    """The content of one evaluation loader.

    Args:
        role: the part that it plays.
        domain: its samples, with labels where the role may have them.
    """

    role: Role
    domain: Domain

    @property
    def is_source(self) -> bool:
        """Whether its samples come from a source."""
        return self.role.startswith("source")

    @property
    def part(self) -> str:
        """The part of its domain that it is: ``training``, ``validation``, ``test``, or ``all`` parts."""
        last = self.role.rpartition("_")[2]
        return _PARTS.get(last, last)

    @property
    def is_labelled(self) -> bool:
        """Whether its samples have labels."""
        return self.domain.labels is not None
