"""Predicted boxes as files in COCO's format for results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dafw.data.numbers import Numbers
from dafw.files import write_atomically
from dafw.names import file_name
from dafw.problems.base import Predicted


def write_boxes(found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
    """Writes one JSON file: a list with an entry for each box. Several domains get a file each beside it.

    An entry has COCO's keys ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``, and ``domain``
    and ``category``, the class's name. The box is in pixels of the image file. The two ids are those of the domain's
    own annotations if it has some; else they are the sample's name and the position of the class from 0. The file of a
    domain is named by :func:`domain_file`.

    Args:
        found: the predictions. A column ``size`` holds height and width of each image as the detector saw it.
        class_names: names of the classes that the model predicts.
        path: the file of all domains.
    """
    entries = [entries_of(one, class_names) for one in found]
    if len(found) > 1:
        for one, own in zip(found, entries, strict=True):
            write_atomically(domain_file(path, one.domain), json.dumps(own))
    write_atomically(path, json.dumps([entry for own in entries for entry in own]))


def domain_file(path: Path, domain: str) -> Path:
    """The file of one of several domains, beside the one for all.

    >>> domain_file(Path("found/predictions.json"), "night").as_posix()
    'found/predictions-night.json'
    """
    return path.with_stem(f"{path.stem}-{file_name(domain)}")


def entries_of(one: Predicted, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of one domain, in the order of its samples."""
    entries = []
    columns = (one.columns[name] for name in ("boxes", "scores", "labels", "size"))
    images, classes = one.numbers or Numbers({}, {})
    sizes = one.sizes if one.sizes is not None else [None] * len(one.ids)
    for sample, original, boxes, scores, labels, (height, width) in zip(one.ids, sizes, *columns, strict=True):
        down, across = (1.0, 1.0) if original is None else (original[0] / height, original[1] / width)
        scale = boxes.new_tensor([across, down, across, down]).double()
        for box, score, label in zip((boxes.double() * scale).tolist(), scores.tolist(), labels.tolist(), strict=True):
            left, top, right, bottom = box
            entries.append(
                {
                    "image_id": images.get(sample, sample),
                    "category_id": classes.get(class_names[label], label),
                    "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
                    "score": round(score, 6),
                    "domain": one.domain,
                    "category": class_names[label],
                }
            )
    return entries
