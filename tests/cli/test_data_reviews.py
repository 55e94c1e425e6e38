"""``dafw data`` for the Amazon reviews in the forms that their authors publish."""

import shutil
from pathlib import Path

import pytest
from amazon_files import write_counts, write_texts
from commands import call, refused

from datamodules.review_layouts import review_layouts

WRITE = {"AmazonTexts": write_texts, "AmazonReviews": write_counts}
NAMES = tuple(WRITE)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete copy has five reviews in each file."""
    for facts in review_layouts().values():
        for counts in facts.files.values():
            for kind, count in counts.items():
                if count is not None:
                    monkeypatch.setitem(counts, kind, 5)


def test_the_list_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "data", "list").out
    for name in NAMES:
        assert f"{name}: 40 reviews with labels, 2 classes, in books, dvd, electronics, kitchen\n" in out
        facts = review_layouts()[name]
        assert all(how.startswith(("seen (", "recalled", "not known")) for how in facts.provenance.values())
        assert f"  from: {facts.get}\n" in out


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    root = WRITE[name](tmp_path / review_layouts()[name].folder, 5)
    check = ("data", "check", name, "--root", tmp_path)
    done = call(capsys, *check)
    assert (done.code, done.err) == (0, "")
    assert "dvd, positive: 5 reviews, complete\n" in done.out
    assert done.out.endswith(f"{name} is complete\n")
    unknown = "5 reviews (how many there should be is not known), complete"
    assert (unknown in done.out) == (name == "AmazonTexts")
    path = root / "dvd" / "positive.review"
    path.write_bytes(path.read_bytes() * 2)
    shutil.rmtree(root / "electronics")
    broken = root / "books" / "negative.review"
    broken.write_bytes(broken.read_bytes()[:-15])
    done = call(capsys, *check)
    assert done.code == 1
    assert "dvd, positive: 10 reviews, 5 reviews too many\n" in done.out
    assert "electronics, negative: missing\n" in done.out
    assert f"books, negative: {broken}, line " in done.out
    assert f"{name} is not complete\nhow that is known, " in done.out


def test_archives_are_unpacked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in NAMES:
        folder = review_layouts()[name].folder
        WRITE[name](tmp_path / "made" / folder, 5)
        archive = shutil.make_archive(str(tmp_path / name), "gztar", tmp_path / "made", folder)
        done = call(capsys, "data", "prepare", name, "--root", tmp_path / "root", "--archive", archive)
        assert (done.code, done.out.splitlines()[-1]) == (0, f"{name} is complete")
        assert done.err == f"{name}.tar.gz: 12 files unpacked\n"


def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert refused(capsys, "data", "check", "AmazonTexts", "--root", tmp_path).startswith(
        f"{tmp_path} (--root) holds nothing of AmazonTexts: get domain_sentiment_data.tar.gz"
    )
    assert 'did you mean "AmazonTexts"' in refused(capsys, "data", "check", "AmazonText", "--root", tmp_path)
    assert "is none: leave it out" in refused(
        capsys, "data", "check", "AmazonTexts", "--root", tmp_path, "--sheet", "a.png"
    )
    half = tmp_path / "half.tar.gz"
    half.write_bytes(b"\x1f\x8bnothing")
    said = refused(capsys, "data", "prepare", "AmazonTexts", "--root", tmp_path / "root", "--archive", half)
    assert str(half) in said
    assert not (tmp_path / "root").exists()
