"""A small benchmark in folders: two domains with three classes."""

from pathlib import Path

from datamodules.folder import ImageFolderDomains

COUNTS = {"art": {"cup": 30, "mug": 24, "pen": 20}, "photo": {"cup": 20, "mug": 26, "pen": 30}}


def make(root: Path, **options) -> ImageFolderDomains:
    return ImageFolderDomains(
        **{"source": "art", "target": "photo", "root": str(root), "size": 12, "resize": 16, "batch_size": 8, **options}
    )


def splits(data: ImageFolderDomains, name: str) -> dict[str, list[str]]:
    return {split: list(data.load(name, split).ids or []) for split in ("train", "val", "test")}
