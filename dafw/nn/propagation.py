"""Predictions that follow those of their neighbours in the same batch."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.precision import full_precision

Affinity = Literal["rbf", "knn", "linear"]


def affinities(features: Tensor, kind: Affinity = "rbf", neighbours: int = 5, *, symmetric: bool = False) -> Tensor:
    """How much each row is drawn to each other row, from the Euclidean distances d of the normalised features.

    ``rbf`` is exp(-d^2 / (2 s^2)), where s is the mean distance of a row from its k-th neighbour. The row itself counts
    as the first of these, as in the authors' code. ``knn`` is 1 for the k nearest other rows. ``linear`` is the cosine.

    Args:
        features: (n, d).
        kind: see above.
        neighbours: k.
        symmetric: the mean of the matrix and its transpose.

    Returns:
        (n, n).
    """
    units = F.normalize(full_precision(features), dim=1)
    with torch.autocast(features.device.type, enabled=False):
        if kind == "linear":
            found = units @ units.T
        else:
            squares = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist").square()
            found = _rbf(squares, neighbours) if kind == "rbf" else _nearest(squares, neighbours)
    return (found + found.T) / 2 if symmetric else found


def _rbf(squares: Tensor, neighbours: int) -> Tensor:
    nearest = squares.sqrt().topk(min(neighbours, len(squares)), largest=False).values[:, -1].mean()
    return (-squares / (2 * nearest.square()).clamp_min(torch.finfo(squares.dtype).tiny)).exp()


def _nearest(squares: Tensor, neighbours: int) -> Tensor:
    itself = torch.eye(len(squares), dtype=torch.bool, device=squares.device)
    chosen = squares.masked_fill(itself, -1.0).topk(min(neighbours + 1, len(squares)), largest=False).indices[:, 1:]
    return torch.zeros_like(squares).scatter_(1, chosen, 1.0)


def propagate(logits: Tensor, weights: Tensor, *, rounds: int = 100, tolerance: float = 1e-8) -> tuple[Tensor, Tensor]:
    """Rounds of q <- softmax(log p + W q), from q = p = softmax(logits), until the energy stands still.

    Boudiaf et al., Parameter-free Online Test-time Adaptation (LAME), CVPR 2022, https://arxiv.org/abs/2201.05718. The
    energy after a round is -sum log p . q - sum (W q before it) . q + sum q . log q. From the third round on the rounds
    end with a relative change of at most ``tolerance``. All rounds are computed, and those after the end change
    nothing, so that the host need not wait for the device.

    Args:
        logits: (n, K).
        weights: W (n, n).
        rounds: most rounds.
        tolerance: see above.

    Returns:
        log q (n, K), and the number of rounds until the end, a scalar on the device.
    """
    log_p = (full_precision(logits).softmax(1) + 1e-10).log()
    log_q, energy = log_p.log_softmax(1), log_p.new_full((), torch.inf)
    done = torch.zeros((), dtype=torch.bool, device=logits.device)
    count = torch.zeros((), dtype=torch.int64, device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        for number in range(rounds):
            pull = weights.to(log_p) @ log_q.exp()
            after = (log_p + pull).log_softmax(1)
            q = after.exp()
            new = (q * (q.clamp_min(1e-20).log() - log_p - pull)).sum()
            log_q, count = torch.where(done, log_q, after), count + ~done
            still = (new - energy).abs() <= tolerance * energy.abs()
            done = done | (still if number > 1 else torch.zeros_like(done))
            energy = new
    return log_q, count
