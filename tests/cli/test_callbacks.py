"""Callbacks by name on the command line, and what they change of a run."""

import json
from pathlib import Path

import pytest
import yaml
from commands import QUICK, call

from dafw.runs import execute, identity

ERM = ("--model", "ERM", *QUICK)


def test_an_average_of_weights_by_its_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    averaging = (
        "--trainer.callbacks",
        "SWAD",
        "--trainer.callbacks.n_converge",
        1,
        "--trainer.callbacks.reestimate",
        2,
    )
    found = {}
    for name, arguments in (("plain", ()), ("swad", averaging)):
        done = call(capsys, "fit", *ERM, *arguments, "--run.root", name)
        assert done.code == 0, done.err
        (path,) = Path(name).glob("*/result.json")
        found[name] = json.loads(path.read_text())
        config = yaml.safe_load(path.with_name("config.yaml").read_text())
        assert found[name]["config_hash"] == identity(config) == path.parent.name[-8:]
    assert (found["plain"]["averaged"], found["swad"]["averaged"]) == ("", "SWAD")
    assert found["plain"]["config_hash"] != found["swad"]["config_hash"]
    assert found["swad"]["higher_is_better"]["source_loss"] is False
    assert "source_loss" in found["swad"]["history"][0]["validators"]
    done = call(capsys, "test", *ERM, *averaging, "--run.root", "swad")
    assert done.code == 0, done.err
    assert f"{found['swad']['test']['b']['accuracy']:.4f}" in done.out


def test_an_average_of_weights_in_a_file() -> None:
    network = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}}
    data = {"source": ["a", "c"], "target": ["b"], "batch_size": 8, "steps_per_epoch": 2}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "ERM", "init_args": {"network": network}},
        "data": {"class_path": "dafw.testing.toys.ToyData", "init_args": data},
        "trainer": {"max_epochs": 1, "callbacks": [{"class_path": "SWAD", "init_args": {"reestimate": 1}}]},
        "run": {"plots": False},
    }
    folder = execute(config, Path("runs"))
    assert folder.name.endswith(identity(config))
    assert json.loads((folder / "result.json").read_text())["averaged"] == "SWAD"
