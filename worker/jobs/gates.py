"""SQL on `gates`: pauses that all workers keep, by the same rules as `table.py`."""

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, select

from worker.jobs.models import GateRow
from worker.jobs.rows import fetch_one, insert_for, table_of
from worker.jobs.values import Gate

_GATES = table_of(GateRow)
_FIND = select(*_GATES.c).where(_GATES.c.name == bindparam("of_name"))
_LOCK = _FIND.with_for_update()


def find_gate(connection: Connection, name: str, *, lock: bool = False) -> Gate | None:
    """The gate, if anybody has shut it; with `lock`, nobody else moves it before this ends."""
    return fetch_one(connection, Gate, _LOCK if lock else _FIND, {"of_name": name})


def shut_gate(connection: Connection, gate: Gate) -> None:
    """Let nobody pass before `gate.opens_at`."""
    values = {"opens_at": gate.opens_at, "reason": gate.reason}
    connection.execute(
        insert_for(connection, GateRow)
        .values(name=gate.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def pass_gate(connection: Connection, name: str, now: datetime, opens_at: datetime) -> bool:
    """Pass if it is open by now, and shut it behind; of many at once only one passes."""
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=opens_at)
        .on_conflict_do_update(
            index_elements=["name"], set_={"opens_at": opens_at}, where=GateRow.opens_at <= now
        )
        .returning(GateRow.name)
    )
    return connection.execute(statement).one_or_none() is not None


def remove_gate(connection: Connection, name: str) -> None:
    """Let everybody pass."""
    connection.execute(delete(GateRow).where(GateRow.name == name))


def remove_stale(connection: Connection, start: str, before: datetime) -> None:
    """Remove the gates whose names begin so, and that have been open since then."""
    connection.execute(
        delete(GateRow).where(
            GateRow.name.startswith(start, autoescape=True), GateRow.opens_at < before
        )
    )
