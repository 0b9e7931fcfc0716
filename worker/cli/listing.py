"""`extend-video list`, once or again and again."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer
from rich.live import Live

from worker.cli import display
from worker.cli.arguments import Json, Tenant
from worker.cli.shell import Label, Since, State, Text, Until, read_filter
from worker.ground.db import Database
from worker.jobs.queries import JobFilter, list_jobs, list_lines
from worker.runtime import build_runtime


def list_(
    state: State = None,
    tenant: Tenant = None,
    label: Label = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    watch: Annotated[bool, typer.Option("--watch", help="Renew the list until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 2,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    wanted = read_filter(state, tenant, label, since, until, text)
    db = build_runtime().db
    show = _show_json if as_json else _show_table
    if not watch:
        show(wanted, db, limit)
    elif display.out.is_terminal and not as_json:
        _watch_terminal(wanted, db, limit, every)
    else:
        _repeat(lambda: show(wanted, db, limit), every)


def _show_json(wanted: JobFilter, db: Database, limit: int) -> None:
    display.print_json([display.job_to_json(job) for job in list_jobs(wanted, db=db, limit=limit)])


def _show_table(wanted: JobFilter, db: Database, limit: int) -> None:
    display.print_jobs(list_lines(wanted, db=db, limit=limit))


def _watch_terminal(wanted: JobFilter, db: Database, limit: int, every: float) -> None:
    """On a screen of its own; at most as many jobs as fit."""
    fitting = min(limit, max(display.out.height - 2, 1))
    with Live(console=display.out, screen=True, auto_refresh=False) as live:
        _repeat(
            lambda: live.update(
                display.build_job_table(list_lines(wanted, db=db, limit=fitting)), refresh=True
            ),
            every,
        )


def _repeat(look: Callable[[], object], every: float) -> None:
    """Until Ctrl-C, which is how one leaves it."""
    with suppress(KeyboardInterrupt):  # the way out
        while True:
            look()
            time.sleep(every)
