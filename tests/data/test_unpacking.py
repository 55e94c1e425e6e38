"""Archives are unpacked whole or not at all, and never beside their folder."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dafw.data import unpacking
from dafw.data.unpacking import Bounds, Refused, is_archive, unpack
from dafw.errors import UserError

WIDE = Bounds(files=1000, bytes=1 << 20)
FILES = {f"amazon/images/mug/frame_{index}.jpg": bytes([index]) * 50 for index in range(6)}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, f"w:{ {'.tgz': 'gz', '.bz2': 'bz2', '.xz': 'xz'}.get(path.suffix, '') }") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in others:
            file.addfile(info)
    return path


def everything(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != unpacking.RECORD}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.bz2", "a.tar.xz"])
def test_each_kind(tmp_path: Path, root: Path, name: str) -> None:
    litter = {"__MACOSX/amazon/._x.jpg": b"x", "amazon/.DS_Store": b"x", "amazon/._y.jpg": b"x"}
    make = zipped if name.endswith("zip") else tarred
    archive = make(tmp_path / name, FILES | litter)
    assert is_archive(archive)
    assert unpack(archive, root, WIDE) == 6
    assert everything(root) == FILES
    assert unpack(archive, root, WIDE) == 0, "it was unpacked before"


def test_several_archives_share_folders(tmp_path: Path, root: Path) -> None:
    parts = [dict(list(FILES.items())[:4]), dict(list(FILES.items())[3:])]
    for number, part in enumerate(parts):
        unpack(zipped(tmp_path / f"{number}.zip", part), root, WIDE)
    assert everything(root) == FILES


def test_a_file_in_the_way_stays(tmp_path: Path, root: Path) -> None:
    (root / "amazon").write_text("mine")
    with pytest.raises(UserError, match=r"amazon is there already and is not that of a\.zip: move it away first"):
        unpack(zipped(tmp_path / "a.zip", {"new/1.jpg": b"1", **FILES}), root, WIDE)
    assert (root / "amazon").read_text() == "mine"
    assert not (root / "new").exists()
    (root / "amazon").unlink()
    assert unpack(tmp_path / "a.zip", root, WIDE) == 7


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("amazon/x")
    info.type, info.linkname = kind, target
    return info


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("amazon/x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("amazon/1.jpg", b"1")
        file.writestr(info, "/etc")
    return path


def packed(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("amazon/1.jpg", b"1")
    return path


UNSAFE: dict[str, Callable[[Path], Path]] = {
    "above": lambda at: zipped(at / "a.zip", FILES | {"../out.txt": b"x"}),
    "above, as Windows writes it": lambda at: zipped(at / "a.zip", FILES | {"amazon\\..\\..\\out.txt": b"x"}),
    "from the root": lambda at: tarred(at / "a.tar", FILES | {"/out.txt": b"x"}),
    "on a drive": lambda at: zipped(at / "a.zip", FILES | {"C:/out.txt": b"x"}),
    "the folder itself": lambda at: tarred(at / "a.tar", FILES | {"amazon/../..": b"x"}),
    "our own record": lambda at: zipped(at / "a.zip", FILES | {".unpacked.json": b"{}"}),
    "a link": lambda at: tarred(at / "a.tar", FILES, special(tarfile.SYMTYPE, "../../..")),
    "a hard link": lambda at: tarred(at / "a.tar", FILES, special(tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda at: tarred(at / "a.tgz", FILES, special(tarfile.CHRTYPE)),
    "a pipe": lambda at: tarred(at / "a.tar", FILES, special(tarfile.FIFOTYPE)),
    "a link in a zip": lambda at: zip_link(at / "a.zip"),
    "a file that is a folder": lambda at: tarred(at / "a.tar", FILES | {"amazon/images/mug/frame_0.jpg/x": b"x"}),
    "compressed otherwise": lambda at: packed(at / "a.zip"),
    "nothing": lambda at: zipped(at / "a.zip", {"__MACOSX/x": b"x"}),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archives_leave_nothing(tmp_path: Path, root: Path, kind: str) -> None:
    archive = UNSAFE[kind](tmp_path)
    with pytest.raises(Refused, match=archive.name):
        unpack(archive, root, WIDE)
    assert everything(tmp_path) == {archive.name: archive.read_bytes()}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [(Bounds(5, 1 << 20), "more than 5 files"), (Bounds(1000, 299), "more than 299 bytes")],
)
def test_bounds(tmp_path: Path, root: Path, bounds: Bounds, message: str) -> None:
    with pytest.raises(Refused, match=message):
        unpack(zipped(tmp_path / "a.zip", FILES), root, bounds)
    assert not everything(root)


@pytest.mark.parametrize(
    ("name", "part"),
    [*((name, "half") for name in ("a.zip", "a.tar", "a.tgz")), ("a.zip", "a wrong byte"), ("a.tgz", "a wrong byte")],
)
def test_damaged_archives(tmp_path: Path, root: Path, name: str, part: str) -> None:
    noise = {name: os.urandom(4000) for name in FILES}
    archive = (zipped if name == "a.zip" else tarred)(tmp_path / name, noise)
    content = bytearray(archive.read_bytes())
    if part == "half":
        content = content[: len(content) // 2 + 100]
    else:
        content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(Refused, match=r"(is damaged|is cut short|damaged or cut short).*get it again"):
        unpack(archive, root, WIDE)
    assert not everything(root)


def test_a_page_in_place_of_an_archive(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>confirm the download</html>")
    assert not is_archive(tmp_path / "a.zip")
    with pytest.raises(Refused, match=r"a\.zip is no zip or tar archive, or it is cut short: get it again"):
        unpack(tmp_path / "a.zip", root, WIDE)
    with pytest.raises(UserError, match=r"archive .*b\.zip does not exist"):
        unpack(tmp_path / "b.zip", root, WIDE)
    with pytest.raises(UserError, match=r"root is no file: give an archive"):
        unpack(root, root, WIDE)


@pytest.mark.parametrize("name", ["a.zip", "a.tgz"])
def test_what_was_interrupted_is_continued(
    tmp_path: Path, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = (zipped if name == "a.zip" else tarred)(tmp_path / name, FILES)
    write, written = unpacking._write, []

    def stopped(member: unpacking._Member, target: Path, archive: Path) -> None:
        written.append(target.name)
        if len(written) == 4:
            target.with_name(f"{target.name}.unfinished").write_bytes(b"\1")
            raise KeyboardInterrupt
        write(member, target, archive)

    monkeypatch.setattr(unpacking, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root, WIDE)
    assert [path.name for path in root.iterdir()] == [unpacking.UNPACKING], "nothing has its final name"
    assert unpack(archive, root, WIDE) == 6
    assert written[4:] == ["frame_3.jpg", "frame_4.jpg", "frame_5.jpg"], "what was there is not written again"
    assert everything(root) == FILES


def test_what_was_interrupted_at_the_last_step_is_continued(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", {"one/1.jpg": b"1", "two/2.jpg": b"2"})
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if Path(target).name == "two":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, root, WIDE)
    assert unpack(archive, root, WIDE) == 2
    assert everything(root) == {"one/1.jpg": b"1", "two/2.jpg": b"2"}
