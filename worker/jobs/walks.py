"""Keyset walks: whole tables in slices, with no lock, no long statement and bounded memory."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, SelectBase, and_, select
from sqlalchemy.orm import QueryableAttribute

from worker.ground.db import Database
from worker.jobs.models import JobRow

V = TypeVar("V")

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
    rows = select(JobRow.id)
    if after is not None:
        rows = rows.where(JobRow.id > after)
    last = find_last(connection, rows.order_by(JobRow.id).limit(SLICE))
    return None if last is None else Slice(after, last[0])


def find_last(connection: Connection, keys: SelectBase) -> Sequence[Any] | None:
    """The last of some keys in their order, found by the database; None if there are none."""
    found = keys.subquery()
    backwards = select(found).order_by(*(column.desc() for column in found.c)).limit(1)
    return connection.execute(backwards).one_or_none()


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
