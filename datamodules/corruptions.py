"""Any datamodule's images under the common corruptions, as domains ``<kind>_<severity>``."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from hashlib import blake2b
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dafw.data.augment import Augment, made_augment
from dafw.data.cache import CachedRows, file_mark
from dafw.data.corruptions import COMMON, HELD_OUT, KINDS, SEVERITIES, Scale, corrupted, parse_domain, usual_scale
from dafw.data.domain import Domain
from dafw.data.images import as_item
from dafw.data.roles import Split
from dafw.data.strings import Strings
from dafw.data.trained import made_for, trained_model
from dafw.errors import UserError, choose, sentence
from datamodules.base import DomainDataModule
from datamodules.folder import ImageFolderDomains

VERSION = 1
"""Part of the key of every cache. Another number makes all of them anew."""
GROUPS = {"common": COMMON, "held_out": HELD_OUT}
"""Words for several targets, as in ``common_5``."""
OWN = ("source", "target", "seed", "augment", "root", "size", "label_sets")
"""Arguments that this datamodule gives to its base itself."""


class Corruptions(DomainDataModule):
    """Images of another datamodule under the 15 + 4 common corruptions at five severities, such as ``fog_3``.

    The corrupted image is a function of the image, the corruption, the severity, the seed and the image's place in its
    split. It is the same on any number of workers and ranks. The constants are those of the authors' programs, see
    :mod:`dafw.data.corruptions.severities`. The picture of ice for ``frost`` is generated, since the authors'
    photographs are not part of this project. Images come without the base's own augmentation, at the size that it
    evaluates.

    Args:
        source: the base's domain that the model has learned, or several.
        target: corruptions with severities, as ``gaussian_noise_5``; ``common_5`` stands for the 15 of the benchmark at
            severity 5, ``held_out_5`` for the four others.
        base: the datamodule: its name, or the class path of your own.
        clean: the base's domain whose images are corrupted; the source if ``None``.
        root: folder of the base's data.
        size: height and width of the images in pixels; as the base has it if ``None``.
        base_args: further arguments of the base, by name.
        severities: whose constants the severities mean, ``cifar`` or ``imagenet``; ``None``: CIFAR's for images of at
            most 64 pixels, and ImageNet's for larger ones.
        corruption_seed: seed of the corruptions; the run's own if ``None``.
        cache: keep the corrupted images on disk, ``size * size * 3`` bytes each, so that each is made only once.
        options: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: for an unknown base, corruption or severity, or what the base raises.
    """

    size_is_side: ClassVar[bool] = True

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        base: str,
        clean: str | None = None,
        root: str | None = None,
        size: int | None = None,
        base_args: dict[str, Any] | None = None,
        severities: Literal["cifar", "imagenet"] | None = None,
        corruption_seed: int | None = None,
        cache: bool = True,
        **options: Any,
    ) -> None:
        sources = [source] if isinstance(source, str) else list(source)
        if clean is None and len(sources) > 1:
            raise UserError(f"data.clean must name the domain that is corrupted, since data.source has {len(sources)}")
        self.clean = sources[0] if clean is None else clean
        given = {key: value for key, value in (("root", root), ("size", size)) if value is not None}
        self.base = _made(base, sources, self.clean, {**(base_args or {}), **given})
        self.made_of = (self.base,)
        self.severities: Scale | None = severities
        if severities is not None:
            choose("severities", severities, ("cifar", "imagenet"))
        corrupt = [f"{kind}_{severity}" for kind in KINDS for severity in SEVERITIES]
        self.domain_names = (*self.base.domain_names, *corrupt)
        self.class_names = tuple(self.base.class_names)
        self.holds_out_source = self.base.holds_out_source
        targets = expanded([target] if isinstance(target, str) else list(target))
        super().__init__(source, targets, **options)
        for name in self.target:
            parse_domain(name)
        self.corruption_seed = self.seed if corruption_seed is None else corruption_seed
        self.cache = cache
        self._loaded: dict[tuple[str, Split], Domain] = {}
        self._marks: dict[Split, Any] = {}

    def prepare_data(self) -> None:
        """Prepares the base's data, and makes the corrupted test images if they are cached."""
        self.base.prepare_data()
        if self.cache:
            for name in self.target:
                self.load(name, "test")

    def load(self, name: str, split: Split) -> Domain:
        """One split of the source, or of the clean domain under a corruption: uint8 (3, H, W).

        Raises:
            UserError: for a domain that is neither, or images that cannot be corrupted.
        """
        choose("domain", name, self.domain_names)
        if name not in self.target:
            return self.base.load(name, split)
        if (name, split) not in self._loaded:
            kind, severity = parse_domain(name)
            found = self.base.load(self.clean, split)
            images = Corrupted(found, kind, severity, self.severities, self.corruption_seed, split)
            ids = Strings.of(f"{name}/{found.id(index)}" for index in range(len(found)))
            inputs = images.cached(self._mark(found, split)) if self.cache else images
            self._loaded[name, split] = replace(found, name=name, inputs=inputs, ids=ids)
        return self._loaded[name, split]

    def _mark(self, domain: Domain, split: Split) -> Any:
        """Plain values that change whenever an image of the clean domain's split changes."""
        if split not in self._marks and isinstance(self.base, ImageFolderDomains):
            files = [file_mark(self.base.root, domain.id(index)) for index in range(len(domain))]
            self._marks[split] = [self.base.size, self.base.resize, self.base.fit, files]
        elif split not in self._marks:
            found = blake2b(digest_size=16)
            for image in domain.inputs:
                found.update(np.ascontiguousarray(image).data)
            self._marks[split] = found.hexdigest()
        return self._marks[split]

    def view(self, name: str) -> Callable[[Any], Any]:
        """The base's augmentation of that name."""
        return self.base.view(name)

    def augmentation(self) -> Augment | None:
        """As the base class; mirrors images only if the base allows it."""
        return made_augment(self.augment, self.train_domains[0], flip=self.base.flips)

    def evaluation_transform(self) -> Callable[[Any], Any]:
        """As the base prepares a file. A file that is predicted is not corrupted."""
        return self.base.evaluation_transform()

    def in_short(self) -> list[str]:
        """What the base says, and whose constants are used."""
        first = self.load(self.target[0], "test")
        scale = first.inputs.scale if isinstance(first.inputs, Corrupted | CachedCorrupted) else ""
        said = f"{self.clean} under {len(self.target)} corruptions with the severities of {SAID[scale]}"
        count = len(self.domain(self.target[0], "test"))
        return [*self.base.in_short(), f"{said}, {count} test images each; seed {self.corruption_seed}"]


SAID = {"cifar": "CIFAR-10-C", "imagenet": "ImageNet-C", "": "its base"}


class Corrupted(Sequence[Tensor]):
    """Images under one corruption, made each time they are asked for; item: uint8 (3, H, W).

    Args:
        clean: the images.
        kind: the corruption.
        severity: 1 to 5.
        scale: whose constants; ``None``: by the size of the images.
        seed: of the corruption.
        split: of the images; those of another split get other random numbers.

    Raises:
        UserError: if the samples are no RGB images with one class each.
    """

    def __init__(self, clean: Domain, kind: str, severity: int, scale: Scale | None, seed: int, split: Split) -> None:
        first = clean.inputs[0]
        if not (isinstance(first, Tensor) and first.ndim == 3 and first.shape[0] == 3):
            raise UserError(f"the samples of {clean.name} are no RGB images, so that they cannot be corrupted")
        if clean.labels is not None and clean.classes is None:
            raise UserError(f"Corruptions needs one class a sample, and the labels of {clean.name} have many parts")
        self.shape = (*first.shape[1:], 3)
        self.clean, self.kind, self.severity, self.seed, self.split = clean, kind, severity, seed, split
        self.scale: Scale = usual_scale(max(self.shape[:2])) if scale is None else scale

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: Any) -> Any:
        return as_item(self.make(range(len(self))[index]))

    def make(self, index: int) -> NDArray[np.uint8]:
        """The corrupted image at a position, (H, W, 3).

        Raises:
            UserError: if it has another size than the first one.
        """
        image = self.clean.inputs[index].permute(1, 2, 0).numpy()
        if image.shape != self.shape:
            sizes = " and ".join("x".join(map(str, shape[:2])) for shape in (self.shape, image.shape))
            raise UserError(f"{self.clean.name} has images of {sizes}: Corruptions needs images of one size")
        name = f"{self.clean.name}/{self.split}/{index}"
        return corrupted(image, self.kind, self.severity, scale=self.scale, seed=self.seed, name=name)

    def cached(self, mark: Any) -> "CachedCorrupted":
        """The same images, kept on disk.

        Args:
            mark: plain values that change whenever a clean image changes.
        """
        return CachedCorrupted(self, mark)


class CachedCorrupted(CachedRows):
    """Corrupted images in one memory-mapped file; item: uint8 (3, H, W).

    Args:
        images: make each image once.
        mark: plain values that change whenever a clean image changes.
    """

    def __init__(self, images: Corrupted, mark: Any) -> None:
        self.scale = images.scale
        key = [VERSION, images.kind, images.severity, images.scale, images.seed, images.split, images.clean.name, mark]
        names = Strings.of(images.clean.id(index) for index in range(len(images)))
        name = f"{images.clean.name}-{images.kind}_{images.severity}"
        super().__init__(key, images.shape, images.make, names=names, name=name)

    def __getitem__(self, index: Any) -> Any:
        return as_item(super().__getitem__(index))


def expanded(targets: Sequence[str]) -> list[str]:
    """The targets with ``common_5`` and ``held_out_5`` written out.

    >>> expanded(["held_out_3", "fog_1"])
    ['speckle_noise_3', 'gaussian_blur_3', 'spatter_3', 'saturate_3', 'fog_1']
    """
    found: list[str] = []
    for name in targets:
        word, _, severity = name.rpartition("_")
        known = severity in map(str, SEVERITIES)
        if word in GROUPS and not known:
            raise UserError(f"{name} (data.target) has no severity 1 to 5: say {word}_5")
        if word not in GROUPS:
            parse_domain(name)
        found += [f"{kind}_{severity}" for kind in GROUPS[word]] if word in GROUPS else [name]
    return found


def _made(name: str, sources: Sequence[str], clean: str, arguments: Mapping[str, Any]) -> DomainDataModule:
    """The base datamodule with the sources, and with the clean domain as its target unless it is one of them."""
    owner = _class(name)
    for key in OWN:
        if key in arguments and key not in ("root", "size"):
            raise UserError(f"data.base_args takes no {key}: give data.{key}")
    starts = [vars(one)["__init__"] for one in owner.__mro__ if "__init__" in vars(one)]
    takes = {key for start in starts for key in inspect.signature(start).parameters}
    for key in ("root", "size"):
        if key in arguments and key not in takes:
            raise UserError(f"{name} (data.base) takes no {key}: leave out data.{key}")
    model = trained_model()
    files = nullcontext() if model is None or not model.with_targets else made_for(None)
    given = list(sources), [] if clean in sources else [clean]
    try:
        with files:
            found = owner.__new__(owner, *given, augment=None, **arguments)
            found.needs_target = False
            owner.__init__(found, *given, augment=None, **arguments)
    except TypeError as error:
        raise UserError(f"{name} (data.base) does not take data.base_args: {sentence(error)}") from error
    return found


def _class(name: str) -> type[DomainDataModule]:
    import datamodules

    module, _, short = name.rpartition(".")
    if not module:
        choose(
            "data.base", name, [one for one in datamodules.__all__ if one not in ("DomainDataModule", "Corruptions")]
        )
    try:
        found = getattr(import_module(module) if module else datamodules, short, None)
    except ImportError as error:
        raise UserError(f"the module {module} (data.base) cannot be imported: {sentence(error)}") from error
    if not (isinstance(found, type) and issubclass(found, DomainDataModule)):
        raise UserError(f"{name} (data.base) is no DomainDataModule")
    return found
