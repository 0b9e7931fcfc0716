"""SQL on what is archived, by the same rules as `table.py`: copies, checks, alarms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from worker.jobs.attempts import result_time
from worker.jobs.models import ArchiveMarkRow, AttemptRow, EventRow, JobRow, UtcDateTime
from worker.jobs.rows import fetch_all, insert_for
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.values import Job
from worker.jobs.walks import Slice, find_last

# ------------------------------------------------------------------ copies


@dataclass(frozen=True, slots=True)
class Copy:
    """What an archived row says of its files; `error` is what was found wrong with them."""

    job_id: UUID
    fence: int
    uri: str
    sha256: str
    bytes: int
    poster_uri: str | None
    sidecar_uri: str | None
    verified_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Scope:
    """Which copies are read: of a tenant or all, and none that was read since then.

    Then an interrupted run began, whose findings are reported again.
    """

    not_since: datetime
    tenant: str | None = None

    def covers(self, part: Slice) -> ColumnElement[bool]:
        """Those of the slice that are to be read."""
        unread = or_(
            JobRow.archive_verified_at.is_(None), JobRow.archive_verified_at < self.not_since
        )
        return and_(self._is_copy(part), unread)

    def covers_damage(self, part: Slice) -> ColumnElement[bool]:
        """Those that were read since then, and found damaged."""
        return and_(
            self._is_copy(part),
            JobRow.archive_verified_at >= self.not_since,
            JobRow.archive_error.is_not(None),
        )

    def _is_copy(self, part: Slice) -> ColumnElement[bool]:
        conditions = [part.covers(JobRow.id), _IS_COPY]
        if self.tenant is not None:
            conditions.append(JobRow.tenant == self.tenant)
        return and_(*conditions)


_IS_COPY = and_(
    JobRow.state == JobState.ARCHIVED,
    JobRow.archive_uri.is_not(None),
    JobRow.archive_sha256.is_not(None),
    JobRow.archive_bytes.is_not(None),
    JobRow.archive_pruned_at.is_(None),
)
_COPY_COLUMNS = (
    JobRow.id.label("job_id"),
    JobRow.fence,
    JobRow.archive_uri.label("uri"),
    JobRow.archive_sha256.label("sha256"),
    JobRow.archive_bytes.label("bytes"),
    JobRow.archive_poster_uri.label("poster_uri"),
    JobRow.archive_sidecar_uri.label("sidecar_uri"),
    JobRow.archive_verified_at.label("verified_at"),
    JobRow.archive_error.label("error"),
)


def list_copies(connection: Connection, scope: Scope, part: Slice) -> list[Copy]:
    """The slice's copies that are to be read, or were found damaged since the scope's time."""
    return _fetch_copies(connection, or_(scope.covers(part), scope.covers_damage(part)))


def find_copies(connection: Connection, job_ids: Iterable[UUID]) -> list[Copy]:
    """The copies of these jobs, as far as they have one."""
    return _fetch_copies(connection, and_(JobRow.id.in_(list(job_ids)), _IS_COPY))


def measure_copies(connection: Connection, scope: Scope, part: Slice) -> tuple[int, int]:
    """How many of the slice's copies are to be read, and their bytes together."""
    measured = select(func.count(), func.sum(JobRow.archive_bytes)).where(scope.covers(part))
    row = connection.execute(measured).one()
    return int(row[0]), int(row[1] or 0)


def record_check(connection: Connection, copy: Copy, error: str | None, now: datetime) -> bool:
    """Write what a copy was found to be; False if it is another one by now, or none."""
    statement = (
        update(JobRow)
        .where(
            JobRow.id == copy.job_id,
            JobRow.fence == copy.fence,
            JobRow.archive_uri == copy.uri,
            JobRow.archive_sha256 == copy.sha256,
            _IS_COPY,
        )
        .values(archive_verified_at=now, archive_error=error)
    )
    return connection.execute(statement).rowcount == 1


def hold_archived(connection: Connection, job: Job) -> int | None:
    """Keep others from replacing the archived job's copy: its new fence, None if it has changed."""
    statement = (
        update(JobRow)
        .where(
            JobRow.id == job.id,
            JobRow.state == JobState.ARCHIVED,
            JobRow.fence == job.fence,
            JobRow.archive_pruned_at.is_(None)
            if job.archive_pruned_at is None
            else JobRow.archive_pruned_at == job.archive_pruned_at,
        )
        .values(fence=JobRow.fence + 1)
        .returning(JobRow.fence)
    )
    return connection.execute(statement).scalar_one_or_none()


def _fetch_copies(connection: Connection, condition: ColumnElement[bool]) -> list[Copy]:
    statement = select(*_COPY_COLUMNS).where(condition).order_by(JobRow.id)
    return fetch_all(connection, Copy, statement)


# ------------------------------------------------------------------ what rows name


@dataclass(frozen=True, slots=True)
class Naming:
    """Which objects a row names, and whether its job has ended."""

    job_id: UUID
    is_live: bool
    uris: tuple[str, ...]


def list_namings(connection: Connection, job_ids: Iterable[UUID]) -> list[Naming]:
    """What the rows of these jobs name, as far as there are such rows."""
    statement = select(
        JobRow.id,
        JobRow.due_at.is_not(None),
        JobRow.archive_uri,
        JobRow.archive_poster_uri,
        JobRow.archive_sidecar_uri,
        JobRow.quarantine_uri,
    ).where(JobRow.id.in_(list(job_ids)))
    return [
        Naming(row[0], bool(row[1]), tuple(uri for uri in row[2:] if uri is not None))
        for row in connection.execute(statement)
    ]


# ------------------------------------------------------------------ alarms


@dataclass(frozen=True, slots=True)
class ResultSource:
    """The request whose result a job has: when fal had finished it, and its options."""

    completed_at: datetime
    options: dict[str, Any] | None


def list_sources(connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, ResultSource]:
    """Where the results of these completed jobs are from."""
    same_request = AttemptRow.fal_request_id == JobRow.fal_request_id
    statement = (
        select(JobRow.id, result_time(), AttemptRow.options)
        .outerjoin(AttemptRow, and_(AttemptRow.job_id == JobRow.id, same_request))
        .where(JobRow.id.in_(job_ids), JobRow.completed_at.is_not(None))
    )
    return {row[0]: ResultSource(row[1], row[2]) for row in connection.execute(statement)}


def raise_alarm(connection: Connection, job_ids: Sequence[UUID], now: datetime) -> None:
    """Note that these jobs are late: from now on they are swept before all others."""
    connection.execute(update(JobRow).where(JobRow.id.in_(job_ids)).values(archive_alarmed_at=now))


# ------------------------------------------------------------------ retention


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
    key = (JobRow.enqueued_at, JobRow.id)
    rows = select(*key).where(JobRow.enqueued_at < before)
    if after is not None:
        rows = rows.where(tuple_(*key) > _bind(after))
    last = find_last(connection, rows.order_by(*key).limit(limit))
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

    Each transition of such a job clears the mark. The fence of an archived one is raised, so that
    a replacement of its copy that has begun cannot be recorded.
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


# ------------------------------------------------------------------ ids of archives


def find_mark(connection: Connection, location: str) -> str | None:
    statement = select(ArchiveMarkRow.mark).where(ArchiveMarkRow.location == location)
    return connection.execute(statement).scalar_one_or_none()


def keep_mark(connection: Connection, location: str, mark: str, now: datetime) -> None:
    """Note it, unless the location has one already."""
    statement = insert_for(connection, ArchiveMarkRow).values(
        location=location, mark=mark, noted_at=now
    )
    connection.execute(statement.on_conflict_do_nothing(index_elements=["location"]))
