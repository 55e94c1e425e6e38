"""Goes back, once, to the weights and the optimiser's state that validated best in the first part of training."""

from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from dafw.errors import warn


class RestartFromBest(pl.Callback):
    """At a share of training, loads what the method and its optimiser were at the best validation before it.

    The best one has the highest mean accuracy on the sources' validation splits, the first of equals. The number of
    steps, the batches that follow and the learning rates go on as if nothing had happened. Until then a checkpoint of
    the run holds a copy of the method and of its optimiser's state more.

    Args:
        share: the share of training, from 0 to 1.
        criterion: the validator that is compared, higher is better.
    """

    def __init__(self, share: float, criterion: str = "source_accuracy") -> None:
        self.share, self.criterion = share, criterion
        self.done = False
        self.best: dict[str, Any] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keeps a copy if no validation so far was better."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.done:
            return
        score = pl_module.history[-1]["validators"][self.criterion]
        if not self.best or score > self.best["score"]:
            states = {
                "method": pl_module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            }
            self.best = {"score": score, **apply_to_collection(states, Tensor, lambda held: held.to("cpu", copy=True))}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Loads the copy before the first step behind the share."""
        if self.done or pl_module.steps_done / max(pl_module.steps_planned, 1) < self.share:
            return
        best, self.done, self.best = self.best, True, {}
        if not best:
            if trainer.is_global_zero:
                early = f"no validation lies in the first {100 * self.share:g} % of training"
                warn(f"{early}, so training goes on from its last step: lower data.steps_per_epoch")
            return
        pl_module.load_state_dict(best["method"])
        for optimizer, state in zip(trainer.optimizers, best["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Whether the copy was loaded, and the copy until then."""
        return {"done": self.done, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint."""
        self.done, self.best = state_dict["done"], state_dict["best"]
