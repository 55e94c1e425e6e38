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


class Flag(VariableLengthBuffers):
    """A yes or no that is in every checkpoint, and that the host knows without reading the device.

    Attributes:
        flag: of length 1 for yes, and 0 for no. The host knows a length.
    """

    variable_buffers = ("flag",)
    flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.empty(0, dtype=torch.bool))

    @property
    def value(self) -> bool:
        """What it is; ``False`` at first."""
        return len(self.flag) > 0

    def set(self) -> None:
        """Makes it a yes."""
        if not self.value:
            self.flag = torch.ones(1, dtype=torch.bool, device=self.flag.device)
