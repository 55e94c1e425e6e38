"""Numbers over seeds: mean, sample standard deviation, paired differences, averages over tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation (``ddof=1``; None for a single value) and number of values."""

    mean: float
    std: float | None
    n: int


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
