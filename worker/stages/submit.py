"""2. submit: claim the job, write the attempt, POST once, write what came of it.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
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
from worker.fal.submit import (
    Accepted,
    Ambiguous,
    QueueClient,
    RefusalClass,
    Refused,
    SubmitReply,
)
from worker.ground.clock import Backoff, Clock, choose_poll_delay, read_clock
from worker.ground.db import AWAY, Database, describe_database_error
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Claim, Gate, Job, Move, NewAttempt, Outcome, Settlement
from worker.stages import admit
from worker.stages.lease import Heartbeat
from worker.stages.tokens import make_token

# How long a reply is held while it cannot be written: within a worker's time to drain.
RECORD_TIME = timedelta(seconds=25)
RECORD_PAUSE = timedelta(seconds=1)
BACKOFFS = {
    RefusalClass.BUSY: Backoff(timedelta(seconds=20), timedelta(minutes=10)),
    RefusalClass.UNREACHABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
    RefusalClass.UNAVAILABLE: Backoff(timedelta(seconds=2), timedelta(minutes=2)),
}
# Until then a refusal is the last word; in any other state the request has shown itself.
NOT_YET_AT_FAL = frozenset({JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN})

log = structlog.stdlib.get_logger(__name__)


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
class Submission:
    """A claimed job with its committed attempt, and the token that only its webhook URL knows.

    `gates` are the circuit breakers as they were before the POST; if one is open, this job is its
    probe.
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
        return None  # claimed by another, not due yet, or submissions pause
    job, attempt = submission.job, submission.attempt
    bound = bound_contextvars(job_id=str(job_id), attempt=attempt.number)
    with bound, Heartbeat(job, db=db, lease=policy.lease, clock=clock):
        reply: SubmitReply
        if clock() >= submission.send_before:
            # This process was stopped for so long that others may have judged the attempt.
            words = "not sent: the lease was over"
            reply = Refused(RefusalClass.UNREACHABLE, None, "claim_lost", words)
        else:
            reply = queue.submit(
                job.endpoint,
                attempt.input,
                webhook_url=f"{policy.webhook_base_url}/webhooks/fal/{submission.token}",
                options=RequestOptions.model_validate(attempt.options),
            )
        if isinstance(reply, Accepted):
            # Should the database stay unavailable, the paid request is still known from the log.
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
        gates = admit.admit_submission(connection, job_id, now, policy.probe_after)
        if gates is None:
            return None
        job = table.claim_job(connection, job_id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        admit.begin_probe(connection, gates, now + policy.probe_after)
        options = RequestOptions.model_validate(job.options).fill_in(policy.options)
        token = make_token(connection, job_id, policy.token_secrets)
        token_hash = attempts.hash_token(token)
        new = NewAttempt(uuid7(), token_hash, now, options.to_json(), policy.account)
        attempt = attempts.insert_attempt(connection, job, new)
    return Submission(job, attempt, token, claim.until, gates)


def keep_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Job | None:
    """As `record_reply`, and again while the database is unavailable: only we know the reply."""
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
    """Write the attempt's outcome and move the job, wherever it is by now; None if it stays.

    A webhook may have overtaken the reply. Or the reply is late: then the sweep has taken the job
    for unknown, or it has even been given up and tried again.
    """
    now, attempt = clock(), submission.attempt
    with db.transaction() as connection:
        admit.note_reply(connection, reply, submission.gates, now + policy.probe_after)
        job = table.get_job(connection, submission.job.id, lock=True)
        match reply, job.fence == attempt.fence:
            case Accepted(), is_newest:
                is_own = _record_request(connection, attempt, reply, now)
                if job.fal_request_id == reply.fal_request_id:
                    return None  # its webhook or the listing was faster
                moved = None
                if is_newest:
                    delay = choose_poll_delay(
                        policy.poll_after, retention=find_retention(job.input)
                    )
                    known = {"fal_request_id": reply.fal_request_id}
                    move = Move(now, now + delay, columns=known)
                    moved = table.apply_event(connection, job, JobEvent.SUBMISSION_ACCEPTED, move)
                if moved is None and is_own:
                    # The job goes on with another attempt, or has ended: nobody wants this run.
                    attempts.dismiss_attempt(connection, attempt.id, now)
                elif moved is None:
                    # The attempt has another request, with which the job goes on: that one stays.
                    attempts.note_extra_charge(connection, attempt.id, now)
                elif moved.cancel_requested_at is not None:
                    attempts.order_cancel(connection, attempt.id, now)
                return moved
            case Ambiguous(http_status, message), is_newest:
                unknown = Settlement(Outcome.UNKNOWN, now, http_status, error_message=message)
                attempts.record_outcome(connection, attempt.id, unknown)
                # The listing is searched at once: it may know.
                blocked = {"blocked_reason": f"fal may or may not have it: {message}"}
                event, move = JobEvent.SUBMISSION_LOST, Move(now, now, message, blocked)
            case Refused(), is_newest:
                tried = attempts.list_attempts(connection, job.id)
                event, move, outcome = judge_refusal(reply, job, attempt, tried, policy, now)
                status, code, message = reply.http_status, reply.code, reply.message
                refused = Settlement(outcome, now, status, error_code=code, error_message=message)
                attempts.record_outcome(connection, attempt.id, refused)
        return table.apply_event(connection, job, event, move) if is_newest else None


def _record_request(
    connection: Connection, attempt: Attempt, reply: Accepted, now: datetime
) -> bool:
    """Write the accepted request; False if it is not, or not to be, the attempt's own."""
    accepted = Settlement(Outcome.ACCEPTED, now, httpx.codes.OK, **asdict(reply))
    if attempts.accept_attempt(connection, attempt, accepted):
        return True
    known = reply.fal_request_id
    is_own = attempts.adopt_request(connection, attempt, known)
    if not is_own:
        # A search has found requests of the very same input, and paired them otherwise.
        message = f"request {known} was accepted, but the listing's were paired otherwise"
        accepted = replace(accepted, fal_request_id=None, error_message=message)
        log.error("request_paired_otherwise", attempt_id=str(attempt.id), fal_request_id=known)
    attempts.record_outcome(connection, attempt.id, accepted)
    return is_own


def judge_refusal(
    reply: Refused,
    job: Job,
    attempt: Attempt,
    tried: Sequence[Attempt],
    policy: SubmitPolicy,
    now: datetime,
) -> tuple[JobEvent, Move, Outcome]:
    """What a refusal means for the job and its attempt; pure but for the jitter.

    Refusals that pass send the job back until a time, and are bounded by how long they go on;
    trouble with the account is not the job's, which waits as long as that takes.
    """
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None and job.state in NOT_YET_AT_FAL:
        return JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), Outcome.REJECTED
    if reply.why is RefusalClass.INPUT:
        columns = {**why, "error_details": list(reply.details) or None}
        move = Move(now, detail=reply.message, columns=columns)
        return JobEvent.SUBMISSION_REJECTED, move, Outcome.REJECTED
    words, delay = f"{reply.code}: {reply.message}", policy.probe_after
    if reply.why is RefusalClass.ACCOUNT:
        words = admit.describe_pause(admit.ACCOUNT_GATE, words)
    else:
        tries, since = measure_streak(tried, attempt, job.tried_since)
        if now - since >= policy.retry_for:
            message = f"refused for {policy.retry_for}, most recently {words}"
            exhausted = {"error_code": "submission_exhausted", "error_message": message}
            move = Move(now, detail=message, columns=exhausted)
            return JobEvent.SUBMISSION_EXHAUSTED, move, Outcome.POSTPONED
        # As fal requests, and full jitter on top.
        delay = reply.retry_after + BACKOFFS[reply.why].draw(tries)
    move = Move(now, now + delay, reply.message, {"blocked_reason": words})
    return JobEvent.SUBMISSION_POSTPONED, move, Outcome.POSTPONED


def measure_streak(
    tried: Sequence[Attempt], attempt: Attempt, since: datetime
) -> tuple[int, datetime]:
    """How many refusals in a row up to this attempt, and since when; pure.

    Trouble with the account breaks the row: that may last.
    """
    tries, began = 1, attempt.started_at
    for earlier in sorted(tried, key=lambda one: one.number, reverse=True):
        if earlier.number >= attempt.number:
            continue
        if earlier.outcome != Outcome.POSTPONED or earlier.http_status in ACCOUNT_CODES:
            break
        if earlier.started_at < since:
            break
        tries, began = tries + 1, earlier.started_at
    return tries, began
