"""Many strings in little memory."""

import pickle

import numpy as np
import pytest

from dafw.data.entries import Entries, Entry, PassedOver
from dafw.data.strings import Coder, Strings

WORDS = ["a", "", "é/ü.jpg", "\udcff.png", "猫", "a"]


def test_strings_are_what_was_put_in() -> None:
    found = Strings.of(iter(WORDS))
    assert found == WORDS
    assert found == WORDS
    assert (len(found), list(found), found[2], found[-1]) == (6, WORDS, "é/ü.jpg", "a")
    assert found[1:3] == WORDS[1:3]
    assert found[np.array([4, 0])] == ["猫", "a"]
    assert found[np.array([4, 0])][1:] == ["a"]
    assert pickle.loads(pickle.dumps(found)) == found
    assert found != WORDS[::-1]
    assert found != WORDS[:-1]
    assert Strings.of([]) == []
    assert list(Strings.of(map(str, range(9000)))) == list(map(str, range(9000)))
    assert Strings.of(["", "a", "/b"]).any_starts_with("/")
    assert not Strings.of(["", "a", "b/"]).any_starts_with("/")
    with pytest.raises(IndexError):
        found[6]


def test_words_are_counted_without_those_that_are_gone() -> None:
    coder = Coder()
    for word in ("mug", None, "cup", "mug"):
        coder.add((word, "photo"))
    column, domains = coder.columns(2)
    assert domains.counts() == {"photo": 4}
    assert [one.counts() for one in Coder().columns(2)] == [{}, {}]
    assert column.counts() == {"mug": 2, None: 1, "cup": 1}
    assert column[np.array([0, 3])].counts() == {"mug": 2}
    assert column.are("cup").tolist() == [False, False, True, False]
    assert not column.are("pen").any()


def test_entries_are_what_was_put_in() -> None:
    entries = [Entry(f"{i}.png", None if i % 2 else "mug", "ab"[i // 2], "train") for i in range(4)]
    found = Entries.of(entries)
    assert found == entries
    assert list(found) == entries
    assert found[3] == entries[3]
    assert found[1:3] == entries[1:3]
    assert found.of_domain("b") == entries[2:]
    assert found != entries[:3]
    assert not found.passed_over


def test_a_report_of_what_was_passed_over_counts_and_names_the_first() -> None:
    passed, other = PassedOver(), PassedOver()
    other.add("links to nowhere", "c")
    for path in ("a", "b"):
        passed.add("hidden files", path)
    passed.merge(other)
    passed.merge(other)
    assert str(passed) == "2 hidden files (a first), 2 links to nowhere (c first)"
