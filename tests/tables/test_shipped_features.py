"""The tables on features: every row makes a step on small files, and every published number has a row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table
from datamodules import AmazonReviews

DOMAINS = AmazonReviews.domain_names
SURF = ("Caltech10", "amazon", "dslr", "webcam")
TABLES: dict[str, tuple[str, ...]] = {
    "office_caltech_surf": (),
    "amazon": ("data.vocabulary=20", "data.msda_layers=1"),
}
SMALL = ("data.batch_size=8", "trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of both tables in one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, name in enumerate(SURF):
        labels = np.arange(60) % 10
        counts = rng.integers(0, 9, (60, 50)) + 20 * (np.arange(50) % 10 == labels[:, None]) + number
        savemat(folder / f"{name}_SURF_L10.mat", {"fts": counts.astype(np.uint8), "labels": labels[:, None] + 1})
    parts: dict[str, Any] = {}
    for name in DOMAINS:
        for half in ("train", "test"):
            rows = sparse.csr_matrix(rng.integers(0, 3, (40, 20)).astype(np.float32))
            parts |= {f"{name}_{half}_{one}": getattr(rows, one) for one in ("data", "indices", "indptr")}
            parts[f"{name}_{half}_y"] = np.arange(40) % 2
    np.savez(folder / "reviews.npz", **parts)
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_every_row_runs(name: str, root: Path, tmp_path: Path) -> None:
    table = load_table(find_table(name))
    settings = parse_settings([f"data.root={root}", *SMALL, *TABLES[name], "trainer.max_epochs=1"])
    settings["data"]["init_args"]["steps_per_epoch"] = 1
    for cell in table.with_settings(settings).only([], [table.tasks[-1]], [0]).cells():
        result = read_result(execute(cell.config, tmp_path / "runs"))
        assert result is not None
        assert result.steps == 1, cell.label
        assert all(result.test[target]["accuracy"] >= 0 for target in result.target)


@pytest.mark.parametrize("name", TABLES)
def test_published_numbers_are_recalled_and_have_rows(name: str) -> None:
    table = load_table(find_table(name))
    assert table.published
    for one in table.published:
        assert one.provenance == "recalled"
        assert one.method in {row.published for row in table.rows}
        assert one.task in table.tasks


def test_the_steps_are_those_of_the_paper() -> None:
    """A step on the mean of n samples at n times the rate; two lambda, since the loss is the mean of two halves."""
    rows = {row.name: row.config for row in load_table(find_table("amazon")).rows}
    model = rows["DANN"]["model"]["init_args"]
    assert model["lr"] == pytest.approx(0.001 * rows["DANN"]["data"]["init_args"]["batch_size"])
    assert rows["mSDA, DANN"]["model"]["init_args"]["lr"] == pytest.approx(0.0001 * 20)
    assert (model["depth"], model["momentum"], model["weight"]) == (0, 0.0, 2 * 0.1)
    assert rows["SVM"]["model"]["init_args"]["network"]["init_args"]["backbone_args"] is None
