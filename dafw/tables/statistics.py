"""Numbers over seeds: mean, standard deviation, paired differences with their intervals, averages over tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (``ddof=1``; None for a single value) and number of values."""

    mean: float
    std: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t, as (low, high); ``None`` for a single value.

        It treats the n values as independent draws of a normal distribution. For paired differences over seeds it is
        the interval of the paired t test.

        >>> [round(end, 2) for end in Statistic(2.2, 1.6, 3).interval]
        [-1.77, 6.17]
        """
        if self.std is None:
            return None
        from scipy.special import stdtrit  # the t distribution's quantile; scipy.stats takes a second to import

        half = float(stdtrit(self.n - 1, 0.975)) * self.std / sqrt(self.n)
        return self.mean - half, self.mean + half


def summarise(values: Sequence[float]) -> Statistic | None:
    """The statistic of the values; ``None`` if there is no value."""
    if not values:
        return None
    return Statistic(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Ours minus theirs at every seed that both have. They are pairs: a seed decides initial weights and batches."""
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def average(tasks: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over tasks at every seed that has them all."""
    if not tasks:
        return {}
    return {seed: fmean(task[seed] for task in tasks) for seed in tasks[0] if all(seed in task for task in tasks)}


def worst(domains: Mapping[str, Mapping[int, float]]) -> str | None:
    """The name with the lowest mean over its seeds; ``None`` unless every name has a number."""
    means = {name: fmean(values.values()) for name, values in domains.items() if values}
    return min(means, key=lambda name: means[name]) if means and len(means) == len(domains) else None


def lower_is_better(metric: str) -> bool:
    """Whether a metric counts mistakes, such as the share of known samples that are rejected.

    >>> lower_is_better("fpr95"), lower_is_better("accuracy")
    (True, False)
    """
    return metric.startswith("fpr") or metric.endswith(("loss", "error"))
