"""Images with boxes as plain values, from which a table draws the same images for several runs."""

import io
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafw.plots.box_rows import Boxes, BoxRow

LONGEST = 400
"""Pixels of the longer side of a kept image."""
LABEL = "label"
"""The title of the column of labelled boxes."""

Example = dict[str, Any]


def kept(image: NDArray[Any], label: Boxes | None, found: Boxes) -> Example:
    """An image of at most :data:`LONGEST` pixels, its labels and detections, in values that JSON knows.

    Args:
        image: (h, w, 3) in [0, 1].
        label: the labelled boxes; ``None`` without labels.
        found: the detections.
    """
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    picture = Image.fromarray((255 * image).round().astype(np.uint8))
    if scale < 1:
        picture = picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=92, subsampling=0)
    return {
        "jpeg": b64encode(buffer.getvalue()).decode(),
        "label": None if label is None else _rows(label, scale),
        "found": _rows(found, scale),
    }


def side_by_side(domain: str, columns: Mapping[str, Sequence[Example]]) -> list[BoxRow]:
    """A row for each image of the first column, with its labels and what each column found on it.

    Args:
        domain: what stands before the rows.
        columns: by title the images of one run. A run that has another image at a place has no boxes there.
    """
    rows = []
    for place, first in enumerate(next(iter(columns.values()))):
        image = np.asarray(Image.open(io.BytesIO(b64decode(first["jpeg"]))).convert("RGB")) / 255
        sets: dict[str, Boxes | None] = {LABEL: None if first["label"] is None else _boxes(first["label"])}
        for title, examples in columns.items():
            same = place < len(examples) and examples[place]["jpeg"] == first["jpeg"]
            sets[title] = _boxes(examples[place]["found"]) if same else None
        rows.append(BoxRow(domain, image, sets))
    return rows


def _rows(given: Boxes, scale: float) -> list[list[float]]:
    columns = [given.boxes * scale, given.labels[:, None], *([] if given.scores is None else [given.scores[:, None]])]
    return [[round(value, 3) for value in row] for row in np.concatenate(columns, 1).tolist()]


def _boxes(rows: list[list[float]]) -> Boxes:
    values = np.array(rows, float).reshape(len(rows), -1) if rows else np.zeros((0, 6))
    return Boxes(values[:, :4], values[:, 4], values[:, 5] if values.shape[1] > 5 else None)
