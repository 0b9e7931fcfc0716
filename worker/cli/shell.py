"""The options by which the shell's commands choose jobs, and the filter that they make."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer

from worker.ground.clock import read_clock, read_moment
from worker.ground.errors import InvalidInputError, Violation
from worker.jobs.queries import JobFilter, parse_label
from worker.jobs.states import JobState

JobId = Annotated[UUID, typer.Argument(metavar="ID", help="The job's id.")]
MaybeJobId = Annotated[
    UUID | None, typer.Argument(metavar="[ID]", help="The job's id; or choose many by the options.")
]
State = Annotated[JobState | None, typer.Option(help="Only jobs in this state.")]
Label = Annotated[
    str | None, typer.Option(metavar="NAME[=VALUE]", help="Only jobs with this label.")
]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Enqueued since: 2026-11-24T18:30 (UTC), or 2h.")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Enqueued before.")]
Text = Annotated[
    str | None,
    typer.Option(help="An id or its first 8 digits, a key, fal's request id, or words of prompts."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done to how many, and do nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for the count: for scripts.")]


def read_filter(
    state: JobState | None,
    tenant: str | None,
    label: str | None,
    since: str | None,
    until: str | None,
    text: str | None,
) -> JobFilter:
    """Raises InvalidInputError, which names every option that makes no sense."""
    wanted, wrong, now = JobFilter(state=state, tenant=tenant, text=text), [], read_clock()
    for name, given in (("label", label), ("since", since), ("until", until)):
        if given is None:
            continue
        try:
            wanted = _narrow(wanted, name, given, now)
        except ValueError as error:
            wrong.append(Violation(f"--{name}", given, str(error)))
    if wrong:
        raise InvalidInputError(tuple(wrong))
    return wanted


def _narrow(wanted: JobFilter, name: str, given: str, now: datetime) -> JobFilter:
    if name == "label":
        return replace(wanted, label=parse_label(given))
    moment = read_moment(given, now)
    return replace(wanted, since=moment) if name == "since" else replace(wanted, until=moment)
