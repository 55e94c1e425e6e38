"""Buffers whose length a checkpoint decides, and flags that the host knows."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class VariableLengthBuffers(nn.Module):
    """Lets named buffers take the shape that they have in a checkpoint. List it before the other bases."""

    #: Names of the buffers that may have another shape in a checkpoint.
    variable_buffers: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.variable_buffers:
            if (held := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_empty(held.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Flag(nn.Module):
    """A yes or no that is in every checkpoint, and that the host knows without reading the device.

    Attributes:
        value: what it is; ``False`` at first.
    """

    flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.zeros((), dtype=torch.bool))
        self.value = False

    def set(self) -> None:
        """Makes it a yes."""
        if not self.value:
            self.flag.fill_(True)
            self.value = True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.value = bool(self.flag)
