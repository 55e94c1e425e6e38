"""Losses against values of DomainBed, see tests/golden/domainbed/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch.nn import functional as F

from dafw.data import Batch
from dafw.losses.coral import pairwise_mean_and_covariance
from dafw.losses.invariance import invariance_penalty
from dafw.losses.mmd import pairwise_mmd
from dafw.methods import GroupDRO
from dafw.testing.toys import toy_network

RTOL, ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("domainbed/domainbed.npz")


def test_irm(arrays: dict[str, NDArray[Any]]) -> None:
    found = invariance_penalty(torch.tensor(arrays["logits"]), torch.tensor(arrays["labels"]))
    np.testing.assert_allclose(found, arrays["irm_penalty"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("key", "loss"), [("mmd", pairwise_mmd), ("coral", pairwise_mean_and_covariance)])
def test_pairs(arrays: dict[str, NDArray[Any]], key: str, loss: Any) -> None:
    found = loss([torch.tensor(arrays["x1"]), torch.tensor(arrays["x2"])])
    np.testing.assert_allclose(found, arrays[key], rtol=RTOL, atol=ATOL)


def test_group_dro(arrays: dict[str, NDArray[Any]]) -> None:
    count = len(arrays["gdro_q1"])
    x = [torch.tensor(arrays[f"gdro_x{m}"]) for m in range(count)]
    y = [torch.tensor(arrays[f"gdro_y{m}"]) for m in range(count)]
    weight = torch.tensor(arrays["gdro_w0"]).requires_grad_()
    bias = torch.zeros(len(weight), requires_grad=True)
    method = GroupDRO(toy_network(), num_classes=len(weight), num_sources=count, rate=float(arrays["gdro_eta"]))
    for update in ("1", "2"):
        logits = [F.linear(rows, weight, bias) for rows in x]
        risks = torch.stack([F.cross_entropy(z, labels) for z, labels in zip(logits, y, strict=True)])
        loss = risks.mean() + method.excess(risks)
        with torch.no_grad():
            method.commit(Batch(None, None, torch.empty(0), torch.empty(0), 0))
        np.testing.assert_allclose(method.q, arrays[f"gdro_q{update}"], rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(loss.item(), arrays[f"gdro_loss{update}"], rtol=RTOL, atol=ATOL)
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for value, gradient in zip((weight, bias), gradients, strict=True):
                value -= float(arrays["gdro_lr"]) * gradient
        if update == "1":
            np.testing.assert_allclose(weight.detach(), arrays["gdro_w1"], rtol=RTOL, atol=ATOL)
