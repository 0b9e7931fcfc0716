"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from structlog.contextvars import bound_contextvars
from uuid_utils.compat import uuid7

from worker.fal.options import RequestOptions
from worker.fal.submit import Accepted, QueueClient, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Clock, read_clock
from worker.ground.db import AWAY, Database, describe_database_error
from worker.jobs import attempts, limits, table
from worker.jobs.states import JobEvent
from worker.jobs.values import Attempt, Claim, Gate, Job, NewAttempt, Settlement
from worker.stages import pause
from worker.stages.judge import (
    Ruling,
    SubmitPolicy,
    judge_reply,
    measure_streak,
)
from worker.stages.lease import Heartbeat
from worker.stages.tokens import make_token

# How long a reply is held while it cannot be written: within a worker's time to drain.
RECORD_TIME = timedelta(seconds=25)
RECORD_PAUSE = timedelta(seconds=1)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """A claimed job with its committed attempt, and the token that only its webhook URL knows.

    `gates` are those that stood before the POST; if one is a pause, this job is its probe.
    """

    job: Job
    attempt: Attempt
    token: str
    send_before: datetime
    gates: tuple[Gate, ...] = ()


def submit_job(
    job_id: UUID,
    *,
    db: Database,
    queue: QueueClient,
    policy: SubmitPolicy,
    clock: Clock = read_clock,
) -> Job | None:
    """Buy one run of the model. None if the job was not there to be claimed, or has moved on."""
    submission = begin_submission(job_id, db=db, policy=policy, clock=clock)
    if submission is None:
        return None
    bound = bound_contextvars(job_id=str(job_id), attempt=submission.attempt.number)
    with bound, Heartbeat(submission.job, db=db, lease=policy.lease, clock=clock):
        reply = post_once(submission, queue=queue, policy=policy, clock=clock)
        if isinstance(reply, Accepted):
            # Should the database stay away, the paid request is still known from the log.
            log.info("submission_accepted", fal_request_id=reply.fal_request_id)
        moved = keep_reply(submission, reply, db=db, policy=policy, clock=clock)
    if any(gate.reason for gate in submission.gates):
        pause.release_waiting(db=db, clock=clock)
    return moved


def begin_submission(
    job_id: UUID, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Submission | None:
    """Commit the claim and the intent to pay, before a byte leaves for fal."""
    now = clock()
    claim = Claim(policy.worker, now, now + policy.lease)
    with db.transaction() as connection:
        # Gates are locked before any job, here and everywhere, so that two cannot deadlock.
        seen = limits.list_gates(connection, list(pause.MARKS), lock=True)
        pauses = [gate for gate in seen if gate.reason]
        closed = [one for one in pauses if pause.is_closed(one, now, policy.probe_after)]
        if closed:
            last = max(closed, key=lambda one: one.opens_at)
            pause.block_submissions(connection, [job_id], last, last.opens_at)
            return None
        job = table.claim_job(connection, job_id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        pause.push_on(connection, pauses, now + policy.probe_after)
        options = RequestOptions.model_validate(job.options).fill_in(policy.options)
        token = make_token(connection, job_id, policy.token_secrets)
        new = NewAttempt(
            uuid7(), attempts.hash_token(token), now, options.to_json(), policy.account
        )
        attempt = attempts.insert_attempt(connection, job, new)
    return Submission(job, attempt, token, claim.until, tuple(seen))


def post_once(
    submission: Submission, *, queue: QueueClient, policy: SubmitPolicy, clock: Clock
) -> SubmitReply:
    """POST, unless this process was stopped for so long that others may have judged the attempt."""
    if clock() >= submission.send_before:
        return Refused(RefusalClass.UNREACHABLE, None, "claim_lost", "not sent: the lease was over")
    return queue.submit(
        submission.job.endpoint,
        submission.attempt.input,
        webhook_url=f"{policy.webhook_base_url}/webhooks/fal/{submission.token}",
        options=RequestOptions.model_validate(submission.attempt.options),
    )


def keep_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Job | None:
    """Record the reply, also if the database is away for a while: only this process knows it."""
    deadline = time.monotonic() + RECORD_TIME.total_seconds()
    while True:
        try:
            return record_reply(submission, reply, db=db, policy=policy, clock=clock)
        except (*AWAY, IntegrityError) as error:
            # Of two that adopt one request at once, the loser sees at the next try that it is.
            log.warning("reply_not_recorded", reason=describe_database_error(error))
            if time.monotonic() > deadline:
                raise
            time.sleep(RECORD_PAUSE.total_seconds())


def record_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Job | None:
    """Settle the attempt and move the job, wherever it is by now; None if it has moved on.

    A webhook may have overtaken the reply. Or the reply is late: then the sweep has taken the job
    for unknown, or it has even been given up and tried again.
    """
    now = clock()
    with db.transaction() as connection:
        pause.note_reply(connection, reply, submission.gates, now + policy.probe_after)
        job = table.get_job(connection, submission.job.id, lock=True)
        tried = attempts.list_attempts(connection, job.id) if isinstance(reply, Refused) else []
        streak = measure_streak(tried, submission.attempt, job.tried_since)
        ruling = judge_reply(reply, job, now, policy, streak)
        is_own = _settle(connection, submission.attempt, ruling.settlement)
        moved = _move_job(connection, job, submission.attempt, ruling)
        if isinstance(reply, Accepted) and job.fal_request_id != reply.fal_request_id:
            _order_cancels(connection, moved, submission.attempt, now, is_own=is_own)
        return moved


def _settle(connection: Connection, attempt: Attempt, settlement: Settlement) -> bool:
    """Write it; False if the request that was accepted is not, or not to be, the attempt's own."""
    known = settlement.fal_request_id
    if known is not None and attempts.accept_attempt(connection, attempt, settlement):
        return True
    is_own = known is None or attempts.adopt_request(connection, attempt, known)
    if not is_own:
        # A search has found requests of the very same input, and paired them otherwise.
        message = f"request {known} was accepted, but the listing's were paired otherwise"
        settlement = replace(settlement, fal_request_id=None, error_message=message)
        log.error("request_paired_otherwise", attempt_id=str(attempt.id), fal_request_id=known)
    attempts.record_outcome(connection, attempt.id, settlement)
    return is_own


def _move_job(connection: Connection, job: Job, attempt: Attempt, ruling: Ruling) -> Job | None:
    """Only for the job's newest attempt, and not if its webhook or the listing was faster."""
    known = ruling.settlement.fal_request_id
    if job.fence != attempt.fence or (known is not None and job.fal_request_id == known):
        return None
    return table.apply_event(connection, job, ruling.event, ruling.move)


def _order_cancels(
    connection: Connection, moved: Job | None, attempt: Attempt, now: datetime, *, is_own: bool
) -> None:
    """Have what fal has accepted cancelled, if it is not wanted (any more)."""
    if moved is not None:
        if moved.cancel_requested_at is not None:
            attempts.order_cancel(connection, attempt.id, now)
    elif is_own:
        # The job goes on with another attempt, or has been cancelled.
        attempts.dismiss_attempt(connection, attempt.id, now)
    else:
        # The attempt has another request, with which the job goes on: that one stays.
        attempts.note_extra_charge(connection, attempt.id, now)
