"""2. submit: admit the next job (`admit.py`), write the attempt, POST once, write the outcome.

A process that dies between the two transactions leaves an attempt without outcome: nobody knows
whether it was paid, so nobody sends it again, and `resolve.py` finds out. Next: fal calls the
webhook, `complete.py`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta

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
from worker.ground.db import TRANSIENT_DB_ERRORS, Database, describe_database_error
from worker.jobs import attempts, charges, table
from worker.jobs.admission import has_admissible, note_served
from worker.jobs.states import BlockedBy, JobEvent, JobState
from worker.jobs.values import Attempt, Claim, Job, Move, NewAttempt, Outcome, Settlement
from worker.stages.admit import (
    AdmissionPolicy,
    Reason,
    admit_next,
    choose_time,
    note_reply,
    read_room,
)
from worker.stages.lease import Heartbeat
from worker.stages.tokens import make_token

# How long a reply is held while it cannot be written: within a worker's time to drain.
RECORD_TIME = timedelta(seconds=25)
RECORD_PAUSE = timedelta(seconds=1)
# For jobs whose POST did not reach fal.
UNREACHABLE = Backoff(timedelta(seconds=2), timedelta(minutes=2))
DEFAULT_START = timedelta(hours=1)
OF_THE_ACCOUNT = {*ACCOUNT_CODES, httpx.codes.TOO_MANY_REQUESTS}
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
    admission: AdmissionPolicy = field(kw_only=True)
    longest_run: timedelta = field(default=timedelta(minutes=30), kw_only=True)
    """Between fal's start timeout and the time from which an attempt is surely over."""
    account: str | None = field(default=None, kw_only=True)
    """A fingerprint of the key, stored with each attempt."""
    token_secrets: Sequence[SecretStr] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Submission:
    """An admitted job with its committed attempt, and the token that only its webhook URL knows.

    `has_next` says that another job may be admitted right away.
    """

    job: Job
    attempt: Attempt
    token: str
    send_before: datetime
    has_next: bool


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission: its job if it has moved, and whether the next may be tried."""

    submission: Submission
    job: Job | None
    may_go_on: bool


def submit_next(
    *,
    db: Database,
    queue: QueueClient,
    policy: SubmitPolicy,
    on_admitted: Callable[[Submission], object] = lambda _: None,
    clock: Clock = read_clock,
) -> Submitted | None:
    """Buy one run of the model for the next job. None if there is no room, or no job.

    `on_admitted` is called once the admission is committed, before the POST, which may take long.
    """
    submission = begin_submission(db=db, policy=policy, clock=clock)
    if submission is None:
        return None
    job, attempt = submission.job, submission.attempt
    on_admitted(submission)
    bound = bound_contextvars(job_id=str(job.id), attempt=attempt.number)
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
            # Should the database remain unavailable, the paid request is still known from the log.
            log.info("submission_accepted", fal_request_id=reply.fal_request_id)
        return keep_reply(submission, reply, db=db, policy=policy, clock=clock)


def begin_submission(*, db: Database, policy: SubmitPolicy, clock: Clock) -> Submission | None:
    """Commit the claim, the intent to pay and the reservation, before a byte leaves for fal."""
    with db.reading() as connection:  # without a lock: most messages find no room, or no job
        now = choose_time(connection, clock)
        room = read_room(connection, policy.admission, now)
        if room.free <= 0 and room.reason is not Reason.BUDGET:
            return None
        if not has_admissible(connection):
            return None
    began = clock()
    with db.transaction() as connection:
        pick, cap, now = admit_next(connection, policy.admission, clock)
        if pick is None:
            return None
        claim = Claim(policy.worker, now, now + policy.lease)
        job = table.claim_job(connection, pick.job.id, JobEvent.SUBMISSION_CLAIMED, claim)
        if job is None:
            return None
        options = RequestOptions.model_validate(job.options).fill_in(policy.options)
        token = make_token(connection, job.id, policy.token_secrets)
        new = NewAttempt(
            id=uuid7(),
            token_hash=attempts.hash_token(token),
            started_at=now,
            options=options.to_json(),
            account=policy.account,
            slot_until=now + (options.start_timeout or DEFAULT_START) + policy.longest_run,
            admitted_cap=cap,
        )
        note_served(connection, job.tenant, pick.served_from, pick.served_to)
        attempt = attempts.insert_attempt(connection, job, new)
        charges.reserve(
            connection,
            charges.NewCharge(
                attempt_id=attempt.id,
                job_id=job.id,
                tenant=job.tenant,
                admitted_at=now,
                units=pick.estimate.units,
                assumed=pick.estimate.assumed,
                unit_price_nano_usd=pick.unit_price_nano_usd,
                estimated_nano_usd=pick.estimated_nano_usd,
                account_budget_nano_usd=pick.account_budget_nano_usd,
                tenant_budget_nano_usd=pick.tenant_budget_nano_usd,
            ),
        )
    return Submission(job, attempt, token, began + policy.lease, pick.has_next)


def keep_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Submitted:
    """As `record_reply`, and again while the database is unavailable: only we know the reply."""
    deadline = time.monotonic() + RECORD_TIME.total_seconds()
    while True:
        try:
            return record_reply(submission, reply, db=db, policy=policy, clock=clock)
        except (*TRANSIENT_DB_ERRORS, IntegrityError) as error:
            # Of two that adopt one request at once, the loser sees at the next try that it is.
            log.warning("reply_not_recorded", reason=describe_database_error(error))
            if time.monotonic() > deadline:
                raise
            time.sleep(RECORD_PAUSE.total_seconds())


def record_reply(
    submission: Submission, reply: SubmitReply, *, db: Database, policy: SubmitPolicy, clock: Clock
) -> Submitted:
    """Write the attempt's outcome and move the job, wherever it is by now.

    A webhook may have overtaken the reply. Or the reply is late: then the sweep has taken the job
    for unknown, or it has even been given up and tried again.
    """
    attempt = submission.attempt
    with db.transaction() as connection:
        now = choose_time(connection, clock)
        lifted = note_reply(connection, reply, attempt, now, policy.probe_after)
        job = table.get_job(connection, submission.job.id, lock=True)
        match reply, job.fence == attempt.fence:
            case Accepted(), is_newest:
                moved = _record_accepted(connection, job, attempt, reply, policy, now)
                return Submitted(submission, moved, may_go_on=lifted)
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
                charges.void(connection, attempt.id, charges.VoidReason.REFUSED, now)
        moved = table.apply_event(connection, job, event, move) if is_newest else None
        # A slot is free again, unless fal may have the request; pauses decide what follows.
        return Submitted(submission, moved, may_go_on=not isinstance(reply, Ambiguous))


def _record_accepted(
    connection: Connection,
    job: Job,
    attempt: Attempt,
    reply: Accepted,
    policy: SubmitPolicy,
    now: datetime,
) -> Job | None:
    """The job if it moves on with this request; None if it has one already, or wants none."""
    is_own = _record_request(connection, attempt, reply, now)
    if job.fal_request_id == reply.fal_request_id:
        return None  # its webhook or the listing was faster
    moved = None
    if job.fence == attempt.fence:
        delay = choose_poll_delay(policy.poll_after, retention=find_retention(job.input))
        move = Move(now, now + delay, columns={"fal_request_id": reply.fal_request_id})
        moved = table.apply_event(connection, job, JobEvent.SUBMISSION_ACCEPTED, move)
    if moved is None and is_own:
        # The job goes on with another attempt, or has ended: nobody wants this run.
        attempts.dismiss_attempt(connection, attempt.id, now)
    elif moved is None:
        # The attempt has another request, with which the job goes on: that one goes on.
        attempts.note_extra_charge(connection, attempt.id, now)
    elif moved.cancel_requested_at is not None:
        attempts.order_cancel(connection, attempt.id, now)
    return moved


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

    Trouble with the account is not the job's, which waits as long as that takes. Where fal could
    not be reached the job is sent back until a time, and that is bounded by how long it goes on.
    """
    why = {"error_code": reply.code, "error_message": reply.message}
    if job.cancel_requested_at is not None and job.state in NOT_YET_AT_FAL:
        return JobEvent.JOB_CANCELLED, Move(now, detail=reply.message), Outcome.REJECTED
    if reply.why is RefusalClass.INPUT:
        columns = {**why, "error_details": list(reply.details) or None}
        move = Move(now, detail=reply.message, columns=columns)
        return JobEvent.SUBMISSION_REJECTED, move, Outcome.REJECTED
    if reply.why in (RefusalClass.ACCOUNT, RefusalClass.BUSY):
        # The account's: a pause holds everybody up, and this job is the first again after it.
        return JobEvent.SUBMISSION_POSTPONED, Move(now, now, reply.message), Outcome.POSTPONED
    words = f"{reply.code}: {reply.message}"
    tries, since = measure_streak(tried, attempt, job.tried_since)
    if now - since >= policy.retry_for:
        message = f"refused for {policy.retry_for}, most recently {words}"
        exhausted = {"error_code": "submission_exhausted", "error_message": message}
        move = Move(now, detail=message, columns=exhausted)
        return JobEvent.SUBMISSION_EXHAUSTED, move, Outcome.POSTPONED
    # As fal requests, and full jitter on top.
    delay = reply.retry_after + UNREACHABLE.draw(tries)
    blocked = {"blocked_by": BlockedBy.RETRY.value, "blocked_reason": words}
    move = Move(now, now + delay, reply.message, blocked)
    return JobEvent.SUBMISSION_POSTPONED, move, Outcome.POSTPONED


def measure_streak(
    tried: Sequence[Attempt], attempt: Attempt, since: datetime
) -> tuple[int, datetime]:
    """How many refusals in a row up to this attempt, and since when; pure.

    Trouble with the account breaks the row: it may last, and is no trouble of the job.
    """
    tries, began = 1, attempt.started_at
    for earlier in sorted(tried, key=lambda one: one.number, reverse=True):
        if earlier.number >= attempt.number:
            continue
        if earlier.outcome != Outcome.POSTPONED or earlier.http_status in OF_THE_ACCOUNT:
            break
        if earlier.started_at < since:
            break
        tries, began = tries + 1, earlier.started_at
    return tries, began
