"""Published numbers: the file, its marks, its mistakes."""

import csv
from pathlib import Path

import pytest
from commands import CHECKOUT

from dafw.errors import UserError
from dafw.tables.published import Published, read_published

HEADER = "method,task,value,std,n,metric,source,provenance,note\n"
TASKS = {"mnist->mnistm", "a,b->c", "Art->Real World"}


def read(path: Path, text: str) -> tuple[Published, ...]:
    path.write_text(text, encoding="utf-8")
    return read_published(path, TASKS)


def test_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    lines = (
        'DANN,mnist -> mnistm,76.66,,,accuracy,"Ganin et al., 2016",seen,table 2',
        'DANN,"a,b->c",1,0.5,3,accuracy,S,unsure,',
    )
    first, second = read(path, HEADER + "\n".join(lines))
    assert (first.method, first.task, first.value, first.std, first.n) == ("DANN", "mnist->mnistm", 76.66, None, None)
    assert (first.source, first.provenance, first.note) == ("Ganin et al., 2016", "seen", "table 2")
    spaced = read(path, HEADER + "DANN,Art -> Real World,1,,,accuracy,S,seen,\n")[0]
    assert spaced.task == "Art->Real World"
    assert (second.task, second.std, second.n, second.provenance) == ("a,b->c", 0.5, 3, "unsure")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER.replace("source", "sauce"), 'unknown column of p.csv "sauce": did you mean "source"'),
        (HEADER.replace(",note", ""), "lacks the column note"),
        (
            HEADER + "DANN,mnist->mnist,1,,,accuracy,S,seen,\n",
            'task in p.csv, line 2 "mnist->mnist": did you mean "mnist->mnistm"',
        ),
        (HEADER + "DANN,average,1,,,accuracy,S,sen,\n", 'provenance in p.csv, line 2 "sen": did you mean "seen"'),
        (HEADER + "DANN,average,high,,,accuracy,S,seen,\n", 'line 2: the value "high" is not a number'),
        (HEADER + "DANN,average,100.5,,,accuracy,S,seen,\n", "not a percentage"),
        (HEADER + "DANN,average,nan,,,accuracy,S,seen,\n", "not a finite number"),
        (HEADER + "DANN,average,50,-1,,accuracy,S,seen,\n", "the std -1 is not a finite number of at least 0"),
        (HEADER + ",average,50,,,accuracy,S,seen,\n", 'the column "method" is empty'),
        (HEADER + "DANN,average,50,,,accuracy,,seen,\n", 'the column "source" is empty'),
        (HEADER + "DANN,average,50,,,accuracy,S,seen,a,b\n", "quote a field that contains a comma"),
        (HEADER + "DANN,average,50\n", "expected 9 fields"),
        (HEADER + "DANN,average,50,,0,accuracy,S,seen,\n", "line 2: the n 0 is no number of runs"),
        (HEADER + "DANN,average,50,,1.5,accuracy,S,seen,\n", "line 2: the n 1.5 is no number of runs"),
        (HEADER + "DANN,average,50,,,accuracy," + 200_000 * "s" + ",seen,\n", "p.csv, line 2 is not CSV: field larger"),
        (HEADER + 'DANN,"average,50,,,accuracy,S,seen,\n', "p.csv, line 2 is not CSV: unexpected end of data"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / "p.csv", text)
    assert said in str(error.value)


def test_encodings(tmp_path: Path) -> None:
    path, line = tmp_path / "p.csv", "DANN,average,50,,,accuracy,Caf\xe9,seen,\n"
    path.write_bytes((HEADER + line).encode("utf-8-sig"))
    assert read_published(path, TASKS)[0].source == "Caf\xe9"
    path.write_bytes((HEADER + line).encode("latin-1"))
    with pytest.raises(UserError, match=r"p\.csv is not UTF-8: save it in that encoding"):
        read_published(path, TASKS)


def test_the_network_and_what_chose_the_epoch(tmp_path: Path) -> None:
    header = HEADER.replace("source,", "backbone,selection,source,")
    lines = (
        "DANN,average,1,,,accuracy,ResNet-50,oracle,S,seen,",
        "DANN,mnist->mnistm,1,,,accuracy,,oracle,S,recalled,",
        "DANN,worst,1,,,accuracy,,source,S,unsure,",
        'DANN,"a,b->c",1,,,accuracy,,,S,seen,',
    )
    found = read(tmp_path / "p.csv", header + "\n".join(lines))
    assert [(one.backbone, one.selection, one.mark) for one in found] == [
        ("ResNet-50", "oracle", "§"),
        ("", "oracle", "†§"),
        ("", "source", "‡"),
        ("", "", ""),
    ]
    with pytest.raises(UserError, match=r'unknown selection in p\.csv, line 2 "orcle": did you mean "oracle"'):
        read(tmp_path / "p.csv", header + lines[0].replace("oracle", "orcle"))
    with pytest.raises(UserError, match="expected 11 fields"):
        read(tmp_path / "p.csv", header + "DANN,average\n")


def test_shipped_numbers_say_what_chose_the_epoch() -> None:
    for path in sorted((CHECKOUT / "experiments" / "tables").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                oracle = "scores best on the test labels" in line["note"] or "an oracle" in line["note"]
                assert (line.get("selection", "") == "oracle") == oracle, (path.name, line)
                assert (line.get("selection", "") == "source") == ("training-domain validation" in line["note"])
