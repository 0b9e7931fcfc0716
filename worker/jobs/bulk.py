"""SQL that enqueues many jobs at once, by the same rules as `table.py`.

A batch is a statement or two, however many rows it has.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    Connection,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from worker.jobs.models import EventRow, JobRow
from worker.jobs.rows import columns_of, fetch_all, is_postgres
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job, NewJob

Row: TypeAlias = dict[str, Any]

_NAMES = [field.name for field in fields(NewJob)]
_EVENT_NAMES = ["job_id", "at", "to_state", "reason", "fence"]
_EMPTY = dict.fromkeys(field.name for field in fields(Job))


def insert_jobs(connection: Connection, new: Sequence[NewJob]) -> dict[UUID, Job]:
    """Insert queued jobs, but those whose id, or (tenant, idempotency key), is taken; by their id.

    No two of them may have an id or a key in common.
    """
    if not new:
        return {}
    rows = [_list_values(one) for one in new]
    insert_all = _insert_packed if is_postgres(connection) else _insert_plainly
    inserted = set(insert_all(connection, rows))
    return {
        row["id"]: Job(**{**_EMPTY, **row})  # nothing else has a value yet
        for row in rows
        if row["id"] in inserted
    }


def list_rivals(connection: Connection, new: Sequence[NewJob]) -> list[Job]:
    """The jobs that have an id, or a (tenant, idempotency key), of one of these."""
    if not new:
        return []
    keys: dict[str, list[str]] = {}
    for one in new:
        if one.idempotency_key is not None:
            keys.setdefault(one.tenant, []).append(one.idempotency_key)
    by_id = select(*columns_of(JobRow)).where(JobRow.id.in_([one.id for one in new]))
    rivals = fetch_all(connection, Job, by_id)
    for tenant, named in keys.items():
        rivals += list_by_keys(connection, tenant, named)
    return rivals


def list_by_keys(connection: Connection, tenant: str, keys: Sequence[str]) -> list[Job]:
    """Of one tenant: SQLite searches no index for pairs."""
    statement = select(*columns_of(JobRow)).where(
        JobRow.tenant == tenant, JobRow.idempotency_key.in_(keys)
    )
    return fetch_all(connection, Job, statement)


def _list_values(new: NewJob) -> Row:
    values = {name: getattr(new, name) for name in _NAMES}
    return {**values, "state": JobState.QUEUED, "fence": 0}


def _insert_packed(connection: Connection, rows: Sequence[Row]) -> Iterable[UUID]:
    """All in one parameter and one statement: a parameter for each value takes far longer."""
    names, types = list(rows[0]), JobRow.__table__.columns
    packed = func.jsonb_to_recordset(cast(bindparam("rows", type_=Text()), JSONB))
    unpacked = packed.table_valued(*(column(name, types[name].type) for name in names))
    made = (
        postgresql.insert(JobRow)
        .from_select(names, select(*unpacked.render_derived(with_types=True).columns))
        .on_conflict_do_nothing()
        .returning(JobRow.id, JobRow.enqueued_at, JobRow.state, JobRow.fence)
        .cte("made")
    )
    reason = literal(JobEvent.ENQUEUED.value)
    events = select(made.c.id, made.c.enqueued_at, made.c.state, reason, made.c.fence)
    noted = insert(EventRow).from_select(_EVENT_NAMES, events).cte("noted")
    statement = select(made.c.id).add_cte(noted)
    return connection.execute(statement, {"rows": json.dumps(rows, default=str)}).scalars()


def _insert_plainly(connection: Connection, rows: Sequence[Row]) -> Iterable[UUID]:
    statement = sqlite.insert(JobRow).on_conflict_do_nothing().returning(JobRow.id)
    inserted = connection.execute(statement, rows).scalars().all()
    at = {row["id"]: row["enqueued_at"] for row in rows}
    events = [
        (job_id, at[job_id], JobState.QUEUED, JobEvent.ENQUEUED.value, 0) for job_id in inserted
    ]
    if events:
        named = [dict(zip(_EVENT_NAMES, values, strict=True)) for values in events]
        connection.execute(insert(EventRow), named)
    return inserted
