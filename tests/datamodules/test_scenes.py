"""Street scenes, in generated folders of their layouts."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

from dafw.errors import UserError
from datamodules import DrivingScenes
from datamodules.scene_layouts import class_names, numbers, scenes


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def image(path: Path) -> None:
    save(path, np.random.default_rng(len(str(path))).integers(0, 256, (8, 12, 3)))


def mask(path: Path, kind: str) -> None:
    """The upper half is road, the lower half bicycle, the first pixel a number of no class."""
    known = numbers(kind, 19)
    pixels = np.full((8, 12), known["road"])
    pixels[4:], pixels[0, 0] = known["bicycle"], 0 if kind != "train_ids" else 255
    if kind != "synthia":
        save(path, pixels)
        return
    rows = np.zeros((8, 12, 3), ">u2")
    rows[..., 0], rows[..., 1] = pixels, 300  # the class, and the number of an instance

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path.parent.mkdir(parents=True, exist_ok=True)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def write(root: Path) -> None:
    """A few images of each dataset."""
    for part, city in (("train", "ulm"), ("val", "lindau")):
        for number in range(6):
            name = f"{part}/{city}/{city}_{number:06}_000019"
            image(root / "cityscapes" / "leftImg8bit" / f"{name}_leftImg8bit.png")
            mask(root / "cityscapes" / "gtFine" / f"{name}_gtFine_labelIds.png", "label_ids")
            mask(root / "cityscapes" / "gtFine" / f"{name}_gtFine_instanceIds.png", "label_ids")
            for fog in ("0.01", "0.02"):
                image(root / "cityscapes" / "leftImg8bit_foggy" / f"{name}_leftImg8bit_foggy_beta_{fog}.png")
            for condition in ("fog", "night", "rain", "snow"):
                frame = f"GOPR1/GOPR1_frame_{number:06}"
                image(root / "ACDC" / "rgb_anon" / condition / part / f"{frame}_rgb_anon.png")
                image(root / "ACDC" / "rgb_anon" / condition / f"{part}_ref" / f"{frame}_rgb_ref_anon.png")
                mask(root / "ACDC" / "gt" / condition / part / f"{frame}_gt_labelTrainIds.png", "train_ids")
            image(root / "dark_zurich" / "rgb_anon" / part / "night" / f"GOPR2/GOPR2_{number}_rgb_anon.png")
            image(root / "bdd100k" / "images" / "10k" / part / f"{part}{number}.jpg")
            mask(root / "bdd100k" / "labels" / "sem_seg" / "masks" / part / f"{part}{number}.png", "train_ids")
    for number in range(6):
        frame = f"GOPR2/GOPR2_{number}"
        mask(root / "dark_zurich" / "gt" / "val" / "night" / f"{frame}_gt_labelTrainIds.png", "train_ids")
        image(root / "dark_zurich" / "rgb_anon" / "train" / "day" / f"{frame}_rgb_anon.png")
    pairs = "".join(f"train/night/GOPR2/GOPR2_{i},train/day/GOPR2/GOPR2_{i // 2}\n" for i in range(5))
    (root / "dark_zurich" / "zurich_dn_pair_train.csv").write_text(pairs)
    for number in range(30):
        image(root / "gta" / "images" / f"{number:05}.png")
        mask(root / "gta" / "labels" / f"{number:05}.png", "label_ids")
        image(root / "RAND_CITYSCAPES" / "RGB" / f"{number:07}.png")
        mask(root / "RAND_CITYSCAPES" / "GT" / "LABELS" / f"{number:07}.png", "synthia")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("scenes")
    write(found)
    return found


def test_what_is_known_is_consistent() -> None:
    assert DrivingScenes.__doc__ is not None
    assert [len(class_names(count)) for count in (19, 16, 13)] == [19, 16, 13]
    for facts in scenes()["domains"].values():
        assert all(how.startswith(("seen (", "recalled")) for how in facts["provenance"].values())
        assert {"layout", "counts"} <= set(facts["provenance"])
    for kind in scenes()["labels"]:
        assert len(set(numbers(kind, 19).values())) == 19


@pytest.mark.parametrize("count", [19, 16, 13])
def test_every_dataset_is_read(root: Path, count: int) -> None:
    names = ["cityscapes", "foggy_cityscapes", "gta5", "synthia", "acdc", "acdc_night", "dark_zurich", "bdd100k"]
    data = DrivingScenes(names[:-1], names[-1], root=str(root), num_classes=count, split=(0.6, 0.2, 0.2))
    assert data.class_names == class_names(count)
    road, bicycle = data.class_names.index("road"), data.class_names.index("bicycle")
    for name in names:
        domain = data.load(name, "test")
        assert domain.labels is not None
        for pixels, label in zip(domain.inputs, domain.labels, strict=True):
            assert (pixels.shape, label.shape) == ((3, 8, 12), (8, 12))
            assert (label[0, 0], label[0, 1], label[4, 0]) == (255, road, bicycle)
        official = {"acdc": (24, 24), "gta5": (0, 30), "synthia": (0, 30)}.get(name, (6, 6))
        sizes = [len(data._indices(name, split)) for split in ("train", "val", "test")]
        assert sum(sizes) == sum(official)
        assert official[0] == 0 or sizes[2] == official[1]
    for cache in (False, True):
        zurich = DrivingScenes("cityscapes", "dark_zurich", root=str(root), cache=cache)
        assert zurich.load("dark_zurich", "train").labels is None
        assert zurich.load("dark_zurich", "test").labels is not None
    assert {path.rpartition("beta_")[2] for path in data.load("foggy_cityscapes", "test").ids or ()} == {"0.02.png"}


def test_references(root: Path) -> None:
    data = DrivingScenes("cityscapes", ["acdc", "dark_zurich"], root=str(root))
    found = data.references("acdc", "test")
    rows, index = found.images, found.index
    assert (len(rows), sorted(index.tolist())) == (24, list(range(24)))
    assert rows[0].shape == (3, 8, 12)
    for position, name in zip(index.tolist(), data.load("acdc", "test").ids or (), strict=True):
        assert rows.reader.names[position] == name.replace("/val/", "/val_ref/").replace(
            "rgb_anon.png", "rgb_ref_anon.png"
        )
    found = data.references("dark_zurich", "train")
    rows, index = found.images, found.index
    names = list(data.load("dark_zurich", "train").ids or ())
    assert [one == -1 for one in index.tolist()] == ["GOPR2_5" in name for name in names]
    with pytest.raises(UserError, match="no image in the test split of cityscapes has a reference"):
        data.references("cityscapes", "test")


def test_what_is_missing_is_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"holds no folder gta5 or gta or gtav with images of gta5: see dafw data check gta5"
    ):
        DrivingScenes("gta5", "cityscapes", root=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.num_classes must be 19, 16 or 13, not 18"):
        DrivingScenes("gta5", "cityscapes", root=str(root), num_classes=18)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.classes has no part in DrivingScenes"):
        DrivingScenes("gta5", "cityscapes", root=str(root), classes=["a"])
    found = call(capsys, "data", "check", "acdc_night", "--root", root)
    assert found.code == 1
    assert "train: 6 of 400 images, 6 masks, 6 references; 394 images are missing" in found.out
    assert "how that is known, counts: recalled" in found.out
    image(tmp_path / "gta" / "images" / "1.png")
    (tmp_path / "gta" / "labels").mkdir()
    assert "1.png has no mask" in refused(capsys, "data", "check", "gta5", "--root", tmp_path)
    assert 'unknown benchmark "gta6": did you mean "gta5"?' in refused(capsys, "data", "check", "gta6", "--root", root)
    listed = call(capsys, "data", "list").out
    assert "bdd100k (DrivingScenes): 8,000 images, 19 classes: train 7,000, test 1,000" in listed
