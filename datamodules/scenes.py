"""Street scenes: Cityscapes, Foggy Cityscapes, GTA5, SYNTHIA, ACDC, Dark Zurich and BDD100k."""

from typing import Any, Literal

import numpy as np

from dafw.data.class_map import ClassMap
from dafw.data.dense import DenseRows
from dafw.data.entries import PassedOver
from dafw.data.mask_facts import find_facts
from dafw.data.readers import ImageFiles, MaskFiles
from dafw.data.references import References
from dafw.data.roles import Split
from dafw.data.scaling import Size
from dafw.errors import UserError, choose
from datamodules.mask_listing import Listed
from datamodules.masks import MaskFolders
from datamodules.scene_layouts import FOGS, class_names, find_scene_folder, list_scenes, numbers, scenes
from datamodules.splits import SHARES, check_shares, hashed_split, place

_EIGHT_BITS = 256


class DrivingScenes(MaskFolders):
    """Street scenes of several datasets with the 19 classes of Cityscapes, or the 16 or 13 that SYNTHIA has.

    The folders of the datasets lie side by side in ``root``, each in the layout of its authors, see ``scenes.yaml``;
    ``dafw data list`` says where they come from, and ``dafw data check`` what is missing. Pixels of other classes have
    no label. Where there is an official division, training and validation are nine tenths and a tenth of the official
    training set, by a hash of each path, and the test is what papers report on: the official validation set. ``gta5``
    and ``synthia`` are divided as ``split`` says.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder that holds the folders of the datasets.
        num_classes: 19; 16 leaves out terrain, truck and train; 13 leaves out wall, fence and pole, too.
        fog: density of the fog of ``foggy_cityscapes``.
        split: shares of training, validation and test where there is no official division; the first two divide the
            official training sets.
        options: see :class:`datamodules.masks.MaskFolders`.

    Raises:
        UserError: if a folder or a mask is missing, or an argument is wrong.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        num_classes: Literal[19, 16, 13] = 19,
        fog: Literal["0.005", "0.01", "0.02"] = "0.02",
        size: Size | dict[str, Size] | None = None,
        split: tuple[float, float, float] = SHARES,
        **options: Any,
    ) -> None:
        if num_classes not in scenes()["absent"]:
            raise UserError(f"data.num_classes must be 19, 16 or 13, not {num_classes}")
        for key in ("classes", "ignored", "image_suffix", "mask_suffix", "subjects", "protocol"):
            if key in options:
                raise UserError(f"data.{key} has no part in DrivingScenes")
        self._count, self.fog = num_classes, choose("fog", fog, FOGS)
        check_shares(split)
        super().__init__(source, target, root=root, size=size, split=split, **options)

    def _domains(self) -> tuple[str, ...]:
        if not self.root.is_dir():
            raise UserError(f"the folder {self.root} (data.root) does not exist")
        return tuple(scenes()["domains"])

    def _list(self, name: str) -> Listed:
        folder, passed = find_scene_folder(self.root, name), PassedOver()
        check = f"dafw data check {name} --root {self.root}"
        if folder is None:
            wanted = " or ".join(scenes()["domains"][name]["folders"])
            raise UserError(f"{self.root} (data.root) holds no folder {wanted} with images of {name}: see {check}")
        found = list_scenes(folder, name, self.fog, passed)
        if not found:
            raise UserError(f"{folder} holds no images of {name}: see {check}")
        inside = folder.relative_to(self.root).as_posix()
        images, masks, references = (
            [f"{inside}/{path}" if path else "" for path in paths]
            for paths in zip(*((one.image, one.mask, one.reference) for one in found), strict=True)
        )
        kinds = {one.kind for one in found if one.kind}
        if len(kinds) > 1:
            raise UserError(f"{folder} holds masks of the kinds {' and '.join(sorted(kinds))}: keep one of them")
        if kinds:
            self._maps[name] = self._numbers(kinds.pop())
        splits = [self._split(path, one.part) for path, one in zip(images, found, strict=True)]
        labels = MaskFiles(masks, self.root, colours=False, first=True) if any(masks) else None
        return Listed(ImageFiles(images, self.root), labels, None, splits, passed, references)

    def _numbers(self, kind: str) -> ClassMap:
        known = numbers(kind, self._count)
        others = sorted(set(range(_EIGHT_BITS)) - set(known.values()))
        return ClassMap(((value, name) for name, value in known.items()), others, f"the classes of {kind}").reordered(
            class_names(self._count), kind
        )

    def _split(self, path: str, part: str) -> Split:
        if part == "all":
            return hashed_split(path, self.split, self.split_seed)
        if part == "test":
            return "test"
        share = self.split[0] / max(self.split[0] + self.split[1], 1e-12)
        return "train" if place(path, self.split_seed) < share else "val"

    def references(self, name: str, split: Split) -> References:
        """The images of the same places in another condition.

        Args:
            name: a domain with references: those of ACDC, and Dark Zurich with its list of pairs.
            split: a split of it.

        Raises:
            UserError: if none of its samples has a reference.
        """
        indices = self._indices(name, split)
        paths = [(self._listed[name].references or [""] * len(indices))[index] for index in indices.tolist()]
        known = sorted({path for path in paths if path})
        if not known:
            raise UserError(f"no image in the {split} split of {name} has a reference in {self.root}")
        images, places = ImageFiles(known, self.root), {path: position for position, path in enumerate(known)}
        sizes = find_facts(f"{name}-references-{split}", images, None, "ids", self.root).sizes
        rows = DenseRows(images, sizes, self._scale(name), cache=f"{name}-references" if self.cache else None)
        index = np.asarray([places.get(path, -1) for path in paths], np.int64)
        return References(rows.windows() if split == "train" and self.crop is not None else rows, index)
