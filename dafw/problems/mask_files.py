"""Predicted masks as files: one PNG of class numbers for each sample."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dafw import escape
from dafw.errors import UserError
from dafw.files import check_writable, remove_abandoned, replacing, write_atomically
from dafw.names import file_name, one_spelling

INDEX = "index.csv"
"""The file in a folder of masks that says which of them is of which sample."""


def check_folder(path: Path) -> None:
    """Looks whether :func:`write_masks` could write into a folder.

    Raises:
        UserError: if ``path`` is a file.
        OSError: if the folder could not be made or written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, and masks need a folder: give another --output")
    check_writable(path / INDEX)


def write_masks(found: Mapping[str, tuple[Sequence[str], Sequence[Tensor]]], path: Path) -> None:
    """Writes ``<path>/<domain>/<sample>.png``, 8-bit grey images of class numbers, and ``<path>/index.csv``.

    The index says which file holds which sample (``domain,sample,file``). A sample's name becomes a file name by
    :func:`file_names`. An earlier index is removed first, and the new one is written last. So a folder with an index
    holds the masks of one prediction, whatever ended the process.

    Args:
        found: by domain the names of its samples, and for each a mask (H, W) of classes.
        path: the folder. It is made. Files in it of other names stay.

    Raises:
        UserError: if ``path`` is a file.
    """
    check_folder(path)
    (path / INDEX).unlink(missing_ok=True)
    rows = []
    for (domain, (ids, masks)), folder in zip(found.items(), file_names(found), strict=True):
        remove_abandoned(path / folder)
        for sample, name, mask in zip(ids, file_names(ids), masks, strict=True):
            file = f"{folder}/{name}.png"
            with replacing(path / file, sync=False) as opened:
                Image.fromarray(np.asarray(mask, np.uint8)).save(opened, format="png")
            rows.append([domain, sample, file])
    write_atomically(path / INDEX, escape.csv([["domain", "sample", "file"], *rows]))


def file_names(names: Iterable[str]) -> list[str]:
    """File names that differ from each other on every system, see :func:`~dafw.names.file_name`.

    A name that was given already, in capital letters or small ones, ends with the position of its sample.

    >>> file_names(["day/1.jpg", "night/1.jpg", "night_1.jpg", ".."])
    ['day_1.jpg', 'night_1.jpg', 'night_1.jpg-2', '_.']
    """
    found: list[str] = []
    taken: set[str] = set()
    for position, name in enumerate(names):
        plain = file_name(str(name))
        while _folded(plain) in taken:
            plain = f"{plain}-{position}"
        taken.add(_folded(plain))
        found.append(plain)
    return found


def _folded(name: str) -> str:
    """The same for all names that some file system takes for one."""
    return one_spelling(name.casefold())
