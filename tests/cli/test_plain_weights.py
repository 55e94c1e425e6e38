"""``model.checkpoint`` names a file of weights alone: a whole classifier starts a run without being trained here."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from commands import PLAIN, TOY_DATA, call, one_run, refused
from PIL import Image

from dafw.checkpoints import read_checkpoint

MODULE = '''
from torch import nn


class Whole(nn.Module):
    """Images to the scores of three classes."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))
'''
NETWORK = ("--model.network.backbone", "whole.Whole", "--model.network.input_size", "6")
SCALE = ("--model.network.mean", "[0.4]", "--model.network.std", "[0.2]")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as a training program leaves it, beside the module of its network."""
    Path("whole.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(__import__("sys").modules, "whole", raising=False)
    torch.manual_seed(2)
    state = __import__("whole").Whole().state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "model.th")
    return Path("model.th")


def test_no_epoch_leaves_a_checkpoint_that_others_start_from(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("--model.checkpoint", weights, *NETWORK, *SCALE)
    done = call(capsys, "fit", "--model", "SourceOnly", *TOY_DATA, *PLAIN, *start, "--trainer.max_epochs", "0")
    assert (done.code, done.err) == (0, "")
    folder = one_run(Path("runs"))
    config = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    inner = config["network"]["init_args"]
    assert (config["checkpoint"], inner["weights"], inner["head"]) == (None, "model.th", "pretrained")
    held = torch.load(weights, weights_only=True)["state_dict"]
    state = read_checkpoint(folder / "checkpoints" / "step=0.ckpt")["state_dict"]
    for theirs, ours in (("conv.weight", "backbone.conv.weight"), ("linear.weight", "head.weight")):
        assert torch.equal(state[f"network.{ours}"], held[f"module.{theirs}"])
    weights.unlink()
    done = call(capsys, "predict", folder)
    assert (done.code, done.err) == (0, "")
    assert json.loads((folder / "result.json").read_text())["steps"] == 0


def test_a_method_that_needs_a_model_starts_from_them(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("--model.checkpoint", weights, *NETWORK, *SCALE)
    quick = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "2")
    done = call(capsys, "fit", "--model", "SHOT", *TOY_DATA, *PLAIN, *start, *quick)
    assert (done.code, done.err) == (0, "")
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    assert (result["setting"]["name"], result["source_use"]) == ("source-free", "nothing")


def test_what_is_refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shot = ("fit", "--model", "SHOT", *TOY_DATA, *PLAIN, "--model.checkpoint", weights)
    said = refused(capsys, *shot)
    assert said == "model.th (model.checkpoint) holds weights and does not say of which network: give " + (
        "model.network.backbone"
    )
    assert "nothing says with which mean the images of whole.Whole" in refused(capsys, *shot, *NETWORK)
    wrong = refused(capsys, *shot, *NETWORK, *SCALE, "--model.network.backbone_args", '{"classes": 4}')
    assert "does not fit whole.Whole" in wrong
    torch.save(__import__("whole").Whole(4).state_dict(), "four.th")
    other = (*shot[:-1], "four.th", *NETWORK, *SCALE, "--model.network.backbone_args", '{"classes": 4}')
    assert "keeps a classifier of 4 classes, and 3 are needed" in refused(capsys, *other)
    Path("broken.th").write_bytes(weights.read_bytes()[:90])
    assert "broken.th cannot be read" in refused(capsys, *shot[:-1], "broken.th", *NETWORK, *SCALE)


def test_weights_alone_meet_a_folder_without_a_source(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        (Path("root") / "new" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (6, 6), (90 * index, 40, 80)).save(Path("root") / "new" / name / f"{index}.png")
    start = ("--model.checkpoint", weights, *NETWORK, *SCALE, "--data.target_batch_size", "2")
    data = ("--data", "ImageFolderDomains", "--data.root", "root", "--data.size", "6", "--data.resize", "6")
    sides = ("--data.source", "old", "--data.target", "new", "--data.split", "[0.0, 0.0, 1.0]")
    done = call(capsys, "fit", "--model", "Frozen", *data, *sides, *PLAIN, *start)
    assert (done.code, done.err) == (0, "")
    corrupt = ("--data", "Corruptions", "--data.base", "ImageFolderDomains", *data[2:-2], "--data.base_args")
    corrupt += ('{"resize": 6, "split": [0.0, 0.0, 1.0]}', "--data.source", "new", "--data.target", "fog_5")
    done = call(capsys, "fit", "--model", "Frozen", *corrupt, *PLAIN, *start, "--run.dir", "fog")
    assert (done.code, done.err) == (0, "")
    assert json.loads(Path("fog/result.json").read_text())["transductive_reason"] == "", "nothing is adapted"
    done = call(capsys, "predict", "fog", "--images", "root/new/a/0.png")
    assert (done.code, done.err) == (0, "")
