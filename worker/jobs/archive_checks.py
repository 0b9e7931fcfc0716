"""The doctor's checks of what rows say about the archive, in SQL that only reads."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, and_, or_, select

from worker.jobs.attempts import result_time
from worker.jobs.findings import Check, Finding
from worker.jobs.models import JobRow
from worker.jobs.slices import Slice
from worker.jobs.states import JobState


def find_incomplete_archived_rows(
    connection: Connection, part: Slice, _now: datetime
) -> Iterator[Finding]:
    """An archived row promises a result and a file with its checksum, until the file is pruned."""
    promised = ("result", "archive_uri", "archive_sha256", "archive_bytes", "archived_at")
    lacking = [getattr(JobRow, name).is_(None) for name in promised]
    lacking[1] = and_(lacking[1], JobRow.archive_pruned_at.is_(None))
    statement = select(JobRow.id, *lacking).where(
        part.covers(JobRow.id), JobRow.state == JobState.ARCHIVED, or_(*lacking)
    )
    for job_id, *lacks in connection.execute(statement):
        names = ", ".join(
            name for name, is_lacking in zip(promised, lacks, strict=True) if is_lacking
        )
        yield Finding(Check.INCOMPLETE_ARCHIVED_ROW, job_id, f"archived without {names}")


def find_damaged_archives(connection: Connection, part: Slice, _now: datetime) -> Iterator[Finding]:
    """What `verify` has found, and nobody has mended since."""
    statement = select(JobRow.id, JobRow.archive_uri, JobRow.archive_error).where(
        part.covers(JobRow.id),
        JobRow.archive_error.is_not(None),
        JobRow.archive_pruned_at.is_(None),
    )
    for job_id, uri, error in connection.execute(statement):
        yield Finding(Check.DAMAGED_ARCHIVE, job_id, f"{uri}: {error}")


def find_late_archives(connection: Connection, part: Slice, now: datetime) -> Iterator[Finding]:
    """A paid video that is still only at fal, and was told of."""
    columns = (JobRow.id, JobRow.state, result_time(), JobRow.blocked_reason)
    statement = select(*columns).where(
        part.covers(JobRow.id),
        JobRow.due_at.is_not(None),
        JobRow.state.in_((JobState.COMPLETED, JobState.ARCHIVING)),
        JobRow.archive_alarmed_at.is_not(None),
    )
    for job_id, state, completed_at, reason in connection.execute(statement):
        age = now - (completed_at or now)
        detail = f"{state.value} for {age.total_seconds():.0f} s: {reason or 'nothing holds it up'}"
        yield Finding(Check.LATE_ARCHIVE, job_id, detail)
