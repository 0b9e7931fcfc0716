"""Beneath `complete.py`. A webhook of an attempt that has no row: a restore or a failover lost it.

Its token is signed by us, so the attempt was begun for this job; only its row has to be made again.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import structlog
from pydantic import SecretStr
from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from worker.fal.completion import Completion
from worker.ground.errors import InvalidSignatureError
from worker.jobs import attempts, deliveries, restores, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import (
    Attempt,
    Job,
    Move,
    NewAttempt,
    NewDelivery,
    Outcome,
    Settlement,
    Verdict,
)
from worker.stages.ending import has_video, needs_fetching
from worker.stages.tokens import TokenName, read_token

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
