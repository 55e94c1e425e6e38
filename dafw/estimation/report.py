"""Estimates and shift scores for one set of images, in a form for people and one for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from dafw.estimation.base import Estimate
from dafw.estimation.estimating import ESTIMATORS, OtherModel, estimates
from dafw.estimation.shift import TITLES, ShiftScore, shift_scores, warning
from dafw.estimation.source_evidence import SourceEvidence


@dataclass(frozen=True)
class Report:
    """What can be said without labels of how good a model is on some images.

    Attributes:
        samples: how many images there are.
        estimates: of the accuracy, by estimator, see :func:`~dafw.estimation.estimates`.
        shift: the shift scores by name, see :func:`~dafw.estimation.shift_scores`.
        notes: sentences on what the model's run keeps of its source, if that is less than it should be.
    """

    samples: int
    estimates: dict[str, Estimate]
    shift: dict[str, ShiftScore]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, evidence: SourceEvidence, logits: Any, features: Any, others: Sequence[OtherModel] = ()) -> Self:
        """The report on n images.

        Args:
            evidence: what the model's run keeps of the source.
            logits: (n, K), of the images.
            features: (f, d), of some of them.
            others: other models that predicted the same images.

        Raises:
            UserError: see :func:`~dafw.estimation.estimates`.
        """
        found = estimates(evidence, logits, others=others)
        return cls(len(logits), found, shift_scores(evidence, logits, features), tuple(notes(evidence)))

    @property
    def warning(self) -> str | None:
        """What to do if the images differ from the source; ``None`` if they do not, see :func:`.shift.warning`."""
        return warning(self.shift)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "samples": self.samples,
            "estimates": {name: asdict(one) for name, one in self.estimates.items()},
            "shift": {name: {**asdict(one), "exceeds": one.exceeds} for name, one in self.shift.items()},
            "warning": self.warning,
            "notes": list(self.notes),
        }

    def lines(self) -> Iterator[str]:
        """A table of the estimates and one of the shift scores."""
        titles = {name: f"{ESTIMATORS[name].title} ({name})" for name in self.estimates}
        width = max(map(len, [*titles.values(), *TITLES.values()]))
        yield f"  {'accuracy, estimated without labels':<{width}}  estimate  95 % range"
        for name, one in self.estimates.items():
            said = "does not exist" if one.value != one.value else f"{_percent(one.value)}  {_range(one)}"
            yield f"  {titles[name]:<{width}}  {said}"
        yield f"  {'shift':<{width}}    images  held-out source, at most"
        for name, score in self.shift.items():
            more = "  exceeded" if score.exceeds else ""
            yield f"  {TITLES[name]:<{width}}  {score.value:8.2f}  {score.held_out:.2f}, {score.limit:.2f}{more}"


def _percent(share: float) -> str:
    return f"{100 * share:6.1f} %"


def _range(one: Estimate) -> str:
    return f"{100 * one.low:.1f} to {100 * one.high:.1f} %"


def notes(evidence: SourceEvidence) -> Iterator[str]:
    """Sentences on what is kept of the source."""
    if evidence.start_model:
        yield (
            "what is kept of the source is of the model that the run started from, so estimates that compare with the "
            "source miss how the adaptation changed its confidence"
        )
    if not evidence.held_out:
        yield "the source's test samples trained the model too, so estimates that compare with the source are too high"
