"""Kept listings of benchmarks: read instead of the folders, and only while nothing has changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import stand_ins

import datamodules
import datamodules.benchmarks
from datamodules import listings


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The domains that were listed from their folders; every listing is kept."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(listings, "LEAST", 1)
    found: list[str] = []
    list_domain = datamodules.benchmarks.list_domain

    def listing(facts, home, name):
        found.append(name)
        return list_domain(facts, home, name)

    monkeypatch.setattr(datamodules.benchmarks, "list_domain", listing)
    return found


def age(root: Path) -> None:
    """Everything was changed a while ago."""
    then = time.time() - 100
    for path in (root, *root.rglob("*")):
        os.utime(path, (then, then))


def office(root: Path):
    return datamodules.Office31("amazon", "webcam", root=str(root), size=8, resize=8)._entries


def change_class(root: Path) -> None:
    stand_ins.picture(root / "amazon" / "images" / "bike" / "new.jpg")


def fill_empty_class(root: Path) -> None:
    stand_ins.picture(root / "amazon" / "images" / "mug" / "new.jpg")


def new_class(root: Path) -> None:
    stand_ins.picture(root / "amazon" / "images" / "pen" / "new.jpg")


def rename_image(root: Path) -> None:
    (root / "amazon" / "images" / "bike" / "frame_0001.jpg").rename(root / "amazon" / "images" / "bike" / "x.jpg")


def remove_class(root: Path) -> None:
    for path in (root / "amazon" / "images" / "bike").iterdir():
        path.unlink()
    (root / "amazon" / "images" / "bike").rmdir()


def test_a_listing_is_kept(tmp_path: Path, listed: list[str]) -> None:
    root = tmp_path / "data"
    stand_ins.office(root)
    (root / "amazon" / "images" / "bike" / "notes.txt").write_text("x")
    age(root)
    first = office(root)
    assert listed == ["amazon", "webcam"]
    again = office(root)
    assert listed == ["amazon", "webcam"], "nothing is listed again"
    assert again == first
    assert str(again["amazon"].passed_over) == str(first["amazon"].passed_over) != ""
    assert office(tmp_path / "data" / ".." / "data") == first
    assert len(listed) == 2, "the same folder by another name"


@pytest.mark.parametrize("change", [change_class, fill_empty_class, new_class, rename_image, remove_class])
def test_a_change_is_seen(tmp_path: Path, listed: list[str], change: Callable[[Path], None]) -> None:
    root = tmp_path / "data"
    stand_ins.office(root)
    (root / "amazon" / "images" / "mug").mkdir()
    age(root)
    before = office(root)["amazon"]
    change(root)
    after = office(root)["amazon"]
    assert listed == ["amazon", "webcam", "amazon"]
    assert after != before


def test_a_folder_that_changes_while_it_is_listed_is_listed_again(tmp_path: Path, listed: list[str]) -> None:
    stand_ins.office(tmp_path / "data")
    office(tmp_path / "data")
    office(tmp_path / "data")
    assert listed == ["amazon", "webcam"] * 2, "its time may be that of a change which was not seen"


def test_a_damaged_listing_is_made_anew(tmp_path: Path, listed: list[str]) -> None:
    stand_ins.office(tmp_path / "data")
    age(tmp_path / "data")
    first = office(tmp_path / "data")
    for file in (tmp_path / "kept" / "listings").iterdir():
        file.write_bytes(file.read_bytes()[:500])
    assert office(tmp_path / "data") == first
    assert len(listed) == 4


def test_lists_are_watched(tmp_path: Path, listed: list[str]) -> None:
    stand_ins.image_clef(tmp_path / "clef")
    stand_ins.gtsrb(tmp_path / "signs", signs=30)
    stand_ins.synsigns(tmp_path / "signs")
    age(tmp_path / "clef")
    age(tmp_path / "signs")

    def make() -> None:
        listed.clear()
        datamodules.ImageCLEF("i", "p", root=str(tmp_path / "clef"), size=8, resize=8)
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path / "signs"))

    make()
    assert listed == ["i", "p", "synsigns", "gtsrb"]
    make()
    assert not listed
    for name in ("clef/list/pList.txt", "signs/synthetic_data/train_labelling.txt", "signs/GT-final_test.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(lines[:-1]))
    make()
    assert listed == ["p", "synsigns", "gtsrb"]


def test_short_listings_are_not_kept(tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "LEAST", 10_000)
    stand_ins.office(tmp_path / "data")
    age(tmp_path / "data")
    office(tmp_path / "data")
    assert not (tmp_path / "kept").exists()
