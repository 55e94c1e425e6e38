"""A problem of one's own goes through the command: masks instead of classes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import CHECKOUT, call, one_run

DENSE = (
    *("--model", "dense_parts.MatchChannels", "--model.network", "dense_parts.DenseNetwork"),
    *("--model.problem", "dense_parts.Masks", "--data", "dense_parts.Squares", "--data.source", "bright"),
    *("--data.target", "dim", "--data.batch_size", "6", "--data.steps_per_epoch", "4", "--trainer.max_epochs", "2"),
    *("--trainer.accelerator", "cpu", "--model.lr", "0.2"),
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie beside the command, as a user's do."""
    shutil.copy(CHECKOUT / "tests" / "problems" / "test_segmentation.py", tmp_path / "dense_parts.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_masks(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", *DENSE)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert (result["metric"], set(result["test"]), set(result["test"]["dim"])) == ("iou", {"bright", "dim"}, {"iou"})
    assert [set(entry["validators"]) for entry in result["history"]] == [{"source_iou", "source_loss"}] * 2
    assert [path.name for path in (folder / "plots").iterdir()] == ["curves.png"]
    for command in ("test", "validate"):
        again = call(capsys, command, *DENSE)
        assert (again.code, again.err) == (0, "")
        assert "iou" in again.out
    refused = call(capsys, "predict", *DENSE)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "Masks" in refused.err
    assert not Path("predictions.csv").exists()
