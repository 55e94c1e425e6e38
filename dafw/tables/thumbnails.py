"""The pictures of a table and of its runs as a page carries them: small, and no more than fit."""

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


class SmallPictures:
    """Small pictures in a folder beside the page, so that the next page need not make them again.

    Args:
        folder: of the page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.used: set[str] = set()

    def get(self, source: Path | bytes, width: int) -> bytes:
        """A picture as WebP, at most so many pixels wide; no bytes if it is damaged.

        Args:
            source: its file or its content.
            width: in pixels.
        """
        from PIL import Image

        try:
            kept = self.folder / f"{_key(source, width)}.webp"
            there = kept.exists()
            content = kept.read_bytes() if there else _webp(source, width)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return b""
        if not there:
            with replacing(kept, sync=False) as file:
                file.write(content)
        self.used.add(kept.name)
        return content

    def tidy(self) -> None:
        """Removes the pictures that nothing asked for."""
        for old in self.folder.glob("*.webp"):
            if old.name not in self.used:
                old.unlink(missing_ok=True)


def embedded(png: bytes, small: SmallPictures) -> str:
    """A figure of the table as a data URI. A large one is scaled to 1,600 pixels, and loses a little."""
    if len(png) > LARGE and (content := small.get(png, 1600)):
        return _uri(content)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def thumbnails(store: Store, small: SmallPictures, room: int) -> tuple[dict[str, dict[str, str]], int]:
    """Pictures of the runs for the page, as data URIs.

    All have one size: the largest at which about all of them fit. If not even the smallest does, the pictures that say
    least are left out: those of a later seed before those of the first one, then those that come later in a run.

    Args:
        store: the results.
        small: where they are kept.
        room: letters that they may take together.

    Returns:
        By ``row,task,seed`` (the positions of row and task, and the seed) the pictures by name; and how many are left
        out.
    """
    wanted = list(_wanted(store))
    width, share = next((size for size in SIZES if size[1] * len(wanted) <= room), SIZES[-1])
    found: dict[str, dict[str, str]] = {}
    left_out = 0
    for key, path in wanted:
        if room < share:
            left_out += 1
            continue
        content = small.get(path, width)
        if not content:
            continue
        uri = _uri(content)
        if len(uri) > room:
            left_out, room = left_out + 1, 0
            continue
        room -= len(uri)
        found.setdefault(key, {})[path.stem] = uri
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


def _key(source: Path | bytes, width: int) -> str:
    """Another one for another file, another state of the file, another content or another width."""
    if isinstance(source, Path):
        state = source.stat()
        source = f"{source.absolute()}|{state.st_mtime_ns}|{state.st_size}".encode(errors="replace")
    return hashlib.sha256(source + f"|{width}".encode()).hexdigest()[:16]


def _webp(source: Path | bytes, width: int) -> bytes:
    """A picture as WebP, at most so many pixels wide, and four times as high."""
    from PIL import Image

    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
        small = image.convert("RGB")
    small.thumbnail((width, 4 * width))
    buffer = io.BytesIO()
    small.save(buffer, format="webp", quality=70, method=2)
    return buffer.getvalue()


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
