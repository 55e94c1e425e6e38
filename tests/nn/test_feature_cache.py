"""A frozen backbone: what stays as it is, and features that are computed once."""

import copy
from typing import Any

import pytest
import torch
from networks import images, network
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn import feature_cache
from dafw.nn.network import Network
from dafw.nn.norm import DomainBatchNorm, convert_norm


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_KNOWN", {})


def frozen(**options: Any) -> Network:
    torch.manual_seed(0)
    return network(backbone="small_bn_net", frozen=True, **options)


def counted(net: Network) -> list[int]:
    """The sizes of the batches that the backbone gets from now on."""
    sizes: list[int] = []
    net.backbone.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def test_a_frozen_backbone_neither_learns_nor_moves() -> None:
    net = frozen(bottleneck=8)
    before = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    rows = convert_norm(net, "domain_specific", net.backbone)
    rows.num_source = 3
    net.train()
    assert net.training
    assert not any(part.training for part in net.backbone.modules())
    outputs = net(images(6))
    outputs.logits.sum().backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert all(value.equal(before[key]) for key, value in net.backbone.state_dict().items())
    assert not any(isinstance(part, DomainBatchNorm) for part in net.backbone.modules())
    assert isinstance(net.bottleneck, nn.Sequential)
    assert isinstance(net.bottleneck[1], DomainBatchNorm)
    (only,) = net.parameter_groups(1.0)
    assert {id(p) for p in only["params"]}.isdisjoint({id(p) for p in net.backbone.parameters()})


def test_what_is_remembered_is_what_the_backbone_gives() -> None:
    net, plain = frozen(feature_cache=100), frozen()
    sizes = counted(net)
    x = images(6)
    first = net(x).features
    assert sizes == [1] * 6  # each by itself
    torch.testing.assert_close(first, plain(x).features)
    again = net(x.flip(0)[:4]).features
    assert sizes == [1] * 6
    assert again.equal(first.flip(0)[:4])
    other = x.clone()
    other[2, 0, 0, 0] ^= 1
    changed = net(other).features
    assert sizes == [1] * 7
    assert [bool(a.equal(b)) for a, b in zip(changed, first, strict=True)] == [True, True, False, True, True, True]
    assert net(x[:0]).features.shape == (0, net.num_features)


def test_no_more_than_the_limit_is_kept() -> None:
    net, x = frozen(feature_cache=4), images(6)
    sizes = counted(net)
    first = net(x).features
    assert net(x).features.equal(first)
    assert sizes == [1] * 8


@pytest.mark.parametrize("load", ["into the network", "into what holds it"])
def test_other_weights_other_features(load: str) -> None:
    net, x = frozen(feature_cache=100), images(3)
    before, old = net(x).features, copy.deepcopy(net.state_dict())
    new = {key: value + 0.1 if value.is_floating_point() else value for key, value in old.items()}

    def put(state: dict[str, Tensor]) -> None:
        if load == "into the network":
            net.load_state_dict(state)
        else:
            nn.ModuleDict({"net": net}).load_state_dict({f"net.{key}": value for key, value in state.items()})

    put(new)
    assert not net(x).features.allclose(before)
    put(old)
    sizes = counted(net)
    assert net(x).features.equal(before)
    assert sizes == []  # what was known of these weights still is


def test_networks_of_the_same_weights_share_what_is_known_and_others_do_not() -> None:
    one, same, other = (
        frozen(feature_cache=100),
        frozen(feature_cache=100),
        frozen(feature_cache=100, mean=[0.3, 0.3, 0.3]),
    )
    x = images(3)
    one(x)
    sizes = counted(same)
    same(x)
    copy.deepcopy(same)(x)
    assert sizes == []
    assert not other(x).features.allclose(one(x).features)


def test_precision_is_part_of_what_is_known() -> None:
    net, x = frozen(feature_cache=100), images(3)
    wide = net(x).features
    with torch.autocast("cpu", torch.bfloat16):
        narrow = net(x).features
    assert not narrow.float().equal(wide)
    assert net(x).features.equal(wide)
    assert net.double()(x).features.dtype == torch.float64


def test_what_a_test_made_training_can_use() -> None:
    net, x = frozen(feature_cache=100, bottleneck=8), images(4)
    with torch.inference_mode():
        net.eval()(x.clone())
    net.train()(x).logits.sum().backward()
    assert isinstance(net.bottleneck, nn.Sequential)
    assert net.bottleneck[0].weight.grad is not None


def test_wrong_arguments() -> None:
    for options, text in (
        ({"feature_cache": 5}, "frozen"),
        ({"frozen": True, "feature_cache": -1}, "not -1"),
        ({"frozen": True, "mixstyle": [1]}, "mixstyle does nothing"),
    ):
        with pytest.raises(UserError, match=text):
            network(backbone="small_bn_net", **options)
