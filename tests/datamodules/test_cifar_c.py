"""CIFAR-10-C and CIFAR-100-C in generated files of their layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dafw.data.corruptions import KINDS
from dafw.errors import UserError
from datamodules import CIFAR10C, CIFAR100C

COUNT = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two corruptions in the folder CIFAR-10-C; the first value of an image says which one it is."""
    home = tmp_path / "CIFAR-10-C"
    home.mkdir()
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("fog", "gaussian_noise")):
        images = rng.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(5 * COUNT), number
        np.save(home / f"{kind}.npy", images)
    np.save(home / "labels.npy", np.tile(np.arange(COUNT) % 10, 5).astype(np.uint8))
    return tmp_path


def test_a_severity_is_a_fifth_of_an_array(root: Path) -> None:
    data = CIFAR10C(target=["fog_1", "gaussian_noise_4"], root=str(root))
    assert (data.task, data.num_classes, len(data.domain_names)) == ("clean->fog_1,gaussian_noise_4", 10, 96)
    found = data.load("gaussian_noise_4", "test")
    assert len(found) == COUNT
    firsts = torch.stack([found.inputs[index][:2, 0, 0] for index in range(COUNT)])
    assert firsts.tolist() == [[3 * COUNT + index, 1] for index in range(COUNT)]
    assert found.inputs[0].shape == (3, 32, 32)
    np.testing.assert_array_equal(found.labels, np.arange(COUNT) % 10)
    assert [len(data.load("fog_1", split)) for split in ("train", "val")] == [COUNT, 2]  # type: ignore[arg-type]
    batch = next(iter(data.evaluation_loader(data.domain("fog_1", "test"))))
    assert batch.x.dtype == torch.uint8
    inside = CIFAR10C(target="fog_1", root=str(root / "CIFAR-10-C"))
    assert inside.load("fog_1", "test").inputs[0].equal(data.load("fog_1", "test").inputs[0])


def test_the_targets_are_the_benchmarks_unless_others_are_named(root: Path) -> None:
    assert len(CIFAR10C(root=str(root)).target) == 15
    assert CIFAR10C(target="held_out_2", root=str(root)).target == [f"{kind}_2" for kind in KINDS[15:]]
    assert (len(CIFAR100C.class_names), list(CIFAR100C.class_names)) == (100, sorted(CIFAR100C.class_names))


def broken(root: Path, name: str, content: Any) -> None:
    path = root / "CIFAR-10-C" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.unlink()
    else:
        np.save(path, content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("fog.npy", None, r"the array .*fog\.npy does not exist"),
        ("fog.npy", b"", r"the array .*fog\.npy cannot be read"),
        ("fog.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape'", r"fog\.npy cannot be"),
        ("fog.npy", np.array([{}], dtype=object), r"fog\.npy cannot be read"),
        ("fog.npy", np.zeros((60, 3, 32, 32), np.uint8), r"fog\.npy has uint8 \(60, 3, 32, 32\), where images are"),
        ("fog.npy", np.zeros((60, 32, 32, 3), np.float32), r"fog\.npy has float32"),
        ("fog.npy", np.zeros((50, 32, 32, 3), np.uint8), r"fog\.npy has 50 images, and labels.npy beside it 60 labels"),
        ("labels.npy", np.zeros(59, np.uint8), r"labels\.npy has uint8 \(59,\), where labels are whole numbers"),
        ("labels.npy", np.zeros(60, np.float32), r"labels\.npy has float32"),
        ("labels.npy", np.full(60, 11), r"labels\.npy has labels from 11 to 11, where there are 10 classes"),
    ],
)
def test_files_that_cannot_be_used(root: Path, name: str, content: Any, said: str) -> None:
    broken(root, name, content)
    with pytest.raises(UserError, match=said):
        CIFAR10C(target="fog_3", root=str(root)).load("fog_3", "test")


def test_a_truncated_array(root: Path) -> None:
    path = root / "CIFAR-10-C" / "fog.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"fog\.npy cannot be read"):
        CIFAR10C(target="fog_3", root=str(root)).load("fog_3", "test")


def test_arguments_that_are_wrong(root: Path) -> None:
    for options, said in (
        ({"target": "fogg_3"}, 'unknown corruption "fogg": did you mean "fog"'),
        ({"source": "fog_1"}, "data.source of CIFAR10C is clean, not fog_1"),
        ({"root": str(root / "nowhere")}, "nowhere .data.root. does not exist"),
        ({"root": str(root.parent)}, "holds no labels.npy, and neither does CIFAR-10-C in it"),
    ):
        with pytest.raises(UserError, match=said):
            CIFAR10C(**{"target": "fog_2", "root": str(root), **options})
    with pytest.raises(UserError, match="holds no images of clean"):
        CIFAR10C(target="fog_2", root=str(root)).load("clean", "train")


def test_a_file_is_prepared_as_an_image_of_32_pixels(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 36), (9, 8, 7)).save(tmp_path / "one.png")
    found = CIFAR10C(target="fog_1", root=str(root)).evaluation_transform()(tmp_path / "one.png")
    assert (found.dtype, tuple(found.shape), found[:, 0, 0].tolist()) == (torch.uint8, (3, 32, 32), [9, 8, 7])
