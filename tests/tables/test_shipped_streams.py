"""The tables of corrupted images: their published numbers and protocols, and every row passes a short stream."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.data.corruptions import COMMON
from dafw.data.imagenet import classes_of
from dafw.nn.cifar_networks import ResNeXt, WideResNet
from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.checking import check_runs
from dafw.tables.overlay import parse_settings
from dafw.tables.published import UNKNOWN
from dafw.tables.reading import find_table, load_table
from dafw.tables.store import load

NAMES = ["cifar10c", "cifar100c", "imagenetc"]
BENCHMARK = "mariodoebler/test-time-adaptation (Benchmark.md at 8b2ed63)"
CLASSES = {"cifar10c": 10, "cifar100c": 100, "imagenetc": 1000}
SMALL = [
    *("data.batch_size=2", "data.eval_batch_size=15", "data.num_workers=0", "run.wandb=disabled"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false"),
    *(
        "model.network.init_args.backbone=dafw.nn.cifar_networks.WideResNet",
        "model.network.init_args.mean=[0.5,0.5,0.5]",
    ),
    "model.network.init_args.std=[0.5,0.5,0.5]",
]


@pytest.mark.parametrize("name", NAMES)
def test_published_numbers_have_their_protocol(name: str) -> None:
    table = load_table(find_table(name))
    path = find_table(name).with_suffix(".csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(table.published)
    rows = {row.published for row in table.rows}
    benchmark = [one for one in table.published if one.source == BENCHMARK]
    assert len(benchmark) == 11
    assert len({one.method for one in benchmark} & rows) >= 7
    batch = {"imagenetc": 64}.get(name, 200)
    for one in benchmark:
        assert (one.provenance, one.n, one.task) == ("seen", 5, table.tasks[0])
        assert (one.protocol["batch_size"], one.protocol["stream"], one.protocol["knows_shifts"]) == (
            batch,
            "continual",
            False,
        )
    for one in table.published:
        assert one.provenance == "seen" or one.source.startswith(("Wang", "Döbler"))
        assert one.provenance != "seen" or one.backbone != UNKNOWN


def test_the_rows_of_an_author_fit_their_mean() -> None:
    table = load_table(find_table("imagenetc"))
    for method in ("Tent (reset)", "ETA (reset)", "EATA (reset)", "EATA"):
        found = [one for one in table.published if one.method == method and one.source.startswith("Niu")]
        values = {one.task: one.value for one in found}
        mean = values.pop(table.tasks[0])
        assert len(values) == len(COMMON)
        assert sum(values.values()) / len(values) == pytest.approx(mean, abs=0.05 + 1e-9)


@pytest.mark.parametrize(
    ("network", "count"), [(WideResNet(), 36_479_194), (ResNeXt(), 6_900_132)], ids=["WideResNet", "ResNeXt"]
)
def test_the_networks_have_the_published_sizes(network: torch.nn.Module, count: int) -> None:
    assert sum(one.numel() for one in network.parameters()) == count
    names = set(network.state_dict())
    expected = {
        "WideResNet": {"block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.running_var", "bn1.bias", "fc.bias"},
        "ResNeXt": {"stage_1.0.downsample.1.weight", "stage_3.2.conv_conv.weight", "bn_1.weight", "classifier.bias"},
    }
    assert expected[type(network).__name__] <= names


def files(name: str, root: Path) -> list[str]:
    """A small copy of the data, of two images of each corruption, and weights; returns the settings that name them."""
    rng = np.random.default_rng(0)
    if name == "imagenetc":
        for kind in COMMON:
            for label in classes_of("imagenet")[:2]:
                folder = root / kind / "5" / label
                folder.mkdir(parents=True)
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "a.png")
        for label in classes_of("imagenet")[:2]:
            (root / "val" / label).mkdir(parents=True)
            for number in range(10):
                image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(root / "val" / label / f"{number}.png")
    else:
        for kind in COMMON:
            np.save(root / f"{kind}.npy", rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8))
        np.save(root / "labels.npy", np.tile(np.arange(2), 5))
    small = {"depth": 10, "width": 1, "num_classes": CLASSES[name]}
    torch.save(WideResNet(**small).state_dict(), root / "weights.pt")
    given = f"{{depth: 10, width: 1, num_classes: {CLASSES[name]}}}"
    weights = [
        f"model.network.init_args.weights={root / 'weights.pt'}",
        f"model.network.init_args.backbone_args={given}",
    ]
    return [f"data.root={root}", *weights, *(["data.size=32"] if name == "imagenetc" else [])]


def cloud_of(settings: list[str]) -> list[str]:
    """The same network for the cloud."""
    own = [one for one in [*SMALL, *settings] if one.startswith("model.network.")]
    return [one.replace("model.network.", "model.cloud.") for one in own]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_passes_its_check(name: str, tmp_path: Path) -> None:
    table = load_table(find_table(name)).with_settings(parse_settings([*SMALL, *files(name, tmp_path)]))
    rows = [row.name for row in table.rows if "CEMA" not in row.name]
    check_runs(load(table.only(rows[:3], [], []), tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_row_passes_a_stream(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    settings = [*SMALL, *files(name, tmp_path / "data")]
    table = load_table(find_table(name))
    clouds = [row.name for row in table.rows if (row.control_of or row.name) == "CEMA"]
    rows = [row.name for row in table.rows if row.name not in clouds]
    few: dict[str, Any] = {"": (rows, settings), "CEMA": (clouds, [*settings, *cloud_of(settings)])}
    for chosen, given in few.values():
        if not chosen:
            continue
        for cell in table.with_settings(parse_settings(given)).only(chosen, [], [0]).cells():
            result = read_result(execute(cell.config, tmp_path / "runs"))
            assert result is not None
            assert result.stream is not None
            assert (result.steps, result.stream.samples) == (15, 30), cell.label
