"""``dafw data list`` and ``dafw data check`` for the Amazon reviews in the forms that their authors publish."""

from collections.abc import Iterator
from pathlib import Path

from dafw.commands.complete import check_root, difference, origin, verdict
from dafw.data.review_files import LABELS, counted_reviews, written_reviews
from dafw.errors import UserError
from datamodules.review_layouts import ReviewFacts, find_reviews, review_file, review_layouts


def review_names() -> tuple[str, ...]:
    """The names of the forms, which are those of the datamodules that read them."""
    return tuple(review_layouts())


def describe_reviews(name: str) -> Iterator[str]:
    """One form in a few lines."""
    facts = review_layouts()[name]
    total = sum(sum(counts[label] or 0 for label in LABELS) for counts in facts.files.values())
    yield f"{name}: {total:,} reviews with labels, {len(LABELS)} classes, in {', '.join(facts.domains)}"
    yield from origin(vars(facts))


def check_reviews(name: str, root: Path) -> tuple[list[str], bool]:
    """Reads every review and compares their numbers with those that should be there.

    Args:
        name: the form.
        root: its folder, as given to ``data.root``.

    Returns:
        The comparison as lines of text, and whether all is there.

    Raises:
        UserError: if the folder does not exist or holds none of the files.
    """
    check_root(root)
    facts = review_layouts()[name]
    home = find_reviews(facts, root)
    if not any(review_file(facts, home, *one).is_file() for one in facts.each()):
        raise UserError(f"{root} (--root) holds nothing of {name}: get {facts.get}")
    found = {one: _state(name, facts, home, *one) for one in facts.each()}
    lines = [f"{name} in {home}", *(f"{domain}, {kind}: {said}" for (domain, kind), said in found.items())]
    return verdict(name, lines, vars(facts), all(said.endswith("complete") for said in found.values()))


def _state(name: str, facts: ReviewFacts, home: Path, domain: str, kind: str) -> str:
    """What is to be said of a file; it ends in ``complete`` if nothing is wrong."""
    path, expected = review_file(facts, home, domain, kind), facts.files[domain][kind]
    if not path.is_file():
        return "missing"
    try:
        count = sum(1 for _ in (written_reviews if name == "AmazonTexts" else counted_reviews)(path))
    except UserError as error:
        return str(error)
    state = difference(count, count if expected is None else expected, "reviews")
    return f"{count:,} reviews{' (how many there should be is not known)' * (expected is None)}, {state}"
