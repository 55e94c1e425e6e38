"""How far target samples are from held-out source samples, each score beside what the source itself gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dafw.estimation.base import REPLICATES, Integers, Scores, array
from dafw.estimation.estimating import check
from dafw.estimation.source_evidence import SourceEvidence

FLOOR = 0.05
"""The share of held-out source samples below the confidence floor."""
USUAL = 0.99
"""The share of draws of held-out source samples whose score stays within the limit."""
DRAWS = 10
"""Draws of source samples whose features are compared."""
FEW = 20
"""Samples of each side that a comparison of features needs at least."""
MOST = 500
"""Samples of each side whose features are compared at most."""
TITLES = {
    "proxy_a_distance": "proxy A-distance of the features",
    "below_floor": "predictions below the source's confidence floor",
    "class_drift": "drift of the predicted classes",
}
"""The shift scores by name, in words."""


@dataclass(frozen=True)
class ShiftScore:
    """One shift score.

    Attributes:
        value: of the target samples.
        held_out: its mean over as many samples drawn from the held-out source samples.
        limit: what these draws hardly ever exceed; see :func:`shift_scores`.
    """

    value: float
    held_out: float
    limit: float

    @property
    def exceeds(self) -> bool:
        """Whether held-out source samples would hardly ever give such a value."""
        return self.value > self.limit


def shift_scores(
    evidence: SourceEvidence, logits: Any, features: Any = None, *, seed: int = 0
) -> dict[str, ShiftScore]:
    """How far target samples are from the source, by name, see :data:`TITLES`.

    - ``proxy_a_distance``: of the features of at most :data:`MOST` target samples and as many source samples, see
      :func:`dafw.metrics.proxy_a_distance`; the mean over :data:`DRAWS` draws. Its limit is the highest of as many
      distances between two draws of source samples. It is left out without features, with fewer than :data:`FEW`
      samples of a side, or if a feature is not finite.
    - ``below_floor``: the share of predictions whose confidence is below the source's floor, which is the confidence
      that 5 % of the held-out source samples are below.
    - ``class_drift``: the total variation distance between the shares of the predicted classes, 0 to 1.

    The limit of the last two is what 99 of 100 draws of held-out source samples stay within.

    Args:
        evidence: what the model's run keeps of the source.
        logits: (n, K), of the target samples.
        features: (f, d), of the same samples or of some of them.
        seed: of the draws.

    Raises:
        UserError: see :func:`~dafw.estimation.estimates`.
    """
    given = array(logits)
    check(evidence, given)
    if not np.isfinite(given).all() or not np.isfinite(evidence.logits).all():
        return {}
    source, target = Scores.of(evidence.logits), Scores.of(given)
    rng, k = np.random.default_rng(seed), evidence.num_classes
    floors, drifts = [], []
    for _ in range(REPLICATES):
        like_source, like_target = (source[rng.integers(0, len(source), size)] for size in (len(source), len(target)))
        floors.append(below_floor(like_source, like_target))
        drifts.append(class_drift(like_source.prediction, like_target.prediction, k))
    found = {} if features is None else feature_distance(evidence, array(features), rng)
    found["below_floor"] = _score(below_floor(source, target), floors)
    found["class_drift"] = _score(class_drift(source.prediction, target.prediction, k), drifts)
    return found


def _score(value: float, draws: list[float]) -> ShiftScore:
    return ShiftScore(value, float(np.mean(draws)), float(np.quantile(draws, USUAL)))


def below_floor(source: Scores, target: Scores) -> float:
    """The share of the target's confidences below the quantile :data:`FLOOR` of the source's."""
    floor = np.quantile(source.confidence, FLOOR, method="lower")
    return float((target.confidence < floor).mean())


def class_drift(source: Integers, target: Integers, num_classes: int) -> float:
    """The total variation distance between the shares of the classes that are predicted for two sets of samples."""
    one, other = (np.bincount(each, minlength=num_classes) / len(each) for each in (source, target))
    return float(np.abs(one - other).sum() / 2)


def feature_distance(evidence: SourceEvidence, target: Any, rng: np.random.Generator) -> dict[str, ShiftScore]:
    """The proxy A-distance by its name; nothing where it does not exist."""
    source = array(evidence.features)
    count = min(len(source) // 2, len(target), MOST)
    if (
        count < FEW
        or source.shape[1:] != target.shape[1:]
        or not (np.isfinite(source).all() and np.isfinite(target).all())
    ):
        return {}
    import torch

    from dafw.metrics.domain_distance import proxy_a_distance

    values, held_out = [], []
    for seed in range(DRAWS):
        order = rng.permutation(len(source))
        here, there = torch.from_numpy(source[order[:count]]), torch.from_numpy(source[order[count : 2 * count]])
        drawn = torch.from_numpy(target[rng.permutation(len(target))[:count]])
        values.append(proxy_a_distance(here, drawn, seed=seed))
        held_out.append(proxy_a_distance(here, there, seed=seed))
    return {"proxy_a_distance": ShiftScore(float(np.mean(values)), float(np.mean(held_out)), max(held_out))}


def warning(scores: Mapping[str, ShiftScore]) -> str | None:
    """A sentence that says what to do if some scores exceed what held-out source samples give; else ``None``."""
    said: dict[str, Callable[[ShiftScore], str]] = {
        "proxy_a_distance": lambda one: f"their features (proxy A-distance {one.value:.2f}, source {one.held_out:.2f})",
        "below_floor": lambda one: (
            f"the confidence of the predictions ({100 * one.value:.0f} % below the source's floor, "
            f"source {100 * one.held_out:.0f} %)"
        ),
        "class_drift": lambda one: f"the predicted classes (drift {one.value:.2f}, source {one.held_out:.2f})",
    }
    found = [tell(scores[name]) for name, tell in said.items() if name in scores and scores[name].exceeds]
    if not found:
        return None
    listed = f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else found[0]
    return (
        f"these images differ from the held-out source images in {listed}: label about 100 of them and count the "
        "mistakes before you rely on the predictions or on an estimate"
    )
