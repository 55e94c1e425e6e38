"""Layouts of the street scenes: the expected contents (``scenes.yaml``), and how to find them on disk."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dafw.data.entries import PassedOver
from dafw.data.manifest import contents, subfolders
from dafw.errors import UserError
from dafw.files import reading

FOGS = ("0.005", "0.01", "0.02")
"""Densities of the fog of Foggy Cityscapes, as its files name them."""


@dataclass(frozen=True)
class Scene:
    """One image of a street.

    Args:
        part: ``train``, ``test`` or ``all``, see ``scenes.yaml``.
        image: its file, relative to the dataset's folder.
        mask: that of its mask; empty if the part has no labels.
        kind: which numbers the mask holds.
        reference: the image of the same place in another condition; empty if none is known.
    """

    part: str
    image: str
    mask: str
    kind: str
    reference: str


@lru_cache(maxsize=1)
def scenes() -> dict[str, Any]:
    """The content of ``scenes.yaml``."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("scenes.yaml").read_text(encoding="utf-8"))
    return found


def class_names(count: int) -> tuple[str, ...]:
    """The names of the 19, 16 or 13 classes."""
    absent = scenes()["absent"][count]
    return tuple(name for name in scenes()["classes"] if name not in absent)


def numbers(kind: str, count: int) -> dict[str, int]:
    """By name of a class, its number in masks of a kind."""
    known = dict(zip(scenes()["classes"], scenes()["labels"][kind], strict=True))
    return {name: known[name] for name in class_names(count)}


def find_scene_folder(root: Path, domain: str) -> Path | None:
    """The folder of a dataset in ``root``, in any of its spellings; ``None`` if there is none.

    If several fit, the first that has images of the dataset.
    """
    facts = scenes()["domains"][domain]
    return find_folder(root, facts["folders"], [part["images"].partition("/")[0] for part in facts["parts"].values()])


def find_folder(root: Path, names: Sequence[str], inside: Sequence[str]) -> Path | None:
    """The first folder in ``root`` that has one of some names, in any spelling, and holds all of some folders.

    Args:
        root: where to look.
        names: compared without case and signs.
        inside: paths of folders, relative to the folder.
    """
    wanted = [_plain(name) for name in names]
    fitting = sorted(
        (folder for folder in subfolders(root) if _plain(folder.name) in wanted),
        key=lambda folder: wanted.index(_plain(folder.name)),
    )
    return next((folder for folder in fitting if all((folder / name).is_dir() for name in inside)), None)


def list_scenes(folder: Path, domain: str, fog: str, passed: PassedOver) -> list[Scene]:
    """The images of a dataset with their masks and references, sorted.

    Args:
        folder: of the dataset.
        domain: its name.
        fog: density of the fog, one of :data:`FOGS`.
        passed: gets what is no image.

    Raises:
        UserError: naming the first image whose mask is missing, or a folder that cannot be read.
    """
    facts = scenes()["domains"][domain]
    names, pairs = facts["names"], _pairs(folder, facts)
    ending = names["image"].format(fog=fog)
    return [
        Scene(part, image, *_mask(folder, image, ending, given, names), _reference(folder, image, given, names, pairs))
        for part, given in facts["parts"].items()
        for image in images_like(folder, given["images"], ending, passed)
    ]


def images_like(folder: Path, pattern: str, ending: str, passed: PassedOver) -> Iterator[str]:
    """Paths of the images in the folders of a pattern whose names have an ending, relative to ``folder``, sorted."""
    with reading("the folder", folder):
        places = sorted(place for place in folder.glob(pattern) if place.is_dir())
    for place in places:
        inside = place.relative_to(folder).as_posix()
        for name in contents(place, inside, passed)[0]:
            if name.rpartition(".")[0].endswith(ending):
                yield f"{inside}/{name}"


def _mask(folder: Path, image: str, ending: str, given: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, str]:
    if "masks" not in given:
        return "", ""
    here, there = given["masks"]
    stem = image.rpartition(".")[0].removesuffix(ending).replace(here, there, 1)
    tried = [f"{stem}{end}.png" for end in names["masks"]]
    for mask, kind in zip(tried, names["masks"].values(), strict=True):
        if (folder / mask).is_file():
            return mask, kind
    raise UserError(f"the image {folder / image} has no mask {folder / tried[-1]}: get the labels, too")


def _reference(
    folder: Path, image: str, given: Mapping[str, Any], names: Mapping[str, Any], pairs: Mapping[str, str]
) -> str:
    if image in pairs:
        return pairs[image]
    if "references" not in given:
        return ""
    here, there = given["references"]
    found = image.replace(here, there, 1).replace(names["image"], names["reference"])
    return found if (folder / found).is_file() else ""


def _pairs(folder: Path, facts: Mapping[str, Any]) -> dict[str, str]:
    """By image its reference, as a list of pairs beside the images says."""
    lists = [folder / name for name in facts.get("pairs", ()) if (folder / name).is_file()]
    if not lists:
        return {}
    end, pairs = facts["names"]["image"], {}
    with reading("the list of pairs", lists[0]):
        text = lists[0].read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        parts = [part.strip() for part in line.split(",")]
        if line.strip() and len(parts) != 2:
            raise UserError(f'{lists[0]}, line {number}: expected "image,reference", not "{line.strip()}"')
        if line.strip():
            image, reference = (f"rgb_anon/{part}{end}.png" for part in parts)
            pairs[image] = reference
    return pairs


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
