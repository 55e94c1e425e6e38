"""Where the files of the Amazon reviews lie, in the two forms that their authors publish (``reviews.yaml``)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from dafw.errors import UserError
from dafw.files import reading


@dataclass(frozen=True)
class ReviewFacts:
    """What is known of one form.

    Args:
        folder: name of the folder that its archive unpacks to.
        names: other names of a domain's folder, by domain.
        files: by domain and by file the number of reviews; ``None`` if it is not known.
        provenance: by what is known, how.
        get: what to get.
        licence: under which it may be used.
        paper: that describes it.
    """

    folder: str
    names: Mapping[str, tuple[str, ...]]
    files: Mapping[str, Mapping[str, int | None]]
    provenance: Mapping[str, str]
    get: str
    licence: str
    paper: str

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(self.files)

    def each(self) -> Iterator[tuple[str, str]]:
        """Domain and kind of every file."""
        return ((name, kind) for name, kinds in self.files.items() for kind in kinds)


@lru_cache(maxsize=1)
def review_layouts() -> Mapping[str, ReviewFacts]:
    """The two forms, by the name of the datamodule that reads them."""
    facts = yaml.safe_load(Path(__file__).with_name("reviews.yaml").read_text(encoding="utf-8"))
    return {name: ReviewFacts(**one) for name, one in facts.items()}


def find_reviews(facts: ReviewFacts, root: Path) -> Path:
    """The folder of the domains: ``root``, or the archive's folder in it.

    Raises:
        UserError: if ``root`` is no folder that can be read.
    """
    with reading("the folder", root):
        inside = {one.name for one in root.iterdir()}
    return root / facts.folder if facts.folder in inside else root


def review_file(facts: ReviewFacts, home: Path, domain: str, kind: str) -> Path:
    """A file of a domain, whether it is there or not.

    Args:
        facts: of the form.
        home: see :func:`find_reviews`.
        domain: its name.
        kind: ``positive``, ``negative`` or ``unlabeled``. Those of books without labels are in ``book.unlabeled``.
    """
    folders = [home / name for name in facts.names.get(domain, (domain,))]
    folder = next((one for one in folders if one.is_dir()), folders[0])
    other = folder / f"{domain.removesuffix('s')}.unlabeled"
    return other if kind == "unlabeled" and other.is_file() else folder / f"{kind}.review"


def existing_review_file(facts: ReviewFacts, home: Path, domain: str, kind: str) -> Path:
    """As :func:`review_file`.

    Raises:
        UserError: if the file is not there.
    """
    path = review_file(facts, home, domain, kind)
    if not path.is_file():
        raise UserError(f"{home} (data.root) has no {kind} reviews of {domain}, {path.relative_to(home)}: {facts.get}")
    return path
