"""Manifests and folder scans."""

import tracemalloc
from pathlib import Path

import pytest

from dafw.data.manifest import Entry, check_files, checksum, read_manifest, scan_folder, write_manifest
from dafw.errors import UserError

ENTRIES = [
    Entry("a/mug/1.jpg", "mug", "a"),
    Entry("a/pen case/2, 3.jpg", "pen case", "a"),
    Entry("b/é.png", "mug", "b"),
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("split", [None, "train"])
def test_what_is_written_is_read(tmp_path: Path, split: str | None) -> None:
    entries = [Entry(entry.path, entry.label, entry.domain, split) for entry in ENTRIES]
    write_manifest(tmp_path / "sub" / "list.csv", entries)
    assert read_manifest(tmp_path / "sub" / "list.csv") == entries
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["list.csv"]


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "list.tsv", "Domain\tpath\tlabel\nweb\tx y.jpg\tmug\n\n")
    assert read_manifest(path) == [Entry("x y.jpg", "mug", "web")]


def test_plain_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "\ufeffdir/a b.jpg mug web\n\ndir\\c.jpg pen web\n")
    assert read_manifest(path) == [Entry("dir/a b.jpg", "mug", "web"), Entry("dir/c.jpg", "pen", "web")]
    path = write(tmp_path / "split.txt", "dir/a b.jpg mug web train\n")
    assert read_manifest(path) == [Entry("dir/a b.jpg", "mug", "web", "train")]


def test_checksum_sees_every_field_and_the_order() -> None:
    sums = {
        checksum(ENTRIES),
        checksum(ENTRIES[::-1]),
        checksum(ENTRIES[:2]),
        checksum([*ENTRIES[:2], Entry("b/é.png", "pen", "b")]),
        checksum([*ENTRIES[:2], Entry("b/é.png", "mug", "b", "test")]),
    }
    assert len(sums) == 5
    assert checksum(list(ENTRIES)) == checksum(ENTRIES)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "lists no images|has no column"),
        ("a.csv", "path,label,domain\n", "lists no images"),
        ("a.txt", "\n", "lists no images"),
        ("a.csv", "path,label\nx,y\n", 'no column "domain"'),
        ("a.csv", "path,lable,domain\nx,y,z\n", 'did you mean "label"'),
        ("a.csv", "path,label,domain\nx,y\n", "line 2: expected 3 cells"),
        ("a.csv", "path,label,domain\nx,y,z,w\n", "line 2: expected 3 cells"),
        ("a.csv", 'path,label,domain\n"x,y,z\n', "expected 3 cells"),
        ("a.csv", "path,label,domain\n,y,z\n", "line 2: the path is empty"),
        ("a.csv", "path,label,domain\nx,y,\n", "line 2: the domain is empty"),
        ("a.csv", "path,label,domain\nx,y,z\nw,,z\n", "gives x a label and w none: label all images of z, or none"),
        ("a.csv", "path,label,domain\nx,y,z\nx,y,z\n", "line 3: x is already on line 2"),
        ("a.csv", "path,label,domain,split\nx,y,z,trian\n", 'did you mean "train"'),
        ("a.csv", "path,label,domain,split\nx,y,z,train\nw,y,z,\n", "not for w: give all or none"),
        ("a.txt", "x y\n", r'line 1: expected "path label domain \[split\]", not "x y"'),
    ],
)
def test_a_malformed_manifest_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(write(tmp_path / name, text))
    assert name in str(caught.value)


def test_missing_or_unreadable_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"path,label,domain\n\xe9,a,b\n")
    with pytest.raises(UserError, match=r"latin\.csv cannot be read"):
        read_manifest(tmp_path / "latin.csv")


def test_a_manifest_takes_little_memory(tmp_path: Path) -> None:
    rows = [f"real/class_{i % 9}/real_{i:06}.png,class_{i % 9},real" for i in range(20_000)]
    path = write(tmp_path / "long.csv", "\n".join(["path,label,domain", *rows]))
    tracemalloc.start()
    try:
        entries = read_manifest(path)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(entries) == 20_000
    assert entries[-1] == Entry("real/class_1/real_019999.png", "class_1", "real")
    assert kept < 80 * len(entries), "bytes a row"
    assert most < 200 * len(entries)


def test_an_image_that_is_written_in_another_way_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/mug/1.jpg")
    check_files([Entry("a/../a/mug/1.jpg", "mug", "a"), Entry("a/mug/./1.jpg", "mug", "a")], tmp_path, Path("list.csv"))


def test_missing_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    entries = [Entry(f"{i}.jpg", "mug", "a") for i in range(3)]
    with pytest.raises(UserError, match=r"list\.csv lists 3 images, 2 of which are not in .*: 0\.jpg first"):
        check_files(entries, tmp_path, Path("list.csv"))
    check_files(entries[1:2], tmp_path, Path("list.csv"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_scan_takes_images_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a/mug/2.JPG", "a/mug/10.png", "a/mug/.x.jpg", "a/mug/Thumbs.db", "a/cup/1.tif", "a/.git/x.jpg")
    touch(tmp_path, "a/readme.txt")
    assert scan_folder(tmp_path, "a") == [
        Entry("a/cup/1.tif", "cup", "a"),
        Entry("a/mug/10.png", "mug", "a"),
        Entry("a/mug/2.JPG", "mug", "a"),
    ]


def test_scan_reads_office_as_it_comes(tmp_path: Path) -> None:
    touch(tmp_path, "amazon/images/mug/1.jpg")
    assert scan_folder(tmp_path, "amazon") == [Entry("amazon/images/mug/1.jpg", "mug", "amazon")]


def test_an_empty_label_is_none(tmp_path: Path) -> None:
    entries = [Entry("a/1.jpg", "mug", "a"), Entry("b/1.jpg", None, "b"), Entry("b/2.jpg", None, "b")]
    write_manifest(tmp_path / "list.csv", entries)
    assert read_manifest(tmp_path / "list.csv") == entries
    assert checksum(entries) != checksum([entries[0], Entry("b/1.jpg", "mug", "b"), entries[2]])


@pytest.mark.parametrize("inside", ["", "images/"])
def test_images_without_class_folders_have_no_labels(tmp_path: Path, inside: str) -> None:
    touch(tmp_path, f"a/{inside}2.jpg", f"a/{inside}10.jpg", f"a/{inside}notes.txt")
    assert scan_folder(tmp_path, "a") == [Entry(f"a/{inside}10.jpg", None, "a"), Entry(f"a/{inside}2.jpg", None, "a")]


def test_images_beside_class_folders_are_not_left_out_without_a_word(tmp_path: Path) -> None:
    touch(tmp_path, "a/mug/1.jpg", "a/2.jpg")
    with pytest.raises(UserError, match=r"a holds images \(2\.jpg\) beside folders \(mug\): put each image into"):
        scan_folder(tmp_path, "a")


def test_scan_names_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"domain folder .*a holds no class folders"):
        scan_folder(tmp_path, "a")
    touch(tmp_path, "a/mug/1.jpg", "a/cup/1.txt")
    with pytest.raises(UserError, match=r"class folder .*cup holds no images"):
        scan_folder(tmp_path, "a")
