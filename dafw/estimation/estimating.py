"""All estimates of one model's accuracy on one target."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dafw.errors import UserError
from dafw.estimation.agreement import Agreement
from dafw.estimation.agreement_on_the_line import AgreementOnTheLine, PairwiseAgreementOnTheLine
from dafw.estimation.average_confidence import AverageConfidence
from dafw.estimation.base import Estimate, Estimator, Integers, Observed, Scores, array, drawn, with_range
from dafw.estimation.difference_of_confidences import DifferenceOfConfidences
from dafw.estimation.source_evidence import SourceEvidence
from dafw.estimation.thresholded_confidence import ThresholdedEntropy, ThresholdedMaximum

#: The estimators by name.
ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator
    for estimator in (
        AverageConfidence,
        ThresholdedMaximum,
        ThresholdedEntropy,
        DifferenceOfConfidences,
        Agreement,
        AgreementOnTheLine,
        PairwiseAgreementOnTheLine,
    )
}


class OtherModel(NamedTuple):
    """Another model that predicted the same target samples.

    Attributes:
        logits: (n, K), of these samples.
        evidence: what its run keeps of the source; ``None`` if it keeps nothing.
    """

    logits: Any
    evidence: SourceEvidence | None = None


def estimates(
    evidence: SourceEvidence, logits: Any, *, others: Sequence[OtherModel] = (), seed: int = 0
) -> dict[str, Estimate]:
    """The accuracy of a model on target samples, estimated without their labels.

    Args:
        evidence: what the model's run keeps of the source.
        logits: (n, K), of the target samples: a tensor or an array.
        others: other models that predicted the same samples in the same order. The estimators of agreement need them.
        seed: of the bootstrap.

    Returns:
        By the estimator's name its estimate, of those estimators that have as many models as they need. All are nan
        if a logit is not finite.

    Raises:
        UserError: without a source or target sample, for a single class, or for another number of classes.
    """
    given = array(logits)
    check(evidence, given)
    for other in others:
        if array(other.logits).shape != given.shape:
            raise UserError(f"another model predicts {array(other.logits).shape} scores, and this one {given.shape}")
    present = [kind() for kind in ESTIMATORS.values() if kind.needs_models <= len(others)]
    rows = [given, array(evidence.logits), *(array(one.logits) for one in others)]
    if not all(np.isfinite(one).all() for one in rows):
        return {one.name: Estimate(np.nan, np.nan, np.nan) for one in present}
    observed = observe(evidence, given, others)
    anew = [[one.value(again) for one in present] for again in drawn(observed, seed)]
    return {
        one.name: with_range(one.value(observed), replicates, len(given))
        for one, replicates in zip(present, zip(*anew, strict=True), strict=True)
    }


def check(evidence: SourceEvidence, logits: Any) -> None:
    """Refuses what no estimate can be made of.

    Raises:
        UserError: see :func:`estimates`.
    """
    check_evidence(evidence)
    if logits.ndim != 2:
        raise UserError(f"an estimate needs class scores (n, K), and these are {tuple(logits.shape)}")
    if not len(logits):
        raise UserError("an estimate needs images, and there is none")
    if logits.shape[1] != evidence.num_classes:
        raise UserError(f"the model has {logits.shape[1]} classes, and its source samples {evidence.num_classes}")


def check_evidence(evidence: SourceEvidence) -> None:
    """Refuses what a run keeps if no estimate can be made of it.

    Raises:
        UserError: without a source sample, or for a single class.
    """
    if not len(evidence):
        raise UserError("an estimate needs held-out source samples, and this run keeps none")
    if evidence.num_classes < 2:
        raise UserError("an estimate needs two classes or more: a model of one class is always certain")


def observe(evidence: SourceEvidence, logits: Any, others: Sequence[OtherModel] = ()) -> Observed:
    """What the estimators see."""
    alone = Observed.of(evidence.logits, evidence.labels, logits)
    if not others:
        return alone
    predicted = np.stack([Scores.of(other.logits).prediction for other in others])
    shared, labels = _shared([evidence, *(other.evidence for other in others)])
    return replace(alone, others=predicted, shared=shared, shared_labels=labels)


def _shared(kept: Sequence[SourceEvidence | None]) -> tuple[Integers, Integers]:
    """The predictions (M, c) and labels (c,) of the samples that all of M runs keep."""
    present = [one for one in kept if one is not None]
    if len(present) < len(kept):
        return np.empty((len(kept), 0), np.int64), np.empty(0, np.int64)
    common = present[0].samples
    for one in present[1:]:
        common = np.intersect1d(common, one.samples)
    rows = []
    for one in present:
        order = np.argsort(one.samples, kind="stable")
        rows.append(order[np.searchsorted(one.samples[order], common)] if len(common) else order[:0])
    predictions = [one.logits[row].argmax(1) for one, row in zip(present, rows, strict=True)]
    return np.stack(predictions).astype(np.int64), present[0].labels[rows[0]]
