"""`python -m benchmarks.sweep --short`: it works; how fast, no test says."""

from benchmarks.harness.figures import Plan
from benchmarks.sweep import SWEEP


def test_sweep_and_admission_reach_every_row_on_both_databases(tmp_path) -> None:
    """It raises by itself where one is missing."""
    figures = SWEEP.measure(Plan(1, True, tmp_path))

    compared = [figure.name for figure in figures if figure.ratios]
    assert [name.split(" of ")[0] for name in compared] == [
        *("postgresql: sweep", "postgresql: admission"),
        *("sqlite: sweep", "sqlite: admission"),
    ]
