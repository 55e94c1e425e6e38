"""Every public test-time method keeps the contract of streams, whichever network and statistics it has."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dafw.data import Batch
from dafw.errors import NonFiniteLoss
from dafw.losses.entropy import entropy
from dafw.methods import Losses, Tent, TestTimeMethod
from dafw.problems import Outputs
from dafw.testing import Case, case, cases, contract

STREAMING = [item for item in cases() if issubclass(item.owner, TestTimeMethod)]
every_method = pytest.mark.parametrize("item", STREAMING, ids=lambda item: item.name)


@every_method
def test_first_served(item: Case, tmp_path: Path) -> None:
    contract.check_first_served(item, tmp_path)


@every_method
def test_served_before_step(item: Case, tmp_path: Path) -> None:
    contract.check_served_before_step(item, tmp_path)


@every_method
def test_no_row_counts(item: Case, tmp_path: Path) -> None:
    contract.check_no_row_counts(item, tmp_path)


@every_method
def test_restart(item: Case, tmp_path: Path) -> None:
    contract.check_restart(item, tmp_path)


@every_method
def test_batch_of_one(item: Case, tmp_path: Path) -> None:
    contract.check_batch_of_one(item, tmp_path)


# ---- what the checks find


class Doubled(Tent):
    """Serves other scores than the model's."""

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        return 2 * outputs.logits


class Late(Tent):
    """Serves a batch once more after its step."""

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.keep(batch, self.present_outputs(batch))
        super().on_train_batch_end(outputs, batch, batch_idx)


class Restless(Tent):
    """Makes its steps without a row that counts."""

    host_reads = 1

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        entropies = entropy(outputs.logits)
        return {"entropy": (self.used(entropies > 0) * entropies).sum()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.moves = True
        super().backward(loss, *args, **kwargs)


class Forgetful(Tent):
    """Leaves the head as the stream has made it."""

    default_learns = "network"

    def restart(self) -> None:
        weights = {name: value.clone() for name, value in self.network.head.state_dict().items()}
        super().restart()
        self.network.head.load_state_dict(weights)


class Infinite(Tent):
    """Divides by the number of other rows."""

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        return {"entropy": entropy(outputs.logits).sum() / (len(batch) - 1)}


@pytest.mark.parametrize(
    ("owner", "check", "error"),
    [
        (Doubled, contract.check_first_served, "not close"),
        (Late, contract.check_served_before_step, "served after its step"),
        (Restless, contract.check_no_row_counts, "a step moved network.backbone.norm.weight"),
        (Forgetful, contract.check_restart, "leaves network.head.weight"),
        (Infinite, contract.check_batch_of_one, "became (inf|nan)"),
    ],
)
def test_what_breaks_the_contract_is_found(owner: type[Tent], check: Any, error: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, NonFiniteLoss), match=error):
        check(case(owner, optimizer="momentum"), tmp_path)
