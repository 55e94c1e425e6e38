"""MNIST divided into domains that rotate or colour it: DomainBed's two small benchmarks."""

from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafw.data.domain import Domain
from dafw.data.roles import Split
from dafw.errors import UserError, choose
from datamodules import digit_files, digit_images
from datamodules.digit_domains import DigitDomains, make_domain
from datamodules.digit_images import Images
from datamodules.splits import SHARES, Protocol, check_protocol, in_domainbed, in_shares, places

#: Names of domains; a file may give angles as numbers.
Names = str | int | list[str] | list[str | int]
#: Share of the labels that are wrong in every domain of ColoredMNIST.
LABEL_NOISE = 0.25


class Dealt(NamedTuple):
    """The digits of one domain.

    Args:
        images: uint8 (n, 28, 28).
        digits: int64 (n,), 0 to 9.
        positions: (n,), the positions among all digits.
        keys: a hash of each image in hexadecimal; all random draws for the image depend on it alone.
    """

    images: Images
    digits: NDArray[np.int64]
    positions: list[int]
    keys: list[str]


class _MNISTVariant(DigitDomains):
    def __init__(
        self,
        source: Names,
        target: Names,
        *,
        scale: Literal["small", "full"] = "small",
        size: int = 28,
        root: str | None = None,
        protocol: Protocol = "domainbed",
        split_seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(_names(source), _names(target), scale=scale, size=size, root=root, **base)
        self._made: dict[str, tuple[Domain, list[str]]] = {}
        self.protocol, self.split_seed = check_protocol(protocol, split_seed, ("shares", "domainbed")), split_seed

    def make(self, name: str, dealt: Dealt) -> tuple[Images, NDArray[np.int64]]:
        """The domain's images, uint8 (n, 28, 28) or (n, 28, 28, 3), and labels, int64 (n,)."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Downloads MNIST if it is missing, in one process of each machine."""
        _digits(self.scale, self.root)

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 RGB (3, size, size) images.

        Raises:
            UserError: for an unknown domain or split, or if the digits of ``full`` cannot be read or downloaded.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, ("train", "val", "test"))
        whole, keys = self._whole(name)
        where = places(keys, self.split_seed)
        if self.protocol == "domainbed":
            reported = name in self.target and not self.oracle
            return whole.subset(np.flatnonzero(in_domainbed(where, split, reported=reported)))
        return whole.subset(np.flatnonzero(in_shares(where, split, SHARES)))

    def _whole(self, name: str) -> tuple[Domain, list[str]]:
        if name not in self._made:
            dealt = _deal(self.scale, self.root, len(self.domain_names))[self.domain_names.index(name)]
            images, labels = self.make(name, dealt)
            ids = [f"{name}/{position}" for position in dealt.positions]
            self._made[name] = make_domain(name, images, labels, ids, self.size), dealt.keys
        return self._made[name]


class RotatedMNIST(_MNISTVariant):
    """MNIST in six domains, each a sixth of the digits rotated by its angle (Ghifary et al. 2015, as in DomainBed).

    The digits, MNIST's training and test set together, are dealt to the six domains in the order of a hash of their
    pixels. So no digit is in two domains, and neither the run's seed nor the order of the files has an influence. Each
    digit is rotated counter-clockwise by its domain's angle in degrees about the image's middle, and cut to its old
    size. See https://arxiv.org/abs/1508.07680 and https://arxiv.org/abs/2007.01434.

    Args:
        source: labelled domain or domains: angles, as in ``[15, 30, 45, 60, 75]``.
        target: domain or domains to adapt to and to test on.
        scale: ``small`` uses the 5,000 digits that need no files, ``full`` MNIST's 70,000.
        size: height and width of the images, in pixels.
        root: folder with MNIST's files, as :class:`datamodules.digits.Digits` reads it; missing files are downloaded.
        protocol: ``domainbed`` (:func:`datamodules.splits.in_domainbed`) or ``shares``: eight tenths of each
            domain for training and one tenth each for validation and test.
        split_seed: number of the division into splits; DomainBed takes another division for each trial.
        interpolation: ``bilinear``, as in DomainBed today, or ``bicubic``, as in its first version.
        base: see :class:`datamodules.base.DomainDataModule`.
    """

    domain_names: tuple[str, ...] = ("0", "15", "30", "45", "60", "75")
    class_names: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def __init__(
        self,
        source: Names,
        target: Names,
        *,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        **options: Any,
    ) -> None:
        self.interpolation = choose("interpolation", interpolation, ("bilinear", "bicubic"))
        super().__init__(source, target, **options)

    def make(self, name: str, dealt: Dealt) -> tuple[Images, NDArray[np.int64]]:
        """The digits rotated by the angle that names the domain."""
        return rotate(dealt.images, float(name), self.interpolation), dealt.digits


class ColoredMNIST(_MNISTVariant):
    """MNIST with two classes and a colour that predicts the class better than the shape does (Arjovsky et al. 2019).

    The class is 1 for the digits below 5; a quarter of the digits then get the other class. The colour agrees with that
    class with probability 0.9 (domain ``+90%``), 0.8 (``+80%``) or 0.1 (``-90%``). Colour 0 is red and 1 is green. The
    paper's images have these two channels; ours also have a black blue channel, so that every network reads them.

    The digits are dealt to the domains as those of :class:`RotatedMNIST`. Wrong labels and disagreeing colours are part
    of the data: a hash of the digit's pixels decides them, not the seed of the run. See
    https://arxiv.org/abs/1907.02893 and https://arxiv.org/abs/2007.01434.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        scale: ``small`` uses the 5,000 digits that need no files, ``full`` MNIST's 70,000.
        size: height and width of the images, in pixels.
        root: folder with MNIST's files, as :class:`datamodules.digits.Digits` reads it; missing files are downloaded.
        protocol: ``domainbed`` (:func:`datamodules.splits.in_domainbed`) or ``shares``: eight tenths of each
            domain for training and one tenth each for validation and test.
        split_seed: number of the division into splits; DomainBed takes another division for each trial.
        base: see :class:`datamodules.base.DomainDataModule`.
    """

    domain_names: tuple[str, ...] = ("+90%", "+80%", "-90%")
    class_names: tuple[str, ...] = ("5-9", "0-4")
    disagreement: ClassVar[dict[str, float]] = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}

    def make(self, name: str, dealt: Dealt) -> tuple[Images, NDArray[np.int64]]:
        """The digits, each in the channel of its colour, and their noisy classes."""
        wrong = np.asarray([_draw("label", key) < LABEL_NOISE for key in dealt.keys])
        labels = (dealt.digits < 5) ^ wrong
        colours = labels ^ np.asarray([_draw("colour", key) < self.disagreement[name] for key in dealt.keys])
        images = np.zeros((*dealt.images.shape, 3), np.uint8)
        images[np.arange(len(colours)), :, :, colours.astype(np.int64)] = dealt.images
        return images, labels.astype(np.int64)


def rotate(images: Images, degrees: float, interpolation: str = "bilinear") -> Images:
    """Rotates images (n, H, W) counter-clockwise about their middle; uncovered pixels become black.

    Args:
        images: uint8 (n, H, W).
        degrees: the angle.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    resample = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    turned = [np.asarray(Image.fromarray(image).rotate(degrees, resample, fillcolor=0)) for image in images]
    return np.stack(turned)


def deal(images: Images, digits: NDArray[np.int64], count: int) -> list[Dealt]:
    """Orders the digits by a hash of their pixels and gives every ``count``-th of that order to one domain.

    Equal images stay together.

    Args:
        images: uint8 (N, 28, 28).
        digits: int64 (N,).
        count: number of domains.
    """
    keys = np.asarray([blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images])
    _, rank = np.unique(keys, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    parts = [order[rank[order] % count == domain] for domain in range(count)]
    return [Dealt(images[part], digits[part], part.tolist(), keys[part].tolist()) for part in parts]


def _draw(what: str, key: str) -> float:
    """A random number in [0, 1) for one image, independent of the other numbers drawn for it."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8, person=what.encode()).digest(), "big") / 2**64


def _digits(scale: str, root: str | None) -> tuple[Images, NDArray[np.int64]]:
    if scale == "small":
        found = digit_images.mnist()
        return found["images"], found["labels"]
    if root is None:
        raise UserError("scale full needs --data.root, a folder for MNIST; --data.scale small needs no files")
    halves = digit_files.read_digits("mnist", Path(root).expanduser())
    images, labels = (np.concatenate([halves["train"][key], halves["test"][key]]) for key in ("images", "labels"))
    if images.shape[1:] != (28, 28):
        raise UserError(f"the digits in {root} must be 28 x 28 and grey, not {' x '.join(map(str, images.shape[1:]))}")
    return images, labels


@lru_cache(maxsize=4)
def _deal(scale: str, root: str | None, count: int) -> list[Dealt]:
    return deal(*_digits(scale, root), count)


def _names(given: Names) -> list[str]:
    return [str(name) for name in (given if isinstance(given, list) else [given])]
