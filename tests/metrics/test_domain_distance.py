"""The proxy A-distance of domains whose distance is known."""

import pytest
import torch
from torch import Tensor

from dafw.metrics import proxy_a_distance


def cloud(count: int, shift: float, seed: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_same_distribution_is_at_distance_0() -> None:
    distances = [proxy_a_distance(cloud(300, 0, 1), cloud(500, 0, 2), seed=seed) for seed in range(5)]
    assert abs(sum(distances) / 5) < 0.2


def test_domains_that_do_not_overlap_are_at_distance_2() -> None:
    assert proxy_a_distance(cloud(60, 0, 1), cloud(90, 9, 2), seed=0) == 2.0


def test_a_known_error_gives_the_distance() -> None:
    """Two of the four values that a domain takes are the other's as well: the best error is 1/4, the distance 1."""
    source, target = (torch.tensor([[float(i % 2 or way)] for i in range(4000)]) for way in (-9, 9))
    assert proxy_a_distance(source, target, seed=0) == pytest.approx(1.0, abs=0.1)


def test_it_grows_with_the_shift_and_does_not_depend_on_the_scale() -> None:
    source = cloud(400, 0, 1)
    near, far = (proxy_a_distance(source, cloud(400, shift, 2), seed=3) for shift in (0.3, 0.8))
    assert near < far
    wide = torch.tensor([1e-4, 1.0, 1e4, 1.0, 1.0])
    assert proxy_a_distance(source * wide, cloud(400, 0.8, 2) * wide, seed=3) == pytest.approx(far, abs=1e-9)


def test_the_same_seed_gives_the_same_number_and_rows_are_bounded() -> None:
    source, target = cloud(500, 0, 1), cloud(500, 0.4, 2)
    assert proxy_a_distance(source, target, seed=1, most=80) == proxy_a_distance(source, target, seed=1, most=80)
    numbers = {proxy_a_distance(source, target, seed=seed, most=80) for seed in range(6)}
    assert len(numbers) > 1


def test_more_features_than_rows_without_regularisation() -> None:
    assert proxy_a_distance(cloud(20, 0, 1, 50), cloud(20, 9, 2, 50), seed=0, regularisation=0) == 2.0


def test_a_constant_feature_is_harmless() -> None:
    source, target = cloud(50, 0, 1), cloud(50, 9, 2)
    source[:, 0] = target[:, 0] = 3.0
    assert proxy_a_distance(source, target, seed=0) == 2.0


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), "shapes"),
        (torch.zeros(5), torch.zeros(5), "shapes"),
        (torch.zeros(3, 2), torch.zeros(9, 2), "at least 4"),
        (torch.zeros(5, 2), torch.full((5, 2), float("nan")), "finite"),
    ],
)
def test_refusals(source: Tensor, target: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        proxy_a_distance(source, target, seed=0)
