"""Image files to uint8 RGB."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.data.images import CentreCropped, find_corrupt, load_image, load_rgb
from dafw.errors import UserError

NAMES = ["a/0.png", "a/1.png", "a/2.png", "b/3.png"]


def picture(mode: str) -> Image.Image:
    """A grey ramp."""
    grey = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (30, 1)))
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "P":
        return grey.quantize(256)
    return grey.convert("RGB" if mode in ("RGBA", "CMYK") else "L").convert(mode)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *[(mode, "png") for mode in ("1", "L", "P", "LA", "RGBA", "I;16", "RGB")],
        *[(mode, "tif") for mode in ("1", "L", "P", "I;16", "CMYK")],
        *[("CMYK", "jpg"), ("L", "jpg"), ("RGB", "bmp"), ("P", "bmp"), ("RGB", "webp"), ("RGB", "ppm")],
    ],
)
def test_every_mode_becomes_rgb(root: Path, mode: str, ending: str) -> None:
    picture(mode).save(root / f"x.{ending}")
    image = load_rgb(root / f"x.{ending}")
    assert image.mode == "RGB"
    expected = np.asarray(picture("1" if mode == "1" else "L").convert("L")).astype(int)
    assert np.abs(np.asarray(image).astype(int) - expected[..., None]).max() <= (8 if ending in ("jpg", "webp") else 0)


def test_transparent_parts_become_white(root: Path) -> None:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:, :10, 3] = 255
    Image.fromarray(pixels).save(root / "x.png")
    image = np.asarray(load_rgb(root / "x.png"))
    assert (image[:, :10] == 0).all()
    assert (image[:, 10:] == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(root / "p.png", transparency=1)
    assert (np.asarray(load_rgb(root / "p.png")) == 255).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(root: Path, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the scene's top is the file's left side
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:, 250:] = 255
    Image.fromarray(pixels).save(root / f"x.{ending}", exif=exif)
    image = load_rgb(root / f"x.{ending}")
    assert image.size == (200, 300)
    upright = load_image(root / f"x.{ending}", 20, "squash")
    turned = np.rot90(np.asarray(Image.fromarray(pixels).resize((20, 20))), -1)
    assert np.abs(upright.astype(int) - turned).max() < 60


def test_large_jpegs_are_decoded_small_but_look_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 800)
    pixels = np.stack([np.add.outer(ramp[:600], ramp) / 2] * 3, -1).astype(np.uint8)
    Image.fromarray(pixels).save(root / "x.jpg", quality=95)
    assert load_rgb(root / "x.jpg", at_least=100).size == (200, 150)
    small = load_image(root / "x.jpg", 50).astype(int)
    monkeypatch.setattr(Image.Image, "draft", lambda *args: None)
    assert np.abs(small - load_image(root / "x.jpg", 50)).max() <= 3


def test_crop_is_short_side_then_middle(root: Path) -> None:
    image = Image.open(root / NAMES[0]).convert("RGB")
    expected = np.asarray(image.resize((21, 16), Image.Resampling.BILINEAR))[:, 2:18]
    assert np.abs(load_image(root / NAMES[0], 16).astype(int) - expected).max() <= 1


def test_floating_point_images_are_refused(root: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(root / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif cannot be decoded"):
        load_rgb(root / "x.tif")


def test_centre_crop() -> None:
    image = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
    (cropped,) = CentreCropped([image], 4)
    assert cropped.equal(image[:, 1:5, 2:6])
    assert CentreCropped([cropped], 4)[0].equal(cropped)


def test_corrupt_images_are_found_and_remembered(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = (root / NAMES[1]).read_bytes()
    (root / NAMES[1]).write_bytes(data[: len(data) // 2])
    (root / NAMES[2]).write_bytes(b"")
    known = tmp_path / "known.json"
    caplog.set_level(logging.INFO)
    assert find_corrupt(NAMES, root, known) == NAMES[1:3]
    assert "checking that 4 images" in caplog.text
    caplog.clear()
    assert find_corrupt(NAMES, root, known) == NAMES[1:3]
    assert "checking" not in caplog.text
    (root / NAMES[1]).write_bytes(data)
    assert find_corrupt(NAMES, root, known) == NAMES[2:3]
    assert "checking that 1 images" in caplog.text
    known.write_text("{")
    assert find_corrupt(NAMES, root, known) == NAMES[2:3]
    assert set(json.loads(known.read_text())) == set(NAMES)
    (root / NAMES[0]).unlink()
    with pytest.raises(UserError, match=r"0\.png does not exist"):
        find_corrupt(NAMES, root, known)


def test_a_missing_file_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg does not exist"):
        load_image(root / "none.jpg", 8)


def test_small_images_are_enlarged(root: Path) -> None:
    Image.new("RGB", (5, 9), (10, 20, 30)).save(root / "x.png")
    assert (load_image(root / "x.png", 16) == np.array([10, 20, 30], np.uint8)).all()
