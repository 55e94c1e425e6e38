"""The base of datamodules whose boxes come from files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.augment import Word
from dafw.data.boxes import BoxLabels
from dafw.data.dense import DenseRows, scale_pixels
from dafw.data.domain import Domain
from dafw.data.images import ImageOrPath, as_item, as_rgb
from dafw.data.mask_facts import find_facts
from dafw.data.readers import ImageFiles, image_size
from dafw.data.roles import Split
from dafw.data.scaling import Size, scaled_size
from dafw.data.trained import known_domains, list_domains
from dafw.errors import UserError, choose, nearest
from dafw.files import user_path
from dafw.names import one_spelling
from datamodules.box_listing import Checked, Listed, check_boxes
from datamodules.boxes import BoxDomains
from datamodules.splits import SHARES, check_shares, hashed_split, place


class BoxFolders(BoxDomains):
    """What datamodules of files with boxes share; a subclass says which domains there are, and lists one.

    Images may differ in size. ``size`` scales them with their boxes. An image without a box is a sample like others, in
    training and in the test. Boxes of a crowd (COCO) and difficult ones (VOC) train nothing; outside of training they
    are marked ``crowd``, and no metric counts them.

    Where the data has no official division, a hash of each image's path divides it as ``split`` says. Where there is an
    official training set alone besides the test, a hash divides it into training and validation by the first two
    shares.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder of the domains.
        classes: names of the classes in their order; boxes of other classes are left out. ``None``: those that have a
            box in a source. Then no target may have a box of another class.
        rename: by a name in the annotations the name of the class that it stands for, in all domains.
        size: pixels of the short side, or height and width, that images are scaled to; a mapping gives each domain its
            own; ``None`` leaves them as they are.
        on_bad_box: ``fail`` stops at the first box without area, outside of its image, or with a coordinate that is no
            number; ``skip`` leaves such boxes out, and says how many they are.
        cache: keep scaled images in memory-mapped files, so that each is decoded once.
        split: shares of training, validation and test.
        split_seed: number of the division; each seed gives another one.
        transductive: a target's training and test splits are both all of its images, unlabelled in training.
        augment: ``none``, ``weak`` or ``strong``, see :mod:`dafw.data.box_transforms`, or transforms of torchvision v2.
        batch_size: samples a step from each source domain, over all ranks together.
        eval_batch_size: samples a batch in evaluation, on each rank.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: if a folder, a file, an image, a box or an argument is wrong.
    """

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        classes: list[str] | None = None,
        rename: dict[str, str] | None = None,
        size: Size | dict[str, Size] | None = None,
        on_bad_box: Literal["fail", "skip"] = "fail",
        cache: bool = False,
        split: tuple[float, float, float] = SHARES,
        split_seed: int = 0,
        transductive: bool = False,
        augment: Word | Callable[[Any], Any] | None = "weak",
        batch_size: int = 8,
        eval_batch_size: int = 8,
        **base: Any,
    ) -> None:
        self.root, self.rename, self.size = user_path(root), dict(rename or {}), size
        self.on_bad_box = choose("data.on_bad_box", on_bad_box, ("fail", "skip"))
        self.cache, self.transductive = cache, transductive
        self.split, self.split_seed = check_shares(split), split_seed
        if any(one is not None and np.min(one) < 1 for one in (size.values() if isinstance(size, dict) else [size])):
            raise UserError("data.size must be at least 1 pixel")
        self.domain_names = known_domains(self._domains, source, target)
        super().__init__(
            source, target, augment=augment, batch_size=batch_size, eval_batch_size=eval_batch_size, **base
        )
        if isinstance(size, dict):
            for name in size:
                choose("domain of data.size", name, (*self.source, *self.target))
        if isinstance(self.augment, str):
            self.view(self.augment, "data.augment")  # which knows the words
        self._listed = self._list_all()
        known = self.made_for.classes if self.made_for is not None else ()
        self.class_names = tuple(known) or self._find_classes(classes)
        self._compare_classes(classes is not None or bool(known))
        self._known_sizes: dict[str, NDArray[np.int64]] = {}
        self._rows: dict[str, tuple[DenseRows, BoxLabels | None]] = {}
        self._checked: dict[str, Checked] = {}
        self._splits: dict[str, NDArray[np.str_]] = {}

    # ---- what is there

    def _domains(self) -> tuple[str, ...]:
        """The names of all domains in the root."""
        raise NotImplementedError

    def _list(self, name: str) -> Listed:
        """The samples of a domain."""
        raise NotImplementedError

    def _annotations(self, name: str) -> str:
        """Where the annotations of a domain are looked for, for messages."""
        return "its annotations"

    def _list_all(self) -> dict[str, Listed]:
        """The samples of each domain."""
        found = list_domains(lambda name: self._list(name).renamed(self.rename), self.source, self.target)
        if self.made_for is None and (bare := [name for name in self.source if found[name].annotated is None]):
            raise UserError(f"{bare[0]} is a source and has no labels: there is no {self._annotations(bare[0])}")
        return found

    def _find_classes(self, given: list[str] | None) -> tuple[str, ...]:
        if given is not None:
            names = tuple(map(one_spelling, given))
            if not names or len(set(names)) < len(names):
                raise UserError(f"data.classes must name at least one class, and each once, not {list(names)}")
            return names
        known = [self._listed[source] for source in self.source if source in self._listed]
        present = [name for listed in known for name in listed.with_boxes()]
        if not present:
            raise UserError(f"{', '.join(self.source)} has no labelled box: a source needs annotations with boxes")
        return tuple(dict.fromkeys(present))

    def _compare_classes(self, named: bool) -> None:
        """Compares the classes of the annotations of each domain with those of the task.

        Raises:
            UserError: naming a class that a domain lacks, with the nearest name; one that is of the target alone; or a
                domain whose annotations have no box of a class.
        """
        for name, listed in self._listed.items():
            if listed.annotated is None:
                continue
            present = listed.with_boxes()
            for label in self.class_names:
                if label not in listed.names:
                    others = [one for one in listed.names if one not in self.class_names]
                    raise UserError(
                        f'the annotations of {name} have no class "{label}": {_guess(label, others)}rename theirs with '
                        "data.rename, or name the classes that all domains have in data.classes"
                    )
            if not set(present) & set(self.class_names):
                raise UserError(
                    f"the annotations of {name} have no box of {', '.join(self.class_names)}: a target without labels "
                    "needs no annotations"
                )
            if not named and (extra := [one for one in present if one not in self.class_names]):
                raise UserError(
                    f'class "{extra[0]}" has boxes in {name} and none in {", ".join(self.source)}: '
                    f"{_guess(extra[0], self.class_names)}rename it with data.rename, or name the classes of the task "
                    "in data.classes"
                )

    def _scale(self, name: str) -> Size | None:
        return self.size.get(name) if isinstance(self.size, dict) else self.size

    def checked(self, name: str) -> Checked:
        """The boxes of a labelled domain, compared with its images.

        Raises:
            UserError: for the first image or box that is wrong.
        """
        if name not in self._checked:
            listed, skip = self._listed[name], self.on_bad_box == "skip"
            self._checked[name] = check_boxes(listed, self.class_names, self._sizes(name), self.root, skip)
            self._listed[name] = replace(listed, annotated=())  # a million boxes take much more memory than arrays
        return self._checked[name]

    def _sizes(self, name: str) -> NDArray[np.int64]:
        """Height and width of each image in its file, (n, 2)."""
        if name not in self._known_sizes:
            images = ImageFiles(self._listed[name].images, self.root)
            self._known_sizes[name] = find_facts(name, images, None, "boxes", self.root).sizes
        return self._known_sizes[name]

    # ---- what is served

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 images (3, h, w), and mappings with ``boxes``, ``labels`` and ``crowd``.

        Raises:
            UserError: for a domain that is neither source nor target, an empty split, a training split of a source
                without a box, or what :meth:`checked` finds.
        """
        choose("split", split, get_args(Split))
        choose("domain", name, self._listed)
        listed, indices = self._listed[name], self._indices(name, split)
        if not len(indices):
            raise UserError(
                f"none of the {len(listed.images)} images of {name} is in its {split} split: change data.split"
            )
        images, boxes = self._served_rows(name)
        labels = None if boxes is None else boxes.subset(indices)
        if labels is not None and split == "train":
            labels = labels.without_crowd()
            if name in self.labelled and not len(labels.labels):
                raise UserError(f"the {len(indices)} images in the train split of {name} have no labelled box")
        served = Domain(name, images, None, listed.images).subset(indices)
        return replace(served, labels=labels)

    def _served_rows(self, name: str) -> tuple[DenseRows, BoxLabels | None]:
        """The images of a domain and their boxes, both scaled."""
        if name not in self._rows:
            sizes, labelled = self._sizes(name), self._listed[name].annotated is not None
            found = self.checked(name) if labelled else None  # before the images are decoded
            images = ImageFiles(self._listed[name].images, self.root)
            rows = DenseRows(images, sizes, self._scale(name), cache=name if self.cache else None)
            self._rows[name] = rows, None if found is None else found.scaled(rows.sizes / sizes)
        return self._rows[name]

    def _indices(self, name: str, split: Split) -> NDArray[np.int64]:
        listed = self._listed[name]
        if self.transductive and name in self.target and split != "val":
            return np.arange(len(listed.images))
        if name not in self._splits:
            divided = "val" in listed.parts
            parts = zip(listed.images, listed.parts, strict=True)
            self._splits[name] = np.asarray([self._split_of(path, part, divided) for path, part in parts])
        return np.flatnonzero(self._splits[name] == split)

    def _split_of(self, path: str, part: str, divided: bool) -> str:
        if part == "all":
            return hashed_split(self._key(path), self.split, self.split_seed)
        if part != "train" or divided:
            return part
        share = self.split[0] / max(self.split[0] + self.split[1], 1e-12)
        return "train" if place(self._key(path), self.split_seed) < share else "val"

    def _key(self, path: str) -> str:
        """What decides the split of an image: images with one key are in one split."""
        return path

    def evaluation_transform(self) -> Callable[[ImageOrPath], Tensor]:
        """From a file or an image of Pillow to uint8 (3, h, w), scaled as images of the first target are.

        See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        size = self._scale(self.target[0])

        def prepare(image: ImageOrPath) -> Tensor:
            pixels = np.array(as_rgb(image))
            return as_item(scale_pixels(pixels, scaled_size(pixels.shape[:2], size)))

        return prepare

    def original_size(self, sample: str) -> tuple[int, int] | None:
        """Height and width of the file of a sample. Its image is scaled from all of the file, so boxes scale back."""
        path = self.root / sample
        return image_size(path) if path.is_file() else None

    def prepare_data(self) -> None:
        """Looks at all images and boxes, and builds the caches, in one process of each machine."""
        for name in self._listed:
            self._served_rows(name)

    def in_short(self) -> list[str]:
        """For each domain how many images and boxes it has, what was left out, and the sizes of its splits."""
        lines = []
        for name, listed in self._listed.items():
            said = [f"{name}: {_count(len(listed.images), 'image')}"]
            if listed.annotated is None:
                said.append("no labels")
            else:
                found = self.checked(name)
                crowd = int(found.boxes.crowd.sum()) if found.boxes.crowd is not None else 0
                empty = int((found.boxes.without_crowd().counts == 0).sum())
                boxes, classes = len(found.boxes.labels) - crowd, len(self.class_names)
                said.append(f"{_count(boxes, 'box', 'es')} of {_count(classes, 'class', 'es')}")
                said += [f"{crowd} crowd or difficult"] if crowd else []
                said += [f"{_count(empty, 'image')} without a box"] if empty else []
                said += [f"left out: {found.bad}"] if found.bad else []
                if found.others:
                    names = ", ".join(f"{count} {one}" for one, count in found.others.most_common(8))
                    said.append(f"boxes of other classes: {names}")
            counts = ", ".join(f"{len(self._indices(name, split))} {split}" for split in get_args(Split))
            over = f"; passed over: {listed.passed_over}" if listed.passed_over else ""
            lines.append(f"{', '.join(said)}; {counts}{over}")
        return lines


def _guess(name: str, others: Sequence[str]) -> str:
    """The nearest of other names as a question; empty if none is near."""
    said = nearest(name, others)
    return f"{said} " if said else ""


def _count(number: int, what: str, ending: str = "s") -> str:
    return f"{number} {what}{ending * (number != 1)}"
