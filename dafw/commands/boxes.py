"""``dafw data list`` and ``dafw data check`` for the benchmarks with boxes."""

from collections.abc import Iterator
from pathlib import Path

from dafw.errors import UserError
from dafw.files import reading
from datamodules.box_layouts import WHEAT, find_boxes, layouts, list_boxes
from datamodules.box_listing import Annotated
from datamodules.wheat import read_wheat


def box_names() -> tuple[str, ...]:
    """The benchmarks with boxes."""
    return tuple(layouts())


def describe_boxes(name: str) -> Iterator[str]:
    """One benchmark in a few lines."""
    facts = layouts()[name]
    sizes = ", ".join(f"{part} {count:,}" for part, count in facts["counts"].items())
    owner = "GlobalWheat" if facts["kind"] == WHEAT else "BoxBenchmarks"
    boxes = f", {facts['boxes']:,} boxes" if "boxes" in facts else ""
    classes = len(facts["classes"])
    yield (
        f"{name} ({owner}): {sum(facts['counts'].values()):,} images{boxes}, {classes} class{'es' * (classes > 1)} of "
        f"boxes: {sizes}"
    )
    for what, how in facts["provenance"].items():
        yield f"  {what}: {how}"
    for what in ("get", "licence", "paper"):
        yield f"  {'from' if what == 'get' else what}: {facts[what]}"


def check_box_files(name: str, root: Path) -> tuple[list[str], bool]:
    """Compares the images and annotations of a benchmark with those that should be there.

    Args:
        name: the benchmark.
        root: folder that holds the folders of the datasets.

    Returns:
        The comparison as lines of text, and whether all is there.

    Raises:
        UserError: if the folder does not exist or holds nothing of the benchmark, or a file is missing or wrong.
    """
    with reading("the folder", root):
        if not root.is_dir():
            raise UserError(f"the folder {root} (--root) does not exist")
    facts = layouts()[name]
    lines, complete = [f"{name} in {root if facts['kind'] == WHEAT else find_boxes(root, name) or root}"], True
    found = _samples(name, root)
    for part, count in facts["counts"].items():
        own = [one for one in found if one.part == part]
        complete = complete and len(own) == count
        lines.append(_line(part, own, count))
    if complete:
        return [*lines, f"{name} is complete"], True
    how = [f"how that is known, {what}: {said}" for what, said in facts["provenance"].items()]
    return [*lines, f"{name} is not complete", *how, f"where to get it: {facts['get']}"], False


def _samples(name: str, root: Path) -> list[Annotated]:
    if layouts()[name]["kind"] != WHEAT:
        return list(list_boxes(root, name).annotated or ())
    return [one for listed in read_wheat(root).values() for one in listed.annotated or ()]


def _line(part: str, found: list[Annotated], count: int) -> str:
    boxes, crowd = sum(len(one.boxes) for one in found), sum(box.crowd for one in found for box in one.boxes)
    empty = sum(not one.boxes for one in found)
    difference = len(found) - count
    missing = f"{abs(difference):,} images {'too many' if difference > 0 else 'are missing'}"
    beside = f" ({crowd:,} crowd or difficult)" if crowd else ""
    return (
        f"{part}: {len(found):,} of {count:,} images, {boxes:,} boxes{beside}, {empty:,} images without a box; "
        f"{missing if difference else 'complete'}"
    )
