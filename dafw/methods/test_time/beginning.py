"""What a method was at the start of a stream, so that it can return there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Beginning(nn.Module):
    """Copies of the parameters and buffers of a module, by name. They are buffers, so a checkpoint holds them."""

    @torch.no_grad()
    def take(self, module: nn.Module, without: Sequence[str]) -> None:
        """Copies everything in the state dict of a module.

        Args:
            module: what is copied.
            without: how the names of those begin that are left out.
        """
        for name, value in module.state_dict().items():
            if not name.startswith(tuple(without)):
                self.register_buffer(name.replace(".", "/"), value.clone())

    def tensors(self) -> dict[str, Tensor]:
        """The copies, by the names that they had in the state dict of the module."""
        return {name.replace("/", "."): value for name, value in self.named_buffers()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key, value in state_dict.items():
            if key.startswith(prefix):
                self.register_buffer(key.removeprefix(prefix), torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *rest)
