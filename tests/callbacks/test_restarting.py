"""Going back to the best validation of a warm-up."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import Tensor

from dafw.callbacks import RestartFromBest
from dafw.errors import UserError
from dafw.methods import UDIM
from dafw.testing import case
from dafw.testing.cases import STEPS_PER_EPOCH, differences


class Scores(pl.Callback):
    """Gives each validation a score, and keeps the weights and moments that it saw."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.validated: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            pl_module.history[-1]["validators"]["source_accuracy"] = self.scores[len(self.validated)]
            self.validated.append(state(trainer, pl_module))


class Starts(pl.Callback):
    """Keeps the weights and moments before each step."""

    def __init__(self) -> None:
        self.started: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.started[pl_module.steps_done] = state(trainer, pl_module)


def state(trainer: pl.Trainer, method: Any) -> dict[str, Tensor]:
    moments = trainer.optimizers[0].state_dict()["state"]
    entries = {f"{key}.{name}": value for key, entry in moments.items() for name, value in entry.items()}
    return {name: value.clone() for name, value in {**method.state_dict(), **entries}.items()}


@pytest.mark.parametrize(("scores", "best"), [([0.2, 0.5, 0.4, 0.9], 1), ([0.5, 0.5, 0.1, 0.9], 0)])
def test_training_goes_on_from_the_best_validation_of_the_warm_up(
    scores: list[float], best: int, tmp_path: Path
) -> None:
    item, given, watch = case(UDIM, warmup=0.75, ema_decay=0.8, optimizer="adam", lr=0.003), Scores(scores), Starts()
    method, _ = item.train(tmp_path, callbacks=[given, RestartFromBest(0.75), watch], epochs=4)
    assert method.steps_done == 4 * STEPS_PER_EPOCH
    for number, validated in enumerate(given.validated[:-1]):
        went_on = watch.started[STEPS_PER_EPOCH * (number + 1)]
        expected = given.validated[best] if number == 2 else validated
        assert not differences(expected, went_on)


def test_without_a_validation_in_the_warm_up_the_last_step_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, _ = case(UDIM, warmup=0.25, restart=True).train(tmp_path)
    said = capsys.readouterr().err
    assert "no validation lies in the first 25 % of training" in said
    plain, _ = case(UDIM, warmup=0.25).train(tmp_path)
    assert not differences(method.state_dict(), plain.state_dict())


def test_it_needs_validations_and_something_to_go_back_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limit_val_batches must not be 0"):
        case(UDIM, restart=True).train(tmp_path, limit_val_batches=0)
    _, trainer = case(UDIM, restart=True, weight=0.0).train(tmp_path)
    assert not any(isinstance(one, RestartFromBest) for one in trainer.callbacks)  # type: ignore[attr-defined]
