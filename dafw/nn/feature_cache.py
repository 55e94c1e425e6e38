"""A cache for the features of a frozen network: each input is computed once."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[bytes, Tensor]
_KNOWN: dict[bytes, Features] = {}  # one cache for the whole process: the runs of a table share it


class FeatureCache:
    """Calls a frozen module and caches its output for each input.

    An input is identified by its content, whatever data it comes from. Outputs are cached separately for each set of
    weights and code of the module, device and precision. Each new input passes through the module on its own, so its
    features do not depend on the other rows of its batch, and a resumed run ends like one that was never stopped.

    Args:
        limit: maximum number of cached inputs, d numbers each; the outputs for more inputs are computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.weights: bytes | None = None

    def forget(self, *_: Any) -> None:
        """Notes that the weights may have changed. Outputs of the old weights stay cached, since they may come back."""
        self.weights = None

    def __call__(self, module: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor], how: str) -> Tensor:
        """``module(prepare(x))`` for inputs (N, ...) gives features (N, ...), without a gradient.

        Args:
            module: the module, in evaluation mode.
            x: a batch.
            prepare: transforms a batch before the module sees it; must treat each row on its own.
            how: names the transform ``prepare`` and its precision.
        """
        if not len(x):
            return self.compute(module, x, prepare)
        self.weights = self.weights or _digest(module)
        known = _KNOWN.setdefault(self.weights + _circumstances(x, how), {})
        rows = []
        for i, key in enumerate(_keys(x)):
            row = known.get(key)
            if row is None:
                row = self.compute(module, x[i : i + 1], prepare)[0]
                if len(known) < self.limit:
                    known[key] = row
            rows.append(row)
        return torch.stack(rows)

    def compute(self, module: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        """Computes tensors that training may use, even if a test computes them in inference mode."""
        with torch.inference_mode(False), torch.no_grad():
            found: Tensor = module(prepare(x.clone()))
            return found


def _keys(x: Tensor) -> list[bytes]:
    """One key for each row, from its shape, dtype and content."""
    kind = blake2b(f"{tuple(x.shape[1:])} {x.dtype}".encode()).digest()
    return [blake2b(_bytes(row), digest_size=16, key=kind).digest() for row in x.cpu()]


def _digest(module: nn.Module) -> bytes:
    """A hash of the structure and of all weights and statistics."""
    found = blake2b(str(module).encode(), digest_size=16)
    for name, value in module.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(_bytes(value))
    return found.digest()


def _bytes(x: Tensor) -> Any:
    """The content of a tensor, on the host."""
    return x.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()


def _circumstances(x: Tensor, how: str) -> bytes:
    device = x.device.type
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return f"{device} {cast} {how} {torch.get_float32_matmul_precision()}".encode()
