"""Manifests and folders of images: what images there are, with their labels and domains."""

import csv
import errno
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dafw.data.entries import Entries, Entry, PassedOver
from dafw.data.files import digest
from dafw.data.images import endings
from dafw.errors import UserError, choose
from dafw.files import reading, write_atomically
from dafw.names import one_spelling

SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "label", "domain")
_Rows = Iterator[tuple[int, Sequence[str]]]


def read_manifest(path: Path) -> Entries:
    """The entries of a manifest, in its order.

    A file that ends in ``.csv`` or ``.tsv`` has a header with the columns ``path``, ``label``, ``domain`` and, if
    wanted, ``split``. The labels of a domain without labels are empty. In any other file each line is ``path label
    domain [split]``, separated by spaces; the path may contain spaces. Empty lines are skipped.

    Raises:
        UserError: naming the file and line, if it is missing, empty, malformed, or lists an image twice.
    """
    lines, marks = array("q"), array("q")
    words: dict[tuple[str, ...], tuple[str | None, str, str | None]] = {}  # few occur in many rows: each is read once

    def rows(found: _Rows) -> Iterator[tuple[str, str | None, str, str | None]]:
        for line, (image, *others) in found:
            image = image.strip().replace("\\", "/")
            if not image:
                raise UserError(f"{path}, line {line}: the path is empty")
            key = tuple(others)
            if key not in words:
                words[key] = _words(path, line, *map(str.strip, key))
            lines.append(line)
            marks.append(hash(image))
            yield image, *words[key]

    table = Path(path).suffix.lower() in (".csv", ".tsv")
    try:
        with reading("the manifest", path), Path(path).open(encoding="utf-8-sig") as file:
            entries = Entries.of_rows(rows(_table(path, file) if table else _lines(path, file)))
    except UnicodeDecodeError as error:
        raise UserError(f"the manifest {path} cannot be read: {error}") from error
    if not len(entries):
        raise UserError(f"the manifest {path} lists no images")
    _refuse_twice(path, entries, np.array(marks), np.array(lines))
    _refuse_mixed(path, entries)
    without = np.flatnonzero(entries.splits.are(None))
    if 0 < len(without) < len(entries):
        first = entries.paths[without[0]]
        raise UserError(f"{path} gives a split for some images but not for {first}: give all or none")
    return entries


def _table(path: Path, lines: Iterable[str]) -> _Rows:
    reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    for name in header:
        choose(f"column in {path}", name, (*_COLUMNS, "split"))
    for name in _COLUMNS:
        if name not in header:
            raise UserError(f'the manifest {path} has no column "{name}" in its first line')
    positions = {name: position for position, name in enumerate(header)}
    cells = itemgetter(*(positions.get(name, len(header)) for name in (*_COLUMNS, "split")))
    try:
        for row in reader:
            if "".join(row).strip():
                if len(row) != len(header):
                    raise ValueError
                row.append("")
                yield reader.line_num, cells(row)
    except UnicodeDecodeError:
        raise
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{path}, line {reader.line_num}: expected {len(header)} cells ({', '.join(header)})"
        ) from error


def _lines(path: Path, lines: Iterable[str]) -> _Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        last = line.split()[-1]
        cells = line.rsplit(maxsplit=3) if last in SPLITS else [*line.rsplit(maxsplit=2), ""]
        if len(cells) != 4:
            raise UserError(f'{path}, line {number}: expected "path label domain [split]", not "{line.strip()}"')
        yield number, cells


def _words(path: Path, line: int, label: str, domain: str, split: str) -> tuple[str | None, str, str | None]:
    """Label, domain and split of an image."""
    if not domain:
        raise UserError(f"{path}, line {line}: the domain is empty")
    if leads_out(domain.replace("\\", "/")):
        raise UserError(
            f'{path}, line {line}: the domain "{domain}" is a path that leads out of its folder: give it another name'
        )
    if split and split not in SPLITS:
        choose(f"split in {path}, line {line}", split, SPLITS)
    return one_spelling(label) or None, one_spelling(domain), split or None


def _refuse_twice(path: Path, entries: Entries, marks: NDArray[np.int64], lines: NDArray[np.int64]) -> None:
    """Refuses an image that is listed twice; ``marks`` are hashes of the paths, equal where the paths are."""
    order = np.argsort(marks, kind="stable")
    pairs = np.flatnonzero(np.diff(marks[order]) == 0)
    for later, earlier in sorted(zip(order[pairs + 1].tolist(), order[pairs].tolist(), strict=True)):
        image = entries.paths[later]
        if image == entries.paths[earlier]:
            raise UserError(f"{path}, line {lines[later]}: {image} is already on line {lines[earlier]}")


def _refuse_mixed(path: Path, entries: Entries) -> None:
    bare = entries.labels.are(None)
    with_label = np.unique(entries.domains.codes[~bare])
    mixed = np.flatnonzero(bare & np.isin(entries.domains.codes, with_label))
    if len(mixed):
        domain = entries.domains.at(mixed[0])
        labelled = entries.paths[np.flatnonzero(~bare & entries.domains.are(domain))[0]]
        raise UserError(
            f"{path} gives {labelled} a label and {entries.paths[mixed[0]]} none: label all images of {domain}, or none"
        )


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a manifest in one step, as CSV; the column ``split`` is there if an entry has one."""
    columns = (*_COLUMNS, "split") if any(entry.split for entry in entries) else _COLUMNS
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(entry, column) or "" for column in columns] for entry in entries)
    write_atomically(path, text.getvalue())


def checksum(entries: Iterable[Entry]) -> str:
    """A hash of the entries in their order (64 hexadecimal digits): two lists with the same one are the same."""
    return digest([[entry.path, entry.label or "", entry.domain, entry.split or ""] for entry in entries])


def leads_out(path: str) -> bool:
    """Whether a path with ``/`` between its parts leads out of the folder that it is relative to, apart from links."""
    return path.startswith("/") or (".." in path and ".." in path.split("/"))


def refuse_outside(entries: Sequence[Entry], root: Path) -> None:
    """Checks that no listed image lies outside of the folder of the images.

    Raises:
        UserError: naming the first that does.
    """
    if isinstance(entries, Entries) and not entries.paths.text.count(b"..") and not entries.paths.any_starts_with("/"):
        return
    outside = next(filter(leads_out, _paths(entries)), None)
    if outside is not None:
        raise UserError(
            f"the image {outside} lies outside of {root} (data.root): give another data.root, or say "
            "--data.allow_outside_root true"
        )


def check_files(entries: Sequence[Entry], root: Path, manifest: Path) -> None:
    """Checks that every listed file is there.

    Raises:
        UserError: saying how many are missing, and which is the first; or that a folder cannot be read.
    """
    if missing := missing_files(entries, root):
        raise UserError(
            f"the manifest {manifest} lists {len(entries)} images, {len(missing)} of which are not in {root}: "
            f"{missing[0]}{' first' if len(missing) > 1 else ''}"
        )


def missing_files(entries: Sequence[Entry], root: Path) -> list[str]:
    """The paths of those entries whose files are not in ``root``. Each folder is read once.

    Raises:
        UserError: naming a folder that cannot be read.
    """
    present: dict[str, set[str]] = {}
    missing = []
    for path in _paths(entries):
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = _files(root / folder)
        if name not in present[folder]:  # the file system may know it by another spelling
            with reading("the image", root / path):
                if not (root / path).is_file():
                    missing.append(path)
    return missing


def _paths(entries: Sequence[Entry]) -> Iterable[str]:
    return entries.paths if isinstance(entries, Entries) else (entry.path for entry in entries)


def _files(folder: Path) -> set[str]:
    """Names of the files in ``folder``; empty if there is no such folder."""
    with reading("the folder", folder):
        if not folder.is_dir():
            return set()
        with os.scandir(folder) as found:
            return {one.name for one in found if one.is_file()}


def scan_folder(root: Path, domain: str) -> Entries:
    """The images of ``root/<domain>/<class>/``, sorted by path.

    A folder ``root/<domain>/images/<class>/``, which Office-31 comes with, is read likewise. Images that lie in
    ``root/<domain>/`` or ``root/<domain>/images/`` itself, without folders of classes, have no labels. What is no
    image is in ``passed_over`` of the result.

    Raises:
        UserError: naming the folder, if it holds no images, a class holds none, images lie beside folders of classes,
            or it cannot be read.
    """
    top, passed = root / domain, PassedOver()
    loose, folders = contents(top, domain, passed)
    if folders == ["images"] and not loose:
        inner = contents(top / "images", f"{domain}/images", passed)
        if any(inner):
            top, (loose, folders) = top / "images", inner
    inside = top.relative_to(root).as_posix()
    if loose and folders:
        raise UserError(
            f"{top} holds images ({loose[0]}) beside folders ({folders[0]}): put each image into the "
            "folder of its class, or, for a domain without labels, all images into the domain's folder"
        )
    if not loose and not folders:
        raise UserError(f"the domain folder {top} holds no class folders and no images{_instead(passed)}")

    def rows() -> Iterator[tuple[str, str | None, str, None]]:
        yield from ((f"{inside}/{name}", None, domain, None) for name in loose)
        for label in folders:
            spelt = one_spelling(label)
            yield from ((image, spelt, domain, None) for image in class_images(root, f"{inside}/{label}", passed))

    return Entries.of_rows(rows(), passed)


def class_images(root: Path, inside: str, passed: PassedOver) -> list[str]:
    """Paths of the images in one class's folder, relative to ``root`` and sorted.

    Args:
        root: the folder that the paths are relative to.
        inside: the class's folder, relative to it.
        passed: gets what is no image.

    Raises:
        UserError: naming the folder, if it holds no image or cannot be read.
    """
    own = PassedOver()
    images, folders = contents(root / inside, inside, own)
    for name in folders:
        own.add("folders inside class folders", f"{inside}/{name}")
    if not images:
        raise UserError(f"the class folder {root / inside} holds no images{_instead(own)}")
    passed.merge(own)
    return [f"{inside}/{name}" for name in images]


def _instead(passed: PassedOver) -> str:
    return f": it holds {passed}" if passed else ""


def contents(folder: Path, inside: str, passed: PassedOver) -> tuple[list[str], list[str]]:
    """Names of the images and of the folders in ``folder``, sorted, without the hidden ones.

    Args:
        folder: the folder.
        inside: its name in ``passed``.
        passed: gets what is neither.

    Raises:
        UserError: naming the folder, if it cannot be read.
    """
    images, folders, read = [], [], endings()
    with reading("the folder", folder):
        with os.scandir(folder) as found:
            everything = sorted(found, key=lambda one: one.name)
        for one in everything:
            dot = one.name.rfind(".")
            ending = one.name[dot:].lower() if dot > 0 else ""
            if one.name.startswith("."):
                passed.add("hidden files or folders", f"{inside}/{one.name}")
            elif (kind := _kind(one)) == "folder":
                folders.append(one.name)
            elif kind == "file" and ending in read:
                images.append(one.name)
            elif kind == "file":
                ended = f"files ending in {ending}" if ending else "files without an ending"
                passed.add(ended, f"{inside}/{one.name}")
            else:
                passed.add(kind, f"{inside}/{one.name}")
    return images, folders


def _kind(one: os.DirEntry[str]) -> str:
    try:
        if one.is_file():
            return "file"
        if one.is_dir():
            return "folder"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return "links to nowhere" if one.is_symlink() else "files of a special kind, such as pipes"


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted, without the hidden ones.

    Raises:
        UserError: naming the folder, if it cannot be read.
    """
    return [folder / name for name in contents(folder, folder.name, PassedOver())[1]]
