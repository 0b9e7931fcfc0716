"""SQL on what is archived, by the same rules as `table.py`: alarms."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, and_, select, update

from worker.jobs.models import AttemptRow, JobRow

# Before everything else that waits.
ALARM_PRIORITY = 100


def list_options(connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """What fal was told about the requests whose results these jobs have."""
    same_request = AttemptRow.fal_request_id == JobRow.fal_request_id
    statement = (
        select(AttemptRow.job_id, AttemptRow.options)
        .join(JobRow, and_(JobRow.id == AttemptRow.job_id, same_request))
        .where(AttemptRow.job_id.in_(job_ids), JobRow.id.in_(job_ids))
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def raise_alarm(connection: Connection, job_ids: Sequence[UUID], now: datetime) -> None:
    """Note that these jobs are late, and let them go before all others."""
    connection.execute(
        update(JobRow)
        .where(JobRow.id.in_(job_ids))
        .values(archive_alarmed_at=now, priority=ALARM_PRIORITY)
    )
