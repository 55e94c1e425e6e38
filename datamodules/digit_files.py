"""Digit sets in their original files or in ``.npz`` files, read from a folder or downloaded into it."""

import logging
import re
import zipfile
from errno import ENOENT, ENOTDIR
from pathlib import Path
from typing import Any

import numpy as np

from dafw.data.files import Arrays, cache_dir, cached_arrays, digest, making
from dafw.data.images import load_rgb
from dafw.errors import UserError
from dafw.files import reading
from datamodules.digit_images import Images

log = logging.getLogger(__name__)

Halves = dict[str, Arrays]  # "train" and "test", each {"images": uint8 (N, H, W) or (N, H, W, 3), "labels": int64 (N,)}

_FILES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte.gz and its three companions",
    "usps": "usps.bz2 and usps.t.bz2",
    "svhn": "train_32x32.mat and test_32x32.mat",
}
_DAMAGE = (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AssertionError, zipfile.BadZipFile)


def read_digits(name: str, root: Path) -> Halves:
    """The official training and test sets of ``mnist``, ``usps`` or ``svhn``.

    A file ``<name>*.npz`` with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` is read first, else the original
    files in torchvision's layout. Missing files are downloaded.

    Args:
        name: the domain.
        root: the folder to read from and to download into.

    Raises:
        UserError: if there is nothing to read and no way to download it, or a file is damaged.
    """
    return read_npz(name, root) or _read_original(name, root)


def read_npz(name: str, root: Path) -> Halves | None:
    """The sets in ``<name>*.npz``, or ``None`` if ``root`` has no such file.

    Raises:
        UserError: if there are several such files, or one lacks the expected arrays.
    """
    files = [file for file in sorted(root.glob("*.npz")) if re.match(rf"{name}(?![a-z0-9])", file.name.lower())]
    if not files:
        return None
    if len(files) > 1:
        raise UserError(f"{root} holds both {files[0].name} and {files[1].name}: leave one of them for {name}")
    try:
        with np.load(files[0], allow_pickle=False) as stored:
            return {half: _checked(stored[f"x_{half}"], stored[f"y_{half}"]) for half in ("train", "test")}
    except _DAMAGE as error:
        _refuse_unreadable(error, files[0])
        raise UserError(
            f"{files[0]} must hold x_train and x_test, uint8 (N, H, W) or (N, H, W, 3), with y_train and y_test "
            f"from 0 to 9: {_line(error)}"
        ) from error


def _checked(images: Any, labels: Any) -> Arrays:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(f"the images are {images.dtype} {images.shape}")
    labels = labels.reshape(-1).astype(np.int64)
    if len(labels) != len(images) or not np.isin(labels, range(10)).all():
        raise ValueError(f"{len(labels)} labels from {labels.min()} to {labels.max()} for {len(images)} images")
    return {"images": images[..., 0] if images.shape[3:] == (1,) else images, "labels": labels}


def _read_original(name: str, root: Path) -> Halves:
    try:
        return _torchvision(name, root, download=False)
    except _DAMAGE as error:
        _refuse_unreadable(error, root)
        log.info("downloading %s to %s (%s)", name, root, _line(error))
    try:
        with making(cache_dir() / "downloads" / f"{name}-{digest(str(root.resolve()))[:16]}"):
            return _torchvision(name, root, download=True)
    except _DAMAGE as error:
        raise UserError(
            f"{name} cannot be read from {root}, which should hold {_FILES[name]}, or {name}.npz, and cannot be "
            f"downloaded either ({_line(error)}); --data.scale small needs no files"
        ) from error


def _torchvision(name: str, root: Path, *, download: bool) -> Halves:
    from torchvision import datasets

    halves = {}
    for half in ("train", "test"):
        if name == "svhn":
            data = datasets.SVHN(root, split=half, download=download)
            images, labels = data.data.transpose(0, 2, 3, 1), data.labels
        else:
            kind = datasets.MNIST if name == "mnist" else datasets.USPS
            data = kind(root, train=half == "train", download=download)
            images, labels = np.asarray(data.data), data.targets
        halves[half] = _checked(np.ascontiguousarray(images), np.asarray(labels))
    return halves


def read_synnumbers(root: Path) -> Halves:
    """SynNumbers as its authors distribute it: ``synth_train_32x32.mat`` and ``synth_test_32x32.mat``.

    They lie in ``root`` or in one of its folders, or ``synnumbers*.npz`` lies in ``root``. A label of 10 is the digit
    0, as in SVHN's files. The training file is read as a whole, which takes several gigabytes of memory.

    Raises:
        UserError: if a file is missing or damaged.
    """
    from scipy.io import loadmat

    found, halves = read_npz("synnumbers", root), {}
    if found is not None:
        return found
    for half in ("train", "test"):
        name = f"synth_{half}_32x32.mat"
        file = next((one for one in (root / name, *sorted(root.glob(f"*/{name}"))) if one.is_file()), None)
        if file is None:
            raise UserError(f"{root} (data.root) holds no {name}, in no folder of it either: SynthDigits.zip has it")
        try:
            with reading("the file", file):
                content = loadmat(file, variable_names=("X", "y"))
            labels = np.asarray(content["y"]).reshape(-1)
            images = np.ascontiguousarray(np.asarray(content["X"]).transpose(3, 0, 1, 2))
            halves[half] = _checked(images, np.where(labels == 10, 0, labels))
        except _DAMAGE as error:
            raise UserError(
                f"{file} must hold X, uint8 (32, 32, 3, N), and y, N digits; it is damaged, or another file: "
                f"{_line(error)}"
            ) from error
    return halves


def read_mnistm(root: Path) -> Halves | None:
    """MNIST-M as its authors distribute it, or ``None`` if ``root`` does not hold it.

    This is either ``mnistm*.npz``, or, in ``mnistm/``, ``mnist_m/`` or ``root`` itself, the folders ``mnist_m_train``
    and ``mnist_m_test`` with lists ``mnist_m_train_labels.txt`` and ``mnist_m_test_labels.txt`` ("name label" per
    line).

    Raises:
        UserError: if a file is damaged, or listed but missing.
    """
    found = read_npz("mnistm", root)
    if found is not None:
        return found
    for folder in (root / "mnistm", root / "mnist_m", root):
        if (folder / "mnist_m_train_labels.txt").exists():
            return {half: _read_listed(folder, half) for half in ("train", "test")}
    return None


def _read_listed(folder: Path, half: str) -> Arrays:
    listing = folder / f"mnist_m_{half}_labels.txt"
    try:
        rows = [line.split() for line in listing.read_text().splitlines() if line.strip()]
        names, labels = [row[0] for row in rows], [int(row[1]) for row in rows]
    except _DAMAGE as error:
        _refuse_unreadable(error, listing)
        raise UserError(f'{listing} must exist and say "name label" on each line: {_line(error)}') from error
    files = [folder / f"mnist_m_{half}" / name for name in names]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(f"{listing} names {len(files)} images, {len(missing)} of which are missing, {missing[0]} first")

    def make() -> Arrays:
        return _checked(np.stack([np.asarray(load_rgb(file)) for file in files]), np.asarray(labels))

    stats = [file.stat() for file in files]
    key = [str(folder.resolve()), rows, [(stat.st_size, stat.st_mtime_ns) for stat in stats]]
    try:
        return cached_arrays(f"mnist_m_{half}", {"version": 1, "files": digest(key)}, make)
    except ValueError as error:
        raise UserError(f"the images that {listing} names must be of one size, with labels 0 to 9: {error}") from error


def photographs(root: Path) -> list[Images] | None:
    """The photographs in ``photos/*.jpg`` to blend MNIST-M with, or ``None`` if there are none.

    Raises:
        UserError: if one cannot be decoded.
    """
    files = sorted((root / "photos").glob("*.jpg"))
    return [np.asarray(load_rgb(file)) for file in files] or None


def _refuse_unreadable(error: Exception, path: Path) -> None:
    """Ends with a sentence if the file system refused to read a file, which then is neither missing nor damaged."""
    if isinstance(error, OSError) and error.errno is not None and error.errno not in (ENOENT, ENOTDIR):
        with reading("the file", Path(error.filename or path)):
            raise error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
