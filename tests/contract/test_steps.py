"""What counts as a host read of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.testing.steps import HostCalls, Operations

READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "branch": lambda x: bool(x[0] > 0),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("name", READS)
def test_one_read_is_counted_once(name: str) -> None:
    x = torch.ones(3)
    with Operations() as operations, HostCalls(operations.host_reads):
        x = x * 2 + x.sum()
        assert operations.host_reads == []
        READS[name](x)
    assert len(operations.host_reads) == 1
