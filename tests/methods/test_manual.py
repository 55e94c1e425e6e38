"""Steps that set the gradients themselves train what automatic ones train."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
from manual_method import Manual

from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.testing import case, contract
from dafw.testing.cases import differences

ARGUMENTS = {"forward_target": True, "ema_decay": 0.8}
CASE = case(Manual, **ARGUMENTS)


def test_equal_to_automatic_steps(tmp_path: Path) -> None:
    manual, trainer = CASE.train(tmp_path, precision="64-true")
    automatic, _ = case(SourceOnly, **ARGUMENTS).train(tmp_path, precision="64-true")
    assert trainer.global_step == manual.steps_done == automatic.steps_done
    found = differences(manual.state_dict(), automatic.state_dict())
    assert all(difference < 1e-12 for difference in found.values()), found


def test_resume(tmp_path: Path) -> None:
    assert contract.check_resume([CASE], tmp_path) == {CASE.name: {}}


def test_ranks(tmp_path: Path) -> None:
    assert contract.check_ranks([CASE], tmp_path)[CASE.name] <= 1e-9


def test_scaled_losses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # which Lightning has on a GPU only
    with pytest.raises(UserError, match="bf16-mixed"):
        CASE.train(tmp_path)
