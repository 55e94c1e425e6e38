"""Image folders with a manifest, and with images that cannot be decoded."""

import re
from pathlib import Path

import pytest
from folders import make, splits

from dafw.data.manifest import Entry, write_manifest
from dafw.data.trained import TrainedModel, made_for
from dafw.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def manifest(root: Path, path: Path, **changes: str) -> Path:
    entries = [
        Entry(file.relative_to(root).as_posix(), file.parent.name, file.parents[1].name, **changes)
        for file in sorted(root.rglob("*.png"))[::2]
    ]
    write_manifest(path, entries)
    return path


def test_a_manifest_replaces_the_folders(shared_root: Path, tmp_path: Path) -> None:
    data = make(shared_root, manifest=str(manifest(shared_root, tmp_path / "half.csv")))
    assert data.class_counts()["art"] == {"cup": 15, "mug": 12, "pen": 10}
    whole = splits(make(shared_root), "art")
    assert all(set(names) <= set(whole[split]) for split, names in splits(data, "art").items())


def test_a_manifest_may_give_the_splits(shared_root: Path, tmp_path: Path) -> None:
    data = make(shared_root, manifest=str(manifest(shared_root, tmp_path / "half.csv", split="test")))
    assert len(data.load("art", "test")) == 37
    with pytest.raises(UserError, match="none of the 37 images of art is in its train split"):
        data.load("art", "train")


def test_a_manifest_that_names_missing_images(shared_root: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "list.csv", [Entry("art/cup/000.png", "cup", "art"), Entry("p/1.png", "cup", "photo")])
    with pytest.raises(UserError, match=r"list\.csv lists 1 images, 1 of which are not in .*: p/1\.png"):
        make(shared_root, manifest=str(tmp_path / "list.csv"))


def test_numbers_as_labels_are_ordered_by_value(shared_root: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(shared_root).as_posix() for path in shared_root.rglob("*.png"))
    entries = [Entry(name, str(index % 12), name.split("/")[0]) for index, name in enumerate(files)]
    write_manifest(tmp_path / "list.csv", entries)
    names = make(shared_root, manifest=str(tmp_path / "list.csv")).class_names
    assert names == tuple(map(str, range(12)))


def damage(root: Path) -> list[str]:
    names = ["art/cup/000.png", "art/pen/003.png"]
    (root / names[0]).write_bytes((root / names[0]).read_bytes()[:300])
    (root / names[1]).write_bytes(b"")
    return names


@pytest.mark.parametrize("cache", [False, True])
def test_a_corrupt_image_is_named(root: Path, cache: bool) -> None:
    damage(root)
    data = make(root, cache=cache, split=(1.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"art/cup/000\.png cannot be decoded .*--data\.on_corrupt skip"):
        list(data.load("art", "train").inputs)


@pytest.mark.parametrize("cache", [False, True])
def test_corrupt_images_can_be_left_out(root: Path, caplog: pytest.LogCaptureFixture, cache: bool) -> None:
    before = splits(make(root), "art")
    names = damage(root)
    data = make(root, cache=cache, on_corrupt="skip")
    after = splits(data, "art")
    assert "art: leaving out 2 of 74 images that cannot be decoded: art/cup/000.png, art/pen/003.png" in caplog.text
    assert after == {split: [name for name in ids if name not in names] for split, ids in before.items()}
    for split in after:
        assert len(list(data.load("art", split).inputs)) == len(after[split])
    assert data.class_counts()["art"] == {"cup": 29, "mug": 24, "pen": 19}


def test_a_domain_without_a_sound_image(root: Path) -> None:
    for path in (root / "art").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no image of art in .*benchmark can be decoded"):
        make(root, on_corrupt="skip").load("art", "train")


def test_a_model_of_unknown_classes_needs_no_files_of_the_source(shared_root: Path, tmp_path: Path) -> None:
    """The labels of the target tell the classes; without any, nothing does."""
    with made_for(TrainedModel(lambda: ())):
        data = make(shared_root, source="gone")
        assert data.class_names == ("cup", "mug", "pen")
        with pytest.raises(UserError):
            data.load("gone", "train")
        (tmp_path / "photo").mkdir()
        (tmp_path / "photo" / "1.png").write_bytes((shared_root / "photo" / "cup" / "000.png").read_bytes())
        said = f"nothing says what the classes are: {tmp_path} has no gone, and no target has labels"
        with pytest.raises(UserError, match=re.escape(said)):
            make(tmp_path, source="gone")
