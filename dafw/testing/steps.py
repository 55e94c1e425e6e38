"""Watching the operations of training steps."""

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dafw.problems.reads import are_needed

#: Operations after which the host waits for the device.
HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_to_cpu")
#: Operations that touch no data.
VIEWS = {
    "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze",
    "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias", "lift_fresh",
}  # fmt: skip


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts ATen operations, views excluded, and lists those that read the device from the host.

    Attributes:
        counts: of the operations.
        host_reads: the reads.
        needed_reads: the reads within :func:`~dafw.problems.reads.needed_reads`, which are no others.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.host_reads: list[str] = []
        self.needed_reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in HOST_READS or (name in ("index", "index_put", "index_put_") and _has_mask(args)):
            (self.needed_reads if are_needed() else self.host_reads).append(name)
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class HostCalls(TorchFunctionMode):
    """Lists reads of the device that are no operation where that device is the host: ``tolist``, ``numpy``, ``cpu``.

    Args:
        reads: the list to add to.
        needed: the list for reads within :func:`~dafw.problems.reads.needed_reads`.
    """

    def __init__(self, reads: list[str], needed: list[str] | None = None) -> None:
        super().__init__()
        self.reads, self.needed = reads, [] if needed is None else needed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            (self.needed if are_needed() else self.reads).append(func.__name__)
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


class StepWatch(pl.Callback):
    """Watches every training step, from its start until its end, the look at the terms left out.

    Attributes:
        operations: ATen operations of each step.
        passes: passes through the backbone in each step.
        host_reads: operations that read the device from the host, over all steps.
        needed_reads: those that a detector cannot do without, over all steps.
    """

    def __init__(self) -> None:
        self.operations: list[int] = []
        self.counters: list[Counter[str]] = []
        self.passes: list[int] = []
        self.host_reads: list[str] = []
        self.needed_reads: list[str] = []
        self._calls = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Counts the backbone's calls."""

        def count(*_: Any) -> None:
            self._calls += 1

        pl_module.network.backbone.register_forward_pre_hook(count)

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts to watch."""
        self._calls, self._mode = 0, Operations()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._calls_to_host = HostCalls(self.host_reads, self.needed_reads)
        self._calls_to_host.__enter__()  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops."""
        self._calls_to_host.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.operations.append(sum(self._mode.counts.values()))
        self.counters.append(self._mode.counts)
        self.host_reads += self._mode.host_reads
        self.needed_reads += self._mode.needed_reads
        self.passes.append(self._calls)
