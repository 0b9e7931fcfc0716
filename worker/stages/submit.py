"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import secrets
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import structlog
from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from worker.backoff import Backoff, choose_poll_delay
from worker.clock import Clock, read_clock
from worker.db import AWAY, Database, describe_database_error
from worker.fal.queue import (
    Accepted,
    Ambiguous,
    QueueClient,
    RefusalClass,
    Refused,
    SubmitReply,
)
from worker.fal.retention import find_retention
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent
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
        except AWAY as error:
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
        tries = _count_refusals(connection, job) if isinstance(reply, Refused) else 0
        ruling = judge_reply(reply, job, now, terms, tries + 1)
        _settle(connection, submission.attempt, ruling.settlement)
        return _move_job(connection, job, submission.attempt, ruling, now)


def judge_reply(
    reply: SubmitReply, job: Job, now: datetime, terms: SubmitTerms, tries: int
) -> Ruling:
    """What a reply means for the job and its attempt; pure but for the jitter."""
    match reply:
        case Accepted():
            known = {"fal_request_id": reply.fal_request_id}
            delay = choose_poll_delay(terms.poll_after, retention=find_retention(job.input))
            return Ruling(
                JobEvent.SUBMISSION_ACCEPTED,
                Move(now, now + delay, columns=known),
                Settlement(Outcome.ACCEPTED, now, **asdict(reply)),
            )
        case Refused():
            return _judge_refusal(reply, job, now, terms, tries)
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
    reply: Refused, job: Job, now: datetime, terms: SubmitTerms, tries: int
) -> Ruling:
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        return Ruling(JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), settlement)
    if reply.why is RefusalClass.INPUT:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        move = Move(now, detail=reply.message, columns=why)
        return Ruling(JobEvent.SUBMISSION_REJECTED, move, settlement)
    settlement = Settlement(Outcome.POSTPONED, now, reply.http_status, **why)
    # Trouble with the account is not the job's: it waits as long as it takes.
    if reply.why is not RefusalClass.ACCOUNT and now - job.tried_since >= terms.retry_for:
        message = f"turned away for {terms.retry_for}, at last {describe_refusal(reply)}"
        exhausted = {"error_code": "submission_exhausted", "error_message": message}
        move = Move(now, detail=message, columns=exhausted)
        return Ruling(JobEvent.SUBMISSION_EXHAUSTED, move, settlement)
    blocked = {"blocked_reason": describe_refusal(reply)}
    move = Move(now, now + choose_delay(reply, tries, terms), reply.message, blocked)
    return Ruling(JobEvent.SUBMISSION_POSTPONED, move, settlement)


def choose_delay(reply: Refused, tries: int, terms: SubmitTerms) -> timedelta:
    """As fal asks, and full jitter on top; the account's own pause is the gate's."""
    if reply.why is RefusalClass.ACCOUNT:
        return terms.probe_after
    return reply.retry_after + BACKOFFS[reply.why].draw(tries)


def describe_refusal(reply: Refused) -> str:
    words = f"{reply.code}: {reply.message}"
    return pause.describe_pause(words) if reply.why is RefusalClass.ACCOUNT else words


def _count_refusals(connection: Connection, job: Job) -> int:
    return attempts.count_attempts(connection, job.id, [Outcome.POSTPONED], job.tried_since)


def _settle(connection: Connection, attempt: Attempt, settlement: Settlement) -> None:
    known = settlement.fal_request_id
    if known is not None and not attempts.adopt_request(connection, attempt, known):
        # A search has given it to another attempt of the very same input. The ids are not lost.
        message = f"request {known} is held by another attempt with the same input"
        settlement = replace(settlement, fal_request_id=None, error_message=message)
        log.error("request_held_by_another", attempt_id=str(attempt.id), fal_request_id=known)
    attempts.settle_attempt(connection, attempt.id, settlement)


def _move_job(
    connection: Connection, job: Job, attempt: Attempt, ruling: Ruling, now: datetime
) -> Job | None:
    if ruling.event is not JobEvent.SUBMISSION_ACCEPTED:
        return _apply_ruling(connection, job, attempt, ruling)
    if job.fal_request_id == ruling.settlement.fal_request_id:
        # Its webhook or the listing was faster.
        return None
    moved = _apply_ruling(connection, job, attempt, ruling)
    if moved is None:
        # The job goes on with another attempt, or has been cancelled.
        attempts.dismiss_attempt(connection, attempt.id, now)
    elif moved.cancel_requested_at is not None:
        attempts.order_cancel(connection, attempt.id, now)
    return moved


def _apply_ruling(connection: Connection, job: Job, attempt: Attempt, ruling: Ruling) -> Job | None:
    """Only for the job's newest attempt."""
    if job.fence != attempt.fence:
        return None
    return table.apply_event(connection, job, ruling.event, ruling.move)
