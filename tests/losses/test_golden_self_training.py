"""Values of the published code of CoTTA, RMT, ROID and RoTTA, see the folders of the same names in tests/golden."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.losses.self_training import (
    contrast_of_views,
    corrected_by_prior,
    diverse_and_certain,
    soft_cross_entropy,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
    timeliness,
)
from dafw.nn.stochastic_restore import restored
from dafw.nn.teacher import Teacher

LOOSE = {"rtol": 1e-4, "atol": 1e-6}
EXACT = {"rtol": 1e-7, "atol": 1e-9}
Arrays = dict[str, NDArray[Any]]


def tensors(path: str) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in golden(path).items()}


def test_cotta() -> None:
    a = tensors("cotta/pieces.npz")
    found = soft_cross_entropy(a["logits_student"], a["logits_teacher"]).mean()
    np.testing.assert_allclose(found, a["loss_cifar"], **LOOSE)
    found = symmetric_cross_entropy(a["logits_student"], a["logits_teacher"]).mean()
    np.testing.assert_allclose(found, a["loss_imagenet_symmetric"], **LOOSE)
    found = restored(a["student_w"], a["source_w"], a["uniform"], float(a["rst"]))
    np.testing.assert_allclose(found, a["restored_w"], **LOOSE)
    np.testing.assert_allclose(a["anchor_logits"].softmax(1).amax(1).mean(), a["anchor_conf"], **LOOSE)
    np.testing.assert_allclose(a["aug_logits"].mean(0), a["teacher_if_low_conf"], **LOOSE)


@pytest.mark.parametrize(
    ("path", "before", "student", "decay"),
    [("cotta/pieces.npz", "ema_before", "student_w", "mt"), ("rmt/losses.npz", "ema_before", "ema_student", "ema_m")],
)
def test_teachers(path: str, before: str, student: str, decay: str) -> None:
    a = tensors(path)
    layer = nn.Linear(*reversed(a[before].shape), bias=False)
    layer.weight.data.copy_(a[before])
    teacher = Teacher(layer, float(a[decay]))
    layer.weight.data.copy_(a[student])
    teacher.step()
    np.testing.assert_allclose(teacher.module.weight, a["ema_after"], **LOOSE)


def test_rmt() -> None:
    a = tensors("rmt/losses.npz")
    test = a["feat_test"].requires_grad_()
    nearest = (F.normalize(test, dim=1) @ F.normalize(a["prototypes"], dim=1).T).argmax(1)
    np.testing.assert_array_equal(nearest, a["proto_index"])
    views = torch.stack([a["prototypes"][nearest], test, a["feat_aug"]], 1)
    hidden = F.linear(views, a["proj_w1"], a["proj_b1"]).relu()
    loss = contrast_of_views(F.linear(hidden, a["proj_w2"], a["proj_b2"]), float(a["temperature"]))
    np.testing.assert_allclose(loss.detach(), a["loss_contrastive"], **LOOSE)
    np.testing.assert_allclose(torch.autograd.grad(loss, test)[0], a["grad_feat_test"], **LOOSE)
    both = [symmetric_cross_entropy(a[name], a["logits_ema"]) for name in ("logits_test", "logits_aug")]
    np.testing.assert_allclose((0.5 * (both[0] + both[1])).mean(), a["loss_self_training"], **LOOSE)
    np.testing.assert_allclose(a["logits_test"] + a["logits_ema"], a["ensemble_logits"], **LOOSE)


def test_roids_losses() -> None:
    a = tensors("roid/pieces.npz")
    logits, augmented = a["logits"].requires_grad_(), a["logits_aug"].requires_grad_()
    each = soft_likelihood_ratio(logits, most=float(a["clip"]), epsilon=float(a["eps"]))
    np.testing.assert_allclose(each.detach(), a["slr"], **EXACT)
    np.testing.assert_allclose(torch.autograd.grad(each.sum(), logits)[0], a["slr_grad"], **EXACT)
    each = symmetric_cross_entropy(logits, augmented)
    np.testing.assert_allclose(each.detach(), a["sce"], **EXACT)
    one, other = torch.autograd.grad(each.sum(), (logits, augmented))
    np.testing.assert_allclose(one, a["sce_grad_aug_side"], **EXACT)
    np.testing.assert_allclose(other, a["sce_grad_plain_side"], **EXACT)
    np.testing.assert_allclose(corrected_by_prior(logits), a["served_own_formula"], **EXACT)


def test_timeliness() -> None:
    a = tensors("rotta/memory.npz")
    np.testing.assert_allclose(timeliness(a["final_ages"]), a["timeliness"], **EXACT)


# ---- at their edges


def test_equal_rows_all_count() -> None:
    weights = diverse_and_certain(torch.ones(4, 3).log_softmax(1), torch.full((3,), 1 / 3), 0.3)
    assert torch.equal(weights, torch.ones(4))


def test_one_row_is_finite() -> None:
    logits = torch.tensor([[60.0, -60.0, 0.0]], requires_grad=True)
    weights = diverse_and_certain(logits, torch.full((3,), 1 / 3), 1 / 3)
    loss = (weights * soft_likelihood_ratio(logits)).sum() + contrast_of_views(torch.stack([logits, logits], 1))
    assert bool(loss.isfinite())
    assert bool(torch.autograd.grad(loss, logits)[0].isfinite().all())
    assert bool(corrected_by_prior(logits).isfinite().all())
