"""A user's whole classifier, or torchvision's, becomes a backbone and a head that keep what they have learned."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from networks import images
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.nn.network import Network
from dafw.nn.weights import without_weights
from dafw.recording import build, describe

SCALE: dict[str, Any] = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}


class Whole(nn.Module):
    """A convolution, a batch norm and two linear layers: images to the scores of four classes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.ModuleDict({"hidden": nn.Linear(6, 5), "out": nn.Linear(5, classes)})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        scores: Tensor = self.last["out"](self.last["hidden"](x).tanh())
        return scores


class Logs(Whole):
    """Returns logarithms of probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


class Known(Whole):
    """Says how its images were normalised."""

    pretrained_cfg = {"mean": (0.1, 0.1, 0.1), "std": (0.2, 0.2, 0.2)}


def makes(classes: int = 4) -> Whole:
    """A function that makes a module."""
    return Whole(classes)


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user with these classes."""
    mine = ModuleType("whole_for_tests")
    vars(mine).update(Whole=Whole, Logs=Logs, Known=Known, makes=makes)
    monkeypatch.setitem(sys.modules, "whole_for_tests", mine)


@pytest.fixture
def model() -> Whole:
    torch.manual_seed(3)
    model = Whole()
    model.norm.running_mean += 0.1  # type: ignore[operator]
    return model


def saved(state: Any, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def network(weights: str, name: str = "Whole", classes: int = 4, **options: Any) -> Network:
    options = {"input_size": 9, **SCALE, **options}
    found = Network(f"whole_for_tests.{name}", weights=weights, head="pretrained", **options)
    found.set_classes(classes)
    return found


@pytest.mark.parametrize("name", ["Whole", "makes"])
def test_it_gives_the_scores_of_the_whole(model: Whole, tmp_path: Path, name: str) -> None:
    """Prefixes of DataParallel, and nests of a training program, are no obstacle."""
    held = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}, "best_prec1": 91.7}
    path = saved(held, tmp_path / "model.th")
    found = network(path, name).eval()
    x = images(4, 9)
    with torch.no_grad():
        torch.testing.assert_close(found(x).logits, model(found.normalise(x)))
    assert (found.num_features, found(x).features.shape, found.starts_trained) == (5, (4, 5), True)
    assert {"backbone.last.hidden.weight", "head.weight"} <= set(found.state_dict())
    assert not any("out" in key for key in found.state_dict())


def test_it_arrives_in_evaluation_mode_and_is_trained(model: Whole, tmp_path: Path) -> None:
    found = network(saved(model.state_dict(), tmp_path / "model.th"))
    assert not model.training
    assert all(part.training for part in found.modules())


def test_a_checkpoint_makes_it_again_without_the_file(model: Whole, tmp_path: Path) -> None:
    path = saved(model.state_dict(), tmp_path / "model.th")
    found = SourceOnly(network(path), num_classes=4).eval()
    Path(path).unlink()
    with without_weights():
        again = build(describe(found)).eval()
    again.load_state_dict(found.state_dict())
    x = images(4, 9)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, found(x).logits, rtol=0, atol=0)


def test_names_are_mapped(model: Whole, tmp_path: Path) -> None:
    state = {f"module.net.{key}".replace("last.out", "fc"): value for key, value in model.state_dict().items()}
    path = saved(state, tmp_path / "model.pth")
    found = network(path, weights_keys={"net.": "", "net.fc": "last.out"}).eval()
    x = images(4, 9)
    with torch.no_grad():
        torch.testing.assert_close(found(x).logits, model(found.normalise(x)))
    with pytest.raises(UserError, match=r'model\.pth has a name that begins with "nett" \(model.network.weights_keys'):
        network(path, weights_keys={"nett": ""})
    with pytest.raises(UserError, match=r"does not fit whole_for_tests\.Whole: 0 of its"):
        network(path)


def test_torchvisions_are_taken() -> None:
    """With the names of timm for a ResNet; here torchvision makes the module itself."""
    pytest.importorskip("torchvision")
    made = Network("torchvision.models.squeezenet1_1", input_size=32)
    assert made.num_features == 1000


def test_normalisation_is_the_classifiers_own(model: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(model.state_dict(), tmp_path / "model.th")
    for key in ("mean", "std"):
        with pytest.raises(
            UserError, match=rf"nothing says with which {key} the images of .* give model.network.{key}"
        ):
            network(path, **{key: None})
    known = network(path, "Known", mean=None, std=None)
    assert (known.mean, known.std) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
    assert capsys.readouterr().err == ""
    network(path, "Known", mean=[0.3, 0.1, 0.1], std=None)
    said = "normalises images with mean [0.3, 0.1, 0.1] where its weights had [0.1, 0.1, 0.1]"
    assert said in capsys.readouterr().err


def test_what_cannot_be_kept_is_refused(model: Whole, tmp_path: Path) -> None:
    path = saved(model.state_dict(), tmp_path / "model.th")
    with pytest.raises(UserError, match="keeps a classifier of 4 classes, and 3 are needed"):
        network(path, classes=3)
    with pytest.raises(UserError, match="no classifier that head: pretrained could keep"):
        network(path, "Logs")
    with pytest.raises(UserError, match=r"does not fit .*: .* of another shape"):
        network(path, backbone_args={"classes": 7})
