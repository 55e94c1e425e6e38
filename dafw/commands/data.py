"""``dafw data``: lists the known benchmarks, prepares one, and checks that a folder holds all of it."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dafw.commands.boxes import box_names, check_box_files, describe_boxes
from dafw.commands.complete import difference
from dafw.commands.reviews import check_reviews, describe_reviews, review_names
from dafw.commands.scenes import check_scenes, describe_scenes, scene_names
from dafw.commands.shifts import check_shift, describe_shift, shifts
from dafw.data.entries import PassedOver
from dafw.data.images import decodes_file, find_corrupt
from dafw.data.manifest import missing_files, subfolders
from dafw.errors import UserError, choose
from dafw.escape import terminal
from dafw.files import user_path
from datamodules.layouts import Benchmark, benchmarks, find_domain, find_home, list_checksum, list_domain

Names = Callable[[], Iterable[str]]
Describe = Callable[[str], Iterator[str]]
CheckOne = Callable[[str, Path], tuple[list[str], bool]]
FURTHER: tuple[tuple[Names, Describe, CheckOne], ...] = (
    (shifts, describe_shift, check_shift),
    (scene_names, describe_scenes, check_scenes),
    (box_names, describe_boxes, check_box_files),
    (review_names, describe_reviews, check_reviews),
)
"""What is known beside benchmarks of classes: names, what is said of one, and how its folder is checked."""


@dataclass
class Found:
    """What was found of one domain.

    Args:
        name: the domain.
        images: how many images there are.
        classes: how many classes.
        problems: what is wrong, in a few words each.
        passed_over: what lies beside its images and is none.
    """

    name: str
    images: int
    classes: int
    problems: list[str] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands."""
    commands = parser.add_subparsers(dest="action", required=True, parser_class=type(parser))
    commands.add_parser("list", help="the benchmarks, how many images belong in each, and how that is known")
    one = commands.add_parser("check", help="compare a folder with what should be there")
    one.add_argument("name", help="the benchmark or the domain, as in PACS, gta5, voc2007 or AmazonTexts")
    one.add_argument("--root", required=True, type=Path, help="its folder, as given to data.root")
    one.add_argument("--boxes", action="store_true", help="the boxes of street scenes which have masks, too")
    one.add_argument("--decode", action="store_true", help="decode every image, too")
    one.add_argument("--sheet", type=Path, metavar="FILE", help="draw some images of each class and domain (PNG)")
    one = commands.add_parser(
        "prepare", help="unpack the archives of a benchmark of classes or reviews, or fetch them, and check"
    )
    one.add_argument("name", help="the benchmark, as in Office31")
    one.add_argument("--root", required=True, type=Path, help="the folder that shall hold it, as given to data.root")
    one.add_argument("--archive", nargs="+", type=Path, default=[], metavar="FILE", help="its archives on this disk")
    one.add_argument("--unverified", action="store_true", help="take archives whose checksum is not the known one")
    one = commands.add_parser("cache", help="decode the images of a benchmark beforehand, for data.cache")
    one.add_argument("name", help="the benchmark, as in Office31")
    one.add_argument("--root", required=True, type=Path, help="its folder, as given to data.root")
    one.add_argument("--size", required=True, type=int, metavar="N", help="the data.resize of the runs, in pixels")
    one.add_argument("--fit", default="crop", choices=["crop", "squash"], help="the data.fit of the runs")
    one.add_argument("--domains", nargs="+", metavar="NAME", help="some of its domains instead of all")
    one.add_argument("--skip-corrupt", action="store_true", help="as data.on_corrupt skip")
    commands.add_parser("labels", help="read every label of a run's data; takes the arguments of dafw fit")


def main(args: argparse.Namespace) -> int:
    """``dafw data``, all but ``labels``.

    Returns:
        0; 1 if a benchmark is not complete.

    Raises:
        UserError: for an unknown benchmark, or a folder that is not there or holds nothing of it.
    """
    if args.action == "list":
        for facts in benchmarks().values():
            print("\n".join(describe(facts)))
        for names, describe_one, _ in FURTHER:
            for name in names():
                print("\n".join(describe_one(name)))
        return 0
    if args.action in ("prepare", "cache"):
        from dafw.commands.prepare import cache, prepare

        return (prepare if args.action == "prepare" else cache)(args)
    choose("benchmark", args.name, (*benchmarks(), *(name for names, _, _ in FURTHER for name in names())))
    if args.sheet is not None and (args.boxes or args.name not in benchmarks()):
        raise UserError(f"--sheet draws benchmarks of classes, and {args.name} is none: leave it out")
    if args.boxes:
        choose("benchmark with boxes", args.name, box_names())
        return show_lines(*check_box_files(args.name, user_path(args.root)))
    if args.name in benchmarks():
        return show(benchmarks()[args.name], user_path(args.root), decode=args.decode, sheet=args.sheet)
    check_one = next(check_one for names, _, check_one in FURTHER if args.name in names())
    return show_lines(*check_one(args.name, user_path(args.root)))


def show_lines(lines: list[str], complete: bool) -> int:
    """Prints a comparison; 0 if all is there, and 1 otherwise."""
    print("\n".join(map(terminal, lines)))
    return 0 if complete else 1


def show(facts: Benchmark, root: Path, *, decode: bool = False, sheet: Path | None = None) -> int:
    """Prints the comparison of a folder with what should be there.

    Args:
        facts: what should be there.
        root: its folder, as given to ``data.root``.
        decode: decode every image.
        sheet: file for a picture of some images; statistics of the images are printed, too.

    Returns:
        0; 1 if the benchmark is not complete.

    Raises:
        UserError: if the folder is not there, or holds nothing of the benchmark.
    """
    home = find_home(facts, root)
    if sheet is not None:
        from dafw.commands.sheet import check_sheet, draw

        sheet = check_sheet(user_path(sheet))
    found, problems = check(facts, home, decode=decode)
    print("\n".join(map(terminal, report(facts, home, found, problems))))
    if sheet is not None:
        print("\n".join(map(terminal, draw(facts, home, sheet))))
    return 1 if problems or any(domain.problems for domain in found) else 0


def describe(facts: Benchmark) -> Iterator[str]:
    """One benchmark in a few lines."""
    total = sum(domain.images for domain in facts.domains.values())
    sizes = ", ".join(f"{name} {domain.images:,}" for name, domain in facts.domains.items())
    yield f"{facts.name}: {total:,} images, {facts.num_classes} classes: {sizes}"
    for what, how in facts.provenance.items():
        yield f"  {what}: {how}"
    yield f"  from: {facts.get}"
    yield f"  licence: {facts.licence}"
    yield f"  paper: {facts.paper}"


def check(facts: Benchmark, home: Path, *, decode: bool = False) -> tuple[list[Found], list[str]]:
    """Compares the files under ``home`` with those that should be there.

    Args:
        facts: what should be there.
        home: the folder of the domains.
        decode: decode every image.

    Returns:
        The domains, and what is wrong with the whole.
    """
    listed = {name: list_domain(facts, home, name) for name in facts.domains}
    found = []
    for name, entries in listed.items():
        missing = missing_files(entries, home)
        counts = Counter({label: count for label, count in entries.labels.counts().items() if label})
        domain = Found(name, len(entries) - len(missing), len(counts), passed_over=entries.passed_over)
        found.append(domain)
        if not len(entries):
            names = " or ".join(facts.domains[name].folders)
            state = "is missing" if find_domain(facts, home, name) is None else "holds no images of classes"
            domain.problems.append(f"its folder ({names}) {state}")
            continue
        if missing:
            domain.problems.append(f"{len(missing)} images of its list are not there, {missing[0]} first")
        domain.problems += _compare(facts, name, counts)
        if decode:
            sound = sorted(set(entries.paths) - set(missing))
            corrupt = find_corrupt(sound, home, decodes_file(home, name))
            if corrupt:
                domain.problems.append(f"{len(corrupt)} images cannot be decoded: {_some(corrupt)}")
    problems = []
    classes = len(set().union(*(entries.labels.counts() for entries in listed.values())))
    if classes != facts.num_classes:
        problems.append(f"{classes} classes instead of {facts.num_classes}")
    if facts.checksum is not None and list_checksum(chain.from_iterable(listed.values())) != facts.checksum:
        problems.append("the list of all images is not the known one (its checksum differs)")
    return found, problems


def _compare(facts: Benchmark, name: str, counts: Counter[str]) -> Iterator[str]:
    """Says what is wrong with the numbers of images of one domain."""
    expected, images = facts.domains[name], sum(counts.values())
    if images != expected.images:
        yield difference(images, expected.images)
    if lacking := [label for label in facts.classes if label not in counts]:
        yield f"no images of {_some(lacking)}"
    if facts.classes and (strange := sorted(set(counts) - set(facts.classes))):
        yield f"unexpected class folders: {_some(strange)}"
    wrong = [label for label, count in expected.counts.items() if counts.get(label, count) != count]
    if wrong:
        yield "of a class: " + _some([f"{label} {counts[label]} of {expected.counts[label]}" for label in wrong])


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def report(facts: Benchmark, home: Path, found: list[Found], problems: list[str]) -> Iterator[str]:
    """The comparison as lines of text."""
    yield f"{facts.name} in {home}"
    width = max(len("domain"), *(len(domain.name) for domain in found))
    yield f"{'domain':<{width}}  {'images':>8}  {'of':>8}  {'classes':>7}  {'of':>4}"
    for domain in found:
        images, classes = facts.domains[domain.name].images, facts.num_classes
        line = f"{domain.name:<{width}}  {domain.images:>8,}  {images:>8,}  {domain.classes:>7}  {classes:>4}"
        yield f"{line}  {'; '.join(domain.problems) or 'complete'}"
    known = {find_domain(facts, home, name) for name in facts.domains} | {home / str(facts.annotations.get("folder"))}
    if others := [folder.name for folder in subfolders(home) if folder not in known]:
        yield f"folders of no domain, not read: {_some(others)}"
    yield from (f"{domain.name}, passed over: {domain.passed_over}" for domain in found if domain.passed_over)
    yield from problems
    if not problems and not any(domain.problems for domain in found):
        checked = " and its list is the known one" if facts.checksum else ""
        yield f"{facts.name} is complete{checked}"
        return
    yield f"{facts.name} is not complete"
    for what, how in facts.provenance.items():
        yield f"how that is known, {what}: {how}"
    yield f"where to get it: {facts.get}"
    yield f"licence: {facts.licence}"
