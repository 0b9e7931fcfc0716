"""Beside the path. redrive: an operator restarts a job, from the latest step that is still good.

Without `pay_again` what is paid is used: a result is archived again, fal is polled again. With it
money is spent a second time, and the order is written into `events`.
"""

from datetime import timedelta
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import PaysAgainError, TooLateError
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Job, Move, Outcome
from worker.stages.complete import RESULT_GONE
from worker.stages.endings import has_video

# Outcomes that surely cost nothing.
FREE = frozenset({Outcome.REJECTED, Outcome.POSTPONED})
FORGOTTEN = (
    "fal_request_id",
    "result",
    "archive_warnings",
    "archive_alarmed_at",
    "cancel_requested_at",
    # It has passed, or it would fail the job again.
    "expires_at",
)
REDRIVABLE = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.SUBMISSION_UNKNOWN})


def redrive_job(
    job_id: UUID,
    *,
    db: Database,
    pay_again: bool,
    dispatch_timeout: timedelta,
    clock: Clock = read_clock,
) -> Job:
    """The job as committed; publish for its step.

    Raises JobNotFoundError, TooLateError if the job is not at an end, and PaysAgainError if it
    takes new money that was not agreed to.
    """
    now = clock()
    with db.transaction() as connection:
        job = table.get_job(connection, job_id, lock=True)
        if job.state not in REDRIVABLE:
            raise TooLateError(
                f"job {job.id} is {job.state.value}: it has not failed, nor been cancelled"
            )
        tried = attempts.list_attempts(connection, job.id)
        event, detail = choose_restart(job, tried, pay_again=pay_again)
        columns: dict[str, object] = {"redriven_at": now}
        if event is JobEvent.SUBMIT_REDRIVEN:
            # What the job must not remember of its last end; what is bought anew may be late anew.
            columns |= dict.fromkeys(FORGOTTEN)
        move = Move(now, now + dispatch_timeout, detail, columns)
        return table.apply_permitted(connection, job, event, move)


def choose_restart(job: Job, tried: list[Attempt], *, pay_again: bool) -> tuple[JobEvent, str]:
    """From where to restart, and why; pure. Raises PaysAgainError."""
    if job.state is JobState.FAILED and has_video(job) and not pay_again:
        return JobEvent.ARCHIVE_REDRIVEN, "an operator has the paid result archived again"
    # Refused, and no request of it has turned up since.
    if all(one.outcome in FREE and one.fal_request_id is None for one in tried):
        return JobEvent.SUBMIT_REDRIVEN, "an operator has it submitted; nothing was paid so far"
    if pay_again:
        return JobEvent.SUBMIT_REDRIVEN, "an operator agreed to pay again"
    if job.state is JobState.FAILED and job.error_code == RESULT_GONE:
        return JobEvent.POLL_REDRIVEN, "an operator has fal polled again for the paid result"
    raise PaysAgainError(f"job {job.id} was submitted before: a new submission costs money again")
