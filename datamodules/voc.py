"""Folders of images with boxes in the format of PASCAL VOC."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dafw.data.entries import PassedOver
from dafw.errors import UserError
from dafw.files import reading
from datamodules.box_files import read_voc
from datamodules.box_folders import BoxFolders
from datamodules.box_listing import Listed, domain_folders, image_folder, read_each, unlabelled
from datamodules.mask_listing import files_below


class VocDomains(BoxFolders):
    """Folders in the layout of PASCAL VOC: ``root/<domain>/JPEGImages`` and ``root/<domain>/Annotations``.

    Image sets in ``ImageSets/Main`` divide a domain: ``test`` is its test, and ``trainval``, or else ``train`` and
    ``val`` together, its training set. If there is no ``test``, the test is ``val``. Images that are in none of them
    are not served. The format counts pixels from 1, see :func:`datamodules.box_files.read_voc`. A target needs its
    images alone, which may lie in ``root/<domain>`` itself.

    The arguments are those of :class:`BoxFolders`.
    """

    def _domains(self) -> tuple[str, ...]:
        return domain_folders(self.root)

    def _annotations(self, name: str) -> str:
        return str(self.root / name / "Annotations")

    def _list(self, name: str) -> Listed:
        return list_voc(self.root, name, name)


def list_voc(root: Path, name: str, folder: str, sets: Mapping[str, Sequence[str]] | None = None) -> Listed:
    """The samples of a folder in the layout of PASCAL VOC.

    Args:
        root: what paths are relative to.
        name: of the domain.
        folder: that holds ``JPEGImages``, relative to ``root``.
        sets: for each part of the data the names of its image sets; ``None``: as :class:`VocDomains` says.

    Raises:
        UserError: naming an image without an annotation file, an annotation file without an image, or what
            :func:`~datamodules.box_files.read_voc` finds.
    """
    images, passed = image_folder(root, folder, ("JPEGImages", "images")), PassedOver()
    there = list(files_below(root, images, passed))
    notes = f"{folder}/Annotations"
    if not (root / notes).is_dir():
        return unlabelled(root / images, there, passed)
    by_stem: dict[str, str] = {}
    for image in there:
        stem = Path(image).relative_to(images).with_suffix("").as_posix()
        if stem in by_stem:
            raise UserError(f"{root / by_stem[stem]} and {root / image} have one annotation file: remove one")
        by_stem[stem] = image
    parts = _image_sets(root / folder / "ImageSets" / "Main", sets)
    chosen = dict.fromkeys(by_stem, "all") if parts is None else parts
    pairs = []
    for stem, part in chosen.items():
        file = f"{notes}/{stem}.xml"
        if stem not in by_stem:
            raise UserError(
                f"{root / folder / 'ImageSets' / 'Main'} lists {stem}, and {root / images} has no such image"
            )
        if not (root / file).is_file():
            raise UserError(
                f"the image {root / by_stem[stem]} has no annotation file {root / file}: add one; it may hold no object"
            )
        pairs.append((by_stem[stem], file, part))
    if parts is None:
        with reading("the folder", root / notes):
            alone = sorted(
                path
                for path in (root / notes).rglob("*.xml")
                if path.relative_to(root / notes).with_suffix("").as_posix() not in by_stem
            )
        if alone:
            raise UserError(f"the annotation file {alone[0]} has no image in {root / images}: add or remove it")
    return Listed.of(read_each("VOC", root, name, pairs, read_voc), (), passed)


def _image_sets(folder: Path, sets: Mapping[str, Sequence[str]] | None) -> dict[str, str] | None:
    """By the stem of an image its part; ``None`` if nothing divides the images."""
    names = {path.stem for path in folder.glob("*.txt")} if folder.is_dir() else set()
    if sets is None:
        train = ["trainval"] if "trainval" in names else ["train"] if "train" in names else []
        if "test" in names:
            train += ["val"] if train == ["train"] and "val" in names else []
            sets = {"train": train, "test": ["test"]}
        elif {"train", "val"} <= names:
            sets = {"train": ["train"], "test": ["val"]}
        else:
            return None
    parts: dict[str, str] = {}
    for part, several in sets.items():
        for one in several:
            path = folder / f"{one}.txt"
            with reading("the image set", path):
                lines = path.read_text(encoding="utf-8").splitlines()
            for stem in [line.split()[0] for line in lines if line.strip()]:
                if parts.setdefault(stem, part) != part:
                    raise UserError(f"{path} lists {stem}, which is in the {parts[stem]} part too: leave one out")
    return parts
