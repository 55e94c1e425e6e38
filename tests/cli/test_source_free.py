"""Source-free adaptation through the command: it starts from a run, needs no source, and says what it lacks."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import QUICK, TOY, TOY_DATA, call, refused

SOURCE = ("fit", "--model", "SourceOnly", *QUICK, "--model.network.bottleneck", "4", "--run.dir")
SHOT = ("fit", "--model", "SHOT", *TOY_DATA, "--data.steps_per_epoch", "2", "--trainer.accelerator", "cpu")
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
    assert (result["setting"]["name"], result["source"], set(result["test"])) == ("source-free", ["a"], {"b"})
    shutil.rmtree(source)
    onwards = ("--config", "shot/config.yaml", "--run.dir", "shot")
    assert call(capsys, "test", *onwards).code == 0
    assert call(capsys, "predict", *onwards, "--output", "predicted.csv").code == 0
    Path("shot/result.json").unlink()
    assert call(capsys, "fit", *onwards).code == 0
    assert json.loads(Path("shot/result.json").read_text())["test"] == result["test"]


def test_a_source_model_that_saw_the_targets_labels_makes_an_oracle(
    capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    """Also where the run goes on from its own checkpoint, without the source model's."""
    assert call(capsys, *SOURCE, "upper", "--data.oracle", "true").code == 0
    for directory, expected in ((source, False), (Path("upper"), True)):
        folder = f"from_{directory}"
        assert call(capsys, *SHOT, directory, "--run.dir", folder).code == 0
        result = Path(folder, "result.json")
        assert json.loads(result.read_text())["oracle"] is expected
        shutil.rmtree(directory)
        result.unlink()
        assert call(capsys, "fit", "--config", f"{folder}/config.yaml", "--run.dir", folder).code == 0
        assert json.loads(result.read_text())["oracle"] is expected


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


TABLE = """
tasks: [a->b]
seeds: [0]
select: [last, im, source_accuracy]
base:
  data: {class_path: dafw.testing.toys.ToyData, init_args: {batch_size: 8, steps_per_epoch: 3}}
  trainer: {max_epochs: 1, accelerator: cpu}
  model:
    init_args:
      network: {class_path: dafw.nn.network.Network, init_args: {backbone: dafw.testing.toys.ToyNet}}
  run: {plots: false, wandb: disabled}
rows:
  - {name: SHOT, from: source only, control: true, model: {class_path: SHOT}}
  - {name: source only, model: {class_path: SourceOnly}}
"""


@pytest.mark.slow
def test_a_table_trains_the_source_model_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("free.yaml").write_text(TABLE)
    arguments = ("table", "run", "free.yaml", "--rows", "SHOT", "--workers", "2")
    done = call(capsys, *arguments)
    assert done.code == 0, done
    assert "3 runs, 0 done already" in done.out
    folders = {path.name.partition("-")[0]: path for path in Path("runs").glob("S*")}
    assert (folders["SourceOnly"] / "checkpoints" / "step=3.ckpt").exists()
    given = yaml.safe_load((folders["SHOT"] / "config.yaml").read_text())["model"]["init_args"]["checkpoint"]
    assert Path(given) == folders["SourceOnly"]
    page = next(Path("runs/tables").rglob("*.html")).read_text()
    assert "SHOT is source-free: there is no source_accuracy" in page
    shutil.move("runs", "elsewhere")
    again = call(capsys, *arguments, "--root", "elsewhere")
    assert again.code == 0, again
    assert "3 runs, 3 done already" in again.out
