"""The Global Wheat Head Dataset of 2021, each acquisition a domain."""

import csv
from pathlib import Path
from typing import Any

from dafw.data.entries import PassedOver
from dafw.data.manifest import contents
from dafw.data.trained import trained_model
from dafw.errors import UserError, choose
from dafw.files import reading, user_path
from datamodules.box_files import number
from datamodules.box_folders import BoxFolders
from datamodules.box_layouts import find_boxes
from datamodules.box_listing import Annotated, Box, Listed

PARTS = ("train", "val", "test")
#: The acquisitions in the order of their numbers in WILDS' files, which have numbers in place of names.
_NUMBERED = {
    **{"Arvalis": 12, "ETHZ": 1, "Inrae": 1, "NMBU": 2, "Rres": 1, "ULiège-GxABT": 1, "Utokyo": 3, "Ukyoto": 1},
    **{"NAU": 3, "ARC": 1, "UQ": 11, "Terraref": 2, "KSU": 4, "CIMMYT": 3, "Usask": 1},
}
ACQUISITIONS = tuple(f"{place}_{number}" for place, count in _NUMBERED.items() for number in range(1, count + 1))


class GlobalWheat(BoxFolders):
    """Wheat heads in fields of twelve countries: GWHD 2021, with the official split.

    David et al. 2021, https://arxiv.org/abs/2105.07660. Each acquisition, as ``Arvalis_1``, is a domain. The names
    ``train``, ``val`` and ``test`` stand for all acquisitions of that part of the official split: generalisation trains
    on ``train`` and is tested on ``test``. A target's test is all of its images.

    The folder ``root`` is that of the archive, or the one that holds it. It has the folder ``images``, and three lists
    ``competition_<part>.csv`` or ``official_<part>.csv``, with the columns ``image_name``, ``BoxesString`` and
    ``domain``.

    Args:
        source: labelled acquisitions, or ``train``, ``val`` or ``test``.
        target: acquisitions to adapt to and to test on, or one of these words.
        root: the folder.
        transductive: a target's training and test splits are both all of its images, unlabelled in training.
        options: see :class:`datamodules.box_folders.BoxFolders`.

    Raises:
        UserError: if a file is missing or wrong, or an acquisition is unknown.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        transductive: bool = True,
        **options: Any,
    ) -> None:
        if "classes" in options:
            raise UserError("data.classes has no part in GlobalWheat, which has one class")
        model = trained_model()
        self._found = read_wheat(user_path(root)) if model is None or model.with_targets else {}
        super().__init__(
            self._expanded(source),
            self._expanded(target),
            root=root,
            classes=["wheat head"],
            transductive=transductive,
            **options,
        )

    def _expanded(self, names: str | list[str]) -> list[str]:
        """The acquisitions that words stand for, among those of the files."""
        parts = {part: [name for name, one in self._found.items() if part in one.parts] for part in PARTS}
        given = [names] if isinstance(names, str) else names
        return [name for one in given for name in parts.get(one) or [one]]

    def _domains(self) -> tuple[str, ...]:
        return tuple(self._found)

    def _list(self, name: str) -> Listed:
        listed = self._found[choose("domain", name, self._found)]
        return Listed.of([one._replace(part="all") for one in listed.annotated or ()], ["wheat head"])


def read_wheat(root: Path) -> dict[str, Listed]:
    """The acquisitions of the lists in a folder by name. The part of a sample is that of its list.

    Raises:
        UserError: naming the file, if it is missing or has another form, or lists an image that is not there.
    """
    with reading("the folder", root):
        if not root.is_dir():
            raise UserError(f"the folder {root} (data.root) does not exist")
    home = root if (root / "images").is_dir() else find_boxes(root, "gwhd_2021")
    if home is None:
        raise UserError(f"{root} holds no folder images and no folder gwhd_2021: see dafw data check gwhd_2021")
    inside = "images" if home == root else f"{home.name}/images"
    there = set(contents(home / "images", inside, PassedOver())[0])
    found: dict[str, list[Annotated]] = {}
    for part in PARTS:
        tried = [home / f"{kind}_{part}.csv" for kind in ("competition", "official")]
        path = next((one for one in tried if one.is_file()), None)
        if path is None:
            raise UserError(f"there is no {' or '.join(map(str, tried))}: get the lists, too")
        with reading("the list", path), path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = {"image_name", "BoxesString", "domain"}
            if not columns <= set(rows.fieldnames or ()):
                raise UserError(f"{path} must have the columns image_name, BoxesString and domain")
            for line, row in enumerate(rows, 2):
                if row["image_name"] not in there:
                    raise UserError(f"{path}, line {line}: {row['image_name']} is not in {home / 'images'}")
                boxes = _boxes(row["BoxesString"] or "", f"{path}, line {line}", f"line {line}")
                one = Annotated(f"{inside}/{row['image_name']}", str(path), None, boxes, part)
                found.setdefault(_name(row["domain"] or "", f"{path}, line {line}"), []).append(one)
    return {name: Listed.of(annotated, ["wheat head"]) for name, annotated in found.items()}


def _name(domain: str, where: str) -> str:
    """The name of an acquisition, which may be given by its number."""
    name = domain.strip()
    if name.isdigit() and int(name) < len(ACQUISITIONS):
        return ACQUISITIONS[int(name)]
    if not name or name in PARTS or name.isdigit():
        raise UserError(f'{where}: "{name}" is no acquisition')
    return name


def _boxes(text: str, where: str, line: str) -> list[Box]:
    """Boxes of ``x1 y1 x2 y2;x1 y1 x2 y2``; none of ``no_box``."""
    if text.strip() in ("no_box", ""):
        return []
    boxes = []
    for place, given in enumerate(text.split(";"), 1):
        corners = tuple(map(number, given.split()))
        if len(corners) != 4:
            raise UserError(f'{where}: box {place} must be four numbers, not "{given}"')
        boxes.append(Box("wheat head", corners, False, f"{line}, box {place}"))
    return boxes
