"""Rows that start from another row's runs: what they are, when they are made, what becomes of them if that fails."""

import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs
import pytest
from rich.console import Console

from dafw.errors import UserError
from dafw.run.directory import lock, run_directory
from dafw.run.identity import config_hash, within_run
from dafw.tables.grid import Table
from dafw.tables.launch import Report, make_jobs, run_table
from dafw.tables.overlay import parse_settings
from dafw.tables.progress import Lines
from dafw.tables.sheet import make_sheet
from dafw.tables.slurm import parse_cluster, submit_table
from dafw.tables.store import load

Make = Callable[..., Table]
SOURCE: dict[str, Any] = {"name": "source only", "model": {"class_path": "SourceOnly"}}
SHOT: dict[str, Any] = {"name": "SHOT", "model": {"class_path": "SHOT"}, "from": "source only"}
AGAIN: dict[str, Any] = {"name": "again", "model": {"class_path": "SHOT"}, "from": "SHOT"}
ONE: dict[str, Any] = {"tasks": ["mnist->mnistm"], "seeds": [0]}


def launch(table: Table, root: Path, workers: int = 2) -> tuple[Report, str]:
    root.mkdir(exist_ok=True)
    file = io.StringIO()
    reporter = Lines(Console(file=file, width=200))
    function = "fake_runs:execute"
    return run_table(table, root, reporter, workers=workers, function=function, poll=0.1, grace=20), file.getvalue()


def test_a_cell_names_the_run_of_the_same_task_and_seed(make_table: Make, tmp_path: Path) -> None:
    table = make_table(rows=[{**SHOT, "control": True}, SOURCE])
    cells = {(cell.row, cell.task, cell.seed): cell for cell in table.cells()}
    for (row, task, seed), cell in cells.items():
        if row != "source only":
            source = run_directory(cells["source only", task, seed].config, tmp_path)
            assert cell.config["model"]["init_args"]["checkpoint"] == source.name
            assert cell.placed(tmp_path).config["model"]["init_args"]["checkpoint"] == str(source)
            assert run_directory(cell.placed(tmp_path).config, tmp_path) == run_directory(cell.config, tmp_path)
    control = cells["SHOT control", "mnist->mnistm", 0].config["model"]["init_args"]
    assert {name: control[name] for name in ("weight", "pseudo_weight")} == {"weight": 0.0, "pseudo_weight": 0.0}


def test_it_is_another_run_if_the_source_model_is_another(make_table: Make) -> None:
    longer = {**SOURCE, "trainer": {"max_epochs": 9}}
    names = [
        {run_directory(cell.config, Path()).name for cell in make_table(rows=[source, SHOT], **ONE).cells()}
        for source in (SOURCE, longer)
    ]
    assert names[0].isdisjoint(names[1])


def test_where_the_source_model_lies_changes_nothing() -> None:
    def hashed(checkpoint: str) -> str:
        return config_hash({"model": {"class_path": "SHOT", "init_args": {"checkpoint": checkpoint}}})

    run = "SourceOnly-a-b-s0-0123abcd"
    assert hashed(run) == hashed(f"/disk/runs/{run}") == hashed(f"runs/{run}/")
    assert hashed(f"{run}/checkpoints/step=5.ckpt") == hashed(f"/disk/{run}/checkpoints/step=5.ckpt")
    assert len({hashed(text) for text in (run, "SourceOnly-a-b-s0-0123abce", "one/x.ckpt", "two/x.ckpt")}) == 4
    assert within_run("one/x.ckpt") == "one/x.ckpt"


def test_a_part_of_a_table_brings_the_rows_that_others_start_from(make_table: Make, fill: Callable[..., Path]) -> None:
    dann = {"name": "DANN", "model": {"class_path": "DANN"}, "control": True}
    table = make_table(rows=[{**SOURCE, "control": "DANN"}, dann, {**SHOT, "control": True}, AGAIN])
    assert [row.name for row in table.only(["SHOT"], [], []).rows] == ["source only", "SHOT", "SHOT control"]
    part = table.only(["again"], [], [])
    assert [row.name for row in part.rows] == ["source only", "SHOT", "again"]
    assert part.narrowed == "rows again, with what they start from: SHOT, source only"
    caption = " ".join(make_sheet(load(part, fill(part, lambda *_: 0.5))).caption)
    assert "again starts from the models of SHOT, of the same task and seed." in caption


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([SOURCE, {**SHOT, "from": "source onyl"}], 'unknown from of row "SHOT" of digits.yaml "source onyl": did you'),
        ([SOURCE, {**SHOT, "from": "SHOT"}], 'unknown from of row "SHOT"'),
        ([{**SHOT, "from": "again"}, AGAIN], 'the row "SHOT" of digits.yaml starts from itself, by way of "again"'),
        ([SOURCE, {**SHOT, "model": {"class_path": "SHOT", "init_args": {"checkpoint": "x"}}}], "sets the checkpoint"),
    ],
)
def test_a_wrong_start(make_table: Make, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_table(rows=rows)


def test_a_run_waits_for_the_one_it_starts_from(make_table: Make, tmp_path: Path) -> None:
    """The stand-in refuses to start from a run without a result."""
    rows = [AGAIN, {**SHOT, "control": True}, {**SOURCE, "run": {"behave": "sleep"}}]
    report, said = launch(make_table(rows=rows, seeds=[0]), tmp_path / "runs", workers=3)
    assert (report.total, report.made, report.failed, report.exit_code) == (8, 8, [], 0), said
    assert launch(make_table(rows=rows, seeds=[0]), tmp_path / "runs")[0].skipped == 8


def test_a_run_is_made_after_the_second_attempt_at_the_one_it_starts_from(make_table: Make, tmp_path: Path) -> None:
    rows = [SHOT, {**SOURCE, "run": {"behave": "raise once"}}]
    report, _ = launch(make_table(rows=rows, **ONE), tmp_path / "runs")
    assert (report.made, report.exit_code) == (2, 0)


def test_a_run_fails_with_the_one_it_starts_from(make_table: Make, tmp_path: Path) -> None:
    rows = [AGAIN, SHOT, {**SOURCE, "run": {"behave": "raise"}}, {"name": "other", "model": {"class_path": "DANN"}}]
    table, root = make_table(rows=rows, **ONE), tmp_path / "runs"
    report, said = launch(table, root)
    failed = {job.cell.row: job for job in report.failed}
    assert (report.made, set(failed), report.exit_code) == (1, {"source only", "SHOT", "again"}, 1)
    assert failed["SHOT"].error == "it starts from source only mnist->mnistm seed 0, which failed: broke badly"
    assert failed["again"].error.startswith("it starts from SHOT mnist->mnistm seed 0, which failed: it starts from")
    assert failed["again"].log == failed["source only"].directory / "log.txt"
    assert "SHOT mnist->mnistm seed 0: it starts from" in said
    assert not any(name.startswith("SHOT") for name in fake_runs.calls(root))
    mended = make_table(rows=[AGAIN, SHOT, SOURCE], **ONE)
    assert {job.directory for job in make_jobs(mended, root)} <= {job.directory for job in make_jobs(table, root)}
    assert launch(mended, root)[0].exit_code == 0


@pytest.mark.parametrize("finishes", [True, False])
def test_the_one_it_starts_from_is_made_elsewhere(make_table: Make, tmp_path: Path, finishes: bool) -> None:
    """Another process makes it, or drops it: then it is taken over, although the queue is not empty."""
    table, root = make_table(rows=[SHOT, SOURCE], **ONE), tmp_path / "runs"
    source = next(job for job in make_jobs(table, root) if job.start is None)
    held = threading.Event()

    def hold() -> None:
        with lock(source.directory):
            held.set()
            time.sleep(1)
            if finishes:
                fake_runs.write_result(source.directory, source.cell.config, 0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    report, said = launch(table, root)
    thread.join()
    assert (report.made, report.read, report.exit_code) == ((1, 1, 0) if finishes else (2, 0, 0)), said


def test_through_submitit_they_are_a_second_array(
    make_table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))
    failing = {"name": "failing", "model": {"class_path": "DAN"}, "run": {"behave": "mistake"}}
    lost = [{**SHOT, "name": "lost", "from": "failing"}, {**AGAIN, "name": "lost too", "from": "lost"}]
    source = {**SOURCE, "run": {"behave": "raise once"}}
    table, root = make_table(rows=[AGAIN, SHOT, *lost, source, failing], **ONE), tmp_path / "runs"
    root.mkdir()
    reporter = Lines(Console(file=io.StringIO(), width=200))
    report = submit_table(
        table, root, reporter, parse_cluster(["cluster=local"]), function="fake_runs:execute", poll=0.1
    )
    assert (report.made, report.exit_code, report.unsubmitted) == (3, 1, 0)
    errors = {job.cell.row: job.error for job in report.failed}
    assert set(errors) == {"failing", "lost", "lost too"}
    assert errors["lost"].endswith("which failed: there is no such layer")


def test_a_criterion_that_needs_source_samples_is_not_there(make_table: Make, tmp_path: Path) -> None:
    table = make_table(rows=[SOURCE, SHOT], select=["last", "source_accuracy"], **ONE)
    scores = {"source_accuracy": 0.9, "source_train_accuracy": 0.9, "dev": 0.1, "snd": 0.2}
    for cell in table.cells():
        free = cell.row == "SHOT"
        validators = {"im": 0.5} | ({} if free else scores)
        record = {"step": 1, "validators": validators, "oracle": {}, "test": {"mnistm": {"accuracy": 0.6}}}
        setting = fake_runs.SETTINGS["source-free" if free else "adaptation"]
        directory = run_directory(cell.config, tmp_path)
        fake_runs.write_result(directory, cell.config, 0.7, history=[record], setting=setting)
    sheet = make_sheet(load(table, tmp_path))
    values = {line.row: line.values[0] for line in sheet.sections[1].lines}
    assert values["source only"] is not None
    assert values["SHOT"] is None
    assert sheet.missing == ()
    assert "SHOT is source-free: there is no source_accuracy, which reads source samples." in sheet.caption
    assert make_sheet(load(table.with_settings(parse_settings(["trainer.max_epochs=9"])), tmp_path)).missing
    others = replace(table, select=("last", "dev", "source_train_accuracy", "snd"))
    sheet = make_sheet(load(others, tmp_path))
    reads = "there is no dev, source_train_accuracy, which read source samples."
    assert f"SHOT is source-free: {reads}" in sheet.caption
    assert [one for one in sheet.missing if "SHOT" in one] == ["SHOT mnist->mnistm seed 0 (no snd)"]
