"""Callbacks by name on the command line, and what they change of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from commands import QUICK, call

from dafw.methods import ERM as ERMMethod
from dafw.nn.network import Network
from dafw.run.artifacts import collect_result
from dafw.run.clock import Clock
from dafw.run.entry import execute
from dafw.run.identity import averages_weights, config_hash
from dafw.testing.toys import ToyData

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
        assert found[name]["config_hash"] == config_hash(config) == path.parent.name[-8:]
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
    assert folder.name.endswith(config_hash(config))
    assert json.loads((folder / "result.json").read_text())["averaged"] == "SWAD"


def with_callbacks(*callbacks: Any) -> str:
    """The hash of a run with these callbacks."""
    trainer: dict[str, Any] = {"max_epochs": 1, **({"callbacks": list(callbacks)} if callbacks else {})}
    return config_hash({"seed_everything": 0, "model": {"class_path": "ERM"}, "trainer": trainer})


def test_hashes_of_runs_that_were_made_before_other_callbacks_counted() -> None:
    assert with_callbacks() == "43d1d406"
    assert with_callbacks({"class_path": "dafw.callbacks.swad.SWAD", "init_args": {"ratio": 0.2}}) == "506a3d1e"


@pytest.mark.parametrize(
    "path",
    [
        "LearningRateMonitor",
        "pytorch_lightning.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.RichProgressBar",
        "ModelSummary",
        "ModelCheckpoint",
    ],
)
def test_a_callback_that_only_looks_on_is_no_part_of_a_run(path: str) -> None:
    plain = with_callbacks()
    assert with_callbacks({"class_path": path, "init_args": {"monitor": "val/im"}}) == with_callbacks(path) == plain
    assert with_callbacks({"class_path": path, "init_args": {"monitor": "oracle/accuracy"}}) != plain
    assert with_callbacks({"class_path": f"mine.{path.rpartition('.')[2]}"}) != plain, "another's may do anything"


@pytest.mark.parametrize("name", ["EarlyStopping", "StochasticWeightAveraging", "Timer", "EMAWeightAveraging"])
def test_any_other_callback_is_part_of_a_run(name: str) -> None:
    short = with_callbacks({"class_path": name})
    assert short != with_callbacks()
    assert short == with_callbacks(name) == with_callbacks({"class_path": f"pytorch_lightning.callbacks.{name}"})
    assert short != with_callbacks({"class_path": name, "init_args": {"patience": 9}})
    assert short != with_callbacks({"class_path": name, "dict_kwargs": {"patience": 9}})


def test_a_run_that_target_labels_stopped_is_not_taken_for_one_without(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "oracle/accuracy")
    done = call(capsys, "fit", *ERM, *stopping, "--run.allow_oracle", "true")
    assert done.code == 0, done.err
    (stopped,) = Path("runs").glob("*/result.json")
    done = call(capsys, "fit", *ERM)
    assert done.code == 0, done.err
    assert "done already" not in done.out
    (plain,) = set(Path("runs").glob("*/result.json")) - {stopped}
    assert json.loads(stopped.read_text())["monitors"] == ["oracle/accuracy"]
    assert json.loads(plain.read_text())["monitors"] == []


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "tests_of_callbacks.Idle"])
def test_a_callback_by_its_class_path_alone(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests_of_callbacks.py").write_text(
        "from pytorch_lightning import Callback\nclass Idle(Callback):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for command in (("fit",), ("tune", "--objective", "source_loss", "--study", "s.db", "--trials", "1")):
        space = ("--space", "lr=0.01,0.1") if command[0] == "tune" else ()
        done = call(capsys, *command, *ERM, *space, "--trainer.callbacks", name)
        assert done.code == 0, done.err


class Looking(pl.Callback):
    """Notes the first weights of the network whenever they are evaluated."""

    def __init__(self) -> None:
        self.validated: list[torch.Tensor] = []
        self.tested: list[torch.Tensor] = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(next(pl_module.network.parameters()).detach().clone())

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.tested.append(next(pl_module.network.parameters()).detach().clone())


@pytest.mark.parametrize(
    ("name", "arguments", "averaged"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.1, "swa_epoch_start": 1}, "StochasticWeightAveraging"),
        ("WeightAveraging", {}, ""),
        ("EMAWeightAveraging", {"decay": 0.5}, ""),
    ],
)
def test_lightnings_averages_of_weights(name: str, arguments: dict[str, Any], averaged: str) -> None:
    """A run is marked if its tested weights are those of no validation."""
    torch.manual_seed(0)
    method = ERMMethod(Network("dafw.testing.toys.ToyNet"), num_classes=3, lr=0.1)
    data = ToyData(source=["a", "c"], target="b", batch_size=8, steps_per_epoch=3)
    looking = Looking()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[getattr(pl.callbacks, name)(**arguments), looking],
    )
    trainer.fit(method, datamodule=data)
    trainer.test(method, datamodule=data, verbose=False)
    result = collect_result(trainer, method, data, {"seed_everything": 0}, Clock())
    seen = any(torch.equal(weights, looking.tested[-1]) for weights in looking.validated)
    assert (result.averaged, seen) == (averaged, not averaged)
    assert averages_weights(
        {"trainer": {"callbacks": [{"class_path": f"pytorch_lightning.callbacks.{name}"}]}}
    ) == bool(averaged)
