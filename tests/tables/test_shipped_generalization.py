"""The tables of domain generalisation: a small one is made whole, and every row of the others makes a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from dafw import cli
from dafw.run.entry import execute
from dafw.run.result import SettingRecord, read_result
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table

QUICK = ["trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled"]
SMALL = {
    "rotated_mnist_single": ["data.batch_size=4", "data.steps_per_epoch=2", "trainer.max_epochs=1"],
    "rotated_mnist": ["data.batch_size=4", "data.steps_per_epoch=2", "trainer.max_epochs=1"],
    "colored_mnist": ["data.batch_size=4", "data.steps_per_epoch=2", "trainer.max_epochs=1"],
    "pacs": [
        *("data.size=32", "data.resize=32", "data.batch_size=2", "data.steps_per_epoch=2", "data.cache=false"),
        *("trainer.max_epochs=1", "model.network.init_args.backbone=small_bn_net"),
        *("model.network.init_args.weights=null", "model.network.init_args.input_size=32"),
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_published_methods_have_rows(name: str) -> None:
    table = load_table(find_table(name))
    rows = {row.published for row in table.rows}
    assert len({one.method for one in table.published} & rows) >= 3 or name == "rotated_mnist_single"
    assert all(row.controlled_by for row in table.rows[1:]), "only the first row is nobody's method"


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", SMALL)
def test_every_row_runs(name: str, pacs: Path, tmp_path: Path) -> None:
    root = [f"data.root={pacs}"] if name == "pacs" else []
    table = load_table(find_table(name)).with_settings(parse_settings([*QUICK, *SMALL[name], *root]))
    cells = table.only([], [table.tasks[-1]], [table.seeds[0]]).cells()
    assert len(cells) == len(table.rows)
    for cell in cells:
        result = read_result(execute(cell.placed(tmp_path / "runs").config, tmp_path / "runs"))
        assert result is not None
        retrained = SettingRecord("test-time", source=False, target=True, stream=True)
        expected = SettingRecord("generalization", source=True, target=False)
        assert result.setting == (retrained if cell.start is not None else expected), cell.label
        assert set(result.test) >= set(result.target), cell.label


@pytest.mark.slow
def test_three_methods_on_turned_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of a user: the command, three tasks, a number in each cell that is far above chance."""
    tasks = ["15,30,45,60,75->0", "0,15,45,60,75->30", "0,15,30,45,60->75"]
    arguments = ["rotated_mnist", "--root", str(tmp_path), "--rows", "ERM", "CORAL", "GroupDRO", "--seeds", "1"]
    arguments += ["--tasks", *tasks]
    once = ["data.steps_per_epoch=100", "trainer.max_epochs=1"]  # the steps of two epochs, with one validation
    code = cli.main(["table", "run", *arguments, "--workers", "1", "--set", *once, *QUICK])
    printed = capsys.readouterr().out
    assert code == 0, printed
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert len(results) == 3 * len(tasks)
    accuracies = [
        metrics["accuracy"]
        for result in results
        for name, metrics in result["test"].items()
        if name in result["target"]
    ]
    assert min(accuracies) > 0.3
    assert np.mean(accuracies) > 0.7
    assert "minus ERM" in printed
    assert "worst" in printed
