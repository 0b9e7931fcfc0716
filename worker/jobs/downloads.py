"""How many downloads run at once, over all workers: counted and claimed in one."""

from collections.abc import Callable
from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import Connection, Update, bindparam, func, or_, select, update

from worker.jobs.attempts import result_time
from worker.jobs.models import JobRow
from worker.jobs.rows import is_postgres, table_of
from worker.jobs.states import JobEvent, JobState
from worker.jobs.transitions import apply_change, build_claim, name_claim
from worker.jobs.values import Claim, Job, Move

# Any number that no other program on this database locks.
_ADVISORY_DOWNLOADS_LOCK = 0x6578_7465_6E64_0001
_DOWNLOADS_LOCK = select(func.pg_advisory_xact_lock(_ADVISORY_DOWNLOADS_LOCK))


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
    event = JobEvent.ARCHIVE_CLAIMED
    source, values = name_claim(job_id, event, claim)
    values["most"] = most
    job = apply_change(connection, _build_claim(), values, source, event, Move(claim.now))
    if job is None:
        _turn_away(connection, job_id, claim, defer)
    return job


def _wait_for_turn(connection: Connection) -> None:
    """Until this transaction ends nobody else counts; on SQLite it is the only writer anyway.

    A statement of its own: the next one sees what those before it in the queue have committed.
    """
    if is_postgres(connection):
        connection.execute(_DOWNLOADS_LOCK)


@cache
def _build_claim() -> Update:
    """Of the downloads those run whose worker has been heard of within its lease."""
    running = table_of(JobRow).alias("running")
    count = select(func.count()).where(
        running.c.state == JobState.ARCHIVING, running.c.due_at > bindparam("now")
    )
    return build_claim().where(count.scalar_subquery() < bindparam("most"))


def _turn_away(
    connection: Connection, job_id: UUID, claim: Claim, defer: Callable[[datetime], datetime]
) -> None:
    """Let a job that could be claimed but for the others wait; any other is left alone."""
    is_claimable = (
        JobRow.id == job_id,
        JobRow.state == JobState.COMPLETED,
        or_(JobRow.blocked_reason.is_(None), JobRow.due_at <= claim.now),
    )
    found = connection.execute(select(result_time()).where(*is_claimable)).one_or_none()
    if found is not None:
        due_at = defer(found[0] or claim.now)
        connection.execute(update(JobRow).where(*is_claimable).values(due_at=due_at))
