"""Caches and predictions whose writer is killed: nothing half-written counts as whole, and the next writer goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import killed, killed_while_writing
from PIL import Image

from dafw.data import cache
from dafw.data.cache import CachedImages
from dafw.data.files import cache_dir, cached_arrays
from dafw.data.images import load_image
from dafw.files import UNFINISHED
from dafw.problems import Classification, Detection, Predicted, Problem, Segmentation

NAMES = [f"{number}.png" for number in range(6)]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], CachedImages]:
    """Makes the cache of six images in the folder ``kept``."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    return lambda: CachedImages(NAMES, root=tmp_path, size=8, directory=tmp_path / "kept")


def endings(folder: Path) -> list[str]:
    return [path.suffix for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("row", "size", "left"),
    [(0, 100, NAMES), (4, 100, NAMES[4:]), (4, 192, NAMES[4:]), (None, 0, [])],
    ids=["in the first row", "in a later row", "before its checksum", "before the file has its name"],
)
def test_decoded_images(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], CachedImages],
    row: int | None,
    size: int,
    left: list[str],
) -> None:
    """What was whole is not decoded again."""
    write = CachedImages._write

    def write_or_die(self: CachedImages, file: Any, index: int, pixels: Any) -> None:
        if index != row:
            write(self, file, index, pixels)
            return
        file.seek(self._start + index * self._row)
        file.write(pixels.tobytes()[:size])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def die_in_a_row() -> None:
        CachedImages._write = write_or_die  # type: ignore[method-assign]
        make()

    def die_at_the_end() -> None:
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
        make()

    killed(die_at_the_end if row is None else die_in_a_row)
    assert endings(tmp_path / "kept") == [".part"]
    decoded: list[str] = []

    def counting(path: Path, *rest: Any) -> Any:
        decoded.append(path.name)
        return load_image(path, *rest)

    monkeypatch.setattr(cache, "load_image", counting)
    images = make()
    assert sorted(decoded) == left
    for index, name in enumerate(NAMES):
        assert np.array_equal(images[index].permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / name)))
    assert endings(tmp_path / "kept") == [".uint8"]


def test_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path))
    make = lambda: cached_arrays("thing", {"version": 1}, lambda: {"x": np.arange(1000)})  # noqa: E731
    make()
    (path,) = (cache_dir() / "arrays").glob("*.npz")
    path.unlink()
    killed_while_writing(path.name, make)
    assert UNFINISHED in endings(path.parent)
    assert make()["x"].tolist() == list(range(1000))
    assert endings(path.parent) == [".npz"]


CLASSES = {
    "prediction": [torch.tensor(0), torch.tensor(1)],
    "probabilities": [torch.tensor([0.75, 0.25]), torch.tensor([0.125, 0.875])],
}
MASKS = {
    "prediction": [torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8)],
    "confidence": [torch.tensor(0.5), torch.tensor(0.75)],
}
BOXES = {
    "boxes": [torch.tensor([[1.0, 2, 4, 8]]), torch.zeros(0, 4)],
    "scores": [torch.tensor([0.5]), torch.zeros(0)],
    "labels": [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
    "size": [(12, 16), (12, 16)],
}


@pytest.mark.parametrize(
    ("problem", "columns", "output", "dies_at"),
    [
        (Classification(), CLASSES, "predictions.csv", "predictions.csv"),
        (Detection(), BOXES, "predictions.json", "predictions.json"),
        (Segmentation(), MASKS, "predictions", "1.png"),
        (Segmentation(), MASKS, "predictions", "index.csv"),
    ],
    ids=["classes", "boxes", "masks", "index of masks"],
)
def test_predictions(
    tmp_path: Path, problem: Problem, columns: dict[str, list[torch.Tensor]], output: str, dies_at: str
) -> None:
    """A file is the old one or the new one. A folder of masks with an index holds the masks of one prediction."""
    path = tmp_path / output

    def write(ids: tuple[str, str]) -> None:
        problem.write_predictions([Predicted("b", list(ids), columns)], ["cat", "dog"], path)

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    write(("0", "1"))
    old = files()
    killed_while_writing(dies_at, lambda: write(("1", "0")))
    left = [file for file in files() if file.suffix == UNFINISHED]
    assert len(left) == 1
    if path.is_dir():
        assert not (path / "index.csv").exists()
    else:
        assert path.read_bytes() == old[path]
    os.utime(left[0], (0, 0))  # it was left long ago
    write(("1", "0"))
    assert files().keys() == old.keys()
    assert files() != old
