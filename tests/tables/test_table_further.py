"""What stands below the main table if it is asked for: tests, criteria side by side, costs. And LaTeX, and W&B."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from commands import QUICK, call
from scipy import stats

from dafw.run.directory import run_directory
from dafw.tables.costs import costs
from dafw.tables.criteria import criteria
from dafw.tables.grid import Table
from dafw.tables.reading import load_table
from dafw.tables.render import render_latex
from dafw.tables.sheet import make_sheet
from dafw.tables.significance import critical_difference, holm, ranks, significance
from dafw.tables.store import load

Make = Callable[..., Table]
Fill = Callable[..., Path]
TASKS = [f"{source}->{target}" for source in "abc" for target in "abcde" if source != target]
ROWS: list[dict[str, Any]] = [
    {"name": "ERM", "model": {"class_path": "SourceOnly"}},
    {"name": "A", "model": {"class_path": "DANN", "init_args": {"gamma": 1}}, "control": "ERM"},
    {"name": "B", "model": {"class_path": "DANN", "init_args": {"gamma": 2}}, "control": "ERM"},
    {"name": "top", "model": {"class_path": "SourceOnly"}, "data": {"init_args": {"oracle": True}}},
]


def scores() -> dict[tuple[str, str, int], float]:
    """A is better than ERM in most pairs, B is not; whole percents, so that there are ties."""
    random = np.random.default_rng(0)
    found = {}
    for task in TASKS:
        for seed in (0, 1):
            base = float(random.integers(50, 60)) / 100
            gains = {"ERM": 0.0, "A": random.integers(-1, 5) / 100, "B": random.integers(-2, 3) / 100, "top": 0.4}
            found |= {(row, task, seed): base + float(gain) for row, gain in gains.items()}
    return found


def test_the_tests_are_those_of_scipy(make_table: Make, fill: Fill) -> None:
    given = scores()
    table = make_table(tasks=TASKS, rows=ROWS, seeds=[0, 1])
    store = load(table, fill(table, lambda *key: given[key]))
    against, mean_ranks = significance(store)
    gaps = {
        row: [100 * given[row, task, seed] - 100 * given["ERM", task, seed] for task in TASKS for seed in (0, 1)]
        for row in "AB"
    }
    values = [float(stats.wilcoxon(gaps[row]).pvalue) for row in "AB"]
    corrected = holm(values)
    assert [line[:3] for line in against.lines] == [("A", "ERM", "24"), ("B", "ERM", "24")]
    for line, value, after in zip(against.lines, values, corrected, strict=True):
        for said, number in zip(line[4:], (value, after), strict=True):
            assert said == ("< 0.001" if number < 0.001 else f"{number:.3f}")
    assert "Holm's correction for 2 comparisons" in against.notes[0]
    by_task = np.array(
        [[np.mean([given[row, task, seed] for seed in (0, 1)]) for row in ("ERM", "A", "B")] for task in TASKS]
    )
    means = stats.rankdata(-by_task.round(9), axis=1).mean(axis=0)
    assert dict(line[:2] for line in mean_ranks.lines) == {
        row: f"{mean:.2f}" for row, mean in zip(("ERM", "A", "B"), means, strict=True)
    }, "a row with target labels has no rank"
    best = means.min()
    limit = critical_difference(3, len(TASKS))
    apart = {row: "yes" if mean - best > limit else "no" for row, mean in zip(("ERM", "A", "B"), means, strict=True)}
    assert {line[0]: line[2] for line in mean_ranks.lines} == apart
    assert f"more than {limit:.2f} (Nemenyi)" in mean_ranks.notes[0]
    friedman = stats.friedmanchisquare(*by_task.T.round(9)).pvalue
    assert f"p = {friedman:.3f}." in mean_ranks.notes[0] or friedman < 0.001


def test_the_corrections_are_those_of_the_papers() -> None:
    """Critical differences as in Demsar (JMLR 7, 2006), table 5: q of 2.343 for three methods, 2.728 for five."""
    assert critical_difference(3, 10) == pytest.approx(2.343 * (3 * 4 / 60) ** 0.5, abs=1e-3)
    assert critical_difference(5, 14) == pytest.approx(2.728 * (5 * 6 / 84) ** 0.5, abs=1e-3)
    assert holm([0.04, 0.001, 0.5]) == pytest.approx([0.08, 0.003, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert ranks([1, 3, 3, 2]) == [4, 1.5, 1.5, 3]


def test_what_makes_no_sense_is_left_out(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=["a->b"], rows=ROWS[:2], seeds=[0])
    assert significance(load(table, fill(table, lambda *_: 0.5))) == ()
    assert criteria(load(table, fill(table, lambda *_: 0.5))) == ()
    empty = make_table(tasks=["a->c"], rows=ROWS[:2], seeds=[0])
    assert costs(load(empty, Path("nowhere"))) == ()


def test_equal_rows_are_no_error(make_table: Make, fill: Fill) -> None:
    table = make_table(tasks=TASKS, rows=ROWS[:3], seeds=[0, 1])
    against, mean_ranks = significance(load(table, fill(table, lambda *_: 0.5)))
    assert {line[4:] for line in against.lines} == {("1.000", "1.000")}
    assert {line[1:] for line in mean_ranks.lines} == {("2.00", "no")}


def history(target: str) -> list[dict[str, Any]]:
    """Validation 1 is best for the oracle, 2 for im, 3 is the last."""
    return [
        {"step": step, "validators": {"im": im}, "oracle": {"accuracy": said}, "test": {target: {"accuracy": test}}}
        for step, im, said, test in ((1, 0.1, 0.9, 0.8), (2, 0.9, 0.5, 0.7), (3, 0.2, 0.5, 0.6))
    ]


def test_criteria_and_regrets(make_table: Make, tmp_path: Path) -> None:
    for allowed in (False, True):
        table = make_table(tasks=["a->b", "a->c"], rows=ROWS[:1], seeds=[0, 1], allow_oracle=allowed)
        for cell in table.cells():
            (target,) = cell.domains[1]
            directory = run_directory(cell.config, tmp_path)
            fake_runs.write_result(directory, cell.config, 0.6, history=history(target))
        store = load(table, tmp_path)
        parts = criteria(store)
        if not allowed:
            assert parts[0].columns == ("method", "last", "im")
            assert parts[0].lines == (("ERM", "60.0", "70.0"),)
            assert "need --allow-oracle" in parts[0].notes[-1]
            assert len(parts) == 1
        else:
            assert parts[0].lines == (("ERM", "60.0", "70.0", "80.0"),)
            assert parts[1].lines == (("ERM", "20.0", "10.0"), ("mean over methods", "20.0", "10.0"))


def test_costs(make_table: Make, fill: Fill) -> None:
    table = make_table(rows=ROWS[:2])
    cost = {"samples": 32_000, "peak_resident": 600 << 20}
    store = load(table, fill(table, lambda row, *_: 0.5, cost=cost))
    (part,) = costs(store)
    assert part.columns == ("method", "steps", "seconds", "of training", "samples/s", "peak resident, MiB")
    assert part.lines[0] == ("ERM", "1,000", "61.2", "50.0", "640", "600")
    (older,) = costs(load(table, fill(table, lambda row, *_: 0.5)))
    assert older.lines[0] == ("ERM", "1,000", "61.2", "50.0")


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "csv"])
def test_they_are_printed_only_if_asked(
    grid_file: Callable[..., Path], fill: Fill, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    grid = grid_file(seeds=[0, 1], rows=[*ROWS[:2], {**ROWS[2], "name": "=B|_$"}])
    root = fill(load_table(grid), lambda row, *_: 0.5, history=[], cost={"samples": 100})
    command = ("table", "show", grid, "--root", root, "--format", form)
    plain = call(capsys, *command)
    more = call(capsys, *command, "--tests", "--criteria", "--costs")
    assert (plain.code, more.code, more.err) == (0, 0, "")
    page = f"{root / 'tables' / 'digits' / 'index.html'}\n"
    start = plain.out.removesuffix(page)
    assert more.out.startswith(start)
    added = more.out.removeprefix(start)
    named = {"terminal": "=B|_$", "markdown": r"=B\|\_\$", "latex": r"=B\textbar{}\_\$", "csv": "'=B|_$"}[form]
    assert added.count(named) == 3
    if form != "csv":
        assert "Mean ranks" in added
        assert "What a run took" in added
    text = (root / "tables" / "digits" / "index.html").read_text(encoding="utf-8")
    assert "Mean ranks" in text
    assert "What a run took" in text


def test_latex_marks_best_and_second_and_has_a_caption_of_one_sentence(make_table: Make, fill: Fill) -> None:
    table = make_table(title="A & B.", rows=ROWS, seeds=[0, 1], note="Chosen before.", tasks=["a->b", "a->c"])
    given = {"ERM": 0.5, "A": 0.7, "B": 0.6, "top": 0.9}
    sheet = make_sheet(load(table, fill(table, lambda row, *_: given[row])))
    text = render_latex(sheet)
    assert text.isascii()
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    assert caption == r"A \& B.: target test accuracy in \%, mean $\pm$ sample std over 2 seeds (0, 1)."
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    found = {line.split(" & ")[0]: line for line in body}
    assert found["A"].count(r"\textbf{70.0}") == 4
    assert found["B"].count(r"\underline{60.0}") == 4
    assert "textbf" not in found["top (oracle)"]
    assert "textbf" not in found["ERM"]
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert any("torch 2.15.0" in line for line in comments)
    assert any("8 of 8" in line or "16 of 16" in line for line in comments)
    (notes,) = re.findall(r"\\footnotesize (.*)\}", text)
    assert "Chosen before." in notes
    assert "Bold: the highest mean of a method" in notes
    assert "torch" not in notes
    reversed_ = make_sheet(load(table, fill(table, lambda row, *_: given[row])))
    assert render_latex(reversed_) == text


def test_the_table_in_wandb_has_the_same_numbers(
    grid_file: Callable[..., Path], fill: Fill, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and of runs that were never logged."""
    import wandb

    logged: dict[str, Any] = {}
    artifacts: list[Any] = []
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb.Run, "log", lambda self, values, *_, **__: logged.update(values))
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda self, one, *_, **__: artifacts.append(one))
    grid = grid_file(seeds=[0, 1])
    root = fill(load_table(grid), lambda row, *_: 0.5)
    command = ("table", "show", grid, "--root", root)
    done = call(capsys, *command, "--wandb")
    assert (done.code, done.err) == (0, "")
    folder = root / "tables" / "digits"
    assert list(folder.glob("wandb/offline-run-*-table-*"))
    table = logged["table"]
    means = [line[table.columns.index("mean")] for line in table.data if line[table.columns.index("kind")] == "method"]
    assert means == [50.0] * 8
    assert {line[logged["cells"].columns.index("percent")] for line in logged["cells"].data} == {50.0}
    (artifact,) = artifacts
    assert set(artifact.manifest.entries) == {"index.html", "table.md", "table.tex", "table.csv", "cells.csv"}
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = call(capsys, *command, "--wandb")
    assert done.code == 2
    assert done.err == "dafw: error: W&B cannot log the table: WANDB_MODE is disabled\n"


def test_a_run_records_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ("fit", "--model", "DANN", "--model.width", "8", *QUICK, "--run.dir", tmp_path / "run")
    assert call(capsys, *fit, "--run.plots", "samples").code == 0
    drawn = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert drawn == {"embedding.png", "confusion.png"}, "the curves are left to the page of a table"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["cost"]["samples"] == 2 * 16, "two steps of eight samples of each domain"
    if Path("/proc/self/status").exists():
        assert 10 << 20 < result["cost"]["peak_resident"] < 1 << 40
