"""SQL on what was sent to fal, or is going to be: what its listing is compared with."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, null, or_, select

from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.rows import fetch_all
from worker.jobs.states import JobState
from worker.jobs.values import Outcome
from worker.jobs.walks import Slice


@dataclass(frozen=True, slots=True)
class PaidRequest:
    """An attempt that fal has accepted."""

    job_id: UUID
    attempt_id: UUID
    fal_request_id: str
    is_completed: bool


@dataclass(frozen=True, slots=True)
class SentInput:
    """An attempt by its input, mostly one of which no request is known (`has_request`).

    Without an id of its own it is still to be made.
    """

    job_id: UUID
    attempt_id: UUID | None
    outcome: str | None
    input: dict[str, Any]
    has_request: bool = False

    @property
    def is_open(self) -> bool:
        """Whether its request may still be found out."""
        return self.outcome in {None, Outcome.UNKNOWN}


def list_paid_requests(
    connection: Connection, part: Slice, endpoint: str, start: datetime
) -> list[PaidRequest]:
    """The slice's attempts on the endpoint since `start` that are known to be requests of fal's."""
    statement = select(
        AttemptRow.job_id,
        AttemptRow.id.label("attempt_id"),
        AttemptRow.fal_request_id,
        AttemptRow.completed_at.is_not(None).label("is_completed"),
    ).where(
        part.covers(AttemptRow.job_id),
        AttemptRow.started_at >= start,
        AttemptRow.endpoint == endpoint,
        AttemptRow.fal_request_id.is_not(None),
    )
    return fetch_all(connection, PaidRequest, statement)


def list_sent_inputs(
    connection: Connection, part: Slice, endpoint: str, start: datetime
) -> list[SentInput]:
    """What the slice's attempts have sent, and its queued jobs are going to send.

    Attempts whose request is known only since `start`.
    """
    has_request = AttemptRow.fal_request_id.is_not(None)
    attempts = select(
        AttemptRow.job_id, AttemptRow.id, AttemptRow.outcome, AttemptRow.input, has_request
    ).where(
        part.covers(AttemptRow.job_id),
        AttemptRow.endpoint == endpoint,
        or_(~has_request, AttemptRow.started_at >= start),
    )
    queued = select(JobRow.id, null(), JobRow.state, JobRow.input).where(
        part.covers(JobRow.id), JobRow.endpoint == endpoint, JobRow.state == JobState.QUEUED
    )
    return [
        SentInput(*row) for statement in (attempts, queued) for row in connection.execute(statement)
    ]
