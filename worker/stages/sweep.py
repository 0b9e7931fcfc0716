"""Beside the path. sweep: find rows that stand still, and ring for them again.

Many sweeps at once do no harm: each takes rows that no other holds, and pushes their time on.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from worker.clock import Clock, read_clock
from worker.db import Database
from worker.jobs import table
from worker.jobs.states import Doorbell, JobEvent, JobState
from worker.jobs.values import Job, Move
from worker.media.store import Store

BATCH = 100
# A partial file is somebody's for as long as a download may take.
PARTIAL_AGE = timedelta(hours=24)
SWEPT_STATES = (JobState.QUEUED, JobState.COMPLETED, JobState.ARCHIVING)


def sweep_jobs(
    *, db: Database, lease: timedelta, limit: int = BATCH, clock: Clock = read_clock
) -> list[Doorbell]:
    """Take one batch of overdue rows; returns whom to ring for, after this has committed.

    A waiting row lost its message or has waited long enough: it is looked at again after `lease`
    unless it moves. A claimed row whose lease has run out goes back to where it was claimed from.
    """
    now = clock()
    with db.transaction() as connection:
        overdue = table.find_overdue(connection, SWEPT_STATES, now, limit)
        waiting = [job for job in overdue if job.doorbell is not None]
        table.release_waiting(connection, [job.id for job in waiting], now + lease)
        expired = [job for job in overdue if job.state is JobState.ARCHIVING]
        returned = _return_expired(connection, expired, now, lease)
    return [job.doorbell for job in [*waiting, *returned] if job.doorbell is not None]


def remove_partials(store: Store) -> int:
    """Remove what killed downloads have left; returns how many files."""
    return store.remove_partials(PARTIAL_AGE)


def _return_expired(
    connection: Connection, expired: Sequence[Job], now: datetime, lease: timedelta
) -> list[Job]:
    returned = []
    for job in expired:
        move = Move(now, now + lease, f"{job.claimed_by} fell silent")
        moved = table.apply_event(connection, job, JobEvent.ARCHIVE_CLAIM_EXPIRED, move)
        returned += [moved] if moved is not None else []
    return returned
