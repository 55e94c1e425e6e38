from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.coral import coral, mean_and_covariance

Loss = Callable[[Tensor, Tensor], Tensor]


def features(n: int = 6, m: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    draw = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (n, m)]
    return draw[0], draw[1] * 1.5 + 0.5


def test_against_numpy() -> None:
    source, target = features()
    difference = np.cov(source.numpy().T) - np.cov(target.numpy().T)
    assert coral(source, target).item() == pytest.approx((difference**2).sum() / (4 * 4**2), rel=1e-12)
    means = source.numpy().mean(0) - target.numpy().mean(0)
    expected = (means**2).mean() + (difference**2).mean()
    assert mean_and_covariance(source, target).item() == pytest.approx(expected, rel=1e-12)


def test_invariances() -> None:
    source, target = features()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    for loss in (coral, mean_and_covariance):
        value = loss(source, target)
        torch.testing.assert_close(loss(source[torch.randperm(6)], target[torch.randperm(9)]), value)
        torch.testing.assert_close(loss(target, source), value)
        torch.testing.assert_close(loss(source @ rotation, target @ rotation), value)
        assert loss(source, source).item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(coral(source + 5, target), coral(source, target))
    assert mean_and_covariance(source + 5, target) > mean_and_covariance(source, target)


@pytest.mark.parametrize("loss", [coral, mean_and_covariance])
def test_gradient(loss: Loss) -> None:
    source, target = (x.requires_grad_(True) for x in features(3, 4))
    assert torch.autograd.gradcheck(loss, (source, target))


@pytest.mark.parametrize("loss", [coral, mean_and_covariance])
def test_autocast_does_not_reach_the_covariance(loss: Loss) -> None:
    source, target = (x.float() for x in features())
    expected = loss(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(source, target), expected)
        assert loss(source.bfloat16(), target.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", [coral, mean_and_covariance])
def test_one_row_has_no_covariance(loss: Loss) -> None:
    source, target = features()
    with pytest.raises(ValueError, match="at least two rows, not 1"):
        loss(source, target[:1])
