"""Which tests `make quick` leaves out: those that took long when all were last measured (`make durations`), and those marked slow.

The list in slow_tests.txt is written by a run, never by hand. A test that is not in it, because it is new or was renamed, runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow_tests.txt")
# Of a test function, on one core: of its cases in the mean, and together.
MEAN_SECONDS, TOTAL_SECONDS = 0.5, 3.0


def function_of(node_id: str) -> str:
    """A test without its parameters."""
    return node_id.partition("[")[0]


def slow_functions(durations: Iterable[tuple[str, float]]) -> list[str]:
    """The functions that are slow, of (node id, seconds) of every setup, call and teardown."""
    cases: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node_id, seconds in durations:
        cases[function_of(node_id)][node_id] += seconds
    totals = {function: (sum(times.values()), len(times)) for function, times in cases.items()}
    return sorted(name for name, (total, count) in totals.items() if total > TOTAL_SECONDS or total / count > MEAN_SECONDS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --quick and --write-slow."""
    group = parser.getgroup("fastcnn")
    group.addoption("--quick", action="store_true", help="leave out the tests that measured slow")
    group.addoption("--write-slow", action="store_true", help=f"write the tests that measure slow into {LIST.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --quick: deselects what is slow."""
    if not config.getoption("quick"):
        return
    slow = set(LIST.read_text(encoding="utf-8").splitlines())
    left_out = [item for item in items if function_of(item.nodeid) in slow or item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --write-slow, in the process that hears of every test: writes the list."""
    if not config.getoption("write_slow"):
        return
    reports = (report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport))
    slow = slow_functions((report.nodeid, report.duration) for report in reports)
    LIST.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")
    terminalreporter.write_line(f"{len(slow)} slow test functions written to {LIST.name}")
