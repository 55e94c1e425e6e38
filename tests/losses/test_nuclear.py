import math

import pytest
import torch
from torch import Tensor

from dafw.losses.nuclear import negative_nuclear_norm


@pytest.mark.parametrize(("n", "classes"), [(6, 4), (3, 5)])
def test_against_the_trace_of_a_matrix_root(n: int, classes: int) -> None:
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    norm = torch.linalg.eigvalsh(p @ p.t()).clamp_min(0).sqrt().sum()
    torch.testing.assert_close(negative_nuclear_norm(logits), -norm / n, rtol=1e-6, atol=1e-8)
    values = negative_nuclear_norm(logits, scale="values")
    torch.testing.assert_close(values, -norm / min(n, classes), rtol=1e-6, atol=1e-8)


def test_bounds() -> None:
    sure_and_diverse, sure_of_one, unsure = torch.eye(4).repeat(2, 1) * 1e4, torch.eye(4)[:1] * 1e4, torch.zeros(8, 4)
    assert negative_nuclear_norm(sure_and_diverse).item() == pytest.approx(-math.sqrt(4 / 8))
    assert negative_nuclear_norm(sure_of_one.expand(8, 4)).item() == pytest.approx(-1 / math.sqrt(8))
    assert negative_nuclear_norm(unsure).item() == pytest.approx(-1 / math.sqrt(32))


def test_gradient_where_singular_values_coincide() -> None:
    logits: Tensor = (torch.eye(4, dtype=torch.float64).repeat(2, 1) * 2).requires_grad_(True)
    assert torch.autograd.gradcheck(negative_nuclear_norm, logits)
    (gradient,) = torch.autograd.grad(negative_nuclear_norm(logits), logits)
    assert negative_nuclear_norm(logits - 0.1 * gradient) < negative_nuclear_norm(logits)


def test_half_precision() -> None:
    logits = torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert negative_nuclear_norm(logits.bfloat16()).dtype == torch.float32
