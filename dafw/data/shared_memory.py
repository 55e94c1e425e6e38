"""Batches from worker processes through shared memory that is allocated once."""

import os
from collections.abc import Sequence
from itertools import count
from math import prod
from mmap import mmap
from typing import Any, NamedTuple
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dafw.data.batch import Batch, Sample, collate

ALIGNMENT = 64


class SharedMemoryCollator:
    """Collates; in a worker process it does so in one of the worker's slots, memory that the main process shares.

    The usual way makes new shared memory for every tensor of every batch, and its pages cost several times what
    copying the bytes does. Slots stay as long as the loader. The main process reads a batch where it is, and the slot
    is free when the last tensor of the batch is gone: a batch that one keeps never changes. What finds no room goes
    the usual way, and so does everything if the workers are not forked.

    Args:
        workers: number of worker processes.
        slots: slots of each: two batches wait in the loader, the rest are in use.
        size: bytes of address space of a slot, which becomes memory as far as batches fill it.
    """

    def __init__(self, workers: int, slots: int = 5, size: int = 1 << 27) -> None:
        self.key, self.owner, self.size = next(_KEYS), os.getpid(), size
        try:
            self.slots = [[mmap(-1, size) for _ in range(slots)] for _ in range(workers)]
        except OSError:  # address space is limited
            self.slots = [[] for _ in range(workers)]
        self.taken = [mmap(-1, slots) for _ in range(workers)]
        _CARRIERS[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedMemoryCollator, (0,)  # a process that was not forked shares nothing

    def __call__(self, samples: Sequence[Sample]) -> Any:
        """The batch, or what the main process receives as the batch."""
        worker = get_worker_info()
        if worker is None or worker.id >= len(self.slots):
            return collate(samples)
        free = (slot for slot in range(len(self.slots[worker.id])) if not self.taken[worker.id][slot])
        slot = next(free, None)
        return collate(samples) if slot is None else self._fill(worker.id, slot, samples)

    def _fill(self, worker: int, slot: int, samples: Sequence[Sample]) -> "_Parcel":
        memory, end = torch.frombuffer(self.slots[worker][slot], dtype=torch.uint8), 0

        def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            nonlocal end
            start, stop = end, end + prod(shape) * dtype.itemsize
            if stop > self.size:
                return torch.empty(shape, dtype=dtype)
            end = -(-stop // ALIGNMENT) * ALIGNMENT
            return memory[start:stop].view(dtype).view(shape)

        def place(tensor: Tensor) -> Any:
            if tensor.untyped_storage().data_ptr() != memory.data_ptr():
                tensor = empty(tensor.shape, tensor.dtype).copy_(tensor)
            if tensor.untyped_storage().data_ptr() != memory.data_ptr():
                return tensor
            start = tensor.data_ptr() - memory.data_ptr()
            return _Place(start, start + tensor.nbytes, tensor.dtype, tensor.shape, tensor.stride())

        content = collate(samples, empty).map(place)
        self.taken[worker][slot] = 1
        return _Parcel(self.key, worker, slot, content)

    def receive(self, worker: int, slot: int, content: Batch) -> Batch:
        """The batch in a slot."""
        array = np.frombuffer(self.slots[worker][slot], np.uint8)
        finalize(array, self._release, worker, slot).atexit = False
        memory = torch.from_numpy(array)
        return content.map(lambda place: place.of(memory), _Place)

    def _release(self, worker: int, slot: int) -> None:
        if os.getpid() == self.owner:  # and not a process that was forked while the batch was in use
            self.taken[worker][slot] = 0


_KEYS = count()
_CARRIERS: WeakValueDictionary[int, SharedMemoryCollator] = WeakValueDictionary()


class _Place(NamedTuple):
    """Where in a slot a tensor is."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, memory: Tensor) -> Tensor:
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.shape, self.stride)


class _Parcel(NamedTuple):
    """A batch in a slot; unpickled, it is the batch."""

    key: int
    worker: int
    slot: int
    content: Batch

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, tuple(self)


def _receive(key: int, worker: int, slot: int, content: Batch) -> Batch:
    return _CARRIERS[key].receive(worker, slot, content)
