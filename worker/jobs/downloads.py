"""How many downloads run at once, over all workers: counted and claimed in one."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, bindparam, func, or_, select, update

from worker.jobs import table
from worker.jobs.models import JobRow
from worker.jobs.rows import is_postgres, table_of
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Claim, Job

# Any number that no other program on this database locks.
_ADVISORY_LOCK = 0x6578_7465_6E64_0001
_JOBS = table_of(JobRow)
_LOCK = select(func.pg_advisory_xact_lock(_ADVISORY_LOCK))
_COUNT = select(func.count()).where(
    _JOBS.c.state == JobState.ARCHIVING, _JOBS.c.due_at > bindparam("now")
)


def claim_download(
    connection: Connection,
    job_id: UUID,
    claim: Claim,
    *,
    most: int,
    defer: Callable[[datetime], datetime],
) -> Job | None:
    """As `table.claim_job` for the archive step, as long as fewer than `most` downloads run.

    A job that is turned away stays as it is, but for `due_at`: `defer` tells the next time from the
    one since when it has waited.
    """
    _wait_for_turn(connection)
    if _count_running(connection, claim.now) < most:
        return table.claim_job(connection, job_id, JobEvent.ARCHIVE_CLAIMED, claim)
    is_claimable = (
        JobRow.id == job_id,
        JobRow.state == JobState.COMPLETED,
        or_(JobRow.blocked_reason.is_(None), JobRow.due_at <= claim.now),
    )
    found = connection.execute(select(JobRow.completed_at).where(*is_claimable)).one_or_none()
    if found is not None:
        due_at = defer(found[0] or claim.now)
        connection.execute(update(JobRow).where(*is_claimable).values(due_at=due_at))
    return None


def _wait_for_turn(connection: Connection) -> None:
    """Until this transaction ends nobody else counts; on SQLite it is the only writer anyway."""
    if is_postgres(connection):
        connection.execute(_LOCK)


def _count_running(connection: Connection, now: datetime) -> int:
    """Those whose worker has been heard of within its lease."""
    return int(connection.execute(_COUNT, {"now": now}).scalar_one())
