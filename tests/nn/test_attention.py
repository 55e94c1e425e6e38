"""Domain-conditioned channel attention, against the authors' vectors (tests/golden/dcan) and by its properties."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.attention import (
    DomainAttention,
    GatedDomainAttention,
    SqueezeExcite,
    convert_attention,
    domain_gap,
    insert_attention,
)
from dafw.nn.digits import SmallBNNet, SmallSENet
from dafw.nn.layout import BatchLayout
from dafw.nn.network import Network
from dafw.nn.norm import convert_norm
from dafw.testing.steps import Operations

N_S, N_T, C = 3, 5, 8
PARTS = {"fc0": "source_squeeze", "fc1": "target_squeeze", "fc2": "excite"}


def close(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-7, atol=1e-9)


def layer(owner: Any = DomainAttention, **options: Any) -> Any:
    """A module of random weights, different for each path, in the middle of a batch of both domains."""
    torch.manual_seed(0)
    plain = SqueezeExcite(C, reduction=4).double()
    made = owner(plain.fc1, plain.fc2, plain.act, plain.gate, **options)
    nn.init.normal_(made.target_squeeze.weight)
    made.layout = BatchLayout(N_S)
    return made


def rows(shift: float = 0.0) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(N_S + N_T, C, 3, 2, dtype=torch.float64) + 1
    return torch.cat([x[:N_S], x[N_S:] + shift])


def filled(arrays: dict[str, NDArray[Any]], owner: Any, **options: Any) -> Any:
    """A module with the weights of the file."""
    weight = torch.tensor(arrays["fc0_weight"])
    plain = SqueezeExcite(weight.shape[1], weight.shape[1] // weight.shape[0]).to(weight.dtype)
    made = owner(plain.fc1, plain.fc2, plain.act, plain.gate, **options)
    state = {f"{PARTS[k]}.{part}": torch.tensor(arrays[f"{k}_{part}"]) for k in PARTS for part in ("weight", "bias")}
    made.load_state_dict(state, strict=False)
    return made


def test_attention_against_the_authors() -> None:
    arrays = golden("dcan/dcca_attention.npz")
    module, x = filled(arrays, DomainAttention), torch.tensor(arrays["x"], requires_grad=True)
    module.layout = BatchLayout(len(x) // 2)
    found = module(x)
    close(found, arrays["out_train"])
    (found * torch.tensor(arrays["cotangent"])).sum().backward()
    assert x.grad is not None
    close(x.grad, arrays["grad_x"])
    for key, name in PARTS.items():
        for part in ("weight", "bias"):
            close(module.get_submodule(name).get_parameter(part).grad, arrays[f"grad_{key}_{part}"])
    module.eval().layout.num_source = None
    close(module(x), arrays["out_eval"])


def test_gate_against_the_authors() -> None:
    arrays = golden("dcan/gdcca_attention.npz")
    module = filled(arrays, GatedDomainAttention, threshold=float(arrays["eta"]), form="authors")
    for x, out, served, gap, shared in zip(
        *(arrays[key] for key in ("x", "out_train", "out_eval", "prob", "gate_shared")), strict=True
    ):
        x, half = torch.tensor(x), len(x) // 2
        pooled = x.mean((2, 3), keepdim=True)
        close(domain_gap(pooled[:half], pooled[half:], form="authors"), gap)
        module.train().layout.num_source = half
        close(module(x), out)
        assert bool(module.shared) == bool(shared)
        module.eval().layout.num_source = None
        close(module(x), served)


@pytest.mark.parametrize("shared", [None, False, True])
def test_equal_squeezes_are_plain_attention(shared: bool | None) -> None:
    torch.manual_seed(0)
    plain = SqueezeExcite(C, reduction=4).double()
    owner: Any = DomainAttention if shared is None else GatedDomainAttention
    module = owner(*(deepcopy(part) for part in (plain.fc1, plain.fc2, plain.act, plain.gate)))
    if shared is not None:
        module.shared.fill_(shared)
    for training in (True, False):
        for num_source in (None, 0, N_S, N_S + N_T):
            module.train(training).layout.num_source = num_source
            torch.testing.assert_close(module(rows()), plain(rows()), rtol=1e-12, atol=1e-12)


def test_each_domain_has_its_path() -> None:
    module, x = layer(), rows()
    joint = module(x)
    module.layout.num_source = len(x)
    torch.testing.assert_close(joint[:N_S], module(x)[:N_S])
    module.layout.num_source = None
    torch.testing.assert_close(joint[N_S:], module(x)[N_S:])
    assert (joint[N_S:] - layer()(torch.cat([x[:N_S] + 7, x[N_S:]]))[N_S:]).abs().max() < 1e-12
    module.source_squeeze.load_state_dict(module.target_squeeze.state_dict())
    module.layout.num_source = N_S
    assert (joint[:N_S] - module(x)[:N_S]).abs().max() > 1e-3


def test_a_loss_of_the_target_alone_does_not_move_the_sources_squeeze() -> None:
    module = layer()
    module(rows())[N_S:].square().sum().backward()
    assert module.source_squeeze.weight.grad.abs().max() == 0
    assert module.target_squeeze.weight.grad.abs().max() > 0
    assert module.excite.weight.grad.abs().max() > 0


def test_while_shared_the_target_moves_the_sources_squeeze() -> None:
    module = layer(GatedDomainAttention, threshold=2.0)  # above any gap
    module(rows())[N_S:].square().sum().backward()
    assert module.shared
    assert module.source_squeeze.weight.grad.abs().max() > 0
    assert module.target_squeeze.weight.grad.abs().max() == 0


def test_gap() -> None:
    half = rows()[:N_S]
    for scale in (1.0, -1.0, 0.0):
        assert domain_gap(scale * half, scale * half).item() == 0
    target = half + 2
    gaps = [domain_gap(half - shift, target).item() for shift in (0.0, 0.5, 1.0, 2.0)]
    assert gaps == sorted(set(gaps))
    assert 0 < gaps[0] < gaps[-1] < 1
    assert domain_gap(half, -target).item() > 0 > domain_gap(half, -target, form="authors").item()
    assert domain_gap(half, target).item() == domain_gap(half, target, form="authors").item()
    assert domain_gap(half.bfloat16(), target.bfloat16()).dtype == torch.float32
    mean, spread = target.mean(), target.var()
    ratios = [half.mean() / (half.var() + 1e-5).sqrt(), mean / (spread + 1e-5).sqrt()]
    expected = torch.tanh((ratios[0] - ratios[1]).abs() / ratios[1])
    torch.testing.assert_close(domain_gap(half, target), expected)


def test_gate_decides_in_joint_training_batches_alone() -> None:
    module = layer(GatedDomainAttention)
    alike, apart = torch.cat([rows()[:N_S]] * 2), rows(shift=5.0)
    module(alike)
    assert module.shared
    module(apart)
    assert not module.shared
    module.eval()(alike)
    assert not module.shared
    module.train()
    for num_source in (None, 0, len(alike)):
        module.layout.num_source = num_source
        module(alike)
        assert not module.shared


def test_gate_survives_a_checkpoint_and_a_copy() -> None:
    module, again = layer(GatedDomainAttention), layer(GatedDomainAttention)
    module(torch.cat([rows()[:N_S]] * 2))
    again.load_state_dict(module.state_dict())
    assert again.shared
    assert deepcopy(module).layout is module.layout
    again.eval().layout.num_source = None
    separate = layer(GatedDomainAttention).eval()
    separate.layout.num_source = None
    assert not torch.equal(again(rows()), separate(rows()))
    separate.layout.num_source = len(rows())
    torch.testing.assert_close(again(rows()), separate(rows()))


def test_nothing_is_read_from_the_device() -> None:
    module = layer(GatedDomainAttention)
    with Operations() as operations:
        module(rows()).sum().backward()
    assert not operations.host_reads


@pytest.mark.parametrize("name", ["legacy_seresnet18", "seresnet50", "legacy_seresnext26_32x4d"])
def test_conversion_of_timms_networks(name: str) -> None:
    torch.manual_seed(0)
    network = Network(backbone=name, backbone_args={"drop_rate": 0.0}).eval()
    network.set_classes(3)
    plain = deepcopy(network)
    squeezes = {k.rpartition(".fc1")[0]: v for k, v in plain.named_modules() if k.endswith(".fc1")}
    made = convert_attention(network)
    assert len(made) == len(squeezes) == sum(isinstance(m, DomainAttention) for m in network.modules())
    for where, squeeze in squeezes.items():
        module = network.get_submodule(where)
        assert isinstance(module, DomainAttention)
        for path in (module.source_squeeze, module.target_squeeze):
            assert torch.equal(path.weight, squeeze.weight)
            assert torch.equal(path.bias, squeeze.bias)
        assert module.source_squeeze.weight.data_ptr() != module.target_squeeze.weight.data_ptr()
    layout = convert_norm(network, "frozen")
    assert all(module.layout is layout for module in made)
    x = torch.rand(3, 3, 64, 64)
    layout.num_source = 1
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits, plain(x).logits, rtol=1e-4, atol=1e-5)


def test_every_residual_block_of_the_papers_networks() -> None:
    with torch.device("meta"):
        counts = {name: len(convert_attention(timm.create_model(name))) for name in ("legacy_seresnet50", "seresnet50")}
    assert counts == {"legacy_seresnet50": 16, "seresnet50": 16}


@pytest.mark.parametrize("backbone", ["small_bn_net", "resnet18"])
def test_a_network_without_attention_is_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=rf"{backbone} has none: choose a backbone that has them, such as legacy_sere"):
        convert_attention(Network(backbone=backbone))


def test_other_modules_with_two_layers_are_left_alone() -> None:
    class Attention(SqueezeExcite):
        add_maxpool = True

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.act = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.ReLU()

    for module in (Attention(8, 4), Mlp(), timm.layers.SEModule(8, norm_layer=nn.BatchNorm2d)):
        with pytest.raises(UserError, match="Sequential has none"):
            convert_attention(nn.Sequential(module))


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet18", 4), ("tf_efficientnet_lite0", 5), ("mobilenetv3_small_050", 4)]
)
def test_inserted_attention_starts_as_the_identity(name: str, stages: int) -> None:
    torch.manual_seed(0)
    network = Network(backbone=name, squeeze_excite=16).eval()
    plain = Network(backbone=name).eval()
    state = network.state_dict()
    own = {key: value for key, value in state.items() if ".squeeze_excite." not in key}
    plain.load_state_dict(own)
    inserted = [part for part in network.modules() if isinstance(part, SqueezeExcite)]
    assert len(inserted) == stages
    x = torch.rand(2, 3, 64, 64)
    before = plain.backbone(x)
    assert torch.equal(network.backbone(x), before)
    for part in inserted:
        nn.init.normal_(part.fc2.weight, std=10)
    assert not torch.allclose(network.backbone(x), before, rtol=0.1)
    found = convert_attention(network)
    assert sum(isinstance(m.gate, type(inserted[0].gate)) for m in found) == stages


def test_inserted_attention_learns_and_reduces_narrow_maps() -> None:
    torch.manual_seed(0)
    network = Network(backbone="mobilenetv3_small_050", squeeze_excite=1000)
    network.backbone(torch.rand(2, 3, 64, 64)).square().sum().backward()
    inserted = [network.get_submodule(name) for name, _ in network.named_modules() if name.endswith("squeeze_excite")]
    assert len(inserted) == 4
    for part in inserted:
        assert isinstance(part, SqueezeExcite)
        assert part.fc1.out_channels == 1
        assert part.fc2.bias is not None
        assert part.fc2.bias.grad is not None
        assert part.fc2.bias.grad.any()


def test_inserted_attention_learns_at_the_rate_of_new_layers() -> None:
    network = Network(backbone="mobilenetv3_small_050", squeeze_excite=16, backbone_lr=0.1)
    network.set_classes(3)
    inside = len(list(network.backbone.parameters()))
    for conditioned in (False, True):
        if conditioned:
            convert_attention(network)
        rates = {id(p): group["lr"] for group in network.parameter_groups(1.0) for p in group["params"]}
        for name, parameter in network.named_parameters():
            new = ".squeeze_excite." in name or not name.startswith("backbone.")
            assert rates[id(parameter)] == (1.0 if new else 0.1), name
    assert len(list(network.backbone.parameters())) > inside  # the target's squeezes
    own = Network(backbone="small_se_net", backbone_lr=0.1)  # whose attention is no insertion
    own.set_classes(3)
    assert [group["lr"] for group in own.parameter_groups(1.0)] == [0.1, 1.0]


@pytest.mark.parametrize("backbone", ["small_bn_net", "vit_tiny_patch16_224", "convnext_atto"])
def test_attention_needs_stages_of_blocks(backbone: str) -> None:
    with pytest.raises(UserError, match="squeeze_excite follows the stages of a timm network"):
        Network(backbone=backbone, squeeze_excite=16)
    with pytest.raises(UserError, match="Identity has none"):
        insert_attention(nn.Identity(), 16)


def test_frozen_attention_is_refused() -> None:
    with pytest.raises(UserError, match="squeeze_excite learns nothing in a frozen backbone"):
        Network(backbone="resnet18", squeeze_excite=16, frozen=True)


def test_small_se_net_attends_behind_each_convolution() -> None:
    net, without = SmallSENet(), SmallBNNet()
    kinds = [type(m) for m in net.layers]
    assert [kinds[i + 2] for i, kind in enumerate(kinds) if kind is nn.Conv2d] == [SqueezeExcite] * 3
    assert [kind for kind in kinds if kind is not SqueezeExcite] == [type(m) for m in without.layers]
    assert len(convert_attention(net)) == 3
