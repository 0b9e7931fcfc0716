"""The benchmark of crashes works, and nothing is lost or paid twice in it."""

import pytest

from benchmarks.crash import CRASH
from benchmarks.harness.figures import Plan


@pytest.mark.timeout(600)
def test_short_run_loses_nothing_and_pays_nothing_twice(tmp_path):
    figures = CRASH.measure(Plan(rounds=1, is_short=True, directory=tmp_path))

    ours = {one.name: one for one in figures if one.ours}
    for crowd in ("20 jobs", "1,000 jobs"):
        assert ours[f"{crowd}: kills in a round"].ours == (1,)
        assert ours[f"{crowd}: lost"].ours == (0,)
        assert ours[f"{crowd}: paid twice"].ours == (0,)
