"""`extend-video prune`: delete what ended long ago, once somebody has agreed to the number."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from enum import Enum
from typing import Annotated

import typer

from worker.cli import display
from worker.cli.arguments import FAILED, INTERRUPTED, OK, Json, Tenant, read_duration, split_pairs
from worker.cli.progress import count_jobs
from worker.ground.clock import read_clock
from worker.ground.errors import InvalidInputError
from worker.jobs.archives import Retention
from worker.jobs.states import ENDED, JobState
from worker.ops.retention import Pruning, prune_jobs, survey_jobs
from worker.ops.verify import require_own_archive
from worker.runtime import Runtime, build_runtime

FORGOTTEN = (
    "Idempotency keys are forgotten with their rows: the same key buys a new run then. "
    "--files-only keeps rows and keys."
)


class End(Enum):
    """The states in which nothing is waited for."""

    ARCHIVED = JobState.ARCHIVED.value
    FAILED = JobState.FAILED.value
    CANCELLED = JobState.CANCELLED.value


def prune(
    older_than: Annotated[
        timedelta,
        typer.Option(parser=read_duration, metavar="AGE", help="Since their end: 90d, 12h, 30m."),
    ],
    tenant: Tenant = None,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    state: Annotated[list[End], typer.Option(help="May be repeated; all three if not given.")] = [],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Delete the files, and keep the rows.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete jobs that ended long ago, with their files.

    Live jobs are never touched.
    """
    retention = read_retention(older_than, tenant, label, state, files_only=files_only)
    if not (dry_run or yes or sys.stdin.isatty()):
        raise typer.BadParameter("there is no terminal to ask at: give --yes, or --dry-run")
    runtime, total = build_runtime(), None
    if not dry_run:
        require_own_archive(db=runtime.db, store=runtime.store)
    if not yes:
        found = survey_jobs(retention, db=runtime.db, store=runtime.store)
        print_pruning(found, retention, "to be pruned", as_json=as_json and dry_run)
        if dry_run:
            raise typer.Exit(OK)
        if not found.jobs and not found.requests:
            raise typer.Exit(OK)
        if not confirm(found.jobs + found.requests, retention):
            raise typer.Exit(FAILED)
        total = found.jobs
    run_pruning(runtime, retention, total, as_json=as_json)


def read_retention(
    older_than: timedelta,
    tenant: str | None,
    labels: Sequence[str],
    ends: Sequence[End],
    *,
    files_only: bool,
) -> Retention:
    """Raises InvalidInputError."""
    wanted, wrong = split_pairs("--label", labels)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    states = frozenset(JobState(end.value) for end in ends)
    return Retention(read_clock() - older_than, states or ENDED, tenant, wanted, files_only)


def confirm(count: int, retention: Retention) -> bool:
    """Whether the operator types the very number."""
    what = "files of these jobs" if retention.files_only else "jobs with their files, and requests"
    if not retention.files_only:
        display.err.print(FORGOTTEN)
    display.err.print(f"to delete the {what}, type their number:", end=" ")
    is_meant = sys.stdin.readline().strip() == str(count)
    if not is_meant:
        display.err.print("nothing was deleted")
    return is_meant


def run_pruning(
    runtime: Runtime, retention: Retention, total: int | None, *, as_json: bool
) -> None:
    pruning, db, store = Pruning(), runtime.db, runtime.store
    shown = (
        nullcontext() if as_json else count_jobs(display.err, total, doing="pruning", done="pruned")
    )
    try:
        with shown as on_progress:
            prune_jobs(retention, pruning, db=db, store=store, on_progress=on_progress)
    except KeyboardInterrupt:
        print_pruning(pruning, retention, "pruned; run it again for the rest", as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    print_pruning(pruning, retention, "pruned", as_json=as_json)


def print_pruning(pruning: Pruning, retention: Retention, done: str, *, as_json: bool) -> None:
    if as_json:
        display.print_json({"files_only": retention.files_only, **asdict(pruning)})
        return
    kind = "jobs' files" if retention.files_only else "jobs"
    ends = f", ended {pruning.oldest:%F %T} to {pruning.newest:%F %T} UTC" if pruning.jobs else ""
    display.out.print(f"{pruning.jobs} {kind}, {pruning.bytes} bytes of video{ends}: {done}")
    if pruning.requests:
        display.out.print(f"{pruning.requests} refused requests: {done}")
    if pruning.elsewhere:
        display.out.print(f"{pruning.elsewhere} jobs have files in another archive: left alone")
    if pruning.moved:
        display.out.print(f"{pruning.moved} jobs have moved meanwhile: left alone")
