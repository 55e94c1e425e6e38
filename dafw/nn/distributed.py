"""Autograd through collectives, so that a loss over the whole batch is exact on any number of ranks.

Convention: each rank r backpropagates its own loss L_r. DistributedDataParallel then averages the parameters'
gradients over the R ranks. So the quantity that is minimised is (1/R) sum_r L_r.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

Rows = TypeVar("Rows", Tensor, range)


def world_size() -> int:
    """Number of ranks; 1 if no process group was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave_process_group() -> None:
    """Ends the process group, if one was started, while Python can still run.

    Lightning leaves a gloo group open until the process ends. There a gloo thread that still holds a tensor can abort
    the process after all its work is done. Call this function when all ranks are done with collectives.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def report_once(said: str, report: Callable[[], None], patience: float = 5.0) -> None:
    """Reports what went wrong on this rank, but on rank 0 alone if all ranks say the same.

    An error may be of one rank alone. The others may then wait in a collective, so nothing here is one: rank 0 leaves
    what it said in the group's store, where the others look for it. They leave word in turn, since rank 0 must not end
    before: the store ends with it.

    Args:
        said: what went wrong.
        report: says it.
        patience: seconds that a rank waits for another one.
    """
    store = getattr(dist.distributed_c10d, "_get_default_store", lambda: None)() if world_size() > 1 else None
    if store is None:
        report()
    elif dist.get_rank() == 0:
        report()
        store.set("dafw/said", said)
        _come(store, [f"dafw/heard/{rank}" for rank in range(1, world_size())], patience)
    else:
        first = None
        with suppress(RuntimeError):  # rank 0 has ended
            first = store.get("dafw/said").decode() if _come(store, ["dafw/said"], patience) else None
        if first != said:
            report()
        with suppress(RuntimeError):
            store.set(f"dafw/heard/{dist.get_rank()}", "")


def _come(store: Any, keys: list[str], patience: float) -> bool:
    """Waits until the store has the keys, and returns whether it has. ``Store.wait`` would print that it gave up."""
    end = time.monotonic() + patience
    while not store.check(keys):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0])[dist.get_rank() :: world_size()]


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum ``x`` over the ranks; differentiable any number of times.

    s = sum_r x_r enters every rank's loss, so d(sum_q L_q)/dx_r = sum_q dL_q/ds: the backward pass is the same sum.

    Args:
        x: a tensor of any shape; the shape is the same on every rank.

    Returns:
        The sum, the same on every rank; ``x`` itself on one process.
    """
    if world_size() == 1:
        return x
    total: Tensor = _SumOverRanks.apply(x)
    return total


def gather_unequal(x: Tensor, dim: int = 0) -> Tensor:
    """Joins the ranks' tensors in the order of the ranks; they may differ in size along ``dim``; not differentiable.

    Args:
        x: this rank's tensor.
        dim: dimension along which they are joined.

    Returns:
        The joined tensor, the same on every rank; ``x`` itself on one process.
    """
    return x if world_size() == 1 else torch.cat(gather_all_tensors(x), dim)


def mean_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """Average each tensor over the ranks, with one collective for all of them; not differentiable.

    Args:
        tensors: tensors of one dtype and any shapes; the shapes are the same on every rank.

    Returns:
        The averages, the same on every rank; the same list object on one process.
    """
    if world_size() == 1:
        return tensors
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    average_over_ranks(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def average_over_ranks(x: Tensor) -> None:
    """Average ``x`` over the ranks in place; not differentiable.

    Args:
        x: a contiguous tensor; shape and dtype are the same on every rank.
    """
    if world_size() > 1:
        dist.all_reduce(x)
        x.div_(world_size())


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows in the order in which one process would hold them; differentiable any number of times.

    Rank r of R holds positions r, r + R, ... of the global batch, so row i of rank r goes to position i * R + r.

    The gradient is that of one process. Let L be a loss of the gathered rows, computed in the same way on every rank.
    Rank r receives sum_q dL_q/dx_r = R * dL/dx_r, hence parameter gradients R * (dL/dx_r)(dx_r/dw). Their average over
    the ranks is (1/R) sum_r R * (dL/dx_r)(dx_r/dw) = dL/dw.  (The same holds for losses that differ between ranks.)

    Args:
        x: (n, ...), with the same n on every rank. Gather the two domains separately: gathering a joint batch would
            mix their rows.

    Returns:
        (R * n, ...), the same on every rank; ``x`` itself on one process.
    """
    if world_size() == 1:
        return x
    rows: Tensor = _GatherRows.apply(x)
    return rows


def own_rows(x: Rows) -> Rows:
    """The rows of this rank in what :func:`gather_rows` has joined: (R * n, ...) -> (n, ...)."""
    return x if world_size() == 1 else x[dist.get_rank() :: world_size()]


def mean_weights(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights by which a sum over this rank's rows becomes a mean over the rows that count, of all ranks.

    A loss is summed with these weights on each rank. The mean of the ranks' sums is the mean over the rows that count.

    Args:
        rows: (n,) bool, which rows of this rank count.
        dtype: of the weights.

    Returns:
        Weights (n,), 0 for rows that do not count; and the number of rows that count, of all ranks, a scalar.
    """
    counted = rows.to(dtype)
    count = sum_over_ranks(counted.sum())
    return counted * (world_size() / count.clamp_min(1)), count


def from_first_rank(x: Tensor) -> Tensor:
    """Rank 0's ``x`` on every rank, without a gradient; for random numbers on which all ranks must agree.

    Args:
        x: a tensor of any shape; the shape is the same on every rank.
    """
    if world_size() == 1:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(x, 0)
    return x
