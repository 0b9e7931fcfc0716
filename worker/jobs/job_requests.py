"""SQL on `job_requests`, by the same rules as `table.py`.

A request that becomes a job in one go has no row here. A refused one has, and one that a worker
has begun to inspect although that may end the worker: `claims` counts how often.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, true

from worker.jobs.models import JobRequestRow
from worker.jobs.rows import count, fetch_all, insert_for, name_values, table_of

CODES = (
    "invalid_input",
    "idempotency_conflict",
    "upload_refused",
    "malformed_message",
    "message_compressed",
    "message_too_large",
    "unknown_task",
    "enqueue_impossible",
    "workers_lost",
)
"""For which requests are refused."""


class RequestState(StrEnum):
    PENDING = "pending"
    REFUSED = "refused"
    ACCEPTED = "accepted"


class Door(StrEnum):
    """By which a request came."""

    CELERY = "celery"


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A row; `errors` lists `field`, `code` and `message` of each thing that is wrong."""

    id: UUID
    state: str
    door: str
    message_id: str | None
    tenant: str | None
    received_at: datetime
    fields: dict[str, Any]
    error_code: str | None
    errors: list[dict[str, Any]] | None
    claims: int


def keep_refused(connection: Connection, refused: StoredRequest) -> bool:
    """Write a refused request, or turn the pending one of the same message into it.

    False if that message was refused before: its first row is kept.
    """
    names = ("state", "fields", "error_code", "errors", "tenant")
    changes = {name: getattr(refused, name) for name in names}
    return _insert_or_change(connection, refused, changes) is not None


def count_claim(connection: Connection, pending: StoredRequest) -> int | None:
    """Note that somebody begins to inspect it; how often that was noted, this time included.

    None if it was refused before.
    """
    return _insert_or_change(connection, pending, {"claims": JobRequestRow.claims + 1})


def _insert_or_change(
    connection: Connection, request: StoredRequest, changes: dict[str, Any]
) -> int | None:
    """Write the request, or change the pending one of its message; its claims, None if neither."""
    statement = (
        insert_for(connection, JobRequestRow)
        .values(name_values(request))
        .on_conflict_do_update(
            index_elements=("door", "message_id"),
            index_where=JobRequestRow.message_id.is_not(None),
            set_=changes,
            where=JobRequestRow.state == RequestState.PENDING,
        )
        .returning(JobRequestRow.claims)
    )
    return connection.execute(statement).scalar_one_or_none()


def forget_claims(connection: Connection, door: str, message_id: str, code: str) -> None:
    """Remove the row of a message that is pending, or was refused with `code` for its claims."""
    is_message = and_(JobRequestRow.door == door, JobRequestRow.message_id == message_id)
    is_counted = or_(JobRequestRow.state == RequestState.PENDING, JobRequestRow.error_code == code)
    connection.execute(delete(JobRequestRow).where(is_message, is_counted))


def list_refused(
    connection: Connection, limit: int, tenant: str | None = None
) -> list[StoredRequest]:
    """The newest first."""
    statement = select(table_of(JobRequestRow)).where(_IS_REFUSED, _is_of(tenant))
    newest = (JobRequestRow.received_at.desc(), JobRequestRow.id.desc())
    return fetch_all(connection, StoredRequest, statement.order_by(*newest).limit(limit))


def count_refused(connection: Connection) -> dict[str, dict[str, int]]:
    """How many rows of refused requests there are, by door and code."""
    keys = (JobRequestRow.door, JobRequestRow.error_code)
    statement = select(*keys, func.count()).where(_IS_REFUSED).group_by(*keys)
    counted: dict[str, dict[str, int]] = {}
    for door, code, number in connection.execute(statement):
        counted.setdefault(door, {})[str(code)] = number
    return counted


def count_old(connection: Connection, before: datetime, tenant: str | None) -> int:
    return count(connection, *_are_old(before, tenant))


def delete_old(connection: Connection, before: datetime, tenant: str | None, limit: int) -> int:
    """Delete requests that came before then and that nobody needs any more; how many."""
    some = select(JobRequestRow.id).where(*_are_old(before, tenant)).limit(limit)
    return connection.execute(delete(JobRequestRow).where(JobRequestRow.id.in_(some))).rowcount


_IS_REFUSED = JobRequestRow.state == RequestState.REFUSED


def _is_of(tenant: str | None) -> ColumnElement[bool]:
    return true() if tenant is None else JobRequestRow.tenant == tenant


def _are_old(before: datetime, tenant: str | None) -> tuple[ColumnElement[bool], ...]:
    """A pending message is only a count: the broker, not the row, brings it back."""
    is_over = or_(JobRequestRow.state != RequestState.PENDING, JobRequestRow.door == Door.CELERY)
    return (JobRequestRow.received_at < before, is_over, _is_of(tenant))
