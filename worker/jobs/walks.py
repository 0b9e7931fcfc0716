"""Keyset walks: whole tables in slices, with no lock, no long statement and bounded memory."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, SelectBase, select
from sqlalchemy.orm import QueryableAttribute

from worker.ground.db import Database
from worker.jobs.models import JobRow

V = TypeVar("V")

SLICE = 2000


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
    ids = select(JobRow.id).order_by(JobRow.id).limit(SLICE)
    last = find_last(connection, ids if after is None else ids.where(JobRow.id > after))
    if last is None:
        return None
    return Slice(UUID(int=0 if after is None else after.int + 1), last[0])


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
