"""Cross-entropy with one's own confident predictions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.pseudo_labels import confident_cross_entropy, confident_labels


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    strong, weak = 2 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return strong, weak


def test_the_sum_over_confident_rows_is_divided_by_all_rows(views: tuple[Tensor, Tensor]) -> None:
    strong, weak = views
    p = weak.softmax(1)
    rows = [i for i in range(9) if p[i].max() >= 0.6]
    assert 0 < len(rows) < 9
    expected = sum(F.cross_entropy(strong[i : i + 1], weak[i : i + 1].argmax(1)) for i in rows) / 9
    torch.testing.assert_close(confident_cross_entropy(strong, weak, 0.6), torch.as_tensor(expected))


def test_thresholds(views: tuple[Tensor, Tensor]) -> None:
    strong, weak = views
    assert confident_cross_entropy(strong, weak, 1.0).item() == 0
    torch.testing.assert_close(confident_cross_entropy(strong, weak, 0.0), F.cross_entropy(strong, weak.argmax(1)))
    classes, sure = confident_labels(torch.tensor([[0.0, 1e4], [0.0, 0.0]]), 1.0)
    assert (classes[0].item(), sure.tolist()) == (1, [True, False])


def test_only_the_learner_and_only_its_confident_rows_get_gradients(views: tuple[Tensor, Tensor]) -> None:
    strong, weak = (view.requires_grad_(True) for view in views)
    confident_cross_entropy(strong, weak, 0.6).backward()
    assert weak.grad is None
    assert strong.grad is not None
    _, sure = confident_labels(weak, 0.6)
    assert torch.equal(strong.grad.abs().sum(1) > 0, sure)


def test_half_precision_logits_are_summed_in_single(views: tuple[Tensor, Tensor]) -> None:
    strong, weak = (view.bfloat16() for view in views)
    assert confident_cross_entropy(strong, weak, 0.6).dtype == torch.float32
