"""The focal loss of Unbiased Teacher's classes."""

import torch
import torch.nn.functional as F
from golden_vectors import golden

from dafw.nn.focal import focal_cross_entropy


def test_it_agrees_with_unbiased_teachers_code() -> None:
    arrays = golden("unbiased_teacher/roi_focal.npz")
    logits = torch.from_numpy(arrays["logits"]).requires_grad_()
    loss = focal_cross_entropy(logits, torch.from_numpy(arrays["target"]), float(arrays["gamma"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(arrays["loss"]))
    torch.testing.assert_close(logits.grad, torch.from_numpy(arrays["grad"]))


def test_without_gamma_it_is_the_cross_entropy_and_a_sure_row_is_no_nan() -> None:
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    assert torch.equal(focal_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels))
    sure = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    rows = focal_cross_entropy(sure, torch.tensor([0, 1]), 1.5, reduction="none")
    rows.sum().backward()
    assert rows[0] == 0
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    total = focal_cross_entropy(sure, torch.tensor([0, 1]), 1.5, reduction="sum")
    torch.testing.assert_close(total, rows.sum())
