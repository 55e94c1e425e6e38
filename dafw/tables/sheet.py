"""A table as lines and columns, without a decision on its looks.

One section per selection criterion. In a section every method has its line, followed by what belongs to it: published
numbers, the difference to them, its control, and the difference to its control, paired over seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from dafw.errors import choose
from dafw.run.criteria import LEFT_OUT
from dafw.tables.caption import caption, provenance
from dafw.tables.fields import split_task, target_columns
from dafw.tables.grid import Table
from dafw.tables.protocols import other_protocols, published_differences
from dafw.tables.published import Published
from dafw.tables.statistics import Statistic, average, differences, summarise, worst
from dafw.tables.store import Store

Kind = Literal["method", "published", "minus published", "control", "minus control"]


@dataclass(frozen=True)
class Value:
    """One field, in percent. Differences are in percentage points.

    A difference that is paired over seeds has the 95 % interval of its mean, (low, high). It is shown in place of the
    standard deviation.
    """

    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    says_n: bool = False
    mark: str = ""
    note: str = ""
    signed: bool = False
    printed: bool = False

    @property
    def number(self) -> str:
        """The mean with one decimal. A difference has its sign, and a published number is as it was printed."""
        if self.printed:
            return f"{self.mean:.2f}".removesuffix("0")
        return _decimal(self.mean, "+" if self.signed else "")

    @property
    def spread(self) -> str:
        """What follows the number: ``± 1.2``, the standard deviation; ``[0.4, 3.1]``, the interval; or nothing."""
        if self.interval is not None:
            return f"[{', '.join(map(_decimal, self.interval))}]"
        return "" if self.std is None else f"± {self.std:.1f}"

    @property
    def direction(self) -> int:
        """1 if the whole interval lies above 0, -1 if it lies below, else 0."""
        low, high = self.interval or (0.0, 0.0)
        return 1 if low > 0 else -1 if high < 0 else 0

    @property
    def count(self) -> str:
        """``n=1`` if the number of seeds must be mentioned, or nothing."""
        return f"n={self.n}" if self.says_n else ""

    @property
    def text(self) -> str:
        """Plain text, for example ``71.0 ± 1.2 (n=2)†`` or ``+2.2 [−1.8, 6.2]``."""
        spread = f" {self.spread}" if self.spread else ""
        return f"{self.number}{spread}{f' ({self.count})' if self.count else ''}{self.mark}"


def _decimal(number: float, sign: str = "") -> str:
    text = f"{number:{sign}.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


@dataclass(frozen=True)
class Line:
    """One line of a section: a method's own numbers, or a control, a difference or published numbers."""

    kind: Kind
    row: str
    label: str
    values: tuple[Value | None, ...]
    oracle: bool = False
    transductive: bool = False
    other_protocol: bool = False


@dataclass(frozen=True)
class Section:
    """All lines under one selection criterion, by one metric. Its heading names the metric if there are several."""

    criterion: str
    lines: tuple[Line, ...]
    metric: str
    heading: str


@dataclass(frozen=True)
class Sheet:
    """A complete table with all its numbers. The last sentences of the caption are its provenance."""

    name: str
    title: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    by_criterion: tuple[Line, ...]
    caption: tuple[str, ...]
    missing: tuple[str, ...]
    provenance: tuple[str, ...]

    @property
    def criteria(self) -> tuple[str, ...]:
        """The selection criteria, each once."""
        return tuple(dict.fromkeys(section.criterion for section in self.sections))


def make_sheet(store: Store) -> Sheet:
    """Computes every number of the table.

    Raises:
        UserError: if a selection criterion is one that no run recorded.
    """
    table = store.table
    known = {name for result in store.results.values() for name in result.criteria}
    for criterion in table.select:
        if known and criterion != LEFT_OUT:
            choose("selection criterion", criterion, known)
    sections = tuple(
        _section(store.by_metric(metric), criterion, table.further_metrics)
        for metric in table.metrics
        for criterion in table.select
        if metric == table.metric or store.has(metric, criterion)
    )
    shown = [line for section in sections for line in section.lines]
    return Sheet(
        name=table.name,
        title=table.title,
        columns=_columns(table),
        sections=sections,
        by_criterion=tuple(_by_criterion(store)) if len(table.select) > 1 else (),
        caption=tuple(caption(store, {line.kind for line in shown}, _marks(shown))),
        missing=tuple(_missing(store)),
        provenance=tuple(provenance(store)),
    )


def describe_criterion(criterion: str) -> str:
    """The name of a checkpoint that the criterion chose."""
    said = {
        "last": "last (the final weights)",
        "oracle": "oracle (chosen with target labels)",
        LEFT_OUT: f"best {LEFT_OUT} (chosen by runs without one of the sources)",
    }
    return said.get(criterion, f"best {criterion} (needs no target label)")


def _marks(lines: Sequence[Line]) -> set[str]:
    return {value.mark for line in lines for value in line.values if value is not None}


def _columns(table: Table) -> tuple[str, ...]:
    """The columns: for a task of several targets each target, then each task, then the summaries."""
    targets = target_columns(table.tasks)
    found: list[str] = []
    for task in table.tasks:
        found += [*(name for name, (of, _) in targets.items() if of == task), task]
    return (*found, *_summaries(table))


def _summaries(table: Table) -> tuple[str, ...]:
    several_targets = any(len(split_task(task)[1]) > 1 for task in table.tasks)
    return ("average", "worst") if len(table.tasks) > 1 else ("worst",) if several_targets else ()


def _missing(store: Store) -> list[str]:
    table = store.table
    missing = []
    for cell in table.cells():
        key = cell.row, cell.task, cell.seed
        result = store.results.get(key)
        if result is not None and result.run.untested:
            continue
        lost = [
            criterion
            for criterion in table.select
            if result is not None and store.scores(*key, criterion) is None and not store.is_without(*key, criterion)
        ]
        if result is not None:
            further = {metric: replace(result, metric=metric) for metric in table.further_metrics}
            lost += [metric for metric, read in further.items() if read.scores("last") is None]
        if result is None or lost:
            reason = f" (no {', '.join(lost)})" if lost else " (broken result)" if key in store.broken else ""
            missing.append(cell.line + reason)
    helpers = [cell for cell in table.helpers() if store.get(cell.row, cell.task, cell.seed) is None]
    return missing + [f"{cell.line} (by which {LEFT_OUT} chooses)" for cell in helpers]


def _percents(store: Store, row: str, criterion: str) -> list[dict[int, float]]:
    """Percent by seed for each task."""
    return [store.percents(row, task, criterion) for task in store.table.tasks]


def _fields(store: Store, row: str, criterion: str) -> list[dict[int, float]]:
    """Percent by seed for each column, without the summaries."""
    targets = target_columns(store.table.tasks)
    fields = []
    for column in _columns(store.table):
        if column in targets:
            task, target = targets[column]
            fields.append(store.domain_percents(row, task, criterion)[target])
        elif column in store.table.tasks:
            fields.append(store.percents(row, column, criterion))
    return fields


def _value(table: Table, percents: dict[int, float], *, signed: bool = False, note: str = "") -> Value | None:
    statistic: Statistic | None = summarise(list(percents.values()))
    if statistic is None:
        return None
    says_n = statistic.n == 1 or statistic.n != len(table.seeds)
    interval = statistic.interval if signed else None
    return Value(statistic.mean, statistic.std, interval, statistic.n, says_n, note=note, signed=signed)


def _worst(store: Store, row: str, criterion: str) -> tuple[str, dict[int, float]]:
    """The task and target with the lowest mean, and its percents. ``None`` unless every task has a number."""
    domains = {
        f"{task}, on {target}" if len(split_task(task)[1]) > 1 else task: percents
        for task in store.table.tasks
        for target, percents in store.domain_percents(row, task, criterion).items()
    }
    name = worst(domains)
    return (name, domains[name]) if name is not None else ("", {})


def _own(store: Store, row: str, criterion: str) -> tuple[Value | None, ...]:
    table = store.table
    values = [_value(table, percents) for percents in _fields(store, row, criterion)]
    summaries = _summaries(table)
    if "average" in summaries:
        values.append(_value(table, average(_percents(store, row, criterion))))
    if "worst" in summaries:
        name, percents = _worst(store, row, criterion)
        values.append(_value(table, percents, note=name))
    return tuple(values)


def _against_control(store: Store, method: str, control: str, criterion: str) -> tuple[Value | None, ...]:
    def gains(numbers: Callable[[Store, str, str], list[dict[int, float]]]) -> list[dict[int, float]]:
        ours, theirs = (numbers(store, name, criterion) for name in (method, control))
        return [differences(a, b) for a, b in zip(ours, theirs, strict=True)]

    values = [_value(store.table, gain, signed=True) for gain in gains(_fields)]
    summaries = _summaries(store.table)
    if "average" in summaries:
        values.append(_value(store.table, average(gains(_percents)), signed=True))
    if "worst" in summaries:
        values.append(_worst_gain(store, method, control, criterion))
    return tuple(values)


def _worst_gain(store: Store, method: str, control: str, criterion: str) -> Value | None:
    """The difference of two numbers in the column "worst". They may be of two tasks, so it is not paired."""
    (ours, a), (theirs, b) = (_worst(store, name, criterion) for name in (method, control))
    if not a or not b:
        return None
    if ours == theirs:
        return _value(store.table, differences(a, b), signed=True, note=ours)
    return Value(fmean(a.values()) - fmean(b.values()), signed=True, note=f"{ours} minus {theirs}")


def _published(store: Store, name: str, row: str, own: tuple[Value | None, ...], criterion: str) -> list[Line]:
    """For each source with published numbers of the method a line, then our numbers minus them if there are any."""
    table = store.table
    columns = _columns(table)
    ours: list[Published] = [one for one in table.published if one.method == name and one.metric == table.metric]
    lines = []
    sources = list(dict.fromkeys(one.source for one in ours))
    for source in sources:
        by_task = {one.task: one for one in ours if one.source == source}
        found = [by_task.get(column) for column in columns]
        if not any(found):
            continue
        theirs = tuple(
            None
            if one is None
            else Value(
                one.value,
                one.std,
                n=one.n,
                mark=one.mark,
                note=f"{one.source}. {one.note}".strip(),
                printed=True,
            )
            for one in found
        )
        gap = tuple(
            Value(a.mean - b.mean, mark=b.mark, signed=True) if a is not None and b is not None else None
            for a, b in zip(own, theirs, strict=True)
        )
        behind = f" ({source})" if len(sources) > 1 else ""
        differs = any(published_differences(store, row, one, criterion) for one in by_task.values())
        lines.append(Line("published", row, f"published{behind}{' (other protocol)' if differs else ''}", theirs))
        if any(gap) and not differs:
            lines.append(Line("minus published", row, f"minus published{behind}", gap))
    return lines


def _section(store: Store, criterion: str, further: Sequence[str]) -> Section:
    metric = store.table.metric
    said = f"{metric.replace('_', ' ')}; checkpoint" if further else "Checkpoint"
    heading = f"{said}: {describe_criterion(criterion)}"
    return Section(criterion, tuple(_section_lines(store, criterion)), metric, heading)


def _section_lines(store: Store, criterion: str) -> list[Line]:
    table, oracles, transductive, others = store.table, store.oracles, store.transductive, other_protocols(store)
    lines: list[Line] = []
    for row in table.rows:
        values = _own(store, row.name, criterion)
        if row.control_of is not None:
            lines.append(Line("control", row.control_of, "control", values, row.name in oracles))
            gain = _against_control(store, row.control_of, row.name, criterion)
            lines.append(Line("minus control", row.control_of, "minus control", gain))
        else:
            marks = row.name in oracles, row.name in transductive, row.name in others
            lines.append(Line("method", row.name, row.name, values, *marks))
            if row.controlled_by is not None:
                gain = _against_control(store, row.name, row.controlled_by, criterion)
                lines.append(Line("minus control", row.name, f"minus {row.controlled_by}", gain))
            lines += _published(store, row.published, row.name, values, criterion)
    for method in dict.fromkeys(one.method for one in table.published):
        if method not in {row.published for row in table.rows} and not table.narrowed:
            nothing = (None,) * len(_columns(table))
            for line in _published(store, method, method, nothing, criterion):
                lines.append(Line("method", method, f"{method} (not run)", nothing))
                lines.append(line)
    return lines


def _by_criterion(store: Store) -> list[Line]:
    """The average over tasks of every method under each criterion, to compare criteria side by side."""
    lines, oracles, transductive, others = [], store.oracles, store.transductive, other_protocols(store)
    for row in store.table.rows:
        values = [_value(store.table, average(_percents(store, row.name, name))) for name in store.table.select]
        kind: Kind = "control" if row.control_of else "method"
        said = "control" if row.control_of else row.name
        marks = row.name in oracles, row.name in transductive, row.name in others
        lines.append(Line(kind, row.control_of or row.name, said, tuple(values), *marks))
    return lines
