from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dafw.nn.layout import BatchLayout
from dafw.nn.network import Network
from dafw.nn.norm import NORM_MODES, DomainBatchNorm, NormMode, convert_norm

SHAPES: list[tuple[int, ...]] = [(), (5,), (4, 3), (2, 3, 2)]
TORCH: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
N_S, N_T, C = 5, 7, 3


def domains(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    source = torch.randn(N_S, C, *shape, dtype=torch.float64)
    return source, 2 * torch.randn(N_T, C, *shape, dtype=torch.float64) - 1


def layers(shape: tuple[int, ...], mode: NormMode, **arguments: Any) -> tuple[nn.Module, DomainBatchNorm]:
    """A layer of torch's in training mode, and one of ours with the same state."""
    torch.manual_seed(4)
    reference = TORCH[len(shape)](C, **arguments).double()
    for tensor in (*reference.parameters(), reference.running_mean):
        nn.init.normal_(tensor)
    ours = DomainBatchNorm(C, mode=mode, layout=BatchLayout(N_S), **arguments).double()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def state_of(layer: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {name: getattr(layer, prefix + name) for name in names}


class Operations(TorchDispatchMode):
    """Counts ATen operations; raises where the host would have to wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal")
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_joint_is_one_call_on_the_whole_batch(shape: tuple[int, ...], momentum: float | None) -> None:
    reference, ours = layers(shape, "joint", momentum=momentum)
    for scale in (1.0, 3.0):
        x = torch.cat(domains(shape)) * scale
        check(ours(x), reference(x))
    for name, expected in state_of(reference).items():
        check(getattr(ours, name), expected)


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_separate_is_one_call_per_domain_source_first(shape: tuple[int, ...], momentum: float | None) -> None:
    reference, ours = layers(shape, "separate", momentum=momentum)
    source, target = domains(shape)
    for scale in (1.0, 3.0):
        found = ours(torch.cat([source, target * scale]))
        check(found, torch.cat([reference(source), reference(target * scale)]))
    for name, expected in state_of(reference).items():
        check(getattr(ours, name), expected)
    assert ours.num_batches_tracked is not None
    assert ours.num_batches_tracked.item() == 4


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_domain_specific_is_a_layer_per_domain(shape: tuple[int, ...], momentum: float | None) -> None:
    for_target, ours = layers(shape, "domain_specific", momentum=momentum)
    for_source = deepcopy(for_target)
    with torch.no_grad():
        for_source.weight *= -2  # type: ignore[operator]
        ours.source_weight *= -2  # type: ignore[operator]
    source, target = domains(shape)
    x = torch.cat([source, target])
    for _ in range(2):
        check(ours(x), torch.cat([for_source(source), for_target(target)]))
    for name, expected in state_of(for_source).items():
        check(getattr(ours, f"source_{name}"), expected)
    for name, expected in state_of(for_target).items():
        check(getattr(ours, name), expected)
    for layer in (ours, for_source, for_target):
        layer.eval()
    check(ours(x), torch.cat([for_source(source), for_target(target)]))
    ours.layout.num_source = None
    check(ours(x), for_target(x))
    ours.layout.num_source = len(x)
    check(ours(x), for_source(x))
    ours.layout.num_source = 0
    check(ours(x), for_target(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_is_evaluation_but_trains_its_affine(shape: tuple[int, ...]) -> None:
    reference, ours = layers(shape, "frozen")
    reference.eval()
    before = {name: value.clone() for name, value in ours.named_buffers()}
    x = torch.cat(domains(shape))
    found = ours(x)
    check(found, reference(x))
    assert all(torch.equal(value, before[name]) for name, value in ours.named_buffers())
    found.square().sum().backward()
    reference(x).square().sum().backward()
    for name, parameter in reference.named_parameters():
        check(ours.get_parameter(name).grad, parameter.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["joint", "separate", "frozen"])
def test_evaluation_uses_running_statistics(mode: NormMode) -> None:
    reference, ours = layers((4,), mode)
    x = torch.cat(domains((4,)))
    check(ours.eval()(x), reference.eval()(x))
    assert ours.num_batches_tracked is not None
    assert ours.num_batches_tracked.item() == 0


@pytest.mark.parametrize("mode", ["joint", "separate", "domain_specific"])
@pytest.mark.parametrize("arguments", [{"affine": False}, {"track_running_stats": False}])
def test_without_affine_or_running_statistics(mode: NormMode, arguments: dict[str, bool]) -> None:
    reference = nn.BatchNorm1d(C, **arguments)
    ours = DomainBatchNorm(C, mode=mode, layout=BatchLayout(N_S), **arguments)
    assert {key.removeprefix("source_") for key in ours.state_dict()} == set(reference.state_dict())
    source, target = (x.float() for x in domains(()))
    x = torch.cat([source, target])
    expected = reference(x) if mode == "joint" else torch.cat([reference(source), reference(target)])
    torch.testing.assert_close(ours(x), expected)
    if "track_running_stats" in arguments:  # evaluation is then by the batch too
        torch.testing.assert_close(ours.eval()(x), expected)


@pytest.mark.parametrize("mode", NORM_MODES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_gradients_after_two_passes(mode: NormMode, momentum: float | None) -> None:
    ours = layers((4,), mode, momentum=momentum)[1]
    x = torch.cat(domains((4,))).requires_grad_(True)
    first = ours(x).sin().sum()
    (first + ours(x * 2).sin().sum()).backward()
    assert x.grad is not None
    probe = torch.zeros_like(x)
    probe[1, 1, 1] = probe[-1, 2, 0] = 1e-6
    fresh = layers((4,), mode, momentum=momentum)[1]

    def loss(at: Tensor) -> Tensor:
        return fresh(at).sin().sum() + fresh(at * 2).sin().sum()

    with torch.no_grad():
        slope = (loss(x + probe) - loss(x - probe)) / 2e-6
    assert (x.grad * probe).sum().item() / 1e-6 == pytest.approx(slope.item(), rel=1e-4, abs=1e-6)


def test_joint_costs_what_torch_costs() -> None:
    counts = []
    x = torch.randn(8, C, 4, 4)
    for layer in (nn.BatchNorm2d(C), DomainBatchNorm(C, layout=BatchLayout(3))):
        with Operations() as operations:
            layer(x).sum().backward()
        counts.append(operations.counts)
    assert counts[0] == counts[1]
    assert any("add_" in name for name in counts[0])
    assert any("batch_norm" in name for name in counts[0])


@pytest.mark.parametrize("mode", NORM_MODES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_the_device(mode: NormMode, momentum: float | None, training: bool) -> None:
    layer = DomainBatchNorm(C, mode=mode, momentum=momentum, layout=BatchLayout(3)).train(training)
    with Operations() as operations:
        layer(torch.randn(8, C)).sum().backward()
    assert operations.counts


@pytest.mark.parametrize("mode", ["separate", "domain_specific"])
def test_a_domain_of_one_row_is_torchs_error(mode: NormMode) -> None:
    layer = DomainBatchNorm(C, mode=mode, layout=BatchLayout(1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(torch.randn(6, C))
    assert layer(torch.randn(6, C, 2)).shape == (6, C, 2)  # several values in the one row


def test_one_row_in_all_is_torchs_error() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        DomainBatchNorm(C)(torch.randn(1, C))


def test_more_source_rows_than_rows() -> None:
    with pytest.raises(ValueError, match="num_source is 7, but the batch has 6 rows"):
        DomainBatchNorm(C, layout=BatchLayout(7))(torch.randn(6, C))


def test_unknown_mode_and_frozen_without_statistics() -> None:
    with pytest.raises(ValueError, match="joint, separate, domain_specific, frozen"):
        DomainBatchNorm(C, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="running statistics"):
        DomainBatchNorm(C, mode="frozen", track_running_stats=False)


def test_state_dict_keys_are_torchs() -> None:
    expected = list(nn.BatchNorm2d(C).state_dict())
    for mode in ("joint", "separate", "frozen"):
        assert list(DomainBatchNorm(C, mode=mode).state_dict()) == expected
    assert set(DomainBatchNorm(C, mode="domain_specific").state_dict()) == {
        *expected, *(f"source_{key}" for key in expected)
    }  # fmt: skip


def test_checkpoints_load_into_both_branches_or_each_its_own() -> None:
    plain = nn.BatchNorm1d(C)
    plain(torch.randn(6, C))
    network = nn.Sequential(DomainBatchNorm(C, mode="domain_specific", layout=BatchLayout(3)))
    state = {f"0.{key}": value for key, value in plain.state_dict().items()}
    network.load_state_dict(state)
    for key, value in plain.state_dict().items():
        assert torch.equal(network[0].state_dict()[f"source_{key}"], value)
        assert torch.equal(network[0].state_dict()[key], value)
    assert len(state) == 5  # the caller's own remains as it was
    network(torch.randn(6, C))
    again = nn.Sequential(DomainBatchNorm(C, mode="domain_specific"))
    again.load_state_dict(network.state_dict())
    assert not torch.equal(again[0].source_running_mean, again[0].running_mean)
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("mode", ["joint", "domain_specific"])
def test_a_checkpoint_without_the_counter_loads_if_it_is_old(mode: NormMode) -> None:
    state = nn.BatchNorm1d(C).state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        DomainBatchNorm(C, mode=mode).load_state_dict(state)
    del state._metadata  # type: ignore[attr-defined]
    DomainBatchNorm(C, mode=mode).load_state_dict(state)


@pytest.mark.parametrize("mode", NORM_MODES)
def test_rows_do_not_depend_on_each_other_in_evaluation(mode: NormMode) -> None:
    layer = layers((4,), mode)[1].eval()
    x = torch.cat(domains((4,)))
    layer.layout.num_source = None
    check(layer(x)[:2], layer(x[:2]))


def test_half_precision_input_with_full_precision_layer() -> None:
    layer = DomainBatchNorm(C, mode="separate", layout=BatchLayout(4))
    y = layer(torch.randn(8, C, 2, 2).bfloat16())
    assert y.dtype == torch.bfloat16
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


def test_channels_last_is_kept() -> None:
    x = torch.randn(8, C, 4, 4).contiguous(memory_format=torch.channels_last)
    layer = DomainBatchNorm(C, mode="domain_specific", layout=BatchLayout(4))
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_deep_copies_see_the_same_rows() -> None:
    network = nn.Sequential(DomainBatchNorm(C, mode="domain_specific"), nn.ReLU())
    copy = deepcopy(network)
    network[0].layout.num_source = 3
    assert copy[0].layout.num_source == 3
    assert copy[0].source_weight is not network[0].source_weight


@pytest.mark.parametrize("mode", NORM_MODES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_untracked_pass_normalises_alike_and_leaves_the_running_statistics(
    mode: NormMode, momentum: float | None
) -> None:
    _, layer = layers((4,), mode, momentum=momentum)
    tracked = deepcopy(layer)
    tracked.layout = BatchLayout(N_S)
    x = torch.cat(domains((4,)))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with layer.layout.untracked():
        check(layer(x), tracked(x))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer(x)
    changed = [name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(changed) == (mode != "frozen"), "a pass after it is tracked again"


@pytest.mark.parametrize("mode", NORM_MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_test_batchs_own_statistics(mode: NormMode, shape: tuple[int, ...]) -> None:
    """Evaluation then does to the rows of one domain what training does, and leaves the running statistics."""
    reference, ours = layers(shape, mode)
    ours.eval()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    _, x = domains(shape)
    for source_rows in (0, len(x)):
        ours.layout.num_source = source_rows
        ours.layout.test_batch = False
        plain = ours(x)
        ours.layout.test_batch = True
        check(ours(x), deepcopy(reference)(x))
        assert not torch.allclose(ours(x), plain)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_one_value_per_channel_is_normalised_by_the_running_statistics() -> None:
    _, ours = layers((), "joint")
    ours.eval()
    ours.layout.num_source = 0
    x = domains(())[1][:1]
    plain = ours(x)
    ours.layout.test_batch = True
    assert torch.equal(ours(x), plain)


def test_passes_that_are_not_tracked_may_lie_within_each_other() -> None:
    layout = BatchLayout()
    with layout.untracked():
        with layout.untracked():
            pass
        assert not layout.track
    assert layout.track


def test_a_fixed_affine_keeps_scale_and_shift_while_statistics_go_on() -> None:
    torch.manual_seed(0)
    network = Network("small_bn_net", bottleneck=4, norm_affine="fixed", input_size=20)
    network.set_classes(2)
    layout = convert_norm(network, "separate")
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    layers = {name for name, layer in network.backbone.named_modules() if isinstance(layer, DomainBatchNorm)}
    assert fixed == {f"backbone.{name}.{part}" for name in layers for part in ("weight", "bias")}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameter_groups(0.1), weight_decay=0.1)
    layout.num_source = 4
    network(torch.rand(8, 3, 20, 20)).logits.square().sum().backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert fixed.isdisjoint(moved)
    assert {f"backbone.{name}.running_mean" for name in layers} <= moved
    assert {"bottleneck.1.weight", "bottleneck.1.bias"} <= moved
