"""SQL on `workers`: who has been seen at work.

A row for each process, by Celery's node name and the process: `submit@host host:123`. Earlier
releases have a row for each node name.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, select

from worker.jobs.models import WorkerRow
from worker.jobs.rows import change, insert_for

# Several times as long as a worker lets pass before it writes that it is there.
UNSEEN_AFTER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker's process, as it was last heard of."""

    name: str
    pid: int
    queues: list[str]
    started_at: datetime
    last_seen_at: datetime
    last_step: str | None = None
    last_step_at: datetime | None = None
    host: str | None = None
    archive_fault: str | None = None
    """Why it cannot archive; None if it can, or archives nothing."""


def keep_worker(connection: Connection, seen: SeenWorker) -> None:
    """Note that it is there, in place of processes of its name that are there no more."""
    expired = WorkerRow.last_seen_at < seen.last_seen_at - UNSEEN_AFTER
    connection.execute(delete(WorkerRow).where(_has_name(seen.name), expired))
    names = ("pid", "queues", "started_at", "last_seen_at", "archive_fault")
    values = {name: getattr(seen, name) for name in names}
    connection.execute(
        insert_for(connection, WorkerRow)
        .values(name=_name_row(seen), **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def note_step(connection: Connection, name: str, step: str, at: datetime) -> None:
    """Note what it does just now; of several of one name, the one that was seen last."""
    newest = select(WorkerRow.name).where(_has_name(name)).order_by(WorkerRow.last_seen_at.desc())
    is_newest = WorkerRow.name == newest.limit(1).scalar_subquery()
    values = {"last_seen_at": at, "last_step": step, "last_step_at": at}
    change(connection, WorkerRow, is_newest, **values)


def remove_worker(connection: Connection, seen: SeenWorker) -> None:
    connection.execute(delete(WorkerRow).where(WorkerRow.name == _name_row(seen)))


def forget_workers(connection: Connection, before: datetime) -> None:
    """Remove those that have not been seen since then."""
    connection.execute(delete(WorkerRow).where(WorkerRow.last_seen_at < before))


def list_workers(connection: Connection) -> list[SeenWorker]:
    """Each process, also where several have one name."""
    columns = [getattr(WorkerRow, name) for name in SeenWorker.__slots__ if name != "host"]
    seen: list[SeenWorker] = []
    for row in connection.execute(select(*columns).order_by(WorkerRow.name)).mappings():
        name, _, process = row["name"].rpartition(" ")
        host = process.rpartition(":")[0] or None
        seen.append(SeenWorker(**{**row, "name": name or process, "host": host}))
    return seen


def _name_row(seen: SeenWorker) -> str:
    return f"{seen.name} {seen.host or ''}:{seen.pid}"


def _has_name(name: str) -> ColumnElement[bool]:
    return WorkerRow.name.startswith(f"{name} ", autoescape=True)
