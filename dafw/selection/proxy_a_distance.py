"""The proxy A-distance of the domains in the features, as a diagnostic of a run."""

import torch
from torch import Tensor

from dafw.metrics.domain_distance import proxy_a_distance
from dafw.selection.base import Evidence, Validator, precise

ROWS = 500
"""Samples of each domain that are compared at most, so that a validation stays quick."""


class ProxyADistance(Validator):
    """How well a linear classifier tells held-out source samples from target samples by their features.

    2 says that it makes no mistake, 0 that the domains look the same to it; see
    :func:`~dafw.metrics.domain_distance.proxy_a_distance`. It tells what an alignment does, and is a poor choice of a
    checkpoint: features that are all alike have no distance. The draw of the samples is the same at each validation.
    """

    name = "proxy_a_distance"
    higher_is_better = False
    needs_source = True
    reference = "Ben-David et al., Analysis of Representations for Domain Adaptation, NIPS 2006"

    def __call__(self, evidence: Evidence) -> Tensor:
        """The distance of features (m, d) and (t, d); nan for fewer than 4 samples or values that are not finite."""
        source, target = precise(evidence.source_features), precise(evidence.target_features)
        try:
            found = proxy_a_distance(source, target, seed=0, most=ROWS)
        except ValueError:
            found = float("nan")
        return torch.tensor(found, dtype=torch.float64, device=source.device)
