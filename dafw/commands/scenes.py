"""``dafw data list`` and ``dafw data check`` for street scenes, which have masks in place of classes of images."""

from collections.abc import Iterator
from pathlib import Path

from dafw.data.entries import PassedOver
from dafw.errors import UserError
from dafw.files import reading
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
    for what, how in facts["provenance"].items():
        yield f"  {what}: {how}"
    for what in ("get", "licence", "paper"):
        yield f"  {'from' if what == 'get' else what}: {facts[what]}"


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
    with reading("the folder", root):
        if not root.is_dir():
            raise UserError(f"the folder {root} (--root) does not exist")
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
    if complete:
        return [*lines, f"{name} is complete"], True
    how = [f"how that is known, {what}: {said}" for what, said in facts["provenance"].items()]
    return [*lines, f"{name} is not complete", *how, f"where to get it: {facts['get']}"], False


def _line(part: str, found: list[Scene], count: int) -> str:
    masks, references = sum(bool(one.mask) for one in found), sum(bool(one.reference) for one in found)
    beside = f", {references:,} references" if references else ""
    difference = len(found) - count
    missing = f"{abs(difference):,} images {'too many' if difference > 0 else 'are missing'}"
    return (
        f"{part}: {len(found):,} of {count:,} images, {masks:,} masks{beside}; {missing if difference else 'complete'}"
    )
