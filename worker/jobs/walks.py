"""Keyset walks: whole tables in slices, with no lock, no long statement and bounded memory."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, select
from sqlalchemy.orm import QueryableAttribute

from worker.jobs.models import JobRow

SLICE = 2000


@dataclass(frozen=True, slots=True)
class Slice:
    """Jobs that follow each other by id; `after` is the last one of the slice before."""

    after: UUID | None
    last: UUID

    def covers(self, job_id: QueryableAttribute[UUID]) -> ColumnElement[bool]:
        """Whether the column names a job of this slice."""
        end: ColumnElement[bool] = job_id <= self.last
        return end if self.after is None else and_(job_id > self.after, end)


def next_slice(connection: Connection, after: UUID | None) -> Slice | None:
    """The slice that follows; None where the table ends."""
    ids = select(JobRow.id).order_by(JobRow.id).limit(SLICE)
    if after is not None:
        ids = ids.where(JobRow.id > after)
    found = ids.subquery()
    last = connection.execute(
        select(found.c.id).order_by(found.c.id.desc()).limit(1)
    ).scalar_one_or_none()
    return None if last is None else Slice(after, last)
