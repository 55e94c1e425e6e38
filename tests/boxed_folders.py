"""Folders of small images with boxes in COCO's and PASCAL VOC's formats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Height and width of image i.
SIZES = ((24, 32), (40, 30), (24, 32))


def image(path: Path, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(str(path.name).encode()))
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def coco(count: int, names: Sequence[str] = ("cat", "dog"), empty: int = 1) -> dict[str, Any]:
    """Annotations of images ``i.png``; the first ``empty`` ones have no box, others one of each class."""
    images = [
        {"id": 10 + i, "file_name": f"{i}.png", "height": SIZES[i % 3][0], "width": SIZES[i % 3][1]}
        for i in range(count)
    ]
    boxes = [
        {
            "id": len(names) * i + k,
            "image_id": 10 + i,
            "category_id": 5 + k,
            "bbox": [2 + 3 * k, 4, 8, 6 + k],
            "iscrowd": 0,
        }
        for i in range(empty, count)
        for k in range(len(names))
    ]
    categories = [{"id": 5 + k, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": boxes, "categories": categories}


def write_coco(root: Path, domain: str, given: Mapping[str, Any], file: str = "") -> Path:
    """Writes annotations and their images; the result is the path of the annotations."""
    for one in given["images"]:
        image(root / domain / one["file_name"], (one["height"], one["width"]))
    path = root / (file or f"{domain}.json")
    path.write_text(json.dumps(given))
    return path


def voc(objects: Sequence[tuple[str, tuple[Any, ...], int]], size: tuple[int, int] = (24, 32)) -> str:
    """The XML of an image: for each object its name, its four corners, and whether it is difficult."""
    entries = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, difficult in objects
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{entries}</annotation>"


def write_voc(root: Path, domain: str, count: int, names: Sequence[str] = ("cat", "dog")) -> Path:
    """Writes images with one object of each class, but for the first, which has none; the result is the folder."""
    folder = root / domain
    (folder / "Annotations").mkdir(parents=True)
    for i in range(count):
        image(folder / "JPEGImages" / f"{i:03}.jpg", SIZES[i % 3])
        objects = [(name, (2 + 3 * k, 4, 10 + k, 12), 0) for k, name in enumerate(names)] if i else []
        (folder / "Annotations" / f"{i:03}.xml").write_text(voc(objects, SIZES[i % 3]))
    return folder
