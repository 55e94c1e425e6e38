import torch
from torch import nn

from dafw.nn.two_heads import TwoHeads


def test_the_mean_of_both_heads() -> None:
    heads = TwoHeads(nn.Linear(4, 3), nn.Linear(4, 3))
    features = torch.rand(5, 4)
    first, second = heads.first(features), heads.second(features)
    torch.testing.assert_close(heads(features), (first + second) / 2)
    assert not torch.equal(first, second), "two heads must start apart"
