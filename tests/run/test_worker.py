"""One attempt at a run."""

from pathlib import Path

from dafw.run.worker import Order, attempt


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """It fails, and no second attempt is made; the process goes on to the next run."""
    (tmp_path / "file").touch()
    outcome = attempt(lambda config, root: None, Order({}, tmp_path / "file" / "run", tmp_path))
    assert (outcome.status, outcome.retryable) == ("failed", False)
    assert outcome.error == f"{tmp_path}/file/run cannot be read or written (Not a directory)"
