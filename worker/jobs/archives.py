"""SQL on what is archived, by the same rules as `table.py`: copies, alarms, what is pruned."""

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
    or_,
    select,
    true,
    update,
)

from worker.jobs.attempts import result_time
from worker.jobs.models import ArchiveMarkRow, AttemptRow, EventRow, JobRow
from worker.jobs.rows import change, fetch_all, insert_for
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.values import Job
from worker.jobs.walks import PLACE, Slice, bind_place

Place = tuple[datetime, UUID]
FILE_COLUMNS = ("archive_uri", "archive_poster_uri", "archive_sidecar_uri", "quarantine_uri")

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
        """The copies of the slice, read or not."""
        of_tenant = true() if self.tenant is None else JobRow.tenant == self.tenant
        return and_(part.covers(JobRow.id), _IS_COPY, of_tenant)

    @property
    def is_read(self) -> ColumnElement[bool]:
        return func.coalesce(JobRow.archive_verified_at >= self.not_since, False)


_IS_COPY = and_(
    JobRow.state == JobState.ARCHIVED,
    JobRow.archive_uri.is_not(None),
    JobRow.archive_sha256.is_not(None),
    JobRow.archive_bytes.is_not(None),
    JobRow.archive_pruned_at.is_(None),
)
_IS_DAMAGED = JobRow.archive_error.is_not(None)


def list_copies(connection: Connection, scope: Scope, part: Slice) -> list[Copy]:
    """The slice's copies that are to be read, or were found damaged since the scope's time."""
    return _fetch_copies(connection, scope.covers(part), or_(~scope.is_read, _IS_DAMAGED))


def list_archived(connection: Connection, part: Slice) -> list[Copy]:
    """All copies of the slice."""
    return _fetch_copies(connection, part.covers(JobRow.id), _IS_COPY)


def find_copies(connection: Connection, job_ids: Iterable[UUID]) -> list[Copy]:
    """The copies of these jobs, as far as they have one."""
    return _fetch_copies(connection, JobRow.id.in_(list(job_ids)), _IS_COPY)


def _fetch_copies(connection: Connection, *conditions: ColumnElement[bool]) -> list[Copy]:
    columns = [getattr(JobRow, f"archive_{name}").label(name) for name in Copy.__slots__[2:]]
    statement = select(JobRow.id.label("job_id"), JobRow.fence, *columns).where(*conditions)
    return fetch_all(connection, Copy, statement.order_by(JobRow.id))


def list_copy_ids(connection: Connection, scope: Scope, part: Slice) -> Sequence[UUID]:
    """Which of the slice's copies are to be read."""
    unread = select(JobRow.id).where(scope.covers(part), ~scope.is_read)
    return connection.execute(unread).scalars().all()


def measure_copies(connection: Connection, scope: Scope, part: Slice) -> tuple[int, int]:
    """How many of the slice's copies are to be read, and their bytes together."""
    measured = select(func.count(), func.sum(JobRow.archive_bytes))
    row = connection.execute(measured.where(scope.covers(part), ~scope.is_read)).one()
    return int(row[0]), int(row[1] or 0)


def record_check(connection: Connection, copy: Copy, error: str | None, now: datetime) -> bool:
    """Write what a copy was found to be; False if it is another one by now, or none."""
    is_same = (
        JobRow.id == copy.job_id,
        JobRow.fence == copy.fence,
        JobRow.archive_uri == copy.uri,
        JobRow.archive_sha256 == copy.sha256,
    )
    found = {"archive_verified_at": now, "archive_error": error}
    return change(connection, JobRow, *is_same, _IS_COPY, **found) == 1


def hold_archived(connection: Connection, job: Job) -> int | None:
    """Keep others from replacing the archived job's copy: its new fence, None if it has changed."""
    is_same = (
        JobRow.id == job.id,
        JobRow.state == JobState.ARCHIVED,
        JobRow.fence == job.fence,
        JobRow.archive_pruned_at.is_not_distinct_from(job.archive_pruned_at),
    )
    return job.fence + 1 if change(connection, JobRow, *is_same, fence=job.fence + 1) else None


@dataclass(frozen=True, slots=True)
class Naming:
    """Which objects a row names, and whether its job has ended."""

    job_id: UUID
    is_live: bool
    uris: tuple[str, ...]


def list_namings(connection: Connection, job_ids: Iterable[UUID]) -> list[Naming]:
    """What the rows of these jobs name, as far as there are such rows."""
    columns = [getattr(JobRow, name) for name in FILE_COLUMNS]
    statement = select(JobRow.id, JobRow.due_at.is_not(None), *columns)
    return [
        Naming(job_id, bool(is_live), tuple(uri for uri in uris if uri is not None))
        for job_id, is_live, *uris in connection.execute(
            statement.where(JobRow.id.in_(list(job_ids)))
        )
    ]


def find_mark(connection: Connection, location: str) -> str | None:
    """The id that the archive at this location has, as far as it is known."""
    statement = select(ArchiveMarkRow.mark).where(ArchiveMarkRow.location == location)
    return connection.execute(statement).scalar_one_or_none()


def keep_mark(connection: Connection, location: str, mark: str, now: datetime) -> None:
    """Note it, unless the location has one already."""
    values = {"location": location, "mark": mark, "noted_at": now}
    statement = insert_for(connection, ArchiveMarkRow).values(values)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["location"]))


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
    change(connection, JobRow, JobRow.id.in_(job_ids), archive_alarmed_at=now)


# ------------------------------------------------------------------ retention


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
    """Jobs that follow each other by time of enqueuing; where the last of them is."""

    job_ids: tuple[UUID, ...]
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
_COLUMNS = [_ENDED_AT if name == "ended_at" else getattr(JobRow, name) for name in OldJob.__slots__]


def next_page(
    connection: Connection, before: datetime, after: Place | None, limit: int
) -> Page | None:
    """The page that follows, of jobs enqueued before then; None where there are no more."""
    statement = select(JobRow.enqueued_at, JobRow.id).where(JobRow.enqueued_at < before)
    if after is not None:
        statement = statement.where(bind_place(*after) < PLACE)
    statement = statement.order_by(JobRow.enqueued_at, JobRow.id).limit(limit)
    places = [(row[0], row[1]) for row in connection.execute(statement)]
    return Page(tuple(job_id for _, job_id in places), places[-1]) if places else None


def list_old_jobs(
    connection: Connection, retention: Retention, page: Page, *, lock: bool = False
) -> list[OldJob]:
    """The page's jobs that are to be pruned; with `lock`, nobody else changes them meanwhile.

    The columns keep a job's first end; after it the job may have been redriven, and end anew.
    """
    has_moved = exists().where(
        EventRow.job_id == JobRow.id,
        EventRow.at >= retention.before,
        EventRow.reason != JobEvent.ARCHIVE_REPLACED,
    )
    # The row is all by which a request that still costs money is remembered.
    is_cancelling = exists().where(
        AttemptRow.job_id == JobRow.id, AttemptRow.cancel_due_at.is_not(None)
    )
    statement = select(*_COLUMNS).where(
        JobRow.id.in_(page.job_ids),
        JobRow.due_at.is_(None),
        JobRow.state.in_(sorted(retention.states & ENDED)),
        retention.before > _ENDED_AT,
        *(JobRow.labels[name].as_string() == value for name, value in retention.labels.items()),
        ~has_moved,
        ~is_cancelling,
    )
    if retention.tenant is not None:
        statement = statement.where(JobRow.tenant == retention.tenant)
    if retention.files_only:
        files = [getattr(JobRow, name).is_not(None) for name in FILE_COLUMNS]
        statement = statement.where(or_(*files))
    if lock:
        statement = statement.with_for_update(skip_locked=True)
    return fetch_all(connection, OldJob, statement.order_by(JobRow.enqueued_at, JobRow.id))


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
    gone = dict.fromkeys((*FILE_COLUMNS, "archive_error"))
    return change(connection, JobRow, _is_marked(job, marked_at), **gone) == 1


def _is_marked(job: OldJob, marked_at: datetime) -> ColumnElement[bool]:
    return and_(
        JobRow.id == job.id,
        JobRow.state == job.state,
        JobRow.fence == job.fence,
        JobRow.archive_pruned_at == marked_at,
    )
