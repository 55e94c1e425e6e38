"""The classes of ImageNet, and which of them its variants have, as timm's files list them."""

from functools import cache
from pathlib import Path

from dafw.errors import choose

SUBSETS = {"imagenet_r": "imagenet_r", "imagenet_a": "imagenet_a"}
"""Variants with 200 of the 1,000 classes."""


def _lines(name: str) -> list[str]:
    import timm

    folder = Path(timm.__file__).parent / "data" / "_info"
    return (folder / name).read_text(encoding="utf-8").split()


@cache
def synsets() -> tuple[str, ...]:
    """The 1,000 classes by the names of their folders, as ``n01440764``, in the order of a classifier's outputs."""
    return tuple(_lines("imagenet_synsets.txt"))


@cache
def rows_of(variant: str) -> tuple[int, ...]:
    """The outputs of a classifier of 1,000 classes that the classes of a variant have, in their order.

    Raises:
        UserError: for a variant with all classes, or an unknown one.
    """
    choose("variant of ImageNet", variant, SUBSETS)
    return tuple(map(int, _lines(f"{SUBSETS[variant]}_indices.txt")))


def classes_of(variant: str) -> tuple[str, ...]:
    """The classes of a variant by the names of their folders, in the order of the 1,000."""
    return tuple(synsets()[row] for row in rows_of(variant)) if variant in SUBSETS else synsets()
