import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.losses.mmd import (
    MULTIPLIERS,
    gaussian_kernels,
    joint_mk_mmd,
    linear_discrepancy,
    mean_discrepancy,
    mk_mmd,
    squared_distances,
)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and logits of the source, then of the target."""
    generator = torch.Generator().manual_seed(2)
    draw = [torch.randn(6, columns, generator=generator, dtype=torch.float64) for columns in (4, 3, 4, 3)]
    return draw[0], draw[1], draw[2] * 1.5 + 0.5, draw[3]


@pytest.mark.parametrize("linear", [False, True])
def test_it_is_the_discrepancy_of_the_products_of_kernels(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], linear: bool
) -> None:
    source, source_logits, target, target_logits = inputs
    p = torch.cat([source_logits, target_logits]).softmax(1).numpy()
    predictions = np.exp(-((p[:, None] - p) ** 2).sum(-1) / (2 * 0.7**2))
    kernels = gaussian_kernels(squared_distances(torch.cat([source, target]))) * torch.tensor(predictions)
    kernels = kernels / len(MULTIPLIERS)
    expected = linear_discrepancy(kernels) if linear else mean_discrepancy(kernels, 6)
    found = joint_mk_mmd((source, source_logits), (target, target_logits), sigma=0.7, linear=linear)
    torch.testing.assert_close(found, expected)


def test_predictions_that_do_not_differ_leave_the_discrepancy_of_the_features(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    source, _, target, _ = inputs
    same = torch.zeros(6, 3, dtype=torch.float64)
    torch.testing.assert_close(joint_mk_mmd((source, same), (target, same)), mk_mmd(source, target))
    shifted = torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64).expand(6, 3)
    assert joint_mk_mmd((source, same), (target, shifted)) > mk_mmd(source, target)
    with pytest.raises(ValueError, match="at least two rows of each domain, not 1 and 6"):
        joint_mk_mmd((source[:1], same[:1]), (target, same))


def test_half_precision(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    source, source_logits, target, target_logits = (x.bfloat16() for x in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        value = joint_mk_mmd((source, source_logits), (target, target_logits))
    assert value.dtype == torch.float32
    exact = joint_mk_mmd((source.float(), source_logits.float()), (target.float(), target_logits.float()))
    torch.testing.assert_close(value, exact)
