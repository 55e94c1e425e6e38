"""The number of threads belongs to a run: its file names it, and a run that goes on keeps it."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import QUICK, Outcome, call, one_run, refused

from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.run.threads import settle_threads

FIT = ("fit", "--model", "SourceOnly", *QUICK)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What this process has. A run gives it back."""
    assert torch.get_num_threads() == 1


def numbers(folder: Path) -> tuple[Any, int]:
    """The number of threads in the configuration of a run, and in its result."""
    result = read_result(folder)
    assert result is not None
    return yaml.safe_load((folder / "config.yaml").read_text())["run"]["threads"], result.threads


def fit(capsys: pytest.CaptureFixture[str], *more: object) -> Outcome:
    """Makes the run or goes on with it."""
    done = call(capsys, *FIT, *more)
    assert done.code == 0, done.err
    assert torch.get_num_threads() == 1
    return done


def test_a_run_keeps_the_number_that_it_began_with(capsys: pytest.CaptureFixture[str]) -> None:
    fit(capsys, "--run.threads", 2)
    folder = one_run(Path("runs"))
    assert numbers(folder) == (2, 2)
    (folder / "result.json").unlink()
    done = fit(capsys)
    assert done.out.splitlines()[0] == "goes on with 2 threads, as this run began"
    assert numbers(folder) == (2, 2)
    (folder / "result.json").unlink()
    done = fit(capsys, "--run.threads", 1)
    assert done.err == "dafw: warning: run.threads is 1, but this run began with 2, and goes on with 2\n"
    assert numbers(folder) == (2, 2)
    (folder / "result.json").unlink()
    done = fit(capsys, "--config", folder / "config.yaml")
    assert "goes on" not in done.out
    assert done.err == ""
    assert numbers(folder) == (2, 2)
    assert one_run(Path("runs")) == folder


def test_a_file_names_the_number_that_nobody_gave(capsys: pytest.CaptureFixture[str]) -> None:
    done = fit(capsys)
    assert "goes on" not in done.out
    assert done.err == ""
    folder = one_run(Path("runs"))
    assert numbers(folder) == (1, 1)
    again = yaml.safe_load((folder / "config.yaml").read_text())
    again["run"] |= {"threads": 2, "dir": None}
    again["seed_everything"] = 5
    made = execute(again, Path("others"))  # as a table's worker does
    assert numbers(made) == (2, 2)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("number", [0, -1, 10**9])
def test_a_number_that_no_machine_has(capsys: pytest.CaptureFixture[str], number: int) -> None:
    sentence = refused(capsys, *FIT, f"--run.threads={number}")
    assert sentence == f"run.threads must be from 1 to 1024, not {number}"


@pytest.mark.parametrize("number", [0, 10**9])
def test_a_checkpoint_with_a_number_that_no_machine_has(capsys: pytest.CaptureFixture[str], number: int) -> None:
    fit(capsys)
    folder = one_run(Path("runs"))
    (folder / "result.json").unlink()
    path = folder / "checkpoints" / "step=2.ckpt"
    content = torch.load(path, weights_only=True)
    content["run"]["threads"] = number
    torch.save(content, path)
    done = call(capsys, *FIT)
    assert done.code == 2
    assert f"{path}: run.threads must be from 1 to 1024, not {number}" in done.err


def test_ranks_share_the_cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning shares them out, which then leaves the number alone."""
    monkeypatch.setattr("dafw.run.threads.default_workers", lambda gpus: 6)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert settle_threads(None, None, 1, 1) == 1
    assert "OMP_NUM_THREADS" not in os.environ
    for given, began_with, expected in ((None, None, 3), (5, None, 5), (5, 4, 4), (None, 4, 4)):
        os.environ.pop("OMP_NUM_THREADS", None)
        assert settle_threads(given, began_with, 4, 2) == expected
        assert os.environ["OMP_NUM_THREADS"] == str(expected)
    assert settle_threads(None, None, 4, 2) == 1  # the user said so: torch has it already
