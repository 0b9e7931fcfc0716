"""The question about the whole path, in its short form: that it works, never how fast."""

from benchmarks.harness.figures import Plan
from benchmarks.path import measure


def test_path_is_measured_on_both_sides(tmp_path) -> None:
    figures = measure(Plan(1, is_short=True, directory=tmp_path))
    assert [len(figure.ratios) for figure in figures] == [1, 1]
    assert all(value > 0 for figure in figures for value in (*figure.ours, *figure.reference))
