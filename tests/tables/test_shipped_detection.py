"""The tables of detection: each method is a row with a control, source only is four rows, and every row makes steps."""

from pathlib import Path

import pytest

import dafw.methods
from dafw.methods import Method
from dafw.run.entry import execute
from dafw.run.result import read_result
from dafw.tables.grid import Table
from dafw.tables.overlay import parse_settings
from dafw.tables.reading import find_table, load_table

NAMES = ("detection_digits", "detection_digits_sources")
SMALL = [
    *("data.size=32", "data.scenes=[12, 6, 6]", "data.batch_size=2", "data.steps_per_epoch=2", "trainer.max_epochs=1"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "run.wandb=disabled"),
]


def tables() -> list[Table]:
    return [load_table(find_table(name)) for name in NAMES]


def test_every_method_for_boxes_is_a_row_with_a_control() -> None:
    rows = [row for table in tables() for row in table.rows]
    classes = {row.config["model"]["class_path"].rpartition(".")[2] for row in rows}
    found = [getattr(dafw.methods, name) for name in dafw.methods.__all__]
    methods = [one for one in found if isinstance(one, type) and issubclass(one, Method) and not one.is_abstract]
    assert {one.__name__ for one in methods if one.kinds == ("detection",)} <= classes
    assert {"SourceOnly", "AdaBN", "ERM", "GroupDRO"} <= classes
    names = {row.name for row in rows}
    for row in rows:
        owner = row.config["model"]["class_path"].rpartition(".")[2]
        if owner in ("SourceOnly", "ERM") or row.control_of is not None:
            continue
        assert row.controlled_by in names or any(other.control_of == row.name for other in rows), row.name


def test_source_only_has_four_rows() -> None:
    """Weak or strong views, with or without the moving average, and nothing else differs."""
    (table, _) = tables()
    found = {}
    for row in table.rows:
        model, data = row.config["model"], row.config["data"]["init_args"]
        arguments = dict(model["init_args"])
        if model["class_path"] == "SourceOnly" and arguments["norm"] == "group" and not data.get("oracle"):
            average = arguments.pop("ema_decay", None)
            found[data["augment"], average is not None] = arguments
    assert set(found) == {(word, average) for word in ("weak", "strong") for average in (False, True)}
    assert len({str(arguments) for arguments in found.values()}) == 1


def test_three_sources_and_one_unseen_domain() -> None:
    (_, table) = tables()
    for task in table.tasks:
        sources, _, target = task.partition("->")
        assert len(sources.split(",")) == 3
        assert target not in sources.split(",")
    assert len(table.tasks) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_row_makes_two_steps(name: str, tmp_path: Path) -> None:
    table = load_table(find_table(name)).with_settings(parse_settings(SMALL))
    for cell in table.only([], [table.tasks[-1]], [table.seeds[0]]).cells():
        result = read_result(execute(cell.placed(tmp_path).config, tmp_path))
        assert result is not None
        assert result.steps == 2, cell.label
        for target in result.target:
            assert set(table.metrics) <= set(result.test[target]), cell.label
