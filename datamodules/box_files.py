"""Readers of annotation files: COCO's JSON, and the XML of PASCAL VOC."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dafw.data.manifest import leads_out
from dafw.errors import UserError
from dafw.files import reading
from dafw.names import one_spelling
from datamodules.box_listing import Annotated, Box

Corners = tuple[float, float, float, float]


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: naming the file, if it cannot be read or is not JSON.
    """
    try:
        with reading(what, path), path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not JSON: {' '.join(str(error).split())}") from error


def read_coco(path: Path, folder: str, part: str = "all") -> tuple[list[Annotated], list[str]]:
    """The images of a file in COCO's format, and the names of its classes in the order of their ids.

    https://cocodataset.org/#format-data. A box with ``iscrowd`` or ``ignore`` is a crowd's.

    Args:
        path: the file.
        folder: that the names of its images are relative to; the paths of the result begin with it.
        part: of the data that the file has.

    Raises:
        UserError: naming the file and the entry, if it is not such a file, an id or a name occurs twice, or an
            annotation is of an image or a class that does not exist.
    """
    given = read_json(path, "the annotation file")
    if not isinstance(given, Mapping) or not all(
        isinstance(given.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise UserError(f"{path} is not in COCO's format: it must have the lists images, annotations and categories")
    categories: dict[Any, str] = {}
    for number, entry in enumerate(given["categories"], 1):
        key, name = _fields(path, f"entry {number} of categories", entry, "id", "name")
        name = one_spelling(str(name))
        if key in categories:
            raise UserError(f"{path} lists the category id {key} twice: leave one out")
        if name in categories.values():
            raise UserError(f'{path} has two categories of the name "{name}": give each class one category')
        categories[key] = name
    images: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    files: set[str] = set()
    for number, entry in enumerate(given["images"], 1):
        key, name = _fields(path, f"entry {number} of images", entry, "id", "file_name")
        if key in images:
            raise UserError(f"{path} lists the image id {key} twice: leave one out")
        image = str(name).replace("\\", "/").removeprefix("./")
        if leads_out(image):
            raise UserError(f"{path}, image {key}: {image} leads out of the folder {folder}: give a path within it")
        if image in files:
            raise UserError(f"{path} lists the image {image} twice: leave one out")
        files.add(image)
        sides = entry.get("height"), entry.get("width")
        known = all(isinstance(side, int | float) and side > 0 for side in sides)
        images[key] = image, (int(sides[0]), int(sides[1])) if known else None
    boxes: dict[Any, list[Box]] = {key: [] for key in images}
    seen: set[Any] = set()
    for number, entry in enumerate(given["annotations"], 1):
        where = (
            f"annotation {entry['id']}"
            if isinstance(entry, Mapping) and "id" in entry
            else f"annotation number {number}"
        )
        image_id, category, bbox = _fields(path, where, entry, "image_id", "category_id", "bbox")
        if image_id not in images:
            raise UserError(f"{path}, {where}: there is no image {image_id} among its images")
        if category not in categories:
            raise UserError(f"{path}, {where}: there is no category {category} among its categories")
        if "id" in entry and entry["id"] in seen:
            raise UserError(f"{path} lists the annotation id {entry['id']} twice: leave one out")
        seen.add(entry.get("id"))
        crowd = bool(entry.get("iscrowd")) or bool(entry.get("ignore"))
        boxes[image_id].append(Box(categories[category], _from_sides(bbox), crowd, where))
    found = [Annotated(f"{folder}/{image}", str(path), size, boxes[key], part) for key, (image, size) in images.items()]
    return found, [categories[key] for key in sorted(categories, key=lambda one: (str(type(one)), one))]


def read_ids(path: Path, folder: str) -> tuple[dict[str, int | str], dict[str, int | str]]:
    """The ids of a file in COCO's format that :func:`read_coco` has read: by image, and by the name of a class.

    Args:
        path: the file.
        folder: see :func:`read_coco`.
    """
    given = read_json(path, "the annotation file")
    names = ((str(one["file_name"]).replace("\\", "/").removeprefix("./"), one["id"]) for one in given["images"])
    images = {f"{folder}/{name}": number for name, number in names}
    return images, {one_spelling(str(one["name"])): one["id"] for one in given["categories"]}


def _fields(path: Path, where: str, entry: Any, *keys: str) -> list[Any]:
    """Values of an entry.

    Raises:
        UserError: if the entry is no mapping, lacks one, or an id or name is no number or word.
    """
    if not isinstance(entry, Mapping) or (lacking := next((key for key in keys if key not in entry), None)) is not None:
        raise UserError(f"{path}, {where}: it has no {lacking if isinstance(entry, Mapping) else keys[0]}")
    for key in keys:
        if key != "bbox" and (isinstance(entry[key], bool) or not isinstance(entry[key], int | float | str)):
            raise UserError(f"{path}, {where}: {key} must be a number or a name, not {json.dumps(entry[key])[:40]}")
    return [entry[key] for key in keys]


def _from_sides(bbox: Any) -> Corners:
    """Corners of x, y, width and height; nan for what is none of these."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4:
        return (math.nan,) * 4
    x, y, width, height = (number(side) for side in bbox)
    return x, y, x + width, y + height


def number(given: Any) -> float:
    """A number as it is or as text; nan for anything else."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return math.nan
    try:
        return float(given)
    except (ValueError, OverflowError):
        return math.nan


def read_voc(path: Path) -> tuple[tuple[int, int] | None, list[Box]]:
    """The size that a file in PASCAL VOC's format says, and its boxes. A difficult box is a crowd's.

    Everingham et al., IJCV 2010. The format counts pixels from 1, and ``xmax`` is the last column of a box. So a box
    begins one pixel before ``xmin``.

    Raises:
        UserError: naming the file, if it cannot be read or is not XML, or the object, if it has no name or box.
    """
    try:
        with reading("the annotation file", path):
            top = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"the annotation file {path} is not XML: {error}") from error
    if top.tag != "annotation":
        raise UserError(f"{path} is not in PASCAL VOC's format: it begins with <{top.tag}>, not with <annotation>")
    return _size(top), list(_objects(path, top))


def _objects(path: Path, top: ElementTree.Element) -> Iterator[Box]:
    for place, entry in enumerate(top.findall("object"), 1):
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name:
            raise UserError(f"{path}, object {place}: it has no name")
        if box is None:
            raise UserError(f"{path}, object {place}: it has no bndbox")
        x1, y1, x2, y2 = (number(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (entry.findtext("difficult") or "").strip() == "1"
        yield Box(one_spelling(name), (x1 - 1, y1 - 1, x2, y2), difficult, f"object {place}")


def _size(top: ElementTree.Element) -> tuple[int, int] | None:
    height, width = (number(top.findtext(f"size/{key}")) for key in ("height", "width"))
    return (int(height), int(width)) if height > 0 and width > 0 else None
