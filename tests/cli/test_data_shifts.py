"""``dafw data list`` and ``dafw data check`` for the variants of CIFAR and ImageNet."""

from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

from dafw.commands.shifts import shifts
from dafw.data.corruptions import COMMON


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete copy has two images of each domain."""
    for facts in shifts().values():
        monkeypatch.setitem(facts, "images", 2)


def test_the_list_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "data", "list").out
    assert "CIFAR-10-C (CIFAR10C): 10,000 images in each of 15 + 4 corruptions at 5 severities, 10 classes\n" in out
    assert "ImageNet-R (ImageNetVariants): 30,000 images in imagenet_r, 200 classes\n" in out
    for facts in shifts().values():
        assert all(how.startswith(("seen (", "recalled")) for how in facts["provenance"].values())
        assert f"  licence: {facts['licence']}\n" in out


@pytest.mark.usefixtures("few")
def test_arrays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for kind in COMMON:
        np.save(tmp_path / f"{kind}.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(10, np.uint8))
    check = ("data", "check", "CIFAR-10-C", "--root", tmp_path)
    done = call(capsys, *check)
    assert (done.code, done.err) == (0, "")
    assert "fog: complete\n" in done.out
    assert "spatter: missing, which is one of the held-out corruptions\n" in done.out
    (tmp_path / "fog.npy").unlink()
    done = call(capsys, *check)
    assert (done.code, "fog: missing\n" in done.out, "CIFAR-10-C is not complete" in done.out) == (1, True, True)
    np.save(tmp_path / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    assert "fog.npy has 5 images, and labels.npy beside it 10 labels" in refused(capsys, *check)


@pytest.mark.usefixtures("few")
def test_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-r" / "n01443537"
    folder.mkdir(parents=True)
    check = ("data", "check", "ImageNet-R", "--root", tmp_path)
    for index, (code, said) in enumerate(((1, "imagenet_r: 1 images are missing\n"), (0, "imagenet_r: complete\n"))):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
        done = call(capsys, *check)
        assert (done.code, said.replace("imagenet_r: 1", "imagenet_r: imagenet_r: 1") in done.out) == (code, True)
    said = refused(capsys, "data", "check", "ImageNet-C", "--root", tmp_path)
    assert said.startswith(f"{tmp_path} (--root) holds nothing of ImageNet-C: get the archives")
    assert 'unknown benchmark "ImageNet-B": did you mean' in refused(
        capsys, "data", "check", "ImageNet-B", "--root", "."
    )
