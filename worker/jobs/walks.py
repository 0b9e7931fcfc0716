"""Keyset walks: whole tables in slices, with no lock, no long statement and bounded memory."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Tuple, literal, select, tuple_
from sqlalchemy.orm import QueryableAttribute

from worker.ground.db import Database
from worker.jobs.base import UtcDateTime
from worker.jobs.models import JobRow

V = TypeVar("V")

SLICE = 2000
# Where a job is in the order of enqueuing.
PLACE = tuple_(JobRow.enqueued_at, JobRow.id)


def bind_place(at: datetime, job_id: UUID) -> Tuple:
    return tuple_(literal(at, UtcDateTime()), literal(job_id, JobRow.id.type))


@dataclass(frozen=True, slots=True)
class Slice:
    """Jobs that follow each other by id."""

    first: UUID
    last: UUID

    def covers(self, job_id: QueryableAttribute[UUID]) -> ColumnElement[bool]:
        """Whether the column names a job of this slice."""
        return job_id.between(self.first, self.last)


def next_slice(connection: Connection, after: UUID | None) -> Slice | None:
    """The slice that follows; None where the table ends."""
    statement = select(JobRow.id).order_by(JobRow.id).limit(SLICE)
    if after is not None:
        statement = statement.where(JobRow.id > after)
    ids = connection.execute(statement).scalars().all()
    return Slice(ids[0], ids[-1]) if ids else None


def walk_slices(db: Database) -> Iterator[Slice]:
    """The whole table, slice by slice; no transaction is open while a slice is worked on."""
    after: UUID | None = None
    while True:
        with db.reading() as connection:
            part = next_slice(connection, after)
        if part is None:
            return
        yield part
        after = part.last


def offer(sample: list[V], item: V, *, offered: int, size: int) -> None:
    """Keep `size` of all that are offered, each as likely as any other.

    `offered` counts them, with this one.
    """
    if len(sample) < size:
        sample.append(item)
    elif (place := secrets.randbelow(offered)) < size:
        sample[place] = item
