"""The result of a run: one file writes and reads it."""

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from dafw.run.result import (
    RESULT,
    SCHEMA_VERSION,
    BrokenResult,
    Result,
    SettingRecord,
    Validation,
    read_result,
    write_result,
)
from dafw.run.stream_result import StreamResult
from dafw.tables.store import CellResult

SETTINGS = {
    "adaptation": SettingRecord("adaptation", source=True, target=True),
    "generalization": SettingRecord("generalization", source=True, target=False),
    "source-free": SettingRecord("source-free", source=False, target=True),
    "a new one": SettingRecord("a new one", source=False, target=False),
}
RUN = Result(
    method="DANN",
    task="a,c->b",
    source=("a", "c"),
    target=("b",),
    setting=SETTINGS["adaptation"],
    seed=3,
    oracle=True,
    transductive_reason="batch statistics",
    averaged="SWAD",
    monitors=("val/im",),
    norm="joint",
    ranks=2,
    threads=4,
    config_hash="0123abcd",
    steps=12,
    seconds={"total": 3.5, "train": 2.25, "evaluate": 0.5},
    num_target_test=21,
    metric="h_score",
    label_sets={"kind": "open", "common": 3, "source_private": 0, "target_private": 1},
    undefined_reason={"b": "it has no unknown sample"},
    test={"b": {"h_score": 0.25, "os": math.inf}},
    by_class={"cat": {"purity": 0.5}},
    history=(Validation(4, {"im": -0.5}, {"h_score": 0.1}, {"b": {"h_score": 0.2}}),),
    higher_is_better={"im": True},
    versions={"torch": "2.10"},
    git_revision="abc",
    machine="linux",
    checkpoint="step=12.ckpt",
    sources={"dafw.methods.base": "0123456789abcdef"},
    repositories={"mine": "abc-dirty"},
    samples={"b/test": [21, "0123"]},
    holds_out_source=False,
    fast_forms={"channels_last": True, "fused": False},
    cost={"samples": 384, "peak_resident": 1 << 29},
    source_use="statistics",
    pretrained="timm's resnet50.tv_in1k",
    stream=StreamResult(
        protocol={"stream": "continual", "batch_size": 4, "images_per_domain": None, "knows_shifts": False},
        samples=21,
        domains={"b": {"error": 0.25, "samples": 21.0}},
        mean={"error": 0.25},
        bins={"error": (0.5, 0.0)},
        segments=({"domain": "b", "position": 0.0, "after": 0.5},),
        worst={"error": 0.5, "position": 3.0},
        window=4,
        used={"samples": 1.0, "steps": 1.0},
        resets=2,
        source={},
        speed={"seconds": 1.5},
    ),
    estimates={"b": {"ac": {"value": 0.5, "low": 0.25, "high": 0.75}}},
)
LATER: dict[str, Any] = {"sources": {}, "repositories": {}, "samples": {}, "holds_out_source": True, "fast_forms": {}}
LATER |= {"source_use": "", "stream": None, "cost": {}, "estimates": {}, "pretrained": None}
"""Fields that results made before they were added lack, with what they are then."""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    write_result(RUN, tmp_path / RESULT)
    assert read_result(tmp_path) == RUN
    given = json.loads((tmp_path / RESULT).read_text())
    assert given.keys() == {"schema_version", *(field.name for field in fields(Result))}
    assert given["schema_version"] == SCHEMA_VERSION


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    write_result(replace(RUN, test={"b": {"h_score": math.nan}}), tmp_path / RESULT)
    found = read_result(tmp_path)
    assert found is not None
    assert math.isnan(found.test["b"]["h_score"])


@pytest.mark.parametrize("name", [field.name for field in fields(Result)])
def test_a_field_that_is_missing_or_of_another_kind(tmp_path: Path, name: str) -> None:
    write_result(RUN, tmp_path / RESULT)
    given = json.loads((tmp_path / RESULT).read_text())
    for changed in ({key: value for key, value in given.items() if key != name}, {**given, name: 3}):
        (tmp_path / RESULT).write_text(json.dumps(changed))
        if name in changed and isinstance(getattr(RUN, name), str | int):
            continue  # a number can be read as each of these
        if name in LATER and name not in changed:
            assert read_result(tmp_path) == replace(RUN, **{name: LATER[name]})
            continue
        with pytest.raises(BrokenResult, match=r"result\.json does not follow schema 2") as error:
            read_result(tmp_path)
        assert error.value.damaged


@pytest.mark.parametrize("text", ["", "{", "\0\0", "[" * 100000])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(BrokenResult, match="is damaged: remove it to make the run again") as error:
        read_result(tmp_path)
    assert error.value.damaged


def test_a_number_that_is_infinite_where_it_cannot_be(tmp_path: Path) -> None:
    write_result(RUN, tmp_path / RESULT)
    text = (tmp_path / RESULT).read_text().replace('"steps": 12', '"steps": Infinity')
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(BrokenResult, match="does not follow schema 2"):
        read_result(tmp_path)


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / RESULT).mkdir()
    with pytest.raises(BrokenResult, match=r"result\.json cannot be read or written \(Is a directory\)") as error:
        read_result(tmp_path)
    assert not error.value.damaged
    assert read_result(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("setting", "criterion", "without"),
    [
        ("adaptation", "im", False),
        ("adaptation", "source_accuracy", False),
        ("generalization", "im", True),
        ("generalization", "source_accuracy", False),
        ("generalization", "last", False),
        ("source-free", "im", False),
        ("source-free", "dev", True),
        ("source-free", "source_loss", True),
        ("a new one", "im", True),
        ("a new one", "source_loss", True),
        ("a new one", "unheard of", False),
    ],
)
def test_a_criterion_that_a_setting_has_no_samples_for(setting: str, criterion: str, without: bool) -> None:
    run = replace(RUN, setting=SETTINGS[setting], history=())
    assert CellResult(run, Path(), "h_score").is_without(criterion) is without


def test_reading_results_needs_no_torch() -> None:
    code = "import sys, dafw.run.entry, dafw.tables.store, dafw.tables.launch, dafw.tuning.trials, dafw.run.pool\n"
    code += "assert not {'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-300:]


def test_a_typed_result_needs_every_field() -> None:
    given: dict[str, Any] = {field.name: getattr(RUN, field.name) for field in fields(Result)}
    del given["threads"]
    with pytest.raises(TypeError, match="threads"):
        Result(**given)
