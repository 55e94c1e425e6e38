"""Test-time methods with teachers and memories through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import PLAIN, QUICK, TWO_SOURCES, call, one_run


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
