"""What the tests cost: processor time of each test, with the processes that it starts, and a report of the dearest.

A second of processor time is the same on a busy machine, one on the clock is not. The report names; it fails nothing.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Seconds of one core: of the contract of one method, and of any one test.
METHOD_BOUND, TEST_BOUND = 4.0, 15.0
CONTRACT = "tests/contract/test_contract.py"
TICKS = os.sysconf("SC_CLK_TCK")


def spent() -> float:
    """Seconds of processor time of this process, of its children that have ended, and of its server of fresh ones."""
    server = sys.modules.get("dafw.testing.server")
    pid = server.server_pid() if server else None
    return sum(os.times()[:4]) + (_of(pid) if pid else 0)


def _of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes when a test starts; its fixtures' making and ending are part of its cost."""
    item.stash[_STARTED] = spent()
    return (yield)


_STARTED = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Hands the cost since the last report to the process that prints."""
    report = yield
    now = spent()
    report.user_properties.append(("seconds", now - item.stash[_STARTED]))
    item.stash[_STARTED] = now
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the sum, the dearest tests, what a method's contract costs, and what is over its bound."""
    tests: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    shared = 0.0
    found_reports = (report for reports in terminalreporter.stats.values() for report in reports)
    for report in (report for report in found_reports if isinstance(report, pytest.TestReport)):
        name, seconds = report.nodeid, sum(value for key, value in report.user_properties if key == "seconds")
        tests[name] += seconds
        if found := re.fullmatch(re.escape(CONTRACT) + r"::\w+\[(\w+)\]", name):
            methods[found[1]] += seconds if report.when == "call" else 0
            shared += seconds if report.when != "call" else 0
    if os.environ.get("DAFW_TEST_COSTS"):
        Path(os.environ["DAFW_TEST_COSTS"]).write_text("".join(f"{s:.3f}\t{name}\n" for name, s in tests.items()))
    if len(tests) < 2:
        return
    terminalreporter.section("processor time")
    terminalreporter.line(f"{sum(tests.values()):.0f} s in all; the dearest tests:")
    for name, seconds in tests.most_common(5):
        terminalreporter.line(f"{seconds:6.1f} s  {name}")
    if methods:
        share = shared / len(methods)  # of the processes that resume and of the ranks, which all methods share
        methods = Counter({name: seconds + share for name, seconds in methods.items()})
        mean = sum(methods.values()) / len(methods)
        dear = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in methods.most_common(3))
        terminalreporter.line(f"contract of a method: {mean:.1f} s in the mean of {len(methods)}; most: {dear}")
    over = [(name, s) for name, s in tests.items() if s > TEST_BOUND]
    over += [(f"the contract of {name}", s) for name, s in methods.items() if s > METHOD_BOUND]
    for name, seconds in over:
        terminalreporter.line(f"over its bound: {name} ({seconds:.1f} s)")
