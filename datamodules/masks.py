"""Folders of images with masks, which hold one class for each pixel."""

from collections.abc import Callable
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from dafw.data.augment import Word
from dafw.data.class_map import ClassMap, Value
from dafw.data.dense import DenseRows, RandomWindow
from dafw.data.domain import Domain
from dafw.data.manifest import subfolders
from dafw.data.mask_facts import Facts, find_facts
from dafw.data.preparing import Whole
from dafw.data.readers import Volumes, image_size
from dafw.data.roles import Split
from dafw.data.scaling import Size, scaled_size
from dafw.data.trained import known_domains, list_domains
from dafw.errors import UserError, choose
from dafw.files import user_path
from datamodules.base import DomainDataModule
from datamodules.mask_listing import Listed, list_masks
from datamodules.splits import SHARES, Protocol, check_protocol, check_shares, in_protocol, places

MAP = "classes.yaml"
"""Name of the file that says what the values of masks mean, in the root or in a domain's folder."""


class MaskFolders(DomainDataModule):
    """Images in ``root/<domain>/images`` with masks of the same names in ``root/<domain>/masks``.

    A mask is a PNG file of numbers (grey, a palette, or equal channels) or of colours. ``classes`` says what they mean.
    A target needs no folder ``masks``; its images may lie in ``root/<domain>`` itself. It trains and predicts, and has
    no metrics. Before the first step every mask is read once, and compared with its image and with the classes; what
    was found is kept for the next run.

    Medical volumes are files ``root/<domain>/*.npz`` with ``images`` (slices, height, width) or (slices, height, width,
    3), ``masks`` (slices, height, width) and, if several volumes are of one, the name of the ``subject``. All slices of
    a subject are in one split, and Dice is computed by volume too: all slices of a subject are one volume.

    Images may differ in size, and need not be square. ``size`` scales them, masks by the nearest pixel. Training takes
    crops of ``crop``; evaluation takes whole images.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder of the domains.
        classes: names of the classes in the order of their numbers from 0 on; or a YAML file that maps numbers or
            colours to names, see :meth:`dafw.data.class_map.ClassMap.read`; ``None``: ``classes.yaml`` in the
            domain's folder, or in ``root``.
        ignored: numbers or colours of pixels without a label, unless the map names them.
        size: pixels of the short side, or height and width, that images are scaled to; a mapping gives each domain its
            own; ``None`` leaves them as they are.
        crop: side, or height and width, of the crops of training; ``None``: whole images.
        augment: what follows the crop: ``none``; ``crop`` mirrors every other crop; ``flip_crop`` takes 8 to 100 % of
            the area, scaled to a square crop, instead; or transforms of torchvision v2.
        image_suffix: what an image's name has behind the name that it shares with its mask, before the ending.
        mask_suffix: the same of a mask, as in ``_mask``.
        subjects: all images of one folder inside ``images`` are of one subject, as the slices of a volume are.
        cache: keep scaled images and masks in memory-mapped files, so that each is decoded once, and a crop reads its
            own part of the file alone.
        split: shares of training, validation and test.
        protocol: see :class:`datamodules.folder.ImageFolderDomains`.
        split_seed: number of the division; each seed gives another one.
        transductive: a target's training and test splits are both all of its images, unlabelled in training.
        batch_size: samples a step from each source domain, over all ranks together.
        eval_batch_size: samples a batch in evaluation, on each rank.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: if a folder, an image, a mask, the map of classes or an argument is wrong.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        classes: list[str] | str | None = None,
        ignored: Value | list[Value] = 255,
        size: Size | dict[str, Size] | None = None,
        crop: Size | None = None,
        augment: Word | Callable[[Any], Any] | None = "none",
        image_suffix: str = "",
        mask_suffix: str = "",
        subjects: bool = False,
        cache: bool = False,
        split: tuple[float, float, float] = SHARES,
        protocol: Protocol = "shares",
        split_seed: int = 0,
        transductive: bool = False,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        **base: Any,
    ) -> None:
        self.root = user_path(root)
        self.classes, self.ignored = classes, ignored if isinstance(ignored, list) else [ignored]
        self.size, self.crop = size, crop
        self.suffixes, self.subjects, self.cache = (image_suffix, mask_suffix), subjects, cache
        self.split = check_shares(split)
        self.protocol, self.split_seed = check_protocol(protocol, split_seed), split_seed
        if self.protocol != "shares" and transductive:
            raise UserError(f"data.transductive has no part in data.protocol {self.protocol}")
        self.transductive = transductive
        self.holds_out_source = self.protocol != "office"
        for key, given in (("size", list(size.values()) if isinstance(size, dict) else [size]), ("crop", [crop])):
            if any(one is not None and np.min(one) < 1 for one in given):
                raise UserError(f"data.{key} must be at least 1 pixel")
        self.domain_names = known_domains(self._domains, source, target)
        super().__init__(
            source, target, augment=augment, batch_size=batch_size, eval_batch_size=eval_batch_size, **base
        )
        if isinstance(size, dict):
            for name in size:
                choose("domain of data.size", name, (*self.source, *self.target))
        self._check_augment()
        self._maps: dict[str, ClassMap] = {}
        self._listed = list_domains(self._list, self.source, self.target)
        known = self.made_for.classes if self.made_for is not None else ()
        if not known and not self._maps:
            raise UserError(f"none of the domains has masks in {self.root}: a source needs the folder masks")
        self.class_names = tuple(known) or next(iter(self._maps.values())).names
        self._maps = {name: one.reordered(self.class_names, name) for name, one in self._maps.items()}
        self._facts: dict[str, Facts] = {}
        self._rows: dict[str, tuple[DenseRows, DenseRows | None]] = {}

    # ---- what is there

    def _domains(self) -> tuple[str, ...]:
        if not self.root.is_dir():
            raise UserError(f"the folder {self.root} (data.root) does not exist")
        names = [folder.name for folder in subfolders(self.root)]
        if not names:
            raise UserError(f"the folder {self.root} (data.root) holds no domain folders")
        return tuple(names)

    def _list(self, name: str) -> Listed:
        labelled = (self.root / name / "masks").is_dir() or any((self.root / name).glob("*.npz"))
        if labelled:
            self._maps[name] = self._map(name)
        listed = list_masks(self.root, name, self.suffixes, labelled and self._maps[name].colours, self.subjects)
        if listed.masks is None:
            self._maps.pop(name, None)
        elif isinstance(listed.masks, Volumes) and self._maps[name].colours:
            raise UserError(f"{self._maps[name].where} has colours, and the masks of {name} are arrays of numbers")
        return listed

    def _map(self, name: str) -> ClassMap:
        if isinstance(self.classes, list):
            return ClassMap.of_names(self.classes, self.ignored)
        if self.classes is not None:
            return ClassMap.read(user_path(self.classes), self.ignored)
        for path in (self.root / name / MAP, self.root / MAP):
            if path.is_file():
                return ClassMap.read(path, self.ignored)
        raise UserError(f"data.classes must name the classes of the masks, or {self.root / MAP} map numbers to names")

    def _check_augment(self) -> None:
        if not isinstance(self.augment, str):
            return
        if self.augment not in ("crop", "flip_crop"):
            raise UserError(f'data.augment "{self.augment}" is not for masks: give transforms of torchvision v2')
        if self.crop is None or (self.augment == "flip_crop" and self._side(self.crop) is None):
            what = "a square" if self.augment == "flip_crop" else "a"
            raise UserError(f"data.augment {self.augment} needs {what} data.crop")

    def _side(self, size: Any) -> int | None:
        """The side of a square; ``None`` for another form."""
        if isinstance(size, int):
            return size
        return size[0] if size is not None and size[0] == size[1] else None

    def _scale(self, name: str) -> Size | None:
        return self.size.get(name) if isinstance(self.size, dict) else self.size

    def facts(self, name: str) -> Facts:
        """What is in the masks of a domain, which are read if they are new; see :class:`Facts`.

        Raises:
            UserError: naming the file, if an image or a mask is wrong, or smaller than ``crop``.
        """
        if name not in self._facts:
            choose("domain", name, self._listed)
            listed, classes = self._listed[name], self._maps.get(name)
            kind = "colours" if classes is not None and classes.colours else "ids"
            facts = find_facts(name, listed.images, listed.masks, kind, self.root)
            if listed.masks is not None and classes is not None:
                facts.check(listed.images, listed.masks, classes, self.root)
            self._check_crop(name, facts)
            self._facts[name] = facts
        return self._facts[name]

    def _check_crop(self, name: str, facts: Facts) -> None:
        if self.crop is None:
            return
        crop = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        sizes = np.asarray([scaled_size(one, self._scale(name)) for one in facts.sizes.tolist()])
        small = np.flatnonzero((sizes < crop).any(1))
        if len(small):
            first = small[sizes[small].prod(1).argmin()]
            height, width = sizes[first].tolist()
            scaled = " after data.size" if self._scale(name) is not None else ""
            raise UserError(
                f"data.crop {crop[0]}x{crop[1]} is larger than the image "
                f"{self.root / self._listed[name].images.names[first]}, which is {height}x{width}{scaled}"
            )

    def class_pixels(self, name: str, split: Split) -> NDArray[np.int64]:
        """Pixels of each class in each mask of a split, before scaling, (n, K).

        Raises:
            UserError: if the domain has no masks.
        """
        if name not in self._maps:
            raise UserError(f"{name} has no masks")
        return self.facts(name).class_pixels(self._maps[name])[self._indices(name, split)]

    # ---- what is served

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 images (3, h, w) and masks (h, w).

        Raises:
            UserError: for a domain that is neither source nor target, an empty split, one without a labelled pixel, or
                what :meth:`facts` finds.
        """
        choose("split", split, get_args(Split))
        self.facts(name)
        listed, indices = self._listed[name], self._indices(name, split)
        if not len(indices):
            raise UserError(
                f"none of the {len(listed.images.names)} images of {name} is in its {split} split: change "
                f"data.{'split_seed' if self.protocol == 'domainbed' else 'split'}"
            )
        images, masks = self._dense(name)
        if listed.masks is not None and not any(listed.masks.names[index] for index in indices.tolist()):
            masks = None
        if masks is not None and not self.class_pixels(name, split).any():
            raise UserError(f"no pixel of the {len(indices)} masks in the {split} split of {name} has a label")
        if split == "train" and self.crop is not None:
            images, masks = images.windows(), None if masks is None else masks.windows()
        return Domain(name, images, masks, listed.images.names, listed.volumes).subset(indices)

    def _dense(self, name: str) -> tuple[DenseRows, DenseRows | None]:
        if name not in self._rows:
            listed, sizes, size = self._listed[name], self.facts(name).sizes, self._scale(name)
            cached = self.cache or isinstance(listed.images, Volumes)
            files = (name, f"{name}-masks") if cached else (None, None)
            images = DenseRows(listed.images, sizes, size, cache=files[0])
            masks = None
            if listed.masks is not None:
                masks = DenseRows(listed.masks, sizes, size, self._maps[name], files[1])
            self._rows[name] = images, masks
        return self._rows[name]

    def _indices(self, name: str, split: Split) -> NDArray[np.int64]:
        listed = self._listed[name]
        if self.transductive and name in self.target and split != "val":
            return np.arange(len(listed.images.names))
        if listed.splits is not None:
            return np.flatnonzero(np.asarray(listed.splits) == split)
        where = places(listed.images.names if listed.volumes is None else listed.volumes, self.split_seed)
        target = name in self.target
        sides = {"target": target, "reported": target and not self.oracle}
        return np.flatnonzero(in_protocol(self.protocol, where, split, self.split, **sides))

    def augmentation(self) -> Callable[[Any], Any] | None:
        """The crop of training samples and what follows it."""
        from torchvision.transforms import v2

        from dafw.data.transforms import flip_crop

        if self.augment == "flip_crop":
            return flip_crop(cast(int, self._side(self.crop)))
        crop = [] if self.crop is None else [RandomWindow(self.crop)]
        if self.augment is None:
            return v2.Compose(crop) if crop else None
        further = v2.RandomHorizontalFlip() if isinstance(self.augment, str) else self.augment
        return v2.Compose([*crop, further]) if crop else cast(Callable[[Any], Any], further)

    def view(self, name: str) -> Callable[[Any], Any]:
        """The named augmentation, for an extra view of a square crop or image."""
        from dafw.data.transforms import named_view

        side = self._side(self.crop if self.crop is not None else self._scale(self.target[0]))
        if side is None or (self.crop is None and isinstance(self._scale(self.target[0]), int)):
            raise UserError(f'the view "{name}" that the method asks for is square, so it needs a square data.crop')
        return named_view(name, side)

    def evaluation_transform(self) -> Whole:
        """From a file or an image of Pillow to uint8 (3, h, w), scaled as images of the first target are.

        See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        size = self._scale(self.target[0])
        return Whole(size if size is None or isinstance(size, int) else (size[0], size[1]))

    def masks_key(self, domain: Domain) -> Any:
        """Plain values that change whenever a mask of a training domain changes."""
        listed = self._listed[domain.name]
        if listed.masks is None or domain.ids is None:
            return None
        place = {name: index for index, name in enumerate(listed.images.names)}
        marks = [listed.masks.mark(place[one]) for one in domain.ids]
        return [marks, sorted(self._maps[domain.name].codes.items()), self._dense(domain.name)[0].sizes.tolist()]

    def original_size(self, sample: str) -> tuple[int, int] | None:
        """Height and width of the file that a sample was made of; ``None`` for a slice of a volume."""
        path = self.root / sample
        return image_size(path) if path.is_file() else None

    def prepare_data(self) -> None:
        """Reads new masks, checks all, and builds the caches, in one process of each machine."""
        for name in self._listed:
            self.facts(name)
            self._dense(name)

    def in_short(self) -> list[str]:
        """For each domain how many images it has, with or without masks, and how many of them are in each split."""
        lines = []
        for name, listed in self._listed.items():
            counts = ", ".join(f"{len(self._indices(name, split))} {split}" for split in get_args(Split))
            labels = "no masks" if listed.masks is None else f"masks of {len(self.class_names)} classes"
            over = f"; passed over: {listed.passed_over}" if listed.passed_over else ""
            lines.append(f"{name}: {len(listed.images.names)} images, {labels}; {counts}{over}")
        return lines

    def _present(self, name: str) -> set[str] | None:
        return None
