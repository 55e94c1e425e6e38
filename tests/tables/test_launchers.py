"""Who makes the runs: the launcher's name, and one of the user's."""

import re
from collections.abc import Callable
from pathlib import Path

import fake_runs
import pytest
from commands import CHECKOUT, call, refused


def test_the_launcher_of_the_documentation(
    grid_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (CHECKOUT / "docs" / "clusters.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# one_by_one\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "one_by_one.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("dafw.run.entry.execute", fake_runs.execute)
    grid, runs = grid_file(seeds=[0], tasks=["mnist->mnistm"]), tmp_path / "runs"
    words = ("table", "run", grid, "--root", runs, "--launcher", "one_by_one:launch")
    assert call(capsys, *words).code == 0
    assert len(fake_runs.calls(runs)) == 3
    assert call(capsys, *words).code == 0
    assert len(fake_runs.calls(runs)) == 3, "what is done is not made again"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--launcher", "slrum"), 'unknown launcher "slrum": did you mean "slurm"'),
        (("--launcher", "nowhere_at_all:launch"), "nowhere_at_all"),
        (("--launcher", "fake_runs:lunch"), "has no lunch"),
        (("--slurm", "time=3"), "the launcher is local"),
        (
            ("--set", "trainer.num_nodes=2", "--launcher", "slurm"),
            "source only on mnist->mnistm: a run of a table has the devices of one machine",
        ),
    ],
)
def test_names_that_are_no_launcher(
    options: tuple[str, ...],
    said: str,
    grid_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "table", "run", grid_file(), *options)
