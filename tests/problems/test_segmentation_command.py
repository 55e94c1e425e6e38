"""Networks for masks go through the command: training, a run that goes on from a checkpoint, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
from commands import call, refused

TOYS = (
    *("--data", "dafw.testing.toys.ToyData", "--data.kind", "segmentation", "--data.source", "a", "--data.target", "b"),
    *("--data.batch_size", "4", "--data.steps_per_epoch", "2", "--trainer.max_epochs", "1"),
    *("--trainer.accelerator", "cpu", "--run.plots", "false", "--model.problem", "Segmentation"),
)
MASKS = (*TOYS, "--model.network", "SegmentationNetwork")
START = """
from typing import Any

from dafw.methods.source_free import SourceFreeMethod
from dafw.problems import MaskOutputs, NetworkBase


class Sharpen(SourceFreeMethod):
    kinds = ("segmentation",)

    def __init__(self, network: NetworkBase, **base) -> None:
        super().__init__(network, **base)

    def adapt(self, target: MaskOutputs, batch: Any) -> Any:
        p = target.logits.softmax(1)
        return {"entropy": -(p * p.clamp_min(1e-6).log()).sum(1).mean()}
"""
SETS = '{"common": ["zero", "one"], "target_private": ["two"]}'
OWN = """
from torch import nn


class Net(nn.Conv2d):
    def __init__(self, num_classes):
        super().__init__(3, num_classes, 1)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_masks_are_trained_and_a_source_free_method_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The network comes with the checkpoint; another architecture, or a class of somebody else's, is refused."""
    Path("start_masks.py").write_text(START)
    done = call(capsys, "fit", "--model", "AdaBN", *MASKS, "--model.network.auxiliary", "true", "--run.dir", "one")
    assert (done.code, done.err) == (0, "")
    start = ("fit", "--model", "start_masks.Sharpen", *TOYS, "--model.checkpoint", "one")
    with pytest.raises(SystemExit, match="0"):
        call(capsys, *start, "--print_config")
    assert "dafw.nn.segmentation.SegmentationNetwork" in capsys.readouterr().out
    given = ("--model.network", "SegmentationNetwork", "--model.network.auxiliary", "true")
    for option, said in (
        (("--model.network.arch", "lraspp"), "model.network.arch is lraspp, but tiny_unet in the model of one"),
        (("--model.network.arch_args", '{"width": 4}'), "model.network.arch_args is {'width': 4}, but None in the"),
        (("--model.network.auxiliary", "false"), "model.network.auxiliary is False, but True in the model of one"),
    ):
        assert refused(capsys, *start, *given, *option).startswith(said)
    said = refused(capsys, *start, "--model.network", "Network")
    assert said.startswith("model.network.class_path is dafw.nn.network.Network, but dafw.nn.segmentation.Seg")
    done = call(capsys, *start, "--run.dir", "two")
    assert (done.code, done.err) == (0, "")
    assert set(json.loads(Path("two/result.json").read_text())["test"]) == {"b"}


def test_a_class_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    """A run finds it again; a checkpoint alone may not name it."""
    Path("own_masks.py").write_text(OWN)
    Path("start_more_masks.py").write_text(START)
    own = (*MASKS, "--model.network.arch", "own_masks.Net")
    done = call(capsys, "fit", "--model", "SourceOnly", *own, "--run.dir", "one")
    assert (done.code, done.err) == (0, "")
    predicted = call(capsys, "predict", "one")
    assert (predicted.code, predicted.err) == (0, "")
    said = refused(capsys, "fit", "--model", "start_more_masks.Sharpen", *TOYS, "--model.checkpoint", "one")
    assert "has the arch own_masks.Net, which is not of dafw" in said
    del sys.modules["own_masks"]
    said = refused(capsys, "fit", "--model", "SourceOnly", *MASKS, "--model.network.arch", "own_mask.Net")
    assert said.startswith('unknown arch "own_mask.Net"')


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("SourceOnly", ("--model.network.arch", "fpm"), 'unknown arch "fpm": did you mean "fpn"'),
        ("SourceOnly", ("--model.network.arch", "unet", "--model.network.encoder", "resnet19"), '"resnet18"'),
        ("SourceOnly", ("--model.rejection", "Entropy"), "Segmentation knows no unknown classes: leave out model.rej"),
        ("SourceOnly", ("--data.label_sets", SETS), "data.label_sets needs one class a sample, and those of b"),
        ("SourceOnly", ("--data.source_sampling", "class_balanced"), "class_balanced needs one class a sample, and a"),
        ("SHOT", (), "model.network: SegmentationNetwork is a network, but not one that this method takes"),
        ("SourceOnly", ("--model.norm", "separate", "--data.batch_size", "1", "--model.forward_target", "true",
                        "--model.network.arch", "lraspp"), "Expected more than 1 value per channel when training, and"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], model: str, options: tuple[str, ...], said: str
) -> None:
    done = call(capsys, "fit", "--model", model, *MASKS, *options)
    assert (done.code, done.err.count("\n")) == (2, 1), done
    assert said in done.err


def test_keys_of_a_network_that_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "fit", "--model", "SourceOnly", *TOYS, "--model.network.encoder", "resnet18")
    assert said == 'unknown key "model.network.encoder": set model.network to SegmentationNetwork, which has it'
