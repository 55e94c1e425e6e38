"""The tables of image benchmarks by the recipes of the Office-31 table: what is theirs, and that they are shown."""

from pathlib import Path

import pytest
import stand_ins
from commands import call

import datamodules
from dafw.run.directory import run_directory
from dafw.tables.checking import check_runs
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table
from dafw.tables.store import load

TABLES = {
    "image_clef": ("ImageCLEF", 6),
    "office_caltech": ("OfficeCaltech", 12),
    "domainnet126": ("DomainNet126", 7),
    "domainnet": ("DomainNet", 12),
}
FIRST = {"ERM", "DAN", "DANN", "JAN", "CDAN"}
PUBLISHED = {"image_clef": FIRST, "domainnet": FIRST | {"MDD", "MCC"}}


@pytest.mark.parametrize("name", TABLES)
def test_rows_tasks_and_published_numbers(name: str) -> None:
    table, office = load_table(find_table(name)), load_table(find_table("office31"))
    kind, count = TABLES[name]
    assert len(table.tasks) == count
    names = getattr(datamodules, kind).domain_names
    assert {domain for task in table.tasks for domain in task.split("->")} <= set(names)
    rows = {row.name: row for row in office.rows}
    assert len([row for row in table.rows if row.control_of is None]) == 8
    for row in table.rows:  # the recipe is that of the other table, but for the network and how long it trains
        ours, theirs = row.config["model"], rows[row.name].config["model"]
        assert ours["class_path"] == theirs["class_path"]
        assert {key: one for key, one in ours["init_args"].items() if key != "network"} == {
            key: one for key, one in theirs["init_args"].items() if key != "network"
        }
        assert (row.control_of, row.control) == (rows[row.name].control_of, rows[row.name].control)
        assert row.config["data"]["class_path"] == kind
    assert {one.method for one in table.published} == PUBLISHED.get(name, set())
    for method in PUBLISHED.get(name, ()):
        values = {one.task: one.value for one in table.published if one.method == method}
        average = values.pop("average")
        assert values.keys() == set(table.tasks)
        assert sum(values.values()) / len(values) == pytest.approx(average, abs=0.12), (
            method
        )  # the first row of image_clef is 0.12 off in print


@pytest.mark.parametrize("name", TABLES)
def test_they_are_shown_before_they_are_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "table", "show", name)
    assert done.code == 0, done
    assert ("published" in done.out) == (name in PUBLISHED)
    if name == "domainnet":
        assert "published (other protocol)" in done.out
        assert "source only in Transfer-Learning-Library README (test-list images of each domain)" in done.out
    status = call(capsys, "table", "status", name)
    assert "0 of" in status.out or "missing" in status.out, status


def test_a_small_copy_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins.image_clef(tmp_path / "clef")
    small = [
        f"data.root={tmp_path / 'clef'}",
        "data.size=8",
        "data.resize=8",
        "data.batch_size=4",
        "data.num_workers=0",
    ]
    small += ["model.network.init_args.backbone=small_bn_net", "model.network.init_args.weights=null"]
    table = load_table(find_table("image_clef")).with_settings(parse_settings(small))
    store = load(table.only(["CDAN"], ["i->c"], [0]), tmp_path / "runs")
    check_runs(store)
    assert {run_directory(cell.config, tmp_path / "runs").name[:4] for cell in store.table.cells()} == {"CDAN"}
