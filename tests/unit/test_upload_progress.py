"""What is shown of uploads and of counted jobs: a bar on a terminal, lines elsewhere."""

import io

from rich.console import Console

from worker.cli.output import MIB, show_progress


def make_console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, force_terminal=is_terminal, width=100), shown


def test_lines_tell_each_tenth_once() -> None:
    console, shown = make_console(is_terminal=False)
    with show_progress(console) as on_progress:
        assert on_progress is not None
        for sent in range(0, 20 * MIB + 1, MIB // 4):
            on_progress(sent, 20 * MIB)
    lines = shown.getvalue().splitlines()
    assert lines == [f"uploading: {sent}.0 of 20.0 MiB" for sent in range(2, 21, 2)]


def test_bar_is_shown_on_a_terminal() -> None:
    console, shown = make_console(is_terminal=True)
    with show_progress(console) as on_progress:
        assert on_progress is not None
        on_progress(5 * MIB, 20 * MIB)
        on_progress(20 * MIB, 20 * MIB)
    assert "uploading" in shown.getvalue()
    assert "20.0/20.0 MiB" in shown.getvalue()


def test_bar_is_not_shown_where_nothing_is_uploaded() -> None:
    console, shown = make_console(is_terminal=True)
    with show_progress(console):
        pass
    assert "uploading" not in shown.getvalue()


def test_programs_are_told_nothing() -> None:
    console, shown = make_console(is_terminal=True)
    with show_progress(console, quiet=True) as on_progress:
        assert on_progress is None
    assert shown.getvalue() == ""


def test_jobs_are_counted_by_a_bar_on_a_terminal() -> None:
    console, shown = make_console(is_terminal=True)
    with show_progress(console, doing="pruning", of_jobs=True) as on_progress:
        assert on_progress is not None
        on_progress(20, 20)
    assert "pruning" in shown.getvalue()
    assert "20/20" in shown.getvalue()


def test_jobs_are_not_counted_elsewhere() -> None:
    console, shown = make_console(is_terminal=False)
    with show_progress(console, doing="pruning", of_jobs=True) as on_progress:
        assert on_progress is None
    assert shown.getvalue() == ""
