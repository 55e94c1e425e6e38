import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dafw.losses.mmd import (
    cyclic_mmd,
    doubling_kernels,
    gaussian_kernels,
    linear_discrepancy,
    mean_discrepancy,
    mk_mmd,
    squared_distances,
    subset_cyclic_mmd,
    subset_mmd,
)
from dafw.testing.steps import Operations

MULTIPLIERS = (0.125, 0.25, 0.5, 1.0, 2.0)


def features(n: int = 6, m: int = 6, shift: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (n, m)]
    return draw[0], draw[1] * 1.5 + shift


def kernel_matrix(source: Tensor, target: Tensor, multipliers: tuple[float, ...] = MULTIPLIERS) -> NDArray[Any]:
    """Sum of the kernels, entry by entry."""
    x = np.concatenate([source.numpy(), target.numpy()])
    d = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return np.asarray(sum(np.exp(-d / (2 * a * d.mean())) for a in multipliers))


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8), (2, 2)])
def test_quadratic_estimators_term_by_term(n: int, m: int) -> None:
    source, target = features(n, m)
    k = kernel_matrix(source, target) / len(MULTIPLIERS)
    s, t = range(n), range(n, n + m)
    across = np.mean([k[i, j] for i in s for j in t])
    unbiased = sum(np.mean([k[i, j] for i in d for j in d if i != j]) for d in (s, t)) - 2 * across
    biased = sum(np.mean([k[i, j] for i in d for j in d]) for d in (s, t)) - 2 * across
    assert mk_mmd(source, target).item() == pytest.approx(unbiased, rel=1e-10)
    assert mk_mmd(source, target, estimator="biased").item() == pytest.approx(biased, rel=1e-10)


@pytest.mark.parametrize("n", [6, 7])
def test_linear_estimator_pair_by_pair(n: int) -> None:
    source, target = features(n, n)
    k = kernel_matrix(source, target) / len(MULTIPLIERS)
    terms = [
        k[i, i + 1] + k[n + i, n + i + 1] - k[i, n + i + 1] - k[i + 1, n + i] for i in range(0, n - 1, 2)
    ]  # fmt: skip
    assert mk_mmd(source, target, linear=True).item() == pytest.approx(np.mean(terms), rel=1e-10)


def test_multipliers() -> None:
    source, target = features()
    expected = mean_discrepancy(torch.tensor(kernel_matrix(source, target, (3.0,))), 6)
    torch.testing.assert_close(mk_mmd(source, target, multipliers=[3.0]), expected)


def test_tllib_is_the_unbiased_sum_plus_a_constant() -> None:
    source, target = features()
    expected = len(MULTIPLIERS) * mk_mmd(source, target) + 2 / 5
    torch.testing.assert_close(mk_mmd(source, target, estimator="tllib"), expected)


def test_invariances() -> None:
    source, target = features()
    value = mk_mmd(source, target)
    torch.testing.assert_close(mk_mmd(source[torch.randperm(6)], target[torch.randperm(6)]), value)
    torch.testing.assert_close(mk_mmd(target, source), value)
    torch.testing.assert_close(mk_mmd(source * 7 + 100, target * 7 + 100), value)
    assert mk_mmd(*features(shift=3.0)) > value


def test_equal_samples() -> None:
    source = features()[0]
    assert mk_mmd(source, source, estimator="biased").item() == pytest.approx(0, abs=1e-12)
    assert mk_mmd(source, source) < 0  # unbiased: zero on average over samples, below it for twice the same
    assert mk_mmd(source, source, linear=True).item() == pytest.approx(0, abs=1e-12)


def test_gradient_leaves_the_bandwidth_alone() -> None:
    source, target = features()
    source.requires_grad_(True)
    mk_mmd(source, target).backward()
    distances = squared_distances(torch.cat([source, target]).detach())
    bandwidth, at = distances.mean(), source.detach().clone().requires_grad_(True)
    d = squared_distances(torch.cat([at, target]))
    kernels = torch.stack([torch.exp(-d / (2 * a * bandwidth)) for a in MULTIPLIERS]).mean(0)
    mean_discrepancy(kernels, 6).backward()
    torch.testing.assert_close(source.grad, at.grad)


def test_far_from_the_origin_single_precision_is_enough() -> None:
    source, target = features()
    expected = mk_mmd(source, target).float()
    torch.testing.assert_close(mk_mmd(source.float() + 300, target.float() + 300), expected, rtol=1e-2, atol=1e-4)


def test_autocast_does_not_reach_the_distances() -> None:
    source, target = (x.float() for x in features())
    expected = mk_mmd(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mk_mmd(source, target), expected)
        assert mk_mmd(source.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_constant_features_are_finite() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    value = mk_mmd(x, torch.ones(4, 3))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_building_blocks() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(squared_distances(x), torch.cdist(x, x) ** 2)
    kernels = gaussian_kernels(squared_distances(x), [1.0, 2.0])
    torch.testing.assert_close(kernels.diagonal(), torch.full((5,), 2.0, dtype=torch.float64))
    assert linear_discrepancy(torch.ones(6, 6)).item() == 0


def test_what_cannot_be_estimated() -> None:
    source, target = features(6, 5)
    with pytest.raises(ValueError, match="at least two rows of each domain, not 1 and 5"):
        mk_mmd(source[:1], target)
    for arguments in ({"linear": True}, {"estimator": "tllib"}):
        with pytest.raises(ValueError, match="as many source as target rows, not 6 and 5"):
            mk_mmd(source, target, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no biased estimator in linear time"):
        mk_mmd(source[:5], target, estimator="biased", linear=True)


def test_cyclic_estimator_pair_by_pair() -> None:
    for n, m in ((5, 5), (4, 7), (7, 4)):
        source, target = features(n, m)
        x = torch.cat([source, target])
        d = torch.cdist(x, x) ** 2
        bandwidth = d.sum() / ((n + m) * (n + m - 1)) / 4
        k = sum((torch.exp(-d / (bandwidth * 2**q)) for q in range(5)), torch.zeros_like(d))
        terms = []
        for step in range(max(n, m)):
            i, j, s, t = step % n, (step + 1) % n, n + step % m, n + (step + 1) % m
            terms.append(k[i, j] + k[s, t] - k[i, t] - k[j, s])
        torch.testing.assert_close(cyclic_mmd(source, target), torch.stack(terms).mean())
    with pytest.raises(ValueError, match="at least two rows of each domain, not 5 and 1"):
        cyclic_mmd(*features(5, 1))


def test_cyclic_estimator_is_symmetric_zero_for_equal_samples_and_unbiased() -> None:
    source, target = features(4, 4)
    torch.testing.assert_close(cyclic_mmd(source, target), cyclic_mmd(target, source))
    assert cyclic_mmd(source, source).item() == pytest.approx(0, abs=1e-12)
    orders = [list(order) for order in itertools.permutations(range(4))]
    values = [cyclic_mmd(source[one], target[other]).item() for one in orders for other in orders]
    kernels = doubling_kernels(squared_distances(torch.cat([source, target])))
    assert np.mean(values) == pytest.approx(mean_discrepancy(kernels, 4).item(), rel=1e-10)


def subsets() -> tuple[Tensor, Tensor]:
    """Three pairs: a usual one, one row against two, an empty one."""
    one = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    other = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    return one, other


@pytest.mark.parametrize("options", [{}, {"count": 1, "bandwidth": 1.68}])
def test_subsets_are_mmd_of_the_rows_they_name(options: dict[str, Any]) -> None:
    source, target = features(6, 5)
    one, other = subsets()
    kernels = doubling_kernels(squared_distances(torch.cat([source, target])), **options)
    found = subset_mmd(source, target, one, other, **options)
    for k in range(2):
        rows = torch.cat([one[k], other[k]]).nonzero().squeeze(1)
        expected = mean_discrepancy(kernels[rows][:, rows], int(one[k].sum()), estimator="biased")
        torch.testing.assert_close(found[k], expected)
    assert found[2] == 0
    equal = subset_mmd(source, source, one, one, **options)
    torch.testing.assert_close(equal, torch.zeros_like(equal))


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("options", [{}, {"count": 1, "bandwidth": 1.68}])
def test_subsets_in_linear_time_equal_a_loop(options: dict[str, Any], offset: bool) -> None:
    source, target = features(6, 5)
    one, other = subsets()
    found = subset_cyclic_mmd(source, target, one, other, offset=offset, **options)
    for k in range(2):
        alone = [torch.ones(1, int(each[k].sum()), dtype=torch.bool) for each in (one, other)]
        s, t = source[one[k]], target[other[k]]
        kernels, n, m = doubling_kernels(squared_distances(torch.cat([s, t])), **options), len(s), len(t)
        value = torch.zeros((), dtype=torch.float64)
        for step in range(n):
            i, j = step % n, (step + 1) % n
            p, q = (m + i, m + j) if offset else (n + step % m, n + (step + 1) % m)
            value += kernels[i, j] + kernels[p, q] - kernels[i, q] - kernels[j, p]
        torch.testing.assert_close(found[k], value / (n + m))
        torch.testing.assert_close(subset_cyclic_mmd(s, t, *alone, offset=offset, **options)[0], found[k])
    assert found[2] == 0
    assert subset_cyclic_mmd(source, target, ~one & False, ~other | True, offset=offset, **options).tolist() == [0] * 3


@pytest.mark.parametrize("loss", [subset_mmd, subset_cyclic_mmd])
def test_subsets_read_nothing_from_the_device_and_empty_ones_have_a_gradient(loss: Any) -> None:
    source, target = (x.requires_grad_(True) for x in features(6, 5))
    one, other = subsets()
    with Operations() as operations:
        loss(source, target, one, other).sum().backward()
    assert not operations.host_reads
    gradients = source.grad, target.grad
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    source.grad = None
    loss(source, target, one & False, other).sum().backward()
    assert source.grad is not None
    assert source.grad.abs().max() == 0
