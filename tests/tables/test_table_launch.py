"""The worker pool: skip, resume, retry, death, signals, two invocations at once. Only the training is faked."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_runs
import pytest
from rich.console import Console

from dafw.run.devices import default_workers, parse_listing, visible_gpus, worker_environment
from dafw.run.directory import lock, run_directory
from dafw.run.worker import last_line
from dafw.tables.grid import Table
from dafw.tables.launch import Report, make_jobs, run_table
from dafw.tables.overlay import parse_settings
from dafw.tables.progress import Lines, Live
from dafw.tables.reading import load_table
from dafw.tables.status import states
from dafw.tables.store import load

Make = Callable[..., Table]
FAKE = "fake_runs:execute"


def launch(table: Table, root: Path, workers: int = 2, function: str = FAKE) -> tuple[Report, str]:
    """Runs a table with the fake worker; the report and what was printed."""
    root.mkdir(exist_ok=True)
    file = io.StringIO()
    reporter = Lines(Console(file=file, width=200))
    report = run_table(table, root, reporter, workers=workers, function=function, poll=0.1, grace=20)
    return report, file.getvalue()


def behaving(table: Table, word: str) -> Table:
    return table.with_settings(parse_settings([f"run.behave={word}"]))


def test_every_cell_is_made_once_and_then_skipped(make_table: Make, tmp_path: Path) -> None:
    table = make_table()
    report, said = launch(table, tmp_path / "runs")
    assert (report.total, report.skipped, report.made, report.failed, report.exit_code) == (18, 0, 18, [], 0)
    made = fake_runs.calls(tmp_path / "runs")
    assert len(made) == len(set(made)) == 18
    assert all("-s0-" in name for name in made[:5])  # seed by seed
    assert "[18/18]" in said
    assert "DANN mnist->mnistm seed 1: 61.00 % in 0 s" in said
    log = run_directory(table.cells()[0].config, tmp_path / "runs") / "log.txt"
    assert log.read_text(encoding="utf-8") == f"executing {log.parent.name} with 1 threads\n"
    report, said = launch(table, tmp_path / "runs")
    assert (report.skipped, report.made) == (18, 0)
    assert len(fake_runs.calls(tmp_path / "runs")) == 18
    assert set(states(load(table, tmp_path / "runs")).values()) == {"done"}


def test_cells_of_one_configuration_are_one_run(make_table: Make, tmp_path: Path) -> None:
    rows = [{"name": name, "model": {"class_path": "SourceOnly"}} for name in ("one", "other")]
    report, _ = launch(make_table(rows=rows, seeds=[0]), tmp_path / "runs")
    assert (report.total, report.made) == (2, 2)


def test_a_broken_result_is_set_aside_and_made_again(make_table: Make, tmp_path: Path) -> None:
    table = make_table(seeds=[0])
    root = tmp_path / "runs"
    directory = run_directory(table.cells()[0].config, root)
    directory.mkdir(parents=True)
    (directory / "result.json").write_text("{", encoding="utf-8")
    report, _ = launch(table, root)
    assert (report.skipped, report.made) == (0, 6)
    assert json.loads((directory / "result.json").read_text(encoding="utf-8"))["seed"] == 0
    assert (directory / "result.broken.json").read_text(encoding="utf-8") == "{"


def test_a_result_without_the_metric_stays_and_says_so(make_table: Make, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    launch(make_table(seeds=[0]), root)
    report, _ = launch(make_table(seeds=[0], metric="h_score"), root)
    assert len(report.failed) == 6
    assert all('has no finite test "h_score" for mnist' in job.error for job in report.failed)
    assert len(list(root.glob("*/result.json"))) == len(fake_runs.calls(root)) == 6


@pytest.mark.parametrize("word", ["raise", "die", "give_up"])
def test_what_fails_once_is_tried_once_more(make_table: Make, tmp_path: Path, word: str) -> None:
    table = behaving(make_table(seeds=[0], rows=[{"name": "X", "model": {"class_path": "X"}}]), f'"{word} once"')
    report, said = launch(table, tmp_path / "runs")
    assert (report.made, report.exit_code) == (2, 0)
    assert sorted(fake_runs.calls(tmp_path / "runs")) == sorted(
        2 * [job.directory.name for job in make_jobs(table, Path())]
    )
    assert said.count("trying once more") == 2
    for job in make_jobs(table, tmp_path / "runs"):
        assert "--- attempt 2 ---" in (job.directory / "log.txt").read_text(encoding="utf-8")
        assert not (job.directory / "failed.txt").exists()


@pytest.mark.parametrize(
    ("word", "error", "log"),
    [
        ("raise", "broke badly", "RuntimeError: something"),
        ("die", "the worker died: killed by SIGKILL (out of memory?)", "executing X"),
        ("give_up", "SystemExit: 3", "stopped without a word"),
    ],
)
def test_what_fails_twice_has_no_number_and_says_why(
    make_table: Make, tmp_path: Path, word: str, error: str, log: str
) -> None:
    rows = [
        {"name": "X", "model": {"class_path": "X"}, "run": {"behave": word}},
        {"name": "Y", "model": {"class_path": "Y"}},
    ]
    table = make_table(seeds=[0], rows=rows)
    report, said = launch(table, tmp_path / "runs")
    assert (report.made, len(report.failed), report.exit_code) == (2, 2, 1)
    assert {job.error for job in report.failed} == {error}
    assert [fake_runs.calls(tmp_path / "runs").count(job.directory.name) for job in report.failed] == [2, 2]
    for job in report.failed:
        assert f"{job.cell.label}: {error}; no number, see {job.directory / 'log.txt'}" in said
        assert log in (job.directory / "log.txt").read_text(encoding="utf-8")
    assert [state for label, state in states(load(table, tmp_path / "runs")).items() if label[0] == "X"] == [
        "failed"
    ] * 2


def test_a_mistake_of_the_user_is_not_tried_again(make_table: Make, tmp_path: Path) -> None:
    table = behaving(make_table(seeds=[0], rows=[{"name": "X", "model": {"class_path": "X"}}]), "mistake")
    report, said = launch(table, tmp_path / "runs")
    assert [job.error for job in report.failed] == ["there is no such layer"] * 2
    assert len(fake_runs.calls(tmp_path / "runs")) == 2
    assert "trying once more" not in said


def test_a_function_that_cannot_be_loaded_fails_every_cell(make_table: Make, tmp_path: Path) -> None:
    report, _ = launch(make_table(seeds=[0]), tmp_path / "runs", function="no_such_module:execute")
    assert len(report.failed) == 6
    assert "cannot load no_such_module:execute" in report.failed[0].error


def test_a_run_of_another_process_is_waited_for_and_read(make_table: Make, tmp_path: Path) -> None:
    table = make_table(seeds=[0], tasks=["mnist->mnistm"], rows=[{"name": "X", "model": {"class_path": "X"}}])
    root = tmp_path / "runs"
    (cell,) = table.cells()
    directory = run_directory(cell.config, root)
    script = (
        "import sys, time, fake_runs\nfrom pathlib import Path\nfrom dafw.run.directory import lock\n"
        "directory = Path(sys.argv[1])\n"
        "with lock(directory):\n    print('held', flush=True)\n    sys.stdin.readline()\n"
        "    ends = {'source': ['mnist'], 'target': ['mnistm']}\n"
        "    config = {'seed_everything': 0, 'model': {'class_path': 'X'}, 'data': {'init_args': ends}}\n"
        "    fake_runs.write_result(directory, config, 0.87)\n"
    )
    command = [sys.executable, "-c", script, str(directory)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "held\n"
    assert states(load(table, root)) == {cell.label: "running"}

    class Nudge(Lines):
        def waiting(self, label: str) -> None:
            super().waiting(label)
            assert other.stdin is not None
            if not other.stdin.closed:
                other.stdin.write("go\n")
                other.stdin.close()

    reporter = Nudge(Console(file=(file := io.StringIO()), width=200))
    report = run_table(table, root, reporter, workers=1, function=FAKE, poll=0.1)
    assert other.wait(10) == 0
    other.stdout.close()
    assert (report.made, report.read, report.exit_code) == (0, 1, 0)
    assert fake_runs.calls(root) == []
    assert "X mnist->mnistm seed 0: 87.00 % made by another process" in file.getvalue()


def test_a_run_that_another_process_drops_is_taken_over(make_table: Make, tmp_path: Path) -> None:
    table = make_table(seeds=[0], tasks=["mnist->mnistm"], rows=[{"name": "X", "model": {"class_path": "X"}}])
    root = tmp_path / "runs"
    held = lock(run_directory(table.cells()[0].config, root))
    held.__enter__()

    class Drop(Lines):
        def waiting(self, label: str) -> None:
            held.__exit__(None, None, None)

    report = run_table(table, root, Drop(Console(file=io.StringIO())), workers=1, function=FAKE, poll=0.1)
    assert (report.made, report.read) == (1, 0)
    assert len(fake_runs.calls(root)) == 1


def environment() -> dict[str, str]:
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}


LAUNCH = """
import sys
from pathlib import Path
from rich.console import Console
from dafw.tables.reading import load_table
from dafw.tables.launch import run_table
from dafw.tables.overlay import parse_settings
from dafw.tables.progress import Lines

if __name__ == "__main__":
    table = load_table(Path(sys.argv[1])).with_settings(parse_settings([f"run.behave={sys.argv[3]}"]))
    reporter, root = Lines(Console(width=200)), Path(sys.argv[2])
    report = run_table(table, root, reporter, workers=2, function="fake_runs:execute", poll=0.1)
    print("report", report.made, report.read, report.skipped, len(report.failed))
    raise SystemExit(report.exit_code)
"""


def start(tmp_path: Path, grid: Path, word: str) -> "subprocess.Popen[str]":
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH, encoding="utf-8")
    (tmp_path / "runs").mkdir(exist_ok=True)
    command = [sys.executable, str(script), str(grid), str(tmp_path / "runs"), word]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())


def test_two_invocations_at_once_make_every_cell_exactly_once(grid_file: Callable[..., Path], tmp_path: Path) -> None:
    grid = grid_file(seeds=[0])
    both = [start(tmp_path, grid, "sleep") for _ in range(2)]
    outputs = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    made = fake_runs.calls(tmp_path / "runs")
    assert len(made) == len(set(made)) == 6
    counts = [list(map(int, output.split("report ")[1].split())) for output in outputs]
    assert all(sum(count[:3]) == 6 and count[3] == 0 for count in counts)


def wait_for(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_workers_save_and_the_next_launch_goes_on(
    grid_file: Callable[..., Path], tmp_path: Path, signum: signal.Signals
) -> None:
    grid = grid_file(seeds=[0])
    launched = start(tmp_path, grid, "train")
    root = tmp_path / "runs"
    wait_for(lambda: len(list(root.glob("*/training"))) == 2)
    launched.send_signal(signum)
    output = launched.communicate(timeout=30)[0]
    assert launched.returncode == 130, output
    assert len(list(root.glob("*/checkpoint"))) == 2
    assert not list(root.glob("*/failed.txt"))
    table = load_table(grid)
    assert sorted(states(load(table, root)).values()) == ["interrupted"] * 2 + ["missing"] * 4
    report, _ = launch(table, root)
    assert (report.made, report.exit_code) == (6, 0)


def test_workers_end_with_a_launcher_that_is_killed(grid_file: Callable[..., Path], tmp_path: Path) -> None:
    launched = start(tmp_path, grid_file(seeds=[0]), "train")
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/training"))) == 2)
    launched.kill()
    launched.communicate(timeout=30)
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/checkpoint"))) == 2)


def test_the_live_display_goes_with_the_lines(make_table: Make, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    file = io.StringIO()
    reporter = Live(Console(file=file, force_terminal=True, width=120))
    run_table(make_table(seeds=[0]), tmp_path / "runs", reporter, workers=2, function=FAKE)
    assert "[6/6]" in file.getvalue()
    assert reporter.tasks == {}
    assert reporter.progress.finished


LISTING = """GPU 0: NVIDIA H200 (UUID: GPU-5f)
GPU 1: NVIDIA A100 (UUID: GPU-6a)
  MIG 3g.40gb     Device  0: (UUID: MIG-1b)
  MIG 3g.40gb     Device  1: (UUID: MIG-2c)
"""


def test_each_worker_has_a_gpu_of_its_own() -> None:
    gpus = parse_listing(LISTING)
    assert gpus == ["0", "MIG-1b", "MIG-2c"]
    assert [worker_environment(i, 4, gpus)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["0", "MIG-1b", "MIG-2c", "0"]
    assert worker_environment(0, 2, []) == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert [worker_environment(i, 1, gpus, 2)["CUDA_VISIBLE_DEVICES"] for i in range(2)] == ["0,MIG-1b", "MIG-2c,0"]
    assert worker_environment(0, 1, gpus, 9)["CUDA_VISIBLE_DEVICES"] == "0,MIG-1b,MIG-2c"
    assert default_workers(gpus) == 3
    assert default_workers(gpus, 2) == default_workers(gpus, 8) == 1
    assert default_workers([]) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("value", "gpus"),
    [("2,3", ["2", "3"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("GPU-a, MIG-b", ["GPU-a", "MIG-b"])],
)
def test_visible_devices_are_obeyed(value: str, gpus: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == gpus


def test_without_the_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{LISTING}E\n", encoding="utf-8")
    program.chmod(0o755)
    assert visible_gpus({}) == ["0", "MIG-1b", "MIG-2c"]
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert visible_gpus({}) == []


def test_the_last_line_that_says_something() -> None:
    assert last_line("a\nb \n \n") == "b"
    assert last_line("") == ""
