"""3. complete: record the fact that fal has finished.

Webhook, poll and listing come through the same door, `record_completion`. Next: `archive.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from pydantic import SecretStr
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from structlog.contextvars import bind_contextvars
from uuid_utils.compat import uuid7

from worker.fal.completion import Completion
from worker.fal.errors import FalFailure
from worker.fal.pricing import estimate_units
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import InvalidSignatureError
from worker.ground.money import price_units
from worker.jobs import attempts, charges, deliveries, restores, table
from worker.jobs.charges import NewCharge, VoidReason
from worker.jobs.states import AWAITING_FAL, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import (
    Attempt,
    Ending,
    Job,
    Move,
    NewAttempt,
    NewDelivery,
    Outcome,
    Settlement,
    Verdict,
)
from worker.stages.endings import (
    CANCELLED_CODE,
    find_ending,
    find_failure,
    find_void_reason,
    has_video,
    may_be_void,
    needs_fetching,
)
from worker.stages.tokens import TokenName, read_token

REASON_CHARACTERS = 300
# fal had the result, and no longer has: neither webhook nor poll brought it in time.
RESULT_GONE = "result_gone"
RETRY_FOR = timedelta(days=1)
# For an operator: nothing is sent again by itself, for it may cost again.
RETRY_WORDS = {
    None: "",
    True: " (fal says that trying again can help)",
    False: " (fal says that trying again changes nothing)",
}
# Of another attempt than the one whose result the job has: an extra charge.
SECOND_RESULT = "second_result"
REBUILT = "a webhook came of an attempt that had no row"
# No job has it, so that such an attempt is never taken for the one in flight.
NO_FENCE = -1
# Which worker claimed a rebuilt attempt is lost with its row.
REBUILT_BY = "unknown/rebuilt"

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A delivery's disposition, its job as committed if there is one, and what to publish."""

    verdict: Verdict
    job: Job | None
    doorbell: Doorbell | None = None

    @property
    def doorbells(self) -> list[Doorbell]:
        """What to publish: the job's next step, and a submission if a slot is free now."""
        found = [] if self.doorbell is None else [self.doorbell]
        return found + [Doorbell(Step.SUBMIT)] * (self.verdict is Verdict.RECORDED)


# ------------------------------------------------------------------ deliveries


def receive_delivery(  # noqa: PLR0913 - as the receiver has them
    token: str,
    completion: Completion,
    body: bytes,
    *,
    db: Database,
    dispatch_timeout: timedelta,
    retry_for: timedelta = RETRY_FOR,
    token_secrets: Sequence[SecretStr] = (),
    clock: Clock = read_clock,
) -> Receipt:
    """Keep a verified webhook and record what it says, in one transaction.

    With `token_secrets` also one of an attempt, or of a job, whose row is lost.

    Raises InvalidSignatureError if no attempt has this token, or if the attempt is known to be of
    another request: a valid signature alone proves only that some fal account sent it.
    """
    now, fal_request_id = clock(), completion.fal_request_id
    with db.transaction() as connection:
        kept = _keep_delivery(
            connection, token, completion, body, Verdict.RECORDED, now, token_secrets
        )
        if kept is None:  # ours, but its job has no row
            return Receipt(Verdict.STRAY, None)
        attempt, job, times, verdict = kept
        owner = _adopt(connection, attempt, fal_request_id)
        if times > 1 and verdict is not Verdict.HINT:
            return Receipt(Verdict.DUPLICATE, job)
        if needs_fetching(completion):  # the result is too large for a webhook, or unreadable
            doorbell = expect_result(connection, job, owner, fal_request_id, now)
            receipt = Receipt(Verdict.KEPT, job, doorbell)
        else:
            moved = record_completion(
                connection, job, owner, completion, now, dispatch_timeout, retry_for
            )
            receipt = Receipt(Verdict.KEPT, job)
            if moved is not None:
                receipt = Receipt(Verdict.RECORDED, moved, moved.doorbell)
        if receipt.verdict is not verdict:
            deliveries.judge_delivery(connection, attempt.id, body, receipt.verdict)
        return receipt


def receive_hint(
    token: str,
    completion: Completion,
    body: bytes,
    *,
    db: Database,
    token_secrets: Sequence[SecretStr] = (),
    clock: Clock = read_clock,
) -> Receipt:
    """Keep a delivery that proves nothing but knows the token, and have fal polled at once.

    Nothing of what it says is believed: `poll.py` queries fal with our own key. Raises
    InvalidSignatureError as `receive_delivery` does.
    """
    now = clock()
    with db.transaction() as connection:
        kept = _keep_delivery(connection, token, completion, body, Verdict.HINT, now, token_secrets)
        if kept is None:
            return Receipt(Verdict.STRAY, None)
        job = kept[1]
        if job.state in AWAITING_FAL:
            table.advance_due(connection, job, now)
        doorbell = None if has_video(job) else Doorbell(Step.RECONCILE, job.id)
        return Receipt(Verdict.HINT, job, doorbell)


def _keep_delivery(  # noqa: PLR0913, PLR0917 - as the receiver has them
    connection: Connection,
    token: str,
    completion: Completion,
    body: bytes,
    verdict: Verdict,
    now: datetime,
    token_secrets: Sequence[SecretStr],
) -> tuple[Attempt, Job, int, Verdict] | None:
    """Its attempt, its job, how often it came, and what became of it the first time.

    The job's row is locked first, here and everywhere, so that two writers cannot deadlock. A
    signed token whose rows are lost gives its attempt anew; None if it has no job: that may be paid
    for, so what fal says of it is kept.
    """
    fal_request_id, token_hash = completion.fal_request_id, attempts.hash_token(token)
    gateway_id, status = completion.gateway_request_id, completion.status
    new = NewDelivery(now, fal_request_id, gateway_id, status, verdict, body)
    found = deliveries.find_addressee(connection, token_hash)
    if found is None:
        name = read_token(token, token_secrets)
        if name is None:
            raise InvalidSignatureError("no attempt has this token")
        found = _rebuild_attempt(connection, name, token_hash, completion, new)
        if found is None:
            stray = replace(new, verdict=Verdict.KEPT) if verdict is Verdict.RECORDED else new
            deliveries.keep_stray(connection, name.job_id, name.number, token_hash, stray)
            bind_contextvars(job_id=str(name.job_id), attempt=name.number)
            return None
    attempt, job = found
    bind_contextvars(job_id=str(attempt.job_id), attempt=attempt.number)
    if attempt.fal_request_id not in {None, fal_request_id}:
        raise InvalidSignatureError("the attempt is of another fal request")
    return (attempt, job, *deliveries.count_delivery(connection, attempt, new))


def note_unrecordable(
    token: str,
    completion: Completion,
    error: Exception,
    *,
    db: Database,
    clock: Clock = read_clock,
) -> Doorbell | None:
    """Leave the reason why a proven delivery cannot be recorded, in a transaction of its own.

    The request is adopted all the same: it is known to be paid, and must never count as lost. A
    poll may read a result that the database takes.
    """
    now = clock()
    with db.transaction() as connection:
        found = deliveries.find_addressee(connection, attempts.hash_token(token))
        if found is None:
            return None  # its row is lost: there is none to write the reason into
        attempt, job = found
        owner = _adopt(connection, attempt, completion.fal_request_id)
        doorbell = expect_result(connection, job, owner, completion.fal_request_id, now)
        table.note_unrecordable(connection, job.id, describe_refusal(error))
    return doorbell


def describe_refusal(error: Exception) -> str:
    """A short reason that quotes nothing of the refused value; pure."""
    name = type(error).__name__
    if not isinstance(error, SQLAlchemyError):
        return name
    return f"{name}: {describe_database_error(error)}"[:REASON_CHARACTERS]


def expect_poll(
    token: str, *, db: Database, token_secrets: Sequence[SecretStr] = ()
) -> Doorbell | None:
    """Have fal polled at once for the attempt of this token: its delivery cannot be read here.

    None if no attempt has the token, or if its job does not wait for fal. Nothing is written for
    what nobody has verified: should the message be lost, the job is polled in its own time.
    """
    with db.reading() as connection:
        attempt = attempts.find_attempt_by_token(connection, attempts.hash_token(token))
        named = attempt or read_token(token, token_secrets)
        job = None if named is None else table.find_job(connection, named.job_id)
    if job is None or job.state not in AWAITING_FAL:
        return None
    return Doorbell(Step.RECONCILE, job.id)


def expect_result(
    connection: Connection, job: Job, attempt: Attempt, fal_request_id: str, now: datetime
) -> Doorbell | None:
    """Have the attempt's request polled now: it is finished, but its result was not delivered.

    One that is not wanted (any more) is dismissed as any other, though that can hardly spare it.
    """
    if job.fence != attempt.fence or has_video(job):
        if job.fal_request_id != fal_request_id:
            attempts.dismiss_attempt(connection, attempt.id, now)
        return None
    if attempts.is_completed(connection, attempt.id):
        # A poll was faster, and has read the end of it.
        return None
    if job.state is JobState.SUBMITTED:
        table.advance_due(connection, job, now)
        return job.doorbell
    detail = "fal has a result that it could not deliver"
    move = Move(now, now, detail, {"fal_request_id": fal_request_id})
    moved = table.apply_event(connection, job, JobEvent.REQUEST_ADOPTED, move)
    return None if moved is None else moved.doorbell


def _adopt(connection: Connection, attempt: Attempt, fal_request_id: str) -> Attempt:
    """The attempt that has the request from now on: this one, or one of the job's that had it.

    A search pairs by input, and two attempts of one job have the same.
    """
    is_known = attempt.fal_request_id == fal_request_id  # it is never taken from it again
    if is_known or attempts.adopt_request(connection, attempt, fal_request_id):
        return attempt
    owner = attempts.find_attempt_by_request(connection, fal_request_id)
    if owner is None or owner.job_id != attempt.job_id:
        raise InvalidSignatureError("the attempt is of another fal request")
    return owner


# ------------------------------------------------------------------ completions


def record_completion(  # noqa: PLR0913, PLR0917 - each outcome by its name, two policies
    connection: Connection,
    job: Job,
    attempt: Attempt,
    completion: Completion,
    now: datetime,
    dispatch_timeout: timedelta,
    retry_for: timedelta = RETRY_FOR,
) -> Job | None:
    """Move the job by what fal says of one of its attempts; the job if it has moved.

    The first result wins, of any attempt and wherever the job is by now: what is paid is taken. A
    second one is counted as an extra charge. A failure counts only if it is of the newest attempt.
    One that fal had not even started goes back to the queue, for `retry_for` since the first try.
    """
    failure = find_failure(completion)
    is_uncharged = attempts.complete_attempt(
        connection, attempt.id, find_ending(failure), now, retryable=completion.retryable
    )
    void_reason = _note_cost(connection, attempt, completion, failure, now)
    ignored = find_ignored(job, attempt, completion, failure)
    if ignored is not None:
        if ignored == SECOND_RESULT:
            attempts.note_extra_charge(connection, attempt.id, now)
        log.info("completion_ignored", why=ignored)
        return None
    columns = {
        "fal_request_id": completion.fal_request_id,
        "submitted_at": job.submitted_at or attempt.started_at,
        "result": completion.payload if isinstance(completion.payload, dict) else None,
    }
    if failure is None:
        columns["archive_warnings"] = [one.to_json() for one in completion.oddities] or None
        detail = "it came in spite of the cancellation" if job.cancel_requested_at else None
        event, move = JobEvent.RESULT_ARRIVED, Move(now, now + dispatch_timeout, detail, columns)
    elif job.cancel_requested_at is not None and (
        failure.code == CANCELLED_CODE or void_reason is VoidReason.NEVER_STARTED
    ):
        event, move = JobEvent.JOB_CANCELLED, Move(now, detail=failure.message, columns=columns)
    elif void_reason is VoidReason.NEVER_STARTED and may_try_on(connection, job, now, retry_for):
        event, move = JobEvent.START_TIMED_OUT, Move(now, now, failure.message)
    else:
        columns |= {
            "error_code": failure.code,
            "error_message": failure.message,
            "error_details": list(failure.details) or None,
        }
        detail = failure.message + RETRY_WORDS[completion.retryable]
        event, move = JobEvent.FAILURE_ARRIVED, Move(now, detail=detail, columns=columns)
    moved = table.apply_event(connection, job, event, move)
    # Any other attempt would have bumped the fence with its claim.
    is_only_one = attempt.number == 1 and attempt.fence == job.fence
    if moved is not None and failure is None and not (is_only_one and is_uncharged):
        attempts.dismiss_competitors(connection, attempt, now)
    return moved


def may_try_on(connection: Connection, job: Job, now: datetime, retry_for: timedelta) -> bool:
    """Whether its first try is recent enough; what it had waited for its turn does not count."""
    first = attempts.find_first_start(connection, job.id, job.tried_since)
    return first is None or now - first < retry_for


def _note_cost(
    connection: Connection,
    attempt: Attempt,
    completion: Completion,
    failure: FalFailure | None,
    now: datetime,
) -> VoidReason | None:
    """Note on the attempt's charge what its end says of it; why it costs nothing, if it does."""
    void_reason = find_void_reason(failure, attempt)
    if void_reason is not None:
        charges.void(connection, attempt.id, void_reason, now)
    elif failure is None and may_be_void(attempt):
        charges.unvoid(connection, attempt.id, now)
    if failure is None and completion.billable_units is not None:
        charges.note_result_units(connection, attempt.id, completion.billable_units, now)
    return void_reason


def find_ignored(
    job: Job, attempt: Attempt, completion: Completion, failure: FalFailure | None
) -> str | None:
    """Why the completion does not move the job, if it does not; pure."""
    is_same = failure is not None or job.fal_request_id == completion.fal_request_id
    if has_video(job):
        return "already_completed" if is_same else SECOND_RESULT
    if failure is not None:
        return None if attempt.fence == job.fence else "superseded"
    taken_at = attempt.completed_at if attempt.ending == Ending.OK else None
    is_declined = taken_at and job.redriven_at and taken_at <= job.redriven_at
    # The job had this result before an operator had it bought anew.
    return "declined" if is_declined else None


# ------------------------------------------------------------------ attempts without a row


def _rebuild_attempt(
    connection: Connection,
    name: TokenName,
    token_hash: str,
    completion: Completion,
    new: NewDelivery,
) -> tuple[Attempt, Job] | None:
    """The attempt of a token that no row has: a restore or a failover lost it (ADR 18).

    The token is signed by us, so the attempt was begun for this job; only its row has to be made
    again. None if there is no job to make it for, or if the request is another job's.
    """
    job = table.find_job(connection, name.job_id, lock=True)
    if job is None:
        return None
    # Another delivery may have made the row while this one waited for the job's.
    found = deliveries.find_addressee(connection, token_hash)
    if found is not None:
        return found
    owner, now = attempts.find_attempt_by_request(connection, new.fal_request_id), new.received_at
    if owner is not None:
        return (owner, job) if owner.job_id == job.id else None
    is_verified = new.verdict is Verdict.RECORDED
    stand_in = restores.find_stand_in(connection, job.id)
    # When it was sent is lost: not before the job could be.
    lost = NewAttempt(uuid7(), token_hash, job.tried_since, job.options)
    # Unless verified nothing is proven but that we have begun it: fal knows what became of it.
    outcome = Settlement(Outcome.UNKNOWN, now, error_message=REBUILT)
    if is_verified:
        outcome = Settlement(Outcome.ACCEPTED, now, fal_request_id=new.fal_request_id)
    if stand_in is not None:
        attempts.give_token(connection, stand_in.id, token_hash)
    elif job.state is JobState.QUEUED and not is_verified:
        doubt_job(connection, job, lost, now, REBUILT, REBUILT_BY)
    else:
        of = replace(job, fence=NO_FENCE)
        if is_verified:
            of = _go_on_with(connection, job, completion, now)
        _insert_rebuilt(connection, replace(of, claimed_by=REBUILT_BY), lost, now)
        attempts.record_outcome(connection, lost.id, outcome)
    if stand_in is not None and is_verified:
        attempts.record_outcome(connection, stand_in.id, outcome)
    log.warning("attempt_rebuilt", job_id=str(job.id), number=name.number, epoch=name.epoch)
    return deliveries.find_addressee(connection, token_hash)


def _go_on_with(connection: Connection, job: Job, completion: Completion, now: datetime) -> Job:
    """The request is fal's: the job goes on with it, unless a later attempt is under way.

    A job that has been given up comes back for a result alone, and that may have to be fetched.
    """
    is_given_up = job.state in (JobState.FAILED, JobState.CANCELLED)
    revives = is_given_up and not has_video(job) and needs_fetching(completion)
    if job.state is not JobState.QUEUED and not revives:
        return replace(job, fence=NO_FENCE)
    columns = {"fal_request_id": completion.fal_request_id, "fence": job.fence + 1}
    move = Move(now, now, REBUILT, columns)
    return table.apply_permitted(connection, job, JobEvent.REQUEST_ADOPTED, move)


def doubt_job(
    connection: Connection, job: Job, new: NewAttempt, now: datetime, detail: str, by: str
) -> None:
    """A queued job that fal may have: it is unknown, with an attempt that stands for the lost one.

    From then on its fence is that attempt's: no worker that held the job before can write.
    """
    columns = {"blocked_reason": f"fal may or may not have it: {detail}", "fence": job.fence + 1}
    move = Move(now, now, detail, columns)
    moved = table.apply_permitted(connection, job, JobEvent.SUBMISSION_DOUBTED, move)
    _insert_rebuilt(connection, replace(moved, claimed_by=by), new, now)
    unknown = Settlement(Outcome.UNKNOWN, now, error_message=detail)
    attempts.record_outcome(connection, new.id, unknown)


def _insert_rebuilt(connection: Connection, job: Job, new: NewAttempt, now: datetime) -> None:
    """The attempt, and its charge: it may have been paid for."""
    attempt, estimate = attempts.insert_attempt(connection, job, new), estimate_units(job.input)
    price = charges.find_price(connection, job.endpoint)
    unit_price = None if price is None else price.unit_price_nano_usd
    cost = None if unit_price is None else price_units(estimate.units, unit_price)
    charges.note_unreserved(
        connection,
        NewCharge(
            attempt.id, job.id, job.tenant, now, estimate.units, estimate.assumed, unit_price, cost
        ),
    )
