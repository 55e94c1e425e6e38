import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.confusion import class_confusion


@pytest.fixture
def logits() -> Tensor:
    return 2 * torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_class_by_class(logits: Tensor) -> None:
    p = (logits / 3).softmax(1).numpy()
    weights = 1 + np.exp((p * np.log(p)).sum(1))
    shares = []
    for j in range(4):
        row = [sum(w * q[j] * q[k] for w, q in zip(weights, p, strict=True)) for k in range(4)]
        shares.append((sum(row) - row[j]) / sum(row))
    assert class_confusion(logits, temperature=3.0).item() == pytest.approx(np.mean(shares), rel=1e-12)


def test_bounds() -> None:
    assert class_confusion(torch.eye(4).repeat(2, 1) * 1e4).item() == pytest.approx(0, abs=1e-6)
    assert class_confusion(torch.zeros(5, 4)).item() == pytest.approx(0.75)


def test_a_class_that_nothing_predicts_leaves_value_and_gradient_finite() -> None:
    logits = (torch.eye(4)[:2] * 1e4).requires_grad_(True)
    loss = class_confusion(logits)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_order_of_rows_and_of_classes_and_a_constant_do_not_matter(logits: Tensor) -> None:
    value = class_confusion(logits)
    torch.testing.assert_close(class_confusion(logits[torch.randperm(7)][:, torch.randperm(4)] + 9), value)


def test_the_weights_get_no_gradient(logits: Tensor) -> None:
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(class_confusion(logits, temperature=1.0), logits)
    fixed = logits.detach()
    weights = 1 + (fixed.softmax(1) * fixed.log_softmax(1)).sum(1).exp()
    p = logits.softmax(1)
    confusion = (weights[:, None] * p).t() @ p
    confusion = confusion / confusion.sum(1, keepdim=True)
    (expected,) = torch.autograd.grad(1 - confusion.diagonal().mean(), logits)
    torch.testing.assert_close(gradient, expected)


def test_precision_and_a_wrong_temperature(logits: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_confusion(logits.float()), class_confusion(logits.float()).float())
    assert class_confusion(logits.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="a temperature is positive, not 0"):
        class_confusion(logits, temperature=0.0)
