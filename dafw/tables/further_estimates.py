"""How far the estimates of accuracy without labels are off, as a small table below the main one."""

from dafw.tables.estimates import EstimatePoint, estimator_errors
from dafw.tables.further import Further
from dafw.tables.statistics import Statistic


def estimate_table(points: list[EstimatePoint]) -> tuple[Further, ...]:
    """A line for each estimator; nothing without estimates."""
    lines = tuple(
        (
            one.title,
            str(one.absolute.n),
            _with_interval(one.absolute),
            _with_interval(one.signed, "+"),
            f"{one.largest:.1f}",
            f"{100 * one.holds:.0f} %",
        )
        for one in estimator_errors(points)
    )
    if not lines:
        return ()
    columns = ("estimator", "runs", "mean absolute error", "estimate minus truth", "largest error", "range holds")
    notes = (
        "Accuracy of the final weights on the target's test split, estimated without its labels, and by them; errors "
        "are in percentage points, with the 95 % interval of their mean over runs.",
        "Runs of one seed and task share their data, so an interval is too narrow where an estimator fails for all "
        "of them. Range holds: how often the 95 % range of an estimate holds the truth.",
    )
    return (Further("Accuracy without labels", columns, lines, notes),)


def _with_interval(statistic: Statistic, sign: str = "") -> str:
    text = f"{statistic.mean:{sign}.1f}"
    if statistic.interval is not None:
        text += " [" + ", ".join(f"{end:.1f}" for end in statistic.interval) + "]"
    return text.replace("-", "\u2212")
