"""Configurations are written down whole, run again, and lead to the same run directory."""

import json
from pathlib import Path

import pytest
import yaml
from commands import QUICK, call, one_run

from dafw.lightning_adapter import plain_config
from dafw.run.arguments import read
from dafw.run.config import parse

FIT = ("fit", "--model", "DANN", "--model.width", "8", *QUICK)


def test_fit_twice(capsys: pytest.CaptureFixture[str]) -> None:
    first = call(capsys, *FIT)
    assert first.code == 0, first.err
    folder = one_run(Path("runs"))
    assert first.out.splitlines()[-1] == f"{folder / 'result.json'}"
    assert folder.name.startswith("DANN-a-b-s0-")
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = call(capsys, *FIT)
    assert (again.code, again.out, again.err) == (0, f"done already: {folder / 'result.json'}\n", "")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written


def test_the_written_configuration_makes_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *FIT).code == 0
    folder = one_run(Path("runs"))
    again = call(capsys, "fit", "--config", folder / "config.yaml")
    assert again.out == f"done already: {folder / 'result.json'}\n"
    assert call(capsys, "fit", "--config", folder / "config.yaml", "--run.root", "elsewhere").code == 0
    other = one_run(Path("elsewhere"))
    assert other.name == folder.name
    results = [json.loads((place / "result.json").read_text()) for place in (folder, other)]
    for result in results:
        del result["seconds"], result["cost"], result["git_revision"]
    assert results[0] == results[1]
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    "arguments", [FIT, ("fit", "--model", "DANN", *QUICK[:8], *QUICK[10:])], ids=["given", "default"]
)
def test_the_printed_configuration_runs(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(capsys, *arguments, "--print_config")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["init_args"]["network"]["class_path"].endswith("Network")
    Path("printed.yaml").write_text(printed)
    if arguments is FIT:
        assert call(capsys, *arguments).code == 0
        again = call(capsys, "fit", "--config", "printed.yaml")
        assert again.out.startswith("done already: "), again
    else:  # the network for larger images is the default: it is built, and then gets toy images
        assert "images" in call(capsys, "fit", "--config", "printed.yaml").err


def test_short_files_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.yaml").write_text(
        "seed_everything: 4\n"
        "model: {class_path: DANN, init_args: {width: 8, network: {backbone: dafw.testing.toys.ToyNet}}}\n"
        "data: {class_path: dafw.testing.toys.ToyData, init_args: {source: [a, c], target: b, batch_size: 8}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu}\nrun: {plots: false}\n"
    )
    done = call(capsys, "fit", "--config", "short.yaml", "--data.steps_per_epoch", "2", "--model.gamma", "3")
    assert done.code == 0, done.err
    folder = one_run(Path("runs"))
    assert folder.name.startswith("DANN-a+c-b-s4-")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["init_args"]["gamma"], config["model"]["init_args"]["width"]) == (3.0, 8)
    assert config["data"]["init_args"]["seed"] == 4
    result = json.loads((folder / "result.json").read_text())
    assert (result["seed"], result["task"], sorted(result["test"])) == (4, "a,c->b", ["a", "b", "c"])


def test_what_determines_numbers_determines_the_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *FIT).code == 0
    assert call(capsys, *FIT, "--data.num_workers", "0", "--run.checkpoint_every", "7").out.startswith("done already")
    assert call(capsys, *FIT, "--seed_everything", "1").code == 0
    assert call(capsys, *FIT, "--model.weight", "0.5").code == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 3
    assert len({name.rpartition("-")[2] for name in names}) == 3


def test_a_directory_holds_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *FIT, "--run.dir", "here").code == 0
    assert call(capsys, *FIT, "--run.dir", "here").out == "done already: here/result.json\n"
    other = call(capsys, *FIT, "--run.dir", "here", "--model.weight", "0.5")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "here holds a run of another configuration" in other.err


def test_a_damaged_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *FIT).code == 0
    path = one_run(Path("runs")) / "result.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    damaged = call(capsys, *FIT)
    assert damaged.code == 2
    assert f"{path} is damaged: remove it" in damaged.err
    path.unlink()
    assert call(capsys, *FIT).code == 0  # nothing is left to train: it tests and writes the result again
    again, before = json.loads(path.read_text()), json.loads(whole)
    assert (again["test"], again["history"], again["steps"]) == (before["test"], before["history"], before["steps"])


def test_a_fast_run_of_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, *FIT, "--trainer.fast_dev_run", "true")
    assert done.code == 0, done.err
    assert json.loads((one_run(Path("runs")) / "result.json").read_text())["steps"] == 1


def test_null_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    nulls = ("--model.network.weights", "null", "--model.norm", "null", "--data.target_batch_size", "null")
    assert call(capsys, *FIT).code == 0
    assert call(capsys, *FIT, *nulls, "--run.project", "null").out.startswith("done already: ")


def test_the_whole_configuration_is_computed_once() -> None:
    cli = parse([*FIT[1:], "--model.norm", "joint"])
    expected = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False, skip_link_targets=False))
    assert expected["model"]["init_args"]["norm"] == "joint"
    del cli.parser
    plain_config(cli)["model"].clear()
    assert plain_config(cli) == expected


def test_a_text_that_is_read_again_makes_values_of_its_own() -> None:
    assert read("{source: [010]}") == {"source": ["010"]}
    read("{source: [010]}")["source"].clear()
    assert read("{source: [010]}") == {"source": ["010"]}
