"""Manifests: lists of image files with their labels and domains, read instead of a folder's names."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dafw.data.files import digest
from dafw.data.images import EXTENSIONS
from dafw.errors import UserError, choose
from dafw.files import write_atomically

SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "label", "domain")


@dataclass(frozen=True)
class Entry:
    """One image.

    Args:
        path: its file, relative to the root folder, with ``/`` between the parts.
        label: its class's name; ``None`` if it has no label.
        domain: its domain's name.
        split: ``train``, ``val`` or ``test``; ``None`` lets the datamodule decide.
    """

    path: str
    label: str | None
    domain: str
    split: str | None = None


def read_manifest(path: Path) -> list[Entry]:
    """The entries of a manifest, in its order.

    A file that ends in ``.csv`` or ``.tsv`` has a header with the columns ``path``, ``label``, ``domain`` and, if
    wanted, ``split``. The labels of a domain without labels are empty. In any other file each line is ``path label
    domain [split]``, separated by spaces; the path may contain spaces. Empty lines are skipped.

    Raises:
        UserError: naming the file and line, if it is missing, empty, malformed, or lists an image twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"the manifest {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the manifest {path} cannot be read: {error}") from error
    table = Path(path).suffix.lower() in (".csv", ".tsv")
    rows = _table(path, text) if table else _lines(path, text)
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        entry = _entry(f"{path}, line {line}", row)
        if entry.path in seen:
            raise UserError(f"{path}, line {line}: {entry.path} is already on line {seen[entry.path]}")
        seen[entry.path] = line
        entries.append(entry)
    if not entries:
        raise UserError(f"the manifest {path} lists no images")
    _refuse_mixed(path, entries)
    without = [entry for entry in entries if entry.split is None]
    if without and len(without) < len(entries):
        raise UserError(f"{path} gives a split for some images but not for {without[0].path}: give all or none")
    return entries


def _table(path: Path, text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(
        StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    header = [name.strip().lower() for name in next(reader, [])]
    for name in header:
        choose(f"column in {path}", name, (*_COLUMNS, "split"))
    for name in _COLUMNS:
        if name not in header:
            raise UserError(f'the manifest {path} has no column "{name}" in its first line')
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                cells = dict(zip(header, row, strict=True))
                rows.append((reader.line_num, [cells.get(name, "") for name in (*_COLUMNS, "split")]))
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{path}, line {reader.line_num}: expected {len(header)} cells ({', '.join(header)})"
        ) from error
    return rows


def _lines(path: Path, text: str) -> list[tuple[int, list[str]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        last = line.split()[-1]
        cells = line.rsplit(maxsplit=3) if last in SPLITS else [*line.rsplit(maxsplit=2), ""]
        if len(cells) != 4:
            raise UserError(f'{path}, line {number}: expected "path label domain [split]", not "{line.strip()}"')
        rows.append((number, cells))
    return rows


def _entry(where: str, row: Sequence[str]) -> Entry:
    path, label, domain, split = (cell.strip() for cell in row)
    for name, value in (("path", path), ("domain", domain)):
        if not value:
            raise UserError(f"{where}: the {name} is empty")
    if leads_out(domain.replace("\\", "/")):
        raise UserError(f'{where}: the domain "{domain}" is a path that leads out of its folder: give it another name')
    return Entry(
        path.replace("\\", "/"), label or None, domain, choose(f"split in {where}", split, SPLITS) if split else None
    )


def _refuse_mixed(path: Path, entries: Sequence[Entry]) -> None:
    labelled = {entry.domain: entry for entry in entries if entry.label is not None}
    for entry in entries:
        if entry.label is None and entry.domain in labelled:
            raise UserError(
                f"{path} gives {labelled[entry.domain].path} a label and {entry.path} none: label all images of "
                f"{entry.domain}, or none"
            )


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a manifest in one step, as CSV; the column ``split`` is there if an entry has one."""
    columns = (*_COLUMNS, "split") if any(entry.split for entry in entries) else _COLUMNS
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(entry, column) or "" for column in columns] for entry in entries)
    write_atomically(path, text.getvalue())


def checksum(entries: Sequence[Entry]) -> str:
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
    for entry in entries:
        if leads_out(entry.path):
            raise UserError(
                f"the image {entry.path} lies outside of {root} (data.root): give another data.root, or say "
                "--data.allow_outside_root true"
            )


def check_files(entries: Sequence[Entry], root: Path, manifest: Path) -> None:
    """Checks that every listed file is there.

    Raises:
        UserError: saying how many are missing, and which is the first.
    """
    missing = [entry.path for entry in entries if not (root / entry.path).is_file()]
    if missing:
        raise UserError(
            f"the manifest {manifest} lists {len(entries)} images, {len(missing)} of which are not in {root}: "
            f"{missing[0]}{' first' if len(missing) > 1 else ''}"
        )


def scan_folder(root: Path, domain: str) -> list[Entry]:
    """The images of ``root/<domain>/<class>/``, sorted by path; what has another ending is passed over.

    A folder ``root/<domain>/images/<class>/``, which Office-31 comes with, is read likewise. Images that lie in
    ``root/<domain>/`` or ``root/<domain>/images/`` itself, without folders of classes, have no labels.

    Raises:
        UserError: naming the folder, if it holds no images, a class holds none, or images lie beside folders of
            classes.
    """
    top = root / domain
    if [folder.name for folder in subfolders(top)] == ["images"] and not image_names(top):
        inner = top / "images"
        top = inner if subfolders(inner) or image_names(inner) else top
    loose = image_names(top)
    if loose and not subfolders(top):
        inside = top.relative_to(root).as_posix()
        return [Entry(f"{inside}/{name}", None, domain) for name in loose]
    if loose:
        raise UserError(
            f"{top} holds images ({loose[0]}) beside folders ({subfolders(top)[0].name}): put each image into the "
            "folder of its class, or, for a domain without labels, all images into the domain's folder"
        )
    entries = []
    for folder in subfolders(top):
        images = image_names(folder)
        if not images:
            raise UserError(f"the class folder {folder} holds no images ({', '.join(EXTENSIONS)})")
        inside = folder.relative_to(root).as_posix()
        entries += [Entry(f"{inside}/{name}", folder.name, domain) for name in images]
    if not entries:
        raise UserError(f"the domain folder {top} holds no class folders and no images")
    return entries


def image_names(folder: Path) -> list[str]:
    """Names of the image files in ``folder``, sorted; hidden ones and other endings are passed over."""
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted, without the hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
