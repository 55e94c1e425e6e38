"""The criterion that chooses by runs without one of the sources; columns of single targets; marks of rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from rich.console import Console

from dafw.errors import UserError
from dafw.run.criteria import LEFT_OUT
from dafw.run.directory import run_directory
from dafw.tables.fields import split_task
from dafw.tables.grid import Table
from dafw.tables.html import render_html
from dafw.tables.launch import make_jobs, run_table
from dafw.tables.progress import make_reporter
from dafw.tables.render import render_cells, render_csv, render_latex, render_markdown
from dafw.tables.sheet import Line, Sheet, make_sheet
from dafw.tables.status import states
from dafw.tables.store import load

Make = Callable[..., Table]
DOMAINS = ["A", "B", "C", "D"]
ERM = {"name": "ERM", "model": {"class_path": "ERM"}}
SWAD = {**ERM, "name": "SWAD", "trainer": {"callbacks": [{"class_path": "SWAD"}]}}
ON_TARGET = {**ERM, "name": "on target", "data": {"init_args": {"oracle": True}}}
PARTS: dict[str, Any] = {"tasks": {"leave_one_out": DOMAINS}, "seeds": [0], "rows": [ERM], "select": [LEFT_OUT]}
STEPS = (100, 200, 300)
#: What the run without a domain scores on it at each step: best on average at 200 for D, though A's is best at 100.
ON_LEFT_OUT = {"A": (0.9, 0.5, 0.1), "B": (0.1, 0.6, 0.2), "C": (0.2, 0.7, 0.3), "D": (0.1, 0.2, 0.9)}
#: What the run of each task scores on its target: best at 300.
ON_TARGETS = (0.31, 0.32, 0.33)


def fill(table: Table, root: Path, *, target: float = 0.0, without: tuple[str, ...] = (), **parts: Any) -> Path:
    """Results of all runs; ``target`` is added to what a run without a source scores on the target it serves, too."""
    mains = {cell.task for cell in table.cells()}
    for cell in table.runs():
        _, targets = split_task(cell.task)
        if cell.task in without:
            continue
        history = [
            {
                "step": step,
                "validators": {"source_accuracy": 0.1 * position},
                "oracle": {"accuracy": 0.5},
                "test": {
                    name: {"accuracy": ON_TARGETS[position] if cell.task in mains else ON_LEFT_OUT[name][position]}
                    for name in targets
                },
            }
            for position, step in enumerate(STEPS)
        ]
        given = {"history": history, "setting": fake_runs.SETTINGS["generalization"], **parts}
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.4, **given)
    return root


def number(table: Table, root: Path, row: str, task: str, criterion: str = LEFT_OUT) -> float | None:
    found = load(table, root).percents(row, task, criterion)
    return found.get(0)


def test_the_runs_it_needs_serve_two_tasks_each(make_table: Make) -> None:
    table = make_table(**PARTS)
    helpers = [cell.task for cell in table.helpers()]
    assert sorted(helpers) == ["A,B->C,D", "A,C->B,D", "A,D->B,C", "B,C->A,D", "B,D->A,C", "C,D->A,B"]
    assert len(table.runs()) == 10
    assert make_table(**{**PARTS, "select": ["last"]}).runs() == make_table(**PARTS).cells()
    (one,) = [cell for cell in table.helpers() if cell.task == "A,B->C,D"]
    main = table.cells()[-1]
    assert main.task == "A,B,C->D"
    data = {"source": ["A", "B"], "target": ["C", "D"]}
    expected = {**main.config["data"]["init_args"], **data}
    assert one.config == {**main.config, "data": {**main.config["data"], "init_args": expected}}
    part = table.only([], ["A,B,C->D"], [])
    assert sorted(cell.task for cell in part.helpers()) == ["A,B->C,D", "A,C->B,D", "B,C->A,D"]
    assert [cell.config for cell in part.helpers() if cell.task == "A,B->C,D"] == [one.config]


def test_it_chooses_the_step_that_is_best_on_the_left_out_sources_on_average(make_table: Make, tmp_path: Path) -> None:
    table = make_table(**PARTS)
    root = fill(table, tmp_path)
    for task in table.tasks:
        sources, _ = split_task(task)
        means = [sum(ON_LEFT_OUT[name][i] for name in sources) / 3 for i in range(3)]
        expected = 100 * ON_TARGETS[means.index(max(means))]
        assert number(table, root, "ERM", task) == pytest.approx(expected)
    assert number(table, root, "ERM", "A,B,C->D") == pytest.approx(32.0)
    assert number(table, root, "ERM", "A,B,C->D", "source_accuracy") == pytest.approx(33.0)
    assert number(table, root, "ERM", "A,B,C->D", "last") == pytest.approx(40.0)


def test_what_is_said_of_the_target_has_no_part_in_the_choice(
    make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(**PARTS).only([], ["A,B,C->D"], [])
    before = number(table, fill(table, tmp_path / "one"), "ERM", "A,B,C->D")
    monkeypatch.setitem(ON_LEFT_OUT, "D", (0.9, 0.0, 1.0))  # every helper has D among its targets
    assert number(table, fill(table, tmp_path / "two"), "ERM", "A,B,C->D") == before == pytest.approx(32.0)


def test_a_step_that_a_helper_lacks_is_not_chosen(make_table: Make, tmp_path: Path) -> None:
    table = make_table(**PARTS)
    root = fill(table, tmp_path)
    (helper,) = [cell for cell in table.helpers() if cell.task == "A,B->C,D"]
    record = {"step": 100, "validators": {}, "oracle": {}, "test": {name: {"accuracy": 0.5} for name in "CD"}}
    fake_runs.write_result(run_directory(helper.config, root), helper.config, 0.4, history=[record])
    assert number(table, root, "ERM", "A,B,C->D") == pytest.approx(31.0)


def test_without_one_of_the_runs_there_is_no_number_and_both_are_named(make_table: Make, tmp_path: Path) -> None:
    table = make_table(**PARTS)
    root = fill(table, tmp_path, without=("A,B->C,D",))
    store = load(table, root)
    assert number(table, root, "ERM", "A,B,C->D") is None
    assert number(table, root, "ERM", "B,C,D->A") is not None
    assert make_sheet(store).missing == (
        f"ERM A,B,D->C seed 0 (no {LEFT_OUT})",
        f"ERM A,B,C->D seed 0 (no {LEFT_OUT})",
        f"ERM A,B->C,D seed 0 (by which {LEFT_OUT} chooses)",
    )
    assert states(store)["ERM A,B->C,D seed 0"] == "missing"
    assert "9 of 10 runs are done." in make_sheet(store).caption


def test_a_launch_makes_them(make_table: Make, tmp_path: Path) -> None:
    start = {"name": "SHOT", "model": {"class_path": "SHOT"}, "from": "ERM"}
    table = make_table(**{**PARTS, "tasks": {"leave_one_out": DOMAINS[:3]}, "rows": [ERM, start]})
    report = run_table(
        table, tmp_path, make_reporter(Console(quiet=True)), workers=1, function="fake_runs:execute", poll=0.1
    )
    assert (report.exit_code, report.made) == (0, 12)
    assert len(fake_runs.calls(tmp_path)) == len(make_jobs(table, tmp_path)) == 12
    helper = next(cell for cell in table.helpers() if cell.row == "SHOT")
    assert helper.start is not None
    assert helper.start.task == helper.task


def test_rows_that_have_no_choice(make_table: Make, tmp_path: Path) -> None:
    table = make_table(**{**PARTS, "rows": [ERM, SWAD, ON_TARGET]})
    assert {cell.row for cell in table.helpers()} == {"ERM"}
    root = fill(table.only(["ERM"], [], []), tmp_path)
    fill(table.only(["SWAD"], [], []), root, averaged="SWAD")
    fill(table.only(["on target"], [], []), root, oracle=True)
    sheet = make_sheet(load(table, root))
    assert sheet.missing == ()
    assert number(table, root, "SWAD", "A,B,C->D") == number(table, root, "SWAD", "A,B,C->D", "last") == 40.0
    assert number(table, root, "on target", "A,B,C->D") is None
    caption = " ".join(sheet.caption)
    assert "the run B,C->A,D is scored on the test split of D" in caption
    assert "These are 6 further runs." in caption
    assert f"There is no {LEFT_OUT} for what trains on target labels: on target." in caption
    assert "SWAD: an average of the weights over training (SWAD), hence the same number under every" in caption
    assert "SWAD is a generalization method" not in caption


def test_a_criterion_that_needs_the_target_is_not_called_source_free(make_table: Make, tmp_path: Path) -> None:
    rows = [ERM, {"name": "DANN", "model": {"class_path": "DANN"}}]
    table = make_table(**{**PARTS, "rows": rows, "select": ["last", "im"]})
    root = fill(table.only(["ERM"], [], []), tmp_path)
    fill(table.only(["DANN"], [], []), root, setting=fake_runs.SETTINGS["adaptation"], history=[
        {"step": 1, "validators": {"im": 0.5}, "oracle": {}, "test": {name: {"accuracy": 0.3} for name in DOMAINS}}
    ])  # fmt: skip
    caption = make_sheet(load(table, root)).caption
    assert "ERM is a generalization method: there is no im, which reads target samples." in caption
    assert "The table mixes settings. generalization: ERM; adaptation: DANN." in caption


def test_what_a_generalization_run_could_have_is_missing(make_table: Make, tmp_path: Path) -> None:
    """Its sources' training images are scored only where that was asked for; the target has no part in it."""
    rows = [ERM, {"name": "DANN", "model": {"class_path": "DANN"}}]
    table = make_table(**{**PARTS, "rows": rows, "select": ["last", "source_train_accuracy", "dev"]})
    root = fill(table.only(["ERM"], [], []), tmp_path)
    scores = {"dev": 0.5, "source_train_accuracy": 0.9}
    fill(table.only(["DANN"], [], []), root, setting=fake_runs.SETTINGS["adaptation"], history=[
        {"step": 1, "validators": scores, "oracle": {}, "test": {name: {"accuracy": 0.3} for name in DOMAINS}}
    ])  # fmt: skip
    sheet = make_sheet(load(table, root))
    assert "ERM is a generalization method: there is no dev, which reads target samples." in sheet.caption
    expected = [f"{cell.label} (no source_train_accuracy)" for cell in table.cells() if cell.row == "ERM"]
    assert list(sheet.missing) == expected != []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["A->B"]}, "trains without each source in turn: A->B has but one"),
        (
            {"per_task": {"A,B,C->D": {"trainer": {"max_epochs": 2}}}},
            "needs the run B,C->A,D for B,C,D->A and for A,B,C->D, but per_task gives the two different settings",
        ),
        *(
            ({"base": {"data": {"class_path": "PACS", "init_args": {"label_sets": sets}}}}, "classes that only the tar")
            for sets in ("visda-open", {"common": 5, "target_private": 2}, {"common": 5, "target_private": ["dog"]})
        ),
    ],
)
def test_where_it_does_not_exist(make_table: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        make_table(**{**PARTS, **changes})
    assert said in str(error.value)
    with pytest.raises(UserError) as error:
        make_table(**{**PARTS, **changes, "select": ["last"]}).with_selection([LEFT_OUT], False)
    assert said in str(error.value)


def test_it_exists_where_the_target_lacks_classes(make_table: Make) -> None:
    for sets in ("closed", "visda-partial", {"common": 5, "source_private": 2}, {"common": 5, "target_private": 0}):
        data = {"class_path": "PACS", "init_args": {"label_sets": sets}}
        assert make_table(**PARTS, base={"data": data}).select == (LEFT_OUT,)


def line(sheet: Sheet, row: str, kind: str = "method") -> Line:
    (found,) = [one for one in sheet.sections[0].lines if (one.row, one.kind) == (row, kind)]
    return found


PUBLISHED = (
    "method,task,value,std,n,metric,source,provenance,note\n"
    "ERM,photo->art,60.5,,,accuracy,Paper,seen,\n"
    'ERM,"photo -> art, sketch",55,,,accuracy,Paper,seen,\n'
)


def test_every_target_has_a_column(make_table: Make, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(PUBLISHED, encoding="utf-8")
    rows = [{**ERM, "control": "plain"}, {**ERM, "name": "plain", "model": {"class_path": "SourceOnly"}}]
    tasks = ["photo->art,sketch", "art->photo,sketch"]
    table = make_table(tasks=tasks, seeds=[0, 1], rows=rows, published="p.csv")
    root = tmp_path / "runs"
    for cell in table.cells():
        gain = 0.1 if cell.row == "ERM" else 0.0
        test = {"art": 0.6 + gain, "sketch": 0.4 + 0.1 * cell.seed, "photo": 0.9}
        parts = {"test": {name: {"accuracy": value} for name, value in test.items()}}
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.0, **parts)
    store = load(table, root)
    sheet = make_sheet(store)
    columns = ("photo->art", "photo->sketch", tasks[0], "art->photo", "art->sketch", tasks[1], "average", "worst")
    assert sheet.columns == columns
    means = [value.mean for value in line(sheet, "ERM").values if value]
    assert means == pytest.approx([70, 45, 57.5, 90, 45, 67.5, 62.5, 45])
    gains = [value.mean for value in line(sheet, "ERM", "minus control").values if value]
    assert gains == pytest.approx([10, 0, 5, 0, 0, 0, 2.5, 0], abs=1e-9)
    gap = line(sheet, "ERM", "minus published").values
    assert [value and round(value.mean, 4) for value in gap] == [9.5, None, 2.5, *[None] * 5]
    assert "A task of several targets has a column for each, then one for their mean." in sheet.caption
    markdown, latex = render_markdown(sheet), render_latex(sheet)
    assert "| method | photo->art | photo->sketch | photo->art,sketch | art->photo |" in markdown
    assert r"photo$\to$art & photo$\to$sketch & photo$\to$art,sketch" in latex
    assert "last,ERM,method,photo->art,70.0,0.0,,,2,," in render_csv(sheet)
    page = render_html(sheet, store, root, {})
    assert "<th>photo → art</th><th>photo → sketch</th><th>photo → art, sketch</th>" in page


def test_a_row_that_needs_other_test_samples_is_marked_everywhere(make_table: Make, tmp_path: Path) -> None:
    plain = {"name": "plain", "model": {"class_path": "X"}}
    table = make_table(**{**PARTS, "select": ["last"], "rows": [ERM, plain]})
    root = fill(table.only(["ERM"], [], []), tmp_path, transductive_reason="batch statistics of the test stream.")
    fill(table.only(["plain"], [], []), root)
    store = load(table, root)
    sheet = make_sheet(store)
    said = "use other test samples to predict one: ERM (batch statistics of the test stream)."
    assert f"Rows marked (transductive) {said}" in sheet.caption
    assert "Setting: generalization, where no image of the target is seen in training." in sheet.caption
    assert "| ERM (transductive) |" in render_markdown(sheet)
    assert "| plain |" in render_markdown(sheet)
    assert "ERM (transductive) &" in render_latex(sheet)
    page = render_html(sheet, store, root, {})
    assert 'ERM <span class="tag">transductive</span>' in page
    assert page.count('<span class="tag">') == 1


def test_domains_with_signs_and_digits(make_table: Make, tmp_path: Path) -> None:
    domains = ["+90%", "+80%", "-90%"]
    (tmp_path / "p.csv").write_text(
        'method,task,value,std,n,metric,source,provenance,note\nERM,"+80%,-90%->+90%",71.7,0.1,3,accuracy,Paper,seen,\n'
    )
    changes = {"tasks": {"leave_one_out": domains}, "select": ["last", LEFT_OUT], "published": "p.csv"}
    table = make_table(**{**PARTS, **changes})
    assert table.tasks == ("+80%,-90%->+90%", "+90%,-90%->+80%", "+90%,+80%->-90%")
    root = tmp_path / "runs"
    for cell in table.runs():
        targets = cell.config["data"]["init_args"]["target"]
        history = [{"step": 1, "validators": {}, "oracle": {}, "test": {name: {"accuracy": 0.5} for name in targets}}]
        fake_runs.write_result(run_directory(cell.config, root), cell.config, 0.4, history=history)
    store = load(table, root)
    sheet = make_sheet(store)
    assert sheet.missing == ()
    assert line(sheet, "ERM", "published").values[0].number == "71.7"  # type: ignore[union-attr]
    assert r"+80\%,-90\%$\to$+90\%" in render_latex(sheet)
    shown = "\n".join(line for line in render_latex(sheet).splitlines() if not line.startswith("% "))
    assert "%" not in shown.replace(r"\%", "").replace("{!}{%", "")
    assert "| +80%,-90%->+90% |" in render_markdown(sheet)
    assert "+80%, -90% → +90%" in render_html(sheet, store, root / "tables", {})
    names = {run_directory(cell.config, root).name for cell in table.runs()}
    assert len(names) == 6
    assert all(set(name) <= set("+-_.0123456789abcdefERMs") for name in names)
    assert f'"\'+80%,-90%->+90%",0,{LEFT_OUT},+90%,50.0,' in render_cells(store)
    turned = make_table(**{**PARTS, "tasks": {"leave_one_out": [0, 15, 30]}})
    assert turned.tasks == ("15,30->0", "0,30->15", "0,15->30")
    assert turned.only([], ["15,30 -> 0"], []).cells()[0].config["data"]["init_args"]["source"] == ["15", "30"]
