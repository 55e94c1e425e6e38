"""Average thresholded confidence."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from dafw.estimation.base import Estimator, Floats, Observed, Scores


class ThresholdedConfidence(Estimator):
    """ATC: the share of target samples whose score reaches a threshold that is right on the source.

    The threshold t solves, over held-out source samples, mean_i [s(x_i) < t] = mean_i [argmax_k p_k(x_i) != y_i]
    (the paper's first equation). The error on the target is then estimated as mean_i [s(x_i) < t] (its second one).
    Samples with a score of exactly t count in part, by the share that makes the first equation hold: a confident
    network gives many samples the score 1.
    """

    reference: ClassVar[str] = "Garg et al., ICLR 2022, https://arxiv.org/abs/2201.04234"

    @abstractmethod
    def score(self, scores: Scores) -> Floats:
        """The score s of n samples, (n,)."""

    def value(self, observed: Observed) -> float:
        """The share of target samples that reach the threshold; nan without a source sample."""
        source, target = self.score(observed.source), self.score(observed.target)
        wrong = int((~observed.correct).sum())
        if not len(source):
            return np.nan
        if wrong == len(source):
            return 0.0
        threshold = np.partition(source, wrong)[wrong]
        tied = float((source == threshold).mean())
        part = (observed.correct.mean() - (source > threshold).mean()) / tied
        return float((target > threshold).mean() + part * (target == threshold).mean())


class ThresholdedMaximum(ThresholdedConfidence):
    """ATC-MC: :class:`ThresholdedConfidence` of the largest probability, s = max_k p_k."""

    name: ClassVar[str] = "atc_mc"
    title: ClassVar[str] = "ATC, maximum confidence"

    def score(self, scores: Scores) -> Floats:
        """The largest probabilities, (n,)."""
        return scores.confidence


class ThresholdedEntropy(ThresholdedConfidence):
    """ATC-NE: :class:`ThresholdedConfidence` of the negative entropy, s = sum_k p_k log p_k."""

    name: ClassVar[str] = "atc_ne"
    title: ClassVar[str] = "ATC, negative entropy"

    def score(self, scores: Scores) -> Floats:
        """The negative entropies, (n,)."""
        return scores.negative_entropy
