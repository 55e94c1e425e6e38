"""The pictures of runs as a page carries them: small, and no more than fit."""

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from dafw.files import replacing
from dafw.tables.details import pictures_of
from dafw.tables.store import Store

SIZES = ((960, 60_000), (640, 32_000), (420, 16_000))
"""Width of a picture in pixels, and the letters that one of it may take in the page, about."""
FOLDER = "thumbnails"
"""Beside the page: the small pictures, so that the next page need not make them again."""


LARGE = 250_000
"""Bytes of a figure of the table above which the page carries it in a smaller form."""


def embedded(png: bytes) -> str:
    """A figure of the table as a data URI. A large one is scaled to 1,600 pixels, and loses a little."""
    if len(png) <= LARGE:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return _uri(_webp(io.BytesIO(png), 1600))


def thumbnails(store: Store, folder: Path, room: int) -> tuple[dict[str, dict[str, str]], int]:
    """Pictures of the runs for the page, as data URIs.

    All have one size: the largest at which about all of them fit. If not even the smallest does, the pictures that say
    least are left out: those of a later seed before those of the first one, then those that come later in a run.

    Args:
        store: the results.
        folder: of the page.
        room: letters that they may take together.

    Returns:
        By ``row,task,seed`` (the positions of row and task, and the seed) the pictures by name; and how many are left
        out.
    """
    wanted = list(_wanted(store))
    width, share = next((size for size in SIZES if size[1] * len(wanted) <= room), SIZES[-1])
    found: dict[str, dict[str, str]] = {}
    kept: set[str] = set()
    left_out = 0
    for key, path in wanted:
        if room < share:
            left_out += 1
            continue
        name, content = _small(path, folder / FOLDER, width)
        if not content:
            continue
        kept.add(name)
        uri = _uri(content)
        if len(uri) > room:
            left_out, room = left_out + 1, 0
            continue
        room -= len(uri)
        found.setdefault(key, {})[path.stem] = uri
    for old in (folder / FOLDER).glob("*.webp"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
    return found, left_out


def _wanted(store: Store) -> Iterator[tuple[str, Path]]:
    """The pictures of all runs with their keys, the most important first."""
    table = store.table
    found: list[tuple[int, int, str, Path]] = []
    for order, seed in enumerate(table.seeds):
        for row, named in enumerate(table.rows):
            for column, task in enumerate(table.tasks):
                if store.get(named.name, task, seed) is not None:
                    pictures = enumerate(pictures_of(store.directories[named.name, task, seed]))
                    found += [(order, place, f"{row},{column},{seed}", path) for place, path in pictures]
    return ((key, path) for _, _, key, path in sorted(found, key=lambda one: one[:2]))


def _small(path: Path, folder: Path, width: int) -> tuple[str, bytes]:
    """The name and the bytes of a picture of this width, from the folder if it is there; no bytes if it is damaged."""
    from PIL import Image

    try:
        state = path.stat()
        key = f"{path.absolute()}|{state.st_mtime_ns}|{state.st_size}|{width}"
        kept = folder / f"{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:16]}.webp"
        if kept.exists():
            return kept.name, kept.read_bytes()
        content = _webp(path, width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "", b""
    folder.mkdir(exist_ok=True)
    with replacing(kept, sync=False) as file:
        file.write(content)
    return kept.name, content


def _webp(source: Path | io.BytesIO, width: int) -> bytes:
    """A picture as WebP, at most so many pixels wide, and four times as high."""
    from PIL import Image

    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((width, 4 * width))
    buffer = io.BytesIO()
    small.save(buffer, format="webp", quality=70, method=2)
    return buffer.getvalue()


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
