"""What the benchmarks share: interleaved rounds, medians, the machine they ran on, tables."""

import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("dafw", "torch", "torchvision", "pytorch-lightning", "timm", "pillow", "numpy", "wandb")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
STARTED = time.monotonic()


@dataclass(frozen=True)
class Measure:
    """One number, alone or beside its reference.

    Args:
        name: what was measured.
        unit: unit of ``dafw`` and ``reference``.
        dafw: the number, a median over the rounds where it is a time.
        reference: the same of what it is compared with.
        ratio: ``dafw / reference``, the median of the rounds' own ratios where it is a time.
        lowest: smallest of the rounds: of the ratio, or of the number itself if there is no reference.
        highest: largest of the rounds.
        rounds: how many there were; 0 for what is counted, not timed.
        limit: what the ratio (the number if there is no reference) must keep.
        at_most: whether the limit bounds it from above.
    """

    name: str
    unit: str
    dafw: float
    reference: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    rounds: int = 0
    limit: float | None = None
    at_most: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; ``None`` if there is none."""
        if self.limit is None:
            return None
        value = self.dafw if self.ratio is None else self.ratio
        return value <= self.limit if self.at_most else value >= self.limit


def counted(name: str, unit: str, dafw: float, reference: float | None = None, **limit: Any) -> Measure:
    """A number that every machine finds."""
    ratio = None if reference is None else dafw / reference if reference else 1.0
    return Measure(name, unit, dafw, reference, ratio, **limit)


def timed(name: str, unit: str, dafw: Sequence[float], reference: Sequence[float] = (), **limit: Any) -> Measure:
    """Medians of the rounds, and the median and range of their ratios."""
    ratios = [ours / theirs for ours, theirs in zip(dafw, reference, strict=True)] if reference else []
    shown = ratios or list(dafw)
    return Measure(
        name,
        unit,
        statistics.median(dafw),
        statistics.median(reference) if reference else None,
        statistics.median(ratios) if ratios else None,
        min(shown),
        max(shown),
        len(dafw),
        **limit,
    )


def mirrored(names: Sequence[str], rounds: int, seed: int = 0) -> list[list[str]]:
    """The order of each round: a new shuffle, then the same backwards, so that a drift hits all alike (ABBA)."""
    rng = random.Random(seed)
    orders = [rng.sample(list(names), len(names)) for _ in range(rounds)]
    return [order + order[::-1] for order in orders]


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, title: str) -> dict[str, list[float]]:
    """Runs every contender twice a round, after one warm-up of each.

    Args:
        contenders: each returns what it took.
        rounds: how many rounds.
        title: for the progress line.

    Returns:
        For each contender, the mean of its two runs of each round.
    """
    for run in contenders.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number, order in enumerate(mirrored(list(contenders), rounds), 1):
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for name in order:
            taken[name].append(contenders[name]())
        for name, values in taken.items():
            found[name].append(sum(values) / len(values))
        say(f"{title}: round {number} of {rounds}, " + ", ".join(f"{n} {v[-1]:.3g}" for n, v in found.items()))
    return found


def say(text: str) -> None:
    """A line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def environment(threads: int) -> dict[str, Any]:
    """The machine and the versions."""
    names = re.findall(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": names[0].strip() if names else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": versions,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def as_json(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """Plain values, with the verdict."""
    return [{**asdict(measure), "holds": measure.holds} for measure in measures]


def table(measures: Sequence[Measure]) -> str:
    """A Markdown table."""
    lines = ["| | dafw | reference | ratio (range) | limit | |", "|---|---:|---:|---:|---:|---|"]
    for m in measures:
        spread = f" ({m.lowest:.3g} to {m.highest:.3g})" if m.rounds > 1 and m.lowest is not None else ""
        alone = spread if m.ratio is None else ""
        limit = "" if m.limit is None else f"{'≤' if m.at_most else '≥'} {m.limit:g}"
        cells = (
            m.name,
            f"{m.dafw:.4g} {m.unit}{alone}".strip(),
            "" if m.reference is None else f"{m.reference:.4g} {m.unit}".strip(),
            "" if m.ratio is None else f"{m.ratio:.3f}{spread}",
            limit,
            {None: "", True: "holds", False: "**missed**"}[m.holds],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replace_block(path: Path, text: str) -> None:
    """Puts ``text`` between the two marks of a page, and leaves the rest of it.

    Raises:
        ValueError: if the page lacks the marks.
    """
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no block between {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")
