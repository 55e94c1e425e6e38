"""The base class of validators, and the evidence that a validator may see."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


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
    """

    source_train_features: Tensor
    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    target_features: Tensor
    target_logits: Tensor


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
        reference: the paper that proposed it.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_source: ClassVar[bool] = False
    reference: ClassVar[str]

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """The score, a scalar in float64."""
