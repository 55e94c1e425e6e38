"""Image files to uint8 RGB."""

import json
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.data import images, scaling
from dafw.data.images import CentreCropped, CorruptImage, endings, find_corrupt, load_image, load_rgb
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


def test_the_endings_are_those_of_pictures() -> None:
    assert {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".jfif", ".gif"} <= endings()
    assert not {".eps", ".ps", ".pdf", ".h5", ".mpg", ".heic", ".txt"} & endings()


def test_a_picture_that_another_program_would_draw_is_refused(root: Path) -> None:
    (root / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(CorruptImage, match=r"x\.png cannot be decoded \(its bytes are of no known format\)"):
        load_rgb(root / "x.png")


def tiff_of_12_bits(rows: list[list[int]]) -> bytes:
    """A grey TIFF file with 12 bits a pixel, an even number of them in a row."""
    pairs = [pair for row in rows for pair in zip(row[::2], row[1::2], strict=True)]
    packed = b"".join(bytes([a >> 4, ((a & 15) << 4) | (b >> 8), b & 255]) for a, b in pairs)
    tags = [(256, len(rows[0])), (257, len(rows)), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, len(rows))]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory


def test_12_bits_are_scaled_by_their_own_range(root: Path) -> None:
    (root / "x.tif").write_bytes(tiff_of_12_bits([[0, 4095], [2048, 1024]]))
    assert np.asarray(load_rgb(root / "x.tif"))[..., 0].tolist() == [[0, 255], [128, 64]]


@pytest.mark.parametrize(("kind", "most"), [(np.float32, 2.0), (np.int32, 100_000)])
def test_numbers_of_32_bits_need_a_range(root: Path, kind: type, most: float) -> None:
    pixels = np.array([[0, most / 2], [most / 4, most]], kind)
    image = Image.fromarray(pixels)
    image.save(root / "plain.tif")
    with pytest.raises(UserError, match=r"plain\.tif cannot be decoded \(nothing says which of its .* numbers"):
        load_rgb(root / "plain.tif")
    image.save(root / "known.tif", tiffinfo={340: kind(0).item(), 341: kind(most).item()})
    assert np.asarray(load_rgb(root / "known.tif"))[..., 0].tolist() == [[0, 128], [64, 255]]


def test_16_bits_that_would_all_be_black_are_refused(root: Path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(pixels).save(root / "dark.png")
    with pytest.raises(UserError, match="its numbers, 0 to 63, are all black on the scale of 0 to 65535: save it"):
        load_rgb(root / "dark.png")
    Image.fromarray(0 * pixels).save(root / "black.png")
    Image.fromarray(30_000 + pixels).save(root / "grey.png")
    assert (np.asarray(load_rgb(root / "grey.png")) == 117).all()
    assert not np.asarray(load_rgb(root / "black.png")).any()


def test_a_bomb_is_refused_by_its_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 50)).save(root / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(CorruptImage, match=r"x\.png cannot be decoded \(it has more than 2,000 pixels\)"):
        load_image(root / "x.png", 8)


@pytest.mark.parametrize("size", [(3000, 10), (7, 2000)])
def test_a_strip_is_cut_before_it_is_scaled(root: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])) // 15
    Image.fromarray(ramp.astype(np.uint8)).save(root / "x.png")
    made: list[tuple[int, int]] = []
    scale = scaling.functional.interpolate
    monkeypatch.setattr(scaling.functional, "interpolate", lambda x, to, **how: made.append(to) or scale(x, to, **how))
    cut = load_image(root / "x.png", 16).astype(int)
    assert max(made[0]) == 1600
    monkeypatch.setattr(scaling, "_LONGEST", 10_000)
    assert np.abs(cut - load_image(root / "x.png", 16)).max() <= 1
    assert max(made[1]) > 4000


def test_a_pipe_is_refused_before_it_is_opened(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe.png")
    with pytest.raises(UserError, match=r"the image .*pipe\.png is not a file"):
        load_image(root / "pipe.png", 8)
    with pytest.raises(UserError, match=r"the image .*pipe\.png is not a file"):
        find_corrupt(["pipe.png"], root, tmp_path / "known.json")


def test_what_was_found_before_a_file_that_cannot_be_read_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images.os, "cpu_count", lambda: 1)
    (root / NAMES[0]).write_bytes(b"")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"3\.png cannot be read: Permission denied; give yourself the right"):
            find_corrupt(NAMES, root, tmp_path / "known.json")
    assert set(json.loads((tmp_path / "known.json").read_text())) == set(NAMES[:3])
    assert find_corrupt(NAMES, root, tmp_path / "known.json") == NAMES[:1]
