"""The Celery surface: each task calls one stage, and publishes after it has committed.

Tasks acknowledge early, for a lost message is only a lost doorbell. `extend_video.enqueue` alone
acknowledges late: until its row is committed, the message is all there is of the job request.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID

import structlog
from celery import Task, shared_task
from celery.exceptions import Reject
from celery.signals import (
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.contextvars import bind_contextvars, bound_contextvars, unbind_contextvars

from worker.broker.app import ARCHIVE, CANCEL, ENQUEUE, RECONCILE, SUBMIT, SWEEP
from worker.fal.platform import PlatformClient
from worker.ground.clock import read_clock
from worker.ground.db import TRANSIENT_DB_ERRORS, describe_database_error
from worker.ground.errors import (
    IdempotencyConflictError,
    InvalidInputError,
    PermanentError,
    StoreUnavailableError,
    UploadRefusedError,
    UploadUnavailableError,
    Violation,
    WorkersLostError,
)
from worker.ground.schema import check_schema
from worker.ground.settings import load_settings
from worker.ground.tracing import (
    flush_traces,
    forget_tracer,
    get_tracer,
    trace_since,
    trace_step,
)
from worker.jobs.job_requests import Door
from worker.jobs.states import Doorbell, JobState, Step
from worker.jobs.values import Job
from worker.ops.metrics import refresh_measures
from worker.ops.spend import fetch_bills, fetch_units, refresh_price
from worker.ops.timeline import find_job_ended_since
from worker.producer import place_request
from worker.runtime import WORKER_PROGRAM, Runtime, get_runtime
from worker.stages.archive import archive_job
from worker.stages.cancel import cancel_requests
from worker.stages.refuse import claim_request, keep_refusal, list_errors, release_request
from worker.stages.submit import Submission, submit_next
from worker.stages.sweep import remove_partials
from worker.stages.trace import trace_end
from worker.stages.upload import has_inline

# How long an enqueue message is held before it is requeued while the database is unavailable.
DATABASE_PAUSE_SECONDS = 1.0
# The same while fal takes no uploads, which each try attempts.
UPLOAD_PAUSE_SECONDS = 10.0
CELERY = Door.CELERY
OUTAGES = (DBAPIError, PoolTimeoutError)
# No retry helps: the message becomes a row of `job_requests`.
REFUSALS = (InvalidInputError, IdempotencyConflictError, UploadRefusedError, WorkersLostError)

log = structlog.stdlib.get_logger(__name__)


@worker_init.connect
def check_worker(**_: object) -> None:
    """End a worker at its start, with the reason, if it could not do its work."""
    runtime = Runtime(load_settings(), program=WORKER_PROGRAM)
    try:
        runtime.check_worker()
        check_schema(runtime.db)
        clear_spool(runtime)
    except PermanentError as error:
        sys.exit(f"{error.code}: {error}")
    except DBAPIError as error:
        sys.exit(f"database_unavailable: {describe_database_error(error)}")
    finally:
        runtime.db.close()


@worker_ready.connect
def check_listing(**_: object) -> None:
    """Log once, at the start, if a lost submission could only be held; without waiting for fal."""

    def check() -> None:
        settings = load_settings()
        credentials = Runtime(settings).credentials
        with closing(PlatformClient(settings.fal_platform_url, credentials)) as fal:
            gap = fal.explain_unreadable(settings.fal_endpoint, read_clock())
        if gap is not None:
            log.warning(
                "listing_unreadable",
                reason=f"fal's listing {gap}: a submission whose reply is lost will be held",
            )

    Thread(target=check, name="listing check", daemon=True).start()


@worker_process_init.connect
def forget_runtime(**_: object) -> None:
    """A forked process must not share connections, nor the worker's name, with its parent.

    It may stand in for one that was killed, and has left a file in the spool.
    """
    get_runtime.forget()
    forget_tracer()
    clear_spool(get_runtime())


@worker_process_shutdown.connect
@worker_shutdown.connect
def end_traces(**_: object) -> None:
    flush_traces()


@shared_task(name=ENQUEUE, bind=True, acks_late=True, reject_on_worker_lost=True)
def enqueue(self: "Task[Any, Any]", /, *args: object, **fields: object) -> None:
    """Make a job from flat keyword arguments: the model's input, and a job's options."""
    runtime, message_id = get_runtime(), self.request.id or None
    info = self.request.delivery_info or {}
    # What may end a worker is counted; a plain message costs no more statements.
    is_counted = message_id is not None and bool(info.get("redelivered") or has_inline(fields))
    forget = partial(forget_claim, runtime, message_id, is_counted=is_counted)
    try:
        if is_counted and not claim_request(CELERY, str(message_id), fields, db=runtime.db):
            log.info("enqueue_refused_before", message_id=message_id)
            raise Reject("it was refused before", requeue=False)
        job_request = runtime.make_job_request(
            read_message(message_id or "", args, fields), on_checked=forget
        )
        enqueued = place_request(runtime, job_request)
    except REFUSALS as error:
        log.warning("enqueue_refused", message_id=message_id, code=error.code, reason=str(error))
        keep_refused(runtime, message_id, fields, error.code, list_errors(error))
        raise Reject(str(error), requeue=False) from error
    except UploadUnavailableError as error:
        forget()
        raise give_back("upload_unavailable", error, UPLOAD_PAUSE_SECONDS) from error
    except DataError as error:
        # No retry helps; the reason quotes nothing of the request.
        log.exception("enqueue_impossible", message_id=message_id)
        reason = "invalid value for a column"
        keep_refused(runtime, message_id, fields, "enqueue_impossible", [(None, reason)])
        raise Reject(reason, requeue=False) from error
    except OUTAGES as error:
        forget()
        raise give_back("database_unavailable", error, DATABASE_PAUSE_SECONDS) from error
    forget()
    log.info("job_enqueued", job_id=str(enqueued.job.id), created=enqueued.created)


def read_message(
    message_id: str, args: tuple[object, ...], fields: dict[str, object]
) -> dict[str, object]:
    """The fields in a message. Raises InvalidInputError.

    A message that comes twice must not make two jobs: where its producer chose neither an id nor a
    key, the message's own id is the key.
    """
    if args:
        wrong = Violation("args", repr(args)[:80], "none: every field is a keyword argument")
        raise InvalidInputError((wrong,))
    if fields.get("job_id") is None and fields.get("idempotency_key") is None:
        if not message_id:
            # As a key it would be shared by all such messages.
            raise InvalidInputError((Violation("id", "(not set)", "the message's own id"),))
        fields = {**fields, "idempotency_key": f"celery:{message_id}"}
    return fields


def keep_refused(
    runtime: Runtime,
    message_id: str | None,
    fields: dict[str, object],
    code: str,
    errors: Sequence[tuple[str | None, str]],
) -> None:
    """Keep the refused message as a row; while that fails, raises Reject, which requeues it."""
    try:
        keep_refusal(CELERY, message_id, fields, code=code, errors=errors, db=runtime.db)
    except DataError:
        log.exception("refusal_not_kept", message_id=message_id)
    except OUTAGES as error:
        raise give_back("database_unavailable", error, DATABASE_PAUSE_SECONDS) from error


def forget_claim(runtime: Runtime, message_id: str | None, *, is_counted: bool) -> None:
    """Record that the worker has survived the message; if that fails, the try still counts."""
    if not is_counted:
        return
    try:
        release_request(CELERY, str(message_id), db=runtime.db)
    except OUTAGES as error:
        log.warning("database_unavailable", reason=describe_database_error(error))


def give_back(event: str, error: Exception, pause: float) -> Reject:
    """Requeue the message after a pause, so that it does not circulate without end."""
    log.warning(event, reason=describe_database_error(error))
    time.sleep(pause)
    return Reject(event, requeue=True)


# ------------------------------------------------------------------ steps of a job


@shared_task(name=SUBMIT)
def submit(_job_id: object = None) -> None:
    """Submit the next job, whichever that is: the message says only that there may be room."""
    runtime = get_runtime()
    if runtime.ending.is_set():
        runtime.dispatcher.publish(Doorbell(Step.SUBMIT))
        return

    def go_on(submission: Submission) -> None:
        bind_contextvars(job_id=str(submission.job.id), attempt=submission.attempt.number)
        if submission.has_next:
            runtime.dispatcher.publish_soon(Doorbell(Step.SUBMIT))

    began = read_clock()
    with doorbell_may_be_lost(), bound_contextvars(job_id=None, attempt=None):
        unbind_contextvars("job_id", "attempt")
        submitted = submit_next(
            db=runtime.db, queue=runtime.queue, policy=runtime.submit_policy, on_admitted=go_on
        )
        if submitted is None:
            return
        trace_since(Step.SUBMIT.value, submitted.submission.job.id, began)
        if submitted.may_go_on:
            runtime.dispatcher.publish_soon(Doorbell(Step.SUBMIT))
        note_outcome("submission_recorded", submitted.job)


@shared_task(name=RECONCILE)
def reconcile(job_id: object) -> None:
    runtime, began = get_runtime(), read_clock()
    with open_step(Step.RECONCILE, job_id) as known:
        if known is None:
            return
        doorbells = runtime.reconciler.reconcile_job(known)
        for doorbell in doorbells:
            log.info("job_reconciled", job_id=str(doorbell.job_id), step=doorbell.step.value)
            runtime.dispatcher.publish(doorbell)
        if any(doorbell.step is Step.ARCHIVE for doorbell in doorbells):
            runtime.dispatcher.publish(Doorbell(Step.SUBMIT))  # its slot is free
        if get_tracer() is not None:
            trace_end(find_job_ended_since(known, began, db=runtime.db))


@shared_task(name=CANCEL)
def cancel(job_id: object) -> None:
    runtime = get_runtime()
    with open_step(Step.CANCEL, job_id) as known:
        if known:
            give_up_after = runtime.settings.unknown_seconds
            requests = runtime.requests
            cancel_requests(known, db=runtime.db, requests=requests, give_up_after=give_up_after)


@shared_task(name=ARCHIVE)
def archive(job_id: object) -> None:
    runtime = get_runtime()
    with open_step(Step.ARCHIVE, job_id, is_long=True) as known:
        if known:
            job = archive_job(known, keeper=runtime.keeper, policy=runtime.archive_policy)
            note_outcome("archive_recorded", job)
            if job is not None and job.state is JobState.ARCHIVED:
                fetch_units(job, requests=runtime.requests, db=runtime.db)


def note_outcome(event: str, job: Job | None) -> None:
    if job is not None:
        log.info(event, state=job.state.value)
        trace_end(job)


@contextmanager
def open_step(step: Step, job_id: object, *, is_long: bool = False) -> Iterator[UUID | None]:
    """The id in a message, while every log line names the job, and the attempt once it is known.

    None if there is nothing to do: anybody can write to a broker, so the id may be anything; and a
    process that shuts down begins no long step, but publishes the message again for another worker.
    """
    try:
        known = UUID(str(job_id))
    except ValueError:
        log.warning("doorbell_refused", job_id=repr(job_id)[:80])
        yield None
        return
    if is_long and get_runtime().ending.is_set():
        get_runtime().dispatcher.publish(Doorbell(step, known))
        yield None
        return
    with (
        doorbell_may_be_lost(),
        bound_contextvars(job_id=str(known), attempt=None),
        trace_step(step.value, known),
    ):
        # A step that binds its attempt, or another job's, does not leave it to the next.
        unbind_contextvars("attempt")
        yield known


@contextmanager
def doorbell_may_be_lost() -> Iterator[None]:
    """While the database is unavailable the row is left as it is: the sweep publishes again."""
    try:
        yield
    except TRANSIENT_DB_ERRORS as error:
        log.warning("database_unavailable", reason=describe_database_error(error))


# ------------------------------------------------------------------ the sweep


@shared_task(name=SWEEP)
def sweep() -> None:
    """Published by beat."""
    with doorbell_may_be_lost():
        sweep_with(get_runtime())


def sweep_with(runtime: Runtime) -> bool:
    """Publish for every overdue job, then clear what killed downloads have left.

    False if that was done within half a period: of many such messages, or of several workers that
    stand in for beat, only one sweeps.
    """
    if runtime.publish_overdue(pause=runtime.settings.sweep_seconds / 2) is None:
        return False
    refresh_costs(runtime)
    refresh_measures(db=runtime.db)
    clear_spool(runtime)
    return True


def refresh_costs(runtime: Runtime) -> None:
    """Read the price and the bills, in their own time; without a key there are none."""
    if runtime.settings.fal_credentials is None:
        return
    with runtime.open_billing() as client:
        if runtime.settings.fal_unit_price_usd is None:
            refresh_price(client, runtime.settings.fal_endpoint, db=runtime.db)
        fetch_bills(client, db=runtime.db)


def clear_spool(runtime: Runtime) -> None:
    """Also at each start: the sweep may run on another machine with another spool."""
    try:
        remove_partials(runtime.store)
    except StoreUnavailableError as error:
        log.warning("partials_not_removed", code=error.code, reason=str(error))
