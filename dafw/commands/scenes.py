"""``dafw data list`` and ``dafw data check`` for street scenes, which have masks in place of classes of images."""

from collections.abc import Iterator
from pathlib import Path

from dafw.commands.complete import check_root, difference, origin, verdict
from dafw.data.entries import PassedOver
from dafw.errors import UserError
from datamodules.scene_layouts import FOGS, Scene, class_names, find_scene_folder, list_scenes, scenes


def scene_names() -> tuple[str, ...]:
    """The domains of street scenes."""
    return tuple(scenes()["domains"])


def describe_scenes(name: str) -> Iterator[str]:
    """One domain in a few lines."""
    facts = scenes()["domains"][name]
    parts = {part: given["count"] for part, given in facts["parts"].items()}
    sizes = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    yield f"{name} (DrivingScenes): {sum(parts.values()):,} images, {len(class_names(19))} classes: {sizes}"
    yield from origin(facts)


def check_scenes(name: str, root: Path) -> tuple[list[str], bool]:
    """Compares the images, masks and references of a domain with those that should be there.

    Args:
        name: the domain.
        root: folder that holds the folders of the datasets.

    Returns:
        The comparison as lines of text, and whether all is there.

    Raises:
        UserError: if the folder does not exist or holds nothing of the domain, or a mask is missing.
    """
    check_root(root)
    facts = scenes()["domains"][name]
    folder = find_scene_folder(root, name)
    if folder is None:
        wanted = " or ".join(facts["folders"])
        raise UserError(f"{root} (--root) holds no folder {wanted} with images of {name}: get {facts['get']}")
    lines, complete = [f"{name} in {folder}"], True
    for fog in FOGS if "{fog}" in facts["names"]["image"] else FOGS[-1:]:
        found = list_scenes(folder, name, fog, PassedOver())
        for part, given in facts["parts"].items():
            own = [one for one in found if one.part == part]
            complete = complete and len(own) == given["count"]
            lines.append(
                _line(part if "{fog}" not in facts["names"]["image"] else f"{part}, fog {fog}", own, given["count"])
            )
    return verdict(name, lines, facts, complete)


def _line(part: str, found: list[Scene], count: int) -> str:
    masks, references = sum(bool(one.mask) for one in found), sum(bool(one.reference) for one in found)
    beside = f", {references:,} references" if references else ""
    return f"{part}: {len(found):,} of {count:,} images, {masks:,} masks{beside}; {difference(len(found), count)}"
