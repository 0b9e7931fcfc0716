"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again. Next: fal calls the webhook, `complete.py`.
"""

import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from worker.clock import Clock, read_clock
from worker.db import Database
from worker.fal.queue import Accepted, Ambiguous, QueueClient, Refused, SubmitReply
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent
from worker.jobs.values import Attempt, Claim, Job, Move, NewAttempt, Outcome, Settlement

LONGEST_DELAY = timedelta(minutes=10)

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
    unknown_after: timedelta


@dataclass(frozen=True, slots=True)
class Submission:
    """A claimed job with its committed attempt, and the token that only its webhook URL knows."""

    job: Job
    attempt: Attempt
    token: str


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
    """Buy one run of the model. None if the job was not there to be claimed."""
    submission = begin_submission(job_id, db=db, terms=terms, clock=clock)
    if submission is None:
        return None
    reply = queue.submit(
        submission.job.endpoint,
        submission.attempt.input,
        webhook_url=f"{terms.webhook_base_url}/webhooks/fal/{submission.token}",
        start_timeout=terms.start_timeout,
        store_io=terms.store_io,
    )
    if isinstance(reply, Accepted):
        # Should the database be away now, the paid request is still known from the log.
        log.info("submission_accepted", job_id=str(job_id), fal_request_id=reply.fal_request_id)
    return record_reply(submission, reply, db=db, terms=terms, clock=clock)


def begin_submission(
    job_id: UUID, *, db: Database, terms: SubmitTerms, clock: Clock
) -> Submission | None:
    """Commit the claim and the intent to pay, before a byte leaves for fal."""
    now = clock()
    token = secrets.token_urlsafe(32)
    claim = Claim(terms.worker, now, now + terms.lease)
    with db.transaction() as connection:
        job = table.claim_job(connection, job_id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        new = NewAttempt(uuid7(), attempts.hash_token(token), now)
        return Submission(job, attempts.insert_attempt(connection, job, new), token)


def record_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, terms: SubmitTerms, clock: Clock
) -> Job | None:
    """Settle the attempt; the job moves unless a webhook has overtaken the reply."""
    ruling = judge_reply(reply, submission.job, clock(), terms)
    with db.transaction() as connection:
        moved = table.apply_event(connection, submission.job, ruling.event, ruling.move)
        attempts.settle_attempt(connection, submission.attempt.id, ruling.settlement)
    return moved


def judge_reply(reply: SubmitReply, job: Job, now: datetime, terms: SubmitTerms) -> Ruling:
    """What a reply means for the job and its attempt; pure."""
    match reply:
        case Accepted():
            known = {"fal_request_id": reply.fal_request_id}
            return Ruling(
                JobEvent.SUBMISSION_ACCEPTED,
                Move(now, now + terms.poll_after, columns=known),
                Settlement(Outcome.ACCEPTED, now, **asdict(reply)),
            )
        case Refused():
            return _judge_refusal(reply, job, now)
        case Ambiguous(http_status, message):
            blocked = {"blocked_reason": f"fal may or may not have it: {message}"}
            return Ruling(
                JobEvent.SUBMISSION_LOST,
                Move(now, now + terms.unknown_after, message, blocked),
                Settlement(Outcome.UNKNOWN, now, http_status, error_message=message),
            )
        case _:
            assert_never(reply)


def _judge_refusal(reply: Refused, job: Job, now: datetime) -> Ruling:
    why = {"error_code": reply.code, "error_message": reply.message}
    if reply.retry_after is None:
        return Ruling(
            JobEvent.SUBMISSION_REJECTED,
            Move(now, detail=reply.message, columns=why),
            Settlement(Outcome.REJECTED, now, reply.http_status, **why),
        )
    blocked = {"blocked_reason": f"{reply.code}: {reply.message}"}
    return Ruling(
        JobEvent.SUBMISSION_POSTPONED,
        Move(
            now,
            now + choose_delay(reply.retry_after, now - job.enqueued_at),
            reply.message,
            blocked,
        ),
        Settlement(Outcome.POSTPONED, now, reply.http_status, **why),
    )


def choose_delay(wished: timedelta, tried_for: timedelta) -> timedelta:
    """What fal wishes; else as long again as it has been tried so far, within a bound."""
    return max(wished, min(tried_for, LONGEST_DELAY))
