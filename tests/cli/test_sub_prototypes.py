"""What a run of MemSPM leaves of its sub-prototypes: a picture, and numbers where there are several targets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK, call, one_run

from dafw.methods import MemSPM
from dafw.testing import case
from dafw.testing.cases import TINY

KEYS = {f"sub_prototype_{name}" for name in ("purity", "baseline", "ami", "kmeans_purity", "kmeans_ami")}
MEMORY = {"memory_entropy", "memory_nmi", "memory_query_nmi"}
SMALL = {**TINY["MemSPM"], "reconstruction_weight": 0.0}
FIT = (
    *("--model", "MemSPM", *QUICK, "--data.eval_batch_size", "4"),
    *(part for name, value in SMALL.items() for part in (f"--model.{name}", json.dumps(value))),
)


def fit(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], set[str]]:
    done = call(capsys, "fit", *FIT, *options)
    assert done.code == 0, done.err
    folder = one_run(Path("runs"))
    return json.loads((folder / "result.json").read_text()), {path.name for path in folder.glob("plots/*.png")}


@pytest.mark.parametrize("sub_prototypes", [1, 2])
def test_a_run_on_several_targets(capsys: pytest.CaptureFixture[str], workplace: Path, sub_prototypes: int) -> None:
    result, pictures = fit(
        capsys, "--data.target", "[b,c]", "--run.plots", "true", "--model.sub_prototypes", str(sub_prototypes)
    )
    assert "sub_prototypes.png" in pictures
    assert result["test"]["b"].keys() == {"accuracy", "mean_class_accuracy"} | KEYS | MEMORY
    assert not (KEYS | MEMORY) & result["test"]["a"].keys()
    assert {key: result["test"]["b"][key] for key in KEYS} == {key: result["test"]["c"][key] for key in KEYS}
    assert set(result["by_class"]) == {"zero", "one", "two"}
    assert sum(values["samples"] for values in result["by_class"].values()) == 2 * 21
    assert result["test"]["b"]["sub_prototype_baseline"] == pytest.approx(0.5)
    path = str(next(one_run(Path("runs")).glob("checkpoints/*.ckpt")))
    method = MemSPM.load(path)
    data = case(MemSPM).make_data(target=["b", "c"])
    right = 0
    for label in range(3):
        groups = []
        for name in ("b", "c"):
            domain = data.domain(name, "test")
            rows = np.flatnonzero(np.asarray(domain.labels) == label)
            items, subs = method.retrieved(torch.stack([domain.inputs[i] for i in rows]))
            groups.append((items * sub_prototypes + subs).tolist())
        right += sum(max(part.count(code) for part in groups) for code in {*groups[0], *groups[1]})
    assert result["test"]["b"]["sub_prototype_purity"] == pytest.approx(right / 42)


def test_a_run_on_one_target_says_nothing_of_styles(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    result, pictures = fit(capsys, "--run.plots", "true")
    assert "sub_prototypes.png" in pictures
    assert result["by_class"] == {}
    assert result["test"]["b"].keys() == {"accuracy", "mean_class_accuracy"} | MEMORY
    assert all(0 <= result["test"]["b"][key] <= 1 for key in MEMORY)
