"""Results that were made from other data: a table names the domain, and makes them again if that is asked for."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
import yaml
from PIL import Image
from test_table_commands import run

from dafw.run.directory import run_directory
from dafw.run.listing import list_samples
from dafw.tables.grid import Cell, Table
from dafw.tables.reading import load_table

ROWS: list[dict[str, Any]] = [
    {"name": "source only", "model": {"class_path": "SourceOnly"}},
    {"name": "SHOT", "model": {"class_path": "SHOT"}, "from": "source only"},
]


def draw(root: Path, domain: str, names: str) -> None:
    """A domain of two classes."""
    shutil.rmtree(root / domain, ignore_errors=True)
    for label in ("cat", "dog"):
        (root / domain / label).mkdir(parents=True)
        for name in names:
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / domain / label / f"{name}.png")


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two rows and two seeds over images in folders, and the results of all cells."""
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "ImageFolderDomains", "init_args": {"root": "images", "size": 4, "resize": 4}}
    for domain in "ab":
        draw(Path("images"), domain, "abcdefghijklmnopqrst")
    given = {"tasks": ["a->b"], "seeds": [0, 1], "base": {"data": data}, "rows": ROWS}
    Path("t.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    make(load_table(Path("t.yaml")))
    return Path("t.yaml")


def samples(cell: Cell) -> dict[str, Any]:
    """The samples of the data as it is; SHOT needs the classes of a checkpoint, which no run wrote."""
    return list_samples(cell.config if cell.start is None else cell.start.config, Path("nowhere"))


def make(table: Table) -> None:
    for cell in table.cells():
        found = {name: value for name, value in samples(cell).items() if cell.row != "SHOT" or name.startswith("b/")}
        found = found if cell.row != "SHOT" else {"b/test": found["b/test"]}
        setting = fake_runs.SETTINGS["source-free" if cell.row == "SHOT" else "adaptation"]
        folder = run_directory(cell.config, Path("runs"))
        fake_runs.write_result(folder, cell.config, 0.3, samples=found, setting=setting)


def err(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert run(*arguments) == 0
    return capsys.readouterr().err


def test_the_rows_and_the_domain_are_named(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert err(capsys, "run", grid) == ""
    shutil.rmtree("images/b")
    draw(Path("images"), "b", "abcdefghijklmnopqrstuvw")
    assert err(capsys, "show", grid) == ""  # which opens no data
    said = err(capsys, "run", grid)
    assert said.count("\n") == 1
    assert said.startswith("dafw: warning: made from other data: rows source only, SHOT (the ")
    assert "samples of b: " in said
    assert "samples of a" not in said
    assert said.endswith("; dafw table run --rerun stale makes them again\n")
    assert err(capsys, "show", grid) == said
    assert "Made from other data: rows source only" in Path("runs/tables/t/table.md").read_text()
    assert run("status", grid) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("made from other data: rows source only")
    assert fake_runs.calls(Path("runs")) == []
    shutil.rmtree("images/b")
    assert err(capsys, "run", grid) == ""  # what is not there is not compared


def test_they_are_made_again(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(Path("images"), "a", "uvwxyzabcdefghijklmn")  # as many, with other names
    assert run("run", grid, "--rerun", "--dry-run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["again"] * 4
    said = err(capsys, "run", grid, "--rerun", "--workers", 1)
    assert said == ""
    assert len(fake_runs.calls(Path("runs"))) == 4


def test_data_that_depends_on_the_seed(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each seed has samples of its own, so what one of them has says nothing of another."""
    given = yaml.safe_load(grid.read_text())
    given["base"]["data"] = {"class_path": "seeded_toys.Seeded", "init_args": {"batch_size": 8}}
    given["rows"] = ROWS[:1]
    grid.write_text(yaml.safe_dump(given))
    Path("seeded_toys.py").write_text(
        '''
"""Toys whose samples are of a seed."""

from dafw.testing.toys import ToyData


class Seeded(ToyData):
    """Another number of samples for each seed."""

    def load(self, name, split):
        """One split."""
        domain = super().load(name, split)
        return domain.subset(range(len(domain) - self.seed))
'''
    )
    sys.path.insert(0, str(Path.cwd()))
    try:
        make(load_table(grid))
        assert err(capsys, "run", grid) == ""
        kept = [json.loads(path.read_text())["b/test"][0] for path in Path("runs/tables/.data").glob("*.json")]
        assert sorted(kept) == [20, 21]
        assert err(capsys, "show", grid) == ""
    finally:
        sys.path.remove(str(Path.cwd()))
        sys.modules.pop("seeded_toys", None)


def test_samples_that_a_method_holds_out_and_one_image_are_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a method trains on a part of what the others see."""
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"batch_size": 4}}
    rows = [{"name": one, "model": {"class_path": one}} for one in ("SourceOnly", "ParetoAdvent", "IDM")]
    rows.append({"name": "another image", "model": {"class_path": "IDM", "init_args": {"image": "b/7"}}})
    table = {"tasks": ["a->b"], "seeds": [0, 1], "base": {"data": data}, "rows": rows}
    Path("t.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    found = {}
    for cell in load_table(Path("t.yaml")).cells():
        found[cell.row] = list_samples(cell.config, Path("nowhere"))
        folder = run_directory(cell.config, Path("runs"))
        method = {"method": cell.config["model"]["class_path"]}
        fake_runs.write_result(folder, cell.config, 0.3, samples=found[cell.row], **method)
    assert {"b/held-out/training", "b/training"} <= found["ParetoAdvent"].keys()
    assert "b/one image" in found["IDM"]
    assert found["IDM"]["b/one image"] != found["another image"]["b/one image"]
    err(capsys, "run", "t.yaml")
    assert "made from other data" not in err(capsys, "show", "t.yaml")
