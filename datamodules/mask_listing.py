"""Finds images and their masks in folders, and slices and their masks in volumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dafw.data.entries import PassedOver
from dafw.data.images import image_stat
from dafw.data.manifest import contents
from dafw.data.readers import ImageFiles, MaskFiles, Reader, Slice, Volumes, read_volume
from dafw.errors import UserError
from dafw.files import reading


@dataclass(frozen=True)
class Listed:
    """The samples of one domain.

    Args:
        images: their images.
        masks: their masks; ``None`` without labels. A mask with an empty name is none.
        volumes: for each the volume or subject that it is of; ``None`` if each sample stands alone.
        splits: for each its split; ``None`` if a hash decides.
        passed_over: what was found beside them.
        references: for each the file of an image of the same place in another condition, relative to the root; empty
            where there is none.
    """

    images: Reader
    masks: Reader | None
    volumes: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    passed_over: PassedOver | None = None
    references: Sequence[str] | None = None


def files_below(root: Path, inside: str, passed: PassedOver) -> Iterator[str]:
    """Paths of the images in a folder and in those inside it, relative to ``root``, sorted folder by folder."""
    images, folders = contents(root / inside, inside, passed)
    yield from (f"{inside}/{name}" for name in images)
    for folder in folders:
        yield from files_below(root, f"{inside}/{folder}", passed)


def list_masks(root: Path, domain: str, suffixes: tuple[str, str], colours: bool, subjects: bool) -> Listed:
    """The samples of one domain.

    These are the images in ``root/<domain>/images`` with the masks of the same names in ``root/<domain>/masks``; or,
    without labels, the images in ``root/<domain>`` itself; or the slices of the volumes ``root/<domain>/*.npz``.

    Args:
        root: folder of the domains.
        domain: name of the domain.
        suffixes: what the names of images and of masks end with beside the common part.
        colours: whether masks are read as colours.
        subjects: whether all images of one folder are of one subject.

    Raises:
        UserError: naming the folder or the file, if there is no image, an image has no mask, or a mask no image.
    """
    top, passed = root / domain, PassedOver()
    with reading("the folder", top):
        if not top.is_dir():
            raise UserError(f"the domain folder {top} does not exist")
        volumes = sorted(path.name for path in top.glob("*.npz") if not path.name.startswith("."))
        folder = f"{domain}/images" if (top / "images").is_dir() else domain
        labelled = (top / "masks").is_dir()
    if volumes:
        return _list_volumes(root, [f"{domain}/{name}" for name in volumes])
    if labelled and folder == domain:
        raise UserError(f"{top} has a folder masks and no folder images: put the images there")
    images = list(files_below(root, folder, passed))
    if not images:
        raise UserError(f"the domain folder {top} holds no images{f': it holds {passed}' if passed else ''}")
    masks: Reader | None = None
    if labelled:
        found = list(files_below(root, f"{domain}/masks", passed))
        ordered = pair(images, found, (folder, f"{domain}/masks"), suffixes, root)
        masks = MaskFiles(ordered, root, colours)
    by_folder = [path.rpartition("/")[0] for path in images] if subjects else None
    if by_folder is not None and len(set(by_folder)) == 1:
        raise UserError(f"data.subjects needs a folder of images for each subject, and {root / folder} has none")
    return Listed(ImageFiles(images, root), masks, by_folder, passed_over=passed)


def pair(
    images: Sequence[str], masks: Sequence[str], folders: tuple[str, str], suffixes: tuple[str, str], root: Path
) -> list[str]:
    """The mask of each image: the one of the same name within its folder, but for suffixes and the file's ending.

    Args:
        images: paths of images, relative to ``root``.
        masks: paths of masks.
        folders: the folder of the images and that of the masks.
        suffixes: what the names of images and of masks end with beside the common part.
        root: what the paths are relative to.

    Raises:
        UserError: naming the first image without a mask, the first mask without an image, or two masks of one image.
    """
    by_name: dict[str, str] = {}
    for mask in masks:
        name = _common(mask, folders[1], suffixes[1])
        if name in by_name:
            raise UserError(f"{root / by_name[name]} and {root / mask} are masks of one image: remove one")
        by_name[name] = mask
    names = [_common(image, folders[0], suffixes[0]) for image in images]
    for kind, other, alone in (
        ("image", "mask", [one for one, name in zip(images, names, strict=True) if name not in by_name]),
        ("mask", "image", [by_name[name] for name in sorted(by_name.keys() - set(names))]),
    ):
        if alone:
            more = f", nor have {len(alone) - 1} more" if len(alone) > 1 else ""
            place = folders[1] if kind == "image" else folders[0]
            hint = "; a target needs no folder masks" if kind == "image" else ""
            raise UserError(
                f"the {kind} {root / alone[0]} has no {other} in {root / place}{more}: add or remove it{hint}"
            )
    return [by_name[name] for name in names]


def _common(path: str, folder: str, suffix: str) -> str:
    """A path within its folder, without the file's ending and the suffix."""
    inside = path[len(folder) + 1 :]
    return inside[: inside.rindex(".")].removesuffix(suffix)


def _list_volumes(root: Path, files: Sequence[str]) -> Listed:
    slices, subjects, labelled = list[Slice](), list[str](), dict[bool, str]()
    for file in files:
        path = root / file
        changed = image_stat(path).st_mtime_ns
        with reading("the volume", path):
            try:
                with np.load(path, allow_pickle=False) as stored:
                    present = set(stored.files)
                    subject = str(stored["subject"]) if "subject" in present else file
            except (ValueError, EOFError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise UserError(f"the volume {path} cannot be read ({error})") from error
        count = len(read_volume(path, "images", changed))
        labelled.setdefault("masks" in present, file)
        if "masks" in present and (found := len(read_volume(path, "masks", changed))) != count:
            raise UserError(f"the volume {path} has {count} slices and masks of {found}: it needs one for each slice")
        slices += [Slice(file, number) for number in range(count)]
        subjects += [subject] * count
    if len(labelled) > 1:
        raise UserError(
            f"{root / labelled[False]} has no masks, and {root / labelled[True]} has: give all of them masks"
        )
    masks = Volumes(slices, root, "masks") if True in labelled else None
    return Listed(Volumes(slices, root, "images"), masks, subjects)
