"""The two forms in which the authors of the Amazon reviews publish them: reviews as they were written, and counts.

See Blitzer et al., ACL 2007. Both are files of bytes, most of them UTF-8 and some Latin-1.
"""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import NamedTuple

from dafw.errors import UserError
from dafw.files import reading

LABELS = ("negative", "positive")
"""The classes, which are the names of the files with labels."""
_OPENS, _TEXT = b"<review>", re.compile(rb"<review_text>(.*?)</review_text>", re.DOTALL)
_ENTITY = re.compile(r"&#?\w+;")
_LABEL = "#label#"


class WrittenReview(NamedTuple):
    """A review as it was written.

    Attributes:
        text: what stands between ``<review_text>`` and ``</review_text>``.
        line: where it begins in its file, from 1.
    """

    text: str
    line: int


class CountedReview(NamedTuple):
    """A review as counts.

    Attributes:
        counts: by word, or by two words with ``_`` between them, how often it occurs.
        label: ``negative`` or ``positive``; ``None`` if the line has none.
        line: its line, from 1.
    """

    counts: dict[str, int]
    label: str | None
    line: int


def written_reviews(path: Path) -> Iterator[WrittenReview]:
    """The reviews of a file of ``sorted_data_acl``.

    The file looks like XML and is none: it has no root, and what people wrote stands in it as it is. Entities such as
    ``&quot;`` become what they stand for.

    Raises:
        UserError: if the file cannot be read, holds no such review, breaks off, or has an empty review.
    """
    data = _read(path)
    before, *reviews = data.split(_OPENS)
    if not reviews:
        counts = ", but counts: give the folder sorted_data_acl, or take AmazonReviews" * (_LABEL.encode() in data)
        raise UserError(f"{path} holds no review that begins with <review>{counts}")
    line = 1 + before.count(b"\n")
    for review in reviews:
        found = _TEXT.search(review)
        if found is None or b"</review>" not in review:
            raise UserError(
                f"{path}, line {line}: the review does not end, or has no <review_text> and </review_text>: get the "
                "file again"
            )
        text = _ENTITY.sub(lambda entity: unescape(entity[0]), _decoded(found[1])).strip()
        if not text:
            raise UserError(f"{path}, line {line}: the text of the review is empty: remove the review")
        yield WrittenReview(text, line)
        line += review.count(b"\n")


def counted_reviews(path: Path) -> Iterator[CountedReview]:
    """The reviews of a file of ``processed_acl``: on each line ``word:count ... #label#:positive``.

    Raises:
        UserError: if the file cannot be read, is empty, or has another line.
    """
    number = 0
    for number, line in enumerate(_read(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if _OPENS in line:
            raise UserError(
                f"{path} holds reviews as they were written, and no counts: give the folder processed_acl, or take "
                "AmazonTexts"
            )
        counts: dict[str, int] = {}
        label = None
        for word, _, count in (token.rpartition(":") for token in _decoded(line).split()):
            if word == _LABEL and count in LABELS:
                label = count
            elif word and word != _LABEL and count.isascii() and count.isdigit() and int(count):
                counts[word] = counts.get(word, 0) + int(count)
            else:
                raise UserError(
                    f'{where}: "{f"{word}:{count}"[:40]}" is neither word:count nor {_LABEL}:positive or '
                    f"{_LABEL}:negative: get the file again"
                )
        if not counts:
            raise UserError(f"{where}: the review is empty: remove the line")
        yield CountedReview(counts, label, number)
    if not number:
        raise UserError(f"{path} is empty: get it again")


def _read(path: Path) -> bytes:
    with reading("the reviews", path):
        data = path.read_bytes()
    if b"\0" in data:
        raise UserError(f"{path} is no text in UTF-8 or Latin-1, since it has bytes that are zero: get it again")
    return data


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
