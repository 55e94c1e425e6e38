"""What a stream of test samples is like: which domains it visits, in which order, and how their samples are mixed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from dafw.errors import UserError, choose
from dafw.ranges import Checked, PositiveFloat, PositiveInt

SEVERITIES = (1, 2, 3, 4, 5, 4, 3, 2, 1)
"""The severities of one corruption in a gradual stream."""


@dataclass(frozen=True)
class Segment(Checked):
    """A part of a stream with samples of one domain.

    Attributes:
        domain: name of the domain, or of a corruption.
        severity: of the corruption: the domain is then ``<domain>_<severity>``; ``None`` for a domain without one.
        count: number of samples; ``None`` for all samples of the domain.
    """

    config_key = "data.stream.segments"
    domain: str
    severity: PositiveInt | None = None
    count: PositiveInt | None = None

    @property
    def name(self) -> str:
        """Name of the domain in the data."""
        return self.domain if self.severity is None else f"{self.domain}_{self.severity}"


class Visit(NamedTuple):
    """A visit of a stream to a domain: the domain's name, and the number of samples; ``None`` for all of them."""

    domain: str
    samples: int | None


@dataclass(frozen=True)
class TargetStream(Checked):
    """The stream that a test-time method meets. Its order is a function of the seed and the position alone.

    A stream goes through segments, each of one domain. It passes once over the samples of a domain. If it comes back to
    a domain, it passes over the same samples again, in another order.

    Args:
        order: ``continual`` visits the targets one after the other. ``gradual`` visits each corruption among the
            targets at the severities 1-2-3-4-5-4-3-2-1: the domain ``fog_5`` stands for fog at all of them. ``mixed``
            draws the samples of all targets in one random order.
        segments: the segments themselves, in place of those that ``order`` would make of the targets.
        correlated: concentration delta of the Dirichlet distribution by which the classes of a segment gather; the
            smaller, the longer the same class follows. ``None``: a segment's samples come at random. The labels of the
            stream decide its order. They reach no method.
        rounds: how often the stream goes through all of it.
        window: with batches of one sample, the number of latest samples that each step sees; the newest is served.
        reset_each_shift: each segment begins with the start model again. The method then knows the shifts.

    Raises:
        UserError: if a mixed stream shall reset at its shifts, since it has none.
    """

    config_key = "data.stream"
    order: Literal["continual", "gradual", "mixed"] = "continual"
    segments: Sequence[Segment] = field(default_factory=list)
    correlated: PositiveFloat | None = None
    rounds: PositiveInt = 1
    window: PositiveInt = 1
    reset_each_shift: bool = False

    def __post_init__(self) -> None:
        choose("data.stream.order", self.order, ("continual", "gradual", "mixed"))
        object.__setattr__(
            self, "segments", [Segment(*one) if isinstance(one, tuple) else one for one in self.segments]
        )
        if self.segments and self.order == "gradual":
            raise UserError("data.stream.segments are the order of the stream: leave out data.stream.order gradual")
        if self.reset_each_shift and not self.has_shifts:
            raise UserError(
                "a mixed stream has no shifts, so data.stream.reset_each_shift has nothing to follow: leave it out"
            )

    @classmethod
    def named(cls, given: Self | str) -> Self:
        """The stream that a word stands for; a stream stays as it is.

        Raises:
            UserError: for an unknown word, with the nearest one.
        """
        if not isinstance(given, str):
            return given
        return cls(**WORDS[choose("data.stream", given, WORDS)])

    @property
    def has_shifts(self) -> bool:
        """Whether the stream goes from one domain to another one at known positions."""
        return self.order != "mixed"

    @property
    def described(self) -> str:
        """The stream in words, the same for streams that are alike. Segments are ``domain`` or ``domain:count``."""
        said: list[str] = [self.order]
        if self.segments:
            named = ((one.name, one.count) for one in self.segments)
            said = ["segments " + " ".join(name if count is None else f"{name}:{count}" for name, count in named)]
            said += ["mixed"] if self.order == "mixed" else []
        said += [] if self.correlated is None else [f"correlated {self.correlated:g}"]
        said += [f"{self.rounds} rounds"] if self.rounds > 1 else []
        said += [f"window {self.window}"] if self.window > 1 else []
        said += ["reset each shift"] if self.reset_each_shift else []
        return ", ".join(said)

    def visits(self, targets: Sequence[str]) -> list[Visit]:
        """The segments of one round.

        Args:
            targets: names of the targets that the data was asked for.

        Raises:
            UserError: if a gradual stream has a target that is no corruption with a severity.
        """
        if self.segments:
            return [Visit(one.name, one.count) for one in self.segments]
        if self.order != "gradual":
            return [Visit(name, None) for name in targets]
        kinds = dict.fromkeys(_kind(name) for name in targets)
        return [Visit(f"{kind}_{severity}", None) for kind in kinds for severity in SEVERITIES]

    def domains(self, targets: Sequence[str]) -> list[str]:
        """Names of the domains that the stream visits, each once, those among the targets first.

        Raises:
            UserError: see :meth:`visits`; and for a target that the segments leave out.
        """
        visited = dict.fromkeys(one.domain for one in self.visits(targets))
        if self.order == "gradual":
            return list(visited)
        if left := [name for name in targets if name not in visited]:
            raise UserError(f"data.stream.segments never visits the target {left[0]}: leave it out of data.target")
        return [*targets, *(name for name in visited if name not in targets)]


WORDS: dict[str, dict[str, Any]] = {
    "continual": {},
    "correlated": {"correlated": 0.1},
    "gradual": {"order": "gradual"},
    "mixed": {"order": "mixed"},
    "recurring": {"rounds": 10},
    "reset_each_shift": {"reset_each_shift": True},
}
"""The streams that have a name, by the fields in which they differ from the plainest one."""


def _kind(name: str) -> str:
    found = re.fullmatch(r"(.+)_[1-5]", name)
    if found is None:
        raise UserError(
            f"a gradual stream goes through the severities of a corruption, and the target {name} has none: name "
            "targets like fog_5, or give another data.stream"
        )
    return found[1]
