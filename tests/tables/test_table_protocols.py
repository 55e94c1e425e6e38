"""Streams in a table: the protocol is in the caption, and a row with another one is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest

from dafw.errors import UserError
from dafw.run.directory import run_directory
from dafw.tables.checking import check_runs
from dafw.tables.grid import Table
from dafw.tables.render import render_latex, render_markdown
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load

Make = Callable[..., Table]
PROTOCOL = {
    "stream": "continual",
    "stream_order": "random",
    "ordered_by_labels": False,
    "order_seed": 0,
    "batch_size": 200,
    "images_per_domain": None,
    "reset": "never",
    "knows_shifts": False,
    "statistics": "batch",
    "learns": "norm",
    "normalisation": "mean 0.5, std 0.5",
    "source_use": "nothing",
}


def stream(**protocol: Any) -> dict[str, Any]:
    """What a result says of a stream."""
    empty: dict[str, Any] = {key: {} for key in ("domains", "mean", "bins", "worst", "used", "source", "speed")}
    sizes = {"samples": 10, "window": 5, "resets": 0, "segments": []}
    return {**empty, **sizes, "protocol": {**PROTOCOL, **protocol}}


def made(make_table: Make, folder: Path, **protocols: dict[str, Any] | None) -> Any:
    """The sheet of a table with a row for each protocol; ``None``: a row without a stream."""
    rows = [{"name": name, "model": {"class_path": "SourceOnly"}, "run": {"note": name}} for name in protocols]
    table = make_table(tasks=["A->B,C"], seeds=[0], rows=rows)
    for cell in table.cells():
        given = protocols[cell.row]
        parts = {} if given is None else {"stream": stream(**given)}
        fake_runs.write_result(run_directory(cell.config, folder / cell.row), cell.config, 0.4, **parts)
    stores = [load(table.only([name], [], []), folder / name) for name in protocols]
    results = {key: result for one in stores for key, result in one.results.items()}
    store = load(table, folder)
    return make_sheet(type(store)(table, store.directories, results, {}))


def test_one_protocol_is_said_once(make_table: Make, tmp_path: Path) -> None:
    sheet = made(
        make_table, tmp_path, source=None, Tent={}, EATA={"source_use": "statistics", "reset": "every 5 steps"}
    )
    said = "\n".join(sheet.caption)
    assert (
        "Stream: continual, a random order, batches of 200, all images of a domain, does not know the shifts, " in said
    )
    assert "Return to the start: never: Tent; every 5 steps: EATA." in said
    assert "Used of the source on the stream: nothing: Tent; statistics: EATA." in said
    assert "other protocol" not in said + render_markdown(sheet)
    assert [column for column in sheet.columns if "->" in column] == ["A->B", "A->C", "A->B,C"]


def test_a_caption_says_whose_pretrained_weights_the_rows_have(make_table: Make, tmp_path: Path) -> None:
    rows = [{"name": name, "model": {"class_path": name}} for name in ("DANN", "SourceOnly")]
    table = make_table(tasks=["A->B"], seeds=[0], rows=rows)
    cells = table.cells()

    def said(*whose: str | None) -> str:
        for cell, weights in zip(cells, whose, strict=True):
            fake_runs.write_result(run_directory(cell.config, tmp_path), cell.config, 0.4, pretrained=weights)
        return " ".join(one for one in make_sheet(load(table, tmp_path)).caption if "retrained" in one)

    assert said("timm's resnet18.a1_in1k", "timm's resnet18.a1_in1k") == "Pretrained weights: timm's resnet18.a1_in1k."
    assert said("timm's resnet18.a1_in1k", "") == "Pretrained weights: timm's resnet18.a1_in1k: DANN; none: SourceOnly."
    assert (
        said("timm's resnet18.a1_in1k", None) == "Pretrained weights: timm's resnet18.a1_in1k: DANN."
    )  # an old result
    assert said("", "") == said(None, None) == ""


def test_a_row_with_another_protocol_is_named(make_table: Make, tmp_path: Path) -> None:
    other = {"batch_size": 16, "knows_shifts": True, "reset": "at each shift", "images_per_domain": 5000}
    sheet = made(make_table, tmp_path, Tent={}, CoTTA={}, small=other)
    said = (
        "Rows marked (other protocol) do not compare with the others: small (batches of 16, 5,000 images of each "
        "domain, knows the shifts)."
    )
    assert said in sheet.caption
    assert "| small (other protocol) |" in render_markdown(sheet)
    assert "small (other protocol) &" in render_latex(sheet)
    assert "Tent (other" not in render_markdown(sheet)


def test_a_correlated_order_is_said(make_table: Make, tmp_path: Path) -> None:
    sheet = made(make_table, tmp_path, Tent={"stream": "continual, correlated 0.1", "ordered_by_labels": True})
    assert "The labels of the stream decide its order, and reach no method." in sheet.caption


def test_a_table_without_a_stream_says_nothing_of_one(make_table: Make, tmp_path: Path) -> None:
    assert "Stream" not in "\n".join(made(make_table, tmp_path, source=None).caption)


def test_a_task_names_all_domains_of_its_stream(make_table: Make, tmp_path: Path) -> None:
    data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"stream": {"class_path": "TargetStream"}}}
    data["init_args"]["stream"] = {
        "class_path": "dafw.data.target_stream.TargetStream",
        "init_args": {"segments": [{"domain": "b"}, {"domain": "c", "count": 5}]},
    }
    row = {"name": "source only", "model": {"class_path": "SourceOnly"}, "data": data}
    table = make_table(tasks=["a->b"], seeds=[0], rows=[row])
    with pytest.raises(UserError, match=r"visits b, c: call the task a->b,c"):
        check_runs(load(table, tmp_path))
    check_runs(load(make_table(tasks=["a->b,c"], seeds=[0], rows=[row]), tmp_path))


CSV = """method,task,value,std,n,metric,source,provenance,note,protocol
Tent,"A->B,C",55.0,,,accuracy,one,seen,,"{batch_size: 200, images_per_domain: 5000 listed, checkpoint: X}"
Tent,"A->B,C",60.0,,,accuracy,another,seen,,"{batch_size: 64, knows_shifts: true}"
"""


def test_a_published_number_of_another_protocol_is_marked(make_table: Make, tmp_path: Path) -> None:
    row = {"name": "Tent", "model": {"class_path": "SourceOnly"}}
    (tmp_path / "numbers.csv").write_text(CSV, encoding="utf-8")
    table = make_table(tasks=["A->B,C"], seeds=[0], rows=[row], published="numbers.csv")
    (cell,) = table.cells()
    listed = stream(images_per_domain="5000 listed in ids.txt (1234abcd)")
    fake_runs.write_result(run_directory(cell.config, tmp_path / "runs"), cell.config, 0.4, stream=listed)
    sheet = make_sheet(load(table, tmp_path / "runs"))
    labels = [line.label for section in sheet.sections for line in section.lines]
    assert "published (one)" in labels
    assert "minus published (one)" in labels
    assert "published (another) (other protocol)" in labels
    assert "minus published (another)" not in labels
    said = "do not compare with their rows: Tent in another (batches of 64, knows the shifts)."
    assert any(said in sentence for sentence in sheet.caption)


@pytest.mark.parametrize("text", ["batch 200", "[200]", "{batch_size: {}}", "{batch_size: 200"])
def test_a_protocol_that_is_no_mapping_is_refused(make_table: Make, text: str, tmp_path: Path) -> None:
    line = f'Tent,"A->B,C",55.0,,,accuracy,one,seen,,"{text}"'
    row = {"name": "Tent", "model": {"class_path": "SourceOnly"}}
    (tmp_path / "numbers.csv").write_text("\n".join([CSV.splitlines()[0], line]), encoding="utf-8")
    with pytest.raises(UserError, match="is no mapping of words and numbers"):
        make_table(tasks=["A->B,C"], seeds=[0], rows=[row], published="numbers.csv")
