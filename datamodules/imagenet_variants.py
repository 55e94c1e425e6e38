"""ImageNet-C, ImageNet-R, ImageNet-Sketch and ImageNet-A in the folders that their authors publish."""

from pathlib import Path
from typing import Any

from dafw.data.corruptions import KINDS, SEVERITIES, parse_domain
from dafw.data.entries import Entries
from dafw.data.imagenet import SUBSETS, classes_of
from dafw.data.manifest import scan_folder, subfolders
from dafw.data.trained import looks_for_files
from dafw.errors import UserError, choose
from dafw.files import user_path
from datamodules.corruptions import expanded
from datamodules.folder import ImageFolderDomains

FOLDERS = {
    "imagenet": ("val", "imagenet/val", "ILSVRC2012/val", "imagenet"),
    "imagenet_r": ("imagenet-r", "imagenet_r"),
    "imagenet_sketch": ("sketch", "imagenet-sketch", "ImageNet-Sketch/sketch", "imagenet_sketch"),
    "imagenet_a": ("imagenet-a", "imagenet_a"),
}
"""By domain the folders below the root in which the folders of its classes may lie."""
CORRUPTED = ("", "imagenet-c", "ImageNet-C", "imagenet_c")
"""Folders below the root in which those of ImageNet-C's corruptions may lie, in a folder of their group or not."""


class ImageNetVariants(ImageFolderDomains):
    """ImageNet-C, -R, -Sketch and -A: photographs and drawings of ImageNet's classes that a classifier has not seen.

    The domains are ``imagenet_r``, ``imagenet_sketch``, ``imagenet_a``, and for ImageNet-C ``<kind>_<severity>``, whose
    images are in ``<kind>/<severity>/<class>/``. ``imagenet`` is the validation set, sorted into folders of classes; it
    need not be there if a run starts from a trained model. A class is the name of its folder, as ``n01440764``. The
    classes are the 1,000 of ImageNet in the usual order, also if a copy lacks some. ImageNet-R and ImageNet-A have 200
    of them: a classifier of 1,000 keeps those with ``model.network.head_rows``.

    All images of a target are its test split. Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261;
    Hendrycks et al., ICCV 2021, https://arxiv.org/abs/2006.16241, and CVPR 2021, https://arxiv.org/abs/1907.07174; Wang
    et al., NeurIPS 2019, https://arxiv.org/abs/1905.13549.

    Args:
        source: ``imagenet``.
        target: domain or domains; ``common_5`` and ``held_out_5`` are groups of ImageNet-C.
        root: folder that holds the folders of the variants.
        size: height and width of the network's input, in pixels.
        resize: height and width before cropping, in pixels; if ``None`` ``size`` for ImageNet-C, whose images are cut
            already, and 256 for 224 otherwise.
        transductive: all images of a target are its test split; if not, a share of them.
        options: see :class:`datamodules.folder.ImageFolderDomains`.

    Raises:
        UserError: for an unknown domain, targets with other classes than each other, or folders that are not there.
    """

    def __init__(
        self,
        source: str | list[str] = "imagenet",
        target: str | list[str] = "common_5",
        *,
        root: str,
        size: int = 224,
        resize: int | None = None,
        transductive: bool = True,
        **options: Any,
    ) -> None:
        named = [target] if isinstance(target, str) else list(target)
        targets = [one for name in named for one in ([name] if name in FOLDERS else expanded([name]))]
        kinds = {name if name in SUBSETS else "imagenet" for name in targets}
        if len(kinds) > 1:
            raise UserError(f"the targets {' and '.join(sorted(kinds))} have other classes: test each by itself")
        corrupted = [name not in FOLDERS for name in targets]
        if resize is None and any(corrupted) and not all(corrupted):
            raise UserError("images of ImageNet-C are cut already, those of other targets are not: give data.resize")
        if resize is None:
            resize = size if all(corrupted) else round(size * 256 / 224)
        super().__init__(source, targets, root=root, size=size, resize=resize, transductive=transductive, **options)
        self.class_names = classes_of(kinds.pop()) if looks_for_files() else self.class_names

    def _domains(self, listed: Entries | None) -> tuple[str, ...]:
        return (*FOLDERS, *(f"{kind}_{severity}" for kind in KINDS for severity in SEVERITIES))

    def _list(self, name: str, listed: Entries | None) -> Entries:
        if listed is not None:
            return super()._list(name, listed)
        entries = list_variant(self.root, name)
        strange = sorted({label for label in entries.labels.counts() if label} - set(classes_of(name)))
        if strange:
            raise UserError(f'{self.root} has a folder "{strange[0]}" for {name}, which is none of its classes')
        return entries


def find_variant(root: Path, name: str) -> Path | None:
    """The folder with a domain's folders of classes; ``None`` if there is none."""
    if name in FOLDERS:
        return next((root / one for one in FOLDERS[name] if (root / one).is_dir() and subfolders(root / one)), None)
    kind, severity = parse_domain(name)
    homes = [root / home for home in CORRUPTED if (root / home).is_dir()]
    homes += [group for home in homes for group in subfolders(home)]
    return next((home / kind / str(severity) for home in homes if (home / kind / str(severity)).is_dir()), None)


def list_variant(root: Path, name: str) -> Entries:
    """The images of a domain, with paths relative to ``root``.

    Raises:
        UserError: if its folder is not there, or holds no images in folders of classes.
    """
    choose("domain", name, (*FOLDERS, *(f"{kind}_{severity}" for kind in KINDS for severity in SEVERITIES)))
    folder = find_variant(user_path(root), name)
    if folder is None:
        wanted = " or ".join(FOLDERS.get(name, (name.rpartition("_")[0] + "/" + name.rpartition("_")[2],)))
        raise UserError(f"{root} (data.root) holds no folder {wanted} with the images of {name}")
    return scan_folder(root, folder.relative_to(root).as_posix())
