"""Agreement on the line."""

from itertools import combinations
from statistics import NormalDist
from typing import ClassVar, NamedTuple

import numpy as np

from dafw.estimation.base import Estimator, Floats, Integers, Observed

NORMAL = NormalDist()


class Line(NamedTuple):
    """The line of agreements in probit units, target over source, with what it was fitted to.

    Attributes:
        slope: a.
        bias: b.
        pairs: the P pairs of models.
        source: (P,), the probits of their agreement on source samples.
        target: (P,), the probits of their agreement on target samples.
        accuracy: (M + 1,), the probits of each model's accuracy on source samples.
    """

    slope: float
    bias: float
    pairs: list[tuple[int, int]]
    source: Floats
    target: Floats
    accuracy: Floats


def probit(share: float, count: int) -> float:
    """The normal quantile of a share of ``count`` samples, which is kept half a sample away from 0 and 1."""
    edge = 0.5 / count
    return NORMAL.inv_cdf(min(max(share, edge), 1 - edge))


def fit_line(observed: Observed) -> Line | None:
    """Fits probit(agreement on target) = a probit(agreement on source) + b to all pairs of models by least squares.

    Returns:
        The line; ``None`` if fewer than three models share samples, or all pairs agree equally on the source.
    """
    own: Integers = observed.target.prediction
    target, source = np.concatenate([own[None], observed.others]), observed.shared
    count, n = source.shape[1], target.shape[1]
    if len(target) < 3 or not count or not n:
        return None
    pairs = list(combinations(range(len(target)), 2))
    x = np.asarray([probit(float((source[i] == source[j]).mean()), count) for i, j in pairs])
    y = np.asarray([probit(float((target[i] == target[j]).mean()), n) for i, j in pairs])
    if not np.ptp(x):
        return None
    centred = x - x.mean()
    slope = float((centred * (y - y.mean())).sum() / (centred**2).sum())
    accuracy = np.asarray([probit(float((one == observed.shared_labels).mean()), count) for one in source])
    return Line(slope, float(y.mean()) - slope * float(x.mean()), pairs, x, y, accuracy)


class AgreementOnTheLine(Estimator):
    """ALine-S: probit(accuracy on target) = a probit(accuracy on source) + b.

    Slope a and bias b are those of the line of agreements, see :func:`fit_line`: over many models agreement and
    accuracy have been seen to lie on the same line, in probit units. It needs three models, better more. The models
    should differ in how good they are; otherwise the line has no direction, which a wide range shows.
    """

    name: ClassVar[str] = "aline_s"
    title: ClassVar[str] = "agreement on the line"
    needs_models: ClassVar[int] = 2
    reference: ClassVar[str] = "Baek et al., NeurIPS 2022, https://arxiv.org/abs/2206.13089"

    def value(self, observed: Observed) -> float:
        """The point of the line at this model's accuracy on the source; nan without a line."""
        line = fit_line(observed)
        return np.nan if line is None else NORMAL.cdf(line.slope * float(line.accuracy[0]) + line.bias)


class PairwiseAgreementOnTheLine(AgreementOnTheLine):
    """ALine-D: the accuracies that fit each pair's distance from the line of agreements.

    For each pair (i, j), with A for probit accuracies and G for probit agreements:
    (A_target,i + A_target,j) / 2 = G_target,ij + a ((A_source,i + A_source,j) / 2 - G_source,ij).
    The system over all pairs is solved for A_target by least squares.
    """

    name: ClassVar[str] = "aline_d"
    title: ClassVar[str] = "agreement on the line, by pairs"

    def value(self, observed: Observed) -> float:
        """The accuracy of this model that solves the system; nan without a line."""
        line = fit_line(observed)
        if line is None:
            return np.nan
        halves = np.zeros((len(line.pairs), len(line.accuracy)))
        for row, pair in enumerate(line.pairs):
            halves[row, list(pair)] = 0.5
        right = line.target + line.slope * (halves @ line.accuracy - line.source)
        solved = np.linalg.lstsq(halves, right, rcond=None)[0]
        return NORMAL.cdf(float(solved[0]))
