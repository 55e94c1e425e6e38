"""The refined prediction, the mimicking loss and the class-wise critics' loss."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor

from dafw.losses.entropy import information_maximisation
from dafw.losses.mimicking import Mode, class_domain_loss, domain_log_probabilities, mimicking_loss, refine

GOLDEN = {"rtol": 1e-7, "atol": 1e-9}
MODES: list[Mode] = ["paper", "authors"]


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in golden("paretoda/refine_tcm.npz").items()}


def scores(n: int = 6, k: int = 4) -> Tensor:
    return torch.randn(n, k, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def logits(n: int = 6, k: int = 4) -> Tensor:
    return 2 * torch.randn(n, k, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


# ---- golden vectors


@pytest.mark.parametrize("mode", MODES)
def test_golden_refined_predictions(arrays: dict[str, Tensor], mode: Mode) -> None:
    found = refine(arrays["y_t"], arrays["cd_t"], mode=mode)
    found, key = (found, "rho_code_logits") if mode == "authors" else (found.softmax(1), "rho_bayes")
    torch.testing.assert_close(found, arrays[key], **GOLDEN)


@pytest.mark.parametrize(
    ("mode", "loss", "gradient"),
    [("paper", "loss_T_paper", "grad_y_t_paper"), ("authors", "loss_T_code", "grad_y_t_code")],
)
def test_golden_mimicking_loss(arrays: dict[str, Tensor], mode: Mode, loss: str, gradient: str) -> None:
    y_t, cd_t = arrays["y_t"].clone().requires_grad_(True), arrays["cd_t"].clone().requires_grad_(True)
    found = mimicking_loss(refine(y_t, cd_t, mode=mode), mode=mode)
    torch.testing.assert_close(found.detach(), arrays[loss], **GOLDEN)
    at_logits, at_scores = torch.autograd.grad(found, (y_t, cd_t), allow_unused=True)
    torch.testing.assert_close(at_logits, arrays[gradient], **GOLDEN)
    assert at_scores is None, "the critics must get no gradient"
    if mode == "authors":
        torch.testing.assert_close(-found.detach(), arrays["mutual_information_code"], **GOLDEN)


def test_golden_mimicking_loss_of_plain_logits() -> None:
    arrays = golden("paretoda/tcm.npz")
    x = torch.tensor(arrays["logits"]).requires_grad_(True)
    found = -mimicking_loss(x, mode="authors")
    np.testing.assert_allclose(found.detach(), arrays["tcm"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(torch.autograd.grad(found, x)[0], arrays["grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mode", "key"), [("paper", "cd_loss_paper"), ("authors", "cd_loss_code")])
def test_golden_critics_loss(arrays: dict[str, Tensor], mode: Mode, key: str) -> None:
    refined = refine(arrays["y_t"], arrays["cd_t"], mode=mode).requires_grad_(True)
    source, target = (arrays[name].clone().requires_grad_(True) for name in ("cd_s", "cd_t"))
    found = class_domain_loss(source, target, arrays["labels_s"], refined, mode=mode)
    torch.testing.assert_close(found.detach(), arrays[key], **GOLDEN)
    at_source, at_target, at_refined = torch.autograd.grad(found, (source, target, refined), allow_unused=True)
    assert at_refined is None, "the refined prediction is a constant here"
    assert at_target.abs().min() > 0
    trained = at_source.abs().sum((0, 2)) > 0
    labels = arrays["labels_s"] if mode == "paper" else arrays["labels_s"][-1:]
    assert trained.nonzero().flatten().tolist() == sorted(set(labels.tolist()))


# ---- properties


def test_refined_predictions_sum_to_one_and_follow_bayes() -> None:
    found = refine(logits(), scores()).softmax(1)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    product = logits().softmax(1) * scores().softmax(2)[:, :, 0]
    torch.testing.assert_close(found, product / product.sum(1, keepdim=True))


def test_critics_that_agree_refine_nothing() -> None:
    same = scores()[:, :1].expand(6, 4, 2)
    torch.testing.assert_close(refine(logits(), same).softmax(1), logits().softmax(1))


def test_one_logit_is_the_difference_of_two() -> None:
    two = scores()
    one = two[:, :, 1] - two[:, :, 0]
    for found, expected in zip(domain_log_probabilities(one), domain_log_probabilities(two), strict=True):
        torch.testing.assert_close(found, expected)
    for mode in MODES:
        torch.testing.assert_close(refine(logits(), one, mode=mode), refine(logits(), two, mode=mode))


@pytest.mark.parametrize("shape", [(6, 4, 3), (6,), (6, 4, 2, 2)])
def test_wrong_shapes_of_scores(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="class-wise critics"):
        domain_log_probabilities(torch.zeros(shape))


def test_range_of_the_mimicking_loss() -> None:
    assert -math.log(4) <= mimicking_loss(logits()).item() <= 0
    for mode in MODES:
        assert mimicking_loss(logits()[:1].expand(6, 4), mode=mode).item() == pytest.approx(0, abs=1e-5)
        sure = 1e4 * torch.eye(4, dtype=torch.float64).repeat(2, 1)
        assert mimicking_loss(sure, mode=mode).item() == pytest.approx(-math.log(4), abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_certain_predictions_have_finite_gradients(mode: Mode) -> None:
    sure = (1e4 * torch.eye(4)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(mimicking_loss(refine(sure, 50 * scores(4).float(), mode=mode), mode=mode), sure)
    assert gradient.isfinite().all()


def test_the_paper_s_loss_is_information_maximisation() -> None:
    assert torch.equal(mimicking_loss(logits()), information_maximisation(logits()))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_right(mode: Mode) -> None:
    x, v = logits().requires_grad_(True), scores().requires_grad_(True)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])

    def critics(v: Tensor) -> Tensor:
        return class_domain_loss(v, v.flip(0), labels, logits(), mode=mode)

    def mimicking(x: Tensor) -> Tensor:
        return mimicking_loss(refine(x, scores(), mode=mode), mode=mode)

    assert torch.autograd.gradcheck(mimicking, x)
    assert torch.autograd.gradcheck(critics, v)


def test_half_precision_is_summed_in_single() -> None:
    arguments: Any = (scores().bfloat16(), scores().bfloat16(), torch.tensor([0, 3, 1, 1, 2, 0]), logits().bfloat16())
    assert class_domain_loss(*arguments).dtype == torch.float32
    for mode in MODES:
        assert (
            mimicking_loss(refine(logits().bfloat16(), scores().bfloat16(), mode=mode), mode=mode).dtype
            == torch.float32
        )
