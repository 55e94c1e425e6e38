"""CIFAR-10-C and CIFAR-100-C as their authors publish them: one array of all severities for each corruption."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dafw.data.corruptions import KINDS, SEVERITIES, parse_domain
from dafw.data.domain import ArrayImages, Domain
from dafw.data.preparing import Fitted
from dafw.data.roles import Split
from dafw.data.trained import looks_for_files
from dafw.errors import UserError, choose, sentence
from dafw.files import reading, user_path
from datamodules.base import DomainDataModule
from datamodules.corruptions import expanded

CLEAN = "clean"
"""Name of the source, whose images the folder does not have."""
SIZE = 32
EACH = 10_000
"""Images of each severity in the published arrays."""


class _CifarC(DomainDataModule):
    """The domains ``<kind>_<severity>`` of ``root/<kind>.npy`` and ``root/labels.npy``.

    An array is uint8 (5 n, 32, 32, 3), the severities one after the other; the labels are (5 n,). Published are n =
    10,000 test images. All splits of a domain are its n images, but for a tenth of them as its validation split. Images
    of the source are not in the folder: start from a trained model, with ``model.checkpoint`` or ``model.network``.

    Args:
        source: ``clean``.
        target: corruptions with severities, as ``fog_5``; ``common_5`` and ``held_out_5`` are groups.
        root: the folder of the arrays, or the one above it.
        options: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: for an unknown corruption or severity, or a file that is missing, broken or of another form.
    """

    folder: ClassVar[str] = ""

    def __init__(
        self,
        source: str | list[str] = CLEAN,
        target: str | list[str] = "common_5",
        *,
        root: str,
        **options: Any,
    ) -> None:
        named = [source] if isinstance(source, str) else list(source)
        if named != [CLEAN]:
            raise UserError(f"data.source of {type(self).__name__} is {CLEAN}, not {', '.join(named)}")
        self.domain_names = (CLEAN, *(f"{kind}_{severity}" for kind in KINDS for severity in SEVERITIES))
        super().__init__(source, expanded([target] if isinstance(target, str) else list(target)), **options)
        self.root = find_arrays(user_path(root), self.folder) if looks_for_files() else user_path(root)
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def load(self, name: str, split: Split) -> Domain:
        """The images of a corruption at a severity, uint8 (3, 32, 32).

        Raises:
            UserError: for the source, or a file that is missing, broken or of another form.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, ("train", "val", "test"))
        if name == CLEAN:
            raise UserError(f"{self.root} holds no images of {CLEAN}: {self.folder} has corrupted test images alone")
        kind, severity = parse_domain(name)
        if "labels" not in self._arrays:
            self._arrays["labels"] = read_labels(self.root / "labels.npy", len(self.class_names))
        labels = self._arrays["labels"]
        if kind not in self._arrays:
            self._arrays[kind] = read_images(self.root / f"{kind}.npy", len(labels))
        count = len(labels) // len(SEVERITIES)
        place = slice((severity - 1) * count, severity * count)
        found = Domain(name, ArrayImages(self._arrays[kind][place]), labels[place].astype(np.int64))
        return found.subset(range(0, count, 10)) if split == "val" else found

    def evaluation_transform(self) -> Any:
        """From a file or an image of Pillow to uint8 (3, 32, 32)."""
        return Fitted(SIZE, SIZE, "squash")


class CIFAR10C(_CifarC):
    """CIFAR-10-C: 10,000 test images of 10 classes under 19 corruptions at 5 severities (Hendrycks, ICLR 2019).

    See https://arxiv.org/abs/1903.12261. The files are ``CIFAR-10-C/<kind>.npy`` and ``labels.npy``.
    """

    folder = "CIFAR-10-C"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR100C(_CifarC):
    """CIFAR-100-C: 10,000 test images of 100 classes under 19 corruptions at 5 severities (Hendrycks, ICLR 2019).

    See https://arxiv.org/abs/1903.12261. The files are ``CIFAR-100-C/<kind>.npy`` and ``labels.npy``.
    """

    folder = "CIFAR-100-C"
    class_names = (
        *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle"),
        *("bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle"),
        *("chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup"),
        *("dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house"),
        *("kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man"),
        *("maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid"),
        *("otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine"),
        *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew"),
        *("skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower"),
        *("sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout"),
        *("tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
    )


def find_arrays(root: Path, folder: str) -> Path:
    """The folder of the arrays: ``root`` or ``root/<folder>``.

    Raises:
        UserError: if neither has ``labels.npy``.
    """
    with reading("the folder", root):
        if not root.is_dir():
            raise UserError(f"the folder {root} (data.root) does not exist")
    found = next((home for home in (root, root / folder) if (home / "labels.npy").is_file()), None)
    if found is None:
        raise UserError(f"{root} (data.root) holds no labels.npy, and neither does {folder} in it")
    return found


def read_array(path: Path) -> NDArray[Any]:
    """The array of a file, memory-mapped.

    Raises:
        UserError: naming the file, if it is missing, broken, or holds Python objects.
    """
    try:
        with reading("the array", path):
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"the array {path} cannot be read: {sentence(error)}") from error
    return found


def read_labels(path: Path, classes: int) -> NDArray[Any]:
    """The labels of all severities, (5 n,).

    Raises:
        UserError: naming the file, if they are no whole numbers below ``classes``, or no multiple of five.
    """
    labels = read_array(path)
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or len(labels) % len(SEVERITIES) or not len(labels):
        raise UserError(f"{path} has {labels.dtype} {labels.shape}, where labels are whole numbers (5 n,)")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"{path} has labels from {labels.min()} to {labels.max()}, where there are {classes} classes")
    return labels


def read_images(path: Path, count: int) -> NDArray[np.uint8]:
    """The images of all severities, uint8 (5 n, 32, 32, 3).

    Raises:
        UserError: naming the file, if its form is another, or the labels have another length.
    """
    images = read_array(path)
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
        raise UserError(f"{path} has {images.dtype} {images.shape}, where images are uint8 (5 n, {SIZE}, {SIZE}, 3)")
    if len(images) != count:
        raise UserError(f"{path} has {len(images)} images, and labels.npy beside it {count} labels")
    return images
