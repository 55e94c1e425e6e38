"""Batch normalisation of a stream: against vectors of the authors' code, and where a batch has too few values."""

from typing import Any

import pytest
import torch
from golden_vectors import golden
from numpy.testing import assert_allclose
from torch import Tensor, nn

from dafw.nn.layout import BatchLayout, StreamStatistics
from dafw.nn.norm import DomainBatchNorm, norm_parameters

PLAIN: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
BATCH, AVERAGE, MIXED = StreamStatistics("batch"), StreamStatistics("average"), StreamStatistics("mixed", 0.3)
RULES = [BATCH, AVERAGE, MIXED]


def layer(statistics: StreamStatistics | None, channels: int = 3, **arguments: Any) -> DomainBatchNorm:
    """In evaluation mode, with statistics and parameters of its own."""
    torch.manual_seed(1)
    made = DomainBatchNorm(channels, layout=BatchLayout(stream=statistics), **arguments).double().eval()
    if made.running_mean is not None and made.running_var is not None:
        made.running_mean.copy_(torch.randn(channels))
        made.running_var.copy_(torch.rand(channels) + 0.5)
    return made


def filled(v: Any, statistics: StreamStatistics | None) -> DomainBatchNorm:
    made = DomainBatchNorm(len(v["weight"]), eps=float(v["eps"]), layout=BatchLayout(stream=statistics)).eval()
    state = {"weight": "weight", "bias": "bias", "running_mean": "src_mean", "running_var": "src_var"}
    for name, key in state.items():
        made.state_dict()[name].copy_(torch.as_tensor(v[key]))
    return made


def test_the_rules_are_those_of_the_authors() -> None:
    v = golden("alpha_bn/alpha_bn.npz")
    x = torch.as_tensor(v["x"])
    for name, expected in v.items():
        if name.startswith("y_alpha_"):
            mixed = filled(v, StreamStatistics("mixed", float(name.removeprefix("y_alpha_"))))
            assert_allclose(mixed(x).detach(), expected, **PLAIN)
            assert_allclose(mixed.running_mean, v["src_mean"])
    assert_allclose(filled(v, BATCH)(x).detach(), v["y_bn1_batchstats"], **PLAIN)
    average = filled(v, AVERAGE)
    assert_allclose(average(x).detach(), v["y_ema_batch1"], **PLAIN)
    assert_allclose(average.running_mean, v["ema_mean"], **PLAIN)
    assert_allclose(average.running_var, v["ema_var"], **PLAIN)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_one_value_per_channel_stays_finite_and_takes_the_running_variance(rule: StreamStatistics) -> None:
    x = torch.tensor([[3.0, -2.0, 0.5]], dtype=torch.float64)
    made = layer(rule)
    assert made.running_mean is not None
    assert made.running_var is not None
    mean, var = made.running_mean.clone(), made.running_var.clone()
    weight = 0.0 if rule is BATCH else rule.weight
    torch.testing.assert_close(made(x), (x - mean.lerp(x[0], weight)) / (var + made.eps).sqrt())
    torch.testing.assert_close(made.running_var, var)
    assert bool(layer(rule, track_running_stats=False)(x).isfinite().all())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_only_rows_that_count_make_the_statistics(rule: StreamStatistics) -> None:
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    rows = torch.tensor([True, False, True, True, False, False])
    alone, together = layer(rule), layer(rule)
    expected = alone(x[rows])
    with together.layout.temporarily(counted=rows):
        torch.testing.assert_close(together(x)[rows], expected)
        torch.testing.assert_close(together.running_var, alone.running_var)
    with together.layout.temporarily(counted=torch.zeros(6, dtype=torch.bool)):
        assert bool(together(x).isfinite().all())


def test_vectors_count_by_row_too() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    rows = torch.tensor([True, False, True, True, False])
    expected, together = layer(BATCH)(x[rows]), layer(BATCH)
    with together.layout.temporarily(counted=rows):
        torch.testing.assert_close(together(x)[rows], expected)


def test_an_average_follows_unless_the_pass_is_untracked() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    made, other = layer(AVERAGE), layer(AVERAGE)
    assert made.running_mean is not None
    before = made.running_mean.clone()
    with made.layout.untracked():
        first = made(x)
    assert torch.equal(made.running_mean, before)
    torch.testing.assert_close(first, other(x))
    torch.testing.assert_close(other.running_mean, before.lerp(x.mean((0, 2, 3)), 0.1))
    biased = layer(StreamStatistics("average", 0.1, biased=True))
    assert biased.running_var is not None
    expected = biased.running_var.lerp(x.var((0, 2, 3), correction=0), 0.1)
    biased(x)
    torch.testing.assert_close(biased.running_var, expected)


def test_gradients_flow_through_the_statistics_of_the_batch() -> None:
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    for rule in RULES:
        made = layer(rule, 2)

        def untracked(y: Tensor, made: DomainBatchNorm = made) -> Tensor:
            with made.layout.untracked():
                return made(y)

        assert torch.autograd.gradcheck(untracked, (x,))


def test_a_frozen_layer_keeps_its_running_statistics() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    frozen = DomainBatchNorm(3, mode="frozen", layout=BatchLayout(stream=BATCH)).double().eval()
    torch.testing.assert_close(frozen(x), x / (1 + frozen.eps) ** 0.5)


def test_norm_parameters_are_scales_and_shifts_of_three_kinds() -> None:
    parts = [
        nn.BatchNorm1d(2),
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        DomainBatchNorm(2),
        nn.BatchNorm1d(2, affine=False),
    ]
    module = nn.Sequential(nn.Linear(2, 2), *parts)
    assert [len(p) for p in norm_parameters(module)] == [2] * 8
    module[1].requires_grad_(False)
    assert len(norm_parameters(module)) == 6
