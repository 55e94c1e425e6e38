"""Results and predictions as dictionaries and frames."""

import sys
from pathlib import Path

import pytest
import torch

import dafw
import dafw.methods
from dafw.errors import UserError

SIZE = 6


def test_results_of_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = dafw.results(folder.parent)
    result = dafw.load(folder).result
    assert {key: found[key] for key in ("method", "task", "seed", "steps")} == {
        **{"method": "DANN", "task": "art->photo", "seed": 0, "steps": 2}
    }
    assert found["metrics"]["last"] == {"photo": result.test["photo"]["accuracy"]}
    assert found["metrics"].keys() >= {"last", "source_accuracy", "entropy", "oracle"}
    assert found["directory"] == str(folder)
    assert found["seconds"] == result.seconds["total"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    (tmp_path / "unfinished").mkdir()
    assert dafw.results(tmp_path) == []
    assert "broken/result.json is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no folder nowhere"):
        dafw.results("nowhere")


def test_frames_where_pandas_is(folder: Path) -> None:
    pytest.importorskip("pandas")
    frame = dafw.results(folder.parent, frame=True)
    assert frame.loc[0, "metrics/last/photo"] == dafw.results(folder.parent)[0]["metrics"]["last"]["photo"]
    table = dafw.load(folder).predict(torch.zeros(2, 3, SIZE, SIZE)).to_dataframe()
    assert list(table.columns) == ["sample", "prediction", "p_cup", "p_pen"]
    assert len(table) == 2


def test_frames_without_pandas_are_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = dafw.load(folder).predict(torch.zeros(1, 3, SIZE, SIZE))
    for ask in (found.to_dataframe, lambda: dafw.results(folder.parent, frame=True)):
        with pytest.raises(UserError, match="a frame needs the package pandas: install it"):
            ask()
