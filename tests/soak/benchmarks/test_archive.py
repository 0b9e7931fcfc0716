"""The benchmark of archiving works; how fast it is found to be is not tested."""

import pytest

from benchmarks.archive import ARCHIVE
from benchmarks.harness.figures import Plan


@pytest.mark.timeout(300)
def test_short_run_gives_a_figure_for_each_part_and_flat_memory(tmp_path):
    figures = {
        (one.name, one.reference_name): one
        for one in ARCHIVE.measure(Plan(rounds=1, is_short=True, directory=tmp_path))
    }

    fetching = {"download, hashed", "download, hashed, flushed, named"}
    for load, parts in (
        ("1 GiB", {*fetching, "whole step"}),
        ("200 x 1 MiB", fetching),
        ("50 x 1 MiB", {"whole step"}),
    ):
        told = {name.partition(": ")[2] for name, _ in figures if name.startswith(f"{load}: ")}
        assert told - {"peak of memory, over that of 1 MiB"} == parts
    for load, curl in (("1 GiB", "curl"), ("50 x 1 MiB", "curl -Z")):
        assert figures[f"{load}: whole step", f"{curl} + sync"].judged > 0
    assert figures["1 GiB: peak of memory, over that of 1 MiB", ""].is_met
