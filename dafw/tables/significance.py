"""Tests over seeds and tasks together, and mean ranks. They colour and mark nothing in the main table."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, median

from dafw.tables.details import control_rows
from dafw.tables.further import Further
from dafw.tables.statistics import lower_is_better
from dafw.tables.store import Store

LEVEL = 0.05


def significance(store: Store) -> tuple[Further, ...]:
    """Each method against its control, and all methods by their mean ranks, under the table's first criterion.

    Either is left out where it makes no sense: without a control, with a single task or a single method.
    """
    return (*_against_controls(store), *_mean_ranks(store))


def holm(values: Sequence[float]) -> list[float]:
    """P values after Holm's correction (Scandinavian Journal of Statistics 6, 1979).

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    found, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        found[index] = highest
    return found


def critical_difference(methods: int, tasks: int) -> float:
    """The difference of mean ranks above which two methods differ at 5 % (Nemenyi 1963; Demsar, JMLR 7, 2006).

    >>> round(critical_difference(5, 30), 3)
    1.114
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - LEVEL, methods, float("inf"))) / sqrt(2)
    return quantile * sqrt(methods * (methods + 1) / (6 * tasks))


def ranks(scores: Sequence[float]) -> list[float]:
    """Rank 1 for the highest score. Equal scores share the mean of their ranks.

    >>> ranks([70, 80, 70])
    [2.5, 1.0, 2.5]
    """
    return [
        sum(other > score for other in scores) + (1 + sum(other == score for other in scores)) / 2 for score in scores
    ]


def _against_controls(store: Store) -> tuple[Further, ...]:
    from scipy.stats import wilcoxon

    criterion, names = store.table.select[0], [row.name for row in store.table.rows]
    found: list[tuple[str, str, list[float]]] = []
    for method, control in control_rows(store).items():
        gaps = []
        for task in store.table.tasks:
            ours, theirs = (store.percents(name, task, criterion) for name in (method, control))
            gaps += [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if method in names and len(gaps) > 1:
            found.append((method, control, gaps))
    if not found:
        return ()
    values = [float(wilcoxon(gaps).pvalue) if any(gaps) else 1.0 for _, _, gaps in found]
    lines = tuple(
        (method, control, str(len(gaps)), f"{median(gaps):+.1f}".replace("-", "\u2212"), _p(value), _p(corrected))
        for (method, control, gaps), value, corrected in zip(found, values, holm(values), strict=True)
    )
    notes = (
        f"Wilcoxon's signed-rank test, two-sided, over the pairs of task and seed, checkpoint {criterion}; p (Holm): "
        f"after Holm's correction for {len(found)} comparison{'s' * (len(found) != 1)}.",
        "Pairs of one task share their data, which the test does not know. The colours of the table are by the paired "
        "t interval over seeds alone.",
    )
    columns = ("method", "control", "pairs", "median difference", "p", "p (Holm)")
    return (Further("Against the control, over tasks and seeds", columns, lines, notes),)


def _mean_ranks(store: Store) -> tuple[Further, ...]:
    from scipy.stats import friedmanchisquare

    table, oracles, criterion = store.table, store.oracles, store.table.select[0]
    sign = -1 if lower_is_better(table.metric) else 1
    scores: dict[str, list[float]] = {}
    for row in (row for row in table.rows if row.control_of is None and row.name not in oracles):
        percents = [store.percents(row.name, task, criterion) for task in table.tasks]
        if all(percents):
            scores[row.name] = [sign * fmean(by_seed.values()) for by_seed in percents]
    if len(scores) < 2 or len(table.tasks) < 2:
        return ()
    by_task = [ranks(task) for task in zip(*scores.values(), strict=True)]
    means = {name: fmean(task[place] for task in by_task) for place, name in enumerate(scores)}
    limit = critical_difference(len(scores), len(table.tasks))
    constant = all(len(set(task)) == 1 for task in by_task)
    said = ""
    if len(scores) > 2 and not constant:
        said = f" Friedman's test that all are equal: p = {_p(float(friedmanchisquare(*scores.values()).pvalue))}."
    best = min(means.values())
    lines = tuple(
        (name, f"{rank:.2f}", "yes" if rank - best > limit else "no")
        for name, rank in sorted(means.items(), key=lambda pair: pair[1])
    )
    few = " With so few tasks it can tell little apart." if len(table.tasks) < 10 else ""
    notes = (
        f"Mean rank over {len(table.tasks)} tasks of the means over seeds, 1 is best, checkpoint {criterion}. Two "
        f"methods differ at 5 % if their mean ranks differ by more than {limit:.2f} (Nemenyi).{said}{few}",
        "Rows with target labels, and rows without a number for each task, have no rank.",
    )
    return (Further("Mean ranks", ("method", "mean rank", "differs from the best"), lines, notes),)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
