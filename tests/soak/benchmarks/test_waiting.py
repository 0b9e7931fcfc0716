"""`python -m benchmarks.waiting --short`: it works; how little it takes, no test says."""

import pytest

from benchmarks.harness.figures import Plan
from benchmarks.waiting import WAITING


@pytest.mark.timeout(300)
def test_waiting_asks_fal_about_every_job_that_is_due_and_has_its_figures(tmp_path) -> None:
    """It raises by itself where a poll is missing."""
    figures = {figure.name: figure for figure in WAITING.measure(Plan(1, True, tmp_path))}

    assert figures["worker's memory, 200 waiting"].ratios
    assert figures["40 polls that are due at once"].judged > 0
    assert len(figures["CPU of one such task"].ours) == 1
