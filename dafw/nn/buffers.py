"""Buffers whose length a checkpoint decides: pseudo-labels of all samples, clusters that were found."""

from typing import Any, ClassVar

from torch import nn


class VariableLengthBuffers(nn.Module):
    """Lets named buffers take the shape that they have in a checkpoint. List it before the other bases."""

    #: Names of the buffers that may have another shape in a checkpoint.
    variable_buffers: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.variable_buffers:
            if (held := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_empty(held.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
