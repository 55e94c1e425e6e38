"""Random numbers of a training step that depend on neither the ranks nor on whether the run was resumed."""

from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dafw.nn.distributed import world_size


def draw_rows(seed: int, step: int, name: str, count: int, *shape: int) -> NDArray[np.float64]:
    """Random numbers for this rank's rows of a batch, a pure function of the arguments and the rank.

    Row i of rank r of R gets what row i R + r would get in one process, see
    :func:`~dafw.nn.distributed.gather_rows`.

    Args:
        seed: of the run.
        step: number of the batch.
        name: what the numbers are for; another name gives other numbers.
        count: rows n of this rank.
        shape: of the numbers of one row.

    Returns:
        (n, *shape) in [0, 1), on the host.
    """
    ranks = world_size()
    numbers = np.random.default_rng([seed % 2**32, crc32(name.encode()), step]).random((count * ranks, *shape))
    return numbers if ranks == 1 else numbers[dist.get_rank() :: ranks]


def row_seeds(seed: int, step: int, name: str, count: int) -> list[int]:
    """A seed for each of this rank's rows, see :func:`draw_rows`, for what draws numbers of another count in each row.

    Returns:
        n integers in [0, 2^53).
    """
    return [int(2**53 * number) for number in draw_rows(seed, step, name, count)]


def on_device(numbers: NDArray[Any], like: Tensor) -> Tensor:
    """Numbers of the host in the dtype and on the device of ``like``; the host does not wait for the copy."""
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.dtype).to(like.device, non_blocking=True)
