"""Beneath the path. A paid video that is still only at fal is told of, before fal deletes it.

Only rows that the sweep has in its hands are looked at: each job that waits for its download comes
through it, and one that is being downloaded comes back when that has taken too long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError
from sqlalchemy import Connection

from worker.fal.options import MIN_EXPIRATION, RequestOptions
from worker.jobs import archives
from worker.jobs.states import JobState
from worker.jobs.values import Job

ARCHIVE_DEADLINE = timedelta(hours=1)
# So much of the time for which fal was told to keep the file may pass.
EXPIRATION_SHARE = 0.75
UNARCHIVED = frozenset({JobState.COMPLETED, JobState.ARCHIVING})

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A job whose video is late: since when it could be archived, and what it waited for."""

    job: Job
    age: timedelta


def raise_alarms(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> list[Alarm]:
    """Mark those of the jobs that are late and were not told of before; log them after the commit.

    `deadline` counts from the completion of the request whose result the job has, unless fal was
    told to delete the file sooner.
    """
    late = list(_find_late(connection, jobs, deadline, now))
    if late:
        archives.raise_alarm(connection, [alarm.job.id for alarm in late], now)
    return late


def log_alarms(alarms: Sequence[Alarm]) -> None:
    """One line for each job, once for each result of it."""
    for alarm in alarms:
        log.error(
            "archive_deadline_near",
            job_id=str(alarm.job.id),
            age_seconds=round(alarm.age.total_seconds()),
            blocked_reason=alarm.job.blocked_reason,
        )


def choose_deadline(deadline: timedelta, options: RequestOptions) -> timedelta:
    """How long after the completion of its request a job is late; pure."""
    if options.object_expiration is None:
        return deadline
    return min(deadline, options.object_expiration * EXPIRATION_SHARE)


def _find_late(
    connection: Connection, jobs: Sequence[Job], deadline: timedelta, now: datetime
) -> Iterator[Alarm]:
    soonest = min(deadline, MIN_EXPIRATION * EXPIRATION_SHARE)
    # No result is older than the job's first one.
    unalarmed = {
        job.id: job
        for job in jobs
        if job.state in UNARCHIVED
        and job.archive_alarmed_at is None
        and now - (job.completed_at or now) >= soonest
    }
    sources = archives.list_sources(connection, list(unalarmed)) if unalarmed else {}
    for job_id, source in sources.items():
        age = now - source.completed_at
        if age >= choose_deadline(deadline, _read_options(source.options)):
            yield Alarm(unalarmed[job_id], age)


def _read_options(stored: object) -> RequestOptions:
    """As they were stored; what another release may have written otherwise says nothing."""
    try:
        return RequestOptions.model_validate(stored or {})
    except ValidationError:
        return RequestOptions()
