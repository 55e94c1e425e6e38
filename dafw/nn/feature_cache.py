"""Features of a network that does not learn, each computed once."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[bytes, Tensor]
_KNOWN: dict[bytes, Features] = {}  # of the whole process: the runs of a table share them


class FeatureCache:
    """Calls a frozen module, and keeps what it made of each input, to be looked up the next time.

    An input is known by its content, whatever data it comes from. What is kept is of the module's weights and code, the
    device and the precision: with others it is computed anew. Each new input is passed by itself, so that its features
    do not depend on those beside it, and a run that goes on ends as one that was never stopped.

    Args:
        limit: how many inputs are kept, of d numbers each; further ones are computed each time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.weights: bytes | None = None

    def forget(self, *_: Any) -> None:
        """The weights may have changed. What was made of others is not lost: they may come back."""
        self.weights = None

    def __call__(self, module: nn.Module, x: Tensor, prepare: Callable[[Tensor], Tensor], how: str) -> Tensor:
        """``module(prepare(x))`` for inputs (N, ...), features (N, ...), without a gradient.

        Args:
            module: in evaluation mode.
            x: a batch.
            prepare: what the module sees of a batch; treats each row by itself.
            how: names what ``prepare`` does, and in which precision.
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
        """Tensors that training may use, even if a test, in inference mode, made them."""
        with torch.inference_mode(False), torch.no_grad():
            found: Tensor = module(prepare(x.clone()))
            return found


def _keys(x: Tensor) -> list[bytes]:
    """One for each row, of its shape, type and content."""
    kind = blake2b(f"{tuple(x.shape[1:])} {x.dtype}".encode()).digest()
    return [blake2b(_bytes(row), digest_size=16, key=kind).digest() for row in x.cpu()]


def _digest(module: nn.Module) -> bytes:
    """Of the structure and of all weights and statistics."""
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
