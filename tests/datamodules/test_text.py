"""Texts in files, and what is wrong with them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import make_tokenizer, reviews, write_reviews

from dafw.data.fields import Fields
from dafw.errors import UserError
from datamodules.text import TextDomains


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and a tokenizer, and without weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def made(root: Path, source: Any = "books", target: Any = "films", **options: Any) -> TextDomains:
    return TextDomains(source, target, root=str(root), **options)


def rows_of(data: TextDomains, name: str) -> set[str]:
    """Names and texts of all splits."""
    parts = [data.domain(name, split) for split in ("train", "val", "test")]
    found = [f"{part.id(i)}: {part.inputs[i]}" for part in parts for i in range(len(part))]
    assert len(found) == len(set(found))
    return set(found)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_for_each_domain_and_one_with_all_of_them_hold_the_same(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = write_reviews(tmp_path / "apart", ("books", "films"), 60)
    expected = rows_of(made(folder), "films")
    assert expected == {f"films/{i}: {text}" for i, (text, _) in enumerate(reviews("films", 60))}
    every = [(domain, i, *row) for domain in ("books", "films") for i, row in enumerate(reviews(domain, 60))]
    columns = ("domain", "id", "text", "label")
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        path = tmp_path / f"all.{ending}"
        if ending in ("csv", "tsv"):
            with path.open("w", newline="") as file:
                csv.writer(file, delimiter="," if ending == "csv" else "\t").writerows([columns, *every])
        elif ending == "jsonl":
            path.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in every))
        else:
            values = dict(zip(columns, map(list, zip(*every, strict=True)), strict=True))
            parquet.write_table(pyarrow.table(values), path)
        data = made(path)
        assert rows_of(data, "films") == expected, ending
        assert data.class_names == ("neg", "pos")
        named = made(path, id_column="id")
        assert "7: " in next(one for one in sorted(rows_of(named, "books")) if one.startswith("7: "))
    assert data.in_short()[1].startswith("films: 60 texts, 2 classes; ")


def test_labels_are_words_or_numbers_and_splits_may_be_given(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "stars": i % 2 + 9, "part": ("train", "val", "test")[i % 3]} for i in range(12)]
    for domain in ("books", "films"):
        write(tmp_path / f"{domain}.jsonl", "\n".join(map(json.dumps, rows)))
    data = made(tmp_path, label_column="stars", split_column="part")
    assert data.class_names == ("9", "10")
    assert [data.domain("films", "val").inputs[i] for i in range(4)] == ["t 1", "t 4", "t 7", "t 10"]
    assert data.domain("films", "val").labels.tolist() == [1, 0, 1, 0]  # type: ignore[union-attr]


def test_equal_texts_are_in_one_split(tmp_path: Path) -> None:
    for domain in ("books", "films"):
        write(tmp_path / f"{domain}.csv", "text,label\n" + "".join(f"text {i % 40},{i % 2}\n" for i in range(80)))
    data = made(tmp_path)
    texts = [set(data.domain("books", split).inputs) for split in ("train", "val", "test")]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 40


def test_tokens_are_made_in_the_loader_and_padded(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_reviews(tmp_path / "data")
    data = made(folder, tokenizer=str(tokenizer), max_length=5, batch_size=8, num_workers=1, steps_per_epoch=2)
    assert made(folder, tokenizer=str(tokenizer)).tokenizer.max_length == 24  # type: ignore[union-attr]
    data.setup("fit")
    for batch in data.train_dataloader():
        assert isinstance(batch.x, Fields)
        ids, mask = batch.x["input_ids"], batch.x["attention_mask"]
        assert (ids.shape, batch.num_source, len(batch)) == ((16, 5), 8, 16)
        assert ids[mask == 0].eq(0).all()
        assert ids[:, 0].eq(1).all()
        assert ids.gather(1, mask.sum(1, keepdim=True) - 1).eq(2).all()  # the end, where a text is cut off too
    transform = data.evaluation_transform()
    assert transform("good book")["input_ids"].tolist() == [1, 4, 8, 2]


def test_a_target_without_labels(tmp_path: Path) -> None:
    write_reviews(tmp_path, ("books",))
    write(tmp_path / "films.csv", "text\n" + "".join(f"film {i}\n" for i in range(30)))
    data = made(tmp_path)
    assert data.domain("films", "test").labels is None
    assert data.tested_targets == []
    with pytest.raises(UserError, match="has no labels of the source films"):
        made(tmp_path, "films", "books")


NUMBERS = "text,label\n1,a\n2.5,b\n"
WRONG = [
    ("text,label\nfine,a\n,b\n", {}, "line 3: the text is empty"),
    ("text,label\nfine,a\nbad,\n", {}, "line 3: books has labels, and this row has none"),
    ("text,label\nfine,a,b\n", {}, "3 cells, and the header has 2"),
    ("text,label\n", {}, "has no rows"),
    (NUMBERS, {}, "the column text of .*books.csv holds numbers and no texts"),
    ("texts,label\nfine,a\n", {}, 'has no column "text" .data.text_column.: did you mean "texts"'),
    ("text,labels\nfine,a\n", {}, 'has no column "label" .data.label_column.: did you mean "labels"'),
    ("text,label,id\nx,a,1\ny,b,1\n", {"id_column": "id"}, "gives 2 texts of books the name 1"),
    ("text,label,id\nx,a,\ny,b,1\n", {"id_column": "id"}, "line 2: the column id .* is empty"),
    ("text,label,part\nx,a,tests\n", {"split_column": "part"}, 'unknown split in .* "tests": did you mean "test"'),
    ("text,label\nfine,a\n", {"augment": "weak"}, "data.augment weak changes images"),
    ("text,label\nfine,a\n", {"max_length": 0}, "data.max_length must be at least 1"),
    ("text,label\nfine,a\n", {"label_column": "text"}, "must differ"),
    ("text,label\nfine,a\n", {"source": "book"}, 'unknown domain "book": did you mean "books"'),
]


@pytest.mark.parametrize(("text", "options", "said"), WRONG)
def test_a_wrong_file_or_argument_is_one_sentence(tmp_path: Path, text: str, options: Any, said: str) -> None:
    write(tmp_path / "books.csv", text)
    write(tmp_path / "films.csv", "text,label,id,part\ngood,a,1,test\n")
    with pytest.raises(UserError, match=said):
        made(tmp_path, **options)


def test_labels_that_differ_between_domains_are_refused(tmp_path: Path) -> None:
    write_reviews(tmp_path, ("books",))
    write(tmp_path / "films.csv", "text,label\n" + "".join(f"film {i},{('neg', 'good')[i % 2]}\n" for i in range(40)))
    with pytest.raises(UserError, match='class "pos" is in books but not in films'):
        made(tmp_path).setup("fit")


def test_files_that_cannot_be_read(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root, said in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "holds no file that ends in .csv"),
        (write(tmp_path / "a.jsonl", "{1}"), "cannot be read as an object in JSON"),
        (write(tmp_path / "a.txt", "text"), "ends in none of .csv"),
    ):
        with pytest.raises(UserError, match=said):
            made(root)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as a Parquet file"):
        made(tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_bytes(b"text,label,domain\n\xff,a,books\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        made(tmp_path / "c.csv")
    folder = write_reviews(tmp_path / "data")
    for name, said in (("/no/such", "does not exist"), (str(folder), "has no file config.json")):
        with pytest.raises(UserError, match=said):
            made(folder, tokenizer=name)
    with pytest.raises(UserError, match="takes at most 24 tokens"):
        made(folder, tokenizer=str(tokenizer), max_length=25)


def test_the_hash_of_a_text_says_its_split(tmp_path: Path) -> None:
    folder = write_reviews(tmp_path)
    one, other = made(folder), made(folder, split_seed=1)
    sizes = [[len(data.domain("books", split)) for split in ("train", "val", "test")] for data in (one, other)]
    assert sizes[0] != sizes[1]
    assert np.sum(sizes, 1).tolist() == [60, 60]
