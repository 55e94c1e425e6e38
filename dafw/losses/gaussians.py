"""Distances of features from class-conditional Gaussians, and a loss that compares them."""

import torch
from torch import Tensor

from dafw.nn.precision import full_precision


def whitening(covariances: Tensor, shrinkage: float) -> Tensor:
    """W with W^T W = S^-1, where S = (1 - shrinkage) Sigma + shrinkage v I.

    v is the mean variance: the mean of the diagonals of all Sigma. So S is invertible even if a Sigma is not. If all
    Sigma are zero, S is the identity.

    Args:
        covariances: Sigma, (G, d, d), symmetric and without negative eigenvalues.
        shrinkage: from above 0 to 1. With 1, S is v I.

    Returns:
        (G, d, d), lower triangular.

    Raises:
        ValueError: a shrinkage out of range.
    """
    if not 0 < shrinkage <= 1:
        raise ValueError(f"a shrinkage is above 0 and at most 1, not {shrinkage}")
    variance = covariances.diagonal(dim1=1, dim2=2).mean()
    unit = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    shrunk = torch.lerp(covariances, variance * unit, shrinkage)
    shrunk = torch.where(variance > 0, shrunk, unit)
    lower: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), unit.expand_as(shrunk), upper=False)
    return lower


def mahalanobis(features: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """Squared Mahalanobis distances D_ic = |W_c (f_i - mu_c)|^2 = (f_i - mu_c)^T S_c^-1 (f_i - mu_c).

    Args:
        features: f, (n, d).
        means: mu, (K, d).
        whiten: W, see :func:`whitening`: (K, d, d), or (1, d, d) for all classes.

    Returns:
        (n, K), in the precision of the features, at least 32 bits.
    """
    features = full_precision(features)
    with torch.autocast(features.device.type, enabled=False):
        means, whiten = means.to(features), whiten.to(features)
        centre = means.mean(0)  # it makes the differences below those of small numbers
        rows = (features - centre) @ whiten.mT
        centres = (means - centre).view(len(whiten), -1, means.shape[1]) @ whiten.mT
        distances = torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        return distances.transpose(0, 1).reshape(len(features), -1)


def class_alignment(distances: Tensor, classes: Tensor, present: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """mean_i [log(D_i,y_i + epsilon) - log(sum_(c != y_i) D_ic + epsilon)]: near the own class, far from the others.

    Args:
        distances: D, (n, K), 0 or more.
        classes: y, (n,) int64, the class of each row.
        present: (K,) bool, which other classes count.
        epsilon: added to both, so that a row on its mean has a finite loss and gradient.

    Returns:
        A scalar; a mean over rows, so averaging over ranks gives the value of the whole batch.
    """
    own = classes[:, None] == torch.arange(distances.shape[1], device=distances.device)
    near = torch.where(own, distances, 0.0).sum(1)
    far = torch.where(own | ~present, 0.0, distances).sum(1)
    return ((near + epsilon).log() - (far + epsilon).log()).mean()
