"""Predictions in place of a source's labels."""

from pathlib import Path

import pytest

from dafw.errors import UserError
from dafw.testing.toys import ToyData

HEAD = "domain,sample,prediction,p_zero\n"


def write(path: Path, rows: list[tuple[str, str, str]]) -> str:
    path.write_text(HEAD + "".join(f"{domain},{sample},{name},0.5\n" for domain, sample, name in rows))
    return str(path)


def all_rows(name: str = "two") -> list[tuple[str, str, str]]:
    """One class for the training split of a, another for what comes later under the same names."""
    later = [("a", f"{split}/a/{index}", "one") for split in ("val", "test") for index in range(21)]
    return [("a", f"a/{index}", name) for index in range(40)] + later


def test_the_labels_of_the_source_are_those_of_the_file(tmp_path: Path) -> None:
    data = ToyData("a", "b", pseudo_labels=write(tmp_path / "p.csv", all_rows()))
    assert set(data.domain("a", "train").labels) == {2}
    assert set(data.domain("a", "val").labels) == {1}
    plain = ToyData("a", "b")
    assert list(data.domain("b", "test").labels) == list(plain.domain("b", "test").labels)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (all_rows()[1:], "has no prediction for a/0 of a"),
        (all_rows("unknown"), 'predicts "unknown"'),
    ],
)
def test_what_is_wrong(rows: list[tuple[str, str, str]], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        ToyData("a", "b", pseudo_labels=write(tmp_path / "p.csv", rows)).domain("a", "train")
    with pytest.raises(UserError, match=r"gone.csv does not exist"):
        ToyData("a", "b", pseudo_labels=str(tmp_path / "gone.csv")).domain("a", "train")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no CSV file of predictions"):
        ToyData("a", "b", pseudo_labels=str(tmp_path / "other.csv")).domain("a", "train")
