"""SQL on `gates`: pauses that all workers keep, by the same rules as `table.py`."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, bindparam, delete, or_, select

from worker.jobs.models import GateRow
from worker.jobs.rows import fetch_all, fetch_one, insert_for, table_of
from worker.jobs.values import Gate

# Named with a job's id: how many polls of it have failed in a row.
POLL_GATE = "poll"
# So many are told of, and have fal's listing asked.
MANY_POLLS = 3

_GATES = table_of(GateRow)
_FIND = select(*_GATES.c).where(_GATES.c.name == bindparam("of_name"))
_LOCK = _FIND.with_for_update()


def name_poll_gate(job_id: UUID) -> str:
    return f"{POLL_GATE} {job_id}"


def find_gate(connection: Connection, name: str, *, lock: bool = False) -> Gate | None:
    """The gate, if anybody has shut it; with `lock`, nobody else moves it before this ends."""
    return fetch_one(connection, Gate, _LOCK if lock else _FIND, {"of_name": name})


def list_gates(connection: Connection, names: Sequence[str], *, lock: bool = False) -> list[Gate]:
    """Those of the gates that there are; with `lock`, nobody else moves them before this ends."""
    statement = select(*_GATES.c).where(_GATES.c.name.in_(names)).order_by(_GATES.c.name)
    return fetch_all(connection, Gate, statement.with_for_update() if lock else statement)


def shut_gate(connection: Connection, gate: Gate) -> None:
    """Let nobody pass before `gate.opens_at`."""
    values = {"opens_at": gate.opens_at, "reason": gate.reason, "strikes": gate.strikes}
    connection.execute(
        insert_for(connection, GateRow)
        .values(name=gate.name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values)
    )


def count_strike(connection: Connection, name: str, now: datetime) -> int:
    """One more in a row; how many there are. The gate is open as long as it has no reason."""
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=now, strikes=1)
        .on_conflict_do_update(index_elements=["name"], set_={"strikes": GateRow.strikes + 1})
        .returning(GateRow.strikes)
    )
    return int(connection.execute(statement).scalar_one())


def pass_gate(connection: Connection, name: str, now: datetime, pause: timedelta) -> bool:
    """Pass if it is open by now, and shut it for the pause; of many at once only one passes.

    A time further ahead than the pause was written by a clock that was wrong.
    """
    is_open = or_(GateRow.opens_at <= now, GateRow.opens_at > now + pause)
    statement = (
        insert_for(connection, GateRow)
        .values(name=name, opens_at=now + pause)
        .on_conflict_do_update(
            index_elements=["name"], set_={"opens_at": now + pause}, where=is_open
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
