"""One uninterrupted run, which the interrupted ones must equal."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers in this folder

from commands import fork, one_run
from interrupted import FIT


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of ``FIT``."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = fork(folder, *FIT).wait()
    assert (done.code, done.err) == (0, "")
    return one_run(folder / "runs")
