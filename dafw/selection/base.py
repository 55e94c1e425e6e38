"""The base class of validators, and the evidence that a validator may see."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dafw.errors import UserError


@dataclass
class Evidence:
    """One network's outputs at one validation: all that a validator may see. Target labels are not part of it.

    A source-free run has no source rows: n = m = 0.

    Attributes:
        source_train_features: (n, d), of source samples that were trained on.
        source_features: (m, d), of held-out source samples.
        source_logits: (m, K), of the same held-out samples.
        source_labels: (m,) integers, of the same held-out samples.
        target_features: (t, d), of target samples.
        target_logits: (t, K), of the same target samples.
        target_samples: the number of target samples. A problem may have any number of rows for each.
    """

    source_train_features: Tensor
    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    target_features: Tensor
    target_logits: Tensor
    target_samples: int = 0


def precise(x: Tensor) -> Tensor:
    """``x`` in float64, without gradient; on the CPU if its device has no float64."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


class Validator(ABC):
    """A score of a checkpoint. It uses all rows it is given and does not communicate with other ranks.

    A score that does not exist (no rows, non-finite outputs) is nan, never an exception.

    Attributes:
        name: its key in results and configuration.
        higher_is_better: whether a higher score is better.
        needs_source: whether it reads source samples; a source-free run does not compute it then.
        reference: the paper that proposed it, if there is one.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_source: ClassVar[bool] = False
    reference: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """The score, a scalar in float64."""


def together(present: Iterable[Validator], further: Iterable[Validator]) -> dict[str, Validator]:
    """All validators by name.

    Args:
        present: the validators that a run has.
        further: those that are added to them.

    Raises:
        UserError: if a further one lacks its name or its direction, or has a name that is taken.
    """
    found = {one.name: one for one in present}
    for one in further:
        owner, name, up = type(one).__name__, getattr(one, "name", None), getattr(one, "higher_is_better", None)
        if not isinstance(name, str) or not name or not isinstance(up, bool):
            raise UserError(f"run.validators: {owner} must define name, a text, and higher_is_better, true or false")
        if name in found or name in ("last", "oracle") or name.startswith("source_"):
            raise UserError(f'run.validators: the name "{name}" of {owner} is taken: give it another one')
        found[name] = one
    return found
