"""The name of a run's directory."""

from pathlib import Path
from typing import Any

import pytest

from dafw.run.directory import run_directory


def config(source: Any, target: Any) -> dict[str, Any]:
    data = {"class_path": "Digits", "init_args": {"source": source, "target": target}}
    return {"seed_everything": 0, "model": {"class_path": "DANN"}, "data": data}


@pytest.mark.parametrize(
    "name", ["漢" * 80, "x" * 300, "\N{CJK UNIFIED IDEOGRAPH-20000}" * 200, "a/../b", "a\nb", "caf\udce9"]
)
def test_a_directory_has_a_name_that_every_file_system_takes(name: str, tmp_path: Path) -> None:
    folder = run_directory(config([name], "usps"), tmp_path)
    assert folder.parent == tmp_path
    assert len(folder.name.encode()) <= 130
    folder.mkdir()
    other = run_directory(config([f"{name}x"], "usps"), tmp_path)
    assert other != folder
    assert folder.name.isprintable()


def test_plain_names_are_in_it() -> None:
    name = run_directory(config(["mnist", "100"], ["usps"]), Path("runs")).name
    assert name.startswith("DANN-mnist+100-usps-s0-")
