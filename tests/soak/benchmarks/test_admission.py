"""`python -m benchmarks.admission --short`: it works; how fast, no test says."""

import pytest

from benchmarks.admission import ADMISSION
from benchmarks.harness.figures import Plan


@pytest.mark.timeout(300)
def test_backlog_is_bought_from_and_watched_on_both_databases(tmp_path) -> None:
    """It raises by itself where nothing was bought, or nobody swept."""
    figures = ADMISSION.measure(Plan(1, True, tmp_path))

    names = [figure.name for figure in figures]
    assert [name for name in names if "admission p50" in name] == [
        "postgresql: admission p50",
        "sqlite: admission p50",
    ]
    assert all(figure.judged > 0 for figure in figures if "p50" in figure.name)
