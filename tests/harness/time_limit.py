"""The suite's time limit: a test without the mark `slow` takes two seconds at most.

On a busy machine every test takes longer, so the limit grows with the median of the run itself.
"""

from datetime import timedelta
from statistics import median
from typing import Protocol

import pytest

LIMIT = timedelta(seconds=2)
QUIET_MEDIAN = timedelta(milliseconds=7)
"""The median of the suite's calls on two idle cores."""
FEWEST_TESTS = 200
"""A run of fewer tests has no median to judge by."""


class Reporter(Protocol):
    """What is used of pytest's terminal reporter."""

    stats: dict[str, list[pytest.TestReport]]


class TimeLimit:
    """Notes how long each call took, and fails at the end of the run those that took too long."""

    def __init__(
        self, reporter: Reporter, limit: timedelta = LIMIT, fewest_tests: int = FEWEST_TESTS
    ) -> None:
        self._reporter = reporter
        self._limit = limit
        self._fewest_tests = fewest_tests
        self._calls: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and "slow" not in report.keywords:
            self._calls.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        durations = [report.duration for report in self._calls]
        if len(durations) < self._fewest_tests:
            return
        limit = stretch_limit(self._limit, durations)
        for report in self._calls:
            if report.passed and report.duration > limit.total_seconds():
                self._reporter.stats["passed"].remove(report)
                self._reporter.stats.setdefault("failed", []).append(report)
                report.outcome = "failed"
                report.longrepr = describe_excess(report.duration, limit)
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


def stretch_limit(limit: timedelta, seconds: list[float]) -> timedelta:
    """The limit of a run whose calls took so long: a busy machine's is longer.

    A call that starts a process suffers about twice as much as the median.
    """
    factor = median(seconds) / QUIET_MEDIAN.total_seconds()
    return limit * max(1.0, 2 * factor - 1)


def describe_excess(seconds: float, limit: timedelta) -> str:
    return (
        f"the call took {seconds:.1f} s, the limit of this run is {limit.total_seconds():.1f} s: "
        "make the test shorter, or mark it `slow` and say why"
    )
