from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dafw.nn.mlp import mlp
from dafw.nn.norm import NORM_MODES, DomainBatchNorm, NormMode, convert_norm


def network() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(
        inner, BatchNormAct2d(4, act_layer=nn.PReLU), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5)
    )


def built() -> nn.Sequential:
    torch.manual_seed(0)
    module = network()
    for _ in range(2):
        module(torch.randn(6, 3, 5, 5))
    return module


def norms(module: nn.Module) -> list[DomainBatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, DomainBatchNorm)]


@pytest.mark.parametrize("mode", NORM_MODES)
def test_same_tensors_same_keys_same_predictions(mode: NormMode) -> None:
    module = built()
    reference = deepcopy(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    layout = convert_norm(module, mode)
    assert len(norms(module)) == 3
    assert all(layer.layout is layout and layer.mode == mode for layer in norms(module))
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in module.modules())
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert all("source_" in name for name in after.keys() - tensors.keys())
    x = torch.randn(4, 3, 5, 5)
    for num_source in (None, 2):
        layout.num_source = num_source
        torch.testing.assert_close(module.eval()(x), reference.eval()(x))
    assert layout.sync
    if mode == "joint":
        torch.testing.assert_close(module.train()(x), reference.train()(x))


def test_an_optimiser_made_before_remains_valid() -> None:
    module = built()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    convert_norm(module, "separate").num_source = 3
    before = [p.detach().clone() for p in module.parameters()]
    module(torch.randn(6, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(module[1].parameters(), before[4:7], strict=True))


def test_drop_and_activation_of_fused_layers_are_kept() -> None:
    layer = BatchNormAct2d(3, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout(1.0))
    module = nn.Sequential(layer)
    convert_norm(module, "frozen")
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(module(x), torch.zeros_like(x))  # all dropped, and silu(0) = 0
    torch.testing.assert_close(module.eval()(x), nn.functional.silu(x), rtol=1e-4, atol=1e-4)
    assert module[0].act is layer.act


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet"])
def test_a_timm_model(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    reference = deepcopy(model)
    state = model.state_dict()
    layout = convert_norm(model, "domain_specific")
    assert norms(model)
    x = torch.randn(4, 3, 32, 32)
    layout.num_source = 2
    torch.testing.assert_close(model(x), reference(x))
    model.load_state_dict(state)
    for source in (True, False):  # in training each domain is normalised by itself
        part = slice(0, 2) if source else slice(2, 4)
        first = next(m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)).train()
        ours = norms(model)[0].train()
        y = torch.randn(4, first.num_features, 3, 3)
        torch.testing.assert_close(ours(y)[part], first(y[part]))


def test_converting_again_changes_the_mode() -> None:
    module = built()
    first = convert_norm(module, "domain_specific")
    with torch.no_grad():
        norms(module)[0].source_weight *= 3  # type: ignore[operator]
    second = convert_norm(module, "separate")
    assert first is not second
    assert all(layer.layout is second for layer in norms(module))
    assert not any("source_" in key for key in module.state_dict())
    convert_norm(module, "domain_specific")  # starts anew from the branch there is
    assert torch.equal(norms(module)[0].source_weight, norms(module)[0].weight)  # type: ignore[arg-type]


def test_our_own_layers_are_converted_too() -> None:
    bottleneck = mlp(3, [4], 2, norm=True)
    layout = convert_norm(bottleneck, "separate")
    assert bottleneck[1].layout is layout
    assert bottleneck[1].mode == "separate"


def test_a_shared_layer_stays_shared() -> None:
    shared = nn.BatchNorm1d(3)
    module = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 3), shared), "b": nn.Sequential(nn.Linear(3, 3), shared)})
    convert_norm(module, "joint")
    assert isinstance(module["a"][1], DomainBatchNorm)
    assert module["a"][1] is module["b"][1]


def test_frozen_parameters_and_evaluation_mode_are_kept() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3)).eval().requires_grad_(False)
    convert_norm(module, "domain_specific")
    assert not module[0].training
    assert not any(p.requires_grad for p in module.parameters())
    assert len(list(module.parameters())) == 4


def test_sync_batch_norm_is_converted() -> None:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    convert_norm(module, "joint")
    assert isinstance(module[0], DomainBatchNorm)


def test_lightnings_sync_batchnorm_leaves_ours() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    convert_norm(module, "separate")
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(module)[0], DomainBatchNorm)


class Own(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ValueError, match="joint, separate, domain_specific, frozen, group, not 'both'"):
        convert_norm(nn.Linear(2, 2), "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Own: it has a forward pass of its own"):
        convert_norm(nn.Sequential(Own(3)), "joint")
    with pytest.raises(ValueError, match="LazyBatchNorm1d: run a first batch"):
        convert_norm(nn.Sequential(nn.LazyBatchNorm1d()), "joint")
    with pytest.raises(ValueError, match="pass the network that holds it"):
        convert_norm(nn.BatchNorm1d(3), "joint")
