"""Nobody's file runs code: checkpoints that choose a network, callables by name, manifests that lead elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK, TOY_DATA, call, refused
from PIL import Image

SHOT = (*("fit", "--model", "SHOT", "--model.checkpoint", "source/step=2.ckpt"), *TOY_DATA, "--trainer.max_epochs", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a source model."""
    from dafw.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["fit", "--model", "SourceOnly", *QUICK, "--run.dir", str(folder / "run")]) == 0
    return folder / "run" / "checkpoints" / "step=2.ckpt"


MANY = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backbone": "evil_module.Net"}, "has the backbone evil_module.Net, which is neither of dafw nor of timm"),
        ({"backbone": "os.system"}, "has the backbone os.system, which is neither of dafw nor of timm"),
        ({"backbone_args": {"x": [MANY]}}, "has an argument backbone_args that is not made of numbers and words"),
        ({"backbone": "resnet18", "backbone_args": {"checkpoint_path": "x.pth"}}, "takes no checkpoint_path"),
        ({"bottleneck": 10**9}, "its network.bottleneck is 1000000000, and it holds"),
    ],
)
def test_a_checkpoint_takes_no_network_of_its_own_choice(
    capsys: pytest.CaptureFixture[str], trained: Path, arguments: dict[str, Any], said: str
) -> None:
    Path("evil_module.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    content = torch.load(trained, weights_only=True)
    content["dafw"]["method"]["init_args"]["network"]["init_args"].update(arguments)
    Path("source").mkdir()
    torch.save(content, "source/step=2.ckpt")
    assert said in refused(capsys, *SHOT)
    assert not Path("ran").exists()


def test_weights_come_by_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained"):
        given = ("--model.network.backbone", "resnet18", "--model.network.backbone_args", json.dumps({key: "x.pth"}))
        assert refused(capsys, "fit", "--model", "DANN", *TOY_DATA, *given) == (
            f"backbone_args takes no {key}: give the weights as model.network.weights"
        )


@pytest.mark.parametrize("given", ["os.system", "subprocess.Popen", "builtins.print", json.dumps(MANY)])
def test_augment_takes_transforms_alone(capsys: pytest.CaptureFixture[str], given: str) -> None:
    Path("conf.yaml").write_text(f"data: {{init_args: {{augment: {given}}}}}\n")
    for arguments in (("--data.augment", given), ("--config", "conf.yaml")):
        assert "data.augment" in refused(capsys, "fit", "--model", "DANN", *QUICK, *arguments)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": MANY}, "model: subprocess.Popen is not a method (a subclass of Method)"),
        ({"data": MANY}, "data: subprocess.Popen is not a datamodule (a subclass of DomainDataModule)"),
        ({"trainer": {"callbacks": [MANY]}}, "trainer.callbacks: subprocess.Popen is not a callback"),
        (
            {"model": {"class_path": "DANN", "init_args": {"network": MANY}}},
            "model.network: subprocess.Popen is not a network (a subclass of NetworkBase)",
        ),
    ],
)
def test_a_class_of_another_kind_with_arguments(
    capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"source": "a", "target": "b"}}
    Path("conf.json").write_text(json.dumps({"model": "DANN", "data": data} | change))
    assert refused(capsys, "fit", "--config", "conf.json").startswith(said)
    assert not Path("ran").exists()


def test_augment_takes_a_transform_of_torchvision_and_any_module(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("torchvision.transforms.v2.RandomHorizontalFlip", "torch.nn.Identity"):
        assert call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--data.augment", given).code == 0


FOLDERS = (
    *("fit", "--model", "SourceOnly", "--model.network.backbone", "small_bn_net", "--model.network.input_size", "16"),
    *("--data", "ImageFolderDomains", "--data.size", "16", "--data.resize", "16", "--data.augment", "none"),
    *("--data.manifest", "list.csv", "--data.root", "root", "--data.batch_size", "2", "--data.steps_per_epoch", "1"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run.plots", "false", "--data.target", "t"),
)


def listed(domain: str, path: str) -> None:
    """Writes a manifest of two domains; the images of one lie at ``path``."""
    rng = np.random.default_rng(0)
    lines = ["path,label,domain,split"]
    for name, folder in ((domain, path), ("t", "t")):
        for index, split in enumerate(("train", "train", "train", "train", "val", "val", "test", "test")):
            file = Path("root", folder, f"{index}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
            lines.append(f"{folder}/{index}.png,{'xy'[index % 2]},{name},{split}")
    Path("list.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("domain", ["../../stolen", "/stolen", "..", "x/../../y"])
def test_a_domain_of_a_manifest_is_no_path_that_leads_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, domain: str
) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "cache" / "inner"))
    listed(domain, "s")
    said = f'list.csv, line 2: the domain "{domain}" is a path that leads out of its folder: give it another name'
    assert refused(capsys, *FOLDERS, f"--data.source={domain}", "--data.cache", "true") == said
    assert not (tmp_path / "cache").exists()


def test_images_outside_of_the_root_must_be_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in ("../elsewhere", str(tmp_path / "absolute")):
        listed("s", path)
        assert refused(capsys, *FOLDERS, "--data.source", "s") == (
            f"the image {path}/0.png lies outside of root (data.root): give another data.root, or say "
            "--data.allow_outside_root true"
        )
    assert call(capsys, *FOLDERS, "--data.source", "s", "--data.allow_outside_root", "true").code == 0
