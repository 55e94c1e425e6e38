"""Reviews in the folders of their authors: as they were written, and as counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amazon_files import DOMAINS, text_of, write_counts, write_texts

from dafw.errors import UserError
from datamodules import AmazonReviews, AmazonTexts

SPLITS: tuple[Any, ...] = ("train", "val", "test")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "sorted_data_acl")


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    return write_counts(tmp_path / "processed_acl")


def written(root: Path, **options: Any) -> AmazonTexts:
    return AmazonTexts("books", "kitchen", root=str(root), split=(0.6, 0.2, 0.2), **options)


def test_written_reviews_are_read_from_the_folder_or_the_one_above(texts: Path) -> None:
    for root in (texts, texts.parent):
        data = written(root)
        for name in ("books", "kitchen"):
            found = [
                (domain.inputs[index], data.class_names[domain.labels[index]])
                for domain in (data.domain(name, split) for split in SPLITS)
                for index in range(len(domain))
            ]
            wanted = [(text_of(name, kind, i), kind) for kind in ("negative", "positive") for i in range(20)]
            assert sorted(found) == sorted(wanted)


def test_a_target_may_train_on_its_reviews_without_labels(texts: Path) -> None:
    data = written(texts, unlabelled=True, batch_size=4)
    bare = [data.domain("kitchen", split) for split in ("train", "val")]
    assert [domain.labels for domain in bare] == [None, None]
    served = [domain.inputs[index] for domain in bare for index in range(len(domain))]
    assert sorted(served) == sorted(text_of("kitchen", "unlabeled", number) for number in range(20))
    test = data.domain("kitchen", "test")
    assert sorted(test.labels) == [0] * 20 + [1] * 20
    assert sum(len(data.domain("books", split)) for split in SPLITS) == 40
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (len(batch.x), len(batch.y), batch.num_source) == (8, 4, 4)
    with pytest.raises(UserError, match=r"data\.oracle trains on the target's labels"):
        written(texts, unlabelled=True, oracle=True)


def test_equal_reviews_are_in_one_split(texts: Path) -> None:
    path = texts / "books" / "positive.review"
    path.write_bytes(path.read_bytes() * 3)
    data = written(texts)
    domains = [data.domain("books", split) for split in SPLITS]
    parts = [{domain.inputs[index] for index in range(len(domain))} for domain in domains]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40


def test_counts_of_the_most_frequent_words(counts: Path) -> None:
    data = AmazonReviews("books", "dvd", root=str(counts.parent), vocabulary=9)
    test = data.domain("dvd", "test")
    rows = torch.stack([test.inputs[index] for index in range(len(test))])
    # the; a:b, bad and good, which are equally frequent; the_bad and the_good; the names of three domains
    expected = np.zeros((20, 9), np.float32)
    expected[:, [0, 1]] = (3, 1)
    expected[::2, [2, 4]] = expected[1::2, [3, 5]] = (2, 1)
    expected[:, 7] = 1
    np.testing.assert_array_equal(rows, expected)
    assert list(test.labels) == [0, 1] * 10
    assert sum(len(data.domain("books", split)) for split in ("train", "val")) == 40
    wide = AmazonReviews("books", "dvd", root=str(counts), vocabulary=5000)
    assert wide.domain("books", "train").inputs[0].shape == (5000,)


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-30], "the review does not end"),
        (lambda data: data.replace(b"<review_text>", b"<text>", 1), "line 1: the review does not end"),
        (lambda data: data.replace(b"<review_text>\n", b"<review_text>\n</review_text>", 1), "review is empty"),
        (lambda data: data.decode("latin-1").encode("utf-16"), "no text in UTF-8 or Latin-1"),
        (lambda data: b"", "holds no review that begins with <review>$"),
        (
            lambda data: b"bad:1 #label#:negative\n",
            "but counts: give the folder sorted_data_acl, or take AmazonReviews",
        ),
    ],
)
def test_broken_files_of_written_reviews(texts: Path, change: Callable[[bytes], bytes], says: str) -> None:
    changed(texts / "books" / "negative.review", change)
    with pytest.raises(UserError, match=says) as error:
        written(texts)
    assert "negative.review" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-5], "line 20: .* is neither word:count nor #label#"),
        (lambda data: data.replace(b"the:3", b"the:many", 1), 'line 1: "the:many" is neither'),
        (lambda data: data.replace(b"#label#:positive", b"", 1), "line 1: the label is None"),
        (lambda data: data.replace(b"#label#:positive", b"#label#:negative", 1), "line 1: the label is negative"),
        (lambda data: b"#label#:positive\n" + data, "line 1: the review is empty"),
        (lambda data: data.decode().encode("utf-16"), "no text in UTF-8 or Latin-1"),
        (lambda data: b"", "is empty: get it again"),
        (lambda data: b"<review>\n", "and no counts: give the folder processed_acl, or take AmazonTexts"),
    ],
)
def test_broken_files_of_counts(counts: Path, change: Callable[[bytes], bytes], says: str) -> None:
    changed(counts / "dvd" / "positive.review", change)
    with pytest.raises(UserError, match=says) as error:
        AmazonReviews("books", "dvd", root=str(counts)).domain("books", "train")
    assert "positive.review" in str(error.value)


def test_what_is_not_there(texts: Path, counts: Path) -> None:
    for make in (AmazonTexts, AmazonReviews):
        with pytest.raises(UserError, match=f"choices: {', '.join(DOMAINS)}"):
            make("books", "music", root=str(texts))
        with pytest.raises(UserError, match="does not exist"):
            make("books", "dvd", root=str(texts / "gone")).domain("books", "train")
    (texts / "kitchen_&_housewares" / "unlabeled.review").unlink()
    written(texts)
    with pytest.raises(UserError, match=r"no unlabeled reviews of kitchen, kitchen_&_housewares/unlabeled\.review"):
        written(texts, unlabelled=True).domain("kitchen", "train")
    (counts / "electronics" / "unlabeled.review").unlink()
    with pytest.raises(UserError, match=r"no unlabeled reviews of electronics, electronics/unlabeled\.review"):
        AmazonReviews("books", "dvd", root=str(counts)).domain("books", "train")
