"""Predicted masks as files: one PNG of class numbers for each sample, and a table of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Masks:
    """Predicted masks of one domain.

    Args:
        domain: its name.
        ids: the names of its n samples.
        masks: for each a mask (h, w) of classes.
        confidences: for each the mean probability of the predicted classes.
        sizes: for each the height and width to scale the mask to, by the nearest pixel; ``None`` leaves it as it is.
    """

    domain: str
    ids: Sequence[str]
    masks: Sequence[Tensor]
    confidences: Sequence[float]
    sizes: Sequence[tuple[int, int] | None] | None = None


def write_masks(found: Sequence[Masks], class_names: Sequence[str], path: Path) -> None:
    """Writes ``<path>/<domain>/<sample>.png``, 8-bit images of class numbers with a palette, and ``<path>/index.csv``.

    The index says which file holds which sample, its mean confidence, and the share of its pixels that each class has
    (``domain,sample,file,confidence`` and ``share_<class>``). A sample's name becomes a file name by
    :func:`file_names`. An earlier index is removed first, and the new one is written last. So a folder with an index
    holds the masks of one prediction, whatever ended the process.

    Args:
        found: the masks.
        class_names: names of the classes.
        path: the folder. It is made. Files in it of other names stay.

    Raises:
        UserError: if ``path`` is a file.
    """
    check_folder(path)
    (path / INDEX).unlink(missing_ok=True)
    rows, colours, names = [], palette(len(class_names)), [one.domain for one in found]
    for one, folder in zip(found, file_names(names), strict=True):
        remove_abandoned(path / folder)
        sizes = one.sizes if one.sizes is not None else [None] * len(one.ids)
        for sample, name, mask, size, sure in zip(
            one.ids, file_names(one.ids), one.masks, sizes, one.confidences, strict=True
        ):
            file = f"{folder}/{name}.png"
            image = Image.fromarray(np.asarray(mask, np.uint8))
            if size is not None and size != (image.height, image.width):
                image = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
            counts = np.bincount(np.asarray(image).ravel(), minlength=len(class_names))
            image.putpalette(colours)
            with replacing(path / file, sync=False) as opened:
                image.save(opened, format="png")
            shares = [f"{share:.6f}" for share in counts / counts.sum()]
            rows.append([one.domain, sample, file, f"{float(sure):.6f}", *shares])
    header = ["domain", "sample", "file", "confidence", *(f"share_{name}" for name in class_names)]
    write_atomically(path / INDEX, escape.csv([header, *rows]))


def palette(count: int) -> list[int]:
    """Red, green and blue of each class in turn: the colours of the pictures of masks."""
    from matplotlib.colors import to_rgb

    from dafw.plots.style import shades

    return [round(255 * part) for colour in shades(count) for part in to_rgb(colour)]


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
