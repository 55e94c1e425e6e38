"""A run has its result, whatever its pictures and W&B do."""

from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, Outcome, call
from matplotlib.figure import Figure

from dafw import plots
from dafw.methods import DANN
from dafw.run.result import RESULT, read_result

FIT = (
    "fit",
    "--model",
    "DANN",
    "--model.width",
    "8",
    *QUICK,
    "--run.plots",
    "true",
    "--run.dir",
    "run",
    "--seed_everything",
    "7",
)
PICTURES = {"curves", "embedding", "confusion"}


def pictures() -> set[str]:
    return {path.stem for path in Path("run/plots").iterdir()}


def fit(capsys: pytest.CaptureFixture[str]) -> Outcome:
    done = call(capsys, *FIT)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "run/result.json"
    result = read_result(Path("run"))
    assert result is not None
    assert result.test["b"].keys() == {"accuracy", "mean_class_accuracy"}
    return done


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_that_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: Any, **__: Any) -> Figure:
        assert Path("run", RESULT).exists(), "the result comes first"
        raise ValueError("no font\nfor this")

    monkeypatch.setattr(plots, name, fail)
    assert fit(capsys).err == f"dafw: warning: {name} could not be drawn: no font for this\n"
    assert pictures() == PICTURES - {name}


def test_pictures_of_a_method_that_fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> dict[str, Figure]:
        raise KeyError("unknown")

    monkeypatch.setattr(DANN, "pictures", fail)
    assert fit(capsys).err == "dafw: warning: pictures of DANN could not be drawn: 'unknown'\n"
    assert pictures() == PICTURES


@pytest.mark.parametrize("where", ["init", "log", "log_artifact", "finish"])
def test_weights_and_biases_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    start = wandb.init

    def fail(*_: Any, **__: Any) -> Any:
        raise wandb.errors.UsageError("its service ended")

    def init(**options: Any) -> Any:
        run = start(**options)
        patch.setattr(type(run), where, fail)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb, "init", fail if where == "init" else init)
        done = fit(capsys)
    wandb.finish()
    logs = "nothing" if where == "init" else "no more"
    assert done.err == f"dafw: warning: W&B logs {logs} of this run: its service ended\n"
    assert pictures() == PICTURES
