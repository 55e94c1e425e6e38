"""Where the archives of the benchmarks lie (``mirrors.yaml``), and what is known of their content."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class MirroredFile:
    """A file that a server holds.

    Args:
        name: its name on disk.
        url: its address.
        md5: its hash; ``None`` if it is not known.
        sha256: likewise.
        to: folder below the root of a file that is no archive; the root itself if empty.
    """

    name: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    to: str = ""


@dataclass(frozen=True)
class Mirror:
    """The files of one benchmark.

    Args:
        files: those that a server holds.
        why: why none, or not all, can be fetched; empty if all can.
        provenance: how the addresses and hashes are known: ``seen`` or ``recalled``.
    """

    files: tuple[MirroredFile, ...]
    why: str
    provenance: str


@lru_cache(maxsize=1)
def mirrors() -> Mapping[str, Mirror]:
    """What is known of the archives of each benchmark, by its name."""
    facts = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {
        name: Mirror(
            files=tuple(
                MirroredFile(**{"name": one["url"].rpartition("/")[2], **one}) for one in given.get("files", ())
            ),
            why=given.get("why", ""),
            provenance=given.get("provenance", ""),
        )
        for name, given in facts.items()
    }
