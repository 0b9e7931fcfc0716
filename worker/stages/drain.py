"""Beside the path. drain: a worker that has to end gives back what it has not finished.

A download goes back to be claimed by anybody, at once. A submission goes back to nobody, for its
POST may have left: its lease only ends now instead of later, and the sweep makes it unknown.
"""

from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import table
from worker.jobs.states import Doorbell, JobEvent, JobState
from worker.jobs.values import Move
from worker.stages.lease import abandon_claims

WHY = "its worker was told to end"


def return_downloads(worker: str, *, db: Database, clock: Clock = read_clock) -> list[Doorbell]:
    """Give every download of this worker back, and stop it; whom to ring for."""
    now = clock()
    returned = []
    with db.transaction() as connection:
        for job in table.list_claims(connection, worker):
            if job.state is JobState.ARCHIVING:
                move = Move(now, now, WHY)
                returned.append(
                    table.apply_permitted(connection, job, JobEvent.ARCHIVE_POSTPONED, move)
                )
    abandon_claims()
    return [job.doorbell for job in returned if job.doorbell is not None]


def end_leases(worker: str, *, db: Database, clock: Clock = read_clock) -> list[UUID]:
    """Let the sweep take over at once whatever this worker still holds; the jobs."""
    now = clock()
    with db.transaction() as connection:
        held = table.list_claims(connection, worker)
        for job in held:
            table.advance_due(connection, job, now)
    return [job.id for job in held]
