"""Image benchmarks in folders: Office-31, Office-Home, PACS, VLCS, DomainNet, VisDA, or your own."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dafw.data.augment import Word
from dafw.data.cache import CachedImages
from dafw.data.domain import Domain
from dafw.data.entries import Entries
from dafw.data.images import (
    CentreCropped,
    DecodedImages,
    ImageOrPath,
    OriginalImages,
    Scaled,
    decodes_file,
    find_corrupt,
)
from dafw.data.manifest import check_files, read_manifest, refuse_outside, scan_folder, subfolders
from dafw.data.preparing import Fitted
from dafw.data.roles import Split
from dafw.data.scaling import Fit
from dafw.data.trained import known_domains, list_domains, looks_for_files
from dafw.errors import UserError, choose
from dafw.escape import terminal
from dafw.files import reading
from datamodules.base import DomainDataModule
from datamodules.splits import SHARES, Protocol, check_protocol, check_shares, in_protocol, places

log = logging.getLogger(__name__)


class ImageFolderDomains(DomainDataModule):
    """Images in ``root/<domain>/<class>/<name>.jpg``, or listed in a manifest, of every format that Pillow decodes.

    What lies beside them and is no such image is passed over, and a line for each domain says so.

    The images of a target without labels lie in ``root/<domain>/`` itself, or have an empty label in the manifest. It
    trains and predicts; it has no metrics.

    Every image is scaled and cut to (resize, resize) as ``fit`` says. Evaluation uses the middle (size, size) of that,
    or all of it. Training augments it to (size, size). Labels are the names of the folders, so no image is opened to
    get them.

    A hash of its path puts each image into a split. So the split depends neither on the run's seed nor on the other
    images. A manifest may give splits of its own.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: folder of the domains; paths in a manifest are relative to it.
        manifest: file that lists the images (see :func:`dafw.data.manifest.read_manifest`); ``None``: scan the folders.
        size: height and width of the network's input, in pixels.
        resize: height and width before cropping, in pixels.
        fit: ``crop`` scales the short side to ``resize`` and cuts out the middle; ``squash`` scales both sides.
        evaluate_whole: evaluation uses all of (resize, resize) instead of the middle, for a method that crops itself.
        evaluate_scaled: evaluation scales (resize, resize) to (size, size) instead of taking the middle.
        augment: augmentation in training, which must make images of (size, size): ``flip_crop``, ``crop``,
            ``center_crop``, ``domainbed``, ``weak``, ``strong`` or ``none``, or as the base class says. ``domainbed``
            crops the images as they are in their files, as DomainBed does, and neither ``resize`` nor ``fit`` has a
            part in that; with ``cache``, or for a method with views, it crops those of (resize, resize) like the
            others.
        cache: keep the decoded images on disk, ``resize * resize * 3`` bytes each, so that each is decoded only once.
            Training and evaluation then start from these.
        split: shares of training, validation and test.
        protocol: ``shares`` divides every domain as ``split`` says. ``domainbed`` divides as
            :func:`datamodules.splits.in_domainbed` does: sources train on four fifths and validate on the rest;
            targets are reported on four fifths and keep the rest for the oracle. ``office`` trains on all images of
            both sides and tests on all of the target; the validation and test splits of a source, and the validation
            split of a target, are shares of what was trained on.
        split_seed: number of the division; each seed gives another one. The run's own seed has no influence. DomainBed
            takes another division for each trial.
        transductive: a target's training and test splits are both all of its images. The target is still unlabelled in
            training. Its validation split stays a share of it. A source is divided as ``protocol`` says.
        on_corrupt: ``fail`` stops at an image that cannot be decoded. ``skip`` decodes all of them once beforehand,
            leaves out those that cannot be decoded, and names them.
        allow_outside_root: whether a manifest, or a benchmark's list, may name images outside of ``root``.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: if a folder, an image or an argument is wrong.
    """

    size_is_side: ClassVar[bool] = True

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        manifest: str | None = None,
        size: int = 224,
        resize: int = 256,
        fit: Fit = "crop",
        evaluate_whole: bool = False,
        evaluate_scaled: bool = False,
        augment: Word | Callable[[Any], Any] | None = "flip_crop",
        cache: bool = False,
        split: tuple[float, float, float] = SHARES,
        protocol: Protocol = "shares",
        split_seed: int = 0,
        transductive: bool = False,
        on_corrupt: Literal["fail", "skip"] = "fail",
        allow_outside_root: bool = False,
        **base: Any,
    ) -> None:
        if not 1 <= size <= resize:
            raise UserError(f"data.size must be between 1 and data.resize ({resize}), not {size}")
        check_shares(split)
        self.protocol, self.split_seed = check_protocol(protocol, split_seed), split_seed
        if self.protocol != "shares" and (transductive or (tuple(split) != SHARES and self.protocol == "domainbed")):
            key = "transductive" if transductive else "split"
            why = f"data.protocol {self.protocol}, which divides domains in its own way"
            raise UserError(f"data.{key} has no part in {why}")
        self.holds_out_source = self.protocol != "office"
        self.root = Path(root).expanduser()
        self.manifest = None if manifest is None else Path(manifest).expanduser()
        looks = looks_for_files()
        with reading("the folder", self.root):
            exists = not looks or self.root.is_dir()
        if not exists:
            raise UserError(f"the folder {self.root} (data.root) does not exist")
        if evaluate_whole and augment in ("none", None):
            raise UserError("data.evaluate_whole leaves cropping in training to data.augment, which must not be none")
        self.size, self.resize, self.cache, self.split = size, resize, cache, split
        self._crops_originals = augment == "domainbed" and not cache
        if evaluate_whole and evaluate_scaled:
            raise UserError(
                "data.evaluate_whole keeps all of an image and data.evaluate_scaled makes it smaller: give one"
            )
        self.evaluate_whole, self.evaluate_scaled = evaluate_whole, evaluate_scaled
        self.fit: Fit = "crop" if choose("fit", fit, ("crop", "squash")) == "crop" else "squash"
        self.transductive, self.on_corrupt = transductive, choose("on_corrupt", on_corrupt, ("fail", "skip"))
        listed = read_manifest(self.manifest) if self.manifest is not None and looks else None
        if self.protocol != "shares" and listed is not None and listed[0].split:
            raise UserError(f"{self.manifest} gives splits, which data.protocol {self.protocol} would overrule")
        self.domain_names = known_domains(lambda: self._domains(listed), source, target)
        super().__init__(source, target, augment=self._sized(augment), **base)
        self._entries = list_domains(lambda name: self._list(name, listed), self.source, self.target, True)
        if not allow_outside_root:
            for entries in self._entries.values():
                refuse_outside(entries, self.root)
        labels = set().union(*(counts for counts in self.class_counts().values()))
        if self.made_for is not None and not self._entries.keys() >= {*self.source, *self.target}:
            labels |= set(self.made_for.classes)
            if not labels and looks:
                gone = next(name for name in self.source if name not in self._entries)
                raise UserError(
                    f"nothing says what the classes are: {self.root} has no {gone}, and no target has labels"
                )
        self.class_names = tuple(sorted(labels, key=natural_order))
        self._images: dict[str, Sequence[Tensor]] = {}
        self._placed: dict[str, NDArray[np.float64]] = {}
        self._told = False

    def _sized(self, augment: Word | Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        """The augmentation that a word stands for: it makes (size, size) of the larger image that was decoded."""
        from dafw.data.transforms import named_augmentation

        return named_augmentation(augment, self.size) if isinstance(augment, str) else augment

    def _domains(self, listed: Entries | None) -> tuple[str, ...]:
        if listed is not None:
            return tuple(sorted(name for name in listed.domains.counts() if name is not None))
        names = [folder.name for folder in subfolders(self.root)]
        if not names:
            raise UserError(f"the folder {self.root} (data.root) holds no domain folders")
        return tuple(names)

    def _list(self, name: str, listed: Entries | None) -> Entries:
        if listed is None:
            return scan_folder(self.root, name)
        entries = listed.of_domain(name)
        check_files(entries, self.root, cast(Path, self.manifest))
        return entries

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Number of images of each class in each source and target domain: ``{domain: {class: count}}``."""
        return {
            name: {label: count for label, count in entries.labels.counts().items() if label is not None}
            for name, entries in self._entries.items()
        }

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 (3, size, size) images, or (3, resize, resize) if training augments them.

        Raises:
            UserError: for a domain that is neither source nor target, an empty split, or an image that cannot be read.
        """
        choose("domain", name, self._entries)
        choose("split", split, ("train", "val", "test"))
        images = self.decoded(name)
        entries = self._entries[name]
        indices = np.flatnonzero(self._belong(name, split))
        if not len(indices):
            key = "split_seed" if self.protocol == "domainbed" else "split"
            raise UserError(f"none of the {len(entries)} images of {name} is in its {split} split: change data.{key}")
        whole = self.evaluate_whole or (split == "train" and self.augment is not None)
        cropped = images if whole else self._shown(images)
        return Domain(name, cropped, self._labels(entries), entries.paths).subset(indices)

    def augmented_domain(self, domain: Domain) -> Domain:
        """A training domain as ``augment`` gets it; for ``domainbed`` the images as they are in their files."""
        if not self._crops_originals or self.request.views:
            return domain
        ids = cast(Sequence[str], domain.ids)
        return replace(domain, inputs=OriginalImages(ids, root=self.root, size=self.size))

    def _belong(self, name: str, split: Split) -> NDArray[np.bool_]:
        """Which images of a domain are in its split, (n,)."""
        entries = self._entries[name]
        if self.transductive and name in self.target and split != "val":
            return np.ones(len(entries), np.bool_)
        if entries.splits.at(0) is not None:
            return entries.splits.are(split)
        if name not in self._placed:
            self._placed[name] = places(self._keys(entries), self.split_seed)
        target = name in self.target
        sides = {"target": target, "reported": target and not self.oracle}
        return in_protocol(self.protocol, self._placed[name], split, self.split, **sides)

    def _keys(self, entries: Entries) -> Iterable[str]:
        """The stable names of the images, which decide their splits."""
        return entries.paths

    def decoded(self, name: str) -> Sequence[Tensor]:
        """All images of a source or target: uint8 (3, resize, resize). With ``cache``, their file is made first.

        Raises:
            UserError: if an image cannot be read, or there is no room for the file.
        """
        if name not in self._images:
            if self.on_corrupt == "skip":
                self._entries[name] = self._sound(name)
            paths = self._entries[name].paths
            self._images[name] = (
                CachedImages(paths, root=self.root, size=self.resize, fit=self.fit, name=name)
                if self.cache
                else DecodedImages(paths, root=self.root, size=self.resize, fit=self.fit)
            )
        return self._images[name]

    def _sound(self, name: str) -> Entries:
        entries = self._entries[name]
        corrupt = set(find_corrupt(entries.paths, self.root, decodes_file(self.root, name)))
        if corrupt:
            names = ", ".join(sorted(corrupt))
            log.warning(
                "%s: leaving out %d of %d images that cannot be decoded: %s", name, len(corrupt), len(entries), names
            )
        sound = entries[np.flatnonzero([path not in corrupt for path in entries.paths])]
        if not len(sound):
            raise UserError(f"no image of {name} in {self.root} can be decoded")
        return sound  # type: ignore[no-any-return]

    def _labels(self, entries: Entries) -> NDArray[np.int64] | None:
        """The class of each image, (n,); ``None`` for a domain without labels."""
        if entries.labels.at(0) is None:
            return None
        codes: dict[str | None, int] = {label: code for code, label in enumerate(self.class_names)}
        return np.asarray([codes.get(word, -1) for word in entries.labels.words], np.int64)[entries.labels.codes]

    def _present(self, name: str) -> set[str] | None:
        """The names of the classes of all splits: a class may have images in the test split alone."""
        return set(self.class_counts()[name]) or None

    def view(self, name: str) -> Callable[[Any], Any]:
        """The named augmentation, for an extra view of an image."""
        from dafw.data.transforms import named_view

        return named_view(name, self.size)

    def evaluation_transform(self) -> Callable[[ImageOrPath], Tensor]:
        """From a file or an image of Pillow to uint8 (3, size, size), or (3, resize, resize) with ``evaluate_whole``.

        It is scaled and cut as in evaluation. See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        size = self.resize if self.evaluate_whole else self.size
        return Fitted(size, self.resize, self.fit, self.evaluate_scaled)

    def evaluation_loader(self, domain: Domain, *, shard: bool = True) -> DataLoader[Any]:
        """Every sample of ``domain`` once, in order, as evaluation sees it: see the arguments ``evaluate_...``."""
        if self.evaluate_whole:
            return super().evaluation_loader(domain, shard=shard)
        return super().evaluation_loader(replace(domain, inputs=self._shown(domain.inputs)), shard=shard)

    def _shown(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """Images (3, size, size), made of larger ones as evaluation does it."""
        return (Scaled if self.evaluate_scaled else CentreCropped)(images, self.size)

    def prepare_data(self) -> None:
        """Says what was passed over; builds the caches and checks the images, if they are switched on.

        One process of each machine does it.
        """
        if not self._told and not self._rank()[0]:
            self._told = True
            for name, entries in self._entries.items():
                if entries.passed_over:
                    said = f"{name}: {len(entries)} images; passed over: {entries.passed_over}"
                    print(terminal(f"dafw: {said}"), file=sys.stderr)
        for name in self._entries:
            self.decoded(name)

    def in_short(self) -> list[str]:
        """For each domain how many images of how many classes it has, and how many of them are in each split."""
        return [self._in_short(name) for name in self._entries]

    def _in_short(self, name: str) -> str:
        parts: dict[str, int] = {}
        for split in get_args(Split):
            with suppress(UserError):  # an empty split
                parts[split] = len(self.domain(name, split))
        served = self.class_sets.target if name in self.target else self.class_sets.source
        counts = {label: count for label, count in self.class_counts()[name].items() if label in served}
        images = sum(counts.values()) or len(self._entries[name])
        classes = f"{len(counts)} class{'es' * (len(counts) > 1)}" if counts else "no labels"
        return f"{name}: {images} images, {classes}; {', '.join(f'{count} {split}' for split, count in parts.items())}"


def natural_order(label: str) -> tuple[int, int, str]:
    """A sort key that orders numbers by value and puts them before words."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
