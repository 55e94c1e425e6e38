"""AdaNPC-BN: features that a normalisation makes comparable, which learns from the votes."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.methods import AdaNPCBN
from dafw.nn.feature_norm import FeatureNorm
from dafw.testing import case
from dafw.testing.cases import TINY


def test_features_are_normalised_by_their_batch() -> None:
    torch.manual_seed(0)
    features, layer = torch.randn(6, 4, dtype=torch.float64), FeatureNorm(4).double()
    plain = F.batch_norm(features, None, None, layer.weight, layer.bias, True)
    torch.testing.assert_close(layer(features), plain)
    assert torch.equal(layer(features[:1]), features[:1])


def test_scale_and_shift_alone_learn_and_no_row_votes_for_itself(tmp_path: Path) -> None:
    method, _ = case(AdaNPCBN, **{**TINY["AdaNPCBN"], "threshold": 0.0}).train(tmp_path)
    assert isinstance(method, AdaNPCBN)
    moved = {name for name, one in method.named_parameters() if one.requires_grad}
    assert moved == {"feature_norm.weight", "feature_norm.bias"}
    assert not torch.equal(method.feature_norm.weight, torch.ones(8))
    pairs = zip(method.network.parameters(), method.start.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    source = sum(len(domain) for domain in method.data.source_domains("train"))
    assert len(method.memory.labels) == source + len(method.served.keys)  # each row of the stream joined once
    joined = method.memory.labels[source:]
    assert torch.equal(joined, method.served.logits[method.served.step.argsort(stable=True)].argmax(1))


def test_the_loss_is_the_mean_entropy_of_the_votes() -> None:
    method = case(AdaNPCBN).make()
    assert isinstance(method, AdaNPCBN)
    method.memory.add(torch.randn(9, 8), torch.arange(9) % 3)
    outputs = method.network(torch.rand(5, 3, 6, 6))
    loss = method.adapt(outputs, None)["entropy"]  # type: ignore[arg-type]
    votes = method.vote(method.compared(outputs))
    torch.testing.assert_close(loss, entropy((votes / votes.sum(1, keepdim=True)).log()).mean())
    loss.backward()
    assert method.feature_norm.weight.grad is not None
    assert bool(method.feature_norm.weight.grad.abs().sum() > 0)


def test_what_it_cannot_learn_is_refused() -> None:
    with pytest.raises(UserError, match="learns"):
        case(AdaNPCBN, learns="head").make()
