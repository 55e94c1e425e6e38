"""What a validator may see, and what it is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass
class Evidence:
    """One network's outputs at one validation: everything a choice may rest on, target labels not being part of it.

    In a source-free run there are no source rows: n = m = 0.

    Attributes:
        source_train_features: (n, d), source samples that were trained on.
        source_features: (m, d), held-out source samples.
        source_logits: (m, K), the same samples.
        source_labels: (m,) integers, the same samples.
        target_features: (t, d), target samples.
        target_logits: (t, K), the same samples.
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
    """A score of a checkpoint. It reads all rows it is given and talks to no other rank.

    A score that does not exist (no rows, non-finite outputs) is nan, never an exception.

    Attributes:
        name: its key in results and configuration.
        higher_is_better: the direction of a good score.
        needs_source: whether it reads source samples, so that a source-free run does not have it.
        reference: where it was proposed.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_source: ClassVar[bool] = False
    reference: ClassVar[str]

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """The score, a scalar in float64."""
