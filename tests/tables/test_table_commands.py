"""``dafw table`` as a user meets it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_runs
import pytest

from dafw.errors import UserError
from dafw.run.directory import run_directory
from dafw.tables import commands
from dafw.tables.grid import Table
from dafw.tables.launch import Report
from dafw.tables.reading import load_table
from dafw.tables.status import states
from dafw.tables.store import load


def run(*words: object, function: str = "fake_runs:execute") -> int:
    """Parses and carries out ``dafw table ...`` with the fake worker."""
    parser = argparse.ArgumentParser(prog="dafw")
    commands.add_parser(parser.add_subparsers())
    args = parser.parse_args(["table", *map(str, words)])
    if args.action == "run":
        args.function = function
    return commands.main(args)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_run_then_show_then_status(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(seeds=[0, 1])
    assert run("status", grid, "--root", root) == 0
    assert capsys.readouterr().out.startswith("digits: 0 done, 0 running, 0 failed, 0 interrupted, 12 missing\n")
    assert run("run", grid, "--root", root, "--workers", 2) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "DANN 60.5 ± 0.7 60.5 ± 0.7 60.5 ± 0.7 60.5 ± 0.7 control 60.5 ± 0.7" in words
    assert "minus control 0.0 [0.0, 0.0]" in words
    page = root / "tables" / "digits" / "index.html"
    assert out.endswith(f"{page}\n")
    page.unlink()
    assert run("show", grid, "--root", root, "--format", "markdown") == 0
    assert capsys.readouterr().out.startswith("# digits\n")
    assert page.exists()
    for form, start in (("latex", "% needs"), ("csv", "criterion,row"), ("html", str(page)), ("terminal", "digits")):
        assert run("show", grid, "--root", root, "--format", form) == 0
        assert capsys.readouterr().out.startswith(start)
    assert run("status", grid, "--root", root) == 0
    assert capsys.readouterr().out == "digits: 12 done, 0 running, 0 failed, 0 interrupted, 0 missing\n"


def test_an_interrupted_run_says_how_to_go_on(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafw.tables.launch.run_table", lambda *_, **__: Report(total=12, interrupted=True))
    assert run("run", grid_file(seeds=[0, 1]), "--root", root) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "interrupted: the same command goes on with the runs that are not done"


def test_a_directory_that_only_a_test_wrote_into_is_missing(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = load_table(grid_file(seeds=[0]))
    tested, begun, *_ = (run_directory(cell.config, root) for cell in table.runs())
    tested.mkdir()
    (tested / "test.json").write_text("{}")
    begun.mkdir()
    (begun / "config.yaml").write_text("{}")
    found = sorted(states(load(table, root)).values())
    assert found == ["interrupted", *["missing"] * (len(found) - 1)]


def test_a_cell_without_a_number_is_named_and_the_rest_is_shown(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"name": "good", "model": {"class_path": "X"}},
        {"name": "bad", "model": {"class_path": "Y"}, "run": {"behave": "raise"}},
    ]
    grid = grid_file(seeds=[0], tasks=["mnist->mnistm"], rows=rows)
    assert run("run", grid, "--root", root, "--workers", 1) == 1
    out = capsys.readouterr().out
    assert "good 50.0 (n=1)" in " ".join(out.split())
    assert "no number: bad mnist->mnistm seed 0" in out
    assert "failed: bad mnist->mnistm seed 0: broke badly (see " in out
    assert run("status", grid, "--root", root) == 0
    assert "failed       bad mnist->mnistm seed 0" in capsys.readouterr().out


def test_a_dry_run_does_nothing(grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", grid_file(), "--root", root, "--dry-run", "--rows", "DANN", "--seeds", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("missing ") and "DANN-" in line and "-s1-" in line for line in lines)
    assert list(root.iterdir()) == []


def test_a_part_and_an_overlay_make_other_runs_and_other_pages(grid_file: Callable[..., Path], root: Path) -> None:
    words = ("--root", root, "--rows", "source only", "--tasks", "mnist->mnistm", "--seeds", 0, 1)
    assert run("run", grid_file(), *words, "--workers", 1) == 0
    assert run("run", grid_file(), *words, "--workers", 1, "--set", "trainer.max_steps=3", "model.width=8") == 0
    assert len(set(fake_runs.calls(root))) == 4
    pages = sorted(path.parent.name for path in root.glob("tables/*/index.html"))
    assert len(pages) == 2
    assert all(name.startswith("digits-") for name in pages)


def test_the_oracle_needs_permission(
    grid_file: Callable[..., Path], fill: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(tasks=["mnist->mnistm"])
    table: Table = load_table(grid)
    history = [
        {"step": 1, "validators": {"im": 1.0}, "oracle": {"accuracy": 0.5}, "test": {"mnistm": {"accuracy": 0.9}}}
    ]
    runs = fill(table, lambda *_: 0.7, history=history)
    with pytest.raises(UserError, match="--allow-oracle"):
        run("show", grid, "--root", runs, "--select", "oracle")
    assert run("show", grid, "--root", runs, "--select", "last", "oracle", "--allow-oracle") == 0
    out = capsys.readouterr().out
    assert "Checkpoint: oracle (chosen with target labels)" in out
    assert "The criterion oracle chooses the checkpoint with target validation labels." in out
    with pytest.raises(UserError, match='unknown selection criterion "imm": did you mean "im"'):
        run("run", grid, "--root", runs, "--select", "imm")


def test_the_slurm_launcher(grid_file: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))
    monkeypatch.setattr("dafw.tables.slurm.QUEUE_POLL", 0.1)
    grid = grid_file(seeds=[0], tasks=["mnist->mnistm"])
    assert run("run", grid, "--root", root, "--launcher", "slurm", "--slurm", "cluster=local", "chunk=3") == 0
    assert len(fake_runs.calls(root)) == 3


@pytest.mark.parametrize("words", [["run"], ["run", "x", "--workers", "0"], ["show", "x", "--format", "pdf"], []])
def test_wrong_words_show_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    assert "usage: dafw table" in capsys.readouterr().err


def test_an_unknown_table() -> None:
    with pytest.raises(UserError, match='unknown table "no-such-table"'):
        run("status", "no-such-table")


def test_nothing_imports_torch_before_a_run(grid_file: Callable[..., Path], fill: Callable[..., Path]) -> None:
    grid = grid_file()
    runs = fill(load_table(grid), lambda *_: 0.7)
    script = (
        "import argparse, sys\nfrom dafw.tables import commands\n"
        "import dafw.tables.slurm, dafw.tables.launch, dafw.run.worker\n"
        "parser = argparse.ArgumentParser()\ncommands.add_arguments(parser)\n"
        "for action in ('show', 'status'):\n"
        f"    commands.main(parser.parse_args([action, {str(grid)!r}, '--root', {str(runs)!r}]))\n"
        "heavy = {'torch', 'pytorch_lightning', 'sklearn', 'submitit'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_metric_of_the_same_runs(
    grid_file: Callable[..., Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_file(seeds=[0])
    assert run("run", grid, "--root", root, "--workers", 2) == 0
    made = fake_runs.calls(root)
    capsys.readouterr()
    assert run("show", grid, "--root", root, "--format", "csv", "--metric", "accuracy") == 0
    assert "60.0" in capsys.readouterr().out
    assert run("show", grid, "--root", root, "--format", "csv", "--metric", "h_score") == 0
    assert "60.0" not in capsys.readouterr().out
    assert fake_runs.calls(root) == made
