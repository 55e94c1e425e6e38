"""The tables of masks: every row starts from the source model, and makes two steps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dafw.methods
from dafw.methods import Method
from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.grid import Table
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table
from datamodules import shapes

QUICK = [
    *("data.steps_per_epoch=2", "data.eval_batch_size=4", "trainer.accelerator=cpu", "trainer.devices=1"),
    *("run.wandb=disabled", "run.plots=false"),
]
#: What makes the networks of the table of cells small.
TINY = ["model.network.init_args={arch: tiny_unet, weights: null, arch_args: null, encoder: null}"]


@pytest.fixture
def few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shapes, "COUNTS", {"train": 80, "val": 4, "test": 4})
    shapes._domain.cache_clear()
    yield
    shapes._domain.cache_clear()


def cells_of_two_laboratories(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, level in (("tecom", 0.8), ("cellavision", 0.5)):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for index in range(70):
            mask = np.zeros((40, 40), np.uint8)
            mask[8:32, 8:32], mask[14:26, 14:26] = 1, 2
            pixels = 255 * level * (1 - 0.3 * mask[..., None]) + 10 * rng.random((40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / name / "masks" / f"{index}.png")
    return root


def check_starts(table: Table) -> None:
    """All rows but the first start from it, and all methods have a control."""
    first, *others = table.rows
    assert all(row.start == first.name for row in others)
    free = {"source only", "AdaBN", "noisy labels alone", "train on target", "control"}
    assert all(row.controlled_by or row.control_of or row.name in free or named(table, row.name) for row in others)
    for row in table.rows:
        assert row.config["model"]["init_args"]["target_statistics"] is True


def named(table: Table, name: str) -> bool:
    return any(row.control_of == name for row in table.rows)


def test_every_method_for_masks_is_a_row_of_the_first_table() -> None:
    table = load_table(find_table("segmentation_shapes"))
    check_starts(table)
    check_starts(load_table(find_table("segmentation_wbc")))
    methods = {name: getattr(dafw.methods, name) for name in dafw.methods.__all__}
    alone = {
        name
        for name, owner in methods.items()
        if isinstance(owner, type) and issubclass(owner, Method) and owner.kinds == ("segmentation",)
    }
    assert {row.config["model"]["class_path"] for row in table.rows} >= alone | {"SourceOnly", "AdaBN", "DANN"}
    assert table.oracles == {"train on target"}


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("name", ["segmentation_shapes", "segmentation_wbc"])
def test_every_row_runs(name: str, tmp_path: Path) -> None:
    of_cells = name == "segmentation_wbc"
    root = (
        [f"data.root={cells_of_two_laboratories(tmp_path / 'cells')}", "data.size=[32, 32]", "data.crop=32", *TINY]
        if of_cells
        else []
    )
    table = load_table(find_table(name)).with_settings(parse_settings([*QUICK, *root]))
    cells = table.only([], [table.tasks[0]], [table.seeds[0]]).cells()
    assert len(cells) == len(table.rows)
    for cell in cells:
        result = read_result(execute(cell.placed(tmp_path / "runs").config, tmp_path / "runs"))
        assert result is not None
        assert result.steps == 2, cell.label
        assert set(table.metrics) <= result.test[cell.domains[1][0]].keys(), cell.label
        assert (result.source, result.target) == cell.domains
