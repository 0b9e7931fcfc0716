"""SQL on the claims of one worker, for a worker that has to end."""

from sqlalchemy import Connection, select

from worker.jobs.models import JobRow
from worker.jobs.rows import columns_of, fetch_all
from worker.jobs.values import Job


def list_claims(connection: Connection, worker: str) -> list[Job]:
    """The jobs that this worker holds, locked; those that somebody has in hand are left out."""
    statement = (
        select(*columns_of(JobRow))
        # The first condition lets the index of live rows find them.
        .where(JobRow.due_at.is_not(None), JobRow.claimed_by == worker)
        .with_for_update(skip_locked=True)
    )
    return fetch_all(connection, Job, statement)
