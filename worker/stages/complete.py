"""3. complete: record the fact that fal has finished, whoever tells of it.

Webhook and poll come through the same door. Next: `archive.py`.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Connection

from worker.clock import Clock, read_clock
from worker.db import Database
from worker.errors import InvalidResultError, InvalidSignatureError
from worker.fal.completion import Completion
from worker.fal.errors import UNNAMED_CODE, FalFailure, parse_failure
from worker.fal.extend_video import parse_output
from worker.jobs import attempts, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Job, Move, NewDelivery


class Verdict(StrEnum):
    """What a genuine delivery was worth."""

    RECORDED = "recorded"
    DUPLICATE = "duplicate"
    # The job had moved on without this delivery, or its result has to be fetched.
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Receipt:
    """A delivery's verdict and its job as committed."""

    verdict: Verdict
    job: Job


def receive_delivery(
    token: str,
    completion: Completion,
    body: bytes,
    *,
    db: Database,
    grace: timedelta,
    clock: Clock = read_clock,
) -> Receipt:
    """Keep a verified webhook and record what it tells, in one transaction.

    Raises InvalidSignatureError if no attempt has this token, or if the attempt is known to be of
    another request: a valid signature alone proves only that some fal account sent it.
    """
    now = clock()
    with db.transaction() as connection:
        attempt = _find_attempt(connection, token, completion)
        # The job's row is locked first, here and everywhere, so that two writers cannot deadlock.
        job = table.get_job(connection, attempt.job_id, lock=True)
        new = NewDelivery(
            now, completion.fal_request_id, completion.gateway_request_id, completion.status, body
        )
        if attempts.count_delivery(connection, attempt, new) > 1:
            return Receipt(Verdict.DUPLICATE, job)
        if not attempts.adopt_request(connection, attempt, completion.fal_request_id):
            raise InvalidSignatureError("the attempt is of another fal request")
        moved = record_completion(connection, job, attempt, completion, now, grace)
    return Receipt(Verdict.KEPT if moved is None else Verdict.RECORDED, moved or job)


_AWAITING_FAL = frozenset({JobState.SUBMISSION_UNKNOWN, JobState.SUBMITTED})


def record_completion(
    connection: Connection,
    job: Job,
    attempt: Attempt,
    completion: Completion,
    now: datetime,
    grace: timedelta,
) -> Job | None:
    """Move the job by what fal says; None if it has moved on, or if the result must be fetched."""
    if completion.payload is None and (completion.status == "OK" or completion.payload_error):
        if job.state in _AWAITING_FAL:
            table.advance_due(connection, job, now)
        return None
    failure = find_failure(completion)
    columns = {
        "fal_request_id": completion.fal_request_id,
        "submitted_at": job.submitted_at or attempt.started_at,
        "result": _as_object(completion.payload),
    }
    if failure is None:
        move = Move(now, now + grace, columns=columns)
        return table.apply_event(connection, job, JobEvent.RESULT_ARRIVED, move)
    if attempt.fence != job.fence:
        # A later attempt is under way: it is not up to the earlier one to fail the job.
        return None
    columns |= {"error_code": failure.code, "error_message": failure.message}
    move = Move(now, detail=failure.message, columns=columns)
    return table.apply_event(connection, job, JobEvent.FAILURE_ARRIVED, move)


def find_failure(completion: Completion) -> FalFailure | None:
    """Why this completion is no video; None if it is one. Pure."""
    if completion.status == "ERROR":
        message = completion.error or "fal reports an error without a message"
        return parse_failure(completion.payload, message) or FalFailure(UNNAMED_CODE, message)
    try:
        parse_output(completion.payload)
    except InvalidResultError as error:
        return FalFailure(error.code, str(error))
    return None


def _find_attempt(connection: Connection, token: str, completion: Completion) -> Attempt:
    token_hash = attempts.hash_token(token)
    attempt = attempts.find_attempt_by_token(connection, token_hash)
    if attempt is None or not hmac.compare_digest(attempt.token_hash, token_hash):
        raise InvalidSignatureError("no attempt has this token")
    if attempt.fal_request_id not in {None, completion.fal_request_id}:
        raise InvalidSignatureError("the attempt is of another fal request")
    return attempt


def _as_object(payload: JsonValue) -> dict[str, Any] | None:
    return payload if isinstance(payload, dict) else None
