"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import httpx
import structlog
from pydantic import SecretStr
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from structlog.contextvars import bound_contextvars
from uuid_utils.compat import uuid7

from worker.fal.http import ACCOUNT_CODES
from worker.fal.options import RequestOptions
from worker.fal.requests import find_retention
from worker.fal.submit import Accepted, Ambiguous, QueueClient, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Backoff, Clock, choose_poll_delay, read_clock
from worker.ground.db import AWAY, Database, describe_database_error
from worker.jobs import attempts, limits, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Claim, Gate, Job, Move, NewAttempt, Outcome, Settlement
from worker.stages import admit
from worker.stages.admit import ACCOUNT_GATE, describe_pause
from worker.stages.lease import Heartbeat
from worker.stages.tokens import make_token

# ------------------------------------------------------------------ judge


BACKOFFS = {
    RefusalClass.BUSY: Backoff(timedelta(seconds=20), timedelta(minutes=10)),
    RefusalClass.UNREACHABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
    RefusalClass.UNAVAILABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
}

# A refusal tells something of these only: in any other state the request has shown itself.
NOT_YET_AT_FAL = frozenset({JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN})


@dataclass(frozen=True, slots=True)
class SubmitPolicy:
    """What every submission of this worker shares."""

    worker: str
    webhook_base_url: str
    options: RequestOptions
    lease: timedelta
    poll_after: timedelta
    retry_for: timedelta
    probe_after: timedelta
    account: str | None = field(default=None, kw_only=True)
    """A fingerprint of the key, stored with each attempt."""
    token_secrets: Sequence[SecretStr] = field(default=(), kw_only=True)


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


def judge_reply(
    reply: SubmitReply, job: Job, now: datetime, policy: SubmitPolicy, streak: Streak
) -> Ruling:
    """What a reply means for the job and its attempt; pure but for the jitter."""
    match reply:
        case Accepted():
            known = {"fal_request_id": reply.fal_request_id}
            delay = choose_poll_delay(policy.poll_after, retention=find_retention(job.input))
            return Ruling(
                JobEvent.SUBMISSION_ACCEPTED,
                Move(now, now + delay, columns=known),
                Settlement(Outcome.ACCEPTED, now, httpx.codes.OK, **asdict(reply)),
            )
        case Refused():
            return _judge_refusal(reply, job, now, policy, streak)
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
    reply: Refused, job: Job, now: datetime, policy: SubmitPolicy, streak: Streak
) -> Ruling:
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None and job.state in NOT_YET_AT_FAL:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        return Ruling(JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), settlement)
    if reply.why is RefusalClass.INPUT:
        settlement = Settlement(Outcome.REJECTED, now, reply.http_status, **why)
        details = {"error_details": list(reply.details) or None}
        move = Move(now, detail=reply.message, columns={**why, **details})
        return Ruling(JobEvent.SUBMISSION_REJECTED, move, settlement)
    settlement = Settlement(Outcome.POSTPONED, now, reply.http_status, **why)
    # Trouble with the account is not the job's: it waits as long as it takes.
    if reply.why is not RefusalClass.ACCOUNT and now - streak.since >= policy.retry_for:
        message = f"turned away for {policy.retry_for}, at last {describe_refusal(reply)}"
        exhausted = {"error_code": "submission_exhausted", "error_message": message}
        move = Move(now, detail=message, columns=exhausted)
        return Ruling(JobEvent.SUBMISSION_EXHAUSTED, move, settlement)
    blocked = {"blocked_reason": describe_refusal(reply)}
    move = Move(now, now + choose_delay(reply, streak.tries, policy), reply.message, blocked)
    return Ruling(JobEvent.SUBMISSION_POSTPONED, move, settlement)


def choose_delay(reply: Refused, tries: int, policy: SubmitPolicy) -> timedelta:
    """As fal asks, and full jitter on top; the account's own pause is the gate's."""
    if reply.why is RefusalClass.ACCOUNT:
        return policy.probe_after
    return reply.retry_after + BACKOFFS[reply.why].draw(tries)


def describe_refusal(reply: Refused) -> str:
    words = f"{reply.code}: {reply.message}"
    return describe_pause(ACCOUNT_GATE, words) if reply.why is RefusalClass.ACCOUNT else words


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
        admit.release_waiting(db=db, clock=clock)
    return moved


def begin_submission(
    job_id: UUID, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Submission | None:
    """Commit the claim and the intent to pay, before a byte leaves for fal."""
    now = clock()
    claim = Claim(policy.worker, now, now + policy.lease)
    with db.transaction() as connection:
        # Gates are locked before any job, here and everywhere, so that two cannot deadlock.
        seen = limits.list_gates(connection, list(admit.MARKS), lock=True)
        pauses = [gate for gate in seen if gate.reason]
        closed = [one for one in pauses if admit.is_closed(one, now, policy.probe_after)]
        if closed:
            last = max(closed, key=lambda one: one.opens_at)
            admit.block_submissions(connection, [job_id], last, last.opens_at)
            return None
        job = table.claim_job(connection, job_id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        admit.push_on(connection, pauses, now + policy.probe_after)
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
        admit.note_reply(connection, reply, submission.gates, now + policy.probe_after)
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
