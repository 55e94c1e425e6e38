"""The names that ``import dafw`` offers."""

from pathlib import Path

import pytest
from commands import run

import dafw
import dafw.methods
import datamodules
from dafw.methods import DANN


def test_importing_dafw_and_reading_results_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, dafw; dir(dafw); print(dafw.results('.'), hasattr(dafw, 'nothing'))\n"
    done = run(tmp_path, "-c", code + "print(sorted({'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules)))")
    assert (done.code, done.out) == (0, "[] False\n[]\n"), done.err


def test_dafw_offers_methods_datamodules_and_what_is_beside_them() -> None:
    offered = set(dir(dafw))
    assert {*dafw.methods.__all__, *datamodules.__all__, "Network", "load", "make", "results"} <= offered
    assert all(getattr(dafw, name) is not None for name in offered)
    assert dafw.DANN is DANN
    with pytest.raises(AttributeError, match="module 'dafw' has no attribute 'DAN2'"):
        _ = dafw.DAN2
