"""Losses against values of the Transfer-Learning-Library, see tests/golden/uda/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.adversarial import domain_bce
from dafw.losses.coral import coral, mean_and_covariance
from dafw.losses.discrepancy import class_balance, classifier_discrepancy
from dafw.losses.mmd import mk_mmd
from dafw.losses.pseudo_labels import confident_cross_entropy, confident_labels
from dafw.nn.reversal import reverse_gradient
from dafw.optim.schedules import dann_ramp

RTOL, ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("uda/uda.npz")


def features(arrays: dict[str, NDArray[Any]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(arrays["fs"]), torch.tensor(arrays["ft"])


@pytest.mark.parametrize(("key", "linear"), [("dan", False), ("dan_linear", True)])
def test_dan(arrays: dict[str, NDArray[Any]], key: str, linear: bool) -> None:
    multipliers = arrays["alphas"].tolist()
    found = mk_mmd(*features(arrays), multipliers=multipliers, estimator="tllib", linear=linear)
    np.testing.assert_allclose(found.item(), arrays[key], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("key", "loss"), [("coral_tll", mean_and_covariance), ("coral_original_4d2", coral)])
def test_coral(arrays: dict[str, NDArray[Any]], key: str, loss: Any) -> None:
    np.testing.assert_allclose(loss(*features(arrays)).item(), arrays[key], rtol=RTOL, atol=ATOL)


def test_dann(arrays: dict[str, NDArray[Any]]) -> None:
    source, target = (x.requires_grad_(True) for x in features(arrays))
    joint = reverse_gradient(torch.cat([source, target]), dann_ramp(250, 0.001))
    loss = domain_bce(F.linear(joint, torch.tensor(arrays["dann_D_w"]), torch.tensor(arrays["dann_D_b"])), len(source))
    loss.backward()
    np.testing.assert_allclose(loss.item(), arrays["dann"], rtol=RTOL, atol=ATOL)
    for x, key in ((source, "dann_grad_fs"), (target, "dann_grad_ft")):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad, arrays[key], rtol=RTOL, atol=ATOL)


def test_reversal_coefficient(arrays: dict[str, NDArray[Any]]) -> None:
    found = [dann_ramp(i / 1000, 1.0) for i in arrays["grl_iters"].tolist()]
    np.testing.assert_allclose(found, arrays["grl_coeff"], rtol=RTOL, atol=ATOL)


def test_mcd(arrays: dict[str, NDArray[Any]]) -> None:
    logits, other = torch.tensor(arrays["gt"]), torch.tensor(arrays["gt_adv"])
    found = classifier_discrepancy(logits, other).item(), class_balance(logits).item()
    np.testing.assert_allclose(found, [arrays["mcd_disc"], arrays["mcd_entropy"]], rtol=RTOL, atol=ATOL)


def test_fixmatch(arrays: dict[str, NDArray[Any]]) -> None:
    weak, strong = torch.tensor(arrays["gt"]), torch.tensor(arrays["gt_adv"])
    classes, sure = confident_labels(weak, 0.6)
    np.testing.assert_array_equal(classes, arrays["fixmatch_pl"])
    np.testing.assert_array_equal(sure.float(), arrays["fixmatch_mask"])
    found = confident_cross_entropy(strong, weak, 0.6).item()
    np.testing.assert_allclose(found, arrays["fixmatch_loss"], rtol=RTOL, atol=ATOL)
