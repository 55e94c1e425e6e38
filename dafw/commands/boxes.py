"""``dafw data list`` and ``dafw data check`` for the benchmarks with boxes."""

from collections.abc import Iterator
from pathlib import Path

from dafw.commands.complete import check_root, difference, origin, verdict
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
    yield from origin(facts)


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
    check_root(root)
    facts = layouts()[name]
    lines, complete = [f"{name} in {root if facts['kind'] == WHEAT else find_boxes(root, name) or root}"], True
    found = _samples(name, root)
    for part, count in facts["counts"].items():
        own = [one for one in found if one.part == part]
        complete = complete and len(own) == count
        lines.append(_line(part, own, count))
    return verdict(name, lines, facts, complete)


def _samples(name: str, root: Path) -> list[Annotated]:
    if layouts()[name]["kind"] != WHEAT:
        return list(list_boxes(root, name).annotated or ())
    return [one for listed in read_wheat(root).values() for one in listed.annotated or ()]


def _line(part: str, found: list[Annotated], count: int) -> str:
    boxes, crowd = sum(len(one.boxes) for one in found), sum(box.crowd for one in found for box in one.boxes)
    empty = sum(not one.boxes for one in found)
    beside = f" ({crowd:,} crowd or difficult)" if crowd else ""
    return (
        f"{part}: {len(found):,} of {count:,} images, {boxes:,} boxes{beside}, {empty:,} images without a box; "
        f"{difference(len(found), count)}"
    )
