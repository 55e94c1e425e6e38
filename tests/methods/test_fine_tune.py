"""FineTune: which rows each stage sees, its rates, its fresh optimiser, and how many sources it takes."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import FineTune
from dafw.optim.schedules import inverse_decay
from dafw.testing import case

ITEM = case(FineTune)


class Steps(pl.Callback):
    """Notes the rates and whether there is momentum at the start of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.states: list[bool] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        momenta = [state.get("momentum_buffer") for state in optimizer.state.values()]
        self.states.append(any(momentum is not None and bool(momentum.any()) for momentum in momenta))


@pytest.mark.parametrize("switch", [0.0, 0.5, 1.0])
def test_each_stage_has_its_source_its_schedule_and_its_optimiser(switch: float, tmp_path: Path) -> None:
    steps, seen = Steps(), []
    method: Any = ITEM.make(switch=switch, second_lr=0.2)
    passed = method.forward_rows

    def forward_rows(x: torch.Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(x)
        return passed(x, *rest, **options)

    method.forward_rows = forward_rows
    batches: list[Batch] = []

    class Kept(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            batches.append(batch)

    ITEM.train(tmp_path, method=method, callbacks=[steps, Kept()], limit_val_batches=0)
    first = round(8 * switch)
    stages = [(0, first, 1.0), (first, 8, 0.2 if first else 1.0)]
    for start, end, factor in stages:
        assert steps.states[start:end] == [step > start for step in range(start, end)]
        for step in range(start, end):
            rate = 0.05 * factor * inverse_decay((step - start) / (end - start))
            assert steps.rates[step] == pytest.approx(rate)
            batch = batches[step]
            source = 0 if step < first else 1
            rows = batch.x[batch.domain == source]
            assert torch.equal(seen[step], rows)


def test_two_sources_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.source must be \[noisy, clean\], not a$"):
        ITEM.train(tmp_path, data=ITEM.make_data(source="a"))
