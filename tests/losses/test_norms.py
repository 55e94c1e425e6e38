import pytest
import torch

from dafw.losses.norms import norm_to_radius, stepwise_norm


def test_stepwise_pulls_every_norm_outwards_with_the_same_force() -> None:
    features = (torch.randn(5, 4, dtype=torch.float64) * 3).requires_grad_(True)
    loss = stepwise_norm(features, 0.3)
    loss.backward()
    norms = features.detach().norm(dim=1, keepdim=True)
    assert loss.item() == pytest.approx(0.09)
    torch.testing.assert_close(features.grad, -2 * 0.3 * features.detach() / norms / 5)


def test_hard_pulls_the_mean_norm_to_the_radius() -> None:
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    loss = norm_to_radius(features, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    torch.testing.assert_close(features.grad, torch.tensor([[-0.6, -0.8], [0.0, -1.0]]))
    assert norm_to_radius(features, 3.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [stepwise_norm, norm_to_radius])
def test_dead_features_and_half_precision(loss: torch.nn.Module) -> None:
    features = torch.zeros(3, 4, requires_grad=True)
    loss(features).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert loss(torch.ones(3, 4).bfloat16()).dtype == torch.float32
