"""Files kept between runs."""

from pathlib import Path

import numpy as np
import pytest

from dafw.data.files import cache_dir, cached_arrays
from dafw.files import replacing


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def test_arrays_are_made_once_for_each_key() -> None:
    calls: list[int] = []

    def arrays(value: int) -> dict[str, np.ndarray]:
        calls.append(value)
        return {"x": np.full(3, value, np.uint8)}

    for _ in range(2):
        for value in (1, 2):
            assert (
                cached_arrays("thing", {"value": value}, lambda value=value: arrays(value))["x"].tolist() == [value] * 3
            )
    assert calls == [1, 2]


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[: len(data) // 2], lambda data: b""])
def test_damaged_arrays_are_made_anew(damage, caplog: pytest.LogCaptureFixture) -> None:
    expected = {"x": np.arange(1000)}
    cached_arrays("thing", {}, lambda: expected)
    (path,) = (cache_dir() / "arrays").glob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    assert cached_arrays("thing", {}, lambda: expected)["x"].tolist() == list(range(1000))
    assert "is damaged" in caplog.text
    assert cached_arrays("thing", {}, lambda: pytest.fail("made again"))["x"].sum() == 499500


def test_arrays_with_a_wrong_byte_are_made_anew() -> None:
    cached_arrays("thing", {}, lambda: {"x": np.zeros(1000, np.uint8)})
    (path,) = (cache_dir() / "arrays").glob("*.npz")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    assert not cached_arrays("thing", {}, lambda: {"x": np.zeros(1000, np.uint8)})["x"].any()


def test_arrays_come_without_a_cache_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "file"))
    assert cached_arrays("thing", {}, lambda: {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]
    assert "DAFW_CACHE" in caplog.text


def test_an_error_of_the_maker_is_not_hidden() -> None:
    def fail():
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        cached_arrays("thing", {}, fail)


def test_replacing_leaves_the_old_file_if_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError), replacing(tmp_path / "x") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert (tmp_path / "x").read_text() == "old"
    assert {path.name for path in tmp_path.glob("x*")} == {"x"}


def test_where_caches_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAFW_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "dafw"
