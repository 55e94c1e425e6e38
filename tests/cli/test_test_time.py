"""Methods that learn while they are tested: what the commands do for them."""

import json
from pathlib import Path

import pytest
from commands import QUICK, call, one_run, rows

RETRAIN = ("--model.retrain", "network", "--model.retrain_confidence", "0", "--model.retrain_lr", "20")


def test_one_training_gives_the_numbers_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--model", "DRM", *QUICK, "--data.eval_batch_size", "4")
    done = call(capsys, "fit", *small, *RETRAIN)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    result = json.loads((folder / "result.json").read_text())
    assert "retrained" in result["transductive_reason"]
    kinds = ("accuracy", "mean_class_accuracy")
    assert set(result["test"]["b"]) == {*kinds, *(f"{kind}_without_retraining" for kind in kinds)}
    last = result["history"][-1]["test"]["b"]
    without = {kind: result["test"]["b"][f"{kind}_without_retraining"] for kind in kinds}
    assert last == pytest.approx(without, rel=1e-6)  # of which one was logged in float32

    checkpoint = next(folder.glob("checkpoints/*.ckpt"))
    done = call(capsys, "predict", *small, *RETRAIN, "--ckpt_path", checkpoint)
    assert (done.code, done.err) == (0, "")
    assert len(rows(Path("predictions.csv").read_text())) == 21

    done = call(capsys, "test", *small, "--ckpt_path", checkpoint)
    assert done.code == 0, done.err
    printed = {line.split()[0]: float(line.split()[1]) for line in done.out.splitlines()[:-1]}  # then the file
    for kind in kinds:
        assert printed[f"test/b/{kind}"] == pytest.approx(last[kind], abs=1e-4)


def test_an_infinite_gamma_can_be_given_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", "--model", "DRM", "--model.gamma", ".inf", *QUICK)
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    assert "gamma: .inf" in (folder / "config.yaml").read_text()
    assert call(capsys, "fit", "--config", folder / "config.yaml").out == f"done already: {folder / 'result.json'}\n"
