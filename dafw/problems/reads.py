"""Host reads that a part cannot do without, such as the number of boxes that remain: they are declared and counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_declared: ContextVar[bool] = ContextVar("declared", default=False)


@contextmanager
def needed_reads() -> Iterator[None]:
    """Within, the host may read the device. The check of a step lists these reads apart from all others."""
    before = _declared.set(True)
    try:
        yield
    finally:
        _declared.reset(before)


def are_needed() -> bool:
    """Whether the code that asks is within :func:`needed_reads`."""
    return _declared.get()


def begin_needed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a part whose backward pass needs reads too; its outputs go through :func:`end_needed`.

    Indices of a part, as a mask of the anchors that count, are read again for its gradient.
    """
    return dict(zip(tensors, _Last.apply(*tensors.values()), strict=True))


def end_needed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a part whose inputs went through :func:`begin_needed`."""
    return {name: _First.apply(value) for name, value in tensors.items()}


class _First(torch.autograd.Function):
    """The first step of the backward pass of a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _declared.set(True)
        return grads[0]


class _Last(torch.autograd.Function):
    """The last step of the backward pass of a part: torch takes the steps of a pass backwards in their order."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        _declared.set(False)
        return grads
