"""What the runs of each row took: time, speed and memory."""

from collections.abc import Sequence
from statistics import fmean

from dafw.run.result import Result
from dafw.tables.further import Further
from dafw.tables.store import Store

MEBI = 1 << 20
NONE = "\u2013"


def costs(store: Store) -> tuple[Further, ...]:
    """A line for each row, the means over its runs; nothing without a run."""
    lines = []
    for row in store.table.rows:
        runs = [result.run for (name, _, _), result in store.results.items() if name == row.name]
        if runs:
            speeds = [speed for run in runs if (speed := samples_per_second(run)) is not None]
            fields = [
                _mean([run.steps for run in runs]),
                _mean([run.seconds["total"] for run in runs], 1),
                _mean([run.seconds["train"] for run in runs], 1),
                _mean(speeds),
                *(_mean([run.cost[name] / MEBI for run in runs if name in run.cost]) for name in PEAKS),
            ]
            lines.append((row.name, *fields))
    if not lines:
        return ()
    machines = "; ".join(dict.fromkeys(result.run.machine for result in store.results.values()))
    heads = ("steps", "seconds", "of training", "samples/s", "peak resident, MiB", "peak device, MiB")
    used = [place for place in range(len(heads) + 1) if place < 4 or any(line[place] != NONE for line in lines)]
    notes = [f"Means over the runs of a row, made on {machines}. Runs that share a machine slow each other."]
    if 4 in used:
        notes.append(
            "Samples/s: samples of source and target in training steps, on all ranks, over the seconds of training "
            "without validations."
        )
    peaks = {5: "memory of its process in the machine (resident)", 6: "memory on its CUDA device"}
    if said := [what for place, what in peaks.items() if place in used]:
        notes.append(f"Peaks are of the first rank: {', '.join(said)}.")
    kept = tuple(tuple(line[place] for place in used) for line in (("method", *heads), *lines))
    return (Further("What a run took", kept[0], kept[1:], tuple(notes)),)


PEAKS = ("peak_resident", "peak_device")


def samples_per_second(run: Result) -> float | None:
    """Speed of the training of a run; ``None`` if nobody counted its samples."""
    samples, seconds = run.cost.get("samples", 0), run.seconds["train"]
    return samples / seconds if samples and seconds > 0 else None


def _mean(values: Sequence[float], digits: int = 0) -> str:
    return f"{fmean(values):,.{digits}f}" if values else NONE
