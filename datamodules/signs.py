"""Traffic signs: SynSigns, which are rendered, and GTSRB, which are photographs."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dafw.data.augment import Word
from dafw.data.entries import Entries
from dafw.data.scaling import Fit
from dafw.data.strings import Words
from dafw.errors import UserError, choose
from datamodules.benchmarks import _BenchmarkFolders
from datamodules.splits import places

HELD_OUT = 0.1
"""Share of the training images that GTSRB keeps for validation."""
REPORTED = 0.2
"""Share of GTSRB's training images on which the DANN paper tests."""
_SPLITS = ("train", "val", "test")


class Signs(_BenchmarkFolders):
    """Signs: 151,839 images of 43 classes, rendered (SynSigns) and photographed (GTSRB, Stallkamp et al., 2012).

    ``synsigns`` is the folder ``synthetic_data`` with ``train_labelling.txt``. ``gtsrb`` is the folder ``GTSRB`` with
    ``Final_Training/Images/<class>/`` or ``Training/<class>/``, ``Final_Test/Images`` and the table
    ``GT-final_test.csv``. A class is its number in GTSRB.

    GTSRB has thirty images of each sign, taken one after the other; an official split has all of them or none.
    ``gtsrb: paper`` divides the images at random, as Ganin et al., JMLR 17 (2016), did: images of one sign are then on
    both sides.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder that holds the folders of the two.
        size: height and width of the network's input, in pixels.
        resize: height and width before cropping, in pixels.
        fit: ``squash`` scales both sides, as readers of these images do, ``crop`` cuts out the middle.
        augment: augmentation in training; none of its words mirrors a sign.
        split: shares of training, validation and test of ``synsigns``.
        split_seed: number of the division; each seed gives another one.
        gtsrb: ``official`` tests on the official test images, and a tenth of the signs of the training set are for
            validation. ``paper`` takes the training set alone: a fifth of its images are the test, and a tenth of the
            others are for validation.
        options: see :class:`datamodules.folder.ImageFolderDomains`.

    Raises:
        UserError: if a folder, a list or an argument is wrong.
    """

    flips: ClassVar[bool] = False
    domain_names: tuple[str, ...] = ("synsigns", "gtsrb")

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        size: int = 40,
        resize: int = 40,
        fit: Fit = "squash",
        augment: Word | Callable[[Any], Any] | None = "none",
        split: tuple[float, float, float] = (0.9, 0.05, 0.05),
        split_seed: int = 0,
        gtsrb: Literal["official", "paper"] = "official",
        **options: Any,
    ) -> None:
        self.gtsrb = choose("data.gtsrb", gtsrb, ("official", "paper"))
        self.split_seed = split_seed
        super().__init__(
            source,
            target,
            root=root,
            protocol="shares",
            size=size,
            resize=resize,
            fit=fit,
            augment=augment,
            split=split,
            split_seed=split_seed,
            **options,
        )

    def _list(self, name: str, listed: Entries | None) -> Entries:
        entries = super()._list(name, listed)
        if listed is not None or name != "gtsrb":
            return entries
        tested = entries.splits.are("test")
        if self.gtsrb == "paper":
            entries = entries[np.flatnonzero(~tested)]
            if not len(entries):
                raise UserError(f"{self.root} (data.root) holds no training images of GTSRB: get {self._facts().get}")
            where = places(map(_file, entries.paths), self.split_seed)
            held = _later(where, REPORTED), _later(where, REPORTED + HELD_OUT * (1 - REPORTED))
            return _with_splits(entries, np.where(held[0], 2, np.where(held[1], 1, 0)))
        if not tested.any() or tested.all():
            lacks = "training" if tested.any() else "test"
            raise UserError(
                f"{self.root} (data.root) holds no {lacks} images of GTSRB: get {self._facts().get}, or say "
                "--data.gtsrb paper, which needs the training images alone"
            )
        where = places(map(_sign, entries.paths), self.split_seed)
        return _with_splits(entries, np.where(tested, 2, np.where(_later(where, HELD_OUT), 1, 0)))

    def _sized(self, augment: Word | Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        from dafw.data.transforms import named_augmentation

        return named_augmentation(augment, self.size, flip=False) if isinstance(augment, str) else augment

    def view(self, name: str) -> Callable[[Any], Any]:
        """A named augmentation without flips, since a flip can turn one sign into another."""
        from dafw.data.transforms import named_view

        return named_view(name, self.size, flip=False)


def _later(where: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Which samples are in the last ``share`` of their places: (n,) -> (n,)."""
    return where >= 1 - share


def _file(path: str) -> str:
    """The name of an image in every layout: ``class/file``."""
    return "/".join(path.split("/")[-2:])


def _sign(path: str) -> str:
    """The sign that an image shows, ``class/number``: its files end in ``<class>/<number of the sign>_<frame>.ppm``."""
    file = PurePosixPath(path)
    return f"{file.parent.name}/{file.stem.rpartition('_')[0]}"


def _with_splits(entries: Entries, codes: NDArray[Any]) -> Entries:
    splits = Words(_SPLITS, codes.astype(np.int32))
    return Entries(entries.paths, entries.labels, entries.domains, splits, entries.passed_over)
