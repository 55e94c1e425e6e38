"""The checks of methods that learn from the stream that they serve, beside those that hold for every method."""

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.methods import TestTimeMethod
from dafw.testing.cases import Case, differences


def check_first_served(item: Case, folder: Path) -> None:
    """The first batch is served what the start model gives under the same statistics, or the method says why not."""
    first = _FirstBatch()
    method = _follow(item, folder, first)
    served = method.served.logits[first.place]
    if item.owner.first_served_reason:  # type: ignore[attr-defined]
        assert not torch.allclose(served, first.logits), "it says that the first batch is served other scores"
    else:
        torch.testing.assert_close(served, first.logits)


class _FirstBatch(pl.Callback):
    """Notes where the first batch is in the stream, and what the start model gives."""

    place: Tensor
    logits: Tensor

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """It comes before the method's."""
        if not batch_idx:
            assert batch.place is not None
            statistics = {"stream": pl_module.stream_statistics, "track": False}
            with torch.no_grad(), pl_module.layout.temporarily(**statistics):
                self.place, self.logits = batch.place, pl_module.start_outputs(batch).logits.clone()


def check_served_before_step(item: Case, folder: Path) -> None:
    """A step of another length changes nothing that was served up to it, and something after it if the model learns."""
    plain, longer = _follow(item, folder), _follow(item, folder, _LongerStep(1))
    before = plain.served.step <= 1
    assert torch.equal(plain.served.logits[before], longer.served.logits[before]), "a batch is served after its step"
    if differences(_weights(plain.network), _weights(plain.start.module)):
        assert not torch.equal(plain.served.logits[~before], longer.served.logits[~before])


class _LongerStep(pl.Callback):
    """From a step on, learning rates are ten times what they were."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """It comes before the method's, which sets the rates."""
        if batch_idx == self.step:
            for group in trainer.optimizers[0].param_groups:
                group["initial_lr"] *= 10


def check_no_row_counts(item: Case, folder: Path) -> None:
    """Steps in which no row counts leave all weights and the optimiser's state as they are, to the last bit."""
    watch = _Nobody(2)
    method = _follow(item, folder, watch, method=item.make(reset="never"))
    if watch.asked:
        moved = differences(watch.weights, _weights(method))
        assert not moved, f"without a row that counts, a step moved {', '.join(moved)}"
        state = method.trainer.optimizers[0].state_dict()["state"]
        assert equal(watch.state, state), "without a row that counts, a step changed the optimiser's state"


class _Nobody(pl.Callback):
    """From a step on, no row counts. It notes the weights and the optimiser's state before that step."""

    def __init__(self, step: int) -> None:
        self.step, self.asked = step, False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Replaces what a method asks."""
        if batch_idx == self.step:
            self.weights = {name: value.clone() for name, value in _weights(pl_module).items()}
            self.state = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
            used = pl_module.used

            def nobody(rows: Tensor) -> Any:
                self.asked = True
                return used(torch.zeros_like(rows))

            pl_module.used = nobody


def check_restart(item: Case, folder: Path) -> None:
    """A return to the start restores everything that the stream has changed, and forgets the optimiser's state."""
    beginning = _Beginning()
    method = _follow(item, folder, beginning)
    method.restart()
    now = {name: value for name, value in method.state_dict().items() if name in beginning.state}
    other = differences(beginning.state, now)
    assert not other, f"a return to the start leaves {', '.join(other)}"
    assert not method.trainer.optimizers[0].state, "a return to the start leaves the optimiser's state"
    assert bool(method.served.done.all())


class _Beginning(pl.Callback):
    """Notes the state at the start of the stream, but for what a restart leaves alone."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """It comes before the method's."""
        if not batch_idx:
            kept = tuple(name for name in pl_module.not_restarted if name != "network.")
            state = pl_module.state_dict().items()
            self.state = {name: value.clone() for name, value in state if not name.startswith(kept)}


def check_batch_of_one(item: Case, folder: Path) -> None:
    """Batches of one sample leave all state and all that is served finite."""
    method = _follow(item, folder, data=item.make_data(batch_size=1, count=8))
    assert bool(method.served.done.all())
    for name, value in method.state_dict().items():
        assert bool(value.isfinite().all()), f"{name} is not finite"


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, without their gradients."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _follow(item: Case, folder: Path, *callbacks: pl.Callback, **options: Any) -> TestTimeMethod:
    """Passes once over the toy stream."""
    method, _ = item.train(folder, callbacks=list(callbacks), **options)
    assert isinstance(method, TestTimeMethod)
    return method


def equal(one: Any, other: Any) -> bool:
    """Whether two nested values are the same, tensors bit for bit; NaN equals NaN."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other) or (one != one and other != other)
