"""``dafw data list`` and ``dafw data check`` for the variants of CIFAR and ImageNet on which test time is measured."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import datamodules
from dafw.commands.complete import check_root, difference, origin, verdict
from dafw.data.corruptions import COMMON, HELD_OUT, KINDS, SEVERITIES
from dafw.errors import UserError
from datamodules import cifar_c
from datamodules.imagenet_variants import find_variant, list_variant


@cache
def shifts() -> dict[str, Any]:
    """What is known of each variant, by name."""
    path = Path(cifar_c.__file__).with_name("shifts.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def describe_shift(name: str) -> Iterator[str]:
    """One variant in a few lines."""
    facts = shifts()[name]
    domains = facts["domains"]
    each = f"each of {len(COMMON)} + {len(HELD_OUT)} corruptions at {len(SEVERITIES)} severities"
    where = f"in {each}" if domains == "corruptions" else f"in {', '.join(domains)}"
    yield f"{name} ({facts['datamodule']}): {facts['images']:,} images {where}, {facts['classes']} classes"
    yield from origin(facts)


def check_shift(name: str, root: Path) -> tuple[list[str], bool]:
    """Compares the files of a variant with those that should be there.

    The four held-out corruptions may be missing: they lie in archives of their own.

    Args:
        name: the variant.
        root: its folder, as given to ``data.root``.

    Returns:
        The comparison as lines of text, and whether all is there.

    Raises:
        UserError: if the folder does not exist or holds nothing of the variant, or a file is broken.
    """
    check_root(root)
    facts = shifts()[name]
    arrays = facts["datamodule"] in ("CIFAR10C", "CIFAR100C")
    lines, complete, found = [], True, 0
    for kind, counts in (_arrays(facts, root) if arrays else _folders(facts, root)).items():
        found += bool(counts)
        wrong = {place: count for place, count in counts.items() if count != facts["images"]}
        state = "missing" if not counts else "complete"
        if wrong:
            place, count = next(iter(wrong.items()))
            state = f"{place}: {difference(count, facts['images'])}"
        optional = not counts and kind in HELD_OUT
        complete = complete and (optional or state == "complete")
        lines.append(f"{kind}: {state}{', which is one of the held-out corruptions' if optional else ''}")
    if not found:
        raise UserError(f"{root} (--root) holds nothing of {name}: get {facts['get']}")
    return verdict(name, [f"{name} in {root}", *lines], facts, complete)


def _arrays(facts: dict[str, Any], root: Path) -> dict[str, dict[str, int]]:
    """By corruption the number of images of each severity; empty if its array is not there."""
    owner = getattr(datamodules, facts["datamodule"])
    home = cifar_c.find_arrays(root, owner.folder)
    labels = cifar_c.read_labels(home / "labels.npy", facts["classes"])
    found: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        path = home / f"{kind}.npy"
        images = cifar_c.read_images(path, len(labels)) if path.is_file() else ()
        found[kind] = {f"severity {one}": len(images) // len(SEVERITIES) for one in SEVERITIES if len(images)}
    return found


def _folders(facts: dict[str, Any], root: Path) -> dict[str, dict[str, int]]:
    """By corruption the number of images of each severity; by other domains that number; empty if nothing is there."""
    if facts["domains"] != "corruptions":
        names = {name: {name: name} for name in facts["domains"]}
    else:
        names = {kind: {f"severity {one}": f"{kind}_{one}" for one in SEVERITIES} for kind in KINDS}
    counts = {
        kind: {
            place: len(list_variant(root, name)) if find_variant(root, name) is not None else 0
            for place, name in places.items()
        }
        for kind, places in names.items()
    }
    return {kind: found if any(found.values()) else {} for kind, found in counts.items()}
