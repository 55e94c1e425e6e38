"""Criteria side by side: what each would have chosen, and how much better the target's labels would have chosen."""

from statistics import fmean

from dafw.run.criteria import LEFT_OUT
from dafw.tables.further import Further
from dafw.tables.statistics import average, lower_is_better
from dafw.tables.store import Store

NONE = "\u2013"
FIRST = ("last", "source_accuracy", "source_loss", "entropy", "im", "snd", "dev")
"""The order of the criteria that most runs have. Others follow, and the oracle is last."""


def criteria(store: Store) -> tuple[Further, ...]:
    """The average over tasks of each row by criterion. With ``allow_oracle`` the oracle is one, and the regrets follow.

    Nothing if the runs have no criterion besides their last weights.
    """
    table = store.table
    known = {name for result in store.results.values() for name in result.criteria if name != "oracle"}
    known |= {LEFT_OUT} & set(table.select)
    names = [name for name in FIRST if name in known] + sorted(known.difference(FIRST))
    if len(names) < 2:
        return ()
    oracle = ["oracle"] if table.allow_oracle and store.has(table.metric, "oracle") else []
    found = {row.name: {name: _average(store, row.name, name) for name in [*names, *oracle]} for row in table.rows}
    found = {row: values for row, values in found.items() if any(value is not None for value in values.values())}
    scale = "Average over tasks" if len(table.tasks) > 1 else "Mean"
    notes = [
        f"{scale} and seeds of the target's test {table.metric.replace('_', ' ')} in %, at the checkpoint that each "
        "criterion chooses."
    ]
    if not oracle:
        notes.append("The oracle's choice and the regrets read target labels: they need --allow-oracle.")
    lines = tuple((row, *map(_text, values.values())) for row, values in found.items())
    parts = [Further("Criteria side by side", ("method", *names, *oracle), lines, tuple(notes))]
    if oracle:
        sign = -1 if lower_is_better(table.metric) else 1
        gaps = {row: [_gap(values["oracle"], values[name], sign) for name in names] for row, values in found.items()}
        means = [[gap for gap in column if gap is not None] for column in zip(*gaps.values(), strict=True)]
        rows = [(row, *map(_text, gap)) for row, gap in gaps.items()]
        rows.append(("mean over methods", *(_text(fmean(gap)) if gap else NONE for gap in means)))
        said = (
            "Regret: what the oracle's checkpoint is better by, in percentage points. The oracle chooses by the "
            "target's validation labels, so a regret on the test split may be negative."
        )
        parts.append(Further("Regret of each criterion", ("method", *names), tuple(rows), (said,)))
    return tuple(parts)


def _average(store: Store, row: str, criterion: str) -> float | None:
    values = average([store.percents(row, task, criterion) for task in store.table.tasks])
    return fmean(values.values()) if values else None


def _gap(best: float | None, chosen: float | None, sign: int) -> float | None:
    return None if best is None or chosen is None else sign * (best - chosen)


def _text(value: float | None) -> str:
    if value is None:
        return NONE
    text = f"{value:.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")
