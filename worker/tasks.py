"""The Celery surface: each task calls one stage and rings after it has committed.

Tasks acknowledge early, for a lost message is only a lost doorbell. `extend_video.enqueue` alone
acknowledges late: until its row is committed, the message is all there is of the wish.
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
from structlog.contextvars import bound_contextvars, unbind_contextvars

from worker.broker.app import ARCHIVE, CANCEL, ENQUEUE, RECONCILE, SUBMIT, SWEEP
from worker.fal.platform import PlatformClient
from worker.ground.clock import read_clock
from worker.ground.db import AWAY, describe_database_error
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
from worker.jobs.states import Doorbell, Step
from worker.ops.measures import refresh_measures
from worker.ops.story import find_job_ended_since
from worker.runtime import WORKER_PROGRAM, Runtime, get_runtime
from worker.stages.archive import archive_job
from worker.stages.cancel import cancel_requests
from worker.stages.enqueue import enqueue_job
from worker.stages.refuse import claim_request, keep_refusal, list_errors, release_request
from worker.stages.submit import submit_job
from worker.stages.sweep import remove_partials
from worker.stages.trace import trace_end
from worker.stages.upload import has_inline

# How long an enqueue message rests before it is given back while the database is away.
DATABASE_PAUSE_SECONDS = 1.0
# The same while fal takes no uploads, which every try asks it for.
UPLOAD_PAUSE_SECONDS = 10.0
CELERY = Door.CELERY
# What no later try changes: the message becomes a row of `job_requests`.
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
    """Say once, at the start, if a lost submission could only be held; without waiting for fal."""
    Thread(target=_warn_of_unreadable_listing, name="listing check", daemon=True).start()


def _warn_of_unreadable_listing() -> None:
    settings = load_settings()
    with closing(PlatformClient(settings.fal_platform_url, Runtime(settings).credentials)) as fal:
        gap = fal.explain_unreadable(settings.fal_endpoint, read_clock())
    if gap is not None:
        log.warning(
            "listing_unreadable",
            reason=f"fal's listing {gap}: a submission whose reply is lost will be held",
        )


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
    try:
        if is_counted and not claim_request(CELERY, str(message_id), fields, db=runtime.db):
            log.info("enqueue_refused_before", message_id=message_id)
            raise Reject("it was refused before", requeue=False)
        enqueued = enqueue_job(
            runtime.make_job_request(
                read_message(message_id or "", args, fields),
                on_checked=partial(forget_claim, runtime, message_id, is_counted=is_counted),
            ),
            db=runtime.db,
            endpoint=runtime.settings.fal_endpoint,
            grace=runtime.settings.lease_seconds,
        )
    except REFUSALS as error:
        log.warning("enqueue_refused", message_id=message_id, code=error.code, reason=str(error))
        keep_or_give_back(runtime, message_id, fields, error.code, list_errors(error))
        raise Reject(str(error), requeue=False) from error
    except UploadUnavailableError as error:
        log.warning("upload_unavailable", message_id=message_id, reason=str(error))
        forget_claim(runtime, message_id, is_counted=is_counted)
        time.sleep(UPLOAD_PAUSE_SECONDS)
        raise Reject("upload_unavailable", requeue=True) from error
    except DataError as error:
        # No waiting makes the database take it; the reason quotes nothing of the wish.
        log.exception("enqueue_impossible", message_id=message_id)
        wrong = [(None, "the database refuses its values")]
        keep_or_give_back(runtime, message_id, fields, "enqueue_impossible", wrong)
        raise Reject("the database refuses the values", requeue=False) from error
    except (DBAPIError, PoolTimeoutError) as error:
        forget_claim(runtime, message_id, is_counted=is_counted)
        raise give_back(error) from error
    forget_claim(runtime, message_id, is_counted=is_counted)
    log.info("job_enqueued", job_id=str(enqueued.job.id), created=enqueued.created)
    if enqueued.created:
        trace_since("enqueue", enqueued.job.id, enqueued.job.enqueued_at)
        runtime.dispatcher.publish(enqueued.job.doorbell)


def keep_or_give_back(
    runtime: Runtime,
    message_id: str | None,
    fields: dict[str, object],
    code: str,
    errors: Sequence[tuple[str | None, str]],
) -> None:
    """Keep the refused message as a row. Raises Reject: the message stays while that cannot be."""
    try:
        keep_refusal(CELERY, message_id, fields, code=code, errors=errors, db=runtime.db)
    except DataError:
        log.exception("refusal_not_kept", message_id=message_id)
    except (DBAPIError, PoolTimeoutError) as error:
        raise give_back(error) from error


def give_back(error: Exception) -> Reject:
    """For a message of a database that is away, after a rest."""
    log.warning("database_unavailable", reason=describe_database_error(error))
    time.sleep(DATABASE_PAUSE_SECONDS)
    return Reject("database_unavailable", requeue=True)


def forget_claim(runtime: Runtime, message_id: str | None, *, is_counted: bool) -> None:
    """The worker has outlived its look at the message; where that cannot be written, it counts."""
    if not is_counted:
        return
    try:
        release_request(CELERY, str(message_id), db=runtime.db)
    except (DBAPIError, PoolTimeoutError) as error:
        log.warning("database_unavailable", reason=describe_database_error(error))


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


@contextmanager
def doorbell_may_be_lost() -> Iterator[None]:
    """While the database is away nothing has happened to the row: the sweep rings again."""
    try:
        yield
    except AWAY as error:
        log.warning("database_unavailable", reason=describe_database_error(error))


@shared_task(name=SUBMIT)
@doorbell_may_be_lost()
def submit(job_id: object) -> None:
    runtime = get_runtime()
    with open_step("submit", job_id) as known:
        if known is None or is_passed_on(Step.SUBMIT, known):
            return
        job = submit_job(known, db=runtime.db, queue=runtime.queue, policy=runtime.submit_policy)
        if job is not None:
            log.info("submission_settled", state=job.state.value)
            trace_end(job)


@shared_task(name=RECONCILE)
@doorbell_may_be_lost()
def reconcile(job_id: object) -> None:
    runtime, began = get_runtime(), read_clock()
    with open_step("reconcile", job_id) as known:
        if known is None:
            return
        for doorbell in runtime.reconciler.reconcile_job(known):
            log.info("job_reconciled", job_id=str(doorbell.job_id), step=doorbell.step.value)
            runtime.dispatcher.publish(doorbell)
    if get_tracer() is not None:
        trace_end(find_job_ended_since(known, began, db=runtime.db))


@shared_task(name=CANCEL)
@doorbell_may_be_lost()
def cancel(job_id: object) -> None:
    runtime = get_runtime()
    with open_step("cancel", job_id) as known:
        if known is not None:
            cancel_requests(
                known,
                db=runtime.db,
                requests=runtime.requests,
                give_up_after=runtime.settings.unknown_seconds,
            )


@shared_task(name=ARCHIVE)
@doorbell_may_be_lost()
def archive(job_id: object) -> None:
    runtime = get_runtime()
    with open_step("archive", job_id) as known:
        if known is None or is_passed_on(Step.ARCHIVE, known):
            return
        ended = archive_job(known, keeper=runtime.keeper, policy=runtime.archive_policy)
        if ended is not None:
            log.info("archive_settled", state=ended.state.value)
    # After the step's own span, which is one of the trace's.
    trace_end(ended)


@contextmanager
def open_step(name: str, job_id: object) -> Iterator[UUID | None]:
    """Every log line of the step names the job, and the attempt once that is known."""
    known = read_job_id(job_id)
    with bound_contextvars(job_id=str(known), attempt=None), trace_step(name, known):
        # A step that binds its attempt, or another job's, does not leave it to the next.
        unbind_contextvars("attempt")
        yield known


def is_passed_on(step: Step, job_id: UUID) -> bool:
    """A process that has been told to end begins nothing long: its doorbell is another one's."""
    runtime = get_runtime()
    if not runtime.ending.is_set():
        return False
    runtime.dispatcher.publish(Doorbell(step, job_id))
    return True


def read_job_id(value: object) -> UUID | None:
    """The id in a doorbell; anybody can write to a broker, so it may be anything."""
    try:
        return UUID(str(value))
    except ValueError:
        log.warning("doorbell_refused", job_id=repr(value)[:80])
        return None


@shared_task(name=SWEEP)
@doorbell_may_be_lost()
def sweep() -> None:
    """What beat rings for."""
    sweep_with(get_runtime())


def sweep_with(runtime: Runtime) -> bool:
    """Ring for every overdue job, then clear what killed downloads have left.

    False, and nothing, if somebody has done so within half a period: of a pile of such messages,
    and of workers that stand in for beat together, one sweeps.
    """
    if runtime.publish_overdue(pause=runtime.settings.sweep_seconds / 2) is None:
        return False
    refresh_measures(db=runtime.db)
    clear_spool(runtime)
    return True


def clear_spool(runtime: Runtime) -> None:
    """At each start too: the sweep may run on another machine, whose spool is not this one."""
    try:
        remove_partials(runtime.store)
    except StoreUnavailableError as error:
        log.warning("partials_not_removed", code=error.code, reason=str(error))
