"""Schedules: pure functions of the share of training done, and classes that make them usable in a YAML file.

A schedule keeps no counter, so it survives resume, gradient accumulation and any number of ranks.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from dafw.ranges import Checked, NonNegativeFloat, PositiveInt

Per = Literal["progress", "step"]


def dann_ramp(progress: float, gamma: float = 10.0) -> float:
    """2 / (1 + exp(-gamma p)) - 1, from 0 towards 1: Ganin et al., JMLR 17 (2016), section 5.2, https://arxiv.org/abs/1505.07818.

    Args:
        progress: p, the share of training done.
        gamma: steepness; with a higher one the ramp rises sooner.
    """
    return math.tanh(gamma * progress / 2)  # the same function, and its exponential cannot overflow


def inverse_decay(progress: float, alpha: float = 10.0, power: float = 0.75) -> float:
    """(1 + alpha p)^-power, from 1 down: Ganin et al., JMLR 17 (2016), section 5.2, https://arxiv.org/abs/1505.07818.

    Args:
        progress: p, the share of training done; or the number of steps done, if ``alpha`` is per step.
        alpha: speed of the decay; a higher one makes it set in sooner.
        power: the exponent.
    """
    return float((1.0 + alpha * progress) ** -power)


def exponential_ramp(progress: float, gamma: float = 3.0) -> float:
    """exp(-gamma (1 - p)), up to 1 at p = 1 and then constant: DCC's weight of a regulariser (read in its code).

    Args:
        progress: p, the share done of training or of another number of steps.
        gamma: steepness.
    """
    return math.exp(-gamma * (1 - min(1.0, progress)))


def constant(progress: float) -> float:
    """The factor 1, whatever the progress."""
    return 1.0


def cosine(progress: float, warmup: float = 0.0) -> float:
    """Linear from 0 to 1 over the first ``warmup`` of training, then half a cosine down to 0.

    After the warm-up it is (1 + cos(pi q)) / 2, where q is the share done of the rest: Loshchilov and Hutter, ICLR
    2017, https://arxiv.org/abs/1608.03983, without restarts.

    Args:
        progress: the share of training done; beyond 1 the factor stays 0.
        warmup: share of training used for the warm-up, in [0, 1).

    Raises:
        ValueError: ``warmup`` outside [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of training in [0, 1), not {warmup}")
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))


def polynomial(progress: float, power: float = 0.9) -> float:
    """(1 - p)^power, from 1 down to 0: Chen et al., DeepLab, TPAMI 2018, section 4.1, https://arxiv.org/abs/1606.00915.

    Args:
        progress: p, the share of training done; beyond 1 the factor stays 0.
        power: the exponent.
    """
    return float(max(0.0, 1.0 - progress) ** power)


class Schedule(Checked, ABC):
    """A factor over training, for learning rates and loss weights."""

    config_key: ClassVar[str] = "model.schedule"

    @abstractmethod
    def __call__(self, progress: float, step: int) -> float:
        """The factor for the next step.

        Args:
            progress: steps done / steps planned, in [0, 1].
            step: steps done.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""

    def __call__(self, progress: float, step: int) -> float:
        """See :class:`Schedule`."""
        return constant(progress)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Another schedule, times a factor that rises linearly to 1 over the first steps.

    Args:
        steps: length of the warm-up in steps.
        start: the factor at the first step (mmsegmentation's configuration of SegFormer and DAFormer: 1e-6).
        then: the other schedule, which the warm-up does not shift; constant if null.
    """

    steps: PositiveInt = 1500
    start: NonNegativeFloat = 1e-6
    then: Schedule | None = None

    def __call__(self, progress: float, step: int) -> float:
        """See :class:`Schedule`."""
        rise = min(1.0, self.start + (1 - self.start) * step / self.steps)
        return rise * (1.0 if self.then is None else self.then(progress, step))


@dataclass(frozen=True)
class InverseDecay(Schedule):
    """(1 + alpha p)^-power; the DANN paper's learning rate by default.

    Args:
        alpha: decay per unit of ``per`` (paper: 10; the Transfer-Learning-Library: 0.001 per step).
        power: the exponent.
        per: whether p is the share of training done or the number of steps done.
    """

    alpha: NonNegativeFloat = 10.0
    power: float = 0.75
    per: Per = "progress"

    def __call__(self, progress: float, step: int) -> float:
        """See :class:`Schedule`."""
        return inverse_decay(progress if self.per == "progress" else step, self.alpha, self.power)


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up, then half a cosine down to 0.

    Args:
        warmup: share of training used for the warm-up, in [0, 1).
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        cosine(0.0, self.warmup)  # a wrong value is an error before any training

    def __call__(self, progress: float, step: int) -> float:
        """See :class:`Schedule`."""
        return cosine(progress, self.warmup)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """(1 - p)^power, where p is the share done of training, or of ``steps``.

    Args:
        power: the exponent.
        steps: number of steps after which the factor is 0, if that is not the end of training (the authors of
            AdaptSegNet and ADVENT stop long before it).
    """

    power: NonNegativeFloat = 0.9
    steps: PositiveInt | None = None

    def __call__(self, progress: float, step: int) -> float:
        """See :class:`Schedule`."""
        return polynomial(step / self.steps if self.steps else progress, self.power)
