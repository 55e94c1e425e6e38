"""W&B: offline by default, off where asked, and never in the way."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, call, one_run

from dafw.run.identity import config_hash
from dafw.run.loggers import wandb_logger

FIT = ("fit", "--model", "DANN", "--model.width", "8", *QUICK)


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the environment says how to log."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish()


class Init:
    """Stands for ``wandb.init``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import wandb

        self.calls: list[dict[str, Any]] = []
        self.real = wandb.init
        monkeypatch.setattr(wandb, "init", self)

    def __call__(self, **options: Any) -> Any:
        self.calls.append(options)
        return self.real(**options)


def test_offline_by_default(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    init = Init(monkeypatch)
    done = call(capsys, *FIT)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    (options,) = init.calls
    result = json.loads((folder / "result.json").read_text())
    assert {key: str(options[key]) for key in ("project", "group", "name", "id", "mode", "dir")} == {
        "project": "ToyData",
        "group": "DANN",
        "name": folder.name,
        "id": result["config_hash"],
        "mode": "offline",
        "dir": str(folder.absolute()),
    }
    assert config_hash(options["config"]) == result["config_hash"]
    (kept,) = folder.glob("wandb/offline-run-*")
    (sent,) = kept.glob(f"run-{result['config_hash']}.wandb")
    assert options["settings"].host == "-"
    assert str(folder.absolute()).encode() not in sent.read_bytes()
    assert "WANDB_MODE" not in os.environ
    import wandb

    assert wandb.run is None


def test_one_run_does_not_log_into_that_of_one_that_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Init(monkeypatch)
    assert call(capsys, *FIT, "--data.batch_size", "41").code == 2
    assert not list(Path().glob("runs/*"))
    assert call(capsys, *FIT).code == 0
    assert len({options["id"] for options in init.calls}) == len(init.calls) == 2


@pytest.mark.parametrize("how", ["flag", "environment", "not installed"])
def test_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    init = Init(monkeypatch)
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    if how == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    done = call(capsys, *FIT, *(["--run.wandb", "disabled"] if how == "flag" else []))
    assert (done.code, done.err) == (0, "")
    assert not init.calls
    assert not (one_run(Path("runs")) / "wandb").exists()


def test_online_without_a_server_goes_offline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    init = Init(monkeypatch)

    def refuse(**options: Any) -> Any:
        if options.get("mode") != "offline":
            raise wandb.errors.CommError("no route to the server")
        return init(**options)

    monkeypatch.setattr(wandb, "init", refuse)
    logger = wandb_logger(tmp_path, mode="online", project="p", group="g", name="n", run_id="abc", config={})
    assert logger is not None
    assert "W&B cannot be reached (no route to the server); this run is logged offline" in capsys.readouterr().out
    (options,) = init.calls
    own = "abc-offline"  # W&B refuses the id of a start that failed
    assert (options["id"], options["mode"], options["project"]) == (own, "offline", "p")


def test_a_project_name_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    init = Init(monkeypatch)
    name = "my/project: 10%" + "x" * 140
    logger = wandb_logger(tmp_path, mode="offline", project=name, group="g", name="n", run_id="abc", config={})
    assert logger is not None
    assert init.calls[0]["project"] == "my-project- 10-" + "x" * 113


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_any_error_at_its_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: Any
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise TypeError("of another version")

    monkeypatch.setattr(wandb, "Settings", fail)
    assert wandb_logger(tmp_path, mode=mode, project="p", group="g", name="n", run_id="abc", config={}) is None
    assert capsys.readouterr().err == "dafw: warning: W&B logs nothing of this run: of another version\n"
