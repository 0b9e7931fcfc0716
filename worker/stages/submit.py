"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from worker.backoff import Backoff, choose_poll_delay
from worker.clock import Clock, read_clock
from worker.db import AWAY, Database, describe_database_error
from worker.fal.queue import (
    ACCOUNT_CODES,
    Accepted,
    Ambiguous,
    QueueClient,
    RefusalClass,
    Refused,
    SubmitReply,
)
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import (
    Attempt,
    Claim,
    Gate,
    Job,
    Move,
    NewAttempt,
    Outcome,
    Settlement,
)
from worker.stages import pause
from worker.stages.lease import Heartbeat

BACKOFFS = {
    RefusalClass.BUSY: Backoff(timedelta(seconds=20), timedelta(minutes=10)),
    RefusalClass.UNREACHABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
    RefusalClass.UNAVAILABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
}

# A refusal tells something of these only: in any other state the request has shown itself.
NOT_YET_AT_FAL = frozenset({JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN})

# How long a reply is held while it cannot be written: within a worker's time to drain.
RECORD_TIME = timedelta(seconds=25)
RECORD_PAUSE = timedelta(seconds=1)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SubmitTerms:
    """What every submission of this worker shares."""

    worker: str
    webhook_base_url: str
    start_timeout: timedelta
    store_io: bool
    lease: timedelta
    poll_after: timedelta
    retry_for: timedelta
    probe_after: timedelta


@dataclass(frozen=True, slots=True)
class Submission:
    """A claimed job with its committed attempt, and the token that only its webhook URL knows.

    `gate` is set if this is the one job that is tried while submissions pause.
    """

    job: Job
    attempt: Attempt
    token: str
    send_before: datetime
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """One edge for the job, one settlement for its attempt."""

    event: JobEvent
    move: Move
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Streak:
    """So many refusals in a row, since then. Trouble with the account breaks it: that may last."""

    tries: int
    since: datetime


def submit_job(
    job_id: UUID,
    *,
    db: Database,
    queue: QueueClient,
    terms: SubmitTerms,
    clock: Clock = read_clock,
) -> Job | None:
    """Buy one run of the model. None if the job was not there to be claimed, or has moved on."""
    submission = begin_submission(job_id, db=db, terms=terms, clock=clock)
    if submission is None:
        return None
    with Heartbeat(submission.job, db=db, lease=terms.lease, clock=clock):
        reply = post_once(submission, queue=queue, terms=terms, clock=clock)
        if isinstance(reply, Accepted):
            # Should the database stay away, the paid request is still known from the log.
            log.info("submission_accepted", job_id=str(job_id), fal_request_id=reply.fal_request_id)
        moved = keep_reply(submission, reply, db=db, terms=terms, clock=clock)
    if submission.gate is not None:
        pause.hasten_blocked(db=db, clock=clock)
    return moved


def begin_submission(
    job_id: UUID, *, db: Database, terms: SubmitTerms, clock: Clock
) -> Submission | None:
    """Commit the claim and the intent to pay, before a byte leaves for fal."""
    now = clock()
    token = secrets.token_urlsafe(32)
    claim = Claim(terms.worker, now, now + terms.lease)
    with db.transaction() as connection:
        # The gate is locked before any job, here and everywhere, so that two cannot deadlock.
        gate = pause.find_pause(connection, lock=True)
        if gate is not None and now < gate.opens_at:
            pause.block_submissions(connection, [job_id], gate, gate.opens_at)
            return None
        job = table.claim_job(connection, job_id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        if gate is not None:
            pause.begin_pause(connection, str(gate.reason), now + terms.probe_after)
        new = NewAttempt(uuid7(), attempts.hash_token(token), now)
        attempt = attempts.insert_attempt(connection, job, new)
    return Submission(job, attempt, token, claim.until, gate)


def post_once(
    submission: Submission, *, queue: QueueClient, terms: SubmitTerms, clock: Clock
) -> SubmitReply:
    """POST, unless this process was stopped for so long that others may have judged the attempt."""
    if clock() >= submission.send_before:
        return Refused(RefusalClass.UNREACHABLE, None, "claim_lost", "not sent: the lease was over")
    return queue.submit(
        submission.job.endpoint,
        submission.attempt.input,
        webhook_url=f"{terms.webhook_base_url}/webhooks/fal/{submission.token}",
        start_timeout=terms.start_timeout,
        store_io=terms.store_io,
    )


def keep_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, terms: SubmitTerms, clock: Clock
) -> Job | None:
    """Record the reply, also if the database is away for a while: only this process knows it."""
    deadline = time.monotonic() + RECORD_TIME.total_seconds()
    while True:
        try:
            return record_reply(submission, reply, db=db, terms=terms, clock=clock)
        except (*AWAY, IntegrityError) as error:
            # Of two that adopt one request at once, the loser sees at the next try that it is.
            log.warning("reply_not_recorded", reason=describe_database_error(error))
            if time.monotonic() > deadline:
                raise
            time.sleep(RECORD_PAUSE.total_seconds())


def record_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, terms: SubmitTerms, clock: Clock
) -> Job | None:
    """Settle the attempt and move the job, wherever it is by now; None if it has moved on.

    A webhook may have overtaken the reply. Or the reply is late: then the sweep has taken the job
    for unknown, or it has even been given up and tried again.
    """
    now = clock()
    with db.transaction() as connection:
        if isinstance(reply, Refused) and reply.why is RefusalClass.ACCOUNT:
            pause.begin_pause(connection, describe_refusal(reply), now + terms.probe_after)
            log.error("submissions_paused", reason=describe_refusal(reply))
        elif submission.gate is not None and not isinstance(reply, Ambiguous):
            pause.end_pause(connection)
        job = table.get_job(connection, submission.job.id, lock=True)
        tried = attempts.list_attempts(connection, job.id)
        streak = measure_streak(tried, submission.attempt, job.tried_since)
        ruling = judge_reply(reply, job, now, terms, streak)
        is_own = _settle(connection, submission.attempt, ruling.settlement)
        moved = _move_job(connection, job, submission.attempt, ruling)
        if isinstance(reply, Accepted) and job.fal_request_id != reply.fal_request_id:
            _order_cancels(connection, moved, submission.attempt, now, is_own=is_own)
        return moved


def judge_reply(
    reply: SubmitReply, job: Job, now: datetime, terms: SubmitTerms, streak: Streak
) -> Ruling:
    """What a reply means for the job and its attempt; pure but for the jitter."""
    match reply:
        case Accepted():
            known = {"fal_request_id": reply.fal_request_id}
            return Ruling(
                JobEvent.SUBMISSION_ACCEPTED,
                Move(now, now + choose_poll_delay(terms.poll_after), columns=known),
                Settlement(Outcome.ACCEPTED, now, **asdict(reply)),
            )
        case Refused():
            return _judge_refusal(reply, job, now, terms, streak)
        case Ambiguous(http_status, message):
            blocked = {"blocked_reason": f"fal may or may not have it: {message}"}
            return Ruling(
                JobEvent.SUBMISSION_LOST,
                # The listing is searched at once: it may know.
                Move(now, now, message, blocked),
                Settlement(Outcome.UNKNOWN, now, http_status, error_message=message),
            )
        case _:
            assert_never(reply)


def _judge_refusal(
    reply: Refused, job: Job, now: datetime, terms: SubmitTerms, streak: Streak
) -> Ruling:
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None and job.state in NOT_YET_AT_FAL:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        return Ruling(JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), settlement)
    if reply.why is RefusalClass.INPUT:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        move = Move(now, detail=reply.message, columns=why)
        return Ruling(JobEvent.SUBMISSION_REJECTED, move, settlement)
    settlement = Settlement(Outcome.POSTPONED, now, reply.http_status, **why)
    # Trouble with the account is not the job's: it waits as long as it takes.
    if reply.why is not RefusalClass.ACCOUNT and now - streak.since >= terms.retry_for:
        message = f"turned away for {terms.retry_for}, at last {describe_refusal(reply)}"
        exhausted = {"error_code": "submission_exhausted", "error_message": message}
        move = Move(now, detail=message, columns=exhausted)
        return Ruling(JobEvent.SUBMISSION_EXHAUSTED, move, settlement)
    blocked = {"blocked_reason": describe_refusal(reply)}
    move = Move(now, now + choose_delay(reply, streak.tries, terms), reply.message, blocked)
    return Ruling(JobEvent.SUBMISSION_POSTPONED, move, settlement)


def choose_delay(reply: Refused, tries: int, terms: SubmitTerms) -> timedelta:
    """As fal asks, and full jitter on top; the account's own pause is the gate's."""
    if reply.why is RefusalClass.ACCOUNT:
        return terms.probe_after
    return reply.retry_after + BACKOFFS[reply.why].draw(tries)


def describe_refusal(reply: Refused) -> str:
    words = f"{reply.code}: {reply.message}"
    return pause.describe_pause(words) if reply.why is RefusalClass.ACCOUNT else words


def measure_streak(tried: Sequence[Attempt], attempt: Attempt, since: datetime) -> Streak:
    """How long the job has been turned away without a break, up to this attempt; pure."""
    streak = Streak(1, attempt.started_at)
    for earlier in sorted(tried, key=lambda one: one.number, reverse=True):
        if earlier.number >= attempt.number:
            continue
        if earlier.outcome != Outcome.POSTPONED or earlier.http_status in ACCOUNT_CODES:
            break
        if earlier.started_at < since:
            break
        streak = Streak(streak.tries + 1, earlier.started_at)
    return streak


def _settle(connection: Connection, attempt: Attempt, settlement: Settlement) -> bool:
    """Write it; False if the request that was accepted is not, or not to be, the attempt's own."""
    known = settlement.fal_request_id
    is_own = known is None or attempts.adopt_request(connection, attempt, known)
    if not is_own:
        # A search has found requests of the very same input, and paired them otherwise.
        message = f"request {known} was accepted, but the listing's were paired otherwise"
        settlement = replace(settlement, fal_request_id=None, error_message=message)
        log.error("request_paired_otherwise", attempt_id=str(attempt.id), fal_request_id=known)
    attempts.settle_attempt(connection, attempt.id, settlement)
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
