"""Losses against values of DCAN's authors, see tests/golden/dcan/README.md."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor

from dafw.losses.entropy import mean_entropy
from dafw.losses.mmd import (
    cyclic_mmd,
    doubling_kernels,
    mean_discrepancy,
    squared_distances,
    subset_cyclic_mmd,
    subset_mmd,
)
from dafw.optim.schedules import InverseDecay

SINGLE: dict[str, Any] = {"count": 1, "bandwidth": 1.68}


def close(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("dcan/mmd.npz")


def rows(arrays: dict[str, NDArray[Any]], name: str) -> Tensor:
    """``a``: all rows; ``a3``: the first three."""
    found = torch.tensor(arrays[name[0]])
    return found[: int(name[1:])] if name[1:] else found


def test_kernels(arrays: dict[str, NDArray[Any]]) -> None:
    distances = squared_distances(torch.cat([rows(arrays, "a"), rows(arrays, "b")]))
    close(doubling_kernels(distances), arrays["kernel_multi"])
    close(doubling_kernels(distances, **SINGLE), arrays["kernel_single"])


def test_linear_time(arrays: dict[str, NDArray[Any]]) -> None:
    a, b = (rows(arrays, name).requires_grad_(True) for name in "ab")
    close(cyclic_mmd(a, b, **SINGLE), arrays["mmd_single"])
    value = cyclic_mmd(a, b)
    close(value, arrays["mmd_multi"])
    value.backward()
    for x, key in ((a, "grad_a"), (b, "grad_b")):
        assert x.grad is not None
        close(x.grad, arrays[key])


def test_between_subsets(arrays: dict[str, NDArray[Any]]) -> None:
    compared = 0
    for key in arrays:
        if found := re.fullmatch(r"(reg|quad_mmd)_([a-z]\d*)_([a-z]\d*)(_code|_fixed)?", key):
            form, one, other, end = found.groups()
            x, y = rows(arrays, one), rows(arrays, other)
            everything = [torch.ones(1, len(z), dtype=torch.bool) for z in (x, y)]
            if form == "quad_mmd":
                close(subset_mmd(x, y, *everything)[0], arrays[key])
                kernels = doubling_kernels(squared_distances(torch.cat([x, y])))
                close(mean_discrepancy(kernels, len(x), estimator="biased"), arrays[key])
            else:
                close(subset_cyclic_mmd(x, y, *everything, offset=end == "_code")[0], arrays[key])
            compared += 1
    assert compared >= 5


def test_entropy() -> None:
    arrays = golden("dcan/entropy.npz")
    logits = torch.tensor(arrays["p"]).clamp_min(1e-300).log()
    close(mean_entropy(logits, least=1e-7), arrays["loss"])


def test_learning_rates() -> None:
    arrays = golden("dcan/lr.npz")
    factors = np.array([InverseDecay(alpha=1.0)(p, 0) for p in arrays["progress"].tolist()])
    rates = arrays["lr_base_cls_residual_wd"]
    for column in range(3):
        np.testing.assert_allclose(rates[0, column] * factors, rates[:, column], rtol=1e-7)
