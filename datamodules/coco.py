"""Folders of images with boxes in COCO's format."""

from collections.abc import Sequence
from pathlib import Path

from dafw.data.entries import PassedOver
from dafw.data.numbers import Numbers
from dafw.errors import UserError
from dafw.names import one_spelling
from datamodules.box_files import read_coco, read_ids
from datamodules.box_folders import BoxFolders
from datamodules.box_listing import Annotated, Listed, domain_folders, image_folder, unlabelled
from datamodules.mask_listing import files_below


class CocoDomains(BoxFolders):
    """One JSON file in COCO's format and one folder of images for each domain.

    The images are in ``root/<domain>/images`` or in ``root/<domain>`` itself, and the annotations in
    ``root/<domain>.json`` or ``root/<domain>/annotations.json``; in them ``file_name`` is relative to the folder of the
    images. Files ``root/<domain>_train.json``, ``root/<domain>_test.json`` and perhaps ``root/<domain>_val.json``
    divide a domain. A target without annotations trains and predicts, and has no metrics.

    The arguments are those of :class:`BoxFolders`.
    """

    def _domains(self) -> tuple[str, ...]:
        return domain_folders(self.root)

    def _whole(self, name: str) -> tuple[Path, Path]:
        return self.root / f"{name}.json", self.root / name / "annotations.json"

    def _annotations(self, name: str) -> str:
        return " or ".join(map(str, self._whole(name)))

    def numbers(self, domain: str) -> Numbers | None:
        """The ids of the images and categories in the file of a domain; classes have the names of this data."""
        folder = image_folder(self.root, domain, ("images",))
        read = [read_ids(path, folder) for path in self._given(domain).values()]
        images = {image: number for found, _ in read for image, number in found.items()}
        change = {one_spelling(name): one_spelling(other) for name, other in self.rename.items()}
        classes = {change.get(name, name): number for _, found in read for name, number in found.items()}
        return Numbers(images, classes) if read else None

    def _given(self, name: str) -> dict[str, Path]:
        """The annotation files of a domain by their part of it."""
        files = {part: self.root / f"{name}_{part}.json" for part in ("train", "val", "test")}
        whole = next((path for path in self._whole(name) if path.is_file()), None)
        given = {"all": whole} if whole else {part: path for part, path in files.items() if path.is_file()}
        if given and "all" not in given and not {"train", "test"} <= given.keys():
            lacking = files["train" if "train" not in given else "test"]
            raise UserError(f"{next(iter(given.values()))} is there, and {lacking} is not: give both")
        return given

    def _list(self, name: str) -> Listed:
        folder, passed = image_folder(self.root, name, ("images",)), PassedOver()
        given = self._given(name)
        there = list(files_below(self.root, folder, passed))
        if not given:
            return unlabelled(self.root / folder, there, passed)
        found, names = list[Annotated](), list[str]()
        for part, path in given.items():
            of_part, classes = read_coco(path, folder, part)
            _refuse_missing(self.root, path, [one.image for one in of_part], there)
            found, names = found + of_part, names + classes
        seen = set[str]()
        for one in found:
            if one.image in seen:
                raise UserError(f"{one.file} lists {one.image}, which another part of {name} lists too: leave one out")
            seen.add(one.image)
        for image in there:
            if image not in seen:
                passed.add("images that the annotations do not list", image)
        return Listed.of(found, names, passed)


def _refuse_missing(root: Path, file: Path, listed: Sequence[str], there: Sequence[str]) -> None:
    known = set(there)
    missing = [image for image in listed if image not in known and not (root / image).is_file()]
    if not listed:
        raise UserError(f"{file} lists no images")
    if missing:
        raise UserError(
            f"{file} lists {len(listed)} images, {len(missing)} of which are not there: {root / missing[0]}"
            f"{' first' if len(missing) > 1 else ''}"
        )
