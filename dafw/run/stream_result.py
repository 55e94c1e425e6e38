"""What a result says of the stream of a test-time run: its fields, and how they are read. It needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Setting = str | int | bool | None


@dataclass(frozen=True)
class StreamResult:
    """What happened on a stream. Errors are fractions of wrong predictions among those that were served.

    Numbers that need labels are left out for samples without labels.

    Attributes:
        protocol: the settings under which the numbers were made, by name; see
            :func:`~dafw.run.stream_record.protocol_of`.
        samples: number N of samples that were served.
        domains: by domain ``error``, ``ece`` (15 bins), ``nll`` and ``samples`` of what was served, and
            ``start_error``, that of the start model on the same samples.
        mean: the means of these over the domains. Samples are never pooled over domains.
        bins: ``error`` and ``start_error`` in equal parts of the stream, first to last.
        segments: for each segment its ``domain``, the ``position`` of its first sample, and the error in the window
            ``before`` and ``after`` this position. The error before the first segment is left out.
        worst: the ``error`` of the worst window of the stream, and the ``position`` of its first sample.
        window: number of samples of a window; a segment may have less.
        used: share of ``samples`` that counted in an update, and of ``steps`` that had such a sample.
        resets: how often the method returned to the start.
        source: accuracy of the ``start`` model and of the ``final`` weights on ``samples`` test samples of the source,
            normalised by running statistics; empty where no labelled source is at hand.
        speed: ``seconds`` and ``samples_per_second`` of the stream with all that belongs to it, and
            ``start_samples_per_second``: the start model on the first batches, from loading to prediction.
        uploads: number of ``samples`` that were sent to a cloud, and their ``share`` of those that were served; empty
            for a method without a cloud.
    """

    protocol: Mapping[str, Setting]
    samples: int
    domains: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    bins: Mapping[str, tuple[float, ...]]
    segments: tuple[Mapping[str, Any], ...]
    worst: Mapping[str, float]
    window: int
    used: Mapping[str, float]
    resets: int
    source: Mapping[str, float]
    speed: Mapping[str, float]
    uploads: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "StreamResult":
        """Reads what ``asdict`` made of one."""
        return cls(
            protocol=dict(given["protocol"]),
            samples=int(given["samples"]),
            domains={str(name): _floats(values) for name, values in given["domains"].items()},
            mean=_floats(given["mean"]),
            bins={str(name): tuple(map(_float, values)) for name, values in given["bins"].items()},
            segments=tuple(
                {**_floats({key: one[key] for key in one if key != "domain"}), "domain": str(one["domain"])}
                for one in given["segments"]
            ),
            worst=_floats(given["worst"]),
            window=int(given["window"]),
            used=_floats(given["used"]),
            resets=int(given["resets"]),
            source=_floats(given["source"]),
            speed=_floats(given["speed"]),
            uploads=_floats(given.get("uploads", {})),
        )


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _floats(given: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _float(value) for name, value in given.items()}
