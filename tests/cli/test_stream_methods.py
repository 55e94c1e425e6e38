"""Test-time methods with teachers and memories through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import PLAIN, QUICK, TOY_DATA, TWO_SOURCES, call, one_run, refused


def test_teachers_and_memories(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", "--model", "KNN", *QUICK, "--data.source", "[a, c]", "--run.root", "first")
    assert (done.code, done.err) == (0, "")
    start = one_run(Path("first"))

    def fit(name: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
        root = Path("runs", *options, name)
        arguments = ("--model", name, *TWO_SOURCES, *PLAIN, "--model.checkpoint", start, *options, "--run.root", root)
        done = call(capsys, "fit", *arguments)
        assert (done.code, done.err) == (0, ""), name
        folder = one_run(root)
        return json.loads((folder / "result.json").read_text()), yaml.safe_load((folder / "config.yaml").read_text())

    result, config = fit("CoTTA", "--model.views", "2", "--model.augment.noise", "0.01")
    assert config["model"]["init_args"]["augment"]["init_args"]["noise"] == 0.01
    assert result["source_use"] == "nothing"
    assert fit("RMT")[0]["source_use"] == "statistics"
    assert fit("RMT", "--model.source_weight", "1")[0]["source_use"] == "samples"
    result, _ = fit("AdaNPC", "--model.neighbours", "5")
    assert result["source_use"] == "statistics"
    assert result["stream"]["used"]["samples"] <= 1
    assert [one.name.split("-")[0] for one in sorted((start / "statistics").glob("*.safetensors"))] == [
        "features",
        "prototypes",
    ]


def test_a_cloud_teaches_the_edge(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("edge", 0), ("cloud", 1)):
        run = ("--run.dir", name, "--seed_everything", seed)
        done = call(capsys, "fit", "--model", "SourceOnly", *QUICK, *run)
        assert (done.code, done.err) == (0, "")
    few = ("--model.margin", "1", "--model.redundancy", "0.97", "--model.cloud_batch", "2")
    edge = ("fit", "--model", "CEMA", *TOY_DATA, *PLAIN, "--model.checkpoint", "edge", *few)
    done = call(capsys, *edge, "--model.cloud_checkpoint", "cloud", "--run.dir", "taught")
    assert (done.code, done.err) == (0, "")
    result = json.loads(Path("taught/result.json").read_text())
    uploads, samples = result["stream"]["uploads"], result["stream"]["samples"]
    assert 0 < uploads["samples"] < samples
    assert uploads["share"] == uploads["samples"] / samples
    assert result["stream"]["protocol"]["statistics"] == "renorm 0.1 from the first batch"
    config = yaml.safe_load(Path("taught/config.yaml").read_text())["model"]["init_args"]
    assert config["cloud"]["init_args"]["backbone"] == "dafw.testing.toys.ToyNet"
    rerun = call(capsys, "test", "--config", "taught/config.yaml", "--output", "again.json")
    assert (rerun.code, rerun.err) == (0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "model.cloud must be given"),
        (("--model.cloud_checkpoint", "nowhere"), "there is no checkpoint nowhere (model.cloud_checkpoint)"),
        (("--model.cloud.backbone", "dafw.testing.toys.ToyNet"), "model.cloud_checkpoint must be given"),
    ],
)
def test_a_cloud_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    start = tmp_path / "elsewhere"
    assert call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--run.dir", start).code == 0
    model = ("--model", "CEMA", *TOY_DATA, *PLAIN, "--model.checkpoint", start)
    assert said in refused(capsys, "fit", *model, *options)
