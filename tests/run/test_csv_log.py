"""metrics.csv: rows are added to it, a cut or damaged end costs nothing, and a resumed run goes on in it."""

import math
from pathlib import Path

import pytest

from dafw.errors import UserError
from dafw.run.loggers import CsvLog

HEAD = "step,train/loss,val/im\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.csv"


def logged(path: Path, steps: int = 6, first: int = 1) -> CsvLog:
    """A row a step, and a second value at each even one, as a validation logs it."""
    log = CsvLog(path)
    log.forget_after(first - 1)
    for step in range(first, steps + 1):
        log.log_metrics({"train/loss": 1 / step}, step)
        if step % 2 == 0:
            log.log_metrics({"val/im": float(step)}, step)
    return log


def test_a_row_is_added_when_the_next_one_begins(path: Path) -> None:
    log = logged(path, steps=2)
    assert path.read_text() == "step,train/loss\n1,1.0\n"
    log.log_metrics({"train/loss": 0.25, "val/im": math.nan}, 3)
    place, held = path.stat().st_ino, path.read_bytes()
    assert held == f"{HEAD}1,1.0,\r\n2,0.5,2.0\r\n".encode()
    log.log_metrics({"train/loss": 0.125}, 4)
    assert (path.stat().st_ino, path.read_bytes()) == (place, held + b"3,0.25,nan\r\n")
    log.finalize("success")
    assert path.read_bytes() == held + b"3,0.25,nan\r\n4,0.125,\r\n"
    assert CsvLog(path).rows[2] == {"step": "3", "train/loss": "0.25", "val/im": "nan"}


def test_a_value_that_comes_late_and_one_without_a_step(path: Path) -> None:
    log = logged(path, steps=4)
    log.sync()
    log.log_metrics({"train/loss": 9.0})
    log.log_metrics({"val/im": 8.0}, 4)
    log.sync()
    assert path.read_text().splitlines()[-1] == "4,9.0,8.0"
    assert [row["step"] for row in CsvLog(path).rows] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("killed", range(7))
def test_a_resumed_run_logs_the_same(path: Path, tmp_path: Path, killed: int) -> None:
    whole = logged(tmp_path / "whole.csv")
    whole.finalize("success")
    logged(path).finalize("success")
    logged(path, first=killed + 1).finalize("success")
    assert path.read_bytes() == whole.path.read_bytes()


DAMAGE = {
    "cut in a row": lambda text: text[:-4],
    "cut at the end of a row": lambda text: text[:-2],
    "zeros": lambda text: text + b"\0" * 200,
    "no step": lambda text: text + b"x,1,2\r\n",
    "no number": lambda text: text + b"7,one,2\r\n",
    "too many fields": lambda text: text + b"7" + b",1" * 60 + b"\r\n",
    "too few fields": lambda text: text + b"7\r\n",
    "an open quote": lambda text: text + b'7,"1,2\r\n',
    "not UTF-8": lambda text: text + b"\xff\xfe\r\n",
    "an empty line": lambda text: text + b"\r\n",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_end(path: Path, tmp_path: Path, kind: str) -> None:
    """What is logged again after the checkpoint may be damaged, and what came before it may not."""
    whole = logged(tmp_path / "whole.csv")
    whole.finalize("success")
    path.parent.mkdir()
    path.write_bytes(DAMAGE[kind](whole.path.read_bytes()))
    with pytest.raises(UserError, match=r"metrics\.csv is damaged after step [56]: remove it"):
        CsvLog(path).forget_after(8)
    logged(path, first=6).finalize("success")
    assert path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("text", [b"", b"\0" * 300, b"st", b"step,\xff\xfe\n1,2\n", b"loss,step\n1,2\n", b"\n\n"])
def test_a_file_of_which_nothing_is_left(path: Path, text: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(text)
    if text != b"step,\xff\xfe\n1,2\n":  # a name of a value that cannot be read is a name
        with pytest.raises(UserError, match=r"metrics\.csv is damaged after step 0"):
            CsvLog(path).forget_after(4)
    CsvLog(path).forget_after(0)  # nothing was logged before the first step
    logged(path).finalize("success")
    assert len(CsvLog(path).rows) == 6


def test_a_file_that_is_removed_while_the_run_works(path: Path) -> None:
    log = logged(path, steps=3)
    path.unlink()
    log.log_metrics({"train/loss": 1.0}, 4)
    assert [row["step"] for row in CsvLog(path).rows] == ["1", "2", "3"]


def test_nothing_is_written_against_the_check(path: Path) -> None:
    gone = False

    def check() -> None:
        if gone:
            raise UserError("gone")

    log = CsvLog(path, check)
    log.log_metrics({"train/loss": 1.0}, 1)
    gone = True
    with pytest.raises(UserError):
        log.sync()
    log.finalize("failed")  # what ended the run is reported, not this
    with pytest.raises(UserError):
        log.finalize("success")
    assert not path.exists()
