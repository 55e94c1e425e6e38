"""Digit sets in their original files, all of them made here."""

import bz2
import gzip
import hashlib
import logging
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image

import datamodules.digits as digits_module
from dafw.errors import UserError
from datamodules.digit_files import photographs, read_digits, read_mnistm, read_npz
from datamodules.digits import Digits

HALVES = (("train", 60), ("test", 20))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own cache, and no network."""

    def refuse(*args, **options):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    digits_module._domains.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "digits").mkdir()
    return tmp_path / "digits"


def images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % 10


def save_npz(path: Path, *shape: int, **changes) -> None:
    arrays = {f"x_{half}": images(count, *shape) for half, count in HALVES}
    arrays |= {f"y_{half}": labels(count).astype(np.uint8) for half, count in HALVES}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})


def save_mnist(root: Path, *, packed: bool = False) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, (_, count) in zip(("train", "t10k"), HALVES, strict=True):
        for kind, dimensions, content in (
            ("images-idx3", (count, 28, 28), images(count, 28, 28)),
            ("labels-idx1", (count,), labels(count)),
        ):
            head = bytes([0, 0, 8, len(dimensions)]) + np.array(dimensions, ">i4").tobytes()
            data = head + content.astype(np.uint8).tobytes()
            path = raw / f"{half}-{kind}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


def check(found, *shape: int) -> None:
    for half, count in HALVES:
        assert found[half]["images"].shape == (count, *shape)
        assert found[half]["images"].dtype == np.uint8
        assert found[half]["labels"].tolist() == labels(count).tolist()


@pytest.mark.parametrize("shape", [(16, 16), (32, 32, 3)])
def test_npz(root: Path, shape: tuple[int, ...]) -> None:
    save_npz(root / "usps_any.npz", *shape)
    check(read_digits("usps", root), *shape)
    assert (read_digits("usps", root)["test"]["images"] == images(20, *shape)).all()


def test_npz_with_one_channel(root: Path) -> None:
    save_npz(root / "usps.npz", 16, 16, 1)
    check(read_digits("usps", root), 16, 16)


def test_mnistm_is_not_taken_for_mnist(root: Path) -> None:
    save_npz(root / "mnistm_32.npz", 32, 32, 3)
    assert read_npz("mnist", root) is None
    check(read_mnistm(root), 32, 32, 3)


def test_several_npz_files_are_ambiguous(root: Path) -> None:
    for name in ("usps.npz", "usps-2.npz"):
        save_npz(root / name, 16, 16)
    with pytest.raises(UserError, match=r"both usps-2\.npz and usps\.npz"):
        read_digits("usps", root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "x_test"),
        ({"x_test": images(20, 16, 16).astype(np.float32)}, "float32"),
        ({"x_train": images(60, 256)}, r"\(60, 256\)"),
        ({"y_train": np.arange(60)}, "labels from 0 to 59"),
        ({"y_test": labels(19)}, "19 labels"),
    ],
)
def test_a_malformed_npz_is_named(root: Path, changes: dict, message: str) -> None:
    save_npz(root / "usps.npz", 16, 16, **changes)
    with pytest.raises(UserError, match=rf"usps\.npz must hold .*{message}"):
        read_digits("usps", root)


@pytest.mark.parametrize("name", ["usps.npz", "usps.bz2"])
def test_a_file_that_the_disk_does_not_give_is_neither_damaged_nor_downloaded(root: Path, name: str) -> None:
    (root / name).symlink_to("/proc/self/mem")  # reading its start fails as a broken disk does
    with pytest.raises(UserError, match=f"the file {root}.* cannot be read: Input/output error"):
        read_digits("usps", root)


def test_a_damaged_npz_is_named(root: Path) -> None:
    (root / "usps.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match=r"usps\.npz must hold"):
        read_digits("usps", root)


@pytest.mark.parametrize("packed", [False, True])
def test_original_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    save_mnist(root, packed=packed)
    sums = [
        (name, hashlib.md5((root / "MNIST" / "raw" / name).read_bytes()).hexdigest() if packed else md5)
        for name, md5 in torchvision.datasets.MNIST.resources
    ]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    found = read_digits("mnist", root)
    check(found, 28, 28)
    assert (found["train"]["images"] == images(60, 28, 28)).all()


def test_original_usps(root: Path) -> None:
    for (_, count), name in zip(HALVES, ("usps.bz2", "usps.t.bz2"), strict=True):
        rows = [
            " ".join([str(label + 1), *(f"{i + 1}:{value / 127.5 - 1:.4f}" for i, value in enumerate(image.ravel()))])
            for label, image in zip(labels(count), images(count, 16, 16), strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    found = read_digits("usps", root)
    check(found, 16, 16)
    assert np.abs(found["test"]["images"].astype(int) - images(20, 16, 16)).max() <= 1


def test_original_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {}
    for half, count in HALVES:
        name = f"{half}_32x32.mat"
        ten = np.where(labels(count) == 0, 10, labels(count)).reshape(-1, 1)
        scipy.io.savemat(root / name, {"X": images(count, 32, 32, 3).transpose(1, 2, 3, 0), "y": ten})
        listed[half] = ["", name, hashlib.md5((root / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {**torchvision.datasets.SVHN.split_list, **listed})
    found = read_digits("svhn", root)
    check(found, 32, 32, 3)
    assert (found["test"]["images"] == images(20, 32, 32, 3)).all()


@pytest.mark.parametrize(
    ("name", "files"), [("mnist", "train-images-idx3-ubyte"), ("usps", "usps.t.bz2"), ("svhn", "train_32x32.mat")]
)
def test_nothing_to_read_and_no_network(root: Path, name: str, files: str) -> None:
    with pytest.raises(UserError) as caught:
        read_digits(name, root / "nowhere")
    message = str(caught.value)
    for part in (name, str(root / "nowhere"), files, f"{name}.npz", "no network here", "--data.scale small"):
        assert part in message
    assert "\n" not in message


def test_damaged_originals_are_named(root: Path) -> None:
    save_mnist(root)
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="mnist cannot be read from"):
        read_digits("mnist", root)
    (root / "usps.bz2").write_bytes(b"BZh91AY&SY")
    with pytest.raises(UserError, match="usps cannot be read from"):
        read_digits("usps", root)


def save_mnistm(folder: Path) -> None:
    for half, count in HALVES:
        (folder / f"mnist_m_{half}").mkdir(parents=True)
        lines = []
        for index, (image, label) in enumerate(zip(images(count, 32, 32, 3), labels(count), strict=True)):
            Image.fromarray(image).save(folder / f"mnist_m_{half}" / f"{index:08}.png")
            lines.append(f"{index:08}.png {label}")
        (folder / f"mnist_m_{half}_labels.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("inside", ["mnistm", "mnist_m", "."])
def test_original_mnistm(root: Path, inside: str) -> None:
    save_mnistm(root / inside)
    for _ in range(2):
        found = read_mnistm(root)
        check(found, 32, 32, 3)
        assert (found["train"]["images"] == images(60, 32, 32, 3)).all()


def test_incomplete_mnistm_is_named(root: Path) -> None:
    save_mnistm(root / "mnistm")
    damaged = root / "mnistm" / "mnist_m_train" / "00000005.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:50])
    with pytest.raises(UserError, match=r"00000005\.png cannot be decoded"):
        read_mnistm(root)
    damaged.write_bytes(content)
    (root / "mnistm" / "mnist_m_test" / "00000003.png").unlink()
    with pytest.raises(
        UserError, match=r"mnist_m_test_labels\.txt names 20 images, 1 of which are missing, .*00000003"
    ):
        read_mnistm(root)
    (root / "mnistm" / "mnist_m_test_labels.txt").write_text("00000000.png\n")
    with pytest.raises(UserError, match=r'mnist_m_test_labels\.txt must exist and say "name label"'):
        read_mnistm(root)
    (root / "mnistm" / "mnist_m_train_labels.txt").write_text("00000000.png 11\n")
    with pytest.raises(UserError, match="with labels 0 to 9"):
        read_mnistm(root)


def full(source: str, target: str, root: Path | None) -> Digits:
    return Digits(source, target, scale="full", root=None if root is None else str(root))


def test_full_scale_splits(root: Path) -> None:
    save_npz(root / "mnist.npz", 28, 28)
    save_npz(root / "usps.npz", 16, 16)
    data = full("mnist", "usps", root)
    assert {split: len(data.load("usps", split)) for split in ("train", "val", "test")} == {
        "train": 50,
        "val": 10,
        "test": 20,
    }
    assert data.load("usps", "test").ids[:2] == ["usps/test/0", "usps/test/1"]
    assert not set(data.load("usps", "train").ids) & set(data.load("usps", "val").ids)
    assert data.load("usps", "val").inputs[0].shape == (3, 28, 28)
    assert (data.load("mnist", "test").inputs[5][0].numpy() == images(20, 28, 28)[5]).all()


@pytest.mark.parametrize("given", [True, False])
def test_mnistm_is_blended_where_it_is_missing(root: Path, given: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save_npz(root / "mnist.npz", 28, 28)
    if given:
        (root / "photos").mkdir()
        for index in range(4):
            Image.new("RGB", (40, 40), (60 * index, 0, 0)).save(root / "photos" / f"{index}.jpg", quality=100)
    data = full("mnist", "mnistm", root)
    for split in ("train", "val", "test"):
        plain, blended = data.load("mnist", split), data.load("mnistm", split)
        assert [name[5:] for name in plain.ids] == [name[6:] for name in blended.ids]
        assert (plain.labels == blended.labels).all()
        if given:
            shades = {0, 120} if split == "train" else {60, 180}
            red, digit = blended.inputs[0][0].int(), plain.inputs[0][0].int()
            assert any(((digit - shade).abs() - red).abs().max() <= 2 for shade in shades)
    expected = str(root / "photos") if given else "scikit-learn's two photographs"
    assert f"blending mnistm from mnist and {'the photographs in ' if given else ''}{expected}" in caplog.text


def test_photographs_too_small_to_blend_are_named(root: Path) -> None:
    save_npz(root / "mnist.npz", 28, 28)
    assert photographs(root) is None
    (root / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(root / "photos" / "a.jpg")
    with pytest.raises(UserError, match=r"mnistm cannot be blended from .*photos: .* 28 pixels"):
        full("mnist", "mnistm", root).load("mnistm", "train")


def test_full_scale_needs_a_root_for_files_alone() -> None:
    with pytest.raises(UserError, match=r"svhn at full scale needs --data\.root.*--data\.scale small"):
        full("svhn", "mnist", None).load("svhn", "train")
    assert len(full("synthetic", "optdigits", None).load("optdigits", "test")) == 359


def test_full_scale_knows_its_domains() -> None:
    with pytest.raises(UserError, match='unknown domain "shvn": did you mean "svhn"'):
        full("mnist", "shvn", None)
