"""Images with their boxes or masks as plain values, from which a table draws the same images for several runs."""

import io
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dafw.plots.box_rows import Boxes, BoxRow, boxes
from dafw.plots.mask_rows import MaskRow, masks
from dafw.plots.style import Theme

LONGEST = 400
"""Pixels of the longer side of a kept image."""
LABEL = "label"
"""The title of the column of labels."""

Example = dict[str, Any]


def kept_boxes(image: NDArray[Any], label: Boxes | None, found: Boxes) -> Example:
    """An image of at most :data:`LONGEST` pixels, its labels and detections, in values that JSON knows.

    Args:
        image: (h, w, 3) in [0, 1].
        label: the labelled boxes; ``None`` without labels.
        found: the detections.
    """
    jpeg, scale = _jpeg(image)
    return {
        "jpeg": jpeg,
        "label": None if label is None else _rows(label, scale),
        "found": _rows(found, scale),
    }


def kept_masks(image: NDArray[Any], label: NDArray[Any] | None, found: NDArray[Any]) -> Example:
    """An image of at most :data:`LONGEST` pixels, its label and prediction, in values that JSON knows.

    Args:
        image: (h, w, 3) in [0, 1].
        label: (h, w) classes; ``None`` without a label.
        found: (h, w) predicted classes.
    """
    jpeg, scale = _jpeg(image)
    return {"jpeg": jpeg, "label": None if label is None else _png(label, scale), "found": _png(found, scale)}


def same_images(examples: Mapping[str, Any], *, theme: Theme = "light") -> Figure:
    """The same images for several runs: a column for the labels, and one for each run.

    Args:
        examples: ``kind`` (``boxes`` or ``masks``), ``classes``, for masks the value ``ignored`` of pixels without a
            label, and ``domains``: by domain and title of a run its images, as :func:`kept_boxes` or
            :func:`kept_masks` makes them. A run that has another image at a place has nothing there.
        theme: colours of the page.
    """
    names, domains = list(examples["classes"]), examples["domains"].items()
    if examples["kind"] == "boxes":
        return boxes([row for domain, columns in domains for row in box_rows(domain, columns)], names, theme=theme)
    rows = [MaskRow(*parts) for domain, columns in domains for parts in _side_by_side(domain, columns, _mask)]
    return masks(rows, names, ignored=int(examples["ignored"]), theme=theme)


def box_rows(domain: str, columns: Mapping[str, Sequence[Example]]) -> list[BoxRow]:
    """A row for each image of the first column, with its labels and what each column found on it.

    Args:
        domain: what stands before the rows.
        columns: by title the images of one run.
    """
    return [BoxRow(*parts) for parts in _side_by_side(domain, columns, _boxes)]


def _side_by_side(
    domain: str, columns: Mapping[str, Sequence[Example]], read: Callable[[Any], Any]
) -> list[tuple[str, NDArray[Any], dict[str, Any]]]:
    """The domain, an image, and by column what ``read`` makes of its label and of what was found."""
    rows = []
    for place, first in enumerate(next(iter(columns.values()))):
        image = np.asarray(Image.open(io.BytesIO(b64decode(first["jpeg"]))).convert("RGB")) / 255
        sets = {LABEL: None if first["label"] is None else read(first["label"])}
        for title, examples in columns.items():
            same = place < len(examples) and examples[place]["jpeg"] == first["jpeg"]
            sets[title] = read(examples[place]["found"]) if same else None
        rows.append((domain, image, sets))
    return rows


def _jpeg(image: NDArray[Any]) -> tuple[str, float]:
    """An image (h, w, 3) in [0, 1] as text, and by how much it was scaled."""
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    picture = _scaled(Image.fromarray((255 * image).round().astype(np.uint8)), scale, Image.Resampling.BICUBIC)
    return _text(picture, format="jpeg", quality=92, subsampling=0), scale


def _png(mask: NDArray[Any], scale: float) -> str:
    """A mask (h, w) as text."""
    picture = Image.fromarray(mask.astype(np.uint8))
    return _text(_scaled(picture, scale, Image.Resampling.NEAREST), format="png")


def _scaled(picture: Image.Image, scale: float, by: Image.Resampling) -> Image.Image:
    if scale == 1:
        return picture
    return picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))), by)


def _text(picture: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return b64encode(buffer.getvalue()).decode()


def _mask(text: str) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(b64decode(text))))


def _rows(given: Boxes, scale: float) -> list[list[float]]:
    columns = [given.boxes * scale, given.labels[:, None], *([] if given.scores is None else [given.scores[:, None]])]
    return [[round(value, 3) for value in row] for row in np.concatenate(columns, 1).tolist()]


def _boxes(rows: list[list[float]]) -> Boxes:
    values = np.array(rows, float).reshape(len(rows), -1) if rows else np.zeros((0, 6))
    return Boxes(values[:, :4], values[:, 4], values[:, 5] if values.shape[1] > 5 else None)
