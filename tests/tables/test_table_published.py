"""Published numbers: the file, its marks, its mistakes."""

import csv
from collections.abc import Callable
from pathlib import Path

import fake_runs
import pytest
from commands import CHECKOUT

from dafw.errors import UserError
from dafw.run.directory import run_directory
from dafw.tables.grid import Table
from dafw.tables.published import Published, read_published
from dafw.tables.reading import load_table
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load

HEADER = "method,task,value,std,n,metric,source,provenance,note\n"
SHIPPED = sorted((CHECKOUT / "experiments" / "tables").glob("*.csv"))
OTHER_METRICS = {(method, "h_score", "office_home_universal") for method in ("DCC", "MemSPM")}
"""Numbers in a metric that their table does not print: they stand in the file alone."""
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
    header = HEADER.replace("source,", "backbone,protocol,source,")
    lines = (
        "DANN,average,1,,,accuracy,ResNet-50,{selection: oracle},S,seen,",
        "DANN,mnist->mnistm,1,,,accuracy,,{selection: oracle},S,recalled,",
        'DANN,worst,1,,,accuracy,,"{selection: source, batch_size: 32}",S,unsure,',
        'DANN,"a,b->c",1,,,accuracy,,,S,seen,',
    )
    found = read(tmp_path / "p.csv", header + "\n".join(lines))
    assert [(one.backbone, one.selection, one.mark) for one in found] == [
        ("ResNet-50", "oracle", "§"),
        ("", "oracle", "†§"),
        ("", "source", "‡"),
        ("", "not known", ""),
    ]
    with pytest.raises(UserError, match=r'unknown selection in p\.csv, line 2 "orcle": did you mean "oracle"'):
        read(tmp_path / "p.csv", header + lines[0].replace("oracle", "orcle"))
    with pytest.raises(UserError, match="expected 11 fields"):
        read(tmp_path / "p.csv", header + "DANN,average\n")


FORM = ["method", "task", "value", "std", "n", "metric", "backbone", "protocol", "source", "provenance", "note"]
SAID = {"reported", "selection", "images_per_domain", "batch_size", "reset"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_numbers_have_one_form(path: Path) -> None:
    """Each says how it was made. Its table has its task, and its metric is one of the classes'."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        assert lines.fieldnames == FORM
        for line in lines:
            oracle = "scores best on the test labels" in line["note"] or "an oracle" in line["note"]
            assert ("selection: oracle" in line["protocol"]) == oracle, line
            assert line["backbone"]
            assert line["provenance"] in ("seen", "recalled", "unsure")
            if "training-domain validation" in line["note"]:
                assert "selection: source" in line["protocol"], line
    table = load_table(path.with_suffix(".yaml"))  # refuses unknown tasks, selections and provenances
    assert table.published
    for one in table.published:
        assert one.protocol.keys() >= SAID, one
        if one.metric not in table.metrics:
            assert (one.method, one.metric, path.stem) in OTHER_METRICS
    keys = [(one.method, one.task, one.source, one.metric, one.protocol.get("knows_shifts")) for one in table.published]
    assert len(set(keys)) == len(keys)


NETWORK = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "resnet50.tv_in1k"}}
SAME = "{selection: last, batch_size: 32, images_per_domain: null, reported: not known, reset: none}"


@pytest.mark.parametrize(
    ("backbone", "protocol", "said"),
    [
        ("ResNet-50", SAME, ""),
        ("not known", SAME.replace("last", "not known").replace("32", "not known"), ""),
        ("their own", SAME, ""),
        ("ResNet-50", SAME.replace("last", "oracle"), ""),
        ("ResNet-101", SAME, "ResNet-101"),
        ("SE-ResNet-50", SAME, "SE-ResNet-50"),
        ("ResNet-50", SAME.replace("32", "64"), "batches of 64"),
        ("ResNet-50", SAME.replace("last", "source"), "chosen by held-out samples of the sources"),
    ],
)
def test_a_number_that_was_made_in_another_way_is_marked(
    make_table: Callable[..., Table], tmp_path: Path, backbone: str, protocol: str, said: str
) -> None:
    line = f'DANN,mnist->mnistm,50,,,accuracy,{backbone},"{protocol}",Paper,seen,'
    (tmp_path / "p.csv").write_text("\n".join([",".join(FORM), line]), encoding="utf-8")
    model = {"class_path": "DANN", "init_args": {"network": NETWORK}}
    rows = [{"name": "DANN", "model": model, "data": {"init_args": {"batch_size": 32}}}]
    table = make_table(published="p.csv", rows=rows, seeds=[0])
    for cell in table.cells():
        fake_runs.write_result(run_directory(cell.config, tmp_path / "runs"), cell.config, 0.4)
    sheet = make_sheet(load(table, tmp_path / "runs"))
    labels = [one.label for one in sheet.sections[0].lines]
    assert ("published (other protocol)" in labels, "minus published" in labels) == (bool(said), not said)
    sentence = f"Published numbers marked (other protocol) do not compare with their rows: DANN in Paper ({said})."
    assert (sentence in sheet.caption) == bool(said)
    if not said:
        limited = table.with_settings({"data": {"init_args": {"images_per_domain": 10}}})
        sheet = make_sheet(load(limited, tmp_path / "runs"))
        other = "images_per_domain: null" in protocol
        assert any("(all images of a domain)" in one for one in sheet.caption) == other
