"""Source-free adaptation through the command: it starts from a run, needs no source, and says what it lacks."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import QUICK, TOY, call, refused

SOURCE = ("fit", "--model", "SourceOnly", *QUICK, "--model.network.bottleneck", "4", "--run.dir")
DATA = ("--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b", "--data.batch_size", "8")
SHOT = ("fit", "--model", "SHOT", *DATA, "--data.steps_per_epoch", "2", "--trainer.accelerator", "cpu")
SHOT = (*SHOT, "--run.plots", "false", "--trainer.max_epochs", "1", "--model.checkpoint")


@pytest.fixture
def source(capsys: pytest.CaptureFixture[str]) -> Path:
    """The directory of a source model's run."""
    done = call(capsys, *SOURCE, "source")
    assert done.code == 0, done.err
    return Path("source")


def test_from_a_run_to_a_result(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """The network comes from the checkpoint; what was made needs the source's run no more."""
    done = call(capsys, *SHOT, source, "--run.dir", "shot")
    assert (done.code, done.err) == (0, "")
    config = yaml.safe_load(Path("shot/config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["bottleneck"] == 4
    result = json.loads(Path("shot/result.json").read_text())
    assert (result["setting"], result["source"], set(result["test"])) == ("source-free", ["a"], {"b"})
    shutil.rmtree(source)
    onwards = ("--config", "shot/config.yaml", "--run.dir", "shot")
    assert call(capsys, "test", *onwards).code == 0
    assert call(capsys, "predict", *onwards, "--output", "predicted.csv").code == 0
    Path("shot/result.json").unlink()
    assert call(capsys, "fit", *onwards).code == 0
    assert json.loads(Path("shot/result.json").read_text())["test"] == result["test"]


def test_what_is_wrong_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    assert refused(capsys, *SHOT, "nowhere") == (
        "there is no checkpoint nowhere (model.checkpoint): train the source model first"
    )
    Path("empty").mkdir()
    assert "there is no checkpoint in empty (model.checkpoint)" in refused(capsys, *SHOT, "empty")
    assert refused(capsys, *SHOT[:-1]) == "model.checkpoint must be given"
    assert "data.oracle trains on the target's labels" in refused(capsys, *SHOT, source, "--data.oracle", "true")
    digits = ("--data", "Digits", "--data.source", "mnist", "--data.target", "mnistm")
    assert refused(capsys, "fit", "--model", "SHOT", "--model.checkpoint", source, *digits) == (
        "source/checkpoints/step=2.ckpt (model.checkpoint) predicts 3 classes, but the data has 10"
    )
    assert "model.network.bottleneck is None, but 4 in the model of source/" in refused(
        capsys, "fit", "--model", "SHOT", *TOY, "--model.checkpoint", source
    )
    stopping = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/source_accuracy")
    assert 'monitor of EarlyStopping "val/source_accuracy"' in refused(capsys, *SHOT, source, *stopping)
