"""SQL on `workers`: who has been seen at work.

A row for each node name, as earlier releases write it; `processes` tells apart those that share it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update

from worker.jobs.models import WorkerRow
from worker.jobs.rows import columns_of, fetch_all, insert_for

# Several times as long as a worker lets pass before it writes that it is there.
UNSEEN_AFTER = timedelta(minutes=1)
# Columns that are of the process which wrote last; `processes` has them of each.
OF_A_PROCESS = ("pid", "queues", "started_at", "last_seen_at", "archive_fault")


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker's process, as it was last heard of. What it did last is known of the name alone."""

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


@dataclass(frozen=True, slots=True)
class _Row:
    """As the table has it; `processes` is by host and pid, and empty of earlier releases."""

    name: str
    pid: int
    queues: list[str]
    started_at: datetime
    last_seen_at: datetime
    last_step: str | None
    last_step_at: datetime | None
    archive_fault: str | None
    processes: dict[str, dict[str, Any]] | None


def keep_worker(connection: Connection, seen: SeenWorker) -> None:
    """Note that it is there; what it did last is kept, and who else of its name was seen lately."""
    told = {name: getattr(seen, name) for name in OF_A_PROCESS}
    times = {name: told[name].isoformat() for name in ("started_at", "last_seen_at")}
    own = {_name_process(seen): {**told, **times, "host": seen.host}}
    values = {**told, "processes": {**_list_others(connection, seen), **own}}
    connection.execute(
        insert_for(connection, WorkerRow)
        .values(name=seen.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def note_step(connection: Connection, name: str, step: str, at: datetime) -> None:
    """Note what it does just now; nothing for one that is not known yet."""
    values = {"last_seen_at": at, "last_step": step, "last_step_at": at}
    connection.execute(update(WorkerRow).where(WorkerRow.name == name).values(**values))


def remove_worker(connection: Connection, seen: SeenWorker) -> None:
    """Forget this process, and its name if no other process of that name was seen lately."""
    others = _list_others(connection, seen)
    if others:
        newest = max(others.values(), key=lambda told: _read_time(told["last_seen_at"]))
        values = {name: newest[name] for name in OF_A_PROCESS}
        values |= {name: _read_time(newest[name]) for name in ("started_at", "last_seen_at")}
        remaining = update(WorkerRow).where(WorkerRow.name == seen.name)
        connection.execute(remaining.values(**values, processes=others))
    else:
        connection.execute(delete(WorkerRow).where(WorkerRow.name == seen.name))


def forget_workers(connection: Connection, before: datetime) -> None:
    """Remove those that have not been seen since then."""
    connection.execute(delete(WorkerRow).where(WorkerRow.last_seen_at < before))


def list_workers(connection: Connection) -> list[SeenWorker]:
    """Each process, also where several have one name."""
    statement = select(*columns_of(WorkerRow)).order_by(WorkerRow.name)
    rows = fetch_all(connection, _Row, statement)
    return [seen for row in rows for seen in _split(row)]


def _list_others(connection: Connection, seen: SeenWorker) -> dict[str, dict[str, Any]]:
    """The other processes of its name that were seen within the last minute; locks the row."""
    statement = select(WorkerRow.processes).where(WorkerRow.name == seen.name).with_for_update()
    processes = connection.execute(statement).scalar_one_or_none() or {}
    own = _name_process(seen)
    return {
        process: told
        for process, told in processes.items()
        if process != own
        and abs(seen.last_seen_at - _read_time(told["last_seen_at"])) <= UNSEEN_AFTER
    }


def _split(row: _Row) -> Iterator[SeenWorker]:
    """The process that has written the row last is as new as the row, for its steps renew it."""
    values = asdict(row)
    processes = values.pop("processes") or {}
    last = SeenWorker(**values)
    if not any(told["pid"] == row.pid for told in processes.values()):
        yield last  # of a release that knows no processes
    is_shared = len(processes) > 1
    for _, told in sorted(processes.items()):
        seen_at = _read_time(told["last_seen_at"])
        yield replace(
            last,
            pid=told["pid"],
            queues=told["queues"],
            started_at=_read_time(told["started_at"]),
            last_seen_at=seen_at if is_shared else max(seen_at, row.last_seen_at),
            last_step=None if is_shared else row.last_step,
            last_step_at=None if is_shared else row.last_step_at,
            host=told["host"],
            archive_fault=told["archive_fault"],
        )


def _name_process(seen: SeenWorker) -> str:
    return f"{seen.host}:{seen.pid}"


def _read_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
