"""``dafw data check --sheet``: a picture of some images of each class and domain, and statistics of the domains."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dafw.data.images import load_image
from dafw.errors import UserError
from dafw.files import check_writable, replacing
from datamodules.layouts import Benchmark, list_domain

EACH = 3
"""Images of one class of one domain."""
SAMPLE = 100
"""Images of one domain that its statistics are of."""
SIDE = 224
"""Height and width that they are scaled to, in pixels."""
_GAP, _NAMES, _LINE = 2, 150, 16
_GREY = (200, 200, 200)


def check_sheet(file: Path) -> Path:
    """Returns the name of a picture that can be written.

    Raises:
        UserError: if it does not end in ``.png``.
        OSError: if it cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"{file} (--sheet) must end in .png")
    check_writable(file)
    return file


def draw(facts: Benchmark, home: Path, file: Path) -> Iterator[str]:
    """Draws the picture, a line of images for each class and a column for each domain.

    Args:
        facts: what is known of the benchmark.
        home: folder of the domains.
        file: the picture (PNG).

    Returns:
        Lines: mean and standard deviation of red, green and blue of each domain, and the name of the picture.

    Raises:
        UserError: if an image cannot be read.
    """
    found: dict[str, dict[str, list[str]]] = {}
    statistics = {}
    for name in facts.domains:
        entries = list_domain(facts, home, name)
        found[name] = {}
        for label in (label for label in entries.labels.counts() if label is not None):
            rows = np.flatnonzero(entries.labels.are(label))
            found[name][label] = [entries.paths[row] for row in _spread(rows, EACH)]
        statistics[name] = _statistics([entries.paths[row] for row in _spread(np.arange(len(entries)), SAMPLE)], home)
    yield f"red, green and blue of up to {SAMPLE} images of each domain, scaled to {SIDE} x {SIDE}, in [0, 1]:"
    width = max(map(len, facts.domains))
    for name, (count, mean, deviation) in statistics.items():
        if count:
            values = f"mean {' '.join(f'{one:.3f}' for one in mean)}  std {' '.join(f'{one:.3f}' for one in deviation)}"
            yield f"{name:<{width}}  {values}  ({count} images)"
    classes = sorted(set().union(*found.values()), key=lambda label: (int(label) if label.isdecimal() else 0, label))
    with replacing(file) as written:
        _picture(found, classes, home).save(written, "PNG")
    yield f"images of {len(classes)} classes: {file}"


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of some rows, from the first one to the last one."""
    return (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))] if len(rows) else rows
    )


def _statistics(paths: list[str], home: Path) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Number of images, and mean and standard deviation of their pixels, (3,) each."""
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for path in paths:
        try:
            pixels = load_image(home / path, SIDE).reshape(-1, 3) / 255
        except UserError:  # it cannot be decoded, or is not there
            continue
        sums, squares, count = sums + pixels.mean(0), squares + (pixels**2).mean(0), count + 1
    mean = sums / max(count, 1)
    return count, mean, np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))


def _picture(found: dict[str, dict[str, list[str]]], classes: list[str], home: Path) -> Image.Image:
    side = 64 if len(classes) <= 100 else 48
    column, row = EACH * (side + _GAP) + 4 * _GAP, side + _GAP
    sheet = Image.new("RGB", (_NAMES + column * len(found), 2 * _LINE + row * len(classes)), "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    for place, (domain, images) in enumerate(found.items()):
        left = _NAMES + place * column
        _write(pen, (left, _LINE // 2), domain, column, font)
        for line, label in enumerate(classes):
            top = 2 * _LINE + line * row
            for number in range(EACH):
                corner = left + number * (side + _GAP), top
                paths = images.get(label, [])
                if number >= len(paths):
                    continue
                try:
                    sheet.paste(Image.fromarray(load_image(home / paths[number], side)), corner)
                except UserError:  # it cannot be decoded, or is not there
                    pen.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), _GREY)
                    pen.line((*corner, corner[0] + side - 1, corner[1] + side - 1), "red")
    for line, label in enumerate(classes):
        _write(pen, (_GAP, 2 * _LINE + line * row + side // 2 - _LINE // 2), label, _NAMES - 2 * _GAP, font)
    return sheet


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, font: ImageFont.FreeTypeFont
) -> None:
    """Writes a name, shortened to so many pixels."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        shown = f"{shown.rstrip('…')[:-1]}…"
    pen.text(corner, shown, "black", font)


def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # its font has the letters of most languages

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 12)
