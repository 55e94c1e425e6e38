import pytest
import torch
from torch import Tensor, nn

from dafw.losses.adversarial import domain_bce
from dafw.nn.reversal import reverse_gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_is_an_alias(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3).to(dtype).requires_grad_(True)
    y = reverse_gradient(x, 0.3)
    assert y.data_ptr() == x.data_ptr()
    assert y.dtype == dtype
    assert torch.equal(y, x)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_is_minus_scale_times_the_gradient(scale: float | Tensor, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3).to(dtype).requires_grad_(True)
    upstream = torch.randn(4, 3).to(dtype)
    reverse_gradient(x, scale).backward(upstream)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, (upstream * -scale).to(dtype))


def test_second_derivative_is_reversed_twice() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(reverse_gradient(x, 0.5) ** 3, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert slope.item() == pytest.approx(-0.5 * 12)
    assert curvature.item() == pytest.approx(-0.5 * 12 * -0.5)


def test_one_step_raises_the_loss_through_the_features_and_lowers_it_through_the_critic() -> None:
    torch.manual_seed(0)
    features, critic, x = nn.Linear(3, 4), nn.Linear(4, 1), torch.randn(10, 3)

    def loss() -> Tensor:
        return domain_bce(critic(reverse_gradient(features(x), 0.7)), 4)

    before = loss()
    before.backward()
    for module, sign in ((features, 1), (critic, -1)):
        saved = [p.detach().clone() for p in module.parameters()]
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.01 * p.grad
            assert sign * (loss() - before).item() > 0
            for p, old in zip(module.parameters(), saved, strict=True):
                p.copy_(old)
