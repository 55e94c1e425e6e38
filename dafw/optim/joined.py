"""Several optimisers of different classes that look like one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from dafw.optim.fused import keep_form


class JoinedOptimizers(Optimizer):
    """Steps several optimisers at once; its groups and its state are theirs, so that they are saved and loaded as one.

    Each parameter belongs to one of the optimisers, and is updated as that optimiser alone would update it.

    Args:
        parts: the optimisers. Their groups follow each other in :attr:`param_groups`.
        defaults: the options of a group that says nothing, which are those of the main optimiser.
    """

    def __init__(self, parts: Sequence[Optimizer], defaults: dict[str, Any]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})  # no option of one for another
        self.defaults, self.parts = defaults, list(parts)
        self._share()
        keep_form(self)

    def _share(self) -> None:
        """Gives each optimiser its groups, and all of them one state."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the groups and the state of all optimisers."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each optimiser.

        Args:
            closure: computes the loss and its gradients; it is called once, before the steps.

        Returns:
            What ``closure`` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
