"""The tables on folders of images: every row makes two steps on small images, and every published number has a row."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import stand_ins
from PIL import Image

from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table

TABLES = {"office31": ["amazon", "dslr", "webcam"], "office_home": ["Art", "Clipart", "Product", "Real World"]}
#: Tables whose domains differ in classes, with the classes that stand for theirs in small runs.
OPEN_TABLES = {
    "office_home_partial": "{common: 2, source_private: 1}",
    "office_home_open": "{common: 2, target_private: 1}",
    "office_home_universal": "{common: 1, source_private: 1, target_private: 1}",
    "office31_universal": "{common: 1, source_private: 1, target_private: 1}",
}
#: Methods whose numbers of each task are recalled. Of others that are recalled the average alone is known.
RECALLED = {"MemSPM"}
#: Rows without a published number.
UNPUBLISHED = {"office31": {"AdaBN", "GDCAN"}, "office_home": {"AdaBN", "MDD+ParetoDA"}}
#: Methods of which the average alone is known.
AVERAGES = {"DANN+ParetoDA", "MDD+ParetoDA"}
every_table = pytest.mark.parametrize("name", TABLES)
SMALL = [
    *("data.size=32", "data.resize=32", "data.batch_size=4", "data.num_workers=0", "data.steps_per_epoch=2"),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled"),
    *("model.network.init_args.backbone=small_bn_net", "model.network.init_args.weights=null"),
    "model.network.init_args.input_size=32",
]
#: What makes the rows small that need squeeze-and-excitation.
EXCITED = {"DCAN", "GDCAN"}
#: Tables and rows of a frozen CLIP.
OF_CLIP = {("office31_universal", "DCC"), ("office_home_universal", "DCC, CLIP")}
OF_CLIP |= {(name, "MemSPM") for name in OPEN_TABLES}
SMALL_CLIP = ["model.network.init_args.backbone_args=null"]
SMALL_EXCITED = [
    *("model.network.init_args.backbone=small_se_net", "model.network.init_args.backbone_args=null"),
    *("model.network.init_args.input_size=28", "model.ten_crop=28", "data.size=28"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every domain of every table, with three classes of the same 25 images, in names that each benchmark has."""
    root = tmp_path_factory.mktemp("office")
    rng = np.random.default_rng(0)
    for kind in ("bike", "mug", "pen"):
        (root / "one" / kind).mkdir(parents=True)
        for index in range(25):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(
                root / "one" / kind / f"{index}.png"
            )
    for domains in (*TABLES.values(), ["train", "validation"]):
        for domain in domains:
            shutil.copytree(root / "one", root / domain)
    for domain in ("train", "validation"):
        for old, new in (("bike", "bicycle"), ("mug", "bus"), ("pen", "car")):
            (root / domain / old).rename(root / domain / new)
    shutil.rmtree(root / "one")
    return root


@every_table
def test_published_numbers_have_rows_and_their_averages_are_those_of_the_tasks(name: str) -> None:
    table = load_table(find_table(name))
    assert {one.method for one in table.published} == {
        row.published for row in table.rows if row.control_of is None
    } - UNPUBLISHED[name]
    for method in {one.method for one in table.published}:
        values = {one.task: one.value for one in table.published if one.method == method}
        average = values.pop("average")
        if method in AVERAGES:
            assert not values
            continue
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
        whole = one.task == "average" or one.method in RECALLED
        assert one.provenance == "seen" or (one.provenance, whole) == ("recalled", True)
        assert one.metric == table.metric or (one.method in ("DCC", "MemSPM") and one.metric == "h_score")
    for method in {one.method for one in table.published}:
        values = {one.task: one.value for one in table.published if one.method == method}
        average = values.pop("average", None)
        assert not values or values.keys() == set(table.tasks)
        if values and average is not None:
            assert sum(values.values()) / len(values) == pytest.approx(average, abs=0.06 + 1e-9), method


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, *OPEN_TABLES, "visda"])
@pytest.mark.parametrize("part", ["excited", "of several gradients", "of CLIP", "others"])
def test_every_row_runs(name: str, part: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = load_table(find_table(name))
    rows = [row.name for row in table.rows if row.control_of is None and part_of(name, row.name) == part]
    if not rows:
        assert name not in TABLES or part == "of CLIP"
        return
    few = [f"data.label_sets={OPEN_TABLES[name]}"] if name in OPEN_TABLES else []
    small = [*SMALL, *few, *{"excited": SMALL_EXCITED, "of CLIP": SMALL_CLIP}.get(part, [])]
    settings = parse_settings([f"data.root={images}", *small])
    cells = table.with_settings(settings).only(rows, [table.tasks[-1]], [0]).cells()
    assert {cell.row for cell in cells} == {row.name for row in table.rows if (row.control_of or row.name) in rows}
    for cell in cells:
        result = read_result(execute(cell.config, tmp_path / "runs"))
        assert result is not None
        assert result.steps == 2, cell.label
        assert not result.holds_out_source


@pytest.mark.slow
def test_the_table_of_signs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins.gtsrb(tmp_path / "signs", signs=60)
    stand_ins.synsigns(tmp_path / "signs", count=60)
    small = ["data.batch_size=4", "data.num_workers=0", "data.steps_per_epoch=2", "trainer.max_epochs=1"]
    small += ["trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled"]
    table = load_table(find_table("signs")).with_settings(parse_settings([f"data.root={tmp_path / 'signs'}", *small]))
    assert {one.method for one in table.published} == {row.name for row in table.rows if row.control_of is None}
    for cell in table.only([], [], [1]).cells():
        result = read_result(execute(cell.config, tmp_path / "runs"))
        assert result is not None
        assert result.steps == 2


def part_of(table: str, row: str) -> str:
    """The part of a table that a row is trained with in these tests."""
    if (table, row) in OF_CLIP:
        return "of CLIP"
    return "excited" if row in EXCITED else "of several gradients" if "ParetoDA" in row else "others"


def test_the_numbers_of_visda_are_means_over_classes_and_have_rows() -> None:
    table = load_table(find_table("visda"))
    assert table.metric == "mean_class_accuracy"
    assert {one.metric for one in table.published} == {table.metric}
    assert {one.method for one in table.published} == {row.published for row in table.rows if row.control_of is None}


def test_the_universal_numbers_fit_their_average() -> None:
    table = load_table(find_table("office31_universal"))
    values = {one.task: one.value for one in table.published}
    average = values.pop("average")
    assert values.keys() == set(table.tasks)
    assert sum(values.values()) / len(values) == pytest.approx(average, abs=0.06)
    assert {(one.metric, one.provenance) for one in table.published} == {("h_score", "recalled")}


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("office31", "Transfer-Learning-Library README", {"DANN": 3, "CDAN": 3, "MDD": 3, "ERM": None, "AFN": None}),
        ("visda", "Transfer-Learning-Library README", {"DANN": 3, "MDD": 3, "ERM": None, "AFN": None}),
        ("pacs", "Cha et al. 2021 (SWAD), README of the authors' code", {"SWAD": 3}),
    ],
)
def test_a_number_of_runs_stands_where_the_source_states_it(
    name: str, source: str, expected: dict[str, int | None]
) -> None:
    found = {(one.method, one.n) for one in load_table(find_table(name)).published if one.source == source}
    assert found >= set(expected.items())
    assert {n for _, n in found} <= {3, None}


def test_recalled_numbers_are_marked_and_none_of_them_claims_a_domain_of_udim() -> None:
    published = load_table(find_table("pacs")).published
    assert {one.task for one in published if "UDIM" in one.source} == {"average"}
    assert {one.provenance for one in published if "UDIM" in one.source or "(DRM)" in one.source} == {"recalled"}
    dcan = [one for one in load_table(find_table("office_home")).published if "DCAN" in one.method]
    assert {(one.method, one.provenance) for one in dcan} == {("DCAN", "recalled"), ("GDCAN", "recalled")}
