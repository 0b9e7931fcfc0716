"""SQL that deletes ended jobs by their age, by the same rules as `table.py`.

The table is walked in order of enqueuing: what ended before a time was enqueued before it, so that
the rows of those who prune each day are not read again and again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from worker.jobs.columns import UtcDateTime
from worker.jobs.models import AttemptRow, EventRow, JobRow
from worker.jobs.rows import fetch_all
from worker.jobs.states import ENDED, JobEvent, JobState

Place = tuple[datetime, UUID]
FILE_COLUMNS = ("archive_uri", "archive_poster_uri", "archive_sidecar_uri", "quarantine_uri")


@dataclass(frozen=True, slots=True)
class Retention:
    """Which jobs are pruned: those that ended before a time, and that all of this is true of."""

    before: datetime
    states: frozenset[JobState] = ENDED
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    files_only: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs that follow each other by time of enqueuing; `after` is the last of the page before."""

    after: Place | None
    last: Place


@dataclass(frozen=True, slots=True)
class OldJob:
    """A job to be pruned, and the objects that its row names."""

    id: UUID
    state: JobState
    fence: int
    ended_at: datetime
    archive_uri: str | None
    archive_bytes: int | None
    archive_poster_uri: str | None
    archive_sidecar_uri: str | None
    quarantine_uri: str | None

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(uri for name in FILE_COLUMNS if (uri := getattr(self, name)) is not None)

    @property
    def kept_bytes(self) -> int:
        """Of its video, if that is still there."""
        return 0 if self.archive_uri is None else self.archive_bytes or 0


_ENDED_AT = case(
    (JobRow.state == JobState.ARCHIVED, JobRow.archived_at),
    (JobRow.state == JobState.FAILED, JobRow.failed_at),
    else_=JobRow.cancelled_at,
).label("ended_at")
_COLUMNS = (
    JobRow.id,
    JobRow.state,
    JobRow.fence,
    _ENDED_AT,
    JobRow.archive_uri,
    JobRow.archive_bytes,
    JobRow.archive_poster_uri,
    JobRow.archive_sidecar_uri,
    JobRow.quarantine_uri,
)


def next_page(
    connection: Connection, before: datetime, after: Place | None, limit: int
) -> Page | None:
    """The page that follows, of jobs enqueued before then; None where there are no more."""
    order = (JobRow.enqueued_at, JobRow.id)
    places = select(*order).where(JobRow.enqueued_at < before).order_by(*order).limit(limit)
    if after is not None:
        places = places.where(tuple_(*order) > _bind(after))
    found = places.subquery()
    last = connection.execute(
        select(found).order_by(found.c.enqueued_at.desc(), found.c.id.desc()).limit(1)
    ).one_or_none()
    return None if last is None else Page(after, (last[0], last[1]))


def list_old_jobs(
    connection: Connection, retention: Retention, page: Page, *, lock: bool = False
) -> list[OldJob]:
    """The page's jobs that are to be pruned; with `lock`, nobody else changes them meanwhile."""
    statement = select(*_COLUMNS).where(_covers(page), _is_old(retention))
    statement = statement.order_by(JobRow.enqueued_at, JobRow.id)
    if lock:
        statement = statement.with_for_update(skip_locked=True)
    return fetch_all(connection, OldJob, statement)


def mark_pruned(connection: Connection, job_ids: Sequence[UUID], now: datetime) -> list[OldJob]:
    """Say that the files of these jobs are being deleted, before the first one is.

    Whatever moves such a job says that they are not. The fence of an archived one is raised, so
    that nobody who has begun to replace its copy ends it.
    """
    raised = case((JobRow.state == JobState.ARCHIVED, JobRow.fence + 1), else_=JobRow.fence)
    statement = (
        update(JobRow)
        .where(JobRow.id.in_(job_ids), JobRow.due_at.is_(None))
        .values(archive_pruned_at=now, fence=raised)
        .returning(*_COLUMNS)
    )
    return fetch_all(connection, OldJob, statement)


def delete_job(connection: Connection, job: OldJob, marked_at: datetime) -> bool:
    """Delete the row, and all that was written about it; False if it has moved since its mark."""
    return connection.execute(delete(JobRow).where(_is_marked(job, marked_at))).rowcount == 1


def forget_files(connection: Connection, job: OldJob, marked_at: datetime) -> bool:
    """Write that the files are gone; False if the job has moved since its mark."""
    gone = {**dict.fromkeys(FILE_COLUMNS), "archive_error": None}
    statement = update(JobRow).where(_is_marked(job, marked_at)).values(**gone)
    return connection.execute(statement).rowcount == 1


def _is_marked(job: OldJob, marked_at: datetime) -> ColumnElement[bool]:
    return and_(
        JobRow.id == job.id,
        JobRow.state == job.state,
        JobRow.fence == job.fence,
        JobRow.archive_pruned_at == marked_at,
    )


def _covers(page: Page) -> ColumnElement[bool]:
    place = tuple_(JobRow.enqueued_at, JobRow.id)
    end: ColumnElement[bool] = place <= _bind(page.last)
    return end if page.after is None else and_(place > _bind(page.after), end)


def _bind(place: Place) -> ColumnElement[tuple[datetime, UUID]]:
    at, job_id = place
    return tuple_(literal(at, UtcDateTime()), literal(job_id, JobRow.id.type))


def _is_old(retention: Retention) -> ColumnElement[bool]:
    """The columns keep the first end; after it a job may have been redriven, and end anew."""
    has_moved = exists().where(
        EventRow.job_id == JobRow.id,
        EventRow.at >= retention.before,
        EventRow.reason != JobEvent.ARCHIVE_REPLACED,
    )
    # The row is all by which a request that still costs money is remembered.
    is_cancelling = exists().where(
        AttemptRow.job_id == JobRow.id, AttemptRow.cancel_due_at.is_not(None)
    )
    conditions = [
        JobRow.due_at.is_(None),
        JobRow.state.in_(sorted(retention.states & ENDED)),
        retention.before > _ENDED_AT,
        *(JobRow.labels[name].as_string() == value for name, value in retention.labels.items()),
        ~has_moved,
        ~is_cancelling,
    ]
    if retention.tenant is not None:
        conditions.append(JobRow.tenant == retention.tenant)
    if retention.files_only:
        conditions.append(or_(*(getattr(JobRow, name).is_not(None) for name in FILE_COLUMNS)))
    return and_(*conditions)
