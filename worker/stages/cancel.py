"""Beside the path. cancel: give a job up, and have fal give its requests up.

Before the POST it is free. In fal's queue the request is removed; a running one is asked to stop,
and what it gives all the same is archived. Only the order of an operator or producer, and the
result of a competing attempt, cancel anything: a worker that shuts down does not.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection

from worker.fal.requests import CancelAnswer, RequestClient
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import TooLateError
from worker.jobs import attempts, charges, table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Attempt, Job, Move
from worker.stages.endings import CANCELLED_CODE

RETRY_PAUSE = timedelta(seconds=30)
STATUS_TIME = timedelta(seconds=5)
CANCELLABLE = frozenset(
    {JobState.QUEUED, JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN, JobState.SUBMITTED}
)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job as committed, and what to publish if fal has to cancel its request."""

    job: Job
    doorbell: Doorbell | None


def cancel_job(job_id: UUID, *, db: Database, clock: Clock = read_clock) -> Cancelled:
    """Cancel the job, or have its request cancelled; again is as good as once.

    Raises JobNotFoundError, and TooLateError once there is a result or an end.
    """
    now = clock()
    with db.transaction() as connection:
        job = table.get_job(connection, job_id, lock=True)
        match job.state:
            case JobState.CANCELLED:
                return Cancelled(job, None)
            case JobState.QUEUED:
                detail = "no request of it is at fal"
            case JobState.SUBMISSION_UNKNOWN if job.is_held:
                detail = "it was held; a result that comes late is still taken"
            case JobState.SUBMITTING | JobState.SUBMISSION_UNKNOWN | JobState.SUBMITTED:
                return _request_cancel(connection, job, now)
            case _:
                raise TooLateError(f"job {job.id} is {job.state.value}: there is nothing to cancel")
        move = Move(now, detail=detail, columns={"cancel_requested_at": now})
        ended = table.apply_permitted(connection, job, JobEvent.JOB_CANCELLED, move)
        return Cancelled(ended, None)


def _request_cancel(connection: Connection, job: Job, now: datetime) -> Cancelled:
    """Write the order; fal can cancel the request once it is known."""
    ordered = job
    if job.cancel_requested_at is None:
        columns = {
            "cancel_requested_at": now,
            "claimed_by": job.claimed_by,
            "blocked_by": job.blocked_by,
            "blocked_reason": job.blocked_reason,
        }
        move = Move(now, job.due_at, columns=columns)
        ordered = table.apply_permitted(connection, job, JobEvent.CANCEL_REQUESTED, move)
    attempt = attempts.find_current_attempt(connection, job)
    if attempt is None or job.state is not JobState.SUBMITTED:
        return Cancelled(ordered, None)
    attempts.order_cancel(connection, attempt.id, now)
    return Cancelled(ordered, Doorbell(Step.CANCEL, job.id))


def cancel_requests(
    job_id: UUID,
    *,
    db: Database,
    requests: RequestClient,
    give_up_after: timedelta,
    clock: Clock = read_clock,
) -> None:
    """Have fal cancel those of the job's requests that are to be; write what it answers.

    fal's last word on the request is its completion, so that is polled for soon.
    """
    with db.reading() as connection:
        due = [one for one in attempts.list_attempts(connection, job_id) if one.cancel_due_at]
    for attempt in due:
        answer = requests.cancel(attempt, str(attempt.fal_request_id))
        log.info("cancellation_answered", job_id=str(job_id), answer=answer.value)
        is_removed = was_removed(attempt, answer, requests)
        now = clock()
        with db.transaction() as connection:
            job = table.get_job(connection, job_id, lock=True)
            ordered_at = job.cancel_requested_at or attempt.extra_charge_at or attempt.started_at
            again = answer is CancelAnswer.UNCLEAR and now - ordered_at < give_up_after
            due_at = now + RETRY_PAUSE if again else None
            attempts.record_cancel(connection, attempt.id, answer.value, due_at)
            if is_removed:
                charges.void(connection, attempt.id, charges.VoidReason.REMOVED, now)
            if not again and job.state is JobState.SUBMITTED and job.fence == attempt.fence:
                table.advance_due(connection, job, now)


def was_removed(attempt: Attempt, answer: CancelAnswer, requests: RequestClient) -> bool:
    """Whether the request was still in fal's queue, and so costs nothing.

    fal may answer alike for one that runs: then its status says whether it has ever run.
    """
    if answer is not CancelAnswer.REQUESTED:
        return answer is CancelAnswer.OK
    ended = requests.find_progress(attempt, str(attempt.fal_request_id), STATUS_TIME)
    is_cancelled = ended is not None and ended.has_ended and ended.error_type == CANCELLED_CODE
    return is_cancelled and ended is not None and ended.inference_seconds == 0
