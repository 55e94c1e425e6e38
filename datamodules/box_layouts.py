"""Layouts of the benchmarks with boxes: the expected contents (``box_layouts.yaml``), and their readers."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dafw.data.cache import file_mark
from dafw.data.entries import PassedOver
from dafw.data.images import CorruptImage, image_stat
from dafw.data.looking import look_once
from dafw.data.manifest import contents
from dafw.errors import UserError
from dafw.files import reading
from datamodules.box_files import number, read_json
from datamodules.box_listing import ANY, Annotated, Box, Listed, read_each
from datamodules.scene_layouts import find_folder, images_like, numbers
from datamodules.voc import list_voc

_PENN = re.compile(r"Bounding box for object (\d+).*?:\s*\((\S+),\s*(\S+)\)\s*-\s*\((\S+),\s*(\S+)\)")
#: The kind of GWHD, which has a datamodule of its own.
WHEAT = "wheat"


@lru_cache(maxsize=1)
def layouts() -> dict[str, Any]:
    """The content of ``box_layouts.yaml`` by domain."""
    text = Path(__file__).with_name("box_layouts.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["domains"]
    return found


def find_boxes(root: Path, domain: str) -> Path | None:
    """The folder of a dataset in ``root``, in any of its spellings; ``None`` if there is none."""
    facts = layouts()[domain]
    return find_folder(root, facts["folders"], facts["inside"])


def list_boxes(root: Path, domain: str) -> Listed:
    """The samples of a domain, with the names of :data:`layouts` for their classes.

    Args:
        root: folder that holds the folders of the datasets.
        domain: its name.

    Raises:
        UserError: if the folder or an annotation is missing, or a file cannot be read.
    """
    facts, folder = layouts()[domain], find_boxes(root, domain)
    if folder is None:
        wanted = " or ".join(facts["folders"])
        raise UserError(
            f"{root} holds no folder {wanted} with {' and '.join(facts['inside'])} of {domain}: see dafw data check "
            f"{domain} --boxes --root {root}"
        )
    inside = folder.relative_to(root).as_posix()
    found = _READERS[facts["kind"]](root, domain, inside, facts)
    if not found.images:
        raise UserError(f"{folder} holds no images of {domain}: see dafw data check {domain} --boxes --root {root}")
    found = found.renamed(facts.get("rename", {}))
    return Listed.of(found.annotated or (), facts["classes"], found.passed_over)


# ---- Cityscapes


def _instances(root: Path, domain: str, folder: str, facts: Mapping[str, Any]) -> Listed:
    """Boxes around the instances of Cityscapes' masks."""
    passed, pairs = PassedOver(), list[tuple[str, str, str]]()
    for fog in facts.get("fogs", [""]):
        ending = facts["image"].format(fog=fog)
        for part, pattern in facts["parts"].items():
            first = pattern.partition("/")[0]
            for image in images_like(root / folder, pattern, ending, passed):
                stem = image.rpartition(".")[0].removesuffix(ending).replace(first, "gtFine", 1)
                mask = f"{folder}/{stem}_gtFine_instanceIds.png"
                if not (root / mask).is_file():
                    raise UserError(f"the image {root / folder / image} has no mask {root / mask}: get gtFine, too")
                pairs.append((f"{folder}/{image}", mask, part))
    names = {code: name for name, code in numbers("label_ids", 19).items() if name in facts["classes"]}
    return Listed.of(read_each("instances", root, domain, pairs, lambda path: _around(path, names)), (), passed)


def _around(path: Path, names: Mapping[int, str]) -> tuple[tuple[int, int], list[Box]]:
    """Boxes around the instances in a mask: class times 1000 plus the instance; below 1000 it is a group's class."""
    image_stat(path)
    try:
        with reading("the mask", path), Image.open(path) as image:
            mask = np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # a decoder meets damaged bytes with almost any exception
        raise CorruptImage(f"the mask {path} cannot be decoded ({error})") from error
    boxes = []
    for code in np.flatnonzero(np.bincount(mask.ravel())).tolist():
        name = names.get(code // 1000 if code >= 1000 else code)
        if name is not None:
            inside = mask == code
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            corners = tuple(map(float, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
            boxes.append(Box(name, corners, code < 1000, f"instance {code}"))  # type: ignore[arg-type]
    return (mask.shape[0], mask.shape[1]), boxes


# ---- PASCAL VOC, Sim10k, Clipart, Watercolor


def _voc(root: Path, domain: str, folder: str, facts: Mapping[str, Any]) -> Listed:
    found = list[Annotated]()
    for place, sets in facts["places"].items():
        inside = folder if place == "." else f"{folder}/{place}"
        listed = list_voc(root, f"{domain}/{place}", inside, sets)
        if listed.annotated is None:
            raise UserError(f"{root / inside} has no folder Annotations: get the annotations, too")
        found += [one._replace(size=None) for one in listed.annotated]  # what these files say may be wrong
    return Listed.of(found)


# ---- KITTI and Penn-Fudan


def _kitti(root: Path, domain: str, folder: str, facts: Mapping[str, Any]) -> Listed:
    return _side_by_side(root, domain, f"{folder}/training", ("image_2", "label_2"), "", _read_kitti)


def _penn(root: Path, domain: str, folder: str, facts: Mapping[str, Any]) -> Listed:
    return _side_by_side(root, domain, folder, ("PNGImages", "Annotation"), facts["starts"], _read_penn)


def _side_by_side(
    root: Path,
    domain: str,
    folder: str,
    inside: tuple[str, str],
    starts: str,
    read: Callable[[Path], tuple[tuple[int, int] | None, list[Box]]],
) -> Listed:
    """Images and text files of the same names in two folders."""
    passed = PassedOver()
    images, notes = (f"{folder}/{name}" for name in inside)
    names = [name for name in contents(root / images, images, passed)[0] if name.startswith(starts)]
    pairs = [(f"{images}/{name}", f"{notes}/{name.rpartition('.')[0]}.txt", "all") for name in names]
    return Listed.of(read_each("text", root, domain, pairs, read), (), passed)


def _lines(path: Path) -> list[str]:
    with reading("the annotation file", path):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _read_kitti(path: Path) -> tuple[None, list[Box]]:
    """Columns: class, truncated, occluded, angle, left, top, right, bottom, and more in three dimensions."""
    boxes = []
    for place, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 8:
            raise UserError(f"{path}, line {place}: it has {len(words)} columns, and a box needs 8")
        ignored = words[0] == "DontCare"
        corners = tuple(map(number, words[4:8]))
        boxes.append(Box(ANY if ignored else words[0], corners, ignored, f"line {place}"))  # type: ignore[arg-type]
    return None, boxes


def _read_penn(path: Path) -> tuple[None, list[Box]]:
    """Pixels count from 1, and the last one is within the box."""
    boxes = []
    for found in _PENN.finditer("\n".join(_lines(path))):
        x1, y1, x2, y2 = map(number, found.groups()[1:])
        boxes.append(Box("person", (x1 - 1, y1 - 1, x2, y2), False, f"object {found[1]}"))
    if not boxes:
        raise UserError(f"{path} has no bounding box: it is no annotation of Penn-Fudan")
    return None, boxes


# ---- BDD100k


def _scalabel(root: Path, domain: str, folder: str, facts: Mapping[str, Any]) -> Listed:
    """Files in Scalabel's format, the newer ``det_20`` or the older one."""
    found, only = list[Annotated](), facts.get("only", {})
    for part, name in facts["parts"].items():
        tried = [f"{folder}/labels/det_20/det_{name}.json", f"{folder}/labels/bdd100k_labels_images_{name}.json"]
        file = next((root / one for one in tried if (root / one).is_file()), None)
        if file is None:
            raise UserError(f"there is no {' or '.join(str(root / one) for one in tried)}: get the labels, too")
        where = f"{folder}/images/100k/{name}"
        there = set(contents(root / where, where, PassedOver())[0])
        for image, boxes in _kept_frames(root, f"{domain} {name}", file, only):
            if image not in there:
                raise UserError(f"{file} lists {image}, which is not in {root / where}")
            shown = [Box(word, tuple(corners), crowd, place) for word, corners, crowd, place in boxes]
            found.append(Annotated(f"{where}/{image}", str(file), None, shown, part))
    return Listed.of(found)


def _kept_frames(root: Path, name: str, file: Path, only: Mapping[str, str]) -> Any:
    """What :func:`_frames` finds. Half a gigabyte of JSON is read once."""
    marks = [file_mark(root, file.relative_to(root).as_posix())]
    return look_once("boxes", [str(root.resolve()), name], marks, lambda _: _frames(file, only), f"file, {file}")[0]


def _frames(path: Path, only: Mapping[str, str]) -> list[tuple[str, list[Box]]]:
    given = read_json(path, "the annotation file")
    if not isinstance(given, list) or not all(isinstance(one, Mapping) and "name" in one for one in given):
        raise UserError(f"{path} is not in Scalabel's format: it must be a list of images with a name each")
    found = []
    for frame in given:
        attributes = frame.get("attributes") or {}
        if any(attributes.get(key) != value for key, value in only.items()):
            continue
        labels = [label for label in frame.get("labels") or () if label.get("box2d")]
        boxes = [
            Box(
                str(label.get("category")),
                tuple(number(label["box2d"].get(key)) for key in ("x1", "y1", "x2", "y2")),  # type: ignore[arg-type]
                bool((label.get("attributes") or {}).get("crowd")),
                f"label {label.get('id', '')} of {frame['name']}",
            )
            for label in labels
        ]
        found.append((str(frame["name"]), boxes))
    return found


_READERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Listed]] = {
    "instances": _instances,
    "voc": _voc,
    "kitti": _kitti,
    "penn": _penn,
    "scalabel": _scalabel,
}


def common_classes(domains: Sequence[str]) -> list[str]:
    """The classes that all domains have, in the order of the first one.

    Raises:
        UserError: if they have none in common.
    """
    first, *others = (layouts()[name]["classes"] for name in domains)
    found = [name for name in first if all(name in other for other in others)]
    if not found:
        raise UserError(f"{' and '.join(domains)} have no class in common")
    return found
