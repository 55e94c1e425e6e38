"""``dafw data prepare`` and ``dafw data cache``: from archives to a benchmark on disk, and to decoded images."""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dafw.commands.data import check, show, show_lines
from dafw.commands.reviews import check_reviews, review_names
from dafw.data.fetching import fetch
from dafw.data.manifest import missing_files
from dafw.data.unpacking import UNPACKING, Bounds, file_hash, is_archive, unpack, unpacked
from dafw.errors import UserError, choose
from dafw.escape import terminal
from dafw.files import locked, reading, replacing, user_path
from datamodules.layouts import Benchmark, benchmarks, find_home, list_domain
from datamodules.listings import keep_listing
from datamodules.mirrors import Mirror, MirroredFile, mirrors
from datamodules.review_layouts import review_layouts

EVERY = 5.0
"""Seconds between two lines that say how far it is."""


class Prepared(NamedTuple):
    """What is prepared.

    Attributes:
        name: the benchmark.
        get: what to get.
        files: how many files its archives hold, about.
        show: prints the comparison of a folder with what should be there, and returns 0 if all is there.
        complete: whether a folder holds all of it.
        keep: keeps what runs to come would have to find out again.
    """

    name: str
    get: str
    files: int
    show: Callable[[Path], int]
    complete: Callable[[Path], bool]
    keep: Callable[[Path], None]


def prepare(args: argparse.Namespace) -> int:
    """``dafw data prepare``: unpacks the archives of a benchmark, or fetches them, then checks it.

    Returns:
        0; 1 if the benchmark is not complete.

    Raises:
        UserError: if an archive is damaged, unsafe or another one, or none is given and none can be fetched.
    """
    choose("benchmark", args.name, (*benchmarks(), *review_names()))
    one = _images(benchmarks()[args.name]) if args.name in benchmarks() else _reviews(args.name)
    mirror, root = mirrors()[one.name], user_path(args.root)
    archives = list(map(user_path, args.archive))
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} (--root) is a file: give the folder that shall hold {one.name}")
    for archive in archives:
        verify(archive, _known(mirror, archive), mirror, anyway=args.unverified)
    wanted = () if archives or one.complete(root) else mirror.files
    missing = [file for file in wanted if not _there(file, root)]
    if not archives and not mirror.files and not root.is_dir():
        raise UserError(f"{one.name} is not fetched, since {mirror.why}: get {one.get}, and give it with --archive")
    if archives or missing:
        with locked(root / UNPACKING / "lock", wait=False):
            try:
                for archive in archives:
                    _put(archive, _known(mirror, archive), root, one)
                for file in missing:
                    _fetch(file, mirror, root, one, anyway=args.unverified)
            finally:
                _tidy(root)
    code = one.show(root)
    one.keep(root)
    if code and mirror.why and not archives:
        print(terminal(f"not all of {one.name} is fetched, since {mirror.why}: give it with --archive"))
    return code


def _images(facts: Benchmark) -> Prepared:
    """A benchmark of classes."""

    def complete(root: Path) -> bool:
        try:
            found, problems = check(facts, find_home(facts, root))
        except UserError:
            return False
        return not problems and not any(domain.problems for domain in found)

    def keep(root: Path) -> None:
        """Keeps the listings of large domains, of which no file is missing."""
        home = find_home(facts, root)
        for name in facts.domains:
            begun, entries = time.time(), list_domain(facts, home, name)
            if not missing_files(entries, home):
                keep_listing(facts, home, name, entries, begun, wait=True)

    images = sum(domain.images for domain in facts.domains.values())
    return Prepared(facts.name, facts.get, images, lambda root: show(facts, root), complete, keep)


def _reviews(name: str) -> Prepared:
    """A form of the Amazon reviews."""

    def complete(root: Path) -> bool:
        try:
            return check_reviews(name, root)[1]
        except UserError:
            return False

    facts = review_layouts()[name]
    return Prepared(
        name,
        facts.get,
        len([*facts.each()]),
        lambda root: show_lines(*check_reviews(name, root)),
        complete,
        lambda root: None,
    )


def _tidy(root: Path) -> None:
    """Removes the folders that hold nothing to continue from."""
    with suppress(OSError):
        (root / UNPACKING / "lock").unlink()
        for folder in (root / UNPACKING / "fetched", root / UNPACKING, root):
            if folder.is_dir():
                folder.rmdir()  # unless it holds something


def cache(args: argparse.Namespace) -> int:
    """``dafw data cache``: decodes the images of each domain into the files that runs with ``data.cache`` read.

    Returns:
        0.

    Raises:
        UserError: if the folder lacks a domain, an image cannot be decoded, or there is no room.
    """
    import datamodules

    facts = benchmarks()[choose("benchmark", args.name, benchmarks())]
    names = args.domains or list(facts.domains)
    for name in names:
        choose("domain", name, facts.domains)
    if args.size < 1:
        raise UserError(f"--size must be at least 1 pixel, not {args.size}")
    maker = type(facts.name, (getattr(datamodules, facts.name),), {"needs_target": False})
    options = {"size": args.size, "resize": args.size, "fit": args.fit, "cache": True}
    data = maker(
        names, [], root=str(user_path(args.root)), on_corrupt="skip" if args.skip_corrupt else "fail", **options
    )
    for name in names:
        with _saying("dafw.data.cache"):
            images = data.decoded(name)
        print(terminal(f"{name}: {len(images):,} images of {args.size} x {args.size} pixels in {images.file}"))
    return 0


def verify(path: Path, known: MirroredFile | None, mirror: Mirror, *, anyway: bool = False) -> None:
    """Compares a file with its known checksum; nothing is compared if none is known.

    Raises:
        UserError: if it is not there, or its checksum is another one and ``anyway`` is false.
    """
    with reading("the archive", path):
        if not path.is_file():
            raise FileNotFoundError
    for kind in ("md5", "sha256"):
        expected = getattr(known, kind, None)
        if expected is not None and not anyway and (found := file_hash(path, kind)) != expected:
            raise UserError(
                f"{path} has the {kind} {found}, and {expected} is known, {mirror.provenance}: get it again, or take "
                "it with --unverified"
            )


def _known(mirror: Mirror, archive: Path) -> MirroredFile | None:
    return next((one for one in mirror.files if one.name == archive.name), None)


def _there(one: MirroredFile, root: Path) -> bool:
    """Whether a file of a mirror was fetched and put into its place before."""
    return one.name in unpacked(root) or (root / one.to / one.name).is_file()


def _fetch(one: MirroredFile, mirror: Mirror, root: Path, prepared: Prepared, *, anyway: bool) -> None:
    path, told = root / UNPACKING / "fetched" / one.name, _Progress()
    if not path.is_file():
        print(terminal(f"{one.name}: fetching {one.url}"), file=sys.stderr)
        try:
            fetch(one.url, path, lambda done, total: told(f"{one.name}: {_share(done, total)}"))
        except UserError as error:
            raise UserError(f"{error}; or get {prepared.get}, and give it with --archive") from error
    try:
        verify(path, one, mirror, anyway=anyway)
    except UserError:
        path.unlink()
        raise
    _put(path, one, root, prepared)
    path.unlink()


def _share(done: int, total: int | None) -> str:
    return f"{done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f}" if total else "")


def _put(archive: Path, known: MirroredFile | None, root: Path, prepared: Prepared) -> None:
    """Unpacks an archive into the root. A file that is no archive, but that a mirror has, is copied."""
    if known is not None and not is_archive(archive) and known.name.endswith((".txt", ".csv", ".json")):
        with replacing(root / known.to / known.name) as file, archive.open("rb") as source:
            shutil.copyfileobj(source, file)
        return
    told = _Progress()
    bounds = Bounds(files=4 * prepared.files + 10_000, bytes=20 * archive.stat().st_size + (1 << 30))
    count = unpack(archive, root, bounds, lambda files: told(f"{archive.name}: {files:,} files unpacked"))
    print(terminal(f"{archive.name}: {f'{count:,} files unpacked' if count else 'unpacked before'}"), file=sys.stderr)


@contextmanager
def _saying(name: str) -> Iterator[None]:
    """Within, what a logger says goes to standard error."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Progress:
    """Prints a line on standard error, at most every :data:`EVERY` seconds."""

    def __init__(self) -> None:
        self.next = time.monotonic() + EVERY

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + EVERY
            print(terminal(line), file=sys.stderr, flush=True)
