"""Layouts of the image benchmarks: the expected contents (``benchmarks.yaml``), and how to find them on disk."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dafw.data.entries import Entries, Entry, PassedOver
from dafw.data.files import digest
from dafw.data.manifest import contents, subfolders
from dafw.errors import UserError
from dafw.files import reading
from datamodules.sign_files import list_signs, read_lines


@dataclass(frozen=True)
class DomainFacts:
    """Known facts about one domain.

    Args:
        folders: possible names of its folder.
        images: number of images.
        counts: number of images of each class; empty if not known.
        numbered: names of lists "path number", one of which says what its images are instead of the folders.
    """

    folders: tuple[str, ...]
    images: int
    counts: Mapping[str, int]
    numbered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Known facts about one benchmark. The fields are those of ``benchmarks.yaml``, which explains them."""

    name: str
    domains: Mapping[str, DomainFacts]
    homes: tuple[str, ...]
    classes: tuple[str, ...]
    num_classes: int
    class_folders: Mapping[str, str | list[str]]
    parts: tuple[tuple[str, ...], ...]
    lists: tuple[str, ...]
    annotations: Mapping[str, str]
    provenance: Mapping[str, str]
    checksum: str | None
    get: str
    licence: str
    paper: str

    def names_files(self, name: str) -> bool:
        """Whether files other than the images may say which images a domain has, so that some may not be there."""
        return bool(self.lists or self.annotations or self.domains[name].numbered or self.name in _LISTERS)


@lru_cache(maxsize=1)
def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    facts = yaml.safe_load(Path(__file__).with_name("benchmarks.yaml").read_text(encoding="utf-8"))
    return {name: _benchmark(name, given) for name, given in facts.items()}


def _benchmark(name: str, given: dict[str, Any]) -> Benchmark:
    classes = tuple(given.get("classes", ()))
    domains = {
        domain: DomainFacts(
            folders=(domain, *facts.get("folders", ())),
            images=facts["images"],
            counts=dict(zip(classes, facts["classes"], strict=True)) if "classes" in facts else {},
            numbered=tuple(facts.get("numbered", ())),
        )
        for domain, facts in given["domains"].items()
    }
    return Benchmark(
        name=name,
        domains=domains,
        homes=tuple(given["homes"]),
        classes=classes,
        num_classes=given.get("num_classes", len(classes)),
        class_folders=given.get("class_folders", {}),
        parts=tuple(map(tuple, given.get("parts", ()))),
        lists=tuple(given.get("lists", ())),
        annotations=given.get("annotations", {}),
        provenance=given["provenance"],
        checksum=given.get("checksum"),
        get=given["get"],
        licence=given["licence"],
        paper=given["paper"],
    )


def find_home(facts: Benchmark, root: Path) -> Path:
    """The folder that holds the benchmark's domains: ``root`` or one of the ``homes`` below it.

    Raises:
        UserError: if ``root`` does not exist, or no domain is there.
    """
    with reading("the folder", root):
        homes = [home for home in (root, *(root / name for name in facts.homes)) if home.is_dir()]
    if root not in homes:
        raise UserError(f"the folder {root} (data.root) does not exist")
    for home in homes:
        if _annotated(facts, home) or any(find_domain(facts, home, name) for name in facts.domains):
            return home
    names = ", ".join(facts.domains)
    raise UserError(f"{root} (data.root) holds none of {facts.name}'s domain folders ({names}): get {facts.get}")


def find_domain(facts: Benchmark, home: Path, name: str) -> Path | None:
    """The folder of one domain, in any of its spellings; ``None`` if there is none."""
    wanted = {_plain(folder) for folder in facts.domains[name].folders}
    return next((folder for folder in subfolders(home) if _plain(folder.name) in wanted), None)


def list_domain(facts: Benchmark, home: Path, name: str) -> Entries:
    """The images of one domain, with paths relative to ``home``; empty if the domain is not there.

    If ``home`` holds lists of this domain, these are the listed images, otherwise the images in the folders. A class
    folder with an unknown name becomes a class of that name.

    Raises:
        UserError: if a list or an annotation file has the wrong format.
    """
    lists = [home / form.format(domain=name) for form in facts.lists]
    if any(path.is_file() for path in lists):
        return _sorted(_listed(lists, name))
    folder = find_domain(facts, home, name)
    if folder is None:
        return Entries.of(entry for entry in _annotated(facts, home) if entry.domain == name)
    if facts.name in _LISTERS:
        return _LISTERS[facts.name](folder, home, name)
    numbered = next((home / one for one in facts.domains[name].numbered if (home / one).is_file()), None)
    if numbered is not None:
        return _sorted(_numbered(numbered, facts.classes, folder, name))
    tops = next(([folder / part for part in parts] for parts in facts.parts if (folder / parts[0]).is_dir()), [folder])
    spellings = {_plain(label): label for label in facts.classes}
    for label, others in facts.class_folders.items():
        spellings |= {_plain(other): label for other in ([others] if isinstance(others, str) else others)}
    passed = PassedOver()

    def rows() -> Iterator[tuple[str, str | None, str, None]]:
        for top in (top for top in tops if top.is_dir()):
            loose, folders = contents(top, top.relative_to(home).as_posix(), passed)
            for image in loose:
                passed.add("images beside the folders of classes", (top / image).relative_to(home).as_posix())
            for folder in folders:
                inside = (top / folder).relative_to(home).as_posix()
                images, inner = contents(top / folder, inside, passed)
                for below in inner:
                    passed.add("folders inside class folders", f"{inside}/{below}")
                label = spellings.get(_plain(folder), folder)
                yield from ((f"{inside}/{image}", label, name, None) for image in images)

    return Entries.of_rows(rows(), passed)


def _sorted(entries: Iterator[Entry]) -> Entries:
    """The entries by path, each path once."""
    return Entries.of(sorted({entry.path: entry for entry in entries}.values(), key=lambda entry: entry.path))


def canonical(entry: Entry, *, with_class: bool = True) -> str:
    """The name of an image in every layout: ``domain/class/folders/file`` with the folders between domain and class.

    Args:
        entry: the image.
        with_class: if false, the class is left out, so that an image in two classes has one name.

    >>> canonical(Entry("SUN/full/1/imgs_2.jpg", "car", "SUN09"))
    'SUN09/car/full/imgs_2.jpg'
    """
    *folders, name = entry.path.split("/")
    return "/".join([entry.domain, *([entry.label] if with_class and entry.label else []), *folders[1:-1], name])


def list_checksum(entries: Iterable[Entry]) -> str:
    """A hash of the canonical names; it does not depend on their order."""
    return digest(sorted(map(canonical, entries)))


def _listed(lists: list[Path], domain: str) -> Iterator[Entry]:
    for path in lists:
        if not path.is_file():
            raise UserError(f"{path} is missing, although the other list of {domain} is there")
        for number, line in enumerate(read_lines(path), 1):
            image = line.rpartition(" ")[0].strip()
            parts = image.split("/")
            if line.strip() and len(parts) < 3:
                raise UserError(f'{path}, line {number}: expected "domain/class/file number", not "{line.strip()}"')
            if line.strip():
                yield Entry(image, parts[-2], domain)


def _numbered(path: Path, classes: Sequence[str], folder: Path, domain: str) -> Iterator[Entry]:
    """The images of a list "path number". The path in the domain's folder is what follows that folder's name."""
    for number, line in enumerate(read_lines(path), 1):
        image, _, label = line.strip().rpartition(" ")
        if line.strip() and not (image and label.isdecimal() and int(label) < len(classes)):
            wanted = f'"path number" with a number from 0 to {len(classes) - 1}'
            raise UserError(f'{path}, line {number}: expected {wanted}, not "{line.strip()}"')
        if line.strip():
            inside = f"/{image.strip()}".rpartition(f"/{folder.name}/")[2].lstrip("/")
            yield Entry(f"{folder.name}/{inside}", classes[int(label)], domain)


def _annotated(facts: Benchmark, home: Path) -> list[Entry]:
    """The images that the annotation files next to the image folder name, in the known domains and classes."""
    if not facts.annotations or not (home / facts.annotations["folder"]).is_dir():
        return []
    files = sorted([*home.glob("*.json"), *(home / "eccv_18_annotation_files").glob("*.json")])
    if not files:
        raise UserError(f"{home} holds {facts.annotations['folder']} but no annotation file (*.json)")
    marks = tuple((str(file), file.stat().st_mtime_ns) for file in files)
    return list(_read_annotations(facts.name, marks))


@lru_cache(maxsize=2)
def _read_annotations(name: str, files: tuple[tuple[str, int], ...]) -> tuple[Entry, ...]:
    facts = benchmarks()[name]
    found = set()
    for file, _ in files:
        try:
            with reading("the annotation file", Path(file)):
                content = json.loads(Path(file).read_text(encoding="utf-8"))
            labels = {category["id"]: category["name"] for category in content["categories"]}
            images = {image["id"]: image for image in content["images"]}
            for annotation in content["annotations"]:
                image, label = images[annotation["image_id"]], labels[annotation["category_id"]]
                domain = facts.annotations["domain"].format(location=image["location"])
                if domain in facts.domains and label in facts.classes:
                    found.add((domain, label, f"{facts.annotations['folder']}/{image['file_name']}"))
        except (ValueError, KeyError, TypeError) as error:
            text = f"{file} must be in COCO's format with a location for each image: {type(error).__name__} {error}"
            raise UserError(text) from error
    return tuple(Entry(path, label, domain) for domain, label, path in sorted(found))


_LISTERS: Mapping[str, Callable[[Path, Path, str], Entries]] = {"Signs": list_signs}
"""Benchmarks with files of their own, and what lists a domain of them from its folder."""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
