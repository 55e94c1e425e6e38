"""The number that a criterion picks from the result of a run. It needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dafw.run.result import Metrics, Result, Validation

LEFT_OUT = "leave_one_domain_out"
"""The criterion that chooses a checkpoint by runs without one of the sources."""
READS_SOURCE = {
    **{"entropy": False, "im": False, "snd": False, "dev": True},
    **{"ac": False, "atc_ne": True, "pseudo_boxes": False},
}
"""By validator of ours, whether it reads source samples, as :data:`dafw.selection.VALIDATORS` says. That
imports torch, which a table can do without."""
Scored = tuple[float, Validation]
"""A validation with its score. A higher score is better."""


@dataclass(frozen=True)
class CellResult:
    """One finished run, read by one metric.

    Attributes:
        run: its result.
        directory: its run directory.
        metric: the test metric to read. Target labels judge a validation by the run's own metric, which may be another.
    """

    run: Result
    directory: Path
    metric: str

    @property
    def criteria(self) -> tuple[str, ...]:
        """The selection criteria that this run has the scores for."""
        validators = sorted({name for one in self.run.history for name in one.validators})
        oracle = ["oracle"] if any(self.run.metric in one.oracle for one in self.run.history) else []
        return ("last", *validators, *oracle)

    def is_without(self, criterion: str) -> bool:
        """Whether the criterion reads samples that a run of this setting never sees, or a validation it never has."""
        setting = self.run.setting
        if setting.stream:
            return criterion not in self.criteria
        if (setting.source and setting.target) or criterion in self.criteria:
            return False
        of_source = criterion.startswith("source_")
        own = not of_source and criterion not in READS_SOURCE and criterion in self.run.higher_is_better
        if not setting.target and (own or criterion in READS_SOURCE):
            return True
        reads_source = of_source or own or READS_SOURCE.get(criterion, False)
        return not setting.source and reads_source

    def never_had(self, criterion: str) -> bool:
        """Whether the criterion is a validator that the run was not given, see ``run.validators``."""
        if criterion in ("last", "oracle", LEFT_OUT) or criterion in self.criteria or self.run.averaged:
            return False
        return criterion not in self.run.higher_is_better

    def scores(self, criterion: str) -> dict[str, float] | None:
        """The test metric of each target at the checkpoint that the criterion chooses, as a fraction.

        ``last`` is the final weights. So is every criterion if these are an average that no validation has seen. A
        validator chooses the validation with its best score, the earliest of equals. ``oracle`` chooses the one with
        the best value of the run's own metric on the target's validation split. Scores that are not finite are never
        chosen.

        Returns:
            Fractions by target, or ``None`` if the run does not have the scores of the criterion.
        """
        if criterion == "last" or self.run.averaged:
            return self._targets(self.run.test)
        scored: list[Scored] = []
        for one in self.run.history:
            if criterion == "oracle":
                score, up = one.oracle.get(self.run.metric), True
            else:
                score, up = one.validators.get(criterion), self.run.higher_is_better.get(criterion, True)
            if score is not None and math.isfinite(score):
                scored.append((score if up else -score, one))
        return self.best(scored)

    def best(self, scored: Sequence[Scored]) -> dict[str, float] | None:
        """The test metric of each target at the validation with the highest score, the earliest of equals."""
        return self._targets(max(scored, key=lambda pair: pair[0])[1].test) if scored else None

    def left_out_scores(self, helpers: Mapping[str, "CellResult"]) -> list[Scored]:
        """Scores the validations at which all helpers were validated too, by the mean over the helpers.

        Args:
            helpers: by source, the run that trained without it and has it among its targets. It is scored on it.
        """
        scored = []
        for one in self.run.history:
            found = [helper.score_at(one.step, name) for name, helper in helpers.items()]
            if found and all(map(math.isfinite, found)):
                scored.append((fmean(found), one))
        return scored

    def score_at(self, step: int, domain: str) -> float:
        """The metric on a domain's test split at the validation after ``step`` steps; nan if there is none."""
        tests = [one.test for one in self.run.history if one.step == step]
        return tests[-1].get(domain, {}).get(self.metric, math.nan) if tests else math.nan

    def _targets(self, test: Metrics) -> dict[str, float] | None:
        scores = {name: test.get(name, {}).get(self.metric, math.nan) for name in self.run.target}
        return scores if all(math.isfinite(score) for score in scores.values()) else None
