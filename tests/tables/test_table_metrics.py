"""A table of several metrics, and rows with labelled domains of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dafw.errors import UserError
from dafw.run.directory import run_directory
from dafw.tables.checking import check_runs
from dafw.tables.grid import Table
from dafw.tables.render import render_csv, render_markdown
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load

Make = Callable[..., Table]
Fill = Callable[..., Path]
SEVERAL: dict[str, Any] = {"tasks": ["mnist->mnistm"], "seeds": [0, 1], "metric": ["miou", "miou_target_statistics"]}


def scores(miou: float, second: float | None) -> dict[str, Any]:
    found = {"miou": miou, "iou/a": miou, "iou/b": miou, "accuracy": 0.5}
    if second is not None:
        found |= {
            "miou_target_statistics": second,
            "iou/a_target_statistics": second,
            "iou/b_target_statistics": second,
        }
    return {"metric": "miou", "test": {"mnistm": found}}


def test_each_metric_has_a_block_with_its_own_differences(make_table: Make, fill: Fill) -> None:
    table = make_table(**SEVERAL)
    root = fill(table, lambda row, task, seed: 0.5, **scores(0.4, 0.6))
    sheet = make_sheet(load(table, root))
    assert [part.heading for part in sheet.sections] == [
        "miou; checkpoint: last (the final weights)",
        "miou target statistics; checkpoint: last (the final weights)",
    ]
    for part, percent in zip(sheet.sections, (40, 60), strict=True):
        assert [line.kind for line in part.lines] == ["method", "method", "control", "minus control"]
        assert part.lines[0].values[0].mean == pytest.approx(percent)  # type: ignore[union-attr]
    assert sheet.criteria == ("last",)
    assert not sheet.missing
    text = render_markdown(sheet)
    assert "## miou target statistics; checkpoint: last (the final weights)" in text
    assert "batch statistics that are estimated on the target's training images" in text
    assert "The mean is over 2 classes." in text
    lines = render_csv(sheet).splitlines()
    assert lines[0].endswith(",metric")
    assert {line.rpartition(",")[2] for line in lines[1:]} == {"miou", "miou_target_statistics"}


def test_a_run_without_the_second_metric_is_named(make_table: Make, fill: Fill) -> None:
    table = make_table(**SEVERAL)
    sheet = make_sheet(load(table, fill(table, lambda *_: 0.5, **scores(0.4, None))))
    assert sheet.missing[0] == "source only mnist->mnistm seed 0 (no miou_target_statistics)"
    assert all(value is None for line in sheet.sections[1].lines for value in line.values)


def test_a_metric_of_validations_has_a_block_for_each_criterion(make_table: Make, fill: Fill) -> None:
    history = [
        {"step": step, "validators": {"im": step}, "oracle": {}, "test": {"mnistm": {"miou": 0.1, "accuracy": 0.2}}}
        for step in (1, 2)
    ]
    table = make_table(**SEVERAL | {"metric": ["miou", "accuracy", "miou_target_statistics"], "select": ["last", "im"]})
    sheet = make_sheet(load(table, fill(table, lambda *_: 0.5, history=history, **scores(0.4, 0.6))))
    assert [(part.metric, part.criterion) for part in sheet.sections] == [
        ("miou", "last"),
        ("miou", "im"),
        ("accuracy", "last"),
        ("accuracy", "im"),
        ("miou_target_statistics", "last"),
    ]


def test_a_metric_is_named_once(make_table: Make) -> None:
    with pytest.raises(UserError, match=r"metric in digits\.yaml is empty or names something twice"):
        make_table(metric=["miou", "miou"])


def rows(**of_the_second: Any) -> list[dict[str, Any]]:
    plain = {"name": "source only", "model": {"class_path": "SourceOnly"}}
    return [plain, {"name": "more", "model": {"class_path": "ERM"}, **of_the_second}]


def test_further_sources_come_before_those_of_the_task(make_table: Make, fill: Fill) -> None:
    table = make_table(
        tasks=["mnist->mnistm"], seeds=[0], rows=rows(further_sources=["optdigits"], control="source only")
    )
    cell = table.cells()[1]
    assert cell.domains == (("optdigits", "mnist"), ("mnistm",))
    assert table.cells()[0].domains == (("mnist",), ("mnistm",))
    sheet = make_sheet(load(table, fill(table, lambda *_: 0.5)))
    assert not sheet.missing
    assert "more trains on optdigits too, with labels." in sheet.caption
    other = make_table(tasks=["mnist->mnistm"], seeds=[0], rows=rows()).cells()[1]
    assert run_directory(cell.config, Path()) != run_directory(other.config, Path())


def test_a_further_source_is_no_domain_of_a_task_and_exists(make_table: Make, tmp_path: Path) -> None:
    for name in ("mnistm", "mnist"):
        with pytest.raises(
            UserError, match=f'further_sources of row "more" of .* has {name}, which the task mnist->mni'
        ):
            make_table(tasks=["mnist->mnistm"], rows=rows(further_sources=[name]))
    table = make_table(tasks=["mnist->mnistm"], seeds=[0], rows=rows(further_sources=["optdigit"]))
    with pytest.raises(UserError, match=r'more on mnist->mnistm: unknown domain "optdigit": did you mean "optdigits"'):
        check_runs(load(table, tmp_path))
