"""Reads the whole tables in slices of jobs along the primary key, for whoever examines them.

Nothing is locked, no statement is long, and memory does not grow with the table.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, func, literal, select
from sqlalchemy.orm import QueryableAttribute

from worker.jobs.models import AttemptRow, GateRow, JobRow
from worker.jobs.rows import columns_of, fetch_all
from worker.jobs.states import JobState
from worker.jobs.values import HELD, Gate, Outcome

SLICE = 2000
MOST_REASONS = 10


@dataclass(frozen=True, slots=True)
class Slice:
    """Jobs that follow each other by id; `after` is the last one of the slice before."""

    after: UUID | None
    last: UUID

    def covers(self, job_id: QueryableAttribute[UUID]) -> ColumnElement[bool]:
        """Whether the column names a job of this slice."""
        end: ColumnElement[bool] = job_id <= self.last
        return end if self.after is None else and_(job_id > self.after, end)


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """What an archived row says of its file."""

    job_id: UUID
    uri: str
    bytes: int


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


def next_slice(connection: Connection, after: UUID | None) -> Slice | None:
    """The slice that follows; None where the table ends."""
    ids = select(JobRow.id).order_by(JobRow.id).limit(SLICE)
    if after is not None:
        ids = ids.where(JobRow.id > after)
    found = ids.subquery()
    last = connection.execute(
        select(found.c.id).order_by(found.c.id.desc()).limit(1)
    ).scalar_one_or_none()
    return None if last is None else Slice(after, last)


def count_jobs(connection: Connection, part: Slice) -> int:
    return int(connection.execute(select(func.count()).where(part.covers(JobRow.id))).scalar_one())


def list_archived_files(connection: Connection, part: Slice) -> list[ArchivedFile]:
    """What the slice's archived rows say of their files; a row that says nothing is left out.

    So is one whose files are pruned.
    """
    statement = select(JobRow.id, JobRow.archive_uri, JobRow.archive_bytes).where(
        part.covers(JobRow.id),
        JobRow.state == JobState.ARCHIVED,
        JobRow.archive_uri.is_not(None),
        JobRow.archive_bytes.is_not(None),
        JobRow.archive_pruned_at.is_(None),
    )
    return [
        ArchivedFile(row[0], str(row[1]), int(row[2] or 0)) for row in connection.execute(statement)
    ]


def list_paid_requests(
    connection: Connection, part: Slice, endpoint: str, start: datetime
) -> list[PaidRequest]:
    """The slice's attempts on the endpoint since `start` that are known to be requests of fal's."""
    statement = select(
        AttemptRow.job_id,
        AttemptRow.id,
        AttemptRow.fal_request_id,
        AttemptRow.completed_at.is_not(None),
    ).where(
        part.covers(AttemptRow.job_id),
        AttemptRow.started_at >= start,
        AttemptRow.endpoint == endpoint,
        AttemptRow.fal_request_id.is_not(None),
    )
    return [
        PaidRequest(row[0], row[1], str(row[2]), bool(row[3]))
        for row in connection.execute(statement)
    ]


def list_idless_attempts(connection: Connection, part: Slice, endpoint: str) -> list[SentInput]:
    """The slice's attempts of which no request is known."""
    columns = (AttemptRow.job_id, AttemptRow.id, AttemptRow.outcome, AttemptRow.input)
    statement = select(*columns).where(
        part.covers(AttemptRow.job_id),
        AttemptRow.endpoint == endpoint,
        AttemptRow.fal_request_id.is_(None),
    )
    return [SentInput(*row) for row in connection.execute(statement)]


def list_sent_attempts(
    connection: Connection, part: Slice, endpoint: str, start: datetime
) -> list[SentInput]:
    """The slice's attempts since `start` whose requests are known."""
    columns = (AttemptRow.job_id, AttemptRow.id, AttemptRow.outcome, AttemptRow.input)
    statement = select(*columns, literal(True)).where(
        part.covers(AttemptRow.job_id),
        AttemptRow.started_at >= start,
        AttemptRow.endpoint == endpoint,
        AttemptRow.fal_request_id.is_not(None),
    )
    return [SentInput(*row) for row in connection.execute(statement)]


def list_coming_attempts(connection: Connection, part: Slice, endpoint: str) -> list[SentInput]:
    """What the slice's queued jobs are going to send."""
    statement = select(JobRow.id, JobRow.input).where(
        part.covers(JobRow.id), JobRow.endpoint == endpoint, JobRow.state == JobState.QUEUED
    )
    return [
        SentInput(row[0], None, JobState.QUEUED, row[1]) for row in connection.execute(statement)
    ]


def list_shut_gates(connection: Connection) -> list[Gate]:
    """The gates that somebody has shut for a reason."""
    statement = select(*columns_of(GateRow)).where(GateRow.reason.is_not(None))
    return fetch_all(connection, Gate, statement.order_by(GateRow.name))


def count_held(connection: Connection) -> list[tuple[str, int]]:
    """How many unknown submissions are held, by the reason; the most frequent ones."""
    statement = (
        select(JobRow.blocked_reason, func.count())
        .where(
            JobRow.due_at.is_not(None),
            JobRow.state == JobState.SUBMISSION_UNKNOWN,
            JobRow.blocked_reason.startswith(HELD),
        )
        .group_by(JobRow.blocked_reason)
        .order_by(func.count().desc(), JobRow.blocked_reason)
        .limit(MOST_REASONS)
    )
    return [(str(reason), int(jobs)) for reason, jobs in connection.execute(statement)]


def count_blocked(connection: Connection) -> int:
    """Queued jobs that wait for a reason."""
    statement = select(func.count()).where(
        JobRow.due_at.is_not(None),
        JobRow.state == JobState.QUEUED,
        JobRow.blocked_reason.is_not(None),
    )
    return int(connection.execute(statement).scalar_one())
