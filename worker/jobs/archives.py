"""SQL on what is archived, by the same rules as `table.py`: copies, checks, alarms."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    func,
    or_,
    select,
    update,
)

from worker.jobs.attempts import result_time
from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.rows import fetch_all
from worker.jobs.slices import Slice
from worker.jobs.states import JobState
from worker.jobs.values import Job

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

    With `is_resumed` that is when an interrupted run began, whose findings are told again.
    """

    not_since: datetime
    tenant: str | None = None
    is_resumed: bool = False

    def covers(self, part: Slice | None = None) -> ColumnElement[bool]:
        """Those to be read, of one slice or all."""
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

    def _is_copy(self, part: Slice | None) -> ColumnElement[bool]:
        conditions = [_IS_COPY] if part is None else [part.covers(JobRow.id), _IS_COPY]
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


def list_copy_ids(connection: Connection, scope: Scope, part: Slice) -> Sequence[UUID]:
    """Which of the slice's copies are to be read."""
    return connection.execute(select(JobRow.id).where(scope.covers(part))).scalars().all()


def list_damaged(connection: Connection, scope: Scope, part: Slice) -> list[Copy]:
    """The slice's copies that were found damaged since the scope's time."""
    return _fetch_copies(connection, scope.covers_damage(part))


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
    """The request whose result a job has: when fal had finished it, and what fal was told."""

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
