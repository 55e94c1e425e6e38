import pytest
import torch
from torch import nn

from dafw.nn.mlp import Residual, mlp
from dafw.nn.norm import DomainBatchNorm


@pytest.mark.parametrize(
    ("norm", "dropout", "block"),
    [
        (False, 0.0, [nn.Linear, nn.ReLU]),
        (True, 0.0, [nn.Linear, DomainBatchNorm, nn.ReLU]),
        (False, 0.5, [nn.Linear, nn.ReLU, nn.Dropout]),
        (True, 0.5, [nn.Linear, DomainBatchNorm, nn.ReLU, nn.Dropout]),
    ],
)
def test_layers(norm: bool, dropout: float, block: list[type[nn.Module]]) -> None:
    network = mlp(6, [5, 4], 2, norm=norm, dropout=dropout)
    assert [type(layer) for layer in network] == [*block, *block, nn.Linear]
    assert network(torch.randn(3, 6)).shape == (3, 2)
    assert [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)] == [(5, 6), (4, 5), (2, 4)]
    assert all(layer.p == dropout for layer in network if isinstance(layer, nn.Dropout))


def test_no_hidden_layer_is_linear() -> None:
    assert [type(layer) for layer in mlp(6, [], 2, norm=True, dropout=0.5)] == [nn.Linear]


def test_norm_is_joint() -> None:
    network = mlp(6, [5], 2, norm=True)
    assert isinstance(network[1], DomainBatchNorm)
    assert network[1].mode == "joint"


def test_residual_adds_what_two_layers_make_of_its_input() -> None:
    torch.manual_seed(0)
    block, x = Residual(6, 3), torch.randn(4, 6)
    one, other = block.change[0], block.change[2]
    torch.testing.assert_close(block(x), x + other(one(x).relu()))
    assert [tuple(layer.weight.shape) for layer in (one, other)] == [(3, 6), (6, 3)]
    nn.init.zeros_(other.weight)
    nn.init.zeros_(other.bias)
    assert torch.equal(block(x), x)
