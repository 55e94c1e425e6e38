"""Distances from Gaussians of classes, and the loss that compares them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.gaussians import class_alignment, mahalanobis, whitening


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(groups: int, width: int = 4) -> Tensor:
    roots = normal(groups, width, width)
    return roots @ roots.mT


@pytest.mark.parametrize("groups", [1, 3])
def test_distances_are_those_of_the_inverse(groups: int) -> None:
    features, means, sigma = normal(5, 4), normal(3, 4, seed=1), covariances(groups)
    found = mahalanobis(features, means, whitening(sigma, 0.2))
    variance = float(np.mean([np.trace(one) / 4 for one in sigma.numpy()]))
    for row in range(5):
        for label in range(3):
            apart = (features[row] - means[label]).numpy()
            shrunk = 0.8 * sigma[label % groups].numpy() + 0.2 * variance * np.eye(4)
            assert found[row, label].item() == pytest.approx(apart @ np.linalg.inv(shrunk) @ apart, rel=1e-9)


def test_an_identity_gives_euclidean_distances() -> None:
    features, means = normal(5, 4), normal(3, 4, seed=1)
    found = mahalanobis(features, means, whitening(torch.eye(4, dtype=torch.float64)[None], 0.01))
    torch.testing.assert_close(found, (features[:, None] - means).square().sum(2))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_covariance_without_full_rank_is_shrunk(groups: int) -> None:
    """So is one of a class without a sample; without any variance distances are Euclidean."""
    sigma = torch.zeros(groups, 4, 4)
    sigma[-1, 0, 0] = 2.0
    features = normal(5, 4).float().requires_grad_(True)
    distances = mahalanobis(features, torch.zeros(3, 4), whitening(sigma, 0.01))
    class_alignment(distances, torch.arange(5) % 3, torch.ones(3, dtype=torch.bool)).backward()
    assert distances.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert torch.equal(whitening(torch.zeros(1, 4, 4), 0.01), torch.eye(4)[None])


def test_a_shrinkage_out_of_range_is_refused() -> None:
    for shrinkage in (0.0, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            whitening(covariances(1), shrinkage)


def test_loss_row_by_row_and_classes_that_are_absent() -> None:
    distances, classes = normal(5, 4).square(), torch.tensor([0, 1, 2, 0, 3])
    present = torch.tensor([True, True, False, True])
    expected = []
    for row, own in zip(distances.tolist(), classes.tolist(), strict=True):
        others = sum(row[label] for label in (0, 1, 3) if label != own)
        expected.append(np.log(row[own] + 1e-6) - np.log(others + 1e-6))
    assert class_alignment(distances, classes, present).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_loss_falls_towards_the_own_mean_and_is_finite_there() -> None:
    means, whiten, every = 3 * normal(3, 4, seed=1), whitening(covariances(1), 0.1), torch.ones(3, dtype=torch.bool)
    start = normal(1, 4)
    losses = []
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        features = torch.lerp(start, means[1:2], share).requires_grad_(True)
        loss = class_alignment(mahalanobis(features, means, whiten), torch.tensor([1]), every)
        (gradient,) = torch.autograd.grad(loss, features)
        assert gradient.isfinite().all()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert np.isfinite(losses).all()


def test_precision() -> None:
    features, means, whiten = normal(5, 4).float(), normal(3, 4, seed=1).float(), whitening(covariances(1), 0.1).float()
    plain = mahalanobis(features, means, whiten)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mahalanobis(features, means, whiten), plain)
    assert mahalanobis(features.bfloat16(), means, whiten).dtype == torch.float32
