"""``validate``, ``test`` and ``predict`` find the checkpoint of the run that the same arguments train."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from commands import QUICK, call, one_run, rows

from dafw.data import Domain
from dafw.run.result import RESULT, TEST, read_result_file
from dafw.testing.toys import ToyData

ARGUMENTS = ("--model", "DANN", "--model.width", "8", *QUICK)
#: What a prediction of the target's test split says.
COUNTED = "b: 21 predictions, of its test split alone; --split all predicts all its samples\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run in ``runs``."""
    from dafw.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["fit", *ARGUMENTS]) == 0
    return folder


@pytest.fixture(autouse=True)
def copied(trained: Path, workplace: Path) -> None:
    """The run, in this test's working directory."""
    shutil.copytree(trained / "runs", workplace / "runs")


def printed(out: str) -> dict[str, float]:
    """The metrics by name, without the line that names the result file."""
    lines = [line.split() for line in out.splitlines() if not line.endswith(".json")]
    return {name: float(value) for name, value in lines}


def test_test(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    done = call(capsys, "test", *ARGUMENTS)
    assert done.code == 0, done.err
    found = printed(done.out)
    assert set(found) == {f"test/{name}/{kind}" for name in "ab" for kind in ("accuracy", "mean_class_accuracy")}
    for name in "ab":
        assert found[f"test/{name}/accuracy"] == pytest.approx(result["test"][name]["accuracy"], abs=1e-4)


def test_a_test_writes_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers as the run's own result; what is measured anew may differ."""
    folder = one_run(Path("runs"))
    run = read_result_file(folder / RESULT)
    checkpoint = next((folder / "checkpoints").iterdir())
    for options, path in (((), folder / TEST), (("--output", "there/mine.json"), Path("there/mine.json"))):
        done = call(capsys, "test", *ARGUMENTS, *options)
        assert (done.code, done.out.splitlines()[-1]) == (0, str(path))
        tested = read_result_file(path)
        assert tested.seconds["total"] > 0
        assert tested.checkpoint == str(checkpoint)
        assert replace(tested, checkpoint="", history=run.history, seconds=run.seconds, cost=run.cost) == run
    assert read_result_file(folder / RESULT) == run


def test_a_test_knows_which_labels_trained_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    oracle = ("--data.oracle", "true", "--run.dir", "seen")
    assert call(capsys, "fit", *ARGUMENTS, *oracle).code == 0
    (path,) = Path("seen/checkpoints").iterdir()
    assert call(capsys, "test", *ARGUMENTS, "--ckpt_path", path, "--output", "test.json").code == 0
    assert read_result_file(Path("test.json")).oracle


def test_a_training_without_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """It tests the network as it starts, and leaves a result, a checkpoint and the pictures that there are."""
    options = [word if word != "1" else "0" for word in ARGUMENTS]
    options[options.index("--run.plots") + 1] = "true"
    done = call(capsys, "fit", *options, "--run.dir", "none")
    assert (done.code, done.err) == (0, "")
    run = read_result_file(Path("none/result.json"))
    assert (run.steps, run.history) == (0, ())
    assert [path.name for path in Path("none/checkpoints").iterdir()] == ["step=0.ckpt"]
    assert {path.name for path in Path("none/plots").iterdir()} == {"embedding.png", "confusion.png"}
    tested = call(capsys, "test", *options, "--run.dir", "none")
    assert tested.code == 0
    assert read_result_file(Path("none/test.json")).test == run.test


def test_validate(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    done = call(capsys, "validate", *ARGUMENTS)
    assert done.code == 0, done.err
    found = printed(done.out)
    for name, value in result["history"][-1]["validators"].items():
        assert found[f"val/{name}"] == pytest.approx(value, abs=1e-4)
    assert set(found) > {"oracle/accuracy", "oracle/test/b/accuracy"}


class Sealed:
    """Labels that can be counted, and no more."""

    def __init__(self, labels: object) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)  # type: ignore[arg-type]

    def __getitem__(self, index: object) -> object:
        raise AssertionError("a label was read")

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("a label was read")

    def __array__(self, *_: object, **__: object) -> object:
        raise AssertionError("a label was read")


def test_predict_reads_no_label(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load = ToyData.load

    def sealed(self: ToyData, name: str, split: Literal["train", "val", "test"]) -> Domain:
        domain = load(self, name, split)
        return Domain(domain.name, domain.inputs, Sealed(domain.labels))

    monkeypatch.setattr(ToyData, "load", sealed)
    done = call(capsys, "predict", *ARGUMENTS, "--output", "here/predicted.csv")
    assert (done.code, done.out) == (0, f"{COUNTED}here/predicted.csv\n"), done.err
    with pytest.raises(AssertionError, match="a label was read"):
        call(capsys, "test", *ARGUMENTS)


def test_what_predict_writes(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(one_run(Path("runs")).glob("checkpoints/*.ckpt"))
    done = call(capsys, "predict", *ARGUMENTS, "--data.eval_batch_size", "4", "--ckpt_path", path)
    assert (done.code, done.out) == (0, f"{COUNTED}predictions.csv\n"), done.err
    table = rows(Path("predictions.csv").read_text())
    domain = ToyData("a", "b").load("b", "test")
    assert len(table) == len(domain) == 21
    assert [row["sample"] for row in table] == [domain.id(i) for i in range(len(domain))]
    assert list(table[0]) == ["domain", "sample", "prediction", "p_zero", "p_one", "p_two"]
    for row in table:
        shares = {name: float(row[f"p_{name}"]) for name in ("zero", "one", "two")}
        assert row["domain"] == "b"
        assert sum(shares.values()) == pytest.approx(1, abs=3e-6)
        assert row["prediction"] == max(shares, key=lambda name: shares[name])
    correct = sum(row["prediction"] == ToyData.class_names[int(label)] for row, label in zip(table, domain.labels))
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    assert correct / len(table) == pytest.approx(result["test"]["b"]["accuracy"])


def test_predict_several_targets(capsys: pytest.CaptureFixture[str]) -> None:
    several = [word if word != "b" else "[c, b]" for word in ARGUMENTS]
    path = next(one_run(Path("runs")).glob("checkpoints/*.ckpt"))
    assert call(capsys, "predict", *several, "--ckpt_path", path).code == 0
    assert [row["domain"] for row in rows(Path("predictions.csv").read_text())] == ["c"] * 21 + ["b"] * 21


def test_a_checkpoint_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    path = next(one_run(Path("runs")).glob("checkpoints/*.ckpt"))

    def refused(*changes: str) -> str:
        done = call(capsys, "test", *ARGUMENTS, *changes, "--ckpt_path", str(path))
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
        return done.err

    assert f"{path} does not fit this configuration" in refused("--model.width", "9")
    source_only = ["--model", "SourceOnly", *QUICK]
    done = call(capsys, "test", *source_only, "--ckpt_path", path)
    assert (done.code, done.err) == (2, f"dafw: error: {path} holds a DANN, not a SourceOnly\n")


class FourClasses(ToyData):
    """Toy data with one more class."""

    class_names = ("zero", "one", "two", "three")


def test_a_checkpoint_with_other_classes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(one_run(Path("runs")).glob("checkpoints/*.ckpt"))
    monkeypatch.setattr(ToyData, "class_names", FourClasses.class_names)
    done = call(capsys, "test", *ARGUMENTS, "--ckpt_path", path)
    said = f'{path} predicts 3 classes, but the data has 4: "three" is new'
    assert (done.code, done.err) == (2, f"dafw: error: {said}\n")


def test_a_checkpoint_that_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, "alien.ckpt")
    done = call(capsys, "test", *ARGUMENTS, "--ckpt_path", "alien.ckpt")
    assert (done.code, done.err) == (2, "dafw: error: alien.ckpt was not written by dafw\n")


def test_both_statistics_of_a_finished_run(capsys: pytest.CaptureFixture[str]) -> None:
    erm = ["--model", "ERM", *QUICK, "--data.source", "[a, c]", "--data.steps_per_epoch", "8"]
    assert call(capsys, "fit", *erm, "--run.dir", "erm").code == 0
    assert json.loads(Path("erm/result.json").read_text())["transductive_reason"] == ""
    path = next(Path("erm").glob("checkpoints/*.ckpt"))
    running, batch = (
        call(capsys, "test", *erm, "--ckpt_path", path, "--model.test_statistics", how) for how in ("running", "batch")
    )
    assert (running.code, batch.code) == (0, 0), batch.err
    assert printed(running.out).keys() == printed(batch.out).keys()
    assert running.out != batch.out
    changed = [*erm, "--model.test_statistics", "batch", "--run.dir", "other"]
    assert call(capsys, "fit", *changed).code == 0
    result = json.loads(Path("other/result.json").read_text())
    assert result["transductive_reason"] == "batch statistics of the test batch"
    assert {f"test/{n}/{k}": round(v, 4) for n, m in result["test"].items() for k, v in m.items()} == printed(batch.out)
