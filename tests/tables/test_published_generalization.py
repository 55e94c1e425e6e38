"""The published numbers of domain generalisation stand for the tasks of their benchmarks, and add up."""

from statistics import fmean

import pytest

from dafw.tables.fields import read_tasks
from dafw.tables.published import read_published
from dafw.tables.reading import FOLDERS
from datamodules import PACS, ColoredMNIST, RotatedMNIST

BENCHMARKS = {"rotated_mnist": RotatedMNIST, "colored_mnist": ColoredMNIST, "pacs": PACS}
METHODS = {"ERM", "IRM", "GroupDRO", "Mixup", "CORAL", "MMD", "DANN", "CDANN", "VREx", "RSC"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_they_are_of_the_benchmarks_tasks_and_their_averages_hold(name: str) -> None:
    tasks = read_tasks(name, {"leave_one_out": list(BENCHMARKS[name].domain_names)})
    published = read_published(FOLDERS[0] / f"{name}.csv", set(tasks))
    found = {(one.source, one.method) for one in published}
    assert {method for source, method in found if "DomainBed" in source} == METHODS
    for source, method in found:
        values = {one.task: one.value for one in published if (one.source, one.method) == (source, method)}
        average = values.pop("average")
        assert set(values) in (set(), set(tasks))
        if values:
            assert fmean(values.values()) == pytest.approx(average, abs=0.1), (source, method)
    assert {one.provenance for one in published if "UDIM" in one.source} <= {"recalled"}
