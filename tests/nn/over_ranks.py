"""What each rank of the distributed tests computes."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dafw.losses.confusion import class_confusion
from dafw.losses.coral import coral, mean_and_covariance
from dafw.losses.entropy import certainty_weights, information_maximisation
from dafw.losses.mmd import cyclic_mmd, joint_mk_mmd, mk_mmd
from dafw.losses.norms import norm_to_radius, stepwise_norm
from dafw.losses.nuclear import negative_nuclear_norm
from dafw.losses.transferability import mean_one
from dafw.nn.attention import domain_gap
from dafw.nn.distributed import from_first_rank, gather_rows, mean_over_ranks, sum_over_ranks
from dafw.nn.ibn import IBN
from dafw.nn.layout import BatchLayout
from dafw.nn.mlp import mlp
from dafw.nn.norm import NORM_MODES, DomainBatchNorm, convert_norm

ROWS, CHANNELS = 8, 3
Losses = dict[str, Callable[[Tensor, Tensor], Tensor]]
LOSSES: Losses = {
    "coral": coral,
    "mean_and_covariance": mean_and_covariance,
    "mmd": mk_mmd,
    "mmd_biased": lambda s, t: mk_mmd(s, t, estimator="biased"),
    "mmd_linear": lambda s, t: mk_mmd(s, t, linear=True),
    "mmd_tllib": lambda s, t: mk_mmd(s, t, estimator="tllib"),
    "mmd_tllib_linear": lambda s, t: mk_mmd(s, t, estimator="tllib", linear=True),
    "mmd_cyclic": cyclic_mmd,
    "joint_mmd": lambda s, t: joint_mk_mmd((s, s[:, :3]), (t, t[:, 1:])),
    "joint_mmd_linear": lambda s, t: joint_mk_mmd((s, s[:, :3]), (t, t[:, 1:]), estimator="tllib", linear=True),
    "confusion": lambda s, t: class_confusion(t) + class_confusion(s, temperature=1.0),
    "nuclear": lambda s, t: negative_nuclear_norm(t) + negative_nuclear_norm(s, scale="values"),
    "norms": lambda s, t: norm_to_radius(t, 2.0) + stepwise_norm(s, 0.5),
    "information": lambda s, t: information_maximisation(t) + information_maximisation(s),
    "certainty_weights": lambda s, t: (certainty_weights(s.detach()) * t.square().sum(1)).mean() + s.mean(),
    "mean_one": lambda s, t: (mean_one(t[:, 0]) * t.square().sum(1)).mean() + s.mean(),
    # a rank's own rows against all: differs between ranks, and its mean over them is a mean over all rows
    "own_rows_against_all": lambda s, t: (s @ gather_rows(t).t()).tanh().mean(),
}


class NoHostReads(TorchDispatchMode):
    """Raises where a device would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::equal"):
            raise AssertionError(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


def averaged(x: Tensor) -> Tensor:
    """What DistributedDataParallel does to a gradient."""
    x = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def inputs(shape: tuple[int, ...], rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's rows of each domain, and a weight for every row of both."""
    generator = torch.Generator().manual_seed(len(shape))
    source = torch.randn(ROWS, CHANNELS, *shape, generator=generator, dtype=torch.float64)
    target = 2 * torch.randn(ROWS, CHANNELS, *shape, generator=generator, dtype=torch.float64) + 3
    weight = torch.randn(2, ROWS, CHANNELS, *shape, generator=generator, dtype=torch.float64)
    mine = slice(rank, None, world)
    return source[mine], target[mine], torch.cat([weight[0, mine], weight[1, mine]])


def of_losses(rank: int, world: int) -> dict[str, Tensor]:
    found = {}
    for name, loss in LOSSES.items():
        torch.manual_seed(0)
        layer = nn.Linear(CHANNELS, 4, dtype=torch.float64)
        source, target, _ = inputs((), rank, world)
        source.requires_grad_(True)
        value = loss(layer(source), layer(target))
        value.backward()
        found[name] = averaged(value)
        found[f"{name}/weight"] = averaged(layer.weight.grad)
        found[f"{name}/bias"] = averaged(layer.bias.grad)
        found[f"{name}/rows"] = gather_rows(source.grad) / world
    return found


def of_norm(mode: Any, shape: tuple[int, ...], momentum: float | None, rank: int, world: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    layout = BatchLayout(ROWS // world)
    layer = DomainBatchNorm(CHANNELS, mode=mode, momentum=momentum, layout=layout).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(CHANNELS))
    source, target, weight = inputs(shape, rank, world)
    source.requires_grad_(True)
    found = {}
    with NoHostReads():
        for step in range(2):  # the second one with a gradient through the gradient
            y = layer(torch.cat([source, target * (1 + step)]))
            value = (y.tanh() * weight).mean()
            (slope,) = torch.autograd.grad(value, source, create_graph=True)
            (value + step * slope.square().sum() * ROWS / world).backward()
    found["value"] = averaged(value)
    found["y"] = gather_rows(y[: ROWS // world])
    found["rows"] = gather_rows(source.grad) / world
    for name, parameter in layer.named_parameters():
        found[f"grad/{name}"] = averaged(parameter.grad)
    return found | {f"buffer/{name}": buffer.clone() for name, buffer in layer.named_buffers()}


def of_others(rank: int, world: int) -> dict[str, Tensor]:
    x = torch.arange(6.0, dtype=torch.float64).reshape(6, 1)[rank::world].requires_grad_(True)
    total = sum_over_ranks(x.square().sum())
    (slope,) = torch.autograd.grad(total.square(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    found = {"gathered": gather_rows(x), "total": total, "labels": gather_rows(torch.arange(6)[rank::world])}
    found |= {"slope": gather_rows(slope) / world, "curvature": gather_rows(curvature) / world}
    several = [x.detach().sum(), x.detach().sum() * torch.ones(2, 3, dtype=torch.float64)]
    found |= {f"averages {i}": average * world for i, average in enumerate(mean_over_ranks(several))}
    torch.manual_seed(2)
    critic = mlp(CHANNELS, [5], 1, norm=True).double()
    source, target, _ = inputs((), rank, world)
    found["critic"] = gather_rows(critic(torch.cat([source, target]))[: len(source)])
    layer = DomainBatchNorm(CHANNELS, layout=BatchLayout(sync=False)).double()
    found["own_statistics"] = layer(source).mean(0).abs().max()
    bare = DomainBatchNorm(CHANNELS, affine=False, track_running_stats=False)
    found["bare"] = gather_rows(bare(source))
    found["gap"] = domain_gap(source, target)
    ibn = nn.Sequential(IBN(CHANNELS, 0.4)).double()
    convert_norm(ibn, "separate").num_source = ROWS // world
    found["ibn"] = gather_rows(ibn(torch.cat(inputs((2, 3), rank, world)[:2]))[: ROWS // world])
    found["ibn_var"] = ibn[0].BN.running_var.clone()
    found["first_rank"] = from_first_rank(torch.arange(4.0) * (rank + 1))
    half = DomainBatchNorm(CHANNELS).bfloat16()(source.bfloat16())
    found["half_is_half"] = torch.tensor(half.dtype == torch.bfloat16)
    one_row_each = DomainBatchNorm(CHANNELS).double()(inputs((), rank, world)[0][:1] if world > 1 else source[:2])
    found["one_row_each"] = gather_rows(one_row_each)
    return found


def everything(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """All results, by group; they should not depend on ``world``."""
    found = {"losses": of_losses(rank, world), "others": of_others(rank, world)}
    for mode, shape, momentum in product(NORM_MODES, ((), (2, 3)), (0.3, None)):
        found[f"norm {mode} {shape} {momentum}"] = of_norm(mode, shape, momentum, rank, world)
    return found
