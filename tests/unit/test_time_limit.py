"""A test that takes too long fails, on a quiet machine and on a busy one."""

import pytest

from tests.harness.time_limit import LIMIT, stretch_limit

pytest_plugins = ["pytester"]

SUITE = """
import time
import pytest

@pytest.mark.parametrize("number", range(3))
def test_short(number): pass

def test_long(): time.sleep(0.2)

@pytest.mark.slow  # it waits
def test_marked(): time.sleep(0.2)
"""
CONFTEST = """
import pytest
from datetime import timedelta
from tests.harness.time_limit import TimeLimit

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "slow: .")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    config.pluginmanager.register(TimeLimit(reporter, timedelta(milliseconds=100), fewest_tests=4))
"""


def test_only_the_long_test_without_the_mark_fails(
    pytester: pytest.Pytester, request, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the reason is not cut
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    pytester.syspathinsert(request.config.rootpath)

    result = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")

    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_long - the call took 0.2 s, *mark it `slow`*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [([0.001] * 300, LIMIT), ([0.028] * 299 + [60.0], 7 * LIMIT)],
    ids=["quiet", "four-times-as-slow"],
)
def test_limit_grows_with_the_median_of_the_run(seconds, limit) -> None:
    assert stretch_limit(LIMIT, seconds) == limit
