"""The batched critics are K critics."""

import math

import pytest
import torch
from torch import Tensor, nn

from dafw.nn.class_critics import ClassCritics, GroupedLinear
from dafw.nn.mlp import mlp

D, K, WIDTH, N = 5, 3, 4, 7


def one_by_one(critics: ClassCritics) -> list[nn.Sequential]:
    """The same critics as separate modules."""
    found = []
    for k in range(K):
        single = mlp(D, [WIDTH, WIDTH], 2, norm=True).to(critics.first.weight.dtype)
        part = slice(k * WIDTH, (k + 1) * WIDTH)
        values = {"0.weight": critics.first.weight[part], "0.bias": critics.first.bias[part]}
        for position, norm in (("1", critics.first_norm), ("4", critics.second_norm)):
            for key in ("weight", "bias", "running_mean", "running_var"):
                values[f"{position}.{key}"] = getattr(norm, key)[part]
            values[f"{position}.num_batches_tracked"] = norm.num_batches_tracked
        for position, layer in (("3", critics.second), ("6", critics.third)):
            values[f"{position}.weight"], values[f"{position}.bias"] = layer.weight[k].t(), layer.bias[k, 0]
        single.load_state_dict({key: value.detach().clone() for key, value in values.items()})
        found.append(single)
    return found


@pytest.fixture
def critics() -> ClassCritics:
    torch.manual_seed(0)
    return ClassCritics(D, K, width=WIDTH).double()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_equal_to_separate_critics(critics: ClassCritics, features: Tensor, training: bool) -> None:
    singles = one_by_one(critics)
    critics.train(training)
    found = critics(features)
    expected = torch.stack([single.train(training)(features) for single in singles], 1)
    assert found.shape == (N, K, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(N, K, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for k, single in enumerate(singles):
        grads = {name: parameter.grad for name, parameter in single.named_parameters()}
        part = slice(k * WIDTH, (k + 1) * WIDTH)
        torch.testing.assert_close(critics.first.weight.grad[part], grads["0.weight"])
        torch.testing.assert_close(critics.second.weight.grad[k].t(), grads["3.weight"])
        torch.testing.assert_close(critics.second_norm.weight.grad[part], grads["4.weight"])
        torch.testing.assert_close(critics.third.bias.grad[k, 0], grads["6.bias"])
    if training:
        running = torch.cat([single[4].running_var for single in singles])
        torch.testing.assert_close(critics.second_norm.running_var, running)


def test_a_critic_learns_from_its_own_class_alone(critics: ClassCritics, features: Tensor) -> None:
    critics(features)[:, 1].square().sum().backward()
    for layer in (critics.second, critics.third):
        assert layer.weight.grad[[0, 2]].abs().max() == 0
        assert layer.weight.grad[1].abs().max() > 0


def test_initialised_as_linear_layers() -> None:
    layer = GroupedLinear(2, 400, 300)
    bound = 1 / math.sqrt(400)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert nn.Linear(400, 300).weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.02)


def test_autocast(critics: ClassCritics, features: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = critics.float()(features.float())
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
