"""Place a checked wish from a shell: enqueue it, ring, print its id, and follow it if asked."""

from typing import NoReturn
from uuid import UUID

import typer

from worker import display
from worker.arguments import FAILED, INTERRUPTED, OK
from worker.runtime import Runtime
from worker.stages.enqueue import Wish, enqueue_job
from worker.traces import trace_since
from worker.watch import watch_job


def place_wish(runtime: Runtime, wish: Wish, *, wait: bool, as_json: bool) -> None:
    settings = runtime.settings
    enqueued = enqueue_job(
        wish, db=runtime.db, endpoint=settings.fal_endpoint, grace=settings.lease_seconds
    )
    if enqueued.created:
        trace_since("enqueue", enqueued.job.id, enqueued.job.enqueued_at)
        runtime.dispatcher.ring(enqueued.job.doorbell)
    if not (wait and as_json):
        print_job_id(enqueued.job.id, as_json=as_json)
    if wait:
        follow_job(runtime, enqueued.job.id, as_json=as_json)


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
