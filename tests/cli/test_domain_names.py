"""Domains whose names are numbers or begin with a sign: ``[15, 30]``, ``+80%``, ``-90%``."""

from pathlib import Path

import pytest
import yaml
from commands import call, one_run

from dafw.run.config import with_signed_names
from dafw.run.directory import run_directory
from dafw.run.identity import config_hash
from dafw.run.result import read_result
from dafw.tables.fields import read_tasks, split_task

TINY = (
    *("--model", "SourceOnly", "--data.batch_size", "4", "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1"),
    *("--trainer.accelerator", "cpu", "--run.plots", "false", "--run.wandb", "disabled"),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(capsys: pytest.CaptureFixture[str], *arguments: str) -> Path:
    done = call(capsys, "fit", *arguments, *TINY)
    assert done.code == 0, done.err
    return one_run(Path("runs"))


@pytest.mark.parametrize(("sources", "target"), [("[+90%,+80%]", "-90%"), ("[+80%,-90%]", "+90%"), ("-90%", "+80%")])
def test_signs_on_the_command_line(capsys: pytest.CaptureFixture[str], sources: str, target: str) -> None:
    folder = fit(capsys, "--data", "ColoredMNIST", "--data.source", sources, "--data.target", target)
    result = read_result(folder)
    assert result is not None
    assert result.task == f"{sources.strip('[]')}->{target}"
    assert set(result.test) == {*sources.strip("[]").split(","), target}
    assert "%" not in folder.name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert run_directory(config, Path("runs")) == folder
    assert call(capsys, "test", "--config", str(folder / "config.yaml")).code == 0


def test_numbers_and_strings_are_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("angles.yaml").write_text("data: {class_path: RotatedMNIST, init_args: {source: [15, 30], target: 0}}\n")
    folder = fit(capsys, "--config", "angles.yaml")
    assert folder.name.startswith("SourceOnly-15+30-0-s0-")
    result = read_result(folder)
    assert result is not None
    assert result.task == "15,30->0"
    again = call(capsys, "fit", "--data", "RotatedMNIST", "--data.source", '["15","30"]', "--data.target", "0", *TINY)
    assert again.code == 0
    assert again.out.startswith("done already: ")


def test_a_run_of_one_source_is_told_from_one_of_a_list() -> None:
    """As before: what a list of one means to a method is its own affair."""
    configs = [{"data": {"init_args": {"source": source, "target": "a"}}} for source in ("15", 15, ["15"], [15])]
    first, number, listed, numbers = map(config_hash, configs)
    assert first == number != listed == numbers


def test_only_values_are_joined() -> None:
    given = ["--data.target", "-90%", "--data.source", "--data.size", "-1", "--data.init_args.source", "-90%"]
    joined = ["--data.target=-90%", "--data.source", "--data.size", "-1", "--data.init_args.source=-90%"]
    assert with_signed_names(given) == joined


def test_tasks_of_a_table() -> None:
    names = yaml.safe_load("[+90%, +80%, -90%]")
    tasks = read_tasks("t", {"leave_one_out": names})
    assert tasks == ("+80%,-90%->+90%", "+90%,-90%->+80%", "+90%,+80%->-90%")
    assert split_task(tasks[0]) == (("+80%", "-90%"), ("+90%",))
    assert read_tasks("t", {"leave_one_out": yaml.safe_load("[0, 15, 30]")})[0] == "15,30->0"
    assert read_tasks("t", yaml.safe_load('["+80%,-90%->+90%"]')) == tasks[:1]
