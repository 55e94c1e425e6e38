"""Estimates of accuracy beside what target labels say, over the runs of a table."""

import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_result

from dafw.run.criteria import CellResult
from dafw.run.result import read_result
from dafw.tables.estimates import draw_estimates, estimate_points, estimator_errors

Results = dict[tuple[str, str, int], CellResult]
CONFIG = {
    "model": {"class_path": "DANN"},
    "data": {"init_args": {"source": ["a"], "target": ["b", "c"]}},
    "seed_everything": 0,
}


def cell(folder: Path, truth: dict[str, float], **estimated: Any) -> CellResult:
    """A run with these accuracies and, by estimator, these (target, value, low, high)."""
    estimates: dict[str, dict[str, dict[str, float]]] = {}
    for name, found in estimated.items():
        for target, *one in found:
            estimates.setdefault(target, {})[name] = dict(zip(("value", "low", "high"), one, strict=True))
    test = {target: {"accuracy": value} for target, value in truth.items()}
    write_result(folder, CONFIG, 0.0, test=test, **({"estimates": estimates} if estimates else {}))
    run = read_result(folder)
    assert run is not None
    return CellResult(run, folder, "accuracy")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Runs with estimates, and one of an older version without."""
    both = {"b": 0.5, "c": 0.8}
    first = {"ac": [("b", 0.9, 0.8, 0.95), ("c", 0.9, 0.79, 1.0)], "doc": [("b", 0.6, 0.45, 0.7)]}
    return {
        ("DANN", "a->b,c", 0): cell(tmp_path / "0", both, **first),
        ("DANN", "a->b,c", 1): cell(tmp_path / "1", both, ac=[("b", 0.7, 0.6, 0.8), ("c", nan, nan, nan)]),
        ("SourceOnly", "a->b,c", 0): cell(
            tmp_path / "2", {"b": nan, "c": 0.6}, ac=[("b", 0.9, 0.8, 1.0), ("c", 0.5, 0.4, 0.6)]
        ),
        ("Old", "a->b,c", 0): cell(tmp_path / "3", {"b": 0.5}),
    }


def test_the_errors_by_hand(results: Results) -> None:
    points = estimate_points(results)
    assert len(points) == 6, "a target without a number has no point"
    ac, doc = estimator_errors(points)
    assert (ac.estimator, ac.title, doc.estimator) == ("ac", "average confidence", "doc")
    runs = [(40 + 10) / 2, 20, 10]  # percentage points: the mean over a run's targets, then one and one
    assert ac.absolute.mean == pytest.approx(sum(runs) / 3)
    assert ac.absolute.n == 3
    assert ac.signed.mean == pytest.approx((25 + 20 - 10) / 3)
    assert ac.largest == pytest.approx(25)
    assert ac.holds == pytest.approx(2 / 4)
    low, high = ac.absolute.interval or (nan, nan)
    assert (low, high) == pytest.approx((-0.64, 37.31), abs=0.01)
    assert doc.absolute.interval is None, "of one run"
    assert [one.absolute.mean for one in estimator_errors(points, "SourceOnly")] == [pytest.approx(10)]
    assert estimator_errors([]) == []


def test_a_figure_has_a_panel_for_each_estimator(results: Results) -> None:
    figure = draw_estimates(estimate_points(results), "dark")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["average confidence", "difference of confidences"]
    with pytest.raises(ValueError, match="no numbers"):
        draw_estimates([])


def test_no_torch_is_needed() -> None:
    code = "import sys, dafw.tables.estimates, dafw.plots; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
