"""The tables on folders of images: every row makes two steps on small images, and every published number has a row."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table

TABLES = {"office31": ["amazon", "dslr", "webcam"], "office_home": ["Art", "Clipart", "Product", "Real World"]}
HOME = TABLES["office_home"]
OPEN_TABLES = {"office_home_partial": HOME, "office_home_open": HOME, "office_home_universal": HOME}
every_table = pytest.mark.parametrize("name", TABLES)
SMALL = [
    *("data.size=32", "data.resize=32", "data.batch_size=4", "data.num_workers=0", "data.steps_per_epoch=2"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled"),
    *("model.network.init_args.backbone=small_bn_net", "model.network.init_args.weights=null"),
    "model.network.init_args.input_size=32",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every domain of every table, with three classes of the same 25 images."""
    root = tmp_path_factory.mktemp("office")
    rng = np.random.default_rng(0)
    for kind in ("bed", "cup", "mug"):
        (root / "one" / kind).mkdir(parents=True)
        for index in range(25):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(
                root / "one" / kind / f"{index}.png"
            )
    for domains in TABLES.values():
        for domain in domains:
            shutil.copytree(root / "one", root / domain)
    shutil.rmtree(root / "one")
    return root


@every_table
def test_published_numbers_have_rows_and_their_averages_are_those_of_the_tasks(name: str) -> None:
    table = load_table(find_table(name))
    assert {one.method for one in table.published} == {
        row.published for row in table.rows if row.control_of is None
    } - {"AdaBN"}
    for method in {one.method for one in table.published}:
        values = {one.task: one.value for one in table.published if one.method == method}
        average = values.pop("average")
        assert values.keys() == set(table.tasks)
        assert sum(values.values()) / len(values) == pytest.approx(average, abs=0.06 + 1e-9), method


@pytest.mark.parametrize("name", OPEN_TABLES)
def test_published_numbers_where_classes_differ(name: str) -> None:
    """What was read has a row, a metric that the table prints, and a complete list of tasks; the rest is marked."""
    table = load_table(find_table(name))
    rows = {row.published for row in table.rows}
    assert table.published
    for one in table.published:
        assert one.method in rows
        assert one.provenance == "seen" or (one.provenance, one.task) == ("recalled", "average")
        assert one.metric == table.metric or (one.method, one.metric) == ("DCC", "h_score")
    for method in {one.method for one in table.published}:
        values = {one.task: one.value for one in table.published if one.method == method}
        average = values.pop("average", None)
        assert not values or values.keys() == set(table.tasks)
        if values and average is not None:
            assert sum(values.values()) / len(values) == pytest.approx(average, abs=0.06 + 1e-9), method


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, *OPEN_TABLES])
def test_every_row_runs(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sets = {
        "office_home_partial": "{common: 2, source_private: 1}",
        "office_home_open": "{common: 2, target_private: 1}",
        "office_home_universal": "{common: 1, source_private: 1, target_private: 1}",
    }
    few = [f"data.label_sets={sets[name]}"] if name in sets else []
    settings = parse_settings([f"data.root={images}", *SMALL, *few])
    table = load_table(find_table(name)).with_settings(settings)
    cells = table.only([], [table.tasks[-1]], [0]).cells()
    assert len(cells) == len(table.rows)
    for cell in cells:
        result = read_result(execute(cell.config, tmp_path / "runs"))
        assert result is not None
        assert result.steps == 2, cell.label
