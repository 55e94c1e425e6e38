"""What a table says of target labels: never that none was used when one was, however it got in."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_runs
import pytest
from rich.console import Console

from dafw.data.domain import Domain
from dafw.data.setting import Setting
from dafw.evaluation.evaluated import ExtraTestMetrics
from dafw.run.artifacts import collect_result
from dafw.run.clock import Clock
from dafw.run.directory import run_directory
from dafw.run.result import RESULT, SettingRecord, read_result, write_result
from dafw.tables.grid import Table
from dafw.tables.html import render_html
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table
from dafw.tables.render import render_cells, render_latex, render_markdown, render_terminal
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load
from datamodules.label_sets import ClassSets

Make = Callable[..., Table]
Fill = Callable[..., Path]
UNSEEN = "No target label was used to train or to select a checkpoint."
ORACLE = {"data": {"init_args": {"oracle": True}}}
SOURCE: dict[str, Any] = {"name": "source only", "model": {"class_path": "SourceOnly"}}
DANN: dict[str, Any] = {"name": "DANN", "model": {"class_path": "DANN"}, "control": True}
PLAIN = DANN | {"control": False}
SHOT: dict[str, Any] = {"name": "SHOT", "model": {"class_path": "SHOT"}, "from": "source only"}
AGAIN: dict[str, Any] = {"name": "again", "model": {"class_path": "SHOT"}, "from": "SHOT"}
ROWS = [AGAIN, SHOT, SOURCE, DANN]
CHAIN = {"source only", "SHOT", "again"}
EVERY = {*CHAIN, "DANN", "DANN control"}
FIRST, SECOND = "mnist->mnistm", "optdigits->mnist"
DATA = {"class_path": "Digits", "init_args": {"batch_size": 8}}


def said(table: Table, root: Path = Path("nowhere")) -> tuple[str, ...]:
    return make_sheet(load(table, root)).caption


def marked(table: Table, root: Path) -> tuple[set[str], set[str]]:
    """The methods that are printed as an oracle's, and the rows of which the CSV of cells says so on every line."""
    store = load(table, root)
    lines = list(csv.DictReader(io.StringIO(render_cells(store))))
    cells = {row: {one["oracle"] for one in lines if one["row"] == row} for row in {one["row"] for one in lines}}
    assert all(len(found) == 1 for found in cells.values())
    printed = {one.row for one in make_sheet(store).sections[0].lines if one.kind == "method" and one.oracle}
    return printed, {row for row, found in cells.items() if found == {"True"}}


@pytest.mark.parametrize(
    ("changes", "settings", "oracles"),
    [
        ({}, [], set()),
        ({"rows": [AGAIN, SHOT, SOURCE | ORACLE, DANN]}, [], CHAIN),
        ({"rows": [AGAIN, SHOT | ORACLE, SOURCE, DANN]}, [], {"SHOT", "again"}),
        ({"rows": [SOURCE, DANN | ORACLE]}, [], {"DANN", "DANN control"}),
        ({"base": {"data": {**DATA, "init_args": {"oracle": True}}}}, [], EVERY),
        ({"base": {"data": {**DATA, "init_args": {"oracle": "True"}}}}, [], EVERY),
        ({"base": {"data": {**DATA, "init_args": {"oracle": "no"}}}}, [], set()),
        ({"base": {"data": {**DATA, "dict_kwargs": {"oracle": True}}}}, [], EVERY),
        ({"per_task": {SECOND: ORACLE}}, [], EVERY),
        ({}, ["data.oracle=true"], EVERY),
        ({"rows": [SHOT, SOURCE | ORACLE]}, ["data.oracle=false"], set()),
    ],
)
def test_a_row_is_an_oracle_wherever_it_was_set(
    make_table: Make, fill: Fill, changes: dict[str, Any], settings: list[str], oracles: set[str]
) -> None:
    """The results claim to be none, so that the mark comes from the configuration alone."""
    table = make_table(**({"rows": ROWS, "seeds": [0, 1]} | changes)).with_settings(parse_settings(settings))
    assert table.oracles == oracles
    root = fill(table, lambda *_: 0.5, oracle=False)
    assert marked(table, root) == (oracles - {"DANN control"}, oracles)
    for caption in (said(table), said(table, root)):
        rows = ", ".join(row.name for row in table.rows if row.name in oracles)
        assert (UNSEEN in caption) == (not oracles)
        assert (f"Rows marked (oracle) use target labels in training: {rows}." in caption) == bool(oracles)


def test_a_part_of_a_table_is_judged_by_its_own_tasks(make_table: Make) -> None:
    table = make_table(per_task={SECOND: ORACLE})
    assert UNSEEN in said(table.only([], [FIRST], []))
    assert UNSEEN not in said(table.only([], [SECOND], []))


def test_a_result_that_says_so_is_believed(make_table: Make, fill: Fill) -> None:
    """As of a run whose source model was trained on its target, which no configuration tells."""
    table = make_table(rows=ROWS, seeds=[0])
    root = fill(table, lambda *_: 0.5)
    assert UNSEEN in said(table, root)
    (cell,) = [one for one in table.cells() if (one.row, one.task) == ("SHOT", FIRST)]
    fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.5, oracle=True)
    assert table.oracles == set()
    assert marked(table, root) == ({"SHOT", "again"}, {"SHOT", "again"})
    assert UNSEEN not in said(table, root)
    assert "Rows marked (oracle) use target labels in training: again, SHOT." in said(table, root)


ALLOWED = {"run": {"allow_oracle": True}}
STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "oracle/accuracy", "mode": "max"}}


@pytest.mark.parametrize(
    ("changes", "settings", "rows"),
    [
        ({"rows": [SOURCE, DANN | ALLOWED]}, [], "DANN, DANN control"),
        ({"rows": [SOURCE | ALLOWED]}, [], "source only"),
        ({"rows": [SOURCE], "per_task": {SECOND: ALLOWED}}, [], "source only"),
        ({"rows": [SOURCE]}, ["run.allow_oracle=true"], "source only"),
        ({"rows": [SOURCE], "base": {"data": DATA, **ALLOWED}}, [], "source only"),
        ({"rows": [SOURCE | {"trainer": {"callbacks": [STOPPING]}}]}, [], "source only"),
        ({"rows": [SOURCE | ALLOWED]}, ["run.allow_oracle=false"], None),
        ({"rows": [SOURCE | {"trainer": {"default_root_dir": "runs/oracle/"}}]}, [], None),
    ],
)
def test_a_callback_that_may_monitor_target_labels_is_said(
    make_table: Make, changes: dict[str, Any], settings: list[str], rows: str | None
) -> None:
    caption = said(make_table(**changes).with_settings(parse_settings(settings)))
    assert (UNSEEN in caption) == (rows is None)
    assert [one for one in caption if "callback" in one] == (
        [f"A callback was allowed to monitor target labels in: {rows}."] if rows else []
    )


def test_a_result_that_monitored_target_labels_is_said(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE, DANN], seeds=[0])
    root = fill(table, lambda *_: 0.5, monitors=["val/im"])
    assert UNSEEN in said(table, root)
    (cell,) = [one for one in table.cells() if (one.row, one.task) == ("DANN", FIRST)]
    fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.5, monitors=["oracle/accuracy"])
    assert table.monitoring == ()
    assert UNSEEN not in said(table, root)
    assert "A callback was allowed to monitor target labels in: DANN." in said(table, root)


def test_a_run_that_was_stopped_by_target_labels_is_no_cell_of_a_table_without(make_table: Make) -> None:
    (plain, *_), (stopped, *_) = (
        make_table(rows=[SOURCE | {"trainer": {"callbacks": given}}]).cells() for given in ([], [STOPPING])
    )
    assert run_directory(plain.config, Path()) != run_directory(stopped.config, Path())


def test_a_note_is_printed_in_every_format_that_has_a_caption(make_table: Make, fill: Fill, tmp_path: Path) -> None:
    table = make_table(note=["Chosen by the target's\n  accuracy.", "Half_done."])
    store = load(table, fill(table, lambda *_: 0.5))
    sheet = make_sheet(store)
    place = sheet.caption.index(UNSEEN)
    assert sheet.caption[place + 1 : place + 3] == ("Chosen by the target's accuracy.", "Half_done.")
    assert "\n- Chosen by the target's accuracy.\n- Half\\_done.\n" in render_markdown(sheet)
    assert "Chosen by the target's accuracy. Half\\_done." in render_latex(sheet)
    page = render_html(sheet, store, tmp_path, {})
    assert "Chosen by the target&#x27;s accuracy." in page
    assert "Half_done." in page
    file = io.StringIO()
    render_terminal(sheet, Console(file=file))
    assert "\nChosen by the target's accuracy.\nHalf_done.\n" in file.getvalue()


def test_a_note_makes_no_other_runs_and_no_other_folder(make_table: Make) -> None:
    plain, noted = make_table(), make_table(note="Half done.")
    assert [cell.config for cell in plain.cells()] == [cell.config for cell in noted.cells()]
    assert plain.folder == noted.folder
    assert noted.notes == ("Half done.",)
    assert plain.notes == ()


@pytest.mark.parametrize("name", ["digits", "closed_set"])
def test_tables_whose_settings_were_chosen_by_hand_say_so(name: str) -> None:
    table = load_table(find_table(name))
    assert table.notes == ("Settings were chosen by the target's accuracy at seed 0, which is not reported.",)
    assert 0 not in table.seeds
    assert table.oracles == {"closed_set": {"train on target"}}.get(name, set())


@pytest.mark.parametrize(
    ("oracle", "method", "expected"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"trained_on": ()}, False),
        (False, {"trained_on": ("a", "c")}, False),
        (False, {"trained_on": ("a", "b")}, True),
        (False, {"trained_on": ("d",)}, True),
    ],
)
def test_a_result_says_whether_labels_of_its_target_trained_it(
    tmp_path: Path, oracle: bool, method: dict[str, Any], expected: bool
) -> None:
    stands: dict[str, Any] = {
        "setting": Setting("source-free", sees_source=False),
        "norm": "joint",
        "steps_done": 3,
        "fast_forms": {},
        "source_use": "nothing",
    }
    stands |= {"transductive_reason": "the batch's statistics", "history": [], "trained_on": ()} | method
    stands["evaluator"] = SimpleNamespace(test={}, num_target_test=0, extra=ExtraTestMetrics({}, {}), validators={})
    model: Any = SimpleNamespace(**stands, problem=SimpleNamespace(primary="accuracy"))
    data: Any = SimpleNamespace(
        **{
            "task": "a->b,d",
            "source": ["a"],
            "target": ["b", "d"],
            "oracle": oracle,
            "domain": lambda *_: Domain("b", [0], [0]),
        },
        **{"has_unknown": False, "class_sets": ClassSets(("one",), (), ()), "holds_out_source": False},
    )
    trainer: Any = SimpleNamespace(
        callback_metrics={}, world_size=2, callbacks=[SimpleNamespace(averages_weights=True)]
    )
    trainer.callbacks += [SimpleNamespace(monitor=one) for one in ("val/im", "oracle/accuracy", "val/im", None)]
    result = collect_result(trainer, model, data, {"seed_everything": 0}, Clock())
    assert result.oracle is expected
    assert (result.transductive_reason, result.averaged) == ("the batch's statistics", "SimpleNamespace")
    assert result.ranks == 2
    assert not result.holds_out_source
    assert result.monitors == ("oracle/accuracy", "val/im")
    assert result.setting == SettingRecord("source-free", source=False, target=True)
    write_result(result, tmp_path / RESULT)
    assert read_result(tmp_path) == result
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["oracle"] is expected


UNIVERSAL = {"kind": "universal", "common": 4, "source_private": 3, "target_private": 3}
H_SCORES = {"h_score": 0.25, "h_score_class_mean": 0.5}


def test_label_sets_and_the_meaning_of_the_h_score_are_said(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE], seeds=[0], metric="h_score")
    scores = {name: H_SCORES for task in table.tasks for name in task.replace("->", ",").split(",")}
    root = fill(table, lambda *_: 0.5, label_sets=UNIVERSAL, test=scores)
    caption = said(table, root)
    assert "Label sets: universal, 4 classes common, 3 of the source alone, 3 of the target alone." in caption
    assert any("over the samples of common classes, all together" in sentence for sentence in caption)
    assert not any("h score" in sentence or "Label sets" in sentence for sentence in said(make_table(rows=[SOURCE])))


def test_a_score_that_does_not_exist_says_why(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE], seeds=[0], tasks=[FIRST], metric="h_score")
    target = FIRST.split("->")[1]
    undefined = {target: f"the test split of {target} has no sample of a target-private class"}
    root = fill(table, lambda *_: 0.5, test={target: {"h_score": float("nan")}}, undefined_reason=undefined)
    (reason,) = load(table, root).broken.values()
    assert reason.endswith(f'has no finite test "h_score" for {target}, since {undefined[target]}')
    (reason,) = load(replace(table, metric="hscore"), root).broken.values()
    assert reason.endswith(f'has no finite test "hscore" for {target}, since {undefined[target]}: there are h_score')


def rewrite(table: Table, root: Path, row: str, seed: int, **parts: Any) -> None:
    """Replaces keys in the results of one row and seed."""
    for cell in table.cells():
        if (cell.row, cell.seed) == (row, seed):
            path = run_directory(cell.config, root) / "result.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_rows_that_are_tested_on_other_samples_are_named(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE, PLAIN, {**SOURCE, "name": "upper bound"} | ORACLE])
    root = fill(table, lambda *_: 0.5, num_target_test=800)
    assert not [one for one in said(table, root) if "same target samples" in one]
    for seed in table.seeds:
        rewrite(table, root, "upper bound", seed, num_target_test=200)
    (sentence,) = [one for one in said(table, root) if "same target samples" in one]
    assert f"In {FIRST} there are 800 for source only, DANN; 200 for upper bound" in sentence
    assert "is not tested on the samples that it learnt" in sentence


def test_numbers_of_ranks_that_differ_are_said(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE, PLAIN])
    for ranks in ({}, {"ranks": 2}):
        assert not [one for one in said(table, fill(table, lambda *_: 0.5, **ranks)) if "Ranks" in one]
    root = fill(table, lambda *_: 0.5, ranks=1)
    rewrite(table, root, "DANN", table.seeds[0], ranks=2)
    (sentence,) = [one for one in said(table, root) if "Ranks" in one]
    assert sentence.endswith("1 for source only; 1 and 2 for DANN.")


def test_a_caption_says_where_samples_that_validate_were_trained_on(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE, PLAIN])
    everywhere = fill(table, lambda *_: 0.5, holds_out_source=False)
    trained = "source_accuracy, source_loss and dev are of samples that were trained on."
    end = f"those of its validation and test splits too: {trained}"
    assert f"All samples of a source train, {end}" in said(table, everywhere)
    fill(table, lambda row, *_: 0.5 if row == "DANN" else None)
    assert f"All samples of a source train in source only, {end}" in said(table, everywhere)
    fill(table, lambda *_: 0.5)
    assert not any("All samples of a source" in sentence for sentence in said(table, everywhere))


def test_a_mean_over_classes_says_how_many_there_are(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=[SOURCE], seeds=[0], tasks=[FIRST], metric="miou")
    target = FIRST.partition("->")[2]
    values = {"miou": 0.5, "iou/road": 0.4, "iou/car": 0.6, "iou/train": float("nan"), "dice/road": 0.1}
    caption = said(table, fill(table, lambda *_: 0.5, test={target: values}))
    assert any(
        sentence.startswith("mIoU: ") and "one confusion matrix of all pixels" in sentence for sentence in caption
    )
    assert "The mean is over 2 classes; no test pixel is labelled train." in caption
    assert not any("The mean is over" in sentence for sentence in said(make_table(rows=[SOURCE])))
