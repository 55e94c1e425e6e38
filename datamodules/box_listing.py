"""What annotation files say of images and boxes, before it is compared with the images."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dafw.data.boxes import BoxLabels
from dafw.data.cache import file_mark
from dafw.data.entries import PassedOver
from dafw.data.looking import look_once
from dafw.data.manifest import subfolders
from dafw.errors import UserError
from dafw.files import reading
from dafw.names import one_spelling

_ROUNDING = 1.0
"""Pixels by which a box may leave its image: it is cut then, since files round and count pixels in several ways."""
_KINDS = {
    "has a coordinate that is not a number": "boxes with a coordinate that is not a number",
    "has no area": "boxes without area",
    "reaches outside": "boxes that reach outside of their image",
    "lies outside": "boxes outside of their image",
}
"""What is wrong with one box, and what boxes of that kind are called."""
ANY = "*"
"""The name of a box that hides objects of any class."""


class Box(NamedTuple):
    """A box as its file has it.

    Attributes:
        name: of its class, or :data:`ANY`.
        corners: x1, y1, x2, y2 in pixels, where the corner of the first pixel is (0, 0); nan for what is no number.
        crowd: whether no metric counts it as missed or as wrong.
        place: where it is in its file, as in ``annotation 7``.
    """

    name: str
    corners: tuple[float, float, float, float]
    crowd: bool
    place: str


class Annotated(NamedTuple):
    """An image with its boxes.

    Attributes:
        image: its path.
        file: path of the file that says so.
        size: height and width as that file says; ``None`` if it does not.
        boxes: the boxes.
        part: of the data: ``train``, ``val``, ``test``, or ``all`` if nobody has divided it.
    """

    image: str
    file: str
    size: tuple[int, int] | None
    boxes: Sequence[Box]
    part: str = "all"


@dataclass(frozen=True)
class Listed:
    """The samples of one domain.

    Args:
        images: paths of the n images, relative to the root.
        parts: for each its part, see :class:`Annotated`.
        annotated: for each its boxes; ``None`` for a domain without labels.
        names: the classes that the files name, also those without a box.
        passed_over: what lies beside the images and is none.
    """

    images: Sequence[str]
    parts: Sequence[str]
    annotated: Sequence[Annotated] | None
    names: tuple[str, ...] = ()
    passed_over: PassedOver | None = None

    @classmethod
    def of(cls, found: Iterable[Annotated], names: Iterable[str] = (), passed: PassedOver | None = None) -> "Listed":
        """The samples of annotated images, whose classes are named too."""
        annotated = list(found)
        every = dict.fromkeys([*names, *(box.name for one in annotated for box in one.boxes if box.name != ANY)])
        return cls([one.image for one in annotated], [one.part for one in annotated], annotated, tuple(every), passed)

    def renamed(self, rename: Mapping[str, str]) -> "Listed":
        """The same samples, with other names for classes: by the name in the files the name of the class."""
        if self.annotated is None or not rename:
            return self
        change = {one_spelling(name): one_spelling(other) for name, other in rename.items()}

        def of(name: str) -> str:
            return change.get(name, name)

        annotated = [
            one._replace(boxes=[box._replace(name=of(box.name)) for box in one.boxes]) for one in self.annotated
        ]
        return replace(self, annotated=annotated, names=tuple(dict.fromkeys(map(of, self.names))))

    def with_boxes(self) -> list[str]:
        """The classes that have a box, in the order of :attr:`names`."""
        found = {box.name for one in self.annotated or () for box in one.boxes if not box.crowd}
        return [name for name in self.names if name in found]


@dataclass(frozen=True)
class Checked:
    """The boxes of a domain's images, in pixels of the files.

    Attributes:
        boxes: of all images. ``crowd`` is always there.
        bad: how many boxes of each kind were left out since something is wrong with them, and the first of each.
        others: how many boxes of each other class were left out.
    """

    boxes: BoxLabels
    bad: PassedOver
    others: Counter[str]

    def scaled(self, scales: NDArray[np.float64]) -> BoxLabels:
        """The boxes in scaled images.

        Args:
            scales: (n, 2), how many times as high and as wide each image becomes.
        """
        by_box = np.repeat(scales, self.boxes.counts, 0)[:, [1, 0, 1, 0]]
        return replace(self.boxes, boxes=(self.boxes.boxes * by_box).astype(np.float32))


def check_boxes(listed: Listed, classes: Sequence[str], sizes: NDArray[np.int64], root: Path, skip: bool) -> Checked:
    """Compares the boxes of a domain with its images, and keeps those of the classes.

    Args:
        listed: the samples, which are annotated.
        classes: names of the classes, in the order of their numbers.
        sizes: (n, 2), height and width of each image.
        root: what the images' paths are relative to.
        skip: leave out boxes that are wrong, instead of failing.

    Raises:
        UserError: naming the file and the box, for the first box that is wrong; naming the image, for one of another
            size than its file says.
    """
    assert listed.annotated is not None
    number = {name: code for code, name in enumerate(classes)}
    bad, others = PassedOver(), Counter[str]()
    corners, labels, crowd, counts = list[Sequence[float]](), list[int](), list[bool](), list[int]()
    for one, (height, width) in zip(listed.annotated, sizes.tolist(), strict=True):
        if one.size is not None and one.size != (height, width):
            raise UserError(
                f"the image {root / one.image} is {height}x{width} (height x width) and {one.file} says "
                f"{one.size[0]}x{one.size[1]}: one of them is of another image"
            )
        before = len(labels)
        for box in one.boxes:
            codes = range(len(classes)) if box.name == ANY else [number[box.name]] if box.name in number else []
            if not codes:
                others[box.name] += 1
                continue
            kind = _wrong(box.corners, height, width)
            if kind and not skip:
                shown = ", ".join(f"{side:g}" for side in box.corners)
                raise UserError(
                    f"{one.file}, {box.place}: the box with the corners {shown} {kind}, and the image {one.image} is "
                    f"{height}x{width} (height x width): mend it, or leave such boxes out with --data.on_bad_box skip"
                )
            if kind:
                bad.add(_KINDS[kind], f"{one.file}, {box.place}")
                continue
            x1, y1, x2, y2 = box.corners
            for code in codes:
                corners.append((max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)))
                labels.append(code)
                crowd.append(box.crowd)
        counts.append(len(labels) - before)
    flags = np.asarray(crowd, np.bool_)
    boxes = BoxLabels.of_counts(np.asarray(corners), np.asarray(labels), counts, flags)
    return Checked(boxes, bad, others)


def _wrong(corners: Sequence[float], height: int, width: int) -> str:
    """What is wrong with a box; empty if nothing is."""
    if not all(map(math.isfinite, corners)):
        return "has a coordinate that is not a number"
    x1, y1, x2, y2 = corners
    if not (x1 < x2 and y1 < y2):
        return "has no area"
    if min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
        return "reaches outside"
    if not (min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0)):
        return "lies outside"
    return ""


def read_each(
    what: str,
    root: Path,
    name: str,
    pairs: Sequence[tuple[str, str, str]],
    read: Callable[[Path], tuple[tuple[int, int] | None, list[Box]]],
) -> list[Annotated]:
    """Images with a file of annotations each. Only files that are new or have changed are read.

    Args:
        what: kind of the files.
        root: what paths are relative to.
        name: of the domain.
        pairs: for each image its path, that of its file, and its part.
        read: from the path of a file to the size that it says and its boxes.

    Raises:
        UserError: if a file does not exist, or what ``read`` raises.
    """

    def look(index: int) -> list[Any]:
        size, boxes = read(root / pairs[index][1])
        return [size, boxes]

    marks = [file_mark(root, file) for _, file, _ in pairs]
    found = look_once("boxes", [str(root.resolve()), name, what], marks, look, f"files of {what}")
    return [
        Annotated(
            image,
            str(root / file),
            None if size is None else (int(size[0]), int(size[1])),
            [Box(str(word), tuple(corners), bool(crowd), str(place)) for word, corners, crowd, place in boxes],
            part,
        )
        for (image, file, part), (size, boxes) in zip(pairs, found, strict=True)
    ]


def domain_folders(root: Path) -> tuple[str, ...]:
    """The names of the folders in the root.

    Raises:
        UserError: if there is no root, or nothing in it.
    """
    if not root.is_dir():
        raise UserError(f"the folder {root} (data.root) does not exist")
    names = tuple(folder.name for folder in subfolders(root))
    if not names:
        raise UserError(f"the folder {root} (data.root) holds no domain folders")
    return names


def image_folder(root: Path, folder: str, inside: Sequence[str]) -> str:
    """The folder of a domain's images, relative to the root.

    Args:
        root: what paths are relative to.
        folder: of the domain.
        inside: names of folders in it that may hold the images; if there is none of them, ``folder`` does.

    Raises:
        UserError: if there is no such folder.
    """
    with reading("the folder", root / folder):
        if not (root / folder).is_dir():
            raise UserError(f"the domain folder {root / folder} does not exist")
        return next((f"{folder}/{name}" for name in inside if (root / folder / name).is_dir()), folder)


def unlabelled(folder: Path, images: list[str], passed: PassedOver) -> Listed:
    """The samples of a domain without annotations.

    Raises:
        UserError: naming the folder, if it holds no images.
    """
    if not images:
        raise UserError(f"the domain folder {folder} holds no images{f': it holds {passed}' if passed else ''}")
    return Listed(images, ["all"] * len(images), None, (), passed)
