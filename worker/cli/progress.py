"""Progress of bytes and of jobs: a bar on a terminal, now and then a line elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from worker.fal.storage import OnProgress

LINES = 10
JOBS_A_LINE = 1000
MIB = 1024 * 1024


@contextmanager
def show_progress(
    console: Console, *, quiet: bool = False, doing: str = "uploading", done: str = "uploaded"
) -> Iterator[OnProgress | None]:
    """What is to be called with bytes and their total; None where nothing is to be shown."""
    if quiet:
        yield None
    elif console.is_terminal:
        with _run_bar(console, doing) as on_progress:
            yield on_progress
    else:
        yield print_lines(console, done)


@contextmanager
def count_jobs(
    console: Console, total: int | None, *, doing: str, done: str
) -> Iterator[Callable[[int], None]]:
    """What is to be called with the jobs done so far; of an unknown total the bar only moves."""
    if not console.is_terminal:
        yield _print_thousands(console, done)
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda jobs: progress.update(task, completed=jobs)


def _print_thousands(console: Console, done: str) -> Callable[[int], None]:
    told = 0

    def on_progress(jobs: int) -> None:
        nonlocal told
        if jobs // JOBS_A_LINE > told:
            told = jobs // JOBS_A_LINE
            console.print(f"{jobs} jobs {done}")

    return on_progress


def print_lines(console: Console, done: str = "uploaded") -> OnProgress:
    told = 0

    def on_progress(sent: int, total: int) -> None:
        nonlocal told
        tenth = sent * LINES // total
        if tenth > told:
            told = tenth
            console.print(f"{done} {sent / MIB:.1f} of {total / MIB:.1f} MiB")

    return on_progress


@contextmanager
def _run_bar(console: Console, doing: str) -> Iterator[OnProgress]:
    """It appears with the first bytes, and goes when all is done."""
    columns = (
        TextColumn(doing),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)

        def on_progress(sent: int, total: int) -> None:
            progress.update(task, completed=sent, total=total, visible=True)

        yield on_progress
