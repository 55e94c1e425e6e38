"""Accuracy estimated without labels, beside the accuracy that the target's labels give, over all runs of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from dafw.estimation import ESTIMATORS
from dafw.run.criteria import CellResult
from dafw.tables.data import Key
from dafw.tables.statistics import Statistic, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class EstimatePoint:
    """One estimate of one run on one target, in percent.

    Attributes:
        row: the row's name.
        task: the task.
        seed: the run's seed.
        target: the target's name.
        estimator: the estimator's name, see :data:`dafw.estimation.ESTIMATORS`.
        value: the estimate; nan if it does not exist.
        low: the lower end of its 95 % range.
        high: the upper end of its 95 % range.
        truth: the accuracy on the target's test split by its labels.
    """

    row: str
    task: str
    seed: int
    target: str
    estimator: str
    value: float
    low: float
    high: float
    truth: float

    @property
    def error(self) -> float:
        """Estimate minus truth."""
        return self.value - self.truth

    @property
    def holds(self) -> bool:
        """Whether the range holds the truth."""
        return self.low <= self.truth <= self.high


@dataclass(frozen=True)
class EstimatorError:
    """How far an estimator is off over several runs, in percentage points. A run is a mean over its targets.

    Attributes:
        estimator: its name.
        title: what it is called in words.
        absolute: of the absolute errors, with their mean and its 95 % interval over runs.
        signed: of estimate minus truth.
        largest: the largest absolute error of a run.
        holds: the share of estimates whose range holds the truth.
    """

    estimator: str
    title: str
    absolute: Statistic
    signed: Statistic
    largest: float
    holds: float


def estimate_points(results: Mapping[Key, CellResult]) -> list[EstimatePoint]:
    """Every estimate of the final weights of runs whose target has labels, in the order of the runs.

    Args:
        results: by row, task and seed, as :attr:`dafw.tables.store.Store.results`.
    """
    found = []
    for (row, task, seed), result in results.items():
        for target, by_name in result.run.estimates.items():
            truth = result.run.test.get(target, {}).get("accuracy")
            if truth is None or not isfinite(truth):
                continue
            for name, one in by_name.items():
                value, low, high = (100 * one[key] for key in ("value", "low", "high"))
                found.append(EstimatePoint(row, task, seed, target, name, value, low, high, 100 * truth))
    return found


def estimator_errors(points: Sequence[EstimatePoint], row: str | None = None) -> list[EstimatorError]:
    """How far each estimator is off, in the order of :data:`dafw.estimation.ESTIMATORS`.

    The interval treats runs as independent draws. Rows of one seed and task share their data, so it is too narrow where
    an estimator fails for all of them at once.

    Args:
        points: see :func:`estimate_points`.
        row: the row that counts; all if ``None``.
    """
    found = []
    for name, kind in ESTIMATORS.items():
        runs: dict[tuple[str, str, int], list[EstimatePoint]] = {}
        for one in points:
            if one.estimator == name and isfinite(one.error) and row in (None, one.row):
                runs.setdefault((one.row, one.task, one.seed), []).append(one)
        absolute = [fmean(abs(one.error) for one in held) for held in runs.values()]
        signed, total = (
            summarise([fmean(one.error for one in held) for held in runs.values()]),
            summarise(absolute),
        )
        if signed is None or total is None:
            continue
        holds = fmean(one.holds for held in runs.values() for one in held)
        found.append(EstimatorError(name, kind.title, total, signed, max(absolute), holds))
    return found


def draw_estimates(points: Sequence[EstimatePoint], theme: Literal["light", "dark"] = "light") -> "Figure":
    """A panel for each estimator with the estimate over the truth; see :func:`dafw.plots.estimate_scatter`.

    Raises:
        ValueError: if there is nothing to draw.
    """
    from dafw.plots import EstimateDot, estimate_scatter

    dots = [
        EstimateDot(ESTIMATORS[one.estimator].title, one.row, one.truth, one.value, one.low, one.high)
        for one in points
        if one.estimator in ESTIMATORS
    ]
    return estimate_scatter(dots, theme=theme)
