"""Place wishes from a shell: enqueue and ring, print ids, and follow a single one if asked."""

import json
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.bulk import place_requests
from worker.cli import display
from worker.cli.arguments import FAILED, INTERRUPTED, OK, read_file
from worker.cli.watch import watch_job
from worker.ground.errors import InvalidInputError, Violation
from worker.ground.tracing import trace_since
from worker.ground.validation import show_value
from worker.jobs.states import JobState
from worker.runtime import Runtime
from worker.stages.enqueue import JobRequest, enqueue_job

STANDARD_INPUT = Path("-")
# What some editors begin a UTF-8 file with.
BOM = "\ufeff"
FILE_FIELDS = ("video_url", "end_image_url")


def place_request(runtime: Runtime, job_request: JobRequest, *, wait: bool, as_json: bool) -> None:
    settings = runtime.settings
    enqueued = enqueue_job(
        job_request, db=runtime.db, endpoint=settings.fal_endpoint, grace=settings.lease_seconds
    )
    if enqueued.created:
        trace_since("enqueue", enqueued.job.id, enqueued.job.enqueued_at)
        runtime.dispatcher.publish(enqueued.job.doorbell)
    if enqueued.job.state is JobState.QUEUED:
        warn_unless_worked(runtime)
    if not (wait and as_json):
        print_job_id(enqueued.job.id, as_json=as_json)
    if wait:
        follow_job(runtime, enqueued.job.id, as_json=as_json)


def warn_unless_worked(runtime: Runtime) -> None:
    """The job is written all the same."""
    with suppress(SQLAlchemyError):  # only a hint
        if not runtime.list_workers():
            display.err.print(
                "no worker has been seen within the last minute: it waits until one runs "
                "(extend-video up, or celery -A worker worker)",
                markup=False,
            )


def place_lines(runtime: Runtime, file: Path, *, as_json: bool) -> None:
    """Enqueue the wish of each line, all of them or none if any is wrong; print the ids in order.

    Raises InvalidInputError, and IdempotencyConflictError, which name the lines.
    """
    try:
        text = (
            sys.stdin.read().removeprefix(BOM)
            if file == STANDARD_INPUT
            else file.read_text("utf-8-sig")
        )
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    wished, wrong = list[dict[str, object]](), list[Violation]()
    for place, line in enumerate(StringIO(text)):
        try:
            wished.append(read_job_request(line))
        except ValueError:
            allowed = "an object with a value for each field, as JSON"
            wrong.append(Violation(name_line(place), show_value(line.strip()), allowed))
    if wrong:
        raise InvalidInputError(tuple(wrong))
    jobs = place_requests(runtime, wished, name_line)
    warn_unless_worked(runtime)
    if as_json:
        display.print_json({"ids": [job.id for job in jobs]})
        return
    for job in jobs:
        display.out.print(str(job.id))


def name_line(place: int) -> str:
    return f"line {place + 1}"


def read_job_request(line: str) -> dict[str, object]:
    """A wish's fields; files are named as they are for `--video`. Raises ValueError."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(line)  # noqa: TRY004 - as for text that is no JSON
    named = {name: fields[name] for name in FILE_FIELDS if isinstance(fields.get(name), str)}
    return {**fields, **{name: read_file(text) for name, text in named.items()}}


def follow_job(runtime: Runtime, job_id: UUID, *, as_json: bool) -> NoReturn:
    """Show the job until its end, then end with its own exit code."""
    try:
        archived = watch_job(runtime, job_id, as_json=as_json)
    except KeyboardInterrupt:
        display.err.print(f"the job goes on: extend-video show {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(OK if archived else FAILED)


def print_job_id(job_id: UUID, *, as_json: bool) -> None:
    if as_json:
        display.print_json({"id": job_id})
    else:
        display.out.print(str(job_id))
