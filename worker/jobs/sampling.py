"""SQL that draws copies at random without walking the table: by where rows lie on disk.

Addresses are drawn, and those at which no copy of the scope lies are thrown away. So each copy is
as likely as any other, which it would not be by id or time: those come in crowds, with pauses.
"""

import secrets
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import Connection, TextClause, bindparam, select, text

from worker.jobs.archives import Scope
from worker.jobs.models import JobRow

# Addresses that are looked at by one statement.
PROBES = 4000
# PostgreSQL's own bound on the rows of a page of 8 KiB.
MOST_ROWS_OF_PAGE = 291


def probe_copies(connection: Connection, scope: Scope) -> set[UUID]:
    """The copies at a few thousand random addresses; at most of them there may be none."""
    draw = _draw_pages if connection.dialect.name == "postgresql" else _draw_row_numbers
    statement = select(JobRow.id).where(draw(connection), scope.covers())
    return set(connection.execute(statement).scalars())


def _draw_row_numbers(connection: Connection) -> TextClause:
    last = connection.execute(text("SELECT max(rowid) FROM jobs")).scalar_one() or 0
    numbers = {1 + secrets.randbelow(last) for _ in range(PROBES)} if last else set()
    return _match("jobs.rowid IN :places", numbers, expanding=True)


def _draw_pages(connection: Connection) -> TextClause:
    size = "SELECT pg_relation_size('jobs') / current_setting('block_size')::bigint"
    pages = connection.execute(text(size)).scalar_one()
    places = {
        f"({secrets.randbelow(pages)},{1 + secrets.randbelow(MOST_ROWS_OF_PAGE)})"
        for _ in range(PROBES)
        if pages
    }
    return _match("jobs.ctid = ANY(CAST(CAST(:places AS text[]) AS tid[]))", places)


def _match(condition: str, places: Iterable[object], *, expanding: bool = False) -> TextClause:
    return text(condition).bindparams(bindparam("places", list(places), expanding=expanding))
