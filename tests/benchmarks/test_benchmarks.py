"""The benchmarks' counts, which no machine changes, and that the scripts run."""

import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "experiments" / "benchmarks"
NETWORKS = ("mnist_net", "resnet18")


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Makes the scripts importable by their names, as they are to each other; undoes what they set for the process."""
    threads = torch.get_num_threads()
    with patch.dict(os.environ), patch.object(sys, "path", [str(FOLDER), *sys.path]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def step() -> ModuleType:
    import step

    return step


@pytest.fixture(scope="module")
def counts(step: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = [step.Setting(network, 16, batch=2) for network in NETWORKS]
    return {s.backbone: step.count_operations(s, tmp_path_factory.mktemp(s.backbone)) for s in settings}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_makes_the_operations_of_the_plain_loop(counts: dict[str, Any], network: str) -> None:
    ours, theirs = counts[network]
    assert theirs.ordinary > 100
    assert ours.ordinary <= 1.02 * theirs.ordinary, ours.operations - theirs.operations
    assert ours.average <= 1.02 * theirs.average


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_reads_nothing_back_and_makes_one_pass(counts: dict[str, Any], network: str) -> None:
    ours, theirs = counts[network]
    assert ours.host_reads == theirs.host_reads == 0
    assert ours.passes == theirs.passes == 1


@pytest.mark.parametrize("network", NETWORKS)
def test_the_plain_loop_trains_the_same_weights(step: ModuleType, tmp_path: Path, network: str) -> None:
    setting = step.Setting(network, 16, batch=2, precision="64-true")
    assert step.largest_difference(setting, 4, tmp_path) <= 1e-12


def test_memory_is_that_of_the_plain_loop(step: ModuleType, tmp_path: Path) -> None:
    ours, theirs = step.peak_bytes(step.Setting("mnist_net", 16, batch=8), tmp_path)
    weights = 4 * (48 * 1024 + 1024 * 1024)  # of the critic alone
    assert theirs > 3 * weights  # with their gradients and momenta
    assert ours <= 1.05 * theirs


def test_live_bytes_end_with_their_tensors(step: ModuleType) -> None:
    module = torch.nn.Linear(10, 10, bias=False)
    with step.LiveBytes("cpu", module) as live:
        assert live.now == 400
        kept = torch.ones(100)
        view = kept[:50]
        assert live.now == live.peak == 800
        gone = torch.ones(1000)
        assert (live.now, live.peak) == (4800, 4800)
        del gone
        assert (live.now, live.peak) == (800, 4800)
        del kept
        assert live.now == 800  # the view holds it
        del view
    assert live.now == 400


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import boxes
    import run

    monkeypatch.setattr(boxes, "QUICK", replace(boxes.QUICK, only=("MeanTeacher", "DomainPenalisation")))

    page, results = tmp_path / "speed.md", tmp_path / "results.json"
    page.write_text("before\n<!-- measured: begin -->\nstale numbers\n<!-- measured: end -->\nafter\n")
    assert run.main(["--quick", "--json", str(results), "--docs", str(page)]) == 0
    found = json.loads(results.read_text())
    assert found["quick"] is True
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    names = {"step", "forms", "lightning_parts", "loader", "cell", "threads", "methods", "masks", "boxes", "streams"}
    assert found["benchmarks"].keys() == names
    for measures in found["benchmarks"].values():
        assert measures
        for measure in measures:
            assert measure["dafw"] >= 0
            assert (measure["holds"] is None) == (measure["limit"] is None)
    limits = {measure["name"]: measure["limit"] for measure in found["benchmarks"]["methods"]}
    assert limits["step time, ParetoDA, resnet18"] == 2.2
    boxed = [measure for measure in found["benchmarks"]["boxes"] if measure["limit"] is not None]
    limits = {measure["name"].partition(",")[0]: measure["limit"] for measure in boxed}
    assert limits["step time over torchvision"] == 1.03
    assert {limits[f"step time over {name}"] for name in ("source", "rows")} == {2.2, 1.4}
    assert (limits["step time over erm"], limits["peak of memory over rows"]) == (1.05, 1.2)
    assert (limits["metrics of 10 images"], limits["boxes on 64x48"]) == (3.0, 80.0)
    text = page.read_text()
    assert "| CoTTA, 4 views | " in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "### A cell of a table" in text
    assert "step time" in capsys.readouterr().out


def test_rounds_are_mirrored_and_shuffled() -> None:
    import harness

    orders = harness.mirrored(["a", "b"], 20)
    assert all(order == order[::-1] and sorted(order) == ["a", "a", "b", "b"] for order in orders)
    assert {order[0] for order in orders} == {"a", "b"}


def test_a_drift_cancels_out() -> None:
    import harness

    clock = iter(range(1000))
    contenders = {"ours": lambda: 10.0 + next(clock), "theirs": lambda: 10.0 + next(clock)}
    found = harness.interleave(contenders, 5, "drift")
    assert found["ours"] == found["theirs"]
    assert len(found["ours"]) == 5


def test_medians_and_verdicts() -> None:
    import harness

    rng = random.Random(0)
    noise = [1 + rng.random() for _ in range(5)]
    twice = harness.timed("x", "s", [2 * n for n in noise], noise, limit=1.9)
    assert twice.ratio == twice.lowest == twice.highest == 2
    assert twice.holds is False
    assert replace(twice, at_most=False).holds is True
    assert replace(twice, limit=None).holds is None
    alone = harness.timed("x", "s", [3.0, 1.0, 2.0], limit=2.0)
    assert (alone.dafw, alone.lowest, alone.highest, alone.ratio) == (2.0, 1.0, 3.0, None)
    assert alone.holds is True
    assert harness.counted("reads", "", 0, limit=0).holds is True
    assert harness.counted("reads", "", 1, limit=0).holds is False
    assert "**missed**" in harness.table([twice])


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    import harness

    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="no block"):
        harness.replace_block(page, "new")
    assert page.read_text() == "text"


def test_the_page_of_the_documentation_has_the_block() -> None:
    import harness

    page = (FOLDER.parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")
    assert page.count(harness.BEGIN) == page.count(harness.END) == 1


def test_a_table_of_finished_runs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's runs are read as runs of ours: all are there, and none is broken."""
    import table

    from dafw.tables.reading import load_table
    from dafw.tables.store import load

    monkeypatch.chdir(tmp_path)
    path = table.write_table(tmp_path, 100, validations=2)
    store = load(load_table(path), tmp_path / "runs")
    assert (len(store.results), store.broken) == (100, {})
    assert store.percents("DANN 0", "a->b", "im").keys() == set(table.SEEDS)
