"""From results to numbers: reading, selecting, statistics."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from scipy import stats

from dafw.errors import UserError
from dafw.run.directory import run_directory
from dafw.run.result import BrokenResult
from dafw.tables.grid import Table
from dafw.tables.pages import write_pages
from dafw.tables.sheet import Line, Sheet, Value, make_sheet
from dafw.tables.statistics import average, differences, summarise, worst
from dafw.tables.store import CellResult, load, read_cell

Make = Callable[..., Table]
Fill = Callable[..., Path]
VALUES = [71.2, 69.9, 73.4, 70.0]


def test_statistics_are_those_of_numpy() -> None:
    for values in (VALUES, VALUES[:2]):
        found = summarise(values)
        assert found is not None
        assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert found.n == len(values)
    assert summarise([5.0]) is not None
    assert summarise([5.0]).std is None  # type: ignore[union-attr]
    assert summarise([]) is None


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = {0: 71.0, 1: 72.0, 2: 80.0}, {0: 70.0, 1: 70.5, 5: 10.0}
    assert differences(ours, theirs) == {0: 1.0, 1: 1.5}


def test_the_average_needs_every_task_at_a_seed() -> None:
    assert average([{0: 10.0, 1: 20.0}, {0: 30.0, 2: 50.0}]) == {0: 20.0}
    assert average([]) == {}


def test_the_worst_is_the_lowest_mean() -> None:
    assert worst({"a": {0: 10.0, 1: 90.0}, "b": {0: 40.0, 1: 45.0}}) == "b"
    assert worst({"a": {0: 10.0}, "b": {}}) is None


HISTORY = [
    {
        "step": step,
        "validators": {"im": im, "loss": loss, "odd": odd},
        "oracle": {"accuracy": oracle},
        "test": {"mnistm": {"accuracy": test}},
    }
    for step, im, loss, odd, oracle, test in [
        (200, 0.9, 3.0, math.nan, 0.50, 0.41),
        (400, 0.7, 1.0, 0.1, 0.80, 0.42),
        (600, 0.9, 2.0, None, 0.60, 0.43),
    ]
]


@pytest.mark.parametrize(
    ("criterion", "percent"),
    [("last", 70.0), ("im", 41.0), ("loss", 42.0), ("odd", 42.0), ("oracle", 42.0), ("snd", None)],
)
def test_a_criterion_chooses_among_validations(
    make_table: Make, fill: Fill, criterion: str, percent: float | None
) -> None:
    table = make_table(tasks=["mnist->mnistm"], seeds=[0])
    root = fill(table, lambda *_: 0.7, history=HISTORY)
    found = load(table, root).percents("DANN", "mnist->mnistm", criterion)
    assert found == ({} if percent is None else {0: pytest.approx(percent)})


def test_a_row_without_a_validator_of_ones_own_says_why(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["mnist->mnistm"], seeds=[0], select=["last", "mine"])
    root = fill(table, lambda *_: 0.7, history=HISTORY)
    directory = load(table, root).results["DANN", "mnist->mnistm", 0].directory
    result = json.loads((directory / "result.json").read_text())
    for one in result["history"]:
        one["validators"]["mine"] = one["validators"]["loss"]
    result["higher_is_better"]["mine"] = False
    (directory / "result.json").write_text(json.dumps(result))
    sheet = make_sheet(load(table, root))
    lines = {line.row: line.values[0] for line in sheet.sections[1].lines if line.kind == "method"}
    assert lines["DANN"] is not None
    assert lines["DANN"].mean == pytest.approx(42.0), "lower is better, as the result says"
    assert lines["source only"] is None
    said = "has no mine: its runs were made without this in run.validators; remove them to make them again."
    assert f"source only {said}" in sheet.caption
    assert f"DANN {said}" not in sheet.caption
    assert "source only mnist->mnistm seed 0 (no mine)" in sheet.missing


def test_a_criterion_without_the_metric_of_the_target_has_no_number(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["mnist->mnistm"], seeds=[0])
    history = [{**HISTORY[0], "test": {}}]
    store = load(table, fill(table, lambda *_: 0.7, history=history))
    assert store.percents("DANN", "mnist->mnistm", "im") == {}


def test_several_targets_count_equally_and_the_worst_is_the_worst_domain(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["a->b,c"], seeds=[0, 1])
    root = fill(table, lambda *_: 0.5, test={"b": {"accuracy": 0.9}, "c": {"accuracy": 0.4}})
    sheet = make_sheet(load(table, root))
    assert sheet.columns == ("a->b", "a->c", "a->b,c", "worst")
    on_b, on_c, both, lowest = line(sheet, "source only").values
    found = [value and value.mean for value in (on_b, on_c, both, lowest)]
    assert found == pytest.approx([90.0, 40.0, 65.0, 40.0])
    assert lowest is not None
    assert lowest.note == "a->b,c, on c"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"schema_version": 1}, "has schema 1, this dafw reads 2"),
        ({"seed": 7}, "is of mnist->mnistm seed 7, not of mnist->mnistm seed 0"),
        ({"target": ["usps"]}, "not of mnist->mnistm seed 0"),
        ({"test": {"mnist": {"accuracy": 0.9}}}, 'no finite test "accuracy" for mnistm'),
        ({"test": {"mnistm": {"accuracy": math.nan}}}, 'no finite test "accuracy"'),
        ({"test": {"mnistm": {"accuracy": "high"}}}, "does not follow schema 2"),
        ({"history": [{"step": 1}]}, "does not follow schema 2"),
        ({"seconds": 3}, "does not follow schema 2"),
    ],
)
def test_a_result_that_cannot_be_used_says_why(
    make_table: Make, tmp_path: Path, parts: dict[str, Any], said: str
) -> None:
    cell = make_table().cells()[0]
    fake_runs.write_result(tmp_path / "run", cell.config, 0.5, **parts)
    with pytest.raises(BrokenResult) as error:
        read_cell(tmp_path / "run", cell, "accuracy")
    assert said in str(error.value)
    assert str(tmp_path / "run" / "result.json") in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "{}"])
def test_a_result_that_is_no_result(make_table: Make, tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(BrokenResult, match=r"result\.json"):
        read_cell(tmp_path, make_table().cells()[0], "accuracy")


def test_a_broken_result_counts_as_missing_and_is_named(make_table: Make, fill: Fill) -> None:
    table = make_table()
    root = fill(table, lambda *_: 0.5)
    cell = table.cells()[0]
    (run_directory(cell.config, root) / "result.json").write_text(json.dumps({"schema_version": 2}), encoding="utf-8")
    store = load(table, root)
    assert store.get(cell.row, cell.task, cell.seed) is None
    sheet = make_sheet(store)
    assert sheet.missing == (f"{cell.label} (broken result)",)
    assert any("Broken, counted as missing" in sentence and "KeyError" in sentence for sentence in sheet.caption)


def line(sheet: Sheet, row: str, kind: str = "method", criterion: int = 0) -> Line:
    (found,) = [one for one in sheet.sections[criterion].lines if (one.row, one.kind) == (row, kind)]
    return found


def scores(row: str, task: str, seed: int) -> float:
    """DANN gains on the first task, loses on the second."""
    base = {0: 0.50, 1: 0.54, 2: 0.52}[seed] + (0.2 if task == "optdigits->mnist" else 0.0)
    gain = {0: 0.10, 1: 0.11, 2: 0.15}[seed] * (1 if task == "mnist->mnistm" else -1)
    return base + (gain if row == "DANN" else 0.0)


def test_a_sheet_holds_means_averages_and_paired_differences(make_table: Make, fill: Fill) -> None:
    table = make_table()
    sheet = make_sheet(load(table, fill(table, scores)))
    assert sheet.columns == ("mnist->mnistm", "optdigits->mnist", "average", "worst")
    assert sheet.missing == ()
    per_task = [[100 * scores("DANN", task, seed) for seed in range(3)] for task in table.tasks]
    first, second, mean, lowest = line(sheet, "DANN").values
    for value, expected in ((first, per_task[0]), (second, per_task[1]), (mean, np.mean(per_task, axis=0))):
        assert value is not None
        assert value.mean == pytest.approx(np.mean(expected))
        assert value.std == pytest.approx(np.std(expected, ddof=1))
        assert value.count == ""
    assert lowest is not None
    assert lowest.note == "optdigits->mnist"
    gains = line(sheet, "DANN", "minus control").values
    assert [value and value.text for value in gains[:3]] == [
        "+12.0 [5.4, 18.6]",
        "\u221212.0 [\u221218.6, \u22125.4]",
        "0.0 [0.0, 0.0]",
    ]
    assert line(sheet, "DANN", "control").values[0].text == "52.0 ± 2.0"  # type: ignore[union-attr]


def test_an_interval_is_that_of_the_paired_t_test(make_table: Make, fill: Fill) -> None:
    """Its colour says whether it leaves out 0: a mean beyond one standard deviation may still be nothing."""
    gains = {0: 3.8, 1: 2.2, 2: 0.6}

    def noisy(row: str, task: str, seed: int) -> float:
        return 0.5 + 0.05 * seed + (gains[seed] / 100 if row == "DANN" else 0.0)

    table = make_table()
    sheet = make_sheet(load(table, fill(table, noisy)))
    value = line(sheet, "DANN", "minus control").values[0]
    assert value is not None
    ours, theirs = ([100 * noisy(row, "mnist->mnistm", seed) for seed in range(3)] for row in ("DANN", "control"))
    assert value.interval == pytest.approx(tuple(stats.ttest_rel(ours, theirs).confidence_interval(0.95)))
    assert (value.mean, value.std) == (pytest.approx(2.2), pytest.approx(1.6))
    assert (value.text, value.direction) == ("+2.2 [\u22121.8, 6.2]", 0)
    assert [Value(1, interval=ends).direction for ends in ((0.1, 2.0), (-2.0, -0.1), (0.0, 0.0))] == [1, -1, 0]
    assert Value(4.0, signed=True).direction == 0


def test_fewer_seeds_are_said_and_one_seed_has_no_std(make_table: Make, fill: Fill) -> None:
    table = make_table()
    missing = {("DANN", "mnist->mnistm", 2), ("DANN", "optdigits->mnist", 1), ("DANN", "optdigits->mnist", 2)}
    root = fill(table, lambda *cell: None if cell in missing else scores(*cell))
    sheet = make_sheet(load(table, root))
    texts = [value.text if value else None for value in line(sheet, "DANN").values]
    assert texts == ["62.5 ± 3.5 (n=2)", "60.0 (n=1)", "60.0 (n=1)", "60.0 (n=1)"]
    gains = [value.text if value else None for value in line(sheet, "DANN", "minus control").values[:2]]
    assert gains == ["+10.5 [4.1, 16.9] (n=2)", "\u221210.0 (n=1)"]
    assert len(sheet.missing) == 3
    one = table.only([], [], [0])
    assert line(make_sheet(load(one, root)), "DANN").values[0].text == "60.0 (n=1)"  # type: ignore[union-attr]


def test_an_average_is_not_made_of_some_tasks(make_table: Make, fill: Fill) -> None:
    table = make_table()
    root = fill(table, lambda row, task, seed: None if task == "mnist->mnistm" else 0.5)
    values = line(make_sheet(load(table, root)), "DANN").values
    assert [value is None for value in values] == [True, False, True, True]


def test_criteria_side_by_side(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["mnist->mnistm"], seeds=[0, 1], select=["last", "im", "oracle"], allow_oracle=True)
    sheet = make_sheet(load(table, fill(table, lambda *_: 0.7, history=HISTORY)))
    assert sheet.criteria == ("last", "im", "oracle")
    assert [line(sheet, "DANN", criterion=i).values[0].mean for i in range(3)] == pytest.approx([70, 41, 42])  # type: ignore[union-attr]
    by_criterion = sheet.by_criterion[0]
    assert [value.mean for value in by_criterion.values if value] == pytest.approx([70, 41, 42])
    assert any("criterion oracle" in sentence for sentence in sheet.caption)


def test_another_metric_is_read_where_the_oracle_chose_by_the_runs_own(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["mnist->mnistm"], seeds=[0, 1], select=["oracle"], allow_oracle=True, metric="auroc")
    history = [
        {"step": step, "validators": {}, "oracle": {"h_score": score}, "test": {"mnistm": {"auroc": auroc}}}
        for step, score, auroc in [(200, 0.2, 0.9), (400, 0.6, 0.5), (600, 0.1, 0.7)]
    ]
    tests = {"mnistm": {"auroc": 0.8, "h_score": 0.3}}
    root = fill(table, lambda *_: 0.5, history=history, metric="h_score", test=tests)
    sheet = make_sheet(load(table, root))
    assert [value and value.mean for value in line(sheet, "DANN").values] == pytest.approx([50])
    assert "The criterion oracle chooses the checkpoint with target validation labels, by h score." in sheet.caption


def test_a_criterion_that_no_run_knows(make_table: Make, fill: Fill) -> None:
    table = make_table(select=["in"])
    with pytest.raises(UserError, match='unknown selection criterion "in": did you mean "im"'):
        make_sheet(load(table, fill(table, lambda *_: 0.7, history=HISTORY)))


def test_a_cell_without_the_criterion_has_no_number(make_table: Make, fill: Fill) -> None:
    table = make_table(
        tasks=["mnist->mnistm"], seeds=[0, 1], select=["im"], rows=[{"name": "X", "model": {"class_path": "X"}}]
    )
    fill(table.only([], [], [0]), lambda *_: 0.7, history=HISTORY)
    root = fill(table.only([], [], [1]), lambda *_: 0.7)
    assert make_sheet(load(table, root)).missing == ("X mnist->mnistm seed 1 (no im)",)


PUBLISHED = (
    "method,task,value,std,n,metric,source,provenance,note\n"
    "DANN,mnist->mnistm,70.5,0.4,5,accuracy,Paper,seen,table 2\n"
    "DANN,optdigits->mnist,60,,,accuracy,Paper,recalled,\n"
    "DANN,average,65,,,accuracy,Survey,unsure,\n"
    "DANN,mnist->mnistm,99,,,h_score,Paper,seen,another metric\n"
    "CDAN,mnist->mnistm,80,,,accuracy,Paper,seen,\n"
)


def test_published_numbers_stand_below_with_marks_and_differences(make_table: Make, fill: Fill, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(PUBLISHED, encoding="utf-8")
    table = make_table(published="p.csv")
    sheet = make_sheet(load(table, fill(table, scores)))
    shown = {
        (one.row, one.label): [value.text if value else None for value in one.values]
        for one in sheet.sections[0].lines
        if one.row in ("DANN", "CDAN")
    }
    assert shown["DANN", "published (Paper)"] == ["70.5 ± 0.4", "60.0†", None, None]
    assert shown["DANN", "minus published (Paper)"] == ["\u22126.5", "0.0†", None, None]
    assert shown["DANN", "published (Survey)"] == [None, None, "65.0‡", None]
    assert shown["CDAN", "CDAN (not run)"] == [None] * 4
    assert shown["CDAN", "published"] == ["80.0", None, None, None]
    caption = " ".join(sheet.caption)
    assert "† written from memory" in caption
    assert "‡ unsure" in caption
    assert "as printed in Paper" in caption
    assert "as printed in Survey" in caption
    assert "§" not in caption


def test_a_number_whose_epoch_labels_of_the_target_chose_is_marked(
    make_table: Make, fill: Fill, tmp_path: Path
) -> None:
    header, *lines = PUBLISHED.splitlines()
    oracle = "{selection: oracle}"
    chosen = [f"{line},{oracle if 'mnistm,70.5' in line or 'recalled' in line else ''}" for line in lines]
    (tmp_path / "p.csv").write_text("\n".join([f"{header},protocol", *chosen]), encoding="utf-8")
    table = make_table(published="p.csv")
    sheet = make_sheet(load(table, fill(table, scores)))
    (line,) = [one for one in sheet.sections[0].lines if one.row == "DANN" and one.label == "published (Paper)"]
    assert [value.text if value else None for value in line.values] == ["70.5 ± 0.4§", "60.0†§", None, None]
    caption = " ".join(sheet.caption)
    assert "§ of the epoch that scores best on labels of the target: an upper bound" in caption
    assert "† written from memory" in caption


def test_the_caption_says_what_the_numbers_are(make_table: Make, fill: Fill) -> None:
    row = {"name": "on target", "model": {"class_path": "SourceOnly"}, "data": {"init_args": {"oracle": True}}}
    table = make_table(rows=[row])
    table = table.with_settings({"trainer": {"max_steps": 5}}).only([], [], [0, 1])
    caption = " ".join(make_sheet(load(table, fill(table, scores))).caption)
    for part in (
        "Target test accuracy in %, mean ± sample std over 2 seeds (0, 1)",
        "Checkpoint: last, the final weights.",
        "Rows marked (oracle) use target labels in training: on target.",
        "This is a part of the table: seeds 0, 1.",
        "Every cell was overlaid with trainer.max_steps=5.",
        "4 of 4 runs are done.",
        "1,000 training steps a run, 4 min in all.",
        "Machine: linux x86_64, 2 cores, cpu.",
        "Versions: dafw 0.1.0, torch 2.15.0 (git abcdef1234).",
    ):
        assert part in caption
    assert "No target label" not in caption
    plain = make_table()
    unseen = "No target label was used to train or to select a checkpoint."
    assert unseen in make_sheet(load(plain, Path("nowhere"))).caption


def test_a_table_without_any_run_still_has_a_sheet(make_table: Make, tmp_path: Path) -> None:
    sheet = make_sheet(load(make_table(select=["im"]), tmp_path))
    assert len(sheet.missing) == 18
    assert all(value is None for one in sheet.sections[0].lines for value in one.values)


def test_one_row_is_the_control_of_several(make_table: Make, fill: Fill) -> None:
    rows = [
        {"name": "plain", "model": {"class_path": "SourceOnly"}},
        {"name": "A", "model": {"class_path": "DANN"}, "control": "plain"},
        {"name": "B", "model": {"class_path": "DANN", "init_args": {"gamma": 1}}, "control": "plain"},
    ]
    table = make_table(rows=rows, tasks=["mnist->mnistm"])
    root = fill(table, lambda row, task, seed: {"plain": 0.5, "A": 0.6 + 0.01 * seed, "B": 0.4}[row])
    sheet = make_sheet(load(table, root))
    gains = [(one.row, one.values[0].text) for one in sheet.sections[0].lines if one.kind == "minus control"]  # type: ignore[union-attr]
    assert gains == [("A", "+11.0 [8.5, 13.5]"), ("B", "\u221210.0 [\u221210.0, \u221210.0]")]
    assert [row.name for row in table.only(["A"], [], []).rows] == ["plain", "A"]


def test_each_choice_is_made_once(make_table: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table()
    root = fill(table, lambda row, task, seed: 0.5)
    made: list[str] = []
    choose, store = CellResult.scores, load(table, root)

    def scores(self: CellResult, criterion: str) -> dict[str, float] | None:
        made.append(criterion)
        return choose(self, criterion)

    monkeypatch.setattr(CellResult, "scores", scores)
    write_pages(make_sheet(store), store, root)
    assert len(made) == len(table.cells())
