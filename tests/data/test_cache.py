"""Cached images."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dafw.data import cache as cache_module
from dafw.data.cache import CachedImages
from dafw.data.images import DecodedImages, load_image
from dafw.errors import UserError

NAMES = [f"a/{i}.png" for i in range(9)]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded from now on."""
    names: list[str] = []

    def counting(path: Path, *args, **options):
        names.append(path.name)
        return load_image(path, *args, **options)

    monkeypatch.setattr(cache_module, "load_image", counting)
    return names


def make(root: Path, **options) -> CachedImages:
    return CachedImages(NAMES, **{"root": root, "size": 16, **options})


def assert_right(cached: CachedImages) -> None:
    plain = DecodedImages(cached.paths, root=cached.root, size=cached.size, fit=cached.fit)
    assert len(cached) == len(plain)
    for got, expected in zip(cached, plain, strict=True):
        assert got.shape == (3, cached.size, cached.size)
        assert got.equal(expected)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_cached_is_decoded_bit_for_bit_and_decoded_once(root: Path, decoded: list[str], fit: str) -> None:
    assert_right(make(root, fit=fit))
    assert_right(make(root, fit=fit))
    assert len(decoded) == len(NAMES)


def test_items_are_copies(root: Path) -> None:
    cached = make(root)
    cached[0].zero_()
    assert cached[0].any()
    assert cached[-1].equal(cached[len(NAMES) - 1])
    with pytest.raises(IndexError):
        cached[len(NAMES)]


def test_parameters_and_changed_images_mean_another_file(root: Path) -> None:
    files = {make(root).file, make(root, size=17).file, make(root, fit="squash").file}
    os.utime(root / NAMES[0], (1, 1))
    files.add(make(root).file)
    assert len(files) == 4


def test_a_moved_root_keeps_its_cache(root: Path, decoded: list[str]) -> None:
    first = make(root)
    root.rename(root.with_name("moved"))
    assert make(root.with_name("moved")).file == first.file
    assert len(decoded) == len(NAMES)


@pytest.mark.parametrize("length", [0, 40, 4096 + 5 * 3 * 256, 4096 + 9 * 3 * 256 - 1])
def test_a_truncated_file_is_completed(root: Path, decoded: list[str], length: int) -> None:
    path = make(root).file
    with path.open("r+b") as file:
        file.truncate(length)
    decoded.clear()
    assert_right(make(root))
    assert len(decoded) == len(NAMES) - max(0, (length - 4096) // (3 * 256))


def test_a_foreign_file_is_replaced(root: Path) -> None:
    path = make(root).file
    path.write_bytes(bytes(path.stat().st_size))
    assert_right(make(root))


def test_a_damaged_row_is_mended(root: Path, decoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    cached = make(root)
    content = cached.file.read_bytes()
    with cached.file.open("r+b") as file:
        file.seek(4096 + 3 * 3 * 256 + 7)
        file.write(b"\x00\xff\x00\xff")
    decoded.clear()
    assert_right(make(root))
    assert decoded == ["3.png"]
    assert "a/3.png" in caplog.text
    assert cached.file.read_bytes() == content


def test_an_interrupted_build_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 2)
    counting = cache_module.load_image

    def stopping(path: Path, *args, **options):
        if path.name == "5.png":
            raise KeyboardInterrupt
        return counting(path, *args, **options)

    monkeypatch.setattr(cache_module, "load_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(root)
    monkeypatch.setattr(cache_module, "load_image", counting)
    decoded.clear()
    assert_right(make(root))
    assert sorted(decoded) == ["5.png", "6.png", "7.png", "8.png"]


def test_it_travels_to_workers_without_its_pixels(root: Path) -> None:
    cached = make(root)
    assert cached[0].any()
    data = pickle.dumps(cached)
    assert len(data) < 3 * 256 * len(NAMES)
    assert_right(pickle.loads(data))


def test_a_full_disk_is_named_with_the_bytes_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = cache_module.shutil.disk_usage(root)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=rf"image cache .*kept.* needs {4096 + 9 * 3 * 256} bytes"):
        make(root)


def test_a_disk_that_fills_up_meanwhile(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CachedImages, "_write", full)
        with pytest.raises(UserError, match="more than its disk has free"):
            make(root)
    assert_right(make(root))


def test_a_folder_that_cannot_be_written(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*DAFW_CACHE"):
        make(root, directory=root / "file" / "below")


def test_a_missing_or_corrupt_image_is_named(root: Path) -> None:
    (root / NAMES[4]).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"4\.png cannot be decoded .*--data\.on_corrupt skip"):
        make(root)
    (root / NAMES[4]).unlink()
    with pytest.raises(UserError, match=r"4\.png does not exist"):
        make(root)


BOTH = """
import os, sys, time
from pathlib import Path
import numpy as np
from dafw.data import cache
from dafw.data.files import cached_arrays
root, log = Path(sys.argv[1]), Path(sys.argv[2])
plain = cache.load_image
def counting(path, *rest):
    with log.open("a") as file:
        file.write(path.name + "\\n")
    time.sleep(0.05)
    return plain(path, *rest)
cache.load_image = counting
def arrays():
    with log.open("a") as file:
        file.write("arrays\\n")
    time.sleep(0.3)
    return {"x": np.arange(5)}
(root / f"ready-{os.getpid()}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.01)
images = cache.CachedImages([f"a/{i}.png" for i in range(9)], root=root, size=16)
print([int(image.sum()) for image in images], cached_arrays("x", {"version": 1}, arrays)["x"].sum())
"""


def test_two_processes_at_once_make_each_thing_once(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BOTH, str(root), str(tmp_path / "log")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cache_module.__file__).parents[2])}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == f"{[int(image.sum()) for image in make(root)]} 10\n"
    assert sorted((tmp_path / "log").read_text().split()) == [*(Path(name).name for name in NAMES), "arrays"]
