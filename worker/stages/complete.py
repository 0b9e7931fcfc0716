"""3. complete: record the fact that fal has finished, whoever tells of it.

Webhook, poll and listing come through the same door. Next: `archive.py`.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import JsonValue, SecretStr
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from structlog.contextvars import bind_contextvars
from uuid_utils.compat import uuid7

from worker.fal.completion import Completion
from worker.fal.errors import UNNAMED_CODE, FalFailure, parse_failure
from worker.fal.model import parse_output
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import InvalidResultError, InvalidSignatureError
from worker.jobs import attempts, deliveries, restores, table
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
from worker.stages.tokens import TokenName, read_token

# ------------------------------------------------------------------ ending


# fal's own type for a request that was cancelled, by us or by anybody with the key.
CANCELLED_CODE = "client_cancelled"
# For an operator: nothing is sent again by itself, for it may cost again.
RETRY_WORDS = {
    None: "",
    True: " (fal says that trying again can help)",
    False: " (fal says that trying again changes nothing)",
}


def has_video(job: Job) -> bool:
    """Whether the job has a result that it can archive, or has archived; pure."""
    try:
        parse_output(job.result)
    except InvalidResultError:
        return False
    return True


def needs_fetching(completion: Completion) -> bool:
    """Whether fal could not put the result into the message: then it has to be asked for."""
    is_empty = completion.payload is None
    return is_empty and (completion.status == "OK" or completion.payload_error is not None)


def find_failure(completion: Completion) -> FalFailure | None:
    """Why this completion is no video; None if it is one, whatever else fal says. Pure."""
    try:
        parse_output(completion.payload)
    except InvalidResultError as error:
        if completion.status == "OK":
            return FalFailure(error.code, str(error))
    else:
        return None
    message = completion.error or "fal reports an error without a message"
    return parse_failure(completion.payload, message) or FalFailure(UNNAMED_CODE, message)


def find_ending(failure: FalFailure | None) -> Ending:
    """How the attempt's request ended, as far as its cost is concerned; pure."""
    if failure is None:
        return Ending.OK
    return Ending.CANCELLED if failure.code == CANCELLED_CODE else Ending.FAILED


# ------------------------------------------------------------------ rebuild


REBUILT = "a webhook came of an attempt that had no row"
# No job has it, so that such an attempt is never taken for the one in flight.
NO_FENCE = -1
# Who has claimed a rebuilt attempt is lost with its row.
REBUILT_BY = "unknown/rebuilt"

log = structlog.stdlib.get_logger(__name__)


def find_lost(
    connection: Connection,
    token: str,
    completion: Completion,
    new: NewDelivery,
    token_secrets: Sequence[SecretStr],
) -> tuple[Attempt, Job] | TokenName:
    """The attempt, found by its request or made again, of a token that no row has.

    The token's name alone if there is no job to make it for, or if the request is another job's.
    Raises InvalidSignatureError for a token that we have not signed.
    """
    name = read_token(token, token_secrets)
    if name is None:
        raise InvalidSignatureError("no attempt has this token")
    job = table.find_job(connection, name.job_id, lock=True)
    if job is None:
        return name
    token_hash = attempts.hash_token(token)
    # Another delivery may have made the row while this one waited for the job's.
    found = deliveries.find_addressee(connection, token_hash)
    if found is not None:
        return found
    owner = attempts.find_attempt_by_request(connection, completion.fal_request_id)
    if owner is not None:
        return (owner, job) if owner.job_id == job.id else name
    is_proven = new.verdict is Verdict.RECORDED
    stand_in = restores.find_stand_in(connection, job.id)
    if stand_in is not None:
        attempts.give_token(connection, stand_in.id, token_hash)
        if is_proven:
            accepted = _accept(completion.fal_request_id, new.received_at)
            attempts.record_outcome(connection, stand_in.id, accepted)
    elif is_proven:
        _rebuild(connection, job, token_hash, completion, new.received_at)
    else:
        _doubt(connection, job, token_hash, new.received_at)
    log.warning("attempt_rebuilt", job_id=str(job.id), number=name.number, epoch=name.epoch)
    return deliveries.find_addressee(connection, token_hash) or name


def doubt_job(
    connection: Connection, job: Job, new: NewAttempt, now: datetime, detail: str, by: str
) -> None:
    """A queued job that fal may have: it is unknown, with an attempt that stands for the lost one.

    From then on its fence is that attempt's: no worker that held the job before can write.
    """
    columns = {"blocked_reason": f"fal may or may not have it: {detail}", "fence": job.fence + 1}
    move = Move(now, now, detail, columns)
    moved = table.apply_permitted(connection, job, JobEvent.SUBMISSION_DOUBTED, move)
    attempts.insert_attempt(connection, replace(moved, claimed_by=by), new)
    settlement = Settlement(Outcome.UNKNOWN, now, error_message=detail)
    attempts.record_outcome(connection, new.id, settlement)


def _rebuild(
    connection: Connection, job: Job, token_hash: str, completion: Completion, now: datetime
) -> None:
    """The request is fal's: the job goes on with it, unless a later attempt is under way.

    A job that has been given up comes back for a result alone, and that may have to be fetched.
    """
    fal_request_id = completion.fal_request_id
    is_given_up = job.state in (JobState.FAILED, JobState.CANCELLED)
    revives = is_given_up and not has_video(job) and needs_fetching(completion)
    if job.state is JobState.QUEUED or revives:
        columns = {"fal_request_id": fal_request_id, "fence": job.fence + 1}
        move = Move(now, now, REBUILT, columns)
        job = table.apply_permitted(connection, job, JobEvent.REQUEST_ADOPTED, move)
    else:
        job = replace(job, fence=NO_FENCE)
    new = _name_attempt(job, token_hash)
    attempts.insert_attempt(connection, replace(job, claimed_by=REBUILT_BY), new)
    attempts.record_outcome(connection, new.id, _accept(fal_request_id, now))


def _doubt(connection: Connection, job: Job, token_hash: str, now: datetime) -> None:
    """Nothing is proven but that we have begun the attempt: fal is asked what became of it."""
    new = _name_attempt(job, token_hash)
    if job.state is JobState.QUEUED:
        doubt_job(connection, job, new, now, REBUILT, REBUILT_BY)
        return
    stated = replace(job, fence=NO_FENCE, claimed_by=REBUILT_BY)
    attempts.insert_attempt(connection, stated, new)
    settlement = Settlement(Outcome.UNKNOWN, now, error_message=REBUILT)
    attempts.record_outcome(connection, new.id, settlement)


def _accept(fal_request_id: str, now: datetime) -> Settlement:
    return Settlement(Outcome.ACCEPTED, now, fal_request_id=fal_request_id)


def _name_attempt(job: Job, token_hash: str) -> NewAttempt:
    """When it was sent is lost: not before the job could be."""
    return NewAttempt(uuid7(), token_hash, job.tried_since, job.options)


REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Receipt:
    """A delivery's verdict, its job as committed if there is one, and whom to ring for."""

    verdict: Verdict
    job: Job | None
    doorbell: Doorbell | None = None


def receive_delivery(  # noqa: PLR0913 - as the receiver has them
    token: str,
    completion: Completion,
    body: bytes,
    *,
    db: Database,
    grace: timedelta,
    token_secrets: Sequence[SecretStr] = (),
    clock: Clock = read_clock,
) -> Receipt:
    """Keep a verified webhook and record what it tells, in one transaction.

    With `token_secrets` also one of an attempt, or of a job, whose row is lost.

    Raises InvalidSignatureError if no attempt has this token, or if the attempt is known to be of
    another request: a valid signature alone proves only that some fal account sent it.
    """
    now = clock()
    new = _describe(completion, body, Verdict.RECORDED, now)
    with db.transaction() as connection:
        found = _find_attempt(connection, token, completion, new, token_secrets)
        if isinstance(found, TokenName):
            return _keep_stray(connection, found, token, new)
        attempt, job = found
        if _is_repeated(connection, attempt, new):
            return Receipt(Verdict.DUPLICATE, job)
        owner = _adopt(connection, attempt, completion.fal_request_id)
        if needs_fetching(completion):
            deliveries.judge_delivery(connection, attempt.id, body, Verdict.KEPT)
            doorbell = expect_result(connection, job, owner, completion.fal_request_id, now)
            return Receipt(Verdict.KEPT, job, doorbell)
        moved = record_completion(connection, job, owner, completion, now, grace)
        if moved is None:
            deliveries.judge_delivery(connection, attempt.id, body, Verdict.KEPT)
            return Receipt(Verdict.KEPT, job)
        return Receipt(Verdict.RECORDED, moved, moved.doorbell)


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


def receive_hint(
    token: str,
    completion: Completion,
    body: bytes,
    *,
    db: Database,
    token_secrets: Sequence[SecretStr] = (),
    clock: Clock = read_clock,
) -> Receipt:
    """Keep a delivery that proves nothing but knows the token, and have fal asked at once.

    Nothing of what it says is believed: `reconcile.py` asks fal with our own key. Raises
    InvalidSignatureError as `receive_delivery` does.
    """
    now = clock()
    new = _describe(completion, body, Verdict.HINT, now)
    with db.transaction() as connection:
        found = _find_attempt(connection, token, completion, new, token_secrets)
        if isinstance(found, TokenName):
            return _keep_stray(connection, found, token, new)
        attempt, job = found
        deliveries.count_delivery(connection, attempt, new)
        if job.state in AWAITING_FAL:
            table.advance_due(connection, job, now)
        doorbell = None if has_video(job) else Doorbell(Step.RECONCILE, job.id)
        return Receipt(Verdict.HINT, job, doorbell)


def expect_poll(
    token: str, *, db: Database, token_secrets: Sequence[SecretStr] = ()
) -> Doorbell | None:
    """Have fal asked at once about the attempt of this token: its delivery cannot be read here.

    None if no attempt has the token, or if its job does not wait for fal. Nothing is written for
    what nobody has verified: should the doorbell be lost, the job is polled in its own time.
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


def record_completion(
    connection: Connection,
    job: Job,
    attempt: Attempt,
    completion: Completion,
    now: datetime,
    grace: timedelta,
) -> Job | None:
    """Move the job by what fal says of one of its attempts; None if it has moved on.

    The first result wins, whichever attempt it is of and wherever the job is by now: what is paid
    is taken. A second one is counted as an extra charge. A failure counts only if it is of the
    newest attempt.
    """
    failure = find_failure(completion)
    is_plain = attempts.complete_attempt(
        connection, attempt.id, find_ending(failure), now, retryable=completion.retryable
    )
    if has_video(job):
        if failure is None and job.fal_request_id != completion.fal_request_id:
            attempts.note_extra_charge(connection, attempt.id, now)
        return None
    columns = {
        "fal_request_id": completion.fal_request_id,
        "submitted_at": job.submitted_at or attempt.started_at,
        "result": _as_object(completion.payload),
    }
    if failure is None:
        if is_turned_down(job, attempt):
            return None
        detail = "it came in spite of the cancellation" if job.cancel_requested_at else None
        columns["archive_warnings"] = [one.to_json() for one in completion.oddities] or None
        move = Move(now, now + grace, detail, columns)
        moved = table.apply_event(connection, job, JobEvent.RESULT_ARRIVED, move)
        if moved is not None and not (is_plain and is_only_attempt(job, attempt)):
            attempts.dismiss_rivals(connection, attempt, now)
        return moved
    if attempt.fence != job.fence:
        # A later attempt is under way: it is not up to the earlier one to fail the job.
        return None
    detail = failure.message + RETRY_WORDS[completion.retryable]
    if failure.code == CANCELLED_CODE and job.cancel_requested_at is not None:
        move = Move(now, detail=failure.message, columns=columns)
        return table.apply_event(connection, job, JobEvent.JOB_CANCELLED, move)
    columns |= {
        "error_code": failure.code,
        "error_message": failure.message,
        "error_details": list(failure.details) or None,
    }
    move = Move(now, detail=detail, columns=columns)
    return table.apply_event(connection, job, JobEvent.FAILURE_ARRIVED, move)


def is_turned_down(job: Job, attempt: Attempt) -> bool:
    """Whether the job had this attempt's result before an operator had it bought anew; pure."""
    if attempt.ending != Ending.OK or attempt.completed_at is None or job.redriven_at is None:
        return False
    return attempt.completed_at <= job.redriven_at


def is_only_attempt(job: Job, attempt: Attempt) -> bool:
    """Whether the job has no other, which would have bumped the fence with its claim; pure."""
    return attempt.number == 1 and attempt.fence == job.fence


def _find_attempt(
    connection: Connection,
    token: str,
    completion: Completion,
    new: NewDelivery,
    token_secrets: Sequence[SecretStr],
) -> tuple[Attempt, Job] | TokenName:
    """The job's row is locked first, here and everywhere, so that two writers cannot deadlock.

    A signed token whose rows are lost gives its attempt anew, or its name if there is no job.
    """
    token_hash = attempts.hash_token(token)
    found: tuple[Attempt, Job] | TokenName | None
    found = deliveries.find_addressee(connection, token_hash)
    if found is None or not hmac.compare_digest(found[0].token_hash, token_hash):
        found = find_lost(connection, token, completion, new, token_secrets)
    if isinstance(found, TokenName):
        return found
    attempt, job = found
    bind_contextvars(job_id=str(attempt.job_id), attempt=attempt.number)
    if attempt.fal_request_id not in {None, completion.fal_request_id}:
        raise InvalidSignatureError("the attempt is of another fal request")
    return attempt, job


def _keep_stray(connection: Connection, name: TokenName, token: str, new: NewDelivery) -> Receipt:
    """Its job has no row: it may be paid for, so what fal says of it is not thrown away."""
    if new.verdict is Verdict.RECORDED:
        new = replace(new, verdict=Verdict.KEPT)
    token_hash = attempts.hash_token(token)
    deliveries.keep_stray(connection, name.job_id, name.number, token_hash, new)
    bind_contextvars(job_id=str(name.job_id), attempt=name.number)
    return Receipt(Verdict.STRAY, None)


def _describe(completion: Completion, body: bytes, verdict: Verdict, now: datetime) -> NewDelivery:
    return NewDelivery(
        now,
        completion.fal_request_id,
        completion.gateway_request_id,
        completion.status,
        verdict,
        body,
    )


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


def _is_repeated(connection: Connection, attempt: Attempt, new: NewDelivery) -> bool:
    """Keep the delivery; whether it has come and been believed before."""
    times, verdict = deliveries.count_delivery(connection, attempt, new)
    if verdict is Verdict.HINT:
        # It came before without proof, and is proven now.
        deliveries.judge_delivery(connection, attempt.id, new.body, new.verdict)
        return False
    return times > 1


def _as_object(payload: JsonValue) -> dict[str, Any] | None:
    return payload if isinstance(payload, dict) else None
