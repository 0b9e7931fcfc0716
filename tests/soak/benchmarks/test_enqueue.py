"""`python -m benchmarks.enqueue --short`: it works; how fast, no test says."""

from benchmarks.enqueue import ENQUEUE
from benchmarks.harness.figures import Plan


def test_enqueue_counts_every_row_and_doorbell_and_has_its_figures(tmp_path) -> None:
    """It raises by itself where one is missing."""
    figures = ENQUEUE.measure(Plan(1, True, tmp_path))

    assert [len(figure.ratios) for figure in figures] == [1, 1]
    assert all(figure.judged > 0 for figure in figures)
