"""Losses against values of the Transfer-Learning-Library, see tests/golden/uda/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.adversarial import domain_bce, margin_disparity
from dafw.losses.confusion import class_confusion
from dafw.losses.coral import coral, mean_and_covariance
from dafw.losses.discrepancy import class_balance, classifier_discrepancy
from dafw.losses.entropy import certainty_weights
from dafw.losses.mmd import joint_mk_mmd, mk_mmd
from dafw.losses.norms import stepwise_norm
from dafw.losses.nuclear import Scale, negative_nuclear_norm
from dafw.losses.pseudo_labels import confident_cross_entropy, confident_labels
from dafw.nn.multilinear import MultilinearMap
from dafw.nn.reversal import reverse_gradient
from dafw.optim.schedules import dann_ramp

RTOL, ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("uda/uda.npz")


def features(arrays: dict[str, NDArray[Any]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(arrays["fs"]), torch.tensor(arrays["ft"])


def joint_logits(arrays: dict[str, NDArray[Any]], suffix: str = "") -> Tensor:
    return torch.cat([torch.tensor(arrays[f"g{domain}{suffix}"]) for domain in "st"])


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


@pytest.mark.parametrize("key", ["cdan", "cdan_e"])
def test_cdan(arrays: dict[str, NDArray[Any]], key: str) -> None:
    source, target = (x.requires_grad_(True) for x in features(arrays))
    logits = joint_logits(arrays)
    joint = reverse_gradient(torch.cat([source, target]), dann_ramp(400, 0.001))
    joined = MultilinearMap(source.shape[1], logits.shape[1])(joint, logits.softmax(1))
    scores = F.linear(joined, torch.tensor(arrays["cdan_D_w"]), torch.tensor(arrays["cdan_D_b"]))
    weights = certainty_weights(logits, epsilon=1e-5) if key == "cdan_e" else None
    loss = domain_bce(scores, len(source), weights)
    loss.backward()
    np.testing.assert_allclose(loss.item(), arrays[key], rtol=RTOL, atol=ATOL)
    for x, domain in ((source, "fs"), (target, "ft")):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad, arrays[f"{key}_grad_{domain}"], rtol=RTOL, atol=ATOL)


def test_random_projection(arrays: dict[str, NDArray[Any]]) -> None:
    join = MultilinearMap(len(arrays["Rf"]), len(arrays["Rg"]), arrays["Rf"].shape[1])
    join.load_state_dict({"R_f": torch.tensor(arrays["Rf"]), "R_g": torch.tensor(arrays["Rg"])})
    found = join(features(arrays)[0], torch.tensor(arrays["gs"]).softmax(1))
    np.testing.assert_allclose(found, arrays["rand_map"], rtol=RTOL, atol=ATOL)


def test_mdd(arrays: dict[str, NDArray[Any]]) -> None:
    found = margin_disparity(joint_logits(arrays), joint_logits(arrays, "_adv"), len(arrays["gs"]), margin=4.0)
    np.testing.assert_allclose(-found.item(), arrays["mdd"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("key", "linear"), [("jan", False), ("jan_linear", True)])
def test_jan(arrays: dict[str, NDArray[Any]], key: str, linear: bool) -> None:
    source, target = features(arrays)
    found = joint_mk_mmd(
        (source, torch.tensor(arrays["gs"])),
        (target, torch.tensor(arrays["gt"])),
        sigma=float(arrays["jan_sigma"]),
        multipliers=arrays["alphas"].tolist(),
        estimator="tllib",
        linear=linear,
    )
    np.testing.assert_allclose(found.item(), arrays[key], rtol=RTOL, atol=ATOL)


def test_mcc(arrays: dict[str, NDArray[Any]]) -> None:
    found = class_confusion(torch.tensor(arrays["gt"]), temperature=2.5)
    np.testing.assert_allclose(found.item(), arrays["mcc_T2.5"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize(("key", "scale"), [("bnm_original", "rows"), ("bnm_deepda", "values")])
def test_bnm(arrays: dict[str, NDArray[Any]], key: str, scale: Scale) -> None:
    found = negative_nuclear_norm(torch.tensor(arrays["gt"]), scale=scale)
    np.testing.assert_allclose(found.item(), arrays[key], rtol=RTOL, atol=ATOL)


def test_afn(arrays: dict[str, NDArray[Any]]) -> None:
    source = features(arrays)[0].requires_grad_(True)
    loss = stepwise_norm(source)
    loss.backward()
    np.testing.assert_allclose(loss.item(), arrays["afn"], rtol=RTOL, atol=ATOL)
    assert source.grad is not None
    np.testing.assert_allclose(source.grad, arrays["afn_grad"], rtol=RTOL, atol=ATOL)
