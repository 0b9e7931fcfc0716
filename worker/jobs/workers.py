"""SQL on `workers`: who has been seen at work."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from worker.jobs.models import WorkerRow
from worker.jobs.rows import columns_of, fetch_all, insert_for


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A row of `workers`, as its process was last heard of."""

    name: str
    pid: int
    queues: list[str]
    started_at: datetime
    last_seen_at: datetime
    last_step: str | None = None
    last_step_at: datetime | None = None
    archive_fault: str | None = None


def keep_worker(connection: Connection, seen: SeenWorker) -> None:
    """Note that it is there, and with what archive; what it did last is kept."""
    values = {name: value for name, value in asdict(seen).items() if value is not None}
    values["archive_fault"] = seen.archive_fault
    known = {name: value for name, value in values.items() if name != "name"}
    connection.execute(
        insert_for(connection, WorkerRow)
        .values(**values)
        .on_conflict_do_update(index_elements=["name"], set_=known)
    )


def note_step(connection: Connection, name: str, step: str, at: datetime) -> None:
    """Note what it does just now; nothing for one that is not known yet."""
    values = {"last_seen_at": at, "last_step": step, "last_step_at": at}
    connection.execute(update(WorkerRow).where(WorkerRow.name == name).values(**values))


def remove_worker(connection: Connection, name: str) -> None:
    connection.execute(delete(WorkerRow).where(WorkerRow.name == name))


def forget_workers(connection: Connection, before: datetime) -> None:
    """Remove those that have not been seen since then."""
    connection.execute(delete(WorkerRow).where(WorkerRow.last_seen_at < before))


def list_workers(connection: Connection) -> list[SeenWorker]:
    statement = select(*columns_of(WorkerRow)).order_by(WorkerRow.name)
    return fetch_all(connection, SeenWorker, statement)
