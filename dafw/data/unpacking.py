"""Unpacks archives of images safely: nothing leaves the folder, and nothing half-done gets its final name."""

import hashlib
import json
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from filecmp import cmp
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from dafw.data.files import digest
from dafw.errors import UserError
from dafw.files import UNFINISHED, reading, write_atomically

UNPACKING = ".unpacking"
"""Folder below the root in which archives are unpacked before their content gets its final name."""
RECORD = ".unpacked.json"
"""File in the root that says which archives were unpacked into it."""
_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError, NotImplementedError)
_CHUNK = 1 << 20


class Refused(UserError):
    """An archive that is damaged, or that must not be unpacked."""


@dataclass(frozen=True)
class Bounds:
    """The most that an archive may unpack to.

    Args:
        files: number of files.
        bytes: size of all files together.
    """

    files: int
    bytes: int


class _Member(NamedTuple):
    """A file in an archive: its name, its size in bytes, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, root: Path, bounds: Bounds, tell: Callable[[int], None] = lambda count: None) -> int:
    """Unpacks a zip or tar archive into a folder, in which files of other archives may be.

    The files are unpacked beside their final place first. An interrupted call leaves nothing at that place, and the
    next one continues. A file that is there already stays if it is the same, and is refused otherwise. Links, devices,
    paths that lead out of the folder, and more than the bounds allow are refused, and nothing of the archive stays.
    Files get the rights that new files have here. What macOS and Windows add for themselves is left out.

    Args:
        archive: the archive; zip, or tar that may be compressed by gzip, bzip2 or xz.
        root: the folder, which exists.
        bounds: the most that it may unpack to.
        tell: called now and then with the number of files that are unpacked.

    Returns:
        The number of files; 0 if this archive was unpacked into this folder before.

    Raises:
        Refused: if the archive is damaged or unsafe.
        UserError: if a file is in the way, or the archive cannot be read.
        OSError: if the disk is full or fails.
    """
    mark = _mark(archive)
    if unpacked(root).get(archive.name) == mark:
        return 0
    place = root / UNPACKING / f"{archive.name}-{digest(mark)[:12]}"
    content, done = place / "content", place / "complete"
    content.mkdir(parents=True, exist_ok=True)
    try:
        count = int(done.read_text()) if done.exists() else _unpack(archive, content, bounds, tell)
    except Refused:
        shutil.rmtree(place)
        raise
    write_atomically(done, str(count))
    moves = list(_moves(content, root, archive))
    for source, target in moves:
        source.rename(target)
    write_atomically(root / RECORD, json.dumps({**unpacked(root), archive.name: mark}, indent=1) + "\n")
    shutil.rmtree(place)
    return count


def unpacked(root: Path) -> dict[str, list[int]]:
    """The archives that were unpacked into a folder: by name their size in bytes and time of change."""
    try:
        found = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive."""
    with reading("the archive", path):
        return zipfile.is_zipfile(path) or _is_tar(path)


def file_hash(path: Path, kind: str) -> str:
    """The hash of a file in hexadecimal digits; ``kind`` is ``md5`` or ``sha256``."""
    with reading("the file", path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGE:
        return False


def _mark(archive: Path) -> list[int]:
    with reading("the archive", archive):
        found = archive.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{archive} is no file: give an archive")
    return [found.st_size, found.st_mtime_ns]


def _unpack(archive: Path, content: Path, bounds: Bounds, tell: Callable[[int], None]) -> int:
    files = total = 0
    try:
        for member in _members(archive):
            path = _inside(member.name, archive)
            if path is None:
                continue
            files, total = files + 1, total + member.size
            if files > bounds.files:
                raise Refused(
                    f"{archive} holds more than {bounds.files:,} files: it is not an archive of this benchmark"
                )
            if total > bounds.bytes:
                raise Refused(
                    f"{archive} unpacks to more than {bounds.bytes:,} bytes, too much for an archive of its size"
                )
            target = content / path
            if not (target.is_file() and target.stat().st_size == member.size):
                _write(member, target, archive)
            tell(files)
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise Refused(f"{archive} has a file and a folder of one name ({error.filename}): get it again") from error
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, and not a decoder's
            raise
        raise Refused(f"{archive} is damaged or cut short ({error}): get it again") from error
    if not files:
        raise Refused(f"{archive} holds no files: get it again")
    return files


def _members(archive: Path) -> Iterator[_Member]:
    """The files of an archive. What is neither file nor folder is refused."""
    with reading("the archive", archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                        raise Refused(f"{archive} holds a link or a device ({info.filename}), which is not unpacked")
                    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # Python bounds no other
                        raise Refused(f"{archive} is compressed in an unusual way ({info.filename}): unpack it by hand")
                    if not info.is_dir():
                        yield _Member(info.filename, info.file_size, lambda info=info: file.open(info))  # type: ignore[misc]
        elif _is_tar(archive):
            with tarfile.open(archive) as tar:
                for one in tar:
                    if not (one.isreg() or one.isdir()):
                        raise Refused(f"{archive} holds a link or a device ({one.name}), which is not unpacked")
                    if one.isreg():
                        yield _Member(one.name, one.size, lambda one=one: tar.extractfile(one))  # type: ignore[misc]
                while tar.fileobj is not None and tar.fileobj.read(_CHUNK):  # up to the checksum at its end
                    pass
        else:
            raise Refused(f"{archive} is no zip or tar archive, or it is cut short: get it again")


def _inside(name: str, archive: Path) -> PurePosixPath | None:
    """The path of a file in the folder; ``None`` for what macOS and Windows add."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or "\0" in name or not path.parts:
        raise Refused(f'{archive} holds "{name}", which leads out of the folder: nothing of it is unpacked')
    if path.parts[0] in (UNPACKING, RECORD):
        raise Refused(f'{archive} holds "{name}", a name that is reserved here: nothing of it is unpacked')
    litter = any(part in _LITTER for part in path.parts) or path.name.startswith("._")
    return None if litter else path


def _write(member: _Member, target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished, source = target.with_name(f"{target.name[:200]}{UNFINISHED}"), member.open()
    if source is None:
        raise Refused(f"{archive} is damaged at {member.name}: get it again")
    with source, unfinished.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    if unfinished.stat().st_size != member.size:
        raise Refused(f"{archive} is damaged at {member.name}: get it again")
    unfinished.replace(target)


def _moves(content: Path, root: Path, archive: Path) -> Iterator[tuple[Path, Path]]:
    """What gets which final name: whole folders where there is none of the name, else what they hold.

    Raises:
        UserError: if another file is in the way.
    """
    for source in sorted(content.iterdir()):
        target = root / source.name
        if source.is_dir() and target.is_dir():
            yield from _moves(source, target, archive)
        elif target.is_symlink() or target.exists():
            if source.is_dir() or not target.is_file() or not cmp(source, target, shallow=False):
                raise UserError(f"{target} is there already and is not that of {archive.name}: move it away first")
        else:
            yield source, target
